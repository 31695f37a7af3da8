//! A snapshot by way of a bucket: the raw image goes up as an object, EC2 imports it, the object is removed.
//!
//! The object's key is the caller's and always the same for the same image, so that a second run finds what the first
//! left: parts of an upload, an object, a task that runs. The snapshot is tagged before the object is removed; so as long
//! as something is left to do, the object is there to show it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use aws_sdk_ec2::types::{
    ResourceType, SnapshotDiskContainer, SnapshotTaskDetail, Tag, TagSpecification, UserBucket,
};
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart, Part};
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::byte_stream::ByteStream;
use tokio::task::JoinSet;

use super::block::{Image, copy};
use super::direct::{Wait, wait};
use super::{Listener, Progress, SnapshotError};
use crate::aws::error::{AwsError, Call, Kind};
use crate::aws::retry::{Policy, call, call_watched, interrupted, sleep};
use crate::base64::base64;
use crate::publish::blocks::client_token;
use crate::units::MIB;

/// Parts of an object, at most (S3's limit).
const MOST_PARTS: u64 = 10_000;
/// Size of a part, unless there would be too many: few enough bytes that eight of them under way stay below 128 MiB.
const PART: u64 = 16 * MIB;
/// Parts under way at once.
const UNDER_WAY: usize = 6;
/// How often an import that turned out to be of no use is begun anew.
const GENERATIONS: u32 = 4;
/// A part takes longer than a call that asks.
const PART_POLICY: Policy = Policy::CONTROL.deadline(Duration::from_secs(180));

/// An image to be imported.
pub struct Import<'a> {
    /// The region's client for the bucket.
    pub s3: &'a aws_sdk_s3::Client,
    /// The region's client for the import.
    pub ec2: &'a aws_sdk_ec2::Client,
    /// The region's name.
    pub region: &'a str,
    /// The bucket, in the same region.
    pub bucket: &'a str,
    /// The object's key: the same for the same image.
    pub key: &'a str,
    /// The image.
    pub image: &'a Image,
    /// Description of the task and the snapshot.
    pub description: &'a str,
    /// Tags of the snapshot, and of the task.
    pub tags: &'a BTreeMap<String, String>,
    /// Whether to ask for encryption; without it the account's default decides.
    pub encrypted: bool,
    /// The key for that; the account's default key when absent.
    pub kms_key: Option<&'a str>,
    /// The role that EC2 reads the bucket with; `vmimport` when absent.
    pub role: Option<&'a str>,
    /// What makes the task the same when it is asked for again.
    pub token: &'a str,
    /// How long is waited for the task, and for the snapshot.
    pub wait: Wait,
    /// Who wants to know how far it is.
    pub listener: &'a dyn Listener,
}

/// What an import did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Imported {
    /// The snapshot.
    pub snapshot: String,
    /// Bytes that were sent now.
    pub sent: u64,
    /// Bytes that an earlier run had sent.
    pub earlier: u64,
}

/// A part of the object.
#[derive(Debug, Clone)]
struct Piece {
    number: i32,
    etag: String,
    sha256: String,
    size: u64,
    /// Whether it was sent now.
    now: bool,
}

/// Uploads, imports, tags the snapshot, removes the object.
///
/// # Errors
/// [`SnapshotError`]. What can be gone on with is kept: after an interruption, when AWS can't be reached, when the
/// session ends. After any other failure neither parts nor object are left.
pub async fn import(job: &Import<'_>) -> Result<Imported, SnapshotError> {
    let mut imported = Imported::default();
    let result = all_steps(job, &mut imported).await;
    if result.as_ref().err().is_none_or(|error| !can_go_on(error)) {
        let removed = clean(job.s3, job.region, job.bucket, job.key).await;
        // What went wrong first is what matters.
        result?;
        removed?;
        return Ok(imported);
    }
    result.map(|()| imported)
}

fn can_go_on(error: &SnapshotError) -> bool {
    match error {
        SnapshotError::Aws(error) => {
            error.kind.passes() || matches!(error.kind, Kind::Interrupted | Kind::Expired | Kind::Credentials)
        }
        SnapshotError::Slow { .. } => true,
        _ => false,
    }
}

async fn all_steps(job: &Import<'_>, imported: &mut Imported) -> Result<(), SnapshotError> {
    if object_size(job).await? == Some(job.image.size()) {
        imported.earlier = job.image.size();
    } else {
        upload_object(job, imported).await?;
    }
    let task = begin(job).await?;
    imported.snapshot = wait_for_task(job, &task).await?;
    wait(job.ec2, job.region, &imported.snapshot, job.wait, job.listener).await?;
    let tags: Vec<Tag> = tags(job);
    if !tags.is_empty() {
        let called = Call::new("ec2", "CreateTags", job.region);
        let policy = Policy::CONTROL.also(&["InvalidSnapshot.NotFound"]);
        call(called, &policy, || {
            job.ec2.create_tags().resources(&imported.snapshot).set_tags(Some(tags.clone())).send()
        })
        .await?;
    }
    Ok(())
}

/// Removes the object and whatever parts of it were uploaded; no error when there are none.
///
/// # Errors
/// [`SnapshotError::Aws`].
pub async fn clean(
    s3: &aws_sdk_s3::Client,
    region: &str,
    bucket: &str,
    key: &str,
) -> Result<(), SnapshotError> {
    for upload in uploads(s3, region, bucket, key).await? {
        abort(s3, region, bucket, key, &upload).await?;
    }
    call(Call::new("s3", "DeleteObject", region), &Policy::CONTROL, || {
        s3.delete_object().bucket(bucket).key(key).send()
    })
    .await?;
    Ok(())
}

async fn abort(
    s3: &aws_sdk_s3::Client,
    region: &str,
    bucket: &str,
    key: &str,
    upload: &str,
) -> Result<(), SnapshotError> {
    let aborted = call(Call::new("s3", "AbortMultipartUpload", region), &Policy::CONTROL, || {
        s3.abort_multipart_upload().bucket(bucket).key(key).upload_id(upload).send()
    })
    .await;
    match aborted {
        Err(error) if error.kind != Kind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// The ids of the unfinished uploads of the object, the newest first.
async fn uploads(
    s3: &aws_sdk_s3::Client,
    region: &str,
    bucket: &str,
    key: &str,
) -> Result<Vec<String>, SnapshotError> {
    let (mut found, mut marker): (Vec<_>, Option<(String, Option<String>)>) = (Vec::new(), None);
    loop {
        let page = call(Call::new("s3", "ListMultipartUploads", region), &Policy::CONTROL, || {
            let request = s3.list_multipart_uploads().bucket(bucket).prefix(key);
            let (key, upload) = marker.clone().map_or((None, None), |(key, upload)| (Some(key), upload));
            request.set_key_marker(key).set_upload_id_marker(upload).send()
        })
        .await?;
        for upload in page.uploads().iter().filter(|upload| upload.key() == Some(key)) {
            let id = upload.upload_id().unwrap_or_default().to_owned();
            found.push((upload.initiated().map(aws_smithy_types::DateTime::secs), id));
        }
        let next = page
            .next_key_marker()
            .map(|key| (key.to_owned(), page.next_upload_id_marker().map(str::to_owned)));
        if page.is_truncated() != Some(true) || next.is_none() || next == marker {
            found.sort();
            return Ok(found.into_iter().rev().map(|(_, id)| id).collect());
        }
        marker = next;
    }
}

/// The size of the object, when it is there.
async fn object_size(job: &Import<'_>) -> Result<Option<u64>, SnapshotError> {
    let answer = call(Call::new("s3", "HeadObject", job.region), &Policy::CONTROL, || {
        job.s3.head_object().bucket(job.bucket).key(job.key).send()
    })
    .await;
    match answer {
        Ok(answer) => Ok(answer.content_length().and_then(|size| u64::try_from(size).ok())),
        Err(error) if error.kind == Kind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn upload_object(job: &Import<'_>, imported: &mut Imported) -> Result<(), SnapshotError> {
    let mut unfinished = uploads(job.s3, job.region, job.bucket, job.key).await?.into_iter();
    let (upload, there) = match unfinished.next() {
        Some(upload) => {
            let there = parts(job, &upload).await?;
            (upload, there)
        }
        None => (create(job).await?, BTreeMap::new()),
    };
    for older in unfinished {
        abort(job.s3, job.region, job.bucket, job.key, &older).await?;
    }
    let pieces = send_pieces(job, &upload, &there).await?;
    for piece in &pieces {
        let counted = if piece.now { &mut imported.sent } else { &mut imported.earlier };
        *counted += piece.size;
    }
    finish(job, &upload, &pieces).await
}

async fn create(job: &Import<'_>) -> Result<String, SnapshotError> {
    let answer = call(Call::new("s3", "CreateMultipartUpload", job.region), &Policy::CONTROL, || {
        let request = job.s3.create_multipart_upload().bucket(job.bucket).key(job.key);
        request.checksum_algorithm(ChecksumAlgorithm::Sha256).send()
    })
    .await?;
    let missing = SnapshotError::Answer { operation: "CreateMultipartUpload", what: "upload id" };
    answer.upload_id().map(str::to_owned).ok_or(missing)
}

/// The parts that are there, by number.
async fn parts(job: &Import<'_>, upload: &str) -> Result<BTreeMap<i32, Part>, SnapshotError> {
    let (mut found, mut marker): (_, Option<String>) = (BTreeMap::new(), None);
    loop {
        let page = call(Call::new("s3", "ListParts", job.region), &Policy::CONTROL, || {
            let request = job.s3.list_parts().bucket(job.bucket).key(job.key).upload_id(upload);
            request.set_part_number_marker(marker.clone()).send()
        })
        .await?;
        found.extend(page.parts().iter().filter_map(|part| Some((part.part_number()?, part.clone()))));
        let next = page.next_part_number_marker().map(str::to_owned);
        if page.is_truncated() != Some(true) || next.is_none() || next == marker {
            return Ok(found);
        }
        marker = next;
    }
}

/// The size of a part of an image of `size` bytes.
fn part_size(size: u64) -> u64 {
    size.div_ceil(MOST_PARTS).next_multiple_of(MIB).max(PART)
}

/// Sends the parts that aren't there with the same bytes.
async fn send_pieces(
    job: &Import<'_>,
    upload: &str,
    there: &BTreeMap<i32, Part>,
) -> Result<Vec<Piece>, SnapshotError> {
    let (size, part) = (job.image.size(), part_size(job.image.size()));
    let total = size.div_ceil(part);
    let mut progress = Progress { total, ..Progress::default() };
    let mut todo = (0..total).zip(1..);
    let mut under_way: JoinSet<Result<Piece, SnapshotError>> = JoinSet::new();
    let mut pieces = Vec::new();
    loop {
        job.listener.progress(progress);
        while under_way.len() < UNDER_WAY {
            let Some((index, number)) = todo.next() else { break };
            let count = part.min(size - index * part);
            under_way.spawn(send_piece(Sender {
                s3: job.s3.clone(),
                region: job.region.to_owned(),
                bucket: job.bucket.to_owned(),
                key: job.key.to_owned(),
                upload: upload.to_owned(),
                image: job.image.clone(),
                number,
                at: index * part,
                count,
                there: there.get(&number).cloned(),
            }));
        }
        let ended = tokio::select! {
            biased;
            interrupted = interrupted() => return Err(interrupted.into()),
            ended = under_way.join_next() => ended,
        };
        let Some(ended) = ended else { break };
        let lost = |e: tokio::task::JoinError| {
            Err(Call::new("s3", "UploadPart", job.region).error(Kind::Other, e.to_string()).into())
        };
        let piece = ended.unwrap_or_else(lost)?;
        progress.done += 1;
        progress.bytes += piece.size;
        pieces.push(piece);
    }
    pieces.sort_by_key(|piece| piece.number);
    Ok(pieces)
}

/// What the task of a part needs.
struct Sender {
    s3: aws_sdk_s3::Client,
    region: String,
    bucket: String,
    key: String,
    upload: String,
    image: Image,
    number: i32,
    at: u64,
    count: u64,
    there: Option<Part>,
}

async fn send_piece(job: Sender) -> Result<Piece, SnapshotError> {
    let (bytes, digest) = job.image.hashed(job.at, job.count).await?;
    let sha256 = base64(&digest.0);
    let mut piece = Piece { number: job.number, etag: String::new(), sha256, size: job.count, now: true };
    if let Some(part) = &job.there {
        let same = part.checksum_sha256() == Some(&piece.sha256) && part.size() == Some(job.count as i64);
        if let Some(etag) = part.e_tag().filter(|_| same) {
            return Ok(Piece { etag: etag.to_owned(), now: false, ..piece });
        }
    }
    let body = SdkBody::from(bytes);
    let answer = call(Call::new("s3", "UploadPart", &job.region), &PART_POLICY, || {
        job.s3
            .upload_part()
            .bucket(&job.bucket)
            .key(&job.key)
            .upload_id(&job.upload)
            .part_number(job.number)
            .checksum_sha256(&piece.sha256)
            .body(ByteStream::new(copy(&body)))
            .send()
    })
    .await?;
    let etag = answer.e_tag().ok_or(SnapshotError::Answer { operation: "UploadPart", what: "ETag" })?;
    etag.clone_into(&mut piece.etag);
    Ok(piece)
}

/// Puts the parts together.
async fn finish(job: &Import<'_>, upload: &str, pieces: &[Piece]) -> Result<(), SnapshotError> {
    let part = |piece: &Piece| {
        let part = CompletedPart::builder().part_number(piece.number).e_tag(&piece.etag);
        part.checksum_sha256(&piece.sha256).build()
    };
    let whole =
        CompletedMultipartUpload::builder().set_parts(Some(pieces.iter().map(part).collect())).build();
    let mut uncertain = false;
    let answer = call_watched(
        Call::new("s3", "CompleteMultipartUpload", job.region),
        &Policy::CONTROL.deadline(Duration::from_secs(120)),
        |error| uncertain |= error.kind.passes(),
        || {
            let request = job.s3.complete_multipart_upload().bucket(job.bucket).key(job.key);
            request.upload_id(upload).multipart_upload(whole.clone()).send()
        },
    )
    .await;
    match answer {
        Ok(_) => Ok(()),
        // An attempt whose answer was lost may have done it.
        Err(error) if uncertain && error.kind == Kind::NotFound => match object_size(job).await? {
            Some(size) if size == job.image.size() => Ok(()),
            _ => Err(error.into()),
        },
        Err(error) => Err(error.into()),
    }
}

fn tags(job: &Import<'_>) -> Vec<Tag> {
    job.tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect()
}

/// Begins an import, or finds the one that was begun earlier: the token makes them one. An earlier one that failed, or whose
/// snapshot has been deleted since, is of no use: another token begins another.
async fn begin(job: &Import<'_>) -> Result<String, SnapshotError> {
    let mut last = None;
    for generation in 0..GENERATIONS {
        let token = match generation {
            0 => job.token.to_owned(),
            _ => client_token(&[job.token, &generation.to_string()]),
        };
        match ask(job, &token).await {
            Ok(task) if serves(job, &task).await? => return Ok(task),
            Ok(task) => last = Some(Ok(task)),
            Err(SnapshotError::Aws(error)) if error.kind == Kind::Conflict => {
                last = Some(Err(error.into()));
            }
            Err(error) => return Err(error),
        }
    }
    // Waiting for the last one tells what is wrong with all of them.
    last.unwrap_or(Err(SnapshotError::Answer { operation: "ImportSnapshot", what: "task id" }))
}

/// Whether something came or may come of a task.
async fn serves(job: &Import<'_>, task: &str) -> Result<bool, SnapshotError> {
    let Some(detail) = task_detail(job, task).await? else { return Ok(true) };
    match (detail.status().unwrap_or("active"), detail.snapshot_id()) {
        ("active" | "pending" | "", _) => Ok(true),
        ("completed", Some(snapshot)) => {
            let answer = call(Call::new("ec2", "DescribeSnapshots", job.region), &Policy::CONTROL, || {
                job.ec2.describe_snapshots().snapshot_ids(snapshot).send()
            });
            match answer.await {
                Err(error) if error.kind == Kind::NotFound => Ok(false),
                Err(error) => Err(error.into()),
                Ok(_) => Ok(true),
            }
        }
        _ => Ok(false),
    }
}

async fn ask(job: &Import<'_>, token: &str) -> Result<String, SnapshotError> {
    let bucket = UserBucket::builder().s3_bucket(job.bucket).s3_key(job.key).build();
    let disk = SnapshotDiskContainer::builder()
        .format("RAW")
        .description(job.description)
        .user_bucket(bucket)
        .build();
    let tags = tags(job);
    let tags = (!tags.is_empty()).then(|| {
        let tagged = TagSpecification::builder().resource_type(ResourceType::ImportSnapshotTask);
        vec![tagged.set_tags(Some(tags)).build()]
    });
    let answer = call(Call::new("ec2", "ImportSnapshot", job.region), &Policy::CONTROL, || {
        job.ec2
            .import_snapshot()
            .description(job.description)
            .disk_container(disk.clone())
            .set_encrypted(job.encrypted.then_some(true))
            .set_kms_key_id(job.kms_key.map(str::to_owned))
            .set_role_name(job.role.map(str::to_owned))
            .client_token(token)
            .set_tag_specifications(tags.clone())
            .send()
    })
    .await?;
    let missing = SnapshotError::Answer { operation: "ImportSnapshot", what: "task id" };
    answer.import_task_id().map(str::to_owned).ok_or(missing)
}

/// Waits for the import; the snapshot's id.
async fn wait_for_task(job: &Import<'_>, task: &str) -> Result<String, SnapshotError> {
    let (began, mut pauses) = (Instant::now(), job.wait.pauses());
    loop {
        let detail = task_detail(job, task).await?;
        if let Some(percent) = detail.as_ref().and_then(|d| d.progress()?.trim_end_matches('%').parse().ok())
        {
            job.listener.percent(percent);
        }
        let state = detail.as_ref().and_then(|d| d.status()).unwrap_or("active").to_owned();
        match (state.as_str(), &detail) {
            ("completed", Some(detail)) => {
                let missing =
                    SnapshotError::Answer { operation: "DescribeImportSnapshotTasks", what: "snapshot id" };
                return detail.snapshot_id().map(str::to_owned).ok_or(missing);
            }
            ("active" | "pending" | "", _) | (_, None) => {}
            (_, Some(detail)) => {
                let message = detail.status_message().map(|m| format!(": {m}")).unwrap_or_default();
                return Err(SnapshotError::Failed { snapshot: task.to_owned(), state, message });
            }
        }
        if began.elapsed() >= job.wait.limit {
            let minutes = job.wait.limit.as_secs() / 60;
            return Err(SnapshotError::Slow { snapshot: task.to_owned(), state, minutes });
        }
        sleep(pauses.next().unwrap_or(job.wait.longest)).await?;
    }
}

async fn task_detail(job: &Import<'_>, task: &str) -> Result<Option<SnapshotTaskDetail>, AwsError> {
    let policy = Policy::CONTROL.also(&["InvalidConversionTaskId.NotFound", "InvalidImportTaskId.NotFound"]);
    let answer = call(Call::new("ec2", "DescribeImportSnapshotTasks", job.region), &policy, || {
        job.ec2.describe_import_snapshot_tasks().import_task_ids(task).send()
    })
    .await?;
    Ok(answer.import_snapshot_tasks().first().and_then(|task| task.snapshot_task_detail()).cloned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_few_enough() {
        assert_eq!(part_size(1), PART);
        assert_eq!(part_size(100 << 30), PART);
        let largest = 64 << 40;
        assert!(largest / part_size(largest) < MOST_PARTS && part_size(largest).is_multiple_of(MIB));
    }
}
