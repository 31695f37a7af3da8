//! Verification of everything that the store holds.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use serde::Serialize;

use super::step::Shelf;
use super::usage::{Item, Kind, Share};
use super::{Store, StoreError, check_interrupt};
use crate::digest::Digest;
use crate::units::Bytes;

/// Told after each thing: bytes read so far and in all.
pub type VerifyProgress<'a> = &'a (dyn Fn(Bytes, Bytes) + Sync);

/// Computes the digest of an image's blocks, its name.
pub type BlockDigest<'a> = &'a (dyn Fn(&File) -> io::Result<Digest> + Sync);

/// What a verification found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// Blobs and images that were read and are right.
    pub right: Share,
    /// Those that are not, and were moved away.
    pub damaged: Vec<Digest>,
}

impl Store {
    /// Reads every blob and image, and moves those aside whose bytes are not what their name says. Images are named
    /// by another digest than blobs: `blocks` computes it.
    ///
    /// # Errors
    /// When something can't be read, or the user interrupts.
    pub fn verify_all(
        &self,
        blocks: BlockDigest<'_>,
        progress: VerifyProgress<'_>,
    ) -> Result<VerifyReport, StoreError> {
        let mut items = self.items()?;
        items.retain(|i| matches!(i.kind, Kind::On(Shelf::Blob | Shelf::Image)));
        items.sort_by_key(|i| std::cmp::Reverse(i.size));
        let all = Bytes(items.iter().map(|i| i.size.0).sum());
        let done = AtomicU64::new(0);
        let check = |item: &Item| -> Result<Option<Digest>, StoreError> {
            check_interrupt()?;
            let right = self.verify_item(item, blocks)?;
            let done = done.fetch_add(item.size.0, Ordering::Relaxed) + item.size.0;
            progress(Bytes(done), all);
            Ok((!right).then_some(item.name))
        };
        let found: Vec<Option<Digest>> = items.par_iter().map(check).collect::<Result<_, _>>()?;
        let mut report = VerifyReport::default();
        for (item, damaged) in items.iter().zip(found) {
            match damaged {
                Some(digest) => report.damaged.push(digest),
                None => report.right.add(item.size),
            }
        }
        report.damaged.sort_unstable();
        Ok(report)
    }

    /// Reads those of the blobs that are there, and moves damaged ones aside: afterwards a blob that is there is right.
    /// For inputs that are about to be used and could be had again. Answers how many were damaged.
    ///
    /// # Errors
    /// When one can't be read, or the user interrupts.
    pub fn check_blobs(&self, digests: &[Digest]) -> Result<usize, StoreError> {
        let check = |digest: &Digest| -> Result<usize, StoreError> {
            check_interrupt()?;
            match self.check_blob(digest) {
                Ok(_) | Err(StoreError::Missing(_)) => Ok(0),
                Err(error @ StoreError::Damaged { .. }) => {
                    tracing::warn!("{error}");
                    Ok(1)
                }
                Err(e) => Err(e),
            }
        };
        digests.par_iter().map(check).sum()
    }

    fn verify_item(&self, item: &Item, blocks: BlockDigest<'_>) -> Result<bool, StoreError> {
        if item.kind == Kind::On(Shelf::Blob) {
            return match self.check_blob(&item.name) {
                Ok(_) => Ok(true),
                Err(StoreError::Damaged { .. }) => Ok(false),
                Err(e) => Err(e),
            };
        }
        let digest = File::open(&item.path).and_then(|file| blocks(&file));
        let digest = digest.map_err(self.wrong("can't read", &item.path, None))?;
        if digest != item.name || self.image_size(&item.name).is_none() {
            let _ = self.set_aside_path(&item.name, &item.path, "its blocks differ".to_owned());
            return Ok(false);
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::temporary;
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn damaged_inputs_are_moved_aside_before_their_use() {
        let (_folder, store) = temporary();
        let [right, wrong] = ["right", "wrong"].map(|t| store.put_bytes(t.as_bytes()).unwrap());
        let path = store.blob_path(&wrong);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        fs::write(path, "WRONG").unwrap();
        assert_eq!(store.check_blobs(&[right, wrong, Digest([9; 32])]).unwrap(), 1);
        assert!(store.contains(&right) && !store.contains(&wrong));
    }

    #[test]
    fn damage_anywhere_is_found() {
        let (_folder, store) = temporary();
        let blobs = ["a", "b", "c"].map(|t| store.put_bytes(t.as_bytes()).unwrap());
        let scratch = store.scratch("image").unwrap();
        let images = ["x", "y"].map(|text| {
            let path = scratch.path().join(text);
            fs::write(&path, text).unwrap();
            store.adopt_image(&path, &Digest::of(text.as_bytes())).unwrap()
        });
        let blocks = |file: &File| Digest::of_reader(file).map(|(d, _)| d);
        let report = store.verify_all(&blocks, &|_, _| {}).unwrap();
        assert_eq!((report.right.count, report.damaged.len()), (5, 0));
        for path in [&store.blob_path(&blobs[1]), &images[0]] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
            fs::write(path, "?").unwrap();
        }
        let report = store.verify_all(&blocks, &|done, all| assert!(done <= all)).unwrap();
        let mut damaged = vec![blobs[1], Digest::of(b"x")];
        damaged.sort_unstable();
        assert_eq!((report.right.count, report.damaged), (3, damaged));
        assert!(!store.contains(&blobs[1]) && store.image_path(&Digest::of(b"x")).is_none());
    }
}
