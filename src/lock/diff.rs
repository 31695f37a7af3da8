//! What changed between two locks.

use std::collections::BTreeMap;
use std::fmt;

use crate::date::Timestamp;
use crate::lock::Lock;
use crate::package::LockedPackage;

/// A release that is another one now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleaseChange {
    /// The archive.
    pub archive: String,
    /// The suite.
    pub suite: String,
    /// Version and date before; `None` when it is new.
    pub old: Option<(String, Timestamp)>,
    /// Version and date now; `None` when it is gone.
    pub new: Option<(String, Timestamp)>,
}

/// A package whose version or bytes changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackageChange {
    /// The package.
    pub name: String,
    /// Its version before.
    pub old: String,
    /// Its version now; the same when only its bytes or its origin are others.
    pub new: String,
}

/// How a set of packages changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PackageDiff {
    /// New packages: name and version.
    pub added: Vec<(String, String)>,
    /// Packages that are gone: name and version.
    pub removed: Vec<(String, String)>,
    /// Packages that changed.
    pub changed: Vec<PackageChange>,
}

/// How a lock changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LockDiff {
    /// Releases.
    pub releases: Vec<ReleaseChange>,
    /// The image's packages.
    pub packages: PackageDiff,
    /// The packages of the tools that make the disk.
    pub tools: PackageDiff,
    /// The packages of the tools that boot it.
    pub vm_tools: PackageDiff,
}

/// What changed from `old` to `new`. Printed, it is one line a change.
#[must_use]
pub fn diff(old: &Lock, new: &Lock) -> LockDiff {
    LockDiff {
        releases: releases(old, new),
        packages: packages(&old.packages, &new.packages),
        tools: packages(&old.tools, &new.tools),
        vm_tools: packages(&old.vm_tools, &new.vm_tools),
    }
}

fn releases(old: &Lock, new: &Lock) -> Vec<ReleaseChange> {
    let by_suite = |lock: &Lock| -> BTreeMap<_, _> {
        lock.releases.iter().map(|r| ((r.archive.clone(), r.suite.clone()), r.clone())).collect()
    };
    let (old, new) = (by_suite(old), by_suite(new));
    let keys: std::collections::BTreeSet<_> = old.keys().chain(new.keys()).cloned().collect();
    let changed =
        keys.into_iter().filter(|key| old.get(key).map(|r| r.sha256) != new.get(key).map(|r| r.sha256));
    changed
        .map(|key| ReleaseChange {
            old: old.get(&key).map(|r| (r.version.clone(), r.date)),
            new: new.get(&key).map(|r| (r.version.clone(), r.date)),
            archive: key.0,
            suite: key.1,
        })
        .collect()
}

fn packages(old: &[LockedPackage], new: &[LockedPackage]) -> PackageDiff {
    let by_name = |set: &[LockedPackage]| -> BTreeMap<_, _> {
        set.iter().map(|p| (p.name.clone(), p.clone())).collect()
    };
    let (old, new) = (by_name(old), by_name(new));
    let entry = |p: &LockedPackage| (p.name.clone(), p.version.clone());
    let changed = new.values().filter_map(|n| {
        let o = old.get(&n.name)?;
        let change =
            || PackageChange { name: n.name.clone(), old: o.version.clone(), new: n.version.clone() };
        (o.version != n.version || o.sha256 != n.sha256).then(change)
    });
    PackageDiff {
        added: new.values().filter(|p| !old.contains_key(&p.name)).map(entry).collect(),
        removed: old.values().filter(|p| !new.contains_key(&p.name)).map(entry).collect(),
        changed: changed.collect(),
    }
}

impl PackageDiff {
    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty()
    }
}

impl LockDiff {
    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.releases.is_empty() && [&self.packages, &self.tools, &self.vm_tools].iter().all(|d| d.is_empty())
    }
}

impl fmt::Display for PackageDiff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for change in &self.changed {
            match change {
                PackageChange { name, old, new } if old == new => writeln!(f, "  {name} {old}: other bytes")?,
                PackageChange { name, old, new } => writeln!(f, "  {name} {old} → {new}")?,
            }
        }
        self.added.iter().try_for_each(|(name, version)| writeln!(f, "+ {name} {version}"))?;
        self.removed.iter().try_for_each(|(name, version)| writeln!(f, "- {name} {version}"))
    }
}

impl fmt::Display for LockDiff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |side: &Option<(String, Timestamp)>| match side {
            None => "none".to_owned(),
            Some((version, date)) if version.is_empty() => date.to_string(),
            Some((version, date)) => format!("{version} of {date}"),
        };
        for ReleaseChange { archive, suite, old, new } in &self.releases {
            writeln!(f, "release {archive} {suite}: {} → {}", show(old), show(new))?;
        }
        write!(f, "{}", self.packages)?;
        for (title, set) in [("tools:", &self.tools), ("tools for booting:", &self.vm_tools)] {
            if !set.is_empty() {
                write!(f, "{title}\n{set}")?;
            }
        }
        Ok(())
    }
}
