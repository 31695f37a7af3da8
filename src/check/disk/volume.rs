//! File systems on the partitions: what they are, their identities, and the files of those that can be read.

use std::cell::RefCell;

use ext4_view::{Ext4, Ext4Error};
use uuid::Uuid;

use super::device::{Disk, Slice};
use super::table::{Partition, u16_at, u32_at};
use crate::format::fat::read::Reader;
use crate::units::{Bytes, KIB};

/// Files that a directory may list; more are not looked at.
const MOST_ENTRIES: usize = 10_000;

/// A partition's file system.
pub(super) struct Volume {
    pub(super) partition: Partition,
    /// Its kind: `ext4`, `FAT`, `xfs`, …; empty when it holds nothing that is known.
    pub(super) kind: &'static str,
    pub(super) uuid: String,
    pub(super) label: String,
    pub(super) files: Files,
}

/// A file system's files.
pub(super) enum Files {
    Ext(Ext4),
    Fat(RefCell<Reader<Slice>>),
    /// Of a kind that isn't read.
    Unread,
    /// Damaged: what is wrong.
    Damaged(String),
}

impl Volume {
    /// What people call it: `partition 1`.
    pub(super) fn place(&self) -> String {
        format!("partition {}", self.partition.number)
    }

    /// Whether its files can be looked at.
    pub(super) fn is_read(&self) -> bool {
        matches!(self.files, Files::Ext(_) | Files::Fat(_))
    }

    /// The first `count` bytes of a file and its size, through symbolic links; `None` when there is none.
    pub(super) fn head(&self, path: &str, count: usize) -> Result<Option<(Vec<u8>, u64)>, String> {
        match &self.files {
            Files::Ext(fs) => ext_part(fs, path, 0, count),
            Files::Fat(fs) => fs.borrow_mut().head(path, count as u64).map_err(|e| e.to_string()),
            Files::Unread | Files::Damaged(_) => Ok(None),
        }
    }

    /// `count` bytes of a file from `at` on, or as many as there are, and its size; `None` when there is none, or on a file
    /// system that is only read from the beginning of files.
    pub(super) fn part(&self, path: &str, at: u64, count: usize) -> Result<Option<(Vec<u8>, u64)>, String> {
        match &self.files {
            Files::Ext(fs) => ext_part(fs, path, at, count),
            Files::Fat(_) | Files::Unread | Files::Damaged(_) => Ok(None),
        }
    }

    /// A text of at most `limit` bytes; `None` when there is no such file or it is larger or damaged.
    pub(super) fn text(&self, path: &str, limit: usize) -> Option<String> {
        let (bytes, size) = self.head(path, limit).ok()??;
        (size <= limit as u64).then(|| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Whether there is something at `path`.
    pub(super) fn exists(&self, path: &str) -> bool {
        match &self.files {
            Files::Ext(fs) => fs.exists(absolute(path).as_str()).unwrap_or(false),
            Files::Fat(fs) => {
                let mut fs = fs.borrow_mut();
                let file = fs.head(path, 0).is_ok_and(|found| found.is_some());
                file || fs.list(path).is_ok_and(|found| found.is_some())
            }
            Files::Unread | Files::Damaged(_) => false,
        }
    }

    /// Names in a directory, sorted; none when it isn't there.
    pub(super) fn list(&self, path: &str) -> Vec<String> {
        let mut names: Vec<String> = match &self.files {
            Files::Ext(fs) => {
                let Ok(entries) = fs.read_dir(absolute(path).as_str()) else { return Vec::new() };
                let entries = entries.take(MOST_ENTRIES).map_while(Result::ok);
                let names = entries.map(|e| e.file_name().display().to_string());
                names.filter(|name| name != "." && name != "..").collect()
            }
            Files::Fat(fs) => {
                let listed = fs.borrow_mut().list(path).ok().flatten().unwrap_or_default();
                listed.into_iter().map(|entry| entry.name).collect()
            }
            Files::Unread | Files::Damaged(_) => Vec::new(),
        };
        names.sort();
        names
    }

    /// Whether a reference such as `UUID=…`, `PARTLABEL=…` or `/dev/vda1` names it.
    pub(super) fn is_named(&self, reference: &str) -> bool {
        let p = &self.partition;
        let (tag, value) = match reference.split_once('=') {
            Some((tag, value)) => (tag, value.trim_matches('"')),
            None => match reference.strip_prefix("/dev/disk/by-").and_then(|rest| rest.split_once('/')) {
                Some((tag, value)) => (tag, value),
                None => return device_number(reference) == Some(p.number),
            },
        };
        let (same, exact) =
            (|own: &str| !own.is_empty() && own.eq_ignore_ascii_case(value), |own: &str| own == value);
        match tag.to_ascii_lowercase().as_str() {
            "uuid" => same(&self.uuid),
            "partuuid" => same(&p.part_uuid),
            "label" => !value.is_empty() && exact(&self.label),
            "partlabel" => !value.is_empty() && exact(&p.name),
            _ => false,
        }
    }
}

/// The partition within which there may be further file systems, which aren't seen here.
pub(super) fn hides(volumes: &[Volume]) -> Option<String> {
    let found = volumes.iter().find(|v| matches!(v.kind, "LVM" | "LUKS"))?;
    Some(format!("it may lie within {} on {}", found.kind, found.place()))
}

/// The number of the partition that a device's name such as `/dev/vda1` or `/dev/nvme0n1p1` means.
pub(super) fn device_number(device: &str) -> Option<u32> {
    let name = device.strip_prefix("/dev/")?;
    let digits = name.len() - name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    let (base, number) = name.split_at(name.len() - digits);
    let numbered =
        ["nvme", "mmcblk", "loop"].iter().any(|kind| base.starts_with(kind)) && base.ends_with('p');
    let lettered = ["sd", "vd", "xvd", "hd"].iter().any(|kind| base.starts_with(kind));
    if numbered || lettered { number.parse().ok() } else { None }
}

/// The file systems of all partitions.
pub(super) fn open_all(disk: &Disk, partitions: &[Partition]) -> Vec<Volume> {
    partitions.iter().map(|p| open(disk.slice(p.start, p.size), p.clone())).collect()
}

/// The kind of the file system in a part of the disk, if it is one that is known.
pub(super) fn kind_of(slice: &Slice) -> Option<&'static str> {
    let is = |at: u64, magic: &[u8]| slice.bytes(at, magic.len()).is_some_and(|bytes| bytes == magic);
    let known: [(&'static str, u64, &[u8]); 10] = [
        ("ext4", 1024 + 0x38, &[0x53, 0xef]),
        ("xfs", 0, b"XFSB"),
        ("btrfs", 0x1_0040, b"_BHRfS_M"),
        ("squashfs", 0, b"hsqs"),
        ("erofs", 1024, &[0xe2, 0xe1, 0xf5, 0xe0]),
        ("f2fs", 1024, &[0x10, 0x20, 0xf5, 0xf2]),
        ("LUKS", 0, b"LUKS\xba\xbe"),
        ("LVM", 512, b"LABELONE"),
        ("swap", 4086, b"SWAPSPACE2"),
        ("ISO 9660", 32_769, b"CD001"),
    ];
    let found = known.into_iter().find(|&(_, at, magic)| is(at, magic)).map(|(kind, ..)| kind);
    found.or_else(|| Reader::open(slice.clone()).is_ok().then_some("FAT"))
}

fn open(slice: Slice, partition: Partition) -> Volume {
    let mut v =
        Volume { partition, kind: "", uuid: String::new(), label: String::new(), files: Files::Unread };
    let Some(kind) = kind_of(&slice) else { return v };
    v.kind = kind;
    let uuid = |at| {
        slice.bytes(at, 16).and_then(|b| Uuid::from_slice(&b).ok()).map_or(String::new(), |u| u.to_string())
    };
    let label = |at, count| {
        let bytes = slice.bytes(at, count).unwrap_or_default();
        String::from_utf8_lossy(bytes.split(|&b| b == 0).next().unwrap_or_default()).into_owned()
    };
    (v.uuid, v.label) = match kind {
        "ext4" => (uuid(1024 + 0x68), label(1024 + 0x78, 16)),
        "xfs" => (uuid(32), label(108, 12)),
        "btrfs" => (uuid(0x1_0020), label(0x1_012b, 256)),
        "swap" => (uuid(1036), label(1052, 16)),
        "erofs" => (uuid(1024 + 48), label(1024 + 64, 16)),
        "LUKS" => (label(168, 40), String::new()),
        _ => Default::default(),
    };
    match kind {
        "ext4" => v.files = ext(&slice),
        "FAT" => match Reader::open(slice) {
            Ok(reader) => {
                (v.uuid, v.label) = (reader.serial(), reader.label().to_owned());
                v.files = Files::Fat(RefCell::new(reader));
            }
            Err(e) => v.files = Files::Damaged(e.to_string()),
        },
        _ => {}
    }
    v
}

/// Opens an ext file system whose superblock says nothing impossible.
fn ext(slice: &Slice) -> Files {
    let Some(sb) = slice.bytes(1024, 1024) else {
        return Files::Damaged("its superblock can't be read".into());
    };
    let damaged = |why: String| Files::Damaged(why);
    let log = u32_at(&sb, 0x18);
    if log > 6 {
        return damaged("its blocks have an impossible size".into());
    }
    let block = KIB << log;
    let large = u32_at(&sb, 0x60) & 0x80 != 0;
    let blocks = u64::from(u32_at(&sb, 4)) | if large { u64::from(u32_at(&sb, 0x150)) << 32 } else { 0 };
    let size = blocks.saturating_mul(block);
    if size > slice.size() {
        let (size, room) = (Bytes(size), Bytes(slice.size()));
        return damaged(format!("it has {size}, but its partition only {room}: the image was cut off"));
    }
    // Fewer would be more groups than the reader should be asked to hold.
    if u32_at(&sb, 0x20) < 256 || blocks == 0 || u16_at(&sb, 0x58) < 128 {
        return damaged("its superblock holds impossible numbers".into());
    }
    // The reader knows no inodes of the old size.
    if u16_at(&sb, 0x58) == 128 {
        return Files::Unread;
    }
    let opened = Ext4::load(Box::new(slice.clone())).and_then(|fs| fs.read_dir("/").map(|_| fs));
    match opened {
        Ok(fs) => Files::Ext(fs),
        Err(Ext4Error::Incompatible(_)) => Files::Unread,
        Err(e) => damaged(e.to_string()),
    }
}

fn absolute(path: &str) -> String {
    format!("/{}", path.trim_start_matches('/'))
}

fn ext_part(fs: &Ext4, path: &str, from: u64, count: usize) -> Result<Option<(Vec<u8>, u64)>, String> {
    let mut file = match fs.open(absolute(path).as_str()) {
        Ok(file) => file,
        Err(Ext4Error::NotFound | Ext4Error::NotADirectory) => return Ok(None),
        Err(e) => return Err(e.to_string()),
    };
    let size = file.metadata().len();
    let mut bytes = vec![0; (count as u64).min(size.saturating_sub(from)) as usize];
    file.seek_to(from).map_err(|e| e.to_string())?;
    let mut at = 0;
    while at < bytes.len() {
        match file.read_bytes(&mut bytes[at..]) {
            Ok(0) => return Err("it ends early".into()),
            Ok(n) => at += n,
            Err(e) => return Err(e.to_string()),
        }
    }
    Ok(Some((bytes, size)))
}
