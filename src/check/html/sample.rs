//! Reports for tests.

use crate::check::report::{
    CheckResult, Evidence, FailedUnit, MachineFailure, MachineReport, Mark, Report, Verdict,
};
use crate::digest::Digest;
use crate::units::{Bytes, GIB};

fn check(name: &str, kind: &str, verdict: Verdict, detail: &str) -> CheckResult {
    let output = if verdict == Verdict::Failed { "line one\nline two\n" } else { "" };
    CheckResult {
        name: name.to_owned(),
        kind: kind.to_owned(),
        verdict,
        detail: detail.to_owned(),
        output: output.to_owned(),
        seconds: if kind == "static" { 0.0 } else { 0.25 },
        tries: if verdict == Verdict::Failed { 3 } else { 1 },
    }
}

fn machine(name: &str, firmware: &str) -> MachineReport {
    let stages = [
        (0.0, "firmware"),
        (1.2, "boot loader"),
        (2.4, "kernel"),
        (7.5, "initrd"),
        (11.0, "systemd"),
        (24.6, "settled"),
    ];
    MachineReport {
        name: name.to_owned(),
        platform: "plain".to_owned(),
        firmware: firmware.to_owned(),
        disk: "virtio".to_owned(),
        accel: "emulation (/dev/kvm is broken)".to_owned(),
        command: "qemu-system-x86_64 -M q35 -nodefaults".to_owned(),
        verdict: Verdict::Passed,
        failure: None,
        timeline: stages.map(|(at, what)| Mark { at, what: what.to_owned() }).to_vec(),
        checks: vec![
            check("no unit failed", "unit", Verdict::Passed, "none"),
            check("unit ssh.service", "unit", Verdict::Passed, "active"),
            check("http /health", "http", Verdict::Passed, "200 in 4 ms"),
        ],
        failed_units: Vec::new(),
        console: "[    2.4] Linux version 6.12\n[   24.6] server login: \n".to_owned(),
        evidence: None,
        boot_seconds: Some(24.6),
        seconds: 31.5,
    }
}

/// One machine passes, one fails.
pub(in crate::check) fn failing() -> Report {
    let mut broken = machine("ovmf-nvme", "ovmf");
    broken.verdict = Verdict::Failed;
    broken.timeline.truncate(4);
    broken.boot_seconds = None;
    broken.failure = Some(MachineFailure {
        kind: "root-missing".to_owned(),
        message: "the initrd waits for a root that is not there: UUID=26ada0c0".to_owned(),
        hint: "compare root= in /boot/grub/grub.cfg with the file system's UUID".to_owned(),
        at: 38.2,
    });
    broken.checks = vec![
        check(
            "unit nginx.service",
            "unit",
            Verdict::Failed,
            "failed (Result: exit-code), but should be active",
        ),
        check("http /health", "http", Verdict::Skipped, "the machine did not come up"),
    ];
    broken.failed_units = vec![FailedUnit {
        name: "nginx.service".to_owned(),
        journal: "bind() to 0.0.0.0:80 failed\n".to_owned(),
    }];
    broken.evidence = Some(Evidence {
        journal: "Nov 20 systemd[1]: Failed to start nginx.service\n".to_owned(),
        screenshot: png(),
        overlay: Some("/tmp/kiln/ovmf-nvme.qcow2".into()),
        enter: Some("kiln run server.raw --overlay /tmp/kiln/ovmf-nvme.qcow2".to_owned()),
        files: vec![("serial".to_owned(), "/tmp/kiln/serial.log".into())],
    });
    Report {
        kiln: "0.1.0".to_owned(),
        name: "server".to_owned(),
        image: Digest::of(b"image"),
        size: Bytes(2 * GIB),
        tests: Digest::of(b"tests"),
        verdict: Verdict::Failed,
        statics: vec![
            check("partition table", "static", Verdict::Passed, "GUID partition table with 3 partitions"),
            check("serial console", "static", Verdict::Skipped, "no serial console is asked for"),
        ],
        machines: vec![machine("seabios-virtio", "seabios"), broken],
        began: 1_795_132_800,
        seconds: 131.0,
    }
}

/// Texts that would be something else if they weren't escaped, in every field that a guest or a profile fills.
pub(in crate::check) fn hostile() -> Report {
    let text = "</pre></script><script>alert('1')</script><img src=http://example.invalid/x onerror=alert(2)> \" ' & ]]> \
                \x1b[31mred\x1b[0m \0\x08\u{85}\u{fffe}\u{202e}";
    let bad = || text.to_owned();
    let mut report = failing();
    report.name = bad();
    report.machines.truncate(2);
    report.machines.remove(0);
    report.statics[0] = CheckResult {
        name: bad(),
        kind: bad(),
        detail: bad(),
        output: bad(),
        ..check("", "", Verdict::Failed, "")
    };
    let machine = &mut report.machines[0];
    machine.checks[0] = report.statics[0].clone();
    (machine.name, machine.platform, machine.firmware, machine.disk) = (bad(), bad(), bad(), bad());
    (machine.accel, machine.command, machine.console) = (bad(), bad(), bad());
    machine.failure = Some(MachineFailure { kind: bad(), message: bad(), hint: bad(), at: f64::NAN });
    machine.timeline = vec![Mark { at: f64::INFINITY, what: bad() }, Mark { at: 1.0, what: bad() }];
    machine.failed_units = vec![FailedUnit { name: bad(), journal: bad() }];
    machine.evidence = Some(Evidence {
        journal: bad(),
        screenshot: text.as_bytes().to_vec(),
        overlay: Some(bad().into()),
        enter: Some(bad()),
        files: vec![(bad(), bad().into())],
    });
    report
}

/// The smallest picture: one grey pixel.
fn png() -> Vec<u8> {
    const HEX: &str = "89504e470d0a1a0a0000000d4948445200000001000000010800000000\
                       3a7e9b550000000a49444154789c63680000008200815dd06b480000000049454e44ae426082";
    crate::digest::unhex(HEX).unwrap_or_default()
}
