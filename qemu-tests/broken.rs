//! Images that are broken on purpose: each failure is told by its name, and soon after it shows.
//!
//! Some are broken by their profile, the others by changing a copy of a sound image's bytes. All are tested by `kiln test`,
//! which must end with status 3; `keep` boots what the disk's own checks would already refuse.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::machine;

/// A failure is named within this of its cause, in seconds: evidence is collected meanwhile.
const SOON: f64 = 30.0;

/// What is expected of a test.
struct Named {
    kind: &'static str,
    /// A part of the message.
    message: &'static str,
    /// Under which firmware.
    firmware: &'static str,
}

impl Named {
    fn under_bios(kind: &'static str, message: &'static str) -> Named {
        Named { kind, message, firmware: "bios" }
    }
}

#[test]
fn init_that_ends() {
    let profile = "kernel.arguments.init = \"/bin/false\"";
    by_profile("minimal", profile, &Named::under_bios("kernel-panic", "Attempted to kill init"));
}

#[test]
fn unit_that_fails() {
    let unit = "units.\"broken.service\" = { state = 'enabled, text = \"[Service]\\nType=oneshot\\nExecStart=/bin/sh -c 'echo so it goes; exit 3'\\n[Install]\\nWantedBy=multi-user.target\\n\" }";
    let report = by_profile("minimal", unit, &Named::under_bios("failed-unit", "broken.service"));
    let failed = &report["machines"][0]["failed_units"][0];
    assert_eq!(failed["name"], "broken.service");
    assert!(failed["journal"].as_str().is_some_and(|j| j.contains("so it goes")), "{failed}");
}

#[test]
fn unit_that_hangs() {
    let unit = "units.\"endless.service\" = { state = 'enabled, text = \"[Service]\\nType=oneshot\\nExecStart=/bin/sleep infinity\\n[Install]\\nWantedBy=multi-user.target\\n\" }";
    let report = by_profile("minimal", unit, &Named::under_bios("hang", "endless.service"));
    let journal = &report["machines"][0]["evidence"]["journal"];
    assert!(
        journal.as_str().is_some_and(|j| j.contains("endless.service")),
        "who hangs still answers: {journal}"
    );
}

#[test]
fn reboot_loop() {
    let unit = "units.\"again.service\" = { state = 'enabled, text = \"[Service]\\nType=oneshot\\nExecStart=/bin/systemctl --force --force reboot\\n[Install]\\nWantedBy=sysinit.target\\n[Unit]\\nDefaultDependencies=no\\n\" }";
    by_profile("minimal", unit, &Named::under_bios("reboot-loop", "restarts itself"));
}

#[test]
fn machine_that_switches_itself_off() {
    let unit = "units.\"off.service\" = { state = 'enabled, text = \"[Service]\\nType=oneshot\\nExecStart=/bin/systemctl --force --force poweroff\\n[Install]\\nWantedBy=basic.target\\n\" }";
    by_profile("minimal", unit, &Named::under_bios("powered-off", "the guest shut down"));
}

#[test]
fn memory_that_runs_out() {
    // Large writes into a file in memory: a program that needs its own pages between two allocations can keep Linux from
    // killing anything for minutes.
    let unit = "test.memory = \"512MiB\", units.\"eater.service\" = { state = 'enabled, text = \"[Service]\\nType=oneshot\\nExecStart=/bin/sh -c 'mount -t tmpfs -o size=100%% none /mnt && exec dd if=/dev/zero of=/mnt/all bs=32M'\\n[Install]\\nWantedBy=multi-user.target\\n\" }";
    by_profile("minimal", unit, &Named::under_bios("out-of-memory", "Out of memory: Killed process"));
}

#[test]
fn panic_of_the_kernel() {
    let unit = "units.\"crash.service\" = { state = 'enabled, text = \"[Service]\\nType=oneshot\\nExecStart=/bin/sh -c 'echo c > /proc/sysrq-trigger'\\n[Install]\\nWantedBy=multi-user.target\\n\" }";
    by_profile("minimal", unit, &Named::under_bios("kernel-panic", "sysrq triggered crash"));
}

#[test]
fn emergency_target() {
    let profile = "kernel.arguments.\"systemd.unit\" = \"emergency.target\"";
    by_profile("minimal", profile, &Named::under_bios("emergency-mode", ""));
}

#[test]
fn mount_of_a_device_that_is_missing() {
    let profile =
        "mounts.\"/data\" = { device = \"UUID=6e8f41f2-0d0c-4c6d-8d7d-0c6a1bd0f0aa\", fs = \"ext4\" }";
    by_profile("minimal", profile, &Named::under_bios("emergency-mode", ""));
}

#[test]
fn configuration_that_sshd_refuses() {
    let profile = "files.\"/etc/ssh/sshd_config.d/broken.conf\".text = \"Nonsense yes\\n\"";
    by_profile("server", profile, &Named::under_bios("failed-unit", "ssh.service"));
}

#[test]
fn port_of_nginx_that_is_taken() {
    let profile = "units.\"taken.socket\" = { state = 'enabled, text = \"[Socket]\\nListenStream=80\\nAccept=yes\\n[Install]\\nWantedBy=sockets.target\\n\" }, units.\"taken@.service\".text = \"[Service]\\nExecStart=/bin/cat\\nStandardInput=socket\\n\"";
    by_profile("web", profile, &Named::under_bios("failed-unit", "nginx.service"));
}

#[test]
fn check_that_fails() {
    let profile = "test.checks.wrong = { command = \"echo no\", output = \"^yes$\", retry = 1 }";
    let report = by_profile("minimal", profile, &Named::under_bios("check-failed", "wrong"));
    let checks = report["machines"][0]["checks"].as_array().expect("checks");
    let wrong = checks.iter().find(|c| c["name"] == "wrong").expect("the check");
    assert_eq!((&wrong["verdict"], &wrong["output"]), (&"failed".into(), &"no".into()));
    assert_eq!(wrong["tries"], 2);
}

#[test]
#[ignore = "three minutes, most of them waiting for what doesn't come; run by name"]
fn system_that_takes_no_credentials() {
    let profile = "kernel.arguments.\"systemd.import_credentials\" = \"no\"";
    by_profile("minimal", profile, &Named::under_bios("no-agent", "did not start what answers Kiln"));
}

#[test]
fn root_that_no_disk_has() {
    by_bytes("minimal", &Named::under_bios("initramfs-shell", "does not exist"), |disk| {
        let at = find(disk, b"root=PARTUUID=").expect("the kernel's argument");
        write(disk, at + 14, b"00000000");
    });
}

#[test]
fn kernel_that_is_missing() {
    by_bytes("minimal", &Named::under_bios("no-kernel", ""), |disk| debugfs(disk, &["rm /vmlinuz"]));
}

#[test]
fn kernel_of_another_architecture() {
    by_bytes("minimal", &Named::under_bios("no-kernel", ""), |disk| {
        // An arm64 image begins with code and has its magic number at byte 56 (Documentation/arch/arm64/booting.rst).
        let kernel = disk.with_extension("kernel");
        let mut bytes = vec![0; 1 << 20];
        bytes[56..60].copy_from_slice(b"ARM\x64");
        fs::write(&kernel, bytes).expect("a kernel");
        debugfs(disk, &["rm /vmlinuz", &format!("write {} /vmlinuz", kernel.display())]);
    });
}

#[test]
fn root_whose_superblock_is_corrupt() {
    by_bytes("minimal", &Named::under_bios("boot-loader-prompt", ""), |disk| {
        write(disk, partition(disk, 1) + 1024, &[0xff; 1024]);
    });
}

#[test]
fn libc_that_is_missing() {
    by_bytes("minimal", &Named::under_bios("kernel-panic", "Attempted to kill init"), |disk| {
        debugfs(disk, &["rm /usr/lib/x86_64-linux-gnu/libc.so.6"]);
    });
}

#[test]
fn init_that_is_missing() {
    by_bytes("minimal", &Named::under_bios("initramfs-shell", ""), |disk| {
        debugfs(disk, &["rm /usr/sbin/init", "rm /usr/lib/systemd/systemd", "rm /usr/bin/sh"]);
    });
}

#[test]
fn menu_without_entry() {
    by_bytes("minimal", &Named::under_bios("boot-loader-prompt", ""), |disk| {
        debugfs(disk, &["rm /boot/grub/grub.cfg"]);
    });
}

#[test]
fn esp_that_is_empty() {
    let named = Named { kind: "no-boot-loader", message: "", firmware: "uefi" };
    by_bytes("minimal", &named, |disk| {
        let esp = format!("{}@@{}", disk.display(), partition(disk, 15));
        said(Command::new("mdeltree").args(["-i", &esp, "::/EFI"]));
    });
}

#[test]
fn disk_without_boot_code() {
    by_bytes("minimal", &Named::under_bios("no-boot-code", ""), |disk| write(disk, 0, &[0; 440]));
}

#[test]
fn disk_that_is_cut_off() {
    by_bytes("minimal", &Named::under_bios("initramfs-shell", ""), |disk| {
        let file = OpenOptions::new().write(true).open(disk).expect("the disk");
        let size = file.metadata().expect("its size").len();
        file.set_len(size - (64 << 20)).expect("a smaller disk");
    });
}

/// Tests a profile that adds `fields` to one of the ready-made ones.
fn by_profile(base: &str, fields: &str, expected: &Named) -> Value {
    let base = machine::profile(base);
    let folder = tempfile::tempdir().expect("a folder");
    // Beside the base, whose lock it takes: the packages are the same.
    let name =
        format!("broken-{}", folder.path().file_name().expect("a name").to_string_lossy().replace('.', ""));
    let profile = base.with_file_name(format!("{name}.ncl"));
    let text =
        format!("(import \"{}\") & {{ {fields} }}\n", base.file_name().expect("a name").to_string_lossy());
    fs::write(&profile, text).expect("a profile");
    fs::copy(base.with_extension("lock"), profile.with_extension("lock")).expect("a lock");
    let report = test(&profile, folder.path(), expected);
    for path in [profile.clone(), profile.with_extension("lock")] {
        fs::remove_file(path).expect("our own file");
    }
    report
}

/// Tests a copy of a ready-made profile's image, broken by `damage`.
fn by_bytes(base: &str, expected: &Named, damage: impl Fn(&Path)) {
    let image = machine::image(base);
    let folder = tempfile::tempdir().expect("a folder");
    let disk = folder.path().join("broken.raw");
    said(Command::new("cp").arg("--sparse=always").args([&image, &disk]));
    damage(&disk);
    test(&disk, folder.path(), expected);
}

/// Runs `kiln test`, which must name the failure.
fn test(target: &Path, folder: &Path, expected: &Named) -> Value {
    let mut command = Command::new(machine::KILN);
    command.arg("test").arg(target).args([
        "--platform",
        "plain",
        "--disk",
        "virtio",
        "--keep-going",
        "--json",
    ]);
    command.args(["--firmware", expected.firmware, "-o"]).arg(folder.join("report"));
    command.arg("--qemu").arg(machine::qemu_argument());
    command.arg("--store").arg(machine::cache().join("store"));
    let output = command.output().expect("kiln runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("a report");
    let machine = &report["machines"][0];
    let failure = &machine["failure"];
    let console = machine["console"].as_str().unwrap_or_default();
    let end: Vec<&str> = console.lines().rev().take(15).collect();
    assert_eq!(failure["kind"], expected.kind, "{failure:#}\n{end:#?}");
    let message = failure["message"].as_str().unwrap_or_default();
    assert!(message.contains(expected.message), "{message}");
    assert!(failure["hint"].as_str().is_some_and(|hint| !hint.is_empty()));
    let (at, all) = (failure["at"].as_f64().expect("a time"), machine["seconds"].as_f64().expect("a time"));
    println!("{}: {message}, at {at:.1} s of {all:.1} s", expected.kind);
    // A hang and an agent that doesn't come are told after their stated limits, what failed in a system that came up once it is up.
    if !["hang", "no-agent", "failed-unit", "check-failed"].contains(&expected.kind) {
        assert!(all - at < SOON, "named {:.1} s after it showed", all - at);
    }
    let overlay = machine["evidence"]["overlay"].as_str().map(PathBuf::from).expect("a kept overlay");
    assert!(overlay.is_file(), "{}", overlay.display());
    report
}

fn said(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// First byte of a partition.
fn partition(disk: &Path, number: u32) -> u64 {
    let table: Value =
        serde_json::from_str(&said(Command::new("sfdisk").arg("--json").arg(disk))).expect("JSON");
    let node = format!("{}{number}", disk.display());
    let partitions = table["partitiontable"]["partitions"].as_array().expect("partitions");
    let found = partitions.iter().find(|p| p["node"] == node.as_str()).expect("the partition");
    found["start"].as_u64().expect("a number") * 512
}

/// Changes the root file system.
fn debugfs(disk: &Path, requests: &[&str]) {
    let device = format!("{}?offset={}", disk.display(), partition(disk, 1));
    for request in requests {
        said(Command::new("debugfs").args(["-w", "-R", request, &device]));
    }
}

fn write(disk: &Path, at: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(disk).expect("the disk");
    file.write_all_at(bytes, at).expect("written");
}

/// Where a text stands on the disk.
fn find(disk: &Path, text: &[u8]) -> Option<u64> {
    const PART: usize = 4 << 20;
    let file = File::open(disk).expect("the disk");
    let mut buffer = vec![0; PART + text.len()];
    let mut at = 0;
    loop {
        let read = file.read_at(&mut buffer, at).expect("read");
        if let Some(found) = buffer[..read].windows(text.len()).position(|w| w == text) {
            return Some(at + found as u64);
        }
        if read <= text.len() {
            return None;
        }
        at += (read - text.len()) as u64;
    }
}
