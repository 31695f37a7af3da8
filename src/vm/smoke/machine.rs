//! One machine: booted, checked, perhaps rebooted and checked again, and switched off.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::asking::{Asker, again};
use super::naming::{named_failure, skipped};
use super::{EMULATION_FACTOR, Job, Listener, SmokeError, evidence, timeline};
use crate::check::plan::{MachinePlan, Platform};
use crate::check::report::{CheckResult, FailedUnit, MachineFailure, MachineReport, Verdict};
use crate::check::{Check, What};
use crate::system::test::Imds;
use crate::vm::ec2::{Metadata, PublicKey};
use crate::vm::machine::shell_line;
use crate::vm::probe::Choice;
use crate::vm::ssh::{Key, Ssh};
use crate::vm::{Accel, Channel, Guest, Instance, Network, Setup, Vm, VmError, prepare, until_settled};

/// How many lines of a failed unit's journal are kept.
const UNIT_JOURNAL: u32 = 40;
/// A question that only looks something up.
const QUESTION: Duration = Duration::from_secs(60);

/// Boots one machine and makes its checks.
pub(super) fn run(
    job: &Job<'_>,
    plan: &MachinePlan,
    choice: &Choice,
    listener: &dyn Listener,
) -> Result<MachineReport, SmokeError> {
    let began = Instant::now();
    listener.doing(&plan.name, "booting");
    let overlay = overlay(job, plan);
    let key = (plan.platform == Platform::Ec2).then(|| Key::generate(job.qemu, job.scratch)).transpose()?;
    let prepared = prepare(setup(job, plan, choice, overlay.clone(), key.as_ref()))?;
    let mut report = empty(plan);
    report.accel = choice.describe();
    report.command = shell_line(&prepared.argv());
    let vm = prepared.start(None)?;
    let factor = if choice.accel == Accel::Kvm { 1 } else { EMULATION_FACTOR };
    let mut session =
        Session { job, plan, listener, vm: &vm, key: key.as_ref(), factor, report, entered: false };
    let ended = match session.whole() {
        Err(VmError::Interrupted(e)) => Err(e.into()),
        // Whatever the guest made of it: a disk that the host failed is not the image's fault.
        ended => vm.check_disks().and(ended),
    };
    let Session { mut report, entered, .. } = session;
    let mut failure = match ended {
        Ok(()) => None,
        Err(error) => Some(named_failure(error, &vm)?),
    };
    report.timeline = timeline::marks(&vm.lines(), report.boot_seconds);
    report.console = vm.console_log();
    report.checks.extend(not_made(job, plan, &report));
    failure = failure.or_else(|| by_checks(&report, vm.age()));
    report.verdict = if failure.is_some() { Verdict::Failed } else { Verdict::Passed };
    if let Some(failure) = &failure {
        // Who is stuck or slow may still answer.
        let answers =
            report.boot_seconds.is_some() || entered && matches!(&*failure.kind, "hang" | "too-slow");
        report.evidence = Some(evidence::collect(job, plan, vm, &overlay, &report, answers)?);
    } else {
        drop(vm);
        let _ = std::fs::remove_file(&overlay);
    }
    report.failure = failure;
    report.seconds = began.elapsed().as_secs_f64();
    listener.done(&report);
    Ok(report)
}

/// QEMU's command line for a machine, as [`run`] would start it.
pub(super) fn command_line(
    job: &Job<'_>,
    plan: &MachinePlan,
    choice: &Choice,
) -> Result<Vec<OsString>, SmokeError> {
    let overlay = overlay(job, plan);
    let prepared = prepare(setup(job, plan, choice, overlay.clone(), None))?;
    let _ = std::fs::remove_file(&overlay);
    Ok(prepared.argv())
}

/// The report of a machine that was not booted, because the disk can't be.
pub(super) fn not_booted(job: &Job<'_>, plan: &MachinePlan) -> MachineReport {
    let mut report = empty(plan);
    report.verdict = Verdict::Skipped;
    report.checks = not_made(job, plan, &report);
    report
}

/// The results of the checks that the report lacks, the reboot included.
fn not_made(job: &Job<'_>, plan: &MachinePlan, report: &MachineReport) -> Vec<CheckResult> {
    let reboot = plan.reboot.iter().map(|name| Check::new(name.clone(), What::Reboot));
    let all = job.plan.checks_of(plan).cloned().chain(reboot);
    all.filter(|check| !done(report, &check.name)).map(|check| skipped(&check)).collect()
}

fn empty(plan: &MachinePlan) -> MachineReport {
    MachineReport {
        name: plan.name.clone(),
        platform: plan.platform.word().to_owned(),
        firmware: plan.firmware.word().to_owned(),
        disk: plan.disk.word().to_owned(),
        accel: String::new(),
        command: String::new(),
        verdict: Verdict::Passed,
        failure: None,
        timeline: Vec::new(),
        checks: Vec::new(),
        failed_units: Vec::new(),
        console: String::new(),
        evidence: None,
        boot_seconds: None,
        seconds: 0.0,
    }
}

fn done(report: &MachineReport, name: &str) -> bool {
    report.checks.iter().any(|c| c.name == name)
}

/// The overlay's file, by the machine's name: kept when the test fails.
pub(super) fn overlay(job: &Job<'_>, plan: &MachinePlan) -> PathBuf {
    job.scratch.join(format!("{}.qcow2", evidence::file_name(&plan.name)))
}

fn setup(job: &Job<'_>, plan: &MachinePlan, choice: &Choice, overlay: PathBuf, key: Option<&Key>) -> Setup {
    let mut setup = Setup::new(job.qemu.clone(), job.image, choice.accel, job.scratch);
    setup.firmware = plan.firmware;
    setup.bus = plan.disk;
    setup.memory = job.plan.memory;
    setup.cpus = job.plan.cpus;
    setup.disk_size = job.plan.disk_size;
    setup.network = Network::Isolated;
    setup.channel = true;
    setup.screen = true;
    setup.keep = Some(overlay);
    setup.kiln.clone_from(&job.kiln);
    if plan.platform == Platform::Ec2 {
        setup = setup.ec2(instance(job, plan, key));
    }
    for check in job.plan.checks_of(plan) {
        if let What::Http(http) = &check.what {
            setup.forward(http.port);
        }
    }
    setup
}

/// The instance of this image and machine: the same every time, so that a test can be repeated.
fn instance(job: &Job<'_>, plan: &MachinePlan, key: Option<&Key>) -> Instance {
    let mut instance = Instance::new(&format!("{} {}", job.digest, plan.name));
    instance.public_key = key.map(|k| PublicKey { name: "kiln".to_owned(), openssh: k.public().to_owned() });
    instance.user_data = plan.user_data.as_ref().map(|text| text.clone().into_bytes());
    instance.metadata = match job.plan.imds {
        Imds::Required => Metadata::Required,
        Imds::Optional => Metadata::Optional,
    };
    instance
}

/// How the checks get in.
enum Way<'a> {
    Channel(Channel<'a>),
    Ssh(Box<Ssh<'a>>),
}

impl<'a> Way<'a> {
    fn guest(&mut self) -> &mut dyn Guest {
        match self {
            Way::Channel(channel) => channel,
            Way::Ssh(ssh) => ssh.as_mut(),
        }
    }

    fn reboot(self, limit: Duration) -> Result<Way<'a>, VmError> {
        match self {
            Way::Channel(channel) => channel.reboot(limit).map(Way::Channel),
            Way::Ssh(ssh) => ssh.reboot(limit).map(|ssh| Way::Ssh(Box::new(ssh))),
        }
    }
}

/// A machine that runs.
struct Session<'a> {
    job: &'a Job<'a>,
    plan: &'a MachinePlan,
    listener: &'a dyn Listener,
    vm: &'a Vm,
    key: Option<&'a Key>,
    factor: u32,
    report: MachineReport,
    /// Whether the way into the guest was ever open.
    entered: bool,
}

impl<'a> Session<'a> {
    /// All of it, until something fails that ends the machine.
    fn whole(&mut self) -> Result<(), VmError> {
        let limit = Duration::from_secs(u64::from(self.job.plan.boot_limit)) * self.factor;
        let mut way = self.way_in(limit)?;
        self.entered = true;
        self.listener.doing(&self.plan.name, "waiting until all units are up");
        let settled = until_settled(self.vm, way.guest(), self.vm.age(), limit)?;
        self.report.boot_seconds = Some(self.vm.age().as_secs_f64());
        self.failed_units(way.guest(), &settled.failed)?;
        let checks: Vec<Check> = self.job.plan.checks_of(self.plan).cloned().collect();
        self.checks(way.guest(), &checks, "")?;
        if let Some(name) = self.plan.reboot.clone() {
            self.reboot(way, &name, limit)?;
        }
        Ok(())
    }

    fn way_in(&self, limit: Duration) -> Result<Way<'a>, VmError> {
        match self.key.filter(|_| self.job.over_ssh) {
            Some(key) => Ok(Way::Ssh(Box::new(Ssh::log_in(self.vm, key, &self.job.login, limit)?))),
            None => Ok(Way::Channel(Channel::attach(self.vm, limit)?)),
        }
    }

    /// Keeps what the failed units' journals say.
    fn failed_units(&mut self, guest: &mut dyn Guest, failed: &[String]) -> Result<(), VmError> {
        let known: Vec<String> = self.report.failed_units.iter().map(|unit| unit.name.clone()).collect();
        for name in failed.iter().filter(|name| !known.contains(name)).take(20) {
            let script = format!(
                "journalctl --boot --no-pager --output=short-monotonic --lines={UNIT_JOURNAL} --unit={}",
                crate::check::ask::quoted(name)
            );
            let journal = guest.run(&script, QUESTION)?.stdout;
            self.report.failed_units.push(FailedUnit { name: name.clone(), journal });
        }
        Ok(())
    }

    fn checks(&mut self, guest: &mut dyn Guest, checks: &[Check], suffix: &str) -> Result<(), VmError> {
        let mut asker = Asker {
            vm: self.vm,
            guest,
            factor: self.factor,
            key: self.key,
            login: &self.job.login,
            boot_seconds: self.report.boot_seconds,
            boot_limit: self.job.plan.boot_limit,
            degraded: !self.report.failed_units.is_empty(),
            doing: &|what| self.listener.doing(&self.plan.name, what),
        };
        let mut told = |mut result: CheckResult| {
            result.name += suffix;
            self.listener.checked(&self.plan.name, &result);
            self.report.checks.push(result);
        };
        asker.all(checks, &mut told)
    }

    /// Restarts the guest and makes all its checks once more.
    fn reboot(&mut self, way: Way<'_>, name: &str, limit: Duration) -> Result<(), VmError> {
        self.listener.doing(&self.plan.name, "rebooting");
        let begun = Instant::now();
        let restarted = way.reboot(limit);
        let settled = restarted.and_then(|mut way| {
            let settled = until_settled(self.vm, way.guest(), begun.elapsed(), limit)?;
            Ok((way, settled))
        });
        let result = again(name, begun.elapsed(), settled.as_ref().map(|_| ()));
        self.listener.checked(&self.plan.name, &result);
        self.report.checks.push(result);
        let (mut way, settled) = settled?;
        self.failed_units(way.guest(), &settled.failed)?;
        let all = self.job.plan.checks_of(self.plan);
        let checks: Vec<Check> = all.filter(|c| c.what != What::BootTime).cloned().collect();
        self.checks(way.guest(), &checks, " (after the reboot)")
    }
}

/// What failed on a machine that came up.
fn by_checks(report: &MachineReport, age: Duration) -> Option<MachineFailure> {
    let failed: Vec<&str> =
        report.checks.iter().filter(|c| c.verdict == Verdict::Failed).map(|c| c.name.as_str()).collect();
    let units: Vec<&str> = report.failed_units.iter().map(|u| u.name.as_str()).collect();
    let at = age.as_secs_f64();
    match (&failed[..], &units[..]) {
        ([], _) => None,
        (_, [_, ..]) => Some(MachineFailure {
            kind: "failed-unit".to_owned(),
            message: format!("{} failed", units.join(", ")),
            hint: "the end of its journal is in the report; `journalctl --unit` in the kept machine shows all of it".to_owned(),
            at,
        }),
        (some, []) => Some(MachineFailure {
            kind: "check-failed".to_owned(),
            message: format!("{} of {} checks failed: {}", some.len(), report.checks.len(), some.join(", ")),
            hint: "each failed check says what it found and what it expected".to_owned(),
            at,
        }),
    }
}
