//! What can go wrong with files, told with the file's name.

use std::io;
use std::path::{Path, PathBuf};

/// Something that could not be done with a file.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {}: {source}", path.display())]
pub struct FileError {
    /// What was tried: a verb.
    pub doing: &'static str,
    /// With which file.
    pub path: PathBuf,
    /// Why it failed.
    pub source: io::Error,
}

/// Adds the name of the file to an error.
pub trait At<T> {
    /// Says what was tried with which file.
    ///
    /// # Errors
    /// The error that it was, with the file's name.
    fn at(self, doing: &'static str, path: impl AsRef<Path>) -> Result<T, FileError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, doing: &'static str, path: impl AsRef<Path>) -> Result<T, FileError> {
        self.map_err(|e| FileError { doing, path: path.as_ref().to_owned(), source: e.into() })
    }
}
