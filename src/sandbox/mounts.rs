//! The mounts of a sandbox: the tree becomes `/`, with small /dev, /proc, /tmp and /run of its own over it.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{chdir, pivot_root};

use super::error::{Doing, Failure, Inner};
use super::memory;

const NONE: Option<&str> = None;

/// Devices that are bound from the host: none can be made in a user namespace.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// Mount points over the tree, in the order in which they are made.
const MOUNTS: [&str; 4] = ["dev", "proc", "tmp", "run"];

/// Separates the mounts of this process from the host's and, when memory allows for a tree of `bytes`, puts a tmpfs over
/// the scratch folder `root`: it is faster and needs no deleting. Says whether it did.
pub(super) fn prepare(root: &Path, bytes: u64) -> Inner<bool> {
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)
        .doing("separating its mounts from the host's")?;
    let in_memory = memory::is_enough_for(bytes);
    if in_memory {
        mount(Some("tmpfs"), root, Some("tmpfs"), MsFlags::empty(), Some("mode=755,size=90%"))
            .doing("mounting a tmpfs")?;
    }
    Ok(in_memory)
}

/// Makes `root` the root of this process's mount namespace.
pub(super) fn enter(root: &Path) -> Inner<()> {
    if statvfs(root).is_ok_and(|s| s.flags().contains(FsFlags::ST_NOEXEC)) {
        let why =
            "the file system that holds the scratch folder is mounted noexec; use another store (--store)";
        return Err(Failure::Failed { doing: "looking at the scratch folder".into(), why: why.into() });
    }
    mount(Some(root), root, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE).doing("mounting the tree")?;
    for name in MOUNTS {
        let path = root.join(name);
        fs::create_dir_all(&path).doing("making mount points")?;
        match name {
            "dev" => devices(&path)?,
            "proc" => processes(&path)?,
            "tmp" => tmpfs(&path, "mode=1777")?,
            _ => tmpfs(&path, "mode=755")?,
        }
    }
    chdir(root).doing("entering the tree")?;
    pivot_root(".", ".").doing("making the tree the root")?;
    umount2(".", MntFlags::MNT_DETACH).doing("leaving the host's files")?;
    chdir("/").doing("entering the tree")?;
    check_processes()
}

/// Takes the mounts away again, so that what is below them shows.
pub(super) fn uncover() -> Inner<()> {
    for name in MOUNTS.iter().rev() {
        umount2(*name, MntFlags::MNT_DETACH).doing("taking a mount away")?;
    }
    Ok(())
}

fn tmpfs(path: &Path, options: &str) -> Inner<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(options)).doing("mounting a tmpfs")
}

fn devices(dev: &Path) -> Inner<()> {
    mount(Some("tmpfs"), dev, Some("tmpfs"), MsFlags::MS_NOSUID, Some("mode=755,size=1g"))
        .doing("mounting /dev")?;
    for name in DEVICES {
        let path = dev.join(name);
        fs::write(&path, "").doing("making a device")?;
        mount(Some(&Path::new("/dev").join(name)), &path, NONE, MsFlags::MS_BIND, NONE)
            .doing("binding a device")?;
    }
    let make = || -> io::Result<()> {
        symlink("/proc/self/fd", dev.join("fd"))?;
        for (name, number) in [("stdin", 0), ("stdout", 1), ("stderr", 2)] {
            symlink(format!("/proc/self/fd/{number}"), dev.join(name))?;
        }
        symlink("pts/ptmx", dev.join("ptmx"))?;
        fs::create_dir(dev.join("pts"))?;
        fs::create_dir(dev.join("shm"))
    };
    make().doing("furnishing /dev")?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let options = "newinstance,ptmxmode=0666,mode=620";
    mount(Some("devpts"), &dev.join("pts"), Some("devpts"), flags, Some(options))
        .doing("mounting /dev/pts")?;
    mount(
        Some("tmpfs"),
        &dev.join("shm"),
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some("mode=1777"),
    )
    .doing("mounting /dev/shm")
}

/// A fresh /proc; where the host's is partly covered, as in a container, the kernel refuses one and the host's is bound.
fn processes(path: &Path) -> Inner<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    match mount(Some("proc"), path, Some("proc"), flags, NONE) {
        Err(Errno::EPERM) => mount(Some("/proc"), path, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE),
        other => other,
    }
    .doing("mounting /proc")
}

/// Without a working /proc, scripts succeed and leave things out: systemd-tmpfiles does nothing, for example.
fn check_processes() -> Inner<()> {
    for path in ["/proc/self/status", "/proc/self/fd/0", "/proc/mounts", "/proc/sys/kernel/ostype"] {
        fs::symlink_metadata(path).doing_at("checking that /proc works, by", &path.as_bytes()[1..])?;
    }
    Ok(())
}
