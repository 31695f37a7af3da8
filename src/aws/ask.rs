//! What the modules about images share: pages of answers, tags, patience.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use aws_sdk_ec2::types::{Filter, ResourceType, Tag, TagSpecification};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;

use super::cloud::Region;
use super::error::{AwsError, Call};
use super::retry::{self, Policy};

/// Hears what is going on while something is waited for or changed.
pub type Tell<'a> = &'a (dyn Fn(Note) + Send + Sync);

/// Something that went on in a region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// A resource was made, under this id.
    Made(String),
    /// A resource is being waited for.
    Waiting {
        /// Its id.
        id: String,
        /// How far it is, in percent, where AWS says so.
        percent: Option<u8>,
    },
    /// AWS has no room for a request now; it is tried again.
    Queued(String),
    /// Something was changed, in a sentence.
    Changed(String),
}

/// How long to wait for something, and how often to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// The first pause; each further one is half as long again.
    pub first: Duration,
    /// The longest pause.
    pub most: Duration,
    /// When to give up.
    pub limit: Duration,
}

impl Patience {
    /// Looks soon, then every fifteen seconds, for so many minutes.
    #[must_use]
    pub const fn minutes(minutes: u64) -> Patience {
        Patience {
            first: Duration::from_millis(500),
            most: Duration::from_secs(15),
            limit: Duration::from_secs(minutes * 60),
        }
    }
}

/// Pauses that grow, until patience ends.
pub(super) struct Waiting {
    patience: Patience,
    next: Duration,
    since: Instant,
}

impl Waiting {
    pub(super) fn new(patience: Patience) -> Waiting {
        Waiting { patience, next: patience.first, since: Instant::now() }
    }

    /// How long it has been.
    pub(super) fn so_far(&self) -> Duration {
        self.since.elapsed()
    }

    /// Pauses; false when the time is up.
    pub(super) async fn pause(&mut self) -> Result<bool, AwsError> {
        let left = self.patience.limit.saturating_sub(self.so_far());
        if left.is_zero() {
            return Ok(false);
        }
        retry::sleep(self.next.min(left)).await?;
        self.next = (self.next * 3 / 2).min(self.patience.most);
        Ok(true)
    }
}

/// A request to EC2 that does no harm when it is made twice.
pub(super) async fn ec2<T, E, F>(
    region: &Region,
    operation: &'static str,
    attempt: impl FnMut() -> F,
) -> Result<T, AwsError>
where
    F: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    retry::call(Call::new("ec2", operation, &region.name), &Policy::CONTROL, attempt).await
}

/// All pages of an answer, one after the other. A page may be empty and still have a successor.
pub(super) async fn pages<T>(
    mut page: impl AsyncFnMut(Option<String>) -> Result<(Option<Vec<T>>, Option<String>), AwsError>,
) -> Result<Vec<T>, AwsError> {
    let mut all = Vec::new();
    let mut token = None;
    loop {
        let (items, next) = page(token).await?;
        all.extend(items.unwrap_or_default());
        token = next.filter(|next| !next.is_empty());
        if token.is_none() {
            return Ok(all);
        }
    }
}

/// A filter of a Describe call: the values of one name are alternatives.
pub(super) fn filter(name: &str, values: impl IntoIterator<Item = impl Into<String>>) -> Filter {
    let values = values.into_iter().map(Into::into).collect();
    Filter::builder().name(name).set_values(Some(values)).build()
}

/// Tags that a resource gets as it is made.
pub(super) fn tags(kind: ResourceType, tags: &BTreeMap<String, String>) -> TagSpecification {
    let tags = tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect();
    TagSpecification::builder().resource_type(kind).set_tags(Some(tags)).build()
}

/// Tags that a resource has.
pub(super) fn read_tags(tags: &[Tag]) -> BTreeMap<String, String> {
    tags.iter().filter_map(|tag| Some((tag.key.clone()?, tag.value.clone().unwrap_or_default()))).collect()
}

/// EC2's progress of a snapshot: `37%`.
pub(super) fn percent(progress: Option<&str>) -> Option<u8> {
    progress?.trim().trim_end_matches('%').parse().ok().filter(|percent| *percent <= 100)
}

#[cfg(test)]
mod tests {
    #[test]
    fn progress_is_read() {
        for (text, percent) in
            [("37%", Some(37)), ("100%", Some(100)), ("", None), ("140%", None), ("n/a", None)]
        {
            assert_eq!(super::percent(Some(text)), percent, "{text}");
        }
        assert_eq!(super::percent(None), None);
    }
}
