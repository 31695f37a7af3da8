//! A part of a file, read as a file of its own.

use std::io::{self, Read, Seek, SeekFrom};

use super::fs::sought;

/// A partition of a disk, or the like.
#[derive(Debug)]
pub struct Part<D> {
    whole: D,
    start: u64,
    size: u64,
    position: u64,
}

impl<D: Read + Seek> Part<D> {
    /// The `size` bytes of `whole` from `start` on.
    pub fn new(whole: D, start: u64, size: u64) -> Part<D> {
        Part { whole, start, size, position: 0 }
    }
}

impl<D: Read + Seek> Read for Part<D> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let count = self.size.saturating_sub(self.position).min(to.len() as u64) as usize;
        self.whole.seek(SeekFrom::Start(self.start + self.position))?;
        let count = self.whole.read(&mut to[..count])?;
        self.position += count as u64;
        Ok(count)
    }
}

impl<D> Seek for Part<D> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.position = sought(self.position, self.size, to)?;
        Ok(self.position)
    }
}
