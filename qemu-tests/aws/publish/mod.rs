//! `kiln publish` and its sisters as a user runs them, on the image of `profiles/server.ncl`.

mod crash;
mod faults;
mod settings;
mod ways;
mod whole;

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::local::Local;
use super::wire;
use crate::machine::{self, KILN};

/// The regions that are published to, unless a test says otherwise.
const REGIONS: [&str; 3] = ["eu-central-1", "eu-west-1", "us-east-1"];
/// The profile names two of them.
const THIRD: &str = "publish.aws.regions.eu-west-1={}";
/// One file is another one.
const CHANGED: &str = r#"files."/etc/motd".text="changed\n""#;

/// A local AWS, and somebody who publishes there.
struct Case {
    local: Local,
    /// The ready-made profile that is published.
    name: &'static str,
    /// Home and working folder.
    folder: tempfile::TempDir,
    profile: PathBuf,
    /// The baked image.
    image: PathBuf,
    /// What every command gets.
    sets: Vec<String>,
}

impl Case {
    /// With the profile's own two regions and a third.
    fn new() -> Case {
        Case::of("server")
    }

    /// The same with another ready-made profile.
    fn of(name: &'static str) -> Case {
        let (profile, image) = baked(name);
        let folder = tempfile::tempdir().unwrap();
        // The tests' store, but for the journals: the ids of a local AWS are the same each time.
        std::fs::create_dir_all(folder.path().join("store/uploads")).unwrap();
        for entry in std::fs::read_dir(machine::cache().join("store")).unwrap().flatten() {
            let link = folder.path().join("store").join(entry.file_name());
            if entry.file_name() != "uploads" {
                std::os::unix::fs::symlink(entry.path(), link).unwrap();
            }
        }
        Case { local: Local::start(), name, folder, profile, image, sets: vec![THIRD.to_owned()] }
    }

    /// With only one region: eu-central-1.
    fn single() -> Case {
        let mut case = Case::new();
        case.sets = vec!["publish.aws.regions.us-east-1.enable=false".to_owned()];
        case
    }

    /// With one where nothing takes longer than it has to.
    fn swift(self) -> Case {
        let polls = ["snapshot_polls", "image_polls", "copy_polls", "import_polls", "parameter_polls"];
        let none: serde_json::Map<_, _> = polls.map(|name| (name.to_owned(), json!(0))).into_iter().collect();
        self.local.settings(&Value::Object(none));
        self
    }

    /// Each command is also given this.
    fn set(mut self, set: &str) -> Case {
        self.sets.push(set.to_owned());
        self
    }

    /// A command in an environment of its own.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", self.folder.path());
        command.env("AWS_ENDPOINT_URL", self.local.url()).env("AWS_EC2_METADATA_DISABLED", "true");
        command.env("AWS_ACCESS_KEY_ID", "AKIATEST").env("AWS_SECRET_ACCESS_KEY", "secret");
        command.env("KILN_STORE", self.folder.path().join("store")).current_dir(self.folder.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// A verb that works on the profile.
    fn verb(&self, verb: &[&str]) -> Command {
        let mut command = self.command(KILN);
        command.args(verb).arg(&self.profile);
        for set in &self.sets {
            command.args(["--set", set]);
        }
        command
    }

    /// `kiln publish`, of an image that nobody has tested, with these further settings.
    fn publishing(&self, sets: &[&str]) -> Command {
        let mut command = self.verb(&["publish", "--untested", "--offline"]);
        for set in sets {
            command.args(["--set", set]);
        }
        command
    }

    fn publish(&self, sets: &[&str]) -> Said {
        Said::of(&mut self.publishing(sets))
    }

    /// What the last publication recorded.
    fn record(&self) -> Value {
        let path = self.folder.path().join("out").join(self.name).join("publication.json");
        let text = std::fs::read(path).expect("a record");
        serde_json::from_slice(&text).expect("JSON")
    }

    /// Image and snapshot of a region, as recorded.
    fn published(&self, region: &str) -> (String, String) {
        let record = self.record();
        let text = |what: &str| record["regions"][region][what].as_str().expect("published").to_owned();
        (text("image"), text("snapshot"))
    }

    /// The operations since `from` that changed something, dry runs left out.
    fn changes(&self, from: usize) -> Vec<String> {
        let log = wire::log(&self.local).into_iter().skip(from);
        let changing = log.filter(changes);
        changing.map(|entry| entry["operation"].as_str().unwrap().to_owned()).collect()
    }

    /// The things of a kind in a region: `images`, `snapshots` or `parameters`.
    fn things(&self, region: &str, kind: &str) -> Vec<Value> {
        let state = self.local.state();
        let places = state["places"].as_array().unwrap().iter().filter(|place| place["region"] == region);
        places.flat_map(|place| place[kind].as_array().cloned().unwrap_or_default()).collect()
    }

    /// Nothing in any region that no image uses, and nothing unfinished.
    #[track_caller]
    fn has_no_orphans(&self) {
        for region in REGIONS {
            for snapshot in self.things(region, "snapshots") {
                let used = snapshot["images"].as_array().is_some_and(|images| !images.is_empty());
                assert!(used && snapshot["state"] == "completed", "{region}: {snapshot}");
            }
            for image in self.things(region, "images") {
                assert_eq!(image["state"], "available", "{region}: {image}");
            }
        }
        let state = self.local.state();
        for bucket in state["buckets"].as_array().into_iter().flatten() {
            assert_eq!((&bucket["objects"], &bucket["uploads"]), (&json!({}), &json!({})));
        }
    }
}

impl Drop for Case {
    /// Whatever a test is about, all that was asked is what AWS's own models allow.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            wire::check(&self.local);
        }
    }
}

/// A ready-made profile and its image, baked: looked at once for each build of the program, not by each test.
fn baked(name: &str) -> (PathBuf, PathBuf) {
    let cache = machine::cache();
    let profile = cache.join("profiles").join(format!("{name}.ncl"));
    let image = cache.join("out").join(name).join(format!("{name}.raw"));
    let when = |path: &std::path::Path| std::fs::metadata(path).and_then(|m| m.modified()).ok();
    let lock = profile.with_extension("lock");
    let now = || format!("{:?} {:?} {:?}", when(KILN.as_ref()), when(&lock), when(&image));
    let stamp = cache.join(format!("{name}-baked-to-be-published"));
    if std::fs::read_to_string(&stamp).ok() != Some(now()) {
        machine::image(name);
        kiln::host::fs::write_atomically(&stamp, now().as_bytes()).expect("a stamp");
    }
    (profile, image)
}

/// Whether a request changed something.
fn changes(entry: &Value) -> bool {
    let reads = ["Describe", "Get", "List", "Head"];
    let operation = entry["operation"].as_str().unwrap();
    entry["parameters"]["DryRun"] != json!(true) && !reads.iter().any(|start| operation.starts_with(start))
}

/// What a command said.
struct Said {
    output: Output,
    took: Duration,
}

impl Said {
    fn of(command: &mut Command) -> Said {
        let began = Instant::now();
        let output = command.output().expect("kiln runs");
        Said { output, took: began.elapsed() }
    }

    fn err(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    fn out(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }

    /// It succeeded.
    #[track_caller]
    fn good(self) -> Said {
        assert!(self.output.status.success(), "{}{}", self.out(), self.err());
        self
    }

    /// It failed with this status: what it said.
    #[track_caller]
    fn failed(self, status: i32) -> String {
        assert_eq!(self.output.status.code(), Some(status), "{}{}", self.out(), self.err());
        self.err()
    }

    /// What `--json` printed: every line is an object.
    #[track_caller]
    fn events(&self) -> Vec<Value> {
        let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line:?}: {e}"));
        self.out().lines().map(parse).collect()
    }
}

/// A command under way.
struct Running {
    child: Child,
    errors: BufReader<std::process::ChildStderr>,
}

impl Running {
    /// In a process group of its own.
    fn start(command: &mut Command) -> Running {
        let mut child = command.stdout(Stdio::null()).process_group(0).spawn().expect("kiln runs");
        let errors = BufReader::new(child.stderr.take().unwrap());
        Running { child, errors }
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
    }

    /// Waits until it has said something.
    fn says(&mut self, wanted: &str) {
        let mut said = String::new();
        while !said.contains(wanted) {
            let read = self.errors.read_line(&mut said).unwrap();
            assert!(read > 0, "it never said {wanted:?}, but {said}");
        }
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Its status in the end, and what else it said.
    fn ends(mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut self.errors, &mut rest).unwrap();
        (self.child.wait().unwrap().code(), rest)
    }
}
