//! A disk with nothing on it is named as such, under both firmwares.

use std::time::Duration;

use kiln::vm::{BootFailure, Boots, VmError};

use crate::machine;

#[test]
fn an_empty_disk_under_bios_is_named_at_once() {
    empty_disk(Boots::Seabios, BootFailure::NoBootableDevice);
}

#[test]
fn an_empty_disk_under_uefi_is_named_soon() {
    empty_disk(Boots::Ovmf, BootFailure::NoLoader);
}

fn empty_disk(firmware: Boots, expected: BootFailure) {
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("empty.raw");
    std::fs::File::create(&image).and_then(|f| f.set_len(64 << 20)).expect("an empty disk");
    let mut setup = machine::setup(&image);
    setup.firmware = firmware;
    match machine::failure(setup, Duration::from_secs(60)) {
        VmError::Boot { failure, at, .. } => {
            assert_eq!(failure, expected);
            println!("named after {:.1} s", at.as_secs_f64());
        }
        other => panic!("{other}"),
    }
}
