//! Disk images: big sparse files, named by the digest of their blocks.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Store, StoreError, touch};
use crate::digest::Digest;
use crate::host::fs::{FileError, copy_sparse};
use crate::units::Bytes;

/// What lies beside an image.
#[derive(Debug, Serialize, Deserialize)]
struct Sidecar {
    size: u64,
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
        file.sync_data().map_err(self.wrong("can't write", path, Some(size)))?;
        file.set_permissions(Permissions::from_mode(0o444)).map_err(wrong())?;
        self.write_json(&self.image_sidecar(blocks), &Sidecar { size })?;
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
        Ok(target)
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
            fs::set_permissions(&kept, Permissions::from_mode(0o644)).unwrap();
            File::options().write(true).open(&kept).unwrap().set_len(1 << 20).unwrap();
            assert_eq!((store.image_path(&id), store.lookup(&inputs)), (None, None));
        }
    }
}
