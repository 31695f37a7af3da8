//! Everything that could stop a publication later, asked before the first byte: in each region all at once, each answer a
//! row of one table. Nothing is changed by asking.

use std::collections::BTreeSet;
use std::time::Duration;

use aws_sdk_ec2::types::{
    AttributeValue, CreateVolumePermission, CreateVolumePermissionModifications, SnapshotDiskContainer,
    UserBucket,
};
use aws_smithy_types::DateTime;
use serde::Serialize;

use super::cloud::Region;
use super::error::{AwsError, Call, Kind};
use super::retry::{self, Policy};
use super::{ask, copy, image, observe, release, signed};
use crate::arch::Arch;
use crate::date::{DAY, Timestamp};
use crate::publish::observed::PublicAccess;
use crate::publish::target::{BootMode, Encryption, Target, Upload};
use crate::publish::{Publication, observed, tags};
use crate::units::{Bytes, GIB};

/// Ids of the right form that nobody has: what may be done is asked without touching anything.
const NO_IMAGE: &str = "ami-00000000000000000";
const NO_SNAPSHOT: &str = "snap-00000000000000000";

/// Service Quotas' codes: AMIs, and public ones.
const IMAGES: &str = "L-B665C33B";
const PUBLIC_IMAGES: &str = "L-0E3CBAB9";

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The region.
    pub region: String,
    /// What was looked at, in a word or two.
    pub check: &'static str,
    /// What came of it.
    pub state: State,
    /// What was seen.
    pub seen: String,
    /// What to do about it; empty when it is well.
    pub next: String,
}

/// What came of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It stands in the way.
    Failed,
    /// AWS doesn't tell beforehand.
    Unknown,
    /// It is well.
    Ok,
}

/// How the image gets to a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way<'a> {
    /// Its blocks are uploaded.
    Direct,
    /// An object in a bucket is imported.
    Import,
    /// The snapshot of this region is copied.
    CopySnapshot(&'a str),
    /// The image of this region is copied.
    CopyImage(&'a str),
    /// It is there already.
    Nothing,
}

/// What a region is asked about.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// What is published.
    pub publication: &'a Publication,
    /// What it is to be there.
    pub target: &'a Target,
    /// How it gets there.
    pub way: Way<'a>,
    /// How long it is expected to take.
    pub takes: Duration,
}

/// All answers of one region, what stands in the way first.
///
/// # Errors
/// Only when the user asks to stop; everything else is an answer.
pub async fn region(region: &Region, question: &Question<'_>) -> Result<Vec<Finding>, AwsError> {
    let table = Table { region };
    let Question { publication, target, .. } = *question;
    let mut found = vec![ok(&region.name, "caller", &region.arn), table.enabled().await];
    // A region that can't be reached at all is told so once, not by every check.
    if found[1].state != State::Failed {
        let (name, register, way, settings, encryption, public, quota, parameters) = tokio::join!(
            table.name(target),
            table.register(target),
            table.way(target, question.way),
            table.settings(target),
            table.encryption(target),
            table.public(target),
            table.quota(target),
            table.parameters(target),
        );
        found.extend([name, register]);
        for more in [way, settings, encryption, public, quota, parameters] {
            found.extend(more);
        }
    }
    found.extend(combination(&region.name, publication, target));
    found.extend(session(&region.name, region.remaining(), question.takes));
    crate::host::interrupt::check()?;
    found.sort_by_key(|finding| finding.state);
    Ok(found)
}

/// Makes answers about one region.
struct Table<'a> {
    region: &'a Region,
}

impl Table<'_> {
    async fn enabled(&self) -> Finding {
        let name = &self.region.name;
        let answer = ask::ec2(self.region, "DescribeRegions", || {
            self.region.ec2.describe_regions().region_names(name).all_regions(true).send()
        });
        let regions = match answer.await {
            Ok(answer) => answer.regions.unwrap_or_default(),
            Err(error) if error.kind == Kind::Denied => {
                return unknown(name, "region", "the caller may not ask whether the account uses it");
            }
            Err(error) => return self.failed("region", &error),
        };
        match regions.first().and_then(|region| region.opt_in_status()) {
            Some("not-opted-in") => failed(
                name,
                "region",
                "the account has not opted in to it",
                format!(
                    "aws account enable-region --region-name {name}, or leave it out of publish.aws.regions"
                ),
            ),
            Some(status) => ok(name, "region", status),
            None => unknown(name, "region", "EC2 doesn't say whether the account uses it"),
        }
    }

    async fn name(&self, target: &Target) -> Finding {
        let region = &self.region.name;
        let named = match image::images(self.region, ask::filter("name", [&target.name])).await {
            Ok(named) => named,
            Err(error) => return self.failed("name", &error),
        };
        let named: Vec<observed::Image> = named.iter().map(observe::read_image).collect();
        let other = |image: &&observed::Image| {
            let same = image.tags.get(tags::PUBLICATION).is_some_and(|id| *id == target.id.to_string());
            !same && !["deregistered", "failed"].contains(&image.state.as_str())
        };
        match named.iter().find(other) {
            None => ok(region, "name", &target.name),
            Some(image) => failed(
                region,
                "name",
                format!("{} has the name {:?} already and isn't this image", image.id, target.name),
                format!("make publish.aws.name different, or retire {}", image.id),
            ),
        }
    }

    async fn register(&self, target: &Target) -> Finding {
        let request = image::request(&self.region.ec2, target, NO_SNAPSHOT).dry_run(true);
        let answer = ask::ec2(self.region, "RegisterImage", || request.clone().send()).await;
        self.dry_run("register", "ec2:RegisterImage", answer.map(drop))
    }

    async fn way(&self, target: &Target, way: Way<'_>) -> Vec<Finding> {
        let source = |region, id| copy::Source { region, id, encrypted: false };
        match way {
            Way::Nothing => Vec::new(),
            Way::Direct => vec![self.direct().await],
            Way::CopySnapshot(from) => {
                let request =
                    copy::snapshot_request(&self.region.ec2, target, source(from, NO_SNAPSHOT)).dry_run(true);
                let answer = ask::ec2(self.region, "CopySnapshot", || request.clone().send()).await;
                vec![self.dry_run("copy", "ec2:CopySnapshot", answer.map(drop))]
            }
            Way::CopyImage(from) => {
                let request =
                    copy::image_request(&self.region.ec2, target, source(from, NO_IMAGE)).dry_run(true);
                let answer = ask::ec2(self.region, "CopyImage", || request.clone().send()).await;
                vec![self.dry_run("copy", "ec2:CopyImage", answer.map(drop))]
            }
            Way::Import => match &target.upload {
                Upload::S3Import { bucket, service_role, .. } => {
                    let (bucket, import) =
                        tokio::join!(self.bucket(bucket), self.import(bucket, service_role.clone()));
                    vec![bucket, import]
                }
                Upload::EbsDirect(_) => Vec::new(),
            },
        }
    }

    /// The EBS direct APIs have no dry run. A snapshot that doesn't exist can't be completed, but whoever may not
    /// complete any is told that instead.
    async fn direct(&self) -> Finding {
        let call = Call::new("ebs", "CompleteSnapshot", &self.region.name);
        let answer = retry::call(call, &Policy::CONTROL, || {
            self.region.ebs.complete_snapshot().snapshot_id(NO_SNAPSHOT).changed_blocks_count(0).send()
        });
        match answer.await.map(drop) {
            Err(error) if matches!(error.kind, Kind::NotFound | Kind::Invalid) => {
                ok(&self.region.name, "upload", "EBS's direct APIs answer")
            }
            Err(error) if error.kind == Kind::Denied => self.failed("upload", &error),
            Err(error) => unknown(&self.region.name, "upload", error.to_string()),
            Ok(()) => unknown(&self.region.name, "upload", "EBS completed a snapshot that can't exist"),
        }
    }

    async fn bucket(&self, bucket: &str) -> Finding {
        let region = &self.region.name;
        let call = Call::new("s3", "HeadBucket", region);
        let answer =
            retry::call(call, &Policy::CONTROL, || self.region.s3.head_bucket().bucket(bucket).send()).await;
        let next = format!("create it in {region}, or name another in publish.aws.upload.bucket");
        match answer {
            Ok(head) => match head.bucket_region() {
                Some(other) if other != region.as_str() => failed(
                    region,
                    "bucket",
                    format!("{bucket} lies in {other}, an import reads its own region"),
                    next,
                ),
                _ => ok(region, "bucket", bucket),
            },
            Err(error) if error.kind == Kind::NotFound => {
                failed(region, "bucket", format!("there is no bucket {bucket}"), next)
            }
            Err(error) => self.failed("bucket", &error),
        }
    }

    async fn import(&self, bucket: &str, role: Option<String>) -> Finding {
        let place = UserBucket::builder().s3_bucket(bucket).s3_key("kiln").build();
        let disk = SnapshotDiskContainer::builder().format("RAW").user_bucket(place).build();
        let request =
            self.region.ec2.import_snapshot().disk_container(disk).set_role_name(role).dry_run(true);
        let answer = ask::ec2(self.region, "ImportSnapshot", || request.clone().send()).await;
        self.dry_run("import", "ec2:ImportSnapshot", answer.map(drop))
    }

    /// Whether what comes after the image is allowed: asked about one that doesn't exist.
    async fn settings(&self, target: &Target) -> Vec<Finding> {
        let ec2 = &self.region.ec2;
        let mut found = Vec::new();
        if target.launch != Default::default() {
            let text = AttributeValue::builder().value(&target.description).build();
            let request = ec2.modify_image_attribute().image_id(NO_IMAGE).description(text).dry_run(true);
            let answer = ask::ec2(self.region, "ModifyImageAttribute", || request.clone().send()).await;
            found.push(self.dry_run("sharing", "ec2:ModifyImageAttribute", answer.map(drop)));
        }
        if target.snapshot != Default::default() {
            let nobody = CreateVolumePermission::builder().user_id(&self.region.account).build();
            let change = CreateVolumePermissionModifications::builder().remove(nobody).build();
            let request = ec2
                .modify_snapshot_attribute()
                .snapshot_id(NO_SNAPSHOT)
                .create_volume_permission(change)
                .dry_run(true);
            let answer = ask::ec2(self.region, "ModifySnapshotAttribute", || request.clone().send()).await;
            found.push(self.dry_run("sharing", "ec2:ModifySnapshotAttribute", answer.map(drop)));
        }
        if target.deprecate_after.is_some() {
            let time = DateTime::from_secs(Timestamp::now().plus(DAY).0);
            let request = ec2.enable_image_deprecation().image_id(NO_IMAGE).deprecate_at(time).dry_run(true);
            let answer = ask::ec2(self.region, "EnableImageDeprecation", || request.clone().send()).await;
            found.push(self.dry_run("deprecation", "ec2:EnableImageDeprecation", answer.map(drop)));
        }
        if target.protection.is_some() {
            let request = ec2.enable_image_deregistration_protection().image_id(NO_IMAGE).dry_run(true);
            let answer =
                ask::ec2(self.region, "EnableImageDeregistrationProtection", || request.clone().send()).await;
            let permission = "ec2:EnableImageDeregistrationProtection";
            found.push(self.dry_run("protection", permission, answer.map(drop)));
        }
        found
    }

    /// Whether the snapshot will be encrypted, and whether its key serves.
    async fn encryption(&self, target: &Target) -> Vec<Finding> {
        let region = &self.region.name;
        let (default, key) = tokio::join!(observe::encryption_by_default(self.region), self.default_key());
        let default = match default {
            Ok(default) => default,
            Err(error) => return vec![self.failed("encryption", &error)],
        };
        if target.encryption == Encryption::AccountDefault && !default {
            return vec![ok(region, "encryption", "none")];
        }
        let why = if default { " (the account encrypts by default)" } else { "" };
        if target.launch.public || target.snapshot.public {
            let next = format!(
                "leave out publish.aws.encrypt and kms_key; aws ec2 disable-ebs-encryption-by-default --region {region}"
            );
            let seen = format!("the snapshot will be encrypted{why}, and what is encrypted can't be public");
            return vec![failed(region, "encryption", seen, next)];
        }
        match (&target.encryption, &key) {
            (Encryption::Key(key), _) => self.key(target, key, why).await,
            (_, Ok(key)) => self.key(target, key, why).await,
            (_, Err(error)) => vec![self.failed("encryption", error)],
        }
    }

    /// Whether a key can be used, by the caller and by those whom the image is shared with.
    async fn key(&self, target: &Target, name: &str, why: &str) -> Vec<Finding> {
        let region = &self.region.name;
        let next = || "name another in publish.aws.kms_key, or put this one right in KMS".to_owned();
        let key = match signed::key(self.region, name).await {
            Ok(key) => key,
            Err(error) if error.kind == Kind::NotFound => {
                return vec![failed(region, "key", format!("there is no key {name}{why}"), next())];
            }
            Err(error) => return vec![unknown(region, "key", error.to_string())],
        };
        if key.state != "Enabled" || !key.symmetric {
            let what = if key.symmetric { key.state.as_str() } else { "not symmetric, as EBS needs it" };
            return vec![failed(region, "key", format!("{name}{why} is {what}"), next())];
        }
        let shared = target.launch != Default::default() || target.snapshot != Default::default();
        if shared && key.aws_managed {
            let seen = format!("the snapshot will be encrypted{why} under {name}, which nobody else can use");
            let next = "give publish.aws.kms_key: a key whose policy lets the other accounts use it";
            return vec![failed(region, "key", seen, next.to_owned())];
        }
        let used = ok(region, "key", format!("{}{why}", key.arn));
        let others: BTreeSet<&String> = target.launch.accounts.union(&target.snapshot.accounts).collect();
        let others = others.into_iter().filter(|account| **account != self.region.account);
        let policy = match signed::key_policy(self.region, &key.arn).await {
            Ok(policy) => policy,
            Err(error) => return vec![used, unknown(region, "key", error.to_string())],
        };
        let unnamed = others.filter(|account| !policy.contains(account.as_str()));
        let unnamed = unnamed.map(|account| {
            let mut finding =
                unknown(region, "key", format!("its policy doesn't name the account {account}"));
            finding.next =
                format!("let {account} use the key: kms:Decrypt, kms:CreateGrant, kms:DescribeKey");
            finding
        });
        std::iter::once(used).chain(unnamed).collect()
    }

    /// How many more images the account may have, and public ones.
    async fn quota(&self, target: &Target) -> Vec<Finding> {
        let images = match image::images(self.region, ask::filter("image-type", ["machine"])).await {
            Ok(images) => images,
            Err(error) => return vec![self.failed("quota", &error)],
        };
        let public = images.iter().filter(|image| image.public == Some(true)).count();
        let mut found = vec![self.room("images", IMAGES, images.len()).await];
        if target.launch.public {
            found.push(self.room("public images", PUBLIC_IMAGES, public).await);
        }
        found
    }

    async fn room(&self, what: &str, code: &str, there: usize) -> Finding {
        let region = &self.region.name;
        match signed::quota(self.region, "ec2", code).await {
            Ok(quota) if (there as f64) < quota => ok(region, "quota", format!("{there} of {quota} {what}")),
            Ok(quota) => failed(
                region,
                "quota",
                format!("{there} of {quota} {what} are there already"),
                format!("`kiln retire` removes old ones, or ask for a higher quota {code} of ec2"),
            ),
            Err(error) => unknown(region, "quota", error.to_string()),
        }
    }

    async fn default_key(&self) -> Result<String, AwsError> {
        let answer = ask::ec2(self.region, "GetEbsDefaultKmsKeyId", || {
            self.region.ec2.get_ebs_default_kms_key_id().send()
        });
        Ok(answer.await?.kms_key_id.unwrap_or_else(|| "alias/aws/ebs".to_owned()))
    }

    async fn public(&self, target: &Target) -> Vec<Finding> {
        let (images, snapshots) = match observe::public_access(self.region, target).await {
            Ok(both) => both,
            Err(error) => return vec![self.failed("public", &error)],
        };
        let images = target.launch.public.then(|| self.public_access("image", images));
        let snapshots = target.snapshot.public.then(|| self.public_access("snapshot", snapshots));
        images.into_iter().chain(snapshots).collect()
    }

    fn public_access(&self, what: &str, access: PublicAccess) -> Finding {
        let region = &self.region.name;
        match access {
            PublicAccess::Allowed => ok(region, "public", format!("{what}s may be")),
            PublicAccess::BlocksNew | PublicAccess::BlocksAll => failed(
                region,
                "public",
                format!("the account blocks public {what}s"),
                format!(
                    "aws ec2 disable-{what}-block-public-access --region {region}, or don't share with everybody"
                ),
            ),
            PublicAccess::Unknown => {
                unknown(region, "public", format!("EC2 doesn't say whether public {what}s are blocked"))
            }
        }
    }

    async fn parameters(&self, target: &Target) -> Vec<Finding> {
        let region = &self.region.name;
        if target.parameters.is_empty() {
            return Vec::new();
        }
        let there = match observe::parameters(self.region, &target.parameters).await {
            Ok(there) => there,
            Err(error) => return vec![self.failed("parameters", &error)],
        };
        let wrong: BTreeSet<&String> = there
            .iter()
            .filter(|(_, parameter)| parameter.data_type != release::DATA_TYPE)
            .map(|(name, _)| name)
            .collect();
        if wrong.is_empty() {
            return vec![unknown(
                region,
                "parameters",
                "can be read; SSM has no dry run of ssm:PutParameter",
            )];
        }
        let failed = |name: &String| {
            failed(
                region,
                "parameters",
                format!("{name} exists, but not as {}, and SSM can't change that", release::DATA_TYPE),
                format!("aws ssm delete-parameter --region {region} --name {name}, or name another"),
            )
        };
        wrong.into_iter().map(failed).collect()
    }

    /// EC2 answers a dry run with an error in any case.
    fn dry_run(&self, check: &'static str, permission: &str, answer: Result<(), AwsError>) -> Finding {
        let region = &self.region.name;
        match answer {
            Err(error) if error.kind == Kind::DryRun => ok(region, check, permission),
            Err(error) if error.kind == Kind::NotFound => {
                unknown(region, check, format!("{permission}: EC2 looks for the resource first"))
            }
            Err(error) if error.kind == Kind::Denied => failed(
                region,
                check,
                format!("the caller may not {permission}"),
                format!("allow {permission}; docs/guide/publishing.md has the policies"),
            ),
            Err(error) => self.failed(check, &error),
            Ok(()) => unknown(region, check, format!("{permission}: EC2 doesn't know dry runs")),
        }
    }

    fn failed(&self, check: &'static str, error: &AwsError) -> Finding {
        failed(&self.region.name, check, error.to_string(), error.hint().unwrap_or_default())
    }
}

/// What of the target contradicts itself or the image.
fn combination(region: &str, publication: &Publication, target: &Target) -> Vec<Finding> {
    let mut found = Vec::new();
    let boot = target.boot_mode.as_str();
    found.push(if target.nitro_tpm && target.boot_mode != BootMode::Uefi {
        let seen = format!("a NitroTPM needs the boot mode uefi, not {boot}");
        failed(region, "boot", seen, "set publish.aws.boot_mode = 'uefi, or leave out nitro_tpm".to_owned())
    } else if target.arch == Arch::Arm64 && target.boot_mode != BootMode::Uefi {
        let seen = format!("arm64 instances boot by UEFI only, not {boot}");
        failed(region, "boot", seen, "set publish.aws.boot_mode = 'uefi".to_owned())
    } else {
        ok(region, "boot", format!("{}, {boot}", image::architecture(target.arch).as_str()))
    });
    let volume = Bytes(u64::from(target.volume.size) * GIB);
    found.push(if volume < publication.size {
        let seen = format!("the volume has {volume}, the image needs at least {}", publication.size);
        failed(region, "volume", seen, "set publish.aws.volume.size".to_owned())
    } else {
        ok(region, "volume", format!("{volume} for {}", publication.size))
    });
    found
}

/// Whether the caller's session lasts long enough.
fn session(region: &str, left: Option<Duration>, takes: Duration) -> Option<Finding> {
    let minutes = |time: Duration| time.as_secs().div_ceil(60);
    let left = left?;
    Some(if left < takes {
        let seen =
            format!("the session ends in {} minutes, about {} are needed", minutes(left), minutes(takes));
        failed(
            region,
            "session",
            seen,
            "sign in again, or ask for a longer `duration` of the role".to_owned(),
        )
    } else {
        ok(region, "session", format!("{} minutes left", minutes(left)))
    })
}

fn ok(region: &str, check: &'static str, seen: impl Into<String>) -> Finding {
    Finding { region: region.to_owned(), check, state: State::Ok, seen: seen.into(), next: String::new() }
}

fn unknown(region: &str, check: &'static str, seen: impl Into<String>) -> Finding {
    let next = "nothing yet: the call itself will tell".to_owned();
    Finding { region: region.to_owned(), check, state: State::Unknown, seen: seen.into(), next }
}

fn failed(region: &str, check: &'static str, seen: impl Into<String>, next: String) -> Finding {
    Finding { region: region.to_owned(), check, state: State::Failed, seen: seen.into(), next }
}
