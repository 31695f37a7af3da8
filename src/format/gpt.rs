//! GUID partition tables (UEFI 2.10, section 5.3), with partitions keeping the numbers that they are given.

use std::fmt::Write as _;

use uuid::Uuid;

use crate::units::{Lba, SECTOR};

/// Type of the EFI system partition.
pub const ESP: Uuid = Uuid::from_u128(0xc12a7328_f81f_11d2_ba4b_00a0c93ec93b);
/// Entries that a table has room for: the least that the specification allows (16 KiB), and what everybody uses.
pub const ENTRY_COUNT: u32 = 128;
/// Type of the partition in which GRUB's core image lies, for BIOS.
pub const BIOS_BOOT: Uuid = Uuid::from_u128(0x21686148_6449_6e6f_744e_656564454649);
/// Size of an entry in bytes.
const ENTRY_SIZE: usize = 128;
/// Size of the header in bytes; the rest of its sector is zero.
const HEADER_SIZE: usize = 92;
/// Sectors of the array of entries.
const ENTRY_SECTORS: u64 = (ENTRY_COUNT as usize * ENTRY_SIZE) as u64 / SECTOR;
/// Sectors at the beginning of the disk: protective MBR, header, entries. The first usable LBA is this one.
pub const PRIMARY_SECTORS: u64 = 2 + ENTRY_SECTORS;
/// Sectors at the end of the disk: entries, header.
pub const BACKUP_SECTORS: u64 = 1 + ENTRY_SECTORS;
/// UTF-16 units that a name has room for.
const NAME_UNITS: usize = 36;
const SIGNATURE: &[u8; 8] = b"EFI PART";
const REVISION: u32 = 0x0001_0000;

/// A partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its number, from 1 to 128, by which the kernel names it (`vda1`).
    pub number: u32,
    /// What it is for.
    pub type_guid: Uuid,
    /// Its own identity (`PARTUUID`).
    pub guid: Uuid,
    /// First block.
    pub first: Lba,
    /// Last block, which belongs to it.
    pub last: Lba,
    /// Attribute bits.
    pub attributes: u64,
    /// Name (`PARTLABEL`), at most 36 UTF-16 units.
    pub name: String,
}

/// A whole table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Identity of the disk.
    pub disk_guid: Uuid,
    /// Size of the disk in sectors.
    pub sectors: u64,
    /// Partitions, by number.
    pub entries: Vec<Entry>,
}

/// The bytes of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Header and entries, for LBA 1.
    pub primary: Vec<u8>,
    /// Entries and header, for the last [`BACKUP_SECTORS`] of the disk.
    pub backup: Vec<u8>,
}

/// A table that can't be written or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GptError {
    /// A number outside 1–128 or given twice.
    #[error("partition number {0} is outside 1 to 128 or used twice")]
    Number(u32),
    /// A range that is empty, or outside the blocks that partitions may use.
    #[error(
        "partition {number} from block {first} to {last} doesn't lie within blocks {usable_first} to {usable_last}"
    )]
    Range {
        /// The partition.
        number: u32,
        /// Its first block.
        first: Lba,
        /// Its last block.
        last: Lba,
        /// First block that a partition may use.
        usable_first: Lba,
        /// Last block that a partition may use.
        usable_last: Lba,
    },
    /// Two partitions share blocks.
    #[error("partitions {0} and {1} overlap")]
    Overlap(u32, u32),
    /// A name that doesn't fit.
    #[error("the name of partition {0} is longer than 36 UTF-16 units")]
    Name(u32),
    /// The disk is smaller than the table.
    #[error("a disk of {0} sectors has no room for a partition table")]
    Disk(u64),
    /// What was read is no partition table.
    #[error("this is no GUID partition table: {0}")]
    Invalid(&'static str),
}

impl Table {
    /// The blocks that partitions may use: first and last.
    ///
    /// # Errors
    /// [`GptError::Disk`] when there are none.
    pub fn usable(&self) -> Result<(Lba, Lba), GptError> {
        let last = self.sectors.checked_sub(BACKUP_SECTORS + 1).filter(|&last| last >= PRIMARY_SECTORS);
        Ok((Lba(PRIMARY_SECTORS), Lba(last.ok_or(GptError::Disk(self.sectors))?)))
    }

    /// Checks numbers, ranges, overlaps and names.
    ///
    /// # Errors
    /// The first fault found.
    pub fn check(&self) -> Result<(), GptError> {
        let (usable_first, usable_last) = self.usable()?;
        for (index, e) in self.entries.iter().enumerate() {
            let twice = self.entries[..index].iter().any(|other| other.number == e.number);
            if !(1..=ENTRY_COUNT).contains(&e.number) || twice {
                return Err(GptError::Number(e.number));
            }
            if e.first > e.last || e.first < usable_first || e.last > usable_last {
                let Entry { number, first, last, .. } = *e;
                return Err(GptError::Range { number, first, last, usable_first, usable_last });
            }
            if e.name.encode_utf16().count() > NAME_UNITS || e.name.contains('\0') {
                return Err(GptError::Name(e.number));
            }
        }
        let mut sorted: Vec<&Entry> = self.entries.iter().collect();
        sorted.sort_by_key(|e| e.first);
        match sorted.windows(2).find(|pair| pair[1].first <= pair[0].last) {
            Some(pair) => Err(GptError::Overlap(pair[0].number, pair[1].number)),
            None => Ok(()),
        }
    }

    /// The bytes of both copies.
    ///
    /// # Errors
    /// As [`Table::check`].
    pub fn encode(&self) -> Result<Encoded, GptError> {
        self.check()?;
        let entries = self.entry_array();
        let last = self.sectors - 1;
        let mut primary = self.header(1, last, 2, &entries);
        primary.extend_from_slice(&entries);
        let header = self.header(last, 1, last - ENTRY_SECTORS, &entries);
        let mut backup = entries;
        backup.extend(header);
        Ok(Encoded { primary, backup })
    }

    fn entry_array(&self) -> Vec<u8> {
        let mut array = vec![0; ENTRY_COUNT as usize * ENTRY_SIZE];
        for e in &self.entries {
            let at = (e.number as usize - 1) * ENTRY_SIZE;
            let slot = &mut array[at..at + ENTRY_SIZE];
            slot[..16].copy_from_slice(&e.type_guid.to_bytes_le());
            slot[16..32].copy_from_slice(&e.guid.to_bytes_le());
            slot[32..40].copy_from_slice(&e.first.0.to_le_bytes());
            slot[40..48].copy_from_slice(&e.last.0.to_le_bytes());
            slot[48..56].copy_from_slice(&e.attributes.to_le_bytes());
            for (unit, place) in e.name.encode_utf16().zip(slot[56..].chunks_exact_mut(2)) {
                place.copy_from_slice(&unit.to_le_bytes());
            }
        }
        array
    }

    /// One sector: the header that lies at `at`, whose twin lies at `other` and whose entries begin at `entries_at`.
    fn header(&self, at: u64, other: u64, entries_at: u64, entries: &[u8]) -> Vec<u8> {
        let mut h = Vec::with_capacity(SECTOR as usize);
        h.extend_from_slice(SIGNATURE);
        h.extend_from_slice(&REVISION.to_le_bytes());
        h.extend_from_slice(&(HEADER_SIZE as u32).to_le_bytes());
        h.extend_from_slice(&[0; 8]); // its own checksum, filled in below; reserved
        for lba in [at, other, PRIMARY_SECTORS, self.sectors - BACKUP_SECTORS - 1] {
            h.extend_from_slice(&lba.to_le_bytes());
        }
        h.extend_from_slice(&self.disk_guid.to_bytes_le());
        h.extend_from_slice(&entries_at.to_le_bytes());
        for word in [ENTRY_COUNT, ENTRY_SIZE as u32, crc32fast::hash(entries)] {
            h.extend_from_slice(&word.to_le_bytes());
        }
        let checksum = crc32fast::hash(&h);
        h[16..20].copy_from_slice(&checksum.to_le_bytes());
        h.resize(SECTOR as usize, 0);
        h
    }

    /// Reads a table from the primary copy: the bytes from LBA 1 on, for at least 33 sectors.
    ///
    /// # Errors
    /// [`GptError::Invalid`] for anything that isn't such a table with right checksums, or what [`Table::check`] finds.
    pub fn decode(primary: &[u8]) -> Result<Table, GptError> {
        let wrong = |what| Err(GptError::Invalid(what));
        let Some((header, array)) = primary.split_at_checked(SECTOR as usize) else {
            return wrong("it is shorter than a sector");
        };
        let u32_at =
            |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        if !header.starts_with(SIGNATURE) {
            return wrong("its signature is missing");
        }
        if u32_at(12) as usize != HEADER_SIZE
            || u32_at(80) != ENTRY_COUNT
            || u32_at(84) as usize != ENTRY_SIZE
        {
            return wrong("its header or entries have another size than Kiln writes");
        }
        let mut summed = header[..HEADER_SIZE].to_vec();
        summed[16..20].fill(0);
        if crc32fast::hash(&summed) != u32_at(16) {
            return wrong("the header's checksum is wrong");
        }
        let Some(array) = array.get(..ENTRY_COUNT as usize * ENTRY_SIZE) else {
            return wrong("it is shorter than its entries");
        };
        if crc32fast::hash(array) != u32_at(88) {
            return wrong("the entries' checksum is wrong");
        }
        let Some(sectors) = u64_at(header, 32).checked_add(1) else { return wrong("the disk is too large") };
        let entries =
            (1..).zip(array.chunks_exact(ENTRY_SIZE)).filter_map(decode_entry).collect::<Option<_>>();
        let Some(entries) = entries else { return wrong("a name is no UTF-16") };
        let table = Table { disk_guid: guid_at(header, 56), sectors, entries };
        table.check()?;
        Ok(table)
    }

    /// The table as text, a partition a line, for people and snapshots.
    #[must_use]
    pub fn dump(&self) -> String {
        let mut out = format!("disk {} of {} sectors\n", self.disk_guid, self.sectors);
        for e in &self.entries {
            let _ = writeln!(
                out,
                "{} {}-{} type {} guid {} attributes {:#x} name {:?}",
                e.number, e.first, e.last, e.type_guid, e.guid, e.attributes, e.name
            );
        }
        out
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

fn guid_at(bytes: &[u8], at: usize) -> Uuid {
    let mut guid = [0; 16];
    guid.copy_from_slice(&bytes[at..at + 16]);
    Uuid::from_bytes_le(guid)
}

/// `None` for an unused slot, `Some(None)` for a name that isn't UTF-16.
fn decode_entry((number, slot): (u32, &[u8])) -> Option<Option<Entry>> {
    let type_guid = guid_at(slot, 0);
    if type_guid.is_nil() {
        return None;
    }
    let units = slot[56..].chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    let name: Result<String, _> = char::decode_utf16(units.take_while(|&unit| unit != 0)).collect();
    Some(name.ok().map(|name| Entry {
        number,
        type_guid,
        guid: guid_at(slot, 16),
        first: Lba(u64_at(slot, 32)),
        last: Lba(u64_at(slot, 40)),
        attributes: u64_at(slot, 48),
        name,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use proptest::prelude::*;
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::process::Command;

    fn cloud_like() -> Table {
        let entry = |number, id, first, last, name: &str| Entry {
            number,
            type_guid: Uuid::from_u128(0x0fc63daf_8483_4772_8e79_3d69d8477de4),
            guid: Uuid::from_u128(id),
            first: Lba(first),
            last: Lba(last),
            attributes: 0,
            name: name.to_owned(),
        };
        Table {
            disk_guid: Uuid::from_u128(0x1111),
            sectors: 262_144,
            entries: vec![
                entry(1, 1, 100_352, 260_095, "root"),
                entry(14, 14, 2048, 4095, "bios"),
                entry(15, 15, 4096, 100_351, "ésp"),
            ],
        }
    }

    #[test]
    fn the_bytes_are_pinned() {
        let encoded = cloud_like().encode().unwrap();
        insta::assert_snapshot!(cloud_like().dump());
        let digests = [&encoded.primary, &encoded.backup].map(|b| Digest::of(b).short());
        insta::assert_debug_snapshot!(digests);
        assert_eq!(encoded.primary.len() as u64, (PRIMARY_SECTORS - 1) * SECTOR);
        assert_eq!(encoded.backup.len() as u64, BACKUP_SECTORS * SECTOR);
    }

    #[test]
    fn sgdisk_and_sfdisk_find_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let file = File::create(&path).unwrap();
        let table = cloud_like();
        let encoded = table.encode().unwrap();
        file.set_len(table.sectors * SECTOR).unwrap();
        file.write_all_at(&crate::format::mbr::protective(&[0; 440], table.sectors), 0).unwrap();
        file.write_all_at(&encoded.primary, SECTOR).unwrap();
        file.write_all_at(&encoded.backup, (table.sectors - BACKUP_SECTORS) * SECTOR).unwrap();
        let run = |program: &str, args: &[&str]| {
            let out = Command::new(program).args(args).arg(&path).output().unwrap();
            let text =
                String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
            assert!(out.status.success(), "{program}: {text}");
            text
        };
        let text = run("sgdisk", &["-v"]);
        assert!(text.contains("No problems found"), "{text}");
        let text = run("sfdisk", &["--verify"]);
        assert!(text.contains("No errors detected"), "{text}");
        let text = run("sgdisk", &["-p"]);
        for number in ["   1 ", "  14 ", "  15 "] {
            assert!(text.contains(number), "{text}");
        }
    }

    #[test]
    fn faults_are_named() {
        let fault = |change: fn(&mut Table)| {
            let mut table = cloud_like();
            change(&mut table);
            table.encode().unwrap_err().to_string()
        };
        let faults = [
            fault(|t| t.entries[1].number = 15),
            fault(|t| t.entries[1].number = 129),
            fault(|t| t.entries[0].last = Lba(262_143)),
            fault(|t| t.entries[2].last = Lba(100_352)),
            fault(|t| t.entries[0].name = "x".repeat(37)),
            fault(|t| t.sectors = 60),
        ];
        insta::assert_snapshot!(faults.join("\n"));
    }

    proptest! {
        #[test]
        fn what_was_written_reads_back(
            disk in any::<u128>(),
            parts in proptest::collection::btree_map(1u32..=128, (1u128.., any::<u128>(), 0u64..500, 1u64..500, any::<u64>(), "[ -~é𝄞]{0,18}"), 0..20),
        ) {
            let mut at = PRIMARY_SECTORS;
            let entries: Vec<Entry> = parts.into_iter().map(|(number, (kind, guid, gap, len, attributes, name))| {
                let first = at + gap;
                at = first + len;
                let (type_guid, guid) = (Uuid::from_u128(kind), Uuid::from_u128(guid));
                Entry { number, type_guid, guid, first: Lba(first), last: Lba(at - 1), attributes, name }
            }).collect();
            let table = Table { disk_guid: Uuid::from_u128(disk), sectors: at + BACKUP_SECTORS, entries };
            let encoded = table.encode();
            prop_assume!(encoded.is_ok() || table.usable().is_ok());
            prop_assert_eq!(Table::decode(&encoded.unwrap().primary), Ok(table));
        }

        #[test]
        fn a_damaged_table_is_refused_without_panic(at in 0usize..33 * 512, bit in 0u8..8) {
            let mut bytes = cloud_like().encode().unwrap().primary;
            bytes[at] ^= 1 << bit;
            // Only the padding behind the header is not covered by a checksum.
            prop_assert_eq!(Table::decode(&bytes).is_ok(), (HEADER_SIZE..512).contains(&at));
            let _ = Table::decode(&bytes[..at]);
        }
    }
}
