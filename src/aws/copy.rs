//! Copies of a snapshot or an image in a further region, encrypted there in the same step when that is wanted.

use std::time::Duration;

use aws_sdk_ec2::operation::copy_image::builders::CopyImageFluentBuilder;
use aws_sdk_ec2::operation::copy_snapshot::builders::CopySnapshotFluentBuilder;
use aws_sdk_ec2::types::{ResourceType, Snapshot, SnapshotState, Tag, TagSpecification};

use super::ask::{self, Note, Patience, Tell, Waiting};
use super::cloud::Region;
use super::error::{AwsError, Call, Kind};
use super::image::{self, ImageError};
use super::retry::{self, Policy};
use super::{observe, signed};
use crate::digest::Digest;
use crate::publish::blocks::client_token;
use crate::publish::tags;
use crate::publish::target::{Encryption, Target};

/// How long copies may queue: a destination takes twenty at once, and one of a large image lasts an hour.
const QUEUE: Patience = Patience {
    first: Duration::from_secs(1),
    most: Duration::from_secs(60),
    limit: Duration::from_secs(6 * 3600),
};
/// How long a copy whose making is in doubt may stay invisible.
const APPEARS: Patience = Patience {
    first: Duration::from_millis(500),
    most: Duration::from_secs(5),
    limit: Duration::from_secs(20),
};
/// How often a request without an answer is made anew, having looked each time that nothing came of it.
const TRIES: u32 = 5;

/// What is copied.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// The region that it lies in.
    pub region: &'a str,
    /// Its id there: a snapshot's or an image's.
    pub id: &'a str,
    /// Whether it is encrypted.
    pub encrypted: bool,
}

/// Begins to copy a snapshot to `region`, or finds the copy that an earlier run began; gives its id.
///
/// `CopySnapshot` has no client token: its tags, given as it is made, tell whether there is one already.
///
/// # Errors
/// When EC2 refuses.
pub async fn snapshot(
    region: &Region,
    target: &Target,
    source: Source<'_>,
    tell: Tell<'_>,
) -> Result<String, ImageError> {
    let request = snapshot_request(&region.ec2, target, source);
    let call = Call::new("ec2", "CopySnapshot", &region.name);
    // Each request is sent once: whoever sends it again has to look first.
    let policy = Policy::CONTROL.attempts(1);
    let mut queue = Waiting::new(QUEUE);
    let mut doubts = 0;
    let mut found = snapshot_there(region, target, source, tell).await?;
    loop {
        if let Some(id) = found {
            return Ok(id);
        }
        // EC2's SDKs for other languages add this address by themselves. It lasts an hour, the queue may be longer.
        let address = match source.encrypted {
            true => Some(signed::copy_address(region, source.region, source.id).await?),
            false => None,
        };
        let request = request.clone().set_presigned_url(address);
        let error = match retry::call(call, &policy, || request.clone().send()).await {
            Ok(copy) => {
                let id = copy
                    .snapshot_id
                    .ok_or_else(|| image::incomplete(region, "CopySnapshot", "SnapshotId"))?;
                tell(Note::Made(id.clone()));
                return Ok(id);
            }
            Err(error) => error,
        };
        found = match error.kind {
            Kind::Limit | Kind::Throttled => {
                tell(Note::Queued(error.message.clone()));
                if !queue.pause().await? {
                    return Err(error.into());
                }
                None
            }
            kind if kind.passes() && doubts < TRIES => {
                doubts += 1;
                snapshot_appeared(region, target, source, tell).await?
            }
            _ => return Err(error.into()),
        };
    }
}

/// Begins to copy an image with its snapshot to `region`, or finds the copy that an earlier run began; gives its id. The
/// copy has the settings of its source: only name, description, tags and encryption are the target's.
///
/// # Errors
/// [`ImageError::NameTaken`] (`CopyImage` itself would make a second image of that name); else when EC2 refuses.
pub async fn image(
    region: &Region,
    target: &Target,
    source: Source<'_>,
    tell: Tell<'_>,
) -> Result<String, ImageError> {
    if let Some(id) = image::there(region, target, tell).await? {
        return Ok(id);
    }
    // The same token gives the same image, also one that has failed since.
    for generation in 0..TRIES {
        let token = token(&target.id, &region.name, "copy-image", generation);
        let request = image_request(&region.ec2, target, source).client_token(token);
        let copy = match ask::ec2(region, "CopyImage", || request.clone().send()).await {
            // It was asked for with other settings before, and what was made then is gone.
            Err(error) if error.kind == Kind::Conflict => continue,
            answer => answer?,
        };
        let id = copy.image_id.ok_or_else(|| image::incomplete(region, "CopyImage", "ImageId"))?;
        if image::lives(region, &id).await? {
            tell(Note::Made(id.clone()));
            return Ok(id);
        }
    }
    Err(image::incomplete(region, "CopyImage", "ImageId of an image that lives"))
}

/// Waits until a snapshot is complete. One that failed is removed, since nothing can be made of it.
///
/// # Errors
/// [`ImageError::Failed`] with EC2's reason, [`ImageError::Slow`] when patience ends.
pub async fn completed(
    region: &Region,
    id: &str,
    patience: Patience,
    tell: Tell<'_>,
) -> Result<(), ImageError> {
    let mut waiting = Waiting::new(patience);
    loop {
        match by_id(region, id).await? {
            Some(snapshot) if snapshot.state == Some(SnapshotState::Completed) => return Ok(()),
            Some(snapshot) if is_dead(&snapshot) => {
                delete(region, id).await?;
                return Err(failed(region, &snapshot));
            }
            Some(snapshot) => {
                let percent = ask::percent(snapshot.progress());
                tell(Note::Waiting { id: id.to_owned(), percent });
            }
            None if waiting.so_far() > Duration::from_secs(120) => {
                return Err(ImageError::gone(region, id));
            }
            None => tell(Note::Waiting { id: id.to_owned(), percent: None }),
        }
        if !waiting.pause().await? {
            return Err(ImageError::Slow {
                region: region.name.clone(),
                id: id.to_owned(),
                wanted: "completed",
                waited: waiting.so_far(),
            });
        }
    }
}

/// Deletes a snapshot; one that is gone already is as good.
pub(super) async fn delete(region: &Region, id: &str) -> Result<(), AwsError> {
    let answer = ask::ec2(region, "DeleteSnapshot", || region.ec2.delete_snapshot().snapshot_id(id).send());
    match answer.await {
        Err(error) if error.kind != Kind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The token by which AWS knows a request again: 64 hexadecimal digits. The generation goes up when what was made with
/// the one before is of no use any more.
#[must_use]
pub fn token(id: &Digest, region: &str, purpose: &str, generation: u32) -> String {
    client_token(&[&id.to_string(), region, purpose, &generation.to_string()])
}

/// The copy that is there, complete or on its way; copies that failed are removed.
async fn snapshot_there(
    region: &Region,
    target: &Target,
    source: Source<'_>,
    tell: Tell<'_>,
) -> Result<Option<String>, ImageError> {
    let tag = format!("tag:{}", tags::PUBLICATION);
    let mut there = observe::snapshots(region, ask::filter(&tag, [target.id.to_string()])).await?;
    there.sort_by_key(|snapshot| (rank(snapshot), snapshot.snapshot_id.clone()));
    let mut found = None;
    for snapshot in there {
        let id = snapshot.snapshot_id.clone().unwrap_or_default();
        if is_dead(&snapshot) {
            delete(region, &id).await?;
            tell(Note::Changed(format!("removed {id}, which had failed: {}", message(&snapshot))));
        } else if found.is_none() && is_copy_of(&snapshot, source) {
            found = Some(id);
        }
    }
    Ok(found)
}

async fn snapshot_appeared(
    region: &Region,
    target: &Target,
    source: Source<'_>,
    tell: Tell<'_>,
) -> Result<Option<String>, ImageError> {
    let mut waiting = Waiting::new(APPEARS);
    loop {
        let found = snapshot_there(region, target, source, tell).await?;
        if found.is_some() || !waiting.pause().await? {
            return Ok(found);
        }
    }
}

/// Complete ones come first.
fn rank(snapshot: &Snapshot) -> u8 {
    u8::from(snapshot.state != Some(SnapshotState::Completed))
}

/// A complete snapshot of the same identity is as good as a copy; one that isn't may be an upload that nobody goes on with.
fn is_copy_of(snapshot: &Snapshot, source: Source<'_>) -> bool {
    let from = |tag: &Tag| tag.key() == Some(tags::FROM) && tag.value() == Some(source.region);
    snapshot.state == Some(SnapshotState::Completed) || snapshot.tags().iter().any(from)
}

/// The snapshot's tags, and where it was copied from.
fn snapshot_tags(target: &Target, source: Source<'_>) -> TagSpecification {
    let mut all = target.snapshot_tags.clone();
    all.insert(tags::FROM.to_owned(), source.region.to_owned());
    ask::tags(ResourceType::Snapshot, &all)
}

fn description(source: Source<'_>) -> String {
    format!("Copied from {} in {}", source.id, source.region)
}

pub(super) fn snapshot_request(
    ec2: &aws_sdk_ec2::Client,
    target: &Target,
    source: Source<'_>,
) -> CopySnapshotFluentBuilder {
    let (encrypted, key) = encryption(&target.encryption);
    ec2.copy_snapshot()
        .source_region(source.region)
        .source_snapshot_id(source.id)
        .description(description(source))
        .set_encrypted(encrypted)
        .set_kms_key_id(key)
        .tag_specifications(snapshot_tags(target, source))
}

pub(super) fn image_request(
    ec2: &aws_sdk_ec2::Client,
    target: &Target,
    source: Source<'_>,
) -> CopyImageFluentBuilder {
    let (encrypted, key) = encryption(&target.encryption);
    ec2.copy_image()
        .source_region(source.region)
        .source_image_id(source.id)
        .name(&target.name)
        .set_description(Some(target.description.clone()).filter(|text| !text.is_empty()))
        .set_encrypted(encrypted)
        .set_kms_key_id(key)
        .tag_specifications(ask::tags(ResourceType::Image, &target.image_tags))
        .tag_specifications(snapshot_tags(target, source))
}

/// `Encrypted` and `KmsKeyId` of a request. Nothing is said where the account decides: false would be a wish.
fn encryption(encryption: &Encryption) -> (Option<bool>, Option<String>) {
    match encryption {
        Encryption::AccountDefault => (None, None),
        Encryption::DefaultKey => (Some(true), None),
        Encryption::Key(key) => (Some(true), Some(key.clone())),
    }
}

pub(super) async fn by_id(region: &Region, id: &str) -> Result<Option<Snapshot>, AwsError> {
    let answer =
        ask::ec2(region, "DescribeSnapshots", || region.ec2.describe_snapshots().snapshot_ids(id).send());
    match answer.await {
        Ok(page) => Ok(page.snapshots.unwrap_or_default().into_iter().next()),
        Err(error) if error.kind == Kind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) fn is_dead(snapshot: &Snapshot) -> bool {
    snapshot.state == Some(SnapshotState::Error)
}

fn message(snapshot: &Snapshot) -> &str {
    snapshot.state_message().filter(|text| !text.is_empty()).unwrap_or("EC2 gives no reason")
}

fn failed(region: &Region, snapshot: &Snapshot) -> ImageError {
    ImageError::Failed {
        region: region.name.clone(),
        id: snapshot.snapshot_id.clone().unwrap_or_default(),
        state: "of no use and was removed".to_owned(),
        reason: message(snapshot).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: Source<'static> = Source { region: "eu-central-1", id: "snap-1", encrypted: false };

    #[test]
    fn an_upload_on_its_way_is_no_copy() {
        let snapshot = |state, from: Option<&str>| {
            let tag = from.map(|from| Tag::builder().key(tags::FROM).value(from).build());
            Snapshot::builder().state(state).set_tags(tag.map(|tag| vec![tag])).build()
        };
        assert!(is_copy_of(&snapshot(SnapshotState::Pending, Some("eu-central-1")), SOURCE));
        assert!(is_copy_of(&snapshot(SnapshotState::Completed, None), SOURCE));
        assert!(!is_copy_of(&snapshot(SnapshotState::Pending, None), SOURCE));
        assert!(!is_copy_of(&snapshot(SnapshotState::Pending, Some("us-east-1")), SOURCE));
    }

    #[test]
    fn tokens_differ_in_everything_that_goes_in() {
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        let tokens = [
            token(&one, "eu-central-1", "copy-image", 0),
            token(&two, "eu-central-1", "copy-image", 0),
            token(&one, "us-east-1", "copy-image", 0),
            token(&one, "eu-central-1", "upload", 0),
            token(&one, "eu-central-1", "copy-image", 1),
        ];
        let distinct: std::collections::BTreeSet<_> = tokens.iter().collect();
        assert_eq!(distinct.len(), tokens.len());
        assert!(tokens.iter().all(|token| token.len() == 64 && token.is_ascii()));
    }
}
