//! What can go wrong in a sandbox.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::tier::Refusal;
use crate::host::fs::FileError;
use crate::host::interrupt::Interrupted;

/// Why nothing came out of the sandbox.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// This host lets the user make no sandbox.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A file outside of the sandbox.
    #[error(transparent)]
    File(#[from] FileError),
    /// The user asked to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// A package file that is damaged or not allowed.
    #[error("the package file {path}: {why}", path = path.display())]
    Package {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A script failed: a package's, or one of the profile's.
    #[error("{script} of {package} failed: {status}{}; the whole output is in {log}", lines(tail), log = log.display())]
    Script {
        /// The package or, for the profile's own, `the profile`.
        package: String,
        /// Which script, as in `postinst`.
        script: String,
        /// How it ended, as in `exit status 1`.
        status: String,
        /// The last lines that it printed.
        tail: Vec<String>,
        /// Everything that was printed in this sandbox.
        log: PathBuf,
    },
    /// Something that the sandbox itself does failed.
    #[error("the sandbox failed while {doing}: {why}")]
    Failed {
        /// What was being done.
        doing: String,
        /// Why that failed.
        why: String,
    },
}

fn lines(tail: &[String]) -> String {
    tail.iter().map(|line| format!("\n    {line}")).collect()
}

impl SandboxError {
    pub(super) fn failed(doing: impl Into<String>, why: impl ToString) -> SandboxError {
        SandboxError::Failed { doing: doing.into(), why: why.to_string() }
    }

    /// Whether the file system is full.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            SandboxError::File(e) => e.is_full(),
            SandboxError::Failed { why, .. } => {
                why.contains("No space left") || why.contains("Disk quota exceeded")
            }
            _ => false,
        }
    }
}

/// An error on the inner side, as it is told to the outer one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Failure {
    /// See [`SandboxError::Package`].
    Package { path: PathBuf, why: String },
    /// See [`SandboxError::Script`].
    Script { package: String, script: String, status: String, tail: Vec<String> },
    /// See [`SandboxError::Failed`].
    Failed { doing: String, why: String },
}

impl Failure {
    pub(super) fn explain(self, log: &Path) -> SandboxError {
        match self {
            Failure::Package { path, why } => SandboxError::Package { path, why },
            Failure::Failed { doing, why } => SandboxError::Failed { doing, why },
            Failure::Script { package, script, status, tail } => {
                SandboxError::Script { package, script, status, tail, log: log.to_owned() }
            }
        }
    }
}

/// A result on the inner side.
pub(super) type Inner<T> = Result<T, Failure>;

/// Adds what was being done to an error.
pub(super) trait Doing<T> {
    /// With a fixed text.
    fn doing(self, what: &str) -> Inner<T>;
    /// With a path.
    fn doing_at(self, what: &str, path: &[u8]) -> Inner<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, what: &str) -> Inner<T> {
        self.map_err(|e| Failure::Failed { doing: what.to_owned(), why: e.into().to_string() })
    }

    fn doing_at(self, what: &str, path: &[u8]) -> Inner<T> {
        self.map_err(|e| Failure::Failed {
            doing: format!("{what} /{}", String::from_utf8_lossy(path)),
            why: e.into().to_string(),
        })
    }
}
