//! The phases of a bake, chained. [`Session::build`] reads as the picture in the crate's documentation does; each phase
//! takes the type that the one before it yields, so that an unlocked build does not compile.
//!
//! | file | phase |
//! |---|---|
//! | `profile` | profile → [`Profile`] |
//! | `locking` | [`Profile`] → [`Locked`] |
//! | `closure` | locked packages → verified files in the store; tools trees |
//! | `steps` | the cached steps: packages, tree, disk |
//! | `generation` | those of the store layout: system image, generation |
//! | `sources` | files beside the profile, as the tree's composition sees them |
//! | `output` | what a build leaves in its output folder |
//! | `blocks` | disk → its blocks, and which of them something reads |
//! | `test` | disk → tested image: the verdict of its smoke tests |
//! | `why` | which input changed |

mod blocks;
mod closure;
mod error;
mod generation;
mod locking;
mod output;
mod profile;
mod publish;
mod sources;
mod steps;
mod test;
mod watch;
mod why;

use std::path::PathBuf;

use crate::fetch::Mirrors;
use crate::profile::EvalRequest;
use crate::store::{Inputs, Store};

pub use blocks::{blocks_in, blocks_of, known_blocks};
pub use closure::ToolSet;
pub use error::BakeError;
pub use generation::Generation;
pub use locking::{LockUpdate, Locked, Update};
pub use output::{Format, Manifest, Outputs};
pub use profile::Profile;
pub use publish::{Carried, Publishable, RECORD, Ready, passed, recorded, whole_test};
pub use steps::{BakedDisk, BakedTree};
pub use test::{IMAGE_LOGIN, Subject, TestRequest, Tested, accepted, boots_under, digest_of, is_disk};
pub use watch::{Advance, Unwatched, Watch};
pub use why::{StepState, Why};

/// What every phase needs: where results are kept, where bytes come from, who listens.
pub struct Session<'a> {
    /// The store.
    pub store: &'a Store,
    /// Where archives are.
    pub mirrors: Mirrors,
    /// Nothing is fetched: what is missing is an error.
    pub offline: bool,
    /// Locks are taken as they are: one that is missing is an error.
    pub locked_only: bool,
    /// Told what is being done.
    pub watch: &'a dyn Watch,
}

/// What a build is to leave.
#[derive(Debug, Clone)]
pub struct BuildRequest {
    /// The profile and its overrides.
    pub profile: EvalRequest,
    /// The output folder; `out/NAME` below the current one when absent.
    pub out: Option<PathBuf>,
    /// The formats.
    pub formats: Vec<Format>,
    /// Whether the manifest names the plain SHA-256 of a raw disk, for which all its zeroes have to be read.
    pub sha256: bool,
}

impl Session<'_> {
    /// The main job: a profile in, image files out.
    ///
    /// # Errors
    /// [`BakeError`] of the phase that failed. Nothing half-made stands under a final name.
    pub fn build(&self, request: &BuildRequest) -> Result<Outputs, BakeError> {
        let profile = self.evaluate(&request.profile)?;
        let name = &profile.system().name;
        let folder = output::folder_of(request, name);
        output::refuse_foreign(&folder, name, &request.formats)?;
        crate::host::fs::check_writable(&folder)?;
        let locked = self.locked(profile)?;
        match self.bake(&locked, request) {
            // What is damaged has been moved aside: a second time it is fetched or made again.
            Err(error) if error.is_damage() => {
                self.watch.say("repairing", &error.to_string());
                self.bake(&locked, request)
            }
            done => done,
        }
    }

    fn bake(&self, locked: &Locked, request: &BuildRequest) -> Result<Outputs, BakeError> {
        let tree = self.tree(locked)?;
        let disk = self.disk(locked, &tree)?;
        self.warn_of_faults(locked, &disk);
        let outputs = self.output(locked, &tree, &disk, request)?;
        self.remember(locked, &[&tree.steps[..], &disk.steps[..]].concat())?;
        Ok(outputs)
    }

    /// Keeps the inputs of this build, for `kiln why`.
    fn remember(&self, locked: &Locked, steps: &[Inputs]) -> Result<(), BakeError> {
        Ok(self.store.remember(&locked.target(), steps)?)
    }
}
