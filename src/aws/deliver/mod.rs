//! A publication in all its regions, in two phases.
//!
//! ```text
//! phase one, each region by itself:  snapshot ──register──▶ image, available, nobody's but ours
//! ─── every required region has got there, or nothing more is done ───
//! phase two:  permissions, deprecation, protection in all regions ──▶ SSM parameters in all regions
//! ```
//!
//! Each step looks first for what an earlier run left, by its tags and client tokens, and goes on from there: killed at any
//! point and run again, the end is the same.

mod ship;
mod sources;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use crate::aws::together::all;

use super::ask::{Note, Patience};
use super::cloud::Region;
use super::error::{AwsError, Kind};
use super::image::{Ami, ImageError};
use super::release::{self, Change, ReleaseError};
use super::snapshot::{self, Progress, SnapshotError};
use crate::date::Timestamp;
use crate::digest::Digest;
use crate::host::fs::FileError;
use crate::publish::blocks::DiskBlocks;
use crate::publish::observed::{self, Observed};
use crate::publish::plan::{Action, Plan};
use crate::publish::{Publication, Target};
use ship::Ship;
use sources::Sources;

/// What goes on in a region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A step begins.
    Doing(String),
    /// Something was made, waited for or changed.
    Note(Note),
    /// So many blocks go up, for this reason all of them or only some.
    Sending {
        /// Blocks that go up.
        blocks: u64,
        /// Bytes in them.
        bytes: u64,
        /// Of how many blocks of the disk.
        of: u64,
        /// The snapshot on top of which they go.
        parent: Option<String>,
        /// Why all of them go up.
        why_all: Option<String>,
    },
    /// So far the upload is.
    Progress(Progress),
    /// So far AWS is with what it does by itself, in percent.
    Percent(u8),
}

/// Hears what goes on in a region, which is named first.
pub type Tell<'a> = &'a (dyn Fn(&str, Event) + Send + Sync + 'a);

/// Finds the blocks of an earlier image by its digest.
pub type Known<'a> = &'a (dyn Fn(&Digest) -> Option<DiskBlocks> + Send + Sync + 'a);

/// A publication to be carried out.
pub struct Delivery<'a> {
    /// What is to be there.
    pub publication: &'a Publication,
    /// What is to be done in each region.
    pub plan: Plan,
    /// The regions, as their roles.
    pub regions: BTreeMap<String, Region>,
    /// What was in them when the plan was made.
    pub observed: Observed,
    /// The image.
    pub image: snapshot::Image,
    /// Its blocks.
    pub blocks: &'a DiskBlocks,
    /// Blocks of earlier images.
    pub known: Known<'a>,
    /// Where journals of uploads are kept.
    pub journals: PathBuf,
    /// Who listens.
    pub tell: Tell<'a>,
}

/// An image that is in its region.
#[derive(Debug, Clone, PartialEq)]
pub struct Delivered {
    /// The image.
    pub ami: Ami,
    /// How it got there: `there`, `upload`, `delta`, `register`, `import`, `copy-snapshot` or `copy-image`.
    pub way: &'static str,
    /// Bytes that were sent now.
    pub sent: u64,
    /// Bytes of the disk that needed not be sent.
    pub skipped: u64,
    /// How long that took, in seconds.
    pub seconds: f64,
    /// What was changed in phase two.
    pub changes: Vec<Change>,
    /// When phase two had ended for it; absent while it hasn't.
    pub released: Option<Timestamp>,
}

/// Why a region hasn't got the image.
#[derive(Debug, thiserror::Error)]
pub enum DeliverError {
    /// A request failed.
    #[error(transparent)]
    Aws(#[from] AwsError),
    /// The snapshot could not be made.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The image could not be made.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// It could not be released.
    #[error(transparent)]
    Release(#[from] ReleaseError),
    /// A file of the host.
    #[error(transparent)]
    File(#[from] FileError),
    /// The region could not be looked at.
    #[error("{0}")]
    Unseen(String),
}

impl DeliverError {
    /// The failed request, when it is one that failed.
    #[must_use]
    pub fn aws(&self) -> Option<&AwsError> {
        match self {
            DeliverError::Aws(error)
            | DeliverError::Snapshot(SnapshotError::Aws(error))
            | DeliverError::Image(ImageError::Aws(error))
            | DeliverError::Release(ReleaseError::Aws(error)) => Some(error),
            _ => None,
        }
    }

    /// Whether the user asked to stop.
    #[must_use]
    pub fn is_interrupted(&self) -> bool {
        self.aws().is_some_and(|error| error.kind == Kind::Interrupted)
    }
}

/// What came of each region.
pub type Outcome = BTreeMap<String, Result<Delivered, DeliverError>>;

/// Carries a publication out. Whether it succeeded is what the required regions' outcomes say.
pub async fn deliver(delivery: &Delivery<'_>) -> Outcome {
    let mut outcome = images(delivery).await;
    if !passes(delivery, &outcome) {
        return outcome;
    }
    phase(delivery, &mut outcome, "releasing", async |region, target, id, tell| {
        release::settings(region, target, id, tell).await
    })
    .await;
    if passes(delivery, &outcome) {
        phase(delivery, &mut outcome, "parameters", async |region, target, id, tell| {
            release::parameters(region, target, id, STORED, tell).await
        })
        .await;
        let now = Timestamp::now();
        for delivered in outcome.values_mut().flatten() {
            delivered.released = Some(now);
        }
    }
    outcome
}

/// How long SSM may take to store a parameter.
const STORED: Patience = Patience::minutes(5);

/// Whether the next phase may begin: no required region has failed, and nobody asked to stop.
fn passes(delivery: &Delivery<'_>, outcome: &Outcome) -> bool {
    outcome.iter().all(|(name, result)| match result {
        Ok(_) => true,
        Err(error) => !error.is_interrupted() && !delivery.publication.targets[name].required,
    })
}

/// Phase one: an image in each region.
async fn images(delivery: &Delivery<'_>) -> Outcome {
    let sources = Sources::new(delivery.regions.keys());
    let one = async |name: &String, region: &Region| {
        let began = Instant::now();
        let result = match delivery.observed.get(name) {
            Some(Ok(seen)) => ship(delivery, &sources, region, seen, name).await,
            Some(Err(why)) => Err(DeliverError::Unseen(why.clone())),
            None => Err(DeliverError::Unseen(format!("{name} was not looked at"))),
        };
        if result.is_err() {
            sources.lost(name);
        }
        let result = result.map(|mut delivered| {
            delivered.seconds = began.elapsed().as_secs_f64();
            delivered
        });
        (name.clone(), result)
    };
    all(delivery.regions.iter().map(|(name, region)| one(name, region))).await.into_iter().collect()
}

async fn ship(
    delivery: &Delivery<'_>,
    sources: &Sources,
    region: &Region,
    seen: &observed::Region,
    name: &str,
) -> Result<Delivered, DeliverError> {
    let (Some(target), Some(planned)) =
        (delivery.publication.targets.get(name), delivery.plan.regions.get(name))
    else {
        return Err(DeliverError::Unseen(format!("{name} is no region of this publication")));
    };
    Ship { delivery, sources, region, seen, target, planned }.make().await
}

/// A part of phase two, in all regions that have their image and lack something. Those that fail in it are failed.
async fn phase<E: Into<DeliverError>>(
    delivery: &Delivery<'_>,
    outcome: &mut Outcome,
    what: &str,
    work: impl AsyncFn(&Region, &Target, &str, super::ask::Tell<'_>) -> Result<Vec<Change>, E>,
) {
    let one = async |name: &String, delivered: &Delivered| {
        (delivery.tell)(name, Event::Doing(what.to_owned()));
        let tell = |note: Note| (delivery.tell)(name, Event::Note(note));
        let (region, target) = (&delivery.regions[name], &delivery.publication.targets[name]);
        (name.clone(), work(region, target, &delivered.ami.id, &tell).await)
    };
    let lacks = |name: &String| {
        let planned = delivery.plan.regions.get(name);
        planned.is_none_or(|planned| !matches!(planned.action, Action::Nothing { .. }))
    };
    let there = outcome
        .iter()
        .filter(|(name, _)| lacks(name))
        .filter_map(|(name, result)| Some(one(name, result.as_ref().ok()?)));
    let done: Vec<_> = all(there).await;
    for (name, result) in done {
        match result {
            Ok(changes) => {
                if let Some(Ok(delivered)) = outcome.get_mut(&name) {
                    delivered.changes.extend(changes);
                }
            }
            Err(error) => drop(outcome.insert(name, Err(error.into()))),
        }
    }
}
