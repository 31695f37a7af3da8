//! Disk images: big sparse files, named by the digest of their blocks.
//!
//! Syncing an image takes longer than making it, so nobody waits for it: until it is synced, its sidecar names the boot of
//! the machine in which it was written. What the kernel was given survives everything but the end of that boot; an image
//! of an earlier one that was never synced counts as missing.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Store, StoreError, touch};
use crate::digest::Digest;
use crate::host::fs::{FileError, copy_sparse, write_atomically};
use crate::units::Bytes;

/// What lies beside an image.
#[derive(Debug, Serialize, Deserialize)]
struct Sidecar {
    size: u64,
    /// In which boot it was written; none once it is synced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    boot: Option<String>,
}

/// The identity of this boot of the machine (random(4)).
fn this_boot() -> Option<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned()).filter(|id| !id.is_empty())
}

impl Store {
    /// Moves the image at `path` into the store and answers where it lies now. The caller has computed `blocks` from
    /// its bytes. Holes stay holes, also when it comes from another file system and has to be copied.
    ///
    /// # Errors
    /// When it can't be moved; `path` is still there then.
    pub fn adopt_image(&self, path: &Path, blocks: &Digest) -> Result<PathBuf, StoreError> {
        let target = self.image_file(blocks);
        let wrong = || FileError::at("can't keep the image", path);
        let file = File::open(path).map_err(wrong())?;
        let size = file.metadata().map_err(wrong())?.len();
        if self.image_size(blocks) == Some(Bytes(size)) {
            touch(&target);
            fs::remove_file(path).map_err(wrong())?;
            return Ok(target);
        }
        file.set_permissions(Permissions::from_mode(0o444)).map_err(wrong())?;
        let boot = this_boot();
        if boot.is_none() {
            file.sync_data().map_err(self.wrong("can't write", path, Some(size)))?;
        }
        let sidecar = Sidecar { size, boot };
        self.write_json(&self.image_sidecar(blocks), &sidecar)?;
        match fs::rename(path, &target) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {
                let copy = self.temporary()?;
                let copied = copy_sparse(&file, copy.as_file());
                copied.map_err(self.wrong("can't copy the image", path, Some(size)))?;
                self.give_name(copy, &target, size)?;
                fs::remove_file(path).map_err(wrong())?;
            }
            Err(e) => return Err(wrong()(e).into()),
        }
        if sidecar.boot.is_some() {
            self.sync_image_beside(target.clone(), self.image_sidecar(blocks), size);
        }
        Ok(target)
    }

    /// Syncs an image in a thread that nobody waits for but a collection, and then says so in its sidecar. When the
    /// process ends before, the image is good for the rest of this boot.
    fn sync_image_beside(&self, image: PathBuf, sidecar: PathBuf, size: u64) {
        let sync = move || {
            let synced = File::open(&image).and_then(|file| file.sync_data());
            let text = serde_json::to_vec_pretty(&Sidecar { size, boot: None }).map_err(io::Error::other);
            let written = synced.and(text).map(|text| write_atomically(&sidecar, &text));
            if !matches!(written, Ok(Ok(()))) {
                tracing::debug!("{} is not known to be on the disk", image.display());
            }
        };
        let mut threads = self.syncing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        threads.retain(|thread| !thread.is_finished());
        threads.push(std::thread::spawn(sync));
    }

    /// Where the image lies, if it is there and whole by its size. Records its use.
    #[must_use]
    pub fn image_path(&self, blocks: &Digest) -> Option<PathBuf> {
        self.image_size(blocks)?;
        let path = self.image_file(blocks);
        touch(&path);
        Some(path)
    }

    /// The size of the disk, if the image is there and whole by its size.
    pub(super) fn image_size(&self, blocks: &Digest) -> Option<Bytes> {
        let sidecar = fs::read(self.image_sidecar(blocks)).ok()?;
        let sidecar: Sidecar = serde_json::from_slice(&sidecar).ok()?;
        if sidecar.boot.is_some() && sidecar.boot != this_boot() {
            return None;
        }
        let file = fs::metadata(self.image_file(blocks)).ok()?;
        (file.is_file() && file.len() == sidecar.size).then_some(Bytes(sidecar.size))
    }

    pub(super) fn image_file(&self, blocks: &Digest) -> PathBuf {
        self.root.join("images").join(format!("{blocks}.raw"))
    }

    pub(super) fn image_sidecar(&self, blocks: &Digest) -> PathBuf {
        self.root.join("images").join(format!("{blocks}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::temporary;
    use super::*;
    use crate::store::{Inputs, StepResult};
    use std::os::unix::fs::{FileExt, MetadataExt};

    #[test]
    fn an_image_keeps_its_holes_and_is_found_while_whole() {
        let (_folder, store) = temporary();
        let elsewhere = tempfile::tempdir().unwrap();
        let scratch = store.scratch("image").unwrap();
        for folder in [scratch.path(), elsewhere.path()] {
            let id = Digest::of(folder.as_os_str().as_encoded_bytes());
            let path = folder.join("disk");
            let file = File::create(&path).unwrap();
            file.set_len(64 << 20).unwrap();
            file.write_all_at(b"root", 32 << 20).unwrap();
            assert_eq!(store.image_path(&id), None);
            let kept = store.adopt_image(&path, &id).unwrap();
            assert!(!path.exists());
            let meta = fs::metadata(&kept).unwrap();
            assert!(meta.len() == 64 << 20 && meta.blocks() * 512 < 4 << 20, "{meta:?}");
            let inputs = Inputs::new("image", 1).with("id", id);
            let result = StepResult { outputs: [("disk".to_owned(), id)].into(), ..StepResult::default() };
            store.record(&inputs, &result).unwrap();
            assert_eq!(store.lookup(&inputs), Some(result));
            // Not synced, and the machine was started again since.
            for thread in store.syncing.lock().unwrap().drain(..) {
                thread.join().unwrap();
            }
            let sidecar = store.image_sidecar(&id);
            let synced = fs::read(&sidecar).unwrap();
            assert!(!String::from_utf8_lossy(&synced).contains("boot"));
            fs::write(&sidecar, format!(r#"{{ "size": {}, "boot": "another" }}"#, 64 << 20)).unwrap();
            assert_eq!(store.image_path(&id), None);
            fs::write(&sidecar, synced).unwrap();
            assert!(store.image_path(&id).is_some());
            fs::set_permissions(&kept, Permissions::from_mode(0o644)).unwrap();
            File::options().write(true).open(&kept).unwrap().set_len(1 << 20).unwrap();
            assert_eq!((store.image_path(&id), store.lookup(&inputs)), (None, None));
        }
    }
}
