//! What of an image differs from what it is to be.

use std::collections::{BTreeMap, BTreeSet};

use super::super::observed::{Details, Image, Region, Snapshot};
use super::super::tags;
use super::super::target::{BootMode, Encryption, Protection, Publication, SnapshotPermissions, Target};
use super::Change;
use crate::arch::Arch;
use crate::date::{DAY, Timestamp};
use crate::units::GIB;

/// What a parameter's data type has to be.
const IMAGE_TYPE: &str = "aws:ec2:image";
/// Seconds by which deprecation may differ: EC2 keeps minutes.
const MINUTE: i64 = 60;
/// Seconds from now that are as good as over: EC2 wants a time to come.
const SOON: i64 = 3 * MINUTE;

/// What has to be changed of `image`, which has the target's name.
///
/// # Errors
/// What can't be changed: it is another image, or was made otherwise.
pub(super) fn image(
    publication: &Publication,
    target: &Target,
    image: &Image,
    region: &Region,
    now: Timestamp,
) -> Result<Vec<Change>, Vec<String>> {
    let id = &image.id;
    match image.digest() {
        Some(digest) if digest == publication.image => {}
        Some(digest) => {
            return Err(vec![format!(
                "the name is taken: {id} is `{}` with other content (image {}, this one is {}); let `name` hold {{digest}} \
                 or {{version}}, or retire {id} first",
                image.name,
                digest.short(),
                publication.image.short()
            )]);
        }
        None => {
            return Err(vec![format!(
                "the name is taken: {id} is `{}` and wasn't made by Kiln; choose another name, or deregister it",
                image.name
            )]);
        }
    }
    let mut changes = Vec::new();
    let mut wrong = Vec::new();
    match image.state.as_str() {
        "available" => {}
        "pending" => changes.push(change("state", Some("pending"), Some("available"))),
        state => wrong.push(format!("{id} is {state}: enable it, or deregister it and publish again")),
    }
    if let Some(details) = &image.details {
        let fixed = fixed(target, details, region, root_snapshot(image, region));
        wrong.extend(fixed.into_iter().map(|(what, is, wanted)| {
            format!("{id} has {what} {is}, {wanted} is wanted, and that can't be changed: choose another `name`, or retire it")
        }));
        settings(target, details, &mut changes);
        deprecation(target, image, details, now, &mut changes);
    }
    tags_of("tag", &image.tags, &target.image_tags, &mut changes);
    if let Some(snapshot) = root_snapshot(image, region) {
        tags_of("snapshot tag", &snapshot.tags, &target.snapshot_tags, &mut changes);
        if let Some(is) = &snapshot.permissions {
            snapshot_permissions(is, &target.snapshot, &mut changes);
        }
    }
    parameters(target, region, Some(id), &mut changes, &mut wrong);
    if wrong.is_empty() { Ok(changes) } else { Err(wrong) }
}

/// What an image gets that isn't there yet.
pub(super) fn everything(target: &Target, region: &Region, wrong: &mut Vec<String>) -> Vec<Change> {
    let mut changes = Vec::new();
    let plain = Details::default();
    for (what, wanted) in made_of(target, region.encrypts(&target.encryption)) {
        changes.push(change(what, None, Some(&wanted)));
    }
    if target.imds_v2 {
        changes.push(change("imds", None, Some("v2.0")));
    }
    settings(target, &Details { imds_v2: target.imds_v2, ..plain }, &mut changes);
    if let Some(days) = target.deprecate_after {
        changes.push(change("deprecation", None, Some(&format!("after {days} days"))));
    }
    tags_of("tag", &BTreeMap::new(), &target.image_tags, &mut changes);
    tags_of("snapshot tag", &BTreeMap::new(), &target.snapshot_tags, &mut changes);
    snapshot_permissions(&SnapshotPermissions::default(), &target.snapshot, &mut changes);
    parameters(target, region, None, &mut changes, wrong);
    changes
}

/// How many calls it takes to set what `changes` lists. What is given with an image that is made costs none.
pub(super) fn calls(changes: &[Change], making: bool) -> u64 {
    let mut groups = BTreeSet::new();
    for change in changes {
        let what = change.what.as_str();
        let first = what.split_once(' ').map_or(what, |(first, _)| first);
        let group = match first {
            "tag" | "description" | "imds" if making => continue,
            "snapshot" if making && what.starts_with("snapshot tag ") => continue,
            "snapshot" if what.starts_with("snapshot tag ") => "snapshot tag",
            "tag" | "description" | "imds" | "snapshot" | "launch" | "deprecation" | "protection" => first,
            "parameter" => what,
            _ => continue,
        };
        groups.insert(group);
    }
    groups.len() as u64
}

fn change(what: &str, old: Option<&str>, new: Option<&str>) -> Change {
    Change { what: what.to_owned(), old: old.map(str::to_owned), new: new.map(str::to_owned) }
}

fn root_snapshot<'a>(image: &Image, region: &'a Region) -> Option<&'a Snapshot> {
    region.snapshot(image.snapshots.first()?)
}

/// EC2's word for an architecture.
pub(super) fn architecture(arch: Arch) -> &'static str {
    match arch {
        Arch::Amd64 => "x86_64",
        Arch::Arm64 => "arm64",
    }
}

/// What an image is made with and keeps.
fn made_of(target: &Target, encrypted: bool) -> Vec<(&'static str, String)> {
    let volume = &target.volume;
    let mut all = vec![
        ("architecture", architecture(target.arch).to_owned()),
        ("boot mode", target.boot_mode.as_str().to_owned()),
        ("ena", target.ena.to_string()),
        ("nitro_tpm", target.nitro_tpm.to_string()),
        ("root device", target.root_device.clone()),
        ("volume type", volume.kind.clone()),
        ("volume size", format!("{} GiB", volume.size)),
        ("delete on termination", volume.delete_on_termination.to_string()),
        ("encrypted", encrypted.to_string()),
    ];
    all.extend(volume.iops.map(|iops| ("volume iops", iops.to_string())));
    all.extend(volume.throughput.map(|rate| ("volume throughput", format!("{rate} MiB/s"))));
    all.extend(target.uefi_data.as_ref().map(|_| ("uefi data", "given".to_owned())));
    if let Encryption::Key(key) = &target.encryption {
        all.push(("kms key", key.clone()));
    }
    all
}

/// What differs and can't be changed: what, as it is, as it is to be.
fn fixed(
    target: &Target,
    is: &Details,
    region: &Region,
    snapshot: Option<&Snapshot>,
) -> Vec<(&'static str, String, String)> {
    let encrypted = region.encrypts(&target.encryption);
    let now = |what: &str| -> Option<String> {
        Some(match what {
            "architecture" => is.architecture.clone(),
            "boot mode" => is.boot_mode.map_or("none", BootMode::as_str).to_owned(),
            "ena" => is.ena.to_string(),
            "nitro_tpm" => is.nitro_tpm.to_string(),
            "root device" => is.root_device.clone(),
            "volume type" => is.volume.kind.clone(),
            "volume size" => format!("{} GiB", is.volume.size),
            "delete on termination" => is.volume.delete_on_termination.to_string(),
            // What was made before the account began to encrypt is as good as it was.
            "encrypted" if target.encryption == Encryption::AccountDefault => return None,
            "encrypted" => is.volume.encrypted.to_string(),
            "volume iops" => is.volume.iops.map_or("none".to_owned(), |iops| iops.to_string()),
            "volume throughput" => {
                is.volume.throughput.map_or("none".to_owned(), |rate| format!("{rate} MiB/s"))
            }
            "kms key" => return other_key(target, snapshot),
            _ => return None,
        })
    };
    let differs = |(what, wanted): (&'static str, String)| {
        let is = now(what)?;
        (is != wanted).then_some((what, is, wanted))
    };
    let mut found: Vec<_> = made_of(target, encrypted).into_iter().filter_map(differs).collect();
    if let (Some(wanted), Some(is)) = (&target.uefi_data, &is.uefi_data)
        && wanted != is
    {
        found.push(("uefi data", "of its own".to_owned(), "other".to_owned()));
    }
    if is.imds_v2 && !target.imds_v2 {
        found.push(("imds", "v2.0".to_owned(), "optional".to_owned()));
    }
    found
}

/// The key that a snapshot is under, when that is another one than is wanted. An alias can't be told from an ARN.
fn other_key(target: &Target, snapshot: Option<&Snapshot>) -> Option<String> {
    let Encryption::Key(wanted) = &target.encryption else { return None };
    let is = snapshot?.kms_key.as_ref()?;
    let same = wanted.contains("alias/") || is.rsplit('/').next() == wanted.rsplit('/').next();
    (!same).then(|| is.clone())
}

/// What an image can be given later.
fn settings(target: &Target, is: &Details, changes: &mut Vec<Change>) {
    if is.description != target.description {
        let old = (!is.description.is_empty()).then_some(is.description.as_str());
        changes.push(change("description", old, Some(&target.description)));
    }
    if target.imds_v2 && !is.imds_v2 {
        changes.push(change("imds", Some("optional"), Some("v2.0")));
    }
    let launch = &target.launch;
    for (what, is, wanted) in [
        ("launch account", &is.launch.accounts, &launch.accounts),
        ("launch organization", &is.launch.organizations, &launch.organizations),
        ("launch unit", &is.launch.organizational_units, &launch.organizational_units),
    ] {
        permissions(what, is, wanted, changes);
    }
    permission("launch all", is.launch.public, launch.public, changes);
    let shown = |protection: Option<Protection>| match protection {
        None => None,
        Some(Protection { cooldown: false }) => Some("on"),
        Some(Protection { cooldown: true }) => Some("on, with cooldown"),
    };
    if is.protection != target.protection {
        changes.push(change("protection", shown(is.protection), shown(target.protection)));
    }
}

fn deprecation(target: &Target, image: &Image, is: &Details, now: Timestamp, changes: &mut Vec<Change>) {
    let old = is.deprecation.map(|at| at.to_string());
    let Some(days) = target.deprecate_after else {
        // EC2 deprecates public images by itself.
        if is.deprecation.is_some() && !target.launch.public {
            changes.push(change("deprecation", old.as_deref(), None));
        }
        return;
    };
    let at = image.created.plus(i64::from(days) * DAY);
    let close = |is: Timestamp| (is.0 - at.0).abs() < MINUTE;
    // EC2 takes no time that has passed: what is deprecated already can't be deprecated earlier.
    let soon = now.plus(SOON);
    let past = |is: Timestamp| is < soon && at < soon;
    if !is.deprecation.is_some_and(|is| close(is) || past(is)) {
        changes.push(change("deprecation", old.as_deref(), Some(&at.to_string())));
    }
}

fn permissions(what: &str, is: &BTreeSet<String>, wanted: &BTreeSet<String>, changes: &mut Vec<Change>) {
    for name in is.union(wanted) {
        permission(&format!("{what} {name}"), is.contains(name), wanted.contains(name), changes);
    }
}

fn permission(what: &str, is: bool, wanted: bool, changes: &mut Vec<Change>) {
    if is != wanted {
        let shown = |allowed: bool| allowed.then_some("allowed");
        changes.push(change(what, shown(is), shown(wanted)));
    }
}

fn snapshot_permissions(is: &SnapshotPermissions, wanted: &SnapshotPermissions, changes: &mut Vec<Change>) {
    permissions("snapshot account", &is.accounts, &wanted.accounts, changes);
    permission("snapshot all", is.public, wanted.public, changes);
}

/// Tags that are missing or differ. Those that others added stay. Which publication made it stays what it was.
fn tags_of(
    what: &str,
    is: &BTreeMap<String, String>,
    wanted: &BTreeMap<String, String>,
    changes: &mut Vec<Change>,
) {
    for (key, new) in wanted {
        let old = is.get(key);
        if old != Some(new) && (old.is_none() || key != tags::PUBLICATION) {
            changes.push(change(&format!("{what} {key}"), old.map(String::as_str), Some(new)));
        }
    }
}

/// `image` is the id that they are to hold, absent while there is none.
fn parameters(
    target: &Target,
    region: &Region,
    image: Option<&str>,
    changes: &mut Vec<Change>,
    wrong: &mut Vec<String>,
) {
    for name in &target.parameters {
        let is = region.parameters.get(name);
        if let Some(is) = is.filter(|is| is.data_type != IMAGE_TYPE) {
            wrong.push(format!(
                "the parameter {name} has the data type {}, which can't be changed to {IMAGE_TYPE}: delete it, or take \
                 another name",
                is.data_type
            ));
        }
        let old = is.map(|is| is.value.as_str());
        if old.is_none() || old != image {
            changes.push(change(&format!("parameter {name}"), old, Some(image.unwrap_or("the new image"))));
        }
    }
}

/// Whether `CopyImage` of the one gives the other: it takes everything over from its source.
pub(super) fn same_image(a: &Target, b: &Target) -> bool {
    let kept = |target: &Target| {
        let mut all = made_of(target, false);
        all.retain(|(what, _)| !matches!(*what, "encrypted" | "kms key"));
        (all, target.imds_v2, target.uefi_data.clone())
    };
    kept(a) == kept(b)
}

/// Size of the volume that a snapshot of `size` bytes makes, in GiB.
pub(super) fn whole_gib(size: u64) -> u64 {
    size.div_ceil(GIB).max(1)
}
