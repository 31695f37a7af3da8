//! Images made of a snapshot. `RegisterImage` has no client token: what is there is looked up by tag and by name before,
//! and once more when an answer leaves open whether the image was made.

use std::time::Duration;

use aws_sdk_ec2::operation::register_image::builders::RegisterImageFluentBuilder;
use aws_sdk_ec2::types::{
    ArchitectureValues, BlockDeviceMapping, BootModeValues, EbsBlockDevice, Image, ImageState,
    ImdsSupportValues, ResourceType, TpmSupportValues, VolumeType,
};

use super::ask::{self, Note, Patience, Tell, Waiting};
use super::cloud::Region;
use super::copy;
use super::error::{AwsError, Kind};
use crate::arch::Arch;
use crate::date::Timestamp;
use crate::publish::Target;
use crate::publish::tags;
use crate::publish::target::BootMode;

/// How long a new image may take until everyone sees it.
const APPEARS: Patience = Patience {
    first: Duration::from_millis(500),
    most: Duration::from_secs(5),
    limit: Duration::from_secs(120),
};

/// An image in one region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ami {
    /// Its id: `ami-…`.
    pub id: String,
    /// Its snapshots' ids, the root volume's first.
    pub snapshots: Vec<String>,
    /// When it was made.
    pub created: Timestamp,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A request failed.
    #[error(transparent)]
    Aws(#[from] AwsError),
    /// Another image has the name.
    #[error(
        "{region}: {image} has the name {name:?} already and isn't this image\n  \
         next: make publish.aws.name different (a template can hold the version or the digest), or retire {image}"
    )]
    NameTaken {
        /// Where.
        region: String,
        /// The name that is wanted.
        name: String,
        /// The image that has it.
        image: String,
    },
    /// AWS gave up on a resource.
    #[error("{region}: {id} is {state}: {reason}")]
    Failed {
        /// Where.
        region: String,
        /// The image, snapshot or task.
        id: String,
        /// EC2's word for what became of it.
        state: String,
        /// EC2's reason, with its code.
        reason: String,
    },
    /// Something takes too long.
    #[error(
        "{region}: {id} isn't {wanted} after {} minutes\n  next: run the same command again; it goes on waiting",
        .waited.as_secs() / 60
    )]
    Slow {
        /// Where.
        region: String,
        /// What was waited for.
        id: String,
        /// What it was to become.
        wanted: &'static str,
        /// How long it was waited for.
        waited: Duration,
    },
    /// An answer lacks what it must have.
    #[error("{region}: the answer to {operation} has no {member}")]
    Incomplete {
        /// Where.
        region: String,
        /// The request.
        operation: &'static str,
        /// What is missing.
        member: &'static str,
    },
}

impl ImageError {
    /// What was just made isn't known any more.
    pub(super) fn gone(region: &Region, id: &str) -> ImageError {
        ImageError::Failed {
            region: region.name.clone(),
            id: id.to_owned(),
            state: "gone".to_owned(),
            reason: "EC2 doesn't know it (any more)".to_owned(),
        }
    }
}

/// What a region has under the name and the tag of a target.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Found {
    /// This very image.
    Ours(Box<Image>),
    /// Another image has the name.
    Other(String),
    /// Nothing.
    Nothing,
}

/// Registers `snapshot`, which must be completed, as the image that `target` describes; gives its id. The image of an
/// earlier, interrupted run is taken as it is.
///
/// # Errors
/// [`ImageError::NameTaken`] when another image has the name; else when EC2 refuses.
pub async fn register(
    region: &Region,
    target: &Target,
    snapshot: &str,
    tell: Tell<'_>,
) -> Result<String, ImageError> {
    if let Some(id) = there(region, target, tell).await? {
        return Ok(id);
    }
    let request = request(&region.ec2, target, snapshot);
    match ask::ec2(region, "RegisterImage", || request.clone().send()).await {
        Ok(made) => {
            let id = made.image_id.ok_or_else(|| incomplete(region, "RegisterImage", "ImageId"))?;
            tell(Note::Made(id.clone()));
            Ok(id)
        }
        // The name is unique in a region, so an attempt whose answer was lost shows as a duplicate in the next one.
        Err(error) if matches!(error.kind, Kind::Duplicate | Kind::Transient | Kind::Timeout) => {
            appeared(region, target, tell).await?.ok_or(ImageError::Aws(error))
        }
        Err(error) => Err(error.into()),
    }
}

/// Waits until an image can be launched. One that failed is removed, since its name would be taken.
///
/// # Errors
/// [`ImageError::Failed`] with EC2's reason, [`ImageError::Slow`] when patience ends.
pub async fn available(
    region: &Region,
    id: &str,
    patience: Patience,
    tell: Tell<'_>,
) -> Result<Ami, ImageError> {
    let mut waiting = Waiting::new(patience);
    loop {
        match by_id(region, id).await {
            Ok(Some(image)) if image.state == Some(ImageState::Available) => return ami(region, &image),
            Ok(Some(image)) if is_dead(&image) => {
                discard(region, &image).await?;
                return Err(failed(region, id, &image));
            }
            // An id that was just given out may be unknown to the next server that is asked.
            Ok(None) if waiting.so_far() > APPEARS.limit => {
                return Err(ImageError::gone(region, id));
            }
            Ok(_) => tell(Note::Waiting { id: id.to_owned(), percent: None }),
            Err(error) => return Err(error.into()),
        }
        if !waiting.pause().await? {
            return Err(ImageError::Slow {
                region: region.name.clone(),
                id: id.to_owned(),
                wanted: "available",
                waited: waiting.so_far(),
            });
        }
    }
}

/// The target's image when it is there; images of it that failed are removed first.
pub(super) async fn there(
    region: &Region,
    target: &Target,
    tell: Tell<'_>,
) -> Result<Option<String>, ImageError> {
    match look(region, target).await? {
        Found::Nothing => Ok(None),
        Found::Other(image) => {
            Err(ImageError::NameTaken { region: region.name.clone(), name: target.name.clone(), image })
        }
        Found::Ours(image) => {
            let id = image.image_id.clone().unwrap_or_default();
            if !is_dead(&image) {
                return Ok(Some(id));
            }
            ask::ec2(region, "DeregisterImage", || region.ec2.deregister_image().image_id(&id).send())
                .await?;
            tell(Note::Changed(format!("removed {id}, which had failed: {}", reason(&image))));
            Ok(None)
        }
    }
}

/// Removes an image that failed, and those of its snapshots that did. A complete one may have been uploaded and is kept.
async fn discard(region: &Region, image: &Image) -> Result<(), AwsError> {
    let request = region.ec2.deregister_image().set_image_id(image.image_id.clone());
    match ask::ec2(region, "DeregisterImage", || request.clone().send()).await {
        Err(error) if error.kind != Kind::NotFound => return Err(error),
        _ => {}
    }
    for id in snapshots(image) {
        if copy::by_id(region, &id).await?.is_some_and(|snapshot| copy::is_dead(&snapshot)) {
            copy::delete(region, &id).await?;
        }
    }
    Ok(())
}

/// Looks for an image until it shows or may be taken not to exist.
pub(super) async fn appeared(
    region: &Region,
    target: &Target,
    tell: Tell<'_>,
) -> Result<Option<String>, ImageError> {
    let mut waiting = Waiting::new(Patience { limit: Duration::from_secs(20), ..APPEARS });
    loop {
        if let Some(id) = there(region, target, tell).await? {
            return Ok(Some(id));
        }
        if !waiting.pause().await? {
            return Ok(None);
        }
    }
}

/// What is there by the target's identity, and by its name.
async fn look(region: &Region, target: &Target) -> Result<Found, AwsError> {
    let tag = format!("tag:{}", tags::PUBLICATION);
    let id = target.id.to_string();
    let (ours, named) = tokio::try_join!(
        images(region, ask::filter(&tag, [id.as_str()])),
        images(region, ask::filter("name", [&target.name]))
    )?;
    Ok(choose(ours, named, &id))
}

/// A living image of the target before a dead one, the oldest of several; then whoever has the name.
fn choose(ours: Vec<Image>, named: Vec<Image>, publication: &str) -> Found {
    let is_ours = |image: &Image| {
        ask::read_tags(image.tags()).get(tags::PUBLICATION).is_some_and(|id| id == publication)
    };
    let gone = |image: &Image| image.state == Some(ImageState::Deregistered);
    let mut ours: Vec<Image> = ours.into_iter().filter(|image| !gone(image)).collect();
    ours.sort_by_key(|image| (is_dead(image), image.creation_date.clone()));
    if let Some(image) = ours.into_iter().next() {
        return Found::Ours(Box::new(image));
    }
    match named.into_iter().find(|image| !gone(image)) {
        Some(image) if is_ours(&image) => Found::Ours(Box::new(image)),
        Some(image) => Found::Other(image.image_id.unwrap_or_default()),
        None => Found::Nothing,
    }
}

/// Own images that a filter lets through, also deprecated and disabled ones: those keep their names.
pub(super) async fn images(
    region: &Region,
    filter: aws_sdk_ec2::types::Filter,
) -> Result<Vec<Image>, AwsError> {
    let request = region
        .ec2
        .describe_images()
        .owners("self")
        .include_deprecated(true)
        .include_disabled(true)
        .filters(filter);
    ask::pages(async |token| {
        let page =
            ask::ec2(region, "DescribeImages", || request.clone().set_next_token(token.clone()).send());
        let page = page.await?;
        Ok((page.images, page.next_token))
    })
    .await
}

/// Whether an image whose id EC2 gave just now is or may become available. One that failed or was deregistered isn't;
/// one that doesn't show for a minute was removed long ago and is only remembered by its token.
pub(super) async fn lives(region: &Region, id: &str) -> Result<bool, AwsError> {
    let mut waiting = Waiting::new(Patience { limit: Duration::from_secs(60), ..APPEARS });
    loop {
        if let Some(image) = by_id(region, id).await? {
            return Ok(!is_dead(&image));
        }
        if !waiting.pause().await? {
            return Ok(false);
        }
    }
}

pub(super) async fn by_id(region: &Region, id: &str) -> Result<Option<Image>, AwsError> {
    let answer = ask::ec2(region, "DescribeImages", || {
        region.ec2.describe_images().image_ids(id).include_deprecated(true).include_disabled(true).send()
    });
    match answer.await {
        Ok(page) => Ok(page.images.unwrap_or_default().into_iter().next()),
        Err(error) if error.kind == Kind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Every member is sent, whatever it is: EC2's own defaults are those of 2006 (i386, paravirtual).
pub(super) fn request(
    ec2: &aws_sdk_ec2::Client,
    target: &Target,
    snapshot: &str,
) -> RegisterImageFluentBuilder {
    ec2.register_image()
        .name(&target.name)
        .set_description(Some(target.description.clone()).filter(|text| !text.is_empty()))
        .architecture(architecture(target.arch))
        .virtualization_type("hvm")
        .ena_support(target.ena)
        .boot_mode(boot_mode(target.boot_mode))
        .root_device_name(&target.root_device)
        .set_imds_support(target.imds_v2.then_some(ImdsSupportValues::V20))
        .set_tpm_support(target.nitro_tpm.then_some(TpmSupportValues::V20))
        .set_uefi_data(target.uefi_data.clone())
        .block_device_mappings(root(target, snapshot))
        .tag_specifications(ask::tags(ResourceType::Image, &target.image_tags))
}

/// The root volume. That it is encrypted follows from its snapshot and can't be said here.
fn root(target: &Target, snapshot: &str) -> BlockDeviceMapping {
    let volume = &target.volume;
    let number = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
    let ebs = EbsBlockDevice::builder()
        .snapshot_id(snapshot)
        .volume_type(VolumeType::from(volume.kind.as_str()))
        .volume_size(number(volume.size))
        .set_iops(volume.iops.map(number))
        .set_throughput(volume.throughput.map(number))
        .delete_on_termination(volume.delete_on_termination)
        .build();
    BlockDeviceMapping::builder().device_name(&target.root_device).ebs(ebs).build()
}

/// EC2's word for an architecture.
pub(super) fn architecture(arch: Arch) -> ArchitectureValues {
    match arch {
        Arch::Amd64 => ArchitectureValues::X8664,
        Arch::Arm64 => ArchitectureValues::Arm64,
    }
}

fn boot_mode(mode: BootMode) -> BootModeValues {
    match mode {
        BootMode::LegacyBios => BootModeValues::LegacyBios,
        BootMode::Uefi => BootModeValues::Uefi,
        BootMode::UefiPreferred => BootModeValues::UefiPreferred,
    }
}

/// Whether an image will never be available.
pub(super) fn is_dead(image: &Image) -> bool {
    use ImageState::{Deregistered, Error, Failed, Invalid};
    matches!(image.state, Some(Deregistered | Error | Failed | Invalid))
}

fn ami(region: &Region, image: &Image) -> Result<Ami, ImageError> {
    let missing = |member| incomplete(region, "DescribeImages", member);
    let created = image.creation_date().and_then(read_time).ok_or_else(|| missing("CreationDate"))?;
    let id = image.image_id.clone().ok_or_else(|| missing("ImageId"))?;
    Ok(Ami { id, snapshots: snapshots(image), created })
}

/// The snapshots of an image, the root volume's first.
pub(super) fn snapshots(image: &Image) -> Vec<String> {
    let root = image.root_device_name();
    let mut devices: Vec<&BlockDeviceMapping> = image.block_device_mappings().iter().collect();
    devices.sort_by_key(|device| device.device_name() != root);
    devices.iter().filter_map(|device| device.ebs.as_ref()?.snapshot_id.clone()).collect()
}

/// EC2's times have milliseconds: `2026-09-12T07:55:41.000Z`.
pub(super) fn read_time(text: &str) -> Option<Timestamp> {
    let whole = text.split_once('.').map_or_else(|| text.to_owned(), |(whole, _)| format!("{whole}Z"));
    whole.parse().ok()
}

fn reason(image: &Image) -> String {
    let reason = image.state_reason.as_ref();
    let code = reason.and_then(|r| r.code()).unwrap_or("no code");
    let message = reason.and_then(|r| r.message()).unwrap_or("EC2 gives no reason");
    format!("{message} ({code})")
}

fn failed(region: &Region, id: &str, image: &Image) -> ImageError {
    ImageError::Failed {
        region: region.name.clone(),
        id: id.to_owned(),
        state: "of no use and was removed".to_owned(),
        reason: reason(image),
    }
}

pub(super) fn incomplete(region: &Region, operation: &'static str, member: &'static str) -> ImageError {
    ImageError::Incomplete { region: region.name.clone(), operation, member }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_sdk_ec2::types::Tag;

    fn image(id: &str, state: ImageState, publication: Option<&str>) -> Image {
        let tag = publication.map(|p| Tag::builder().key(tags::PUBLICATION).value(p).build());
        Image::builder()
            .image_id(id)
            .state(state)
            .creation_date(format!("2026-09-12T07:55:4{}.000Z", id.len()))
            .set_tags(Some(tag.into_iter().collect()))
            .build()
    }

    fn chosen(ours: &[&Image], named: &[&Image]) -> String {
        let owned = |list: &[&Image]| list.iter().map(|i| (*i).clone()).collect();
        match choose(owned(ours), owned(named), "p") {
            Found::Ours(image) => format!("ours {}", image.image_id().unwrap_or_default()),
            Found::Other(id) => format!("other {id}"),
            Found::Nothing => "nothing".to_owned(),
        }
    }

    #[test]
    fn the_living_image_of_a_publication_comes_before_all() {
        let live = image("ami-2", ImageState::Pending, Some("p"));
        let later = image("ami-22", ImageState::Available, Some("p"));
        let dead = image("ami-1", ImageState::Failed, Some("p"));
        let gone = image("ami-0", ImageState::Deregistered, Some("p"));
        let other = image("ami-9", ImageState::Available, Some("q"));
        let foreign = image("ami-8", ImageState::Disabled, None);
        assert_eq!(chosen(&[&later, &dead, &live], &[&other]), "ours ami-2");
        assert_eq!(chosen(&[&dead], &[]), "ours ami-1");
        assert_eq!(chosen(&[&gone], &[&gone]), "nothing");
        assert_eq!(chosen(&[], &[&live]), "ours ami-2");
        assert_eq!(chosen(&[], &[&other]), "other ami-9");
        assert_eq!(chosen(&[], &[&foreign]), "other ami-8");
    }

    #[test]
    fn times_with_and_without_fractions() {
        for text in ["2026-09-12T07:55:41.000Z", "2026-09-12T07:55:41Z"] {
            assert_eq!(read_time(text), Some(Timestamp(1_789_199_741)), "{text}");
        }
        assert_eq!(read_time("yesterday"), None);
    }

    #[test]
    fn the_root_volumes_snapshot_comes_first() {
        let device = |name: &str, snapshot: &str| {
            let ebs = EbsBlockDevice::builder().snapshot_id(snapshot).build();
            BlockDeviceMapping::builder().device_name(name).ebs(ebs).build()
        };
        let image = Image::builder()
            .root_device_name("/dev/xvda")
            .block_device_mappings(device("/dev/sdb", "snap-2"))
            .block_device_mappings(device("/dev/xvda", "snap-1"))
            .build();
        assert_eq!(snapshots(&image), ["snap-1", "snap-2"]);
    }
}
