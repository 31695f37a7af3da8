//! An image's smoke tests: [`BakedDisk`] → [`TestedImage`]. That bytes passed is kept under the image's digest and the plan's:
//! they are not tested again in the same way. A failure may be the host's, and is never kept.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::closure::ToolSet;
use super::{BakeError, BakedDisk, BakedTree, Locked, Session};
use crate::arch::Arch;
use crate::artifact::RawImage;
use crate::check::disk::{Expect, inspect};
use crate::check::plan::{DiskFacts, Only};
use crate::check::report::{CheckResult, Report, Verdict};
use crate::check::written::BadCheck;
use crate::check::{Plan, written};
use crate::digest::Digest;
use crate::format::qcow2;
use crate::host::fs::FileError;
use crate::image::{block_digest, block_map_of};
use crate::store::{Inputs, StepResult};
use crate::system::Firmware;
use crate::units::{Bytes, SECTOR};
use crate::vm::probe::Wish;
use crate::vm::smoke::{self, Job, Listener};
use crate::vm::{Qemu, VmError};

/// How a test is to be done. Nothing of it changes what is tested but `only`.
#[derive(Debug, Clone)]
pub struct TestRequest {
    /// Which machines; all when nothing is said.
    pub only: Only,
    /// What is to run the guests.
    pub wish: Wish,
    /// Another QEMU than the locked one.
    pub qemu: Option<Qemu>,
    /// How many machines run at once; as many as processors and memory allow when absent.
    pub jobs: Option<usize>,
    /// A verdict that is there already doesn't count.
    pub again: bool,
    /// Machines are booted although the disk's own checks failed.
    pub keep_going: bool,
    /// Checks of lookalikes of EC2 instances go over SSH.
    pub over_ssh: bool,
    /// Where evidence of failures is kept.
    pub evidence: PathBuf,
}

/// How a test ended.
#[derive(Debug, Clone)]
pub struct Tested {
    /// The report.
    pub report: Report,
    /// Whether the verdict was there already.
    pub cached: bool,
}

/// An image to be tested, whatever it came from.
#[derive(Debug, Clone)]
pub struct Subject<'a> {
    /// The file.
    pub path: &'a Path,
    /// The system's or the file's name.
    pub name: String,
    /// Digest of its blocks.
    pub digest: Digest,
    /// Size of the disk.
    pub size: Bytes,
    /// What it is for.
    pub arch: Arch,
    /// Who logs in over SSH.
    pub login: String,
}

/// Who logs in to an image without a profile: whom `kiln/server.ncl` makes, and Debian's own AMIs do.
pub const IMAGE_LOGIN: &str = "admin";

/// Who logs in when a profile doesn't say who: cloud-init's own default on Debian.
const LOGIN: &str = "debian";

impl Session<'_> {
    /// The plan for a baked disk.
    ///
    /// # Errors
    /// When a check is wrong, a script can't be read, or the store's copy of the tree is damaged.
    pub fn test_plan(&self, locked: &Locked, tree: &BakedTree, disk: &BakedDisk) -> Result<Plan, BakeError> {
        let system = locked.profile.system();
        let files = &locked.profile.files;
        let read = |name: &str| {
            let bytes = files.read(name).map_err(|e| e.to_string())?;
            String::from_utf8(bytes).map_err(|_| format!("{name} is no text"))
        };
        let checks = written::written(&system.test.checks, &read)?;
        let root = disk.layout.partitions.last().map(crate::layout::Partition::offset);
        let facts = DiskFacts { size: disk.image.size, root: root.unwrap_or_default() };
        let plan = Plan::of_system(system, &self.load_tree(tree)?, facts, checks);
        match plan.name_taken_twice() {
            None => Ok(plan),
            Some(name) => {
                let why =
                    "a check that follows from the rest of the profile has this name: give yours another";
                Err(BadCheck { name: name.to_owned(), why: why.to_owned() }.into())
            }
        }
    }

    /// Tests a baked disk.
    ///
    /// # Errors
    /// [`BakeError`] when testing itself could not be done; an image that fails is told by the report.
    pub fn test(
        &self,
        locked: &Locked,
        tree: &BakedTree,
        disk: &BakedDisk,
        request: &TestRequest,
        listener: &dyn Listener,
    ) -> Result<Tested, BakeError> {
        let mut plan = self.test_plan(locked, tree, disk)?;
        plan.keep(request.only);
        let tools = Self::tools_inputs(locked, ToolSet::Vm).key();
        let qemu = || self.test_qemu(locked, request);
        self.tested(&Subject::baked(locked, disk), &plan, Some(tools), &qemu, request, listener)
    }

    /// The QEMU that was asked for, else the locked one, which is made when it isn't there.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn test_qemu(&self, locked: &Locked, request: &TestRequest) -> Result<Qemu, BakeError> {
        match &request.qemu {
            Some(qemu) => Ok(qemu.clone()),
            None => Ok(Qemu::tools(&self.tools(locked, ToolSet::Vm)?).map_err(VmError::from)?),
        }
    }

    /// Tells of every check that the disk itself fails: some boot all the same, but not many.
    pub(super) fn warn_of_faults(&self, locked: &Locked, disk: &BakedDisk) {
        let system = locked.profile.system();
        let expect = Expect { arch: system.arch, firmware: system.boot.firmware, serial: false };
        // Whoever reads the disk next tells why it can't be read.
        let checks = inspected(&disk.image.path, &expect).unwrap_or_default();
        for fault in checks.iter().filter(|check| check.verdict == Verdict::Failed) {
            self.watch
                .say("warning", &format!("a check of the disk failed: {}: {}", fault.name, fault.detail));
        }
    }

    /// QEMU's command line for each machine of `plan`, in its order; nothing is booted.
    ///
    /// # Errors
    /// When QEMU can't be used, or the image is none.
    pub fn test_command_lines(
        &self,
        subject: &Subject<'_>,
        plan: &Plan,
        qemu: &Qemu,
        request: &TestRequest,
    ) -> Result<Vec<Vec<OsString>>, BakeError> {
        let scratch = self.store.scratch("test")?;
        Ok(smoke::command_lines(&job(subject, plan, Vec::new(), qemu, request, scratch.path()))?)
    }

    /// The verdict on `subject`: the one that is kept, else that of a test. `tools` tells which QEMU runs it, when that is
    /// locked.
    ///
    /// # Errors
    /// As [`Session::test`].
    pub fn tested(
        &self,
        subject: &Subject<'_>,
        plan: &Plan,
        tools: Option<Digest>,
        qemu: &dyn Fn() -> Result<Qemu, BakeError>,
        request: &TestRequest,
        listener: &dyn Listener,
    ) -> Result<Tested, BakeError> {
        let general = verdict_inputs(subject.digest, plan, tools, request.qemu.as_ref());
        let inputs = if request.over_ssh { general.clone().with("way", "ssh") } else { general.clone() };
        if !request.again
            && let Some(mut report) = self.kept_report(&inputs)
            && answers(&report, request.wish)
        {
            // Another file with the same bytes has its own name.
            report.name.clone_from(&subject.name);
            return Ok(Tested { report, cached: true });
        }
        let scratch = self.store.scratch("test")?;
        let qemu = qemu()?;
        let job = job(subject, plan, statics(subject, plan)?, &qemu, request, scratch.path());
        smoke::forget(&request.evidence, plan, subject.path);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let report = smoke::run(&job, listener, i64::try_from(now).unwrap_or(0));
        for overlay in smoke::overlays(&request.evidence, plan) {
            self.store.keep_under(&overlay, &subject.name, subject.path)?;
        }
        let report = report?;
        let after = digest_of(subject.path)?;
        if after != subject.digest {
            let (before, after) = (subject.digest.short(), after.short());
            return Err(BakeError::ImageChanged { path: subject.path.to_owned(), before, after });
        }
        if report.verdict == Verdict::Passed {
            self.keep_report(&general, &report)?;
            if request.over_ssh {
                self.keep_report(&inputs, &report)?;
            }
        }
        Ok(Tested { report, cached: false })
    }

    /// The verdict of a plan that is kept, by the locked QEMU.
    pub(super) fn known_verdict(&self, locked: &Locked, disk: &BakedDisk, plan: &Plan) -> Option<Tested> {
        let tools = Self::tools_inputs(locked, ToolSet::Vm).key();
        let report = self.kept_report(&verdict_inputs(disk.image.blocks, plan, Some(tools), None))?;
        Some(Tested { report, cached: true })
    }

    fn kept_report(&self, inputs: &Inputs) -> Option<Report> {
        let result = self.store.lookup(inputs)?;
        let bytes = self.store.read_blob(&result.output("report")?).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    fn keep_report(&self, inputs: &Inputs, report: &Report) -> Result<(), BakeError> {
        let bytes =
            serde_json::to_vec(report).map_err(|e| BakeError::Kept { what: "report", why: e.to_string() })?;
        let mut result = StepResult::default();
        result.outputs.insert("report".into(), self.store.put_bytes(&bytes)?);
        Ok(self.store.record(inputs, &result)?)
    }
}

impl<'a> Subject<'a> {
    /// A baked disk.
    #[must_use]
    pub fn baked(locked: &Locked, disk: &'a BakedDisk) -> Subject<'a> {
        let system = locked.profile.system();
        Subject {
            path: &disk.image.path,
            name: system.name.clone(),
            digest: disk.image.blocks,
            size: disk.image.size,
            arch: system.arch,
            login: login(&system.cloud_init.settings),
        }
    }
}

fn job<'a>(
    subject: &'a Subject<'_>,
    plan: &'a Plan,
    statics: Vec<CheckResult>,
    qemu: &'a Qemu,
    request: &'a TestRequest,
    scratch: &'a Path,
) -> Job<'a> {
    Job {
        image: subject.path,
        name: subject.name.clone(),
        digest: subject.digest,
        size: subject.size,
        plan,
        statics,
        qemu,
        wish: request.wish,
        login: subject.login.clone(),
        over_ssh: request.over_ssh,
        scratch,
        evidence: &request.evidence,
        jobs: request.jobs.unwrap_or_else(|| jobs(plan)),
        keep_going: request.keep_going,
        kiln: None,
    }
}

/// The checks of the disk itself, before anything is booted.
fn statics(subject: &Subject<'_>, plan: &Plan) -> Result<Vec<CheckResult>, FileError> {
    let expect = Expect { arch: subject.arch, firmware: plan.firmware, serial: plan.serial };
    inspected(subject.path, &expect)
}

/// The firmware under which an image of which nothing is known seems to boot: both, unless only one of them finds what it
/// needs.
///
/// # Errors
/// When it can't be read.
pub fn boots_under(path: &Path, arch: Arch) -> Result<Firmware, FileError> {
    let sound = |firmware| {
        let results = inspected(path, &Expect { arch, firmware, serial: false })?;
        Ok::<bool, FileError>(results.iter().all(|check| check.verdict != Verdict::Failed))
    };
    Ok(match (sound(Firmware::Bios)?, sound(Firmware::Uefi)?) {
        (true, false) => Firmware::Bios,
        (false, true) => Firmware::Uefi,
        _ => Firmware::Both,
    })
}

fn inspected(path: &Path, expect: &Expect) -> Result<Vec<CheckResult>, FileError> {
    Ok(match Disk::open(path)? {
        Disk::Raw(mut file) => inspect(&mut file, expect),
        Disk::Qcow2(mut disk) => inspect(&mut disk, expect),
    })
}

/// The bytes of a disk, whatever its file's format.
enum Disk {
    Raw(File),
    Qcow2(qcow2::read::Reader<File>),
}

impl Disk {
    fn open(path: &Path) -> Result<Disk, FileError> {
        let wrong = || FileError::at("can't read", path);
        let mut file = File::open(path).map_err(wrong())?;
        if !is_qcow2(&mut file).map_err(wrong())? {
            return Ok(Disk::Raw(file));
        }
        qcow2::read::Reader::open(file).map(Disk::Qcow2).map_err(|e| wrong()(io::Error::other(e)))
    }
}

/// Whether a file may be a disk to boot from: of whole sectors, with an MBR's signature or a GUID partition table.
///
/// # Errors
/// When it can't be read.
pub fn is_disk(path: &Path) -> Result<bool, FileError> {
    let wrong = || FileError::at("can't read", path);
    match Disk::open(path)? {
        Disk::Qcow2(disk) => has_table(disk).map_err(wrong()),
        Disk::Raw(file) => {
            let whole = file.metadata().map_err(wrong())?.len() % SECTOR == 0;
            Ok(whole && has_table(file).map_err(wrong())?)
        }
    }
}

fn has_table(disk: impl Read) -> io::Result<bool> {
    let mut start = Vec::new();
    // With sectors of 4096 bytes the GUID partition table begins there, else in the second sector of 512 bytes.
    disk.take(2 * 4096).read_to_end(&mut start)?;
    let at = |place: usize, bytes: &[u8]| start.get(place..).is_some_and(|rest| rest.starts_with(bytes));
    Ok(at(510, &[0x55, 0xaa]) || at(512, b"EFI PART") || at(4096, b"EFI PART"))
}

fn is_qcow2(file: &mut File) -> io::Result<bool> {
    let mut magic = [0; 4];
    let read = file.read(&mut magic)?;
    file.rewind()?;
    Ok(read == magic.len() && magic == *b"QFI\xfb")
}

/// Digest of an image's blocks: those of the disk, whatever the file's format.
///
/// # Errors
/// When it can't be read.
pub fn digest_of(path: &Path) -> Result<Digest, FileError> {
    let wrong = || FileError::at("can't read", path);
    match Disk::open(path)? {
        Disk::Raw(file) => block_digest(&file).map_err(wrong()),
        Disk::Qcow2(mut disk) => {
            let size = disk.size();
            Ok(block_map_of(&mut disk, size).map_err(wrong())?.digest())
        }
    }
}

/// A baked image that passed: what may be published.
///
/// # Errors
/// Gives the report back when it says that the image failed, or is about other bytes.
pub fn accepted(image: RawImage, tested: Tested) -> Result<smoke::TestedImage, Box<Report>> {
    smoke::accept(image, tested.report)
}

/// Whether a kept verdict answers one who wants this accelerator.
fn answers(report: &Report, wish: Wish) -> bool {
    wish != Wish::Kvm || report.machines.iter().all(|machine| machine.accel == "KVM")
}

/// `qemu` is the one that was asked for, instead of that of the `tools`.
fn verdict_inputs(image: Digest, plan: &Plan, tools: Option<Digest>, qemu: Option<&Qemu>) -> Inputs {
    let inputs = Inputs::new("test", 1)
        .with("code", env!("KILN_CODE_TEST"))
        .with("image", image)
        .with("tests", plan.digest());
    match (qemu, tools) {
        (Some(Qemu::Host { program: path } | Qemu::Tools(path)), _) => inputs.with("qemu", path.display()),
        (None, Some(tools)) => inputs.with("tools", tools),
        (None, None) => inputs.with("tools", "of the host"),
    }
}

/// The name of cloud-init's user.
fn login(settings: &serde_json::Map<String, serde_json::Value>) -> String {
    let name = settings.get("system_info").and_then(|s| s["default_user"]["name"].as_str());
    name.unwrap_or(LOGIN).to_owned()
}

/// Machines at once: one for each two processors that the host has for each of theirs, and no more than fit into memory.
fn jobs(plan: &Plan) -> usize {
    let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let by_processors = (processors / plan.cpus as usize).max(1);
    let by_memory = available_memory().map_or(1, |free| (free / plan.footprint().0.max(1)) as usize);
    by_processors.min(by_memory).clamp(1, plan.machines.len().max(1))
}

/// Memory that could be used now, in bytes (proc(5): `MemAvailable`).
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn who_logs_in() {
        let settings = json!({ "system_info": { "default_user": { "name": "admin" } } });
        assert_eq!(login(settings.as_object().unwrap()), "admin");
        assert_eq!(login(&serde_json::Map::new()), "debian");
    }

    #[test]
    fn a_verdict_is_that_of_one_qemu() {
        let plan = Plan::of_image(Firmware::Both, crate::check::plan::Platform::Plain);
        let (tools, other) = (Digest::of(b"tools"), Qemu::Host { program: "/usr/bin/qemu".into() });
        let key = |tools, qemu| verdict_inputs(Digest::of(b"image"), &plan, tools, qemu).key();
        let keys = [key(Some(tools), None), key(None, None), key(Some(tools), Some(&other))];
        assert!(keys[0] != keys[1] && keys[0] != keys[2] && keys[1] != keys[2]);
        assert_eq!(keys[2], key(None, Some(&other)));
    }

    #[test]
    fn what_may_be_a_disk() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let mut disk = vec![0; 8 * 512];
        let says = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            is_disk(&path).unwrap()
        };
        assert!(!says(&disk) && !says(b"") && !says(b"a text\n"));
        disk[512..520].copy_from_slice(b"EFI PART");
        assert!(says(&disk) && !says(&disk[..4000]));
        disk.fill(0);
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert!(says(&disk));
    }

    #[test]
    fn as_many_machines_as_fit() {
        let plan = Plan::of_image(crate::system::Firmware::Both, crate::check::Platform::Plain);
        assert!((1..=4).contains(&jobs(&plan)));
        assert!(available_memory().is_some_and(|bytes| bytes > 1 << 20));
    }
}
