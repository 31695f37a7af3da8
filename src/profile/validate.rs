//! What no contract can say, because it concerns several fields.

mod publish;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::system::test::{Check, USER_DATA_LIMIT};
use crate::system::{ExtraFs, Set, Sudo, System, Value};
use crate::units::{Bytes, MIB};

/// Something wrong with a system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The field's path, as in `users.web.uid`.
    pub field: String,
    /// What is wrong, and what is expected.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// Smallest EFI system partition, in bytes: FAT32 needs 65,525 clusters of one sector each, and its two tables.
const MIN_ESP: u64 = 34 * MIB;

/// All problems of `system`, in the order of its fields.
pub(super) fn validate(system: &System) -> Vec<Problem> {
    let mut found = Vec::new();
    sources(system, &mut found);
    accounts(system, &mut found);
    paths(system, &mut found);
    units(system, &mut found);
    disk(system, &mut found);
    kernel(system, &mut found);
    checks("test.checks", &system.test.checks, &mut found);
    publish::aws(system, &mut found);
    found
}

/// Patterns are regular expressions, and what a file that isn't to be there holds can't be asked.
fn checks(set: &str, checks_of: &Set<Check>, found: &mut Vec<Problem>) {
    for (name, check) in checks_of.iter().filter(|(_, check)| check.enable) {
        let at = |field: &str| format!("{set}.\"{name}\".{field}");
        let patterns = [
            ("output", check.output.as_ref()),
            ("http.body", check.http.as_ref().and_then(|http| http.body.as_ref())),
            ("file.contains", check.file.as_ref().and_then(|file| file.contains.as_ref())),
        ];
        for (field, text) in patterns.into_iter().filter_map(|(field, text)| Some((field, text?))) {
            if let Err(e) = regex::Regex::new(text) {
                let why = e.to_string();
                let why = why.lines().last().unwrap_or_default().trim_start_matches("error: ");
                problem(found, at(field), format!("`{text}` is no regular expression: {why}"));
            }
        }
        if check.command.as_ref().is_some_and(|command| command.trim().is_empty()) {
            problem(found, at("command"), "it is empty: give a shell command");
        }
        if let Some(data) = &check.user_data {
            if data.text.len() > USER_DATA_LIMIT {
                let message = format!(
                    "it has {} bytes; EC2 takes at most {USER_DATA_LIMIT} (compress it, or have it fetch the rest)",
                    data.text.len()
                );
                problem(found, at("user_data.text"), message);
            }
            if !data.checks.values().any(|check| check.enable) {
                let message = "it is empty: say what the user-data is to bring about, else nothing is tested";
                problem(found, at("user_data.checks"), message);
            }
            checks(&at("user_data.checks"), &data.checks, found);
        }
    }
}

fn problem(found: &mut Vec<Problem>, field: impl Into<String>, message: impl Into<String>) {
    found.push(Problem { field: field.into(), message: message.into() });
}

fn sources(system: &System, found: &mut Vec<Problem>) {
    if !system.sources.values().any(|source| source.enable) {
        problem(found, "sources", "no source is on: an image needs at least one archive");
    }
    for (name, source) in system.sources.iter().filter(|(_, source)| source.enable) {
        // What apt in the image is told.
        let host = source.mirrors.first().and_then(|url| url.split("://").nth(1)?.split('/').next());
        if host.is_some_and(|host| host.contains('@')) {
            let message = "an address with a password would stand in the image, for apt there: name such a mirror by --mirror, \
                           KILN_MIRROR or your configuration file";
            problem(found, format!("sources.{name}.mirrors"), message);
        }
    }
    for (name, pin) in &system.pins {
        match (&pin.version, &pin.suite) {
            (Some(_), Some(_)) => problem(found, pin_field(name), "give `version` or `suite`, not both"),
            (None, None) => problem(found, pin_field(name), "give the `version` or the `suite` it is about"),
            _ => {}
        }
    }
}

fn pin_field(name: &str) -> String {
    super::FieldPath(vec!["pins".to_owned(), name.to_owned()]).to_string()
}

fn accounts(system: &System, found: &mut Vec<Problem>) {
    let uids = system.users.iter().filter(|(_, u)| u.enable).filter_map(|(name, u)| Some((u.uid?, name)));
    duplicates("users", "uid", uids, found);
    let gids = system.groups.iter().filter(|(_, g)| g.enable).filter_map(|(name, g)| Some((g.gid?, name)));
    duplicates("groups", "gid", gids, found);
    for (name, user) in system.users.iter().filter(|(_, u)| u.enable) {
        if name == "root" && user.uid.is_some_and(|uid| uid != 0) {
            problem(found, "users.root.uid", "root's id is 0");
        }
        if name != "root" && user.uid == Some(0) {
            problem(found, format!("users.{name}.uid"), "0 is root's id");
        }
        if user.sudo == Sudo::Password && user.hashed_password.is_none() {
            problem(
                found,
                format!("users.{name}.sudo"),
                "asks for a password, but the account has none: give `hashed_password`, or let sudo be 'nopasswd",
            );
        }
        for group in user.group.iter().chain(on(&user.groups)) {
            if system.groups.get(group).is_some_and(|g| !g.enable) {
                problem(
                    found,
                    format!("users.{name}"),
                    format!("is in the group {group}, which is switched off"),
                );
            }
        }
    }
}

fn on(set: &Set<bool>) -> impl Iterator<Item = &String> {
    set.iter().filter(|(_, on)| **on).map(|(name, _)| name)
}

fn duplicates<'a>(
    set: &str,
    field: &str,
    ids: impl Iterator<Item = (u32, &'a String)>,
    found: &mut Vec<Problem>,
) {
    let mut seen = BTreeMap::new();
    for (id, name) in ids {
        if let Some(first) = seen.insert(id, name) {
            problem(found, format!("{set}.{name}.{field}"), format!("{id} is {set}.{first}'s as well"));
        }
    }
}

/// One path can't be two things, nor lie below something that is no directory.
fn paths(system: &System, found: &mut Vec<Problem>) {
    let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
    let files = system.files.iter().filter(|(_, f)| f.enable).map(|(p, _)| ("files", p));
    let links = system.symlinks.iter().filter(|(_, l)| l.enable).map(|(p, _)| ("symlinks", p));
    let fetched = system.fetch.iter().filter(|(_, f)| f.enable).map(|(p, _)| ("fetch", p));
    let folders = system.directories.iter().filter(|(_, d)| d.enable).map(|(p, _)| ("directories", p));
    for (set, path) in files.chain(links).chain(fetched).chain(folders) {
        // A copied folder may be given its mode and owner as a directory.
        let copied = set == "directories" && system.files.get(path).is_some_and(|f| f.source.is_some());
        match seen.insert(path, set) {
            Some(first) if !copied => {
                problem(
                    found,
                    format!("{set}.\"{path}\""),
                    format!("is also in `{first}`: a path is one thing"),
                );
            }
            _ => {}
        }
    }
    for (path, set) in &seen {
        for (end, _) in path.match_indices('/').skip(1) {
            let above = &path[..end];
            let text = system.files.get(above).is_some_and(|f| f.enable && f.text.is_some());
            if text || seen.get(above) == Some(&"symlinks") || seen.get(above) == Some(&"fetch") {
                let other = seen.get(above).copied().unwrap_or("files");
                problem(
                    found,
                    format!("{set}.\"{path}\""),
                    format!("lies below {other}.\"{above}\", which is no directory"),
                );
            }
        }
    }
    for path in system.mounts.iter().filter(|(_, m)| m.enable).map(|(path, _)| path) {
        if path == "/" {
            problem(found, "mounts.\"/\"", "the root is mounted already: `disk` describes it");
        }
    }
}

fn units(system: &System, found: &mut Vec<Problem>) {
    for (name, unit) in &system.units {
        if name.contains("@.") && unit.state == crate::system::UnitState::Enabled {
            let message = "is a template: enable an instance of it, as in `name@instance.service`";
            problem(found, format!("units.\"{name}\".state"), message);
        }
    }
}

fn kernel(system: &System, found: &mut Vec<Problem>) {
    if system.kernel.arguments.get("root").is_some_and(|root| *root != Value::Bool(false)) {
        let message = "Kiln itself tells the kernel where its root is: leave this out (`rootflags` and `rootfstype` may be given)";
        problem(found, "kernel.arguments.root", message);
    }
}

fn disk(system: &System, found: &mut Vec<Problem>) {
    let disk = &system.disk;
    if disk.esp_size.0 < MIN_ESP {
        let message = format!("asked for {}, needs at least {} for FAT32", disk.esp_size, Bytes(MIN_ESP));
        problem(found, "disk.esp_size", message);
    }
    let mut mounts = BTreeMap::new();
    for (name, part) in disk.partitions.iter().filter(|(_, p)| p.enable) {
        let field = |field: &str| format!("disk.partitions.{name}.{field}");
        if part.size.0 < MIB {
            problem(found, field("size"), format!("asked for {}, needs at least 1 MiB", part.size));
        }
        if part.mount == "/" {
            problem(found, field("mount"), "the root is made by itself: name a path below it");
        }
        if !part.mount.is_empty() && part.fs != ExtraFs::Ext4 {
            problem(found, field("mount"), "only an ext4 partition can be mounted: set `fs = 'ext4`");
        }
        if !part.mount.is_empty()
            && let Some(first) = mounts.insert(part.mount.as_str(), name)
        {
            problem(found, field("mount"), format!("{} is the mount point of {first} as well", part.mount));
        }
        if system.mounts.get(&part.mount).is_some_and(|m| m.enable) {
            problem(found, field("mount"), format!("{} is in `mounts` as well", part.mount));
        }
    }
    let parts: u64 = disk.partitions.values().filter(|p| p.enable).map(|p| p.size.0).sum();
    let fixed = Bytes(parts.saturating_add(disk.esp_size.0));
    if let Some(size) = disk.size
        && size <= fixed
    {
        let message = format!("asked for {size}, but the ESP and the further partitions alone take {fixed}");
        problem(found, "disk.size", message);
    }
}
