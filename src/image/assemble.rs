//! A disk out of its pieces: block by block, each read, hashed and written once, in parallel.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rayon::prelude::*;

use super::blocks::{blocks_of, map_of};
use crate::artifact::{BLOCK, BlockMap};
use crate::digest::Digest;
use crate::format::piece::{Data, Piece};
use crate::host::fs::is_zero;
use crate::tree::{Content, Packs};

/// Writes the pieces into `file`, which is new and has `size` bytes; answers the digests of its blocks. Blocks of zeroes
/// are left as holes.
///
/// # Errors
/// Whatever reading or writing fails with; pieces that overlap or lie outside.
pub(super) fn assemble(
    file: &File,
    size: u64,
    mut pieces: Vec<Piece<'_>>,
    packs: &dyn Packs,
) -> io::Result<BlockMap> {
    pieces.retain(|piece| piece.end() > piece.at);
    pieces.sort_by_key(|piece| piece.at);
    let apart = pieces.windows(2).all(|pair| pair[0].end() <= pair[1].at);
    if !apart || pieces.last().is_some_and(|last| last.end() > size) {
        return Err(io::Error::other("parts of the disk overlap"));
    }
    let disk = Pieces { packs: open_packs(&pieces, packs)?, pieces };
    let indexes = blocks_of(disk.pieces.iter().map(|piece| piece.at..piece.end()));
    let digests: Vec<Option<Digest>> = indexes
        .par_iter()
        .with_min_len(8)
        .map_init(
            || vec![0; BLOCK as usize],
            |buffer, index| {
                if crate::host::interrupt::check().is_err() {
                    return Err(io::Error::other("interrupted"));
                }
                let at = index * BLOCK;
                let used = disk.read(at, buffer)?;
                if is_zero(buffer) {
                    return Ok(None);
                }
                file.write_all_at(&buffer[used.clone()], at + used.start as u64)?;
                Ok(Some(Digest::of(buffer)))
            },
        )
        .collect::<io::Result<_>>()?;
    Ok(map_of(size, indexes, digests))
}

/// Pieces in order, with the packs that they lie in.
struct Pieces<'a> {
    pieces: Vec<Piece<'a>>,
    packs: BTreeMap<Digest, Arc<File>>,
}

fn open_packs(pieces: &[Piece<'_>], packs: &dyn Packs) -> io::Result<BTreeMap<Digest, Arc<File>>> {
    let mut opened = BTreeMap::new();
    for piece in pieces {
        if let Data::File { content: Content::Packed { pack, .. }, .. } = &piece.data
            && !opened.contains_key(pack)
        {
            opened.insert(*pack, packs.open(pack)?);
        }
    }
    Ok(opened)
}

impl Pieces<'_> {
    /// Reads the block at `at`; says which part of it has pieces.
    fn read(&self, at: u64, buffer: &mut [u8]) -> io::Result<Range<usize>> {
        let end = at + BLOCK;
        let first = self.pieces.partition_point(|piece| piece.end() <= at);
        let mut used: Option<Range<usize>> = None;
        // What lies between two pieces is zero, and so is what an earlier block left in the buffer to be.
        let mut filled = 0;
        for piece in self.pieces[first..].iter().take_while(|piece| piece.at < end) {
            let (from, to) = (piece.at.max(at), piece.end().min(end));
            let place = (from - at) as usize..(to - at) as usize;
            buffer[filled..place.start].fill(0);
            self.copy(piece, from - piece.at, &mut buffer[place.clone()])?;
            filled = place.end;
            used = Some(used.map_or(place.start, |used| used.start)..place.end);
        }
        buffer[filled..].fill(0);
        Ok(used.unwrap_or(0..0))
    }

    /// Copies what lies at `offset` of the piece.
    fn copy(&self, piece: &Piece<'_>, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let plain = |bytes: &[u8], start: u64, out: &mut [u8]| {
            let bytes = bytes.get(start as usize..start as usize + out.len());
            bytes.map(|bytes| out.copy_from_slice(bytes)).ok_or(io::ErrorKind::UnexpectedEof.into())
        };
        match &piece.data {
            Data::Bytes(bytes) => plain(bytes, offset, out),
            Data::File { content: Content::Bytes(bytes), offset: start, .. } => {
                plain(bytes, start + offset, out)
            }
            Data::File { content: Content::Packed { pack, offset: base, .. }, offset: start, .. } => {
                let place = base.checked_add(start + offset).ok_or(io::ErrorKind::InvalidData)?;
                let file = self.packs.get(pack).ok_or(io::ErrorKind::NotFound)?;
                file.read_exact_at(out, place)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::block_map;
    use crate::tree::NoPacks;

    #[test]
    fn pieces_come_to_their_places_and_the_rest_is_holes() {
        let content = Content::bytes(vec![7; 3 * BLOCK as usize]);
        let part =
            Piece { at: BLOCK - 10, data: Data::File { content: &content, offset: 5, len: 2 * BLOCK } };
        let size = 9 * BLOCK + 512;
        let pieces = vec![
            part,
            Piece::bytes(5 * BLOCK, vec![0; 4096]),
            Piece::bytes(0, b"first".to_vec()),
            Piece::bytes(size - 4, b"last".to_vec()),
        ];
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        let map = assemble(&file, size, pieces, &NoPacks).unwrap();
        assert_eq!((map.used(), map.blocks[5]), (4, None));
        assert_eq!(map, block_map(&file).unwrap());
        let mut all = vec![0; size as usize];
        all[..5].copy_from_slice(b"first");
        all[BLOCK as usize - 10..][..2 * BLOCK as usize].fill(7);
        all[size as usize - 4..].copy_from_slice(b"last");
        let mut read = vec![0; size as usize];
        file.read_exact_at(&mut read, 0).unwrap();
        assert!(read == all);
    }

    #[test]
    fn pieces_that_overlap_are_refused() {
        let file = tempfile::tempfile().unwrap();
        let wrong = |pieces| assemble(&file, 100, pieces, &NoPacks).is_err();
        assert!(wrong(vec![Piece::bytes(5, vec![1; 5]), Piece::bytes(0, vec![1; 6])]));
        assert!(wrong(vec![Piece::bytes(96, vec![1; 5])]));
    }
}
