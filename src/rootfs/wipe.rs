//! What makes a machine itself, or tells how the tree came about, is taken out: keys, ids, logs, lists, caches, backups.

use crate::rootfs::editor::Editor;
use crate::tree::{Content, Kind, TreePath};

/// Files that go.
const FILES: [&str; 25] = [
    "etc/.pwd.lock",
    "etc/group-",
    "etc/gshadow-",
    "etc/passwd-",
    "etc/shadow-",
    "etc/subgid-",
    "etc/subuid-",
    "etc/hostid",
    "etc/bind/rndc.key",
    "etc/nvme/hostid",
    "etc/nvme/hostnqn",
    "etc/machine-info",
    "etc/ssl/certs/ssl-cert-snakeoil.pem",
    "etc/ssl/private/ssl-cert-snakeoil.key",
    "root/.bash_history",
    "var/cache/apt/pkgcache.bin",
    "var/cache/apt/srcpkgcache.bin",
    "var/cache/debconf/passwords.dat-old",
    "var/cache/ldconfig/aux-cache",
    "var/lib/NetworkManager/secret_key",
    "var/lib/dpkg/lock",
    "var/lib/dpkg/lock-frontend",
    "var/lib/dpkg/triggers/Lock",
    "var/lib/systemd/credential.secret",
    "var/lib/systemd/random-seed",
];

/// Directories that stay, emptied.
const EMPTIED: [&str; 10] = [
    "dev",
    "proc",
    "root/.cache",
    "run",
    "sys",
    "tmp",
    "var/lib/systemd/coredump",
    "var/lib/systemd/timers",
    "var/log/journal",
    "var/tmp",
];

/// Directories whose files go while their folders stay.
const FILES_BELOW: [&str; 5] =
    ["var/cache/apt/archives", "var/lib/apt/lists", "var/lib/cloud", "var/lib/dhcp", "var/log/apt"];

/// Directories of which files with this ending go.
const ENDINGS: [(&str, &str); 4] = [
    ("var/lib/dpkg", "-old"),
    ("var/cache/debconf", "-old"),
    ("var/lib/aptitude", ".old"),
    ("var/lib/ucf", "-old"),
];

/// Logs that are not made anew by a service's own user: taken out whole. All others are emptied, so that owner and mode
/// stay as the package wants them.
const LOGS: [&str; 6] = [
    "var/log/alternatives.log",
    "var/log/bootstrap.log",
    "var/log/dpkg.log",
    "var/log/fontconfig.log",
    "var/log/faillog",
    "var/log/tallylog",
];

/// Takes it all out, but for what the profile itself wrote (`editor.written`).
pub(super) fn apply(editor: &mut Editor) {
    let mut doomed: Vec<TreePath> = FILES.iter().chain(&LOGS).map(|path| path.as_bytes().to_vec()).collect();
    for dir in EMPTIED {
        doomed.extend(editor.tree().below(dir.as_bytes()).map(|(path, _)| path.clone()));
    }
    for dir in FILES_BELOW {
        let files = editor.tree().below(dir.as_bytes()).filter(|(_, node)| node.kind != Kind::Dir);
        doomed.extend(files.map(|(path, _)| path.clone()));
    }
    for (dir, ending) in ENDINGS {
        let files = editor.tree().below(dir.as_bytes()).filter(|(path, _)| path.ends_with(ending.as_bytes()));
        doomed.extend(files.map(|(path, _)| path.clone()));
    }
    doomed.extend(host_keys(editor));
    doomed.extend(snakeoil_links(editor));
    let written = editor.written.clone();
    // Never a directory that still holds something which the profile wrote.
    let kept = |path: &TreePath| written.range(path.clone()..).next().is_some_and(|w| w.starts_with(path));
    for path in doomed.iter().filter(|path| !kept(path)) {
        editor.remove(path);
    }
    let written = &written;
    for (path, node) in editor.nodes_mut().filter(|(path, _)| path.starts_with(b"var/log/")) {
        if let Kind::File(content) = &mut node.kind
            && !content.is_empty()
            && !written.contains(path)
        {
            *content = Content::bytes("");
        }
    }
}

fn host_keys(editor: &Editor) -> Vec<TreePath> {
    let below = editor.tree().below(b"etc/ssh").map(|(path, _)| path.clone());
    below.filter(|path| path.starts_with(b"etc/ssh/ssh_host_")).collect()
}

/// The links by hash that openssl-rehash made for the snakeoil certificate.
fn snakeoil_links(editor: &Editor) -> Vec<TreePath> {
    let leads = |target: &[u8]| target.ends_with(b"ssl-cert-snakeoil.pem");
    let below = editor.tree().below(b"etc/ssl/certs");
    below.filter(|(_, n)| matches!(&n.kind, Kind::Symlink(t) if leads(t))).map(|(p, _)| p.clone()).collect()
}
