//! Checks of an image: what a profile expects of it, derived and written, how each is asked and judged, and the report.
//!
//! All of it is data and pure functions: [`Check::script`] is what a check asks inside a system, [`Check::judge`] what it
//! makes of the answer. Who has a way into a system (a machine under QEMU today) carries the one to the other.
//!
//! | file | what it holds |
//! |---|---|
//! | [`derive`] | checks that follow from a system's description |
//! | [`written`] | checks that a profile writes |
//! | [`ask`], [`judge`] | the scripts, and what their answers mean |
//! | [`plan`] | which machines are booted, and what is checked on each |
//! | [`disk`] | what a disk shows without a machine |
//! | [`report`] | how it all ended |
//! | [`junit`], [`html`] | the report as other programs and people read it |

pub mod ask;
pub mod derive;
pub mod disk;
pub mod html;
pub mod judge;
pub mod junit;
pub mod plan;
pub mod report;
pub mod written;

use std::time::Duration;

use serde::Serialize;

use crate::digest::Digest;

pub use plan::{Checks, MachinePlan, Plan, Platform};

/// Something that is expected of a system.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Check {
    /// Its name, unique within its machine.
    pub name: String,
    /// How long one try may take, on a machine with KVM.
    pub timeout: Duration,
    /// How often it is tried again.
    pub retry: u32,
    /// What is expected.
    pub what: What,
}

/// What is expected.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// A shell command ends with a status, and a line of its output matches.
    Command {
        /// Its text.
        command: String,
        /// The status.
        status: i32,
        /// A regular expression.
        output: Option<String>,
    },
    /// A program ends with status 0.
    Script {
        /// Its text, begun by `#!`.
        text: String,
    },
    /// A unit is active, or has done its work.
    Unit {
        /// Its full name.
        name: String,
        /// One that is inactive passes too, when it did not fail: its work is done, or its condition isn't met.
        may_rest: bool,
    },
    /// A unit can't be started.
    Masked {
        /// Its full name.
        name: String,
    },
    /// No unit is in the state `failed`.
    NoFailedUnit,
    /// A TCP port is listened on.
    Port(u16),
    /// A page is served.
    Http(crate::system::test::Http),
    /// A file is as it should be.
    File(FileFacts),
    /// An account is there.
    User {
        /// Its name.
        name: String,
        /// Its number.
        uid: Option<u32>,
        /// Its home directory.
        home: Option<String>,
        /// Its shell.
        shell: Option<String>,
    },
    /// A group is there.
    Group {
        /// Its name.
        name: String,
        /// Its number.
        gid: Option<u32>,
    },
    /// A kernel parameter has a value.
    Sysctl {
        /// Its name, as in `vm.swappiness`.
        key: String,
        /// The value as the kernel prints it.
        value: String,
    },
    /// Something is mounted.
    Mount {
        /// Where.
        path: String,
        /// The type of the file system; empty for any.
        fs: String,
    },
    /// Swap is on.
    Swap,
    /// The root file system has at least this many bytes.
    RootSize {
        /// The bytes.
        at_least: u64,
    },
    /// The packages' files are those that were installed.
    Packages {
        /// Absolute paths that may differ: those of the profile's own files.
        except: Vec<String>,
    },
    /// All of the system was up in time.
    BootTime,
    /// The metadata service refuses callers without a session token.
    ImdsV1Refused,
    /// A login over SSH with the key that the metadata service gave.
    SshLogin,
    /// The machine comes up again after a reboot, and passes its other checks again.
    Reboot,
    /// A fresh EC2 instance with this user-data passes these checks.
    UserData {
        /// The user-data.
        text: String,
        /// The checks.
        checks: Vec<Check>,
    },
}

/// What is known of a file; what is `None` is not looked at.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct FileFacts {
    /// Its path.
    pub path: String,
    /// Whether it is to be there at all.
    pub exists: bool,
    /// A regular expression that a line of it is to match.
    pub contains: Option<String>,
    /// SHA-256 of its bytes.
    pub sha256: Option<Digest>,
    /// Its permission bits.
    pub mode: Option<u32>,
    /// Its owner: a name or a number.
    pub user: Option<String>,
    /// Its group: a name or a number.
    pub group: Option<String>,
}

impl What {
    /// The word for its kind, as in reports.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            What::Command { .. } => "command",
            What::Script { .. } => "script",
            What::Unit { .. } | What::Masked { .. } | What::NoFailedUnit => "unit",
            What::Port(_) => "port",
            What::Http(_) => "http",
            What::File(_) => "file",
            What::User { .. } | What::Group { .. } => "account",
            What::Sysctl { .. } => "sysctl",
            What::Mount { .. } | What::Swap | What::RootSize { .. } => "mount",
            What::Packages { .. } => "packages",
            What::BootTime => "boot",
            What::ImdsV1Refused => "imds",
            What::SshLogin => "ssh",
            What::Reboot => "reboot",
            What::UserData { .. } => "user-data",
        }
    }
}

impl Check {
    /// A check with the usual limit.
    #[must_use]
    pub fn new(name: impl Into<String>, what: What) -> Check {
        Check { name: name.into(), timeout: Duration::from_secs(30), retry: 0, what }
    }
}
