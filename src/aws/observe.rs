//! What a region has already: few calls, all of them at once, none of which changes anything.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_ec2::types::{
    self as ec2, ImageAttributeName, ImdsSupportValues, PermissionGroup, SnapshotAttributeName,
    SnapshotBlockPublicAccessState, TpmSupportValues,
};

use super::ask;
use super::cloud::Region;
use super::error::{AwsError, Call, Kind};
use super::image;
use super::retry::{self, Policy};
use crate::date::Timestamp;
use crate::publish::observed::{
    self, Details, Image, ObservedVolume, Parameter, PublicAccess, Snapshot, SnapshotState,
};
use crate::publish::tags;
use crate::publish::target::{BootMode, LaunchPermissions, Protection, SnapshotPermissions, Target};

/// How many parameters one GetParameters may name.
const PARAMETERS: usize = 10;

/// What `region` has that concerns the image of `system` that `target` describes.
///
/// # Errors
/// When a request fails for good.
pub async fn region(region: &Region, system: &str, target: &Target) -> Result<observed::Region, AwsError> {
    let tag = format!("tag:{}", tags::SYSTEM);
    let (named, tagged, snapshots, encryption_by_default, parameters, (public_images, public_snapshots)) = tokio::try_join!(
        image::images(region, ask::filter("name", [&target.name])),
        image::images(region, ask::filter(&tag, [system])),
        snapshots(region, ask::filter(&tag, [system])),
        encryption_by_default(region),
        parameters(region, &target.parameters),
        public_access(region, target),
    )?;
    let mut images: BTreeMap<String, Image> = BTreeMap::new();
    for listed in tagged.iter().chain(&named) {
        images.insert(listed.image_id.clone().unwrap_or_default(), read_image(listed));
    }
    let mut snapshots: Vec<Snapshot> = snapshots.iter().map(read_snapshot).collect();
    for listed in tagged.iter().chain(&named).filter(|listed| listed.name() == Some(&target.name)) {
        let Some(image) = images.get_mut(listed.image_id().unwrap_or_default()) else { continue };
        if image.details.is_none() {
            image.details = Some(details(region, listed).await?);
            permissions(region, &image.snapshots, &mut snapshots).await?;
        }
    }
    Ok(observed::Region {
        account: region.account.clone(),
        encryption_by_default,
        images: images.into_values().collect(),
        snapshots,
        parameters,
        public_images,
        public_snapshots,
    })
}

/// Own snapshots that a filter lets through, in whatever state.
pub(super) async fn snapshots(region: &Region, filter: ec2::Filter) -> Result<Vec<ec2::Snapshot>, AwsError> {
    let request = region.ec2.describe_snapshots().owner_ids("self").filters(filter);
    ask::pages(async |token| {
        let page =
            ask::ec2(region, "DescribeSnapshots", || request.clone().set_next_token(token.clone()).send());
        let page = page.await?;
        Ok((page.snapshots, page.next_token))
    })
    .await
}

/// Whether new snapshots are encrypted although nobody asks for it.
///
/// # Errors
/// When the request fails for good.
pub async fn encryption_by_default(region: &Region) -> Result<bool, AwsError> {
    let answer =
        ask::ec2(region, "GetEbsEncryptionByDefault", || region.ec2.get_ebs_encryption_by_default().send());
    Ok(answer.await?.ebs_encryption_by_default.unwrap_or(false))
}

/// The parameters among `names` that exist.
pub(super) async fn parameters(
    region: &Region,
    names: &BTreeSet<String>,
) -> Result<BTreeMap<String, Parameter>, AwsError> {
    let names: Vec<String> = names.iter().cloned().collect();
    let mut found = BTreeMap::new();
    for some in names.chunks(PARAMETERS) {
        let call = Call::new("ssm", "GetParameters", &region.name);
        let request = region.ssm.get_parameters().set_names(Some(some.to_vec()));
        let answer = retry::call(call, &Policy::CONTROL, || request.clone().send()).await?;
        for parameter in answer.parameters.unwrap_or_default() {
            let data_type = parameter.data_type.unwrap_or_else(|| "text".to_owned());
            let value = parameter.value.unwrap_or_default();
            found.insert(parameter.name.unwrap_or_default(), Parameter { value, data_type });
        }
    }
    Ok(found)
}

/// Whether images and snapshots may be public; asked only where one is to be.
pub(super) async fn public_access(
    region: &Region,
    target: &Target,
) -> Result<(PublicAccess, PublicAccess), AwsError> {
    tokio::try_join!(
        async {
            match target.launch.public {
                true => public_images(region).await,
                false => Ok(PublicAccess::Unknown),
            }
        },
        async {
            match target.snapshot.public {
                true => public_snapshots(region).await,
                false => Ok(PublicAccess::Unknown),
            }
        }
    )
}

/// Whether images may be public. That it can't be asked for is no reason to stop.
async fn public_images(region: &Region) -> Result<PublicAccess, AwsError> {
    let answer = ask::ec2(region, "GetImageBlockPublicAccessState", || {
        region.ec2.get_image_block_public_access_state().send()
    });
    let answer = known(answer.await)?;
    Ok(match answer.and_then(|answer| answer.image_block_public_access_state).as_deref() {
        Some("unblocked") => PublicAccess::Allowed,
        // Images that are public already stay so.
        Some("block-new-sharing") => PublicAccess::BlocksNew,
        _ => PublicAccess::Unknown,
    })
}

async fn public_snapshots(region: &Region) -> Result<PublicAccess, AwsError> {
    let answer = ask::ec2(region, "GetSnapshotBlockPublicAccessState", || {
        region.ec2.get_snapshot_block_public_access_state().send()
    });
    let answer = known(answer.await)?;
    Ok(match answer.and_then(|answer| answer.state) {
        Some(SnapshotBlockPublicAccessState::Unblocked) => PublicAccess::Allowed,
        Some(SnapshotBlockPublicAccessState::BlockNewSharing) => PublicAccess::BlocksNew,
        Some(SnapshotBlockPublicAccessState::BlockAllSharing) => PublicAccess::BlocksAll,
        _ => PublicAccess::Unknown,
    })
}

/// Nothing, where the caller may not ask or the endpoint doesn't know the request.
fn known<T>(answer: Result<T, AwsError>) -> Result<Option<T>, AwsError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.kind, Kind::Denied | Kind::Invalid | Kind::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The settings of an image, with what only requests of their own tell.
async fn details(region: &Region, listed: &ec2::Image) -> Result<Details, AwsError> {
    let id = listed.image_id().unwrap_or_default();
    let (launch, uefi_data) = tokio::try_join!(launch_permissions(region, id), uefi_data(region, id))?;
    Ok(Details { launch, uefi_data, ..read_details(listed) })
}

/// Who may launch an image.
pub(super) async fn launch_permissions(region: &Region, id: &str) -> Result<LaunchPermissions, AwsError> {
    let answer = ask::ec2(region, "DescribeImageAttribute", || {
        region
            .ec2
            .describe_image_attribute()
            .image_id(id)
            .attribute(ImageAttributeName::LaunchPermission)
            .send()
    });
    Ok(read_launch(&answer.await?.launch_permissions.unwrap_or_default()))
}

/// Absent for nearly all images; few roles may ask.
async fn uefi_data(region: &Region, id: &str) -> Result<Option<String>, AwsError> {
    let answer = ask::ec2(region, "DescribeImageAttribute", || {
        region.ec2.describe_image_attribute().image_id(id).attribute(ImageAttributeName::UefiData).send()
    });
    let data = known(answer.await)?.and_then(|answer| answer.uefi_data).and_then(|data| data.value);
    Ok(data.filter(|data| !data.is_empty()))
}

/// Fills in who may make volumes of the snapshots `ids`.
async fn permissions(region: &Region, ids: &[String], snapshots: &mut [Snapshot]) -> Result<(), AwsError> {
    for snapshot in snapshots.iter_mut().filter(|snapshot| ids.contains(&snapshot.id)) {
        snapshot.permissions = Some(snapshot_permissions(region, &snapshot.id).await?);
    }
    Ok(())
}

/// Who may make volumes of a snapshot.
pub(super) async fn snapshot_permissions(region: &Region, id: &str) -> Result<SnapshotPermissions, AwsError> {
    let answer = ask::ec2(region, "DescribeSnapshotAttribute", || {
        region
            .ec2
            .describe_snapshot_attribute()
            .snapshot_id(id)
            .attribute(SnapshotAttributeName::CreateVolumePermission)
            .send()
    });
    let mut permissions = SnapshotPermissions::default();
    for entry in answer.await?.create_volume_permissions.unwrap_or_default() {
        permissions.public |= entry.group == Some(PermissionGroup::All);
        permissions.accounts.extend(entry.user_id);
    }
    Ok(permissions)
}

/// The tags of a resource.
pub(super) async fn tags_of(region: &Region, id: &str) -> Result<BTreeMap<String, String>, AwsError> {
    let request = region.ec2.describe_tags().filters(ask::filter("resource-id", [id]));
    let tags = ask::pages(async |token| {
        let page = ask::ec2(region, "DescribeTags", || request.clone().set_next_token(token.clone()).send());
        let page = page.await?;
        Ok((page.tags, page.next_token))
    })
    .await?;
    Ok(tags.into_iter().filter_map(|tag| Some((tag.key?, tag.value.unwrap_or_default()))).collect())
}

fn read_launch(entries: &[ec2::LaunchPermission]) -> LaunchPermissions {
    let mut launch = LaunchPermissions::default();
    for entry in entries {
        launch.public |= entry.group == Some(PermissionGroup::All);
        launch.accounts.extend(entry.user_id.clone());
        launch.organizations.extend(entry.organization_arn.clone());
        launch.organizational_units.extend(entry.organizational_unit_arn.clone());
    }
    launch
}

/// An image as it is listed, without its settings.
pub(super) fn read_image(image: &ec2::Image) -> Image {
    Image {
        id: image.image_id.clone().unwrap_or_default(),
        name: image.name.clone().unwrap_or_default(),
        architecture: image.architecture.as_ref().map(|a| a.as_str().to_owned()).unwrap_or_default(),
        state: image.state.as_ref().map(|state| state.as_str().to_owned()).unwrap_or_default(),
        created: image.creation_date().and_then(image::read_time).unwrap_or_default(),
        tags: ask::read_tags(image.tags()),
        snapshots: image::snapshots(image),
        details: None,
    }
}

/// The settings that stand in the list already.
pub(super) fn read_details(image: &ec2::Image) -> Details {
    Details {
        description: image.description.clone().unwrap_or_default(),
        architecture: image.architecture.as_ref().map(|a| a.as_str().to_owned()).unwrap_or_default(),
        boot_mode: image.boot_mode.as_ref().and_then(read_boot_mode),
        ena: image.ena_support.unwrap_or(false),
        imds_v2: image.imds_support == Some(ImdsSupportValues::V20),
        nitro_tpm: image.tpm_support == Some(TpmSupportValues::V20),
        uefi_data: None,
        root_device: image.root_device_name.clone().unwrap_or_default(),
        volume: read_volume(image),
        launch: LaunchPermissions::default(),
        deprecation: image.deprecation_time().and_then(image::read_time),
        protection: image.deregistration_protection().and_then(read_protection),
    }
}

fn read_boot_mode(mode: &ec2::BootModeValues) -> Option<BootMode> {
    let all = [BootMode::LegacyBios, BootMode::Uefi, BootMode::UefiPreferred];
    all.into_iter().find(|known| known.as_str() == mode.as_str())
}

/// `disabled`, `enabled-without-cooldown` or `enabled-with-cooldown`.
fn read_protection(text: &str) -> Option<Protection> {
    text.starts_with("enabled").then(|| Protection { cooldown: text.ends_with("-with-cooldown") })
}

fn read_volume(image: &ec2::Image) -> ObservedVolume {
    let root = image.root_device_name();
    let device = image.block_device_mappings().iter().find(|device| device.device_name() == root);
    let Some(ebs) = device.and_then(|device| device.ebs()) else { return ObservedVolume::default() };
    let number = |n: Option<i32>| n.and_then(|n| u32::try_from(n).ok());
    ObservedVolume {
        kind: ebs.volume_type.as_ref().map(|kind| kind.as_str().to_owned()).unwrap_or_default(),
        size: number(ebs.volume_size).unwrap_or_default(),
        iops: number(ebs.iops),
        throughput: number(ebs.throughput),
        delete_on_termination: ebs.delete_on_termination.unwrap_or(false),
        encrypted: ebs.encrypted.unwrap_or(false),
    }
}

/// A snapshot as it is listed.
pub(super) fn read_snapshot(snapshot: &ec2::Snapshot) -> Snapshot {
    use ec2::SnapshotState::{Completed, Pending};
    Snapshot {
        id: snapshot.snapshot_id.clone().unwrap_or_default(),
        state: match &snapshot.state {
            Some(Completed) => SnapshotState::Completed,
            Some(Pending) | None => SnapshotState::Pending,
            Some(_) => SnapshotState::Unusable,
        },
        started: snapshot.start_time.as_ref().map_or_else(Timestamp::default, |time| Timestamp(time.secs())),
        volume_size: snapshot.volume_size.and_then(|size| u32::try_from(size).ok()).unwrap_or_default(),
        encrypted: snapshot.encrypted.unwrap_or(false),
        kms_key: snapshot.kms_key_id.clone(),
        tags: ask::read_tags(snapshot.tags()),
        permissions: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protection_is_read() {
        assert_eq!(read_protection("disabled"), None);
        assert_eq!(read_protection("enabled-without-cooldown"), Some(Protection { cooldown: false }));
        assert_eq!(read_protection("enabled-with-cooldown"), Some(Protection { cooldown: true }));
    }

    #[test]
    fn permissions_of_all_sorts_are_read() {
        let entry = ec2::LaunchPermission::builder;
        let launch = read_launch(&[
            entry().user_id("111122223333").build(),
            entry().group(PermissionGroup::All).build(),
            entry().organization_arn("arn:o").build(),
            entry().organizational_unit_arn("arn:ou").build(),
        ]);
        let set = |text: &str| BTreeSet::from([text.to_owned()]);
        let wanted = LaunchPermissions {
            accounts: set("111122223333"),
            organizations: set("arn:o"),
            organizational_units: set("arn:ou"),
            public: true,
        };
        assert_eq!(launch, wanted);
    }

    #[test]
    fn a_snapshot_of_no_use_is_neither_pending_nor_done() {
        use ec2::SnapshotState as S;
        for (state, read) in [
            (S::Completed, SnapshotState::Completed),
            (S::Pending, SnapshotState::Pending),
            (S::Error, SnapshotState::Unusable),
            (S::Recoverable, SnapshotState::Unusable),
        ] {
            assert_eq!(read_snapshot(&ec2::Snapshot::builder().state(state).build()).state, read);
        }
    }
}
