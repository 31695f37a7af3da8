//! The store layout: the system's image that the kernel is told of, and whether its hash tree is the one that the root hash
//! stands for. The data itself is verified by the machine, block by block as it is read.

use kiln_guest::erofs;
use kiln_guest::generation::is_system_name;
use kiln_guest::verity::{BLOCK, RootHash, Superblock};

use super::config::Entry;
use super::volume::Volume;
use super::{Finding, failed, passed, skipped};
use crate::units::Bytes;

/// Where the images lie on their partition.
const FOLDER: &str = "store";
/// The largest hash tree that is read: that of an image of 16 GiB.
const LARGEST_TREE: u64 = 128 << 20;

/// The name of the system's image that an entry starts, when it is one of the store layout.
pub(super) fn image(entry: Option<&Entry>) -> Option<&str> {
    entry?.argument("kiln.system")
}

/// Whether the image is there and whole.
pub(super) fn system(volumes: &[Volume], entry: &Entry, name: &str) -> Finding {
    let partition = entry.argument("kiln.partition").unwrap_or_default();
    let Some(volume) = volumes.iter().find(|v| v.is_named(&format!("PARTUUID={partition}"))) else {
        return failed(format!(
            "the kernel is told kiln.partition={partition}, which isn't on this disk: the system would not be found; bake the \
             image anew"
        ));
    };
    if !volume.is_read() {
        return failed(format!(
            "{}, on which the system lies, can't be read: bake the image anew",
            volume.place()
        ));
    }
    let roothash = entry.argument("kiln.roothash").unwrap_or_default();
    let Ok(root) = roothash.parse::<RootHash>() else {
        return failed(format!(
            "the kernel is told kiln.roothash={roothash}, which is no hash: bake the image anew"
        ));
    };
    if !is_system_name(name) {
        return failed(format!(
            "the kernel is told kiln.system={name}, which is no image's name: bake the image anew"
        ));
    }
    let path = format!("{FOLDER}/{name}");
    let place = format!("/{path} on {}", volume.place());
    match check(volume, &path, &root) {
        Ok(Some(size)) => passed(format!("{place}, {size}; its hash tree is that of kiln.roothash")),
        Ok(None) => {
            failed(format!("{place} is missing, but {} starts it: bake the image anew", entry.source))
        }
        Err(why) => failed(format!("{place}: {why}; bake the image anew")),
    }
}

fn check(volume: &Volume, path: &str, root: &RootHash) -> Result<Option<Bytes>, String> {
    let part = volume.part(path, erofs::SUPERBLOCK, erofs::SUPERBLOCK_SIZE)?;
    let Some((head, size)) = part else { return Ok(None) };
    let blocks = erofs::blocks(&head, BLOCK).ok_or("it is no EROFS file system with blocks of 4096 bytes")?;
    let data = blocks * BLOCK as u64;
    let Some((superblock, _)) = volume.part(path, data, BLOCK)? else { return Ok(None) };
    let superblock = Superblock::decode(&superblock).map_err(|e| e.to_string())?;
    let tree = superblock.blocks().saturating_sub(1).saturating_mul(BLOCK as u64);
    if superblock.data_blocks != blocks || data + tree + BLOCK as u64 != size || tree > LARGEST_TREE {
        return Err("its hash tree is not as large as it must be".to_owned());
    }
    let Some((bytes, _)) = volume.part(path, data + BLOCK as u64, tree as usize)? else { return Ok(None) };
    superblock.check(bytes.as_slice(), root).map_err(|e| e.to_string())?;
    Ok(Some(Bytes(size)))
}

/// Why a question isn't asked whose answer lies within the image.
pub(super) fn inside() -> Finding {
    skipped("it lies within the system's image, which the machine verifies as it reads it")
}
