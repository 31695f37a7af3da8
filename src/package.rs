//! A package as it is locked: which bytes, not where they are fetched from.

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// One Debian package, pinned by the digest of its `.deb`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedPackage {
    /// The binary package's name.
    pub name: String,
    /// Its version, epoch included.
    pub version: String,
    /// Its architecture as the archive writes it: `amd64`, `all`, ….
    pub arch: String,
    /// Size of the `.deb` in bytes.
    pub size: u64,
    /// SHA-256 of the `.deb`.
    pub sha256: Digest,
    /// The archive that holds it: the `name` of one of the lock's releases, or `local`.
    pub archive: String,
    /// Path of the `.deb` relative to the archive's base; for `local`, to the profile's folder.
    pub path: String,
    /// Named by the profile itself rather than pulled in by a dependency (apt's `manual`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub manual: bool,
}
