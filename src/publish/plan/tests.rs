use proptest::prelude::*;

use super::super::observed::{Details, ObservedVolume, Parameter, Snapshot, SnapshotState};
use super::super::samples::{aws, publication, region};
use super::super::tags;
use super::super::target::Protection;
use super::*;
use crate::artifact::BLOCK;
use crate::date::DAY;
use crate::system::publish::{Aws, FanOut, Way as WantedWay};
use crate::units::GIB;

const NOW: Timestamp = Timestamp(1_790_000_000);
const ACCOUNT: &str = "111122223333";

/// 2 GiB, a quarter of which holds something.
fn blocks() -> Blocks {
    Blocks { total: 4094, needed: 1000, ..Blocks::default() }
}

fn empty() -> Region {
    Region { account: ACCOUNT.into(), ..Region::default() }
}

fn observed(publication: &Publication) -> Observed {
    publication.targets.keys().map(|name| (name.clone(), Ok(empty()))).collect()
}

fn planned(publication: &Publication, observed: &Observed) -> Plan {
    plan(publication, observed, &blocks(), NOW)
}

/// A region as the publication leaves it.
fn published(publication: &Publication, name: &str) -> Region {
    let target = &publication.targets[name];
    let image = Image {
        architecture: "x86_64".into(),
        id: format!("ami-{name}"),
        name: target.name.clone(),
        state: "available".into(),
        created: NOW.plus(-DAY),
        tags: target.image_tags.clone(),
        snapshots: vec![format!("snap-{name}")],
        details: Some(Details {
            description: target.description.clone(),
            architecture: "x86_64".into(),
            boot_mode: Some(target.boot_mode),
            ena: target.ena,
            imds_v2: target.imds_v2,
            nitro_tpm: target.nitro_tpm,
            uefi_data: None,
            root_device: target.root_device.clone(),
            volume: ObservedVolume {
                kind: target.volume.kind.clone(),
                size: target.volume.size,
                iops: Some(3000),
                throughput: Some(125),
                delete_on_termination: target.volume.delete_on_termination,
                encrypted: target.encryption != Encryption::AccountDefault,
            },
            launch: target.launch.clone(),
            deprecation: target.deprecate_after.map(|days| NOW.plus(-DAY + i64::from(days) * DAY - 17)),
            protection: target.protection,
        }),
    };
    let parameter = |name: &String| {
        (name.clone(), Parameter { value: image.id.clone(), data_type: "aws:ec2:image".into() })
    };
    Region {
        snapshots: vec![Snapshot {
            id: image.snapshots[0].clone(),
            state: SnapshotState::Completed,
            started: NOW.plus(-DAY),
            volume_size: target.volume.size,
            encrypted: target.encryption != Encryption::AccountDefault,
            kms_key: None,
            tags: target.snapshot_tags.clone(),
            permissions: Some(target.snapshot.clone()),
        }],
        parameters: target.parameters.iter().map(parameter).collect(),
        images: vec![image],
        ..empty()
    }
}

fn all_published(publication: &Publication) -> Observed {
    publication.targets.keys().map(|name| (name.clone(), Ok(published(publication, name)))).collect()
}

fn here<'a>(observed: &'a mut Observed, name: &str) -> &'a mut Region {
    observed.get_mut(name).unwrap().as_mut().unwrap()
}

fn way<'a>(plan: &'a Plan, region: &str) -> &'a Way {
    match &plan.regions[region].action {
        Action::Create { way, .. } => way,
        other => panic!("{other:?}"),
    }
}

fn changes(plan: &Plan, region: &str) -> Vec<String> {
    let shown = |c: &Change| {
        format!("{}: {} → {}", c.what, c.old.as_deref().unwrap_or("-"), c.new.as_deref().unwrap_or("-"))
    };
    plan.regions[region].changes.iter().map(shown).collect()
}

/// With everything that can be set later.
fn rich() -> Aws {
    let mut wanted = aws(&["eu-central-1"]);
    wanted.launch.accounts.insert("444455556666".into(), true);
    wanted.snapshot.accounts.insert("777788889999".into(), true);
    wanted.deprecate_after = 90;
    wanted.protection.enable = true;
    wanted.parameters.insert("/images/{name}".into(), true);
    wanted.tags.insert("Team".into(), "base".into());
    wanted
}

#[test]
fn an_empty_region_gets_everything() {
    let publication = publication(rich());
    let plan = planned(&publication, &observed(&publication));
    assert_eq!(way(&plan, "eu-central-1"), &Way::Upload { blocks: 1000 });
    let cost = plan.cost;
    // Start, complete, register; launch and snapshot permissions, deprecation, protection, the parameter.
    assert_eq!((cost.blocks, cost.calls), (1000, 1000 + 3 + 5));
    assert_eq!(cost.bytes, Bytes(1000 * BLOCK));
    assert_eq!(cost.usd.to_string(), "$0.0060");
    assert!(changes(&plan, "eu-central-1").contains(&"parameter /images/web: - → the new image".to_owned()));
    assert!(changes(&plan, "eu-central-1").contains(&"boot mode: - → uefi-preferred".to_owned()));
    plan.check().unwrap();
    assert!(!plan.is_done());
}

#[test]
fn what_is_published_needs_nothing() {
    for wanted in [rich(), aws(&["eu-central-1", "us-east-1"])] {
        let publication = publication(wanted);
        let plan = planned(&publication, &all_published(&publication));
        assert!(plan.is_done(), "{:?}", changes(&plan, "eu-central-1"));
        assert_eq!(plan.cost, Cost::default());
    }
}

#[test]
fn a_further_region_changes_nothing_in_the_others() {
    let before = publication(aws(&["eu-central-1"]));
    let after = publication(aws(&["eu-central-1", "us-east-1"]));
    assert_ne!(before.id, after.id);
    let mut observed = all_published(&before);
    observed.insert("us-east-1".into(), Ok(empty()));
    let plan = planned(&after, &observed);
    assert_eq!(plan.regions["eu-central-1"].action, Action::Nothing { image: "ami-eu-central-1".into() });
    assert_eq!(way(&plan, "us-east-1"), &Way::Upload { blocks: 1000 });
}

#[test]
fn a_deprecation_that_has_passed_is_no_change_each_time() {
    let mut wanted = rich();
    wanted.deprecate_after = 90;
    let publication = publication(wanted);
    let mut observed = all_published(&publication);
    let image = &mut here(&mut observed, "eu-central-1").images[0];
    image.created = NOW.plus(-200 * DAY);
    // EC2 took no time that had passed: some later minute, which has passed by now, too.
    image.details.as_mut().unwrap().deprecation = Some(NOW.plus(-DAY));
    let action = |observed: &Observed| planned(&publication, observed).regions["eu-central-1"].action.clone();
    assert_eq!(action(&observed), Action::Nothing { image: "ami-eu-central-1".into() });
    here(&mut observed, "eu-central-1").images[0].details.as_mut().unwrap().deprecation = Some(NOW.plus(DAY));
    assert_eq!(action(&observed), Action::Change { image: "ami-eu-central-1".into() });
}

#[test]
fn every_setting_that_differs_is_told_old_and_new() {
    let publication = publication(rich());
    let mut observed = all_published(&publication);
    let region = here(&mut observed, "eu-central-1");
    region.parameters.get_mut("/images/web").unwrap().value = "ami-old".into();
    region.snapshots[0].permissions = Some(super::super::target::SnapshotPermissions::default());
    region.snapshots[0].tags.insert("Team".into(), "old".into());
    let image = &mut region.images[0];
    image.tags.remove("Team");
    image.tags.insert("Cost centre".into(), "of others".into());
    let details = image.details.as_mut().unwrap();
    details.description = "old".into();
    details.imds_v2 = false;
    details.launch.public = true;
    details.launch.accounts = ["222222222222".to_owned()].into();
    details.deprecation = None;
    details.protection = Some(Protection { cooldown: true });
    let plan = planned(&publication, &observed);
    insta::assert_snapshot!(changes(&plan, "eu-central-1").join("\n"), @"
    description: old → web 1.2 (amd64), packages of 20260912
    imds: optional → v2.0
    launch account 222222222222: allowed → -
    launch account 444455556666: - → allowed
    launch all: allowed → -
    protection: on, with cooldown → on
    deprecation: - → 2026-12-19T14:13:20Z
    tag Team: - → base
    snapshot tag Team: old → base
    snapshot account 777788889999: - → allowed
    parameter /images/web: ami-old → ami-eu-central-1
    ");
    assert_eq!(plan.cost.calls, 9);
    assert_eq!(plan.cost.bytes, Bytes(0));
}

#[test]
fn a_name_with_other_content_is_refused() {
    let publication = publication(aws(&["eu-central-1", "us-east-1"]));
    let mut observed = all_published(&publication);
    let other = Digest::of(b"other").to_string();
    here(&mut observed, "eu-central-1").images[0].tags.insert(tags::IMAGE.into(), other);
    here(&mut observed, "us-east-1").images[0].tags.clear();
    let refused = planned(&publication, &observed).check().unwrap_err().to_string();
    assert!(refused.contains("eu-central-1: the name is taken: ami-eu-central-1"), "{refused}");
    assert!(refused.contains("with other content"), "{refused}");
    assert!(
        refused.contains("us-east-1: the name is taken") && refused.contains("wasn't made by Kiln"),
        "{refused}"
    );
}

#[test]
fn what_cannot_be_changed_is_refused() {
    let publication = publication(aws(&["eu-central-1"]));
    for (change, expected) in [
        (
            &(|d: &mut Details| d.architecture = "arm64".into()) as &dyn Fn(&mut Details),
            "architecture arm64, x86_64",
        ),
        (&|d| d.boot_mode = None, "boot mode none, uefi-preferred is wanted"),
        (&|d| d.ena = false, "ena false, true"),
        (&|d| d.nitro_tpm = true, "nitro_tpm true, false"),
        (&|d| d.root_device = "/dev/sda1".into(), "root device /dev/sda1, /dev/xvda"),
        (&|d| d.volume.kind = "gp2".into(), "volume type gp2, gp3"),
        (&|d| d.volume.size = 9, "volume size 9 GiB, 2 GiB"),
        (&|d| d.volume.delete_on_termination = false, "delete on termination false, true"),
    ] {
        let mut observed = all_published(&publication);
        change(here(&mut observed, "eu-central-1").images[0].details.as_mut().unwrap());
        let refused = planned(&publication, &observed).check().unwrap_err().to_string();
        assert!(refused.contains(expected), "{expected}: {refused}");
    }
}

#[test]
fn encryption_and_sharing_are_looked_at_as_the_account_has_them() {
    let mut wanted = aws(&["eu-central-1"]);
    wanted.launch.accounts.insert("444455556666".into(), true);
    let shared = publication(wanted.clone());
    let mut observed = observed(&shared);
    here(&mut observed, "eu-central-1").encryption_by_default = true;
    let refused = planned(&shared, &observed).check().unwrap_err().to_string();
    assert!(refused.contains("under a key that others can't use"), "{refused}");
    wanted.kms_key = Some("alias/images".into());
    let plan = planned(&publication(wanted), &observed);
    assert_eq!(way(&plan, "eu-central-1"), &Way::Upload { blocks: 4094 }, "holes go up as zeros");
    let mut wanted = aws(&["eu-central-1"]);
    wanted.launch.public = true;
    let public = publication(wanted);
    let refused = planned(&public, &observed).check().unwrap_err().to_string();
    assert!(refused.contains("an encrypted one can't be public"), "{refused}");
    *here(&mut observed, "eu-central-1") = Region { public_images: PublicAccess::BlocksNew, ..empty() };
    let refused = planned(&public, &observed).check().unwrap_err().to_string();
    assert!(refused.contains("the account blocks public images"), "{refused}");
}

/// A snapshot that an earlier image refers to.
fn earlier(id: &str, of: &[u8], age: i64) -> (Image, Snapshot) {
    let tags: BTreeMap<String, String> =
        [(tags::IMAGE, Digest::of(of).to_string()), (tags::SYSTEM, "web".to_owned())]
            .map(|(key, value)| (key.to_owned(), value))
            .into();
    let image = Image {
        architecture: "x86_64".into(),
        id: format!("ami-{id}"),
        name: format!("web-{id}"),
        state: "available".into(),
        created: NOW.plus(-age * DAY),
        tags: tags.clone(),
        snapshots: vec![format!("snap-{id}")],
        details: None,
    };
    let snapshot = Snapshot {
        id: format!("snap-{id}"),
        state: SnapshotState::Completed,
        started: image.created,
        volume_size: 2,
        tags,
        ..Snapshot::default()
    };
    (image, snapshot)
}

fn with(earlier: Vec<(Image, Snapshot)>) -> Region {
    let (images, snapshots) = earlier.into_iter().unzip();
    Region { images, snapshots, ..empty() }
}

#[test]
fn the_parent_of_a_delta_is_the_one_that_the_fewest_blocks_differ_from() {
    let publication = publication(aws(&["eu-central-1"]));
    let old = || vec![earlier("a", b"a", 3), earlier("b", b"b", 2), earlier("c", b"c", 1)];
    let planned = |region: Region, deltas: &[(&[u8], u64)]| {
        let deltas = deltas.iter().map(|(of, count)| (Digest::of(of), *count)).collect();
        let observed = Observed::from([("eu-central-1".to_owned(), Ok(region))]);
        plan(&publication, &observed, &Blocks { deltas, ..blocks() }, NOW)
    };
    let delta =
        |id: &str, of: &[u8], blocks| Way::Delta { parent: format!("snap-{id}"), of: Digest::of(of), blocks };
    let known: &[(&[u8], u64)] = &[(b"a", 90), (b"b", 70), (b"c", 80)];
    assert_eq!(way(&planned(with(old()), known), "eu-central-1"), &delta("b", b"b", 70));
    assert_eq!(way(&planned(with(old()), &[(b"a", 90), (b"c", 90)]), "eu-central-1"), &delta("c", b"c", 90));
    let mut same = old();
    same.push(earlier("d", b"image", 9));
    assert_eq!(way(&planned(with(same), known), "eu-central-1"), &delta("d", b"image", 0));
    let full = |region: Region, deltas: &[(&[u8], u64)], reason: &str| {
        let plan = planned(region, deltas);
        assert!(matches!(way(&plan, "eu-central-1"), Way::Upload { .. }));
        let notes = plan.regions["eu-central-1"].notes.join(" ");
        assert!(notes.contains(reason), "{reason}: {notes}");
    };
    full(empty(), known, "no earlier snapshot of web is here");
    full(with(old()), &[], "aren't known on this host");
    full(with(old()), &[(b"a", 1000)], "as many blocks differ");
    full(Region { encryption_by_default: true, ..with(old()) }, known, "can't have a parent");
    let changed = |change: fn(&mut Snapshot)| {
        let mut region = with(old());
        region.snapshots.iter_mut().for_each(change);
        region
    };
    full(changed(|s| s.encrypted = true), known, "are encrypted");
    full(changed(|s| s.volume_size = 3), known, "of larger disks");
    full(changed(|s| s.state = SnapshotState::Pending), known, "no earlier snapshot");
}

#[test]
fn what_was_begun_goes_on() {
    let publication = publication(aws(&["eu-central-1"]));
    let region = |state: SnapshotState, more: &[(&str, &str)]| {
        let mut tags = publication.targets["eu-central-1"].snapshot_tags.clone();
        tags.extend(more.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        let snapshot = Snapshot { id: "snap-1".into(), state, volume_size: 2, tags, ..Snapshot::default() };
        Observed::from([("eu-central-1".to_owned(), Ok(Region { snapshots: vec![snapshot], ..empty() }))])
    };
    let way = |observed: &Observed, blocks: &Blocks| {
        way(&plan(&publication, observed, blocks, NOW), "eu-central-1").clone()
    };
    let journal = Blocks { there: [("snap-1".to_owned(), 983)].into(), ..blocks() };
    let resume = |blocks| Way::Resume { snapshot: "snap-1".into(), blocks };
    assert_eq!(way(&region(SnapshotState::Pending, &[]), &journal), resume(17));
    assert_eq!(way(&region(SnapshotState::Pending, &[]), &blocks()), resume(1000));
    let mut on = region(SnapshotState::Pending, &[(tags::PARENT, "snap-a")]);
    assert_eq!(way(&on, &blocks()), Way::Upload { blocks: 1000 });
    let (image, snapshot) = earlier("a", b"a", 9);
    here(&mut on, "eu-central-1").images.push(image);
    here(&mut on, "eu-central-1").snapshots.push(snapshot);
    let known = Blocks { deltas: [(Digest::of(b"a"), 33)].into(), ..blocks() };
    assert_eq!(way(&on, &known), resume(33));
    let begun = Blocks { there: [("snap-1".to_owned(), 30)].into(), ..known };
    assert_eq!(way(&on, &begun), resume(3));
    let copy = region(SnapshotState::Pending, &[(tags::FROM, "us-east-1")]);
    assert_eq!(way(&copy, &blocks()), Way::Await { snapshot: "snap-1".into(), from: "us-east-1".into() });
    assert_eq!(
        way(&region(SnapshotState::Completed, &[]), &blocks()),
        Way::Register { snapshot: "snap-1".into() }
    );
    assert_eq!(way(&region(SnapshotState::Unusable, &[]), &blocks()), Way::Upload { blocks: 1000 });
    let other = Digest::of(b"another publication").to_string();
    let stranger = region(SnapshotState::Pending, &[(tags::PUBLICATION, &other)]);
    assert_eq!(way(&stranger, &blocks()), Way::Upload { blocks: 1000 });
    let notes = plan(&publication, &stranger, &blocks(), NOW).regions["eu-central-1"].notes.join(" ");
    assert!(notes.contains("no image refers to snap-1"), "{notes}");
}

#[test]
fn an_image_that_failed_is_replaced_and_one_on_its_way_awaited() {
    let publication = publication(aws(&["eu-central-1"]));
    let mut observed = all_published(&publication);
    here(&mut observed, "eu-central-1").images[0].state = "failed".into();
    let Action::Create { replaces, .. } =
        &planned(&publication, &observed).regions["eu-central-1"].action.clone()
    else {
        panic!("not made anew")
    };
    assert_eq!(replaces.as_deref(), Some("ami-eu-central-1"));
    here(&mut observed, "eu-central-1").images[0].state = "pending".into();
    assert_eq!(changes(&planned(&publication, &observed), "eu-central-1"), ["state: pending → available"]);
    here(&mut observed, "eu-central-1").images[0].state = "disabled".into();
    assert!(
        planned(&publication, &observed).check().unwrap_err().to_string().contains("is disabled: enable it")
    );
}

#[test]
fn copies_are_made_where_they_are_asked_for_or_cheaper() {
    let regions = ["eu-central-1", "us-east-1", "us-east-2"];
    let upload = publication(aws(&regions));
    let plan_of = |publication: &Publication| planned(publication, &observed(publication));
    let plan = plan_of(&upload);
    // A GiB of blocks costs 1.2 cents to put and 2 to copy, but 1 between the two in the US east.
    assert_eq!(way(&plan, "eu-central-1"), &Way::Upload { blocks: 1000 });
    assert_eq!(way(&plan, "us-east-1"), &Way::Upload { blocks: 1000 });
    assert_eq!(way(&plan, "us-east-2"), &Way::CopySnapshot { from: "us-east-1".into() });
    let asked = |fan_out: FanOut, own: &[(&str, FanOut)]| {
        let mut wanted = aws(&regions);
        wanted.upload.fan_out = fan_out;
        for (name, fan_out) in own {
            wanted.regions.get_mut(*name).unwrap().upload.fan_out = Some(*fan_out);
        }
        plan_of(&publication(wanted))
    };
    let plan = asked(FanOut::CopySnapshot, &[]);
    assert_eq!(way(&plan, "eu-central-1"), &Way::Upload { blocks: 1000 });
    assert_eq!(way(&plan, "us-east-2"), &Way::CopySnapshot { from: "eu-central-1".into() });
    let plan = asked(FanOut::CopyImage, &[("us-east-1", FanOut::Upload)]);
    assert_eq!(way(&plan, "us-east-1"), &Way::Upload { blocks: 1000 });
    assert_eq!(way(&plan, "eu-central-1"), &Way::CopyImage { from: "us-east-1".into() });
    let plan = asked(FanOut::Upload, &[]);
    assert!(regions.iter().all(|name| matches!(way(&plan, name), Way::Upload { .. })));
}

#[test]
fn a_copy_that_cannot_be_made_is_told() {
    let mut wanted = aws(&["eu-central-1", "us-east-1"]);
    wanted.upload.fan_out = FanOut::CopyImage;
    wanted.regions.get_mut("us-east-1").unwrap().ena = Some(false);
    let copied = publication(wanted);
    let mut seen = observed(&copied);
    let plan = planned(&copied, &seen);
    assert_eq!(way(&plan, "us-east-1"), &Way::CopySnapshot { from: "eu-central-1".into() });
    assert!(plan.regions["us-east-1"].notes[0].contains("differs from its source's settings"));
    here(&mut seen, "us-east-1").account = "999999999999".into();
    let refused = planned(&copied, &seen).check().unwrap_err().to_string();
    assert!(
        refused.contains("us-east-1: a copy was asked for") && refused.contains("another account's"),
        "{refused}"
    );
}

#[test]
fn an_import_from_a_bucket_sends_the_whole_disk() {
    let mut wanted = aws(&["eu-central-1"]);
    wanted.upload.way = WantedWay::S3Import;
    wanted.upload.bucket = Some("images".into());
    let publication = publication(wanted);
    let plan = planned(&publication, &observed(&publication));
    assert_eq!(way(&plan, "eu-central-1"), &Way::S3Import { bucket: "images".into() });
    assert_eq!((plan.cost.blocks, plan.cost.bytes), (0, Bytes(4094 * BLOCK)));
}

#[test]
fn the_image_to_come_counts_for_retention() {
    let mut wanted = aws(&["eu-central-1"]);
    wanted.retention.keep = Some(2);
    wanted.parameters.insert("/images/web".into(), true);
    let publication = publication(wanted);
    let mut region = with(vec![earlier("a", b"a", 3), earlier("b", b"b", 2), earlier("c", b"c", 1)]);
    let named = Parameter { value: "ami-a".into(), data_type: "aws:ec2:image".into() };
    region.parameters.insert("/images/web".into(), named);
    let plan = planned(&publication, &Observed::from([("eu-central-1".to_owned(), Ok(region))]));
    assert_eq!(plan.regions["eu-central-1"].retires.keys().collect::<Vec<_>>(), ["ami-b"]);
}

#[test]
fn a_parameter_of_another_type_is_refused() {
    let publication = publication(rich());
    let mut observed = observed(&publication);
    let text = Parameter { value: "ami-1".into(), data_type: "text".into() };
    here(&mut observed, "eu-central-1").parameters.insert("/images/web".into(), text);
    assert!(planned(&publication, &observed).check().unwrap_err().to_string().contains("data type text"));
}

#[test]
fn regions_that_do_not_answer_count_where_they_are_required() {
    let mut wanted = aws(&["eu-central-1"]);
    wanted.regions.insert("us-east-1".into(), crate::system::publish::Region { required: false, ..region() });
    let publication = publication(wanted);
    let mut observed = observed(&publication);
    observed.insert("us-east-1".into(), Err("no answer within 30 s".into()));
    let plan = planned(&publication, &observed);
    plan.check().unwrap();
    assert_eq!(plan.refused(), [("us-east-1".to_owned(), "no answer within 30 s".to_owned())]);
    observed.insert("eu-central-1".into(), Err("no answer".into()));
    assert!(planned(&publication, &observed).check().is_err());
    observed.clear();
    assert!(planned(&publication, &observed).check().unwrap_err().to_string().contains("it was not asked"));
}

#[test]
fn a_plan_is_shown_as_a_table() {
    let mut wanted = rich();
    for name in ["ap-south-1", "eu-west-1", "us-east-1", "us-east-2"] {
        wanted.regions.insert(name.into(), region());
    }
    wanted.regions.get_mut("us-east-2").unwrap().required = false;
    let publication = publication(wanted);
    let mut observed = all_published(&publication);
    here(&mut observed, "ap-south-1").images[0].details.as_mut().unwrap().description = "old".into();
    *here(&mut observed, "eu-west-1") = with(vec![earlier("0123", b"a", 3)]);
    here(&mut observed, "us-east-1").images[0].tags.clear();
    observed.insert("us-east-2".into(), Err("no answer within 30 s".into()));
    let deltas = [(Digest::of(b"a"), 12)].into();
    let plan = plan(&publication, &observed, &Blocks { deltas, ..blocks() }, NOW);
    insta::assert_snapshot!(table(&plan), @"
    web 1.2: image 6105d6cc76af, 1.9 GiB, 1000 of 4094 blocks hold something

    region                   account       action       how                              to send  calls    price
    ap-south-1               111122223333  change       ami-ap-south-1                         -      1        -
    eu-central-1             111122223333  nothing      ami-eu-central-1                       -      -        -
    eu-west-1                111122223333  create       delta of 12 blocks on snap-0123    6 MiB     20  $0.0001
    us-east-1                111122223333  REFUSED                                             -      -        -
    us-east-2 (best effort)  -             UNREACHABLE                                         -      -        -
    in all                                                                                 6 MiB     21  $0.0001

    ap-south-1
      ~ description: old → web 1.2 (amd64), packages of 20260912

    eu-west-1
      + web-1.2-amd64-20260912-6105d6cc76af
      + launch account 444455556666: allowed
      + protection: on
      + deprecation: after 90 days
      + snapshot account 777788889999: allowed
      + parameter /images/web: the new image

    us-east-1
      ! the name is taken: ami-us-east-1 is `web-1.2-amd64-20260912-6105d6cc76af` and wasn't made by Kiln; choose another name, or deregister it

    us-east-2
      ! no answer within 30 s

    Keeping the new snapshots costs about $0.0003 a month. List prices of 2026-11; yours may differ.
    ");
}

#[test]
fn a_plan_is_json_too() {
    let mut wanted = aws(&["eu-central-1"]);
    wanted.name = "{name}".into();
    let publication = publication(wanted);
    let plan = planned(&publication, &observed(&publication));
    let json = serde_json::to_value(&plan).unwrap();
    let region = &json["regions"]["eu-central-1"];
    assert_eq!(region["action"], "create");
    assert_eq!(region["way"], serde_json::json!({ "by": "upload", "blocks": 1000 }));
    assert_eq!(region["cost"]["usd"], 0.006);
    assert_eq!(json["cost"]["calls"], 1003);
    let done = serde_json::to_value(planned(&publication, &all_published(&publication))).unwrap();
    assert_eq!(done["regions"]["eu-central-1"]["action"], "nothing");
    assert_eq!(done["regions"]["eu-central-1"]["image"], "ami-eu-central-1");
}

proptest! {
    /// Whatever regions hold: no panic, sums that add up, sources that have or get the image, and no more sent than there is.
    #[test]
    fn plans_hold_together(
        regions in proptest::collection::btree_map(
            proptest::sample::select(vec!["eu-central-1", "eu-west-1", "us-east-1", "us-east-2", "sa-east-1", "xx-far-1"]),
            (0usize..4, 0usize..4, any::<bool>(), any::<bool>(), 0usize..5, 0u64..1200),
            1..6,
        ),
        encrypt in any::<bool>(),
    ) {
        let mut wanted = aws(&regions.keys().copied().collect::<Vec<_>>());
        wanted.encrypt = encrypt.then_some(true);
        for (name, (fan_out, ..)) in &regions {
            let ways = [FanOut::Cheapest, FanOut::Upload, FanOut::CopySnapshot, FanOut::CopyImage];
            wanted.regions.get_mut(*name).unwrap().upload.fan_out = Some(ways[*fan_out]);
        }
        let publication = publication(wanted);
        let mut known = blocks();
        let mut observed = Observed::new();
        for (name, (_, state, default, own_account, others, differ)) in &regions {
            let mut region = match state {
                0 => published(&publication, name),
                1 => with((0..*others).map(|n| earlier(&n.to_string(), &[n as u8], n as i64)).collect()),
                _ => empty(),
            };
            region.encryption_by_default = *default;
            if *own_account { region.account = format!("9{name}"); }
            known.deltas.insert(Digest::of(&[*others as u8]), *differ);
            let answer = if *state == 3 { Err("down".to_owned()) } else { Ok(region) };
            observed.insert((*name).to_owned(), answer);
        }
        let plan = plan(&publication, &observed, &known, NOW);
        let mut sum = Cost::default();
        for (name, region) in &plan.regions {
            sum.add(&region.cost);
            prop_assert!(region.cost.blocks <= known.total);
            if let Action::Create { way: Way::CopySnapshot { from } | Way::CopyImage { from }, .. } = &region.action {
                let source = &plan.regions[from];
                prop_assert!(from != name && source.account == region.account);
                let copy = |way: &Way| matches!(way, Way::CopySnapshot { .. } | Way::CopyImage { .. });
                let has = match &source.action {
                    Action::Create { way, .. } => !copy(way),
                    Action::Nothing { .. } | Action::Change { .. } => true,
                    _ => false,
                };
                prop_assert!(has, "{} copies from {}", name, from);
            }
        }
        prop_assert_eq!(sum, plan.cost);
        prop_assert!(u64::from(publication.targets.values().next().unwrap().volume.size) * GIB >= publication.size.0);
        let _ = table(&plan);
        prop_assert_eq!(plan.check().is_err(), !plan.refused().is_empty());
    }
}
