//! Inodes and the extents that say where a file's blocks lie.
//!
//! Field offsets are those of Linux' Documentation/filesystems/ext4/{inodes,ifork}.rst.

use std::ops::Range;

use super::crc32c::crc32c;
use super::geometry::Allocator;
use super::{BLOCK, INODE, put16, put32};
use crate::tree::{Kind, Node};

/// Size of the part where extents, a short link's target or a device's number lie.
pub(super) const BODY: usize = 60;
/// Most blocks of one extent.
const LONGEST: u64 = 32_768;
/// Extents, or references to blocks of them, that an inode holds itself.
const IN_INODE: usize = 4;
/// Those that a block holds before its checksum.
const IN_BLOCK: usize = (BLOCK as usize - 12) / 12;
/// The inode's blocks are given by extents.
const EXTENTS_FLAG: u32 = 0x8_0000;
/// What the fields behind the classic 128 bytes take.
const EXTRA: u16 = 32;
/// A directory with more links than this says 1 (`dir_nlink`).
pub(super) const MOST_LINKS: u32 = 65_000;

/// Blocks in a row: where they lie in the file, and on the file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Run {
    pub logical: u64,
    pub blocks: Range<u64>,
}

/// An inode before it is encoded.
#[derive(Debug, Clone)]
pub(super) struct Inode {
    /// Type and permissions.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub links: u32,
    /// Blocks that belong to it, those that hold extents or attributes included.
    pub blocks: u64,
    pub extents: bool,
    pub body: [u8; BODY],
    /// The block of its attributes, or 0.
    pub attributes: u64,
    /// All of its four times.
    pub time: i64,
    /// What stands behind the fixed part.
    pub inline: Vec<u8>,
}

impl Inode {
    /// An inode that root owns and that has no blocks yet.
    pub fn new(mode: u16, time: i64) -> Inode {
        Inode {
            mode,
            uid: 0,
            gid: 0,
            size: 0,
            links: 1,
            blocks: 0,
            extents: false,
            body: [0; BODY],
            attributes: 0,
            time,
            inline: Vec::new(),
        }
    }

    /// Takes over what a node says of itself but for its contents.
    pub fn describe(&mut self, node: &Node) {
        self.mode = kind_bits(&node.kind) | node.mode as u16 & 0o7777;
        (self.uid, self.gid, self.time) = (node.uid, node.gid, node.mtime);
    }

    pub fn is_dir(&self) -> bool {
        self.mode & 0xf000 == 0x4000
    }

    /// The type as directories name it.
    pub fn entry_type(&self) -> u8 {
        match self.mode & 0xf000 {
            0x8000 => 1,
            0x4000 => 2,
            0x2000 => 3,
            0x6000 => 4,
            0x1000 => 5,
            _ => 7,
        }
    }

    /// The bytes of inode `number`.
    pub fn encode(&self, number: u32, seed: u32) -> [u8; INODE as usize] {
        let mut b = [0; INODE as usize];
        let links = if self.is_dir() && self.links >= MOST_LINKS { 1 } else { self.links };
        let sectors = self.blocks * (BLOCK / 512);
        let (seconds, epoch) = time(self.time);
        for (at, value) in [
            (0x00, u32::from(self.mode) | self.uid << 16),
            (0x04, self.size as u32),
            (0x18, self.gid & 0xffff | links << 16),
            (0x1c, sectors as u32),
            (0x20, if self.extents { EXTENTS_FLAG } else { 0 }),
            (0x68, self.attributes as u32),
            (0x6c, (self.size >> 32) as u32),
            (0x74, (sectors >> 32) as u32 & 0xffff | (self.attributes >> 32) as u32 & 0xffff_0000),
            (0x78, self.uid >> 16 | self.gid & 0xffff_0000),
            (0x80, u32::from(EXTRA)),
        ] {
            put32(&mut b, at, value);
        }
        // Access, change, modification, creation; then the upper bits of all but the access time's place.
        for at in [0x08, 0x0c, 0x10, 0x90] {
            put32(&mut b, at, seconds);
        }
        for at in [0x84, 0x88, 0x8c, 0x94] {
            put32(&mut b, at, epoch);
        }
        b[0x28..0x28 + BODY].copy_from_slice(&self.body);
        let inline = 128 + usize::from(EXTRA);
        b[inline..inline + self.inline.len()].copy_from_slice(&self.inline);
        let sum = crc32c(seed_of(number, seed), &b);
        put16(&mut b, 0x7c, sum as u16);
        put16(&mut b, 0x82, (sum >> 16) as u16);
        b
    }
}

/// The bytes of an inode that is kept and never used: nothing but a checksum.
pub(super) fn unused(number: u32, seed: u32) -> [u8; INODE as usize] {
    let mut b = [0; INODE as usize];
    let sum = crc32c(seed_of(number, seed), &b);
    put16(&mut b, 0x7c, sum as u16);
    b
}

/// Where checksums of an inode and of what belongs to it begin; all generations are 0.
pub(super) fn seed_of(number: u32, seed: u32) -> u32 {
    crc32c(crc32c(seed, &number.to_le_bytes()), &[0; 4])
}

/// Seconds as they are stored: the lower 32 bits, signed, and two bits above them; the ends stand for what lies beyond.
fn time(time: i64) -> (u32, u32) {
    let time = time.clamp(i64::from(i32::MIN), i64::from(i32::MIN) + (1 << 34) - 1);
    let low = time as i32;
    (low as u32, ((time - i64::from(low)) >> 32) as u32 & 3)
}

fn kind_bits(kind: &Kind) -> u16 {
    match kind {
        Kind::Fifo => 0x1000,
        Kind::CharDev { .. } => 0x2000,
        Kind::Dir => 0x4000,
        Kind::BlockDev { .. } => 0x6000,
        Kind::File(_) | Kind::HardLink(_) => 0x8000,
        Kind::Symlink(_) => 0xa000,
    }
}

/// A device's number as the inode holds it (linux/kdev_t.h). `None` when it doesn't fit.
pub(super) fn device(major: u32, minor: u32) -> Option<[u8; BODY]> {
    if major > 0xfff || minor > 0xf_ffff {
        return None;
    }
    let mut body = [0; BODY];
    if major < 256 && minor < 256 {
        put32(&mut body, 0, major << 8 | minor);
    } else {
        put32(&mut body, 4, minor & 0xff | major << 8 | (minor & !0xff) << 12);
    }
    Some(body)
}

/// Takes `count` blocks for what begins at block `logical` of a file.
pub(super) fn allocate(runs: &mut Vec<Run>, free: &mut Allocator, logical: u64, count: u64) -> Option<()> {
    let end = logical + count;
    let mut logical = logical;
    while logical < end {
        let blocks = free.run((end - logical).min(LONGEST))?;
        let len = blocks.end - blocks.start;
        match runs.last_mut() {
            Some(last)
                if last.blocks.end == blocks.start
                    && last.blocks.end - last.blocks.start + len <= LONGEST =>
            {
                last.blocks.end = blocks.end;
            }
            _ => runs.push(Run { logical, blocks }),
        }
        logical += len;
    }
    Some(())
}

/// A header of extents and what follows it.
fn header(entries: &[[u8; 12]], most: usize, depth: u16, out: &mut [u8]) {
    for (at, value) in [(0, 0xf30a), (2, entries.len() as u16), (4, most as u16), (6, depth)] {
        put16(out, at, value);
    }
    for (entry, place) in entries.iter().zip(out[12..].chunks_exact_mut(12)) {
        place.copy_from_slice(entry);
    }
}

/// Gives the inode `number` its extents; blocks for those that it can't hold itself are taken and handed back.
pub(super) fn map(
    inode: &mut Inode,
    number: u32,
    runs: &[Run],
    free: &mut Allocator,
    seed: u32,
) -> Option<Vec<(u64, Vec<u8>)>> {
    let mut entries: Vec<[u8; 12]> = runs.iter().map(extent).collect();
    let mut firsts: Vec<u64> = runs.iter().map(|run| run.logical).collect();
    let (mut depth, mut blocks) = (0, Vec::new());
    while entries.len() > IN_INODE {
        let mut above = Vec::new();
        for part in entries.chunks(IN_BLOCK) {
            let place = free.run(1)?.start;
            let mut block = vec![0; BLOCK as usize];
            header(part, IN_BLOCK, depth, &mut block);
            let end = 12 + IN_BLOCK * 12;
            let sum = crc32c(seed_of(number, seed), &block[..end]);
            put32(&mut block, end, sum);
            blocks.push((place, block));
            above.push(place);
        }
        firsts = firsts.into_iter().step_by(IN_BLOCK).collect();
        entries = firsts.iter().zip(above).map(|(first, place)| reference(*first, place)).collect();
        depth += 1;
    }
    inode.extents = true;
    inode.body = [0; BODY];
    header(&entries, IN_INODE, depth, &mut inode.body);
    inode.blocks +=
        runs.iter().map(|run| run.blocks.end - run.blocks.start).sum::<u64>() + blocks.len() as u64;
    Some(blocks)
}

fn extent(run: &Run) -> [u8; 12] {
    let mut b = [0; 12];
    put32(&mut b, 0, run.logical as u32);
    put16(&mut b, 4, (run.blocks.end - run.blocks.start) as u16);
    put16(&mut b, 6, (run.blocks.start >> 32) as u16);
    put32(&mut b, 8, run.blocks.start as u32);
    b
}

fn reference(logical: u64, place: u64) -> [u8; 12] {
    let mut b = [0; 12];
    put32(&mut b, 0, logical as u32);
    put32(&mut b, 4, place as u32);
    put16(&mut b, 8, (place >> 32) as u16);
    b
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_34_bits() {
        assert_eq!(time(-7), (0xffff_fff9, 0));
        assert_eq!(time(1 << 31), (0x8000_0000, 1));
        assert_eq!(time(i64::MAX), (0x7fff_ffff, 3));
        assert_eq!(time(i64::MIN), (0x8000_0000, 0));
    }

    #[test]
    fn devices_have_two_forms() {
        let words = |major, minor| device(major, minor).map(|b| [b[0], b[1], b[4], b[5], b[6], b[7]]);
        assert_eq!(words(1, 3), Some([3, 1, 0, 0, 0, 0]));
        assert_eq!(words(8, 300), Some([0, 0, 44, 8, 16, 0]));
        assert_eq!(words(4096, 0), None);
    }
}
