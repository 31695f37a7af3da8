//! Scratch: private folders under `tmp/` in which steps work, and their removal when the process is gone.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Store, StoreError, lock, make_dir};

/// Removes a tree that plain removal can't, such as one whose files belong to the ids of a user namespace.
pub type Remover = Box<dyn Fn(&Path) -> io::Result<()> + Send + Sync>;

/// A private folder in the store's file system: removed when dropped, or by the next process when this one dies.
pub struct Scratch {
    path: PathBuf,
    lock_path: PathBuf,
    /// Held as long as the folder is in use.
    _lock: File,
    remover: Arc<Remover>,
}

impl Scratch {
    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove_with_lock(&self.path, &self.lock_path, &self.remover);
    }
}

impl std::fmt::Debug for Scratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scratch").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Store {
    /// Makes a private folder; `label` is for those who look into `tmp/`.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn scratch(&self, label: &str) -> Result<Scratch, StoreError> {
        let tmp = self.root.join("tmp");
        let label: String = label.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
        for number in 0_u32.. {
            let name = format!("{label}-{}-{number}", std::process::id());
            let lock_path = tmp.join(format!("{name}.lock"));
            // The name of a dead process with this number may still be there, or one of another thread.
            if lock_path.exists() {
                continue;
            }
            let Some(lock) = lock::try_exclusive(&lock_path)? else { continue };
            let path = tmp.join(name);
            if path.exists() {
                continue;
            }
            make_dir(&path)?;
            let private = fs::set_permissions(&path, Permissions::from_mode(0o700));
            private.map_err(self.wrong("can't change the mode of", &path, None))?;
            return Ok(Scratch { path, lock_path, _lock: lock, remover: self.remover.clone() });
        }
        unreachable!("four thousand million scratch folders of one process")
    }

    /// Removes a tree, whoever its files belong to.
    ///
    /// # Errors
    /// When neither plain removal nor the store's remover could.
    pub fn remove_tree(&self, path: &Path) -> Result<(), StoreError> {
        remove(path, &self.remover).map_err(self.wrong("can't remove", path, None))
    }
}

/// Removes the scratch folders whose owners are gone.
pub(super) fn sweep(tmp: &Path, remover: &Remover) {
    let Ok(entries) = fs::read_dir(tmp) else { return };
    for entry in entries.flatten() {
        let lock_path = entry.path();
        if lock_path.extension().is_none_or(|e| e != "lock") {
            continue;
        }
        if let Ok(Some(_lock)) = lock::try_exclusive(&lock_path) {
            remove_with_lock(&lock_path.with_extension(""), &lock_path, remover);
        }
    }
}

/// Removes a scratch folder and then its lock's file, which the caller holds: what can't be removed keeps its lock's
/// file, so that a later sweep tries again.
fn remove_with_lock(path: &Path, lock_path: &Path, remover: &Remover) {
    match remove(path, remover) {
        Ok(()) => drop(fs::remove_file(lock_path)),
        Err(error) => tracing::warn!("can't remove {}: {error}", path.display()),
    }
}

fn remove(path: &Path, remover: &Remover) -> io::Result<()> {
    let gone = |result: io::Result<()>| match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    gone(fs::remove_dir_all(path)).or_else(|_| gone(remove_unlocked(path))).or_else(|_| gone(remover(path)))
}

/// Removes a tree that has folders which even their owner may not write to.
fn remove_unlocked(path: &Path) -> io::Result<()> {
    unlock(path)?;
    fs::remove_dir_all(path)
}

fn unlock(folder: &Path) -> io::Result<()> {
    fs::set_permissions(folder, Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            unlock(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::temporary;
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn names(tmp: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(tmp).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn scratch_goes_when_dropped_and_is_swept_when_its_owner_died() {
        let (_folder, store) = temporary();
        let tmp = store.root().join("tmp");
        let (first, second) = (store.scratch("a b/c").unwrap(), store.scratch("abc").unwrap());
        assert_ne!(first.path(), second.path());
        fs::create_dir_all(first.path().join("locked/in")).unwrap();
        fs::set_permissions(first.path().join("locked"), Permissions::from_mode(0o500)).unwrap();
        drop(first);
        // A dead process leaves its folder and a lock's file that nobody holds.
        fs::create_dir(tmp.join("dead-1-0")).unwrap();
        fs::write(tmp.join("dead-1-0/file"), "x").unwrap();
        fs::write(tmp.join("dead-1-0.lock"), "").unwrap();
        let again = Store::open(store.root()).unwrap();
        let name = second.path().file_name().unwrap().to_str().unwrap();
        assert_eq!(names(&tmp), [name.to_owned(), format!("{name}.lock")]);
        drop((second, again));
        assert!(names(&tmp).is_empty());
    }

    #[test]
    fn the_remover_is_asked_only_for_what_resists() {
        static ASKED: AtomicBool = AtomicBool::new(false);
        let folder = tempfile::tempdir().unwrap();
        let remover = |_: &Path| {
            ASKED.store(true, Ordering::SeqCst);
            Err(io::Error::from(io::ErrorKind::PermissionDenied))
        };
        let store = Store::open_with(&folder.path().join("s"), Box::new(remover)).unwrap();
        drop(store.scratch("plain").unwrap());
        assert!(!ASKED.load(Ordering::SeqCst));
        // A plain file in the place of a tree resists removal as a directory.
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(store.remove_tree(&file).is_err());
        assert!(ASKED.load(Ordering::SeqCst));
    }
}
