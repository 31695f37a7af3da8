//! A snapshot by the EBS direct APIs, from its beginning to its being complete.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_sdk_ebs::types::{ChecksumAggregationMethod, ChecksumAlgorithm, Status, Tag};
use aws_sdk_ec2::types::{Snapshot, SnapshotState};

use super::block::Image;
use super::journal::BlockJournal;
use super::pace::Pace;
use super::upload::{Patience, Upload, Uploaded, upload};
use super::{Listener, SnapshotError};
use crate::artifact::BLOCK;
use crate::aws::error::{Call, Kind};
use crate::aws::retry::{Policy, call, call_watched, sleep};
use crate::base64::base64;
use crate::publish::blocks::Sending;

/// How long EBS waits for the next block before it gives a pending snapshot up, in minutes: three days, the most that
/// it takes, so that there is time to go on after an interruption.
const TIMEOUT: i32 = 4320;

/// A snapshot to be begun. Two with the same token are one.
#[derive(Debug, Clone)]
pub struct Start<'a> {
    /// Size of its volume in GiB.
    pub volume_size: u32,
    /// The snapshot that it goes on top of.
    pub parent: Option<&'a str>,
    /// Its description.
    pub description: &'a str,
    /// Its tags.
    pub tags: &'a BTreeMap<String, String>,
    /// Whether to ask for encryption; without it the account's default decides.
    pub encrypted: bool,
    /// The ARN of the key for that; the account's default key when absent.
    pub kms_key: Option<&'a str>,
    /// What makes it the same when it is asked for again: see [`crate::publish::blocks::client_token`].
    pub token: &'a str,
}

/// A snapshot that was begun, now or earlier with the same token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begun {
    /// Its id.
    pub snapshot: String,
    /// Whether it is complete already.
    pub complete: bool,
    /// Whether it failed: another token begins another.
    pub failed: bool,
    /// The ARN of the key that it is encrypted under, when it is.
    pub kms_key: Option<String>,
}

/// Begins a snapshot, or finds the one that was begun with the same token.
///
/// # Errors
/// [`SnapshotError::Aws`]; [`Kind::Conflict`] when the token was used for something else.
pub async fn start(
    ebs: &aws_sdk_ebs::Client,
    region: &str,
    start: &Start<'_>,
) -> Result<Begun, SnapshotError> {
    let tag = |(key, value): (&String, &String)| Tag::builder().key(key).value(value).build();
    let tags: Vec<Tag> = start.tags.iter().map(tag).collect();
    let answer = call(Call::new("ebs", "StartSnapshot", region), &Policy::CONTROL, || {
        ebs.start_snapshot()
            .volume_size(i64::from(start.volume_size))
            .set_parent_snapshot_id(start.parent.map(str::to_owned))
            .description(start.description)
            .set_tags((!tags.is_empty()).then(|| tags.clone()))
            .set_encrypted(start.encrypted.then_some(true))
            .set_kms_key_arn(start.kms_key.map(str::to_owned))
            .client_token(start.token)
            .timeout(TIMEOUT)
            .send()
    })
    .await?;
    let missing = |what| SnapshotError::Answer { operation: "StartSnapshot", what };
    if answer.block_size().is_some_and(|size| size as u64 != BLOCK) {
        return Err(missing("block size of 512 KiB"));
    }
    Ok(Begun {
        snapshot: answer.snapshot_id().ok_or_else(|| missing("snapshot id"))?.to_owned(),
        complete: answer.status() == Some(&Status::Completed),
        failed: answer.status() == Some(&Status::Error),
        kms_key: answer.kms_key_arn().map(str::to_owned),
    })
}

/// Says that all blocks are there. A snapshot of which that was said before is left as it is.
///
/// # Errors
/// [`SnapshotError`]: AWS counts or sums up other blocks, above all.
pub async fn complete(
    ebs: &aws_sdk_ebs::Client,
    region: &str,
    snapshot: &str,
    sending: &Sending,
    journal: &mut BlockJournal,
) -> Result<(), SnapshotError> {
    // From an earlier run, or from an attempt whose answer was lost.
    let maybe_done = Cell::new(journal.completing());
    journal.begin_completing()?;
    let checksum = base64(&sending.checksum().0);
    let answer = call_watched(
        Call::new("ebs", "CompleteSnapshot", region),
        &Policy::CONTROL,
        |failed| maybe_done.set(maybe_done.get() || matches!(failed.kind, Kind::Transient | Kind::Timeout)),
        || {
            ebs.complete_snapshot()
                .snapshot_id(snapshot)
                .changed_blocks_count(i32::try_from(sending.blocks.len()).unwrap_or(i32::MAX))
                .checksum(&checksum)
                .checksum_algorithm(ChecksumAlgorithm::ChecksumAlgorithmSha256)
                .checksum_aggregation_method(ChecksumAggregationMethod::ChecksumAggregationLinear)
                .send()
        },
    )
    .await;
    match answer {
        Ok(answer) if answer.status() == Some(&Status::Error) => Err(SnapshotError::Failed {
            snapshot: snapshot.to_owned(),
            state: "error".to_owned(),
            message: String::new(),
        }),
        Ok(_) => Ok(()),
        // Whether it is complete is what waiting finds out.
        Err(error) if maybe_done.get() && matches!(error.kind, Kind::Invalid | Kind::Conflict) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Whether a snapshot is complete. One that isn't known yet is not.
async fn is_complete(ec2: &aws_sdk_ec2::Client, region: &str, snapshot: &str) -> Result<bool, SnapshotError> {
    let answer = call(Call::new("ec2", "DescribeSnapshots", region), &Policy::CONTROL, || {
        ec2.describe_snapshots().snapshot_ids(snapshot).send()
    })
    .await;
    let found = match answer {
        Ok(answer) => answer.snapshots().first().cloned(),
        Err(error) if error.kind == Kind::NotFound => None,
        Err(error) => return Err(error.into()),
    };
    found.map_or(Ok(false), |found| is_done(&found, snapshot))
}

/// Whether it is complete; an error when it never will be.
fn is_done(found: &Snapshot, snapshot: &str) -> Result<bool, SnapshotError> {
    match found.state() {
        Some(SnapshotState::Completed) => Ok(true),
        Some(SnapshotState::Pending) | None => Ok(false),
        Some(state) => Err(SnapshotError::Failed {
            snapshot: snapshot.to_owned(),
            state: state.as_str().to_owned(),
            message: found.state_message().map(|message| format!(": {message}")).unwrap_or_default(),
        }),
    }
}

/// How long and how often is waited for a snapshot.
#[derive(Debug, Clone, Copy)]
pub struct Wait {
    /// The first pause.
    pub first: Duration,
    /// The longest one.
    pub longest: Duration,
    /// In all.
    pub limit: Duration,
}

impl Default for Wait {
    fn default() -> Wait {
        Wait {
            first: Duration::from_millis(500),
            longest: Duration::from_secs(10),
            limit: Duration::from_secs(3600),
        }
    }
}

impl Wait {
    /// The pauses, each half as long again as the one before.
    pub(super) fn pauses(self) -> impl Iterator<Item = Duration> {
        std::iter::successors(Some(self.first), move |last| Some((*last * 3 / 2).min(self.longest)))
    }
}

/// Waits until a snapshot is complete.
///
/// # Errors
/// [`SnapshotError::Failed`] when it failed, [`SnapshotError::Slow`] when it takes too long.
pub async fn wait(
    ec2: &aws_sdk_ec2::Client,
    region: &str,
    snapshot: &str,
    wait: Wait,
    listener: &dyn Listener,
) -> Result<(), SnapshotError> {
    let (began, mut pauses) = (Instant::now(), wait.pauses());
    let policy = Policy::CONTROL.also(&["InvalidSnapshot.NotFound"]);
    loop {
        let answer = call(Call::new("ec2", "DescribeSnapshots", region), &policy, || {
            ec2.describe_snapshots().snapshot_ids(snapshot).send()
        })
        .await?;
        let found = answer.snapshots().first();
        if let Some(percent) = found.and_then(|s| s.progress()?.trim_end_matches('%').parse().ok()) {
            listener.percent(percent);
        }
        if found.map_or(Ok(false), |found| is_done(found, snapshot))? {
            return Ok(());
        }
        if began.elapsed() >= wait.limit {
            let state = found.and_then(|s| s.state()).map_or("unknown", SnapshotState::as_str).to_owned();
            let minutes = wait.limit.as_secs() / 60;
            return Err(SnapshotError::Slow { snapshot: snapshot.to_owned(), state, minutes });
        }
        sleep(pauses.next().unwrap_or(wait.longest)).await?;
    }
}

/// A snapshot to be made of an image.
pub struct Make<'a> {
    /// The region's clients.
    pub ebs: &'a aws_sdk_ebs::Client,
    /// To ask for the snapshot's state.
    pub ec2: &'a aws_sdk_ec2::Client,
    /// The region's name.
    pub region: &'a str,
    /// The image.
    pub image: &'a Image,
    /// What goes up.
    pub sending: &'a Sending,
    /// Where the journal of blocks is kept.
    pub journals: &'a Path,
    /// How long blocks are tried.
    pub patience: Patience,
    /// How long is waited in the end.
    pub wait: Wait,
    /// How fast. Uploads to the same account and region share one.
    pub pace: Arc<Pace>,
    /// Who wants to know how far it is.
    pub listener: &'a dyn Listener,
}

/// Fills a snapshot that was begun, completes it and waits for it; goes on where an earlier run stopped.
///
/// # Errors
/// [`SnapshotError`]; giving the same again goes on.
pub async fn make(job: &Make<'_>, begun: &Begun) -> Result<Uploaded, SnapshotError> {
    let Make { ebs, ec2, region, image, sending, patience, listener, .. } = *job;
    let snapshot = begun.snapshot.as_str();
    let mut journal = BlockJournal::open(job.journals, snapshot, &sending.id())?;
    let mut uploaded = Uploaded { earlier: sending.blocks.len() as u64, ..Uploaded::default() };
    // Beginning it again answers what was answered the first time.
    if !begun.complete && !is_complete(ec2, region, snapshot).await? {
        if !journal.completing() {
            let pace = job.pace.clone();
            let job = Upload { ebs, region, snapshot, image, sending, patience, pace, listener };
            uploaded = upload(&job, &mut journal).await?;
        }
        complete(ebs, region, snapshot, sending, &mut journal).await?;
        wait(ec2, region, snapshot, job.wait, listener).await?;
    }
    journal.remove()?;
    Ok(uploaded)
}
