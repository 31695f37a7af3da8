//! Which earlier images of a system go.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::observed::Image;
use super::target::Retention;
use crate::date::{DAY, Timestamp};

/// The images of `system` that `retention` doesn't keep, the oldest first. Each architecture is counted by itself: a new
/// image for one is none for the other.
///
/// Images of other systems, those without Kiln's tags, and those that aren't finished are none of its business. Whatever it
/// says, these stay: the newest image of an architecture, `current` ones (published just now), and `named` ones (that an SSM parameter names).
#[must_use]
pub fn retired<'a>(
    images: &'a [Image],
    system: &str,
    retention: &Retention,
    current: &BTreeSet<String>,
    named: &BTreeSet<String>,
    now: Timestamp,
) -> Vec<&'a Image> {
    if *retention == Retention::default() {
        return Vec::new();
    }
    let finished = |image: &&Image| matches!(image.state.as_str(), "available" | "disabled");
    let mut own: Vec<&Image> = images.iter().filter(|image| image.is_of(system)).filter(finished).collect();
    own.sort_by_key(|image| Reverse((image.created, &image.id)));
    // Saying only `days` keeps the newest all the same.
    let newest = retention.keep.map_or(1, |keep| keep.max(1)) as usize;
    let young = |image: &Image| {
        let Some(days) = retention.days else { return false };
        image.created.plus(i64::from(days) * DAY) > now
    };
    let kept = |image: &Image| young(image) || current.contains(&image.id) || named.contains(&image.id);
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut gone: Vec<&Image> = Vec::new();
    for image in own {
        let count = counts.entry(&image.architecture).or_default();
        *count += 1;
        if *count > newest && !kept(image) {
            gone.push(image);
        }
    }
    gone.reverse();
    gone
}

#[cfg(test)]
mod tests {
    use super::super::tags;
    use super::*;
    use proptest::prelude::*;

    const NOW: Timestamp = Timestamp(1_789_199_741);

    fn image(id: u32, age: i64, system: &str, state: &str) -> Image {
        Image {
            id: format!("ami-{id:04}"),
            state: state.into(),
            created: NOW.plus(-age * DAY),
            tags: [(tags::SYSTEM.to_owned(), system.to_owned())].into(),
            ..Image::default()
        }
    }

    fn gone(images: &[Image], keep: Option<u32>, days: Option<u32>, kept: &[&str]) -> Vec<String> {
        let kept: BTreeSet<String> = kept.iter().map(|id| (*id).to_owned()).collect();
        let retention = Retention { keep, days };
        let gone = retired(images, "web", &retention, &BTreeSet::new(), &kept, NOW);
        gone.into_iter().map(|image| image.id.clone()).collect()
    }

    #[test]
    fn what_neither_rule_keeps_goes() {
        let ages = [0, 10, 20, 30, 40];
        let images: Vec<Image> =
            (0..).zip(ages).map(|(id, age)| image(id, age, "web", "available")).collect();
        assert_eq!(gone(&images, Some(3), None, &[]), ["ami-0004", "ami-0003"]);
        assert_eq!(gone(&images, None, Some(15), &[]), ["ami-0004", "ami-0003", "ami-0002"]);
        assert_eq!(gone(&images, Some(3), Some(35), &[]), ["ami-0004"]);
        assert_eq!(gone(&images, Some(1), None, &["ami-0003"]), ["ami-0004", "ami-0002", "ami-0001"]);
        assert!(gone(&images, None, None, &[]).is_empty());
        assert_eq!(gone(&images[4..], None, Some(1), &[]), [""; 0]);
    }

    #[test]
    fn strangers_and_unfinished_ones_stay_and_do_not_count() {
        let mut foreign = image(7, 90, "web", "available");
        foreign.tags.clear();
        let images = [
            image(1, 1, "web", "pending"),
            image(2, 2, "web", "available"),
            image(3, 3, "other", "available"),
            image(4, 4, "web", "failed"),
            image(5, 5, "web", "disabled"),
            foreign,
        ];
        assert_eq!(gone(&images, Some(1), None, &[]), ["ami-0005"]);
        assert!(gone(&images, Some(2), None, &[]).is_empty());
    }

    #[test]
    fn each_architecture_is_counted_by_itself() {
        let for_arm = |id, age| Image { architecture: "arm64".into(), ..image(id, age, "web", "available") };
        let images = [
            image(1, 1, "web", "available"),
            image(2, 2, "web", "available"),
            for_arm(3, 3),
            image(4, 4, "web", "available"),
            for_arm(5, 5),
        ];
        assert_eq!(gone(&images, Some(2), None, &[]), ["ami-0004"]);
        assert_eq!(gone(&images, None, Some(1), &[]), ["ami-0005", "ami-0004", "ami-0002"]);
    }

    proptest! {
        #[test]
        fn nothing_goes_that_a_rule_keeps(
            set in proptest::collection::vec((0u32..50, 0i64..100, 0usize..3, 0usize..3), 0..20),
            keep in proptest::option::of(1u32..6),
            days in proptest::option::of(1u32..60),
            current in 0u32..50,
            named in 0u32..50,
        ) {
            let images: Vec<Image> = set.iter().map(|&(id, age, system, state)| {
                image(id, age, ["web", "web", "db"][system], ["available", "pending", "disabled"][state])
            }).collect();
            let one = |id: u32| BTreeSet::from([format!("ami-{id:04}")]);
            let retention = Retention { keep, days };
            let gone = retired(&images, "web", &retention, &one(current), &one(named), NOW);
            let mut own: Vec<&Image> = images.iter()
                .filter(|i| i.is_of("web") && i.state != "pending").collect();
            own.sort_by_key(|i| Reverse((i.created, &i.id)));
            for image in &gone {
                prop_assert!(image.is_of("web") && image.state != "pending");
                prop_assert!(!one(current).contains(&image.id) && !one(named).contains(&image.id));
                prop_assert!(days.is_none_or(|days| image.created.plus(i64::from(days) * DAY) <= NOW));
                let newer = own.iter().filter(|i| i.created > image.created).count();
                let same = own.iter().filter(|i| i.created == image.created).count();
                prop_assert!(newer + same > keep.unwrap_or(1) as usize);
            }
            // And all the others that are old enough do go.
            let left = own.len() - gone.len();
            let excused = own.iter().filter(|i| {
                days.is_some_and(|d| i.created.plus(i64::from(d) * DAY) > NOW)
                    || one(current).contains(&i.id) || one(named).contains(&i.id)
            }).count();
            if keep.is_some() || days.is_some() {
                prop_assert!(left <= keep.unwrap_or(1) as usize + excused);
            } else {
                prop_assert!(gone.is_empty());
            }
        }
    }
}
