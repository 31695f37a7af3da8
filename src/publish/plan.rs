//! What a publication would do, region by region, before anything is touched: what is made, what is changed, how the bytes get
//! there, what it costs, and what stands in the way.

mod compare;
mod table;
mod ways;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::observed::{Image, Observed, PublicAccess, Region};
use super::price::Usd;
use super::target::{Encryption, Publication, Target};
use super::{retention, tags};
use crate::date::Timestamp;
use crate::digest::Digest;
use crate::units::Bytes;

pub use table::table;

/// What the host knows of the image's blocks and of those of earlier ones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Blocks {
    /// All blocks of the disk.
    pub total: u64,
    /// Those that hold data, or zeros that something reads.
    pub needed: u64,
    /// How many blocks differ from an earlier image, by its digest, as far as its blocks are known.
    pub deltas: BTreeMap<Digest, u64>,
    /// How many blocks a pending snapshot has already, by its id, as far as its journal says.
    pub there: BTreeMap<String, u64>,
}

/// What a note begins with that says why all blocks go up.
const NO_DELTA: &str = "no delta: ";

/// What is done in all regions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// The publication's id.
    pub publication: Digest,
    /// The system's name.
    pub system: String,
    /// The system's version.
    pub version: String,
    /// Digest of the image's blocks.
    pub image: Digest,
    /// Size of the disk.
    pub size: Bytes,
    /// Whether the image passed its tests.
    pub tested: bool,
    /// All blocks of the disk.
    pub blocks: u64,
    /// Those that hold data, or zeros that something reads.
    pub needed: u64,
    /// The regions, by name.
    pub regions: BTreeMap<String, RegionPlan>,
    /// What all of it costs.
    pub cost: Cost,
    /// When the prices were set down.
    pub prices_of: &'static str,
}

/// What is done in a region.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RegionPlan {
    /// The account, when the region answered.
    pub account: Option<String>,
    /// Whether the publication fails when this region does.
    pub required: bool,
    /// The AMI's name.
    pub name: String,
    /// What is done.
    #[serde(flatten)]
    pub action: Action,
    /// What is set or changed, one setting each. Of an image that is made, all that it gets.
    pub changes: Vec<Change>,
    /// What is worth knowing: why no delta is sent, what is left over from earlier.
    pub notes: Vec<String>,
    /// What it costs.
    pub cost: Cost,
    /// Earlier images that `kiln retire` would take afterwards, by their ids, with their names.
    pub retires: BTreeMap<String, String>,
}

/// What is done in a region.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
pub enum Action {
    /// An image is made.
    Create {
        /// How the bytes get there.
        way: Way,
        /// A failed image of the same name that is deregistered before.
        replaces: Option<String>,
    },
    /// The image is there, some settings aren't.
    Change {
        /// Its id.
        image: String,
    },
    /// All is as it is to be.
    Nothing {
        /// The image's id.
        image: String,
    },
    /// It can't be done.
    Refused {
        /// Why, and what to do.
        reasons: Vec<String>,
    },
    /// The region didn't answer.
    Unreachable {
        /// What it said instead.
        reason: String,
    },
}

/// How an image's bytes get to a region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "by", rename_all = "kebab-case")]
pub enum Way {
    /// Every block that is needed is uploaded; where the snapshot is encrypted, all blocks are.
    Upload {
        /// Blocks to send.
        blocks: u64,
    },
    /// Only what differs from an earlier snapshot is uploaded.
    Delta {
        /// The earlier snapshot.
        parent: String,
        /// Digest of the image that it holds.
        of: Digest,
        /// Blocks to send.
        blocks: u64,
    },
    /// An upload that was interrupted goes on.
    Resume {
        /// The pending snapshot.
        snapshot: String,
        /// Blocks to send, as far as is known.
        blocks: u64,
    },
    /// The snapshot is there, it only has to be registered.
    Register {
        /// The snapshot.
        snapshot: String,
    },
    /// A copy that was begun is waited for, then registered.
    Await {
        /// The pending snapshot.
        snapshot: String,
        /// The region that it is copied from.
        from: String,
    },
    /// The snapshot is copied from another region, and registered.
    CopySnapshot {
        /// That region.
        from: String,
    },
    /// The image is copied from another region.
    CopyImage {
        /// That region.
        from: String,
    },
    /// The disk goes to a bucket, and EC2 imports a snapshot from there.
    S3Import {
        /// The bucket.
        bucket: String,
    },
}

/// A setting, before and after.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Change {
    /// What it is, as in `description`, `tag Team` or `parameter /images/web`.
    pub what: String,
    /// What it is now; absent when there is none.
    pub old: Option<String>,
    /// What it is to be; absent when it is taken away.
    pub new: Option<String>,
}

/// What something costs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Cost {
    /// Blocks that are put one by one.
    pub blocks: u64,
    /// Bytes that leave this host.
    pub bytes: Bytes,
    /// Calls that make or change something, those for each block among them. Questions come on top.
    pub calls: u64,
    /// What AWS charges for it, once.
    pub usd: Usd,
    /// What it charges for keeping the new snapshots, each month.
    pub usd_a_month: Usd,
}

/// A plan that can't be carried out: what is in the way in regions that are required.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("nothing was changed, the plan can't be carried out:{}", reasons.iter().map(|(region, why)| format!("\n  {region}: {why}")).collect::<String>())]
pub struct PlanError {
    /// Regions and reasons.
    pub reasons: Vec<(String, String)>,
}

/// What `publication` would do where `observed` is what there is. `now` is the time at which retention is looked at.
#[must_use]
pub fn plan(publication: &Publication, observed: &Observed, blocks: &Blocks, now: Timestamp) -> Plan {
    let mut regions: BTreeMap<String, RegionPlan> = publication
        .targets
        .iter()
        .map(|(name, target)| {
            let plan = match observed.get(name) {
                Some(Ok(region)) => look(publication, target, region, now),
                Some(Err(reason)) => unreachable(target, reason),
                None => unreachable(target, "it was not asked"),
            };
            (name.clone(), plan)
        })
        .collect();
    ways::choose(publication, observed, blocks, &mut regions);
    let mut cost = Cost::default();
    for plan in regions.values() {
        cost.add(&plan.cost);
    }
    Plan {
        publication: publication.id,
        system: publication.system.clone(),
        version: publication.version.clone(),
        image: publication.image,
        size: publication.size,
        tested: publication.tested,
        blocks: blocks.total,
        needed: blocks.needed,
        regions,
        cost,
        prices_of: super::price::AS_OF,
    }
}

fn unreachable(target: &Target, reason: &str) -> RegionPlan {
    let mut plan = RegionPlan::of(target, None);
    plan.action = Action::Unreachable { reason: reason.to_owned() };
    plan
}

/// All of a region's plan but the way that bytes take, which depends on the other regions.
fn look(publication: &Publication, target: &Target, region: &Region, now: Timestamp) -> RegionPlan {
    let mut plan = RegionPlan::of(target, Some(region.account.clone()));
    let mut reasons = refusals(target, region);
    let named = region.named(&target.name);
    let twins = region.images.iter().filter(|image| image.name == target.name).count();
    if twins > 1 {
        plan.notes.push(format!(
            "{twins} images have this name; the one that counts is the newest that is available"
        ));
    }
    let failed = named.filter(|image| image.is_of(&publication.system) && image.is_failed());
    match named.filter(|_| failed.is_none()) {
        Some(image) => match compare::image(publication, target, image, region, now) {
            Ok(changes) => {
                let id = image.id.clone();
                plan.action = if changes.is_empty() {
                    Action::Nothing { image: id }
                } else {
                    Action::Change { image: id }
                };
                plan.cost.calls = compare::calls(&changes, false);
                plan.changes = changes;
            }
            Err(conflicts) => reasons.extend(conflicts),
        },
        None => {
            plan.changes = compare::everything(target, region, &mut reasons);
            plan.cost.calls = compare::calls(&plan.changes, true);
            plan.action = Action::Create {
                way: Way::Upload { blocks: 0 },
                replaces: failed.map(|image| image.id.clone()),
            };
        }
    }
    if !reasons.is_empty() {
        plan.refuse(reasons);
        return plan;
    }
    plan.retires = retires(publication, target, region, named.filter(|_| failed.is_none()), now);
    plan
}

/// What the account's settings in the region rule out, whatever is there.
fn refusals(target: &Target, region: &Region) -> Vec<String> {
    let mut reasons = Vec::new();
    let blocked = |access: PublicAccess| matches!(access, PublicAccess::BlocksNew | PublicAccess::BlocksAll);
    if target.launch.public && blocked(region.public_images) {
        reasons.push(
            "the account blocks public images here: lift that (`aws ec2 disable-image-block-public-access`) or leave out \
             `launch.public`"
                .to_owned(),
        );
    }
    if target.snapshot.public && blocked(region.public_snapshots) {
        reasons.push(
            "the account blocks public snapshots here: lift that (`aws ec2 disable-snapshot-block-public-access`) or leave \
             out `snapshot.public`"
                .to_owned(),
        );
    }
    if !region.encrypts(&target.encryption) {
        return reasons;
    }
    let shared = target.is_shared();
    if target.launch.public || target.snapshot.public {
        reasons.push(
            "new snapshots are encrypted here by default, and an encrypted one can't be public".to_owned(),
        );
    } else if shared && !matches!(target.encryption, Encryption::Key(_)) {
        reasons.push(
            "new snapshots are encrypted here by default, under a key that others can't use: give a `kms_key` that they may \
             use"
                .to_owned(),
        );
    }
    reasons
}

/// What goes by retention once the image is there. An image that a parameter names now stays this time.
fn retires(
    publication: &Publication,
    target: &Target,
    region: &Region,
    current: Option<&Image>,
    now: Timestamp,
) -> BTreeMap<String, String> {
    let named: BTreeSet<String> =
        region.parameters.values().map(|parameter| parameter.value.clone()).collect();
    let mut images = region.images.clone();
    if current.is_none() {
        // The image that is to be made takes a place.
        let tags = BTreeMap::from([(tags::SYSTEM.to_owned(), publication.system.clone())]);
        let architecture = compare::architecture(target.arch).to_owned();
        images.push(Image {
            architecture,
            state: "available".to_owned(),
            created: now,
            tags,
            ..Image::default()
        });
    }
    let current: BTreeSet<String> = current.map(|image| image.id.clone()).into_iter().collect();
    let gone = retention::retired(&images, &publication.system, &target.retention, &current, &named, now);
    gone.into_iter().map(|image| (image.id.clone(), image.name.clone())).collect()
}

impl Plan {
    /// Whether there is nothing to do in any region.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.regions.values().all(|plan| matches!(plan.action, Action::Nothing { .. }))
    }

    /// Everything that can't be done, required or not.
    #[must_use]
    pub fn refused(&self) -> Vec<(String, String)> {
        let reasons = |(name, plan): (&String, &RegionPlan)| -> Vec<(String, String)> {
            let told = |reason: &String| (name.clone(), reason.clone());
            match &plan.action {
                Action::Refused { reasons } => reasons.iter().map(told).collect(),
                Action::Unreachable { reason } => vec![told(reason)],
                _ => Vec::new(),
            }
        };
        self.regions.iter().flat_map(reasons).collect()
    }

    /// Whether it can be carried out.
    ///
    /// # Errors
    /// What is in the way in required regions.
    pub fn check(&self) -> Result<(), PlanError> {
        let required =
            |(name, _): &(String, String)| self.regions.get(name).is_some_and(|plan| plan.required);
        let reasons: Vec<_> = self.refused().into_iter().filter(required).collect();
        if reasons.is_empty() { Ok(()) } else { Err(PlanError { reasons }) }
    }
}

impl RegionPlan {
    fn of(target: &Target, account: Option<String>) -> RegionPlan {
        RegionPlan {
            account,
            required: target.required,
            name: target.name.clone(),
            action: Action::Refused { reasons: Vec::new() },
            changes: Vec::new(),
            notes: Vec::new(),
            cost: Cost::default(),
            retires: BTreeMap::new(),
        }
    }

    /// Why all blocks go up, not only those that changed, where that was planned.
    #[must_use]
    pub fn no_delta(&self) -> Option<&str> {
        self.notes.iter().find_map(|note| note.strip_prefix(NO_DELTA))
    }

    /// Leaves nothing but the reasons.
    fn refuse(&mut self, reasons: Vec<String>) {
        self.action = Action::Refused { reasons };
        self.changes = Vec::new();
        self.retires = BTreeMap::new();
        self.cost = Cost::default();
    }
}

impl Cost {
    fn add(&mut self, other: &Cost) {
        self.blocks += other.blocks;
        self.bytes = Bytes(self.bytes.0 + other.bytes.0);
        self.calls += other.calls;
        self.usd += other.usd;
        self.usd_a_month += other.usd_a_month;
    }
}

#[cfg(test)]
mod tests;
