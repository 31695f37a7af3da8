//! The release before: systemd 252, GRUB and tools of the newer one. It bakes, boots and grows.

use std::fs;
use std::process::Command;
use std::time::Duration;

use kiln::units::{Bytes, GIB};
use kiln::vm::disk::Image;
use kiln::vm::until_settled;

use crate::bake::{finished, folder_in, shared_store};
use crate::machine::{self, KILN, SETTLED, said};

const PROFILE: &str = r#"{ name = "bookworm", sources.debian.suite = "bookworm" }"#;

#[test]
#[ignore = "`kiln test` shows the same; run by name"]
fn bookworm_boots_and_grows() {
    let folder = folder_in("/var/tmp");
    let profile = folder.path().join("bookworm.ncl");
    fs::write(&profile, PROFILE).expect("a profile");
    let mut command = Command::new(KILN);
    command
        .arg("--store")
        .arg(shared_store())
        .arg("build")
        .arg(&profile)
        .arg("-o")
        .arg(folder.path().join("out"));
    finished(command);
    let image = folder.path().join("out/bookworm.raw");
    let mut setup = machine::setup(&image);
    setup.disk_size = Some(Bytes(Image::open(&image).expect("an image").size.0 + 2 * GIB));
    machine::with_channel(setup, |vm, channel| {
        let settled = until_settled(vm, channel, Duration::ZERO, SETTLED).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((settled.state.as_str(), settled.failed.len()), ("running", 0), "{settled:?}");
        assert_eq!(said(channel, ". /etc/os-release; echo $VERSION_CODENAME").trim(), "bookworm");
        assert_eq!(said(channel, "dpkg --verify; dpkg --audit"), "");
        let size: u64 = said(channel, "df -B1 --output=size / | tail -1").trim().parse().expect("a size");
        assert!(size > 2 * GIB, "the root has only {size} bytes");
    });
}

/// The channel into the machine is made of what systemd 252 knows already.
#[test]
fn bookworm_passes_its_tests() {
    let folder = folder_in("/var/tmp");
    let profile = folder.path().join("bookworm.ncl");
    fs::write(&profile, PROFILE).expect("a profile");
    let mut command = Command::new(KILN);
    command.arg("--store").arg(shared_store()).arg("test").arg(&profile);
    command.args(["--firmware", "bios", "--disk", "virtio", "-o"]).arg(folder.path().join("reports"));
    finished(command);
}
