//! The content-addressed store: blobs by SHA-256, results of steps by the digest of their inputs, disk images,
//! unpacked trees, downloads under way, and the rooms in which steps work.
//!
//! ```text
//! format             the layout's version
//! lock               held shared by every process that has the store open, exclusively by a collection
//! blobs/ab/<sha256>  bytes, named by their digest, read-only
//! steps/ab/<key>     what a step made: outputs, facts, and the inputs whose digest the key is
//! images/<id>.raw    sparse disk images named by the digest of their blocks; <id>.json has the size
//! dirs/<key>         whole directory trees; <key>.json has the size
//! partial/<sha256>   downloads that can be resumed
//! targets/, roots/   inputs of each target's last build; outputs that a collection must keep
//! locks/<key>        held by the process that is working on a step
//! tmp/               scratch: swept once the process that owns it is gone
//! damaged/           what didn't have the digest that its name says
//! ```
//!
//! Everything gets its final name by a rename after its data was synced, so that neither `kill -9` nor a power cut
//! leaves wrong bytes under a right name (images are synced a little later: see `image.rs`). Several processes may use one store at once.

mod blob;
#[cfg(test)]
mod crash;
mod dir;
mod error;
mod gc;
mod image;
mod lock;
mod roots;
mod scratch;
mod step;
mod usage;
mod verify;

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use crate::digest::{Digest, hex};
use crate::host::fs::{FileError, write_atomically};
use crate::host::interrupt;
use crate::tree::Packs;
use crate::units::Bytes;

pub use blob::BlobWriter;
pub use error::{ROOMIER, StoreError};
pub use gc::{GcOptions, GcReport};
pub use lock::StepLock;
pub use roots::Root;
pub use scratch::{Remover, Scratch};
pub use step::{Change, Inputs, StepChange, StepResult, changes};
pub use usage::{Share, Usage};
pub use verify::{BlockDigest, VerifyProgress, VerifyReport};

/// What the file `format` says of a store of this layout.
const FORMAT: &str = "kiln store 1\n";

/// A use within this time of the last recorded one is not recorded again.
const USE_GRAIN: Duration = Duration::from_secs(60);

/// An open store. Cheap to share between threads; see the module's documentation.
pub struct Store {
    root: PathBuf,
    /// Locked shared for as long as the store is open.
    in_use: File,
    remover: Arc<Remover>,
    /// Where this process writes what has no final name yet; made when first needed.
    session: OnceLock<Scratch>,
    packs: Mutex<HashMap<Digest, Arc<File>>>,
    /// Threads that sync images.
    syncing: Mutex<Vec<JoinHandle<()>>>,
}

impl Store {
    /// Where the store lies unless the user says otherwise: `$KILN_STORE`, else `$XDG_CACHE_HOME/kiln`, else
    /// `~/.cache/kiln`.
    ///
    /// # Errors
    /// [`StoreError::NoHome`] when none of the variables is set.
    pub fn default_root() -> Result<PathBuf, StoreError> {
        root_by(|name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from))
    }

    /// Opens the store at `root`, making it when it isn't there, and removes what dead processes left in `tmp/`.
    ///
    /// # Errors
    /// When the folders can't be made, or were made by a version of Kiln with another layout.
    pub fn open(root: &Path) -> Result<Store, StoreError> {
        Store::open_with(root, Box::new(|path| fs::remove_dir_all(path)))
    }

    /// [`Store::open`] with a way to remove trees that hold files of other users, such as those of a user namespace.
    /// It is only called for trees that plain removal could not remove.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with(root: &Path, remover: Remover) -> Result<Store, StoreError> {
        let root = std::path::absolute(root).map_err(FileError::at("can't find", root))?;
        refuse_stranger(&root)?;
        make_dir(&root)?;
        Store::open_there(root, remover)
    }

    /// Opens the store at `root` for looking into it or clearing it up: nothing is made when there is none.
    ///
    /// # Errors
    /// [`StoreError::Absent`] when there is none; else as [`Store::open`].
    pub fn open_existing(root: &Path, remover: Remover) -> Result<Store, StoreError> {
        let root = std::path::absolute(root).map_err(FileError::at("can't find", root))?;
        refuse_stranger(&root)?;
        match root.join("format").try_exists() {
            Ok(false) => Err(StoreError::Absent(root)),
            _ => Store::open_there(root, remover),
        }
    }

    fn open_there(root: PathBuf, remover: Remover) -> Result<Store, StoreError> {
        let lock = root.join("lock");
        let in_use = File::options().create(true).append(true).open(&lock);
        let in_use = in_use.map_err(FileError::at("can't open", &lock))?;
        lock::wait_shared(&in_use, &lock)?;
        make_layout(&root)?;
        let remover = Arc::new(remover);
        scratch::sweep(&root.join("tmp"), &remover);
        let (packs, syncing) = (Mutex::default(), Mutex::default());
        Ok(Store { root, in_use, remover, session: OnceLock::new(), packs, syncing })
    }

    /// The store's folder, as an absolute path.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Refuses early when the store's file system has less than `need` free.
    ///
    /// # Errors
    /// [`StoreError::Full`] with both numbers.
    pub fn ensure_space(&self, need: Bytes) -> Result<(), StoreError> {
        let free = self.free_space()?;
        if free < need { Err(StoreError::full(&self.root, Some(need))) } else { Ok(()) }
    }

    /// How much this user can still write to the store's file system.
    ///
    /// # Errors
    /// When the file system can't be asked.
    pub fn free_space(&self) -> Result<Bytes, StoreError> {
        let stat = nix::sys::statvfs::statvfs(&self.root).map_err(io::Error::from);
        let stat = stat.map_err(FileError::at("can't ask for the free space of", &self.root))?;
        Ok(Bytes(stat.blocks_available() * stat.fragment_size()))
    }

    /// This process's own folder under `tmp/`, for files that have no final name yet.
    fn session(&self) -> Result<&Path, StoreError> {
        if let Some(session) = self.session.get() {
            return Ok(session.path());
        }
        let session = self.scratch("session")?;
        Ok(self.session.get_or_init(|| session).path())
    }

    /// `FOLDER/ab/abcd…`: the place of something that is named by a digest.
    fn fanned(&self, folder: &str, name: &Digest) -> PathBuf {
        self.root.join(folder).join(hex(&name.0[..1])).join(name.to_string())
    }

    /// The error for `path`, after a look at whether the disk was full; `need` is how much was to be written.
    fn wrong<'a>(
        &'a self,
        what: &'static str,
        path: &'a Path,
        need: Option<u64>,
    ) -> impl FnOnce(io::Error) -> StoreError + 'a {
        move |source| {
            let error = FileError::at(what, path)(source);
            if error.is_full() { StoreError::full(&self.root, need.map(Bytes)) } else { error.into() }
        }
    }
}

impl Packs for Store {
    fn open(&self, pack: &Digest) -> io::Result<Arc<File>> {
        let mut open = self.packs.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(file) = open.get(pack) {
            return Ok(file.clone());
        }
        let file = Arc::new(self.open_blob(pack).map_err(io::Error::other)?);
        open.insert(*pack, file.clone());
        Ok(file)
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("root", &self.root).finish_non_exhaustive()
    }
}

/// [`Store::default_root`] with the environment as a function.
fn root_by(var: impl Fn(&str) -> Option<PathBuf>) -> Result<PathBuf, StoreError> {
    if let Some(root) = var("KILN_STORE") {
        return Ok(root);
    }
    // Relative values are to be ignored (XDG Base Directory Specification 0.8).
    let cache = var("XDG_CACHE_HOME").filter(|p| p.is_absolute());
    let cache = cache.or_else(|| var("HOME").map(|home| home.join(".cache")));
    cache.map(|cache| cache.join("kiln")).ok_or(StoreError::NoHome)
}

/// Makes a folder and those above it, writable by nobody else whatever the umask is.
fn make_dir(path: &Path) -> Result<(), StoreError> {
    let made = DirBuilder::new().recursive(true).mode(0o755).create(path);
    Ok(made.map_err(FileError::at("can't make the folder", path))?)
}

/// What lies at the top of a store, or of a file system that was made for one.
const OWN: [&str; 14] = [
    "format",
    "lock",
    "blobs",
    "steps",
    "images",
    "dirs",
    "partial",
    "targets",
    "roots",
    "locks",
    "tmp",
    "damaged",
    "logs",
    "lost+found",
];

/// Refuses a folder that holds anything, yet is no store: it is somebody's. One that another process is making, or left
/// half made, holds nothing but folders of ours.
fn refuse_stranger(root: &Path) -> Result<(), StoreError> {
    if root.join("format").symlink_metadata().is_ok() {
        return Ok(());
    }
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(FileError::at("can't use as the store's folder", root)(e).into()),
    };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let strange = |name: &String| !OWN.contains(&name.as_str()) && !name.starts_with(".kiln-");
    match names.filter(strange).min() {
        None => Ok(()),
        Some(holds) => Err(StoreError::Stranger { path: root.to_owned(), holds }),
    }
}

/// Makes the folders of a new store, or checks that those of an old one are of this layout.
fn make_layout(root: &Path) -> Result<(), StoreError> {
    let format = root.join("format");
    match fs::read_to_string(&format) {
        Ok(text) if text == FORMAT => return Ok(()),
        Ok(text) => {
            return Err(StoreError::Format { path: root.to_owned(), found: text.trim().to_owned() });
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(FileError::at("can't read", &format)(e).into()),
    }
    for folder in ["images", "dirs", "partial", "targets", "roots", "locks", "tmp", "damaged"] {
        make_dir(&root.join(folder))?;
    }
    for byte in 0..=255 {
        make_dir(&root.join("blobs").join(hex(&[byte])))?;
        make_dir(&root.join("steps").join(hex(&[byte])))?;
    }
    write_atomically(&format, FORMAT.as_bytes())?;
    Ok(())
}

/// Records that `path` was used now. Best effort: it only steers what a collection drops first.
fn touch(path: &Path) {
    let now = SystemTime::now();
    let Ok(file) = File::open(path) else { return };
    let recent = file
        .metadata()
        .and_then(|m| m.modified())
        .is_ok_and(|last| now.duration_since(last).is_ok_and(|ago| ago < USE_GRAIN));
    if !recent {
        let _ = file.set_modified(now);
    }
}

/// Stops a long loop once the user asked for it.
fn check_interrupt() -> Result<(), StoreError> {
    interrupt::check().map_err(StoreError::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A store in a temporary folder, which goes with the first value: in memory where that can be had, since each
    /// file is synced.
    pub(super) fn temporary() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let store = Store::open(&folder.path().join("store")).unwrap();
        (folder, store)
    }

    #[test]
    fn the_environment_says_where() {
        let with = |vars: &[(&str, &str)]| {
            let vars: HashMap<String, PathBuf> =
                vars.iter().map(|(k, v)| ((*k).to_owned(), PathBuf::from(v))).collect();
            root_by(|name| vars.get(name).cloned()).ok()
        };
        let all = [("KILN_STORE", "/s"), ("XDG_CACHE_HOME", "/x"), ("HOME", "/h")];
        assert_eq!(with(&all), Some("/s".into()));
        assert_eq!(with(&all[1..]), Some("/x/kiln".into()));
        assert_eq!(with(&all[2..]), Some("/h/.cache/kiln".into()));
        assert_eq!(with(&[("XDG_CACHE_HOME", "rel"), ("HOME", "/h")]), Some("/h/.cache/kiln".into()));
        assert_eq!(with(&[]), None);
    }

    #[test]
    fn another_layout_is_refused() {
        let (_folder, store) = temporary();
        fs::write(store.root().join("format"), "kiln store 9\n").unwrap();
        let error = Store::open(store.root()).unwrap_err();
        assert!(matches!(&error, StoreError::Format { found, .. } if found == "kiln store 9"), "{error}");
    }

    #[test]
    fn somebody_elses_folder_is_refused_and_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let look = |root: &Path| Store::open_existing(root, Box::new(|path| fs::remove_dir_all(path)));
        let absent = folder.path().join("absent");
        assert!(matches!(look(&absent).unwrap_err(), StoreError::Absent(path) if path == absent));
        assert!(matches!(look(folder.path()).unwrap_err(), StoreError::Absent(_)));
        fs::write(folder.path().join("thesis.tex"), "").unwrap();
        for error in [look(folder.path()).unwrap_err(), Store::open(folder.path()).unwrap_err()] {
            assert!(matches!(&error, StoreError::Stranger { holds, .. } if holds == "thesis.tex"), "{error}");
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let half = folder.path().join("half");
        fs::create_dir_all(half.join("blobs/00")).unwrap();
        Store::open(&half).unwrap();
        look(&half).unwrap();
        let file = folder.path().join("thesis.tex");
        assert!(Store::open(&file).unwrap_err().to_string().contains("can't use as the store's folder"));
    }

    #[test]
    fn too_little_space_is_said_before_anything_is_written() {
        let (_folder, store) = temporary();
        store.ensure_space(Bytes(1)).unwrap();
        let error = store.ensure_space(Bytes(1 << 60)).unwrap_err();
        assert!(matches!(error, StoreError::Full { need: Some(Bytes(n)), .. } if n == 1 << 60));
        assert!(error.to_string().contains("1048576 TiB"), "{error}");
    }

    #[test]
    fn packs_are_read_from_blobs() {
        let (_folder, store) = temporary();
        let pack = store.put_bytes(b"abcdef").unwrap();
        let content = crate::tree::Content::Packed { pack, offset: 2, len: 3, sha256: Digest::of(b"cde") };
        assert_eq!(content.read(&store).unwrap(), b"cde");
        assert!(Packs::open(&store, &Digest([0; 32])).is_err());
    }

    #[test]
    fn finished_blobs_are_read_only() {
        let (_folder, store) = temporary();
        let blob = store.put_bytes(b"x").unwrap();
        let mode = fs::metadata(store.blob_path(&blob)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o444);
    }
}
