//! A package as it is locked: which bytes, not where they are fetched from.

use serde::{Deserialize, Serialize};

use crate::date::Timestamp;
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

/// A signed release of an archive, as it was when it was locked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LockedRelease {
    /// The archive's name, by which mirrors are configured.
    pub archive: String,
    /// The suite as it was asked for: `trixie`, `trixie-security`.
    pub suite: String,
    /// The distribution's version, as in `13.7`; may be empty.
    pub version: String,
    /// When the release was made; also names the snapshot that still holds it when mirrors no longer do.
    pub date: Timestamp,
    /// Until when it could be locked.
    pub valid_until: Option<Timestamp>,
    /// SHA-256 of its `InRelease` (or `Release`).
    pub sha256: Digest,
    /// Fingerprints of the keys that signed it, sorted.
    pub signers: Vec<String>,
}
