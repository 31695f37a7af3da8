//! What the regions have already, as plain values: what a plan is made from besides the publication itself.

use std::collections::{BTreeMap, BTreeSet};

use super::tags;
use super::target::{BootMode, Encryption, LaunchPermissions, Protection, SnapshotPermissions};
use crate::date::Timestamp;
use crate::digest::Digest;
use crate::units::{Bytes, GIB};

/// What was seen in each region of a publication. A region that didn't answer has the reason instead.
pub type Observed = BTreeMap<String, Result<Region, String>>;

/// What one account has in one region that concerns a publication.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Region {
    /// The account's id.
    pub account: String,
    /// Whether new snapshots and volumes are encrypted although nobody asks for it.
    pub encryption_by_default: bool,
    /// The account's own images that have the target's name, and all that the system's tag names. Details stand in the
    /// first kind only.
    pub images: Vec<Image>,
    /// The account's own snapshots that the system's tag names, in whatever state.
    pub snapshots: Vec<Snapshot>,
    /// The target's SSM parameters that exist, by name.
    pub parameters: BTreeMap<String, Parameter>,
    /// Whether images can be made public.
    pub public_images: PublicAccess,
    /// Whether snapshots can be made public.
    pub public_snapshots: PublicAccess,
}

/// Whether the account blocks public sharing in a region.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PublicAccess {
    /// It may be shared.
    Allowed,
    /// New public sharing is blocked.
    BlocksNew,
    /// All public sharing is blocked, what was shared before included.
    BlocksAll,
    /// It could not be asked for, or nobody asked because nothing is to be public.
    #[default]
    Unknown,
}

/// An image as EC2 lists it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Image {
    /// Its id, as in `ami-0123456789abcdef0`.
    pub id: String,
    /// Its name.
    pub name: String,
    /// EC2's word for its processors: `x86_64`, `arm64`.
    pub architecture: String,
    /// EC2's word for its state: `available`, `pending`, `failed`, `disabled`, ….
    pub state: String,
    /// When it was made.
    pub created: Timestamp,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// The snapshots that it refers to, that of the root device first.
    pub snapshots: Vec<String>,
    /// Everything else; asked for only for an image that has the target's name.
    pub details: Option<Details>,
}

/// The settings of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Details {
    /// Its description.
    pub description: String,
    /// EC2's word for its processors: `x86_64`, `arm64`.
    pub architecture: String,
    /// How instances boot; absent when the image doesn't say.
    pub boot_mode: Option<BootMode>,
    /// Enhanced networking with ENA.
    pub ena: bool,
    /// Whether instances only answer metadata requests of version 2.
    pub imds_v2: bool,
    /// Whether it has a NitroTPM 2.0.
    pub nitro_tpm: bool,
    /// UEFI's variables, as base64; absent too when nobody may or did ask.
    pub uefi_data: Option<String>,
    /// The name of the root device.
    pub root_device: String,
    /// The mapping of the root device.
    pub volume: ObservedVolume,
    /// Who may launch it.
    pub launch: LaunchPermissions,
    /// When it is deprecated.
    pub deprecation: Option<Timestamp>,
    /// Whether it is protected against deregistration.
    pub protection: Option<Protection>,
}

/// The mapping of an image's root device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObservedVolume {
    /// EBS's volume type.
    pub kind: String,
    /// Its size in GiB.
    pub size: u32,
    /// Operations a second that are provisioned.
    pub iops: Option<u32>,
    /// MiB a second that are provisioned.
    pub throughput: Option<u32>,
    /// Whether it goes away with its instance.
    pub delete_on_termination: bool,
    /// Whether it is encrypted.
    pub encrypted: bool,
}

/// A snapshot as EC2 lists it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Its id, as in `snap-0123456789abcdef0`.
    pub id: String,
    /// How far it is.
    pub state: SnapshotState,
    /// When it was begun.
    pub started: Timestamp,
    /// The size of volumes made of it, in GiB.
    pub volume_size: u32,
    /// Whether it is encrypted.
    pub encrypted: bool,
    /// ARN of the key that it is encrypted under.
    pub kms_key: Option<String>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// Who may make volumes of it; asked for only where the target's image refers to it.
    pub permissions: Option<SnapshotPermissions>,
}

/// How far a snapshot is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SnapshotState {
    /// Being filled, or being copied.
    #[default]
    Pending,
    /// Done.
    Completed,
    /// Failed, or of no use for another reason (`error`, `recoverable`, `recovering`).
    Unusable,
}

/// An SSM parameter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parameter {
    /// The image that it names.
    pub value: String,
    /// Its data type; `aws:ec2:image` is wanted, and can't be given afterwards.
    pub data_type: String,
}

impl Region {
    /// The image of that name. Of several (`CopyImage` lets that happen) the one that is furthest, then the newest.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&Image> {
        let own = self.images.iter().filter(|image| image.name == name);
        own.max_by_key(|image| {
            (image.state == "available", image.state == "pending", image.created, &image.id)
        })
    }

    /// The snapshot with that id.
    #[must_use]
    pub fn snapshot(&self, id: &str) -> Option<&Snapshot> {
        self.snapshots.iter().find(|snapshot| snapshot.id == id)
    }

    /// The ids of all snapshots that an image refers to.
    #[must_use]
    pub fn used_snapshots(&self) -> BTreeSet<&str> {
        self.images.iter().flat_map(|image| image.snapshots.iter().map(String::as_str)).collect()
    }

    /// Whether a snapshot that is made as `wanted` is encrypted here.
    #[must_use]
    pub fn encrypts(&self, wanted: &Encryption) -> bool {
        self.encryption_by_default || *wanted != Encryption::AccountDefault
    }
}

impl Image {
    /// The digest of the blocks that it was made of, when Kiln made it.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.tags.get(tags::IMAGE)?.parse().ok()
    }

    /// The publication that made it.
    #[must_use]
    pub fn publication(&self) -> Option<Digest> {
        self.tags.get(tags::PUBLICATION)?.parse().ok()
    }

    /// Whether the system's tag says that it is one of `system`'s.
    #[must_use]
    pub fn is_of(&self, system: &str) -> bool {
        self.tags.get(tags::SYSTEM).is_some_and(|name| name == system)
    }
}

impl Snapshot {
    /// The digest of the blocks that it is made of, when Kiln made it.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.tags.get(tags::IMAGE)?.parse().ok()
    }

    /// The publication that made it.
    #[must_use]
    pub fn publication(&self) -> Option<Digest> {
        self.tags.get(tags::PUBLICATION)?.parse().ok()
    }

    /// The size of volumes made of it.
    #[must_use]
    pub fn size(&self) -> Bytes {
        Bytes(u64::from(self.volume_size) * GIB)
    }
}
