//! `kiln test` when something goes wrong around it: kills, Ctrl-C, two at once, full disks, a QEMU that dies, images that are
//! none. What is the host's fault is never told as the image's, and nothing is left behind.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use kiln::bake::digest_of;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::bake::folder_in;
use crate::machine::{self, KILN};

/// Whatever needs no machine is done within this, on a busy host.
const SOON: Duration = Duration::from_secs(15);
/// One machine is enough.
const ONE: [&str; 4] = ["--firmware", "bios", "--disk", "virtio"];

/// A store and a folder for reports of a test's own.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Place {
        Place { folder: folder_in("/var/tmp") }
    }

    fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    fn reports(&self) -> PathBuf {
        self.folder.path().join("reports")
    }

    /// `kiln test` of an image on one machine.
    fn test(&self, image: &Path) -> Command {
        let mut command = Command::new(KILN);
        command.arg("test").arg(image).args(ONE).arg("--json").arg("-o").arg(self.reports());
        command.arg("--store").arg(self.store()).arg("--qemu").arg(machine::qemu_argument());
        command.stdin(Stdio::null());
        command
    }

    /// Nothing is left of a Kiln that had this process id: neither processes nor half a report.
    fn assert_nothing_runs(&self, pid: u32, when: &str) {
        let begun = Instant::now();
        while let Some(line) = processes(self.folder.path(), pid).first() {
            assert!(begun.elapsed() < Duration::from_secs(3), "after {when} there still is {line}");
            std::thread::sleep(Duration::from_millis(20));
        }
        let reports = fs::read_dir(self.reports()).into_iter().flatten().flatten();
        let left: Vec<_> = reports.map(|entry| entry.file_name()).collect();
        assert!(left.is_empty(), "{when}: {left:?}");
    }

    fn scratch(&self) -> usize {
        fs::read_dir(self.store().join("tmp")).map_or(0, Iterator::count)
    }
}

/// Command lines of what has a path below `folder` in it, or is a part of the Kiln with number `pid`.
fn processes(folder: &Path, pid: u32) -> Vec<String> {
    let (folder, pid) = (folder.to_string_lossy().into_owned(), pid.to_string());
    let all = fs::read_dir("/proc").expect("/proc").flatten();
    let lines = all.filter_map(|p| fs::read(p.path().join("cmdline")).ok());
    let words = |line: Vec<u8>| String::from_utf8_lossy(&line).replace('\0', " ");
    let part = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        words.get(1) == Some(&"internal") && words.get(3) == Some(&pid.as_str())
    };
    lines.map(words).filter(|line| line.contains(&folder) || part(line)).collect()
}

fn silently(mut command: Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("kiln runs")
}

fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).expect("a report")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn passed(output: &Output) -> Value {
    assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
    report(output)
}

/// Ends a Kiln as soon as it says that a machine is booting; false when it ends without one.
fn boots(mut command: Command) -> bool {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("kiln runs");
    let lines = BufReader::new(child.stderr.take().expect("stderr")).lines();
    let boots = lines.map_while(Result::ok).any(|line| line.contains(": booting"));
    let _ = child.kill();
    child.wait().expect("ended");
    boots
}

#[test]
fn a_test_killed_at_any_moment_leaves_nothing_and_can_be_repeated() {
    let (place, image) = (Place::new(), machine::image("minimal"));
    let before = digest_of(&image).expect("a digest");
    for pause in [30, 150, 300, 600, 1000, 2000, 4000, 8000, 14_000, 24_000] {
        let mut child = silently(place.test(&image));
        std::thread::sleep(Duration::from_millis(pause));
        child.kill().and_then(|()| child.wait()).expect("killed");
        place.assert_nothing_runs(child.id(), &format!("{pause} ms"));
        // Its own temporary folder, and its lock; that of the one before is gone.
        assert!(place.scratch() <= 4, "{} after {pause} ms", place.scratch());
    }
    let first = passed(&place.test(&image).output().expect("kiln runs"));
    assert_eq!(first["cached"], false);
    assert_eq!(place.scratch(), 0);
    assert_eq!(digest_of(&image).expect("a digest"), before);
    // What passed is not tested again.
    let begun = Instant::now();
    let second = passed(&place.test(&image).output().expect("kiln runs"));
    println!("known after {:.1} s", begun.elapsed().as_secs_f64());
    assert!(begun.elapsed() < SOON);
    assert_eq!((&second["cached"], &second["began"]), (&Value::Bool(true), &first["began"]));
    let mut again = place.test(&image);
    again.arg("--again");
    assert!(boots(again));
}

#[test]
fn a_signal_ends_a_test_soon_and_leaves_nothing() {
    let (place, image) = (Place::new(), machine::image("minimal"));
    for (signal, pause) in [(Signal::SIGINT, 1500), (Signal::SIGTERM, 300), (Signal::SIGINT, 7000)] {
        let mut child = silently(place.test(&image));
        std::thread::sleep(Duration::from_millis(pause));
        kill(Pid::from_raw(child.id() as i32), signal).expect("signalled");
        let begun = Instant::now();
        assert_eq!(child.wait().expect("ended").code(), Some(130));
        println!("{signal} after {pause} ms: ended {:.1} s later", begun.elapsed().as_secs_f64());
        assert!(begun.elapsed() < Duration::from_secs(8));
        place.assert_nothing_runs(child.id(), signal.as_str());
        assert_eq!(place.scratch(), 0);
    }
}

#[test]
fn two_tests_at_once_do_not_meet() {
    let (place, image) = (Place::new(), machine::image("minimal"));
    let start =
        || place.test(&image).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("kiln runs");
    for child in [start(), start()] {
        let said = child.wait_with_output().expect("ended");
        assert_eq!(passed(&said)["cached"], false);
    }
    let written = fs::read(place.reports().join("report.json")).expect("the report");
    let written: Value = serde_json::from_slice(&written).expect("a whole report");
    assert_eq!(written["verdict"], "passed");
    assert_eq!(place.scratch(), 0);
}

#[test]
fn a_dry_run_tells_each_machines_command_line() {
    let (place, image) = (Place::new(), machine::image("minimal"));
    let mut command = Command::new(KILN);
    command.arg("test").arg(&image).args(["--dry-run", "--json", "-o"]).arg(place.reports());
    command.arg("--store").arg(place.store()).arg("--qemu").arg(machine::qemu_argument());
    let plan = passed(&command.output().expect("kiln runs"));
    let machines = plan["machines"].as_array().expect("machines");
    assert_eq!(machines.len(), 4);
    for machine in machines {
        let argv: Vec<&str> =
            machine["argv"].as_array().expect("argv").iter().filter_map(Value::as_str).collect();
        let has = |part: &str| argv.iter().any(|word| word.contains(part));
        assert!(has("read-only=on") && has("qemu-system-x86_64"), "{argv:?}");
        assert_eq!(has("if=pflash"), machine["firmware"] == "ovmf");
        assert_eq!(has("nvme,"), machine["disk"] == "nvme");
    }
    assert!(!place.reports().exists());
    assert_eq!(place.scratch(), 0);
}

#[test]
fn a_qemu_that_dies_is_not_the_images_fault() {
    let (place, image) = (Place::new(), machine::image("minimal"));
    let child = place.test(&image).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("kiln runs");
    let qemu = wait_for_machine(place.folder.path());
    std::thread::sleep(Duration::from_secs(5));
    kill(qemu, Signal::SIGKILL).expect("killed");
    let said = child.wait_with_output().expect("ended");
    assert_eq!(said.status.code(), Some(1), "{}", stderr(&said));
    assert!(stderr(&said).contains("QEMU ended with signal: 9"), "{}", stderr(&said));
    assert_eq!(place.scratch(), 0);
}

/// The QEMU that has the disk of a whole machine.
fn wait_for_machine(folder: &Path) -> Pid {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(60) {
        for process in fs::read_dir("/proc").expect("/proc").flatten() {
            let Ok(line) = fs::read(process.path().join("cmdline")) else { continue };
            let line = String::from_utf8_lossy(&line);
            if line.contains("-blockdev") && line.contains(&*folder.to_string_lossy()) {
                let number = process.file_name().to_string_lossy().parse().expect("a number");
                return Pid::from_raw(number);
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("no QEMU was started");
}

#[test]
fn a_full_disk_is_not_the_images_fault_on_virtio() {
    full_disk("virtio");
}

/// An NVMe disk tells the guest of an error, so that only the guest would seem to fail.
#[test]
#[ignore = "minutes for the same on another bus; run by name"]
fn a_full_disk_is_not_the_images_fault_on_nvme() {
    full_disk("nvme");
}

fn full_disk(bus: &str) {
    let (place, image) = (Place::new(), machine::image("minimal"));
    fs::create_dir(place.store()).expect("a folder");
    let script = "mount -t tmpfs -o size=1m none \"$1\" && shift && exec \"$@\"";
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"])
        .arg(place.store())
        .args([KILN, "test"])
        .arg(&image)
        .args(["--firmware", "bios", "--disk", bus, "-o"])
        .arg(place.reports())
        .arg("--store")
        .arg(place.store())
        .arg("--qemu")
        .arg(machine::qemu_argument())
        .output()
        .expect("unshare");
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("it is full, or broken") && said.contains("kiln gc"), "{said}");
}

#[test]
fn what_is_no_image_or_cannot_be_tested_is_told_at_once() {
    let (place, image) = (Place::new(), machine::image("minimal"));
    let path = |name: &str| place.folder.path().join(name);
    fs::write(path("text.raw"), "no image\n").expect("a file");
    fs::write(path("zero.raw"), vec![0; 1 << 20]).expect("a file");
    fs::write(path("empty.raw"), "").expect("a file");
    fs::write(path("qcow2.raw"), [b"QFI\xfb\0\0\0\x03".as_slice(), &[0xff; 4096]].concat()).expect("a file");
    for (target, part) in [
        ("text.raw", "no disk image"),
        ("zero.raw", "no disk image"),
        ("empty.raw", "it is empty"),
        ("absent.raw", "can't read"),
        (".", "no regular file"),
    ] {
        told(place.test(&path(target)), 2, part);
    }
    let damaged = place.test(&path("qcow2.raw")).output().expect("kiln runs");
    assert!(matches!(damaged.status.code(), Some(1 | 2)), "{}", stderr(&damaged));
    let mut nowhere = Command::new(KILN);
    nowhere.arg("test").arg(&image).arg("--store").arg(place.store()).arg("--qemu").arg(path("nothing"));
    told(nowhere, 1, "nothing has no usr/bin/qemu-system-x86_64");
    let mut unwritable = Command::new(KILN);
    unwritable.arg("test").arg(&image).arg("-o").arg(path("text.raw/reports"));
    unwritable.arg("--store").arg(place.store()).arg("--qemu").arg(machine::qemu_argument());
    told(unwritable, 2, "can't write into");
    assert_eq!(place.scratch(), 0);
}

/// A command that fails soon, with a status and a message.
fn told(mut command: Command, status: i32, part: &str) {
    let begun = Instant::now();
    let output = command.output().expect("kiln runs");
    assert!(begun.elapsed() < SOON);
    assert_eq!(output.status.code(), Some(status), "{}", stderr(&output));
    assert!(stderr(&output).contains(part), "{}", stderr(&output));
}

#[test]
fn another_init_system_is_refused_before_anything_is_booted() {
    let (place, image) = (Place::new(), machine::image("minimal"));
    let disk = place.folder.path().join("other.raw");
    let script = place.folder.path().join("init");
    fs::write(&script, "#!/bin/sh\nwhile :; do sleep 1; done\n").expect("a script");
    assert!(Command::new("cp").arg("--sparse=always").args([&image, &disk]).status().expect("cp").success());
    let write = format!("write {} /usr/sbin/init", script.display());
    let device = format!("{}?offset={}", disk.display(), root_offset(&disk));
    for request in ["rm /usr/sbin/init", &write, "sif /usr/sbin/init mode 0100755"] {
        let status =
            Command::new("debugfs").args(["-w", "-R", request, &device]).stderr(Stdio::null()).status();
        assert!(status.expect("debugfs").success());
    }
    let output = place.test(&disk).output().expect("kiln runs");
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(stderr(&output).contains("starts no systemd"), "{}", stderr(&output));
    assert_eq!(report(&output)["machines"][0]["verdict"], "skipped");
}

fn root_offset(disk: &Path) -> u64 {
    let table = Command::new("sfdisk").arg("--json").arg(disk).output().expect("sfdisk");
    let table: Value = serde_json::from_slice(&table.stdout).expect("JSON");
    let partitions = table["partitiontable"]["partitions"].as_array().expect("partitions");
    let node = format!("{}1", disk.display());
    let root = partitions.iter().find(|p| p["node"] == node.as_str()).expect("the root");
    root["start"].as_u64().expect("a number") * 512
}

/// A failed test is repeated, and the kept machine can be entered; a changed check is tested on the same image.
#[test]
fn a_verdict_belongs_to_the_checks_and_a_failed_machine_can_be_entered() {
    let place = Place::new();
    let base = machine::profile("minimal");
    let profile = base.with_file_name(format!("robust-{}.ncl", std::process::id()));
    let write = |command: &str| {
        let text = format!("(import \"minimal.ncl\") & {{ test.checks.ours.command = \"{command}\" }}\n");
        fs::write(&profile, text).expect("a profile");
    };
    fs::copy(base.with_extension("lock"), profile.with_extension("lock")).expect("a lock");
    let test = || {
        let mut command = Command::new(KILN);
        command.arg("test").arg(&profile).args(ONE).arg("--json").arg("-o").arg(place.reports());
        command.env("KILN_STORE", machine::cache().join("store")).stdin(Stdio::null());
        command
    };
    let unique = std::process::id();
    write(&format!("echo {unique}; false"));
    let failed = test().output().expect("kiln runs");
    assert_eq!(failed.status.code(), Some(3), "{}", stderr(&failed));
    let failed = report(&failed);
    assert_eq!(failed["machines"][0]["failure"]["kind"], "check-failed");
    enter(failed["machines"][0]["evidence"]["enter"].as_str().expect("a command line"));
    assert!(boots(test()), "what failed is tested again");

    write(&format!("echo {unique}; true"));
    let sound = passed(&test().output().expect("kiln runs"));
    assert_eq!((&sound["image"], &sound["cached"]), (&failed["image"], &Value::Bool(false)));
    let begun = Instant::now();
    assert_eq!(passed(&test().output().expect("kiln runs"))["cached"], true);
    assert!(begun.elapsed() < SOON);
    for path in [profile.clone(), profile.with_extension("lock")] {
        fs::remove_file(path).expect("our own file");
    }
}

/// Runs the command line that a report gives, until the kept machine asks who logs in.
fn enter(line: &str) {
    let line = format!("exec {KILN} {}", line.strip_prefix("kiln ").expect("kiln"));
    let mut command = Command::new("sh");
    command.args(["-c", &line]).env("KILN_STORE", machine::cache().join("store"));
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("sh");
    let mut console = child.stdout.take().expect("stdout");
    let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
    while !String::from_utf8_lossy(&seen).contains("login: ") {
        let read = console.read(&mut buffer).expect("the console");
        assert!(read > 0, "{}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&buffer[..read]);
    }
    child.kill().and_then(|()| child.wait()).expect("killed");
}
