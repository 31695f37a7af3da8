//! What describes a file system: superblock, descriptors, bitmaps, inode tables, the journal's head.
//!
//! Field offsets are those of Linux' Documentation/filesystems/ext4/{super,group_descr,bitmaps,journal}.rst.

use std::ops::Range;

use uuid::Uuid;

use super::crc32c::crc32c;
use super::fill::{Filled, JOURNAL, LOST_FOUND};
use super::geometry::{Geometry, LOG_FLEX, Tables};
use super::inode::{self, BODY, Inode};
use super::{BLOCK, BLOCKS_PER_GROUP, DESCRIPTOR, INODE, put16, put32};
use crate::format::piece::Piece;

/// Where the superblock lies.
const SUPERBLOCK: u64 = 1024;
/// has_journal, ext_attr, resize_inode, dir_index.
const COMPAT: u32 = 0x4 | 0x8 | 0x10 | 0x20;
/// filetype, extent, 64bit, flex_bg.
const INCOMPAT: u32 = 0x2 | 0x40 | 0x80 | 0x200;
/// sparse_super, large_file, huge_file, dir_nlink, extra_isize, metadata_csum.
const RO_COMPAT: u32 = 0x1 | 0x2 | 0x8 | 0x20 | 0x40 | 0x400;
/// No inode of the group was ever in use.
const INODE_UNINIT: u16 = 0x1;
/// No block of the group is in use.
const BLOCK_UNINIT: u16 = 0x2;

/// A group's numbers.
#[derive(Default)]
struct Group {
    free: u64,
    unused_inodes: u64,
    dirs: u64,
    flags: u16,
    block_sum: u32,
    inode_sum: u32,
}

/// Adds all that describes the file system to its pieces.
pub(super) fn finish(mut filled: Filled<'_>) -> Vec<Piece<'_>> {
    let free = std::mem::replace(&mut filled.free, super::geometry::Allocator::new(Vec::new(), 0));
    let used = free.used();
    let mut pieces = std::mem::take(&mut filled.pieces);
    let mut groups = Vec::with_capacity(filled.tables.len());
    for (number, tables) in (0..).zip(&filled.tables) {
        groups.push(group(&filled, number, tables, &used, &mut pieces));
    }
    inode_tables(&filled, &mut pieces);
    // Linux keeps the numbers of the first superblock and descriptors alone up to date, and e2fsck takes none from a copy.
    // Without any the copies stay the same whatever the file system holds, and so do the blocks of an upload that they lie in.
    let unknown: Vec<Group> = groups.iter().map(|_| Group::default()).collect();
    for copy in filled.geometry.copies() {
        let groups = if copy == 0 { &groups } else { &unknown };
        let numbered = (0..).zip(groups).zip(&filled.tables);
        let descriptors =
            numbered.flat_map(|((number, group), tables)| descriptor(&filled, number, group, tables));
        let start = filled.geometry.group(copy).start * BLOCK;
        // Copies lie at the beginning of their block, but for the first.
        let at = if copy == 0 { SUPERBLOCK } else { start };
        pieces.push(Piece::bytes(at, superblock(&filled, groups, copy)));
        pieces.push(Piece::bytes(start + BLOCK, descriptors.collect()));
    }
    pieces
}

/// Counts what is in use of a group, and writes its bitmaps.
fn group(
    filled: &Filled<'_>,
    number: u64,
    tables: &Tables,
    used: &[Range<u64>],
    pieces: &mut Vec<Piece<'_>>,
) -> Group {
    let geometry = &filled.geometry;
    let blocks = geometry.group(number);
    let first = used.partition_point(|range| range.end <= blocks.start);
    let ranges = used[first..].iter().take_while(|range| range.start < blocks.end);
    let ranges = ranges.map(|range| range.start.max(blocks.start)..range.end.min(blocks.end));
    let ranges: Vec<_> = ranges.map(|range| range.start - blocks.start..range.end - blocks.start).collect();
    let count = blocks.end - blocks.start;
    let in_use: u64 = ranges.iter().map(|range| range.end - range.start).sum();
    let first_inode = number * geometry.inodes_per_group;
    let inodes = filled.inodes.iter().skip(first_inode as usize).take(geometry.inodes_per_group as usize);
    let used_inodes = inodes.len() as u64;
    let dirs = inodes.flatten().filter(|inode| inode.is_dir()).count() as u64;
    // No zeroes are promised where no inode was ever in use (INODE_ZEROED): a volume that was made of a snapshot may hold
    // anything where nothing was written. Linux zeroes it in the background once the file system is mounted, as it does
    // in the groups that growth adds.
    let unused_inodes = geometry.inodes_per_group - used_inodes;
    let mut group = Group { free: count - in_use, unused_inodes, dirs, flags: 0, block_sum: 0, inode_sum: 0 };
    // The last group's bitmap says where the file system ends.
    if in_use == 0 && number + 1 < geometry.groups {
        group.flags |= BLOCK_UNINIT;
    } else {
        let behind = std::iter::once(count..BLOCKS_PER_GROUP);
        let map = bitmap(ranges.into_iter().chain(behind));
        group.block_sum = crc32c(filled.seed, &map);
        pieces.push(Piece::bytes(tables.block_bitmap * BLOCK, map));
    }
    if used_inodes == 0 {
        group.flags |= INODE_UNINIT;
    } else {
        let map = bitmap([0..used_inodes, geometry.inodes_per_group..BLOCK * 8].into_iter());
        group.inode_sum = crc32c(filled.seed, &map[..geometry.inodes_per_group as usize / 8]);
        pieces.push(Piece::bytes(tables.inode_bitmap * BLOCK, map));
    }
    group
}

/// A block with the bits of these ranges set.
fn bitmap(ranges: impl Iterator<Item = Range<u64>>) -> Vec<u8> {
    let mut map = vec![0; BLOCK as usize];
    for range in ranges {
        let (first, last) = (range.start.next_multiple_of(8).min(range.end), range.end);
        let whole = first / 8..(last / 8).max(first / 8);
        let bits = (range.start..first).chain((whole.end * 8).max(first)..last);
        for bit in bits {
            map[bit as usize / 8] |= 1 << (bit % 8);
        }
        map[whole.start as usize..whole.end as usize].fill(0xff);
    }
    map
}

/// Writes the inodes, group by group.
fn inode_tables(filled: &Filled<'_>, pieces: &mut Vec<Piece<'_>>) {
    let groups = filled.inodes.chunks(filled.geometry.inodes_per_group as usize);
    let mut number = 0;
    for (inodes, tables) in groups.zip(&filled.tables) {
        let mut bytes = Vec::with_capacity(inodes.len() * INODE as usize);
        for inode in inodes {
            number += 1;
            bytes.extend(match inode {
                Some(inode) => inode.encode(number, filled.seed),
                None => inode::unused(number, filled.seed),
            });
        }
        pieces.push(Piece::bytes(tables.inodes * BLOCK, bytes));
    }
}

fn descriptor(filled: &Filled<'_>, number: u32, group: &Group, tables: &Tables) -> Vec<u8> {
    let mut b = vec![0; DESCRIPTOR as usize];
    for (at, value) in [(0x0, tables.block_bitmap), (0x4, tables.inode_bitmap), (0x8, tables.inodes)] {
        put32(&mut b, at, value as u32);
        put32(&mut b, at + 0x20, (value >> 32) as u32);
    }
    // The upper halves lie in the second half of the descriptor, each in its own place.
    let unused = group.unused_inodes;
    for (low, high, value) in [
        (0xc, 0x2c, group.free as u32),
        (0xe, 0x2e, unused as u32),
        (0x10, 0x30, group.dirs as u32),
        (0x18, 0x38, group.block_sum),
        (0x1a, 0x3a, group.inode_sum),
        (0x1c, 0x32, unused as u32),
    ] {
        put16(&mut b, low, value as u16);
        put16(&mut b, high, (value >> 16) as u16);
    }
    put16(&mut b, 0x12, group.flags);
    let sum = crc32c(crc32c(filled.seed, &number.to_le_bytes()), &b);
    put16(&mut b, 0x1e, sum as u16);
    b
}

/// The superblock as it stands in group `copy`. Only the first one is called clean.
fn superblock(filled: &Filled<'_>, groups: &[Group], copy: u64) -> Vec<u8> {
    let (geometry, fs) = (&filled.geometry, filled.fs);
    let mut b = vec![0; 1024];
    let free: u64 = groups.iter().map(|group| group.free).sum();
    let free_inodes: u64 = groups.iter().map(|group| group.unused_inodes).sum();
    let clean = u64::from(copy == 0);
    let time = filled.epoch.max(0) as u64;
    let journal = fs.journal.0 / BLOCK;
    for (at, value) in [
        (0x0, geometry.inodes()),
        (0x4, geometry.blocks),
        (0xc, free),
        (0x10, free_inodes),
        (0x18, 2), // Blocks of 1 KiB << 2; and so are clusters.
        (0x1c, 2),
        (0x20, BLOCKS_PER_GROUP),
        (0x24, BLOCKS_PER_GROUP),
        (0x28, geometry.inodes_per_group),
        (0x30, time & 0xffff_ffff),
        (0x34, 0xffff_0000), // Mounted never; no mount count asks for a check.
        (0x38, 0xef53 | clean << 16),
        (0x3c, 2), // On errors, read-only.
        (0x40, time & 0xffff_ffff),
        (0x4c, 1), // Revision with feature words.
        (0x54, LOST_FOUND.into()),
        (0x58, INODE | copy << 16),
        (0x5c, COMPAT.into()),
        (0x60, INCOMPAT.into()),
        (0x64, RO_COMPAT.into()),
        (0xcc, geometry.reserved << 16),
        (0xe0, JOURNAL.into()),
        (0xfc, 1 | 1 << 8 | DESCRIPTOR << 16), // Half MD4; the journal's inode is kept below.
        (0x100, 0x4 | 0x8),                    // Mounted with attributes and access control lists.
        (0x108, time & 0xffff_ffff),
        (0x15c, 32 | 32 << 16), // Inodes' further fields: at least, and wanted.
        (0x160, 1),             // Directories' hashes take bytes for signed.
        (0x174, u64::from(LOG_FLEX) | 1 << 8), // Checksums are CRC-32C.
        (0x248, geometry.overhead() + journal),
        (0x274, (time >> 32 & 0xff) * 0x0101_0001), // Upper bits of the times written, made, checked.
    ] {
        put32(&mut b, at, value as u32);
    }
    b[0x68..0x78].copy_from_slice(fs.uuid.as_bytes());
    let label = &fs.label.as_bytes()[..fs.label.len().min(16)];
    b[0x78..0x78 + label.len()].copy_from_slice(label);
    b[0xec..0xfc].copy_from_slice(fs.hash_seed.as_bytes());
    if let Some(inode) = &filled.inodes[JOURNAL as usize - 1] {
        b[0x10c..0x10c + BODY].copy_from_slice(&inode.body);
        put32(&mut b, 0x10c + BODY, (inode.size >> 32) as u32);
        put32(&mut b, 0x10c + BODY + 4, inode.size as u32);
    }
    let sum = crc32c(!0, &b[..0x3fc]);
    put32(&mut b, 0x3fc, sum);
    b
}

/// The first block of an empty journal (struct `journal_superblock_s`, big-endian).
pub(super) fn journal_head(blocks: u64, uuid: Uuid) -> Vec<u8> {
    let mut b = vec![0; 1024];
    for (at, value) in [
        (0x0, 0xc03b_3998),
        (0x4, 4), // A superblock, version 2.
        (0xc, BLOCK as u32),
        (0x10, blocks as u32),
        (0x14, 1), // The first block of the log.
        (0x18, 1), // The first number expected.
        (0x40, 1), // Who uses it: one file system.
    ] {
        b[at..at + 4].copy_from_slice(&u32::to_be_bytes(value));
    }
    b[0x30..0x40].copy_from_slice(uuid.as_bytes());
    b
}

/// The inode of the descriptors that are kept for growth, whose doubly indirect block lies at `place`: each block behind
/// the first descriptors is taken for an indirect one that names the blocks behind the copies (libext2fs' `res_gdt.c`).
pub(super) fn reserved_descriptors(
    geometry: &Geometry,
    place: u64,
    epoch: i64,
) -> (Inode, Vec<Piece<'static>>) {
    let pointers = BLOCK / 4;
    let mut double = vec![0; BLOCK as usize];
    let mut pieces = Vec::new();
    let copies: Vec<u64> = geometry.copies().filter(|&group| group > 0).collect();
    for n in 0..geometry.reserved {
        let index = geometry.descriptors + n;
        let at = 1 + index;
        put32(&mut double, (index % pointers) as usize * 4, at as u32);
        let behind = copies.iter().flat_map(|group| ((group * BLOCKS_PER_GROUP + at) as u32).to_le_bytes());
        pieces.push(Piece::bytes(at * BLOCK, behind.collect()));
    }
    pieces.push(Piece::bytes(place * BLOCK, double));
    let mut inode = Inode::new(0x8000 | 0o600, epoch);
    // The largest file that such blocks describe.
    inode.size = (pointers * pointers + pointers + 12) * BLOCK;
    inode.blocks = 1 + geometry.reserved * (1 + copies.len() as u64);
    put32(&mut inode.body, 13 * 4, place as u32);
    (inode, pieces)
}
