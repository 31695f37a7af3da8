//! Runs programs inside a tree without privilege: packages' scripts, the profile's scripts.
//!
//! A sandbox is a process of Kiln's own (`kiln internal sandbox`) in namespaces of its own: no network, a fixed host name, a
//! cleared environment, only its tree to see. [`tier()`] tells by which way this host allows that. What comes out is a
//! [`Tree`] and a pack with its contents, the same on every host.

mod ahead;
mod capture;
mod customise;
mod error;
mod extract;
mod fast;
mod inner;
mod install;
mod memory;
mod mounts;
mod outer;
mod remove;
mod scripts;
mod serve;
mod tier;
mod tools;
mod unpack;
mod wipe;
mod wire;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

pub use error::SandboxError;
pub use remove::remove_tree;
pub use tier::{Refusal, Tier, tier};
pub use tools::unpack_tools;

use crate::arch::Arch;
use crate::digest::Digest;
use crate::host::fs::FileError;
use crate::host::sys;
use crate::system::DebconfAnswer;
use crate::tree::{Packs, Tree};
use wire::{Outcome, Task};

/// A package file, verified by the caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DebFile {
    /// Where it lies.
    pub path: PathBuf,
    /// Whether somebody asked for the package itself (apt's `manual`).
    pub manual: bool,
}

/// What [`install`] makes a tree of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InstallJob {
    /// All packages of the tree, in any order.
    pub packages: Vec<DebFile>,
    /// The tree's architecture; it must be the host's.
    pub arch: Arch,
    /// SOURCE_DATE_EPOCH, in seconds; at least the date of the newest package.
    pub epoch: i64,
    /// Answers for debconf: package → question → answer.
    pub debconf: BTreeMap<String, BTreeMap<String, DebconfAnswer>>,
}

/// A program or script that [`customise`] runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Script {
    /// Its name in errors and in the log.
    pub name: String,
    /// Its text, begun by `#!`.
    pub text: String,
}

/// What [`customise`] does with a tree.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CustomiseJob {
    /// SOURCE_DATE_EPOCH, in seconds.
    pub epoch: i64,
    /// Scripts, run one after the other as root.
    pub scripts: Vec<Script>,
    /// Whether identity is wiped again afterwards, as [`install`] does.
    pub wipe: bool,
}

/// A tree that came out of a sandbox.
#[derive(Debug)]
pub struct Installed {
    /// The tree; what is new in it lies in [`Installed::pack`].
    pub tree: Tree,
    /// The pack that holds the new contents; `None` when there are none.
    pub pack: Option<PackFile>,
    /// Everything that was printed.
    pub log: PathBuf,
    /// How long each phase took.
    pub timings: Vec<Timing>,
}

/// A pack in the scratch folder, to be moved into the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackFile {
    /// Where it lies.
    pub path: PathBuf,
    /// SHA-256 of its bytes.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// How long a phase took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// The phase, as in `unpack`.
    pub phase: String,
    /// Wall time in seconds.
    pub seconds: f64,
}

/// How far the work is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The phase, as in `unpack`.
    pub phase: String,
    /// How much of it is done; bytes when unpacking, packages when configuring.
    pub done: u64,
    /// Out of how much.
    pub total: u64,
    /// What is worked on just now.
    pub what: String,
}

const LOG: &str = "sandbox.log";
const DUMP: &str = "tree";
const PACK: &str = "pack";
const ROOT: &str = "root";

static EXECUTABLE: OnceLock<PathBuf> = OnceLock::new();

/// Names the `kiln` program to start for sandboxes, for programs that are not `kiln` themselves (tests). The first call counts.
pub fn use_executable(path: impl Into<PathBuf>) {
    let _ = EXECUTABLE.set(path.into());
}

fn executable() -> &'static Path {
    EXECUTABLE.get().map_or(Path::new("/proc/self/exe"), PathBuf::as_path)
}

/// Runs the inner side of a sandbox when the arguments (those after `kiln internal`) ask for it: `sandbox …`.
/// `main` calls it before anything else, while there is one thread.
#[must_use]
pub fn child_main(args: &[std::ffi::OsString]) -> Option<ExitCode> {
    let words: Vec<&str> = args.iter().filter_map(|a| a.to_str()).collect();
    match words.as_slice() {
        ["sandbox", "probe"] => Some(inner::probe()),
        ["sandbox", "run", how] => Some(inner::run(*how == "user")),
        _ => None,
    }
}

/// Makes a configured tree of packages. `scratch` is an empty or absent folder; the pack and the log are left in it.
///
/// # Errors
/// When this host allows no sandbox, a package is damaged, a script fails, or the user interrupts.
pub fn install(
    job: &InstallJob,
    scratch: &Path,
    progress: &dyn Fn(&Progress),
) -> Result<Installed, SandboxError> {
    let scratch = prepare(scratch)?;
    if Arch::host() != Some(job.arch) {
        let why = format!("the packages are for {}, this host is another machine", job.arch);
        return Err(SandboxError::failed("choosing an architecture", why));
    }
    let task = Task::Install { job: job.clone(), scratch: scratch.clone() };
    run(task, &scratch, progress)
}

/// Runs scripts in a tree and captures it again. Contents that were there before stay in their packs.
///
/// # Errors
/// As for [`install`].
pub fn customise(
    tree: &Tree,
    packs: &dyn Packs,
    job: &CustomiseJob,
    scratch: &Path,
    progress: &dyn Fn(&Progress),
) -> Result<Installed, SandboxError> {
    let scratch = prepare(scratch)?;
    let dump = scratch.join(DUMP);
    fs::write(&dump, tree.dump()).map_err(FileError::at("can't write", &dump))?;
    let mut inherited = Vec::new();
    for digest in tree.packs() {
        let file =
            packs.open(&digest).map_err(|e| SandboxError::failed(format!("opening the pack {digest}"), e))?;
        inherited.push((
            digest,
            sys::Inherited::of(&file).map_err(|e| SandboxError::failed("passing on a pack", e))?,
        ));
    }
    let numbers = inherited.iter().map(|(digest, fd)| (*digest, fd.number())).collect();
    let task = Task::Customise { job: job.clone(), scratch: scratch.clone(), packs: numbers };
    run(task, &scratch, progress)
}

fn prepare(scratch: &Path) -> Result<PathBuf, SandboxError> {
    fs::create_dir_all(scratch).map_err(FileError::at("can't make the folder", scratch))?;
    let scratch = fs::canonicalize(scratch).map_err(FileError::at("can't find the folder", scratch))?;
    let root = scratch.join(ROOT);
    remove_tree(&root)?;
    // Other users of the sandbox must get through to what is theirs, whatever the caller's umask is.
    fs::DirBuilder::new().mode(0o755).create(&root).map_err(FileError::at("can't make the folder", &root))?;
    for name in [LOG, PACK] {
        let path = scratch.join(name);
        File::create(&path).map_err(FileError::at("can't make the file", &path))?;
    }
    Ok(scratch)
}

fn run(task: Task, scratch: &Path, progress: &dyn Fn(&Progress)) -> Result<Installed, SandboxError> {
    let log = scratch.join(LOG);
    let result = outer::run(tier()?, task, &log, progress);
    // The inner side has deleted it unless it failed.
    let removed = remove_tree(&scratch.join(ROOT));
    let Outcome { pack, timings } = result?;
    removed?;
    let dump = scratch.join(DUMP);
    let text = fs::read_to_string(&dump).map_err(FileError::at("can't read", &dump))?;
    let tree = Tree::parse(&text).map_err(|e| SandboxError::failed("reading the tree", e))?;
    let pack = pack.map(|(digest, size)| PackFile { path: scratch.join(PACK), digest, size });
    Ok(Installed { tree, pack, log, timings })
}
