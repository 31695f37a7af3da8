//! Smoke tests: the exact bytes of an image are booted on each machine of a plan and checked there.
//!
//! ```text
//! Plan ──static checks──▶ (disk) ──machine by machine──▶ Report ──accept──▶ TestedImage
//! ```
//!
//! Nothing here changes the image: it is opened read-only, all writes go to overlays, and its digest is taken again
//! afterwards. [`TestedImage`] can only be made by [`accept`], from an image and the report that says it passed.

mod asking;
mod evidence;
mod http;
mod machine;
mod naming;
mod timeline;

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::failure::VmError;
use super::machine::Accel;
use super::probe::{self, Choice, Wish};
use super::qemu::Qemu;
use crate::artifact::RawImage;
use crate::check::Plan;
use crate::check::plan::MachinePlan;
use crate::check::report::{CheckResult, MachineReport, Report, Verdict};
use crate::digest::Digest;
use crate::host::fs::FileError;
use crate::units::Bytes;

pub use evidence::{forget, overlays};

/// Under emulation everything takes longer by about this factor; limits are stretched by it.
pub const EMULATION_FACTOR: u32 = 5;

/// What is to be tested, and how.
pub struct Job<'a> {
    /// The image's file, raw or qcow2.
    pub image: &'a Path,
    /// The system's or the file's name.
    pub name: String,
    /// Digest of the disk's blocks.
    pub digest: Digest,
    /// Size of the disk.
    pub size: Bytes,
    /// The machines and their checks.
    pub plan: &'a Plan,
    /// Results of the checks that were made on the disk itself.
    pub statics: Vec<CheckResult>,
    /// Which QEMU.
    pub qemu: &'a Qemu,
    /// What is to run the guests.
    pub wish: Wish,
    /// Who logs in to a lookalike of an EC2 instance.
    pub login: String,
    /// Checks go over SSH where a machine has a key, instead of the channel.
    pub over_ssh: bool,
    /// Where the machines' folders are made.
    pub scratch: &'a Path,
    /// Where evidence of failures is kept.
    pub evidence: &'a Path,
    /// How many machines run at once.
    pub jobs: usize,
    /// The machines are booted although the disk's own checks failed.
    pub keep_going: bool,
    /// The `kiln` program, as in [`super::Setup`].
    pub kiln: Option<PathBuf>,
}

/// Is told what happens.
pub trait Listener: Sync {
    /// A machine does something: `booting`, `checking port 80`, ….
    fn doing(&self, machine: &str, what: &str);
    /// A check has ended; `machine` is empty for those of the disk.
    fn checked(&self, machine: &str, result: &CheckResult);
    /// A machine is done.
    fn done(&self, machine: &MachineReport);
}

/// Why a test could not be done. What is wrong with the image is no such error: it stands in the report.
#[derive(Debug, thiserror::Error)]
pub enum SmokeError {
    /// The virtual machine, not the guest, failed.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// A file can't be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// Nothing is left to test.
    #[error("no machine is left to test on: {0}")]
    NoMachine(String),
}

/// An image whose bytes passed their tests.
#[derive(Debug, Clone)]
pub struct TestedImage {
    image: RawImage,
    report: Report,
}

impl TestedImage {
    /// The image.
    #[must_use]
    pub fn image(&self) -> &RawImage {
        &self.image
    }

    /// The report that says so.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.report
    }
}

/// Takes an image as tested.
///
/// # Errors
/// Gives the report back when it isn't about these bytes, or says that they failed.
pub fn accept(image: RawImage, report: Report) -> Result<TestedImage, Box<Report>> {
    if report.image == image.blocks && report.verdict == Verdict::Passed {
        Ok(TestedImage { image, report })
    } else {
        Err(Box::new(report))
    }
}

/// Runs a whole test.
///
/// # Errors
/// [`SmokeError`] when testing itself could not be done, [`VmError::Interrupted`] among them.
pub fn run(job: &Job<'_>, listener: &dyn Listener, now: i64) -> Result<Report, SmokeError> {
    if job.plan.machines.is_empty() {
        return Err(SmokeError::NoMachine("the profile or the options leave none".to_owned()));
    }
    let began = Instant::now();
    for result in &job.statics {
        listener.checked("", result);
    }
    let sound = Verdict::worst(job.statics.iter().map(|c| c.verdict)) == Verdict::Passed;
    let machines = if sound || job.keep_going {
        let choice = probe::choose(job.qemu, job.wish, job.scratch, job.kiln.as_deref())?;
        all(job, &choice, listener)?
    } else {
        job.plan.machines.iter().map(|plan| machine::not_booted(job, plan)).collect()
    };
    let verdicts = machines.iter().map(|m| m.verdict).chain(job.statics.iter().map(|c| c.verdict));
    Ok(Report {
        kiln: env!("CARGO_PKG_VERSION").to_owned(),
        name: job.name.clone(),
        image: job.digest,
        size: job.size,
        tests: job.plan.digest(),
        verdict: Verdict::worst(verdicts),
        statics: job.statics.clone(),
        machines,
        began: now,
        seconds: began.elapsed().as_secs_f64(),
    })
}

/// QEMU's command line for each machine of the plan, in its order. Nothing is started but what tries the accelerator; the
/// files that the lines name are in the scratch folder.
///
/// # Errors
/// As [`run`].
pub fn command_lines(job: &Job<'_>) -> Result<Vec<Vec<OsString>>, SmokeError> {
    let choice = probe::choose(job.qemu, job.wish, job.scratch, job.kiln.as_deref())?;
    job.plan.machines.iter().map(|plan| machine::command_line(job, plan, &choice)).collect()
}

/// Runs all machines, some at once, and reports in the order of the plan.
fn all(job: &Job<'_>, choice: &Choice, listener: &dyn Listener) -> Result<Vec<MachineReport>, SmokeError> {
    let plans = &job.plan.machines;
    let queue: Mutex<VecDeque<(usize, &MachinePlan)>> = Mutex::new(plans.iter().enumerate().collect());
    let results: Mutex<Vec<Option<Result<MachineReport, SmokeError>>>> =
        Mutex::new(plans.iter().map(|_| None).collect());
    let work = || {
        while let Some((number, plan)) = take(&queue) {
            let result = with_fallback(job, plan, choice, listener);
            // An error ends the whole test: nothing more is begun.
            if result.is_err() {
                lock(&queue).clear();
            }
            lock(&results)[number] = Some(result);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..job.jobs.clamp(1, plans.len()) {
            scope.spawn(work);
        }
        work();
    });
    let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.into_iter().flatten().collect()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn take<T>(queue: &Mutex<VecDeque<T>>) -> Option<T> {
    lock(queue).pop_front()
}

/// A KVM that breaks down under a real guest is tried once, then emulated.
fn with_fallback(
    job: &Job<'_>,
    plan: &MachinePlan,
    choice: &Choice,
    listener: &dyn Listener,
) -> Result<MachineReport, SmokeError> {
    match machine::run(job, plan, choice, listener) {
        Err(SmokeError::Vm(e))
            if e.is_accelerator() && choice.accel == Accel::Kvm && job.wish == Wish::Auto =>
        {
            listener.doing(&plan.name, "KVM broke down: once more, under emulation");
            let _ = std::fs::remove_file(machine::overlay(job, plan));
            let mut emulated = probe::choose(job.qemu, Wish::Emulation, job.scratch, job.kiln.as_deref())?;
            emulated.kvm = Some(probe::Verdict::Broken("it broke down under this guest".to_owned()));
            machine::run(job, plan, &emulated, listener)
        }
        other => other,
    }
}
