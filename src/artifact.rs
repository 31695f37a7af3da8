//! The results of the last phases: images as files, with what is known of them.

use std::path::PathBuf;
use std::sync::LazyLock;

use crate::digest::{Digest, Hasher};
use crate::units::{Bytes, KIB};

/// Size of the blocks that disks are compared, hashed and uploaded by: that of EBS snapshots' blocks.
pub const BLOCK: u64 = 512 * KIB;

/// The digest of a block of zeroes.
pub static ZERO_BLOCK: LazyLock<Digest> = LazyLock::new(|| Digest::of(&[0; BLOCK as usize]));

/// A raw disk image as a sparse file in the store, named by the digest of its blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawImage {
    /// Where the file lies. It is never changed.
    pub path: PathBuf,
    /// Size of the disk.
    pub size: Bytes,
    /// Identity of the disk's bytes: see [`crate::image::block_digest`].
    pub blocks: Digest,
}

/// The digests of a disk's blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockMap {
    /// Size of the disk in bytes.
    pub size: u64,
    /// The digest of each block; `None` for one of zeroes. The last block counts as filled up with zeroes.
    pub blocks: Vec<Option<Digest>>,
}

impl BlockMap {
    /// The identity: SHA-256 over the size (8 bytes, little-endian) and the digest of each block.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let mut hasher = Hasher::new();
        hasher.update(&self.size.to_le_bytes());
        for block in &self.blocks {
            hasher.update(&block.as_ref().unwrap_or(&ZERO_BLOCK).0);
        }
        hasher.finish()
    }

    /// How many blocks differ from `other`'s, those that only one of them has included.
    #[must_use]
    pub fn differing(&self, other: &BlockMap) -> usize {
        let common = self.blocks.iter().zip(&other.blocks).filter(|(a, b)| a != b).count();
        common + self.blocks.len().abs_diff(other.blocks.len())
    }

    /// How many blocks hold anything but zeroes.
    #[must_use]
    pub fn used(&self) -> usize {
        self.blocks.iter().filter(|b| b.is_some()).count()
    }
}
