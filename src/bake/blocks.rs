//! The blocks of an image: what each is, and whether something reads it. Kept under the image's digest, so that an image
//! that is published later finds what an earlier one was uploaded as.

use std::fs::File;
use std::io;
use std::path::Path;

use super::BakeError;
use crate::artifact::RawImage;
use crate::digest::Digest;
use crate::host::fs::FileError;
use crate::image::block_map;
use crate::publish::blocks::DiskBlocks;
use crate::publish::holes::read_ranges;
use crate::store::{Inputs, StepResult, Store};

/// The name of the step's output.
const OUTPUT: &str = "blocks";

/// The step. Its version changes with what is called read: the blocks of an old image are only ever looked up, for they
/// have to say how it was uploaded.
fn inputs(image: &Digest) -> Inputs {
    Inputs::new("blocks", 2).with("image", image)
}

/// The blocks of the image with that digest, when they are in the store.
#[must_use]
pub fn known_blocks(store: &Store, image: &Digest) -> Option<DiskBlocks> {
    let found = store.lookup(&inputs(image))?.output(OUTPUT)?;
    DiskBlocks::decode(&store.read_blob(&found).ok()?).filter(|blocks| blocks.map().digest() == *image)
}

/// The blocks of a raw image's file.
///
/// # Errors
/// When it can't be read.
pub fn blocks_in(file: &mut File, path: &Path) -> Result<DiskBlocks, FileError> {
    let wrong = || FileError::at("can't read", path);
    let map = block_map(file).map_err(wrong())?;
    let read = read_ranges(file).map_err(wrong())?;
    Ok(DiskBlocks::new(&map, &read))
}

/// The blocks of an image; all of it is read and hashed when they aren't in the store.
///
/// # Errors
/// When it can't be read, or is not what its digest says.
pub fn blocks_of(store: &Store, image: &RawImage) -> Result<DiskBlocks, BakeError> {
    if let Some(blocks) = known_blocks(store, &image.blocks) {
        return Ok(blocks);
    }
    let wrong = || FileError::at("can't read", &image.path);
    let mut file = File::open(&image.path).map_err(wrong())?;
    let blocks = blocks_in(&mut file, &image.path)?;
    if blocks.map().digest() != image.blocks {
        let changed = io::Error::other(
            "its blocks are not those that it was made with: `kiln store verify` tells more",
        );
        return Err(wrong()(changed).into());
    }
    let blob = store.put_bytes(&blocks.encode())?;
    let outputs = [(OUTPUT.to_owned(), blob)].into();
    store.record(&inputs(&image.blocks), &StepResult { outputs, ..StepResult::default() })?;
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::artifact::BLOCK;
    use crate::units::Bytes;

    #[test]
    fn blocks_are_kept_under_the_images_digest() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store")).unwrap();
        let path = folder.path().join("disk");
        let file = File::create(&path).unwrap();
        file.set_len(4 * BLOCK).unwrap();
        file.write_all_at(b"something", BLOCK).unwrap();
        let map = block_map(&File::open(&path).unwrap()).unwrap();
        let image = RawImage { path: path.clone(), size: Bytes(4 * BLOCK), blocks: map.digest() };
        assert_eq!(known_blocks(&store, &image.blocks), None);
        let blocks = blocks_of(&store, &image).unwrap();
        // There is no table on it: all of it counts as read.
        assert_eq!((blocks.counts(), blocks.map()), ((1, 3, 0), map));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(blocks_of(&store, &image).unwrap(), blocks);
        assert_eq!(known_blocks(&store, &image.blocks), Some(blocks));
    }

    #[test]
    fn an_image_that_changed_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store")).unwrap();
        let path = folder.path().join("disk");
        File::create(&path).unwrap().set_len(BLOCK).unwrap();
        let image = RawImage { path, size: Bytes(BLOCK), blocks: Digest([1; 32]) };
        let error = blocks_of(&store, &image).unwrap_err().to_string();
        assert!(error.contains("not those that it was made with"), "{error}");
    }
}
