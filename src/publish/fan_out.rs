//! Which regions an image is uploaded to, and which get a copy: what costs least in all.

use super::price::Usd;

/// A region that is to get the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What uploading there costs.
    pub upload: Usd,
    /// What is left to choose.
    pub choice: Choice,
}

/// What is left to choose for a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// The snapshot is there: nothing to pay, and others may copy it.
    There,
    /// It is uploaded in any case.
    Upload,
    /// It is copied in any case.
    Copy,
    /// What costs less.
    Free,
}

/// How the image gets to each region, in the order of the nodes: the index of the region that it is copied from, or `None`
/// where it is uploaded or there. `copy` says what a copy costs, `None` where none can be made. A region whose copy has no
/// source is uploaded to.
///
/// The general question is a hard one (facility location); prices leave it easy, so a few good starts are improved step by
/// step. The answer never costs more than uploading everywhere, nor than uploading to one region and copying from there.
#[must_use]
pub fn cheapest(nodes: &[Node], copy: &dyn Fn(usize, usize) -> Option<Usd>) -> Vec<Option<usize>> {
    let all: Vec<bool> = nodes.iter().map(|node| node.choice != Choice::Copy).collect();
    let mut starts = Vec::new();
    for alone in (0..nodes.len()).filter(|&n| nodes[n].choice == Choice::Free) {
        let fixed = |n: usize| matches!(nodes[n].choice, Choice::There | Choice::Upload);
        starts.push((0..nodes.len()).map(|n| n == alone || fixed(n)).collect());
    }
    starts.push(all.clone());
    let improved = starts.into_iter().map(|start| improve(nodes, start, copy));
    let best = improved.min_by_key(|here| (total(nodes, here, copy), copies(here)));
    assigned(nodes, &best.unwrap_or(all), copy)
}

/// Turns one region after the other from uploaded to copied or back, as long as that saves something.
fn improve(nodes: &[Node], mut here: Vec<bool>, copy: &dyn Fn(usize, usize) -> Option<Usd>) -> Vec<bool> {
    let mut now = total(nodes, &here, copy);
    loop {
        let turned = |n: usize| {
            let mut other = here.clone();
            other[n] = !other[n];
            (total(nodes, &other, copy), other)
        };
        let free = (0..nodes.len()).filter(|&n| nodes[n].choice == Choice::Free);
        match free.map(turned).min_by_key(|(cost, _)| *cost) {
            Some((cost, other)) if cost < now => (now, here) = (cost, other),
            _ => return here,
        }
    }
}

fn copies(here: &[bool]) -> usize {
    here.iter().filter(|here| !**here).count()
}

/// The cheapest source of a copy among the regions that have the image by themselves.
fn source(here: &[bool], to: usize, copy: &dyn Fn(usize, usize) -> Option<Usd>) -> Option<(Usd, usize)> {
    (0..here.len())
        .filter(|&from| from != to && here[from])
        .filter_map(|from| Some((copy(from, to)?, from)))
        .min()
}

fn assigned(nodes: &[Node], here: &[bool], copy: &dyn Fn(usize, usize) -> Option<Usd>) -> Vec<Option<usize>> {
    let from = |to: usize| source(here, to, copy).map(|(_, from)| from);
    (0..nodes.len()).map(|to| if here[to] { None } else { from(to) }).collect()
}

fn total(nodes: &[Node], here: &[bool], copy: &dyn Fn(usize, usize) -> Option<Usd>) -> Usd {
    let cost = |to: usize| match nodes[to].choice {
        Choice::There => Usd(0),
        _ if here[to] => nodes[to].upload,
        // Not to be chosen: it would be uploaded to, and could then be a source.
        Choice::Free => source(here, to, copy).map_or(Usd(u64::MAX), |(cost, _)| cost),
        _ => source(here, to, copy).map_or(nodes[to].upload, |(cost, _)| cost),
    };
    (0..nodes.len()).map(cost).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn node(upload: u64, choice: Choice) -> Node {
        Node { upload: Usd(upload), choice }
    }

    #[test]
    fn what_costs_less_is_taken() {
        let nodes = [node(12, Choice::Free), node(12, Choice::Free), node(12, Choice::Free)];
        assert_eq!(cheapest(&nodes, &|_, _| Some(Usd(20))), [None, None, None]);
        assert_eq!(cheapest(&nodes, &|_, _| Some(Usd(10))), [None, Some(0), Some(0)]);
        assert_eq!(
            cheapest(&nodes, &|from, _| Some(Usd(if from == 2 { 1 } else { 9 }))),
            [Some(2), Some(2), None]
        );
        assert_eq!(cheapest(&nodes, &|_, _| None), [None, None, None]);
        assert_eq!(cheapest(&[], &|_, _| None), []);
    }

    #[test]
    fn what_is_asked_for_is_done() {
        let nodes =
            [node(1, Choice::Copy), node(9, Choice::Upload), node(9, Choice::There), node(1, Choice::Copy)];
        let copy = |from: usize, _| Some(Usd(if from == 2 { 5 } else { 6 }));
        assert_eq!(cheapest(&nodes, &copy), [Some(2), None, None, Some(2)]);
    }

    #[test]
    fn a_copy_without_a_source_is_uploaded() {
        let nodes = [node(1, Choice::Copy), node(1, Choice::Upload)];
        assert_eq!(cheapest(&nodes, &|_, _| None), [None, None]);
    }

    fn every(nodes: &[Node], copy: &dyn Fn(usize, usize) -> Option<Usd>) -> Usd {
        let sets = 0..1u32 << nodes.len();
        let all = sets.map(|set| (0..nodes.len()).map(|n| set >> n & 1 == 1).collect::<Vec<bool>>());
        let fits = |here: &Vec<bool>| {
            nodes.iter().zip(here).all(|(node, here)| match node.choice {
                Choice::There | Choice::Upload => *here,
                Choice::Copy => !*here,
                Choice::Free => true,
            })
        };
        all.filter(fits).map(|here| total(nodes, &here, copy)).min().unwrap_or_default()
    }

    proptest! {
        /// Prices as they are: they depend on where a copy comes from. Then the answer is the best there is.
        #[test]
        fn it_is_the_best_where_prices_follow_from_the_source(
            sizes in proptest::collection::vec((1u64..400, 0usize..4, 1u64..150), 1..8),
        ) {
            let choices = [Choice::Free, Choice::Free, Choice::There, Choice::Upload];
            let nodes: Vec<Node> = sizes.iter().map(|(upload, choice, _)| node(*upload, choices[*choice])).collect();
            let copy = |from: usize, _: usize| Some(Usd(sizes[from].2));
            let answer = cheapest(&nodes, &copy);
            let here: Vec<bool> = answer.iter().map(Option::is_none).collect();
            prop_assert_eq!(total(&nodes, &here, &copy), every(&nodes, &copy));
        }

        /// Any prices: never dearer than the simple ways, and every copy has a source that has the image.
        #[test]
        fn it_is_never_dearer_than_the_simple_ways(
            uploads in proptest::collection::vec((1u64..100, 0usize..4), 1..9),
            prices in proptest::collection::vec(proptest::option::of(1u64..100), 81),
        ) {
            let choices = [Choice::Free, Choice::Free, Choice::Copy, Choice::Upload];
            let nodes: Vec<Node> = uploads.iter().map(|(upload, choice)| node(*upload, choices[*choice])).collect();
            let copy = |from: usize, to: usize| prices[from * 9 + to].map(Usd);
            let answer = cheapest(&nodes, &copy);
            let here: Vec<bool> = nodes.iter().zip(&answer)
                .map(|(node, from)| from.is_none() && node.choice != Choice::Copy).collect();
            let cost = total(&nodes, &here, &copy);
            let uploaded: Vec<bool> = nodes.iter().map(|node| node.choice != Choice::Copy).collect();
            prop_assert!(cost <= total(&nodes, &uploaded, &copy));
            prop_assert!(cost >= every(&nodes, &copy));
            for (to, from) in answer.iter().enumerate() {
                if let Some(from) = from {
                    prop_assert!(here[*from] && copy(*from, to).is_some());
                }
            }
        }
    }
}
