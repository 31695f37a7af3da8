//! Which bytes of a disk something will read: the others may be left out of a snapshot.
//!
//! A block that was never written to a snapshot reads as zeroes on a plain volume, but as noise on an encrypted one. So
//! zeroes that something relies on have to be written, and those that nothing looks at need not be. Whatever isn't
//! understood counts as read: a partition of unknown content, a file system that isn't clean, a disk without a GUID table.

use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

use crate::format::gpt::{self, Entry};
use crate::format::{ext4, fat, merged};
use crate::host::fs::is_zero;
use crate::host::part::Part;
use crate::units::SECTOR;

/// The first and the last of a disk: tables, boot code, and where signatures are searched for. ZFS' labels, two of 256 KiB
/// at either end, are those that lie farthest in.
const EDGE: u64 = 512 << 10;
/// The first of GRUB's boot partition: its image is all that is read, and finds no room in the memory of a BIOS when it has
/// more than 480 KiB (GRUB's include/grub/offsets.h).
const BOOT_HEAD: u64 = 512 << 10;
/// The first of a swap partition: its header, and where signatures are searched for.
const SWAP_HEAD: u64 = 64 << 10;

/// The ranges of bytes of `disk` that something reads, in order, none empty, none touching the next.
///
/// # Errors
/// When the disk can't be read.
pub fn read_ranges(disk: &mut (impl Read + Seek)) -> io::Result<Vec<Range<u64>>> {
    let size = disk.seek(SeekFrom::End(0))?;
    let everything = 0..size;
    let Some(entries) = partitions(disk, size)? else { return Ok(merged(Vec::from([everything]))) };
    let mut ranges = vec![0..EDGE.min(size), size.saturating_sub(EDGE)..size];
    for entry in entries {
        let (start, end) = (entry.first.offset().0, (entry.last.0 + 1) * SECTOR);
        if entry.type_guid == gpt::BIOS_BOOT {
            ranges.push(start..end.min(start + BOOT_HEAD));
            continue;
        }
        let mut part = Part::new(&mut *disk, start, end - start);
        match file_system(&mut part)? {
            Some(used) => {
                let inside = |r: Range<u64>| start + r.start..(start + r.end).min(end);
                ranges.extend(used.into_iter().map(inside));
            }
            None if is_empty(&mut part)? => {
                ranges.extend([start..end.min(start + EDGE), start.max(end.saturating_sub(EDGE))..end]);
            }
            None => ranges.push(start..end),
        }
    }
    Ok(merged(ranges))
}

/// The partitions of a GUID table that fits the disk; `None` for any other disk.
fn partitions(disk: &mut (impl Read + Seek), size: u64) -> io::Result<Option<Vec<Entry>>> {
    let mut bytes = vec![0; ((gpt::PRIMARY_SECTORS - 1) * SECTOR) as usize];
    if size < SECTOR + bytes.len() as u64 {
        return Ok(None);
    }
    disk.seek(SeekFrom::Start(SECTOR))?;
    disk.read_exact(&mut bytes)?;
    let table = gpt::Table::decode(&bytes).ok().filter(|table| table.sectors * SECTOR <= size);
    Ok(table.map(|table| table.entries))
}

/// Whether there is nothing in a partition: whoever is to use it looks for signatures at its ends only.
fn is_empty(part: &mut (impl Read + Seek)) -> io::Result<bool> {
    let mut bytes = vec![0; 1 << 20];
    part.seek(SeekFrom::Start(0))?;
    loop {
        match part.read(&mut bytes)? {
            0 => return Ok(true),
            count if !is_zero(&bytes[..count]) => return Ok(false),
            _ => {}
        }
    }
}

/// What of a partition is read, if that can be said: a file system that is known, or swap.
fn file_system(part: &mut (impl Read + Seek)) -> io::Result<Option<Vec<Range<u64>>>> {
    let size = part.seek(SeekFrom::End(0))?;
    match ext4::read::in_use(part, size) {
        Ok(used) => return Ok(Some(used)),
        Err(ext4::read::ReadError::Io(e)) => return Err(e),
        Err(ext4::read::ReadError::NotExt) => {}
        Err(ext4::read::ReadError::Unknown(_)) => return Ok(None),
    }
    if size >= SWAP_HEAD {
        let mut magic = [0; 10];
        part.seek(SeekFrom::Start(4096 - 10))?;
        part.read_exact(&mut magic)?;
        if &magic == b"SWAPSPACE2" {
            let head = 0..SWAP_HEAD;
            return Ok(Some(Vec::from([head])));
        }
    }
    fat_in_use(part, size)
}

fn fat_in_use(part: &mut (impl Read + Seek), size: u64) -> io::Result<Option<Vec<Range<u64>>>> {
    if size < SECTOR {
        return Ok(None);
    }
    let used = fat::read::Reader::open(part).and_then(|mut volume| {
        if volume.size() > size {
            return Err(fat::read::ReadError::Damaged("it is larger than its partition"));
        }
        volume.in_use()
    });
    match used {
        Ok(used) => Ok(Some(used)),
        Err(fat::read::ReadError::Io(e)) => Err(e),
        Err(_) => Ok(None),
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::process::Command;

    use uuid::Uuid;

    use super::*;
    use crate::format::mbr;
    use crate::units::{Bytes, Lba, MIB};

    const SECTORS: u64 = 256 << 11;

    fn entry(number: u32, first_mib: u64, last_mib: u64) -> Entry {
        Entry {
            number,
            type_guid: if number == 1 { gpt::BIOS_BOOT } else { Uuid::from_u128(7) },
            guid: Uuid::from_u128(u128::from(number)),
            first: Lba(first_mib << 11),
            last: Lba((last_mib << 11) - 1),
            attributes: 0,
            name: String::new(),
        }
    }

    /// 256 MiB: boot code, an ESP, swap, something unknown, ext4, and an empty partition.
    fn disk() -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(SECTORS * SECTOR).unwrap();
        let entries = vec![
            entry(1, 1, 2),
            entry(2, 2, 42),
            entry(3, 42, 62),
            entry(4, 62, 70),
            entry(5, 80, 240),
            entry(6, 242, 250),
        ];
        let table = gpt::Table { disk_guid: Uuid::from_u128(9), sectors: SECTORS, entries };
        let encoded = table.encode().unwrap();
        let put = |at: u64, bytes: &[u8]| file.as_file().write_all_at(bytes, at).unwrap();
        put(0, &mbr::protective(&[0; mbr::CODE_SIZE], SECTORS));
        put(SECTOR, &encoded.primary);
        put((SECTORS - gpt::BACKUP_SECTORS) * SECTOR, &encoded.backup);
        let files = BTreeMap::from([("EFI/BOOT/BOOTX64.EFI".to_owned(), vec![1; 3 << 20])]);
        let size = Bytes(40 * MIB);
        let volume =
            fat::Volume { size, hidden_sectors: 4096, id: 1, label: "ESP", time: 1 << 30, files: &files };
        volume
            .write(|at, bytes| {
                put(2 * MIB + at, bytes);
                Ok::<_, io::Error>(())
            })
            .unwrap();
        put(42 * MIB + 4086, b"SWAPSPACE2");
        put(66 * MIB, b"something unknown");
        let out = Command::new("mke2fs")
            .env("MKE2FS_CONFIG", "/dev/null")
            .args(["-q", "-F", "-b", "4096", "-J", "size=8", "-O", "none,has_journal,filetype,extent"])
            .args(["-E", "offset=83886080,nodiscard"])
            .arg(file.path())
            .arg("160m")
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        file
    }

    fn ranges(file: &tempfile::NamedTempFile) -> Vec<Range<u64>> {
        read_ranges(&mut File::open(file.path()).unwrap()).unwrap()
    }

    #[test]
    fn what_is_read_of_a_disk() {
        let disk = disk();
        let covered = |ranges: &[Range<u64>], from: u64, to: u64| {
            ranges.iter().map(|r| r.end.min(to).saturating_sub(r.start.max(from))).sum::<u64>()
        };
        let found = ranges(&disk);
        let of = |from, to| covered(&found, from * MIB, to * MIB);
        // The edges, boot code, and what is unknown: all of it.
        assert_eq!((of(0, 1), of(1, 2), of(255, 256)), (EDGE, BOOT_HEAD, EDGE));
        assert_eq!(of(62, 70), 8 * MIB);
        // Between partitions: nothing.
        assert_eq!((of(70, 80), of(240, 242), of(250, 255)), (0, 0, 0));
        // Of an empty one the ends.
        assert_eq!((of(242, 250), of(243, 249)), (2 * EDGE, 0));
        // The ESP: 3 MiB of a file, and less than one of tables and directories.
        assert!((3 * MIB..4 * MIB).contains(&of(2, 42)), "{}", of(2, 42));
        assert_eq!(of(42, 62), SWAP_HEAD);
        // ext4: its tables, as far as inodes are in use, and nothing of its journal of 8 MiB but the superblock.
        assert!((MIB..4 * MIB).contains(&of(80, 240)), "{}", of(80, 240));
        // A file system that needs its journal replayed is read as a whole.
        disk.as_file().write_all_at(&[0x46], 80 * MIB + 1024 + 0x60).unwrap();
        assert_eq!(covered(&ranges(&disk), 80 * MIB, 240 * MIB), 160 * MIB);
        // And so is a disk whose table is damaged.
        disk.as_file().write_all_at(&[1], 2 * SECTOR + 3).unwrap();
        assert_eq!(ranges(&disk), [0..256 * MIB]);
    }

    #[test]
    fn an_esp_by_its_own_tools() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(40 * MIB).unwrap();
        for (bits, mib) in [("12", 4), ("16", 40), ("32", 40)] {
            file.as_file().set_len(mib * MIB).unwrap();
            let made = Command::new("mkfs.fat").args(["-F", bits]).arg(file.path()).output().unwrap();
            assert!(made.status.success());
            let copied = Command::new("mcopy")
                .args(["-i", file.path().to_str().unwrap(), "/proc/self/exe", "::PROGRAM"])
                .output()
                .unwrap();
            assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
            let mut volume = fat::read::Reader::open(File::open(file.path()).unwrap()).unwrap();
            let found = volume.head("PROGRAM", 0).unwrap().unwrap().1;
            let used: u64 = volume.in_use().unwrap().iter().map(|r| r.end - r.start).sum();
            assert!(used > found && used < found + MIB, "FAT{bits}: {used} for {found}");
        }
    }

    #[test]
    fn what_is_no_disk_is_read_whole() {
        assert_eq!(read_ranges(&mut io::Cursor::new(vec![0; 100])).unwrap(), [0..100]);
        assert_eq!(read_ranges(&mut io::Cursor::new(vec![0; 1 << 20])).unwrap(), [0..1 << 20]);
        assert_eq!(read_ranges(&mut io::Cursor::new(Vec::new())).unwrap(), []);
    }
}
