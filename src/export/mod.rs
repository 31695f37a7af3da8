//! Raw images into other formats: qcow2.
//!
//! The bytes of an export depend on the disk's bytes and the compression alone: not on how many threads there are, nor on
//! which holes the file system happens to keep. Clusters of zeroes are left out, data that don't shrink lie plainly.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rayon::prelude::*;

use crate::format::qcow2::{CLUSTER, Tables};
use crate::host::fs::{FileError, NewFile, data_ranges, is_zero};
use crate::host::interrupt::{Interrupted, check};
use crate::units::Bytes;

/// Clusters that are worked on at once: 8 MiB, in memory twice over.
const BATCH: usize = 128;

/// How the data of an export are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// With zstd; QEMU from 5.1 on reads it.
    Zstd {
        /// zstd's level; 3 is its default.
        level: i32,
    },
}

impl Default for Compression {
    fn default() -> Compression {
        Compression::Zstd { level: 3 }
    }
}

/// An export that failed.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The user asked to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// Writes the raw image `raw` as qcow2 to `out`, which appears when it is whole; gives the size of the file.
///
/// # Errors
/// [`ExportError`]; nothing is left behind.
pub fn qcow2(raw: &Path, out: &Path, compression: Compression) -> Result<Bytes, ExportError> {
    let source = File::open(raw).map_err(FileError::at("can't read", raw))?;
    let new = NewFile::at(out)?;
    let length = convert(&source, new.file(), compression).map_err(|e| match e {
        Failure::Read(e) => FileError::at("can't read", raw)(e).into(),
        Failure::Write(e) => FileError::at("can't write", out)(e).into(),
        Failure::Interrupted(e) => ExportError::Interrupted(e),
    })?;
    new.finish()?;
    Ok(Bytes(length))
}

/// Which file a failure was about.
enum Failure {
    Read(io::Error),
    Write(io::Error),
    Interrupted(Interrupted),
}

fn convert(source: &File, out: &File, compression: Compression) -> Result<u64, Failure> {
    let size = source.metadata().map_err(Failure::Read)?.len();
    let guests = data_clusters(source, size).map_err(Failure::Read)?;
    let mut writer = Writer {
        source,
        out,
        size,
        tables: Tables::new(size, compression != Compression::None),
        end: CLUSTER,
        plain: Vec::new(),
    };
    match compression {
        Compression::None => {
            for batch in guests.chunks(BATCH) {
                check().map_err(Failure::Interrupted)?;
                let data = batch.par_iter().map_init(buffer, |b, &guest| {
                    read(source, size, guest, b).map(|()| (!is_zero(b)).then_some(guest))
                });
                writer.plain.extend(
                    data.collect::<io::Result<Vec<_>>>().map_err(Failure::Read)?.into_iter().flatten(),
                );
            }
        }
        Compression::Zstd { level } => writer.compress_all(&guests, level)?,
    }
    writer.finish()
}

/// The clusters that hold any data, by index: what lies wholly in holes needn't be looked at.
fn data_clusters(source: &File, size: u64) -> io::Result<Vec<u64>> {
    let mut clusters: Vec<u64> = Vec::new();
    for range in data_ranges(source, size)? {
        let first = (range.start / CLUSTER).max(clusters.last().map_or(0, |last| last + 1));
        clusters.extend(first..range.end.div_ceil(CLUSTER));
    }
    Ok(clusters)
}

fn buffer() -> Vec<u8> {
    vec![0; CLUSTER as usize]
}

/// Reads a cluster of the disk; what the disk's end cuts off is zero.
fn read(source: &File, size: u64, guest: u64, buffer: &mut [u8]) -> io::Result<()> {
    let at = guest * CLUSTER;
    let filled = (size - at).min(CLUSTER) as usize;
    buffer[filled..].fill(0);
    source.read_exact_at(&mut buffer[..filled], at)
}

/// What became of a cluster.
enum Packed {
    Zero,
    /// It doesn't shrink.
    Plain,
    Compressed(Vec<u8>),
}

struct Writer<'a> {
    source: &'a File,
    out: &'a File,
    size: u64,
    tables: Tables,
    /// Where the next data go.
    end: u64,
    /// Clusters that are stored plainly. They come after the compressed ones, so that both kinds lie close together, and
    /// are copied from the source then, so that they need no memory.
    plain: Vec<u64>,
}

impl Writer<'_> {
    /// Compresses a batch while the one before is written.
    fn compress_all(&mut self, guests: &[u64], level: i32) -> Result<(), Failure> {
        let (source, size) = (self.source, self.size);
        let mut ready: Vec<(u64, Packed)> = Vec::new();
        for batch in guests.chunks(BATCH) {
            check().map_err(Failure::Interrupted)?;
            let before = std::mem::take(&mut ready);
            let (packed, written) =
                rayon::join(|| compress(source, size, batch, level), || self.write_batch(before));
            written?;
            ready = packed.map_err(Failure::Read)?;
        }
        self.write_batch(ready)
    }

    fn write_batch(&mut self, batch: Vec<(u64, Packed)>) -> Result<(), Failure> {
        let (start, mut bytes) = (self.end, Vec::new());
        for (guest, packed) in batch {
            match packed {
                Packed::Zero => {}
                Packed::Plain => self.plain.push(guest),
                Packed::Compressed(data) => {
                    self.tables.compressed(guest, self.end, data.len() as u64);
                    self.end += data.len() as u64;
                    bytes.extend_from_slice(&data);
                }
            }
        }
        self.out.write_all_at(&bytes, start).map_err(Failure::Write)
    }

    /// Copies the plain clusters, neighbours together, and writes the tables.
    fn finish(mut self) -> Result<u64, Failure> {
        self.end = self.end.next_multiple_of(CLUSTER);
        let plain = std::mem::take(&mut self.plain);
        for run in plain.chunk_by(|a, b| a + 1 == *b) {
            check().map_err(Failure::Interrupted)?;
            let start = run[0] * CLUSTER;
            let length = (run.len() as u64 * CLUSTER).min(self.size - start);
            copy(self.source, start, self.out, self.end, length)?;
            for &guest in run {
                self.tables.plain(guest, self.end);
                self.end += CLUSTER;
            }
        }
        let finished = self.tables.finish(self.end);
        for (at, bytes) in &finished.pieces {
            self.out.write_all_at(bytes, *at).map_err(Failure::Write)?;
        }
        self.out.set_len(finished.length).map_err(Failure::Write)?;
        Ok(finished.length)
    }
}

fn compress(source: &File, size: u64, batch: &[u64], level: i32) -> io::Result<Vec<(u64, Packed)>> {
    let worker = || zstd::bulk::Compressor::new(level).map(|compressor| (compressor, buffer()));
    let pack = |worker: &mut io::Result<(zstd::bulk::Compressor<'_>, Vec<u8>)>, &guest: &u64| {
        let (compressor, buffer) = worker.as_mut().map_err(|e| io::Error::new(e.kind(), e.to_string()))?;
        read(source, size, guest, buffer)?;
        if is_zero(buffer) {
            return Ok((guest, Packed::Zero));
        }
        let data = compressor.compress(buffer)?;
        Ok((guest, if data.len() < buffer.len() { Packed::Compressed(data) } else { Packed::Plain }))
    };
    batch.par_iter().map_init(worker, pack).collect()
}

/// Copies within the kernel where that is possible, which `io::copy` does between files: file systems that can share
/// blocks then copy nothing at all.
fn copy(mut from: &File, from_at: u64, mut to: &File, to_at: u64, length: u64) -> Result<(), Failure> {
    from.seek(SeekFrom::Start(from_at)).map_err(Failure::Read)?;
    to.seek(SeekFrom::Start(to_at)).map_err(Failure::Write)?;
    let copied = io::copy(&mut from.take(length), &mut to).map_err(Failure::Write)?;
    if copied < length { Err(Failure::Read(io::ErrorKind::UnexpectedEof.into())) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
