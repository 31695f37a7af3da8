//! Checks of a disk that need no machine: would firmware, boot loader, kernel and init find what they need?
//!
//! They take milliseconds and name faults that a machine shows by silence: a BIOS without boot code says nothing, nor does
//! a system without a serial console. Any maker's image can be looked at; what can't be judged is skipped and says why.
//! No content of a disk makes them panic, loop or take much memory.

mod binary;
mod config;
mod device;
mod grub;
mod loader;
mod root;
mod store;
mod table;
#[cfg(test)]
mod tests;
mod volume;

use std::io::{Read, Seek};

use crate::arch::Arch;
use crate::check::report::{CheckResult, Verdict};
use crate::system::Firmware;
use device::Disk;

/// The kind of these checks in a report.
pub const KIND: &str = "static";

/// What the disk is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expect {
    /// The machine's architecture.
    pub arch: Arch,
    /// The firmware that has to boot it.
    pub firmware: Firmware,
    /// Whether the system is to speak on the first serial line.
    pub serial: bool,
}

/// How a check ended, and its detail.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    verdict: Verdict,
    detail: String,
}

fn passed(detail: impl Into<String>) -> Finding {
    Finding { verdict: Verdict::Passed, detail: detail.into() }
}

fn failed(detail: impl Into<String>) -> Finding {
    Finding { verdict: Verdict::Failed, detail: detail.into() }
}

fn skipped(why: impl Into<String>) -> Finding {
    Finding { verdict: Verdict::Skipped, detail: why.into() }
}

/// Checks a raw disk. The results come in the order in which a machine boots, always the same checks by the same names;
/// a detail says what was found, and for a failure what to do. They carry no times: the whole takes milliseconds.
pub fn inspect(disk: &mut (impl Read + Seek), expect: &Expect) -> Vec<CheckResult> {
    let expect = *expect;
    let findings = device::with_disk(disk, move |disk| examine(&disk, &expect));
    let broken = || {
        let why = "its structures can't be followed: they are damaged in a way that no reader foresees";
        vec![("disk", failed(format!("{why}; compare the file with where it came from")))]
    };
    let result = |(name, finding): (&'static str, Finding)| CheckResult {
        name: name.to_owned(),
        kind: KIND.to_owned(),
        verdict: finding.verdict,
        detail: finding.detail,
        output: String::new(),
        seconds: 0.0,
        tries: 1,
    };
    findings.unwrap_or_else(broken).into_iter().map(result).collect()
}

/// All checks, in order.
fn examine(disk: &Disk, expect: &Expect) -> Vec<(&'static str, Finding)> {
    let table = table::read(disk);
    let volumes = volume::open_all(disk, &table.partitions);
    let config = config::find(&volumes, expect);
    let entry = config.entries.first();
    let of_store = entry.zip(store::image(entry));
    let (root, root_finding) = match of_store {
        Some((entry, image)) => (None, store::system(&volumes, entry, image)),
        None => root::find(&volumes, entry, expect),
    };
    vec![
        ("partition table", table.primary.clone()),
        ("partition table's copy", table.backup.clone()),
        ("BIOS boot code", loader::bios(disk, &table, expect)),
        ("EFI system partition", loader::esp(&table, &volumes, expect)),
        ("EFI boot loader", loader::efi(&volumes, expect)),
        ("boot configuration", config.finding),
        ("kernel", root::kernel(&volumes, entry, expect)),
        ("initrd", root::initrd(&volumes, entry)),
        ("serial console", root::console(entry, expect)),
        ("root file system", root_finding),
        ("init", of_store.map_or_else(|| root::init(root, entry, expect), |_| store::inside())),
        ("fstab", of_store.map_or_else(|| root::fstab(root, &volumes), |_| store::inside())),
    ]
}
