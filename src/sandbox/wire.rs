//! What the two sides of a sandbox say to each other: one JSON value a line.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use super::error::Failure;
use super::tier::Tier;
use super::{CustomiseJob, InstallJob, Progress, Timing};
use crate::digest::Digest;

/// What is asked of the inner side.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Request {
    pub tier: Tier,
    pub task: Task,
}

/// One kind of work.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Task {
    /// Packages into a tree.
    Install { job: InstallJob, scratch: PathBuf },
    /// A tree into a changed one; the packs are open files that the child inherited.
    Customise { job: CustomiseJob, scratch: PathBuf, packs: Vec<(Digest, i32)> },
    /// Deletes a folder.
    Remove { path: PathBuf },
}

/// What the inner side tells.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Event {
    /// The user namespace is there and waits for its ids.
    Unshared,
    /// How far it is.
    Progress(Progress),
    /// It is done.
    Done(Outcome),
    /// It failed.
    Failed(Failure),
}

/// What came of the task; the tree's dump and the pack lie in the scratch folder.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Outcome {
    /// Digest and size of the pack, when there is one.
    pub pack: Option<(Digest, u64)>,
    pub timings: Vec<Timing>,
}

/// The inner side's way to tell; usable by several threads.
pub(super) struct Teller(Mutex<io::Stdout>);

impl Teller {
    pub fn new() -> Teller {
        Teller(Mutex::new(io::stdout()))
    }

    /// Tells an event. Nobody listening any more is no error of its own: the process is about to be killed then.
    pub fn tell(&self, event: &Event) {
        let mut line = serde_json::to_vec(event).unwrap_or_default();
        line.push(b'\n');
        if let Ok(mut out) = self.0.lock() {
            let _ = out.write_all(&line).and_then(|()| out.flush());
        }
    }

    pub fn progress(&self, phase: &str, done: u64, total: u64, what: &str) {
        self.tell(&Event::Progress(Progress { phase: phase.to_owned(), done, total, what: what.to_owned() }));
    }
}
