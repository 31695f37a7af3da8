//! [`Profile`] → [`Locked`]: archives are read, packages resolved, the lock written beside the profile.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{BakeError, Profile, Session};
use crate::date::Timestamp;
use crate::digest::Digest;
use crate::fetch::{Options, Remote};
use crate::host::fs::{FileError, write_atomically};
use crate::lock::{Goals, LOCAL, Lock, LockDiff, LockError, diff};
use crate::package::LockedPackage;
use crate::rootfs::Near;
use crate::source::debian::archive::Updater;
use crate::source::debian::control::paragraphs;
use crate::source::debian::deb::Deb;
use crate::source::debian::index::{IndexFile, LocalPackage, Universe};
use crate::source::debian::resolve::{Request, ResolveError, resolve};
use crate::system::{DiskLayout, Package, Pin, Set, System};

/// A profile with the lock that answers it.
pub struct Locked {
    /// The profile.
    pub profile: Profile,
    /// Its lock.
    pub lock: Lock,
}

impl Locked {
    /// The time stamped on what Kiln writes, in seconds since 1970.
    #[must_use]
    pub fn epoch(&self) -> i64 {
        self.profile.system().epoch.or_else(|| Some(self.lock.newest_date()?.0)).unwrap_or_default()
    }

    /// What the store calls builds of this profile, for comparing one with the last.
    #[must_use]
    pub fn target(&self) -> String {
        let path = std::path::absolute(&self.profile.path).unwrap_or_else(|_| self.profile.path.clone());
        path.to_string_lossy().into_owned()
    }
}

/// Which packages may change when a lock is made anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Update {
    /// None that still fits: only what the profile newly asks for.
    Needed,
    /// All of them, to what the archives have now.
    All,
    /// These, and what they take along.
    Packages(Vec<String>),
}

/// A lock that was made anew.
pub struct LockUpdate {
    /// Where it was written.
    pub path: PathBuf,
    /// What changed.
    pub changes: LockDiff,
    /// Whether there was a lock before.
    pub first: bool,
    /// The profile with its new lock.
    pub locked: Locked,
}

/// The priority of a pin that keeps a package where it is: enough to hold even a higher version of an archive off.
const KEEP: i32 = 1001;

impl Session<'_> {
    /// The profile with its lock: the one beside it, or a new one when there is none yet.
    ///
    /// # Errors
    /// When the lock is damaged or no longer answers the profile.
    pub fn locked(&self, profile: Profile) -> Result<Locked, BakeError> {
        let path = profile.lock_path();
        let Some(lock) = read_lock(&path)? else {
            if let Some(option) = self.lock_is_fixed() {
                return Err(BakeError::NoLock { path, option });
            }
            self.watch.say("locking", &format!("{} is not there yet", path.display()));
            return Ok(self.update_lock(profile, &Update::All)?.locked);
        };
        match lock.satisfies(&goals(&profile)?) {
            Ok(()) => Ok(Locked { profile, lock }),
            Err(reasons) => Err(BakeError::Stale { path, reasons }),
        }
    }

    /// The option by which locks may not be made anew.
    fn lock_is_fixed(&self) -> Option<&'static str> {
        match (self.locked_only, self.offline) {
            (true, _) => Some("locked"),
            (false, true) => Some("offline"),
            (false, false) => None,
        }
    }

    /// The lock that is there, when it answers the profile: what can be said of it without asking archives.
    fn unchanged_lock(&self, profile: Profile, update: &Update) -> Result<LockUpdate, BakeError> {
        if *update != Update::Needed {
            return Err(BakeError::FixedLock);
        }
        let path = profile.lock_path();
        let locked = self.locked(profile)?;
        Ok(LockUpdate { path, changes: LockDiff::default(), first: false, locked })
    }

    /// The profile with the lock beside it; none is made.
    ///
    /// # Errors
    /// [`BakeError::Unlocked`] when there is none; else as [`Session::locked`].
    pub fn locked_already(&self, profile: Profile) -> Result<Locked, BakeError> {
        let path = profile.lock_path();
        match path.try_exists() {
            Ok(false) => Err(BakeError::Unlocked { path, profile: profile.path }),
            _ => self.locked(profile),
        }
    }

    /// Resolves the profile against its archives as they are now and writes the lock. When they are not to be asked, the lock
    /// that is there must do.
    ///
    /// # Errors
    /// When an archive can't be had or trusted, or the packages can't be resolved; the old lock stays then.
    pub fn update_lock(&self, profile: Profile, update: &Update) -> Result<LockUpdate, BakeError> {
        if self.lock_is_fixed().is_some() {
            return self.unchanged_lock(profile, update);
        }
        let path = profile.lock_path();
        let old = read_lock(&path)?;
        if let (Some(old), Update::Packages(names)) = (&old, update) {
            are_known(names, &profile, old)?;
        }
        let lock = self.resolve(&profile, old.as_ref(), update)?;
        let changes = diff(old.as_ref().unwrap_or(&Lock::default()), &lock);
        if old.as_ref() != Some(&lock) {
            write_atomically(&path, lock.print().as_bytes())?;
        }
        let first = old.is_none();
        Ok(LockUpdate { path, changes, first, locked: Locked { profile, lock } })
    }

    fn resolve(&self, profile: &Profile, old: Option<&Lock>, update: &Update) -> Result<Lock, BakeError> {
        let system = profile.system();
        let mirrors = self.mirrors_of(system)?;
        let task = self.watch.task("reading", "package lists", 0);
        let progress = |p: crate::fetch::Progress| task.at(p.bytes_done, "package lists");
        let remote = Remote {
            mirrors: &mirrors,
            kept: &|digest: &Digest| self.store.blob_path(digest),
            partial: &|digest: &Digest| self.store.partial_path(digest),
            options: Options { progress: Some(&progress), ..Options::default() },
        };
        let read_key = |name: &str| profile.files.read(name).map_err(|e| e.to_string());
        let known = old.map(|l| l.releases.clone()).unwrap_or_default();
        let mut updater = Updater::new(&remote, &read_key, Timestamp::now(), &known);
        let sources: Vec<_> = system.sources.values().collect();
        let (mut releases, mut indexes) = updater.update(&sources, system.arch)?;
        let (tool_releases, tool_indexes) = updater.update(&[&system.tools], host_arch(system))?;
        releases.extend(tool_releases.into_iter().filter(|r| !releases.contains(r)).collect::<Vec<_>>());
        let locals = local_packages(profile)?;
        indexes.push(IndexFile::local(&locals));
        drop(task);

        let task = self.watch.task("resolving", "packages", 0);
        let pins = pins(system, old, update);
        let universe = Universe::new(&indexes, system.arch).map_err(ResolveError::from)?;
        let goals = goals(profile)?;
        let wanted = &goals.packages;
        let request = Request { wanted, recommends: system.recommends, pins: &pins, essential: true };
        let packages = resolve(&universe, &request)?;
        drop(universe);
        for local in unused(&locals, &packages) {
            let name = paragraphs(&local.control).next().and_then(|p| p.get("Package")).unwrap_or_default();
            let why = "is not installed: nothing asks for it, or an archive has a higher version";
            let help = format!("`packages.\"{name}\" = {{}}` asks for it");
            self.watch.say("warning", &format!("the local package {name} ({}) {why}; {help}", local.path));
        }
        let universe = Universe::new(&tool_indexes, host_arch(system)).map_err(ResolveError::from)?;
        let tools = |names: &[&str]| {
            let request = Request {
                wanted: &wanted_names(names),
                recommends: false,
                pins: &Set::new(),
                essential: false,
            };
            resolve(&universe, &request).map_err(BakeError::Tools)
        };
        let mut lock = Lock {
            goals,
            releases,
            packages,
            tools: tools(&disk_tools(system))?,
            vm_tools: tools(&vm_tools())?,
        };
        drop(task);
        lock.sort();
        Ok(lock)
    }
}

/// Local packages that resolving didn't choose.
fn unused<'a>(
    locals: &'a [LocalPackage],
    chosen: &[LockedPackage],
) -> impl Iterator<Item = &'a LocalPackage> {
    let chosen: BTreeSet<String> =
        chosen.iter().filter(|p| p.archive == LOCAL).map(|p| p.path.clone()).collect();
    locals.iter().filter(move |local| !chosen.contains(&local.path))
}

/// Refuses names that neither the lock nor the profile has.
fn are_known(names: &[String], profile: &Profile, old: &Lock) -> Result<(), BakeError> {
    let wanted = profile.system().packages.iter().filter(|(_, p)| p.enable).map(|(name, _)| name.as_str());
    let locked = old.packages.iter().map(|p| p.name.as_str());
    let known: BTreeSet<&str> = wanted.chain(locked).collect();
    match names.iter().find(|name| !known.contains(name.as_str())) {
        None => Ok(()),
        Some(name) => {
            let near = Near::of(name, known.iter().copied());
            Err(BakeError::NotLocked { name: name.clone(), near })
        }
    }
}

/// The lock at `path`, if there is one.
fn read_lock(path: &Path) -> Result<Option<Lock>, BakeError> {
    let wrong = || FileError::at("can't read", path);
    match fs::metadata(path) {
        Ok(meta) if meta.is_file() => {}
        Ok(_) => return Err(wrong()(io::Error::other("it is no regular file")).into()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(wrong()(e).into()),
    }
    let bytes = fs::read(path).map_err(wrong())?;
    let file = path.display().to_string();
    let text = std::str::from_utf8(&bytes).map_err(|e| {
        let line = 1 + memchr::memchr_iter(b'\n', &bytes[..e.valid_up_to()]).count();
        LockError::Wrong { file: file.clone(), line, what: "it is no text in UTF-8".to_owned() }
    })?;
    Ok(Some(Lock::parse(text, &file)?))
}

/// What the lock of a profile must answer.
pub(super) fn goals(profile: &Profile) -> Result<Goals, BakeError> {
    let system = profile.system();
    let sources = system.sources.values().filter(|s| s.enable).chain([&system.tools]);
    let mut keys = BTreeMap::new();
    for name in sources.flat_map(|source| &source.keys) {
        keys.insert(name.clone(), profile.files.digest(name)?.0);
    }
    Ok(Goals::of(system, &keys, &disk_tools(system), &vm_tools()))
}

/// base-files holds the links of the merged /usr, through which programs find their loader.
fn disk_tools(system: &System) -> Vec<&'static str> {
    let of_store: &[&str] = match system.disk.layout {
        DiskLayout::Mutable => &[],
        DiskLayout::Store => &crate::image::STORE_TOOL_PACKAGES,
    };
    [&["base-files"][..], &crate::image::TOOL_PACKAGES, of_store].concat()
}

fn vm_tools() -> Vec<&'static str> {
    [&["base-files"][..], crate::vm::TOOL_PACKAGES].concat()
}

/// Tools run on this machine, whatever the image is for.
fn host_arch(system: &System) -> crate::arch::Arch {
    crate::arch::Arch::host().unwrap_or(system.arch)
}

fn wanted_names(names: &[&str]) -> Set<Package> {
    names.iter().map(|&n| (n.to_owned(), Package { enable: true, ..Package::default() })).collect()
}

/// The profile's pins, and one for each locked package that is to stay as it is.
fn pins(system: &System, old: Option<&Lock>, update: &Update) -> Set<Pin> {
    let mut pins: BTreeMap<String, Pin> = BTreeMap::new();
    let stays = |name: &str| match update {
        Update::Needed => true,
        Update::All => false,
        Update::Packages(names) => !names.iter().any(|n| n == name),
    };
    for package in old.iter().flat_map(|l| &l.packages).filter(|p| stays(&p.name)) {
        let pin = Pin { version: Some(package.version.clone()), suite: None, priority: KEEP };
        pins.insert(package.name.clone(), pin);
    }
    pins.extend(system.pins.iter().map(|(name, pin)| (name.clone(), pin.clone())));
    pins
}

fn local_packages(profile: &Profile) -> Result<Vec<LocalPackage>, BakeError> {
    let debs = profile.system().local_debs.values().filter(|d| d.enable);
    debs.map(|local| {
        let (sha256, size) = profile.files.digest(&local.path)?;
        let path = profile.files.resolve(&local.path)?;
        let wrong = |source| BakeError::LocalDeb { path: path.clone(), source };
        let control = Deb::open(&path).and_then(|mut deb| deb.control()).map_err(wrong)?;
        let control = control.text("control").unwrap_or_default();
        Ok(LocalPackage { control, path: local.path.clone(), size, sha256 })
    })
    .collect()
}
