//! The second phase: what makes an image visible to others. Each setting is read first and only sent where it differs, so
//! that a second run changes nothing and one that was interrupted is taken up anywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use aws_sdk_ec2::types::{
    AttributeValue, CreateVolumePermission, CreateVolumePermissionModifications, LaunchPermission,
    LaunchPermissionModifications, PermissionGroup, Tag,
};
use aws_sdk_ssm::types::ParameterType;
use aws_smithy_types::DateTime;

use super::ask::{self, Note, Patience, Tell, Waiting};
use super::cloud::Region;
use super::error::{AwsError, Call};
use super::retry::{self, Policy};
use super::{image, observe};
use crate::date::{DAY, Timestamp};
use crate::publish::observed::{Details, Image, Parameter};
use crate::publish::tags;
use crate::publish::target::{LaunchPermissions, Protection, SnapshotPermissions, Target};

/// The data type that makes SSM check that a parameter names an image.
pub const DATA_TYPE: &str = "aws:ec2:image";

/// One setting that was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Tags of an image or a snapshot.
    Tags {
        /// Its id.
        id: String,
        /// Those that were set.
        keys: Vec<String>,
    },
    /// An image's description.
    Description(String),
    /// An image's instances only answer metadata requests of version 2 now.
    ImdsV2,
    /// Who may launch an image or make volumes of a snapshot.
    Permissions {
        /// The image's or snapshot's id.
        id: String,
        /// Who may now.
        added: Vec<String>,
        /// Who may no more.
        removed: Vec<String>,
    },
    /// When an image is deprecated; never, when absent.
    Deprecation(Option<Timestamp>),
    /// Whether an image is protected against deregistration.
    Protection(Option<Protection>),
    /// An SSM parameter.
    Parameter {
        /// Its name.
        name: String,
        /// The image that it named.
        from: Option<String>,
        /// The image that it names now.
        to: String,
    },
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Tags { id, keys } => write!(f, "{id}: tags {}", keys.join(", ")),
            Change::Description(text) => write!(f, "description: {text}"),
            Change::ImdsV2 => write!(f, "metadata requests of version 2 only"),
            Change::Permissions { id, added, removed } => {
                let signed =
                    |sign, list: &[String]| list.iter().map(move |who| format!("{sign}{who}")).collect();
                let all: [Vec<String>; 2] = [signed('+', added), signed('-', removed)];
                write!(f, "{id}: may be used by {}", all.concat().join(" "))
            }
            Change::Deprecation(Some(time)) => write!(f, "deprecated from {time}"),
            Change::Deprecation(None) => write!(f, "not to be deprecated"),
            Change::Protection(Some(Protection { cooldown: true })) => {
                write!(f, "protected against deregistration, also for a day after that is lifted")
            }
            Change::Protection(Some(_)) => write!(f, "protected against deregistration"),
            Change::Protection(None) => write!(f, "not protected against deregistration"),
            Change::Parameter { name, from: Some(from), to } => write!(f, "{name}: {to} instead of {from}"),
            Change::Parameter { name, from: None, to } => write!(f, "{name}: {to}"),
        }
    }
}

/// Why an image isn't released.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// A request failed.
    #[error(transparent)]
    Aws(#[from] AwsError),
    /// The image is gone.
    #[error("{region}: {image} is gone\n  next: run the same command again; it makes what is missing")]
    Gone {
        /// Where.
        region: String,
        /// The image.
        image: String,
    },
    /// A parameter exists with another data type.
    #[error(
        "{region}: the SSM parameter {name} has the data type {data_type:?}, and SSM can't make it {DATA_TYPE:?} afterwards\n  \
         next: delete it (`aws ssm delete-parameter --region {region} --name {name}`), or name another in publish.aws"
    )]
    DataType {
        /// Where.
        region: String,
        /// The parameter.
        name: String,
        /// What it has.
        data_type: String,
    },
    /// SSM took values and dropped them later.
    #[error(
        "{region}: SSM accepted {image} for {}, but after {} s the old value is still there: its check of the image failed\n  \
         next: does the image exist, and may the caller use `ec2:DescribeImages`? Then run the same command again",
        .names.join(", "), .waited.as_secs()
    )]
    NotStored {
        /// Where.
        region: String,
        /// The parameters.
        names: Vec<String>,
        /// The image that they were to name.
        image: String,
        /// How long it was waited for.
        waited: Duration,
    },
}

/// Brings tags, description, permissions, deprecation and protection of an image to what `target` says. What differs and
/// can't be changed afterwards is the plan's to refuse.
///
/// # Errors
/// When the image is gone or a request fails.
pub async fn settings(
    region: &Region,
    target: &Target,
    id: &str,
    tell: Tell<'_>,
) -> Result<Vec<Change>, ReleaseError> {
    let gone = || ReleaseError::Gone { region: region.name.clone(), image: id.to_owned() };
    let listed = image::by_id(region, id).await?.ok_or_else(gone)?;
    let (image, details) = (observe::read_image(&listed), observe::read_details(&listed));
    let mut done = Done { changes: Vec::new(), tell };
    for snapshot in &image.snapshots {
        done.note(set_tags(region, snapshot, None, &target.snapshot_tags).await?);
        done.note(share_snapshot(region, target, snapshot).await?);
    }
    done.note(set_tags(region, id, Some(&image.tags), &target.image_tags).await?);
    done.note(describe(region, target, id, &details).await?);
    done.note(require_imds_v2(region, target, id, &details).await?);
    done.note(deprecate(region, target, &image, &details).await?);
    done.note(protect(region, target, id, &details).await?);
    // The last: from here on others see it.
    done.note(share_image(region, target, id).await?);
    Ok(done.changes)
}

/// Makes the target's parameters name the image, and waits until they really do: SSM checks the image after it has
/// answered.
///
/// # Errors
/// [`ReleaseError::DataType`], [`ReleaseError::NotStored`], or when a request fails.
pub async fn parameters(
    region: &Region,
    target: &Target,
    id: &str,
    patience: Patience,
    tell: Tell<'_>,
) -> Result<Vec<Change>, ReleaseError> {
    let there = observe::parameters(region, &target.parameters).await?;
    check_types(region, &there)?;
    let stale = |there: &BTreeMap<String, Parameter>| -> BTreeSet<String> {
        let names = target.parameters.iter();
        names.filter(|name| there.get(*name).is_none_or(|p| p.value != id)).cloned().collect()
    };
    let mut open = stale(&there);
    let mut done = Done { changes: Vec::new(), tell };
    for name in &open {
        put(region, name, id).await?;
        let from = there.get(name).map(|parameter| parameter.value.clone());
        done.changes.push(Change::Parameter { name: name.clone(), from, to: id.to_owned() });
    }
    let mut waiting = Waiting::new(patience);
    while !open.is_empty() {
        open = stale(&observe::parameters(region, &open).await?).intersection(&open).cloned().collect();
        if !open.is_empty() && !waiting.pause().await? {
            return Err(ReleaseError::NotStored {
                region: region.name.clone(),
                names: open.into_iter().collect(),
                image: id.to_owned(),
                waited: waiting.so_far(),
            });
        }
    }
    done.changes.iter().for_each(|change| tell(Note::Changed(change.to_string())));
    Ok(done.changes)
}

/// What was changed so far, told as it happens.
struct Done<'a> {
    changes: Vec<Change>,
    tell: Tell<'a>,
}

impl Done<'_> {
    fn note(&mut self, change: Option<Change>) {
        let Some(change) = change else { return };
        (self.tell)(Note::Changed(change.to_string()));
        self.changes.push(change);
    }
}

/// Sets the tags that are missing or differ. Those that someone else has set stay, and what it was made for remains true.
async fn set_tags(
    region: &Region,
    id: &str,
    there: Option<&BTreeMap<String, String>>,
    wanted: &BTreeMap<String, String>,
) -> Result<Option<Change>, AwsError> {
    let asked;
    let there = match there {
        Some(there) => there,
        None => {
            asked = observe::tags_of(region, id).await?;
            &asked
        }
    };
    let differs = |(key, value): &(&String, &String)| match there.get(*key) {
        None => true,
        Some(is) => is != *value && *key != tags::PUBLICATION,
    };
    let missing: Vec<(&String, &String)> = wanted.iter().filter(differs).collect();
    if missing.is_empty() {
        return Ok(None);
    }
    let tags = missing.iter().map(|(key, value)| Tag::builder().key(*key).value(*value).build());
    let request = region.ec2.create_tags().resources(id).set_tags(Some(tags.collect()));
    ask::ec2(region, "CreateTags", || request.clone().send()).await?;
    let keys = missing.into_iter().map(|(key, _)| key.clone()).collect();
    Ok(Some(Change::Tags { id: id.to_owned(), keys }))
}

async fn describe(
    region: &Region,
    target: &Target,
    id: &str,
    there: &Details,
) -> Result<Option<Change>, AwsError> {
    if there.description == target.description {
        return Ok(None);
    }
    let text = AttributeValue::builder().value(&target.description).build();
    let request = region.ec2.modify_image_attribute().image_id(id).description(text);
    ask::ec2(region, "ModifyImageAttribute", || request.clone().send()).await?;
    Ok(Some(Change::Description(target.description.clone())))
}

/// It can be required afterwards, but never be taken back.
async fn require_imds_v2(
    region: &Region,
    target: &Target,
    id: &str,
    there: &Details,
) -> Result<Option<Change>, AwsError> {
    if there.imds_v2 || !target.imds_v2 {
        return Ok(None);
    }
    let wanted = AttributeValue::builder().value("v2.0").build();
    let request = region.ec2.modify_image_attribute().image_id(id).imds_support(wanted);
    ask::ec2(region, "ModifyImageAttribute", || request.clone().send()).await?;
    Ok(Some(Change::ImdsV2))
}

async fn share_image(region: &Region, target: &Target, id: &str) -> Result<Option<Change>, AwsError> {
    let there = observe::launch_permissions(region, id).await?;
    let (added, removed) = (less(&target.launch, &there), less(&there, &target.launch));
    if added == LaunchPermissions::default() && removed == LaunchPermissions::default() {
        return Ok(None);
    }
    let list = |permissions| Some(launch_entries(permissions)).filter(|entries| !entries.is_empty());
    let modifications =
        LaunchPermissionModifications::builder().set_add(list(&added)).set_remove(list(&removed)).build();
    let request = region.ec2.modify_image_attribute().image_id(id).launch_permission(modifications);
    ask::ec2(region, "ModifyImageAttribute", || request.clone().send()).await?;
    Ok(Some(Change::Permissions { id: id.to_owned(), added: names(&added), removed: names(&removed) }))
}

async fn share_snapshot(region: &Region, target: &Target, id: &str) -> Result<Option<Change>, AwsError> {
    let there = observe::snapshot_permissions(region, id).await?;
    let wanted = &target.snapshot;
    let entries = |from: &SnapshotPermissions, to: &SnapshotPermissions| -> Vec<CreateVolumePermission> {
        let entry = CreateVolumePermission::builder;
        let accounts = from.accounts.difference(&to.accounts).map(|who| entry().user_id(who).build());
        let all = (from.public && !to.public).then(|| entry().group(PermissionGroup::All).build());
        accounts.chain(all).collect()
    };
    let (added, removed) = (entries(wanted, &there), entries(&there, wanted));
    if added.is_empty() && removed.is_empty() {
        return Ok(None);
    }
    let who = |entries: &[CreateVolumePermission]| {
        entries.iter().map(|entry| entry.user_id().unwrap_or("everybody").to_owned()).collect()
    };
    let change = Change::Permissions { id: id.to_owned(), added: who(&added), removed: who(&removed) };
    let modifications = CreateVolumePermissionModifications::builder()
        .set_add(Some(added).filter(|entries| !entries.is_empty()))
        .set_remove(Some(removed).filter(|entries| !entries.is_empty()))
        .build();
    let request =
        region.ec2.modify_snapshot_attribute().snapshot_id(id).create_volume_permission(modifications);
    ask::ec2(region, "ModifySnapshotAttribute", || request.clone().send()).await?;
    Ok(Some(change))
}

/// What `one` has and `other` hasn't.
fn less(one: &LaunchPermissions, other: &LaunchPermissions) -> LaunchPermissions {
    let less = |a: &BTreeSet<String>, b: &BTreeSet<String>| a.difference(b).cloned().collect();
    LaunchPermissions {
        accounts: less(&one.accounts, &other.accounts),
        organizations: less(&one.organizations, &other.organizations),
        organizational_units: less(&one.organizational_units, &other.organizational_units),
        public: one.public && !other.public,
    }
}

fn launch_entries(permissions: &LaunchPermissions) -> Vec<LaunchPermission> {
    let entry = LaunchPermission::builder;
    let accounts = permissions.accounts.iter().map(|who| entry().user_id(who).build());
    let organizations = permissions.organizations.iter().map(|arn| entry().organization_arn(arn).build());
    let units =
        permissions.organizational_units.iter().map(|arn| entry().organizational_unit_arn(arn).build());
    let all = permissions.public.then(|| entry().group(PermissionGroup::All).build());
    accounts.chain(organizations).chain(units).chain(all).collect()
}

fn names(permissions: &LaunchPermissions) -> Vec<String> {
    let LaunchPermissions { accounts, organizations, organizational_units, public } = permissions;
    let all = public.then(|| "everybody".to_owned());
    accounts.iter().chain(organizations).chain(organizational_units).cloned().chain(all).collect()
}

async fn deprecate(
    region: &Region,
    target: &Target,
    image: &Image,
    there: &Details,
) -> Result<Option<Change>, AwsError> {
    let id = &image.id;
    let Some(days) = target.deprecate_after else {
        // EC2 itself gives public images a date, and there is no way without one.
        if there.deprecation.is_none() || target.launch.public {
            return Ok(None);
        }
        ask::ec2(region, "DisableImageDeprecation", || {
            region.ec2.disable_image_deprecation().image_id(id).send()
        })
        .await?;
        return Ok(Some(Change::Deprecation(None)));
    };
    let wanted = whole_minute(image.created.plus(i64::from(days) * DAY));
    if there.deprecation.is_some_and(|time| (time.0 - wanted.0).abs() < 60) {
        return Ok(None);
    }
    // A time that has passed is refused. An image that is deprecated already needs no other one.
    let soon = whole_minute(Timestamp::now().plus(180));
    if wanted < soon && there.deprecation.is_some_and(|time| time < soon) {
        return Ok(None);
    }
    let time = wanted.max(soon);
    ask::ec2(region, "EnableImageDeprecation", || {
        region.ec2.enable_image_deprecation().image_id(id).deprecate_at(DateTime::from_secs(time.0)).send()
    })
    .await?;
    Ok(Some(Change::Deprecation(Some(time))))
}

/// EC2 rounds to minutes.
fn whole_minute(time: Timestamp) -> Timestamp {
    Timestamp(time.0.div_euclid(60) * 60)
}

async fn protect(
    region: &Region,
    target: &Target,
    id: &str,
    there: &Details,
) -> Result<Option<Change>, AwsError> {
    if there.protection == target.protection {
        return Ok(None);
    }
    match target.protection {
        Some(Protection { cooldown }) => {
            ask::ec2(region, "EnableImageDeregistrationProtection", || {
                region
                    .ec2
                    .enable_image_deregistration_protection()
                    .image_id(id)
                    .with_cooldown(cooldown)
                    .send()
            })
            .await?;
        }
        None => {
            ask::ec2(region, "DisableImageDeregistrationProtection", || {
                region.ec2.disable_image_deregistration_protection().image_id(id).send()
            })
            .await?;
        }
    }
    Ok(Some(Change::Protection(target.protection)))
}

fn check_types(region: &Region, there: &BTreeMap<String, Parameter>) -> Result<(), ReleaseError> {
    match there.iter().find(|(_, parameter)| parameter.data_type != DATA_TYPE) {
        None => Ok(()),
        Some((name, parameter)) => Err(ReleaseError::DataType {
            region: region.name.clone(),
            name: name.clone(),
            data_type: parameter.data_type.clone(),
        }),
    }
}

async fn put(region: &Region, name: &str, id: &str) -> Result<(), AwsError> {
    let request = region
        .ssm
        .put_parameter()
        .name(name)
        .value(id)
        .r#type(ParameterType::String)
        .data_type(DATA_TYPE)
        .overwrite(true);
    let call = Call::new("ssm", "PutParameter", &region.name);
    retry::call(call, &Policy::CONTROL, || request.clone().send()).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn only_what_differs_is_added_and_removed() {
        let wanted = LaunchPermissions {
            accounts: set(&["1", "2"]),
            organizations: set(&["arn:o"]),
            organizational_units: set(&[]),
            public: true,
        };
        let there = LaunchPermissions {
            accounts: set(&["2", "3"]),
            organizations: set(&[]),
            organizational_units: set(&["arn:ou"]),
            public: false,
        };
        assert_eq!(names(&less(&wanted, &there)), ["1", "arn:o", "everybody"]);
        assert_eq!(names(&less(&there, &wanted)), ["3", "arn:ou"]);
        assert_eq!(less(&wanted, &wanted), LaunchPermissions::default());
        assert_eq!(launch_entries(&less(&wanted, &there)).len(), 3);
    }

    #[test]
    fn changes_are_sentences() {
        let permissions = Change::Permissions {
            id: "ami-1".to_owned(),
            added: vec!["1".to_owned(), "everybody".to_owned()],
            removed: vec!["2".to_owned()],
        };
        assert_eq!(permissions.to_string(), "ami-1: may be used by +1 +everybody -2");
        let parameter = Change::Parameter {
            name: "/a/b".to_owned(),
            from: Some("ami-0".to_owned()),
            to: "ami-1".to_owned(),
        };
        assert_eq!(parameter.to_string(), "/a/b: ami-1 instead of ami-0");
        assert_eq!(
            Change::Deprecation(Some(Timestamp(1_789_199_741))).to_string(),
            "deprecated from 2026-09-12T07:55:41Z"
        );
    }

    #[test]
    fn deprecation_is_in_whole_minutes() {
        assert_eq!(whole_minute(Timestamp(1_789_199_741)).to_string(), "2026-09-12T07:55:00Z");
        assert_eq!(whole_minute(Timestamp(-1)), Timestamp(-60));
    }
}
