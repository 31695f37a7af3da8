//! Reading qcow2 images of versions 2 and 3, of any maker: the disk within, as bytes.
//!
//! Clusters may be plain, compressed by deflate or zstd, zero, or absent. What needs another file or a key is refused.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Seek, SeekFrom};
use std::rc::Rc;

use flate2::{Decompress, FlushDecompress};

use super::{COMPRESSED, COMPRESSION_TYPE};
use crate::host::fs::sought;

/// The largest first-level table that QEMU takes.
const MOST_L1: u64 = 32 << 20;
/// Second-level tables that are kept.
const KEPT_TABLES: usize = 16;
/// Unpacked clusters that are kept.
const KEPT_CLUSTERS: usize = 8;
/// The bits of an entry that are an offset in the file.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Set on an entry whose cluster is zero, whatever lies in the file.
const ZERO: u64 = 1;
/// Incompatible features: reference counts may be wrong (which reading doesn't need), found to be damaged, external data,
/// second-level entries of 128 bits.
const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const EXTENDED_L2: u64 = 1 << 4;

/// An image that can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Another format.
    #[error("this is no qcow2 image: its first bytes are not QFI\\xfb")]
    NotQcow2,
    /// A version of the future, or of long ago.
    #[error("qcow2 of version {0} can't be read: convert it with `qemu-img convert -O qcow2`")]
    Version(u32),
    /// It holds only what differs from another file.
    #[error(
        "it holds only what differs from its backing file `{0}`: make it whole with `qemu-img convert -O qcow2`"
    )]
    Backing(String),
    /// It is encrypted.
    #[error("it is encrypted: convert it with `qemu-img convert` and its key")]
    Encrypted,
    /// Its data are in another file.
    #[error("its data are in another file: make it whole with `qemu-img convert -O qcow2`")]
    ExternalData,
    /// Entries of 128 bits.
    #[error("it has extended L2 entries: convert it with `qemu-img convert -O qcow2 -o extended_l2=off`")]
    ExtendedL2,
    /// Further features.
    #[error(
        "it needs features that aren't known here (bits {0:#x}): convert it with `qemu-img convert -O qcow2`"
    )]
    Features(u64),
    /// A compression that isn't known.
    #[error(
        "its clusters are compressed by method {0}, which isn't known here: convert it with `qemu-img convert`"
    )]
    Compression(u8),
    /// Its structures contradict themselves.
    #[error("the qcow2 image is damaged: {0}; look at it with `qemu-img check`")]
    Damaged(String),
    /// Reading failed.
    #[error("can't read the qcow2 image: {0}")]
    Io(#[from] io::Error),
}

/// The disk in an image: reads and seeks as the raw disk would.
#[derive(Debug)]
pub struct Reader<F> {
    file: F,
    /// Length of the file.
    length: u64,
    size: u64,
    cluster_bits: u32,
    version: u32,
    zstd: bool,
    l1: Vec<u64>,
    tables: HashMap<u64, Rc<[u64]>>,
    unpacked: VecDeque<(u64, Rc<[u8]>)>,
    position: u64,
}

/// Where a cluster's bytes come from.
enum Place {
    Zero,
    Plain(u64),
    Packed { at: u64, length: u64 },
}

fn damaged(what: impl Into<String>) -> ReadError {
    ReadError::Damaged(what.into())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) << 32 | u64::from(u32_at(bytes, at + 4))
}

/// Reads `count` bytes at `at`, fewer where the file ends.
fn up_to(file: &mut (impl Read + Seek), at: u64, count: u64) -> io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(at))?;
    let mut bytes = Vec::new();
    file.take(count).read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl<F: Read + Seek> Reader<F> {
    /// Reads the header and the first table.
    ///
    /// # Errors
    /// [`ReadError`] when this is no image, or one that can't be read.
    pub fn open(mut file: F) -> Result<Reader<F>, ReadError> {
        let length = file.seek(SeekFrom::End(0))?;
        let h = up_to(&mut file, 0, 112)?;
        if !h.starts_with(b"QFI\xfb") {
            return Err(ReadError::NotQcow2);
        }
        let version = u32_at(&h, 4);
        if !(2..=3).contains(&version) {
            return Err(ReadError::Version(version));
        }
        let zstd = features(&h, version)?;
        if u64_at(&h, 8) != 0 {
            let name = up_to(&mut file, u64_at(&h, 8), u64::from(u32_at(&h, 16)).min(1023))?;
            return Err(ReadError::Backing(String::from_utf8_lossy(&name).into_owned()));
        }
        if u32_at(&h, 32) != 0 {
            return Err(ReadError::Encrypted);
        }
        let (cluster_bits, size) = (u32_at(&h, 20), u64_at(&h, 24));
        if !(9..=21).contains(&cluster_bits) {
            return Err(damaged(format!("its clusters have 2^{cluster_bits} bytes")));
        }
        // A second-level table fills a cluster and covers as many clusters as it has entries of 8 bytes.
        let covered = 1u64 << (2 * cluster_bits - 3);
        let (entries, at) = (size.div_ceil(covered), u64_at(&h, 40));
        let bytes = entries.saturating_mul(8);
        if bytes > MOST_L1 || entries > u64::from(u32_at(&h, 36)) {
            return Err(damaged(format!(
                "its first table is too small for a disk of {size} bytes, or too large"
            )));
        }
        let table = up_to(&mut file, at, bytes)?;
        if (table.len() as u64) < bytes {
            return Err(damaged("its first table lies behind the file's end"));
        }
        let l1 = table.chunks_exact(8).map(|entry| u64_at(entry, 0)).collect();
        let (tables, unpacked) = (HashMap::new(), VecDeque::new());
        Ok(Reader { file, length, size, cluster_bits, version, zstd, l1, tables, unpacked, position: 0 })
    }

    /// The disk's size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Where the guest's cluster `index` lies.
    fn place(&mut self, index: u64) -> Result<Place, ReadError> {
        let entries = self.cluster() / 8;
        let l1 = self.l1.get((index / entries) as usize).copied().unwrap_or(0) & OFFSET;
        if l1 == 0 {
            return Ok(Place::Zero);
        }
        let entry = self.table(l1)?[(index % entries) as usize];
        if entry & COMPRESSED != 0 {
            let shift = 62 - (self.cluster_bits - 8);
            let at = entry & ((1 << shift) - 1);
            let sectors = (entry & !(COMPRESSED | 1 << 63)) >> shift;
            return Ok(Place::Packed { at, length: (sectors + 1) * 512 - at % 512 });
        }
        let at = entry & OFFSET;
        if at == 0 || (self.version >= 3 && entry & ZERO != 0) {
            return Ok(Place::Zero);
        }
        if !at.is_multiple_of(self.cluster()) || at >= self.length {
            return Err(damaged(format!("cluster {index} is said to lie at {at:#x}")));
        }
        Ok(Place::Plain(at))
    }

    fn table(&mut self, at: u64) -> Result<Rc<[u64]>, ReadError> {
        if let Some(table) = self.tables.get(&at) {
            return Ok(table.clone());
        }
        let cluster = self.cluster();
        let bytes = up_to(&mut self.file, at, cluster)?;
        if !at.is_multiple_of(cluster) || (bytes.len() as u64) < cluster {
            return Err(damaged(format!("a table is said to lie at {at:#x}")));
        }
        if self.tables.len() >= KEPT_TABLES {
            self.tables.clear();
        }
        let table: Rc<[u64]> = bytes.chunks_exact(8).map(|entry| u64_at(entry, 0)).collect();
        self.tables.insert(at, table.clone());
        Ok(table)
    }

    /// A compressed cluster's bytes.
    fn unpack(&mut self, index: u64, at: u64, length: u64) -> Result<Rc<[u8]>, ReadError> {
        if let Some((_, bytes)) = self.unpacked.iter().find(|(kept, _)| *kept == index) {
            return Ok(bytes.clone());
        }
        // The last sector of the file need not be whole.
        let packed = up_to(&mut self.file, at, length)?;
        let mut bytes = vec![0; self.cluster() as usize];
        let whole =
            if self.zstd { unpack_zstd(&packed, &mut bytes) } else { unpack_deflate(&packed, &mut bytes) };
        if !whole {
            return Err(damaged(format!("the compressed cluster {index} can't be unpacked")));
        }
        let bytes: Rc<[u8]> = bytes.into();
        if self.unpacked.len() >= KEPT_CLUSTERS {
            self.unpacked.pop_front();
        }
        self.unpacked.push_back((index, bytes.clone()));
        Ok(bytes)
    }

    /// Reads within one cluster.
    fn read_cluster(&mut self, to: &mut [u8]) -> Result<usize, ReadError> {
        let (index, within) = (self.position / self.cluster(), self.position % self.cluster());
        let left = (self.cluster() - within).min(self.size.saturating_sub(self.position));
        let count = left.min(to.len() as u64) as usize;
        let to = &mut to[..count];
        if count == 0 {
            return Ok(0);
        }
        match self.place(index)? {
            Place::Zero => to.fill(0),
            Place::Plain(at) => {
                let bytes = up_to(&mut self.file, at + within, count as u64)?;
                // The last cluster of the file need not be whole.
                to[..bytes.len()].copy_from_slice(&bytes);
                to[bytes.len()..].fill(0);
            }
            Place::Packed { at, length } => {
                let bytes = self.unpack(index, at, length)?;
                to.copy_from_slice(&bytes[within as usize..within as usize + count]);
            }
        }
        self.position += count as u64;
        Ok(count)
    }
}

/// Refuses what can't be read; whether clusters are compressed by zstd.
fn features(header: &[u8], version: u32) -> Result<bool, ReadError> {
    if version < 3 {
        return Ok(false);
    }
    let bits = u64_at(header, 72);
    if bits & EXTERNAL_DATA != 0 {
        return Err(ReadError::ExternalData);
    }
    if bits & EXTENDED_L2 != 0 {
        return Err(ReadError::ExtendedL2);
    }
    if bits & CORRUPT != 0 {
        return Err(damaged("it says so itself"));
    }
    match bits & !(DIRTY | COMPRESSION_TYPE) {
        0 => {}
        unknown => return Err(ReadError::Features(unknown)),
    }
    let method = if bits & COMPRESSION_TYPE == 0 { 0 } else { header.get(104).copied().unwrap_or(0) };
    match method {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(ReadError::Compression(other)),
    }
}

/// Whether all of `to` could be filled.
fn unpack_deflate(packed: &[u8], to: &mut [u8]) -> bool {
    let mut inflate = Decompress::new(false);
    // What lies behind the stream's end, in its last sector, is another cluster's.
    inflate.decompress(packed, to, FlushDecompress::Finish).is_ok() && inflate.total_out() == to.len() as u64
}

fn unpack_zstd(packed: &[u8], to: &mut [u8]) -> bool {
    zstd::stream::read::Decoder::with_buffer(packed).is_ok_and(|d| d.single_frame().read_exact(to).is_ok())
}

impl<F: Read + Seek> Read for Reader<F> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        self.read_cluster(to).map_err(|e| match e {
            ReadError::Io(e) => e,
            other => io::Error::new(io::ErrorKind::InvalidData, other),
        })
    }
}

impl<F> Seek for Reader<F> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.position = sought(self.position, self.size, to)?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{CLUSTER, Tables};
    use super::*;
    use proptest::prelude::*;
    use std::fs::{self, File};
    use std::io::{Cursor, Write};
    use std::path::Path;
    use std::process::Command;

    /// What a cluster of a test's image holds.
    #[derive(Debug, Clone, Copy)]
    enum Holds {
        Nothing,
        Plain(u8),
        Packed(u8),
    }

    fn content(seed: u8) -> Vec<u8> {
        (0..CLUSTER).map(|n| (n / (1 + u64::from(seed))) as u8 ^ seed).collect()
    }

    fn deflate(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// An image with our tables, and the disk that it holds.
    fn image(clusters: &[(u64, Holds)], size: u64, zstd: bool) -> (Vec<u8>, BTreeMapDisk) {
        let mut tables = Tables::new(size, zstd);
        let mut file = vec![0; CLUSTER as usize];
        let mut disk = BTreeMapDisk::new();
        for &(guest, holds) in clusters {
            if disk.contains_key(&guest) {
                continue;
            }
            match holds {
                Holds::Nothing => continue,
                Holds::Plain(seed) => {
                    file.resize(file.len().next_multiple_of(CLUSTER as usize), 0);
                    tables.plain(guest, file.len() as u64);
                    file.extend(content(seed));
                    disk.insert(guest, content(seed));
                }
                Holds::Packed(seed) => {
                    let plain = content(seed);
                    let packed =
                        if zstd { zstd::bulk::compress(&plain, 3).unwrap() } else { deflate(&plain) };
                    tables.compressed(guest, file.len() as u64, packed.len() as u64);
                    file.extend(packed);
                    disk.insert(guest, plain);
                }
            }
        }
        let finished = tables.finish(file.len() as u64);
        file.resize(finished.length as usize, 0);
        for (at, bytes) in finished.pieces {
            file[at as usize..at as usize + bytes.len()].copy_from_slice(&bytes);
        }
        (file, disk)
    }

    type BTreeMapDisk = std::collections::BTreeMap<u64, Vec<u8>>;

    fn holds() -> impl Strategy<Value = Holds> {
        prop_oneof![
            Just(Holds::Nothing),
            any::<u8>().prop_map(Holds::Plain),
            any::<u8>().prop_map(Holds::Packed)
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn what_our_tables_describe_is_read(
            clusters in proptest::collection::vec((0u64..9000, holds()), 0..9),
            zstd in any::<bool>(),
            reads in proptest::collection::vec((0u64..9000 * CLUSTER, 1usize..200_000), 1..9),
        ) {
            let size = 9000 * CLUSTER - 777;
            let (file, disk) = image(&clusters, size, zstd);
            let zero = vec![0; CLUSTER as usize];
            let mut reader = Reader::open(Cursor::new(file)).unwrap();
            prop_assert_eq!(reader.seek(SeekFrom::End(0)).unwrap(), size);
            let near = clusters.iter().map(|&(guest, _)| (guest * CLUSTER + 100, 150_000));
            for (at, count) in reads.into_iter().chain(near) {
                let mut bytes = Vec::new();
                reader.seek(SeekFrom::Start(at)).unwrap();
                (&mut reader).take(count as u64).read_to_end(&mut bytes).unwrap();
                prop_assert_eq!(bytes.len() as u64, (count as u64).min(size.saturating_sub(at)));
                // Compared cluster by cluster, which is much faster than byte by byte.
                let mut from = 0;
                while from < bytes.len() {
                    let place = at + from as u64;
                    let within = (place % CLUSTER) as usize;
                    let to = bytes.len().min(from + CLUSTER as usize - within);
                    let wanted = disk.get(&(place / CLUSTER)).unwrap_or(&zero);
                    prop_assert!(bytes[from..to] == wanted[within..within + to - from]);
                    from = to;
                }
            }
        }

        #[test]
        fn damage_is_an_error_and_no_panic(
            holes in proptest::collection::vec((0usize..112, any::<u8>()), 0..4),
            more in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..40),
            zstd in any::<bool>(),
        ) {
            let clusters = [(0, Holds::Packed(3)), (1, Holds::Plain(4)), (8192, Holds::Packed(0))];
            let (mut file, _) = image(&clusters, 8200 * CLUSTER, zstd);
            let length = file.len();
            for (at, byte) in holes.into_iter().chain(more.into_iter().map(|(i, b)| (i.index(length), b))) {
                file[at] = byte;
            }
            if let Ok(mut reader) = Reader::open(Cursor::new(file)) {
                for at in [0, CLUSTER, 8192 * CLUSTER] {
                    let mut bytes = [0; 4096];
                    let _ = reader.seek(SeekFrom::Start(at));
                    let _ = reader.read(&mut bytes);
                }
            }
        }
    }

    fn run(program: &str, args: &[&str], folder: &Path) {
        let output = Command::new(program).args(args).current_dir(folder).output().unwrap();
        assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// A raw disk with text, noise and holes, and an odd length.
    fn raw(folder: &Path) -> Vec<u8> {
        let mut bytes = vec![0; (3 << 20) + 512];
        let mut state = 1u32;
        for (n, byte) in bytes.iter_mut().enumerate() {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte = match n >> 18 {
                0 | 5 => (n / 64) as u8,
                2 | 9 | 12 => (state >> 24) as u8,
                _ => 0,
            };
        }
        fs::write(folder.join("raw"), &bytes).unwrap();
        bytes
    }

    #[test]
    fn what_qemu_writes_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let wanted = raw(folder.path());
        for options in [
            &["-o", "compat=1.1"][..],
            &["-o", "compat=0.10"],
            &["-c", "-o", "compat=0.10,cluster_size=4096"],
            &["-c"],
            &["-c", "-o", "compression_type=zstd"],
            &["-c", "-o", "compression_type=zstd,cluster_size=2M"],
            &["-S", "0", "-o", "cluster_size=512"],
            &["-o", "preallocation=metadata,lazy_refcounts=on"],
        ] {
            let convert = [&["convert", "-O", "qcow2"], options, &["raw", "image"]].concat();
            run("qemu-img", &convert, folder.path());
            let mut reader = Reader::open(File::open(folder.path().join("image")).unwrap()).unwrap();
            let mut read = Vec::new();
            reader.read_to_end(&mut read).unwrap();
            assert!(read == wanted, "{options:?}");
        }
    }

    #[test]
    fn zero_clusters_are_zero() {
        let folder = tempfile::tempdir().unwrap();
        let mut wanted = raw(folder.path());
        run("qemu-img", &["convert", "-O", "qcow2", "raw", "image"], folder.path());
        run(
            "qemu-io",
            &["-f", "qcow2", "-c", "write -z 512k 128k", "-c", "write -z -u 0 64k", "image"],
            folder.path(),
        );
        wanted[512 << 10..640 << 10].fill(0);
        wanted[..64 << 10].fill(0);
        let mut read = Vec::new();
        let image = File::open(folder.path().join("image")).unwrap();
        Reader::open(image).unwrap().read_to_end(&mut read).unwrap();
        assert!(read == wanted);
    }

    #[test]
    fn what_needs_more_than_the_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        raw(folder.path());
        let mut said = Vec::new();
        for options in [
            &["-b", "raw", "-F", "raw"][..],
            &["-o", "data_file=other,data_file_raw=on"],
            &["-o", "extended_l2=on"],
        ] {
            let create = [&["create", "-q", "-f", "qcow2"], options, &["image", "4M"]].concat();
            run("qemu-img", &create, folder.path());
            let image = File::open(folder.path().join("image")).unwrap();
            said.push(Reader::open(image).unwrap_err().to_string());
        }
        let of = |bytes: &[u8]| Reader::open(Cursor::new(bytes.to_vec())).unwrap_err().to_string();
        said.push(of(b"QFI\xfb\0\0\0\x01"));
        said.push(of(b"KDMV"));
        let (mut encrypted, _) = image(&[], CLUSTER, false);
        encrypted[35] = 2;
        said.push(of(&encrypted));
        let (mut unknown, _) = image(&[], CLUSTER, false);
        unknown[72] = 1;
        said.push(of(&unknown));
        let (mut marked, _) = image(&[], CLUSTER, false);
        marked[79] = 2;
        said.push(of(&marked));
        insta::assert_snapshot!(said.join("\n"));
    }
}
