//! FAT32 volumes, written once: "Microsoft Extensible Firmware Initiative FAT32 File System Specification" 1.03.
//!
//! A volume is planned first, so that a missing byte is known before one is written; then each piece goes to its place.
//! Files and directories lie contiguous in the order of their paths, and times are the caller's, so that equal files give
//! equal bytes.

mod names;
pub mod read;

use std::collections::BTreeMap;
use std::io;

use crate::units::{Bytes, MIB, SECTOR};
use names::{Name, NameError};

/// Sectors before the first table: boot sector, FSInfo, their copies; 32 is what everybody uses for FAT32.
const RESERVED: u64 = 32;
/// Copies of the table.
const TABLES: u64 = 2;
/// Below this count of clusters a volume is FAT16 whatever its boot sector says; the specification advises to keep 16
/// away from the border, because drivers count differently.
const MIN_CLUSTERS: u64 = 65_525 + 16;
/// Entries of the table that stand for no cluster; the first cluster has this number.
const FIRST_CLUSTER: u32 = 2;
const END_OF_CHAIN: u32 = 0x0fff_ffff;
/// Size of a directory's entry.
const ENTRY: usize = 32;
const DIRECTORY: u8 = 0x10;
const ARCHIVE: u8 = 0x20;
const VOLUME_LABEL: u8 = 0x08;
const LONG_NAME: u8 = 0x0f;

/// A volume to be written.
#[derive(Debug, Clone)]
pub struct Volume<'a> {
    /// Its size.
    pub size: Bytes,
    /// Sectors of the disk before it.
    pub hidden_sectors: u32,
    /// Its serial number.
    pub id: u32,
    /// Its label: at most 11 of the letters that short names may have.
    pub label: &'a str,
    /// Time of all files and directories, in seconds since 1970; clamped to the years 1980 to 2107.
    pub time: i64,
    /// Files by path, parts separated by slashes; directories come from the paths.
    pub files: &'a BTreeMap<String, Vec<u8>>,
}

/// A volume that can't be written.
#[derive(Debug, thiserror::Error)]
pub enum FatError {
    /// Too small to be FAT32 at all.
    #[error("a FAT32 file system of {size} is not possible: it takes at least {}", Bytes(33 * MIB))]
    NotFat32 {
        /// The size asked for.
        size: Bytes,
    },
    /// The files don't fit.
    #[error("its files take {need} of an EFI system partition, but it holds only {room} ({size} in all)")]
    Full {
        /// What the files and directories take.
        need: Bytes,
        /// What the volume holds.
        room: Bytes,
        /// The volume's size.
        size: Bytes,
    },
    /// A name that FAT can't hold.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A file of 4 GiB or more, or a path that is both a file and a directory.
    #[error("`{path}` {why}")]
    File {
        /// The file.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Writing failed.
    #[error("can't write a FAT32 file system: {0}")]
    Io(#[from] io::Error),
}

/// A file or directory while the volume is planned.
enum Node<'a> {
    Dir(BTreeMap<&'a str, Node<'a>>),
    File(&'a [u8]),
}

/// The volume's measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Geometry {
    sectors: u64,
    sectors_per_cluster: u64,
    table_sectors: u64,
    clusters: u64,
}

/// Clusters in a row, and the bytes that go into them.
struct Run<'a> {
    first: u32,
    clusters: u32,
    bytes: std::borrow::Cow<'a, [u8]>,
}

impl Geometry {
    fn of(size: Bytes) -> Result<Geometry, FatError> {
        let sectors = size.0 / SECTOR;
        // The specification's table of cluster sizes for FAT32.
        let sectors_per_cluster = match sectors {
            0..=532_480 => 1,
            532_481..=16_777_216 => 8,
            16_777_217..=33_554_432 => 16,
            33_554_433..=67_108_864 => 32,
            _ => 64,
        };
        let mut table_sectors = 1;
        loop {
            let left = sectors.saturating_sub(RESERVED + TABLES * table_sectors);
            let clusters = left / sectors_per_cluster;
            let needed = ((clusters + u64::from(FIRST_CLUSTER)) * 4).div_ceil(SECTOR);
            if needed <= table_sectors {
                let fits = (MIN_CLUSTERS..0x0fff_fff0).contains(&clusters) && sectors <= u64::from(u32::MAX);
                let geometry = Geometry { sectors, sectors_per_cluster, table_sectors, clusters };
                return fits.then_some(geometry).ok_or(FatError::NotFat32 { size });
            }
            table_sectors = needed;
        }
    }

    fn cluster_bytes(&self) -> u64 {
        self.sectors_per_cluster * SECTOR
    }

    fn offset(&self, cluster: u32) -> u64 {
        let data = RESERVED + TABLES * self.table_sectors;
        data * SECTOR + u64::from(cluster - FIRST_CLUSTER) * self.cluster_bytes()
    }
}

impl Volume<'_> {
    /// Hands each piece with its offset in the volume to `put`; what is not handed over is zero.
    ///
    /// # Errors
    /// [`FatError`], before anything was handed over unless `put` failed.
    pub fn write(&self, mut put: impl FnMut(u64, &[u8]) -> io::Result<()>) -> Result<(), FatError> {
        let geometry = Geometry::of(self.size)?;
        let root = self.tree()?;
        let mut plan =
            Plan { cluster_bytes: geometry.cluster_bytes(), stamp: stamp(self.time), next: 2, runs: vec![] };
        let label = names::label(self.label)?;
        plan.directory(&root, None, Some(&label))?;
        let used = u64::from(plan.next - FIRST_CLUSTER);
        if used > geometry.clusters {
            let bytes = |clusters| Bytes(clusters * geometry.cluster_bytes());
            return Err(FatError::Full {
                need: bytes(used),
                room: bytes(geometry.clusters),
                size: self.size,
            });
        }
        let mut table = vec![0x0fff_fff8, END_OF_CHAIN];
        for run in &plan.runs {
            put(geometry.offset(run.first), &run.bytes)?;
            table.extend(run.first + 1..run.first + run.clusters);
            table.push(END_OF_CHAIN);
        }
        let table: Vec<u8> = table.iter().flat_map(|entry: &u32| entry.to_le_bytes()).collect();
        for copy in 0..TABLES {
            put((RESERVED + copy * geometry.table_sectors) * SECTOR, &table)?;
        }
        let head =
            [self.boot_sector(&geometry, &label), info_sector(geometry.clusters - used, plan.next)].concat();
        put(0, &head)?;
        put(6 * SECTOR, &head)?;
        Ok(())
    }

    fn tree(&self) -> Result<BTreeMap<&str, Node<'_>>, FatError> {
        let mut root = BTreeMap::new();
        for (path, bytes) in self.files {
            let wrong = |why| FatError::File { path: path.clone(), why };
            if u32::try_from(bytes.len()).is_err() {
                return Err(wrong("has 4 GiB or more, which FAT can't hold"));
            }
            let mut parts = path.split('/').filter(|part| !part.is_empty()).peekable();
            let mut dir = &mut root;
            while let Some(part) = parts.next() {
                if parts.peek().is_none() {
                    dir.insert(part, Node::File(bytes));
                    break;
                }
                match dir.entry(part).or_insert_with(|| Node::Dir(BTreeMap::new())) {
                    Node::Dir(below) => dir = below,
                    Node::File(_) => return Err(wrong("lies below what is a file")),
                }
            }
        }
        Ok(root)
    }

    fn boot_sector(&self, geometry: &Geometry, label: &[u8; 11]) -> Vec<u8> {
        let mut b = vec![0; SECTOR as usize];
        let mut put = |at: usize, bytes: &[u8]| b[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &[0xeb, 0x58, 0x90]); // jump over the parameters
        put(3, b"MSWIN4.1"); // the name that the specification advises
        put(11, &(SECTOR as u16).to_le_bytes());
        put(13, &[geometry.sectors_per_cluster as u8]);
        put(14, &(RESERVED as u16).to_le_bytes());
        put(16, &[TABLES as u8]);
        put(21, &[0xf8]); // a fixed disk
        put(24, &32u16.to_le_bytes()); // sectors a track and heads, for firmware that still asks
        put(26, &64u16.to_le_bytes());
        put(28, &self.hidden_sectors.to_le_bytes());
        put(32, &(geometry.sectors as u32).to_le_bytes());
        put(36, &(geometry.table_sectors as u32).to_le_bytes());
        put(44, &FIRST_CLUSTER.to_le_bytes()); // the root directory
        put(48, &1u16.to_le_bytes()); // FSInfo
        put(50, &6u16.to_le_bytes()); // copy of these two sectors
        put(64, &[0x80, 0, 0x29]);
        put(67, &self.id.to_le_bytes());
        put(71, label);
        put(82, b"FAT32   ");
        put(90, &[0xf4, 0xeb, 0xfd]); // where the jump goes: halt for ever
        put(510, &[0x55, 0xaa]);
        b
    }
}

fn info_sector(free: u64, next: u32) -> Vec<u8> {
    let mut b = vec![0; SECTOR as usize];
    b[..4].copy_from_slice(b"RRaA");
    b[484..488].copy_from_slice(b"rrAa");
    b[488..492].copy_from_slice(&(free as u32).to_le_bytes());
    b[492..496].copy_from_slice(&next.to_le_bytes());
    b[510..].copy_from_slice(&[0x55, 0xaa]);
    b
}

/// Gives clusters to files and directories, in the order of their paths.
struct Plan<'a> {
    cluster_bytes: u64,
    stamp: Stamp,
    next: u32,
    runs: Vec<Run<'a>>,
}

impl<'a> Plan<'a> {
    /// The first of the clusters that `bytes` bytes take, and their number; cluster 0 for none.
    fn take(&mut self, bytes: u64) -> (u32, u32) {
        let count = u32::try_from(bytes.div_ceil(self.cluster_bytes)).unwrap_or(u32::MAX);
        if count == 0 {
            return (0, 0);
        }
        let first = self.next;
        self.next = self.next.saturating_add(count);
        (first, count)
    }

    /// Plans a directory and what is below it; `parent` is 0 for children of the root, which `label` marks.
    fn directory(
        &mut self,
        nodes: &BTreeMap<&'a str, Node<'a>>,
        parent: Option<u32>,
        label: Option<&[u8; 11]>,
    ) -> Result<u32, FatError> {
        let names = names::in_directory(nodes.keys().copied())?;
        let own = if label.is_some() { 1 } else { 2 };
        let slots: usize = own + names.iter().map(Name::slots).sum::<usize>();
        let (first, clusters) = self.take((slots * ENTRY) as u64);
        let place = self.runs.len();
        self.runs.push(Run { first, clusters, bytes: Vec::new().into() });
        let mut bytes = Vec::with_capacity(slots * ENTRY);
        match label {
            Some(label) => bytes.extend(self.stamp.entry(label, VOLUME_LABEL, 0, 0)),
            None => {
                bytes.extend(self.stamp.entry(b".          ", DIRECTORY, first, 0));
                bytes.extend(self.stamp.entry(b"..         ", DIRECTORY, parent.unwrap_or(0), 0));
            }
        }
        for (node, name) in nodes.values().zip(names) {
            let (attributes, cluster, size) = match node {
                Node::Dir(below) => {
                    let up = if label.is_some() { 0 } else { first };
                    (DIRECTORY, self.directory(below, Some(up), None)?, 0)
                }
                Node::File(content) => (ARCHIVE, self.file(content), content.len() as u32),
            };
            bytes.extend(name.long_entries());
            bytes.extend(self.stamp.entry(&name.short, attributes, cluster, size));
        }
        self.runs[place].bytes = bytes.into();
        Ok(first)
    }

    fn file(&mut self, content: &'a [u8]) -> u32 {
        let (first, clusters) = self.take(content.len() as u64);
        if clusters > 0 {
            self.runs.push(Run { first, clusters, bytes: content.into() });
        }
        first
    }
}

/// A time as FAT writes it: date and time of two seconds' resolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    date: u16,
    time: u16,
}

impl Stamp {
    fn entry(&self, name: &[u8; 11], attributes: u8, cluster: u32, size: u32) -> [u8; ENTRY] {
        let mut e = [0; ENTRY];
        let (date, time) = (self.date.to_le_bytes(), self.time.to_le_bytes());
        e[..11].copy_from_slice(name);
        e[11] = attributes;
        e[14..16].copy_from_slice(&time); // made
        e[16..18].copy_from_slice(&date);
        e[18..20].copy_from_slice(&date); // read
        e[20..22].copy_from_slice(&cluster.to_le_bytes()[2..]);
        e[22..24].copy_from_slice(&time); // written
        e[24..26].copy_from_slice(&date);
        e[26..28].copy_from_slice(&cluster.to_le_bytes()[..2]);
        e[28..].copy_from_slice(&size.to_le_bytes());
        e
    }
}

/// From seconds since 1970; days to a date by Howard Hinnant's `civil_from_days`.
fn stamp(time: i64) -> Stamp {
    let (earliest, latest) = (315_532_800, 4_354_819_198); // 1980-01-01 00:00:00, 2107-12-31 23:59:58
    let time = time.clamp(earliest, latest);
    let (days, seconds) = (time.div_euclid(86_400), time.rem_euclid(86_400));
    let z = days + 719_468;
    let (era, day_of_era) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    Stamp {
        date: (((year - 1980) << 9) | (month << 5) | day) as u16,
        time: (((seconds / 3600) << 11) | ((seconds / 60 % 60) << 5) | ((seconds % 60) / 2)) as u16,
    }
}

#[cfg(test)]
mod tests;
