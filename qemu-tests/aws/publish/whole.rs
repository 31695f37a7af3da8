//! The life of an image: published to three regions, read back, published again, changed, verified, listed, retired.

use std::path::Path;

use std::time::Duration;

use serde_json::{Value, json};

use super::{CHANGED, Case, REGIONS, Said, THIRD};
use crate::aws::credentials::{Desk, Typist};
use crate::aws::wire;
use crate::machine::{self, KILN};

/// Reads a snapshot back with AWS's own library and compares it with a raw image.
const READ_BACK: &str = r#"
import boto3, sys
from concurrent.futures import ThreadPoolExecutor
url, region, snapshot, path = sys.argv[1:]
ebs = boto3.client("ebs", region, endpoint_url=url, aws_access_key_id="a", aws_secret_access_key="b")
tokens, more = {}, {}
while True:
    page = ebs.list_snapshot_blocks(SnapshotId=snapshot, **more)
    tokens |= {block["BlockIndex"]: block["BlockToken"] for block in page["Blocks"]}
    if not page.get("NextToken"):
        break
    more = {"NextToken": page["NextToken"]}
size, zeros = page["BlockSize"], bytes(page["BlockSize"])
def same(index_and_want):
    index, want = index_and_want
    if index not in tokens:
        return want == zeros
    return ebs.get_snapshot_block(SnapshotId=snapshot, BlockIndex=index, BlockToken=tokens[index])["BlockData"].read() == want
def blocks(file):
    for index, want in enumerate(iter(lambda: file.read(size), b"")):
        yield index, want.ljust(size, b"\0")
with open(path, "rb") as file, ThreadPoolExecutor(4) as pool:
    wrong, count = 0, 0
    rest = blocks(file)
    while some := [block for _, block in zip(range(64), rest)]:
        count += len(some)
        wrong += sum(not good for good in pool.map(same, some))
assert not [index for index in tokens if index >= count], "blocks behind the end"
print(f"{count} blocks, {wrong} wrong")
"#;

/// The snapshot of each region holds the image, byte for byte.
#[track_caller]
fn reads_back(case: &Case, image: &Path) {
    for region in REGIONS {
        let (_, snapshot) = case.published(region);
        let mut python = wire::python();
        let output = python.args(["-c", READ_BACK, case.local.url(), region, &snapshot]).arg(image).output();
        let output = output.unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let count = std::fs::metadata(image).unwrap().len().div_ceil(512 << 10);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(said.trim(), format!("{count} blocks, 0 wrong"), "{region} {snapshot}: {told}");
    }
}

/// The image with one file changed, as a raw file.
fn changed(case: &Case) -> std::path::PathBuf {
    let out = case.folder.path().join("changed");
    let mut build = case.verb(&["build", "--offline", "--format", "raw", "-o"]);
    // The verb's arguments come first: the folder is the last option's value.
    let arguments: Vec<_> = build.get_args().map(std::ffi::OsStr::to_owned).collect();
    build = case.command(KILN);
    build.args(&arguments[..5]).arg(&out).args(&arguments[5..]).args(["--set", CHANGED]);
    Said::of(&mut build).good();
    out.join(format!("{}.raw", case.name))
}

#[test]
fn an_image_lives_in_three_regions() {
    let case = Case::new();
    case.publish(&[]).good();
    record_tells_all(&case);
    reads_back(&case, &case.image);
    case.has_no_orphans();

    let released = REGIONS.map(|region| (region, case.record()["regions"][region]["released"].clone()));
    let released = std::collections::BTreeMap::from(released);
    let from = wire::log(&case.local).len();
    let again = case.publish(&[]).good();
    assert_eq!(case.changes(from), Vec::<String>::new());
    assert!(again.took < Duration::from_secs(2) || busy(), "{:?}", again.took);
    println!("a second run: {:?}", again.took);

    let record = case.record();
    for region in REGIONS {
        let (then, now) = (&released[region], &record["regions"][region]["released"]);
        assert_eq!((then, now.is_string()), (now, true), "{region}: it was released in the first run");
    }

    let first = REGIONS.map(|region| case.published(region));
    let image = changed(&case);
    // A tenth of the first upload.
    goes_on_top_of_the_first(&case, 92);
    reads_back(&case, &image);

    verified(&case);
    listed_and_retired(&case, &first);
}

/// Publishes the image with one file changed: each region is sent the difference, of fewer than `limit` blocks.
#[track_caller]
fn goes_on_top_of_the_first(case: &Case, limit: u64) {
    let mut second = case.publishing(&[CHANGED]);
    let events = Said::of(second.arg("--json")).good().events();
    let sent: Vec<&Value> = events.iter().filter(|event| event["event"] == "sending").collect();
    assert_eq!(sent.len(), 3);
    for event in sent {
        let (blocks, of) = (event["blocks"].as_u64().unwrap(), event["of"].as_u64().unwrap());
        println!("{}, one file changed: {blocks} of {of} blocks sent", case.name);
        assert!(blocks > 0 && blocks < limit, "{event}");
        assert!(event["parent"].as_str().unwrap().starts_with("snap-"), "{event}");
    }
    assert_eq!(events.last().unwrap()["event"], "done");
    assert_eq!(events.last().unwrap()["publication"], case.record());
}

/// A system in a verified image goes up as any other disk does.
#[test]
fn a_disk_of_the_store_layout_is_published_like_any_other() {
    let case = Case::of("store");
    case.publish(&[]).good();
    reads_back(&case, &case.image);
    case.has_no_orphans();
    let from = wire::log(&case.local).len();
    case.publish(&[]).good();
    assert_eq!(case.changes(from), Vec::<String>::new());
    let image = changed(&case);
    goes_on_top_of_the_first(&case, 4096);
    reads_back(&case, &image);
}

/// Whether the machine has more to do than it can: then nothing is said about seconds.
fn busy() -> bool {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap();
    let load: f64 = load.split(' ').next().unwrap().parse().unwrap();
    load > std::thread::available_parallelism().map_or(1.0, |n| n.get() as f64)
}

fn record_tells_all(case: &Case) {
    let record = case.record();
    assert_eq!((&record["tested"], &record["complete"]), (&json!(false), &json!(true)));
    assert_eq!(record["size"], std::fs::metadata(&case.image).unwrap().len());
    for region in REGIONS {
        let told = &record["regions"][region];
        let image = &case.things(region, "images")[0];
        let snapshot = &case.things(region, "snapshots")[0];
        assert_eq!((&told["image"], &told["snapshot"]), (&image["id"], &snapshot["id"]));
        assert_eq!((&told["tags"], &told["snapshot_tags"]), (&image["tags"], &snapshot["tags"]));
        assert_eq!(image["tags"]["kiln:tested"], "no");
        assert_eq!(image["tags"]["kiln:image"], record["image"]);
        assert_eq!(told["bytes_sent"].as_u64().unwrap(), snapshot["written"].as_u64().unwrap() * (512 << 10));
        let whole = told["bytes_sent"].as_u64().unwrap() + told["bytes_skipped"].as_u64().unwrap();
        assert_eq!((whole, &told["way"]), (record["size"].as_u64().unwrap(), &json!("upload")));
        assert_eq!((&told["status"], &told["account"]), (&json!("published"), &json!("123456789012")));
        assert!(told["seconds"].as_f64().unwrap() > 0.0 && told["created"].as_str().unwrap().ends_with('Z'));
        let (created, released) = (told["created"].as_str().unwrap(), told["released"].as_str().unwrap());
        assert!(created <= released && released <= record["finished"].as_str().unwrap(), "{told}");
        assert_eq!(told["parameters"], json!(["/kiln/server/amd64/latest"]));
        let parameter = &case.things(region, "parameters")[0];
        assert_eq!(parameter["versions"][0]["Value"], image["id"]);
    }
}

fn verified(case: &Case) {
    let (image, snapshot) = case.published("eu-west-1");
    let verify = |image: &str| {
        let mut command = case.command(KILN);
        Said::of(command.args(["verify", image, "--region", "eu-west-1"]))
    };
    let said = verify(&image).good().out();
    assert!(said.contains(&format!("{snapshot}: ")) && said.contains("0 differ"), "{said}");
    // The same once more, but for one block.
    let line = format!(
        "(lambda i, h: (c.put_snapshot_block(SnapshotId=i, BlockIndex=1, BlockData=b'x' * 524288, DataLength=524288, \
         Checksum=h, ChecksumAlgorithm='SHA256'), c.complete_snapshot(SnapshotId=i, ChangedBlocksCount=1), i)[2])(\
         c.start_snapshot(VolumeSize=2, ParentSnapshotId='{snapshot}')['SnapshotId'], \
         __import__('base64').b64encode(__import__('hashlib').sha256(b'x' * 524288).digest()).decode())"
    );
    let flipped = wire::boto3(&case.local, "ebs", "eu-west-1", &line);
    let tags =
        case.things("eu-west-1", "images").into_iter().find(|one| one["id"] == image.as_str()).unwrap();
    let digest = tags["tags"]["kiln:image"].as_str().unwrap();
    let line = format!(
        "(c.get_waiter('snapshot_completed').wait(SnapshotIds=['{flipped}'], WaiterConfig={{'Delay': 1}}), \
         c.register_image(Name='flipped', RootDeviceName='/dev/xvda', BlockDeviceMappings=[{{'DeviceName': '/dev/xvda', \
         'Ebs': {{'SnapshotId': '{flipped}'}}}}], Architecture='x86_64', VirtualizationType='hvm', \
         TagSpecifications=[{{'ResourceType': 'image', 'Tags': [{{'Key': 'kiln:image', 'Value': '{digest}'}}]}}])['ImageId'])[1]"
    );
    let image = wire::boto3(&case.local, "ec2", "eu-west-1", &line);
    let said = verify(&image);
    assert!(said.out().contains("block 1 (at 512 KiB) holds something else"), "{}{}", said.out(), said.err());
    assert!(said.failed(1).contains("differs from the image in 1 blocks"));
    wire::boto3(
        &case.local,
        "ec2",
        "eu-west-1",
        &format!("c.deregister_image(ImageId='{image}', DeleteAssociatedSnapshots=True)"),
    );
}

fn listed_and_retired(case: &Case, first: &[(String, String); 3]) {
    let listed = Said::of(case.command(KILN).arg("images")).good().out();
    for (region, (earlier, _)) in REGIONS.iter().zip(first) {
        let (image, _) = case.published(region);
        let line = listed.lines().find(|line| line.contains(&image)).expect("the image");
        assert!(
            line.starts_with(region) && line.contains("untested") && listed.contains(earlier),
            "{listed}"
        );
    }
    // An upload that was given up, and an image that somebody protects.
    let orphan = "c.start_snapshot(VolumeSize=1, Tags=[{'Key': 'kiln:publication', 'Value': '00' * 32}])['SnapshotId']";
    let orphan = wire::boto3(&case.local, "ebs", "us-east-1", orphan);
    let (guarded, _) = &first[0];
    let guard = format!("c.enable_image_deregistration_protection(ImageId='{guarded}')");
    wire::boto3(&case.local, "ec2", REGIONS[0], &guard);
    let retire = |more: &[&str]| {
        let mut command = case.verb(&["retire", "--offline", "--older-than", "0s"]);
        command.args(["--set", CHANGED, "--set", "publish.aws.retention.keep=1"]);
        Said::of(command.args(more)).good().out()
    };
    let before = case.local.state();
    let said = retire(&["--dry-run"]);
    assert_eq!(case.local.state(), before);
    assert!(said.contains("would go") && said.contains(&orphan), "{said}");
    let said = retire(&[]);
    assert!(said.contains("stays") && said.contains("protected"), "{said}");
    for (region, (earlier, old)) in REGIONS.iter().zip(first).skip(1) {
        let ids =
            |kind: &str| case.things(region, kind).iter().map(|one| one["id"].clone()).collect::<Vec<_>>();
        let (image, snapshot) = case.published(region);
        assert_eq!(
            (ids("images"), ids("snapshots")),
            (vec![json!(image)], vec![json!(snapshot)]),
            "{earlier} {old}"
        );
    }
    assert_eq!(case.things(REGIONS[0], "images").len(), 2);
    case.has_no_orphans();
    // What goes on top of a snapshot that is gone is whole all the same.
    assert!(case.publish(&[CHANGED]).good().took < Duration::from_secs(60));
}

#[test]
fn a_code_is_asked_for_once_before_any_work() {
    let desk = Desk::with_mfa();
    let (profile, _) = super::baked("server");
    let store = machine::cache().join("store");
    let out = desk.local.url().to_owned();
    let folder = tempfile::tempdir().unwrap();
    // A name that nothing was baked for yet: asking after the bake would be too late.
    let line = format!(
        "cd {} && AWS_PROFILE=work KILN_STORE={} {KILN} publish {} --untested --offline --set '{THIRD}' --endpoint {out}",
        folder.path().display(),
        store.display(),
        profile.display()
    );
    let mut typist = Typist::running(&desk, &line);
    let code = desk.code(0);
    typist.types("(profile `work`): ", &code);
    let asked = typist.said.clone();
    let (said, success) = typist.ends();
    assert!(success, "{said}");
    assert_eq!(asked.matches("MFA code").count(), 1, "{asked}");
    assert_eq!(said.matches("MFA code").count(), 1, "{said}");
    assert!(!asked.contains("uploading") && !asked.contains("nobody has tested"), "{asked}");
    assert_eq!(desk.calls("AssumeRole").len(), 1);
    for region in REGIONS {
        assert_eq!(desk.local.snapshots(region), 1);
    }
}
