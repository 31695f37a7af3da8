//! What Kiln has published, by its tags.

use aws_sdk_ec2::types as ec2;
use serde::Serialize;

use super::cloud::Region;
use super::error::AwsError;
use super::{ask, image, observe};
use crate::date::Timestamp;
use crate::digest::Digest;
use crate::publish::tags;

/// One image that Kiln has published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Published {
    /// The region that it lies in.
    pub region: String,
    /// Its id.
    pub image: String,
    /// Its name.
    pub name: String,
    /// The system that it is of.
    pub system: String,
    /// The system's version.
    pub version: String,
    /// EC2's word for its state.
    pub state: String,
    /// When it was made.
    pub created: Timestamp,
    /// EC2's word for its processors.
    pub architecture: String,
    /// The root volume's size in GiB.
    pub size: u32,
    /// Whether its root volume is encrypted.
    pub encrypted: bool,
    /// Whether the image passed its tests before it was published.
    pub tested: bool,
    /// Whether everybody may launch it.
    pub public: bool,
    /// Whether it is protected against deregistration.
    pub protected: bool,
    /// When it is or was deprecated.
    pub deprecated: Option<Timestamp>,
    /// Digest of the image's blocks.
    pub digest: Option<Digest>,
    /// The publication that made it.
    pub publication: Option<Digest>,
    /// Digest of the lock that it was baked from.
    pub lock: Option<Digest>,
    /// Its snapshots, the root volume's first.
    pub snapshots: Vec<String>,
}

/// What Kiln has published in a region, of one system or of all; the newest of each system first.
///
/// # Errors
/// When a request fails for good.
pub async fn images(region: &Region, system: Option<&str>) -> Result<Vec<Published>, AwsError> {
    let filter = match system {
        Some(system) => ask::filter(&format!("tag:{}", tags::SYSTEM), [system]),
        None => ask::filter("tag-key", [tags::PUBLICATION]),
    };
    let listed = image::images(region, filter).await?;
    let mut all: Vec<Published> = listed.iter().map(|image| read(&region.name, image)).collect();
    all.sort_by(|a, b| {
        (&a.system, std::cmp::Reverse(a.created), &a.image).cmp(&(
            &b.system,
            std::cmp::Reverse(b.created),
            &b.image,
        ))
    });
    Ok(all)
}

/// An image by its id, whoever made it; nothing when there is none.
///
/// # Errors
/// When a request fails for good.
pub async fn image(region: &Region, id: &str) -> Result<Option<Published>, AwsError> {
    Ok(image::by_id(region, id).await?.map(|image| read(&region.name, &image)))
}

/// The regions that the account uses, by name.
///
/// # Errors
/// When the request fails for good.
pub async fn regions(region: &Region) -> Result<Vec<String>, AwsError> {
    let answer = ask::ec2(region, "DescribeRegions", || region.ec2.describe_regions().send()).await?;
    let mut names: Vec<String> =
        answer.regions.unwrap_or_default().into_iter().filter_map(|region| region.region_name).collect();
    names.sort();
    Ok(names)
}

fn read(region: &str, listed: &ec2::Image) -> Published {
    let image = observe::read_image(listed);
    let details = observe::read_details(listed);
    let tag = |key: &str| image.tags.get(key).cloned().unwrap_or_default();
    let digest = |key: &str| image.tags.get(key)?.parse().ok();
    Published {
        region: region.to_owned(),
        system: tag(tags::SYSTEM),
        version: tag(tags::VERSION),
        tested: tag(tags::TESTED) == "yes",
        digest: digest(tags::IMAGE),
        publication: digest(tags::PUBLICATION),
        lock: digest(tags::LOCK),
        architecture: details.architecture,
        size: details.volume.size,
        encrypted: details.volume.encrypted,
        public: listed.public.unwrap_or(false),
        protected: details.protection.is_some(),
        deprecated: details.deprecation,
        image: image.id,
        name: image.name,
        state: image.state,
        created: image.created,
        snapshots: image.snapshots,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_sdk_ec2::types::{ImageState, Tag};

    #[test]
    fn an_image_is_what_its_tags_say() {
        let tag = |key: &str, value: &str| Tag::builder().key(key).value(value).build();
        let digest = Digest::of(b"image");
        let listed = ec2::Image::builder()
            .image_id("ami-1")
            .name("server-1")
            .state(ImageState::Available)
            .creation_date("2026-09-12T07:55:41.000Z")
            .deregistration_protection("enabled-without-cooldown")
            .tags(tag(tags::SYSTEM, "server"))
            .tags(tag(tags::TESTED, "no"))
            .tags(tag(tags::IMAGE, &digest.to_string()))
            .tags(tag(tags::LOCK, "nonsense"))
            .build();
        let published = read("eu-central-1", &listed);
        assert_eq!((published.image.as_str(), published.system.as_str()), ("ami-1", "server"));
        assert_eq!((published.tested, published.protected, published.public), (false, true, false));
        assert_eq!((published.digest, published.lock), (Some(digest), None));
        assert_eq!(published.created.to_string(), "2026-09-12T07:55:41Z");
    }
}
