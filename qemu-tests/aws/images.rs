//! Images made, copied, released, found again and retired, and what is asked before; each setting seen on the wire.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Duration;

use kiln::arch::Arch;
use kiln::aws::ask::{Note, Patience};
use kiln::aws::copy::{self, Source};
use kiln::aws::credentials::Environment;
use kiln::aws::image::{self, Ami, ImageError};
use kiln::aws::preflight::{self, Finding, Question, State, Way};
use kiln::aws::release::{self, ReleaseError};
use kiln::aws::retire::{self, Orphan, Outcome};
use kiln::aws::{Cloud, Options, Region, list, observe};
use kiln::date::{DAY, Timestamp};
use kiln::digest::Digest;
use kiln::publish::observed::{PublicAccess, SnapshotState};
use kiln::publish::target::{
    BootMode, Encryption, FanOut, LaunchPermissions, Protection, Retention, SnapshotPermissions, Upload,
    Volume,
};
use kiln::publish::{Publication, Target, tags};
use kiln::units::{Bytes, GIB};
use serde_json::{Value, json};

use super::local::Local;
use super::wire;

const ACCOUNT: &str = "123456789012";
const ORGANIZATION: &str = "arn:aws:organizations::123456789012:organization/o-kilntest00";
const UNIT: &str = "arn:aws:organizations::123456789012:ou/o-kilntest00/ou-test-00000001";
/// Nothing takes long here.
const SOON: Patience = Patience {
    first: Duration::from_millis(10),
    most: Duration::from_millis(50),
    limit: Duration::from_secs(20),
};
const READING: [&str; 4] = ["Describe", "Get", "List", "Head"];

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// A server and its regions.
struct Case {
    local: Local,
    cloud: Cloud,
    notes: Mutex<Vec<Note>>,
}

impl Case {
    fn new() -> Case {
        let local = Local::start();
        let home = tempfile::tempdir().unwrap();
        let keys = [("AWS_ACCESS_KEY_ID", "AKIATEST"), ("AWS_SECRET_ACCESS_KEY", "secret")];
        let options = Options { endpoint: Some(local.url().to_owned()), ..Options::default() };
        let environment = Environment::new(home.path(), &keys);
        let cloud = local.run(Cloud::connect_in(options, environment)).unwrap();
        Case { local, cloud, notes: Mutex::default() }
    }

    fn region(&self, name: &str) -> Region {
        self.local.run(self.cloud.region(name, None)).unwrap()
    }

    fn tell(&self, note: Note) {
        self.notes.lock().unwrap().push(note);
    }

    /// A completed snapshot of one block.
    fn snapshot(&self, region: &Region, tags: &BTreeMap<String, String>, encrypted: bool) -> String {
        self.local.run(async {
            let tag = |(key, value): (&String, &String)| {
                aws_sdk_ebs::types::Tag::builder().key(key).value(value).build()
            };
            let start =
                region.ebs.start_snapshot().volume_size(1).set_tags(Some(tags.iter().map(tag).collect()));
            let start = start.set_encrypted(encrypted.then_some(true));
            let id = start.send().await.unwrap().snapshot_id.unwrap();
            region.ebs.complete_snapshot().snapshot_id(&id).changed_blocks_count(0).send().await.unwrap();
            copy::completed(region, &id, SOON, &|note| self.tell(note)).await.unwrap();
            id
        })
    }

    fn register(&self, region: &Region, target: &Target, snapshot: &str) -> Result<Ami, ImageError> {
        let tell = |note| self.tell(note);
        self.local.run(async {
            let id = image::register(region, target, snapshot, &tell).await?;
            image::available(region, &id, SOON, &tell).await
        })
    }

    /// An image as `target` wants it, but for what the second phase does.
    fn made(&self, region: &Region, target: &Target) -> Ami {
        let snapshot = self.snapshot(region, &target.snapshot_tags, false);
        self.register(region, target, &snapshot).unwrap()
    }

    fn release(&self, region: &Region, target: &Target, id: &str) -> Vec<String> {
        let tell = |note| self.tell(note);
        let changes = self.local.run(async {
            let mut changes = release::settings(region, target, id, &tell).await?;
            changes.extend(release::parameters(region, target, id, SOON, &tell).await?);
            Ok::<_, ReleaseError>(changes)
        });
        changes.unwrap().iter().map(ToString::to_string).collect()
    }

    fn preflight(&self, region: &Region, target: &Target, way: Way<'_>) -> Vec<Finding> {
        let publication = publication();
        let question = Question { publication: &publication, target, way, takes: Duration::from_secs(600) };
        self.local.run(preflight::region(region, &question)).unwrap()
    }

    /// What was asked of an operation, in botocore's words.
    fn asked(&self, operation: &str) -> Vec<Value> {
        let of = wire::log(&self.local).into_iter().filter(|entry| entry["operation"] == operation);
        of.map(|entry| entry["parameters"].clone()).collect()
    }

    /// The operations since `from` that changed something.
    fn changes(&self, from: usize) -> Vec<String> {
        let log = wire::log(&self.local).into_iter().skip(from);
        let names = log.map(|entry| entry["operation"].as_str().unwrap().to_owned());
        names.filter(|name| !READING.iter().any(|start| name.starts_with(start))).collect()
    }
}

impl Drop for Case {
    /// Whatever a test is about, all that it asked is what AWS's own models allow.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            wire::check(&self.local);
        }
    }
}

fn publication() -> Publication {
    Publication {
        id: Digest::of(b"publication"),
        system: "server".to_owned(),
        version: "1.2".to_owned(),
        lock: Digest::of(b"lock"),
        image: Digest::of(b"image"),
        size: Bytes(GIB),
        tested: true,
        targets: BTreeMap::new(),
    }
}

/// As little as there may be.
fn plain() -> Target {
    let publication = publication();
    let mut own = tags::own(&tags::Facts {
        publication: publication.id,
        image: publication.image,
        system: &publication.system,
        version: &publication.version,
        lock: publication.lock,
        tested: true,
    });
    own.insert("Name".to_owned(), "server-1.2".to_owned());
    Target {
        id: publication.id,
        region: "eu-central-1".to_owned(),
        required: true,
        role: None,
        name: "server-1.2".to_owned(),
        description: String::new(),
        arch: Arch::Amd64,
        boot_mode: BootMode::UefiPreferred,
        ena: true,
        imds_v2: false,
        nitro_tpm: false,
        uefi_data: None,
        root_device: "/dev/xvda".to_owned(),
        volume: Volume {
            kind: "gp3".to_owned(),
            size: 2,
            iops: None,
            throughput: None,
            delete_on_termination: true,
        },
        encryption: Encryption::AccountDefault,
        image_tags: own.clone(),
        snapshot_tags: own,
        launch: LaunchPermissions::default(),
        snapshot: SnapshotPermissions::default(),
        deprecate_after: None,
        protection: None,
        parameters: BTreeSet::new(),
        retention: Retention::default(),
        upload: Upload::EbsDirect(FanOut::Cheapest),
    }
}

/// Everything that there is to say.
fn full() -> Target {
    let mut target = plain();
    target.description = "A server".to_owned();
    target.boot_mode = BootMode::Uefi;
    target.imds_v2 = true;
    target.nitro_tpm = true;
    target.uefi_data = Some("QU1aTlVFRkkAAAAA".to_owned());
    target.root_device = "/dev/sda1".to_owned();
    target.volume = Volume {
        kind: "gp3".to_owned(),
        size: 8,
        iops: Some(4000),
        throughput: Some(250),
        delete_on_termination: false,
    };
    target.image_tags.insert("team".to_owned(), "platform".to_owned());
    target.snapshot_tags.insert("backup".to_owned(), "no".to_owned());
    target.launch = LaunchPermissions {
        accounts: set(&["111122223333", "444455556666"]),
        organizations: set(&[ORGANIZATION]),
        organizational_units: set(&[UNIT]),
        public: false,
    };
    target.snapshot = SnapshotPermissions { accounts: set(&["111122223333"]), public: false };
    target.deprecate_after = Some(90);
    target.protection = Some(Protection { cooldown: true });
    target.parameters = set(&["/images/server/latest", "/images/server/1.2"]);
    target
}

fn tag_list(tags: &BTreeMap<String, String>) -> Value {
    tags.iter().map(|(key, value)| json!({ "Key": key, "Value": value })).collect()
}

#[test]
fn every_setting_of_an_image_is_on_the_wire() {
    let case = Case::new();
    let region = case.region("eu-central-1");
    let target = full();
    let snapshot = case.snapshot(&region, &target.snapshot_tags, false);
    let ami = case.register(&region, &target, &snapshot).unwrap();
    assert_eq!(ami.snapshots, std::slice::from_ref(&snapshot));
    let wanted = json!({
        "Name": "server-1.2",
        "Description": "A server",
        "Architecture": "x86_64",
        "VirtualizationType": "hvm",
        "EnaSupport": true,
        "BootMode": "uefi",
        "TpmSupport": "v2.0",
        "ImdsSupport": "v2.0",
        "UefiData": "QU1aTlVFRkkAAAAA",
        "RootDeviceName": "/dev/sda1",
        "BlockDeviceMappings": [{
            "DeviceName": "/dev/sda1",
            "Ebs": {
                "SnapshotId": snapshot,
                "VolumeType": "gp3",
                "VolumeSize": 8,
                "Iops": 4000,
                "Throughput": 250,
                "DeleteOnTermination": false,
            },
        }],
        "TagSpecifications": [{ "ResourceType": "image", "Tags": tag_list(&target.image_tags) }],
    });
    assert_eq!(sorted(case.asked("RegisterImage")), sorted(vec![wanted]));
    let changed = case.release(&region, &target, &ami.id);
    assert_eq!(changed.len(), 6, "{changed:?}");
    let deprecation = Timestamp((ami.created.0 + 90 * DAY).div_euclid(60) * 60);
    assert_eq!(
        case.asked("ModifySnapshotAttribute"),
        [
            json!({ "SnapshotId": snapshot, "CreateVolumePermission": { "Add": [{ "UserId": "111122223333" }] } })
        ]
    );
    assert_eq!(
        case.asked("ModifyImageAttribute"),
        [json!({ "ImageId": ami.id, "LaunchPermission": { "Add": [
            { "UserId": "111122223333" },
            { "UserId": "444455556666" },
            { "OrganizationArn": ORGANIZATION },
            { "OrganizationalUnitArn": UNIT },
        ] } })]
    );
    let deprecated = case.asked("EnableImageDeprecation");
    assert_eq!(deprecated[0]["ImageId"], ami.id);
    let at = deprecated[0]["DeprecateAt"].as_str().unwrap();
    assert!(at.starts_with(deprecation.to_string().trim_end_matches('Z')), "{at} is not {deprecation}");
    assert_eq!(
        case.asked("EnableImageDeregistrationProtection"),
        [json!({ "ImageId": ami.id, "WithCooldown": true })]
    );
    let put = |name: &str| {
        json!({
            "Name": name, "Value": ami.id, "Type": "String", "DataType": "aws:ec2:image", "Overwrite": true,
        })
    };
    let puts = vec![put("/images/server/1.2"), put("/images/server/latest")];
    assert_eq!(sorted(case.asked("PutParameter")), sorted(puts));
}

/// One change to [`plain`], and the member that it shows as: operation, JSON pointer, value.
type Row = (&'static str, fn(&mut Target), &'static str, &'static str, Value);

fn matrix() -> Vec<Row> {
    fn io(target: &mut Target, kind: &str, iops: Option<u32>) {
        target.volume = Volume { kind: kind.to_owned(), size: 10, iops, ..target.volume.clone() };
    }
    let everybody = json!([{ "Group": "all" }]);
    vec![
        (
            "arm64",
            |t| (t.arch, t.boot_mode) = (Arch::Arm64, BootMode::Uefi),
            "RegisterImage",
            "/Architecture",
            json!("arm64"),
        ),
        ("amd64", |_| (), "RegisterImage", "/Architecture", json!("x86_64")),
        ("bios", |t| t.boot_mode = BootMode::LegacyBios, "RegisterImage", "/BootMode", json!("legacy-bios")),
        ("uefi", |t| t.boot_mode = BootMode::Uefi, "RegisterImage", "/BootMode", json!("uefi")),
        ("hybrid", |_| (), "RegisterImage", "/BootMode", json!("uefi-preferred")),
        ("ena", |_| (), "RegisterImage", "/EnaSupport", json!(true)),
        ("no ena", |t| t.ena = false, "RegisterImage", "/EnaSupport", json!(false)),
        ("imds v1", |_| (), "RegisterImage", "/ImdsSupport", Value::Null),
        ("no tpm", |_| (), "RegisterImage", "/TpmSupport", Value::Null),
        ("no variables", |_| (), "RegisterImage", "/UefiData", Value::Null),
        ("no description", |_| (), "RegisterImage", "/Description", Value::Null),
        (
            "gp2",
            |t| io(t, "gp2", None),
            "RegisterImage",
            "/BlockDeviceMappings/0/Ebs/VolumeType",
            json!("gp2"),
        ),
        ("io1", |t| io(t, "io1", Some(200)), "RegisterImage", "/BlockDeviceMappings/0/Ebs/Iops", json!(200)),
        (
            "io2",
            |t| io(t, "io2", Some(300)),
            "RegisterImage",
            "/BlockDeviceMappings/0/Ebs/VolumeType",
            json!("io2"),
        ),
        (
            "standard",
            |t| io(t, "standard", None),
            "RegisterImage",
            "/BlockDeviceMappings/0/Ebs/VolumeType",
            json!("standard"),
        ),
        ("size", |t| t.volume.size = 77, "RegisterImage", "/BlockDeviceMappings/0/Ebs/VolumeSize", json!(77)),
        (
            "public",
            |t| t.launch.public = true,
            "ModifyImageAttribute",
            "/LaunchPermission/Add",
            everybody.clone(),
        ),
        (
            "open",
            |t| t.snapshot.public = true,
            "ModifySnapshotAttribute",
            "/CreateVolumePermission/Add",
            everybody,
        ),
        (
            "guarded",
            |t| t.protection = Some(Protection { cooldown: false }),
            "EnableImageDeregistrationProtection",
            "/WithCooldown",
            json!(false),
        ),
    ]
}

#[test]
fn every_choice_of_a_setting_is_on_the_wire() {
    let case = Case::new();
    let region = case.region("eu-central-1");
    let open = json!({ "images_private": false, "snapshots_private": "unblocked" });
    case.local.post(&format!("place/{ACCOUNT}/eu-central-1"), &open);
    let snapshot = case.snapshot(&region, &plain().snapshot_tags, false);
    for (what, change, operation, member, value) in matrix() {
        let mut target = plain();
        target.name = format!("server {what}");
        target.id = Digest::of(what.as_bytes());
        target.image_tags.insert(tags::PUBLICATION.to_owned(), target.id.to_string());
        change(&mut target);
        let ami = case.register(&region, &target, &snapshot).unwrap();
        case.release(&region, &target, &ami.id);
        let asked = case.asked(operation).pop().unwrap();
        assert_eq!(asked.pointer(member).unwrap_or(&Value::Null), &value, "{what}: {asked}");
        case.local.run(async {
            let mut target = target;
            (target.launch.public, target.snapshot.public) = (false, false);
            release::settings(&region, &target, &ami.id, &|_| ()).await.unwrap();
        });
    }
}

/// With members in one order.
fn sorted(values: Vec<Value>) -> Vec<String> {
    fn sort(value: &Value) -> Value {
        match value {
            Value::Object(members) => {
                let members: BTreeMap<_, _> = members.iter().map(|(k, v)| (k.clone(), sort(v))).collect();
                members.into_iter().collect()
            }
            Value::Array(items) => items.iter().map(sort).collect(),
            other => other.clone(),
        }
    }
    values.iter().map(|value| sort(value).to_string()).collect()
}

#[test]
fn what_was_published_is_seen_as_it_was_wanted_and_not_changed_again() {
    let case = Case::new();
    let region = case.region("eu-central-1");
    let target = full();
    let ami = case.made(&region, &target);
    case.release(&region, &target, &ami.id);
    let seen = case.local.run(observe::region(&region, "server", &target)).unwrap();
    assert_eq!((seen.account.as_str(), seen.encryption_by_default), (ACCOUNT, false));
    let image = seen.named("server-1.2").unwrap();
    assert_eq!((image.state.as_str(), &image.tags), ("available", &target.image_tags));
    let details = image.details.as_ref().unwrap();
    assert_eq!(details.launch, target.launch);
    assert_eq!(details.protection, target.protection);
    assert_eq!((details.boot_mode, details.imds_v2, details.nitro_tpm), (Some(BootMode::Uefi), true, true));
    assert_eq!((details.ena, &details.uefi_data), (true, &target.uefi_data));
    let volume = &details.volume;
    assert_eq!((volume.size, volume.iops, volume.throughput), (8, Some(4000), Some(250)));
    assert!(!volume.delete_on_termination && !volume.encrypted);
    assert!((details.deprecation.unwrap().0 - ami.created.0 - 90 * DAY).abs() <= 60);
    let snapshot = seen.snapshot(&ami.snapshots[0]).unwrap();
    assert_eq!((snapshot.state, &snapshot.tags), (SnapshotState::Completed, &target.snapshot_tags));
    assert_eq!(snapshot.permissions.as_ref(), Some(&target.snapshot));
    let named: BTreeSet<&str> = seen.parameters.values().map(|p| p.value.as_str()).collect();
    assert_eq!((seen.parameters.len(), named), (2, BTreeSet::from([ami.id.as_str()])));
    assert_eq!(seen.public_images, PublicAccess::Unknown);

    let from = wire::log(&case.local).len();
    assert_eq!(case.register(&region, &target, &ami.snapshots[0]).unwrap(), ami);
    assert_eq!(case.release(&region, &target, &ami.id), Vec::<String>::new());
    assert_eq!(case.changes(from), Vec::<String>::new());
}

#[test]
fn settings_that_changed_are_all_that_is_sent() {
    let case = Case::new();
    let region = case.region("eu-central-1");
    let ami = case.made(&region, &full());
    case.release(&region, &full(), &ami.id);
    let mut target = full();
    target.description = "Another".to_owned();
    target.launch.accounts = set(&["444455556666", "777788889999"]);
    target.launch.organizational_units.clear();
    target.snapshot.accounts.clear();
    target.deprecate_after = None;
    target.protection = None;
    target.image_tags.insert("team".to_owned(), "data".to_owned());
    let from = wire::log(&case.local).len();
    case.release(&region, &target, &ami.id);
    let changes = [
        "ModifySnapshotAttribute",
        "CreateTags",
        "ModifyImageAttribute",
        "DisableImageDeprecation",
        "DisableImageDeregistrationProtection",
        "ModifyImageAttribute",
    ];
    assert_eq!(case.changes(from), changes);
    let launch = case.asked("ModifyImageAttribute").pop().unwrap()["LaunchPermission"].clone();
    assert_eq!(launch["Add"], json!([{ "UserId": "777788889999" }]));
    assert_eq!(launch["Remove"], json!([{ "UserId": "111122223333" }, { "OrganizationalUnitArn": UNIT }]));
    let tags = case.asked("CreateTags").pop().unwrap();
    assert_eq!(tags["Tags"], json!([{ "Key": "team", "Value": "data" }]));
    let from = wire::log(&case.local).len();
    assert_eq!(case.release(&region, &target, &ami.id), Vec::<String>::new());
    assert_eq!(case.changes(from), Vec::<String>::new());
}

#[test]
fn an_image_whose_answer_was_lost_is_found_again() {
    let case = Case::new();
    let region = case.region("eu-central-1");
    for fault in [json!({ "reset": true }), json!({ "internal": 500 })] {
        case.local.post("reset", &json!({}));
        let snapshot = case.snapshot(&region, &plain().snapshot_tags, false);
        let mut rule = json!({ "operation": "RegisterImage", "times": 1, "after": true });
        rule.as_object_mut().unwrap().extend(fault.as_object().unwrap().clone());
        case.local.faults(&rule);
        let ami = case.register(&region, &plain(), &snapshot).unwrap();
        let published = case.local.run(list::images(&region, Some("server"))).unwrap();
        assert_eq!(published.iter().map(|p| &p.image).collect::<Vec<_>>(), [&ami.id], "{fault}");
        assert!(published[0].tested && published[0].digest == Some(publication().image));
    }
}

#[test]
fn a_name_that_another_image_has_is_refused() {
    let case = Case::new();
    let region = case.region("eu-central-1");
    let mut other = plain();
    other.id = Digest::of(b"other");
    other.image_tags.insert(tags::PUBLICATION.to_owned(), other.id.to_string());
    let there = case.made(&region, &other);
    let error = case.register(&region, &plain(), &there.snapshots[0]).unwrap_err();
    let ImageError::NameTaken { image, .. } = &error else { panic!("{error}") };
    assert_eq!(image, &there.id);
    assert!(error.to_string().contains("publish.aws.name"), "{error}");
    assert_eq!(case.asked("RegisterImage").len(), 1);
}

#[test]
fn copies_say_everything_as_they_are_made() {
    let case = Case::new();
    let (home, away) = (case.region("eu-central-1"), case.region("us-east-1"));
    let ami = case.made(&home, &plain());
    let key = wire::key(&case.local, "us-east-1");
    for (encryption, encrypted, key_id) in [
        (Encryption::AccountDefault, Value::Null, Value::Null),
        (Encryption::DefaultKey, json!(true), Value::Null),
        (Encryption::Key(key.clone()), json!(true), json!(key)),
    ] {
        let mut target = plain();
        target.region = "us-east-1".to_owned();
        target.description = "Away".to_owned();
        let id = Digest::of(format!("{encryption:?}").as_bytes());
        target.id = id;
        target.image_tags.insert(tags::PUBLICATION.to_owned(), id.to_string());
        target.snapshot_tags.insert(tags::PUBLICATION.to_owned(), id.to_string());
        target.encryption = encryption;
        let tell = |note| case.tell(note);
        let copied = case.local.run(async {
            let source = Source { region: "eu-central-1", id: &ami.snapshots[0], encrypted: false };
            let snapshot = copy::snapshot(&away, &target, source, &tell).await.unwrap();
            copy::completed(&away, &snapshot, SOON, &tell).await.unwrap();
            let again = copy::snapshot(&away, &target, source, &tell).await.unwrap();
            assert_eq!(again, snapshot);
            let source = Source { id: &ami.id, ..source };
            target.name = format!("away-{}", id.short());
            let image = copy::image(&away, &target, source, &tell).await.unwrap();
            assert_eq!(copy::image(&away, &target, source, &tell).await.unwrap(), image);
            image::available(&away, &image, SOON, &tell).await.unwrap()
        });
        let mut asked = case.asked("CopySnapshot").pop().unwrap();
        assert_eq!((&asked["Encrypted"], &asked["KmsKeyId"]), (&encrypted, &key_id));
        assert_eq!(
            (&asked["SourceRegion"], &asked["SourceSnapshotId"]),
            (&json!("eu-central-1"), &json!(ami.snapshots[0]))
        );
        target.snapshot_tags.insert(tags::FROM.to_owned(), "eu-central-1".to_owned());
        let specification = json!({ "ResourceType": "snapshot", "Tags": tag_list(&target.snapshot_tags) });
        assert_eq!(asked["TagSpecifications"].take(), json!([specification]));
        let asked = case.asked("CopyImage").pop().unwrap();
        assert_eq!((&asked["Encrypted"], &asked["KmsKeyId"]), (&encrypted, &key_id));
        assert_eq!(
            (&asked["SourceRegion"], &asked["SourceImageId"]),
            (&json!("eu-central-1"), &json!(ami.id))
        );
        assert_eq!((&asked["Name"], &asked["Description"]), (&json!(target.name), &json!("Away")));
        assert_eq!(asked["ClientToken"].as_str().map(str::len), Some(64));
        let image = json!({ "ResourceType": "image", "Tags": tag_list(&target.image_tags) });
        assert_eq!(asked["TagSpecifications"], json!([image, specification]));
        let seen = case.local.run(observe::region(&away, "server", &target)).unwrap();
        let volume = &seen.named(&target.name).unwrap().details.as_ref().unwrap().volume;
        assert_eq!(volume.encrypted, encrypted == json!(true));
        assert_eq!(seen.snapshot(&copied.snapshots[0]).unwrap().tags, target.snapshot_tags);
    }
    assert_eq!((case.asked("CopySnapshot").len(), case.asked("CopyImage").len()), (3, 3));
}

#[test]
fn a_copy_whose_answer_was_lost_is_found_again_and_a_full_queue_is_waited_for() {
    let case = Case::new();
    let (home, away) = (case.region("eu-central-1"), case.region("us-east-1"));
    let snapshot = case.snapshot(&home, &plain().snapshot_tags, false);
    case.local.faults(&json!([
        { "operation": "CopySnapshot", "times": 1, "error": "ResourceLimitExceeded", "status": 400, "message": "full" },
        { "operation": "CopySnapshot", "from": 2, "times": 1, "after": true, "reset": true },
    ]));
    let tell = |note| case.tell(note);
    let source = Source { region: "eu-central-1", id: &snapshot, encrypted: false };
    let copied = case.local.run(copy::snapshot(&away, &plain(), source, &tell)).unwrap();
    case.local.run(copy::completed(&away, &copied, SOON, &tell)).unwrap();
    assert_eq!(case.local.snapshots("us-east-1"), 1);
    assert!(case.notes.lock().unwrap().contains(&Note::Queued("full".to_owned())));
}

#[test]
fn an_encrypted_snapshot_is_fetched_by_a_signed_address() {
    let case = Case::new();
    let (home, away) = (case.region("eu-central-1"), case.region("us-east-1"));
    let snapshot = case.snapshot(&home, &plain().snapshot_tags, true);
    let tell = |note| case.tell(note);
    let source = Source { region: "eu-central-1", id: &snapshot, encrypted: true };
    let copied = case.local.run(copy::snapshot(&away, &plain(), source, &tell)).unwrap();
    case.local.run(copy::completed(&away, &copied, SOON, &tell)).unwrap();
    let address = case.asked("CopySnapshot").pop().unwrap()["PresignedUrl"].as_str().unwrap().to_owned();
    for part in
        ["Action=CopySnapshot", "DestinationRegion=us-east-1", "%2Feu-central-1%2Fec2%2F", "X-Amz-Signature="]
    {
        assert!(address.contains(part), "{part} is missing in {address}");
    }
}

#[test]
fn a_copy_that_fails_says_why_and_leaves_nothing() {
    let case = Case::new();
    let (home, away) = (case.region("eu-central-1"), case.region("us-east-1"));
    let ami = case.made(&home, &plain());
    let mut target = plain();
    target.encryption = Encryption::Key("alias/nobodys".to_owned());
    let tell = |note| case.tell(note);
    let error = case.local.run(async {
        let source = Source { region: "eu-central-1", id: &ami.snapshots[0], encrypted: false };
        let snapshot = copy::snapshot(&away, &target, source, &tell).await.unwrap();
        copy::completed(&away, &snapshot, SOON, &tell).await.unwrap_err()
    });
    assert!(error.to_string().contains("Given key ID is not accessible"), "{error}");
    assert_eq!(case.local.snapshots("us-east-1"), 0);
    let source = Source { region: "eu-central-1", id: &ami.id, encrypted: false };
    let error = case.local.run(async {
        let image = copy::image(&away, &target, source, &tell).await.unwrap();
        image::available(&away, &image, SOON, &tell).await.unwrap_err()
    });
    assert!(error.to_string().contains("Given key ID is not accessible"), "{error}");
    assert_eq!(case.local.snapshots("us-east-1"), 0);
    assert_eq!(case.local.run(list::images(&away, None)).unwrap(), []);
    // The token of the first try is used up.
    target.encryption = Encryption::DefaultKey;
    case.local.run(async {
        let image = copy::image(&away, &target, source, &tell).await.unwrap();
        image::available(&away, &image, SOON, &tell).await.unwrap()
    });
}

#[test]
fn parameters_are_only_there_when_they_can_be_read() {
    let case = Case::new();
    let region = case.region("eu-central-1");
    let mut target = plain();
    target.parameters = set(&["/images/a"]);
    let ami = case.made(&region, &target);
    let tell = |note| case.tell(note);
    let put = |id: String, patience| {
        let (region, target) = (&region, &target);
        case.local.run(async move { release::parameters(region, target, &id, patience, &tell).await })
    };
    let changes = put(ami.id.clone(), SOON).unwrap();
    assert_eq!(changes[0].to_string(), format!("/images/a: {}", ami.id));
    // An image that isn't there: SSM takes it and forgets it.
    let short = Patience { limit: Duration::from_millis(300), ..SOON };
    let error = put("ami-0123456789abcdef0".to_owned(), short).unwrap_err();
    assert!(matches!(&error, ReleaseError::NotStored { names, .. } if names == &["/images/a"]), "{error}");
    case.local.run(async {
        let text = region.ssm.put_parameter().name("/images/b").value("x");
        text.r#type(aws_sdk_ssm::types::ParameterType::String).send().await.unwrap();
    });
    let target = Target { parameters: set(&["/images/a", "/images/b"]), ..plain() };
    let error = case
        .local
        .run(release::parameters(&region, &target, "ami-0123456789abcdef0", SOON, &tell))
        .unwrap_err();
    assert!(error.to_string().contains("delete-parameter --region eu-central-1 --name /images/b"), "{error}");
}

fn states(findings: &[Finding], state: State) -> Vec<&str> {
    findings.iter().filter(|finding| finding.state == state).map(|finding| finding.check).collect()
}

#[test]
fn preflight_finds_nothing_where_nothing_is_wrong() {
    let case = Case::new();
    let region = case.region("eu-central-1");
    let mut target = full();
    target.encryption = Encryption::Key(wire::key(&case.local, "eu-central-1"));
    for way in [Way::Direct, Way::CopySnapshot("us-east-1"), Way::CopyImage("us-east-1"), Way::Nothing] {
        let found = case.preflight(&region, &target, way);
        assert_eq!(states(&found, State::Failed), Vec::<&str>::new(), "{found:#?}");
        // Whether others may use the key only its policy says; SSM has no dry run.
        let unknown: BTreeSet<&str> = states(&found, State::Unknown).into_iter().collect();
        assert_eq!(unknown, BTreeSet::from(["key", "parameters"]), "{found:#?}");
    }
    assert_eq!(case.changes(0).iter().filter(|name| *name == "RegisterImage").count(), 4);
    assert_eq!(case.local.run(list::images(&region, None)).unwrap(), []);
}

#[test]
fn preflight_finds_everything_that_is_wrong_at_once() {
    let case = Case::new();
    let region = case.region("eu-central-1");
    let mut other = plain();
    other.id = Digest::of(b"other");
    other.image_tags.insert(tags::PUBLICATION.to_owned(), other.id.to_string());
    case.made(&region, &other);
    let place = format!("place/{ACCOUNT}/eu-central-1");
    let blocked = json!({
        "images_private": true, "snapshots_private": "block-all-sharing", "quotas": { "L-B665C33B": 1 },
    });
    case.local.post(&place, &blocked);
    case.local.faults(&json!([
        { "operation": "RegisterImage", "deny": true },
        { "operation": "CompleteSnapshot", "deny": true },
        { "operation": "ModifySnapshotAttribute", "deny": true },
    ]));
    let mut target = plain();
    target.launch.public = true;
    target.snapshot.public = true;
    target.nitro_tpm = true;
    target.volume.size = 0;
    let found = case.preflight(&region, &target, Way::Direct);
    let mut failed = states(&found, State::Failed);
    failed.sort_unstable();
    let wanted = ["boot", "name", "public", "public", "quota", "register", "sharing", "upload", "volume"];
    assert_eq!(failed, wanted, "{found:#?}");
    assert!(found.iter().filter(|f| f.state == State::Failed).all(|f| !f.next.is_empty()), "{found:#?}");
    case.local.clear();

    case.local.post(&place, &json!({ "encrypt": true }));
    assert!(states(&case.preflight(&region, &target, Way::Direct), State::Failed).contains(&"encryption"));
    target.launch = LaunchPermissions { accounts: set(&["111122223333"]), ..Default::default() };
    target.snapshot = Default::default();
    assert!(states(&case.preflight(&region, &target, Way::Direct), State::Failed).contains(&"key"));
    target.encryption = Encryption::Key("alias/nobodys".to_owned());
    assert!(states(&case.preflight(&region, &target, Way::Direct), State::Failed).contains(&"key"));
    target.upload =
        Upload::S3Import { bucket: "nobodys".to_owned(), prefix: String::new(), service_role: None };
    assert!(states(&case.preflight(&region, &target, Way::Import), State::Failed).contains(&"bucket"));
    let closed = case.region("eu-south-1");
    case.local.post(&format!("place/{ACCOUNT}/eu-south-1"), &json!({ "opted_in": false }));
    let found = case.preflight(&closed, &plain(), Way::Direct);
    assert_eq!(states(&found, State::Failed), ["region"], "{found:#?}");
}

#[test]
fn what_is_in_use_stays_and_the_rest_goes_with_its_snapshots() {
    let case = Case::new();
    let region = case.region("eu-central-1");
    let mut named = plain();
    named.parameters = set(&["/images/a"]);
    let first = case.made(&region, &named);
    case.release(&region, &named, &first.id);
    let mut guarded = plain();
    guarded.name = "server-1.3".to_owned();
    guarded.protection = Some(Protection { cooldown: false });
    guarded.id = Digest::of(b"other");
    guarded.image_tags.insert(tags::PUBLICATION.to_owned(), Digest::of(b"other").to_string());
    let snapshot = case.snapshot(&region, &guarded.snapshot_tags, false);
    let tell = |note| case.tell(note);
    let second = case.local.run(image::register(&region, &guarded, &snapshot, &tell)).unwrap();
    case.local.run(image::available(&region, &second, SOON, &tell)).unwrap();
    case.release(&region, &guarded, &second);

    let ids = BTreeSet::from([first.id.clone(), second.clone(), "ami-0123456789abcdef0".to_owned()]);
    let found = case.local.run(retire::images(&region, &ids, &named.parameters)).unwrap();
    assert_eq!(found.len(), 2);
    for image in &found {
        let reason =
            if image.image == first.id { "the SSM parameter /images/a names it" } else { "protected" };
        assert!(image.kept_by.join(" ").contains(reason), "{image:?}");
        let outcome = case.local.run(retire::retire(&region, image)).unwrap();
        assert!(matches!(outcome, Outcome::Stays(_)), "{outcome:?}");
    }
    assert_eq!(case.local.count("DeregisterImage"), 0);
    let found =
        case.local.run(retire::images(&region, &BTreeSet::from([first.id]), &BTreeSet::new())).unwrap();
    assert_eq!(case.local.run(retire::retire(&region, &found[0])).unwrap(), Outcome::Gone);
    assert_eq!(case.local.snapshots("eu-central-1"), 1);
    assert_eq!(case.local.run(retire::retire(&region, &found[0])).unwrap(), Outcome::Gone);
}

#[test]
fn orphans_are_found_and_removed_and_nothing_else() {
    let case = Case::new();
    let region = case.region("eu-central-1");
    case.made(&region, &plain());
    case.snapshot(&region, &BTreeMap::new(), false);
    let orphan = case.snapshot(&region, &plain().snapshot_tags, false);
    let later = Timestamp::now().plus(60);
    let find =
        |before, keep: &BTreeSet<Digest>| case.local.run(retire::orphans(&region, before, keep)).unwrap();
    assert_eq!(find(Timestamp::now().plus(-600), &BTreeSet::new()), []);
    assert_eq!(find(later, &BTreeSet::from([publication().id])), []);
    let found = find(later, &BTreeSet::new());
    assert!(
        matches!(&found[..], [Orphan::Snapshot { id, state: "completed", .. }] if *id == orphan),
        "{found:?}"
    );
    assert_eq!(case.local.run(retire::remove(&region, &found[0])).unwrap(), Outcome::Gone);
    assert_eq!(case.local.run(retire::remove(&region, &found[0])).unwrap(), Outcome::Gone);
    assert_eq!(find(later, &BTreeSet::new()), []);
    assert_eq!(case.local.snapshots("eu-central-1"), 2);
}

#[test]
fn imports_and_uploads_that_nobody_finishes_are_orphans() {
    use aws_sdk_ec2::types::{ResourceType, SnapshotDiskContainer, Tag, TagSpecification, UserBucket};
    let case = Case::new();
    let region = case.region("eu-central-1");
    case.local.settings(&json!({ "import_polls": 1000 }));
    let make = "c.create_bucket(Bucket='kiln-images', CreateBucketConfiguration={'LocationConstraint': 'eu-central-1'})";
    wire::boto3(&case.local, "s3", "eu-central-1", make);
    case.local.run(async {
        let put = region.s3.put_object().bucket("kiln-images").key("kiln/a.raw");
        put.body(vec![0; 1 << 20].into()).send().await.unwrap();
        let upload = region.s3.create_multipart_upload().bucket("kiln-images").key("kiln/b.raw");
        upload.send().await.unwrap();
        let place = UserBucket::builder().s3_bucket("kiln-images").s3_key("kiln/a.raw").build();
        let disk = SnapshotDiskContainer::builder().format("RAW").user_bucket(place).build();
        let tag = Tag::builder().key(tags::PUBLICATION).value(plain().id.to_string()).build();
        let tags =
            TagSpecification::builder().resource_type(ResourceType::ImportSnapshotTask).tags(tag).build();
        let import = region.ec2.import_snapshot().disk_container(disk).tag_specifications(tags);
        import.send().await.unwrap();
    });
    let find = || {
        let later = Timestamp::now().plus(60);
        case.local.run(async {
            let mut found = retire::orphans(&region, later, &BTreeSet::new()).await.unwrap();
            found.extend(retire::uploads(&region, "kiln-images", "kiln/", later).await.unwrap());
            found
        })
    };
    let found = find();
    assert!(
        matches!(&found[..], [Orphan::Import { .. }, Orphan::Upload { key, .. }] if key == "kiln/b.raw"),
        "{found:?}"
    );
    for orphan in &found {
        assert_eq!(case.local.run(retire::remove(&region, orphan)).unwrap(), Outcome::Gone);
    }
    assert_eq!(find(), []);
}

#[test]
fn a_snapshot_of_two_images_goes_with_the_last() {
    let case = Case::new();
    let region = case.region("eu-central-1");
    let first = case.made(&region, &plain());
    let mut twin = plain();
    twin.id = Digest::of(b"twin");
    twin.name = "twin".to_owned();
    twin.image_tags.insert(tags::PUBLICATION.to_owned(), twin.id.to_string());
    let second = case.register(&region, &twin, &first.snapshots[0]).unwrap();
    let both = BTreeSet::from([first.id, second.id]);
    let found = case.local.run(retire::images(&region, &both, &BTreeSet::new())).unwrap();
    let outcome = case.local.run(retire::retire(&region, &found[0])).unwrap();
    assert!(matches!(outcome, Outcome::SnapshotsStay(reason) if reason.contains("in use")));
    assert_eq!(case.local.snapshots("eu-central-1"), 1);
    assert_eq!(case.local.run(retire::retire(&region, &found[1])).unwrap(), Outcome::Gone);
    assert_eq!(case.local.snapshots("eu-central-1"), 0);
}
