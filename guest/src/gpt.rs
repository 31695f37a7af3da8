//! Reading and growing GUID partition tables (UEFI 2.10, section 5.3) of a disk that is in use.
//!
//! Both tables are known, the one at the beginning and the backup at the end. A table is believed when its checksums are
//! right. Growing happens in an order in which a cut at any moment leaves at least one of them right.

use std::io;

/// "EFI System", the type of the partition that boot loaders read.
pub const ESP: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";

const SIGNATURE: &[u8; 8] = b"EFI PART";
/// Size of the header's part that is known.
const HEADER: usize = 92;
/// The largest array of entries that is read: 128 of 128 bytes are usual.
const LARGEST_ARRAY: u64 = 1 << 20;
/// What a grown partition's end is aligned to: file systems have blocks of this size.
const ALIGNMENT: u64 = 4096;

/// Reads bytes of a disk, from an offset in bytes.
pub type ReadAt<'a> = &'a dyn Fn(u64, &mut [u8]) -> io::Result<()>;

/// Size of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Size of a sector in bytes: 512, or 4096.
    pub sector: u64,
    /// How many there are.
    pub sectors: u64,
}

/// A partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its number, from 1.
    pub number: u32,
    /// What it is for, in lower case.
    pub kind: String,
    /// Its identity, in lower case.
    pub guid: String,
    /// First sector.
    pub first: u64,
    /// Last sector, which belongs to it.
    pub last: u64,
}

/// A table that is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    geometry: Geometry,
    header: [u8; HEADER],
    entries: Vec<u8>,
    entry_size: usize,
    from_backup: bool,
}

/// What is to be written so that a partition reaches to the end of its disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Growth {
    /// The partition as it will be.
    pub partition: Partition,
    /// Offsets in bytes and what is written there; each must have reached the disk before the next is begun.
    pub writes: Vec<(u64, Vec<u8>)>,
}

fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes[at..at + len].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

/// The checksum of the tables: CRC-32 as in IEEE 802.3.
fn crc(bytes: &[u8]) -> u32 {
    let shift = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0u32, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| shift(crc)))
}

/// A GUID as it is written: its first three fields are little-endian on the disk.
fn guid(bytes: &[u8]) -> String {
    let order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
    let mut text = String::with_capacity(36);
    for (position, at) in order.into_iter().enumerate() {
        if matches!(position, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{:02x}", bytes[at]));
    }
    text
}

impl Table {
    /// Reads the table of a disk: the first one, or else the backup at the disk's end, or where the first one says that its
    /// backup is. `None` when none of them is right.
    ///
    /// # Errors
    /// When the disk can't be read.
    pub fn read(geometry: Geometry, read: ReadAt<'_>) -> io::Result<Option<Table>> {
        if !(HEADER as u64..=1 << 16).contains(&geometry.sector) || geometry.sectors < 4 {
            return Ok(None);
        }
        let mut first = [0; HEADER];
        read(geometry.sector, &mut first)?;
        let claimed = if first.starts_with(SIGNATURE) { number(&first, 32, 8) } else { 0 };
        for lba in [1, geometry.sectors - 1, claimed] {
            if let Some(table) = Table::read_at(geometry, read, lba)? {
                return Ok(Some(table));
            }
        }
        Ok(None)
    }

    fn read_at(geometry: Geometry, read: ReadAt<'_>, lba: u64) -> io::Result<Option<Table>> {
        if lba == 0 || lba >= geometry.sectors {
            return Ok(None);
        }
        let mut sector = vec![0; geometry.sector as usize];
        read(lba * geometry.sector, &mut sector)?;
        let (size, checksum) = (number(&sector, 12, 4) as usize, number(&sector, 16, 4));
        if !sector.starts_with(SIGNATURE) || !(HEADER..=sector.len()).contains(&size) {
            return Ok(None);
        }
        let mut header = [0; HEADER];
        header.copy_from_slice(&sector[..HEADER]);
        sector[16..20].fill(0);
        let (start, count, entry_size) =
            (number(&header, 72, 8), number(&header, 80, 4), number(&header, 84, 4));
        let array = count * entry_size;
        let end = start.saturating_add(array.div_ceil(geometry.sector));
        if u64::from(crc(&sector[..size])) != checksum
            || number(&header, 24, 8) != lba
            || entry_size < 128
            || array > LARGEST_ARRAY
            || end > geometry.sectors
        {
            return Ok(None);
        }
        let mut entries = vec![0; array as usize];
        read(start * geometry.sector, &mut entries)?;
        if u64::from(crc(&entries)) != number(&header, 88, 4) {
            return Ok(None);
        }
        let from_backup = lba != 1;
        Ok(Some(Table { geometry, header, entries, entry_size: entry_size as usize, from_backup }))
    }

    /// Whether the table at the disk's beginning was damaged, so that the backup was read.
    #[must_use]
    pub fn from_backup(&self) -> bool {
        self.from_backup
    }

    /// All partitions that make sense.
    #[must_use]
    pub fn partitions(&self) -> Vec<Partition> {
        let entries = (1..).zip(self.entries.chunks_exact(self.entry_size));
        let used = entries.filter(|(_, entry)| entry[..16] != [0; 16]);
        let partition = |(number_, entry): (u32, &[u8])| Partition {
            number: number_,
            kind: guid(&entry[..16]),
            guid: guid(&entry[16..32]),
            first: number(entry, 32, 8),
            last: number(entry, 40, 8),
        };
        let sound = |p: &Partition| 0 < p.first && p.first <= p.last && p.last < self.geometry.sectors;
        used.map(partition).filter(sound).collect()
    }

    /// Lets a partition reach to the end of the disk, and brings the backup there; `None` when there is nothing to do, or when
    /// another partition is in the way.
    #[must_use]
    pub fn grow(&self, partition: &Partition) -> Option<Growth> {
        let Geometry { sector, sectors } = self.geometry;
        let others = self.partitions();
        if others.iter().any(|other| other.first > partition.first) {
            return None;
        }
        let array = (self.entries.len() as u64).div_ceil(sector);
        let last_usable = sectors.checked_sub(2 + array)?;
        let unit = (ALIGNMENT / sector).max(1);
        let last = ((last_usable + 1) / unit * unit).checked_sub(1)?.max(partition.last);
        let backup_lba = sectors - 1;
        let at_the_end = number(&self.header, 32, 8) == backup_lba;
        if last > last_usable || (last == partition.last && at_the_end && !self.from_backup) {
            return None;
        }
        let mut entries = self.entries.clone();
        let at = (partition.number as usize - 1) * self.entry_size;
        entries[at + 40..at + 48].copy_from_slice(&last.to_le_bytes());
        // The array of the first table is where it was, when it is known; else behind its header, as everybody has it.
        let array_lba = if self.from_backup { 2 } else { number(&self.header, 72, 8) };
        let header = |own: u64, other: u64, array_at: u64| {
            self.header_with([(24, own), (32, other), (48, last_usable), (72, array_at)], &entries)
        };
        let backup = header(backup_lba, 1, backup_lba - array);
        let primary = header(1, backup_lba, array_lba);
        Some(Growth {
            partition: Partition { last, ..partition.clone() },
            // The backup comes first: until the other table is rewritten, that one still is right and knows nothing of it.
            writes: vec![
                ((backup_lba - array) * sector, entries.clone()),
                (backup_lba * sector, backup),
                (array_lba * sector, entries),
                (sector, primary),
            ],
        })
    }

    /// A whole sector with the header, some fields changed, and the checksums that fit.
    fn header_with(&self, fields: [(usize, u64); 4], entries: &[u8]) -> Vec<u8> {
        let mut header = vec![0; self.geometry.sector as usize];
        header[..HEADER].copy_from_slice(&self.header);
        header[12..16].copy_from_slice(&(HEADER as u32).to_le_bytes());
        header[16..20].fill(0);
        for (at, value) in fields {
            header[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        header[88..92].copy_from_slice(&crc(entries).to_le_bytes());
        let checksum = crc(&header[..HEADER]);
        header[16..20].copy_from_slice(&checksum.to_le_bytes());
        header
    }
}

/// The protective MBR with the size of its one partition set to that of the disk; `None` when there is nothing to change.
#[must_use]
pub fn protective_mbr(mbr: &[u8; 512], geometry: Geometry) -> Option<[u8; 512]> {
    let size = u32::try_from(geometry.sectors - 1).unwrap_or(u32::MAX).to_le_bytes();
    if mbr[510..] != [0x55, 0xaa] || mbr[446 + 4] != 0xee || mbr[446 + 12..446 + 16] == size {
        return None;
    }
    let mut changed = *mbr;
    changed[446 + 12..446 + 16].copy_from_slice(&size);
    Some(changed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECTORS: u64 = 256;

    /// A disk with a table of eight entries, two of them used.
    fn disk(sector: u64) -> Vec<u8> {
        let mut disk = vec![0; (SECTORS * sector) as usize];
        let array = 1024u64.div_ceil(sector);
        let mut entries = vec![0; 1024];
        for (number, first, last) in [(1, 100u64, 199u64), (3, 40, 47)] {
            let at = (number - 1) * 128;
            entries[at..at + 16].fill(number as u8);
            entries[at + 16..at + 32].copy_from_slice(&(0..16).collect::<Vec<u8>>());
            entries[at + 32..at + 40].copy_from_slice(&first.to_le_bytes());
            entries[at + 40..at + 48].copy_from_slice(&last.to_le_bytes());
        }
        let geometry = Geometry { sector, sectors: SECTORS };
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(SIGNATURE);
        header[10] = 1;
        header[40] = 34;
        header[80] = 8;
        header[84] = 128;
        let table = Table { geometry, header, entries, entry_size: 128, from_backup: false };
        let usable = SECTORS - 2 - array;
        let own = |own: u64, other: u64, array_at: u64| {
            table.header_with([(24, own), (32, other), (48, usable), (72, array_at)], &table.entries)
        };
        let backup_array = SECTORS - 1 - array;
        let backup = own(SECTORS - 1, 1, backup_array);
        for (lba, bytes) in [
            (2, &table.entries),
            (1, &own(1, SECTORS - 1, 2)),
            (backup_array, &table.entries),
            (SECTORS - 1, &backup),
        ] {
            let at = (lba * sector) as usize;
            disk[at..at + bytes.len()].copy_from_slice(bytes);
        }
        disk
    }

    fn read(disk: &[u8], sector: u64) -> Option<Table> {
        let read = |at: u64, buffer: &mut [u8]| {
            let end = at as usize + buffer.len();
            let bytes = disk.get(at as usize..end).ok_or(io::ErrorKind::UnexpectedEof)?;
            buffer.copy_from_slice(bytes);
            Ok(())
        };
        Table::read(Geometry { sector, sectors: disk.len() as u64 / sector }, &read).unwrap()
    }

    fn apply(disk: &mut [u8], write: &(u64, Vec<u8>)) {
        disk[write.0 as usize..][..write.1.len()].copy_from_slice(&write.1);
    }

    #[test]
    fn partitions_are_read() {
        for sector in [512, 4096] {
            let found = read(&disk(sector), sector).unwrap().partitions();
            assert_eq!(
                found.iter().map(|p| (p.number, p.first, p.last)).collect::<Vec<_>>(),
                [(1, 100, 199), (3, 40, 47)]
            );
            assert_eq!(found[0].guid, "03020100-0504-0706-0809-0a0b0c0d0e0f");
        }
    }

    #[test]
    fn the_backup_stands_in() {
        let mut damaged = disk(512);
        for at in [512, 512 + 40, 1024 + 40] {
            let mut damaged = damaged.clone();
            damaged[at] ^= 1;
            let table = read(&damaged, 512).unwrap();
            assert!(table.from_backup());
            assert_eq!(table.partitions().len(), 2);
        }
        // Once the disk was enlarged, it is where the damaged table says.
        damaged[1024] ^= 1;
        damaged.resize(400 * 512, 0);
        assert_eq!(read(&damaged, 512).unwrap().partitions().len(), 2);
        damaged[255 * 512] ^= 1;
        assert_eq!(read(&damaged, 512), None);
    }

    #[test]
    fn the_last_partition_grows_and_every_cut_leaves_a_table() {
        for sector in [512usize, 4096] {
            let mut large = disk(sector as u64);
            large.resize(1000 * sector, 0);
            let before = read(&large, sector as u64).unwrap();
            let partition = before.partitions().remove(0);
            let growth = before.grow(&partition).unwrap();
            assert_eq!(growth.partition.last, if sector == 512 { 991 } else { 997 });
            for write in &growth.writes {
                // Torn: only half of it reached the disk.
                let mut torn = large.clone();
                apply(&mut torn, &(write.0, write.1[..write.1.len() / 2].to_vec()));
                for disk in [&torn, &large] {
                    let table = read(disk, sector as u64).unwrap();
                    let again = table.partitions().remove(0);
                    let mut repaired = disk.clone();
                    let rest = table.grow(&again);
                    rest.into_iter().flat_map(|g| g.writes).for_each(|w| apply(&mut repaired, &w));
                    let table = read(&repaired, sector as u64).unwrap();
                    assert!(!table.from_backup());
                    assert_eq!(table.partitions()[0], growth.partition);
                }
                apply(&mut large, write);
            }
            let after = read(&large, sector as u64).unwrap();
            assert_eq!(after.partitions()[0], growth.partition);
            assert_eq!(after.grow(&growth.partition), None);
            large[sector] ^= 1;
            assert_eq!(read(&large, sector as u64).unwrap().partitions(), after.partitions());
        }
    }

    #[test]
    fn what_is_in_the_way_or_fits_already_is_left_alone() {
        let mut small = disk(512);
        let table = read(&small, 512).unwrap();
        let partitions = table.partitions();
        assert_eq!(table.grow(&partitions[1]), None, "another one lies behind it");
        let growth = table.grow(&partitions[0]).unwrap();
        assert_eq!(growth.partition.last, 247);
        growth.writes.iter().for_each(|write| apply(&mut small, write));
        let table = read(&small, 512).unwrap();
        assert_eq!(table.grow(&table.partitions()[0]), None);
    }

    #[test]
    fn the_protective_mbr_follows() {
        let geometry = Geometry { sector: 512, sectors: 1 << 33 };
        let mut mbr = [0; 512];
        assert_eq!(protective_mbr(&mbr, geometry), None);
        mbr[510..].copy_from_slice(&[0x55, 0xaa]);
        mbr[450] = 0xee;
        let changed = protective_mbr(&mbr, geometry).unwrap();
        assert_eq!(changed[458..462], [0xff; 4]);
        assert_eq!(protective_mbr(&changed, geometry), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_bytes_make_it_panic(changes in prop::collection::vec((0usize..3072, any::<u8>()), 0..40), fix: bool) {
            let mut disk = disk(512);
            for (at, value) in changes {
                // Those of the backup are found from the end.
                let at = if at < 1536 { at + 512 } else { disk.len() - 3072 + at };
                disk[at] = value;
            }
            if fix {
                // So that more than the checksum is looked at.
                disk[528..532].fill(0);
                let sum = crc(&disk[512..512 + HEADER]);
                disk[528..532].copy_from_slice(&sum.to_le_bytes());
            }
            if let Some(table) = read(&disk, 512) {
                for partition in table.partitions() {
                    let _ = table.grow(&partition);
                }
            }
        }
    }
}
