//! Reading FAT12, FAT16 and FAT32 volumes, also damaged ones: every chain and size has an end.

use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

use super::{DIRECTORY, ENTRY, FIRST_CLUSTER, LONG_NAME, VOLUME_LABEL};

/// Directories longer than this are damaged: a FAT directory holds at most 65,536 entries.
const DIRECTORY_LIMIT: u64 = 65_536 * ENTRY as u64;
/// The table is read whole in pieces of this many bytes.
const PIECE: u64 = 64 << 10;
/// A path has no more parts than this.
const DEPTH: usize = 64;

/// A volume that can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Its first sector describes no FAT file system.
    #[error("this is no FAT file system: {0}")]
    NotFat(&'static str),
    /// A chain of clusters leads out of the volume or in circles.
    #[error("the file allocation table is damaged: {0}")]
    Damaged(&'static str),
    /// A file larger than the caller wants.
    #[error("{size} bytes are more than is read of a file ({limit})")]
    TooLarge {
        /// The file's size.
        size: u64,
        /// What the caller allows.
        limit: u64,
    },
    /// What was taken for a file is a directory, or the other way round.
    #[error(
        "`{0}` is not what was looked for: a directory in place of a file, or a file in place of a directory"
    )]
    Kind(String),
    /// Reading failed.
    #[error("can't read: {0}")]
    Io(#[from] io::Error),
}

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// Its long name, or the short one when it has no other.
    pub name: String,
    /// Whether it is a directory.
    pub is_dir: bool,
    /// Its size in bytes.
    pub size: u64,
    short: String,
    cluster: u32,
}

/// Width of the table's entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Width {
    Fat12,
    Fat16,
    Fat32,
}

impl Width {
    /// Where in the table the bytes of a cluster's entry lie, and how many they are.
    fn entry(self, cluster: u32) -> (u64, usize) {
        let n = u64::from(cluster);
        match self {
            Width::Fat12 => (n + n / 2, 2),
            Width::Fat16 => (n * 2, 2),
            Width::Fat32 => (n * 4, 4),
        }
    }

    /// The entry that is in those bytes.
    fn value(self, cluster: u32, bytes: [u8; 4]) -> u32 {
        let word = u32::from_le_bytes(bytes);
        match self {
            Width::Fat12 if cluster % 2 == 1 => word >> 4,
            Width::Fat12 => word & 0xfff,
            Width::Fat16 => word,
            Width::Fat32 => word & 0x0fff_ffff,
        }
    }
}

/// Where a directory lies: in clusters, or in the fixed area of FAT12 and FAT16.
#[derive(Debug, Clone, Copy)]
enum Place {
    Chain(u32),
    Fixed,
}

/// A volume that is read.
#[derive(Debug)]
pub struct Reader<D> {
    disk: D,
    width: Width,
    cluster_bytes: u64,
    table: u64,
    /// Size of one copy of the table in bytes.
    table_bytes: u64,
    root: Place,
    root_at: u64,
    root_bytes: u64,
    data: u64,
    /// One more than the last cluster's number.
    end: u32,
    size: u64,
    id: u32,
    label: String,
}

impl<D: Read + Seek> Reader<D> {
    /// Reads the boot sector and judges it.
    ///
    /// # Errors
    /// [`ReadError`] when it describes no volume.
    pub fn open(mut disk: D) -> Result<Reader<D>, ReadError> {
        let mut b = [0; 512];
        disk.seek(SeekFrom::Start(0))?;
        disk.read_exact(&mut b)?;
        let u16_at = |at: usize| u64::from(u16::from_le_bytes([b[at], b[at + 1]]));
        let u32_at = |at: usize| u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
        if b[510..] != [0x55, 0xaa] {
            return Err(ReadError::NotFat("its first sector isn't marked as one"));
        }
        let (sector, per_cluster) = (u16_at(11), u64::from(b[13]));
        if !matches!(sector, 512 | 1024 | 2048 | 4096) || !per_cluster.is_power_of_two() {
            return Err(ReadError::NotFat("its sectors or clusters have no possible size"));
        }
        let (reserved, tables, root_entries) = (u16_at(14), u64::from(b[16]), u16_at(17));
        let or = |small: u64, large: u32| if small != 0 { small } else { u64::from(large) };
        let (sectors, table_sectors) = (or(u16_at(19), u32_at(32)), or(u16_at(22), u32_at(36)));
        let root_sectors = (root_entries * ENTRY as u64).div_ceil(sector);
        let root_at = reserved + tables * table_sectors;
        let data = root_at + root_sectors;
        if reserved == 0 || !(1..=2).contains(&tables) || table_sectors == 0 || sectors <= data {
            return Err(ReadError::NotFat("its tables don't fit into it"));
        }
        let clusters = (sectors - data) / per_cluster;
        // Linux, like mtools, takes the field's use as the sign of FAT32, however few clusters there are.
        let width = match (u16_at(22), clusters) {
            (0, 0..0x0fff_fff5) => Width::Fat32,
            (1.., 0..4085) => Width::Fat12,
            (1.., 4085..65_525) => Width::Fat16,
            _ => return Err(ReadError::NotFat("it has too many clusters")),
        };
        let (root, extra) = match width {
            Width::Fat32 => (Place::Chain(u32_at(44)), 64),
            _ => (Place::Fixed, 36),
        };
        let (id, label) = match b[extra + 2] {
            0x28 | 0x29 => (u32_at(extra + 3), text(&b[extra + 7..extra + 18])),
            _ => (0, String::new()),
        };
        Ok(Reader {
            disk,
            width,
            cluster_bytes: per_cluster * sector,
            table: reserved * sector,
            table_bytes: table_sectors * sector,
            root,
            root_at: root_at * sector,
            root_bytes: root_entries * ENTRY as u64,
            data: data * sector,
            end: clusters as u32 + FIRST_CLUSTER,
            size: sectors * sector,
            id,
            label: if label == "NO NAME" { String::new() } else { label },
        })
    }

    /// Its serial number, as Linux prints it: `ABCD-0123`.
    #[must_use]
    pub fn serial(&self) -> String {
        format!("{:04X}-{:04X}", self.id >> 16, self.id & 0xffff)
    }

    /// Its label; empty without one.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The size that it says it has, in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The ranges of bytes that something reads: all up to the first cluster, and the clusters that the table doesn't
    /// call free. In order, none empty, none touching the next.
    ///
    /// # Errors
    /// When the table can't be read.
    pub fn in_use(&mut self) -> Result<Vec<Range<u64>>, ReadError> {
        let mut used: Vec<Range<u64>> = Vec::new();
        used.push(0..self.data);
        let (last, size) = self.width.entry(self.end - 1);
        let table_end = last + size as u64;
        if table_end > self.table_bytes {
            return Err(ReadError::Damaged("it has fewer entries than there are clusters"));
        }
        let (mut piece, mut piece_at) = (Vec::new(), 0);
        for cluster in FIRST_CLUSTER..self.end {
            let (offset, size) = self.width.entry(cluster);
            if offset + size as u64 > piece_at + piece.len() as u64 {
                let count = PIECE.min(table_end - offset);
                (piece, piece_at) = (self.bytes(self.table + offset, count)?, offset);
            }
            let mut word = [0; 4];
            word[..size].copy_from_slice(&piece[(offset - piece_at) as usize..][..size]);
            if self.width.value(cluster, word) == 0 {
                continue;
            }
            let start = self.data + u64::from(cluster - FIRST_CLUSTER) * self.cluster_bytes;
            match used.last_mut() {
                Some(last) if last.end == start => last.end += self.cluster_bytes,
                _ => used.push(start..start + self.cluster_bytes),
            }
        }
        Ok(used)
    }

    /// The file at `path`, parts separated by slashes, in any case; `None` when there is none.
    ///
    /// # Errors
    /// [`ReadError`] when it is larger than `limit`, a directory, or can't be read.
    pub fn read(&mut self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, ReadError> {
        let Some(entry) = self.find(path)? else { return Ok(None) };
        if entry.is_dir {
            return Err(ReadError::Kind(path.to_owned()));
        }
        if entry.size > limit {
            return Err(ReadError::TooLarge { size: entry.size, limit });
        }
        self.content(&entry, entry.size).map(Some)
    }

    /// The first `count` bytes of a file, or all of it, with its size; `None` when there is none.
    ///
    /// # Errors
    /// [`ReadError`] when it is a directory or can't be read.
    pub fn head(&mut self, path: &str, count: u64) -> Result<Option<(Vec<u8>, u64)>, ReadError> {
        match self.find(path)? {
            None => Ok(None),
            Some(entry) if entry.is_dir => Err(ReadError::Kind(path.to_owned())),
            Some(entry) => Ok(Some((self.content(&entry, count.min(entry.size))?, entry.size))),
        }
    }

    /// What a directory holds; `None` when there is none of that name. The root's path is empty.
    ///
    /// # Errors
    /// [`ReadError`] when it is a file or can't be read.
    pub fn list(&mut self, path: &str) -> Result<Option<Vec<DirEntry>>, ReadError> {
        if path.split('/').all(str::is_empty) {
            return self.entries(self.root).map(Some);
        }
        match self.find(path)? {
            None => Ok(None),
            Some(entry) if entry.is_dir => self.entries(self.place(&entry)).map(Some),
            Some(_) => Err(ReadError::Kind(path.to_owned())),
        }
    }

    fn find(&mut self, path: &str) -> Result<Option<DirEntry>, ReadError> {
        let mut place = self.root;
        let mut found = None;
        for part in path.split('/').filter(|part| !part.is_empty()).take(DEPTH) {
            if found.as_ref().is_some_and(|entry: &DirEntry| !entry.is_dir) {
                return Ok(None);
            }
            let entries = self.entries(place)?;
            let named = |e: &DirEntry| same(&e.name, part) || same(&e.short, part);
            let Some(entry) = entries.into_iter().find(named) else { return Ok(None) };
            place = self.place(&entry);
            found = Some(entry);
        }
        Ok(found)
    }

    fn place(&self, entry: &DirEntry) -> Place {
        // A `..` that leads to the root names cluster 0.
        if entry.cluster == 0 { self.root } else { Place::Chain(entry.cluster) }
    }

    fn entries(&mut self, place: Place) -> Result<Vec<DirEntry>, ReadError> {
        let bytes = match place {
            Place::Fixed => self.bytes(self.root_at, self.root_bytes)?,
            Place::Chain(first) => self.chain(first, None)?,
        };
        Ok(parse_directory(&bytes))
    }

    fn content(&mut self, entry: &DirEntry, count: u64) -> Result<Vec<u8>, ReadError> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let mut bytes = self.chain(entry.cluster, Some(count))?;
        if (bytes.len() as u64) < count {
            return Err(ReadError::Damaged("a file has fewer clusters than its size needs"));
        }
        bytes.truncate(count as usize);
        Ok(bytes)
    }

    /// The clusters from `first` on: as many as `count` bytes need, or all of a directory's.
    fn chain(&mut self, first: u32, count: Option<u64>) -> Result<Vec<u8>, ReadError> {
        let mut bytes = Vec::new();
        let mut cluster = first;
        let limit = count.unwrap_or(DIRECTORY_LIMIT);
        while (FIRST_CLUSTER..self.end).contains(&cluster) {
            let at = self.data + u64::from(cluster - FIRST_CLUSTER) * self.cluster_bytes;
            bytes.extend(self.bytes(at, self.cluster_bytes)?);
            if bytes.len() as u64 >= limit {
                let after = self.next(cluster)?;
                let whole = count.is_some() || self.is_last(after);
                let circle = ReadError::Damaged("a directory's clusters lead in circles");
                return if whole { Ok(bytes) } else { Err(circle) };
            }
            cluster = self.next(cluster)?;
        }
        if self.is_last(cluster) {
            Ok(bytes)
        } else {
            Err(ReadError::Damaged("a chain leads out of the volume"))
        }
    }

    fn is_last(&self, entry: u32) -> bool {
        entry
            >= match self.width {
                Width::Fat12 => 0xff8,
                Width::Fat16 => 0xfff8,
                Width::Fat32 => 0x0fff_fff8,
            }
    }

    /// The table's entry for a cluster.
    fn next(&mut self, cluster: u32) -> Result<u32, ReadError> {
        let (offset, size) = self.width.entry(cluster);
        let mut word = [0; 4];
        word[..size].copy_from_slice(&self.bytes(self.table + offset, size as u64)?);
        Ok(self.width.value(cluster, word))
    }

    fn bytes(&mut self, at: u64, count: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; count as usize];
        self.disk.seek(SeekFrom::Start(at))?;
        self.disk.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

/// Whether two names are one for FAT, which takes no notice of case.
fn same(a: &str, b: &str) -> bool {
    a.to_lowercase() == b.to_lowercase()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches([' ', '\0']).to_owned()
}

/// The entries of a directory's bytes, long names put together, without labels, deleted ones, `.` and `..`.
fn parse_directory(bytes: &[u8]) -> Vec<DirEntry> {
    let mut entries = Vec::new();
    let mut long: Vec<u16> = Vec::new();
    for e in bytes.chunks_exact(ENTRY) {
        match (e[0], e[11]) {
            (0, _) => break,
            (0xe5, _) => long.clear(),
            (_, attributes) if attributes & 0x3f == LONG_NAME => {
                // They stand in reverse, thirteen units each.
                let units = [1..11, 14..26, 28..32].into_iter().flat_map(|range| e[range].chunks_exact(2));
                let part: Vec<u16> = units.map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
                long.truncate(20 * 13);
                long.splice(0..0, part);
            }
            (_, attributes) if attributes & VOLUME_LABEL != 0 => long.clear(),
            (first, attributes) => {
                let short = short_name(e);
                let units = long.drain(..).take_while(|&unit| unit != 0);
                let name: String =
                    char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
                if first == b'.' {
                    continue;
                }
                entries.push(DirEntry {
                    name: if name.is_empty() { short.clone() } else { name },
                    is_dir: attributes & DIRECTORY != 0,
                    size: u64::from(u32::from_le_bytes([e[28], e[29], e[30], e[31]])),
                    short,
                    cluster: u32::from_le_bytes([e[26], e[27], e[20], e[21]]) & 0x0fff_ffff,
                });
            }
        }
    }
    entries
}

fn short_name(e: &[u8]) -> String {
    let (base, extension) = (text(&e[..8]), text(&e[8..11]));
    if extension.is_empty() { base } else { format!("{base}.{extension}") }
}
