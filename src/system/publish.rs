//! Where the tested image is published, and as what: the profile's `publish`. Nothing of it shapes the image.

mod names;
mod settings;
mod template;

use serde::{Deserialize, Serialize};

use super::Set;
use crate::units::Bytes;

pub use names::{wrong_ami_name, wrong_description, wrong_parameter_name};
pub use settings::Settings;
pub use template::{FIELDS, Facts, TemplateError, expand};

/// Where the image is published.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Publish {
    /// As AMIs.
    pub aws: Aws,
}

/// What the AMIs are like, and the regions that they go to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Aws {
    /// The regions by name, each with what differs there.
    pub regions: Set<Region>,
    /// The role to work as in each region.
    pub role: Option<Role>,
    /// Template of the AMI's name.
    pub name: String,
    /// Template of its description.
    pub description: String,
    /// How instances boot; what the image boots under says it when absent.
    pub boot_mode: Option<BootMode>,
    /// Enhanced networking with ENA.
    pub ena: bool,
    /// What the metadata service of instances wants of its callers.
    pub imds: super::test::Imds,
    /// Whether instances have a NitroTPM 2.0.
    pub nitro_tpm: bool,
    /// A file beside the profile with UEFI's variables.
    pub uefi_data: Option<String>,
    /// The root device's name.
    pub root_device: String,
    /// The root volume of instances.
    pub volume: Volume,
    /// Whether the snapshot is encrypted; as the account has it when absent.
    pub encrypt: Option<bool>,
    /// The key that the snapshot is encrypted under.
    pub kms_key: Option<String>,
    /// Tags of image and snapshot.
    pub tags: Set<String>,
    /// Further tags of the snapshot.
    pub snapshot_tags: Set<String>,
    /// Who may launch it.
    pub launch: Launch,
    /// Who may make volumes of its snapshot.
    pub snapshot: SnapshotAccess,
    /// Days until it is deprecated; 0 for never.
    pub deprecate_after: u32,
    /// Protection against deregistration.
    pub protection: Protection,
    /// Templates of SSM parameters that name the image, on when true.
    pub parameters: Set<bool>,
    /// What becomes of earlier images.
    pub retention: Retention,
    /// How the bytes get there.
    pub upload: Upload,
}

/// A region, and what differs there from [`Aws`]: fields that are given go before its, sets are joined.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Region {
    /// Off: nothing is published there.
    pub enable: bool,
    /// Whether the publication fails when this region does.
    pub required: bool,
    /// As [`Aws::role`].
    pub role: Option<Role>,
    /// As [`Aws::name`].
    pub name: Option<String>,
    /// As [`Aws::description`].
    pub description: Option<String>,
    /// As [`Aws::boot_mode`].
    pub boot_mode: Option<BootMode>,
    /// As [`Aws::ena`].
    pub ena: Option<bool>,
    /// As [`Aws::imds`].
    pub imds: Option<super::test::Imds>,
    /// As [`Aws::nitro_tpm`].
    pub nitro_tpm: Option<bool>,
    /// As [`Aws::uefi_data`].
    pub uefi_data: Option<String>,
    /// As [`Aws::root_device`].
    pub root_device: Option<String>,
    /// As [`Aws::volume`].
    pub volume: RegionVolume,
    /// As [`Aws::encrypt`].
    pub encrypt: Option<bool>,
    /// As [`Aws::kms_key`].
    pub kms_key: Option<String>,
    /// As [`Aws::tags`].
    pub tags: Set<String>,
    /// As [`Aws::snapshot_tags`].
    pub snapshot_tags: Set<String>,
    /// As [`Aws::launch`].
    pub launch: RegionLaunch,
    /// As [`Aws::snapshot`].
    pub snapshot: RegionSnapshotAccess,
    /// As [`Aws::deprecate_after`].
    pub deprecate_after: Option<u32>,
    /// As [`Aws::protection`].
    pub protection: RegionProtection,
    /// As [`Aws::parameters`].
    pub parameters: Set<bool>,
    /// As [`Aws::retention`].
    pub retention: Retention,
    /// As [`Aws::upload`].
    pub upload: RegionUpload,
}

/// A role to assume on top of the caller's own credentials.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Role {
    /// Its ARN.
    pub arn: String,
    /// What its trust policy asks for.
    pub external_id: Option<String>,
    /// The session's name.
    pub session_name: Option<String>,
    /// Seconds that the session lasts.
    pub duration: Option<u32>,
}

/// How instances boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BootMode {
    /// The BIOS.
    LegacyBios,
    /// UEFI.
    Uefi,
    /// UEFI where the instance type can, else the BIOS.
    UefiPreferred,
}

impl BootMode {
    /// EC2's word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            BootMode::LegacyBios => "legacy-bios",
            BootMode::Uefi => "uefi",
            BootMode::UefiPreferred => "uefi-preferred",
        }
    }
}

/// A kind of EBS volume that can hold a root.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeType {
    /// General purpose, operations and throughput of one's choice.
    #[default]
    Gp3,
    /// General purpose, operations by size.
    Gp2,
    /// Provisioned operations.
    Io1,
    /// Provisioned operations, more durable.
    Io2,
    /// Magnetic.
    Standard,
}

impl VolumeType {
    /// EC2's word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            VolumeType::Gp3 => "gp3",
            VolumeType::Gp2 => "gp2",
            VolumeType::Io1 => "io1",
            VolumeType::Io2 => "io2",
            VolumeType::Standard => "standard",
        }
    }
}

/// The root volume of instances.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Volume {
    /// Its kind.
    #[serde(rename = "type")]
    pub kind: VolumeType,
    /// Its size; the image's, in whole GiB, when absent.
    pub size: Option<Bytes>,
    /// Operations a second that are provisioned.
    pub iops: Option<u32>,
    /// MiB a second that are provisioned.
    pub throughput: Option<u32>,
    /// Whether it goes away with its instance.
    pub delete_on_termination: bool,
}

/// What of [`Volume`] differs in a region.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegionVolume {
    /// As [`Volume::kind`].
    #[serde(rename = "type")]
    pub kind: Option<VolumeType>,
    /// As [`Volume::size`].
    pub size: Option<Bytes>,
    /// As [`Volume::iops`].
    pub iops: Option<u32>,
    /// As [`Volume::throughput`].
    pub throughput: Option<u32>,
    /// As [`Volume::delete_on_termination`].
    pub delete_on_termination: Option<bool>,
}

/// Who may launch an image, on when true.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Launch {
    /// Accounts' ids.
    pub accounts: Set<bool>,
    /// ARNs of organisations.
    pub organizations: Set<bool>,
    /// ARNs of organisational units.
    pub organizational_units: Set<bool>,
    /// Everybody.
    pub public: bool,
}

/// What of [`Launch`] differs in a region.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegionLaunch {
    /// As [`Launch::accounts`].
    pub accounts: Set<bool>,
    /// As [`Launch::organizations`].
    pub organizations: Set<bool>,
    /// As [`Launch::organizational_units`].
    pub organizational_units: Set<bool>,
    /// As [`Launch::public`].
    pub public: Option<bool>,
}

/// Who may make volumes of a snapshot, on when true.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SnapshotAccess {
    /// Accounts' ids.
    pub accounts: Set<bool>,
    /// Everybody.
    pub public: bool,
}

/// What of [`SnapshotAccess`] differs in a region.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegionSnapshotAccess {
    /// As [`SnapshotAccess::accounts`].
    pub accounts: Set<bool>,
    /// As [`SnapshotAccess::public`].
    pub public: Option<bool>,
}

/// Protection of an image against deregistration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Protection {
    /// Whether it is protected.
    pub enable: bool,
    /// Whether protection lasts 24 hours after it was lifted.
    pub cooldown: bool,
}

/// What of [`Protection`] differs in a region.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegionProtection {
    /// As [`Protection::enable`].
    pub enable: Option<bool>,
    /// As [`Protection::cooldown`].
    pub cooldown: Option<bool>,
}

/// Which earlier images of the same system stay. All of them when nothing is said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// So many of the newest.
    pub keep: Option<u32>,
    /// Those younger than so many days.
    pub days: Option<u32>,
}

/// How an image's bytes get to a region.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Upload {
    /// By which service.
    pub way: Way,
    /// How it gets to the further regions.
    pub fan_out: FanOut,
    /// The bucket, with [`Way::S3Import`].
    pub bucket: Option<String>,
    /// What the object's key begins with.
    pub prefix: String,
    /// The role that EC2 reads the bucket with.
    pub role: Option<String>,
}

/// What of [`Upload`] differs in a region.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegionUpload {
    /// As [`Upload::way`].
    pub way: Option<Way>,
    /// As [`Upload::fan_out`].
    pub fan_out: Option<FanOut>,
    /// As [`Upload::bucket`].
    pub bucket: Option<String>,
    /// As [`Upload::prefix`].
    pub prefix: Option<String>,
    /// As [`Upload::role`].
    pub role: Option<String>,
}

/// By which service bytes get to AWS.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// Block by block into a snapshot.
    #[default]
    EbsDirect,
    /// As an object in a bucket, from which EC2 imports a snapshot.
    S3Import,
}

/// How an image gets to its second region and those after it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FanOut {
    /// What costs less for this image.
    #[default]
    Cheapest,
    /// Uploaded to each region by itself.
    Upload,
    /// Its snapshot is copied, and registered.
    CopySnapshot,
    /// The image is copied.
    CopyImage,
}
