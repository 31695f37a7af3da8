//! A way for tests to cut a piece of work off at any moment, as a power cut would.

use crate::error::FileError;

/// Work that was not finished; doing it again finishes it.
#[derive(Debug, thiserror::Error)]
pub enum Stopped {
    /// A file could not be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// It was cut off: only in tests.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// The work was cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("interrupted before step {0}")]
pub struct Interrupted(pub u32);

/// Counts the steps of a piece of work that must survive a cut between any two of them.
#[derive(Debug, Default)]
pub struct Steps {
    done: u32,
    last: Option<u32>,
}

impl Steps {
    /// All steps are made.
    #[must_use]
    pub fn all() -> Steps {
        Steps::default()
    }

    /// Only so many steps are made.
    #[must_use]
    pub fn until(last: u32) -> Steps {
        Steps { done: 0, last: Some(last) }
    }

    /// Called before each step.
    ///
    /// # Errors
    /// When the work is to be cut off here.
    pub fn step(&mut self) -> Result<(), Interrupted> {
        if self.last == Some(self.done) {
            return Err(Interrupted(self.done));
        }
        self.done += 1;
        Ok(())
    }
}
