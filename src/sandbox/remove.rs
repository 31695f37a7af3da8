//! Deletes scratch folders, whose files may belong to users that only the namespace knows.

use std::io::ErrorKind;
use std::path::Path;

use super::error::{Doing, Inner, SandboxError};
use super::outer;
use super::tier::{Tier, tier};
use super::wire::Task;
use crate::host::fs::FileError;

/// Deletes `path` and all below it; that it isn't there is fine. What belongs to the caller is deleted at once; where
/// other owners are met, a user namespace with the caller's ranges of ids is entered.
///
/// # Errors
/// When something can't be deleted.
pub fn remove_tree(path: &Path) -> Result<(), SandboxError> {
    match std::fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) if e.kind() == ErrorKind::PermissionDenied => {
            let tier = tier()?;
            if tier == Tier::Root {
                return Err(FileError::at("can't delete", path)(e).into());
            }
            outer::run(tier, Task::Remove { path: path.to_owned() }, path, &|_| {}).map(drop)
        }
        Err(e) => Err(FileError::at("can't delete", path)(e).into()),
    }
}

/// Deletes a folder from within.
pub(super) fn here(path: &Path) -> Inner<()> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(e).doing_at("deleting", path.as_os_str().as_encoded_bytes())
        }
        _ => Ok(()),
    }
}
