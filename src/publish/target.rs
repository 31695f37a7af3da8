//! What an image is to be in each region: the profile's `publish.aws`, with templates filled in and overrides applied.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::arch::Arch;
use crate::digest::Digest;
// What a profile says of these is what holds.
pub use crate::system::publish::{BootMode, FanOut, Retention, Role};
use crate::units::Bytes;

/// One image, published to some regions. Two publications with the same identity have the same result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Publication {
    /// The digest of its images' identities.
    pub id: Digest,
    /// The system's name: what successive images of one kind have in common, and what retention counts.
    pub system: String,
    /// The system's version.
    pub version: String,
    /// Digest of the lock that the image was baked from.
    pub lock: Digest,
    /// Digest of the image's blocks.
    pub image: Digest,
    /// Size of the disk.
    pub size: Bytes,
    /// Whether the image passed its tests: false only after `--untested`.
    pub tested: bool,
    /// Where it goes, by the regions' names.
    pub targets: BTreeMap<String, Target>,
}

/// What the image is to be in one region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Target {
    /// The image's identity in this region: the digest of its bytes and of all that can't be changed afterwards. It stands
    /// in the tags of whatever is made for it.
    pub id: Digest,
    /// The region's name: `eu-central-1`.
    pub region: String,
    /// Whether the publication fails when this region does.
    pub required: bool,
    /// The role to work as there, on top of the caller's own credentials.
    pub role: Option<Role>,
    /// The AMI's name, 3 to 128 characters.
    pub name: String,
    /// The AMI's description, at most 255 characters.
    pub description: String,
    /// What processors it is for.
    pub arch: Arch,
    /// How instances boot.
    pub boot_mode: BootMode,
    /// Enhanced networking with ENA.
    pub ena: bool,
    /// Whether instances only answer metadata requests of version 2.
    pub imds_v2: bool,
    /// Whether instances have a NitroTPM 2.0. Needs [`BootMode::Uefi`].
    pub nitro_tpm: bool,
    /// UEFI's variables as `RegisterImage` takes them: base64 of EC2's own format.
    pub uefi_data: Option<String>,
    /// The name of the root device: `/dev/xvda`.
    pub root_device: String,
    /// The root volume of instances.
    pub volume: Volume,
    /// How the snapshot is encrypted.
    pub encryption: Encryption,
    /// Tags of the image, Kiln's own among them.
    pub image_tags: BTreeMap<String, String>,
    /// Tags of the snapshot, Kiln's own among them.
    pub snapshot_tags: BTreeMap<String, String>,
    /// Who may launch it.
    pub launch: LaunchPermissions,
    /// Who may make volumes of its snapshot.
    pub snapshot: SnapshotPermissions,
    /// Days from the image's creation until it is deprecated.
    pub deprecate_after: Option<u32>,
    /// Whether the image is protected against deregistration.
    pub protection: Option<Protection>,
    /// SSM parameters that name the image, filled in.
    pub parameters: BTreeSet<String>,
    /// What becomes of earlier images.
    pub retention: Retention,
    /// How the bytes get there.
    pub upload: Upload,
}

impl Target {
    /// Whether somebody outside the account is to use the image or its snapshot.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.launch != LaunchPermissions::default() || self.snapshot != SnapshotPermissions::default()
    }
}

/// The root volume of instances.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Volume {
    /// EBS's volume type: `gp3`, `gp2`, `io1`, `io2`, `standard`.
    pub kind: String,
    /// Its size in GiB: at least the image's.
    pub size: u32,
    /// Operations a second that are provisioned.
    pub iops: Option<u32>,
    /// MiB a second that are provisioned; `gp3` only.
    pub throughput: Option<u32>,
    /// Whether it goes away with its instance.
    pub delete_on_termination: bool,
}

/// How a snapshot is encrypted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Encryption {
    /// As the account has it by default in the region: not at all, usually.
    AccountDefault,
    /// Under the account's default key for EBS there.
    DefaultKey,
    /// Under this key: an id, an ARN or an alias.
    Key(String),
}

/// Who may launch an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct LaunchPermissions {
    /// Accounts' ids.
    pub accounts: BTreeSet<String>,
    /// ARNs of organisations.
    pub organizations: BTreeSet<String>,
    /// ARNs of organisational units.
    pub organizational_units: BTreeSet<String>,
    /// Everybody: the group `all`.
    pub public: bool,
}

/// Who may make volumes of a snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SnapshotPermissions {
    /// Accounts' ids.
    pub accounts: BTreeSet<String>,
    /// Everybody: the group `all`.
    pub public: bool,
}

/// An image that is protected against deregistration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Protection {
    /// Protection lasts 24 hours after it was lifted.
    pub cooldown: bool,
}

/// How an image's bytes get to a region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Upload {
    /// Block by block through the EBS direct APIs; to further regions what is cheaper.
    EbsDirect(FanOut),
    /// As an object in a bucket, from which EC2 imports a snapshot.
    S3Import {
        /// The bucket, in the same region.
        bucket: String,
        /// What the object's key begins with.
        prefix: String,
        /// The role that EC2 reads the bucket with; `vmimport` when absent.
        service_role: Option<String>,
    },
}
