//! One region's image: by whichever way was chosen for it, from wherever an earlier run stopped.

use std::sync::Arc;
use std::time::Duration;

use super::sources::Sources;
use super::{DeliverError, Delivered, Delivery, Event};
use crate::aws::ask::{Note, Patience, Waiting};
use crate::aws::cloud::Region;
use crate::aws::copy::{self, Source};
use crate::aws::error::{AwsError, Kind};
use crate::aws::retire::{self, Orphan};
use crate::aws::snapshot::import::{Import, import};
use crate::aws::snapshot::pace::Pace;
use crate::aws::snapshot::{self, Listener, Make, Progress, SnapshotError, Start, Wait};
use crate::aws::{image, signed};
use crate::publish::blocks::{Parent, Sending, client_token};
use crate::publish::observed;
use crate::publish::plan::{Action, RegionPlan, Way};
use crate::publish::target::{Encryption, Upload};
use crate::publish::{Target, tags};

/// How long an image or a copy may take.
const AVAILABLE: Patience = Patience::minutes(120);
/// How long a snapshot that was begun just now may stay invisible.
const APPEARS: Patience = Patience {
    first: Duration::from_millis(200),
    most: Duration::from_secs(2),
    limit: Duration::from_secs(15),
};
/// How often a snapshot that turned out to be of no use is begun anew.
const GENERATIONS: u32 = 8;

/// An image on its way to a region.
pub(super) struct Ship<'a> {
    pub(super) delivery: &'a Delivery<'a>,
    pub(super) sources: &'a Sources,
    pub(super) region: &'a Region,
    pub(super) seen: &'a observed::Region,
    pub(super) target: &'a Target,
    pub(super) planned: &'a RegionPlan,
}

/// What a way to a snapshot cost.
struct Cost {
    way: &'static str,
    sent: u64,
}

impl Cost {
    fn of(way: &'static str) -> Cost {
        Cost { way, sent: 0 }
    }
}

impl Listener for Ship<'_> {
    fn progress(&self, progress: Progress) {
        self.tell(Event::Progress(progress));
    }

    fn percent(&self, percent: u8) {
        self.tell(Event::Percent(percent));
    }
}

impl Ship<'_> {
    fn tell(&self, event: Event) {
        (self.delivery.tell)(&self.target.region, event);
    }

    fn doing(&self, what: impl Into<String>) {
        self.tell(Event::Doing(what.into()));
    }

    /// The image, which can be launched then.
    pub(super) async fn make(&self) -> Result<Delivered, DeliverError> {
        let (id, cost) = match &self.planned.action {
            Action::Nothing { image } | Action::Change { image } => (image.clone(), Cost::of("there")),
            Action::Refused { reasons } => return Err(DeliverError::Unseen(reasons.join("; "))),
            Action::Unreachable { reason } => return Err(DeliverError::Unseen(reason.clone())),
            Action::Create { way, replaces } => {
                if let Some(failed) = replaces {
                    let orphan = Orphan::Image { id: failed.clone(), name: self.target.name.clone() };
                    retire::remove(self.region, &orphan).await?;
                    self.tell(Event::Note(Note::Changed(format!("removed {failed}, which had failed"))));
                }
                self.create(way).await?
            }
        };
        let ami = image::available(self.region, &id, AVAILABLE, &self.note()).await?;
        let snapshot = ami.snapshots.first().cloned().unwrap_or_default();
        self.sources.has_image(&self.target.region, &snapshot, &ami.id);
        if matches!(self.planned.action, Action::Create { .. }) {
            self.sweep(&ami.snapshots).await?;
        }
        let skipped = self.delivery.blocks.size.saturating_sub(cost.sent);
        let (way, sent) = (cost.way, cost.sent);
        Ok(Delivered { ami, way, sent, skipped, seconds: 0.0, changes: Vec::new(), released: None })
    }

    fn note(&self) -> impl Fn(Note) + Send + Sync {
        |note| self.tell(Event::Note(note))
    }

    /// The new image's id.
    async fn create(&self, way: &Way) -> Result<(String, Cost), DeliverError> {
        let (snapshot, cost) = match way {
            Way::CopyImage { from } => match self.copy_of_image(from).await? {
                Some(id) => return Ok((id, Cost::of("copy-image"))),
                None => self.sent(None).await?,
            },
            Way::CopySnapshot { from } => self.copy_of_snapshot(from).await?,
            Way::Register { snapshot } => (snapshot.clone(), Cost::of("register")),
            Way::Await { snapshot, .. } => {
                copy::completed(self.region, snapshot, AVAILABLE, &self.note()).await?;
                (snapshot.clone(), Cost::of("copy-snapshot"))
            }
            Way::Delta { parent, .. } => self.sent(Some(parent)).await?,
            Way::Resume { snapshot, .. } => {
                let begun = self.seen.snapshot(snapshot);
                self.sent(begun.and_then(|s| s.tags.get(tags::PARENT)).map(String::as_str)).await?
            }
            Way::Upload { .. } | Way::S3Import { .. } => self.sent(None).await?,
        };
        self.sources.has_snapshot(&self.target.region, &snapshot);
        self.doing("registering");
        let id = image::register(self.region, self.target, &snapshot, &self.note()).await?;
        Ok((id, cost))
    }

    /// Copies an image; `None` when there is none to be copied.
    async fn copy_of_image(&self, from: &str) -> Result<Option<String>, DeliverError> {
        self.doing(format!("waiting for the image in {from}"));
        let Some(source) = self.sources.image(from).await else {
            self.doing(format!("{from} has none: uploading instead"));
            return Ok(None);
        };
        self.doing(format!("copying {source} from {from}"));
        let source = Source { region: from, id: &source, encrypted: self.encrypted_in(from) };
        Ok(Some(copy::image(self.region, self.target, source, &self.note()).await?))
    }

    async fn copy_of_snapshot(&self, from: &str) -> Result<(String, Cost), DeliverError> {
        self.doing(format!("waiting for the snapshot in {from}"));
        let Some(source) = self.sources.snapshot(from).await else {
            self.doing(format!("{from} has none: uploading instead"));
            return self.sent(None).await;
        };
        self.doing(format!("copying {source} from {from}"));
        let source = Source { region: from, id: &source, encrypted: self.encrypted_in(from) };
        let id = copy::snapshot(self.region, self.target, source, &self.note()).await?;
        copy::completed(self.region, &id, AVAILABLE, &self.note()).await?;
        Ok((id, Cost::of("copy-snapshot")))
    }

    /// A complete snapshot of bytes that were sent from here, as far as they weren't there.
    async fn sent(&self, parent: Option<&str>) -> Result<(String, Cost), DeliverError> {
        match &self.target.upload {
            Upload::EbsDirect(_) => self.uploaded(parent).await,
            Upload::S3Import { bucket, prefix, service_role } => {
                self.imported(bucket, prefix, service_role.as_deref()).await
            }
        }
    }

    async fn imported(
        &self,
        bucket: &str,
        prefix: &str,
        role: Option<&str>,
    ) -> Result<(String, Cost), DeliverError> {
        self.doing(format!("uploading to the bucket {bucket}"));
        let key = format!("{prefix}{}.raw", self.target.id);
        let (encrypted, kms_key) = encryption(&self.target.encryption);
        let job = Import {
            s3: &self.region.s3,
            ec2: &self.region.ec2,
            region: &self.region.name,
            bucket,
            key: &key,
            image: &self.delivery.image,
            description: &self.target.name,
            tags: &self.target.snapshot_tags,
            encrypted,
            kms_key,
            role,
            token: &client_token(&[&self.target.id.to_string(), "import"]),
            wait: Wait::default(),
            listener: self,
        };
        let imported = import(&job).await?;
        Ok((imported.snapshot, Cost { way: "import", sent: imported.sent }))
    }

    async fn uploaded(&self, parent: Option<&str>) -> Result<(String, Cost), DeliverError> {
        let encrypted = self.seen.encrypts(&self.target.encryption);
        let parent = parent.and_then(|id| self.parent(id));
        let known = |image: &_| (self.delivery.known)(image);
        let (sending, why_all) = self.delivery.blocks.sending(parent.as_ref(), encrypted, known);
        self.tell(Event::Sending {
            blocks: sending.blocks.len() as u64,
            bytes: sending.bytes(),
            of: self.delivery.blocks.classes.len() as u64,
            parent: sending.parent.clone(),
            why_all: why_all
                .map(|why| self.planned.no_delta().map_or_else(|| why.to_string(), str::to_owned)),
        });
        let way = if sending.parent.is_some() { "delta" } else { "upload" };
        let begun = self.begun(&sending).await?;
        let job = Make {
            ebs: &self.region.ebs,
            ec2: &self.region.ec2,
            region: &self.region.name,
            image: &self.delivery.image,
            sending: &sending,
            journals: &self.delivery.journals,
            patience: snapshot::Patience::default(),
            wait: Wait::default(),
            pace: Arc::new(Pace::default()),
            listener: self,
        };
        let uploaded = snapshot::make(&job, &begun).await?;
        Ok((begun.snapshot, Cost { way, sent: uploaded.sent * crate::artifact::BLOCK }))
    }

    /// Whether the snapshot in another region of the publication is encrypted.
    fn encrypted_in(&self, region: &str) -> bool {
        let seen = self.delivery.observed.get(region).and_then(|seen| seen.as_ref().ok());
        let target = self.delivery.publication.targets.get(region);
        seen.zip(target).is_some_and(|(seen, target)| seen.encrypts(&target.encryption))
    }

    /// The snapshot on top of which changed blocks go.
    fn parent(&self, id: &str) -> Option<Parent> {
        let snapshot = self.seen.snapshot(id)?;
        Some(Parent {
            snapshot: snapshot.id.clone(),
            encrypted: snapshot.encrypted,
            volume_size: snapshot.volume_size,
            image: snapshot.digest()?,
        })
    }

    /// Begins a snapshot; one that an earlier run began is gone on with, one that failed or is gone is begun anew.
    async fn begun(&self, sending: &Sending) -> Result<snapshot::Begun, DeliverError> {
        let parent = sending.parent.as_deref().unwrap_or_default();
        let mut tags = self.target.snapshot_tags.clone();
        if !parent.is_empty() {
            tags.insert(tags::PARENT.to_owned(), parent.to_owned());
        }
        let (encrypted, key) = encryption(&self.target.encryption);
        let key = match key {
            Some(key) => Some(key_arn(key, self.region).await?),
            None => None,
        };
        let (id, all) = (self.target.id.to_string(), sending.id().to_string());
        for generation in 0..GENERATIONS {
            // What is sent is part of it: a snapshot that was begun for other blocks is another one.
            let token = client_token(&[&id, "snapshot", parent, &all, &generation.to_string()]);
            let start = Start {
                volume_size: sending.volume_size,
                parent: sending.parent.as_deref(),
                description: &self.target.name,
                tags: &tags,
                encrypted,
                kms_key: key.as_deref(),
                token: &token,
            };
            let begun = snapshot::start(&self.region.ebs, &self.region.name, &start).await;
            // With this token other things were asked for before, of which nothing is left that serves.
            if begun.as_ref().is_err_and(is_conflict) {
                continue;
            }
            let begun = begun?;
            if !begun.failed && self.is_there(&begun.snapshot).await? {
                self.tell(Event::Note(Note::Made(begun.snapshot.clone())));
                return Ok(begun);
            }
        }
        Err(SnapshotError::Failed {
            snapshot: format!("every snapshot of {}", self.target.name),
            state: "error".to_owned(),
            message: String::new(),
        }
        .into())
    }

    /// Whether a snapshot that EBS named as begun is there. For a token that was used before EBS names the snapshot that
    /// was begun then, even when it has been deleted since; a new one may take a while to be seen.
    async fn is_there(&self, id: &str) -> Result<bool, AwsError> {
        if self.seen.snapshot(id).is_some() {
            return Ok(true);
        }
        let mut waiting = Waiting::new(APPEARS);
        loop {
            match copy::by_id(self.region, id).await? {
                Some(found) => return Ok(!copy::is_dead(&found)),
                None if !waiting.pause().await? => break,
                None => {}
            }
        }
        self.tell(Event::Note(Note::Changed(format!("{id} is gone: a new snapshot is begun"))));
        // If it shows after all, nobody would ever use it.
        copy::delete(self.region, id).await?;
        Ok(false)
    }

    /// Removes snapshots that earlier, interrupted runs of this publication left and that its image doesn't use.
    async fn sweep(&self, used: &[String]) -> Result<(), DeliverError> {
        let left = self.seen.snapshots.iter().filter(|s| s.publication() == Some(self.target.id));
        for snapshot in left.filter(|s| !used.contains(&s.id)) {
            if retire::delete_snapshot(self.region, &snapshot.id).await? == retire::Outcome::Gone {
                self.tell(Event::Note(Note::Changed(format!("removed {}, which nothing uses", snapshot.id))));
            }
        }
        Ok(())
    }
}

fn is_conflict(error: &SnapshotError) -> bool {
    matches!(error, SnapshotError::Aws(error) if error.kind == Kind::Conflict)
}

fn encryption(wanted: &Encryption) -> (bool, Option<&str>) {
    match wanted {
        Encryption::AccountDefault => (false, None),
        Encryption::DefaultKey => (true, None),
        Encryption::Key(key) => (true, Some(key)),
    }
}

/// The ARN of a key that may be given as its id or alias: EBS takes nothing else. Who may not ask KMS gets the ARN that the
/// key has in the caller's own account.
async fn key_arn(key: &str, region: &Region) -> Result<String, AwsError> {
    if key.starts_with("arn:") {
        return Ok(key.to_owned());
    }
    match signed::key(region, key).await {
        Ok(key) => Ok(key.arn),
        Err(error) if error.kind == Kind::Denied => {
            let name = if key.starts_with("alias/") { key.to_owned() } else { format!("key/{key}") };
            Ok(format!("arn:{}:kms:{}:{}:{name}", partition(&region.name), region.name, region.account))
        }
        Err(error) => Err(error),
    }
}

/// The partition that a region lies in.
fn partition(region: &str) -> &'static str {
    match region {
        name if name.starts_with("cn-") => "aws-cn",
        name if name.starts_with("us-gov-") => "aws-us-gov",
        _ => "aws",
    }
}
