//! Sending a snapshot's blocks.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_sdk_ebs::operation::put_snapshot_block::PutSnapshotBlockError;
use aws_sdk_ebs::types::ValidationExceptionReason;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::byte_stream::ByteStream;
use tokio::task::JoinSet;

use super::block::{Image, copy};
use super::journal::BlockJournal;
use super::pace::Pace;
use super::{Listener, Progress, SnapshotError};
use crate::artifact::{BLOCK, ZERO_BLOCK};
use crate::aws::error::{AwsError, Call, Kind};
use crate::aws::retry::{Policy, interrupted};
use crate::base64::base64;
use crate::digest::Digest;
use crate::publish::blocks::Sending;

/// How long blocks are tried.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// How often and how patiently one block is sent; its deadline is doubled with each attempt that hung.
    pub policy: Policy,
    /// How long a new snapshot may not be known yet.
    pub unknown: Duration,
    /// How long AWS may throttle without taking a single block.
    pub throttled: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        let policy = Policy {
            attempts: 8,
            deadline: Duration::from_secs(15),
            pause: Duration::from_millis(200),
            longest: Duration::from_secs(10),
            also: &[],
        };
        Patience { policy, unknown: Duration::from_secs(120), throttled: Duration::from_secs(300) }
    }
}

/// Blocks to be sent to a pending snapshot.
pub struct Upload<'a> {
    /// The region's client.
    pub ebs: &'a aws_sdk_ebs::Client,
    /// The region's name.
    pub region: &'a str,
    /// The pending snapshot.
    pub snapshot: &'a str,
    /// The image.
    pub image: &'a Image,
    /// What goes up.
    pub sending: &'a Sending,
    /// How long blocks are tried.
    pub patience: Patience,
    /// How fast. Uploads to the same account and region share one.
    pub pace: Arc<Pace>,
    /// Who wants to know how far it is.
    pub listener: &'a dyn Listener,
}

/// What an upload did.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Uploaded {
    /// Blocks that were sent now.
    pub sent: u64,
    /// Blocks that an earlier run had sent.
    pub earlier: u64,
    /// Attempts that failed and were made again.
    pub again: u64,
    /// How long it took.
    pub seconds: f64,
}

/// What each block's task needs.
struct Shared {
    ebs: aws_sdk_ebs::Client,
    region: String,
    snapshot: String,
    image: Image,
    patience: Patience,
    pace: Arc<Pace>,
    began: Instant,
}

/// A block that is there, and how often it was sent before.
type Put = Result<(u32, u32), SnapshotError>;

/// Sends what isn't there yet. When it ends early, for whatever reason, `journal` knows what is there.
///
/// # Errors
/// [`SnapshotError`]: the first block that failed for good, an image that changed, or the user who asked to stop.
pub async fn upload(job: &Upload<'_>, journal: &mut BlockJournal) -> Result<Uploaded, SnapshotError> {
    let began = Instant::now();
    let done: HashSet<u32> = journal.done().iter().copied().collect();
    let todo = job.sending.blocks.iter().filter(|(index, _)| !done.contains(index)).copied();
    let earlier = job.sending.blocks.iter().filter(|(index, _)| done.contains(index)).count() as u64;
    let mut uploaded = Uploaded { earlier, ..Uploaded::default() };
    let shared = Arc::new(Shared {
        ebs: job.ebs.clone(),
        region: job.region.to_owned(),
        snapshot: job.snapshot.to_owned(),
        image: job.image.clone(),
        patience: job.patience,
        pace: job.pace.clone(),
        began,
    });
    job.pace.begin();
    let result = send_all(job, &shared, todo, journal, &mut uploaded).await;
    let synced = journal.sync();
    result?;
    synced?;
    uploaded.seconds = began.elapsed().as_secs_f64();
    Ok(uploaded)
}

async fn send_all(
    job: &Upload<'_>,
    shared: &Arc<Shared>,
    mut todo: impl Iterator<Item = (u32, Option<Digest>)>,
    journal: &mut BlockJournal,
    uploaded: &mut Uploaded,
) -> Result<(), SnapshotError> {
    let mut under_way: JoinSet<Put> = JoinSet::new();
    let mut progress = Progress { done: uploaded.earlier, total: job.sending.blocks.len() as u64, bytes: 0 };
    loop {
        progress.bytes = progress.done * BLOCK;
        job.listener.progress(progress);
        while under_way.len() < job.pace.window() {
            let Some((index, digest)) = todo.next() else { break };
            under_way.spawn(put(shared.clone(), index, digest));
        }
        // Dropping the set stops all its tasks.
        let ended = tokio::select! {
            biased;
            interrupted = interrupted() => return Err(interrupted.into()),
            ended = under_way.join_next() => ended,
        };
        let Some(ended) = ended else { return Ok(()) };
        let (index, again) =
            ended.unwrap_or_else(|lost| Err(call(shared).error(Kind::Other, lost.to_string()).into()))?;
        journal.add(index)?;
        progress.done += 1;
        uploaded.sent += 1;
        uploaded.again += u64::from(again);
    }
}

fn call(shared: &Shared) -> Call<'_> {
    Call::new("ebs", "PutSnapshotBlock", &shared.region)
}

/// Sends one block until it is there.
async fn put(shared: Arc<Shared>, index: u32, digest: Option<Digest>) -> Put {
    let body = shared.image.block(index, digest).await?;
    let checksum = base64(&digest.unwrap_or(*ZERO_BLOCK).0);
    let (mut attempt, mut failed, mut deadline) = (1, 0, shared.patience.policy.deadline);
    loop {
        shared.pace.turn().await;
        let error = match put_once(&shared, index, &checksum, copy(&body), deadline).await {
            Ok(()) => {
                shared.pace.good();
                return Ok((index, failed));
            }
            Err(error) => error,
        };
        failed += 1;
        match error.kind {
            Kind::Throttled => shared.pace.throttled(),
            Kind::Timeout => {
                shared.pace.slow();
                deadline = (deadline * 2).min(Duration::from_secs(120));
            }
            Kind::Transient | Kind::Unreachable => shared.pace.slow(),
            _ => {}
        }
        if !passes(&shared, &error, attempt) {
            return Err(error.into());
        }
        tracing::debug!(%error, index, attempt, "a block is sent again");
        let pause =
            shared.patience.policy.pause_after(attempt.min(8), error.retry_after, chance(index, failed));
        tokio::time::sleep(pause).await;
        // Throttling ends when all are slow enough; how often one of many hits it says nothing.
        attempt += u32::from(error.kind.passes() && error.kind != Kind::Throttled);
    }
}

/// Whether the block is sent again.
fn passes(shared: &Shared, error: &AwsError, attempt: u32) -> bool {
    match error.kind {
        // A snapshot that was just begun isn't known everywhere at once.
        Kind::NotFound => shared.began.elapsed() < shared.patience.unknown,
        Kind::Throttled => shared.pace.silence() < shared.patience.throttled,
        _ => shared.patience.policy.tries_again(error, attempt),
    }
}

async fn put_once(
    shared: &Shared,
    index: u32,
    checksum: &str,
    body: SdkBody,
    deadline: Duration,
) -> Result<(), AwsError> {
    let request = shared
        .ebs
        .put_snapshot_block()
        .snapshot_id(&shared.snapshot)
        .block_index(index as i32)
        .data_length(BLOCK as i32)
        .checksum(checksum)
        .checksum_algorithm(aws_sdk_ebs::types::ChecksumAlgorithm::ChecksumAlgorithmSha256)
        .block_data(ByteStream::new(body));
    let call = call(shared);
    match tokio::time::timeout(deadline, request.send()).await {
        Ok(Ok(answer)) if answer.checksum().is_none_or(|got| got == checksum) => Ok(()),
        Ok(Ok(_)) => Err(call.error(Kind::Transient, "the checksum in the answer is not the block's")),
        Ok(Err(error)) => {
            let mut explained = call.explain(&error);
            if is_conflict(&error) {
                explained.kind = Kind::Transient;
            }
            Err(explained)
        }
        Err(_) => Err(call.error(Kind::Timeout, format!("no answer within {} s", deadline.as_secs_f32()))),
    }
}

/// Whether the block is being written by another request: by an attempt that was given up here, but is still under way.
fn is_conflict(error: &SdkError<PutSnapshotBlockError, HttpResponse>) -> bool {
    matches!(error.as_service_error(), Some(PutSnapshotBlockError::ValidationException(e))
        if e.reason() == Some(&ValidationExceptionReason::ConflictingBlockUpdate))
}

/// A number in 0..=1 by which blocks that failed together come back apart.
fn chance(index: u32, attempt: u32) -> f64 {
    f64::from(index.wrapping_add(attempt).wrapping_mul(0x9e37_79b9) >> 8) / f64::from(1 << 24)
}
