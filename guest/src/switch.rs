//! Adding a generation to a machine.
//!
//! In an order in which a cut at any moment leaves a machine that boots, and after which the same call finishes the work: the
//! system comes into the store, complete and checked, before anything names it; its entry appears under its name in one step; what is
//! too old goes last, its entry before its system. What was left unfinished has names that nobody looks at, and the next call
//! removes it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;
use sha2::{Digest, Sha256};

use crate::cmdline;
use crate::copy;
use crate::error::{At, FileError};
use crate::generation::{self, LONGEST_MANIFEST, Manifest, ManifestError};
use crate::generations::{Generation, INCOMING, LARGEST_UKI, Roots, Running};
use crate::menu::{Entry, EntryName, Standing, TRIES};
use crate::steps::{Steps, Stopped};
use crate::uki::NotAnImage;
use crate::ustar::{Archive, ArchiveError};
use crate::verity_device::{Image, SystemError};

/// What stays free on a partition: file systems that are full to the last block behave badly.
const SPARE: u64 = 1 << 20;

/// Why a generation can't be added.
#[derive(Debug, thiserror::Error)]
pub enum SwitchError {
    /// The file can't be read.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// A file is missing in it.
    #[error(
        "it is no generation file: `{0}` is not where it should be; `kiln build --format generation` writes them"
    )]
    NotThere(&'static str),
    /// Its manifest can't be read.
    #[error("its manifest can't be read: {0}")]
    Manifest(#[from] ManifestError),
    /// It is made for other machines.
    #[error("it is made for {theirs}, this machine is {ours}")]
    Architecture {
        /// What it is made for.
        theirs: String,
        /// What this machine is.
        ours: String,
    },
    /// Its kernel image can't be used.
    #[error("its kernel image can't be used: {0}")]
    Uki(#[from] NotAnImage),
    /// Its parts don't belong together.
    #[error(
        "its parts don't belong together: the kernel image says {key}={found}, but {expected} is expected"
    )]
    Mismatch {
        /// What differs.
        key: &'static str,
        /// What the kernel image says.
        found: String,
        /// What it should say.
        expected: String,
    },
    /// It looks for another partition than this machine has.
    #[error(
        "it looks for its store on partition {theirs}, this machine's is {ours}: build it from the profile that this machine's \
         image was built from"
    )]
    Partition {
        /// Which it looks for.
        theirs: String,
        /// Which there is.
        ours: String,
    },
    /// The system isn't the one that its name stands for.
    #[error("the system in it is damaged: it amounts to {found}, its name says {expected}")]
    Digest {
        /// What it amounts to.
        found: String,
        /// What it should amount to.
        expected: String,
    },
    /// The system doesn't verify.
    #[error(transparent)]
    System(#[from] SystemError),
    /// A partition has not enough room.
    #[error("{} has {free} MiB free, {needed} MiB are needed: {advice}", path.display())]
    Room {
        /// Where.
        path: PathBuf,
        /// What is free, in MiB.
        free: u64,
        /// What is needed, in MiB.
        needed: u64,
        /// What helps.
        advice: &'static str,
    },
    /// A file could not be used.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

impl From<FileError> for SwitchError {
    fn from(e: FileError) -> SwitchError {
        SwitchError::Stopped(e.into())
    }
}

/// The machine that gets a generation.
#[derive(Debug, Clone)]
pub struct Target {
    /// Its partitions.
    pub roots: Roots,
    /// Its architecture, as Debian names it.
    pub arch: String,
    /// Identity of its partition with the store, in lower case.
    pub partition: String,
    /// What runs on it.
    pub running: Running,
    /// How many generations it keeps.
    pub keep: usize,
}

/// What became of a generation file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Switched {
    /// The generation.
    pub generation: u32,
    /// What the boot menu calls it.
    pub title: String,
    /// What had to be done for it.
    pub outcome: Outcome,
    /// The generations that were removed.
    pub removed: Vec<u32>,
}

/// What had to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was added.
    Added,
    /// It was the newest one already.
    There,
    /// It was the newest one already and had not come up as often as it may be tried; it may be tried again.
    TriedAgain,
}

/// A generation file, read up to the system's bytes.
struct Incoming<R> {
    manifest: Manifest,
    uki: Vec<u8>,
    title: String,
    archive: Archive<R>,
}

/// Adds a generation from a generation file and makes it the one that is started next.
///
/// # Errors
/// [`SwitchError`]; the machine then boots as before.
pub fn switch(target: &Target, file: impl Read, steps: &mut Steps) -> Result<Switched, SwitchError> {
    let roots = &target.roots;
    let mut incoming = read(target, file)?;
    steps.step().map_err(Stopped::from)?;
    roots.remove_unfinished()?;
    bring_system(target, &mut incoming, steps)?;
    let Incoming { uki, title, .. } = incoming;
    let generations = roots.generations()?;
    let newest = generations.last();
    let (generation, outcome) = match newest.filter(|g| is_same(roots, g, &uki)) {
        Some(newest) => {
            let outcome = try_again(roots, newest, steps)?;
            (newest.number(), outcome)
        }
        None => {
            let number = newest.map_or(0, Generation::number) + 1;
            make_room(target, uki.len() as u64, steps)?;
            add_entry(roots, number, &uki, steps)?;
            (number, Outcome::Added)
        }
    };
    // Also when nothing was added: a call before this one may have been cut off.
    roots.write_menu(&[], steps)?;
    let removed = roots.prune(target.keep, &target.running, steps)?;
    Ok(Switched { generation, title, outcome, removed })
}

fn read<R: Read>(target: &Target, file: R) -> Result<Incoming<R>, SwitchError> {
    let mut archive = Archive::new(file);
    let text = part(&mut archive, generation::MANIFEST, LONGEST_MANIFEST)?;
    let manifest = Manifest::parse(&String::from_utf8_lossy(&text))?;
    if manifest.arch != target.arch {
        return Err(SwitchError::Architecture { theirs: manifest.arch, ours: target.arch.clone() });
    }
    let uki = part(&mut archive, generation::UKI, LARGEST_UKI)?;
    let entry = Entry::of(0, &uki)?;
    let arguments = cmdline::arguments(&entry.cmdline);
    let found = |key| cmdline::value(&arguments, key).unwrap_or_default().to_owned();
    for (key, expected) in
        [("kiln.system", manifest.system.clone()), ("kiln.roothash", manifest.roothash.to_string())]
    {
        let found = found(key);
        if found != expected {
            return Err(SwitchError::Mismatch { key, found, expected });
        }
    }
    let theirs = found("kiln.partition").to_ascii_lowercase();
    if theirs != target.partition {
        return Err(SwitchError::Partition { theirs, ours: target.partition.clone() });
    }
    match archive.next_file()? {
        Some(header) if header.name == generation::SYSTEM && header.size == manifest.size => {}
        _ => return Err(SwitchError::NotThere(generation::SYSTEM)),
    }
    Ok(Incoming { manifest, uki, title: entry.title, archive })
}

/// Reads the next file of an archive, which must have this name, into memory.
fn part<R: Read>(archive: &mut Archive<R>, name: &'static str, limit: u64) -> Result<Vec<u8>, SwitchError> {
    match archive.next_file()? {
        Some(header) if header.name == name && header.size <= limit => {
            let mut bytes = Vec::new();
            archive.take(limit).read_to_end(&mut bytes).map_err(ArchiveError::from)?;
            Ok(bytes)
        }
        _ => Err(SwitchError::NotThere(name)),
    }
}

fn digest_of(manifest: &Manifest) -> &str {
    manifest.system.split('-').next().unwrap_or_default()
}

/// Sees to it that the system is in the store, complete and checked.
fn bring_system<R: Read>(
    target: &Target,
    incoming: &mut Incoming<R>,
    steps: &mut Steps,
) -> Result<(), SwitchError> {
    let manifest = &incoming.manifest;
    let store = target.roots.store();
    let path = store.join(&manifest.system);
    if let Ok(mut file) = File::open(&path)
        && hash(&mut file, &mut io::sink()).at("read", &path)? == digest_of(manifest)
    {
        return Ok(());
    }
    fs::create_dir_all(&store).at("create", &store)?;
    require_room(&store, manifest.size, "remove what is not needed, or old states (state.old-*)")?;
    let new = store.join(format!("{INCOMING}{}", manifest.system));
    steps.step().map_err(Stopped::from)?;
    let mut file = OpenOptions::new().write(true).create_new(true).open(&new).at("create", &new)?;
    let found = hash(&mut incoming.archive, &mut file).at("write", &new)?;
    file.sync_all().at("write", &new)?;
    if found != digest_of(manifest) {
        copy::remove(&new)?;
        return Err(SwitchError::Digest { found, expected: digest_of(manifest).to_owned() });
    }
    let checked = Image::open(&new, manifest.roothash).and_then(|image| image.check_data());
    if let Err(e) = checked {
        copy::remove(&new)?;
        return Err(e.into());
    }
    steps.step().map_err(Stopped::from)?;
    fs::rename(&new, &path).at("create", &path)?;
    Ok(copy::sync(&store)?)
}

/// Copies all bytes; gives their SHA-256.
fn hash(from: &mut impl Read, to: &mut impl Write) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        let len = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(len) => len,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        hasher.update(&buffer[..len]);
        to.write_all(&buffer[..len])?;
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn free(path: &Path) -> Result<u64, FileError> {
    let found = statvfs(path).at("measure", path)?;
    Ok(found.blocks_available() * found.fragment_size())
}

fn require_room(path: &Path, needed: u64, advice: &'static str) -> Result<(), SwitchError> {
    let free = free(path)?;
    if free >= needed + SPARE {
        return Ok(());
    }
    let mib = |bytes: u64| bytes >> 20;
    Err(SwitchError::Room {
        path: path.to_owned(),
        free: mib(free),
        needed: mib(needed + 2 * SPARE - 1),
        advice,
    })
}

/// Lets the oldest generations go before the new one comes, when there is no room for both.
fn make_room(target: &Target, needed: u64, steps: &mut Steps) -> Result<(), SwitchError> {
    let roots = &target.roots;
    let entries = roots.entries();
    fs::create_dir_all(&entries).at("create", &entries)?;
    let mut keep = target.keep;
    while keep > 1 && free(&entries)? < needed + SPARE {
        keep -= 1;
        roots.prune_entries(keep, &target.running, steps)?;
    }
    require_room(&entries, needed, "remove what is not needed from the EFI system partition")
}

/// Whether a generation's entry is this unified kernel image.
fn is_same(roots: &Roots, generation: &Generation, uki: &[u8]) -> bool {
    let path = roots.entries().join(&generation.file);
    let same_size = fs::metadata(&path).is_ok_and(|metadata| metadata.len() == uki.len() as u64);
    same_size && fs::read(&path).is_ok_and(|bytes| bytes == uki)
}

fn try_again(roots: &Roots, newest: &Generation, steps: &mut Steps) -> Result<Outcome, SwitchError> {
    let exhausted = newest.name.tries.is_some_and(|tries| tries.left == 0)
        || (!newest.blessed() && newest.grub == Some(Standing::Left(0)));
    if !exhausted {
        return Ok(Outcome::There);
    }
    roots.let_try_again(newest, steps)?;
    Ok(Outcome::TriedAgain)
}

/// Writes a generation's entry: first what GRUB counts with, so that it never sees an entry without.
fn add_entry(roots: &Roots, number: u32, uki: &[u8], steps: &mut Steps) -> Result<(), Stopped> {
    roots.note(&[(number, Some(Standing::Left(TRIES)))], steps)?;
    roots.write_entry(EntryName::untried(number), uki, steps)
}
