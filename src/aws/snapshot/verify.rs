//! Reading a snapshot back, block by block, and comparing it with the image.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::block::beside;
use super::pace::Pace;
use super::upload::Patience;
use super::{Listener, Progress, SnapshotError};
use crate::artifact::{BLOCK, ZERO_BLOCK};
use crate::aws::error::{AwsError, Call, Kind};
use crate::aws::retry::{Policy, call, interrupted, sleep};
use crate::base64::base64;
use crate::digest::Digest;
use crate::publish::blocks::{Class, DiskBlocks};

/// Blocks that are asked for at once.
const PAGE: i32 = 1000;

/// How a block of the snapshot differs from the image's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Difference {
    /// It holds something in the image, and was never written.
    Missing,
    /// It holds something else.
    Other {
        /// What is wanted.
        wanted: Digest,
        /// What is there.
        found: Digest,
    },
}

/// What a comparison found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// Blocks that were read and are right.
    pub same: u64,
    /// Holes of the image that were never written.
    pub absent: u64,
    /// Zeroes that something reads and that were never written: right on a plain volume, noise on one that is made encrypted.
    /// Where EC2 imported the image, that is its doing.
    pub unwritten: Vec<u32>,
    /// Blocks that differ, by their index.
    pub differing: BTreeMap<u32, Difference>,
}

impl Verified {
    /// Whether a plain volume of the snapshot is the image, to the byte.
    #[must_use]
    pub fn is_same(&self) -> bool {
        self.differing.is_empty()
    }
}

/// Reads a complete snapshot back.
///
/// # Errors
/// [`SnapshotError`] when it can't be read; what differs is no error.
pub async fn verify(
    ebs: &aws_sdk_ebs::Client,
    region: &str,
    snapshot: &str,
    blocks: &DiskBlocks,
    pace: Arc<Pace>,
    listener: &dyn Listener,
) -> Result<Verified, SnapshotError> {
    let there = list(ebs, region, snapshot).await?;
    let mut verified = Verified::default();
    for (index, class) in (0u32..).zip(&blocks.classes) {
        match class {
            _ if there.contains_key(&index) => {}
            Class::Hole => verified.absent += 1,
            Class::Zero => verified.unwritten.push(index),
            Class::Data(_) => {
                verified.differing.insert(index, Difference::Missing);
            }
        }
    }
    let wanted = |index: u32| match blocks.classes.get(index as usize) {
        Some(Class::Data(digest)) => *digest,
        _ => *ZERO_BLOCK,
    };
    let shared = Arc::new(Reading {
        ebs: ebs.clone(),
        region: region.to_owned(),
        snapshot: snapshot.to_owned(),
        pace: pace.clone(),
        policy: Patience::default().policy,
    });
    pace.begin();
    let mut progress = Progress { total: there.len() as u64, ..Progress::default() };
    let mut todo = there.into_iter();
    let mut under_way: JoinSet<Result<(u32, Digest), SnapshotError>> = JoinSet::new();
    loop {
        listener.progress(progress);
        while under_way.len() < pace.window() {
            let Some((index, token)) = todo.next() else { break };
            under_way.spawn(get(shared.clone(), index, token));
        }
        let ended = tokio::select! {
            biased;
            interrupted = interrupted() => return Err(interrupted.into()),
            ended = under_way.join_next() => ended,
        };
        let Some(ended) = ended else { return Ok(verified) };
        let lost = |e: tokio::task::JoinError| Err(shared.call().error(Kind::Other, e.to_string()).into());
        let (index, found) = ended.unwrap_or_else(lost)?;
        let wanted = wanted(index);
        if found == wanted {
            verified.same += 1;
        } else {
            verified.differing.insert(index, Difference::Other { wanted, found });
        }
        progress.done += 1;
        progress.bytes += BLOCK;
    }
}

/// The tokens of all blocks that were ever written, by index.
async fn list(
    ebs: &aws_sdk_ebs::Client,
    region: &str,
    snapshot: &str,
) -> Result<BTreeMap<u32, String>, SnapshotError> {
    let mut there = BTreeMap::new();
    let mut next: Option<String> = None;
    loop {
        let page = call(Call::new("ebs", "ListSnapshotBlocks", region), &Policy::CONTROL, || {
            let request = ebs.list_snapshot_blocks().snapshot_id(snapshot).max_results(PAGE);
            request.set_next_token(next.clone()).send()
        })
        .await?;
        for block in page.blocks() {
            let index = block.block_index().and_then(|index| u32::try_from(index).ok());
            let (Some(index), Some(token)) = (index, block.block_token()) else {
                return Err(SnapshotError::Answer {
                    operation: "ListSnapshotBlocks",
                    what: "token of a block",
                });
            };
            there.insert(index, token.to_owned());
        }
        match page.next_token() {
            // A page that says the next one is itself would be read for ever.
            Some(token) if !token.is_empty() && Some(token) != next.as_deref() => {
                next = Some(token.to_owned())
            }
            _ => return Ok(there),
        }
    }
}

/// What each block's task needs.
struct Reading {
    ebs: aws_sdk_ebs::Client,
    region: String,
    snapshot: String,
    pace: Arc<Pace>,
    policy: Policy,
}

impl Reading {
    fn call(&self) -> Call<'_> {
        Call::new("ebs", "GetSnapshotBlock", &self.region)
    }
}

/// The digest of a block's bytes, read until they agree with the checksum that comes with them.
async fn get(shared: Arc<Reading>, index: u32, token: String) -> Result<(u32, Digest), SnapshotError> {
    let mut attempt = 1;
    loop {
        shared.pace.turn().await;
        let error = match get_once(&shared, index, &token, shared.policy.deadline * attempt).await {
            Ok(digest) => {
                shared.pace.good();
                return Ok((index, digest));
            }
            Err(error) => error,
        };
        match error.kind {
            Kind::Throttled => shared.pace.throttled(),
            _ => shared.pace.slow(),
        }
        let passes = match error.kind {
            Kind::Throttled => shared.pace.silence() < Patience::default().throttled,
            _ => shared.policy.tries_again(&error, attempt),
        };
        if !passes {
            return Err(error.into());
        }
        sleep(shared.policy.pause_after(attempt, error.retry_after, 0.5)).await?;
        attempt += u32::from(error.kind != Kind::Throttled);
    }
}

async fn get_once(shared: &Reading, index: u32, token: &str, deadline: Duration) -> Result<Digest, AwsError> {
    let call = shared.call();
    let request = shared.ebs.get_snapshot_block().snapshot_id(&shared.snapshot);
    let request = request.block_index(index as i32).block_token(token);
    let read = async {
        let answer = request.send().await.map_err(|error| call.explain(&error))?;
        let checksum = answer.checksum().map(str::to_owned);
        let bytes = answer.block_data.collect().await;
        let bytes = bytes.map_err(|error| call.error(Kind::Transient, error.to_string()))?.into_bytes();
        let length = bytes.len();
        let digest = beside(move || Digest::of(&bytes)).await;
        let digest = digest.ok_or_else(|| call.error(Kind::Other, "the thread that hashed was lost"))?;
        let right = length as u64 == BLOCK && checksum.is_none_or(|sum| sum == base64(&digest.0));
        if right { Ok(digest) } else { Err(call.error(Kind::Transient, "the block was damaged on its way")) }
    };
    let timed_out = |_| call.error(Kind::Timeout, format!("no answer within {} s", deadline.as_secs_f32()));
    tokio::time::timeout(deadline, read).await.map_err(timed_out)?
}
