//! The tags by which Kiln finds again what it made. They are given at creation: what is in AWS says what state a
//! publication is in, a journal only makes it quick to know.

use std::collections::BTreeMap;

use crate::digest::Digest;

/// What it was made for: the identity of an image in its region, 64 hexadecimal digits.
pub const PUBLICATION: &str = "kiln:publication";
/// The digest of the image's blocks, 64 hexadecimal digits.
pub const IMAGE: &str = "kiln:image";
/// The system's name.
pub const SYSTEM: &str = "kiln:system";
/// The system's version.
pub const VERSION: &str = "kiln:version";
/// The digest of the lock, 64 hexadecimal digits.
pub const LOCK: &str = "kiln:lock";
/// The snapshot on top of which an upload was begun.
pub const PARENT: &str = "kiln:parent";
/// Whether the image passed its tests: `yes` or `no`.
pub const TESTED: &str = "kiln:tested";
/// Of a copy: the region that it was taken from. So a copy on its way is told from an upload that was interrupted.
pub const FROM: &str = "kiln:from";
/// What consoles show as the name of a resource.
pub const NAME: &str = "Name";

/// What all of Kiln's own tags begin with; a profile's may not.
pub const PREFIX: &str = "kiln:";
/// How many tags a resource may have.
pub const MOST: usize = 50;

/// What Kiln's own tags say.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The identity of the image in its region.
    pub publication: Digest,
    /// Digest of the image's blocks.
    pub image: Digest,
    /// The system's name.
    pub system: &'a str,
    /// The system's version.
    pub version: &'a str,
    /// Digest of the lock.
    pub lock: Digest,
    /// Whether the image passed its tests.
    pub tested: bool,
}

/// Kiln's own tags.
#[must_use]
pub fn own(facts: &Facts<'_>) -> BTreeMap<String, String> {
    [
        (PUBLICATION, facts.publication.to_string()),
        (IMAGE, facts.image.to_string()),
        (SYSTEM, facts.system.to_owned()),
        (VERSION, facts.version.to_owned()),
        (LOCK, facts.lock.to_string()),
        (TESTED, if facts.tested { "yes" } else { "no" }.to_owned()),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect()
}
