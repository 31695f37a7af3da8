//! The HTML report in a browser: what it shows, and that it asks for nothing.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use kiln::check::html::html;
use kiln::check::report::{
    CheckResult, Evidence, FailedUnit, MachineFailure, MachineReport, Mark, Report, Verdict,
};
use kiln::digest::Digest;
use kiln::units::{Bytes, GIB};

/// The browser, of Debian's package `chromium-headless-shell`, or another Chromium.
const BROWSER: &str = "chromium-headless-shell";

fn check(name: &str, kind: &str, verdict: Verdict, detail: &str, output: &str) -> CheckResult {
    CheckResult {
        name: name.into(),
        kind: kind.into(),
        verdict,
        detail: detail.into(),
        output: output.into(),
        seconds: if kind == "static" { 0.0 } else { 0.31 },
        tries: if verdict == Verdict::Failed { 4 } else { 1 },
    }
}

fn machine(name: &str, platform: &str, firmware: &str, disk: &str) -> MachineReport {
    let stages = [
        (0.0, "firmware"),
        (1.4, "boot loader"),
        (2.6, "kernel"),
        (7.2, "initrd"),
        (10.9, "systemd"),
        (21.3, "login"),
        (24.6, "settled"),
    ];
    let units = ["ssh", "systemd-networkd", "systemd-resolved", "systemd-timesyncd", "nginx"];
    let mut checks = vec![check("no failed unit", "unit", Verdict::Passed, "none", "")];
    checks.extend(
        units.map(|u| check(&format!("unit {u}.service"), "unit", Verdict::Passed, "active (running)", "")),
    );
    checks.push(check("http 127.0.0.1/health", "http", Verdict::Passed, "200 in 4 ms", ""));
    let console: String =
        (0..400).map(|n| format!("[{:8.3}] line {n} of the serial console\n", n as f64 / 16.0)).collect();
    MachineReport {
        name: name.into(),
        platform: platform.into(),
        firmware: firmware.into(),
        disk: disk.into(),
        accel: "emulation (/dev/kvm opens, but its guests die)".into(),
        command: format!("qemu-system-x86_64 -M q35 -nodefaults -device {disk}"),
        verdict: Verdict::Passed,
        failure: None,
        timeline: stages.map(|(at, what)| Mark { at, what: what.into() }).into(),
        checks,
        failed_units: vec![],
        console,
        evidence: None,
        boot_seconds: Some(24.6),
        seconds: 33.8,
    }
}

/// Two machines that pass, one whose check fails, one that does not come up.
fn report() -> Report {
    let mut unhealthy = machine("ec2-ovmf-nvme", "ec2", "ovmf", "nvme");
    unhealthy.verdict = Verdict::Failed;
    unhealthy.checks[5] = check(
        "unit nginx.service",
        "unit",
        Verdict::Failed,
        "failed (Result: exit-code), but should be active",
        "× nginx.service - A high performance web server\n     Active: failed (Result: exit-code)\n",
    );
    unhealthy.failed_units = vec![FailedUnit {
        name: "nginx.service".into(),
        journal: "nginx[412]: bind() to 0.0.0.0:80 failed (98: Address already in use)\nsystemd[1]: Failed to start nginx.\n".into(),
    }];
    let mut dead = machine("ovmf-virtio", "plain", "ovmf", "virtio");
    (dead.verdict, dead.boot_seconds) = (Verdict::Failed, None);
    dead.timeline.truncate(4);
    dead.checks =
        vec![check("unit ssh.service", "unit", Verdict::Skipped, "the machine did not come up", "")];
    dead.console.push_str("<script>console.error('from the guest')</script>\nALERT! UUID=26ada0c0 does not exist.\n(initramfs) ");
    dead.failure = Some(MachineFailure {
        kind: "no-root".into(),
        message: "the initrd waits for a root that isn't there: ALERT! UUID=26ada0c0 does not exist.".into(),
        hint: "compare root= in /boot/grub/grub.cfg with the identity of the root's file system".into(),
        at: 38.2,
    });
    dead.evidence = Some(Evidence {
        journal: String::new(),
        screenshot: picture(),
        overlay: Some("/home/user/.cache/kiln/tests/ovmf-virtio.qcow2".into()),
        enter: Some("kiln run server.raw --disk nvme".into()),
        files: vec![("serial".into(), "/home/user/.cache/kiln/tests/serial.log".into())],
    });
    Report {
        kiln: "0.1.0".into(),
        name: "web".into(),
        image: Digest::of(b"image"),
        size: Bytes(2 * GIB),
        tests: Digest::of(b"tests"),
        verdict: Verdict::Failed,
        statics: vec![
            check("partition table", "static", Verdict::Passed, "GUID partition table with 3 partitions", ""),
            check("BIOS boot code", "static", Verdict::Passed, "GRUB, its core image in partition 14", ""),
            check("fstab", "static", Verdict::Skipped, "the root has no /etc/fstab", ""),
        ],
        machines: vec![
            machine("seabios-virtio", "plain", "seabios", "virtio"),
            dead,
            unhealthy,
            machine("ec2-seabios-nvme", "ec2", "seabios", "nvme"),
        ],
        began: 1_795_168_541,
        seconds: 142.0,
    }
}

/// A screen of 64 by 36 grey pixels: PNG with one stored block.
fn picture() -> Vec<u8> {
    let (width, height) = (64u32, 36u32);
    let row = |y: u32| std::iter::once(0).chain((0..width).map(move |x| ((x * 4) ^ (y * 7)) as u8));
    let pixels: Vec<u8> = (0..height).flat_map(row).collect();
    let (mut a, mut b) = (1u32, 0u32);
    for &pixel in &pixels {
        a = (a + u32::from(pixel)) % 65_521;
        b = (b + a) % 65_521;
    }
    let length = pixels.len() as u16;
    let stored = [
        &[0x78, 1, 1][..],
        &length.to_le_bytes(),
        &(!length).to_le_bytes(),
        &pixels,
        &(b << 16 | a).to_be_bytes(),
    ];
    let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 0, 0, 0, 0]].concat();
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, content) in [(b"IHDR", header), (b"IDAT", stored.concat()), (b"IEND", vec![])] {
        let body = [&kind[..], &content].concat();
        png.extend((content.len() as u32).to_be_bytes());
        png.extend(&body);
        png.extend(crc32fast::hash(&body).to_be_bytes());
    }
    png
}

/// Runs the browser on a page in an empty profile; it resolves no name and logs every request.
fn browse(folder: &Path, options: &[&str], page: &str) -> Output {
    let mut browser = Command::new(BROWSER);
    browser.current_dir(folder).env("HOME", folder);
    browser.args([
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--host-resolver-rules=MAP * ~NOTFOUND",
    ]);
    browser.args([
        "--no-first-run",
        "--enable-logging=stderr",
        "--user-data-dir=profile",
        "--log-net-log=net.json",
    ]);
    let output = browser.args(options).arg(page).output();
    let output = output.unwrap_or_else(|e| panic!("{BROWSER}: {e}: run scripts/setup"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

#[test]
fn a_browser_shows_all_and_asks_for_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let page = folder.path().join("report.html");
    fs::write(&page, html(&report())).expect("a page");
    let address = format!("file://{}", page.display());

    let output = browse(folder.path(), &["--dump-dom"], &address);
    let (dom, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!log.contains("CONSOLE"), "the page writes on the browser's console: {log}");
    for part in [
        "<h1>web <span class=\"verdict failed\">failed</span></h1>",
        "<caption>Every machine on which the image was booted, and how it went</caption>",
        "<a href=\"#machine-3\">ec2-ovmf-nvme</a>",
        "<h2 id=\"machine-2\">ovmf-virtio <span class=\"verdict failed\">failed</span></h2>",
        "<summary>Failed checks (1)</summary>",
        "bind() to 0.0.0.0:80 failed",
        "&lt;script&gt;console.error('from the guest')&lt;/script&gt;",
        "<summary>Serial console (403 lines)</summary>",
    ] {
        assert!(dom.contains(part), "{part} is missing in:\n{dom}");
    }
    assert_eq!(dom.matches("<table").count(), dom.matches("<caption").count());

    // What the browser's network service did: pages of data: and file: are none of its business.
    let requests = requests(folder.path());
    assert!(requests.is_empty(), "{requests:#?}");

    let shot = |name: &str, options: &[&str]| {
        let picture = folder.path().join(name);
        let target = format!("--screenshot={}", picture.display());
        browse(
            folder.path(),
            &[&[target.as_str(), "--window-size=1200,2600", "--hide-scrollbars"], options].concat(),
            &address,
        );
        let bytes = fs::read(&picture).expect("a picture");
        assert!(bytes.len() > 20_000, "{name} has {} bytes: nothing is on it", bytes.len());
        if let Some(kept) = std::env::var_os("KILN_TEST_PICTURES") {
            fs::copy(&picture, Path::new(&kept).join(name)).expect("the picture is kept");
        }
        bytes
    };
    let light = shot("light.png", &[]);
    let dark = shot("dark.png", &["--blink-settings=preferredColorScheme=0"]);
    assert_ne!(light, dark, "dark is as light");
}

/// A page that does what ours must not: both would be noticed.
#[test]
fn requests_and_messages_are_noticed() {
    let folder = tempfile::tempdir().expect("a folder");
    let page = folder.path().join("other.html");
    let text = "<img src=\"http://picture.invalid/x.png\"><script>console.error('a message')</script>";
    fs::write(&page, text).expect("a page");
    let output = browse(folder.path(), &["--dump-dom"], &format!("file://{}", page.display()));
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(log.contains("CONSOLE"), "{log}");
    assert!(requests(folder.path()).iter().any(|line| line.contains("picture.invalid")));
}

/// What the browser's log of its network names, but for what Chromium asks for by itself, whatever the page.
fn requests(folder: &Path) -> Vec<String> {
    let own = ["googleapis.com", "google.com", "gstatic.com", "gvt1.com"];
    let net = fs::read_to_string(folder.join("net.json")).expect("a log of the network");
    let asked = net.lines().filter(|line| line.contains("\"url\":\"http"));
    asked.filter(|line| !own.iter().any(|host| line.contains(host))).map(str::to_owned).collect()
}
