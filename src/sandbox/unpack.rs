//! Unpacks packages in parallel. What comes out doesn't depend on how many workers there are, nor on which is faster.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use super::error::{Doing, Failure, Inner};
use super::extract::{Claim, DirMeta, Owners, Root, Writer};
use super::wire::Teller;
use crate::source::debian::deb::{Control, Deb, DebError, Entry, EntryKind};
use crate::source::debian::dpkg::{self, Ids, Meta, Unpacked};
use crate::tree::TreePath;

/// A package before it is unpacked.
pub(super) struct Package {
    pub path: PathBuf,
    pub size: u64,
    pub meta: Meta,
    pub control: Control,
    conffiles: BTreeSet<TreePath>,
    /// Whether it is unpacked only after all preinst scripts ran, because its own diverts files of others. At first true
    /// of essential ones as well; they are never late.
    pub late: bool,
    /// The file of one that may be late stays open, as its path leads nowhere once the tree is the root.
    file: Option<File>,
}

/// What unpacking of one package told.
#[derive(Default)]
struct Told {
    paths: Vec<TreePath>,
    md5: BTreeMap<TreePath, String>,
    dirs: Vec<(TreePath, DirMeta)>,
    /// Paths that turned out to be another package's: whose list they leave, and the path.
    lost: Vec<(usize, TreePath)>,
}

/// How names of owners become numbers.
#[derive(Default)]
pub(super) struct Names {
    users: Ids,
    groups: Ids,
}

impl Names {
    /// Reads what base-passwd ships.
    pub fn read(root: &Root) -> Inner<Names> {
        let read = |name: &str| -> Inner<Ids> {
            let path = format!("usr/share/base-passwd/{name}.master");
            let bytes = root.read(path.as_bytes()).doing_at("reading", path.as_bytes())?;
            Ok(Ids::parse(&String::from_utf8_lossy(&bytes.unwrap_or_default())))
        };
        Ok(Names { users: read("passwd")?, groups: read("group")? })
    }
}

fn failure(path: &std::path::Path, why: impl ToString) -> Failure {
    Failure::Package { path: path.to_owned(), why: why.to_string() }
}

/// How many threads work.
pub(super) fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(8)
}

/// Calls `work` for every number below `count` on several threads; the results in order, or the first error in order.
pub(super) fn parallel<T: Send>(
    count: usize,
    workers: usize,
    work: impl Fn(usize) -> Inner<T> + Sync,
) -> Inner<Vec<T>> {
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let results: Mutex<Vec<Option<Inner<T>>>> = Mutex::new((0..count).map(|_| None).collect());
    let run = || {
        while !stop.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                break;
            }
            let result = work(index);
            stop.fetch_or(result.is_err(), Ordering::Relaxed);
            results.lock().unwrap_or_else(std::sync::PoisonError::into_inner)[index] = Some(result);
        }
    };
    if workers <= 1 || count <= 1 {
        run();
    } else {
        std::thread::scope(|scope| {
            for _ in 0..workers.min(count) {
                scope.spawn(run);
            }
        });
    }
    let results = results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    // An error stops the others, so that what is missing lies behind one at most.
    let mut done = Vec::with_capacity(count);
    let mut missing = 0;
    for result in results {
        match result {
            Some(result) => done.push(result?),
            None => missing += 1,
        }
    }
    if missing == 0 {
        Ok(done)
    } else {
        Err(Failure::Failed { doing: "working".into(), why: "a thread was lost".into() })
    }
}

/// Reads the control parts.
pub(super) fn read_all(paths: &[PathBuf]) -> Inner<Vec<Package>> {
    parallel(paths.len(), workers(), |index| {
        let path = &paths[index];
        let read = || -> Result<Package, DebError> {
            let control = Deb::open(path)?.control()?;
            let meta = Meta::of(&control)?;
            let conffiles = dpkg::conffiles(&control).into_iter().map(|c| c.path).collect();
            // Those that divert files, and those that ask whether their own AppArmor profile was there before.
            let diverts = control
                .text("preinst")
                .is_some_and(|script| script.contains("dpkg-divert") || script.contains("/etc/apparmor.d/"));
            let size = std::fs::metadata(path)?.len();
            let file = if diverts { Some(File::open(path)?) } else { None };
            Ok(Package { path: path.clone(), size, late: diverts, file, meta, control, conffiles })
        };
        read().map_err(|e| failure(path, e))
    })
}

/// The state of unpacking all packages of a tree.
pub(super) struct Unpacker<'a> {
    pub root: &'a Root,
    pub packages: &'a [Package],
    /// Position of each package in the order of configuration: of two that ship one directory the first decides.
    pub rank: Vec<usize>,
    pub names: Names,
    pub owners: Owners,
    pub teller: &'a Teller,
    told: Vec<Told>,
}

/// Whether files are written or only looked at, as of packages that are written later.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    Write,
    Look,
}

impl<'a> Unpacker<'a> {
    pub fn new(
        root: &'a Root,
        packages: &'a [Package],
        rank: Vec<usize>,
        teller: &'a Teller,
    ) -> Unpacker<'a> {
        let told = packages.iter().map(|_| Told::default()).collect();
        Unpacker { root, packages, rank, names: Names::default(), owners: Owners::default(), teller, told }
    }

    /// The same, writing below another view of the root.
    pub fn moved_to<'b>(self, root: &'b Root) -> Unpacker<'b>
    where
        'a: 'b,
    {
        Unpacker { root, ..self }
    }

    /// Unpacks all but the late packages: base-files with its links and base-passwd with its names first.
    pub fn unpack_early(&mut self) -> Inner<()> {
        let total: u64 = self.packages.iter().map(|p| p.size).sum();
        let first = ["base-files", "base-passwd"];
        let (head, mut rest): (Vec<usize>, Vec<usize>) =
            (0..self.packages.len()).partition(|&i| first.contains(&self.packages[i].meta.name.as_str()));
        rest.sort_by_key(|&i| (std::cmp::Reverse(self.packages[i].size), i));
        for index in head {
            self.told[index] = self.one(index, Pass::Write, &BTreeMap::new())?;
        }
        self.names = Names::read(self.root)?;
        let done = AtomicU64::new(0);
        let this = &*self;
        let told = parallel(rest.len(), workers(), |at| {
            let package = &this.packages[rest[at]];
            let pass = if package.late { Pass::Look } else { Pass::Write };
            let told = this.one(rest[at], pass, &BTreeMap::new())?;
            let done = done.fetch_add(package.size, Ordering::Relaxed) + package.size;
            this.teller.progress("unpack", done, total, &package.meta.name);
            Ok(told)
        })?;
        for (index, told) in rest.into_iter().zip(told) {
            self.told[index] = told;
        }
        self.finish_dirs(|package| !package.late)
    }

    /// Unpacks the late packages, one after the other, their files put where diversions say.
    pub fn unpack_late(&mut self) -> Inner<()> {
        let text = self
            .root
            .read(b"var/lib/dpkg/diversions")
            .doing("reading dpkg's diversions")?
            .unwrap_or_default();
        let diversions = dpkg::diversions(&text);
        for (from, (to, by)) in &diversions {
            self.owners.moved(from, to, self.packages.iter().position(|p| p.meta.name == *by));
        }
        let mut late: Vec<usize> = (0..self.packages.len()).filter(|&i| self.packages[i].late).collect();
        late.sort_by_key(|&i| self.rank[i]);
        for index in late {
            let name = &self.packages[index].meta.name;
            let others = diversions
                .iter()
                .filter(|(_, (_, by))| by != name)
                .map(|(from, (to, _))| (from.clone(), to.clone()));
            self.told[index] = self.one(index, Pass::Write, &others.collect())?;
        }
        self.finish_dirs(|package| package.late)
    }

    /// Gives directories their metadata: of several packages that ship one, the first in rank decides.
    fn finish_dirs(&self, which: impl Fn(&Package) -> bool) -> Inner<()> {
        let mut order: Vec<usize> = (0..self.packages.len()).filter(|&i| which(&self.packages[i])).collect();
        order.sort_by_key(|&i| self.rank[i]);
        let mut dirs: BTreeMap<&TreePath, DirMeta> = BTreeMap::new();
        for index in order {
            for (path, meta) in &self.told[index].dirs {
                dirs.entry(path).or_insert(*meta);
            }
        }
        for (path, meta) in dirs.into_iter().rev() {
            self.root.finish_dir(path, meta).doing_at("setting the mode of", path)?;
        }
        Ok(())
    }

    /// What dpkg's database has to know.
    pub fn unpacked(&self) -> Vec<Unpacked> {
        let mut lost: BTreeMap<usize, BTreeSet<&TreePath>> = BTreeMap::new();
        for (index, path) in self.told.iter().flat_map(|t| &t.lost) {
            lost.entry(*index).or_default().insert(path);
        }
        let list = |index: usize, told: &Told| {
            let gone = lost.get(&index);
            told.paths.iter().filter(|p| gone.is_none_or(|g| !g.contains(p))).cloned().collect()
        };
        let one = |(index, package): (usize, &Package)| Unpacked {
            meta: package.meta.clone(),
            control: package.control.clone(),
            paths: list(index, &self.told[index]),
            md5: self.told[index].md5.clone(),
        };
        self.packages.iter().enumerate().map(one).collect()
    }

    fn one(&self, index: usize, pass: Pass, diversions: &BTreeMap<TreePath, TreePath>) -> Inner<Told> {
        let package = &self.packages[index];
        let mut told = Told::default();
        let mut writer = Writer::new(self.root, true);
        let mut each = |mut entry: Entry, reader: &mut dyn Read| {
            entry.uid = self.names.users.of(&entry.user, entry.uid);
            entry.gid = self.names.groups.of(&entry.group, entry.gid);
            self.entry(index, pass, &entry, reader, diversions, &mut writer, &mut told)
        };
        let open = || match &package.file {
            Some(file) => Deb::new(BufReader::new(file.try_clone()?)),
            None => Deb::open(&package.path),
        };
        let mut deb = open().map_err(|e| failure(&package.path, e))?;
        match deb.data::<Stop>(&mut each) {
            Ok(()) => Ok(told),
            Err(Stop::Deb(e)) => Err(failure(&package.path, e)),
            Err(Stop::Inner(failure)) => Err(failure),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the state of one package's pass, in one place")]
    fn entry(
        &self,
        index: usize,
        pass: Pass,
        entry: &Entry,
        reader: &mut dyn Read,
        diversions: &BTreeMap<TreePath, TreePath>,
        writer: &mut Writer<'_>,
        told: &mut Told,
    ) -> Result<(), Stop> {
        let package = &self.packages[index];
        told.paths.push(entry.path.clone());
        if entry.kind == EntryKind::Dir {
            // Of early packages each counts, whichever was faster; late ones find the directories of others finished.
            if pass == Pass::Write
                && (writer.dir(&entry.path).doing_at("making", &entry.path)? || !package.late)
            {
                told.dirs.push((
                    entry.path.clone(),
                    DirMeta { mode: entry.mode, owner: Some((entry.uid, entry.gid)), mtime: None },
                ));
            }
            return Ok(());
        }
        let mut bytes = Vec::new();
        let conffile = package.conffiles.contains(&entry.path) && matches!(entry.kind, EntryKind::File(_));
        if conffile {
            reader.read_to_end(&mut bytes).map_err(DebError::Io)?;
            told.md5.insert(entry.path.clone(), dpkg::md5_hex(&bytes));
        }
        if pass == Pass::Look {
            return Ok(());
        }
        let path = diversions.get(&entry.path).unwrap_or(&entry.path);
        let replaces =
            |a: usize, b: usize| self.packages[a].meta.replaces.contains(&self.packages[b].meta.name);
        let replace = match self.owners.claim(path, index, replaces) {
            Claim::Free => false,
            Claim::Taken(other) => {
                told.lost.push((other, entry.path.clone()));
                true
            }
            Claim::Lost(_) => {
                told.lost.push((index, entry.path.clone()));
                return Ok(());
            }
            Claim::Clash(other) => {
                let other = &self.packages[other].meta.name;
                let why = format!("it holds /{}, which {other} holds as well", String::from_utf8_lossy(path));
                return Err(Stop::Inner(failure(&package.path, why)));
            }
        };
        let written = if conffile {
            writer.entry(path, entry, &mut bytes.as_slice(), replace)
        } else {
            writer.entry(path, entry, reader, replace)
        };
        match written {
            // The package that replaces this one took the path over between the claim and the writing.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && self.owners.owner(path) != Some(index) => {
                told.lost.push((index, entry.path.clone()));
                Ok(())
            }
            other => Ok(other.doing_at("unpacking", path)?),
        }
    }
}

/// Why the walk over a package's entries stops.
pub(super) enum Stop {
    Deb(DebError),
    Inner(Failure),
}

impl From<DebError> for Stop {
    fn from(e: DebError) -> Stop {
        Stop::Deb(e)
    }
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Stop {
        Stop::Inner(failure)
    }
}
