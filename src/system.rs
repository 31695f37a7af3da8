//! What a profile evaluates to: a whole system as plain data.
//!
//! Every field mirrors one of the contracts in `profile/ncl/`, which hold its documentation for users and its default;
//! all defaults are filled in there, so that a value of these types says everything. Sets are records (maps), so that
//! modules can add to them and switch single entries off.

pub mod publish;
pub mod test;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::arch::Arch;
use crate::digest::Digest;
use crate::units::Bytes;

/// A set of named things, as profiles write it: a record.
pub type Set<T> = BTreeMap<String, T>;

/// A whole system.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct System {
    /// Name of the image: lower-case letters, digits, `-`; names the lock's and the output's files.
    pub name: String,
    /// The profile author's version of the image.
    pub version: String,
    /// Target architecture.
    pub arch: Arch,
    /// The time stamped on what Kiln itself writes, in seconds since 1970; by default the date of the newest locked release.
    pub epoch: Option<i64>,
    /// Package archives by name; `debian` is the main one.
    pub sources: Set<Source>,
    /// Where the programs that build and boot the image (GRUB, QEMU) are taken from.
    pub tools: Source,
    /// Packages wanted, by name.
    pub packages: Set<Package>,
    /// Whether recommended packages are installed as well.
    pub recommends: bool,
    /// apt's pins: a package name or glob (`*` at the end) to a pin.
    pub pins: Set<Pin>,
    /// `.deb` files of the profile's own, by a label.
    pub local_debs: Set<LocalDeb>,
    /// Answers to debconf questions: `package` → `question` → value.
    pub debconf: Set<Set<DebconfAnswer>>,
    /// The host's name; empty leaves it to DHCP or cloud-init.
    pub hostname: String,
    /// Time zone, as in `Europe/Berlin`.
    pub timezone: String,
    /// System locale, as in `C.UTF-8` or `de_DE.UTF-8`.
    pub locale: String,
    /// Further locales to generate.
    pub locales: Set<Enable>,
    /// Console keyboard.
    pub keyboard: Keyboard,
    /// User accounts by name.
    pub users: Set<User>,
    /// Groups by name.
    pub groups: Set<Group>,
    /// Files by absolute path.
    pub files: Set<File>,
    /// Directories by absolute path.
    pub directories: Set<Directory>,
    /// Symbolic links by absolute path.
    pub symlinks: Set<Symlink>,
    /// systemd units by full name (`nginx.service`): text, drop-ins, state.
    pub units: Set<Unit>,
    /// Kernel parameters under /proc/sys.
    pub sysctl: Set<Value>,
    /// Kernel, its arguments and modules.
    pub kernel: Kernel,
    /// Network configuration.
    pub network: Network,
    /// Mounts beside the root, by mount point.
    pub mounts: Set<Mount>,
    /// Swap file and compressed memory.
    pub swap: Swap,
    /// cloud-init.
    pub cloud_init: CloudInit,
    /// OpenSSH's server.
    pub ssh: Ssh,
    /// Files fetched by URL and digest, by absolute path.
    pub fetch: Set<Fetch>,
    /// Scripts run in the finished tree, offline, in the order of their names.
    pub run: Set<Script>,
    /// The disk.
    pub disk: Disk,
    /// How it boots.
    pub boot: Boot,
    /// What the machine itself writes, in the store layout.
    pub state: State,
    /// What is tested of it. Nothing here shapes the image.
    pub test: test::Test,
    /// Where it is published, and as what. Nothing here shapes the image.
    pub publish: publish::Publish,
}

impl System {
    /// Whether its disk has an EFI system partition: for UEFI, and for the menus and kernels of the store layout.
    #[must_use]
    pub fn has_esp(&self) -> bool {
        self.boot.firmware != Firmware::Bios || self.disk.layout == DiskLayout::Store
    }
}

/// A package archive.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Source {
    /// Switches the source off without removing it.
    pub enable: bool,
    /// Name of the archive, by which mirrors are configured: `debian`, `debian-security`, or the author's own.
    pub archive: String,
    /// Suite or codename, as in `trixie`.
    pub suite: String,
    /// Components, as in `main`.
    pub components: Vec<String>,
    /// Further suites of the same distribution: `updates`, `security`, `backports`; an entry is on when true.
    pub pockets: Set<bool>,
    /// Base URLs to try first for this source; transport only, never part of a lock.
    pub mirrors: Vec<String>,
    /// Names of key files (armoured or binary OpenPGP), relative to the profile; the built-in Debian keys when empty.
    pub keys: Vec<String>,
}

/// How a wanted package is wanted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Package {
    /// Off: no longer asked for (a dependency may still bring it).
    pub enable: bool,
    /// Exactly this version.
    pub version: Option<String>,
    /// Taken from this suite, as `apt-get install name/suite`.
    pub suite: Option<String>,
}

/// An apt pin (apt_preferences(5)).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pin {
    /// Version glob that is pinned.
    pub version: Option<String>,
    /// Suite that is pinned.
    pub suite: Option<String>,
    /// The priority; below 0 forbids.
    pub priority: i32,
}

/// A `.deb` of the profile's own.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LocalDeb {
    /// Off: ignored.
    pub enable: bool,
    /// Path relative to the profile.
    pub path: String,
}

/// An answer given to debconf before packages are configured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DebconfAnswer {
    /// debconf's type: `string`, `boolean`, `select`, ….
    #[serde(rename = "type")]
    pub kind: String,
    /// The answer.
    pub value: String,
}

/// An entry that is only on or off.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Enable {
    /// Whether it is on.
    pub enable: bool,
}

/// Console keyboard (keyboard(5)).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Keyboard {
    /// XKB layout.
    pub layout: String,
    /// XKB variant.
    pub variant: String,
}

/// A user account.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct User {
    /// Off: not made.
    pub enable: bool,
    /// Fixed user id; `None` for an account that a package makes and this entry only adds to.
    pub uid: Option<u32>,
    /// Primary group; the user's own name when absent.
    pub group: Option<String>,
    /// Further groups.
    pub groups: Set<bool>,
    /// Full name.
    pub gecos: String,
    /// Home directory.
    pub home: String,
    /// Whether the home directory is made, from /etc/skel.
    pub create_home: bool,
    /// Login shell.
    pub shell: String,
    /// crypt(5) hash; `None` locks the password.
    pub hashed_password: Option<String>,
    /// Public keys for ~/.ssh/authorized_keys, by a label.
    pub ssh_keys: Set<String>,
    /// `none`, `password` or `nopasswd`.
    pub sudo: Sudo,
}

/// What sudo lets a user do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sudo {
    /// Nothing.
    #[default]
    None,
    /// Everything, after the password.
    Password,
    /// Everything, without password.
    Nopasswd,
}

/// A group.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Group {
    /// Off: not made.
    pub enable: bool,
    /// Fixed group id; `None` for a group that a package makes.
    pub gid: Option<u32>,
    /// Members.
    pub members: Set<bool>,
}

/// A file of the profile.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct File {
    /// Off: not written.
    pub enable: bool,
    /// Its text. Exactly one of `text` and `source` is given.
    pub text: Option<String>,
    /// A file or folder beside the profile whose bytes it takes.
    pub source: Option<String>,
    /// Mode as octal text, `0644`.
    pub mode: String,
    /// Owner's name or number.
    pub user: String,
    /// Group's name or number.
    pub group: String,
}

/// A directory.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Directory {
    /// Off: not made.
    pub enable: bool,
    /// Mode as octal text, `0755`.
    pub mode: String,
    /// Owner's name or number.
    pub user: String,
    /// Group's name or number.
    pub group: String,
}

/// A symbolic link.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Symlink {
    /// Off: not made.
    pub enable: bool,
    /// What it points to.
    pub target: String,
}

/// A systemd unit: its own text, drop-ins to one of a package, its state.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Unit {
    /// Whole text of the unit, for one that no package brings.
    pub text: Option<String>,
    /// Drop-ins by name (without `.conf`).
    pub drop_ins: Set<String>,
    /// `enabled`, `disabled`, `masked`; `package` leaves what the package chose.
    pub state: UnitState,
}

/// Whether a unit starts at boot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnitState {
    /// As its `[Install]` section says.
    Enabled,
    /// Not by itself.
    Disabled,
    /// Not at all.
    Masked,
    /// As the package's scripts left it.
    #[default]
    Package,
}

/// A value of sysctl or of a kernel argument.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// On or off; as sysctl 1 or 0.
    Bool(bool),
    /// A whole number.
    Number(i64),
    /// A text.
    Text(String),
}

/// The kernel.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Kernel {
    /// The kernel's package, as in `linux-image-cloud-amd64`; it is added to the wanted ones.
    pub package: String,
    /// Arguments: `quiet = true`, `panic = 10`, `"net.ifnames" = 0`; false leaves one out.
    pub arguments: Set<Value>,
    /// Modules loaded at boot; an entry is on when true.
    pub load: Set<bool>,
    /// Modules never loaded; an entry is on when true.
    pub deny: Set<bool>,
}

/// Who configures the network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Manager {
    /// systemd-networkd, with the `.network` files given here.
    #[default]
    Networkd,
    /// cloud-init, from the data source.
    CloudInit,
    /// Nobody.
    None,
}

/// Network configuration.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// Who configures it.
    pub manager: Manager,
    /// DHCP on every wired interface that no other entry matches.
    pub dhcp: bool,
    /// Texts of `.network` files by name, for systemd-networkd.
    pub networks: Set<String>,
    /// Name servers, when not from DHCP.
    pub nameservers: Vec<String>,
    /// Additional lines of /etc/hosts: name → address.
    pub hosts: Set<String>,
}

/// A mount (fstab(5)).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mount {
    /// Off: not mounted.
    pub enable: bool,
    /// What is mounted: a device, `LABEL=…`, `PARTUUID=…`, `tmpfs`.
    pub device: String,
    /// File system type.
    pub fs: String,
    /// Options; on when true.
    pub options: Set<bool>,
}

/// Swap.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Swap {
    /// Size of a swap file made at first boot; 0 for none.
    pub file: Bytes,
    /// Compressed swap in memory, as a share of memory in percent; 0 for none.
    pub zram_percent: u32,
}

/// cloud-init.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CloudInit {
    /// Whether it is installed and runs.
    pub enable: bool,
    /// Data sources in order, as in `Ec2`, `NoCloud`, `None`.
    pub datasources: Vec<String>,
    /// Further configuration, written as YAML below /etc/cloud/cloud.cfg.d.
    pub settings: serde_json::Map<String, serde_json::Value>,
}

/// OpenSSH's server.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ssh {
    /// Whether it is installed and runs.
    pub enable: bool,
    /// sshd_config(5) keywords, written as a drop-in.
    pub settings: Set<Value>,
}

/// A file fetched from outside.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fetch {
    /// Off: not fetched.
    pub enable: bool,
    /// From where.
    pub url: String,
    /// SHA-256 of its bytes.
    pub sha256: Digest,
    /// Mode as octal text.
    pub mode: String,
    /// Owner's name or number.
    pub user: String,
    /// Group's name or number.
    pub group: String,
}

/// A script run in the tree.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Script {
    /// Off: not run.
    pub enable: bool,
    /// Its text, begun by `#!`; exactly one of `text` and `source`.
    pub text: Option<String>,
    /// A file beside the profile.
    pub source: Option<String>,
}

/// The disk.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Disk {
    /// Size of the whole disk; `None`: the smallest that holds the tree and `free`.
    pub size: Option<Bytes>,
    /// Space left free in the root file system when the size is computed.
    pub free: Bytes,
    /// Size of the EFI system partition.
    pub esp_size: Bytes,
    /// Label of the root file system.
    pub label: String,
    /// Whether the root grows at first boot to the disk that it is given.
    pub grow: bool,
    /// How the root is laid out.
    pub layout: DiskLayout,
    /// Further partitions by name.
    pub partitions: Set<ExtraPartition>,
}

impl Disk {
    /// Where further partitions are mounted.
    pub fn mounts(&self) -> impl Iterator<Item = &str> {
        let mounted = self.partitions.values().filter(|p| p.enable && p.fs == ExtraFs::Ext4);
        mounted.map(|p| p.mount.trim_matches('/')).filter(|mount| !mount.is_empty())
    }
}

/// How the root is laid out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskLayout {
    /// One writable ext4, upgradable in place by apt.
    #[default]
    Mutable,
    /// Immutable, verified images of the system in several generations, and state apart from them.
    Store,
}

/// A partition beside those that booting needs; it lies between the ESP and the root, so that the root can grow.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExtraPartition {
    /// Off: not made.
    pub enable: bool,
    /// Its size.
    pub size: Bytes,
    /// Partition type GUID; Linux file system data by default.
    #[serde(rename = "type")]
    pub type_guid: String,
    /// `ext4`, `swap` or `none`.
    pub fs: ExtraFs,
    /// Where it is mounted; empty for nowhere. What the tree holds below that path goes onto it.
    pub mount: String,
}

/// What a further partition holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExtraFs {
    /// An ext4 file system.
    Ext4,
    /// A swap area (made at first boot).
    Swap,
    /// Nothing.
    #[default]
    None,
}

/// Firmware that the image boots under.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Firmware {
    /// BIOS only.
    Bios,
    /// UEFI only.
    Uefi,
    /// Both.
    #[default]
    Both,
}

/// How it boots.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Boot {
    /// Under which firmware.
    pub firmware: Firmware,
    /// Consoles in the kernel's order: the last one becomes /dev/console.
    pub consoles: Vec<String>,
    /// Seconds for which the menu is shown.
    pub timeout: u32,
    /// What a machine of the store layout does when its system can't be started.
    pub on_failure: OnFailure,
}

/// What a machine of the store layout does when its system can't be started or doesn't verify.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// It starts anew, and after some tries an earlier generation.
    #[default]
    Reboot,
    /// It stands still, for somebody to look at.
    Halt,
}

/// What the machine itself writes, in the store layout.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct State {
    /// Paths that a clean slate leaves alone.
    pub keep: Set<bool>,
    /// Whether state lives in memory and begins anew at every boot.
    pub ephemeral: bool,
    /// How many generations stay on the disk.
    pub generations: u32,
}
