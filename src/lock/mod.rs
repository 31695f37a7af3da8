//! What is locked, and whether it still satisfies the profile.
//!
//! A lock is a document: on top the *goals*, what of the profile it answers; then the signed releases; then each package
//! of the image, of the tools that make it, and of those that boot it, one a line. It is read without a network, and
//! written again byte for byte as it was. The form on disk is `v1`, apart from the types here.

mod diff;
mod goals;
mod print;
mod v1;

pub use diff::{LockDiff, PackageChange, PackageDiff, ReleaseChange, diff};
pub use goals::{Goals, Reason, SourceGoal, Unsatisfied};

use crate::date::Timestamp;
use crate::package::{LockedPackage, LockedRelease};

/// The version of the form that this program writes, and the newest that it reads.
pub const VERSION: i64 = 1;

/// The name under which packages from the profile's own folder are locked, instead of an archive's.
pub const LOCAL: &str = "local";

/// Everything that a build may take from outside, pinned.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Lock {
    /// What it answers.
    pub goals: Goals,
    /// The releases that the packages were taken from, by archive and suite.
    pub releases: Vec<LockedRelease>,
    /// The packages of the image, by name.
    pub packages: Vec<LockedPackage>,
    /// The packages of the tools that make the disk, by name.
    pub tools: Vec<LockedPackage>,
    /// The packages of the tools that boot it, by name.
    pub vm_tools: Vec<LockedPackage>,
}

/// A lock that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LockError {
    /// Something in it is wrong.
    #[error("{file}:{line}: {what}")]
    Wrong {
        /// The lock's file, as it was named by the caller.
        file: String,
        /// Line, counted from 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// It has another form.
    #[error(
        "{file} was written by a newer Kiln (its form is version {found}, this one knows up to {VERSION}): \
         update Kiln, or remove the file and lock anew with `kiln lock`"
    )]
    Newer {
        /// The lock's file.
        file: String,
        /// Version of its form.
        found: i64,
    },
}

impl Lock {
    /// Reads a lock and checks all that can be checked offline. `file` is named in errors.
    ///
    /// # Errors
    /// [`LockError`] with the line.
    pub fn parse(text: &str, file: &str) -> Result<Lock, LockError> {
        v1::parse(text, file)
    }

    /// The text of the lock; equal locks give equal bytes.
    #[must_use]
    pub fn print(&self) -> String {
        print::print(self)
    }

    /// Sorts everything into the order in which it is written.
    pub fn sort(&mut self) {
        self.releases.sort_by(|a, b| (&a.archive, &a.suite).cmp(&(&b.archive, &b.suite)));
        for set in [&mut self.packages, &mut self.tools, &mut self.vm_tools] {
            set.sort();
        }
    }

    /// The date of the newest release: the default epoch of the image.
    #[must_use]
    pub fn newest_date(&self) -> Option<Timestamp> {
        self.releases.iter().map(|r| r.date).max()
    }

    /// The date of the archive's newest release: the time at which a snapshot holds all of its packages.
    #[must_use]
    pub fn archive_date(&self, archive: &str) -> Option<Timestamp> {
        self.releases.iter().filter(|r| r.archive == archive).map(|r| r.date).max()
    }

    /// Every locked package, of the image and of the tools.
    pub fn all_packages(&self) -> impl Iterator<Item = &LockedPackage> {
        self.packages.iter().chain(&self.tools).chain(&self.vm_tools)
    }

    /// Whether it answers `wanted`.
    ///
    /// # Errors
    /// Everything in which it doesn't.
    pub fn satisfies(&self, wanted: &Goals) -> Result<(), Unsatisfied> {
        let reasons = self.goals.compare(wanted);
        if reasons.is_empty() { Ok(()) } else { Err(Unsatisfied { name: wanted.name.clone(), reasons }) }
    }
}
