//! What this host lets us do: by which way a process can become root of a namespace with many user ids.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::{User, getuid};
use serde::{Deserialize, Serialize};

/// How a sandbox is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tier {
    /// Root where no user namespace with a /proc of its own can be had: the other namespaces, which take CAP_SYS_ADMIN.
    Root,
    /// Root: a user namespace in which the ids of images are themselves. Scripts may do there what they may when an ordinary
    /// user bakes, and no more: make no devices, give nothing to ids that images don't have.
    RootUserNamespace,
    /// An ordinary user with ranges in /etc/subuid and /etc/subgid: a user namespace mapped by newuidmap(1).
    Subids {
        /// First user id of the range.
        uid: u32,
        /// First group id of the range.
        gid: u32,
        /// How many of both are used.
        count: u32,
    },
}

impl std::fmt::Display for Tier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Tier::Root => f.write_str("root, in namespaces of its own"),
            Tier::RootUserNamespace => f.write_str("root, in a user namespace of its own"),
            Tier::Subids { uid, count, .. } => {
                write!(
                    f,
                    "ordinary user, in a user namespace with the ids {uid} to {}",
                    u64::from(*uid) + u64::from(*count) - 1
                )
            }
        }
    }
}

/// Why no sandbox can be made here, and what helps.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no sandbox can be made on this host: {missing}. {help}")]
pub struct Refusal {
    /// What is missing.
    pub missing: String,
    /// What the user or the administrator can do.
    pub help: String,
}

impl Refusal {
    fn new(missing: impl Into<String>, help: impl Into<String>) -> Refusal {
        Refusal { missing: missing.into(), help: help.into() }
    }
}

/// Ids that an image may use: those of Debian (policy 9.2.2) and `nobody`, 65534.
pub(super) const IDS_NEEDED: u32 = 65_535;
/// A mount point that is empty by nature hides nothing.
const BINFMT: &str = "/proc/sys/fs/binfmt_misc";
const CAP_SETGID: u32 = 6;
const CAP_SETUID: u32 = 7;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_SETFCAP: u32 = 31;

/// Finds the way that works on this host, by trying it where reading settings can't tell.
///
/// # Errors
/// [`Refusal`] says what is missing and what helps.
pub fn tier() -> Result<Tier, Refusal> {
    let uid = getuid().as_raw();
    if uid == 0 {
        check_mapped_ids()?;
    }
    let namespaces = check_user_namespaces();
    if uid == 0 {
        // What mapping many ids takes, the parent's 0 among them (user_namespaces(7)).
        let maps = [CAP_SETUID, CAP_SETGID, CAP_SETFCAP].into_iter().all(capability);
        let mounts = capability(CAP_SYS_ADMIN);
        if namespaces.is_ok() && maps && !(mounts && is_proc_covered()) {
            return Ok(Tier::RootUserNamespace);
        }
        if mounts {
            return Ok(Tier::Root);
        }
    }
    namespaces?;
    let user = User::from_uid(getuid()).ok().flatten().map_or_else(|| uid.to_string(), |u| u.name);
    let subuid = range("/etc/subuid", &user, uid)?;
    let subgid = range("/etc/subgid", &user, uid)?;
    for program in ["newuidmap", "newgidmap"] {
        if find_program(program).is_none() {
            return Err(Refusal::new(
                format!("the program {program} is not installed"),
                "Install the package `uidmap` (`shadow-utils` on Fedora)",
            ));
        }
    }
    // The id 0 is the user's own.
    Ok(Tier::Subids { uid: subuid.0, gid: subgid.0, count: subuid.1.min(subgid.1).min(IDS_NEEDED - 1) })
}

/// Whether parts of /proc are hidden, as in containers: then the kernel lets no user namespace have a /proc of its own.
fn is_proc_covered() -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let below = |line: &str| {
        line.split(' ').nth(4).is_some_and(|place| place.starts_with("/proc/") && place != BINFMT)
    };
    mounts.lines().any(below)
}

/// Root of a user namespace may be given few ids: then nothing can belong to the users of an image.
fn check_mapped_ids() -> Result<(), Refusal> {
    for (file, what) in [("/proc/self/uid_map", "user"), ("/proc/self/gid_map", "group")] {
        let text = fs::read_to_string(file).unwrap_or_default();
        match mapped(&text) {
            Some(count) if count < u64::from(IDS_NEEDED) => {
                return Err(Refusal::new(
                    format!("root of this user namespace has {count} {what} ids; {IDS_NEEDED} are needed"),
                    "Run Kiln outside of it, or give it a range of ids: for rootless Podman, lines for your user in \
                     /etc/subuid and /etc/subgid, then `podman system migrate`",
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

/// How many ids below 65535 the text of a uid_map (user_namespaces(7)) maps; `None` when it is none.
fn mapped(text: &str) -> Option<u64> {
    let line = |line: &str| {
        let mut numbers = line.split_ascii_whitespace().map(str::parse::<u64>);
        let (inside, _, count) = (numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?);
        let end = u64::from(IDS_NEEDED);
        Some((inside + count).min(end).saturating_sub(inside))
    };
    let counts: Option<Vec<u64>> = text.lines().map(line).collect();
    counts.filter(|counts| !counts.is_empty()).map(|counts| counts.into_iter().sum())
}

fn check_user_namespaces() -> Result<(), Refusal> {
    let number = |path: &str| fs::read_to_string(path).ok().and_then(|t| t.trim().parse::<u64>().ok());
    if number("/proc/sys/user/max_user_namespaces") == Some(0) {
        return Err(Refusal::new(
            "user namespaces are switched off (user.max_user_namespaces is 0)",
            "Allow them: `sysctl -w user.max_user_namespaces=15000`",
        ));
    }
    if number("/proc/sys/kernel/unprivileged_userns_clone") == Some(0) && getuid().as_raw() != 0 {
        return Err(Refusal::new(
            "users may not make user namespaces (kernel.unprivileged_userns_clone is 0)",
            "Allow it: `sysctl -w kernel.unprivileged_userns_clone=1`",
        ));
    }
    // AppArmor's restriction (Ubuntu 23.10 and later) lets the namespace be made and then takes its rights away.
    let tried = Command::new(super::executable())
        .args(["internal", "sandbox", "probe"])
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output();
    match tried {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(refused_namespace(String::from_utf8_lossy(&output.stderr).trim(), number)),
        Err(e) => Err(refused_namespace(&e.to_string(), number)),
    }
}

fn refused_namespace(why: &str, number: impl Fn(&str) -> Option<u64>) -> Refusal {
    if number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1) {
        return Refusal::new(
            "AppArmor keeps users from making user namespaces (kernel.apparmor_restrict_unprivileged_userns is 1)",
            "Allow it: `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`, or give the kiln program an AppArmor \
             profile with the rule `userns,`; or run as root",
        );
    }
    let why = if why.is_empty() { "the kernel refuses it" } else { why };
    Refusal::new(
        format!("a user namespace can't be made ({why})"),
        "In a container, run it with CAP_SYS_ADMIN or with a seccomp profile that allows `unshare` (for Docker: \
         `--security-opt seccomp=unconfined --security-opt apparmor=unconfined`)",
    )
}

/// Whether the process has a capability (the effective set of /proc/self/status).
fn capability(number: u32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let set = status.lines().find_map(|l| u64::from_str_radix(l.strip_prefix("CapEff:")?.trim(), 16).ok());
    set.is_some_and(|set| set >> number & 1 == 1)
}

/// The user's first large enough range of a subid(5) file. Both files name users, also the one for groups.
fn range(file: &str, user: &str, id: u32) -> Result<(u32, u32), Refusal> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let help = format!(
        "Have the administrator run `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}` (a range that no other user has)"
    );
    match find_range(&text, user, id) {
        Some((_, count)) if count < IDS_NEEDED => {
            Err(Refusal::new(format!("{file} gives {user} {count} ids; {IDS_NEEDED} are needed"), help))
        }
        Some(found) => Ok(found),
        None => Err(Refusal::new(format!("{file} has no line for the user {user}"), help)),
    }
}

/// The longest range of `user` (by name or number) in the text of a subid(5) file.
fn find_range(text: &str, user: &str, id: u32) -> Option<(u32, u32)> {
    let line = |line: &str| {
        let mut fields = line.split(':');
        let who = fields.next()?;
        let range = (fields.next()?.trim().parse().ok()?, fields.next()?.trim().parse().ok()?);
        (who == user || who == id.to_string()).then_some(range)
    };
    text.lines().filter_map(line).max_by_key(|&(start, count): &(u32, u32)| (count, std::cmp::Reverse(start)))
}

/// Looks a program up in PATH and in the usual folders.
pub(super) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(usual)
        .filter(|p| p.is_absolute())
        .map(|p| p.join(name))
        .find(|p| is_file(p))
}

fn is_file(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|m| m.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_a_namespace_are_counted() {
        assert_eq!(mapped("         0          0 4294967295\n"), Some(65_535));
        assert_eq!(mapped("0 1000 1\n"), Some(1));
        assert_eq!(mapped("0 1000 1\n1 100000 65536\n"), Some(65_535));
        assert_eq!((mapped(""), mapped("x")), (None, None));
    }

    #[test]
    fn the_longest_range_of_the_user_counts() {
        let text = "other:1:99999\nme:100000:10\nme:200000:65536\n1000:300000:65536\nbad\n";
        assert_eq!(find_range(text, "me", 7), Some((200_000, 65_536)));
        assert_eq!(find_range(text, "nobody-else", 1000), Some((300_000, 65_536)));
        assert_eq!(find_range(text, "absent", 7), None);
    }
}
