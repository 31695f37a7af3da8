//! Groups and users: edited into the accounts' files, with homes, keys and sudo rules.

use std::collections::BTreeMap;

use crate::rootfs::accounts::{Table, add_member, is_valid_field, is_valid_name};
use crate::rootfs::editor::{Editor, in_field};
use crate::rootfs::error::{AccountError, RootfsError};
use crate::rootfs::near::Near;
use crate::system::{Group, Sudo, System, User};
use crate::tree::{Content, Kind, Node};

/// First number and count of the subordinate ids that a person gets (login.defs(5): SUB_UID_MIN, SUB_UID_COUNT).
const SUBORDINATE: (u32, u32) = (100_000, 65_536);
/// Numbers of people's accounts (Debian policy 9.2.2).
const PEOPLE: std::ops::Range<u32> = 1000..60_000;

const PACKAGE: &str = "which a package made";
const PROFILE: &str = "which the profile declares";

/// The accounts' files, read together and written together.
pub(super) struct Accounts {
    passwd: Table,
    group: Table,
    shadow: Table,
    gshadow: Table,
    /// subuid and subgid, where the tree has them.
    subordinate: BTreeMap<&'static str, Table>,
    /// Names that this profile added, to say so in errors.
    added: Vec<String>,
}

impl Accounts {
    /// Reads the tree's.
    pub fn read(editor: &Editor) -> Result<Accounts, RootfsError> {
        let table = |path| Ok::<_, RootfsError>(Table::parse(&editor.text(path)?.unwrap_or_default()));
        let mut subordinate = BTreeMap::new();
        for path in ["/etc/subuid", "/etc/subgid"] {
            if let Some(text) = editor.text(path)? {
                subordinate.insert(path, Table::parse(&text));
            }
        }
        Ok(Accounts {
            passwd: table("/etc/passwd")?,
            group: table("/etc/group")?,
            shadow: table("/etc/shadow")?,
            gshadow: table("/etc/gshadow")?,
            subordinate,
            added: Vec::new(),
        })
    }

    fn write(&self, editor: &mut Editor) -> Result<(), RootfsError> {
        let files = [
            ("/etc/passwd", 0o644, &self.passwd),
            ("/etc/group", 0o644, &self.group),
            ("/etc/shadow", 0o640, &self.shadow),
            ("/etc/gshadow", 0o640, &self.gshadow),
        ];
        let subordinate = self.subordinate.iter().map(|(path, table)| (*path, 0o644, table));
        for (path, mode, table) in files.into_iter().chain(subordinate) {
            let text = table.print();
            if editor.text(path)?.unwrap_or_default() != text {
                let fresh = !editor.has(path);
                editor.rewrite("users", path, mode, text)?;
                if let (true, 0o640, Some(gid)) = (fresh, mode, self.group.number("shadow", 2)) {
                    let _ = editor.own(path, 0, gid);
                }
            }
        }
        Ok(())
    }

    /// The number of the user or group that `name` (a name or a number) means.
    pub fn owner(&self, field: &str, user: &str, group: &str) -> Result<(u32, u32), RootfsError> {
        let uid = user.parse().ok().or_else(|| self.passwd.number(user, 2));
        let uid = uid.ok_or_else(|| self.no_user(&format!("{field}.user"), user))?;
        let gid = group.parse().ok().or_else(|| self.group.number(group, 2));
        Ok((uid, gid.ok_or_else(|| self.no_group(&format!("{field}.group"), group))?))
    }

    fn no_user(&self, field: &str, name: &str) -> RootfsError {
        let near = Near::of(name, self.passwd.names());
        RootfsError::account(field, AccountError::NoUser { name: name.to_owned(), near })
    }

    fn no_group(&self, field: &str, name: &str) -> RootfsError {
        let near = Near::of(name, self.group.names());
        RootfsError::account(field, AccountError::NoGroup { name: name.to_owned(), near })
    }

    fn origin(&self, name: &str) -> &'static str {
        if self.added.iter().any(|added| added == name) { PROFILE } else { PACKAGE }
    }

    /// Whether `id` is asked for rightly: free, or already the one of `name`. Answers whether the entry exists.
    fn check_id(
        &self,
        kind: &'static str,
        field: &str,
        name: &str,
        id: Option<u32>,
    ) -> Result<bool, RootfsError> {
        let table = if kind == "uid" { &self.passwd } else { &self.group };
        let wrong = |why| Err(RootfsError::account(field, why));
        if !is_valid_name(name) && table.get(name).is_none() {
            return wrong(AccountError::BadName(name.to_owned()));
        }
        match (table.number(name, 2), id) {
            (Some(has), Some(wants)) if has != wants => {
                wrong(AccountError::OtherId { kind, has, wants, origin: self.origin(name) })
            }
            (Some(_), _) => Ok(true),
            (None, None) => wrong(AccountError::NeedsId { kind, near: Near::of(name, table.names()) }),
            (None, Some(id)) => match table.holder(id, 2) {
                Some(holder) => {
                    let origin = self.origin(holder);
                    wrong(AccountError::IdTaken { kind, id, holder: holder.to_owned(), origin })
                }
                None => Ok(false),
            },
        }
    }

    fn add_group(&mut self, name: &str, gid: u32) {
        self.group.push([name, "x", &gid.to_string(), ""]);
        self.gshadow.push([name, "!", "", ""]);
        self.added.push(name.to_owned());
    }

    /// Makes `user` a member of `group` in both files.
    fn join(&mut self, group: &str, user: &str) {
        for table in [&mut self.group, &mut self.gshadow] {
            if let Some(members) = table.get_mut(group).and_then(|fields| fields.get_mut(3)) {
                add_member(members, user);
            }
        }
    }
}

/// Groups and users of the profile; the accounts as they are then.
pub(super) fn apply(editor: &mut Editor, system: &System) -> Result<Accounts, RootfsError> {
    let mut accounts = Accounts::read(editor)?;
    let groups: Vec<(&String, &Group)> = system.groups.iter().filter(|(_, g)| g.enable).collect();
    let users: Vec<(&String, &User)> = system.users.iter().filter(|(_, u)| u.enable).collect();
    for (name, group) in &groups {
        let field = format!("groups.{name}");
        if !accounts.check_id("gid", &field, name, group.gid)? {
            accounts.add_group(name, group.gid.unwrap_or_default());
        }
    }
    for (name, user) in &users {
        account(&mut accounts, editor, name, user)?;
    }
    for (name, group) in &groups {
        for member in group.members.iter().filter(|(_, on)| **on).map(|(member, _)| member) {
            if accounts.passwd.get(member).is_none() {
                return Err(accounts.no_user(&format!("groups.{name}.members"), member));
            }
            accounts.join(name, member);
        }
    }
    accounts.write(editor)?;
    for (name, user) in &users {
        home(editor, &accounts, name, user)?;
        sudo(editor, &accounts, name, user)?;
    }
    Ok(accounts)
}

/// The account's lines.
fn account(accounts: &mut Accounts, editor: &mut Editor, name: &str, user: &User) -> Result<(), RootfsError> {
    let field = format!("users.{name}");
    let wrong = |why| RootfsError::account(&field, why);
    if user.hashed_password.as_deref().is_some_and(|hash| !is_hash(hash)) {
        return Err(wrong(AccountError::NotHashed));
    }
    let exists = accounts.check_id("uid", &field, name, user.uid)?;
    if user.uid.is_some() {
        for (what, value) in [("gecos", &user.gecos), ("home", &user.home), ("shell", &user.shell)] {
            if !is_valid_field(value) {
                return Err(wrong(AccountError::BadField { what, value: value.clone() }));
            }
        }
        if !editor.has(&user.shell) {
            return Err(wrong(AccountError::NoShell(user.shell.clone())));
        }
    }
    if exists {
        amend(accounts, name, user);
    } else {
        add_user(accounts, editor.epoch, name, user)?;
    }
    for group in user.groups.iter().filter(|(_, on)| **on).map(|(group, _)| group) {
        if accounts.group.get(group).is_none() {
            return Err(accounts.no_group(&format!("{field}.groups"), group));
        }
        accounts.join(group, name);
    }
    Ok(())
}

fn add_user(accounts: &mut Accounts, epoch: i64, name: &str, user: &User) -> Result<(), RootfsError> {
    let uid = user.uid.unwrap_or_default();
    let gid = primary_group(accounts, name, user, uid)?;
    let (uid_text, gid_text) = (uid.to_string(), gid.to_string());
    accounts.passwd.push([name, "x", &uid_text, &gid_text, &user.gecos, &user.home, &user.shell]);
    let day = epoch.div_euclid(86_400).to_string();
    let hash = user.hashed_password.as_deref().unwrap_or("!");
    accounts.shadow.push([name, hash, &day, "0", "99999", "7", "", "", ""]);
    accounts.added.push(name.to_owned());
    if PEOPLE.contains(&uid) {
        for table in accounts.subordinate.values_mut() {
            add_subordinate(table, name);
        }
    }
    Ok(())
}

/// The number of the user's own group; one of the user's name is made when there is none.
fn primary_group(accounts: &mut Accounts, name: &str, user: &User, uid: u32) -> Result<u32, RootfsError> {
    let field = format!("users.{name}.group");
    if let Some(group) = &user.group {
        let gid = group.parse().ok().or_else(|| accounts.group.number(group, 2));
        return gid.ok_or_else(|| accounts.no_group(&field, group));
    }
    if let Some(gid) = accounts.group.number(name, 2) {
        return Ok(gid);
    }
    if !accounts.check_id("gid", &field, name, Some(uid))? {
        accounts.add_group(name, uid);
    }
    Ok(uid)
}

/// Changes an account that exists. With its number, the entry says all of it; without, it only adds: a password.
fn amend(accounts: &mut Accounts, name: &str, user: &User) {
    if let (Some(_), Some(fields)) = (user.uid, accounts.passwd.get_mut(name)) {
        for (at, value) in [(4, &user.gecos), (5, &user.home), (6, &user.shell)] {
            if let Some(field) = fields.get_mut(at).filter(|_| !value.is_empty()) {
                field.clone_from(value);
            }
        }
    }
    let hash = accounts.shadow.get_mut(name).and_then(|fields| fields.get_mut(1));
    if let (Some(field), Some(hash)) = (hash, &user.hashed_password) {
        field.clone_from(hash);
    }
}

/// Appends a range of subordinate ids behind all others (subuid(5)), unless the user has one.
fn add_subordinate(table: &mut Table, name: &str) {
    if table.get(name).is_some() {
        return;
    }
    let number =
        |fields: &[String], at: usize| fields.get(at).and_then(|f| f.parse::<u32>().ok()).unwrap_or(0);
    let end = table.entries().map(|fields| number(fields, 1).saturating_add(number(fields, 2))).max();
    let start = end.unwrap_or(0).max(SUBORDINATE.0);
    table.push([name, &start.to_string(), &SUBORDINATE.1.to_string()]);
}

/// Whether `text` is a crypt(5) hash, or `!`/`*` with or without one.
fn is_hash(text: &str) -> bool {
    let hash = text.trim_start_matches(['!', '*']);
    let alphabet = |c: char| c.is_ascii_alphanumeric() || "./$,=_-+".contains(c);
    (hash.is_empty() && !text.is_empty())
        || (hash.starts_with('$') && hash.len() > 12 && hash.chars().all(alphabet))
}

/// The home directory, filled from /etc/skel, and its authorized_keys.
fn home(editor: &mut Editor, accounts: &Accounts, name: &str, user: &User) -> Result<(), RootfsError> {
    let field = format!("users.{name}");
    let Some(entry) = accounts.passwd.get(name) else { return Ok(()) };
    let at = |index: usize| entry.get(index).cloned().unwrap_or_default();
    let (home, uid, gid) = (at(5), at(2).parse().unwrap_or(0), at(3).parse().unwrap_or(0));
    // A package's account that is only added to keeps doing without a home, unless keys have to lie there.
    let wanted = user.uid.is_some() || (!user.ssh_keys.is_empty() && home != "/nonexistent");
    if user.create_home && wanted && !editor.has(&home) {
        // Mode 0700: HOME_MODE of Debian's login.defs.
        editor.put_dir(&home, 0o700, uid, gid).map_err(in_field(&format!("{field}.home"), &home))?;
        fill_from_skel(editor, &field, &home, uid, gid)?;
    }
    let keys = authorized_keys(&field, user)?;
    if keys.is_empty() {
        return Ok(());
    }
    if !editor.is_dir(&home) {
        return Err(RootfsError::account(field, AccountError::NoHome(home)));
    }
    let folder = format!("{}/.ssh", home.trim_end_matches('/'));
    editor.put_dir(&folder, 0o700, uid, gid).map_err(in_field(&field, &folder))?;
    let path = format!("{folder}/authorized_keys");
    let node = Node::new(Kind::File(Content::bytes(keys)), 0o600, 0).owned_by(uid, gid);
    editor.put(&path, node).map(drop).map_err(in_field(&field, &path))
}

fn fill_from_skel(
    editor: &mut Editor,
    field: &str,
    home: &str,
    uid: u32,
    gid: u32,
) -> Result<(), RootfsError> {
    let Some(skel) = editor.tree().resolve("/etc/skel") else { return Ok(()) };
    let nodes: Vec<(Vec<u8>, Node)> =
        editor.tree().below(&skel).map(|(p, n)| (p.clone(), n.clone())).collect();
    for (path, node) in nodes {
        let Ok(name) = std::str::from_utf8(&path[skel.len()..]) else { continue };
        let target = format!("{home}{name}");
        let node = match &node.kind {
            Kind::HardLink(first) => match editor.tree().get(first) {
                Some(node) => node.clone(),
                None => continue,
            },
            _ => node,
        };
        let done = match node.kind {
            Kind::Dir => editor.put_dir(&target, node.mode, uid, gid),
            _ => editor.put(&target, node.owned_by(uid, gid)),
        };
        done.map_err(in_field(field, &target))?;
    }
    Ok(())
}

/// The text of authorized_keys, a line a key.
fn authorized_keys(field: &str, user: &User) -> Result<String, RootfsError> {
    let mut text = String::new();
    for (label, key) in &user.ssh_keys {
        let line = key.trim();
        let kinds = ["ssh-", "ecdsa-", "sk-ssh-", "sk-ecdsa-"];
        let typed = line.split_whitespace().any(|word| kinds.iter().any(|kind| word.starts_with(kind)));
        if line.contains('\n') || !typed || line.split_whitespace().count() < 2 {
            let field = format!("{field}.ssh_keys.{label}");
            return Err(RootfsError::account(field, AccountError::BadKey(key.clone())));
        }
        text.push_str(line);
        text.push('\n');
    }
    Ok(text)
}

/// What sudo lets the user do, as a file of sudoers(5). Its name must hold no dot, or sudo passes over it.
fn sudo(editor: &mut Editor, accounts: &Accounts, name: &str, user: &User) -> Result<(), RootfsError> {
    let tag = match user.sudo {
        Sudo::None => return Ok(()),
        Sudo::Password => "",
        Sudo::Nopasswd => "NOPASSWD: ",
    };
    let field = format!("users.{name}.sudo");
    if !editor.has("/usr/bin/sudo") {
        return Err(RootfsError::NeedsPackage { field, what: "/usr/bin/sudo".to_owned(), package: "sudo" });
    }
    let hash = accounts.shadow.get(name).and_then(|fields| fields.get(1)).map_or("!", String::as_str);
    if user.sudo == Sudo::Password && hash.starts_with(['!', '*']) {
        editor
            .warnings
            .push(format!("{field} = 'password, but the account has no password: sudo will refuse it"));
    }
    let path = format!("/etc/sudoers.d/{}", name.replace('.', "_"));
    editor.write_mode(&field, &path, 0o440, format!("{name} ALL=(ALL:ALL) {tag}ALL\n"))
}
