//! Files of the host: complete or not there at all, and holes kept.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::sys::stat::Mode;
use nix::unistd::{AccessFlags, Whence, access, linkat, lseek64};

/// A file operation that failed, with the path it was about.
#[derive(Debug, thiserror::Error)]
#[error("{what} {path}: {source}", path = path.display())]
pub struct FileError {
    /// What was tried, as in `can't read`.
    pub what: &'static str,
    /// The file.
    pub path: PathBuf,
    /// Why it failed.
    pub source: io::Error,
}

impl FileError {
    /// For `map_err`: an error about `path`.
    pub fn at(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
        let path = path.to_owned();
        move |source| FileError { what, path, source }
    }

    /// Whether the file system is full or the quota used up.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

/// A file that is put under its name once it is whole: a reader, or a crash, sees the old file or the new one. Where the file
/// system can do that (O_TMPFILE of open(2)) it has no name until then, so that whoever is killed leaves nothing.
#[derive(Debug)]
pub struct NewFile {
    path: PathBuf,
    target: PathBuf,
    written: Written,
}

#[derive(Debug)]
enum Written {
    Unnamed(File),
    Named(tempfile::NamedTempFile),
}

impl NewFile {
    /// A file that will stand under `path`. Where a link stands, it will be the file that the link leads to.
    ///
    /// # Errors
    /// [`FileError`] with the path, also when something stands there that is no file: a device, a folder.
    pub fn at(path: &Path) -> Result<NewFile, FileError> {
        let wrong = || FileError::at("can't write", path);
        let target = replaced(path).map_err(wrong())?;
        let folder = folder_of(&target);
        let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
        let written = match nix::fcntl::open(folder, flags, Mode::from_bits_truncate(0o600)) {
            Ok(file) => Written::Unnamed(file.into()),
            Err(_) => Written::Named(unfinished().tempfile_in(folder).map_err(wrong())?),
        };
        Ok(NewFile { path: path.to_owned(), target, written })
    }

    /// The file, to be written.
    #[must_use]
    pub fn file(&self) -> &File {
        match &self.written {
            Written::Unnamed(file) => file,
            Written::Named(file) => file.as_file(),
        }
    }

    /// Puts the file under its name, with the mode that a plainly created one would have.
    ///
    /// # Errors
    /// [`FileError`] with the path; nothing is left behind.
    pub fn finish(self) -> Result<(), FileError> {
        let wrong = || FileError::at("can't write", &self.path);
        set_mode_by_umask(self.file()).map_err(wrong())?;
        let named = match self.written {
            Written::Named(file) => file.into_temp_path(),
            Written::Unnamed(file) => named(&file, folder_of(&self.target)).map_err(wrong())?,
        };
        named.persist(&self.target).map_err(|e| wrong()(e.error))
    }
}

/// Gives an unnamed file a name in `folder`, by which it can replace another: linkat(2) itself replaces nothing. Where /proc or the
/// file system doesn't allow it, it is copied.
fn named(file: &File, folder: &Path) -> io::Result<tempfile::TempPath> {
    let open = format!("/proc/self/fd/{}", file.as_raw_fd());
    let link = |name: &Path| linkat(AT_FDCWD, open.as_str(), AT_FDCWD, name, AtFlags::AT_SYMLINK_FOLLOW);
    if let Ok(linked) = unfinished().make_in(folder, |name| link(name).map_err(io::Error::from)) {
        return Ok(linked.into_temp_path());
    }
    let copy = unfinished().tempfile_in(folder)?;
    copy_sparse(file, copy.as_file())?;
    copy.as_file().set_permissions(file.metadata()?.permissions())?;
    Ok(copy.into_temp_path())
}

/// `path`, or what is nearest above it and there.
#[must_use]
pub fn nearest(path: &Path) -> &Path {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("."))
}

/// Finds out early whether files can be made in `folder`, which need not be there yet.
///
/// # Errors
/// [`FileError`] with the folder.
pub fn check_writable(folder: &Path) -> Result<(), FileError> {
    // A link that leads nowhere is there: no folder can be made in its place.
    let there = folder.ancestors().find(|path| path.symlink_metadata().is_ok()).unwrap_or(Path::new("."));
    let refused = if there.is_dir() {
        access(there, AccessFlags::W_OK | AccessFlags::X_OK).map_err(io::Error::from)
    } else {
        Err(io::ErrorKind::NotADirectory.into())
    };
    refused.map_err(FileError::at("can't write into", folder))
}

/// Names of what is not whole yet.
fn unfinished() -> tempfile::Builder<'static, 'static> {
    let mut names = tempfile::Builder::new();
    names.prefix(".kiln-");
    names
}

/// The folder in which `path` lies.
#[must_use]
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The file that a new one under `path` stands for: `path` itself, or what a link there leads to, whether it is there or not.
fn replaced(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    // As many links as Linux follows (path_resolution(7)).
    for _ in 0..40 {
        let Ok(meta) = fs::symlink_metadata(&path) else { return Ok(path) };
        if meta.is_file() {
            return Ok(path);
        }
        if !meta.is_symlink() {
            return Err(io::Error::other("what is there is no regular file, and stays"));
        }
        let target = fs::read_link(&path)?;
        path = folder_of(&path).join(target);
    }
    Err(Errno::ELOOP.into())
}

/// Writes `bytes` under `path` so that a reader, or a crash, sees the old file or the whole new one.
///
/// # Errors
/// [`FileError`] with the path; nothing is left behind.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let wrong = || FileError::at("can't write", path);
    fs::create_dir_all(folder_of(path)).map_err(wrong())?;
    let new = NewFile::at(path)?;
    new.file().write_all(bytes).map_err(wrong())?;
    new.file().sync_data().map_err(wrong())?;
    new.finish()
}

/// Gives a temporary file (mode 0600) the mode that a plainly created one would have. The umask is read from /proc:
/// asking for it by system call means changing it for a moment, under every other thread.
///
/// # Errors
/// When the mode can't be changed.
pub fn set_mode_by_umask(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|l| u32::from_str_radix(l.strip_prefix("Umask:")?.trim(), 8).ok());
    file.set_permissions(fs::Permissions::from_mode(0o666 & !mask.unwrap_or(0o022)))
}

/// The ranges of `file` that hold data, holes left out, in order. A file system that can't tell answers one range.
///
/// # Errors
/// Whatever seeking fails with.
pub fn data_ranges(file: &File, size: u64) -> io::Result<Vec<Range<u64>>> {
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match lseek64(file, at as i64, Whence::SeekData) {
            Ok(start) => start as u64,
            Err(Errno::ENXIO) => break,
            Err(Errno::EINVAL) => {
                ranges.push(at..size);
                return Ok(ranges);
            }
            Err(e) => return Err(e.into()),
        };
        let end = lseek64(file, start as i64, Whence::SeekHole)? as u64;
        ranges.push(start..end.min(size));
        at = end;
    }
    Ok(ranges)
}

/// Copies `from` to the new file `to`, holes staying holes. The kernel does it where it can (`copy_file_range`), which on
/// file systems that share blocks between files copies nothing at all.
///
/// # Errors
/// Whatever reading or writing fails with; `to` may be half written then.
pub fn copy_sparse(from: &File, to: &File) -> io::Result<()> {
    let size = from.metadata()?.len();
    to.set_len(size)?;
    copy_range(from, 0..size, to, 0)
}

/// Copies a part of `from` to where it begins in `to`. What is a hole in `from` stays as it is in `to`.
///
/// # Errors
/// Whatever reading or writing fails with; `to` may be half written then.
pub fn copy_range(mut from: &File, part: Range<u64>, mut to: &File, at: u64) -> io::Result<()> {
    for range in data_ranges(from, part.end)? {
        let start = range.start.max(part.start);
        let wanted = range.end.saturating_sub(start);
        if wanted == 0 {
            continue;
        }
        from.seek(SeekFrom::Start(start))?;
        to.seek(SeekFrom::Start(at + start - part.start))?;
        if io::copy(&mut from.take(wanted), &mut to)? != wanted {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it shrank while it was copied"));
        }
    }
    Ok(())
}

/// Whether there are only zeroes, which a hole reads as.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    let chunks = bytes.chunks_exact(32);
    chunks.remainder().iter().all(|&b| b == 0)
        && chunks.into_iter().all(|chunk| chunk.iter().fold(0, |all, &b| all | b) == 0)
}

/// Where a reader of `size` bytes that stands at `position` comes to stand; behind the end is allowed, as in files.
///
/// # Errors
/// `InvalidInput` for a place before the beginning or beyond all numbers.
pub fn sought(position: u64, size: u64, to: SeekFrom) -> io::Result<u64> {
    let place = match to {
        SeekFrom::Start(at) => Some(at),
        SeekFrom::End(by) => size.checked_add_signed(by),
        SeekFrom::Current(by) => position.checked_add_signed(by),
    };
    place.ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn holes_stay_holes() {
        let folder = tempfile::tempdir().unwrap();
        let open = |name: &str| {
            File::options().read(true).write(true).create_new(true).open(folder.path().join(name)).unwrap()
        };
        let (from, to) = (open("from"), open("to"));
        from.set_len(16 << 20).unwrap();
        from.write_all_at(b"middle", 8 << 20).unwrap();
        copy_sparse(&from, &to).unwrap();
        let ranges = data_ranges(&to, 16 << 20).unwrap();
        assert!(ranges.iter().map(|r| r.end - r.start).sum::<u64>() <= 2 << 20, "{ranges:?}");
        let mut read = [0; 6];
        to.read_exact_at(&mut read, 8 << 20).unwrap();
        assert_eq!(&read, b"middle");
    }

    #[test]
    fn a_part_is_copied_to_another_place() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        from.set_len(8 << 20).unwrap();
        from.write_all_at(b"before", (4 << 20) - 6).unwrap();
        from.write_all_at(b"inside", 4 << 20).unwrap();
        from.write_all_at(b"behind", 5 << 20).unwrap();
        to.write_all_at(&[b'-'; 3 << 20], 0).unwrap();
        copy_range(&from, 4 << 20..5 << 20, &to, 1 << 20).unwrap();
        let mut read = [0; 12];
        to.read_exact_at(&mut read, (1 << 20) - 6).unwrap();
        assert_eq!(&read, b"------inside");
        to.read_exact_at(&mut read, (2 << 20) - 6).unwrap();
        assert!(read[6..] == *b"------", "{read:?}");
    }

    #[test]
    fn an_atomic_write_replaces_and_leaves_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sub/file");
        write_atomically(&path, b"one").unwrap();
        write_atomically(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_link_stays_and_what_is_no_file_is_refused() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("kept")).unwrap();
        symlink("kept/file", at("link")).unwrap();
        write_atomically(&at("link"), b"one").unwrap();
        write_atomically(&at("link"), b"two").unwrap();
        assert_eq!(fs::read_link(at("link")).unwrap(), Path::new("kept/file"));
        assert_eq!(fs::read(at("kept/file")).unwrap(), b"two");
        symlink("round", at("round")).unwrap();
        for (path, why) in [
            (at("round"), "symbolic links"),
            (at("kept"), "no regular file"),
            ("/dev/null".into(), "no regular"),
        ] {
            let error = write_atomically(&path, b"three").unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_linked_is_copied() {
        let folder = tempfile::tempdir().unwrap();
        // Opened so that it never gets a name (O_EXCL with O_TMPFILE).
        let file = tempfile::tempfile_in(folder.path()).unwrap();
        file.write_all_at(b"whole", 0).unwrap();
        assert_eq!(fs::read(named(&file, folder.path()).unwrap()).unwrap(), b"whole");
    }

    #[test]
    fn what_is_not_finished_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let new = NewFile::at(&folder.path().join("file")).unwrap();
        new.file().write_all_at(b"half", 0).unwrap();
        drop(new);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
