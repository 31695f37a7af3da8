//! A way into a guest, whichever it is.

use std::time::Duration;

use super::failure::VmError;

/// What a command said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its exit status; 124 when it ran into its limit.
    pub status: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// How long it took, seen from here.
    pub took: Duration,
}

/// Restarts the guest in a second: systemd does it, which doesn't end with who asks. (Its timers may else be late by a minute.)
pub(super) const REBOOT: &str =
    "systemd-run --quiet --on-active=1 --timer-property=AccuracySec=100ms systemctl reboot";

impl Output {
    /// Fails when a command that has to succeed did not.
    pub(super) fn success(self, what: &str) -> Result<Output, VmError> {
        match self.status {
            0 => Ok(self),
            status => {
                Err(VmError::Channel(format!("{what} ended with status {status}: {}", self.stderr.trim())))
            }
        }
    }
}

/// Runs commands in a guest as root: over a [`super::Channel`] or over [`super::Ssh`].
pub trait Guest {
    /// Runs a shell script as root and answers what it said, at most 1 MiB of each stream.
    ///
    /// # Errors
    /// [`VmError`]: the machine ended, the way into it broke off, no answer some time after `limit`, Ctrl-C.
    fn run(&mut self, script: &str, limit: Duration) -> Result<Output, VmError>;
}
