//! `kiln test`: boots the exact bytes of an image, checks them, and reports.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Context;
use super::report::{Failure, Status};
use super::run::{AccelArg, DiskArg, FirmwareArg, disk_of, is_profile, qemu_of};
use super::session::ProfileArgs;
use crate::arch::Arch;
use crate::bake::{
    BakeError, BakedDisk, BakedTree, IMAGE_LOGIN, Locked, Publishable, Session, Subject, TestRequest, Tested,
    boots_under, digest_of, passed, whole_test,
};
use crate::check::plan::{Boots, Bus, Only};
use crate::check::report::{CheckResult, MachineReport, Report, Verdict};
use crate::check::{Plan, Platform};
use crate::host::fs::{FileError, check_writable, write_atomically};
use crate::system::Firmware;
use crate::units::Bytes;
use crate::vm::Qemu;
use crate::vm::machine::shell_line;
use crate::vm::smoke::Listener;

/// Arguments of `kiln test`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    target: ProfileArgs,
    /// Where the reports go, and what is kept of machines that failed [default: out/NAME/test]
    #[arg(short, long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Test again although these bytes have passed these tests
    #[arg(long)]
    again: bool,
    /// Boot although the checks of the disk itself failed
    #[arg(long)]
    keep_going: bool,
    /// Only on machines with this firmware
    #[arg(long, value_enum)]
    firmware: Option<FirmwareArg>,
    /// Only on machines with their disk attached in this way
    #[arg(long, value_enum)]
    disk: Option<DiskArg>,
    /// Only on this platform
    #[arg(long, value_enum)]
    platform: Option<PlatformArg>,
    /// How many machines run at once [default: what processors and memory allow]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    jobs: Option<u16>,
    /// What runs the machines; KVM is tried before it is used
    #[arg(long, value_enum, default_value_t = AccelArg::Auto)]
    accel: AccelArg,
    /// Which QEMU: the host's, or that of a tools tree in a folder [default: the locked one]
    #[arg(long, value_name = "host|DIR", env = "KILN_QEMU")]
    qemu: Option<PathBuf>,
    /// Make the checks of EC2 lookalikes over SSH, as their users log in, instead of over a channel of our own
    #[arg(long)]
    over_ssh: bool,
    /// Only print the machines, their checks, and QEMU's command lines
    #[arg(long)]
    dry_run: bool,
}

/// A platform as typed.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum PlatformArg {
    /// A plain PC
    Plain,
    /// A lookalike of an EC2 instance
    Ec2,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    report: &'a Report,
    cached: bool,
    folder: &'a Path,
}

/// Tests and reports.
///
/// # Errors
/// With status 3 when the image failed, 1 when testing itself could not be done.
pub fn run(args: &Args, cx: &Context) -> Result<(), Failure> {
    let teller = Teller { cx };
    let (tested, folder) = if is_profile(&args.target.profile) {
        match of_profile(args, cx, &teller)? {
            Some(done) => done,
            None => return Ok(()),
        }
    } else {
        match of_image(args, cx, &teller)? {
            Some(done) => done,
            None => return Ok(()),
        }
    };
    write_reports(&folder, &tested.report)?;
    let shown = Shown { report: &tested.report, cached: tested.cached, folder: &folder };
    cx.print(&shown, || describe(&tested, &folder))?;
    match tested.report.verdict {
        Verdict::Failed => Err(failed(&tested.report, &folder)),
        Verdict::Passed | Verdict::Skipped => Ok(()),
    }
}

/// The verdict that a publication needs: the one that is there, or that of all tests on all machines. Reports go to
/// `folder`.
pub(super) fn test_for_publication(
    session: &Session<'_>,
    locked: &Locked,
    tree: &BakedTree,
    disk: &BakedDisk,
    folder: &Path,
    cx: &Context,
) -> Result<Publishable, Failure> {
    can_be_written(folder)?;
    make(folder)?;
    let request = whole_test(folder.to_owned());
    let tested = session.test(locked, tree, disk, &request, &Teller { cx })?;
    write_reports(folder, &tested.report)?;
    let report = tested.report.clone();
    passed(disk.image.clone(), tested).ok_or_else(|| failed(&report, folder))
}

fn failed(report: &Report, folder: &Path) -> Failure {
    let first = report.machines.iter().find_map(|m| m.failure.as_ref().map(|f| (m, f)));
    let message = match first {
        Some((machine, failure)) => {
            format!("{} failed on {}: {}", report.name, machine.name, failure.message)
        }
        None => {
            let wrong = report.statics.iter().find(|c| c.verdict == Verdict::Failed);
            let wrong = wrong.map(|c| format!("{}: {}", c.name, c.detail)).unwrap_or_default();
            format!("{} fails before it is booted: {wrong}", report.name)
        }
    };
    let hint = match first {
        Some((_, failure)) if !failure.hint.is_empty() => failure.hint.clone(),
        _ => format!("{} shows all of it", folder.join("report.html").display()),
    };
    Failure::new("tests-failed", message).hint(hint).status(Status::TestsFailed)
}

impl Args {
    fn only(&self) -> Only {
        Only {
            platform: self.platform.map(|p| match p {
                PlatformArg::Plain => Platform::Plain,
                PlatformArg::Ec2 => Platform::Ec2,
            }),
            firmware: self.firmware.map(|f| match f {
                FirmwareArg::Bios => Boots::Seabios,
                FirmwareArg::Uefi => Boots::Ovmf,
            }),
            disk: self.disk.map(|d| match d {
                DiskArg::Virtio => Bus::Virtio,
                DiskArg::Nvme => Bus::Nvme,
            }),
        }
    }

    fn request(&self, qemu: Option<Qemu>, evidence: PathBuf) -> TestRequest {
        TestRequest {
            only: self.only(),
            wish: self.accel.wish(),
            qemu,
            jobs: self.jobs.map(usize::from),
            again: self.again,
            keep_going: self.keep_going,
            over_ssh: self.over_ssh,
            evidence,
        }
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.out.clone().unwrap_or_else(|| Path::new("out").join(name).join("test"))
    }
}

/// Bakes a profile, when it has to be, and tests it; nothing when only the plan was asked for.
fn of_profile(args: &Args, cx: &Context, teller: &Teller<'_>) -> Result<Option<(Tested, PathBuf)>, Failure> {
    let request = args.target.request(cx);
    args.target.in_session(cx, |session| {
        let profile = session.evaluate(&request)?;
        let folder = args.folder(&profile.system().name);
        if !args.dry_run {
            can_be_written(&folder)?;
        }
        let locked = if args.dry_run { session.locked_already(profile) } else { session.locked(profile) }?;
        let tree = session.tree(&locked)?;
        let disk = session.disk(&locked, &tree)?;
        let qemu =
            args.qemu.as_ref().map(|_| qemu_of(args.qemu.as_deref(), None, session.store)).transpose()?;
        let request = args.request(qemu, folder.clone());
        if args.dry_run {
            let mut plan = session.test_plan(&locked, &tree, &disk)?;
            plan.keep(args.only());
            let qemu = session.test_qemu(&locked, &request)?;
            let subject = Subject::baked(&locked, &disk);
            print_plan(&plan, &session.test_command_lines(&subject, &plan, &qemu, &request)?, cx)?;
            return Ok(None);
        }
        make(&folder)?;
        forget_earlier(&folder, &args.target.profile);
        let tested = session.test(&locked, &tree, &disk, &request, teller)?;
        Ok(Some((tested, folder)))
    })
}

/// Tests an image of which nothing is known but its bytes.
fn of_image(args: &Args, cx: &Context, teller: &Teller<'_>) -> Result<Option<(Tested, PathBuf)>, Failure> {
    let path = &args.target.profile;
    let image = disk_of(path)?;
    let platform = match args.platform {
        Some(PlatformArg::Ec2) => Platform::Ec2,
        _ => Platform::Plain,
    };
    let firmware = match args.firmware {
        Some(FirmwareArg::Bios) => Firmware::Bios,
        Some(FirmwareArg::Uefi) => Firmware::Uefi,
        None => boots_under(path, Arch::Amd64)?,
    };
    let mut plan = Plan::of_image(firmware, platform);
    plan.keep(args.only());
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let folder = args.folder(&name);
    args.target.in_session(cx, |session: &Session<'_>| {
        if !args.dry_run {
            can_be_written(&folder)?;
        }
        let digest = digest_of(path).map_err(BakeError::from)?;
        let subject = Subject {
            path,
            name,
            digest,
            size: image.size,
            arch: Arch::Amd64,
            login: IMAGE_LOGIN.to_owned(),
        };
        let qemu = qemu_of(args.qemu.as_deref(), None, session.store)?;
        let found = || Ok(qemu.clone());
        let request = args.request(args.qemu.as_ref().map(|_| qemu.clone()), folder.clone());
        if args.dry_run {
            print_plan(&plan, &session.test_command_lines(&subject, &plan, &qemu, &request)?, cx)?;
            return Ok(None);
        }
        make(&folder)?;
        forget_earlier(&folder, &args.target.profile);
        let tested = session.tested(&subject, &plan, None, &found, &request, teller)?;
        Ok(Some((tested, folder)))
    })
}

/// Prints the machines, their checks, and QEMU's command line for each.
fn print_plan(plan: &Plan, lines: &[Vec<OsString>], cx: &Context) -> Result<(), Failure> {
    if plan.machines.is_empty() {
        return Err(BakeError::NoMachine("the profile or the options leave none".to_owned()).into());
    }
    let mut shown = serde_json::to_value(plan).map_err(|e| Failure::new("json", e.to_string()))?;
    let planned = plan.machines.iter().zip(lines);
    for (shown, (machine, argv)) in shown["machines"].as_array_mut().into_iter().flatten().zip(planned) {
        shown["argv"] = argv.iter().map(|word| word.to_string_lossy()).collect();
        shown["checks"] = serde_json::to_value(plan.checks_of(machine).collect::<Vec<_>>())
            .map_err(|e| Failure::new("json", e.to_string()))?;
    }
    cx.print(&shown, || {
        let mut text = String::new();
        for (machine, argv) in plan.machines.iter().zip(lines) {
            let reboot =
                machine.reboot.as_deref().map(|n| format!(", then a reboot ({n})")).unwrap_or_default();
            let checks: Vec<_> = plan.checks_of(machine).collect();
            let _ = writeln!(text, "{}: {} checks{reboot}", machine.name, checks.len());
            for check in checks {
                let _ = writeln!(text, "    {:10} {}", check.what.kind(), check.name);
            }
            let _ = writeln!(text, "    {}", shell_line(argv));
        }
        text
    })
}

/// Finds out before hours of work whether what tells of them can be written afterwards.
pub(super) fn can_be_written(folder: &Path) -> Result<(), Failure> {
    let told =
        |failure: Failure| failure.hint("`-o DIR` names the folder for the reports").status(Status::Usage);
    // The reports name files in it.
    if folder.to_str().is_none() {
        let message = format!("can't write into {}: its path isn't UTF-8", folder.display());
        return Err(told(Failure::new("file", message)));
    }
    check_writable(folder).map_err(|error| told(Failure::of("file", &error)))
}

/// Makes the folder of the reports: what that check can't see, such as a name that is too long, is told before any boot.
pub(super) fn make(folder: &Path) -> Result<(), FileError> {
    std::fs::create_dir_all(folder).map_err(FileError::at("can't make the folder", folder))
}

/// Names of the reports.
const REPORTS: [&str; 3] = ["report.json", "junit.xml", "report.html"];

/// Removes what an earlier test left in `folder`: after an interruption nobody is to take it for this one's. Without a
/// report of Kiln's there was no such test. The image to be tested now may lie there.
fn forget_earlier(folder: &Path, target: &Path) {
    let report = std::fs::read(folder.join(REPORTS[0])).unwrap_or_default();
    let Ok(report) = serde_json::from_slice::<Report>(&report) else { return };
    let evidence = report.machines.iter().filter_map(|machine| machine.evidence.as_ref());
    let kept = evidence.flat_map(|e| e.files.iter().map(|(_, path)| path).chain(&e.overlay));
    // The folder may have been moved since: its files are known by their names.
    let names = kept.filter_map(|path| path.file_name()).chain(REPORTS.map(AsRef::as_ref));
    let target = target.canonicalize().ok();
    for path in names.map(|name| folder.join(name)) {
        if path.canonicalize().is_ok_and(|path| Some(path) != target) {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Writes the reports into `folder`: as JSON, as JUnit's XML, and as a page.
fn write_reports(folder: &Path, report: &Report) -> Result<(), Failure> {
    make(folder)?;
    let json = serde_json::to_string_pretty(report).map_err(|e| Failure::new("json", e.to_string()))? + "\n";
    let (junit, html) = (crate::check::junit::junit(report), crate::check::html::html(report));
    for (name, text) in REPORTS.into_iter().zip([json, junit, html]) {
        write_atomically(&folder.join(name), text.as_bytes())?;
    }
    Ok(())
}

fn describe(tested: &Tested, folder: &Path) -> String {
    let report = &tested.report;
    let mut text = String::new();
    for machine in &report.machines {
        let boot = machine.boot_seconds.map(|s| format!(", up after {s:.1} s")).unwrap_or_default();
        let _ = writeln!(
            text,
            "{:28} {:8} {} checks{boot}, {:.1} s, {}",
            machine.name,
            machine.verdict.word(),
            machine.checks.len(),
            machine.seconds,
            machine.accel
        );
        if let Some(failure) = &machine.failure {
            let _ = writeln!(text, "    {}: {}", failure.kind, failure.message);
        }
        if let Some(enter) = machine.evidence.as_ref().and_then(|e| e.enter.as_ref()) {
            let _ = writeln!(text, "    {enter}");
        }
    }
    let known = if tested.cached { "  (known: these bytes have passed these tests)" } else { "" };
    let _ = writeln!(
        text,
        "{} {}: {} checks passed, {} failed, {} skipped, {}, image {}{known}",
        report.name,
        report.verdict.word(),
        report.count(Verdict::Passed),
        report.count(Verdict::Failed),
        report.count(Verdict::Skipped),
        Bytes(report.size.0),
        report.image.short(),
    );
    let _ = writeln!(text, "{}", folder.join("report.html").display());
    text
}

/// Tells of a test while it runs.
struct Teller<'a> {
    cx: &'a Context,
}

impl Listener for Teller<'_> {
    fn doing(&self, machine: &str, what: &str) {
        self.cx.progress.say("test", &format!("{machine}: {what}"));
    }

    fn checked(&self, machine: &str, result: &CheckResult) {
        let place = if machine.is_empty() { "disk" } else { machine };
        let sign = match result.verdict {
            Verdict::Passed => "ok",
            Verdict::Skipped => "--",
            Verdict::Failed => "FAILED",
        };
        let text = format!("{place}: {} ({:.1} s): {}", result.name, result.seconds, result.detail);
        self.cx.progress.say(sign, &text);
    }

    fn done(&self, machine: &MachineReport) {
        let failure = machine.failure.as_ref().map(|f| format!(": {}", f.message)).unwrap_or_default();
        let text = format!("{} {}{failure}", machine.name, machine.verdict.word());
        self.cx.progress.say("test", &text);
    }
}
