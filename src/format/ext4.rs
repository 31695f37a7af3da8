//! ext4: how much room it takes, what is written, which bytes of it are read.
//!
//! Features are those that every system in use reads: e2fsprogs from 1.43, Linux from 4.4, GRUB from 2.00.
//! `metadata_csum_seed` and `orphan_file`, which newer mke2fs turn on by themselves, are left out: an image's root gets
//! attached to whatever rescue machine is at hand, and they bring nothing at this size.

mod crc32c;
mod dir;
mod fill;
mod geometry;
mod inode;
mod meta;
pub mod read;
#[cfg(test)]
mod tests;
mod xattr;

pub use fill::Ext4Error;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::tree::{Kind, Node};
use crate::units::{Bytes, KIB, MIB};

/// Size of a block. The default below 512 MB is 1 KiB, which would stay so when the file system grows.
pub const BLOCK: u64 = 4 * KIB;
/// Size of an inode, with room for times to the nanosecond and a small attribute.
pub const INODE: u64 = 256;
/// Space for an inode's own attributes: what its fixed part (128 + 32 bytes) and the attributes' magic number leave.
const INLINE_XATTRS: u64 = INODE - 128 - 32 - 4;
/// Blocks of a group: as many as the bits of one block.
pub const BLOCKS_PER_GROUP: u64 = BLOCK * 8;
/// Size of a group's descriptor with the `64bit` feature.
const DESCRIPTOR: u64 = 64;
/// Bytes of the disk for which there is an inode; mke2fs's usual ratio, which growth keeps.
const INODE_RATIO: u64 = 16 * KIB;
/// Longest target that a symbolic link holds without a block.
const FAST_SYMLINK: usize = 59;
/// Blocks of `lost+found`.
const LOST_AND_FOUND: u64 = 4;
/// Bytes at the end of a directory's block that its checksum takes.
const DIR_TAIL: u64 = 12;
/// The journal of a file system that will grow: what mke2fs gives from 2 GiB on. It is a hole until it is written.
const LARGE_JOURNAL: u64 = 64 * MIB;
/// The smallest file system that gets it: a journal may take half of one at most.
const LARGE_JOURNAL_FROM: u64 = 256 * MIB;

/// What a file system needs, counted from what will lie in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Need {
    /// Blocks of files, directories, symbolic links and attributes.
    pub blocks: u64,
    /// Inodes, those that every file system has included.
    pub inodes: u64,
}

/// A file system to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ext4 {
    /// Its UUID.
    pub uuid: Uuid,
    /// Seed of the directories' hashes.
    pub hash_seed: Uuid,
    /// Its label, at most 16 bytes.
    pub label: String,
    /// How many inodes it gets, before mke2fs rounds up to whole blocks of them in each group.
    pub inodes: u64,
    /// Size of the journal.
    pub journal: Bytes,
}

impl Need {
    /// What the nodes (path within the file system, node) need. Directories are filled in the order given.
    pub fn of<'a>(nodes: impl Iterator<Item = (&'a [u8], &'a Node)>) -> Need {
        // 11 inodes are reserved; the last of them is lost+found.
        let mut need = Need { blocks: LOST_AND_FOUND, inodes: 11 };
        // What is left of each directory's last block, and how many blocks it has.
        let mut rooms = std::collections::HashMap::<Vec<u8>, (u64, u64)>::new();
        let first = (BLOCK - DIR_TAIL - 24, 1); // `.` and `..`
        for (path, node) in nodes {
            // The root and lost+found are among the reserved ones.
            if !path.is_empty() && path != fill::LOST_FOUND_NAME && !matches!(node.kind, Kind::HardLink(_)) {
                need.inodes += 1;
            }
            need.blocks += match &node.kind {
                Kind::File(content) => file_blocks(content.len()),
                Kind::Symlink(target) if target.len() > FAST_SYMLINK => 1,
                Kind::Dir => 1,
                _ => 0,
            } + u64::from(takes_attribute_block(node));
            if matches!(node.kind, Kind::Dir) {
                rooms.insert(path.to_vec(), first);
            }
            if path.is_empty() {
                continue;
            }
            let name = path.rsplit(|&b| b == b'/').next().unwrap_or_default();
            let entry = (8 + name.len() as u64).next_multiple_of(4);
            let (left, blocks) = rooms.entry(crate::tree::parent(path).to_vec()).or_insert(first);
            if *left < entry {
                // Its blocks lie scattered: from the fifth on, extents take blocks of their own.
                need.blocks +=
                    1 + u64::from(*blocks == 4 || blocks.is_multiple_of(340)) + u64::from(*blocks == 340);
                *left = BLOCK - DIR_TAIL;
                *blocks += 1;
            }
            *left -= entry;
        }
        need
    }
}

/// Blocks of a file of `size` bytes with those of its extent tree, which an inode holds itself for up to four extents
/// of at most 128 MiB; one of more needs a block, and one cut apart by the groups' metadata may.
#[must_use]
pub fn file_blocks(size: u64) -> u64 {
    let blocks = size.div_ceil(BLOCK);
    blocks + u64::from(blocks > 2 * BLOCKS_PER_GROUP) + blocks / (300 * BLOCKS_PER_GROUP)
}

fn takes_attribute_block(node: &Node) -> bool {
    let linked = matches!(node.kind, Kind::HardLink(_));
    !linked
        && !node.xattrs.is_empty()
        && xattr::store(&node.xattrs).is_ok_and(|stored| stored.block.is_some())
}

impl Ext4 {
    /// The number of inodes for a file system of `size` that holds `need`: by the usual ratio, but a quarter more than
    /// are needed at least.
    #[must_use]
    pub fn inodes_for(size: Bytes, need: Need) -> u64 {
        (size.0 / INODE_RATIO).max(need.inodes + need.inodes / 4 + 64).next_multiple_of(BLOCK / INODE)
    }

    /// The size of the journal: mke2fs's own choice, or that of a large disk when the file system `grows`.
    #[must_use]
    pub fn journal_for(size: Bytes, grows: bool) -> Bytes {
        if grows && size.0 >= LARGE_JOURNAL_FROM {
            return Bytes(LARGE_JOURNAL);
        }
        Bytes(match size.0 / MIB {
            0..128 => 4 * MIB,
            128..1024 => 16 * MIB,
            1024..2048 => 32 * MIB,
            2048.. => 64 * MIB,
        })
    }

    /// Blocks of a file system of `size` that no file can have: superblocks and their copies, descriptors, bitmaps,
    /// inodes, journal.
    #[must_use]
    pub fn overhead(&self, size: Bytes) -> u64 {
        let geometry = geometry::Geometry::of(size, self.inodes);
        let left_out = size.0 / BLOCK - geometry.blocks;
        // The reserved descriptors' own inode has an indirect block; the journal's extents have one at most.
        geometry.overhead() + left_out + self.journal.0 / BLOCK + 2
    }
}

/// Whether the group holds a copy of the superblock (`sparse_super`): 0, 1, and powers of 3, 5 and 7.
fn has_superblock(group: u64) -> bool {
    let power_of = |base: u64| {
        let mut n = base;
        while n < group {
            n *= base;
        }
        n == group
    };
    group <= 1 || [3, 5, 7].into_iter().any(power_of)
}

fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}
