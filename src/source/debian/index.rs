//! Package indexes (`Packages` files) of several archives, merged into one universe.
//!
//! The texts are borrowed; of each package only its name, version and provided names are taken up at first, all other
//! fields are read from its paragraph when they are asked for.

use std::collections::HashMap;
use std::fmt;

use super::control::{Paragraph, paragraphs};
use super::relation::{self, Relation};
use super::version::Version;
use crate::arch::Arch;
use crate::digest::Digest;
use crate::package::LockedPackage;

/// The archive name of `.deb` files of the profile's own.
pub const LOCAL: &str = "local";

/// One verified `Packages` file, with what the Release file above it says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IndexFile {
    /// The archive that holds it, or [`LOCAL`].
    pub archive: String,
    /// The suite as it was asked for, as in `trixie-backports`.
    pub suite: String,
    /// The component, as in `main`; empty for a flat repository.
    pub component: String,
    /// The architecture of the index.
    pub arch: String,
    /// The text of `Packages`.
    pub text: String,
    /// The release's origin.
    pub origin: String,
    /// The release's label.
    pub label: String,
    /// The release's own suite name, as in `stable`.
    pub release_suite: String,
    /// The release's codename.
    pub codename: String,
    /// The release's `NotAutomatic`: packages from here are not chosen by themselves.
    pub not_automatic: bool,
    /// The release's `ButAutomaticUpgrades`: … but upgraded.
    pub but_automatic_upgrades: bool,
}

/// A `.deb` of the profile's own, for [`IndexFile::local`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalPackage {
    /// The text of its `control` file.
    pub control: String,
    /// Path relative to the profile's folder.
    pub path: String,
    /// Size of the file in bytes.
    pub size: u64,
    /// Digest of the file.
    pub sha256: Digest,
}

impl IndexFile {
    /// An index of `.deb` files of the profile's own.
    #[must_use]
    pub fn local(packages: &[LocalPackage]) -> IndexFile {
        let mut text = String::new();
        for package in packages {
            let LocalPackage { control, path, size, sha256 } = package;
            text += &format!("{}\nFilename: {path}\nSize: {size}\nSHA256: {sha256}\n\n", control.trim());
        }
        IndexFile {
            archive: LOCAL.into(),
            suite: LOCAL.into(),
            codename: LOCAL.into(),
            text,
            ..Default::default()
        }
    }

    /// Whether `suite` names this index's suite, as asked for or as the release calls itself.
    #[must_use]
    pub fn is_of(&self, suite: &str) -> bool {
        [&self.suite, &self.release_suite, &self.codename].into_iter().any(|name| name == suite)
    }

    /// apt's priority of the versions that are in here, as long as no pin says otherwise (apt_preferences(5)).
    /// Packages of the profile's own go before all archives'.
    #[must_use]
    pub fn priority(&self) -> i32 {
        match (self.not_automatic, self.but_automatic_upgrades) {
            _ if self.archive == LOCAL => 990,
            (true, true) => 100,
            (true, false) => 1,
            (false, _) => 500,
        }
    }
}

/// An index that can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the package index {archive} {suite}/{component}, line {line}: {problem}")]
pub struct IndexError {
    /// Name of the archive.
    pub archive: String,
    /// Its suite.
    pub suite: String,
    /// Its component.
    pub component: String,
    /// Line in the index, counted from 1.
    pub line: usize,
    /// What is wrong there.
    pub problem: String,
}

/// Number of a package name in a [`Universe`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NameId(u32);

/// Number of a package version in a [`Universe`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId(u32);

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "package version {}", self.0)
    }
}

impl NameId {
    /// The number as an index below [`Universe::name_count`].
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// How important a package is for a usual system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Needed for the system to work.
    Required,
    /// Expected on any Unix-like system.
    Important,
    /// Makes a small usual system.
    Standard,
    /// All others.
    Optional,
    /// The deprecated lowest one, and whatever else is stated.
    #[default]
    Extra,
}

/// One version of a package.
#[derive(Debug, Clone)]
pub struct Entry<'a> {
    /// The package.
    pub name: NameId,
    /// Its version.
    pub version: &'a str,
    /// Whether `Multi-Arch: allowed` lets `name:any` mean it.
    pub any: bool,
    /// `Essential: yes`
    pub essential: bool,
    /// `Important: yes` or `Protected: yes`: not to be removed lightly.
    pub important: bool,
    /// `Priority`, the most important first (Debian Policy 2.5).
    pub priority: Priority,
    first: Place<'a>,
    /// Further indexes that have the very same package.
    others: Vec<Place<'a>>,
}

/// Where an entry stands.
#[derive(Debug, Clone, Copy)]
struct Place<'a> {
    file: u32,
    paragraph: Paragraph<'a>,
}

/// A package that provides a name.
#[derive(Debug, Clone, Copy)]
struct Provider<'a> {
    entry: EntryId,
    version: Option<&'a str>,
}

#[derive(Debug, Default)]
struct Name<'a> {
    text: &'a str,
    /// Its versions, newest first.
    entries: Vec<EntryId>,
    providers: Vec<Provider<'a>>,
    /// Providers of `name:any`.
    any_providers: Vec<Provider<'a>>,
}

/// All packages of several indexes, for one architecture. The order of the indexes is the order of preference where the
/// same version is in more than one.
#[derive(Debug)]
pub struct Universe<'a> {
    files: &'a [IndexFile],
    arch: Arch,
    ids: HashMap<&'a str, NameId>,
    names: Vec<Name<'a>>,
    entries: Vec<Entry<'a>>,
}

/// The fields of a paragraph that building the universe needs.
#[derive(Default)]
struct Head<'a> {
    name: &'a str,
    version: &'a str,
    arch: &'a str,
    provides: &'a str,
    multi_arch: &'a str,
    essential: bool,
    important: bool,
    priority: Priority,
}

impl<'a> Universe<'a> {
    /// Reads the packages of `arch` (and of all architectures) from `files`.
    ///
    /// # Errors
    /// An [`IndexError`] at the first paragraph that is malformed or lacks its name, version or architecture.
    pub fn new(files: &'a [IndexFile], arch: Arch) -> Result<Universe<'a>, IndexError> {
        let mut universe =
            Universe { files, arch, ids: HashMap::new(), names: Vec::new(), entries: Vec::new() };
        for (number, file) in files.iter().enumerate() {
            for paragraph in paragraphs(&file.text) {
                universe
                    .add(number as u32, paragraph)
                    .map_err(|(line, problem)| IndexError::new(file, paragraph, line, problem))?;
            }
        }
        for name in &mut universe.names {
            let version = |id: &EntryId| Version(universe.entries[id.0 as usize].version);
            name.entries.sort_by(|a, b| version(b).cmp(&version(a)));
        }
        Ok(universe)
    }

    fn add(&mut self, file: u32, paragraph: Paragraph<'a>) -> Result<(), (usize, String)> {
        let head = Head::read(paragraph)?;
        if head.arch != "all" && head.arch != self.arch.debian() {
            return Ok(());
        }
        let place = Place { file, paragraph };
        let name = self.intern(head.name);
        if let Some(same) = self.same_package(name, head.version, paragraph) {
            self.entries[same.0 as usize].others.push(place);
            return Ok(());
        }
        let id = EntryId(self.entries.len() as u32);
        let any = head.multi_arch == "allowed";
        self.entries.push(Entry {
            name,
            version: head.version,
            any,
            essential: head.essential,
            important: head.important,
            priority: head.priority,
            first: place,
            others: Vec::new(),
        });
        self.names[name.index()].entries.push(id);
        if any {
            self.names[name.index()].any_providers.push(Provider { entry: id, version: Some(head.version) });
        }
        if !head.provides.is_empty() {
            self.add_provides(id, head.provides, any)
                .map_err(|e| (1, format!("Provides of {} {}: {e}", head.name, head.version)))?;
        }
        Ok(())
    }

    fn add_provides(
        &mut self,
        entry: EntryId,
        field: &'a str,
        any: bool,
    ) -> Result<(), relation::RelationError> {
        for Relation { name, qualifier, constraint } in
            relation::parse(field, self.arch.debian())?.into_iter().flatten()
        {
            let provider = Provider { entry, version: constraint.map(|c| c.version) };
            let id = self.intern(name);
            let name = &mut self.names[id.index()];
            match qualifier {
                Some("any") => name.any_providers.push(provider),
                Some(arch) if arch != self.arch.debian() => {}
                _ => {
                    name.providers.push(provider);
                    if any {
                        name.any_providers.push(provider);
                    }
                }
            }
        }
        Ok(())
    }

    fn intern(&mut self, text: &'a str) -> NameId {
        *self.ids.entry(text).or_insert_with(|| {
            self.names.push(Name { text, ..Name::default() });
            NameId(self.names.len() as u32 - 1)
        })
    }

    /// The entry that already stands for the same bytes: same version, same digest.
    fn same_package(&self, name: NameId, version: &str, paragraph: Paragraph) -> Option<EntryId> {
        let entries = &self.names[name.index()].entries;
        let mut same = entries.iter().filter(|id| self.entries[id.0 as usize].version == version);
        same.find(|id| self.field(**id, "SHA256") == paragraph.get("SHA256")).copied()
    }

    /// The architecture that the packages are for.
    #[must_use]
    pub fn arch(&self) -> Arch {
        self.arch
    }

    /// The indexes that the universe was made of.
    #[must_use]
    pub fn files(&self) -> &'a [IndexFile] {
        self.files
    }

    /// How many names there are, of packages and virtual ones.
    #[must_use]
    pub fn name_count(&self) -> usize {
        self.names.len()
    }

    /// The number of a name, if any package has or provides it.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<NameId> {
        self.ids.get(name).copied()
    }

    /// The text of a name.
    #[must_use]
    pub fn name(&self, name: NameId) -> &'a str {
        self.names[name.index()].text
    }

    /// All names, in no order.
    pub fn names(&self) -> impl Iterator<Item = NameId> + use<> {
        (0..self.names.len() as u32).map(NameId)
    }

    /// The versions of a package, newest first; none for a name that is only provided.
    #[must_use]
    pub fn versions(&self, name: NameId) -> &[EntryId] {
        &self.names[name.index()].entries
    }

    /// A package version.
    #[must_use]
    pub fn entry(&self, id: EntryId) -> &Entry<'a> {
        &self.entries[id.0 as usize]
    }

    /// The name of an entry's package.
    #[must_use]
    pub fn name_of(&self, id: EntryId) -> &'a str {
        self.name(self.entry(id).name)
    }

    /// A field of an entry's paragraph.
    #[must_use]
    pub fn field(&self, id: EntryId, field: &str) -> Option<&'a str> {
        self.entry(id).first.paragraph.get(field)
    }

    /// The paragraph of an entry.
    #[must_use]
    pub fn paragraph(&self, id: EntryId) -> Paragraph<'a> {
        self.entry(id).first.paragraph
    }

    /// The indexes that have an entry, in their order.
    pub fn origins(&self, id: EntryId) -> impl Iterator<Item = &'a IndexFile> + '_ {
        let entry = self.entry(id);
        std::iter::once(&entry.first).chain(&entry.others).map(|place| &self.files[place.file as usize])
    }

    /// The entries that satisfy `relation`: the package itself, newest first, then those that provide its name.
    pub fn satisfying<'s>(&'s self, relation: &Relation<'s>) -> impl Iterator<Item = EntryId> + use<'s, 'a> {
        let native = self.arch.debian();
        let (relation, name) = (*relation, self.find(relation.name).map(|name| &self.names[name.index()]));
        let (real, providers): (&[EntryId], &[Provider]) = match (name, relation.qualifier) {
            (Some(name), None | Some("native")) => (&name.entries, &name.providers),
            (Some(name), Some("any")) => (&[], &name.any_providers),
            (Some(name), Some(arch)) if arch == native => (&name.entries, &name.providers),
            _ => (&[], &[]),
        };
        let real = real.iter().copied().filter(move |id| relation.holds(self.entry(*id).version));
        let provided =
            providers.iter().filter(move |p| relation.holds_for_provided(p.version)).map(|p| p.entry);
        real.chain(provided)
    }

    /// What a lock says of an entry.
    ///
    /// # Errors
    /// An [`IndexError`] when its paragraph lacks a path, size or digest.
    pub fn locked(&self, id: EntryId, manual: bool) -> Result<LockedPackage, IndexError> {
        let required = |field| self.field(id, field).ok_or_else(|| self.malformed(id, field));
        Ok(LockedPackage {
            name: self.name_of(id).to_owned(),
            version: self.entry(id).version.to_owned(),
            arch: required("Architecture")?.to_owned(),
            size: required("Size")?.parse().map_err(|_| self.malformed(id, "Size"))?,
            sha256: required("SHA256")?.parse().map_err(|_| self.malformed(id, "SHA256"))?,
            archive: self.files[self.entry(id).first.file as usize].archive.clone(),
            path: required("Filename")?.to_owned(),
            manual,
        })
    }

    fn malformed(&self, id: EntryId, field: &str) -> IndexError {
        let Place { file, paragraph } = self.entry(id).first;
        let problem = format!("{} {} has no usable {field}", self.name_of(id), self.entry(id).version);
        IndexError::new(&self.files[file as usize], paragraph, 1, problem)
    }
}

impl IndexError {
    /// `line` counts from 1 within the paragraph.
    fn new(file: &IndexFile, paragraph: Paragraph, line: usize, problem: String) -> IndexError {
        IndexError {
            archive: file.archive.clone(),
            suite: file.suite.clone(),
            component: file.component.clone(),
            line: file.text[..paragraph.offset].matches('\n').count() + line,
            problem,
        }
    }
}

impl Priority {
    fn read(text: &str) -> Priority {
        match text {
            "required" => Priority::Required,
            "important" => Priority::Important,
            "standard" => Priority::Standard,
            "optional" => Priority::Optional,
            _ => Priority::Extra,
        }
    }
}

impl<'a> Head<'a> {
    fn read(paragraph: Paragraph<'a>) -> Result<Head<'a>, (usize, String)> {
        let mut head = Head::default();
        for field in paragraph.fields() {
            let (name, value) = field.map_err(|e| (e.line, format!("`{}` is no `Field: value`", e.text)))?;
            match name {
                "Package" => head.name = value,
                "Version" => head.version = value,
                "Architecture" => head.arch = value,
                "Provides" => head.provides = value,
                "Multi-Arch" => head.multi_arch = value,
                "Essential" => head.essential = value == "yes",
                "Important" | "Protected" => head.important |= value == "yes",
                "Priority" => head.priority = Priority::read(value),
                _ => {}
            }
        }
        let missing = [("Package", head.name), ("Version", head.version), ("Architecture", head.arch)]
            .into_iter()
            .find(|(_, value)| value.is_empty());
        match missing {
            Some((field, _)) => Err((1, format!("the package has no {field}"))),
            None => Ok(head),
        }
    }
}
