//! Sizes in, a partition table with offsets and GUIDs out.
//!
//! A [`Layout`] says where on the disk everything lies before a byte is written; it is printed, compared, kept in the
//! manifest. The order on the disk is that of how often things change, and the root lies last so that it can grow:
//!
//! | number | name | begins | holds |
//! |---|---|---|---|
//! | 14 | `bios` | block 2048 | GRUB's core image, for BIOS |
//! | 15 | `esp` | behind it | the EFI system partition, FAT32 |
//! | 2… | the profile's names | behind it | further partitions, in the order of their names |
//! | 1 | `root` | behind them | the root, ext4, to the end of the disk |
//!
//! Numbers 1, 14 and 15 are those that cloud images have.

mod ids;
mod order;
mod size;
mod table;

pub use ids::Ids;
pub use order::{Placed, divide, place};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::arch::Arch;
use crate::format::ext4::{Ext4, Need};
use crate::format::gpt::{self, BIOS_BOOT, Entry, Table};
use crate::system::{Disk, DiskLayout, ExtraFs, ExtraPartition, Firmware};
use crate::tree::Tree;
use crate::units::{Bytes, Lba, MIB, SECTOR};

/// Where partitions begin and end: multiples of this.
const ALIGNMENT: u64 = MIB;
/// A computed disk is a multiple of this, so that small changes of the tree leave the geometry as it is.
pub const DISK_STEP: Bytes = Bytes(64 * MIB);
/// The smallest ext4 file system that gets a journal.
const SMALLEST_EXT4: Bytes = Bytes(16 * MIB);
/// Number of the first further partition.
const FIRST_EXTRA: u32 = 2;
/// Number of the BIOS boot partition.
const BIOS_NUMBER: u32 = 14;

/// Partition type of Linux file system data.
const TYPE_LINUX: Uuid = Uuid::from_u128(0x0fc63daf_8483_4772_8e79_3d69d8477de4);

/// What a layout is computed from.
#[derive(Debug, Clone, Copy)]
pub struct LayoutRequest<'a> {
    /// The system's name, from which all identities derive.
    pub name: &'a str,
    /// The machine's architecture.
    pub arch: Arch,
    /// What the profile says of the disk.
    pub disk: &'a Disk,
    /// Under which firmware it boots.
    pub firmware: Firmware,
    /// All that goes onto the disk, with what further partitions are to hold.
    pub tree: &'a Tree,
}

/// A planned disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// Size of the disk.
    pub size: Bytes,
    /// GUID of the disk.
    pub guid: Uuid,
    /// Partitions in the order in which they lie on the disk.
    pub partitions: Vec<Partition>,
}

/// A planned partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Partition {
    /// Its number.
    pub number: u32,
    /// Its name, also written into the table.
    pub name: String,
    /// What it is for.
    #[serde(rename = "type")]
    pub type_guid: Uuid,
    /// Its GUID (`PARTUUID`).
    pub guid: Uuid,
    /// Attribute bits.
    pub attributes: u64,
    /// First block.
    pub first: Lba,
    /// Last block, which belongs to it.
    pub last: Lba,
    /// What it holds.
    pub holds: Holds,
}

/// What a partition holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Holds {
    /// GRUB's core image.
    GrubCore,
    /// The EFI system partition's FAT32.
    Esp {
        /// Serial number of the file system.
        serial: u32,
    },
    /// An ext4 file system with what the tree holds at and below `mount`.
    Ext4 {
        /// The file system.
        #[serde(flatten)]
        fs: Ext4,
        /// Where it is mounted, as a path in the tree; empty for the root; `None` for an empty file system.
        mount: Option<String>,
    },
    /// A swap area, made at first boot.
    Swap,
    /// Nothing.
    Nothing,
}

/// A layout that is not possible.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The disk, or a partition of it, is too small for what goes onto it.
    #[error("{what} of {asked} is too small: it takes at least {need}{}", size::largest_text(largest))]
    TooSmall {
        /// The disk, or which partition.
        what: String,
        /// The size asked for.
        asked: Bytes,
        /// The least that would do.
        need: Bytes,
        /// The largest directories of what goes onto it.
        largest: Vec<(String, Bytes)>,
    },
    /// A size that is no multiple of a sector.
    #[error("{what} has {asked_bytes} bytes, which is no multiple of {SECTOR}")]
    Unaligned {
        /// The disk, or which partition.
        what: String,
        /// The size asked for.
        asked_bytes: u64,
    },
    /// More further partitions than there are numbers before 14.
    #[error("{0} further partitions are asked for, but there are only numbers for 12")]
    TooMany(usize),
    /// A partition type that is no GUID.
    #[error("the type `{value}` of partition `{partition}` is no GUID")]
    Type {
        /// The partition.
        partition: String,
        /// What stands there.
        value: String,
    },
    /// A label that ext4 can't hold.
    #[error("the label `{0}` is longer than 16 bytes, which ext4 can't hold")]
    Label(String),
    /// A name of a partition that the table can't hold, or that has a meaning of its own.
    #[error(
        "`{0}` can't be a partition's name: `root`, `esp` and `bios` are taken, and it has at most 36 characters"
    )]
    Name(String),
}

/// Plans the disk.
///
/// # Errors
/// [`LayoutError`] when sizes that were asked for don't hold what goes onto them, or a value can't be written.
pub fn plan(request: &LayoutRequest<'_>) -> Result<Layout, LayoutError> {
    let mut planner = Planner { ids: Ids::of(request.name), at: Bytes(ALIGNMENT), partitions: Vec::new() };
    check_label(&request.disk.label)?;
    if request.firmware != Firmware::Uefi {
        planner.add(BIOS_NUMBER, "bios", BIOS_BOOT, Bytes(MIB), |_| Holds::GrubCore);
    }
    // In the store layout GRUB finds the kernel there as well.
    if request.firmware != Firmware::Bios || request.disk.layout == DiskLayout::Store {
        let size = request.disk.esp_size.round_up(ALIGNMENT);
        planner.add(15, "esp", gpt::ESP, size, |ids| Holds::Esp { serial: ids.esp_serial() });
    }
    let extra: Vec<_> = request.disk.partitions.iter().filter(|(_, p)| p.enable).collect();
    if extra.len() > (BIOS_NUMBER - FIRST_EXTRA) as usize {
        return Err(LayoutError::TooMany(extra.len()));
    }
    for (number, (name, partition)) in (FIRST_EXTRA..).zip(&extra) {
        planner.extra(number, name, partition, request)?;
    }
    planner.root(request)
}

fn check_label(label: &str) -> Result<(), LayoutError> {
    if label.len() > 16 { Err(LayoutError::Label(label.to_owned())) } else { Ok(()) }
}

struct Planner<'a> {
    ids: Ids<'a>,
    /// Where the next partition begins.
    at: Bytes,
    partitions: Vec<Partition>,
}

impl<'a> Planner<'a> {
    fn add(&mut self, number: u32, name: &str, kind: Uuid, size: Bytes, holds: impl Fn(&Ids<'a>) -> Holds) {
        let first = Lba(self.at.sectors());
        self.at = Bytes(self.at.0 + size.0);
        self.partitions.push(Partition {
            number,
            name: name.to_owned(),
            type_guid: kind,
            guid: self.ids.partition(name),
            attributes: 0,
            first,
            last: Lba(self.at.sectors() - 1),
            holds: holds(&self.ids),
        });
    }

    fn extra(
        &mut self,
        number: u32,
        name: &str,
        wanted: &ExtraPartition,
        request: &LayoutRequest<'_>,
    ) -> Result<(), LayoutError> {
        if ["root", "esp", "bios"].contains(&name) || name.encode_utf16().count() > 36 || name.contains('\0')
        {
            return Err(LayoutError::Name(name.to_owned()));
        }
        let what = format!("partition `{name}`");
        if !wanted.size.0.is_multiple_of(SECTOR) {
            return Err(LayoutError::Unaligned { what, asked_bytes: wanted.size.0 });
        }
        let kind = match wanted.type_guid.as_str() {
            "" => TYPE_LINUX,
            text => {
                text.parse().map_err(|_| LayoutError::Type { partition: name.into(), value: text.into() })?
            }
        };
        let size = wanted.size.round_up(ALIGNMENT);
        let holds = match wanted.fs {
            ExtraFs::None if wanted.size.0 > 0 => Holds::Nothing,
            ExtraFs::Swap if wanted.size.0 > 0 => Holds::Swap,
            ExtraFs::None | ExtraFs::Swap => {
                return Err(LayoutError::TooSmall { what, asked: size, need: Bytes(MIB), largest: vec![] });
            }
            ExtraFs::Ext4 => {
                let mount = wanted.mount.trim_matches('/');
                let mount = (!mount.is_empty()).then(|| mount.to_owned());
                let need = size::need_below(request.tree, mount.as_deref(), request.disk);
                let fs = self.ext4(name, "", size, need, Ext4::journal_for(size, false));
                let least = size::smallest(&fs, need, Bytes(0)).max(SMALLEST_EXT4).round_up(ALIGNMENT);
                if size < least {
                    let largest = size::largest(request.tree, mount.as_deref().unwrap_or("/nothing"));
                    return Err(LayoutError::TooSmall { what, asked: size, need: least, largest });
                }
                Holds::Ext4 { fs, mount }
            }
        };
        self.add(number, name, kind, size, |_| holds.clone());
        Ok(())
    }

    fn ext4(&self, partition: &str, label: &str, size: Bytes, need: Need, journal: Bytes) -> Ext4 {
        Ext4 {
            uuid: self.ids.file_system(partition),
            hash_seed: self.ids.hash_seed(partition),
            label: label.to_owned(),
            inodes: Ext4::inodes_for(size, need),
            journal,
        }
    }

    /// The root takes what is left; the size of the disk follows from it unless it is given.
    fn root(mut self, request: &LayoutRequest<'_>) -> Result<Layout, LayoutError> {
        let disk = request.disk;
        let need = size::need_below(request.tree, Some(""), disk);
        // What lies around the root: the partitions before it, and one step for the table's copy at the end.
        let around = self.at.0 + ALIGNMENT;
        let make =
            |size: Bytes| self.ext4("root", &disk.label, size, need, Ext4::journal_for(size, disk.grow));
        let least = size::solve(need, disk.free, &make);
        let size = match disk.size {
            None => Bytes(least.0 + around).round_up(DISK_STEP.0),
            Some(size) => {
                let what = "the disk".to_owned();
                if !size.0.is_multiple_of(SECTOR) {
                    return Err(LayoutError::Unaligned { what, asked_bytes: size.0 });
                }
                // Of a disk whose size is given, nothing has to be left free.
                let need = Bytes(size::solve(need, Bytes(0), &make).0 + around).round_up(ALIGNMENT);
                if size < need {
                    let largest = size::largest(request.tree, "");
                    return Err(LayoutError::TooSmall { what, asked: size, need, largest });
                }
                size
            }
        };
        let root = Bytes((size.0 - around) / ALIGNMENT * ALIGNMENT);
        let holds = Holds::Ext4 { fs: make(root), mount: Some(String::new()) };
        self.add(1, "root", root_type(request.arch), root, |_| holds.clone());
        Ok(Layout { size, guid: self.ids.disk(), partitions: self.partitions })
    }
}

/// The root's partition type by the Discoverable Partitions Specification.
fn root_type(arch: Arch) -> Uuid {
    match arch {
        Arch::Amd64 => Uuid::from_u128(0x4f68bce3_e8cd_4db1_96e7_fbcaf984b709),
        Arch::Arm64 => Uuid::from_u128(0xb921b045_1df0_41c3_af44_4c6f280d3fae),
    }
}

impl Partition {
    /// Where it begins on the disk.
    #[must_use]
    pub fn offset(&self) -> Bytes {
        self.first.offset()
    }

    /// Its size.
    #[must_use]
    pub fn size(&self) -> Bytes {
        Bytes((self.last.0 + 1 - self.first.0) * SECTOR)
    }
}

impl Layout {
    /// The partition of this name.
    #[must_use]
    pub fn partition(&self, name: &str) -> Option<&Partition> {
        self.partitions.iter().find(|p| p.name == name)
    }

    /// The partition table.
    #[must_use]
    pub fn table(&self) -> Table {
        let entry = |p: &Partition| Entry {
            number: p.number,
            type_guid: p.type_guid,
            guid: p.guid,
            first: p.first,
            last: p.last,
            attributes: p.attributes,
            name: p.name.clone(),
        };
        let mut entries: Vec<Entry> = self.partitions.iter().map(entry).collect();
        entries.sort_by_key(|e| e.number);
        Table { disk_guid: self.guid, sectors: self.size.sectors(), entries }
    }

    /// Mount points of further partitions, as paths in the tree: what lies below them isn't the root's.
    pub fn mounts(&self) -> impl Iterator<Item = &str> {
        self.partitions.iter().filter_map(|p| match &p.holds {
            Holds::Ext4 { mount: Some(mount), .. } if !mount.is_empty() => Some(mount.as_str()),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests;
