//! What can go wrong with a store.

use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::host::fs::{FileError, nearest};
use crate::host::interrupt::Interrupted;
use crate::units::Bytes;

/// An operation on the store that failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system of the store is full, or this user's quota used up.
    #[error(
        "no space left for the store {path}: {free} free, {needed}",
        path = path.display(),
        needed = need.map_or("which isn't enough".into(), |n| format!("{n} needed"))
    )]
    Full {
        /// The store's folder.
        path: PathBuf,
        /// What was still to be written, where that is known.
        need: Option<Bytes>,
        /// What the file system can still take.
        free: Bytes,
    },
    /// A blob's bytes are not those that its name promises. It lies aside now: get or make it again.
    #[error("the blob {} was damaged ({found}) and moved to {}", digest.short(), moved.display())]
    Damaged {
        /// The blob's name.
        digest: Digest,
        /// What is wrong with its bytes.
        found: String,
        /// Where it lies now.
        moved: PathBuf,
    },
    /// A blob, image or directory that the store doesn't hold.
    #[error("the store doesn't hold {0}")]
    Missing(Digest),
    /// Bytes that were to be kept under a digest which is not theirs.
    #[error("{path} has the digest {found}, not {wanted}", path = path.display())]
    Differs {
        /// The file.
        path: PathBuf,
        /// What its name was to be.
        wanted: Digest,
        /// What its bytes have.
        found: Digest,
    },
    /// The folder was made by a version of Kiln with another layout, or is something else entirely.
    #[error("{path} is no store of this version of Kiln: its format is `{found}`", path = path.display())]
    Format {
        /// The store's folder.
        path: PathBuf,
        /// What its `format` file says.
        found: String,
    },
    /// There is no store, and only looking was asked for.
    #[error("there is no store at {}", .0.display())]
    Absent(PathBuf),
    /// The folder holds something, and is no store.
    #[error("{path} is no store of Kiln's: it holds {holds}", path = path.display())]
    Stranger {
        /// The folder.
        path: PathBuf,
        /// One of the names in it.
        holds: String,
    },
    /// Another process has the store open, so nothing can be removed from it.
    #[error("another process is using the store {}", .0.display())]
    InUse(PathBuf),
    /// Neither KILN_STORE nor XDG_CACHE_HOME nor HOME is set.
    #[error("there is no place for the store: none of KILN_STORE, XDG_CACHE_HOME and HOME is set")]
    NoHome,
    /// A file operation.
    #[error(transparent)]
    File(FileError),
    /// The user asked to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// What helps when the store's file system is full.
pub const ROOMIER: &str = "`kiln gc` drops what no image needs; --store or KILN_STORE name a roomier place";

impl StoreError {
    /// The error of a full disk, with what is free there now.
    pub(super) fn full(path: &Path, need: Option<Bytes>) -> StoreError {
        let free = nix::sys::statvfs::statvfs(path).map_or(0, |s| s.blocks_available() * s.fragment_size());
        StoreError::Full { path: path.to_owned(), need, free: Bytes(free) }
    }

    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            StoreError::Full { .. } => Some(ROOMIER),
            StoreError::Damaged { .. } => Some("run the command again: it is fetched or made anew"),
            StoreError::Missing(_) => Some("run the command again: what is missing is fetched or made anew"),
            StoreError::Format { .. } => {
                Some("name another folder with --store or KILN_STORE, or remove this one")
            }
            StoreError::Absent(_) => {
                Some("the first build makes it; --store or KILN_STORE name another place")
            }
            StoreError::Stranger { .. } => Some(
                "name a folder of its own with --store or KILN_STORE: an empty one, or one that isn't there yet",
            ),
            StoreError::InUse(_) => Some("try again once it has ended"),
            StoreError::NoHome => Some("set KILN_STORE or give --store DIR"),
            StoreError::Differs { .. } | StoreError::File(_) | StoreError::Interrupted(_) => None,
        }
    }
}

impl From<FileError> for StoreError {
    fn from(error: FileError) -> StoreError {
        if !error.is_full() {
            return StoreError::File(error);
        }
        StoreError::full(nearest(&error.path), None)
    }
}
