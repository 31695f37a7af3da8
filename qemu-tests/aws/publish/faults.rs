//! What goes wrong, and that it ends well or with a clear error, and leaves nothing behind.

use std::time::Duration;

use serde_json::{Value, json};

use super::{CHANGED, Case, REGIONS, Running, Said};
use crate::aws::wire;

/// A case with an earlier image in all three regions, so that little has to be sent.
fn earlier() -> Case {
    let case = Case::new().swift();
    case.publish(&[r#"publish.aws.name="earlier""#]).good();
    case
}

/// Publishes under a name of its own while `rules` are in force.
fn met(case: &Case, name: &str, rules: &Value, more: &[&str]) -> Said {
    println!("{name}: {rules}");
    case.local.clear();
    case.local.faults(rules);
    let name = format!("publish.aws.name={name:?}");
    let said = case.publish(&[&[CHANGED, name.as_str()], more].concat());
    case.local.clear();
    said
}

/// The images of a name, in all regions.
fn named(case: &Case, name: &str) -> Vec<Value> {
    let all = REGIONS.iter().flat_map(|region| case.things(region, "images"));
    all.filter(|image| image["name"] == name).collect()
}

#[test]
fn what_passes_is_got_over() {
    let case = earlier();
    let everything = [
        "StartSnapshot",
        "PutSnapshotBlock",
        "CompleteSnapshot",
        "RegisterImage",
        "PutParameter",
        "DescribeImages",
    ];
    let faults = [
        json!({ "operation": everything, "from": 3, "times": 9, "throttle": true }),
        json!({ "operation": everything, "from": 2, "times": 7, "internal": 500 }),
        json!({ "operation": everything, "from": 2, "times": 5, "internal": 503, "after": true }),
        json!({ "operation": everything, "from": 4, "times": 6, "reset": true }),
        json!({ "operation": everything, "from": 3, "times": 6, "reset": true, "after": true }),
        json!({ "operation": "PutSnapshotBlock", "from": 2, "times": 2, "hang": 20 }),
    ];
    for (number, rule) in faults.iter().enumerate() {
        let name = format!("fault-{number}");
        met(&case, &name, rule, &[]).good();
        assert_eq!(named(&case, &name).len(), 3, "{rule}");
        case.has_no_orphans();
    }
    case.local
        .settings(&json!({ "snapshot_unseen": 3, "image_unseen": 2, "snapshot_polls": 1, "image_polls": 1 }));
    met(&case, "unseen", &json!([]), &[]).good();
    assert_eq!(named(&case, "unseen").len(), 3);
    case.has_no_orphans();
}

#[test]
fn the_quotas_are_kept_to() {
    let case = Case::single();
    // A tenth of EBS's quota: a debug build with a local server comes nowhere near all of it.
    case.local.settings(
        &json!({ "rates": true, "rate_overrides": { "PutSnapshotBlock": 100, "RegisterImage": 1 } }),
    );
    case.publish(&[]).good();
    case.has_no_orphans();
    let puts = case.local.count("PutSnapshotBlock");
    let blocks = case.things("eu-central-1", "snapshots")[0]["written"].as_u64().unwrap() as usize;
    println!("{puts} requests for {blocks} blocks at a tenth of the quota");
    assert!(puts < blocks * 3, "{puts} requests for {blocks} blocks");
}

#[test]
fn what_is_final_is_told_and_releases_nothing() {
    let case = earlier();
    let before = case.things(REGIONS[0], "parameters");
    // A region that is down when it is required, and when it is not.
    let name = r#"publish.aws.name="down""#;
    case.local.settings(&json!({ "regions_down": ["us-east-1"] }));
    let home = |case: &Case, sets: &[&str]| Said::of(case.publishing(sets).env("AWS_REGION", "eu-west-1"));
    let from = wire::log(&case.local).len();
    let error = home(&case, &[CHANGED, name]).failed(1);
    assert!(error.contains("us-east-1"), "{error}");
    assert_eq!(case.changes(from), Vec::<String>::new());
    let optional = "publish.aws.regions.us-east-1.required=false";
    let said = home(&case, &[CHANGED, name, optional]).good();
    assert!(said.out().contains("us-east-1") && said.out().contains("FAILED"), "{}", said.out());
    let record = case.record();
    assert_eq!(
        (&record["complete"], &record["regions"]["us-east-1"]["status"]),
        (&json!(false), &json!("failed"))
    );
    assert!(record["regions"]["eu-west-1"]["released"].is_string(), "{record}");
    assert_eq!(named(&case, "down").len(), 2);
    case.local.settings(&json!({ "regions_down": [] }));
    home(&case, &[CHANGED, name]).good();
    assert_eq!(named(&case, "down").len(), 3);

    // One that fails in the middle: the others have their image, but nobody sees it.
    let after = case.things(REGIONS[0], "parameters");
    assert_ne!(before, after);
    let share = r#"publish.aws.launch.accounts."444455556666"=true"#;
    // The first call is preflight's, which would find it out.
    let deny = json!({ "operation": "CompleteSnapshot", "region": "us-east-1", "from": 2, "deny": true });
    let error = met(&case, "denied", &deny, &[share]).failed(1);
    assert!(error.contains("us-east-1") && error.contains("nothing was released"), "{error}");
    for image in named(&case, "denied") {
        assert_eq!(image["launch"], json!([]), "{image}");
    }
    assert_eq!(case.things(REGIONS[0], "parameters"), after);
    assert_eq!(case.record()["regions"]["eu-west-1"]["released"], Value::Null);
    met(&case, "denied", &json!([]), &[share]).good();
    assert_eq!(named(&case, "denied").len(), 3);

    // Credentials that end in the middle: told; then it goes on.
    let expire = json!({ "operation": "PutSnapshotBlock", "from": 2, "expire": true });
    let error = met(&case, "expired", &expire, &[]).failed(1);
    assert!(error.to_lowercase().contains("expired"), "{error}");
    met(&case, "expired", &json!([]), &[]).good();
    assert_eq!(named(&case, "expired").len(), 3);
    case.has_no_orphans();
}

#[test]
fn two_at_once_make_one_image() {
    let case = earlier();
    let name = r#"publish.aws.name="both""#;
    let first = Running::start(&mut case.publishing(&[CHANGED, name]));
    let second = Running::start(&mut case.publishing(&[CHANGED, name]));
    let ends = [first.ends(), second.ends()];
    assert!(ends.iter().any(|(status, _)| *status == Some(0)), "{ends:?}");
    for (status, said) in &ends {
        assert!(*status == Some(0) || said.contains("another process is uploading"), "{said}");
    }
    case.publish(&[CHANGED, name]).good();
    assert_eq!(named(&case, "both").len(), 3);
    case.has_no_orphans();
}

#[test]
fn ctrl_c_stops_soon_and_the_same_command_goes_on() {
    let case = Case::single();
    case.local.faults(&json!({ "operation": "PutSnapshotBlock", "from": 200, "hang": 600 }));
    let mut running = Running::start(&mut case.publishing(&[]));
    running.says("made snap-");
    while case.local.get("faults")[0]["met"].as_u64() < Some(4) {
        std::thread::sleep(Duration::from_millis(100));
    }
    let began = std::time::Instant::now();
    running.signal("INT");
    let (status, said) = running.ends();
    assert_eq!(status, Some(130), "{said}");
    assert!(
        said.contains("not published yet: eu-central-1") && said.contains("the same command goes on"),
        "{said}"
    );
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    case.local.clear();
    let plan = Said::of(&mut case.verb(&["plan", "--offline", "--json"])).good();
    let plan: Value = serde_json::from_str(plan.out().trim()).expect("JSON");
    let region = plan.pointer("/plan/regions/eu-central-1");
    let left = region.unwrap_or_else(|| panic!("{plan}"))["cost"]["blocks"].as_u64().unwrap();
    assert!(left > 0 && left < 600, "{left} blocks are left");
    case.publish(&[]).good();
    let sent = case.record()["regions"]["eu-central-1"]["bytes_sent"].as_u64().unwrap();
    assert_eq!(sent, left * (512 << 10), "only blocks that were not there went up");
    case.has_no_orphans();
}

#[test]
fn a_disk_that_is_full_is_told_and_the_upload_goes_on_elsewhere() {
    let case = Case::single();
    let store = case.folder.path().join("store/uploads");
    let mut command = case.command("unshare");
    let publish = case.publishing(&[]);
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c"]);
    command.arg("mount -t tmpfs -o size=4k none \"$0\" && exec \"$@\"").arg(&store);
    command.arg(publish.get_program()).args(publish.get_args());
    let error = Said::of(&mut command).failed(1);
    assert!(error.contains("No space left on device") && error.contains(".blocks"), "{error}");
    case.publish(&[]).good();
    assert_eq!(case.things("eu-central-1", "images").len(), 1);
    case.has_no_orphans();
}

#[test]
fn without_credentials_or_with_a_wrong_region_nothing_is_begun() {
    let case = Case::single();
    let mut command = case.verb(&["publish", "--offline", "--region", "eu-north-1"]);
    let error = Said::of(&mut command).failed(2);
    assert!(error.contains("eu-north-1 is no region of this profile"), "{error}");
    let plan = Said::of(&mut case.verb(&["plan", "--offline"])).good().out();
    assert!(plan.contains("eu-central-1"), "{plan}");
    let mut command = case.publishing(&[]);
    let error =
        Said::of(command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY")).failed(1);
    assert!(error.contains("no credentials"), "{error}");
    assert_eq!(case.changes(0), Vec::<String>::new());
}
