//! The profile's own directories, files, links and fetched files.

use std::collections::BTreeMap;

use crate::rootfs::editor::{Editor, in_field, volatile};
use crate::rootfs::error::{PathError, RootfsError};
use crate::rootfs::users::Accounts;
use crate::rootfs::{ComposeContext, SourceFiles, SourceNode};
use crate::system::{File, System};
use crate::tree::{Content, Kind, Node, TreePath};

/// Files that are edited, never replaced.
const ACCOUNTS: [&str; 4] = ["etc/passwd", "etc/group", "etc/shadow", "etc/gshadow"];

/// GRUB's menu, which is written when everything else is there.
const BOOT_MENU: &str = "boot/grub/grub.cfg";

/// Which field wrote which path.
#[derive(Default)]
struct Claims(BTreeMap<TreePath, String>);

/// Mode and owner of something.
#[derive(Clone, Copy)]
struct Rights {
    mode: u32,
    uid: u32,
    gid: u32,
}

impl Rights {
    fn node(self, kind: Kind) -> Node {
        Node::new(kind, self.mode, 0).owned_by(self.uid, self.gid)
    }
}

/// Writes all of them; parents come before what lies in them.
pub(super) fn apply(
    editor: &mut Editor,
    system: &System,
    accounts: &Accounts,
    sources: &dyn SourceFiles,
    ctx: &ComposeContext,
) -> Result<(), RootfsError> {
    let mut claims = Claims::default();
    for (path, dir) in system.directories.iter().filter(|(_, d)| d.enable) {
        let field = format!("directories.\"{path}\"");
        let rights = rights(accounts, &field, &dir.mode, &dir.user, &dir.group)?;
        let place =
            editor.put_dir(path, rights.mode, rights.uid, rights.gid).map_err(in_field(&field, path))?;
        claims.take(&field, path, place)?;
    }
    for (path, file) in system.files.iter().filter(|(_, f)| f.enable) {
        let field = format!("files.\"{path}\"");
        let rights = rights(accounts, &field, &file.mode, &file.user, &file.group)?;
        match wanted(&field, file, sources)? {
            SourceNode::Folder(entries) => folder(editor, &mut claims, &field, path, &entries, rights)?,
            node => put(editor, &mut claims, &field, path, node, rights)?,
        }
    }
    for (path, fetch) in system.fetch.iter().filter(|(_, f)| f.enable) {
        let field = format!("fetch.\"{path}\"");
        let rights = rights(accounts, &field, &fetch.mode, &fetch.user, &fetch.group)?;
        let missing = || RootfsError::value(format!("{field}.url"), &fetch.url, "it was not fetched");
        let content = ctx.fetched.get(path).cloned().ok_or_else(missing)?;
        put(editor, &mut claims, &field, path, SourceNode::File { content, executable: false }, rights)?;
    }
    for (path, link) in system.symlinks.iter().filter(|(_, l)| l.enable) {
        let field = format!("symlinks.\"{path}\"");
        if link.target.is_empty() || link.target.contains('\0') || link.target.len() > 4095 {
            let why = "a link needs a target of 1 to 4095 bytes";
            return Err(RootfsError::value(format!("{field}.target"), &link.target, why));
        }
        let rights = Rights { mode: 0o777, uid: 0, gid: 0 };
        put(editor, &mut claims, &field, path, SourceNode::Symlink(link.target.clone().into()), rights)?;
    }
    Ok(())
}

/// What a file of the profile holds.
fn wanted(field: &str, file: &File, sources: &dyn SourceFiles) -> Result<SourceNode, RootfsError> {
    match (&file.text, &file.source) {
        (Some(text), None) => {
            Ok(SourceNode::File { content: Content::bytes(text.as_bytes()), executable: false })
        }
        (None, Some(name)) => sources.source(name).map_err(|error| RootfsError::Source {
            field: format!("{field}.source"),
            name: name.clone(),
            error,
        }),
        _ => Err(RootfsError::value(field, "", "exactly one of text and source must be given")),
    }
}

/// A folder of the profile. Its files get the mode given, its directories that mode and the right to search for whoever
/// may read.
fn folder(
    editor: &mut Editor,
    claims: &mut Claims,
    field: &str,
    path: &str,
    entries: &BTreeMap<String, SourceNode>,
    rights: Rights,
) -> Result<(), RootfsError> {
    if !editor.is_dir(path) {
        let mode = searchable(rights.mode);
        let place = editor.put_dir(path, mode, rights.uid, rights.gid).map_err(in_field(field, path))?;
        claims.take(field, path, place)?;
    }
    for (name, node) in entries {
        let path = format!("{}/{name}", path.trim_end_matches('/'));
        match node {
            SourceNode::Folder(entries) => folder(editor, claims, field, &path, entries, rights)?,
            node => put(editor, claims, field, &path, node.clone(), rights)?,
        }
    }
    Ok(())
}

/// A single file or link. A source that may be executed gives that right to whoever may read it.
fn put(
    editor: &mut Editor,
    claims: &mut Claims,
    field: &str,
    path: &str,
    what: SourceNode,
    rights: Rights,
) -> Result<(), RootfsError> {
    let node = match what {
        SourceNode::File { content, executable } => {
            let mode = if executable { searchable(rights.mode) } else { rights.mode };
            Rights { mode, ..rights }.node(Kind::File(content))
        }
        SourceNode::Symlink(target) => Rights { mode: 0o777, ..rights }.node(Kind::Symlink(target)),
        SourceNode::Folder(_) => return Ok(()),
    };
    let place = editor.put(path, node).map_err(in_field(field, path))?;
    claims.take(field, path, place)
}

/// The mode with the right to execute, or to search, for whoever may read.
fn searchable(mode: u32) -> u32 {
    mode | (mode & 0o444) >> 2
}

impl Claims {
    /// Notes that `field` wrote `place`, and refuses what makes no sense there.
    fn take(&mut self, field: &str, path: &str, place: TreePath) -> Result<(), RootfsError> {
        let wrong = |why| Err(in_field(field, path)(why));
        if let Some(top) = volatile(&place) {
            return wrong(PathError::Volatile(top));
        }
        if ACCOUNTS.iter().any(|path| path.as_bytes() == place) {
            return wrong(PathError::Accounts);
        }
        if place == BOOT_MENU.as_bytes() {
            return wrong(PathError::BootMenu);
        }
        match self.0.insert(place, field.to_owned()) {
            Some(other) => wrong(PathError::AlsoBy(other)),
            None => Ok(()),
        }
    }
}

fn rights(
    accounts: &Accounts,
    field: &str,
    mode: &str,
    user: &str,
    group: &str,
) -> Result<Rights, RootfsError> {
    let number = u32::from_str_radix(mode, 8).ok().filter(|m| *m <= 0o7777 && (3..=5).contains(&mode.len()));
    let why = "a mode is three or four octal digits, as in \"0644\"";
    let mode = number.ok_or_else(|| RootfsError::value(format!("{field}.mode"), mode, why))?;
    let (uid, gid) = accounts.owner(field, user, group)?;
    Ok(Rights { mode, uid, gid })
}
