//! Partition tables as they are found, of any maker: GUID tables with both copies judged, and MBR tables.

use std::collections::BTreeSet;

use uuid::Uuid;

use super::device::Disk;
use super::{Finding, failed, passed, skipped};
use crate::units::SECTOR;

/// More entries than this are damage: the specification's least, which everybody uses, is 128.
const MOST_ENTRIES: u32 = 1024;
/// Logical partitions of an MBR that are followed.
const MOST_LOGICAL: u32 = 60;

/// A partition.
#[derive(Debug, Clone)]
pub(super) struct Partition {
    pub(super) number: u32,
    /// What a GUID table says that it is for.
    pub(super) type_guid: Option<Uuid>,
    /// What an MBR says that it is for.
    pub(super) mbr_type: u8,
    /// Its PARTUUID as Linux prints it.
    pub(super) part_uuid: String,
    /// Its PARTLABEL.
    pub(super) name: String,
    /// Its first byte.
    pub(super) start: u64,
    /// Its size in bytes.
    pub(super) size: u64,
}

/// How the disk is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scheme {
    Gpt,
    Mbr,
    None,
}

/// What was found of the disk's division.
pub(super) struct Table {
    pub(super) scheme: Scheme,
    pub(super) partitions: Vec<Partition>,
    pub(super) first_sector: Vec<u8>,
    pub(super) primary: Finding,
    pub(super) backup: Finding,
}

/// A GUID table's copy that was read without fault.
struct Copy {
    other: u64,
    disk: Uuid,
    entries: Vec<u8>,
    entry_size: usize,
    first_usable: u64,
    last_usable: u64,
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

pub(super) fn guid_at(bytes: &[u8], at: usize) -> Uuid {
    bytes.get(at..at + 16).and_then(|b| b.try_into().ok()).map_or(Uuid::nil(), Uuid::from_bytes_le)
}

/// Reads what there is.
pub(super) fn read(disk: &Disk) -> Table {
    let none = |why: String| Table {
        scheme: Scheme::None,
        partitions: Vec::new(),
        first_sector: vec![0; SECTOR as usize],
        primary: failed(why),
        backup: skipped("there is no partition table"),
    };
    let first_sector = match disk.bytes(0, SECTOR as usize) {
        Ok(sector) => sector,
        Err(e) => return none(format!("can't read the first sector: {e}; is this a disk image?")),
    };
    let marked = first_sector[510..] == [0x55, 0xaa];
    let protective = (0..4).any(|slot| first_sector[446 + slot * 16 + 4] == 0xee);
    let header = disk.bytes(SECTOR, 8).unwrap_or_default();
    if header == b"EFI PART" || (marked && protective) {
        return gpt(disk, first_sector, marked && protective);
    }
    if disk.bytes(4096, 8).is_ok_and(|b| b == b"EFI PART") {
        return none(
            "its partition table is for sectors of 4096 bytes, where machines expect 512: convert the image"
                .into(),
        );
    }
    let bare = super::volume::kind_of(&disk.slice(0, disk.size()));
    match (bare, marked) {
        (Some(kind), _) => none(format!(
            "there is no partition table but a bare {kind} file system: firmware boots from a partitioned disk only"
        )),
        (None, false) => none(
            "the first sector holds neither an MBR nor a GUID partition table: this is no raw disk image, or it is empty".into(),
        ),
        (None, true) => mbr(disk, first_sector),
    }
}

fn gpt(disk: &Disk, first_sector: Vec<u8>, protective: bool) -> Table {
    let sectors = disk.size() / SECTOR;
    let primary = copy_at(disk, 1, sectors);
    let last = sectors.saturating_sub(1);
    let other = primary.as_ref().map_or(last, |copy| copy.other);
    let backup = copy_at(disk, other, sectors);
    let partitions = primary.as_ref().or(backup.as_ref()).map(partitions).unwrap_or_default();
    let backup_finding = match (&backup, &primary) {
        (Err(why), _) => failed(format!(
            "the table's copy at sector {other} can't be used: {why}: repair it with `sgdisk --move-second-header`"
        )),
        (Ok(b), Ok(p)) if b.disk != p.disk || b.entries != p.entries => failed(
            "the table's copy at the disk's end differs from the table: repair it with `sgdisk --move-second-header`",
        ),
        (Ok(_), _) if other != last => failed(format!(
            "the table's copy lies at sector {other}, not at the disk's last sector {last}: the file was cut or grown after \
             it was partitioned; run `sgdisk --move-second-header`"
        )),
        (Ok(_), _) => passed("at the disk's end, the same as the table"),
    };
    let finding = match primary {
        Err(why) => failed(format!(
            "the GUID partition table can't be used: {why}{}",
            if backup.is_ok() {
                "; its copy at the disk's end is whole: `gdisk` can restore it from there"
            } else {
                ""
            }
        )),
        Ok(_) if !protective => failed(
            "there is no protective MBR before the GUID partition table, without which neither firmware nor Linux looks for \
             one: write it with `sgdisk`",
        ),
        Ok(copy) => placement(&copy, &partitions, sectors),
    };
    Table { scheme: Scheme::Gpt, partitions, first_sector, primary: finding, backup: backup_finding }
}

/// Whether the partitions lie where they may.
fn placement(copy: &Copy, partitions: &[Partition], sectors: u64) -> Finding {
    for p in partitions {
        let (first, last) = (p.start / SECTOR, (p.start + p.size) / SECTOR);
        if p.size == 0 || first < copy.first_usable || last - 1 > copy.last_usable || last > sectors {
            return failed(format!(
                "partition {} from sector {first} to {} doesn't lie within the disk's usable sectors {} to {}: the image was \
                 cut off, or its table is wrong",
                p.number,
                last.saturating_sub(1),
                copy.first_usable,
                copy.last_usable.min(sectors)
            ));
        }
    }
    let mut sorted: Vec<&Partition> = partitions.iter().collect();
    sorted.sort_by_key(|p| p.start);
    if let Some(pair) = sorted.windows(2).find(|pair| pair[1].start < pair[0].start + pair[0].size) {
        return failed(format!("partitions {} and {} overlap", pair[0].number, pair[1].number));
    }
    let guids: BTreeSet<&str> = partitions.iter().map(|p| p.part_uuid.as_str()).collect();
    if guids.len() < partitions.len() {
        return failed("two partitions have the same GUID: systems that look for one may take the other");
    }
    match partitions.len() {
        0 => failed("the GUID partition table holds no partition: there is nothing to boot"),
        1 => passed("GUID partition table with 1 partition"),
        n => passed(format!("GUID partition table with {n} partitions")),
    }
}

/// Reads the copy whose header lies at sector `at`.
fn copy_at(disk: &Disk, at: u64, sectors: u64) -> Result<Copy, String> {
    let start = at.checked_mul(SECTOR).ok_or("it would lie behind the disk's end")?;
    let h = disk.bytes(start, SECTOR as usize).map_err(|_| "it would lie behind the disk's end")?;
    if !h.starts_with(b"EFI PART") {
        return Err("its signature is missing".into());
    }
    let size = u32_at(&h, 12) as usize;
    if !(92..=SECTOR as usize).contains(&size) {
        return Err(format!("its header has an impossible size of {size} bytes"));
    }
    let mut summed = h[..size].to_vec();
    summed[16..20].fill(0);
    if crc32fast::hash(&summed) != u32_at(&h, 16) {
        return Err("its header's checksum is wrong".into());
    }
    if u64_at(&h, 24) != at {
        return Err(format!("its header says that it lies at sector {}", u64_at(&h, 24)));
    }
    let (count, entry_size) = (u32_at(&h, 80), u32_at(&h, 84));
    if count > MOST_ENTRIES || !(128..=4096).contains(&entry_size) {
        return Err(format!("it has {count} entries of {entry_size} bytes"));
    }
    let entries_at = u64_at(&h, 72);
    let bytes = count as usize * entry_size as usize;
    let entries = entries_at.checked_mul(SECTOR).and_then(|at| disk.bytes(at, bytes).ok());
    let entries = entries
        .ok_or_else(|| format!("its entries at sector {entries_at} lie behind the end ({sectors})"))?;
    if crc32fast::hash(&entries) != u32_at(&h, 88) {
        return Err("the checksum of its entries is wrong".into());
    }
    Ok(Copy {
        other: u64_at(&h, 32),
        disk: guid_at(&h, 56),
        entries,
        entry_size: entry_size as usize,
        first_usable: u64_at(&h, 40),
        last_usable: u64_at(&h, 48),
    })
}

fn partitions(copy: &Copy) -> Vec<Partition> {
    let used = (1..).zip(copy.entries.chunks_exact(copy.entry_size));
    let used = used.filter(|(_, slot)| !guid_at(slot, 0).is_nil());
    used.map(|(number, slot)| {
        let (first, last) = (u64_at(slot, 32), u64_at(slot, 40));
        let units = slot[56..128].chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
        let name = char::decode_utf16(units.take_while(|&unit| unit != 0));
        // What lies beyond all disks is brought to where additions don't overflow.
        let most = u64::MAX / SECTOR / 4;
        Partition {
            number,
            type_guid: Some(guid_at(slot, 0)),
            mbr_type: 0,
            part_uuid: guid_at(slot, 16).to_string(),
            name: name.map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect(),
            start: first.min(most) * SECTOR,
            size: last.min(most).saturating_add(1).saturating_sub(first.min(most)) * SECTOR,
        }
    })
    .collect()
}

fn mbr(disk: &Disk, first_sector: Vec<u8>) -> Table {
    let id = u32_at(&first_sector, 440);
    let mut partitions = Vec::new();
    for slot in 0..4 {
        let Some(mut p) = record(&first_sector, slot, 0, id) else { continue };
        p.number = slot as u32 + 1;
        p.part_uuid = format!("{id:08x}-{:02x}", p.number);
        if matches!(p.mbr_type, 0x05 | 0x0f | 0x85) {
            logical(disk, p.start, id, &mut partitions);
        } else {
            partitions.push(p);
        }
    }
    partitions.sort_by_key(|p| p.number);
    let outside = partitions.iter().find(|p| p.start + p.size > disk.size());
    let primary = match (outside, partitions.len()) {
        (Some(p), _) => {
            failed(format!("partition {} goes beyond the disk's end: the image was cut off", p.number))
        }
        (None, 0) => failed("the MBR holds no partition: there is nothing to boot"),
        (None, n) => passed(format!("MBR with {n} partition{}", if n == 1 { "" } else { "s" })),
    };
    let backup = skipped("the disk has an MBR, which has no copy");
    Table { scheme: Scheme::Mbr, partitions, first_sector, primary, backup }
}

/// The partition that a slot of an MBR describes, counted from `base`.
fn record(sector: &[u8], slot: usize, base: u64, id: u32) -> Option<Partition> {
    let at = 446 + slot * 16;
    let (mbr_type, first, count) = (*sector.get(at + 4)?, u32_at(sector, at + 8), u32_at(sector, at + 12));
    (mbr_type != 0 && count != 0).then(|| Partition {
        number: 0,
        type_guid: None,
        mbr_type,
        part_uuid: format!("{id:08x}"),
        name: String::new(),
        start: base + u64::from(first) * SECTOR,
        size: u64::from(count) * SECTOR,
    })
}

/// Follows the chain of an extended partition that begins at `base`.
fn logical(disk: &Disk, base: u64, id: u32, partitions: &mut Vec<Partition>) {
    let mut at = base;
    for number in 5..5 + MOST_LOGICAL {
        let Ok(sector) = disk.bytes(at, SECTOR as usize) else { return };
        if sector[510..] != [0x55, 0xaa] {
            return;
        }
        if let Some(mut p) = record(&sector, 0, at, id) {
            p.number = number;
            p.part_uuid = format!("{id:08x}-{number:02x}");
            partitions.push(p);
        }
        match record(&sector, 1, base, id) {
            Some(next) if next.start > at => at = next.start,
            _ => return,
        }
    }
}
