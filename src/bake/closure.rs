//! Locked packages → verified files in the store, and the tools trees made of some of them.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::{BakeError, Locked, Session};
use crate::digest::Digest;
use crate::fetch::{Download, Options, Progress, download};
use crate::lock::LOCAL;
use crate::package::LockedPackage;
use crate::sandbox;
use crate::store::{Inputs, StepResult};
use crate::system::{Fetch, System};

/// Which programs of the tools tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolSet {
    /// Those that make the disk.
    Disk,
    /// Those that boot it.
    Vm,
}

impl Session<'_> {
    /// Sees to it that every one of `packages` is in the store, fetching what is missing; their files in the same order.
    pub(super) fn realise(
        &self,
        locked: &Locked,
        packages: &[LockedPackage],
    ) -> Result<Vec<PathBuf>, BakeError> {
        // What is about to be installed is read anyway; a damaged one is moved aside and counts as missing.
        let digests: Vec<Digest> = packages.iter().map(|p| p.sha256).collect();
        self.store.check_blobs(&digests)?;
        let mut missing = Vec::new();
        for package in packages.iter().filter(|p| !self.store.has_size(&p.sha256, p.size)) {
            if package.archive == LOCAL {
                self.adopt_local(locked, package)?;
            } else {
                missing.push(package);
            }
        }
        if !missing.is_empty() {
            let mirrors = self.mirrors_of(locked.profile.system())?;
            let wanted = missing.iter().map(|p| {
                let date = locked.lock.archive_date(&p.archive).unwrap_or_default();
                Download {
                    size: Some(p.size),
                    urls: mirrors.urls(&p.archive, &p.path),
                    snapshot: mirrors.snapshot_urls(&p.archive, date, &p.path),
                    label: format!("{} {}", p.name, p.version),
                    ..self.download_of(p.sha256)
                }
            });
            self.fetch("packages", wanted.collect())?;
        }
        Ok(packages.iter().map(|p| self.store.blob_path(&p.sha256)).collect())
    }

    /// Sees to it that the profile's fetched files are in the store.
    pub(super) fn realise_fetched(&self, files: &[&Fetch]) -> Result<(), BakeError> {
        self.store.check_blobs(&files.iter().map(|f| f.sha256).collect::<Vec<_>>())?;
        let missing = files.iter().filter(|f| !self.store.contains(&f.sha256));
        let wanted: Vec<Download> = missing
            .map(|f| Download {
                urls: vec![f.url.clone()],
                label: f.url.clone(),
                ..self.download_of(f.sha256)
            })
            .collect();
        if wanted.is_empty() { Ok(()) } else { self.fetch("files", wanted) }
    }

    fn download_of(&self, sha256: Digest) -> Download {
        Download {
            sha256,
            size: None,
            urls: Vec::new(),
            snapshot: Vec::new(),
            partial: self.store.partial_path(&sha256),
            target: self.store.blob_path(&sha256),
            label: String::new(),
        }
    }

    /// The session's mirrors, and those that the system's sources name.
    pub(super) fn mirrors_of(&self, system: &System) -> Result<crate::fetch::Mirrors, BakeError> {
        let mut mirrors = self.mirrors.clone();
        for source in system.sources.values().chain([&system.tools]) {
            mirrors.add_source(source)?;
        }
        Ok(mirrors)
    }

    fn fetch(&self, what: &str, wanted: Vec<Download>) -> Result<(), BakeError> {
        if self.offline {
            let first = wanted.first().map(|d| d.label.clone()).unwrap_or_default();
            return Err(BakeError::Offline { count: wanted.len(), first });
        }
        // Another build may want the same files; what it has fetched meanwhile is not fetched again.
        let _lock = self.store.lock_name("downloads", &self.waiting("downloads"))?;
        let bytes = wanted.iter().filter_map(|d| d.size).sum();
        self.store.ensure_space(crate::units::Bytes(bytes))?;
        let text = format!("{} {what}", wanted.len());
        let task = self.watch.task("fetching", &text, bytes);
        let progress =
            |p: Progress| task.at(p.bytes_done, &format!("{} of {} {what}", p.files_done, p.files));
        download(wanted, &Options { progress: Some(&progress), ..Options::default() })?;
        Ok(())
    }

    fn adopt_local(&self, locked: &Locked, package: &LockedPackage) -> Result<(), BakeError> {
        let bytes = locked.profile.files.read(&package.path)?;
        let found = self.store.put_bytes(&bytes)?;
        if found == package.sha256 {
            return Ok(());
        }
        let (locked, found) = (package.sha256.short(), found.short());
        Err(BakeError::LocalChanged { path: package.path.clone(), locked, found })
    }

    /// The step that unpacks a set of tools.
    pub(super) fn tools_inputs(locked: &Locked, set: ToolSet) -> Inputs {
        let (step, packages) = match set {
            ToolSet::Disk => ("tools", &locked.lock.tools),
            ToolSet::Vm => ("vm-tools", &locked.lock.vm_tools),
        };
        package_fields(Inputs::new(step, 1), packages)
    }

    /// The folder of unpacked tools.
    ///
    /// # Errors
    /// When their packages can't be fetched or unpacked.
    pub fn tools(&self, locked: &Locked, set: ToolSet) -> Result<PathBuf, BakeError> {
        let inputs = Self::tools_inputs(locked, set);
        let key = inputs.key();
        let packages = match set {
            ToolSet::Disk => &locked.lock.tools,
            ToolSet::Vm => &locked.lock.vm_tools,
        };
        let result = self.store.step(&inputs, &self.waiting("tools"), || {
            let debs = self.realise(locked, packages)?;
            let _task = self.watch.task("unpacking", "tools", 0);
            let scratch = self.store.scratch("tools")?;
            let folder = scratch.path().join("tree");
            sandbox::unpack_tools(&debs, &folder)?;
            self.store.adopt_dir(&folder, &key)?;
            Ok::<_, BakeError>(StepResult {
                outputs: [("tree".to_owned(), key)].into(),
                ..StepResult::default()
            })
        })?;
        let kept = result.output("tree").and_then(|key| self.store.dir(&key));
        kept.ok_or(BakeError::Kept { what: "tools", why: "its folder is gone".into() })
    }

    /// What to call when another Kiln is at the same step.
    pub(super) fn waiting(&self, step: &'static str) -> impl Fn() + '_ {
        move || self.watch.say("waiting", &format!("another kiln is making the step `{step}`"))
    }
}

/// Adds each package as an input of its own, so that a change can be told by its name.
pub(super) fn package_fields(inputs: Inputs, packages: &[LockedPackage]) -> Inputs {
    packages.iter().fold(inputs, |inputs, p| {
        let manual = if p.manual { " manual" } else { "" };
        let value = format!("{} {} {}{manual}", p.version, p.arch, p.sha256);
        inputs.with(format!("package {}", p.name), value)
    })
}

/// Everything of a lock that a build may take from the store: what a root keeps.
pub(super) fn package_digests(locked: &Locked) -> BTreeSet<Digest> {
    locked.lock.all_packages().map(|p| p.sha256).collect()
}
