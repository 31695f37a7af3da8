//! What of a profile a lock answers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::arch::Arch;
use crate::digest::Digest;
use crate::system::{Package, Pin, Set, Source, System};

/// The part of a system that decides which packages are locked.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Goals {
    /// The system's name.
    pub name: String,
    /// Target architecture.
    pub arch: Arch,
    /// Whether recommended packages are installed as well.
    pub recommends: bool,
    /// The packages wanted by name, the kernel's among them; all of them enabled.
    pub packages: Set<Package>,
    /// apt's pins.
    pub pins: Set<Pin>,
    /// Paths of the profile's own `.deb` files.
    pub local_debs: BTreeSet<String>,
    /// Files that are fetched: the path in the image and the digest. The URL is transport.
    pub fetch: BTreeMap<String, Digest>,
    /// The enabled sources by name.
    pub sources: Set<SourceGoal>,
    /// The source of the tools.
    pub tools: SourceGoal,
    /// The tools that make the disk.
    pub tool_packages: BTreeSet<String>,
    /// The tools that boot it.
    pub vm_tool_packages: BTreeSet<String>,
}

/// What of a source decides over packages: not its mirrors.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceGoal {
    /// The archive's name.
    pub archive: String,
    /// The suite.
    pub suite: String,
    /// The components, in the order of the profile.
    pub components: Vec<String>,
    /// The pockets that are on.
    pub pockets: BTreeSet<String>,
    /// The key files, by their names beside the profile, and what is in them.
    pub keys: BTreeMap<String, Digest>,
}

impl SourceGoal {
    fn of(source: &Source, keys: &BTreeMap<String, Digest>) -> SourceGoal {
        SourceGoal {
            archive: source.archive.clone(),
            suite: source.suite.clone(),
            components: source.components.clone(),
            pockets: source.pockets.iter().filter(|(_, on)| **on).map(|(name, _)| name.clone()).collect(),
            keys: source.keys.iter().filter_map(|k| Some((k.clone(), *keys.get(k)?))).collect(),
        }
    }
}

impl fmt::Display for SourceGoal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.archive, self.suite)?;
        self.components.iter().try_for_each(|c| write!(f, " {c}"))?;
        self.pockets.iter().try_for_each(|p| write!(f, " +{p}"))?;
        self.keys.iter().try_for_each(|(name, sha256)| write!(f, " (key {name} {})", sha256.short()))
    }
}

impl Goals {
    /// The goals of `system`. `keys` holds the digest of each key file that a source names; `tools` and `vm_tools` name the
    /// packages that this program takes its own tools from.
    #[must_use]
    pub fn of(system: &System, keys: &BTreeMap<String, Digest>, tools: &[&str], vm_tools: &[&str]) -> Goals {
        let mut packages: Set<Package> =
            system.packages.iter().filter(|(_, p)| p.enable).map(|(n, p)| (n.clone(), p.clone())).collect();
        if !system.kernel.package.is_empty() {
            let kernel = packages.entry(system.kernel.package.clone());
            kernel.or_insert_with(|| Package { enable: true, ..Package::default() });
        }
        let names = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect();
        Goals {
            name: system.name.clone(),
            arch: system.arch,
            recommends: system.recommends,
            packages,
            pins: system.pins.clone(),
            local_debs: system.local_debs.values().filter(|d| d.enable).map(|d| d.path.clone()).collect(),
            fetch: system
                .fetch
                .iter()
                .filter(|(_, f)| f.enable)
                .map(|(p, f)| (p.clone(), f.sha256))
                .collect(),
            sources: system
                .sources
                .iter()
                .filter(|(_, s)| s.enable)
                .map(|(name, source)| (name.clone(), SourceGoal::of(source, keys)))
                .collect(),
            tools: SourceGoal::of(&system.tools, keys),
            tool_packages: names(tools),
            vm_tool_packages: names(vm_tools),
        }
    }

    /// In what these goals, which are locked, differ from `wanted`. The name decides over nothing.
    pub(super) fn compare(&self, wanted: &Goals) -> Vec<Reason> {
        let mut reasons = Vec::new();
        let mut plain = |what: &str, locked: String, wanted: String| {
            if locked != wanted {
                reasons.push(Reason::Changed { what: what.to_owned(), locked, wanted });
            }
        };
        let on = |on| if on { "on" } else { "off" }.to_owned();
        plain("arch", self.arch.to_string(), wanted.arch.to_string());
        plain("recommends", on(self.recommends), on(wanted.recommends));
        plain("tools", self.tools.to_string(), wanted.tools.to_string());
        compare_sets("source", &self.sources, &wanted.sources, SourceGoal::to_string, &mut reasons);
        compare_sets("package", &self.packages, &wanted.packages, show_package, &mut reasons);
        compare_sets("pin", &self.pins, &wanted.pins, show_pin, &mut reasons);
        compare_sets("fetch", &self.fetch, &wanted.fetch, |d| d.short(), &mut reasons);
        for (what, locked, wanted) in [
            ("local .deb", &self.local_debs, &wanted.local_debs),
            ("tool", &self.tool_packages, &wanted.tool_packages),
            ("tool for booting", &self.vm_tool_packages, &wanted.vm_tool_packages),
        ] {
            let name = |n: &String| format!("{what} {n}");
            reasons.extend(wanted.difference(locked).map(|n| Reason::NotLocked(name(n))));
            reasons.extend(locked.difference(wanted).map(|n| Reason::NotWanted(name(n))));
        }
        reasons
    }
}

fn compare_sets<T: PartialEq>(
    what: &str,
    locked: &BTreeMap<String, T>,
    wanted: &BTreeMap<String, T>,
    show: impl Fn(&T) -> String,
    reasons: &mut Vec<Reason>,
) {
    for (name, goal) in wanted {
        let what = format!("{what} {name}");
        match locked.get(name) {
            None => reasons.push(Reason::NotLocked(what)),
            Some(known) if known != goal => {
                reasons.push(Reason::Changed { what, locked: show(known), wanted: show(goal) });
            }
            Some(_) => {}
        }
    }
    let gone = locked.keys().filter(|name| !wanted.contains_key(*name));
    reasons.extend(gone.map(|name| Reason::NotWanted(format!("{what} {name}"))));
}

fn show_package(package: &Package) -> String {
    match (&package.version, &package.suite) {
        (None, None) => "any version".to_owned(),
        (Some(version), None) => format!("version {version}"),
        (None, Some(suite)) => format!("from {suite}"),
        (Some(version), Some(suite)) => format!("version {version} from {suite}"),
    }
}

fn show_pin(pin: &Pin) -> String {
    let version = pin.version.iter().map(|v| format!("version {v}, "));
    let suite = pin.suite.iter().map(|s| format!("suite {s}, "));
    version.chain(suite).chain([format!("priority {}", pin.priority)]).collect()
}

/// One thing in which a lock doesn't answer a profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// The profile wants it, the lock doesn't have it.
    NotLocked(String),
    /// The lock has it, the profile no longer wants it.
    NotWanted(String),
    /// Both have it, differently.
    Changed {
        /// What it is.
        what: String,
        /// How it is locked.
        locked: String,
        /// How it is wanted.
        wanted: String,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::NotLocked(what) => write!(f, "{what} is wanted and not locked"),
            Reason::NotWanted(what) => write!(f, "{what} is locked and no longer wanted"),
            Reason::Changed { what, locked, wanted } => {
                write!(f, "{what}: locked is {locked}, wanted is {wanted}")
            }
        }
    }
}

/// A lock that no longer answers its profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsatisfied {
    /// The system's name.
    pub name: String,
    /// Each difference.
    pub reasons: Vec<Reason>,
}

impl std::error::Error for Unsatisfied {}

impl fmt::Display for Unsatisfied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the lock of {} no longer fits its profile:", self.name)?;
        self.reasons.iter().try_for_each(|reason| write!(f, "\n  {reason}"))?;
        write!(f, "\nlock it anew with `kiln lock PROFILE`")
    }
}
