//! From sources to verified package indexes.
//!
//! For each suite of a source: the signed Release file, checked against the source's keys, and the `Packages` files that
//! it lists, checked by SHA-256. How bytes arrive is the business of a [`Transport`].

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;

use rayon::prelude::*;

use crate::arch::Arch;
use crate::date::Timestamp;
use crate::package::LockedRelease;
use crate::source::debian::index::IndexFile;
use crate::source::debian::release::{Expected, Listed, Release, ReleaseError};
use crate::source::debian::signature::{Keyring, SignatureError};
use crate::system::Source;

/// Largest `Packages` file that is unpacked when the release doesn't tell its size. Debian's main has 57 MB.
const LARGEST_INDEX: u64 = 1 << 30;

/// The signed files of a suite.
#[derive(Debug, Clone)]
pub enum SignedFiles {
    /// `InRelease`.
    Inline(Vec<u8>),
    /// `Release` and `Release.gpg`.
    Detached {
        /// The text.
        release: Vec<u8>,
        /// Its signature.
        signature: Vec<u8>,
    },
}

/// A file that is named by its digest.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The archive that has it.
    pub archive: String,
    /// Paths under which it may lie, relative to the archive's base, in the order in which they are tried.
    pub paths: Vec<String>,
    /// Its size and digest.
    pub listed: Listed,
    /// What the user calls it.
    pub label: String,
}

/// An address and why what it gave was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The address.
    pub url: String,
    /// What was wrong.
    pub reason: String,
}

/// Why a transport brought nothing.
#[derive(Debug)]
pub enum TransportError {
    /// No address gave anything that was taken.
    Unavailable(Vec<Refusal>),
    /// Something else, which further tries don't change: an interruption, a full disk.
    Other(Box<dyn std::error::Error + Send + Sync>),
}

/// Decides whether signed files are taken; a refusal makes the transport ask the next mirror.
pub type Accept<'a> = &'a mut dyn FnMut(&SignedFiles) -> Result<(), ReleaseError>;

/// Brings the bytes of archives, from whichever mirror has them.
pub trait Transport {
    /// Offers the signed files in `folder` of each of the archive's mirrors to `accept`, until it takes one.
    ///
    /// # Errors
    /// [`TransportError`]; the refusals hold one entry a mirror.
    fn signed(&self, archive: &str, folder: &str, accept: Accept) -> Result<(), TransportError>;

    /// The verified bytes of each wanted file, in the same order.
    ///
    /// # Errors
    /// [`TransportError`] when one of them can't be had.
    fn listed(&self, wanted: &[Wanted]) -> Result<Vec<Vec<u8>>, TransportError>;
}

/// Why an archive can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// No mirror has a Release file that is accepted.
    #[error("archive {archive}, suite {suite}: no mirror has a Release file that can be trusted{}", List(.refusals))]
    Release {
        /// The archive.
        archive: String,
        /// The suite.
        suite: String,
        /// Each mirror's fault.
        refusals: Vec<Refusal>,
    },
    /// No mirror of the archive is known.
    #[error("archive {0}: no mirror is known: name one with --mirror {0}=URL, or as `mirrors` of the source")]
    NoMirror(String),
    /// An index that no mirror has as the release says it is.
    #[error("the package lists can't be had{}", List(.0))]
    Index(Vec<Refusal>),
    /// The release lists no such index.
    #[error("archive {archive}, suite {suite}: the release lists no {path}")]
    NoIndex {
        /// The archive.
        archive: String,
        /// The suite.
        suite: String,
        /// The index.
        path: String,
    },
    /// An index that can't be unpacked.
    #[error("{label} can't be unpacked: {why}")]
    Unpack {
        /// Which index.
        label: String,
        /// What is wrong.
        why: String,
    },
    /// A key file that can't be used.
    #[error("archive {archive}: {source}")]
    Key {
        /// The archive.
        archive: String,
        /// What is wrong with it.
        source: SignatureError,
    },
    /// A key file that can't be read.
    #[error("archive {archive}: can't read the key file {file}: {why}")]
    KeyFile {
        /// The archive.
        archive: String,
        /// The file, as the profile names it.
        file: String,
        /// Why.
        why: String,
    },
    /// A name in a source that would lead out of the archive.
    #[error("archive {archive}: `{name}` is no name of a suite or component")]
    Name {
        /// The archive.
        archive: String,
        /// The name.
        name: String,
    },
    /// An interruption, a full disk, ….
    #[error(transparent)]
    Other(Box<dyn std::error::Error + Send + Sync>),
}

/// Refusals as an indented list.
struct List<'a>(&'a [Refusal]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|r| write!(f, "\n  {}: {}", r.url, r.reason))
    }
}

/// One suite of a source, with the archive that holds it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Suite {
    /// The archive's name.
    pub archive: String,
    /// The suite's name; one that ends in `/` is the path of a flat repository.
    pub suite: String,
}

/// The suites of a source: its own and those of its pockets that are on.
///
/// Debian keeps security in an archive of its own; every other pocket is a suite `SUITE-POCKET` beside the main one.
#[must_use]
pub fn suites(source: &Source) -> Vec<Suite> {
    let own = Suite { archive: source.archive.clone(), suite: source.suite.clone() };
    let pockets = source.pockets.iter().filter(|(_, on)| **on).map(|(pocket, _)| Suite {
        archive: match (source.archive.as_str(), pocket.as_str()) {
            ("debian", "security") => "debian-security".to_owned(),
            _ => source.archive.clone(),
        },
        suite: format!("{}-{pocket}", source.suite),
    });
    std::iter::once(own).chain(pockets).collect()
}

/// Reads a key file that a source names: its bytes, or why not.
pub type ReadKey<'a> = &'a dyn Fn(&str) -> Result<Vec<u8>, String>;

/// Brings sources up to date. One updater sees each release only once, so that the image's packages and the tools' come
/// from the same one.
pub struct Updater<'a> {
    transport: &'a dyn Transport,
    read_key: ReadKey<'a>,
    now: Timestamp,
    known: &'a [LockedRelease],
    seen: BTreeMap<(Suite, Vec<String>), Release>,
}

impl<'a> Updater<'a> {
    /// An updater at the time `now`. None of the releases may be older than in `known`, those of the previous lock.
    pub fn new(
        transport: &'a dyn Transport,
        read_key: ReadKey<'a>,
        now: Timestamp,
        known: &'a [LockedRelease],
    ) -> Updater<'a> {
        Updater { transport, read_key, now, known, seen: BTreeMap::new() }
    }

    /// The releases of the enabled `sources`, and the indexes of their packages for `arch`, in the sources' order.
    ///
    /// # Errors
    /// See [`ArchiveError`].
    pub fn update(
        &mut self,
        sources: &[&Source],
        arch: Arch,
    ) -> Result<(Vec<LockedRelease>, Vec<IndexFile>), ArchiveError> {
        let (mut releases, mut plans) = (Vec::<LockedRelease>::new(), Vec::<Plan>::new());
        for source in sources.iter().filter(|s| s.enable) {
            check_names(source)?;
            for suite in suites(source) {
                let release = self.release(source, &suite, arch)?;
                for plan in plan(source, &suite, &release, arch)? {
                    if plans.iter().all(|p| p.wanted.listed != plan.wanted.listed || p.file != plan.file) {
                        plans.push(plan);
                    }
                }
                let locked = locked(&suite, &release);
                if !releases.contains(&locked) {
                    releases.push(locked);
                }
            }
        }
        let wanted: Vec<Wanted> = plans.iter().map(|p| p.wanted.clone()).collect();
        let bytes = self.transport.listed(&wanted).map_err(|e| match e {
            TransportError::Unavailable(refusals) => ArchiveError::Index(refusals),
            TransportError::Other(e) => ArchiveError::Other(e),
        })?;
        let indexes = plans.into_par_iter().zip(bytes).map(|(plan, bytes)| plan.unpack(&bytes));
        Ok((releases, indexes.collect::<Result<_, _>>()?))
    }

    fn release(&mut self, source: &Source, suite: &Suite, arch: Arch) -> Result<Release, ArchiveError> {
        let expected = Expected {
            suite: &suite.suite,
            components: &source.components,
            arch,
            now: Some(self.now),
            known: self
                .known
                .iter()
                .find(|k| k.archive == suite.archive && k.suite == suite.suite)
                .map(|k| k.date),
        };
        let refused = |refusals| ArchiveError::Release {
            archive: suite.archive.clone(),
            suite: suite.suite.clone(),
            refusals,
        };
        let key = (suite.clone(), source.keys.clone());
        if let Some(release) = self.seen.get(&key) {
            let url = folder(&suite.suite);
            release.check(&expected).map_err(|e| refused(vec![Refusal { url, reason: e.to_string() }]))?;
            return Ok(release.clone());
        }
        let keyring = self.keyring(source)?;
        let mut taken = None;
        let mut accept = |files: &SignedFiles| {
            let release = match files {
                SignedFiles::Inline(bytes) => Release::from_inrelease(bytes, &keyring, self.now)?,
                SignedFiles::Detached { release, signature } => {
                    Release::from_detached(release, signature, &keyring, self.now)?
                }
            };
            release.check(&expected)?;
            taken = Some(release);
            Ok(())
        };
        let brought = self.transport.signed(&suite.archive, &folder(&suite.suite), &mut accept);
        match (brought, taken) {
            (Ok(()), Some(release)) => {
                self.seen.insert(key, release.clone());
                Ok(release)
            }
            (Err(TransportError::Other(e)), _) => Err(ArchiveError::Other(e)),
            (Err(TransportError::Unavailable(refusals)), _) if refusals.is_empty() => {
                Err(ArchiveError::NoMirror(suite.archive.clone()))
            }
            (Err(TransportError::Unavailable(refusals)), _) => Err(refused(refusals)),
            (Ok(()), None) => Err(ArchiveError::NoMirror(suite.archive.clone())),
        }
    }

    fn keyring(&self, source: &Source) -> Result<Keyring, ArchiveError> {
        let archive = || source.archive.clone();
        let bad = |e| ArchiveError::Key { archive: archive(), source: e };
        if source.keys.is_empty() {
            return Keyring::debian().map_err(bad);
        }
        let mut keyring = Keyring::default();
        for file in &source.keys {
            let unreadable = |why| ArchiveError::KeyFile { archive: archive(), file: file.clone(), why };
            keyring.add(file, &(self.read_key)(file).map_err(unreadable)?).map_err(bad)?;
        }
        Ok(keyring)
    }
}

/// Refuses names that would make other paths than those of the archive.
fn check_names(source: &Source) -> Result<(), ArchiveError> {
    let plain = |name: &str| {
        !name.is_empty()
            && !name.starts_with('/')
            && !name.split('/').any(|part| part == "..")
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.+~:/".contains(&b))
    };
    let names =
        [&source.archive, &source.suite].into_iter().chain(&source.components).chain(source.pockets.keys());
    match names.into_iter().find(|name| !plain(name)) {
        Some(name) => Err(ArchiveError::Name { archive: source.archive.clone(), name: name.clone() }),
        None => Ok(()),
    }
}

/// The folder of a suite's Release file, relative to the archive's base.
fn folder(suite: &str) -> String {
    match suite.strip_suffix('/') {
        Some(flat) => flat.trim_start_matches("./").trim_matches('.').to_owned(),
        None => format!("dists/{suite}"),
    }
}

fn locked(suite: &Suite, release: &Release) -> LockedRelease {
    LockedRelease {
        archive: suite.archive.clone(),
        suite: suite.suite.clone(),
        version: release.version.clone(),
        date: release.date,
        valid_until: release.valid_until,
        sha256: release.digest,
        signers: release.signers.clone(),
    }
}

/// An index that will be fetched.
struct Plan {
    wanted: Wanted,
    /// The index without its text.
    file: IndexFile,
    compression: Compression,
    /// Largest size of the text.
    limit: u64,
}

#[derive(Clone, Copy)]
enum Compression {
    Xz,
    Zstd,
    Gzip,
    None,
}

const COMPRESSIONS: [(&str, Compression); 4] = [
    (".xz", Compression::Xz),
    (".zst", Compression::Zstd),
    (".gz", Compression::Gzip),
    ("", Compression::None),
];

/// The indexes of a suite: one for each component and architecture.
fn plan(source: &Source, suite: &Suite, release: &Release, arch: Arch) -> Result<Vec<Plan>, ArchiveError> {
    if suite.suite.ends_with('/') {
        return Ok(vec![plan_one(suite, release, "", arch.debian(), "Packages")?]);
    }
    let mut plans = Vec::new();
    for component in &source.components {
        let path = |arch: &str| format!("{component}/binary-{arch}/Packages");
        plans.push(plan_one(suite, release, component, arch.debian(), &path(arch.debian()))?);
        // Some archives list what fits every architecture only once.
        let lists_all = release.architectures.iter().any(|a| a == "all") && !release.no_index_for_all;
        let all = path("all");
        if lists_all && COMPRESSIONS.iter().any(|(end, _)| release.files.contains_key(&format!("{all}{end}")))
        {
            plans.push(plan_one(suite, release, component, "all", &all)?);
        }
    }
    Ok(plans)
}

fn plan_one(
    suite: &Suite,
    release: &Release,
    component: &str,
    arch: &str,
    path: &str,
) -> Result<Plan, ArchiveError> {
    let found = COMPRESSIONS.iter().find_map(|&(end, compression)| {
        let name = format!("{path}{end}");
        release.files.get(&name).map(|&listed| (name, compression, listed))
    });
    let (name, compression, listed) = found.ok_or_else(|| ArchiveError::NoIndex {
        archive: suite.archive.clone(),
        suite: suite.suite.clone(),
        path: path.to_owned(),
    })?;
    let folder = folder(&suite.suite);
    let below = |path: &str| if folder.is_empty() { path.to_owned() } else { format!("{folder}/{path}") };
    let mut paths = Vec::new();
    if release.acquire_by_hash {
        let parent = name.rsplit_once('/').map_or(String::new(), |(parent, _)| format!("{parent}/"));
        paths.push(below(&format!("{parent}by-hash/SHA256/{}", listed.sha256)));
    }
    paths.push(below(&name));
    let label = format!("{} {} {name}", suite.archive, suite.suite);
    Ok(Plan {
        wanted: Wanted { archive: suite.archive.clone(), paths, listed, label },
        file: IndexFile {
            archive: suite.archive.clone(),
            suite: suite.suite.clone(),
            component: component.to_owned(),
            arch: arch.to_owned(),
            text: String::new(),
            origin: release.origin.clone(),
            label: release.label.clone(),
            release_suite: release.suite.clone(),
            codename: release.codename.clone(),
            not_automatic: release.not_automatic,
            but_automatic_upgrades: release.but_automatic_upgrades,
        },
        compression,
        limit: release.files.get(path).map_or(LARGEST_INDEX, |plain| plain.size),
    })
}

impl Plan {
    fn unpack(self, bytes: &[u8]) -> Result<IndexFile, ArchiveError> {
        let wrong = |why: String| ArchiveError::Unpack { label: self.wanted.label.clone(), why };
        let reader: Box<dyn Read + '_> = match self.compression {
            Compression::Xz => Box::new(liblzma::read::XzDecoder::new_multi_decoder(bytes)),
            Compression::Zstd => Box::new(zstd::Decoder::new(bytes).map_err(|e| wrong(e.to_string()))?),
            Compression::Gzip => Box::new(flate2::read::MultiGzDecoder::new(bytes)),
            Compression::None => Box::new(bytes),
        };
        let mut text = Vec::new();
        reader.take(self.limit + 1).read_to_end(&mut text).map_err(|e| wrong(e.to_string()))?;
        if text.len() as u64 > self.limit {
            return Err(wrong(format!("it is longer than the {} bytes that it should have", self.limit)));
        }
        // A description in another encoding must not make a whole archive unusable.
        let text =
            String::from_utf8(text).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned());
        Ok(IndexFile { text, ..self.file })
    }
}
