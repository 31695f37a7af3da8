//! Whole directory trees, such as the unpacked tools, under the key of what they were made from.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::step::Shelf;
use super::usage::Kind;
use super::{Store, StoreError, touch};
use crate::digest::Digest;
use crate::host::fs::FileError;
use crate::units::Bytes;

/// What lies beside a directory.
#[derive(Debug, Serialize, Deserialize)]
struct Sidecar {
    /// Allocated bytes of all files.
    size: u64,
}

impl Store {
    /// Moves a finished directory from a scratch of this store to its place and answers where that is. When another
    /// process was first, its directory stays and this one is removed.
    ///
    /// # Errors
    /// When it can't be moved.
    pub fn adopt_dir(&self, path: &Path, key: &Digest) -> Result<PathBuf, StoreError> {
        let target = self.dir_path(key);
        let wrong = || FileError::at("can't keep the directory", path);
        // One sync of the file system instead of one for each of thousands of files.
        let handle = File::open(path).map_err(wrong())?;
        nix::unistd::syncfs(&handle).map_err(io::Error::from).map_err(self.wrong(
            "can't write",
            path,
            None,
        ))?;
        let size = allocated(path).map_err(wrong())?.0;
        self.write_json(&self.dir_sidecar(key), &Sidecar { size })?;
        match fs::rename(path, &target) {
            Ok(()) => Ok(target),
            Err(e) if matches!(e.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) => {
                self.remove_tree(path)?;
                Ok(target)
            }
            Err(e) => Err(wrong()(e).into()),
        }
    }

    /// Where the directory of that key lies, if it is there. Records its use.
    #[must_use]
    pub fn dir(&self, key: &Digest) -> Option<PathBuf> {
        let path = self.dir_path(key);
        if !path.is_dir() {
            return None;
        }
        touch(&self.dir_sidecar(key));
        Some(path)
    }

    /// Where all directories lie, the last used first.
    ///
    /// # Errors
    /// When the folder can't be read.
    pub fn dirs(&self) -> Result<Vec<PathBuf>, StoreError> {
        let mut dirs = self.items()?;
        dirs.retain(|item| item.kind == Kind::On(Shelf::Dir));
        dirs.sort_by_key(|item| std::cmp::Reverse(item.used));
        Ok(dirs.into_iter().map(|item| item.path).collect())
    }

    pub(super) fn dir_path(&self, key: &Digest) -> PathBuf {
        self.root.join("dirs").join(key.to_string())
    }

    pub(super) fn dir_sidecar(&self, key: &Digest) -> PathBuf {
        self.root.join("dirs").join(format!("{key}.json"))
    }

    /// The recorded size of a directory; zero when that is lost.
    pub(super) fn dir_size(&self, key: &Digest) -> Bytes {
        let sidecar = fs::read(self.dir_sidecar(key)).ok();
        let sidecar = sidecar.and_then(|bytes| serde_json::from_slice::<Sidecar>(&bytes).ok());
        Bytes(sidecar.map_or(0, |s| s.size))
    }
}

/// The allocated bytes of a file, or of all below a folder, as the file system counts them.
pub(super) fn allocated(path: &Path) -> io::Result<Bytes> {
    let meta = fs::symlink_metadata(path)?;
    let mut size = meta.blocks() * 512;
    if meta.is_dir() {
        for entry in fs::read_dir(path)? {
            size += allocated(&entry?.path())?.0;
        }
    }
    Ok(Bytes(size))
}

#[cfg(test)]
mod tests {
    use super::super::tests::temporary;
    use super::*;

    #[test]
    fn the_first_directory_stays() {
        let (_folder, store) = temporary();
        let key = Digest::of(b"tools");
        assert_eq!(store.dir(&key), None);
        for text in ["first", "second"] {
            let scratch = store.scratch("tools").unwrap();
            let path = scratch.path().join("tree");
            fs::create_dir_all(path.join("usr")).unwrap();
            fs::write(path.join("usr/file"), text).unwrap();
            let kept = store.adopt_dir(&path, &key).unwrap();
            assert!(!path.exists());
            assert_eq!(store.dir(&key).as_ref(), Some(&kept));
            assert_eq!(store.dirs().unwrap(), std::slice::from_ref(&kept));
            assert_eq!(fs::read_to_string(kept.join("usr/file")).unwrap(), "first");
        }
        assert!(store.dir_size(&key).0 >= 4096);
    }
}
