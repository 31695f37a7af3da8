//! Directories: entries in the order in which they are added, block after block.
//!
//! Like mke2fs, it makes no index (`dir_index` lets the kernel add one when a directory grows).

use super::crc32c::crc32c;
use super::inode::{Run, seed_of};
use super::{BLOCK, DIR_TAIL, put16, put32};

/// Bytes of a block that entries may take.
const ROOM: usize = (BLOCK - DIR_TAIL) as usize;
/// The fixed part of an entry.
const ENTRY: usize = 8;
/// The smallest size of an entry that the kernel takes.
const LEAST: usize = 12;
/// The type of what looks like an entry and holds the block's checksum.
const TAIL_TYPE: u8 = 0xde;

/// A directory that is being filled.
#[derive(Debug)]
pub(super) struct Dir {
    /// Its inode.
    pub inode: u32,
    /// Where its blocks lie.
    pub runs: Vec<Run>,
    blocks: Vec<Filled>,
}

/// A block with where its last entry begins.
#[derive(Debug, Default)]
struct Filled {
    bytes: Vec<u8>,
    last: usize,
}

impl Dir {
    /// The directory `inode` below `parent`, whose first block is yet to be allocated.
    pub fn new(inode: u32, parent: u32) -> Dir {
        let mut dir = Dir { inode, runs: Vec::new(), blocks: vec![Filled::default()] };
        dir.put(b".", inode, 2);
        dir.put(b"..", parent, 2);
        dir
    }

    /// How many blocks it has.
    pub fn len(&self) -> u64 {
        self.blocks.len() as u64
    }

    /// Whether a name of this length goes into the last block.
    pub fn has_room(&self, name: &[u8]) -> bool {
        self.blocks.last().is_some_and(|block| block.bytes.len() + size(name) <= ROOM)
    }

    /// Begins another block, which is yet to be allocated.
    pub fn extend(&mut self) {
        self.blocks.push(Filled::default());
    }

    /// Appends an entry; there must be room.
    pub fn put(&mut self, name: &[u8], inode: u32, kind: u8) {
        let Some(block) = self.blocks.last_mut() else { return };
        block.last = block.bytes.len();
        block.bytes.resize(block.last + size(name), 0);
        let entry = &mut block.bytes[block.last..];
        put32(entry, 0, inode);
        put16(entry, 4, size(name) as u16);
        (entry[6], entry[7]) = (name.len() as u8, kind);
        entry[ENTRY..ENTRY + name.len()].copy_from_slice(name);
    }

    /// The bytes of all blocks.
    pub fn encode(self, seed: u32) -> impl Iterator<Item = Vec<u8>> {
        let seed = seed_of(self.inode, seed);
        self.blocks.into_iter().map(move |Filled { mut bytes, last }| {
            bytes.resize(BLOCK as usize, 0);
            // The last entry reaches to the checksum. One of inode 0 is none.
            put16(&mut bytes, last + 4, (ROOM - last) as u16);
            put16(&mut bytes, ROOM + 4, DIR_TAIL as u16);
            bytes[ROOM + 7] = TAIL_TYPE;
            let sum = crc32c(seed, &bytes[..ROOM]);
            put32(&mut bytes, ROOM + 8, sum);
            bytes
        })
    }
}

fn size(name: &[u8]) -> usize {
    (ENTRY + name.len()).next_multiple_of(4).max(LEAST)
}
