//! Writes the entries of packages below a root folder, never outside of it: every parent is opened by openat2(2) with
//! `RESOLVE_IN_ROOT`, every last part without following links.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Mutex;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{
    FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, futimens, makedev, mkdirat, mknodat,
    utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, linkat, symlinkat, unlinkat};

use crate::host::sys;
use crate::source::debian::deb::{Entry, EntryKind};
use crate::tree::{TreePath, parent};

/// A root folder that is written to.
#[derive(Debug)]
pub(super) struct Root {
    fd: OwnedFd,
}

/// Metadata of a directory, applied once all is written: a setgid or read-only directory would get in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DirMeta {
    pub mode: u32,
    /// User and group; `None` leaves the caller's.
    pub owner: Option<(u32, u32)>,
    /// Time of its last change; `None` leaves the clock's.
    pub mtime: Option<i64>,
}

impl Root {
    pub fn open(path: &Path) -> io::Result<Root> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        Ok(Root { fd: nix::fcntl::open(path, flags, Mode::empty())? })
    }

    /// The folder at `path`, links followed within the root.
    pub fn dir(&self, path: &[u8]) -> nix::Result<OwnedFd> {
        self.open_in(path, OFlag::O_PATH | OFlag::O_DIRECTORY)
    }

    /// Opens what is at `path`, links followed within the root.
    pub fn open_in(&self, path: &[u8], flags: OFlag) -> nix::Result<OwnedFd> {
        let path = if path.is_empty() { b".".as_slice() } else { path };
        let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_IN_ROOT);
        loop {
            match openat2(&self.fd, path, how) {
                // A rename elsewhere in the tree makes the kernel ask for another try.
                Err(Errno::EAGAIN) => {}
                other => return other,
            }
        }
    }

    /// The folder at `path`; missing ones on the way are made, 0755.
    pub fn dir_made(&self, path: &[u8]) -> nix::Result<OwnedFd> {
        match self.dir(path) {
            Err(Errno::ENOENT) if !path.is_empty() => {
                let above = self.dir_made(parent(path))?;
                match mkdirat(&above, name(path), Mode::from_bits_truncate(0o755)) {
                    Ok(()) | Err(Errno::EEXIST) => self.dir(path),
                    Err(e) => Err(e),
                }
            }
            other => other,
        }
    }

    /// The bytes of the file at `path`; `None` when there is none.
    pub fn read(&self, path: &[u8]) -> io::Result<Option<Vec<u8>>> {
        match self.open_in(path, OFlag::O_RDONLY) {
            Ok(fd) => {
                let mut bytes = Vec::new();
                File::from(fd).read_to_end(&mut bytes)?;
                Ok(Some(bytes))
            }
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Writes a file of root's anew, making folders on the way.
    pub fn write(&self, path: &[u8], bytes: &[u8], mode: u32, mtime: Option<i64>) -> io::Result<()> {
        let dir = self.dir_made(parent(path))?;
        match unlinkat(&dir, name(path), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(e) => return Err(e.into()),
        }
        let mut file = create(&dir, name(path))?;
        file.write_all(bytes)?;
        fchmod(&file, Mode::from_bits_truncate(mode))?;
        if let Some(mtime) = mtime {
            futimens(&file, &TimeSpec::new(mtime, 0), &TimeSpec::new(mtime, 0))?;
        }
        Ok(())
    }

    /// Removes the file or link at `path`, if there is one.
    pub fn remove_file(&self, path: &[u8]) -> nix::Result<()> {
        match self.dir(parent(path)).and_then(|dir| unlinkat(&dir, name(path), UnlinkatFlags::NoRemoveDir)) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(()),
            other => other,
        }
    }

    /// Gives a directory its owner, mode and time.
    pub fn finish_dir(&self, path: &[u8], meta: DirMeta) -> nix::Result<()> {
        let fd = self.dir(path)?;
        // An O_PATH descriptor can't be changed itself, but what it names can, by "." below it.
        if let Some((uid, gid)) = meta.owner {
            fchownat(&fd, c".", Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::empty())?;
        }
        fchmodat(&fd, c".", Mode::from_bits_truncate(meta.mode), FchmodatFlags::FollowSymlink)?;
        if let Some(mtime) = meta.mtime {
            let time = TimeSpec::new(mtime, 0);
            utimensat(&fd, c".", &time, &time, UtimensatFlags::NoFollowSymlink)?;
        }
        Ok(())
    }
}

impl Root {
    /// Sets an extended attribute of what is at `path`.
    pub fn set_xattr(&self, path: &[u8], name_of: &[u8], value: &[u8]) -> io::Result<()> {
        let dir = self.dir(parent(path))?;
        let mut through = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
        through.extend_from_slice(if path.is_empty() { b"." } else { name(path) });
        sys::set_xattr(&sys::c_string(OsStr::from_bytes(&through))?, name_of, value)
    }
}

/// The last part of a path.
pub(super) fn name(path: &[u8]) -> &[u8] {
    path.rsplit(|&b| b == b'/').next().unwrap_or_default()
}

fn create(dir: &OwnedFd, name: &[u8]) -> nix::Result<File> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(dir, name, flags, Mode::from_bits_truncate(0o600)).map(File::from)
}

/// Which package owns a path, over all packages; packages by their position.
#[derive(Debug, Default)]
pub(super) struct Owners(Mutex<HashMap<TreePath, usize>>);

/// What a package may do at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claim {
    /// Nobody else has it.
    Free,
    /// It was another's, whom this one replaces.
    Taken(usize),
    /// It is another's, who replaces this one.
    Lost(usize),
    /// Both have it and neither replaces the other.
    Clash(usize),
}

impl Owners {
    /// Notes that the file at `from` was moved to `to`, unless it is `keeper`'s own.
    pub fn moved(&self, from: &[u8], to: &[u8], keeper: Option<usize>) {
        let mut owners = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if owners.get(from).is_some_and(|owner| Some(*owner) != keeper)
            && let Some(owner) = owners.remove(from)
        {
            owners.insert(to.to_vec(), owner);
        }
    }

    /// Who owns `path`.
    pub fn owner(&self, path: &[u8]) -> Option<usize> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get(path).copied()
    }

    /// Claims `path` for `package`; `replaces(a, b)` tells whether a may take b's files.
    pub fn claim(&self, path: &[u8], package: usize, replaces: impl Fn(usize, usize) -> bool) -> Claim {
        let mut owners = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match owners.get(path).copied() {
            None => {
                owners.insert(path.to_vec(), package);
                Claim::Free
            }
            Some(other) if other == package => Claim::Free,
            Some(other) if replaces(package, other) => {
                owners.insert(path.to_vec(), package);
                Claim::Taken(other)
            }
            Some(other) if replaces(other, package) => Claim::Lost(other),
            Some(other) => Claim::Clash(other),
        }
    }
}

/// Writes entries, remembering the folder of the last one.
pub(super) struct Writer<'a> {
    root: &'a Root,
    folder: Option<(TreePath, OwnedFd)>,
    buffer: Vec<u8>,
    /// Whether owners are set; only root can.
    chown: bool,
}

impl<'a> Writer<'a> {
    pub fn new(root: &'a Root, chown: bool) -> Writer<'a> {
        Writer { root, folder: None, buffer: vec![0; 256 << 10], chown }
    }

    fn folder(&mut self, path: &[u8]) -> nix::Result<&OwnedFd> {
        let at = parent(path);
        if self.folder.as_ref().is_none_or(|(known, _)| known != at) {
            self.folder = Some((at.to_vec(), self.root.dir_made(at)?));
        }
        match &self.folder {
            Some((_, fd)) => Ok(fd),
            None => Err(Errno::ENOENT),
        }
    }

    /// Makes a directory, 0700 for the time being; says whether it is new. A link to a directory counts as one.
    pub fn dir(&mut self, path: &[u8]) -> nix::Result<bool> {
        if path.is_empty() {
            return Ok(false);
        }
        let folder = self.folder(path)?;
        match mkdirat(folder, name(path), Mode::from_bits_truncate(0o700)) {
            Ok(()) => Ok(true),
            Err(Errno::EEXIST) => self.root.dir(path).map(|_| false),
            Err(e) => Err(e),
        }
    }

    /// Writes an entry that is no directory at `path`; `replace` takes away what is there, as often as another worker
    /// puts it there.
    pub fn entry(
        &mut self,
        path: &[u8],
        entry: &Entry,
        reader: &mut dyn Read,
        replace: bool,
    ) -> io::Result<()> {
        if replace {
            for _ in 0..3 {
                self.root.remove_file(path)?;
                match self.write(path, entry, reader) {
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                    other => return other,
                }
            }
        }
        self.write(path, entry, reader)
    }

    fn write(&mut self, path: &[u8], entry: &Entry, reader: &mut dyn Read) -> io::Result<()> {
        let chown = self.chown;
        let mut buffer = std::mem::take(&mut self.buffer);
        let root = self.root;
        let result = self.folder(path).map_err(io::Error::from).and_then(|folder| match &entry.kind {
            EntryKind::Dir => Ok(()),
            EntryKind::File(size) => write_file(folder, name(path), entry, *size, reader, &mut buffer, chown),
            EntryKind::HardLink(target) => {
                let from = root.dir(parent(target))?;
                linkat(&from, name(target), folder, name(path), AtFlags::empty())?;
                Ok(())
            }
            EntryKind::Symlink(target) => {
                symlinkat(target.as_slice(), folder, name(path))?;
                finish_special(folder, name(path), entry, chown, false)
            }
            EntryKind::Fifo => special(folder, name(path), entry, SFlag::S_IFIFO, 0, chown),
            EntryKind::CharDev(major, minor) => {
                let device = makedev(u64::from(*major), u64::from(*minor));
                special(folder, name(path), entry, SFlag::S_IFCHR, device, chown)
            }
            EntryKind::BlockDev(major, minor) => {
                let device = makedev(u64::from(*major), u64::from(*minor));
                special(folder, name(path), entry, SFlag::S_IFBLK, device, chown)
            }
        });
        self.buffer = buffer;
        result
    }
}

fn write_file(
    folder: &OwnedFd,
    name: &[u8],
    entry: &Entry,
    size: u64,
    reader: &mut dyn Read,
    buffer: &mut [u8],
    chown: bool,
) -> io::Result<()> {
    let mut file = create(folder, name)?;
    let mut left = size;
    while left > 0 {
        let n = reader.read(buffer)?;
        if n == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends within the file"));
        }
        file.write_all(&buffer[..n])?;
        left = left.saturating_sub(n as u64);
    }
    if chown {
        fchown(&file, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))?;
    }
    fchmod(&file, Mode::from_bits_truncate(entry.mode))?;
    let time = TimeSpec::new(entry.mtime, 0);
    futimens(&file, &time, &time)?;
    Ok(())
}

fn special(
    folder: &OwnedFd,
    name: &[u8],
    entry: &Entry,
    kind: SFlag,
    device: u64,
    chown: bool,
) -> io::Result<()> {
    mknodat(folder, name, kind, Mode::from_bits_truncate(0o600), device)?;
    finish_special(folder, name, entry, chown, true)
}

fn finish_special(folder: &OwnedFd, name: &[u8], entry: &Entry, chown: bool, chmod: bool) -> io::Result<()> {
    if chown {
        let (uid, gid) = (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)));
        fchownat(folder, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    }
    if chmod {
        fchmodat(folder, name, Mode::from_bits_truncate(entry.mode), FchmodatFlags::FollowSymlink)?;
    }
    let time = TimeSpec::new(entry.mtime, 0);
    utimensat(folder, name, &time, &time, UtimensatFlags::NoFollowSymlink)?;
    Ok(())
}
