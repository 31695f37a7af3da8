//! The results of the last phases: images as files, with what is known of them.

use std::path::PathBuf;

use crate::digest::Digest;
use crate::units::Bytes;

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
