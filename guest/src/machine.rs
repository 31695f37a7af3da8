//! The running machine: what it was started with, and its partitions.

use std::fs;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};

use crate::cmdline::{self, CmdlineError, Request};
use crate::config::{self, Config};
use crate::disk;
use crate::error::{At, FileError};
use crate::generations::{Firmware, Generation, Roots, Running};
use crate::mounts;
use crate::sys;

/// Where the partition with store and state is.
pub const KILN: &str = "/kiln";
/// Where the EFI system partition is mounted, for this process alone.
const ESP: &str = "/run/kiln/esp";
/// The entry that systemd-boot started (systemd.io/BOOT_LOADER_INTERFACE).
const SELECTED: &str = "/sys/firmware/efi/efivars/LoaderEntrySelected-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";

/// Why this machine has no generations.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// It wasn't started by Kiln's initrd.
    #[error("this machine was not started from a store of Kiln's: {0}")]
    NotStore(#[from] CmdlineError),
    /// Its disk is gone.
    #[error("no disk has the partition {0}, from which this machine was started")]
    NoPartition(String),
    /// Its disk can't be booted from.
    #[error("{}: there is no EFI system partition, so that there are no generations", .0.display())]
    NoEsp(PathBuf),
    /// A file could not be used.
    #[error(transparent)]
    File(#[from] FileError),
}

/// The running machine.
#[derive(Debug)]
pub struct Machine {
    /// Its partitions.
    pub roots: Roots,
    /// Who started it.
    pub firmware: Firmware,
    /// Identity of its partition with store and state.
    pub partition: String,
    /// What its system says of state and generations.
    pub config: Config,
    arguments: Vec<String>,
    /// Held until the end, so that two calls don't disturb each other.
    _lock: Flock<fs::File>,
}

impl Machine {
    /// Looks at the running machine and mounts its EFI system partition, seen by this process alone.
    ///
    /// # Errors
    /// [`MachineError`].
    pub fn open() -> Result<Machine, MachineError> {
        let line = fs::read_to_string("/proc/cmdline").at("read", "/proc/cmdline")?;
        let arguments = cmdline::arguments(&line);
        let partition = Request::of(&arguments)?.partition;
        let lock = lock()?;
        let found = disk::find(&partition).ok_or_else(|| MachineError::NoPartition(partition.clone()))?;
        let no_esp = || MachineError::NoEsp(found.disk.clone());
        let esp = found.esp().and_then(|esp| found.node(&esp)).ok_or_else(no_esp)?;
        mount_privately(&esp)?;
        let text = fs::read_to_string(Path::new("/").join(config::FILE)).unwrap_or_default();
        let firmware = if Path::new("/sys/firmware/efi").exists() { Firmware::Uefi } else { Firmware::Bios };
        Ok(Machine {
            roots: Roots { kiln: KILN.into(), esp: ESP.into() },
            firmware,
            partition,
            config: Config::parse(&text).0,
            arguments,
            _lock: lock,
        })
    }

    /// What is running.
    #[must_use]
    pub fn running(&self, generations: &[Generation]) -> Running {
        let selected = fs::read(SELECTED).ok().map(|bytes| efi_text(&bytes));
        Running::of(generations, &self.arguments, selected.as_deref())
    }

    /// Its architecture, as Debian names it.
    #[must_use]
    pub fn arch() -> &'static str {
        match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        }
    }
}

/// The text of a variable of UEFI: four bytes of attributes, then UTF-16 with a zero behind it.
fn efi_text(bytes: &[u8]) -> String {
    let units =
        bytes.get(4..).unwrap_or_default().chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
    String::from_utf16_lossy(&units.take_while(|unit| *unit != 0).collect::<Vec<_>>())
}

fn lock() -> Result<Flock<fs::File>, FileError> {
    let path = Path::new("/run/kiln/lock");
    fs::create_dir_all("/run/kiln").at("create", "/run/kiln")?;
    let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(path).at("open", path)?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| e).at("lock", path)
}

fn mount_privately(esp: &Path) -> Result<(), FileError> {
    sys::leave_mount_namespace().at("leave the mount namespace of", "/")?;
    let nothing = None::<&str>;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).at("mount", "/")?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // What a cut left of a file that was being written is removed again: an error then, which must not make all read-only.
    mounts::device(esp, Path::new(ESP), "vfat", flags, Some("umask=0077,errors=continue"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_uefi_are_read() {
        let bytes: Vec<u8> =
            [6, 0, 0, 0].into_iter().chain(b"kiln\0\0x".iter().flat_map(|b| [*b, 0])).collect();
        assert_eq!(efi_text(&bytes), "kiln");
        assert_eq!(efi_text(&[1, 2]), "");
    }
}
