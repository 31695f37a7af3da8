//! What is tested of an image before anyone may publish it: the profile's `test`. Nothing of it shapes the image.

use serde::{Deserialize, Serialize};

use super::{File, Set};
use crate::units::Bytes;

/// The tests of an image: on which machines, and what is checked.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Test {
    /// Platforms that are imitated, on when true.
    pub platforms: Platforms,
    /// Ways in which the disk is attached, on when true.
    pub disks: Disks,
    /// Whether EC2's metadata answers version 1 as well.
    pub imds: Imds,
    /// Main memory of the machines.
    pub memory: Bytes,
    /// Their processors.
    pub cpus: u32,
    /// Size of the disk that the image is given, when it is to grow; twice the image's when absent.
    pub disk_size: Option<Bytes>,
    /// Seconds within which the system is up, on a machine with KVM.
    pub boot_limit: u32,
    /// Which checks are derived from the rest of the profile, on when true.
    pub derived: Derived,
    /// Checks by name.
    pub checks: Set<Check>,
}

/// Platforms.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Platforms {
    /// A plain PC.
    pub plain: bool,
    /// A lookalike of an EC2 instance: its DMI, its metadata service, an NVMe disk.
    pub ec2: bool,
}

/// Ways in which the disk is attached to a plain PC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Disks {
    /// virtio-blk.
    pub virtio: bool,
    /// NVMe.
    pub nvme: bool,
}

/// EC2's limit of an instance's user-data, in bytes, before it is encoded.
pub const USER_DATA_LIMIT: usize = 16 << 10;

/// What EC2's metadata service wants of its callers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Imds {
    /// A session token: version 2 only.
    #[default]
    Required,
    /// Version 1 is answered as well.
    Optional,
}

/// Which checks are derived.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(clippy::struct_excessive_bools)] // a record of switches, as profiles write it
pub struct Derived {
    /// No unit failed; the enabled ones are up.
    pub units: bool,
    /// Users and groups of the profile.
    pub accounts: bool,
    /// Files of the profile: bytes, mode, owner.
    pub files: bool,
    /// Kernel parameters.
    pub sysctl: bool,
    /// Mounts, and the root that has grown.
    pub mounts: bool,
    /// Ports that the profile's services listen on.
    pub ports: bool,
    /// `dpkg --verify`.
    pub packages: bool,
    /// Time to boot.
    pub boot_time: bool,
}

/// A check as a profile writes it: exactly one of the fields from `command` to `reboot`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Check {
    /// Off: not done.
    pub enable: bool,
    /// Seconds that one try may take, on a machine with KVM.
    pub timeout: u32,
    /// How often it is tried again, a second apart, before it counts as failed.
    pub retry: u32,
    /// A shell command, run as root.
    pub command: Option<String>,
    /// The exit status that `command` is to end with.
    pub status: Option<i32>,
    /// A regular expression that a line of `command`'s standard output is to match.
    pub output: Option<String>,
    /// A systemd unit that is to be active.
    pub unit: Option<String>,
    /// A TCP port that is to be listened on.
    pub port: Option<u16>,
    /// A page that is to be served.
    pub http: Option<Http>,
    /// A file that is to be there.
    pub file: Option<FileCheck>,
    /// A program, run in the guest as root; it fails with any status but 0.
    pub script: Option<File>,
    /// Boots once more, as an EC2 instance with this user-data, and makes these checks there.
    pub user_data: Option<UserData>,
    /// Boots once more from the disk as it then is, and makes all checks again.
    pub reboot: Option<bool>,
}

/// A page that is to be served: asked for from outside, through a forwarded port.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// The guest's port.
    pub port: u16,
    /// Path and query.
    pub path: String,
    /// The `Host` that is asked for.
    pub host: String,
    /// The status that is to be answered.
    pub status: u16,
    /// A regular expression that the body is to match.
    pub body: Option<String>,
}

/// A file that is to be there, or not.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FileCheck {
    /// Its path.
    pub path: String,
    /// Whether it is to exist.
    pub exists: bool,
    /// A regular expression that a line of it is to match.
    pub contains: Option<String>,
    /// SHA-256 of its bytes.
    pub sha256: Option<crate::digest::Digest>,
    /// Its mode as octal text.
    pub mode: Option<String>,
    /// Its owner's name.
    pub user: Option<String>,
    /// Its group's name.
    pub group: Option<String>,
}

/// User-data and what it is to bring about.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UserData {
    /// The user-data itself.
    pub text: String,
    /// Checks on that machine.
    pub checks: Set<Check>,
}
