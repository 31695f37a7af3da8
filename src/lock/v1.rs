//! Version 1 of the form on disk: reading and checking.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;
use toml::value::Datetime;

use crate::arch::Arch;
use crate::date::Timestamp;
use crate::digest::Digest;
use crate::lock::goals::{Goals, SourceGoal};
use crate::lock::{LOCAL, Lock, LockError, VERSION};
use crate::package::{LockedPackage, LockedRelease};
use crate::system::{Package, Pin};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireLock {
    #[serde(rename = "version")]
    _version: i64,
    goals: WireGoals,
    #[serde(default)]
    release: Vec<Spanned<WireRelease>>,
    image: WireSet,
    tools: WireSet,
    #[serde(rename = "vm-tools")]
    vm_tools: WireSet,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireSet {
    packages: Vec<Spanned<LockedPackage>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct WireGoals {
    name: String,
    arch: Arch,
    recommends: bool,
    #[serde(default)]
    local_debs: BTreeSet<String>,
    packages: BTreeMap<String, WirePackageGoal>,
    #[serde(default)]
    pins: BTreeMap<String, WirePin>,
    #[serde(default)]
    fetch: BTreeMap<String, Digest>,
    #[serde(default)]
    sources: BTreeMap<String, WireSource>,
    tools: WireTools,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WirePackageGoal {
    version: Option<String>,
    suite: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WirePin {
    version: Option<String>,
    suite: Option<String>,
    priority: i32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireSource {
    archive: String,
    suite: String,
    components: Vec<String>,
    pockets: BTreeSet<String>,
    #[serde(default)]
    keys: BTreeMap<String, Digest>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct WireTools {
    archive: String,
    suite: String,
    components: Vec<String>,
    pockets: BTreeSet<String>,
    #[serde(default)]
    keys: BTreeMap<String, Digest>,
    packages: BTreeSet<String>,
    vm_packages: BTreeSet<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct WireRelease {
    archive: String,
    suite: String,
    #[serde(default)]
    version: String,
    date: Spanned<Datetime>,
    valid_until: Option<Spanned<Datetime>>,
    sha256: Digest,
    signers: Vec<String>,
}

/// Turns places in the text into lines, and mistakes into errors.
struct Source<'a> {
    text: &'a str,
    file: &'a str,
}

impl Source<'_> {
    fn wrong(&self, at: Option<Range<usize>>, what: impl Into<String>) -> LockError {
        let offset = at.map_or(0, |range| range.start).min(self.text.len());
        let before = &self.text.as_bytes()[..offset];
        let line = memchr::memchr_iter(b'\n', before).count() + 1;
        LockError::Wrong { file: self.file.to_owned(), line, what: what.into() }
    }

    fn toml(&self, error: &toml::de::Error) -> LockError {
        if let Some(at) = self.text.find("\n<<<<<<<") {
            let what = "a merge left both sides here: take either side's lock and run `kiln lock`";
            return self.wrong(Some(at + 1..at + 1), what);
        }
        self.wrong(error.span(), error.message())
    }
}

pub(super) fn parse(text: &str, file: &str) -> Result<Lock, LockError> {
    #[derive(Deserialize)]
    struct Version {
        version: Option<Spanned<i64>>,
    }
    let source = Source { text, file };
    let head: Version = toml::from_str(text).map_err(|e| source.toml(&e))?;
    match head.version {
        None => return Err(source.wrong(None, "this is no lock: it has no `version`")),
        Some(found) if *found.get_ref() > VERSION => {
            return Err(LockError::Newer { file: file.to_owned(), found: *found.get_ref() });
        }
        Some(found) if *found.get_ref() != VERSION => {
            return Err(source.wrong(Some(found.span()), format!("there is no version {}", found.get_ref())));
        }
        Some(_) => {}
    }
    let wire: WireLock = toml::from_str(text).map_err(|e| source.toml(&e))?;
    let releases = releases(&source, wire.release)?;
    let goals = goals(wire.goals);
    let mut lock = Lock { goals, releases, ..Lock::default() };
    // Tools run on the machine that builds, which may have another architecture than the image.
    let (image, any) = ([lock.goals.arch], [Arch::Amd64, Arch::Arm64]);
    for (set, arches, packages) in [
        (wire.image, &image[..], &mut lock.packages),
        (wire.tools, &any, &mut lock.tools),
        (wire.vm_tools, &any, &mut lock.vm_tools),
    ] {
        *packages = check_packages(&source, set.packages, arches, &lock.releases)?;
    }
    lock.sort();
    Ok(lock)
}

fn goals(wire: WireGoals) -> Goals {
    let package = |(name, goal): (String, WirePackageGoal)| {
        (name, Package { enable: true, version: goal.version, suite: goal.suite })
    };
    let pin = |(name, pin): (String, WirePin)| {
        (name, Pin { version: pin.version, suite: pin.suite, priority: pin.priority })
    };
    let source = |(name, s): (String, WireSource)| {
        let WireSource { archive, suite, components, pockets, keys } = s;
        (name, SourceGoal { archive, suite, components, pockets, keys })
    };
    let WireTools { archive, suite, components, pockets, keys, packages, vm_packages } = wire.tools;
    Goals {
        name: wire.name,
        arch: wire.arch,
        recommends: wire.recommends,
        packages: wire.packages.into_iter().map(package).collect(),
        pins: wire.pins.into_iter().map(pin).collect(),
        local_debs: wire.local_debs,
        fetch: wire.fetch,
        sources: wire.sources.into_iter().map(source).collect(),
        tools: SourceGoal { archive, suite, components, pockets, keys },
        tool_packages: packages,
        vm_tool_packages: vm_packages,
    }
}

fn release(source: &Source, wire: Spanned<WireRelease>) -> Result<LockedRelease, LockError> {
    let at = wire.span();
    let wire = wire.into_inner();
    let time = |date: &Spanned<Datetime>| -> Result<Timestamp, LockError> {
        date.get_ref()
            .to_string()
            .parse()
            .map_err(|e: crate::date::DateError| source.wrong(Some(date.span()), e.to_string()))
    };
    let release = LockedRelease {
        archive: wire.archive,
        suite: wire.suite,
        version: wire.version,
        date: time(&wire.date)?,
        valid_until: wire.valid_until.as_ref().map(time).transpose()?,
        sha256: wire.sha256,
        signers: wire.signers,
    };
    let what = format!("release {} {}", release.archive, release.suite);
    if release.archive == LOCAL {
        return Err(source.wrong(Some(at), format!("{what}: `{LOCAL}` is no archive")));
    }
    if release.signers.is_empty() {
        return Err(source.wrong(Some(at), format!("{what}: nobody signed it")));
    }
    if let Some(until) = release.valid_until.filter(|until| *until < release.date) {
        return Err(
            source.wrong(Some(at), format!("{what}: valid until {until}, before its date {}", release.date))
        );
    }
    Ok(release)
}

fn releases(source: &Source, wire: Vec<Spanned<WireRelease>>) -> Result<Vec<LockedRelease>, LockError> {
    let mut seen = BTreeSet::new();
    let one = |wire: Spanned<WireRelease>| {
        let at = wire.span();
        let release = release(source, wire)?;
        if !seen.insert((release.archive.clone(), release.suite.clone())) {
            let what = format!("release {} {} is there twice", release.archive, release.suite);
            return Err(source.wrong(Some(at), what));
        }
        Ok(release)
    };
    wire.into_iter().map(one).collect()
}

fn check_packages(
    source: &Source,
    wire: Vec<Spanned<LockedPackage>>,
    arches: &[Arch],
    releases: &[LockedRelease],
) -> Result<Vec<LockedPackage>, LockError> {
    let mut seen = BTreeSet::new();
    let mut packages = Vec::with_capacity(wire.len());
    for spanned in wire {
        let at = spanned.span();
        let package = spanned.into_inner();
        let fault = fault(&package, arches, releases)
            .or_else(|| (!seen.insert(package.name.clone())).then(|| "it is there twice".to_owned()));
        if let Some(what) = fault {
            return Err(source.wrong(Some(at), format!("package {}: {what}", package.name)));
        }
        packages.push(package);
    }
    Ok(packages)
}

/// What is wrong with a package by itself.
fn fault(package: &LockedPackage, arches: &[Arch], releases: &[LockedRelease]) -> Option<String> {
    let LockedPackage { name, version, arch, size, archive, path, .. } = package;
    let lower = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    // Debian Policy 5.6.1 and 5.6.12.
    let good_name =
        name.bytes().next().is_some_and(lower) && name.bytes().all(|b| lower(b) || b"+-.".contains(&b));
    let good_version = version.bytes().next().is_some_and(|b| b.is_ascii_digit() || b.is_ascii_alphabetic())
        && version.bytes().all(|b| b.is_ascii_alphanumeric() || b".+-~:".contains(&b));
    if !good_name {
        return Some("this is no package's name".to_owned());
    }
    if !good_version {
        return Some(format!("`{version}` is no version"));
    }
    if arch != "all" && arches.iter().all(|a| a.debian() != arch) {
        let wanted = arches.iter().map(|a| a.debian()).collect::<Vec<_>>().join(" or ");
        return Some(format!("it is for {arch} instead of {wanted}"));
    }
    if *size == 0 {
        return Some("a size of 0".to_owned());
    }
    if archive != LOCAL && releases.iter().all(|r| r.archive != *archive) {
        return Some(format!("no release of its archive `{archive}` is locked"));
    }
    let leads_out = path.is_empty()
        || path.starts_with('/')
        || path.split('/').any(|part| part == ".." || part.is_empty())
        || path.contains(|c: char| c.is_control() || c == '\\');
    leads_out.then(|| format!("`{path}` is no path inside of an archive"))
}
