//! The qcow2 format, version 3 (QEMU's docs/interop/qcow2.txt): its header and tables, as bytes.
//!
//! An image is written once: first the header's cluster, which is filled in last, then the clusters' data wherever the
//! writer puts them, then the tables. [`Tables`] records where things went and makes the bytes.

pub mod read;

use crate::units::KIB;

/// Size of a cluster: QEMU's default.
pub const CLUSTER: u64 = 64 * KIB;
const CLUSTER_BITS: u32 = CLUSTER.trailing_zeros();
/// Entries of a second-level table, which fills a cluster.
const L2_ENTRIES: u64 = CLUSTER / 8;
/// Reference counts (of 16 bits) in a block, which fills a cluster.
const BLOCK_ENTRIES: u64 = CLUSTER / 2;
/// Set on an entry that names a cluster with a reference count of exactly one, which may be written in place.
const COPIED: u64 = 1 << 63;
/// Set on an entry that names compressed data.
const COMPRESSED: u64 = 1 << 62;
/// Where a compressed cluster's count of sectors stands in its entry.
const SECTORS_SHIFT: u32 = 62 - (CLUSTER_BITS - 8);
/// Incompatible feature: the header names a compression other than deflate.
const COMPRESSION_TYPE: u64 = 1 << 3;
const HEADER_LENGTH: u32 = 112;

/// Where everything of an image lies.
#[derive(Debug, Clone)]
pub struct Tables {
    size: u64,
    zstd: bool,
    l2: Vec<Option<Box<[u64]>>>,
    refcounts: Vec<u16>,
}

/// The image's end: tables to be written, and its length.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Bytes by their offset, the header's among them.
    pub pieces: Vec<(u64, Vec<u8>)>,
    /// The length of the whole file.
    pub length: u64,
}

impl Tables {
    /// Tables of an image of a disk of `size` bytes, whose compressed clusters are zstd's; the header has its place.
    #[must_use]
    pub fn new(size: u64, zstd: bool) -> Tables {
        let l1_entries = size.div_ceil(CLUSTER).div_ceil(L2_ENTRIES);
        let mut tables = Tables { size, zstd, l2: vec![None; l1_entries as usize], refcounts: Vec::new() };
        tables.refer(0, CLUSTER);
        tables
    }

    /// The disk's cluster `guest` lies plainly at `host`, a multiple of the cluster's size.
    pub fn plain(&mut self, guest: u64, host: u64) {
        self.refer(host, CLUSTER);
        self.set(guest, host | COPIED);
    }

    /// The disk's cluster `guest` lies compressed in `length` bytes at `host`.
    pub fn compressed(&mut self, guest: u64, host: u64, length: u64) {
        self.refer(host, length);
        let more_sectors = (host + length - 1) / 512 - host / 512;
        self.set(guest, COMPRESSED | more_sectors << SECTORS_SHIFT | host);
    }

    /// The tables and the header, when all data lie before `end`.
    #[must_use]
    pub fn finish(mut self, end: u64) -> Finished {
        let mut pieces = Vec::new();
        let mut at = end.next_multiple_of(CLUSTER);
        let mut l1 = vec![0; self.l2.len()];
        for (index, table) in std::mem::take(&mut self.l2).into_iter().enumerate() {
            if let Some(table) = table {
                l1[index] = at | COPIED;
                self.place(&mut pieces, &mut at, big_endian(&table));
            }
        }
        let l1_entries = l1.len() as u32;
        // A disk without a cluster has no table; its place must be one all the same.
        let l1_offset = at;
        let l1 = if l1.is_empty() { vec![0; 8] } else { big_endian(&l1) };
        self.place(&mut pieces, &mut at, l1);
        let (table_offset, table_clusters, length) = self.place_refcounts(&mut pieces, at);
        let mut header = b"QFI\xfb".to_vec();
        let mut put = |bytes: &[u8]| header.extend_from_slice(bytes);
        put(&3u32.to_be_bytes());
        put(&[0; 12]); // no backing file
        put(&CLUSTER_BITS.to_be_bytes());
        put(&self.size.to_be_bytes());
        put(&[0; 4]); // not encrypted
        put(&l1_entries.to_be_bytes());
        put(&l1_offset.to_be_bytes());
        put(&table_offset.to_be_bytes());
        put(&(table_clusters as u32).to_be_bytes());
        put(&[0; 12]); // no snapshots
        put(&(if self.zstd { COMPRESSION_TYPE } else { 0 }).to_be_bytes());
        put(&[0; 16]); // no compatible or autoclear features
        put(&4u32.to_be_bytes()); // reference counts of 2⁴ bits
        put(&HEADER_LENGTH.to_be_bytes());
        put(&[u8::from(self.zstd), 0, 0, 0, 0, 0, 0, 0]);
        put(&[0; 8]); // no extensions
        pieces.push((0, header));
        Finished { pieces, length }
    }

    fn place(&mut self, pieces: &mut Vec<(u64, Vec<u8>)>, at: &mut u64, bytes: Vec<u8>) {
        self.refer(*at, bytes.len() as u64);
        let length = (bytes.len() as u64).next_multiple_of(CLUSTER);
        pieces.push((*at, bytes));
        *at += length;
    }

    /// The blocks of reference counts, which count themselves, and the table of them; its offset, clusters, and the end.
    fn place_refcounts(&mut self, pieces: &mut Vec<(u64, Vec<u8>)>, at: u64) -> (u64, u64, u64) {
        let before = at / CLUSTER;
        let (mut blocks, mut table) = (1, 1);
        loop {
            let needed = (before + blocks + table).div_ceil(BLOCK_ENTRIES);
            let needed_table = (needed * 8).div_ceil(CLUSTER);
            if (needed, needed_table) == (blocks, table) {
                break;
            }
            (blocks, table) = (needed, needed_table);
        }
        let total = before + blocks + table;
        self.refcounts.resize(total as usize, 0);
        self.refcounts[before as usize..].fill(1);
        let mut bytes: Vec<u8> = self.refcounts.iter().flat_map(|count| count.to_be_bytes()).collect();
        bytes.resize((blocks * CLUSTER) as usize, 0);
        pieces.push((at, bytes));
        let offsets: Vec<u64> = (0..blocks).map(|block| at + block * CLUSTER).collect();
        let table_offset = at + blocks * CLUSTER;
        pieces.push((table_offset, big_endian(&offsets)));
        (table_offset, table, total * CLUSTER)
    }

    fn refer(&mut self, host: u64, length: u64) {
        let (first, last) = ((host / CLUSTER) as usize, ((host + length - 1) / CLUSTER) as usize);
        if self.refcounts.len() <= last {
            self.refcounts.resize(last + 1, 0);
        }
        for count in &mut self.refcounts[first..=last] {
            *count += 1;
        }
    }

    fn set(&mut self, guest: u64, entry: u64) {
        let table = &mut self.l2[(guest / L2_ENTRIES) as usize];
        table.get_or_insert_with(|| vec![0; L2_ENTRIES as usize].into())[(guest % L2_ENTRIES) as usize] =
            entry;
    }
}

fn big_endian(entries: &[u64]) -> Vec<u8> {
    entries.iter().flat_map(|entry| entry.to_be_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::{Digest, hex};

    #[test]
    fn the_bytes_are_pinned() {
        let mut tables = Tables::new(10 << 30, true);
        tables.compressed(0, CLUSTER, 1000);
        tables.compressed(8191, CLUSTER + 1000, 65_000);
        tables.plain(8192, 3 * CLUSTER);
        let finished = tables.finish(4 * CLUSTER);
        let dump = |(at, bytes): &(u64, Vec<u8>)| {
            let head = hex(&bytes[..bytes.len().min(160)]);
            format!("{at:#x}: {} bytes, {}\n  {head}\n", bytes.len(), Digest::of(bytes).short())
        };
        let text: String = finished.pieces.iter().map(dump).collect();
        insta::assert_snapshot!(format!("{text}length {:#x}", finished.length));
    }

    #[test]
    fn blocks_of_counts_count_themselves() {
        // Just so many clusters that the first block's own cluster no longer fits into it.
        for clusters in [BLOCK_ENTRIES - 4, BLOCK_ENTRIES - 3, BLOCK_ENTRIES - 2, BLOCK_ENTRIES] {
            let finished = Tables::new(1 << 30, false).finish(clusters * CLUSTER);
            let used = finished.length / CLUSTER;
            let (_, blocks) = &finished.pieces[finished.pieces.len() - 3];
            let counted = blocks.len() as u64 / 2;
            assert!(counted >= used && counted < used + BLOCK_ENTRIES, "{clusters}: {counted} for {used}");
        }
    }
}
