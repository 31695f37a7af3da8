//! A raw disk's holes are the blocks that nothing reads, no more and no fewer: who skips the holes of the file, as tools for
//! uploads do, then leaves out what may be left out.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use nix::fcntl::{FallocateFlags, fallocate};

use crate::artifact::{BLOCK, BlockMap};
use crate::host::fs::data_ranges;
use crate::publish::blocks::{Class, DiskBlocks};
use crate::publish::holes::read_ranges;

/// Writes the zeroes of `disk` that something reads, and frees the blocks that nothing does. The bytes stay the same.
///
/// # Errors
/// Whatever reading or writing fails with.
pub(super) fn settle(disk: &File, map: &BlockMap) -> io::Result<()> {
    let blocks = DiskBlocks::new(map, &read_ranges(&mut &*disk)?);
    let data = data_ranges(disk, map.size)?;
    let zeroes = vec![0; BLOCK as usize];
    for (index, class) in (0..).zip(&blocks.classes) {
        let (start, end) = (index * BLOCK, ((index + 1) * BLOCK).min(map.size));
        let before = data.partition_point(|range| range.end <= start);
        let lies_there = data.get(before).is_some_and(|range| range.start < end);
        match class {
            Class::Zero => disk.write_all_at(&zeroes[..(end - start) as usize], start)?,
            Class::Hole if lies_there => {
                let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                // A file system without holes keeps the zeroes: only the file is larger then.
                let _ = fallocate(disk, flags, start as i64, (end - start) as i64);
            }
            Class::Data(_) | Class::Hole => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::format::gpt;
    use crate::image::block_map;
    use crate::units::{MIB, SECTOR};

    #[test]
    fn holes_are_what_nothing_reads() {
        let disk = tempfile::tempfile().unwrap();
        let size = 16 * MIB;
        disk.set_len(size).unwrap();
        let table = gpt::Table { disk_guid: Uuid::from_u128(9), sectors: size / SECTOR, entries: Vec::new() };
        disk.write_all_at(&table.encode().unwrap().primary, SECTOR).unwrap();
        disk.write_all_at(&[0; 3 << 20], 5 * MIB).unwrap();
        disk.write_all_at(b"data", 9 * MIB).unwrap();
        let before = block_map(&disk).unwrap();
        settle(&disk, &before).unwrap();
        assert_eq!(block_map(&disk).unwrap(), before);
        // The edges, and what holds something.
        let ranges = data_ranges(&disk, size).unwrap();
        let blocks = ranges.iter().flat_map(|range| range.start / BLOCK..range.end.div_ceil(BLOCK));
        let mut blocks: Vec<u64> = blocks.collect();
        blocks.dedup();
        assert_eq!(blocks, [0, 18, 31]);
    }
}
