//! What holds in one region: the settings for all of them, with the region's own in front.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Aws, BootMode, Launch, Protection, Region, Retention, Role, SnapshotAccess, Upload, Volume, VolumeType,
};
use crate::arch::Arch;
use crate::system::test::Imds;
use crate::system::{Firmware, Set};

/// What holds in one region.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Whether the publication fails when this region does.
    pub required: bool,
    /// The role to work as.
    pub role: Option<Role>,
    /// Template of the AMI's name.
    pub name: String,
    /// Template of its description.
    pub description: String,
    /// How instances boot, when the profile says it.
    pub boot_mode: Option<BootMode>,
    /// Enhanced networking with ENA.
    pub ena: bool,
    /// What the metadata service wants of its callers.
    pub imds: Imds,
    /// Whether instances have a NitroTPM 2.0.
    pub nitro_tpm: bool,
    /// A file beside the profile with UEFI's variables.
    pub uefi_data: Option<String>,
    /// The root device's name.
    pub root_device: String,
    /// The root volume.
    pub volume: Volume,
    /// Whether the snapshot is encrypted; as the account has it when absent.
    pub encrypt: Option<bool>,
    /// The key that it is encrypted under.
    pub kms_key: Option<String>,
    /// Tags of the image.
    pub tags: BTreeMap<String, String>,
    /// Tags of the snapshot: the image's, and its own.
    pub snapshot_tags: BTreeMap<String, String>,
    /// Who may launch it; only entries that are on.
    pub launch: Launch,
    /// Who may make volumes of its snapshot; only entries that are on.
    pub snapshot: SnapshotAccess,
    /// Days until it is deprecated.
    pub deprecate_after: Option<u32>,
    /// Protection against deregistration.
    pub protection: Protection,
    /// Templates of SSM parameters.
    pub parameters: BTreeSet<String>,
    /// What becomes of earlier images.
    pub retention: Retention,
    /// How the bytes get there.
    pub upload: Upload,
}

impl Aws {
    /// The names of the regions that are on.
    #[must_use]
    pub fn names(&self) -> std::collections::BTreeSet<String> {
        self.enabled().map(|(name, _)| name.to_owned()).collect()
    }

    /// The regions that are on, by name.
    pub fn enabled(&self) -> impl Iterator<Item = (&str, &Region)> {
        self.regions.iter().filter(|(_, region)| region.enable).map(|(name, region)| (name.as_str(), region))
    }

    /// What holds in `region`.
    #[must_use]
    pub fn in_region(&self, region: &Region) -> Settings {
        let tags = joined(&self.tags, &region.tags);
        let own_tags = joined(&self.snapshot_tags, &region.snapshot_tags);
        // A region that says `encrypt = false` doesn't want the key that the others have.
        let plain = region.encrypt == Some(false) && region.kms_key.is_none();
        let days = region.deprecate_after.unwrap_or(self.deprecate_after);
        Settings {
            required: region.required,
            role: region.role.clone().or_else(|| self.role.clone()),
            name: region.name.clone().unwrap_or_else(|| self.name.clone()),
            description: region.description.clone().unwrap_or_else(|| self.description.clone()),
            boot_mode: region.boot_mode.or(self.boot_mode),
            ena: region.ena.unwrap_or(self.ena),
            imds: region.imds.unwrap_or(self.imds),
            nitro_tpm: region.nitro_tpm.unwrap_or(self.nitro_tpm),
            uefi_data: region.uefi_data.clone().or_else(|| self.uefi_data.clone()),
            root_device: region.root_device.clone().unwrap_or_else(|| self.root_device.clone()),
            volume: volume(&self.volume, region),
            encrypt: if region.kms_key.is_some() { region.encrypt } else { region.encrypt.or(self.encrypt) },
            kms_key: if plain { None } else { region.kms_key.clone().or_else(|| self.kms_key.clone()) },
            snapshot_tags: joined(&tags, &own_tags),
            tags,
            launch: launch(&self.launch, region),
            snapshot: SnapshotAccess {
                accounts: on(&self.snapshot.accounts, &region.snapshot.accounts),
                public: region.snapshot.public.unwrap_or(self.snapshot.public),
            },
            deprecate_after: (days > 0).then_some(days),
            protection: Protection {
                enable: region.protection.enable.unwrap_or(self.protection.enable),
                cooldown: region.protection.cooldown.unwrap_or(self.protection.cooldown),
            },
            parameters: on(&self.parameters, &region.parameters).into_keys().collect(),
            retention: Retention {
                keep: region.retention.keep.or(self.retention.keep),
                days: region.retention.days.or(self.retention.days),
            },
            upload: upload(&self.upload, region),
        }
    }
}

/// A volume of another kind in a region doesn't take over what was provisioned for the first kind.
fn volume(base: &Volume, region: &Region) -> Volume {
    let own = &region.volume;
    let kind = own.kind.unwrap_or(base.kind);
    let same = kind == base.kind;
    Volume {
        kind,
        size: own.size.or(base.size),
        iops: own.iops.or(base.iops.filter(|_| same)),
        throughput: own.throughput.or(base.throughput.filter(|_| same)),
        delete_on_termination: own.delete_on_termination.unwrap_or(base.delete_on_termination),
    }
}

fn launch(base: &Launch, region: &Region) -> Launch {
    let own = &region.launch;
    Launch {
        accounts: on(&base.accounts, &own.accounts),
        organizations: on(&base.organizations, &own.organizations),
        organizational_units: on(&base.organizational_units, &own.organizational_units),
        public: own.public.unwrap_or(base.public),
    }
}

fn upload(base: &Upload, region: &Region) -> Upload {
    let own = &region.upload;
    Upload {
        way: own.way.unwrap_or(base.way),
        fan_out: own.fan_out.unwrap_or(base.fan_out),
        bucket: own.bucket.clone().or_else(|| base.bucket.clone()),
        prefix: own.prefix.clone().unwrap_or_else(|| base.prefix.clone()),
        role: own.role.clone().or_else(|| base.role.clone()),
    }
}

/// Both sets; of two entries with one name the second counts.
fn joined<T: Clone>(base: &Set<T>, own: &Set<T>) -> Set<T> {
    base.iter().chain(own).map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// The entries of both sets that are on in the end.
fn on(base: &Set<bool>, own: &Set<bool>) -> Set<bool> {
    joined(base, own).into_iter().filter(|(_, on)| *on).collect()
}

impl Settings {
    /// How instances boot: what the profile says, else all that the image can.
    #[must_use]
    pub fn boots(&self, firmware: Firmware, arch: Arch) -> BootMode {
        self.boot_mode.unwrap_or(match (arch, firmware) {
            (Arch::Arm64, _) | (Arch::Amd64, Firmware::Uefi) => BootMode::Uefi,
            (Arch::Amd64, Firmware::Bios) => BootMode::LegacyBios,
            (Arch::Amd64, Firmware::Both) => BootMode::UefiPreferred,
        })
    }

    /// Whether the snapshot is to be encrypted whatever the account says: a key asks for it too.
    #[must_use]
    pub fn encrypts(&self) -> bool {
        self.encrypt.unwrap_or(self.kms_key.is_some())
    }

    /// Whether somebody outside the account is to use the image or its snapshot.
    #[must_use]
    pub fn shared(&self) -> bool {
        let launch = &self.launch;
        let sets =
            [&launch.accounts, &launch.organizations, &launch.organizational_units, &self.snapshot.accounts];
        self.public() || sets.iter().any(|set| !set.is_empty())
    }

    /// Whether everybody is to use the image or its snapshot.
    #[must_use]
    pub fn public(&self) -> bool {
        self.launch.public || self.snapshot.public
    }
}

impl VolumeType {
    /// The operations a second that can be provisioned, and how many of them for each GiB (EBS User Guide, "Amazon EBS
    /// volume types").
    #[must_use]
    pub fn iops(self) -> Option<(std::ops::RangeInclusive<u32>, u32)> {
        match self {
            VolumeType::Gp3 => Some((3_000..=80_000, 500)),
            VolumeType::Io1 => Some((100..=64_000, 50)),
            VolumeType::Io2 => Some((100..=256_000, 1_000)),
            VolumeType::Gp2 | VolumeType::Standard => None,
        }
    }

    /// The most operations a second that a volume of `size` GiB can have.
    #[must_use]
    pub fn most_iops(self, size: u64) -> Option<u64> {
        let (range, each) = self.iops()?;
        Some(size.saturating_mul(each.into()).clamp((*range.start()).into(), (*range.end()).into()))
    }

    /// The largest volume, in GiB.
    #[must_use]
    pub fn largest(self) -> u32 {
        match self {
            VolumeType::Gp3 | VolumeType::Io2 => 64 << 10,
            VolumeType::Gp2 | VolumeType::Io1 => 16 << 10,
            VolumeType::Standard => 1 << 10,
        }
    }
}
