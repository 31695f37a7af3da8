//! A machine's disk as a cut of the power would leave it, at many moments of one piece of work.
//!
//! QEMU is stopped, the file that takes its writes is copied, QEMU goes on. The copy is what a `kill -9` would have left: what the
//! guest asked to be flushed is there, of the rest some is and some is not. Many short windows open right after a flush, so that
//! copies are made there too, and not only at random.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use kiln::vm::Vm;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::{Random, said};
use crate::images::partition;

/// Between two looks at whether the guest has flushed: shorter than a write of an emulated machine and its answer.
const LOOK: Duration = Duration::from_millis(1);
/// Copies beyond this many tell nothing new, and fill the disk.
const MOST: usize = 80;

/// A copy of what a machine had written at some moment.
pub struct Moment {
    /// The qcow2 file, over the machine's image.
    pub overlay: PathBuf,
    /// When it was.
    pub what: String,
}

/// The moments of one piece of work.
pub struct Moments<'a> {
    vm: &'a Vm,
    overlay: &'a Path,
    folder: &'a Path,
    /// What was copied so far.
    pub taken: Vec<Moment>,
}

impl<'a> Moments<'a> {
    /// Of a machine that writes to `overlay`; the copies lie in `folder`.
    pub fn of(vm: &'a Vm, overlay: &'a Path, folder: &'a Path) -> Moments<'a> {
        Moments { vm, overlay, folder, taken: Vec::new() }
    }

    /// Takes copies until the work is done: after each flush, and at random moments that are `gap` apart in the mean.
    pub fn watch(&mut self, random: &mut Random, gap: Duration, limit: Duration, done: impl Fn(&Vm) -> bool) {
        let begun = Instant::now();
        let (mut flushes, mut next) = (self.flushes(), Instant::now() + random.below(gap * 2));
        while !done(self.vm) {
            assert!(begun.elapsed() < limit, "not done within {limit:?}: {:#?}", self.vm.tail());
            let now = self.flushes();
            let due = Instant::now() > next;
            if (now > flushes || due) && self.taken.len() < MOST {
                let why = if due { "at random".to_owned() } else { format!("after flush {now}") };
                self.take(&format!("{:.3} s, {why}", begun.elapsed().as_secs_f64()));
                if due {
                    next = Instant::now() + random.below(gap * 2);
                }
            }
            flushes = now;
            std::thread::sleep(LOOK);
        }
        self.take("at the end");
        println!("{} moments in {:.1} s", self.taken.len(), begun.elapsed().as_secs_f64());
    }

    /// How often the guest has had its disk flushed.
    fn flushes(&self) -> u64 {
        let disks = self.vm.execute("query-blockstats", &Value::Null).unwrap_or_else(|e| panic!("{e}"));
        let count = |disk: &Value| disk["stats"]["flush_operations"].as_u64().unwrap_or_default();
        disks.as_array().map_or(0, |disks| disks.iter().map(count).sum())
    }

    /// Takes a copy now.
    pub fn take(&mut self, what: &str) {
        let copy = self.folder.join(format!("moment-{}.qcow2", self.taken.len()));
        stopped(self.vm, || said(Command::new("cp").arg("--sparse=always").args([self.overlay, &copy])));
        self.taken.push(Moment { overlay: copy, what: what.to_owned() });
    }
}

/// Does something while no thread of QEMU runs.
fn stopped<T>(vm: &Vm, work: impl FnOnce() -> T) -> T {
    let pid = Pid::from_raw(vm.pid() as i32);
    kill(pid, Signal::SIGSTOP).expect("QEMU can be stopped");
    let tasks = PathBuf::from(format!("/proc/{pid}/task"));
    let runs = |stat: String| !stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'));
    while fs::read_dir(&tasks)
        .expect("QEMU")
        .flatten()
        .any(|task| fs::read_to_string(task.path().join("stat")).is_ok_and(runs))
    {
        std::thread::yield_now();
    }
    let result = work();
    kill(pid, Signal::SIGCONT).expect("QEMU can go on");
    result
}

/// The two partitions of a disk, as files of their own.
pub struct Partitions {
    /// The one with store and state.
    pub kiln: PathBuf,
    /// The EFI system partition.
    pub esp: PathBuf,
}

impl Partitions {
    /// Of what a machine made of its image.
    pub fn of(image: &Path, overlay: &Path, folder: &Path) -> Partitions {
        let of = format!("file.driver=qcow2,file.file.driver=file,file.file.filename={}", overlay.display());
        Partitions::extract(image, &of, folder)
    }

    /// Of a raw disk.
    pub fn of_raw(disk: &Path, folder: &Path) -> Partitions {
        Partitions::extract(disk, &format!("file.driver=file,file.filename={}", disk.display()), folder)
    }

    fn extract(disk: &Path, of: &str, folder: &Path) -> Partitions {
        let file = |number: u32, name: &str| {
            let (offset, size) = partition(disk, number);
            let path = folder.join(name);
            let from = format!("driver=raw,offset={offset},size={size},{of}");
            said(Command::new("qemu-img").args(["convert", "-O", "raw", "--image-opts", &from]).arg(&path));
            path
        };
        Partitions { kiln: file(1, "kiln.ext4"), esp: file(15, "esp.fat") }
    }

    /// Nothing is wrong with the file systems but what a cut leaves: a journal to replay, and, unless the machine was shut down
    /// (`ended`), what [`is_of_a_cut`] says.
    ///
    /// e2fsck is given a file of the partition's own: having replayed a journal it opens its file again, and forgets the offset
    /// into a disk (1.47).
    pub fn assert_sound(&self, ended: bool) {
        let replayed = Command::new("e2fsck").args(["-p", "-f"]).arg(&self.kiln).output().expect("e2fsck");
        let told = String::from_utf8_lossy(&replayed.stdout);
        assert!(replayed.status.code().is_some_and(|code| code <= 1), "{told}");
        said(Command::new("e2fsck").args(["-f", "-n"]).arg(&self.kiln));

        let output = Command::new("fsck.fat").arg("-n").arg(&self.esp).output().expect("fsck.fat");
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        let harmless = !ended && told.lines().all(is_of_a_cut);
        assert!(output.status.success() || harmless, "{told}");
    }

    /// Names in a folder of the partition with store and state.
    pub fn names(&self, folder: &str) -> Vec<String> {
        // `/inode/mode/uid/gid/name/size/`
        let list = self.debugfs(&format!("ls -p {folder}"));
        let names = list.lines().filter_map(|line| line.split('/').nth(5));
        names.filter(|name| ![".", ".."].contains(name)).map(str::to_owned).collect()
    }

    /// What debugfs prints of a request.
    pub fn debugfs(&self, request: &str) -> String {
        said(Command::new("debugfs").args(["-R", request]).arg(&self.kiln))
    }
}

/// What fsck.fat says of a file system that has no journal and was cut, and that harms nobody: that it wasn't unmounted, that its count of
/// what is free is behind, that clusters belong to nothing.
fn is_of_a_cut(line: &str) -> bool {
    const SAID: [&str; 12] = [
        "fsck.fat ",
        "There are differences between boot sector and its backup.",
        "This is mostly harmless. Differences: ",
        // The byte that says whether it was unmounted.
        "  65:01/00",
        "  Not automatically fixing this.",
        "Dirty bit is set. ",
        " Automatically removing dirty bit.",
        "Free cluster summary wrong ",
        "  Auto-correcting.",
        "Reclaimed ",
        "Leaving filesystem unchanged.",
        "FATs differ but appear to be intact.",
    ];
    line.is_empty() || line.contains(" files, ") || SAID.iter().any(|said| line.starts_with(said))
}
