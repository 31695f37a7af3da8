//! Waiting for one another: locks on open files (flock(2)), which the kernel drops with the process that held them.

use std::fs::{File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use super::{Inputs, Store, StoreError, check_interrupt};
use crate::digest::Digest;
use crate::host::fs::FileError;

/// How often a lock that another process holds is tried again: short against a step, long against a system call.
const RETRY: Duration = Duration::from_millis(20);

/// The right to work on a step; given back when dropped.
#[derive(Debug)]
#[must_use = "the lock is given back when this value is dropped"]
pub struct StepLock {
    _file: File,
}

impl Store {
    /// Waits for the right to work on the step with these inputs. `waiting` is called once when another process has
    /// it. Afterwards look again with [`Store::lookup`]: that process may have recorded the result.
    ///
    /// # Errors
    /// When the lock's file can't be made, or the user interrupts the waiting.
    pub fn lock(&self, inputs: &Inputs, waiting: &dyn Fn()) -> Result<StepLock, StoreError> {
        self.lock_key(&inputs.key(), waiting)
    }

    /// [`Store::lock`] for work that is no step, such as the downloads, under a name of its own.
    ///
    /// # Errors
    /// As [`Store::lock`].
    pub fn lock_name(&self, name: &str, waiting: &dyn Fn()) -> Result<StepLock, StoreError> {
        self.lock_key(&Digest::of(name.as_bytes()), waiting)
    }

    fn lock_key(&self, key: &Digest, waiting: &dyn Fn()) -> Result<StepLock, StoreError> {
        let path = self.root.join("locks").join(key.to_string());
        let file = wait_exclusive(&path, waiting)?;
        Ok(StepLock { _file: file })
    }
}

/// Opens (or makes) the file at `path` and locks it exclusively, waiting as long as it takes.
fn wait_exclusive(path: &Path, waiting: &dyn Fn()) -> Result<File, StoreError> {
    let mut told = false;
    loop {
        if let Some(file) = try_exclusive(path)? {
            return Ok(file);
        }
        if !told {
            waiting();
            told = true;
        }
        check_interrupt()?;
        std::thread::sleep(RETRY);
    }
}

/// Opens (or makes) the file at `path` and locks it exclusively; `None` when another one holds it.
pub(super) fn try_exclusive(path: &Path) -> Result<Option<File>, StoreError> {
    let wrong = || FileError::at("can't lock", path);
    loop {
        let file = File::options().create(true).append(true).open(path).map_err(wrong())?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(e)) => return Err(wrong()(e).into()),
        }
        // Whoever held it may have removed the file meanwhile: a lock on a file without name guards nothing.
        if file.metadata().map_err(wrong())?.nlink() > 0 {
            return Ok(Some(file));
        }
    }
}

/// Locks an open file shared, waiting as long as it takes.
pub(super) fn wait_shared(file: &File, path: &Path) -> Result<(), StoreError> {
    loop {
        match file.try_lock_shared() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) => check_interrupt()?,
            Err(TryLockError::Error(e)) => return Err(FileError::at("can't lock", path)(e).into()),
        }
        std::thread::sleep(RETRY);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::temporary;
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn the_second_waits_says_so_and_then_gets_it() {
        let (_folder, store) = temporary();
        let inputs = Inputs::new("step", 1);
        let (inside, told) = (AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let waiting = || {
                        told.fetch_add(1, Ordering::SeqCst);
                    };
                    let _lock = store.lock(&inputs, &waiting).unwrap();
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                    std::thread::sleep(Duration::from_millis(50));
                    inside.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        assert!((1..=3).contains(&told.load(Ordering::SeqCst)));
        let _other = store.lock(&Inputs::new("step", 2), &|| panic!("another key waits")).unwrap();
    }
}
