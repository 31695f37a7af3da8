//! Where the parts of a file system lie that are there before any file: superblocks, descriptors, bitmaps, inode tables.
//!
//! They lie as mke2fs puts them (libext2fs' `initialize.c` and `alloc_tables.c`): bitmaps and inode tables of sixteen
//! groups together at the beginning of the first one (`flex_bg`), copies of the superblock in few groups
//! (`sparse_super`), and behind each copy room for the descriptors of a file system that has grown (`resize_inode`).

use std::ops::Range;

use super::{BLOCK, BLOCKS_PER_GROUP, DESCRIPTOR, INODE, has_superblock};
use crate::format::merged;
use crate::units::Bytes;

/// Groups whose tables lie together, as a power of two.
pub(super) const LOG_FLEX: u8 = 4;
/// What a last group must hold beyond its own tables; a smaller one is left out.
const LEAST_OF_LAST: u64 = 50;
/// Groups' inodes are counted by the bits of one block.
const MOST_INODES_PER_GROUP: u64 = BLOCK * 8;

/// The measures of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Geometry {
    /// Blocks in all.
    pub blocks: u64,
    /// Groups, the last of which may be shorter.
    pub groups: u64,
    /// Inodes of each group.
    pub inodes_per_group: u64,
    /// Blocks of each group's inode table.
    pub table: u64,
    /// Blocks of all descriptors.
    pub descriptors: u64,
    /// Blocks behind them that are kept for growth.
    pub reserved: u64,
}

/// Where a group's tables lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tables {
    pub block_bitmap: u64,
    pub inode_bitmap: u64,
    pub inodes: u64,
}

impl Geometry {
    /// The measures of a file system of `size` with at least `inodes` inodes.
    pub fn of(size: Bytes, inodes: u64) -> Geometry {
        let mut blocks = size.0 / BLOCK;
        loop {
            let geometry = Geometry::of_blocks(blocks, inodes);
            let rest = blocks % BLOCKS_PER_GROUP;
            let copy = if has_superblock(geometry.groups - 1) { geometry.copy() } else { 0 };
            if geometry.groups == 1 || rest == 0 || rest >= 2 + geometry.table + copy + LEAST_OF_LAST {
                return geometry;
            }
            blocks -= rest;
        }
    }

    fn of_blocks(blocks: u64, inodes: u64) -> Geometry {
        let groups = blocks.div_ceil(BLOCKS_PER_GROUP).max(1);
        let table = inodes.div_ceil(groups).div_ceil(BLOCK / INODE).max(1);
        let per_block = BLOCK / DESCRIPTOR;
        let descriptors = groups.div_ceil(per_block);
        // Descriptors of the groups of a file system 1024 times as large are reserved, which is what growth needs.
        let largest = (blocks * 1024).min(u64::from(u32::MAX)).div_ceil(BLOCKS_PER_GROUP);
        let reserved = largest.div_ceil(per_block).saturating_sub(descriptors).min(BLOCK / 4);
        Geometry { blocks, groups, inodes_per_group: table * (BLOCK / INODE), table, descriptors, reserved }
    }

    /// Whether its numbers can be written at all.
    pub fn is_possible(&self) -> bool {
        self.blocks <= u64::from(u32::MAX)
            && self.inodes_per_group <= MOST_INODES_PER_GROUP
            && self.inodes() <= u64::from(u32::MAX)
    }

    /// Inodes in all.
    pub fn inodes(&self) -> u64 {
        self.inodes_per_group * self.groups
    }

    /// Blocks of one copy of the superblock with all descriptors.
    pub fn copy(&self) -> u64 {
        1 + self.descriptors + self.reserved
    }

    /// The groups that hold a copy of the superblock, the first one included.
    pub fn copies(&self) -> impl Iterator<Item = u64> + use<> {
        (0..self.groups).filter(|&group| has_superblock(group))
    }

    /// The group's blocks.
    pub fn group(&self, group: u64) -> Range<u64> {
        let start = group * BLOCKS_PER_GROUP;
        start..(start + BLOCKS_PER_GROUP).min(self.blocks)
    }

    /// Blocks that no file can have, but for the journal's.
    pub fn overhead(&self) -> u64 {
        self.copies().count() as u64 * self.copy() + self.groups * (2 + self.table)
    }

    /// Where each group's tables lie, and all blocks that are taken before there is a file, in order. `None` when they
    /// don't fit.
    pub fn place(&self) -> Option<(Vec<Tables>, Vec<Range<u64>>)> {
        let copies: Vec<Range<u64>> = self
            .copies()
            .map(|group| self.group(group).start)
            .map(|start| start..start + self.copy())
            .collect();
        let mut tables = Vec::with_capacity(self.groups as usize);
        let mut taken = copies.clone();
        for first in (0..self.groups).step_by(1 << LOG_FLEX) {
            let count = (self.groups - first).min(1 << LOG_FLEX);
            let mut at = self.group(first).start;
            let mut lay = |len: u64| {
                at = free_run(&copies, at, len);
                at += len;
                at - len
            };
            let (block_bitmaps, inode_bitmaps) = (lay(count), lay(count));
            for n in 0..count {
                let (block_bitmap, inode_bitmap) = (block_bitmaps + n, inode_bitmaps + n);
                let inodes = lay(self.table);
                tables.push(Tables { block_bitmap, inode_bitmap, inodes });
                let parts = [(block_bitmap, 1), (inode_bitmap, 1), (inodes, self.table)];
                taken.extend(parts.map(|(start, len)| start..start + len));
            }
        }
        let taken = merged(taken);
        taken.last().is_none_or(|last| last.end <= self.blocks).then_some((tables, taken))
    }
}

/// Where the first run of `len` blocks begins, from `at` on, that none of `taken` (in order) lies in.
fn free_run(taken: &[Range<u64>], at: u64, len: u64) -> u64 {
    let overlapping = taken.iter().skip_while(|range| range.end <= at);
    overlapping.fold(at, |at, range| if range.start < at + len { at.max(range.end) } else { at })
}

/// Hands out blocks in order.
#[derive(Debug)]
pub(super) struct Allocator {
    taken: Vec<Range<u64>>,
    /// Which of the taken ranges comes next.
    index: usize,
    next: u64,
    blocks: u64,
}

impl Allocator {
    /// Of a file system of `blocks` blocks, of which some are `taken` (in order).
    pub fn new(taken: Vec<Range<u64>>, blocks: u64) -> Allocator {
        Allocator { taken, index: 0, next: 0, blocks }
    }

    /// The next free blocks in a row, `wanted` at most; `None` when there is none left.
    pub fn run(&mut self, wanted: u64) -> Option<Range<u64>> {
        while let Some(range) = self.taken.get(self.index).filter(|range| range.start <= self.next) {
            self.next = self.next.max(range.end);
            self.index += 1;
        }
        let end = self.taken.get(self.index).map_or(self.blocks, |range| range.start.min(self.blocks));
        let run = self.next..end.min(self.next.saturating_add(wanted));
        self.next = run.end.max(self.next);
        (!run.is_empty()).then_some(run)
    }

    /// All blocks in use, in order.
    pub fn used(mut self) -> Vec<Range<u64>> {
        self.taken.push(0..self.next);
        merged(self.taken)
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)]
mod tests {
    use super::*;
    use crate::units::{GIB, MIB};

    /// What dumpe2fs says of one that mke2fs 1.47.2 made.
    #[test]
    fn tables_lie_where_mke2fs_puts_them() {
        let geometry = Geometry::of(Bytes(507_136 * BLOCK), 126_848);
        let expected = Geometry {
            blocks: 507_136,
            groups: 16,
            inodes_per_group: 7936,
            table: 496,
            descriptors: 1,
            reserved: 247,
        };
        assert_eq!(geometry, expected);
        let (tables, taken) = geometry.place().unwrap();
        assert_eq!(tables[0], Tables { block_bitmap: 249, inode_bitmap: 265, inodes: 281 });
        assert_eq!(tables[15], Tables { block_bitmap: 264, inode_bitmap: 280, inodes: 7721 });
        let copies = [1, 3, 5, 7, 9].map(|group| group * BLOCKS_PER_GROUP);
        let copies = copies.map(|start| start..start + 249);
        assert_eq!(taken, [&[0..8217], &copies[..]].concat());
        assert_eq!(geometry.overhead(), 25_846 - 16_384);
    }

    #[test]
    fn a_last_group_without_room_is_left_out() {
        let blocks = |blocks: u64| Geometry::of(Bytes(blocks * BLOCK), 1000).blocks;
        let group = BLOCKS_PER_GROUP;
        assert_eq!(
            [group + 100, 2 * group + 60, 2 * group + 200].map(blocks),
            [group, 2 * group, 2 * group + 200]
        );
        assert_eq!(blocks(100), 100);
    }

    #[test]
    fn tables_never_overlap_and_stay_inside() {
        let sizes = [16 * MIB, 129 * MIB, 700 * MIB, 5 * GIB, 70 * GIB, 1030 * GIB];
        for (size, dense) in sizes.iter().flat_map(|size| [(*size, 1), (*size, 3)]) {
            let geometry = Geometry::of(Bytes(size), size / 16_384 * dense);
            assert!(geometry.is_possible());
            let (_, taken) = geometry.place().unwrap();
            let blocks: u64 = taken.iter().map(|range| range.end - range.start).sum();
            assert_eq!(blocks, geometry.overhead(), "{size} {dense}");
        }
    }

    #[test]
    fn blocks_are_handed_out_around_what_is_taken() {
        let mut allocator = Allocator::new(vec![0..3, 5..6, 6..9], 12);
        let runs: Vec<_> = [1, 9, 2, 9, 9].map(|wanted| allocator.run(wanted)).into();
        assert_eq!(runs, [Some(3..4), Some(4..5), Some(9..11), Some(11..12), None]);
        assert_eq!(allocator.used(), [0..12]);
    }
}
