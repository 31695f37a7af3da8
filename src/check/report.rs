//! What was tested and how it ended: plain data, from which the terminal, JSON, JUnit and HTML reports are made.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::units::Bytes;

/// How something ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As expected.
    Passed,
    /// Not done, because something before it failed or it does not apply.
    Skipped,
    /// Not as expected: the image is at fault.
    Failed,
}

/// A check and how it ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckResult {
    /// Its name, unique on its machine: `unit nginx.service`, or the profile's own.
    pub name: String,
    /// What kind of check it is: `command`, `unit`, `http`, `static`, ….
    pub kind: String,
    /// How it ended.
    pub verdict: Verdict,
    /// One line: what was found, and what was expected where they differ.
    pub detail: String,
    /// What the check printed, when it failed; empty else.
    pub output: String,
    /// Seconds that it took, retries included.
    pub seconds: f64,
    /// How often it was tried.
    pub tries: u32,
}

/// Something that happened while a machine booted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    /// Seconds since QEMU was started.
    pub at: f64,
    /// What: `firmware`, `boot loader`, `kernel`, `initrd`, `systemd`, `login`, `settled`, ….
    pub what: String,
}

/// Why a machine did not come up, or did not stay up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MachineFailure {
    /// Its name, in words joined by `-`: `kernel-panic`, `reboot-loop`, ….
    pub kind: String,
    /// What happened, on one line.
    pub message: String,
    /// What to look at or to do next.
    pub hint: String,
    /// When, in seconds since QEMU was started.
    pub at: f64,
}

/// A unit that failed, and the end of its journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FailedUnit {
    /// Its full name.
    pub name: String,
    /// The last lines of its journal.
    pub journal: String,
}

/// What is kept of a machine that failed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// The journal of this boot, as far as it could be read.
    pub journal: String,
    /// The screen, as the bytes of a PNG file.
    #[serde(skip)]
    pub screenshot: Vec<u8>,
    /// The kept overlay: what the guest wrote.
    pub overlay: Option<PathBuf>,
    /// A command line that enters it.
    pub enter: Option<String>,
    /// Files that hold the above, by what they hold: `serial`, `journal`, `screenshot`.
    pub files: Vec<(String, PathBuf)>,
}

/// One machine of the matrix, and all that was checked on it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MachineReport {
    /// Its name: `seabios-virtio`, `ec2-ovmf-nvme`, ….
    pub name: String,
    /// Its platform: `plain` or `ec2`.
    pub platform: String,
    /// Its firmware: `seabios` or `ovmf`.
    pub firmware: String,
    /// How its disk is attached: `virtio` or `nvme`.
    pub disk: String,
    /// What ran it, in words: `KVM`, `emulation (why)`.
    pub accel: String,
    /// QEMU's command line.
    pub command: String,
    /// How it ended: the worst of its checks.
    pub verdict: Verdict,
    /// Why it did not come up or stay up, if so.
    pub failure: Option<MachineFailure>,
    /// What happened when, the first boot's firmware first.
    pub timeline: Vec<Mark>,
    /// The checks in the order in which they were done.
    pub checks: Vec<CheckResult>,
    /// Units that failed.
    pub failed_units: Vec<FailedUnit>,
    /// What was written on the serial console, each line with its time.
    pub console: String,
    /// What is kept when it failed.
    pub evidence: Option<Evidence>,
    /// Seconds from QEMU's start until no unit was starting any more, when it came so far.
    pub boot_seconds: Option<f64>,
    /// Seconds in all.
    pub seconds: f64,
}

/// A test of one image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Version of Kiln that tested.
    pub kiln: String,
    /// The system's or the file's name.
    pub name: String,
    /// Digest of the disk's blocks: the bytes that this is about.
    pub image: Digest,
    /// Size of the disk.
    pub size: Bytes,
    /// Digest of what was tested: the checks and the machines.
    pub tests: Digest,
    /// How it ended.
    pub verdict: Verdict,
    /// Checks of the disk itself, before anything was booted.
    pub statics: Vec<CheckResult>,
    /// The machines.
    pub machines: Vec<MachineReport>,
    /// When the test began, in seconds since 1970.
    pub began: i64,
    /// Seconds that it took.
    pub seconds: f64,
}

impl Verdict {
    /// The worst of some verdicts; nothing at all has passed.
    #[must_use]
    pub fn worst(verdicts: impl IntoIterator<Item = Verdict>) -> Verdict {
        let failed = verdicts.into_iter().any(|v| v == Verdict::Failed);
        if failed { Verdict::Failed } else { Verdict::Passed }
    }

    /// Its word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Verdict::Passed => "passed",
            Verdict::Skipped => "skipped",
            Verdict::Failed => "failed",
        }
    }
}

impl Report {
    /// How many checks ended in some way, static ones included.
    #[must_use]
    pub fn count(&self, verdict: Verdict) -> usize {
        let all = self.statics.iter().chain(self.machines.iter().flat_map(|m| &m.checks));
        all.filter(|check| check.verdict == verdict).count()
    }
}
