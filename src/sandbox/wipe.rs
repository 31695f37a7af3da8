//! Takes the identity out of a tree: what two builds of the same packages differ in, and what no two machines may share.

use std::fs;
use std::io;
use std::path::Path;

use super::error::{Doing, Inner};

/// Files that are deleted.
const FILES: [&str; 27] = [
    // Locks and the copies that shadow-utils, dpkg and debconf keep of what they changed.
    "/etc/.pwd.lock",
    "/etc/passwd-",
    "/etc/group-",
    "/etc/shadow-",
    "/etc/gshadow-",
    "/etc/subuid-",
    "/etc/subgid-",
    "/var/lib/dpkg/status-old",
    "/var/lib/dpkg/diversions-old",
    "/var/lib/dpkg/statoverride-old",
    "/var/lib/dpkg/lock",
    "/var/lib/dpkg/lock-frontend",
    "/var/lib/dpkg/triggers/Lock",
    "/var/lib/ucf/hashfile.0",
    "/var/lib/ucf/registry.0",
    "/var/cache/debconf/config.dat-old",
    "/var/cache/debconf/templates.dat-old",
    // Holds inode numbers and times.
    "/var/cache/ldconfig/aux-cache",
    // Secrets and names of the machine.
    "/var/lib/dbus/machine-id",
    "/var/lib/systemd/random-seed",
    "/var/lib/systemd/credential.secret",
    "/etc/bind/rndc.key",
    "/etc/ssl/private/ssl-cert-snakeoil.key",
    "/etc/ssl/certs/ssl-cert-snakeoil.pem",
    "/etc/mdadm/mdadm.conf.new",
    "/root/.rnd",
    "/root/.wget-hsts",
];

/// Folders that are emptied, themselves kept.
const FOLDERS: [&str; 4] = ["/run", "/tmp", "/var/tmp", "/var/cache/apt/archives/partial"];

/// Folders below which all files are deleted, directories and links kept: packages expect those.
const FILES_BELOW: [&str; 3] = ["/var/log", "/var/lib/apt/lists", "/var/cache/apt"];

/// Files of /var/log that packages make with owners of their own: emptied, not deleted.
const LOGINS: [&str; 4] = ["btmp", "wtmp", "lastlog", "faillog"];

/// What /etc/machine-id says: the first boot gives a new one, and counts as a first boot (machine-id(5)).
const MACHINE_ID: &str = "uninitialized\n";

/// Wipes the tree that is this process's root.
pub(super) fn wipe() -> Inner<()> {
    for file in FILES {
        gone(fs::remove_file(file)).doing_at("deleting", &file.as_bytes()[1..])?;
    }
    for folder in FOLDERS {
        gone(empty(Path::new(folder))).doing_at("emptying", &folder.as_bytes()[1..])?;
    }
    for folder in FILES_BELOW {
        gone(delete_files(Path::new(folder))).doing_at("emptying", &folder.as_bytes()[1..])?;
    }
    gone(host_keys()).doing("deleting the SSH host keys")?;
    gone(dangling_certificates()).doing("deleting links to a deleted certificate")?;
    machine_id().doing("resetting the machine id")
}

/// That a file isn't there is what was wanted.
fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(()),
        other => other,
    }
}

/// Deletes all that is in a folder.
pub(super) fn empty(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?
        } else {
            fs::remove_file(entry.path())?
        }
    }
    Ok(())
}

fn delete_files(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let (kind, path) = (entry.file_type()?, entry.path());
        if kind.is_dir() {
            delete_files(&path)?;
        } else if kind.is_file() && LOGINS.contains(&entry.file_name().to_string_lossy().as_ref()) {
            fs::File::options().write(true).truncate(true).open(path)?;
        } else if !kind.is_symlink() {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn host_keys() -> io::Result<()> {
    for entry in fs::read_dir("/etc/ssh")? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("ssh_host_") && (name.ends_with("_key") || name.ends_with("_key.pub")) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// The links in /etc/ssl/certs that are named by a hash of the certificate that was just deleted.
fn dangling_certificates() -> io::Result<()> {
    for entry in fs::read_dir("/etc/ssl/certs")? {
        let path = entry?.path();
        if fs::read_link(&path).is_ok_and(|to| to.ends_with("ssl-cert-snakeoil.pem")) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn machine_id() -> io::Result<()> {
    let path = Path::new("/etc/machine-id");
    if !path.exists() && !Path::new("/usr/lib/systemd/systemd").exists() {
        return Ok(());
    }
    gone(fs::remove_file(path))?;
    fs::write(path, MACHINE_ID)?;
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o444))
}
