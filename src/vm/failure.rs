//! How a boot fails, told by what the console shows, and every error of this module.

use std::fmt;
use std::time::Duration;

use super::disk::DiskError;
use super::ec2::InstanceError;
use super::netns::NetworkError;
use super::qemu::QemuError;
use crate::host::fs::FileError;
use crate::host::interrupt::Interrupted;

/// A boot that will not reach its end any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BootFailure {
    /// The firmware found nothing to boot from.
    NoBootableDevice,
    /// The firmware started the disk's boot code, which does nothing.
    NoBootCode,
    /// UEFI could not load or start the boot loader, or fell into its shell.
    NoLoader,
    /// The boot loader stopped at its own prompt.
    BootLoaderPrompt,
    /// The boot loader's entry names a kernel that is not there, or is none for this machine.
    NoKernel,
    /// The kernel gave up.
    KernelPanic,
    /// The initramfs did not find or mount the root, or found no init on it.
    InitramfsShell,
    /// Kiln's initrd refused the system, or couldn't put it together.
    NotStarted,
    /// systemd entered emergency or rescue mode.
    EmergencyMode,
    /// The machine reset itself before a kernel spoke.
    LoaderReset,
    /// The system restarts itself again and again.
    RebootLoop,
    /// Nothing moves any more: no processor time, no word on the console.
    Hang,
    /// The system is up, but nothing in it started the agent.
    NoAgent,
    /// The kernel killed a program because there was no memory left.
    OutOfMemory,
}

impl fmt::Display for BootFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BootFailure::NoBootableDevice => "no bootable device",
            BootFailure::NoBootCode => "the disk's boot code does nothing",
            BootFailure::NoLoader => "UEFI found no boot loader that it can start",
            BootFailure::BootLoaderPrompt => "the boot loader stopped",
            BootFailure::NoKernel => "the boot loader can't load the kernel",
            BootFailure::KernelPanic => "kernel panic",
            BootFailure::InitramfsShell => "the initramfs gave up and opened a shell",
            BootFailure::NotStarted => "the initrd did not start the system",
            BootFailure::EmergencyMode => "systemd entered emergency mode",
            BootFailure::LoaderReset => "the boot loader found nothing to start and reset the machine",
            BootFailure::RebootLoop => "the system restarts itself again and again",
            BootFailure::Hang => "the system hangs",
            BootFailure::NoAgent => "the system came up, but did not start what answers Kiln",
            BootFailure::OutOfMemory => "the guest ran out of memory",
        })
    }
}

/// Texts that tell a failure wherever they stand in a line.
const SIGNS: [(&str, BootFailure); 24] = [
    ("No bootable device", BootFailure::NoBootableDevice),
    ("Could not read the boot disk", BootFailure::NoBootableDevice),
    ("not a bootable disk", BootFailure::NoBootableDevice),
    ("BdsDxe: No bootable option", BootFailure::NoLoader),
    ("BdsDxe: failed to load", BootFailure::NoLoader),
    ("BdsDxe: failed to start", BootFailure::NoLoader),
    ("UEFI Interactive Shell", BootFailure::NoLoader),
    ("Press any key to enter the Boot Manager", BootFailure::NoLoader),
    ("error: you need to load the kernel first", BootFailure::NoKernel),
    ("Error loading \\", BootFailure::NoKernel),
    ("Kernel panic - not syncing", BootFailure::KernelPanic),
    ("Dropping to a shell!", BootFailure::InitramfsShell),
    ("can't access tty; job control turned off", BootFailure::InitramfsShell),
    ("kiln: cannot start ", BootFailure::NotStarted),
    ("You are in emergency mode", BootFailure::EmergencyMode),
    ("You are in rescue mode", BootFailure::EmergencyMode),
    ("Entering emergency mode", BootFailure::EmergencyMode),
    ("the root account is locked", BootFailure::EmergencyMode),
    ("Reached target emergency.target", BootFailure::EmergencyMode),
    ("Started emergency.service", BootFailure::EmergencyMode),
    ("systemd[1]: Freezing execution", BootFailure::Hang),
    ("Out of memory: Killed process", BootFailure::OutOfMemory),
    ("Out of memory and no killable processes", BootFailure::OutOfMemory),
    ("Memory cgroup out of memory: Killed process", BootFailure::OutOfMemory),
];

/// Prompts that a line begins with.
const PROMPTS: [(&str, BootFailure); 3] = [
    ("(initramfs)", BootFailure::InitramfsShell),
    ("grub> ", BootFailure::BootLoaderPrompt),
    ("grub rescue> ", BootFailure::BootLoaderPrompt),
];

/// The failure that a line of the console tells, if it tells one. Unfinished lines count: prompts never end.
#[must_use]
pub fn named(line: &str) -> Option<BootFailure> {
    let prompt = PROMPTS.iter().find(|(sign, _)| line.starts_with(sign));
    prompt.or_else(|| SIGNS.iter().find(|(sign, _)| line.contains(sign))).map(|(_, failure)| *failure)
}

/// How QEMU ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ending {
    /// Its exit status in words.
    pub status: String,
    /// Why the guest shut down, as QEMU's monitor says it: `guest-shutdown`, `guest-reset`, `guest-panic`, ….
    pub reason: Option<String>,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason.as_deref() {
            Some("guest-shutdown") => write!(f, "the guest shut down")?,
            Some("guest-reset") => write!(f, "the guest reset itself")?,
            Some("guest-panic") => write!(f, "the guest's kernel panicked")?,
            Some(other) => write!(f, "the machine ended ({other})")?,
            None => write!(f, "QEMU ended with {}", self.status)?,
        }
        match self.stderr.trim() {
            "" => Ok(()),
            said => write!(f, "; QEMU said: {said}"),
        }
    }
}

/// What a virtual machine fails with.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The image can't be booted from.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// QEMU or its firmware is missing.
    #[error(transparent)]
    Qemu(#[from] QemuError),
    /// A file can't be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The instance is one that EC2 would not launch.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// The machine can't have a network of its own.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// OpenSSH's client can't be used.
    #[error("SSH into the guest: {0}")]
    Ssh(String),
    /// QEMU can't be started at all.
    #[error("can't start QEMU: {0}")]
    Start(#[source] std::io::Error),
    /// The boot failed in a way that has a name.
    #[error("{failure} after {:.1} s: {}\n{}", at.as_secs_f64(), line.trim(), indented(tail))]
    Boot {
        /// Its name.
        failure: BootFailure,
        /// The line that told it.
        line: String,
        /// When, since the start.
        at: Duration,
        /// The console's last lines.
        tail: Vec<String>,
    },
    /// Something waited for did not come.
    #[error("no {what} within {} s\n{}", limit.as_secs(), indented(tail))]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
        /// The console's last lines.
        tail: Vec<String>,
    },
    /// The machine ended while something was waited for.
    #[error("waiting for {what}: {ending}\n{}", indented(tail))]
    Ended {
        /// What was waited for.
        what: String,
        /// How it ended.
        ending: Ending,
        /// The console's last lines.
        tail: Vec<String>,
    },
    /// QEMU paused the machine by itself: the accelerator broke, or the overlay's disk is full.
    #[error("QEMU stopped the machine: {status}{}", explained(status))]
    Paused {
        /// QEMU's run state: `internal-error`, `io-error`, ….
        status: String,
    },
    /// QEMU's monitor refused a command.
    #[error("QEMU's monitor: {command}: {why}")]
    Monitor {
        /// The command.
        command: String,
        /// Its answer.
        why: String,
    },
    /// The channel into the guest gave no sensible answer.
    #[error("the channel into the guest: {0}")]
    Channel(String),
    /// The user asked to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl VmError {
    /// Whether the accelerator failed rather than the guest, so that emulation is worth a try.
    #[must_use]
    pub fn is_accelerator(&self) -> bool {
        matches!(self, VmError::Paused { status } if status == "internal-error")
    }

    /// Whether the host could not read or write for the machine's disk.
    #[must_use]
    pub fn is_host_disk(&self) -> bool {
        matches!(self, VmError::Paused { status } if status == DISK_FAILED)
    }
}

/// QEMU's word for a disk whose file the host could not read or write.
pub(super) const DISK_FAILED: &str = "io-error";

fn explained(status: &str) -> &'static str {
    match status {
        DISK_FAILED => ", the host could not read or write the file of its disk: it is full, or broken",
        _ => "",
    }
}

fn indented(tail: &[String]) -> String {
    match tail {
        [] => "  (the serial console stayed silent)".to_owned(),
        lines => lines.iter().map(|l| format!("  | {l}")).collect::<Vec<_>>().join("\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_have_names() {
        for (line, failure) in [
            ("[    6.1] Kernel panic - not syncing: Attempted to kill init!", BootFailure::KernelPanic),
            ("ALERT!  PARTUUID=x does not exist.  Dropping to a shell!", BootFailure::InitramfsShell),
            ("(initramfs) ", BootFailure::InitramfsShell),
            ("No bootable device.", BootFailure::NoBootableDevice),
            ("BdsDxe: failed to load Boot0001 \"UEFI QEMU NVMe Ctrl\": Not Found", BootFailure::NoLoader),
            ("grub rescue> ", BootFailure::BootLoaderPrompt),
            ("Cannot open access to console, the root account is locked.", BootFailure::EmergencyMode),
        ] {
            assert_eq!(named(line), Some(failure), "{line}");
        }
        for line in
            ["Welcome to Debian GNU/Linux 13 (trixie)!", "kiln login: ", "GRUB loading..", "echo grub> "]
        {
            assert_eq!(named(line), None, "{line}");
        }
    }

    #[test]
    fn an_error_shows_the_consoles_end() {
        let error = VmError::Timeout {
            what: "login prompt".to_owned(),
            limit: Duration::from_secs(60),
            tail: vec!["one".to_owned(), "two".to_owned()],
        };
        assert_eq!(error.to_string(), "no login prompt within 60 s\n  | one\n  | two");
    }
}
