//! What shows that a machine is stuck: its processors, its screen, its disks.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::PoisonError;
use std::time::Duration;

use serde_json::{Value, json};

use super::Vm;
use crate::units::{Bytes, SECTOR};
use crate::vm::failure::{BootFailure, DISK_FAILED, VmError, named};
use crate::vm::pulse;

/// A boot loader speaks within this of being started, under emulation on a busy host.
const BOOT_CODE: Duration = Duration::from_secs(20);
/// A console that says nothing for so long may be waiting at a prompt that only the screen shows.
const SILENCE: Duration = Duration::from_secs(6);
/// Between two looks at the screen.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// Where VGA's text mode keeps its characters, two bytes each, and how many there are.
const TEXT_MEMORY: u64 = 0xb8000;
const TEXT_COLUMNS: usize = 80;
const TEXT_ROWS: usize = 25;
/// A guest that has read all that its disk holds so often keeps nothing of it in memory.
const READ_OVER_AND_OVER: u64 = 3;

impl Vm {
    /// Fails when nothing has moved for `limit`: neither the console spoke, nor did the guest use its processors. Boot code
    /// that never speaks is told sooner.
    ///
    /// # Errors
    /// [`VmError::Boot`] with [`BootFailure::Hang`] or [`BootFailure::NoBootCode`].
    pub fn check_pulse(&self, limit: Duration) -> Result<(), VmError> {
        self.check_screen()?;
        let idle = self.shared.lock().pulse.idle_since();
        match idle {
            Some(since) if self.age().saturating_sub(since) > limit => {
                let tail = self.tail();
                let line = tail.last().cloned().unwrap_or_default();
                Err(VmError::Boot { failure: BootFailure::Hang, line, at: since, tail })
            }
            _ => Ok(()),
        }
    }

    /// A console that is silent for a while is not all there is: boot loaders under BIOS write to the screen, and so does a
    /// system without a console on the serial port. Boot code that shows nothing anywhere runs through empty memory.
    fn check_screen(&self) -> Result<(), VmError> {
        let state = self.shared.lock();
        let spoken = state.console.since(state.console.count().saturating_sub(8));
        let last = spoken.filter(|line| !line.text.trim().is_empty()).last().cloned();
        drop(state);
        let (at, text) = last.map_or_else(Default::default, |line| (line.at, line.text));
        let silent = self.age().saturating_sub(at);
        if silent < SILENCE || !self.time_to_look() {
            return Ok(());
        }
        let screen = self.screen_text();
        for line in &screen {
            // A prompt ends with a blank, which a screen is full of.
            let named = named(&format!("{line} "));
            if let Some(failure) = named.filter(|failure| !self.survives.contains(failure)) {
                let line = line.trim().to_owned();
                return Err(VmError::Boot { failure, line, at: self.age(), tail: screen });
            }
        }
        let stuck = text.starts_with("Booting from ")
            && silent > BOOT_CODE
            && !screen.iter().any(|l| l.contains("GRUB"));
        if stuck {
            return Err(VmError::Boot {
                failure: BootFailure::NoBootCode,
                line: text,
                at,
                tail: self.tail(),
            });
        }
        Ok(())
    }

    /// Processor time that the machine has used.
    pub(in crate::vm) fn processor_time(&self) -> Duration {
        pulse::processor_time(self.pid())
    }

    fn time_to_look(&self) -> bool {
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        let due = self.age().saturating_sub(*looked) > LOOK_EVERY;
        if due {
            *looked = self.age();
        }
        due
    }

    /// The lines of a screen in VGA's text mode, the empty ones left out; nothing under UEFI, which has no such mode.
    #[must_use]
    pub fn screen_text(&self) -> Vec<String> {
        if !self.machine.screen || self.machine.flash.is_some() {
            return Vec::new();
        }
        let file = self.folder.path().join("screen.text");
        let area = json!({ "val": TEXT_MEMORY, "size": TEXT_COLUMNS * TEXT_ROWS * 2, "filename": file });
        let bytes = match self.execute("pmemsave", &area) {
            Ok(_) => std::fs::read(&file).unwrap_or_default(),
            Err(_) => return Vec::new(),
        };
        let rows = bytes.chunks(TEXT_COLUMNS * 2).map(|row| {
            // Each character is followed by its colours.
            let letters =
                row.iter().step_by(2).map(|&b| if b.is_ascii_graphic() { char::from(b) } else { ' ' });
            letters.collect::<String>().trim_end().to_owned()
        });
        rows.filter(|row| !row.is_empty()).collect()
    }

    /// Writes what the screen shows to a new PNG file; the machine must have one ([`Machine::screen`]).
    ///
    /// # Errors
    /// [`VmError::Monitor`].
    pub fn screenshot(&self, path: &Path) -> Result<(), VmError> {
        self.execute("screendump", &json!({ "filename": path, "format": "png" })).map(|_| ())
    }

    /// Whether the guest reads its disk over and over, in words: it has no memory left to keep even the programs that run.
    /// Linux may go on so for minutes before it kills one.
    #[must_use]
    pub fn thrashes(&self) -> Option<String> {
        let answer = self.execute("query-blockstats", &Value::Null).ok()?;
        let read: u64 = answer.as_array()?.iter().filter_map(|d| d["stats"]["rd_bytes"].as_u64()).sum();
        let held: u64 =
            [&self.machine.image, &self.machine.overlay].into_iter().map(|path| allocated(path)).sum();
        over_and_over(read, held + self.machine.memory.0)
            .then(|| format!("it has read {} from a disk that holds {}", Bytes(read), Bytes(held)))
    }

    /// Fails when the host could not read or write for a disk. QEMU pauses some machines then; others are told of an error
    /// by their disk, which looks as if the image were at fault.
    ///
    /// # Errors
    /// [`VmError::Paused`], as for those that QEMU pauses.
    pub fn check_disks(&self) -> Result<(), VmError> {
        let Ok(answer) = self.execute("query-blockstats", &Value::Null) else { return Ok(()) };
        let failed = |disk: &Value| {
            let count = |name: &str| disk["stats"][name].as_u64().unwrap_or_default();
            count("failed_rd_operations") + count("failed_wr_operations") + count("failed_flush_operations")
        };
        match answer.as_array().is_some_and(|disks| disks.iter().any(|disk| failed(disk) > 0)) {
            true => Err(VmError::Paused { status: DISK_FAILED.to_owned() }),
            false => Ok(()),
        }
    }
}

fn over_and_over(read: u64, held: u64) -> bool {
    read > held.saturating_mul(READ_OVER_AND_OVER)
}

/// What a file takes on the host's disk: holes don't count.
fn allocated(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.blocks() * SECTOR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_reads_everything_once_has_memory_enough() {
        assert!(
            !over_and_over(300, 250) && over_and_over(751, 250) && !over_and_over(u64::MAX, u64::MAX / 2)
        );
    }
}
