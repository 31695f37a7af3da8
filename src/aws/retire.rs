//! What goes: images that retention gives up, and what interrupted publications left behind. First everything is found,
//! as values that a dry run prints; then it is removed, piece by piece.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use aws_sdk_ec2::types::{self as ec2, SnapshotReturnCodes};
use serde::Serialize;

use super::ask;
use super::cloud::Region;
use super::error::{AwsError, Call, Kind};
use super::retry::{self, Policy};
use super::{image, observe};
use crate::date::Timestamp;
use crate::digest::Digest;
use crate::publish::observed::{self, SnapshotState};
use crate::publish::tags;

/// How many values one filter takes.
const VALUES: usize = 200;

/// An image that is to go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Retiring {
    /// Its id.
    pub image: String,
    /// Its name.
    pub name: String,
    /// When it was made.
    pub created: Timestamp,
    /// Its snapshots, which go with it.
    pub snapshots: Vec<String>,
    /// What speaks against it; it stays when there is anything.
    pub kept_by: Vec<String>,
}

/// What is left of an interrupted publication.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Orphan {
    /// A snapshot that no image refers to.
    Snapshot {
        /// Its id.
        id: String,
        /// `pending`, `completed` or `unusable`.
        state: &'static str,
        /// When it was begun.
        started: Timestamp,
    },
    /// An image that failed.
    Image {
        /// Its id.
        id: String,
        /// Its name.
        name: String,
    },
    /// An import that nobody waits for.
    Import {
        /// Its id.
        id: String,
    },
    /// An upload to a bucket that was never finished.
    Upload {
        /// The bucket.
        bucket: String,
        /// The object's key.
        key: String,
        /// The upload's id.
        id: String,
    },
}

impl fmt::Display for Orphan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Orphan::Snapshot { id, state, started } => write!(f, "snapshot {id}, {state}, begun {started}"),
            Orphan::Image { id, name } => write!(f, "image {id} ({name}), failed"),
            Orphan::Import { id } => write!(f, "import {id}, unfinished"),
            Orphan::Upload { bucket, key, .. } => write!(f, "upload of s3://{bucket}/{key}, unfinished"),
        }
    }
}

/// What became of a removal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It is gone.
    Gone,
    /// The image is gone, but not its snapshots, for this reason.
    SnapshotsStay(String),
    /// It stays, for this reason.
    Stays(String),
}

/// The images of `ids` with what speaks against removing each: protection, instances, and `parameters` that name it.
/// Those that are gone already are left out.
///
/// # Errors
/// When a request fails for good.
pub async fn images(
    region: &Region,
    ids: &BTreeSet<String>,
    parameters: &BTreeSet<String>,
) -> Result<Vec<Retiring>, AwsError> {
    let mut listed = Vec::new();
    let ids: Vec<String> = ids.iter().cloned().collect();
    for some in ids.chunks(VALUES) {
        listed.extend(image::images(region, ask::filter("image-id", some)).await?);
    }
    let (instances, parameters) =
        tokio::try_join!(instances(region, &ids), observe::parameters(region, parameters))?;
    let reasons = |image: &ec2::Image| -> Vec<String> {
        let id = image.image_id().unwrap_or_default();
        let protected = observe::read_details(image)
            .protection
            .map(|_| "it is protected against deregistration".to_owned());
        let instances = instances.get(id).map(|list| format!("instances run from it: {}", list.join(", ")));
        let named = parameters
            .iter()
            .filter(|(_, parameter)| parameter.value == id)
            .map(|(name, _)| format!("the SSM parameter {name} names it"));
        protected.into_iter().chain(instances).chain(named).collect()
    };
    let retiring = listed.iter().map(|listed| {
        let image = observe::read_image(listed);
        let kept_by = reasons(listed);
        let observed = (image.id, image.name, image.created, image.snapshots);
        let (image, name, created, snapshots) = observed;
        Retiring { image, name, created, snapshots, kept_by }
    });
    Ok(retiring.collect())
}

/// Deregisters an image and deletes its snapshots, unless something speaks against it. Snapshots that another image
/// refers to stay.
///
/// # Errors
/// When a request fails for good; what is left then is found as an orphan.
pub async fn retire(region: &Region, image: &Retiring) -> Result<Outcome, AwsError> {
    if !image.kept_by.is_empty() {
        return Ok(Outcome::Stays(image.kept_by.join("; ")));
    }
    let id = &image.image;
    let answer = ask::ec2(region, "DeregisterImage", || {
        region.ec2.deregister_image().image_id(id).delete_associated_snapshots(true).send()
    });
    let results = match answer.await {
        Ok(answer) => answer.delete_snapshot_results.unwrap_or_default(),
        Err(error) if error.kind == Kind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    let deleted: BTreeSet<&str> = results
        .iter()
        .filter(|result| result.return_code == Some(SnapshotReturnCodes::Success))
        .filter_map(|result| result.snapshot_id())
        .collect();
    let mut stay = Vec::new();
    for snapshot in image.snapshots.iter().filter(|id| !deleted.contains(id.as_str())) {
        if let Outcome::Stays(reason) = delete_snapshot(region, snapshot).await? {
            stay.push(format!("{snapshot}: {reason}"));
        }
    }
    Ok(if stay.is_empty() { Outcome::Gone } else { Outcome::SnapshotsStay(stay.join("; ")) })
}

/// The instances of the account that run from images, by image.
async fn instances(region: &Region, ids: &[String]) -> Result<BTreeMap<String, Vec<String>>, AwsError> {
    const ALIVE: [&str; 5] = ["pending", "running", "shutting-down", "stopping", "stopped"];
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for some in ids.chunks(VALUES) {
        let request = region
            .ec2
            .describe_instances()
            .filters(ask::filter("image-id", some))
            .filters(ask::filter("instance-state-name", ALIVE));
        let reservations = ask::pages(async |token| {
            let page = ask::ec2(region, "DescribeInstances", || {
                request.clone().set_next_token(token.clone()).send()
            });
            let page = page.await?;
            Ok((page.reservations, page.next_token))
        })
        .await?;
        for instance in reservations.into_iter().flat_map(|r| r.instances.unwrap_or_default()) {
            let (Some(image), Some(id)) = (instance.image_id, instance.instance_id) else { continue };
            found.entry(image).or_default().push(id);
        }
    }
    Ok(found)
}

/// What interrupted publications left in a region before `before`: younger things may belong to one that runs right now,
/// and so may those of the publications in `keep`.
///
/// # Errors
/// When a request fails for good.
pub async fn orphans(
    region: &Region,
    before: Timestamp,
    keep: &BTreeSet<Digest>,
) -> Result<Vec<Orphan>, AwsError> {
    let (images, snapshots, imports) = tokio::try_join!(
        image::images(region, ask::filter("root-device-type", ["ebs"])),
        observe::snapshots(region, ask::filter("tag-key", [tags::PUBLICATION])),
        imports(region, keep),
    )?;
    let kept = |publication: Option<Digest>| publication.is_some_and(|id| keep.contains(&id));
    let (dead, used) = dead_and_used(&images, |image| image.created < before && !kept(image.publication()));
    let snapshots = snapshots.iter().map(observe::read_snapshot).filter(|snapshot| {
        snapshot.started < before && !used.contains(&snapshot.id) && !kept(snapshot.publication())
    });
    let snapshots = snapshots.map(|snapshot| Orphan::Snapshot {
        id: snapshot.id,
        state: match snapshot.state {
            SnapshotState::Pending => "pending",
            SnapshotState::Completed => "completed",
            SnapshotState::Unusable => "unusable",
        },
        started: snapshot.started,
    });
    let dead = dead.into_iter().map(|image| Orphan::Image { id: image.id, name: image.name });
    // Images go first: EC2 deletes no snapshot that one refers to.
    Ok(dead.chain(imports).chain(snapshots).collect())
}

/// Kiln's images that have failed and that are `old` enough to go, and the snapshots that all others refer to.
fn dead_and_used(
    images: &[ec2::Image],
    old: impl Fn(&observed::Image) -> bool,
) -> (Vec<observed::Image>, BTreeSet<String>) {
    let (mut dead, mut used) = (Vec::new(), BTreeSet::new());
    for listed in images {
        let image = observe::read_image(listed);
        if !image::is_dead(listed) || !image.tags.contains_key(tags::PUBLICATION) {
            used.extend(image.snapshots);
        } else if image.state == "deregistered" {
            // It refers to nothing any more.
        } else if old(&image) {
            dead.push(image);
        } else {
            used.extend(image.snapshots);
        }
    }
    (dead, used)
}

/// Uploads to a bucket, of objects whose keys begin with `prefix`, that were begun before `before` and never finished.
///
/// # Errors
/// When a request fails for good.
pub async fn uploads(
    region: &Region,
    bucket: &str,
    prefix: &str,
    before: Timestamp,
) -> Result<Vec<Orphan>, AwsError> {
    let call = Call::new("s3", "ListMultipartUploads", &region.name);
    let request = region.s3.list_multipart_uploads().bucket(bucket).prefix(prefix);
    let (mut found, mut key, mut id) = (Vec::new(), None, None);
    loop {
        let page = retry::call(call, &Policy::CONTROL, || {
            request.clone().set_key_marker(key.clone()).set_upload_id_marker(id.clone()).send()
        })
        .await?;
        for upload in page.uploads.unwrap_or_default() {
            let old = upload.initiated.is_some_and(|time| Timestamp(time.secs()) < before);
            let (Some(key), Some(id), true) = (upload.key, upload.upload_id, old) else { continue };
            found.push(Orphan::Upload { bucket: bucket.to_owned(), key, id });
        }
        if page.is_truncated != Some(true) {
            return Ok(found);
        }
        (key, id) = (page.next_key_marker, page.next_upload_id_marker);
    }
}

/// Imports of Kiln's that are under way.
async fn imports(region: &Region, keep: &BTreeSet<Digest>) -> Result<Vec<Orphan>, AwsError> {
    let request = region.ec2.describe_import_snapshot_tasks();
    let tasks = ask::pages(async |token| {
        let page = ask::ec2(region, "DescribeImportSnapshotTasks", || {
            request.clone().set_next_token(token.clone()).send()
        });
        let page = page.await?;
        Ok((page.import_snapshot_tasks, page.next_token))
    });
    let tasks = match tasks.await {
        Ok(tasks) => tasks,
        // Who never imports need not be allowed to ask.
        Err(error) if matches!(error.kind, Kind::Denied | Kind::Invalid) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let open = tasks.into_iter().filter(|task| {
        let tags = ask::read_tags(task.tags());
        let active = task.snapshot_task_detail().and_then(|detail| detail.status()) == Some("active");
        let publication = tags.get(tags::PUBLICATION);
        let kept = publication.and_then(|id| id.parse().ok()).is_some_and(|id: Digest| keep.contains(&id));
        active && publication.is_some() && !kept
    });
    Ok(open.filter_map(|task| Some(Orphan::Import { id: task.import_task_id? })).collect())
}

/// Removes an orphan. One that is gone already is as good.
///
/// # Errors
/// When a request fails for good.
pub async fn remove(region: &Region, orphan: &Orphan) -> Result<Outcome, AwsError> {
    let answer = match orphan {
        Orphan::Snapshot { id, .. } => return delete_snapshot(region, id).await,
        Orphan::Image { id, .. } => {
            let request = region.ec2.deregister_image().image_id(id);
            ask::ec2(region, "DeregisterImage", || request.clone().send()).await.map(drop)
        }
        Orphan::Import { id } => {
            let request = region.ec2.cancel_import_task().import_task_id(id);
            ask::ec2(region, "CancelImportTask", || request.clone().send()).await.map(drop)
        }
        Orphan::Upload { bucket, key, id } => {
            let call = Call::new("s3", "AbortMultipartUpload", &region.name);
            let request = region.s3.abort_multipart_upload().bucket(bucket).key(key).upload_id(id);
            retry::call(call, &Policy::CONTROL, || request.clone().send()).await.map(drop)
        }
    };
    outcome(answer)
}

/// Deletes a snapshot. One that is gone already is as good; one that an image refers to stays.
pub(super) async fn delete_snapshot(region: &Region, id: &str) -> Result<Outcome, AwsError> {
    let request = region.ec2.delete_snapshot().snapshot_id(id);
    outcome(ask::ec2(region, "DeleteSnapshot", || request.clone().send()).await.map(drop))
}

fn outcome(answer: Result<(), AwsError>) -> Result<Outcome, AwsError> {
    match answer {
        Ok(()) => Ok(Outcome::Gone),
        Err(error) if error.kind == Kind::NotFound => Ok(Outcome::Gone),
        Err(error) if error.kind == Kind::Conflict => Ok(Outcome::Stays(error.message.clone())),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_use_stays_and_what_is_gone_is_gone() {
        let error =
            |kind| Err(Call::new("ec2", "DeleteSnapshot", "eu-central-1").error(kind, "in use by ami-1"));
        assert_eq!(outcome(Ok(())), Ok(Outcome::Gone));
        assert_eq!(outcome(error(Kind::NotFound)), Ok(Outcome::Gone));
        assert_eq!(outcome(error(Kind::Conflict)), Ok(Outcome::Stays("in use by ami-1".to_owned())));
        assert!(outcome(error(Kind::Denied)).is_err());
    }

    #[test]
    fn only_old_images_that_failed_go() {
        let made = |id: &str, state: &str, created: &str, own: bool| {
            let device = ec2::EbsBlockDevice::builder().snapshot_id(id.replace("ami", "snap")).build();
            let mapping = ec2::BlockDeviceMapping::builder().device_name("/dev/xvda").ebs(device).build();
            let tag = ec2::Tag::builder().key(tags::PUBLICATION).value("x").build();
            let image = ec2::Image::builder().image_id(id).state(state.into()).creation_date(created);
            let image = image.root_device_name("/dev/xvda").block_device_mappings(mapping);
            if own { image.tags(tag).build() } else { image.build() }
        };
        let images = [
            made("ami-1", "failed", "2026-09-10T00:00:00.000Z", true),
            made("ami-2", "failed", "2026-09-12T00:00:00.000Z", true),
            made("ami-3", "pending", "2026-09-10T00:00:00.000Z", true),
            made("ami-4", "failed", "2026-09-10T00:00:00.000Z", false),
            made("ami-5", "deregistered", "2026-09-10T00:00:00.000Z", true),
        ];
        let before: Timestamp = "2026-09-11T00:00:00Z".parse().unwrap();
        let (dead, used) = dead_and_used(&images, |image| image.created < before);
        assert_eq!(dead.iter().map(|image| image.id.as_str()).collect::<Vec<_>>(), ["ami-1"]);
        assert_eq!(used.into_iter().collect::<Vec<_>>(), ["snap-2", "snap-3", "snap-4"]);
    }

    #[test]
    fn orphans_are_said_in_words() {
        let orphan =
            Orphan::Snapshot { id: "snap-1".to_owned(), state: "pending", started: Timestamp(1_789_199_741) };
        assert_eq!(orphan.to_string(), "snapshot snap-1, pending, begun 2026-09-12T07:55:41Z");
        let json = serde_json::to_value(&orphan).unwrap();
        assert_eq!(json["kind"], "snapshot");
    }
}
