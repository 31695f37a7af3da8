//! Blobs: immutable bytes named by their SHA-256.

use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use tempfile::NamedTempFile;

use super::{Store, StoreError, touch};
use crate::digest::{Digest, Hasher};
use crate::host::fs::FileError;

/// What is written reaches the file in pieces of this many bytes.
const BUFFER: usize = 256 << 10;

/// After so many bytes a sync is begun beside the writing, so that little is left to sync at the end.
const SYNC_EVERY: u64 = 32 << 20;

/// A blob that is being written. Dropped unfinished, it leaves nothing.
pub struct BlobWriter<'a> {
    store: &'a Store,
    file: BufWriter<NamedTempFile>,
    hasher: Hasher,
    size: u64,
    /// The size at which the next sync begins.
    sync_at: u64,
    syncing: Option<JoinHandle<io::Result<()>>>,
}

impl Write for BlobWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        self.size += n as u64;
        if self.size >= self.sync_at {
            self.sync_beside()?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl BlobWriter<'_> {
    /// Syncs the bytes and gives them their name: their digest, and how many they are.
    ///
    /// # Errors
    /// When writing fails; nothing is left then.
    pub fn finish(self) -> Result<(Digest, u64), StoreError> {
        let BlobWriter { store, file, hasher, size, syncing, .. } = self;
        let digest = hasher.finish();
        let file = file.into_inner().map_err(io::IntoInnerError::into_error);
        // An error of a sync is told once, to whoever asked first.
        let file = file.and_then(|file| syncing.map_or(Ok(()), joined).map(|()| file));
        let file = file.map_err(store.wrong("can't write to", store.root(), Some(size)))?;
        if store.has_size(&digest, size) {
            touch(&store.blob_path(&digest));
        } else {
            store.give_name(file, &store.blob_path(&digest), size)?;
        }
        Ok((digest, size))
    }

    /// Begins a sync in a thread of its own, unless the last one is still under way.
    fn sync_beside(&mut self) -> io::Result<()> {
        self.sync_at = self.size + SYNC_EVERY;
        if self.syncing.as_ref().is_some_and(|last| !last.is_finished()) {
            return Ok(());
        }
        self.syncing.take().map_or(Ok(()), joined)?;
        let file = self.file.get_ref().as_file().try_clone()?;
        self.syncing = Some(std::thread::spawn(move || file.sync_data()));
        Ok(())
    }

    /// How many bytes were written so far.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.size
    }

    /// Whether nothing was written yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.size == 0
    }
}

fn joined(thread: JoinHandle<io::Result<()>>) -> io::Result<()> {
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that synced a blob panicked")))
}

impl Store {
    /// Whether the blob is there. Its bytes are not looked at: see [`Store::read_blob`], [`Store::check_blob`].
    #[must_use]
    pub fn contains(&self, digest: &Digest) -> bool {
        fs::metadata(self.blob_path(digest)).is_ok_and(|m| m.is_file())
    }

    /// Whether the blob is there and has `size` bytes.
    #[must_use]
    pub fn has_size(&self, digest: &Digest, size: u64) -> bool {
        fs::metadata(self.blob_path(digest)).is_ok_and(|m| m.is_file() && m.len() == size)
    }

    /// Where the blob lies, or would lie: the folder exists, so that a verified file can be renamed there.
    #[must_use]
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.fanned("blobs", digest)
    }

    /// Opens the blob for reading and records its use. Its bytes are not verified.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when it isn't there.
    pub fn open_blob(&self, digest: &Digest) -> Result<File, StoreError> {
        let path = self.blob_path(digest);
        touch(&path);
        File::open(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => StoreError::Missing(*digest),
            _ => FileError::at("can't read", &path)(e).into(),
        })
    }

    /// The blob's bytes, verified.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when they are not what the name says: the blob lies aside then.
    pub fn read_blob(&self, digest: &Digest) -> Result<Vec<u8>, StoreError> {
        let path = self.blob_path(digest);
        let mut bytes = Vec::new();
        let read = self.open_blob(digest)?.read_to_end(&mut bytes);
        read.map_err(FileError::at("can't read", &path))?;
        let found = Digest::of(&bytes);
        if found == *digest { Ok(bytes) } else { Err(self.set_aside(digest, found)) }
    }

    /// Reads the whole blob and compares its digest with its name.
    ///
    /// # Errors
    /// As [`Store::read_blob`].
    pub fn check_blob(&self, digest: &Digest) -> Result<u64, StoreError> {
        let path = self.blob_path(digest);
        let file = self.open_blob(digest)?;
        let (found, size) = Digest::of_reader(file).map_err(FileError::at("can't read", &path))?;
        if found == *digest { Ok(size) } else { Err(self.set_aside(digest, found)) }
    }

    /// Keeps `bytes` as a blob.
    ///
    /// # Errors
    /// When writing fails; nothing is left then.
    pub fn put_bytes(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        let digest = Digest::of(bytes);
        if self.has_size(&digest, bytes.len() as u64) {
            touch(&self.blob_path(&digest));
            return Ok(digest);
        }
        let mut file = self.temporary()?;
        let need = bytes.len() as u64;
        file.write_all(bytes).map_err(self.wrong("can't write to", self.root(), Some(need)))?;
        self.give_name(file, &self.blob_path(&digest), need)?;
        Ok(digest)
    }

    /// Begins a blob whose bytes come piece by piece.
    ///
    /// # Errors
    /// When a temporary file can't be made.
    pub fn writer(&self) -> Result<BlobWriter<'_>, StoreError> {
        let file = BufWriter::with_capacity(BUFFER, self.temporary()?);
        let hasher = Hasher::new();
        Ok(BlobWriter { store: self, file, hasher, size: 0, sync_at: SYNC_EVERY, syncing: None })
    }

    /// Moves the file at `path` into the store as the blob `digest`. The caller has verified its bytes; only a file
    /// on another file system is copied, and verified on the way.
    ///
    /// # Errors
    /// When it can't be moved; `path` is still there then.
    pub fn adopt(&self, path: &Path, digest: &Digest) -> Result<(), StoreError> {
        let target = self.blob_path(digest);
        let file = File::open(path).map_err(FileError::at("can't read", path))?;
        let size = file.metadata().map_err(FileError::at("can't read", path))?.len();
        file.sync_data().map_err(self.wrong("can't write to", path, Some(size)))?;
        match fs::rename(path, &target) {
            Ok(()) => {
                let sealed = file.set_permissions(Permissions::from_mode(0o444));
                Ok(sealed.map_err(FileError::at("can't change the mode of", &target))?)
            }
            Err(e) if e.kind() == io::ErrorKind::CrossesDevices => self.adopt_copy(path, digest),
            Err(e) => Err(FileError::at("can't move into the store", path)(e).into()),
        }
    }

    fn adopt_copy(&self, path: &Path, digest: &Digest) -> Result<(), StoreError> {
        let mut from = File::open(path).map_err(FileError::at("can't read", path))?;
        let mut writer = self.writer()?;
        io::copy(&mut from, &mut writer).map_err(self.wrong("can't copy into the store", path, None))?;
        if writer.hasher.clone().finish() != *digest {
            let found = writer.hasher.clone().finish();
            return Err(StoreError::Differs { path: path.to_owned(), wanted: *digest, found });
        }
        writer.finish()?;
        Ok(fs::remove_file(path).map_err(FileError::at("can't remove", path))?)
    }

    /// Where the download of a blob is collected until it is whole.
    #[must_use]
    pub fn partial_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("partial").join(digest.to_string())
    }

    /// A temporary file of this process inside the store.
    pub(super) fn temporary(&self) -> Result<NamedTempFile, StoreError> {
        let folder = self.session()?;
        NamedTempFile::new_in(folder).map_err(self.wrong("can't make a file in", folder, None))
    }

    /// Syncs a temporary file, makes it read-only and renames it. `size` is told when the disk is full.
    pub(super) fn give_name(&self, file: NamedTempFile, target: &Path, size: u64) -> Result<(), StoreError> {
        let named = file
            .as_file()
            .set_permissions(Permissions::from_mode(0o444))
            .and_then(|()| file.as_file().sync_data())
            .and_then(|()| file.persist(target).map_err(|e| e.error));
        named.map_err(self.wrong("can't write", target, Some(size)))?;
        Ok(())
    }

    /// Moves a blob with wrong bytes out of the way and says so.
    pub(super) fn set_aside(&self, digest: &Digest, found: Digest) -> StoreError {
        self.set_aside_path(digest, &self.blob_path(digest), format!("its digest is {}", found.short()))
    }

    /// Moves what lies at `path` under the name `digest` out of the way; `found` says what is wrong with it.
    pub(super) fn set_aside_path(&self, digest: &Digest, path: &Path, found: String) -> StoreError {
        let moved = self.root.join("damaged").join(digest.to_string());
        // A second damaged one replaces the first. If it can't be moved, it must not stay under its name either.
        if fs::rename(path, &moved).is_err() {
            let _ = fs::remove_file(path);
        }
        self.packs.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(digest);
        StoreError::Damaged { digest: *digest, found, moved }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::temporary;
    use super::*;
    use proptest::prelude::*;

    fn leftovers(store: &Store) -> usize {
        store.session().map(|s| fs::read_dir(s).unwrap().count()).unwrap()
    }

    /// Overwrites a blob in place, as a failing disk would.
    fn damage(store: &Store, digest: &Digest, bytes: &[u8]) {
        let path = store.blob_path(digest);
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        fs::write(path, bytes).unwrap();
    }

    #[test]
    fn a_damaged_blob_is_found_moved_away_and_kept_again() {
        let (_folder, store) = temporary();
        let digest = store.put_bytes(b"right").unwrap();
        damage(&store, &digest, b"wrong");
        assert!(store.contains(&digest));
        let error = store.read_blob(&digest).unwrap_err();
        assert!(matches!(&error, StoreError::Damaged { digest: d, .. } if *d == digest), "{error}");
        assert!(!store.contains(&digest));
        assert!(matches!(store.read_blob(&digest), Err(StoreError::Missing(_))));
        assert_eq!(store.put_bytes(b"right").unwrap(), digest);
        assert_eq!(store.read_blob(&digest).unwrap(), b"right");
        damage(&store, &digest, b"wrong again");
        assert!(matches!(store.check_blob(&digest), Err(StoreError::Damaged { .. })));
    }

    #[test]
    fn a_blob_of_wrong_size_is_written_anew() {
        let (_folder, store) = temporary();
        let digest = store.put_bytes(b"whole").unwrap();
        damage(&store, &digest, b"who");
        assert_eq!(store.put_bytes(b"whole").unwrap(), digest);
        assert_eq!(store.read_blob(&digest).unwrap(), b"whole");
    }

    #[test]
    fn an_unfinished_blob_leaves_nothing() {
        let (_folder, store) = temporary();
        let mut writer = store.writer().unwrap();
        writer.write_all(b"half").unwrap();
        drop(writer);
        assert_eq!(leftovers(&store), 0);
    }

    #[test]
    fn a_verified_file_is_adopted_by_rename_or_copied_from_elsewhere() {
        let (_folder, store) = temporary();
        let outside = tempfile::tempdir().unwrap();
        for path in [store.partial_path(&Digest::of(b"deb")), outside.path().join("deb")] {
            fs::write(&path, b"deb").unwrap();
            let digest = Digest::of(b"deb");
            store.adopt(&path, &digest).unwrap();
            assert!(!path.exists());
            assert_eq!(store.read_blob(&digest).unwrap(), b"deb");
        }
        let path = outside.path().join("other");
        fs::write(&path, b"other").unwrap();
        if store.adopt(&path, &Digest::of(b"deb")).is_ok() {
            // Same file system: the caller's word was taken, which verification finds.
            assert!(store.check_blob(&Digest::of(b"deb")).is_err());
        }
    }

    #[test]
    fn a_large_blob_is_synced_beside_the_writing() {
        let (_folder, store) = temporary();
        let piece = vec![7; 1 << 20];
        let mut writer = store.writer().unwrap();
        for _ in 0..SYNC_EVERY / 500_000 {
            writer.write_all(&piece).unwrap();
        }
        assert!(writer.syncing.is_some());
        let (digest, size) = writer.finish().unwrap();
        assert_eq!(store.check_blob(&digest).unwrap(), size);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn what_is_written_in_pieces_reads_back(pieces in proptest::collection::vec(
            proptest::collection::vec(any::<u8>(), 0..5000), 0..8)) {
            let (_folder, store) = temporary();
            let mut writer = store.writer().unwrap();
            for piece in &pieces {
                writer.write_all(piece).unwrap();
            }
            let whole = pieces.concat();
            let (digest, size) = writer.finish().unwrap();
            prop_assert_eq!((digest, size), (Digest::of(&whole), whole.len() as u64));
            prop_assert_eq!(store.read_blob(&digest).unwrap(), whole.clone());
            prop_assert_eq!(store.put_bytes(&whole).unwrap(), digest);
            prop_assert_eq!(leftovers(&store), 0);
        }
    }
}
