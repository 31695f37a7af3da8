//! Which blocks of a pending snapshot are there: a pending one can't be read back, so it is kept here.
//!
//! A file for each snapshot: a line that says what it is about, then eight bytes for each block that was acknowledged: its
//! index and the index's checksum. Records are only ever added; a tail that a crash left half written is cut off. A record
//! that is lost costs one block sent again; one that is there is true, because it was written after the answer.

use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::SnapshotError;
use crate::digest::Digest;
use crate::host::fs::FileError;

/// Records after which the file is synced.
const BATCH: usize = 256;
/// The index that says that completing the snapshot was begun: no block has it.
const COMPLETING: u32 = u32::MAX;

/// The journal of one pending snapshot. Locked against other processes for as long as it is open.
#[derive(Debug)]
pub struct BlockJournal {
    file: File,
    path: PathBuf,
    done: Vec<u32>,
    completing: bool,
    unsynced: usize,
    syncing: Option<tokio::task::JoinHandle<()>>,
}

impl BlockJournal {
    /// Opens (or begins) the journal of `snapshot` in `folder`. `sending` is the digest of what is sent: what was noted of
    /// another sending doesn't count.
    ///
    /// # Errors
    /// [`SnapshotError::Busy`] when another process has it open, else when the file can't be read or made.
    pub fn open(folder: &Path, snapshot: &str, sending: &Digest) -> Result<BlockJournal, SnapshotError> {
        let path = path_of(folder, snapshot);
        let wrong = |what| FileError::at(what, &path);
        fs::create_dir_all(folder).map_err(wrong("can't make the folder of"))?;
        let options = File::options().create(true).read(true).write(true).truncate(false).open(&path);
        let mut file = options.map_err(wrong("can't open"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(SnapshotError::Busy(snapshot.to_owned())),
            Err(TryLockError::Error(e)) => return Err(wrong("can't lock")(e).into()),
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(wrong("can't read"))?;
        let head = format!("kiln blocks of {snapshot} sending {sending}\n");
        let records = bytes.strip_prefix(head.as_bytes());
        let mut marks = records.map(whole_records).unwrap_or_default();
        let end = if records.is_some() { head.len() + marks.len() * 8 } else { 0 };
        file.set_len(end as u64).and_then(|()| file.seek(SeekFrom::End(0))).map_err(wrong("can't write"))?;
        if records.is_none() {
            file.write_all(head.as_bytes()).map_err(wrong("can't write"))?;
        }
        let completing = marks.contains(&COMPLETING);
        marks.retain(|&index| index != COMPLETING);
        Ok(BlockJournal { file, path, done: marks, completing, unsynced: 0, syncing: None })
    }

    /// The indexes of the blocks that are there.
    #[must_use]
    pub fn done(&self) -> &[u32] {
        &self.done
    }

    /// Whether completing the snapshot was begun, and perhaps has happened.
    #[must_use]
    pub fn completing(&self) -> bool {
        self.completing
    }

    /// Notes that a block is there.
    ///
    /// # Errors
    /// When it can't be written.
    pub(super) fn add(&mut self, index: u32) -> Result<(), SnapshotError> {
        self.write(index)?;
        self.done.push(index);
        self.unsynced += 1;
        if self.unsynced >= BATCH && self.syncing.as_ref().is_none_or(|last| last.is_finished()) {
            self.unsynced = 0;
            let file = self.file.try_clone().map_err(FileError::at("can't write", &self.path))?;
            // That it is on the disk only spares work after a power cut; what is lost is sent again.
            self.syncing = Some(tokio::task::spawn_blocking(move || drop(file.sync_data())));
        }
        Ok(())
    }

    /// Notes that completing the snapshot is begun.
    ///
    /// # Errors
    /// When it can't be written.
    pub(super) fn begin_completing(&mut self) -> Result<(), SnapshotError> {
        if !self.completing {
            self.write(COMPLETING)?;
            self.completing = true;
        }
        self.sync()
    }

    /// Syncs what was noted.
    ///
    /// # Errors
    /// When that fails.
    pub(super) fn sync(&mut self) -> Result<(), SnapshotError> {
        self.unsynced = 0;
        Ok(self.file.sync_data().map_err(FileError::at("can't write", &self.path))?)
    }

    fn write(&mut self, index: u32) -> Result<(), SnapshotError> {
        let bytes = index.to_le_bytes();
        let mut record = [0; 8];
        record[..4].copy_from_slice(&bytes);
        record[4..].copy_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        Ok(self.file.write_all(&record).map_err(FileError::at("can't write", &self.path))?)
    }

    /// Removes the journal: the snapshot is complete, or gone.
    ///
    /// # Errors
    /// When it can't be removed.
    pub fn remove(self) -> Result<(), SnapshotError> {
        Ok(fs::remove_file(&self.path).map_err(FileError::at("can't remove", &self.path))?)
    }
}

/// How many blocks of a snapshot its journal says are there; nothing when it has none. For a plan: nothing is locked.
#[must_use]
pub fn noted(folder: &Path, snapshot: &str) -> Option<u64> {
    let bytes = fs::read(path_of(folder, snapshot)).ok()?;
    let head = bytes.iter().position(|&byte| byte == b'\n')? + 1;
    let marks = whole_records(&bytes[head..]);
    Some(marks.iter().filter(|&&index| index != COMPLETING).count() as u64)
}

fn path_of(folder: &Path, snapshot: &str) -> PathBuf {
    // Ids are letters, digits and dashes; anything else must not lead elsewhere.
    let name: String =
        snapshot.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect();
    folder.join(format!("{name}.blocks"))
}

/// The indexes of the records up to the first that isn't whole.
fn whole_records(bytes: &[u8]) -> Vec<u32> {
    let record = |record: &[u8]| {
        let (index, sum) = record.split_first_chunk::<4>()?;
        (crc32fast::hash(index).to_le_bytes() == *sum).then(|| u32::from_le_bytes(*index))
    };
    bytes.chunks_exact(8).map_while(record).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: Digest = Digest([1; 32]);

    #[test]
    fn what_was_noted_is_there_after_a_torn_tail() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = BlockJournal::open(folder.path(), "snap-1", &A).unwrap();
        for index in [0, 5, 3] {
            journal.add(index).unwrap();
        }
        journal.begin_completing().unwrap();
        drop(journal);
        assert_eq!((noted(folder.path(), "snap-1"), noted(folder.path(), "snap-2")), (Some(3), None));
        let path = path_of(folder.path(), "snap-1");
        let whole = fs::read(&path).unwrap();
        for cut in 0..=whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let mut journal = BlockJournal::open(folder.path(), "snap-1", &A).unwrap();
            let records = cut.saturating_sub(whole.len() - 32) / 8;
            assert_eq!(journal.done(), &[0, 5, 3][..records.min(3)], "cut at {cut}");
            assert_eq!(journal.completing(), records == 4);
            journal.add(9).unwrap();
            drop(journal);
            let journal = BlockJournal::open(folder.path(), "snap-1", &A).unwrap();
            assert_eq!(journal.done().last(), Some(&9));
            drop(journal);
        }
    }

    #[test]
    fn another_sending_begins_anew_and_another_process_is_kept_out() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = BlockJournal::open(folder.path(), "snap-1", &A).unwrap();
        journal.add(7).unwrap();
        let busy = BlockJournal::open(folder.path(), "snap-1", &A).unwrap_err();
        assert!(matches!(&busy, SnapshotError::Busy(id) if id == "snap-1"), "{busy}");
        drop(journal);
        let journal = BlockJournal::open(folder.path(), "snap-1", &Digest([2; 32])).unwrap();
        assert!(journal.done().is_empty());
        journal.remove().unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    proptest! {
        #[test]
        fn no_content_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let folder = tempfile::tempdir().unwrap();
            let head = format!("kiln blocks of snap-1 sending {A}\n").into_bytes();
            fs::write(path_of(folder.path(), "snap-1"), [head, bytes].concat()).unwrap();
            prop_assert!(BlockJournal::open(folder.path(), "snap-1", &A).is_ok());
        }
    }
}
