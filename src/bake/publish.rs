//! A tested image → a [`Publication`]: what is to be published of it; and the record of what was.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Value, json};

use super::blocks::{blocks_of, known_blocks};
use super::output::write_json;
use super::{BakeError, BakedDisk, BakedTree, Locked, Session, TestRequest, Tested};
use crate::artifact::RawImage;
use crate::aws::cloud::Region;
use crate::aws::deliver::{Delivered, Outcome};
use crate::aws::snapshot::journal::noted;
use crate::check::plan::Only;
use crate::check::report::Verdict;
use crate::date::Timestamp;
use crate::digest::Digest;
use crate::publish::blocks::DiskBlocks;
use crate::publish::observed::{Observed, Snapshot, SnapshotState};
use crate::publish::plan::{self, Blocks, Plan};
use crate::publish::resolve::{ImageFacts, resolve};
use crate::publish::{Publication, Target};
use crate::vm::probe::Wish;
use crate::vm::smoke::TestedImage;

/// Name of the record in the output folder.
pub const RECORD: &str = "publication.json";

/// An image that may be published: one that passed its tests, unless the user insists.
#[derive(Debug, Clone)]
pub enum Publishable {
    /// It passed.
    Tested(Box<TestedImage>),
    /// Nobody knows; the user said `--untested`, and tags and record say so too.
    Untested(RawImage),
}

impl Publishable {
    /// The image.
    #[must_use]
    pub fn image(&self) -> &RawImage {
        match self {
            Publishable::Tested(tested) => tested.image(),
            Publishable::Untested(image) => image,
        }
    }

    /// Whether it passed its tests.
    #[must_use]
    pub fn is_tested(&self) -> bool {
        matches!(self, Publishable::Tested(_))
    }
}

/// What is to be published, and the bytes.
#[derive(Debug, Clone)]
pub struct Ready {
    /// What is to be in each region.
    pub publication: Publication,
    /// The image.
    pub image: RawImage,
    /// Its blocks.
    pub blocks: DiskBlocks,
}

impl Session<'_> {
    /// What the profile publishes of an image, and the image's blocks.
    ///
    /// # Errors
    /// As [`Session::publication`], or when the image can't be read.
    pub fn ready(&self, locked: &Locked, image: &Publishable) -> Result<Ready, BakeError> {
        let publication = self.publication(locked, image)?;
        let image = image.image().clone();
        let blocks = blocks_of(self.store, &image)?;
        Ok(Ready { publication, image, blocks })
    }

    /// What the profile publishes of an image.
    ///
    /// # Errors
    /// When the profile publishes nothing or nothing that is possible.
    pub fn publication(&self, locked: &Locked, image: &Publishable) -> Result<Publication, BakeError> {
        let raw = image.image();
        let facts = ImageFacts {
            image: raw.blocks,
            size: raw.size,
            lock: Digest::of(locked.lock.print().as_bytes()),
            date: Timestamp(locked.epoch()),
            tested: image.is_tested(),
        };
        let read = |name: &str| locked.profile.files.read(name).map_err(|e| e.to_string());
        Ok(resolve(locked.profile.system(), &facts, &read)?)
    }

    /// The verdict on a baked disk that is in the store already; nothing is booted.
    ///
    /// # Errors
    /// As [`Session::test`].
    pub fn verdict(
        &self,
        locked: &Locked,
        tree: &BakedTree,
        disk: &BakedDisk,
    ) -> Result<Option<Tested>, BakeError> {
        let plan = self.test_plan(locked, tree, disk)?;
        Ok(self.known_verdict(locked, disk, &plan))
    }

    /// What publishing would do where `observed` is what there is.
    #[must_use]
    pub fn publish_plan(&self, ready: &Ready, observed: &Observed) -> Plan {
        let (data, zeroes, holes) = ready.blocks.counts();
        let snapshots = observed.values().flatten().flat_map(|region| &region.snapshots);
        let mut deltas = BTreeMap::new();
        for digest in snapshots.filter_map(Snapshot::digest) {
            if let (false, Some(old)) = (deltas.contains_key(&digest), known_blocks(self.store, &digest)) {
                deltas.insert(digest, ready.blocks.changed(&old, "").blocks.len() as u64);
            }
        }
        let blocks = Blocks {
            total: (data + zeroes + holes) as u64,
            needed: (data + zeroes) as u64,
            deltas,
            there: self.there(observed),
        };
        plan::plan(&ready.publication, observed, &blocks, Timestamp::now())
    }

    /// How many blocks each pending snapshot has already, where a journal tells.
    fn there(&self, observed: &Observed) -> BTreeMap<String, u64> {
        let snapshots = observed.values().flatten().flat_map(|region| &region.snapshots);
        let pending = snapshots.filter(|snapshot| snapshot.state == SnapshotState::Pending);
        pending.filter_map(|s| Some((s.id.clone(), noted(&self.journals(), &s.id)?))).collect()
    }

    /// Where journals of unfinished uploads are kept.
    #[must_use]
    pub fn journals(&self) -> PathBuf {
        self.store.root().join("uploads")
    }
}

/// The test that a publication asks for: all of it, on all machines.
#[must_use]
pub fn whole_test(evidence: PathBuf) -> TestRequest {
    TestRequest {
        only: Only::default(),
        wish: Wish::Auto,
        qemu: None,
        jobs: None,
        again: false,
        keep_going: false,
        over_ssh: false,
        evidence,
    }
}

/// A publication that was carried out, as `publication.json` tells it.
pub struct Carried<'a> {
    /// What was to be published.
    pub publication: &'a Publication,
    /// The profile.
    pub profile: &'a Path,
    /// The regions, as their roles.
    pub regions: &'a BTreeMap<String, Region>,
    /// What came of it.
    pub outcome: &'a Outcome,
    /// When it was begun.
    pub started: Timestamp,
    /// When it ended.
    pub finished: Timestamp,
    /// The record of the publication before, if there is one.
    pub before: Option<Value>,
}

/// The record in a folder, if there is one.
#[must_use]
pub fn recorded(folder: &Path) -> Option<Value> {
    serde_json::from_slice(&std::fs::read(folder.join(RECORD)).ok()?).ok()
}

impl Carried<'_> {
    /// The record: what Terraform or the next job of a pipeline reads.
    #[must_use]
    pub fn record(&self) -> Value {
        let publication = self.publication;
        let regions: serde_json::Map<String, Value> = publication
            .targets
            .iter()
            .map(|(name, target)| (name.clone(), self.region(name, target)))
            .collect();
        json!({
            "kiln": env!("CARGO_PKG_VERSION"),
            "publication": publication.id,
            "profile": self.profile,
            "system": publication.system,
            "version": publication.version,
            "lock": publication.lock,
            "image": publication.image,
            "size": publication.size.0,
            "tested": publication.tested,
            "started": self.started.to_string(),
            "finished": self.finished.to_string(),
            "complete": self.outcome.values().all(Result::is_ok) && self.outcome.len() == publication.targets.len(),
            "regions": regions,
        })
    }

    fn region(&self, name: &str, target: &Target) -> Value {
        let mut told = json!({
            "required": target.required,
            "name": target.name,
            "account": self.regions.get(name).map(|region| region.account.clone()),
        });
        let more = match self.outcome.get(name) {
            Some(Ok(delivered)) => published(target, delivered, self.released(name, delivered)),
            Some(Err(error)) => json!({ "status": "failed", "error": error.to_string() }),
            None => json!({ "status": "skipped" }),
        };
        if let (Value::Object(told), Value::Object(more)) = (&mut told, more) {
            told.extend(more);
        }
        told
    }

    /// When a region's image was released. One that was found as it is to be keeps the time that the record before has.
    fn released(&self, name: &str, delivered: &Delivered) -> Option<String> {
        let now = delivered.released.map(|time| time.to_string());
        if delivered.way != "there" || !delivered.changes.is_empty() {
            return now;
        }
        let before = self.before.as_ref().map(|record| &record["regions"][name]);
        let same = before.filter(|region| region["image"] == json!(delivered.ami.id));
        same.and_then(|region| region["released"].as_str()).map(str::to_owned).or(now)
    }

    /// Writes the record into a folder.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write(&self, folder: &Path) -> Result<PathBuf, BakeError> {
        let path = folder.join(RECORD);
        write_json(&path, &self.record())?;
        Ok(path)
    }
}

#[derive(Serialize)]
struct Permissions<'a> {
    launch: &'a crate::publish::target::LaunchPermissions,
    snapshot: &'a crate::publish::target::SnapshotPermissions,
}

fn published(target: &Target, delivered: &Delivered, released: Option<String>) -> Value {
    json!({
        "status": "published",
        "image": delivered.ami.id,
        "snapshot": delivered.ami.snapshots.first(),
        "created": delivered.ami.created.to_string(),
        "released": released,
        "boot_mode": target.boot_mode,
        "encryption": target.encryption,
        "tags": target.image_tags,
        "snapshot_tags": target.snapshot_tags,
        "permissions": Permissions { launch: &target.launch, snapshot: &target.snapshot },
        "parameters": target.parameters,
        "way": delivered.way,
        "bytes_sent": delivered.sent,
        "bytes_skipped": delivered.skipped,
        "seconds": delivered.seconds,
        "changes": delivered.changes.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}

/// Takes a verdict: the image, when it passed.
#[must_use]
pub fn passed(image: RawImage, tested: Tested) -> Option<Publishable> {
    if tested.report.verdict != Verdict::Passed {
        return None;
    }
    super::accepted(image, tested).ok().map(|tested| Publishable::Tested(Box::new(tested)))
}
