//! Every ready-made profile's image boots, under both firmwares and from both kinds of disk: the system is running, no
//! unit failed, the root has grown to the disk it was given, and dpkg finds nothing.
//!
//! Each profile meets each firmware once; the kinds of disk alternate, so that all four pairs are covered.

use std::time::Duration;

use kiln::units::{Bytes, GIB};
use kiln::vm::disk::Image;
use kiln::vm::{BootFailure, Bus, Channel, Firmware, VmError};

use crate::machine::{self, SETTLED, SHUTDOWN, said};

#[test]
fn minimal_under_bios_from_virtio() {
    boots("minimal", Firmware::Seabios, Bus::Virtio);
}

#[test]
fn minimal_under_uefi_from_nvme() {
    boots("minimal", Firmware::Ovmf, Bus::Nvme);
}

#[test]
fn server_under_bios_from_nvme() {
    boots("server", Firmware::Seabios, Bus::Nvme);
}

#[test]
fn server_under_uefi_from_virtio() {
    boots("server", Firmware::Ovmf, Bus::Virtio);
}

#[test]
fn web_under_bios_from_virtio() {
    boots("web", Firmware::Seabios, Bus::Virtio);
}

#[test]
fn web_under_uefi_from_nvme() {
    boots("web", Firmware::Ovmf, Bus::Nvme);
}

#[test]
fn postgres_under_bios_from_nvme() {
    boots("postgres", Firmware::Seabios, Bus::Nvme);
}

#[test]
fn postgres_under_uefi_from_virtio() {
    boots("postgres", Firmware::Ovmf, Bus::Virtio);
}

/// By how much the disk is larger than the image.
const GROWTH: u64 = 2 * GIB;

fn boots(profile: &str, firmware: Firmware, bus: Bus) {
    let image = machine::image(profile);
    let size = Image::open(&image).expect("an image").size;
    let mut setup = machine::setup(&image);
    setup.firmware = firmware;
    setup.bus = bus;
    setup.disk_size = Some(Bytes(size.0 + GROWTH));
    let vm = machine::with_channel(setup, |channel| {
        settled(channel);
        // The smallest image leaves out the program that grows it.
        if profile != "minimal" {
            grown(channel);
        }
        assert_eq!(said(channel, "dpkg --verify; dpkg --audit"), "", "dpkg finds something");
        let uefi = said(channel, "test -d /sys/firmware/efi && echo uefi || echo bios");
        assert_eq!(uefi.trim() == "uefi", firmware == Firmware::Ovmf, "the firmware is {uefi}");
    });
    println!("{profile}: up after {:.1} s", vm.age().as_secs_f64());
    let ending = vm.power_down(SHUTDOWN);
    assert_eq!(ending.reason.as_deref(), Some("guest-shutdown"), "{ending}");
}

fn settled(channel: &mut Channel<'_>) {
    let settled = channel.wait_until_settled(SETTLED).unwrap_or_else(|e| panic!("{e}"));
    if settled.state != "running" || !settled.failed.is_empty() {
        let show = "systemctl --failed; for u in $(systemctl --failed --no-legend --plain | cut -d' ' -f1); do \
                    systemctl status --no-pager \"$u\"; journalctl --no-pager -b -u \"$u\" | tail -20; done; true";
        panic!("the system is {}: {:?}\n{}", settled.state, settled.failed, said(channel, show));
    }
}

/// The root's file system takes at least nine tenths of what the disk has more.
fn grown(channel: &mut Channel<'_>) {
    let root = said(channel, "findmnt -bno SIZE / && lsblk -bno SIZE $(findmnt -no SOURCE /) && lsblk -b");
    let sizes: Vec<u64> = root.lines().map_while(|line| line.trim().parse().ok()).collect();
    assert!(sizes.first().is_some_and(|&size| size > GROWTH / 10 * 9), "the root has not grown:\n{root}");
}

#[test]
fn an_empty_disk_under_bios_is_named_at_once() {
    empty_disk(Firmware::Seabios, BootFailure::NoBootableDevice);
}

#[test]
fn an_empty_disk_under_uefi_is_named_soon() {
    empty_disk(Firmware::Ovmf, BootFailure::NoLoader);
}

fn empty_disk(firmware: Firmware, expected: BootFailure) {
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
