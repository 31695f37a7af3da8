//! Killed before and after every call, and run again: the end is the same each time.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{CHANGED, Case, REGIONS, Running, changes};
use crate::aws::wire;

/// Everything that is a call of its own.
const SETTINGS: [&str; 4] = [
    r#"publish.aws.launch.accounts."444455556666"=true"#,
    r#"publish.aws.snapshot.accounts."444455556666"=true"#,
    "publish.aws.deprecate_after=90",
    "publish.aws.protection.enable=true",
];

#[test]
fn killed_before_any_call_it_comes_to_the_same_end() {
    Matrix::new().killed_at_each_call(false);
}

#[test]
fn killed_after_any_call_whose_answer_is_lost_it_comes_to_the_same_end() {
    Matrix::new().killed_at_each_call(true);
}

/// In the middle of what others see: some regions are released, some are not, one parameter is stored, another is not.
#[test]
fn stopped_while_it_releases_it_comes_to_the_same_end() {
    let matrix = Matrix::new();
    let steps = [
        ("ModifyImageAttribute", 2),
        ("ModifySnapshotAttribute", 1),
        ("EnableImageDeprecation", 3),
        ("EnableImageDeregistrationProtection", 2),
        ("PutParameter", 1),
        ("PutParameter", 3),
        ("GetParameters", 7),
    ];
    for (number, (operation, from)) in steps.into_iter().enumerate() {
        // Both signals at each step; whether the call has taken effect takes turns.
        for (signal, after) in [("INT", number % 2 == 0), ("KILL", number % 2 == 1)] {
            let name = format!("stop-{number}-{signal}-{after}").to_lowercase();
            matrix.stopped(&name, operation, from, signal, after);
        }
    }
}

/// What each publication comes to that is not killed.
struct Matrix {
    case: Case,
    /// As it should be.
    end: BTreeMap<&'static str, Value>,
    /// How often each operation that changes something is called.
    calls: BTreeMap<String, usize>,
    /// How often each is called by preflight, which only asks whether it may.
    dry: BTreeMap<String, usize>,
    all: usize,
}

impl Matrix {
    /// An earlier image is there in three regions, and one of another name that is as the killed ones are to be.
    fn new() -> Matrix {
        let case = SETTINGS.iter().fold(Case::new().swift(), |case, set| case.set(set));
        case.publish(&[r#"publish.aws.name="earlier""#]).good();
        let from = wire::log(&case.local).len();
        case.publish(&[CHANGED, r#"publish.aws.name="run-none""#]).good();
        let log = wire::log(&case.local);
        let mut calls = BTreeMap::new();
        for entry in log[from..].iter().filter(|entry| changes(entry)) {
            *calls.entry(entry["operation"].as_str().unwrap().to_owned()).or_default() += 1;
        }
        let mut dry = BTreeMap::new();
        for entry in log[from..].iter().filter(|entry| entry["parameters"]["DryRun"] == json!(true)) {
            *dry.entry(entry["operation"].as_str().unwrap().to_owned()).or_default() += 1;
        }
        let all = log.len() - from;
        let mut matrix = Matrix { case, end: BTreeMap::new(), calls, dry, all };
        matrix.end = matrix.shapes("run-none");
        matrix.forget("run-none");
        matrix
    }

    fn killed_at_each_call(self, after: bool) {
        let blocks = self.calls["PutSnapshotBlock"];
        let others: Vec<&String> = self.calls.keys().filter(|name| *name != "PutSnapshotBlock").collect();
        let count: usize = others.iter().map(|name| self.calls[*name]).sum();
        assert!(others.len() >= 8, "{:?}", self.calls);
        println!("{count} calls, {blocks} blocks, {} requests in all", self.all);
        for n in 1..=count {
            let rule = json!({ "operation": others, "from": n, "halt": true, "after": after });
            self.killed(&format!("run-{n}"), &rule);
        }
        for n in (1..=blocks).step_by(blocks.div_ceil(4)) {
            let rule = json!({ "operation": "PutSnapshotBlock", "from": n, "halt": true, "after": after });
            self.killed(&format!("run-block-{n}"), &rule);
        }
        // Between calls that only ask it has nothing but its journal to remember.
        for n in (1..=self.all).step_by(self.all.div_ceil(4)) {
            self.killed(&format!("run-any-{n}"), &json!({ "from": n, "halt": true, "after": after }));
        }
    }

    /// Killed by `rule`, and run again.
    fn killed(&self, name: &str, rule: &Value) {
        let local = &self.case.local;
        let name_set = format!("publish.aws.name={name:?}");
        local.faults(rule);
        let running = Running::start(&mut self.case.publishing(&[CHANGED, &name_set]));
        assert_eq!(local.get("halted?seconds=60")["halted"], true, "{name}: it never came to {rule}");
        running.kill();
        local.clear();
        self.case.publish(&[CHANGED, &name_set]).good();
        assert_eq!(self.shapes(name), self.end, "{name}: {rule}");
        self.case.has_no_orphans();
        self.forget(name);
    }

    /// Stopped by a signal while it waits for the answer to a call, and run again.
    fn stopped(&self, name: &str, operation: &str, from: usize, signal: &str, after: bool) {
        let local = &self.case.local;
        let name_set = format!("publish.aws.name={name:?}");
        let from = self.dry.get(operation).copied().unwrap_or(0) + from;
        local.faults(
            &json!({ "operation": operation, "from": from, "times": 1, "hang": 600, "after": after }),
        );
        let running = Running::start(&mut self.case.publishing(&[CHANGED, &name_set]));
        let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while local.get("faults")[0]["met"].as_u64() < Some(1) {
            assert!(std::time::Instant::now() < until, "{name}: {operation} was never called");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        running.signal(signal);
        let (status, said) = running.ends();
        if signal == "INT" {
            assert_eq!(status, Some(130), "{name}: {said}");
            assert!(said.contains("not published yet: "), "{name}: {said}");
        }
        local.clear();
        self.case.publish(&[CHANGED, &name_set]).good();
        assert_eq!(self.shapes(name), self.end, "{name}");
        let regions = self.case.record()["regions"].clone();
        assert!(REGIONS.iter().all(|region| regions[region]["released"].is_string()), "{regions}");
        self.case.has_no_orphans();
        self.forget(name);
    }

    /// What there is of a publication in each region, without what differs each time.
    fn shapes(&self, name: &str) -> BTreeMap<&'static str, Value> {
        REGIONS.map(|region| (region, self.shape(region, name))).into()
    }

    fn shape(&self, region: &str, name: &str) -> Value {
        let named = |thing: &Value| thing["tags"]["Name"] == name;
        let images: Vec<Value> = self.case.things(region, "images").into_iter().filter(named).collect();
        let snapshots: Vec<Value> = self.case.things(region, "snapshots").into_iter().filter(named).collect();
        let ids: BTreeSet<&str> = images.iter().filter_map(|image| image["id"].as_str()).collect();
        let parameters = self.case.things(region, "parameters");
        let parameters: Vec<Value> = parameters
            .iter()
            .map(|one| {
                let last = one["versions"].as_array().and_then(|all| all.last()).expect("a version");
                let named = ids.contains(last["Value"].as_str().unwrap_or_default());
                json!({ "name": one["name"], "named": named, "coming": one["coming"] })
            })
            .collect();
        let images: Vec<Value> = images.into_iter().map(image).collect();
        let snapshots: Vec<Value> = snapshots.into_iter().map(snapshot).collect();
        json!({ "images": images, "snapshots": snapshots, "parameters": parameters })
    }

    /// Takes away what a publication made.
    fn forget(&self, name: &str) {
        for region in REGIONS {
            let ec2 = self.case.local.clients(region).ec2;
            for image in self.case.things(region, "images").iter().filter(|image| image["name"] == name) {
                let id = image["id"].as_str().unwrap();
                self.case.local.run(async {
                    ec2.disable_image_deregistration_protection().image_id(id).send().await.unwrap();
                    let gone = ec2.deregister_image().image_id(id).delete_associated_snapshots(true);
                    gone.send().await.unwrap();
                });
            }
        }
    }
}

/// Tags but for those that are each run's own.
fn tags(thing: &Value) -> Value {
    let mut tags = thing["tags"].clone();
    for own in ["Name", "kiln:publication"] {
        tags.as_object_mut().and_then(|tags| tags.remove(own)).expect("a tag of Kiln's");
    }
    tags
}

fn image(image: Value) -> Value {
    let mut shown = image.as_object().unwrap().clone();
    let tags = tags(&image);
    for own in ["id", "name", "tags", "token", "devices", "mappings", "description"] {
        shown.remove(own);
    }
    shown.insert("tags".to_owned(), tags);
    shown.insert("deprecated".to_owned(), json!(image["deprecated"].is_string()));
    Value::Object(shown)
}

fn snapshot(snapshot: Value) -> Value {
    let mut shown = snapshot.as_object().unwrap().clone();
    let tags = tags(&snapshot);
    // A block may have gone up twice.
    for own in ["id", "description", "puts", "images"] {
        shown.remove(own);
    }
    shown.insert("tags".to_owned(), tags);
    shown.insert("users of it".to_owned(), json!(snapshot["images"].as_array().map(Vec::len)));
    Value::Object(shown)
}
