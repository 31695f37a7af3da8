//! A small image is published to a real account, looked at, published again, changed, and removed. Off unless `KILN_TEST_AWS` says
//! where: `REGION,…`, or `PROFILE/REGION,…` with a profile of the AWS CLI.
//!
//! Everything that it makes is of a system whose name no other run has, and it removes only what is tagged with that name.

use std::path::{Path, PathBuf};
use std::process::Command;

use aws_sdk_ec2::types::Filter;
use kiln::aws::{self, Cloud, Options, list, retire};
use kiln::date::Timestamp;
use kiln::publish::tags;
use serde_json::Value;

use crate::machine::{self, KILN};

const ASKED: &str = "KILN_TEST_AWS";

/// One run of the suite.
struct Run {
    profile: Option<String>,
    regions: Vec<String>,
    /// The system's name, of this run alone.
    system: String,
    recipe: PathBuf,
    folder: tempfile::TempDir,
}

impl Run {
    /// Nothing when nobody asked for it.
    fn asked() -> Option<Run> {
        let asked = std::env::var(ASKED).ok().filter(|asked| !asked.is_empty())?;
        let (profile, regions) = match asked.split_once('/') {
            Some((profile, regions)) => (Some(profile.to_owned()), regions),
            None => (None, asked.as_str()),
        };
        let regions = regions.split(',').map(|name| name.trim().to_owned()).collect();
        let system = format!("kiln-test-{:x}-{:x}", Timestamp::now().0, std::process::id());
        println!("everything is tagged {}={system}", tags::SYSTEM);
        let (recipe, folder) = (machine::profile("minimal"), tempfile::tempdir().expect("a folder"));
        Some(Run { profile, regions, system, recipe, folder })
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(KILN);
        command.current_dir(&self.folder).arg("--store").arg(machine::cache().join("store")).arg("--json");
        command.arg(verb);
        if let Some(profile) = &self.profile {
            command.args(["--aws-profile", profile]);
        }
        command
    }

    /// A verb that takes the profile; `text` is what a file of the image holds.
    fn on_profile(&self, verb: &str, text: &str) -> Command {
        let mut command = self.command(verb);
        command.arg(&self.recipe).args(["--set", &format!("name={}", self.system)]);
        command.args(["--set", &format!("files.\"/etc/kiln-test\".text={text}")]);
        command.args(["--set", "publish.aws.deprecate_after=1", "--set", "publish.aws.retention.keep=1"]);
        for region in &self.regions {
            command.args(["--set", &format!("publish.aws.regions.{region}.required=true")]);
        }
        command
    }

    /// Publishes; the record's regions.
    fn publish(&self, text: &str) -> Value {
        let mut command = self.on_profile("publish", text);
        said(command.args(["--untested", "-o", "out"]));
        let record = Path::new(self.folder.path()).join("out/publication.json");
        let record: Value = serde_json::from_slice(&std::fs::read(record).expect("a record")).expect("JSON");
        assert_eq!(record["complete"], true, "{record}");
        record["regions"].clone()
    }

    fn verify(&self, regions: &Value) {
        for region in &self.regions {
            let image = regions[region]["image"].as_str().expect("an image");
            let told = said(self.command("verify").args([image, "--region", region]));
            let told: Value = serde_json::from_str(&told).expect("JSON");
            assert_eq!(told["same"], true, "{region}: {told}");
        }
    }

    /// Removes what is tagged as this run's; what is left of it afterwards.
    async fn clean(&self) -> Vec<String> {
        let options = Options {
            profile: self.profile.clone(),
            region: self.regions.first().cloned(),
            ..Options::default()
        };
        let cloud = Cloud::connect(options).await.expect("credentials");
        let mut left = Vec::new();
        for name in &self.regions {
            let region = cloud.region(name, None).await.expect("a region");
            let images = list::images(&region, Some(&self.system)).await.expect("images");
            let ids = images.into_iter().map(|image| image.image).collect();
            for image in retire::images(&region, &ids, &Default::default()).await.expect("images") {
                retire::retire(&region, &image).await.expect("it goes");
            }
            for id in self.snapshots(&region).await {
                let gone = region.ec2.delete_snapshot().snapshot_id(&id).send().await;
                gone.unwrap_or_else(|e| panic!("{name}: {id} stays: {e:?}"));
            }
            let images = list::images(&region, Some(&self.system)).await.expect("images");
            left.extend(images.into_iter().map(|image| image.image));
            left.extend(self.snapshots(&region).await);
        }
        left
    }

    async fn snapshots(&self, region: &aws::Region) -> Vec<String> {
        let tag = Filter::builder().name(format!("tag:{}", tags::SYSTEM)).values(&self.system).build();
        let answer = region.ec2.describe_snapshots().owner_ids("self").filters(tag).send().await;
        let snapshots = answer.expect("snapshots").snapshots.unwrap_or_default();
        snapshots.into_iter().filter_map(|snapshot| snapshot.snapshot_id).collect()
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let runtime = aws::runtime().expect("a runtime");
        let left = runtime.block_on(self.clean());
        println!("removed what is tagged {}={}; left: {left:?}", tags::SYSTEM, self.system);
        assert!(left.is_empty() || std::thread::panicking(), "{left:?}");
    }
}

/// Standard output of a command that succeeds.
fn said(command: &mut Command) -> String {
    let output = command.output().expect("kiln runs");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn a_real_account_gets_an_image_and_gives_it_back() {
    let Some(run) = Run::asked() else {
        eprintln!("skipped: {ASKED} is not set; tests/aws/README.md says what it does and what it costs");
        return;
    };
    let first = run.publish("one");
    run.verify(&first);
    let again = run.publish("one");
    for region in &run.regions {
        assert_eq!(again[region]["image"], first[region]["image"]);
        assert_eq!((&again[region]["way"], &again[region]["bytes_sent"]), (&"there".into(), &0.into()));
        assert_eq!(again[region]["changes"], serde_json::json!([]), "{region}");
    }
    let second = run.publish("two");
    run.verify(&second);
    for region in &run.regions {
        assert_eq!(second[region]["way"], "delta", "{region}: {second}");
        let (sent, of) = (second[region]["bytes_sent"].as_u64(), first[region]["bytes_sent"].as_u64());
        assert!(sent < of, "{region}: a delta of {sent:?}, all was {of:?}");
    }
    // Only said: a real one takes along what other systems' interrupted publications left in the account.
    let would = said(run.on_profile("retire", "two").arg("--dry-run"));
    for region in &run.regions {
        let gone = first[region]["image"].as_str().expect("an image");
        assert!(would.contains(gone), "{region}: {gone} is not retired: {would}");
    }
}
