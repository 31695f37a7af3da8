//! Identity of a disk by its blocks: computed in parallel, over what is no hole.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rayon::prelude::*;

use crate::artifact::{BLOCK, BlockMap};
use crate::digest::{Digest, Hasher};
use crate::host::fs::{data_ranges, is_zero};

/// The digests of the blocks of `file`, holes not read.
///
/// # Errors
/// Whatever reading fails with.
pub fn block_map(file: &File) -> io::Result<BlockMap> {
    let size = file.metadata()?.len();
    let indexes = blocks_of(data_ranges(file, size)?);
    let digests: Vec<Option<Digest>> = indexes
        .par_iter()
        .with_min_len(8)
        .map_init(
            || vec![0; BLOCK as usize],
            |buffer, index| {
                let at = index * BLOCK;
                let filled = (size - at).min(BLOCK) as usize;
                file.read_exact_at(&mut buffer[..filled], at)?;
                buffer[filled..].fill(0);
                Ok((!is_zero(buffer)).then(|| Digest::of(buffer)))
            },
        )
        .collect::<io::Result<_>>()?;
    Ok(map_of(size, indexes, digests))
}

/// The blocks that ranges of bytes lie in, in order; the ranges are in order too.
pub(super) fn blocks_of(ranges: impl IntoIterator<Item = Range<u64>>) -> Vec<u64> {
    let mut indexes: Vec<u64> = Vec::new();
    for range in ranges {
        let first = (range.start / BLOCK).max(indexes.last().map_or(0, |last| last + 1));
        indexes.extend(first..range.end.div_ceil(BLOCK));
    }
    indexes
}

/// The blocks of a disk of which those with these indexes have these digests, and all others are holes.
pub(super) fn map_of(size: u64, indexes: Vec<u64>, digests: Vec<Option<Digest>>) -> BlockMap {
    let mut blocks = vec![None; size.div_ceil(BLOCK) as usize];
    for (index, digest) in indexes.into_iter().zip(digests) {
        blocks[index as usize] = digest;
    }
    BlockMap { size, blocks }
}

/// The digests of the blocks of a disk of `size` bytes that is read from its beginning to its end, whatever it lies in.
///
/// # Errors
/// Whatever reading fails with.
pub fn block_map_of(disk: &mut impl io::Read, size: u64) -> io::Result<BlockMap> {
    let mut buffer = vec![0; BLOCK as usize];
    let mut blocks = Vec::new();
    let mut left = size;
    while left > 0 {
        let filled = left.min(BLOCK) as usize;
        disk.read_exact(&mut buffer[..filled])?;
        buffer[filled..].fill(0);
        blocks.push((!is_zero(&buffer)).then(|| Digest::of(&buffer)));
        left -= filled as u64;
    }
    Ok(BlockMap { size, blocks })
}

/// The identity of a disk image: see [`BlockMap::digest`].
///
/// # Errors
/// Whatever reading fails with.
pub fn block_digest(file: &File) -> io::Result<Digest> {
    Ok(block_map(file)?.digest())
}

/// SHA-256 of the whole file, holes read as the zeroes that they are: what `sha256sum` prints.
///
/// # Errors
/// Whatever reading fails with.
pub fn sha256(file: &File) -> io::Result<Digest> {
    static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
    let size = file.metadata()?.len();
    let mut hasher = Hasher::new();
    let hash_hole = |hasher: &mut Hasher, mut len: u64| {
        while len > 0 {
            let n = len.min(ZEROES.len() as u64);
            hasher.update(&ZEROES[..n as usize]);
            len -= n;
        }
    };
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    for range in data_ranges(file, size)? {
        hash_hole(&mut hasher, range.start - at);
        at = range.start;
        while at < range.end {
            let n = buffer.len().min((range.end - at) as usize);
            file.read_exact_at(&mut buffer[..n], at)?;
            hasher.update(&buffer[..n]);
            at += n as u64;
        }
    }
    hash_hole(&mut hasher, size - at);
    Ok(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(size: u64, pieces: &[(u64, &[u8])]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        for (at, bytes) in pieces {
            file.write_all_at(bytes, *at).unwrap();
        }
        file
    }

    #[test]
    fn holes_count_as_zeroes() {
        let size = 5 * BLOCK + 100;
        let zeroes = vec![0; 3 * BLOCK as usize];
        let sparse = file(size, &[(BLOCK + 7, b"data"), (5 * BLOCK + 99, b"x")]);
        let dense = file(size, &[(BLOCK, &zeroes), (BLOCK + 7, b"data"), (5 * BLOCK + 99, b"x")]);
        let map = block_map(&sparse).unwrap();
        assert_eq!(map, block_map(&dense).unwrap());
        assert_eq!((map.blocks.len(), map.used()), (6, 2));
        let mut last = vec![0; BLOCK as usize];
        last[99] = b'x';
        assert_eq!(map.blocks[5], Some(Digest::of(&last)));
        let other = file(size, &[(BLOCK + 7, b"Data"), (5 * BLOCK + 99, b"x")]);
        assert_eq!(map.differing(&block_map(&other).unwrap()), 1);
        assert_ne!(map.digest(), block_digest(&other).unwrap());
        assert_ne!(block_digest(&file(BLOCK, &[])).unwrap(), block_digest(&file(BLOCK + 1, &[])).unwrap());
        insta::assert_snapshot!(map.digest());
    }

    #[test]
    fn the_whole_files_digest_is_the_plain_one() {
        let size = 3 * BLOCK + 1;
        let sparse = file(size, &[(BLOCK + 5, b"middle")]);
        let mut bytes = vec![0; size as usize];
        bytes[BLOCK as usize + 5..][..6].copy_from_slice(b"middle");
        assert_eq!(sha256(&sparse).unwrap(), Digest::of(&bytes));
        assert_eq!(sha256(&file(0, &[])).unwrap(), Digest::of(b""));
    }
}
