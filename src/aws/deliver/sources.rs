//! What regions wait for that copy from another one: its snapshot, its image, or the news that there will be none.

use std::collections::BTreeMap;

use tokio::sync::watch;

/// How far a region is as a source of copies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Working,
    Snapshot(String),
    Image {
        snapshot: String,
        image: String,
    },
    Lost,
}

/// All regions of a publication.
pub(super) struct Sources(BTreeMap<String, watch::Sender<Stage>>);

impl Sources {
    pub(super) fn new<'a>(regions: impl Iterator<Item = &'a String>) -> Sources {
        Sources(regions.map(|name| (name.clone(), watch::Sender::default())).collect())
    }

    /// The snapshot of a region is complete.
    pub(super) fn has_snapshot(&self, region: &str, snapshot: &str) {
        self.set(region, Stage::Snapshot(snapshot.to_owned()));
    }

    /// The image of a region can be launched.
    pub(super) fn has_image(&self, region: &str, snapshot: &str, image: &str) {
        self.set(region, Stage::Image { snapshot: snapshot.to_owned(), image: image.to_owned() });
    }

    /// A region will not have its image.
    pub(super) fn lost(&self, region: &str) {
        self.set(region, Stage::Lost);
    }

    fn set(&self, region: &str, stage: Stage) {
        if let Some(sender) = self.0.get(region) {
            sender.send_replace(stage);
        }
    }

    /// Waits for a region's snapshot; `None` when there will be none.
    pub(super) async fn snapshot(&self, region: &str) -> Option<String> {
        match self.when(region, |stage| *stage != Stage::Working).await? {
            Stage::Snapshot(snapshot) | Stage::Image { snapshot, .. } => Some(snapshot),
            Stage::Working | Stage::Lost => None,
        }
    }

    /// Waits for a region's image; `None` when there will be none.
    pub(super) async fn image(&self, region: &str) -> Option<String> {
        match self.when(region, |stage| matches!(stage, Stage::Image { .. } | Stage::Lost)).await? {
            Stage::Image { image, .. } => Some(image),
            _ => None,
        }
    }

    async fn when(&self, region: &str, there: impl FnMut(&Stage) -> bool) -> Option<Stage> {
        let mut receiver = self.0.get(region)?.subscribe();
        receiver.wait_for(there).await.ok().map(|stage| stage.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn copies_wait_for_their_source() {
        let names = ["a".to_owned(), "b".to_owned()];
        let sources = Sources::new(names.iter());
        let late = async {
            tokio::task::yield_now().await;
            sources.has_snapshot("a", "snap-1");
            tokio::task::yield_now().await;
            sources.has_image("a", "snap-1", "ami-1");
            sources.lost("b");
        };
        let (snapshot, image, lost, ()) =
            tokio::join!(sources.snapshot("a"), sources.image("a"), sources.image("b"), late);
        assert_eq!((snapshot.as_deref(), image.as_deref(), lost), (Some("snap-1"), Some("ami-1"), None));
        assert_eq!(sources.snapshot("a").await.as_deref(), Some("snap-1"));
        assert_eq!(sources.snapshot("elsewhere").await, None);
    }
}
