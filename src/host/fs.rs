//! Files of the host: complete or not there at all, and holes kept.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek64};

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

/// Writes `bytes` under `path` so that a reader, or a crash, sees the old file or the whole new one.
///
/// # Errors
/// [`FileError`] with the path; nothing is left behind.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let wrong = || FileError::at("can't write", path);
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(wrong())?;
    let mut file = tempfile::Builder::new().prefix(".kiln-").tempfile_in(folder).map_err(wrong())?;
    file.write_all(bytes).map_err(wrong())?;
    set_mode_by_umask(file.as_file()).map_err(wrong())?;
    file.as_file().sync_data().map_err(wrong())?;
    file.persist(path).map_err(|e| wrong()(e.error))?;
    Ok(())
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
}
