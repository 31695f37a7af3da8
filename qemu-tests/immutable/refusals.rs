//! A system of which one byte is another is not started, or stopped as soon as that byte is read; the console says why.

use std::path::Path;
use std::time::Duration;

use kiln::vm::{BootFailure, Boots};

use super::{Disk, Project, setup};
use crate::bake::folder_in;
use crate::machine;

/// From power on to what the initrd says, under emulation on a busy host.
const REFUSAL: Duration = Duration::from_secs(240);
/// Where everything lies that a boot loader reads.
const ESP_END: usize = 258 << 20;

/// Boots a machine that must say so, and gives it up.
fn refuses(disk: &Path, firmware: Boots, words: &[&str]) {
    let mut setup = setup(disk);
    (setup.firmware, setup.reboots) = (firmware, false);
    setup.survives = vec![BootFailure::KernelPanic, BootFailure::NotStarted];
    let vm = machine::start(setup);
    let found = vm.wait_for("refusal", REFUSAL, |line| words.iter().all(|word| line.contains(word)));
    let line = found.unwrap_or_else(|e| panic!("{words:?}: {e}"));
    println!("after {:.1} s: {}", line.at.as_secs_f64(), line.text);
    assert!(!vm.lines().iter().any(|line| line.text.ends_with("login: ")));
    // What failed must not stay: the boot loader is to have another try.
    let ending = vm.wait_for_end(REFUSAL).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(ending.reason.as_deref(), Some("guest-reset"));
}

#[test]
fn one_byte_of_hash_tree_or_root_hash() {
    let image = Project::of("refusals").image("plain", "");
    let folder = folder_in("/var/tmp");

    // The tree is the last of the file; its last block holds hashes of data blocks.
    let disk = Disk::copy(&image, folder.path(), "tree.raw");
    let system = disk.system();
    disk.change(disk.place(&system, disk.size(&system) - 4096), |byte| byte ^ 1);
    refuses(
        &disk.path,
        Boots::Seabios,
        &["kiln: cannot start ", "-tiny: its image is not the one with root hash"],
    );

    // In the unified kernel image and in both of GRUB's menus.
    let disk = Disk::copy(&image, folder.path(), "root.raw");
    let places = disk.find_all(b"kiln.roothash=", ESP_END);
    assert_eq!(places.len(), 3, "{places:?}");
    for at in &places {
        disk.change(at + "kiln.roothash=".len() as u64, |digit| if digit == b'0' { b'1' } else { b'0' });
    }
    refuses(
        &disk.path,
        Boots::Ovmf,
        &["kiln: cannot start ", "-tiny: its image is not the one with root hash"],
    );
}

#[test]
fn one_byte_of_the_system() {
    let project = Project::of("bits");
    let folder = folder_in("/var/tmp");

    // A block that every boot reads: the table of inodes lies right behind the superblock. It is found when it is read.
    let disk = Disk::copy(&project.image("plain", ""), folder.path(), "early.raw");
    let system = disk.system();
    disk.change(disk.place(&system, 1024 + 200), |byte| byte ^ 1);
    refuses(&disk.path, Boots::Seabios, &["Kernel panic", "dm-verity device corrupted"]);

    // A block that hardly any boot reads, on a machine that is told to check them all.
    let full = "kernel.arguments.\"kiln.verify\" = \"full\"";
    let disk = Disk::copy(&project.image("full", full), folder.path(), "late.raw");
    let system = disk.system();
    disk.change(disk.place(&system, disk.size(&system) / 2), |byte| byte ^ 1);
    refuses(&disk.path, Boots::Seabios, &["kiln: cannot start ", "its image is not the one with root hash"]);
}
