//! On-disk formats: structures apart from their writers.
//!
//! Everything here is computed in memory or streamed into a writer that the caller gives; nothing opens a file by
//! name, looks at a clock or draws a random number, so equal values give equal bytes.

use std::ops::Range;

pub mod cpio;
pub mod ext4;
pub mod fat;
pub mod gpt;
pub mod jks;
pub mod mbr;
pub mod piece;
pub mod qcow2;
pub mod tar;

/// `ranges` in order, those that touch or overlap made one.
#[must_use]
pub fn merged(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}
