//! Snapshots: an image's blocks go up through the EBS direct APIs, or as an object that EC2 imports, and are read back.
//!
//! ```text
//! Sending ──start──▶ a pending snapshot ──upload──▶ all blocks there ──complete──▶ ──wait──▶ a snapshot
//!                                          └─ BlockJournal: what is there already, after an interruption
//! ```
//!
//! Nothing here decides what is wanted: [`crate::publish::blocks`] says which blocks, the caller which token and tags.

mod block;
mod direct;
pub mod import;
pub mod journal;
pub mod pace;
mod upload;
pub mod verify;

pub use block::Image;
pub use direct::{Begun, Make, Start, Wait, complete, make, start, wait};
pub use upload::{Patience, Upload, Uploaded, upload};

use crate::host::fs::FileError;
use crate::host::interrupt::Interrupted;

use super::error::AwsError;

/// A snapshot that could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// AWS said no, or nothing.
    #[error(transparent)]
    Aws(#[from] AwsError),
    /// A file of the host.
    #[error(transparent)]
    File(#[from] FileError),
    /// The image is not any more what it was when its blocks were hashed.
    #[error(
        "block {index} of the image is not what it was when the image was made: the disk under the store is damaged, or \
         someone writes to the image; `kiln store verify` tells"
    )]
    Changed {
        /// The block.
        index: u32,
    },
    /// Another process uploads to the same snapshot.
    #[error("another process is uploading to {0}")]
    Busy(String),
    /// The snapshot ended in a state of no use.
    #[error("{snapshot} ended as `{state}`{message}")]
    Failed {
        /// The snapshot or the import task.
        snapshot: String,
        /// AWS's word for its state.
        state: String,
        /// What AWS says of it, after a colon; empty when it says nothing.
        message: String,
    },
    /// It takes longer than anybody should wait.
    #[error(
        "{snapshot} is still `{state}` after {minutes} minutes; give the same command again to go on waiting"
    )]
    Slow {
        /// The snapshot or the import task.
        snapshot: String,
        /// AWS's word for its state.
        state: String,
        /// How long it was waited for.
        minutes: u64,
    },
    /// AWS's answer lacks what it always has.
    #[error("AWS's answer to {operation} has no {what}")]
    Answer {
        /// The call.
        operation: &'static str,
        /// What is missing.
        what: &'static str,
    },
}

impl From<Interrupted> for SnapshotError {
    fn from(interrupted: Interrupted) -> SnapshotError {
        SnapshotError::Aws(interrupted.into())
    }
}

impl SnapshotError {
    /// Whether the user asked to stop.
    #[must_use]
    pub fn is_interrupted(&self) -> bool {
        matches!(self, SnapshotError::Aws(e) if e.kind == super::error::Kind::Interrupted)
    }
}

/// How far an upload is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Blocks (or parts, or blocks compared) that are done, those of an earlier run included.
    pub done: u64,
    /// All of them.
    pub total: u64,
    /// Bytes of those that are done.
    pub bytes: u64,
}

/// Who wants to know how far it is. It is called for each block: it has to be quick.
pub trait Listener: Sync {
    /// So far it is.
    fn progress(&self, progress: Progress);
    /// The same, of a thing that AWS does by itself: in percent.
    fn percent(&self, _percent: u8) {}
}

impl Listener for () {
    fn progress(&self, _: Progress) {}
}
