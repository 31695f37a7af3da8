//! Copies of trees of files that keep all that a file has: owner, mode, times, extended attributes, hard links, devices.

use std::collections::HashMap;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, mknod, utimensat};
use nix::sys::time::TimeSpec;

use crate::error::{At, FileError};
use crate::sys;

/// Copies files; remembers those with several names, so that the copies have several names too.
#[derive(Debug, Default)]
pub struct Copier {
    links: HashMap<(u64, u64), PathBuf>,
}

impl Copier {
    /// Copies a file or folder with all that is in it; what `leave_out` says of a path is not copied (a folder is, but empty).
    /// Nothing may be at `to`.
    ///
    /// # Errors
    /// When something can't be read or written.
    pub fn copy(
        &mut self,
        from: &Path,
        to: &Path,
        leave_out: &dyn Fn(&Path) -> bool,
    ) -> Result<(), FileError> {
        let metadata = fs::symlink_metadata(from).at("read", from)?;
        if metadata.is_dir() {
            // Writable for us at least while it is filled; its own mode follows.
            fs::create_dir(to).at("create", to)?;
            if !leave_out(from) {
                for entry in fs::read_dir(from).at("read", from)? {
                    let name = entry.at("read", from)?.file_name();
                    self.copy(&from.join(&name), &to.join(&name), leave_out)?;
                }
            }
            return like(&metadata, from, to);
        }
        if metadata.nlink() > 1 {
            let key = (metadata.dev(), metadata.ino());
            match self.links.get(&key) {
                Some(first) => return fs::hard_link(first, to).at("create", to),
                None => drop(self.links.insert(key, to.to_owned())),
            }
        }
        content(&metadata, from, to)?;
        like(&metadata, from, to)
    }
}

/// Creates what is no folder.
fn content(metadata: &Metadata, from: &Path, to: &Path) -> Result<(), FileError> {
    let kind = metadata.file_type();
    if kind.is_symlink() {
        let target = fs::read_link(from).at("read", from)?;
        return symlink(target, to).at("create", to);
    }
    if kind.is_file() {
        let mut source = File::open(from).at("read", from)?;
        let mut copy =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(to).at("create", to)?;
        return io::copy(&mut source, &mut copy).map(drop).at("write", to);
    }
    let node = match kind {
        kind if kind.is_block_device() => SFlag::S_IFBLK,
        kind if kind.is_char_device() => SFlag::S_IFCHR,
        kind if kind.is_fifo() => SFlag::S_IFIFO,
        _ => SFlag::S_IFSOCK,
    };
    mknod(to, node, Mode::from_bits_truncate(0o600), metadata.rdev()).at("create", to)
}

/// Gives a copy the owner, mode, attributes and times of what it is a copy of. The owner comes first: changing it takes setuid
/// bits and capabilities away. The times come last: all else changes them.
pub fn like(metadata: &Metadata, from: &Path, to: &Path) -> Result<(), FileError> {
    lchown(to, Some(metadata.uid()), Some(metadata.gid())).at("change the owner of", to)?;
    if !metadata.file_type().is_symlink() {
        fs::set_permissions(to, fs::Permissions::from_mode(metadata.mode() & 0o7777))
            .at("change the mode of", to)?;
    }
    for name in sys::attributes(from).at("read the attributes of", from)? {
        let value = sys::attribute(from, &name).at("read the attributes of", from)?;
        sys::set_attribute(to, &name, &value).at("set the attributes of", to)?;
    }
    let accessed = TimeSpec::new(metadata.atime(), metadata.atime_nsec());
    let modified = TimeSpec::new(metadata.mtime(), metadata.mtime_nsec());
    utimensat(AT_FDCWD, to, &accessed, &modified, UtimensatFlags::NoFollowSymlink).at("set the times of", to)
}

/// Creates a folder with all that lead to it, below `root`, each like its counterpart below the first of `models` that has one.
///
/// # Errors
/// When one can't be created.
pub fn create_folders(root: &Path, models: &[&Path], relative: &Path) -> Result<(), FileError> {
    let mut path = PathBuf::new();
    for part in relative.components() {
        path.push(part);
        let to = root.join(&path);
        if fs::symlink_metadata(&to).is_ok() {
            continue;
        }
        fs::create_dir(&to).at("create", &to)?;
        let counterpart = |model: &&Path| {
            let from = model.join(&path);
            let metadata = fs::symlink_metadata(&from).ok()?;
            metadata.is_dir().then_some((metadata, from))
        };
        if let Some((metadata, from)) = models.iter().find_map(counterpart) {
            like(&metadata, &from, &to)?;
        }
    }
    Ok(())
}

/// Removes whatever is at a path; nothing being there is fine.
///
/// # Errors
/// When it can't be removed.
pub fn remove(path: &Path) -> Result<(), FileError> {
    let result = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.at("remove", path),
    }
}

/// Sees to it that what was created in or removed from a folder, or written into a file, has reached the disk.
///
/// # Errors
/// When it can't.
pub fn sync(path: &Path) -> Result<(), FileError> {
    File::open(path).and_then(|file| file.sync_all()).at("write", path)
}

/// Sees to it that all of the file system that a path is on has reached the disk.
///
/// # Errors
/// When it can't.
pub fn sync_file_system(path: &Path) -> Result<(), FileError> {
    let file = File::open(path).at("open", path)?;
    nix::unistd::syncfs(&file).at("write", path)
}

/// Writes a small file so that there is either all of it or what was there before, also after a power cut.
///
/// # Errors
/// When it can't be written.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    remove(&new)?;
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o644).open(&new).at("create", &new)?;
    io::Write::write_all(&mut file, bytes).at("write", &new)?;
    file.sync_all().at("write", &new)?;
    fs::rename(&new, path).at("replace", path)?;
    path.parent().map_or(Ok(()), sync)
}
