//! How the bytes get to each region where an image is made, and what that costs.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::super::fan_out::{Choice, Node, cheapest};
use super::super::observed::{Image, Observed, Region, Snapshot, SnapshotState};
use super::super::price::{self, Usd};
use super::super::tags;
use super::super::target::{Encryption, FanOut, Publication, Target, Upload};
use super::compare::{same_image, whole_gib};
use super::{Action, Blocks, NO_DELTA, RegionPlan, Way};
use crate::artifact::BLOCK;
use crate::digest::Digest;
use crate::units::{Bytes, MIB};

/// Size of the parts of an object, for the estimate of how many there are.
const PART: u64 = 16 * MIB;

/// Where a copy could go or come from.
struct Place<'a> {
    target: &'a Target,
    region: &'a Region,
    /// How the bytes would come without the other regions; `None` where the image is.
    own: Option<Way>,
    notes: Vec<String>,
    encrypted: bool,
}

/// Fills in the way and the cost of each region where an image is made.
pub(super) fn choose(
    publication: &Publication,
    observed: &Observed,
    blocks: &Blocks,
    regions: &mut BTreeMap<String, RegionPlan>,
) {
    let mut places = Vec::new();
    for (name, plan) in &*regions {
        let (Some(target), Some(Ok(region))) = (publication.targets.get(name), observed.get(name)) else {
            continue;
        };
        let mut notes = Vec::new();
        let own = match &plan.action {
            Action::Create { .. } => Some(alone(publication, target, region, blocks, &mut notes)),
            Action::Nothing { .. } => None,
            Action::Change { image } if is_available(region, image) => None,
            _ => continue,
        };
        let encrypted = region.encrypts(&target.encryption);
        places.push(Place { target, region, own, notes, encrypted });
    }
    let ways = fan_out(&places, blocks);
    for (place, way) in places.iter().zip(ways) {
        let Some(plan) = regions.get_mut(&place.target.region) else { continue };
        plan.notes
            .extend(place.notes.iter().filter(|_| matches!(way, Ok(Some((Way::Upload { .. }, _))))).cloned());
        match way {
            Err(reason) => plan.refuse(vec![reason]),
            Ok(None) => {}
            Ok(Some((way, source))) => {
                settle(plan, place, source.map(|n| held(&places[n], blocks)), way, blocks)
            }
        }
    }
}

fn is_available(region: &Region, id: &str) -> bool {
    region.images.iter().any(|image| image.id == id && image.state == "available")
}

/// How the bytes come without the other regions.
fn alone(
    publication: &Publication,
    target: &Target,
    region: &Region,
    blocks: &Blocks,
    notes: &mut Vec<String>,
) -> Way {
    let encrypted = region.encrypts(&target.encryption);
    let used = region.used_snapshots();
    let free = |snapshot: &&Snapshot| {
        snapshot.digest() == Some(publication.image)
            && !used.contains(snapshot.id.as_str())
            && snapshot.encrypted == encrypted
            && has_key(snapshot, &target.encryption)
    };
    let in_state =
        |state: SnapshotState| region.snapshots.iter().filter(move |s| s.state == state).filter(free);
    if let Some(snapshot) = newest_first(in_state(SnapshotState::Completed)).first() {
        return Way::Register { snapshot: snapshot.id.clone() };
    }
    if let Upload::S3Import { bucket, .. } = &target.upload {
        return Way::S3Import { bucket: bucket.clone() };
    }
    let pending = in_state(SnapshotState::Pending).filter(|s| s.publication() == Some(target.id));
    for snapshot in newest_first(pending) {
        if let Some(from) = snapshot.tags.get(tags::FROM) {
            return Way::Await { snapshot: snapshot.id.clone(), from: from.clone() };
        }
        match left(publication, snapshot, region, encrypted, blocks) {
            Some(blocks) => return Way::Resume { snapshot: snapshot.id.clone(), blocks },
            None => {
                notes.push(format!("{} can't go on: the host doesn't know what it was begun on", snapshot.id))
            }
        }
    }
    upload(publication, region, encrypted, blocks, notes)
}

fn newest_first<'a>(snapshots: impl Iterator<Item = &'a Snapshot>) -> Vec<&'a Snapshot> {
    let mut all: Vec<&Snapshot> = snapshots.collect();
    all.sort_by_key(|snapshot| Reverse((snapshot.started, &snapshot.id)));
    all
}

/// Blocks that a pending snapshot lacks. Without a journal all that it takes are sent once more; when that isn't known
/// either, nothing is said.
fn left(
    publication: &Publication,
    snapshot: &Snapshot,
    region: &Region,
    encrypted: bool,
    blocks: &Blocks,
) -> Option<u64> {
    let all = match snapshot.tags.get(tags::PARENT) {
        None if encrypted => blocks.total,
        None => blocks.needed,
        Some(parent) => differing(publication, region.snapshot(parent)?.digest()?, blocks)?,
    };
    Some(all.saturating_sub(blocks.there.get(&snapshot.id).copied().unwrap_or_default()))
}

/// How many blocks differ from an earlier image, when that is known.
fn differing(publication: &Publication, of: Digest, blocks: &Blocks) -> Option<u64> {
    if of == publication.image { Some(0) } else { blocks.deltas.get(&of).copied() }
}

/// Blocks are uploaded, no more of them than have to be.
fn upload(
    publication: &Publication,
    region: &Region,
    encrypted: bool,
    blocks: &Blocks,
    notes: &mut Vec<String>,
) -> Way {
    match delta(publication, region, encrypted, blocks) {
        Ok((snapshot, of, blocks)) => Way::Delta { parent: snapshot.id.clone(), of, blocks },
        Err(reason) => {
            notes.push(format!("{NO_DELTA}{reason}"));
            Way::Upload { blocks: if encrypted { blocks.total } else { blocks.needed } }
        }
    }
}

/// Whether a snapshot is under the key that is wanted, as far as can be told.
fn has_key(snapshot: &Snapshot, wanted: &Encryption) -> bool {
    let (Encryption::Key(wanted), Some(is)) = (wanted, &snapshot.kms_key) else { return true };
    wanted.contains("alias/") || is.rsplit('/').next() == wanted.rsplit('/').next()
}

/// The earlier snapshot that the fewest blocks differ from, or why none serves.
fn delta<'a>(
    publication: &Publication,
    region: &'a Region,
    encrypted: bool,
    blocks: &Blocks,
) -> Result<(&'a Snapshot, Digest, u64), String> {
    let done = |snapshot: &&Snapshot| snapshot.state == SnapshotState::Completed;
    let earlier: Vec<&Snapshot> = region.snapshots.iter().filter(done).collect();
    if earlier.is_empty() {
        return Err(format!("no earlier snapshot of {} is here", publication.system));
    }
    if encrypted {
        return Err("an encrypted snapshot can't have a parent".to_owned());
    }
    let plain: Vec<&Snapshot> = earlier.into_iter().filter(|snapshot| !snapshot.encrypted).collect();
    if plain.is_empty() {
        return Err("the earlier snapshots are encrypted".to_owned());
    }
    let size = whole_gib(publication.size.0);
    let fit: Vec<&Snapshot> = plain.into_iter().filter(|s| u64::from(s.volume_size) <= size).collect();
    if fit.is_empty() {
        return Err("the earlier snapshots are of larger disks".to_owned());
    }
    let known = |snapshot: &&'a Snapshot| {
        let of = snapshot.digest()?;
        Some((*snapshot, of, differing(publication, of, blocks)?))
    };
    let least = fit
        .iter()
        .filter_map(known)
        .min_by_key(|(snapshot, _, differ)| (*differ, Reverse(snapshot.started), snapshot.id.as_str()));
    let Some(least) = least else {
        return Err("the blocks of the earlier snapshots aren't known on this host".to_owned());
    };
    if least.2 >= blocks.needed {
        return Err("as many blocks differ from the earlier snapshot as there are".to_owned());
    }
    Ok(least)
}

/// A way, and which place a copy is taken from; `None` where the image is, an error where what is asked for can't be done.
type Chosen = Result<Option<(Way, Option<usize>)>, String>;

fn fan_out(places: &[Place<'_>], blocks: &Blocks) -> Vec<Chosen> {
    let mut choices: Vec<Choice> = places.iter().map(choice).collect();
    // Somebody has to begin: the first required region, when all are to get copies.
    if !choices.iter().any(|choice| *choice != Choice::Copy) {
        let first = places.iter().position(|place| place.target.required).unwrap_or(0);
        if let Some(choice) = choices.get_mut(first) {
            *choice = Choice::Upload;
        }
    }
    let nodes: Vec<Node> = places
        .iter()
        .zip(&choices)
        .map(|(place, choice)| Node {
            upload: place.own.as_ref().map_or(Usd(0), |way| price_of(way, blocks)),
            choice: *choice,
        })
        .collect();
    let copy = |from: usize, to: usize| {
        let (source, here) = (&places[from], &places[to]);
        let forced = choices[to] == Choice::Copy;
        copiable(source, here, forced)
            .then(|| price::copy(held(source, blocks), &source.target.region, &here.target.region))
    };
    let from = cheapest(&nodes, &copy);
    let way = |to: usize| {
        let place = &places[to];
        let Some(own) = &place.own else { return Ok(None) };
        match from[to] {
            Some(source) => Ok(Some((copied(&places[source], place), Some(source)))),
            None if choices[to] == Choice::Copy => Err(no_source(place, places)),
            None => Ok(Some((own.clone(), None))),
        }
    };
    (0..places.len()).map(way).collect()
}

fn choice(place: &Place<'_>) -> Choice {
    match (&place.own, &place.target.upload) {
        (None, _) => Choice::There,
        // What was begun is finished in the same way.
        (Some(Way::Register { .. } | Way::Resume { .. }), _) => Choice::Upload,
        (Some(Way::Await { .. } | Way::S3Import { .. }), _) => Choice::Upload,
        (_, Upload::EbsDirect(FanOut::CopySnapshot | FanOut::CopyImage)) => Choice::Copy,
        (_, Upload::EbsDirect(FanOut::Cheapest)) => Choice::Free,
        _ => Choice::Upload,
    }
}

/// Whether a copy can be made. Unasked, none is made that encrypts: the holes of its source would read as noise there.
fn copiable(source: &Place<'_>, here: &Place<'_>, forced: bool) -> bool {
    source.region.account == here.region.account
        && source.target.region != here.target.region
        && !matches!(source.own, Some(Way::Await { .. }))
        && (forced || source.encrypted == here.encrypted)
        && (!source.encrypted || here.encrypted)
}

fn no_source(place: &Place<'_>, places: &[Place<'_>]) -> String {
    let others: Vec<&str> = places
        .iter()
        .filter(|other| other.region.account != place.region.account)
        .map(|other| other.target.region.as_str())
        .collect();
    let why = if others.is_empty() {
        "no other region has the image in a form that can be copied (an encrypted snapshot isn't decrypted by a copy)".to_owned()
    } else {
        format!("{} is another account's", others.join(", "))
    };
    format!("a copy was asked for (`upload.fan_out`), but {why}: say `upload.fan_out = 'upload` here")
}

fn copied(source: &Place<'_>, here: &Place<'_>) -> Way {
    let from = source.target.region.clone();
    let whole = here.target.upload == Upload::EbsDirect(FanOut::CopyImage);
    if whole && same_image(source.target, here.target) {
        Way::CopyImage { from }
    } else {
        Way::CopySnapshot { from }
    }
}

/// Blocks that the snapshot of a place holds.
fn held(place: &Place<'_>, blocks: &Blocks) -> u64 {
    let whole = place.encrypted || matches!(place.own, Some(Way::S3Import { .. }));
    if whole { blocks.total } else { blocks.needed }
}

/// Blocks that are sent one by one.
fn sent(way: &Way) -> u64 {
    match way {
        Way::Upload { blocks } | Way::Delta { blocks, .. } | Way::Resume { blocks, .. } => *blocks,
        _ => 0,
    }
}

fn price_of(way: &Way, blocks: &Blocks) -> Usd {
    match way {
        Way::S3Import { .. } => price::put_parts(parts(blocks) + 2),
        other => price::put(sent(other)),
    }
}

fn parts(blocks: &Blocks) -> u64 {
    (blocks.total * BLOCK).div_ceil(PART).max(1)
}

/// Writes the way into the plan, with all that it costs. `copied` is how many blocks a copy's source holds.
fn settle(plan: &mut RegionPlan, place: &Place<'_>, copied: Option<u64>, way: Way, blocks: &Blocks) {
    let copied = copied.unwrap_or_default();
    let copy = |from: &str| price::copy(copied, from, &place.target.region);
    // Calls that make the snapshot, and the one that registers it.
    let (calls, usd, kept) = match &way {
        Way::Upload { blocks: sent } | Way::Delta { blocks: sent, .. } => {
            (sent + 3, price::put(*sent), *sent)
        }
        Way::Resume { blocks: sent, .. } => (sent + 2, price::put(*sent), held(place, blocks)),
        Way::Register { .. } => (1, Usd(0), 0),
        Way::Await { .. } => (1, Usd(0), held(place, blocks)),
        Way::CopySnapshot { from } => (2, copy(from), copied),
        Way::CopyImage { from } => (1, copy(from), copied),
        Way::S3Import { .. } => (parts(blocks) + 5, price_of(&way, blocks), blocks.total),
    };
    let sent = sent(&way);
    let bytes = if matches!(way, Way::S3Import { .. }) { blocks.total } else { sent } * BLOCK;
    plan.cost.calls += calls;
    plan.cost.blocks = sent;
    plan.cost.bytes = Bytes(bytes);
    plan.cost.usd = usd;
    plan.cost.usd_a_month = price::storage(kept);
    note(plan, place, &way);
    if let Action::Create { way: chosen, replaces } = &mut plan.action {
        plan.cost.calls += u64::from(replaces.is_some());
        *chosen = way;
    }
}

fn note(plan: &mut RegionPlan, place: &Place<'_>, way: &Way) {
    let asked = &place.target.upload;
    if *asked == Upload::EbsDirect(FanOut::CopyImage) && matches!(way, Way::CopySnapshot { .. }) {
        plan.notes.push(
            "the image differs from its source's settings: its snapshot is copied and registered anew"
                .to_owned(),
        );
    }
    let used = match way {
        Way::Resume { snapshot, .. } | Way::Register { snapshot } | Way::Await { snapshot, .. } => {
            snapshot.as_str()
        }
        _ => "",
    };
    let referred = place.region.used_snapshots();
    let left = |snapshot: &&Snapshot| snapshot.id != used && !referred.contains(snapshot.id.as_str());
    let left: Vec<&str> = place.region.snapshots.iter().filter(left).map(|s| s.id.as_str()).collect();
    if !left.is_empty() {
        plan.notes.push(format!(
            "no image refers to {}: `kiln retire` removes what was left over",
            left.join(", ")
        ));
    }
}

impl Image {
    /// Whether it will never be of use.
    #[must_use]
    pub fn is_failed(&self) -> bool {
        matches!(self.state.as_str(), "failed" | "error" | "invalid")
    }
}
