//! Failures as users see them: what went wrong, a kind for machines, the next step, the exit status.

use std::error::Error;
use std::fmt::{Display, Write as _};
use std::io::Write as _;
use std::process::{ExitCode, Termination};

use crate::host::interrupt::Interrupted;

/// Writes a line to standard error. One that nobody reads any more, or that is full, is no reason to fail.
pub fn tell(line: impl Display) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// The exit status of `kiln`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Done.
    Done = 0,
    /// Failed.
    Failed = 1,
    /// The command line, the profile or the lock is wrong.
    Usage = 2,
    /// Smoke tests failed.
    TestsFailed = 3,
    /// Interrupted by the user.
    Interrupted = 130,
}

impl Termination for Status {
    fn report(self) -> ExitCode {
        ExitCode::from(self as u8)
    }
}

/// A failure, ready to be shown.
#[derive(Debug)]
pub struct Failure {
    /// A word for machines, as in `lock-stale`.
    pub kind: &'static str,
    /// What went wrong, causes included. Several lines are fine.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
    /// With which status Kiln ends.
    pub status: Status,
}

impl Failure {
    /// A failure with status 1.
    pub fn new(kind: &'static str, message: impl Into<String>) -> Failure {
        Failure { kind, message: message.into(), hint: None, status: Status::Failed }
    }

    /// A failure of what the user wrote: status 2.
    pub fn usage(kind: &'static str, message: impl Into<String>) -> Failure {
        Failure { status: Status::Usage, ..Failure::new(kind, message) }
    }

    /// A failure made of `error` and its causes, those left out that an outer message already tells. An interruption
    /// anywhere among the causes decides the status.
    pub fn of(kind: &'static str, error: &(dyn Error + 'static)) -> Failure {
        let mut failure = Failure::new(kind, error.to_string());
        let mut cause = Some(error);
        while let Some(error) = cause {
            if error.is::<Interrupted>() {
                return Failure {
                    kind: "interrupted",
                    status: Status::Interrupted,
                    ..Failure::new("", "interrupted")
                };
            }
            let text = error.to_string();
            if !failure.message.contains(&text) {
                let _ = write!(failure.message, ": {text}");
            }
            cause = error.source();
        }
        failure
    }

    /// The failure; or, when the user asked to stop and it doesn't know of that, the interruption, which it came from.
    #[must_use]
    pub fn unless_interrupted(self) -> Failure {
        match crate::host::interrupt::check() {
            Err(interrupted) if self.status != Status::Interrupted => interrupted.into(),
            _ => self,
        }
    }

    /// Adds what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint = Some(hint.into());
        self
    }

    /// Changes the exit status.
    #[must_use]
    pub fn status(mut self, status: Status) -> Failure {
        self.status = status;
        self
    }

    /// Writes the failure to standard error: as one line of JSON, or for people.
    pub fn print(&self, json: bool, color: bool) {
        if json {
            let message = self.message.trim_start_matches("error: ").trim_end();
            let value = serde_json::json!({ "error": {
                "kind": self.kind, "message": message, "hint": self.hint, "status": self.status as u8,
            }});
            tell(value);
            return;
        }
        let (red, cyan, reset) = if color { ("\x1b[1;31m", "\x1b[1;36m", "\x1b[0m") } else { ("", "", "") };
        // Nickel's diagnostics begin with their own `error:`.
        if self.message.trim_start().starts_with("error") || self.message.starts_with('\x1b') {
            tell(self.message.trim_end());
        } else {
            tell(format_args!("{red}error{reset}: {}", self.message.trim_end()));
        }
        if let Some(hint) = &self.hint {
            tell(format_args!("{cyan}hint{reset}: {hint}"));
        }
    }
}

impl From<Interrupted> for Failure {
    fn from(_: Interrupted) -> Failure {
        Failure::new("interrupted", "interrupted").status(Status::Interrupted)
    }
}

impl From<crate::host::fs::FileError> for Failure {
    fn from(error: crate::host::fs::FileError) -> Failure {
        let failure = Failure::of("file", &error);
        if error.is_full() {
            failure.hint("the disk is full: `kiln gc` frees what no build needs any more")
        } else {
            failure
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("can't bake")]
    struct Outer(#[source] Interrupted);

    #[test]
    fn an_interruption_below_decides_the_status() {
        let failure = Failure::of("bake", &Outer(Interrupted));
        assert_eq!((failure.status, failure.kind), (Status::Interrupted, "interrupted"));
    }

    #[test]
    fn causes_are_told_once() {
        let inner = std::io::Error::other("no space");
        let error = crate::host::fs::FileError { what: "can't write", path: "/x".into(), source: inner };
        assert_eq!(Failure::of("file", &error).message, "can't write /x: no space");
    }
}
