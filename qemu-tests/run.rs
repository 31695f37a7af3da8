//! `kiln run` and what keeps machines from outliving it.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kiln::vm::disk::Image;
use kiln::vm::machine::Format;
use kiln::vm::probe::{self, Verdict};

use crate::machine::{self, KILN};

fn kiln_run(store: &Path, image: &Path) -> Command {
    let mut command = Command::new(KILN);
    command.arg("--store").arg(store).arg("run").arg(image).arg("--qemu").arg(machine::qemu_argument());
    command
}

/// A disk with nothing on it but the signature of an MBR.
fn empty_disk(folder: &Path) -> std::path::PathBuf {
    let image = folder.join("empty.raw");
    let file = std::fs::File::create(&image).expect("a disk");
    file.set_len(16 << 20).and_then(|()| file.write_all_at(&[0x55, 0xaa], 510)).expect("an empty disk");
    image
}

#[test]
fn kvm_is_tried_in_less_than_two_seconds() {
    let qemu = machine::qemu();
    let begun = Instant::now();
    let verdict = probe::kvm(&qemu, &machine::cache().join("scratch"), Some(Path::new(KILN)));
    println!("{verdict:?} after {:.2} s", begun.elapsed().as_secs_f64());
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert!(matches!(verdict, Ok(Verdict::Works | Verdict::Broken(_))));
}

#[test]
fn a_dry_run_prints_the_command_line_and_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let image = empty_disk(folder.path());
    let store = folder.path().join("store");
    let output = kiln_run(&store, &image)
        .args(["--dry-run", "--accel", "emulation", "-p", "8080:80", "--disk", "nvme"])
        .output()
        .expect("kiln runs");
    let line = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(line.contains("-netdev user,id=net0,restrict=on,hostfwd=tcp:127.0.0.1:8080-:80"), "{line}");
    assert_eq!(std::fs::read_dir(store.join("tmp")).expect("tmp").count(), 0);
}

#[test]
fn without_any_qemu_the_next_step_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let image = empty_disk(folder.path());
    let mut command = Command::new(KILN);
    command.arg("--store").arg(folder.path().join("store")).arg("run").arg(&image);
    let output = command.env("PATH", folder.path()).env_remove("KILN_QEMU").output().expect("kiln runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("the host has no qemu-system-x86_64"), "{said}");
    assert!(said.contains("`kiln run PROFILE --dry-run` fetches the QEMU"), "{said}");
}

/// A killed Kiln takes QEMU along, at whatever moment; the next one removes its folder.
#[test]
fn nothing_outlives_a_killed_kiln() {
    let folder = tempfile::tempdir().expect("a folder");
    let image = empty_disk(folder.path());
    let store = folder.path().join("store");
    for pause in [5, 30, 60, 120, 250, 400, 600, 800, 1000, 1500] {
        let mut child = kiln_run(&store, &image)
            .args(["--accel", "emulation"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("kiln runs");
        std::thread::sleep(Duration::from_millis(pause));
        child.kill().and_then(|()| child.wait()).expect("killed");
        let begun = Instant::now();
        while machines(folder.path()) > 0 {
            assert!(begun.elapsed() < Duration::from_secs(2), "QEMU lives on after {pause} ms");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    let status =
        kiln_run(&store, &image).args(["--dry-run", "--accel", "emulation"]).stdout(Stdio::null()).status();
    assert!(status.expect("kiln runs").success());
    assert_eq!(std::fs::read_dir(store.join("tmp")).expect("tmp").count(), 0);
}

/// How many processes have a path below `folder` in their command line.
fn machines(folder: &Path) -> usize {
    let processes = std::fs::read_dir("/proc").expect("/proc");
    let lines = processes.flatten().filter_map(|p| std::fs::read(p.path().join("cmdline")).ok());
    lines.filter(|line| String::from_utf8_lossy(line).contains(&*folder.to_string_lossy())).count()
}

#[test]
fn what_is_kept_is_an_overlay_and_the_image_stays() {
    let folder = tempfile::tempdir().expect("a folder");
    let image = empty_disk(folder.path());
    let before = std::fs::metadata(&image).and_then(|m| m.modified()).expect("its time");
    let keep = folder.path().join("kept, with a comma.qcow2");
    let store = folder.path().join("store");
    let mut child = kiln_run(&store, &image)
        .args(["--accel", "emulation", "--size", "1GiB", "--keep"])
        .arg(&keep)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("kiln runs");
    // The console shows that the machine runs; then Ctrl-C ends it.
    let mut first = [0];
    std::io::Read::read_exact(child.stdout.as_mut().expect("stdout"), &mut first).expect("SeaBIOS speaks");
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("signalled");
    std::thread::sleep(Duration::from_millis(300));
    // It asks the guest to shut down, which this one can't; the second signal means it.
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("signalled");
    assert_eq!(child.wait().expect("ended").code(), Some(130));
    let kept = Image::open(&keep).expect("an overlay");
    assert_eq!((kept.format, kept.size.0), (Format::Qcow2, 1 << 30));
    assert_eq!(std::fs::metadata(&image).and_then(|m| m.modified()).expect("its time"), before);
}

#[test]
fn a_command_over_ssh() {
    let image = machine::image("server");
    let folder = tempfile::tempdir().expect("a folder");
    let output = kiln_run(&folder.path().join("store"), &image)
        .args(["--ssh", "--disk", "nvme", "--", "id -un; cat /sys/class/dmi/id/sys_vendor; exit 0"])
        .stdin(Stdio::null())
        .output()
        .expect("kiln runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(said.lines().next(), Some("root"), "{said}");
}
