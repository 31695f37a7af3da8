//! Snapshots made of images' blocks: whole, resumed, as deltas, encrypted, through a bucket; with all that can go wrong.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::slice::from_ref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln::artifact::BLOCK;
use kiln::aws::error::Kind;
use kiln::aws::snapshot::import::{Import, Imported, import};
use kiln::aws::snapshot::pace::{MOST, Pace};
use kiln::aws::snapshot::verify::{Difference, Verified, verify};
use kiln::aws::snapshot::{Begun, Image, Make, Patience, SnapshotError, Start, Uploaded, Wait, make, start};
use kiln::image::block_map;
use kiln::publish::blocks::{DiskBlocks, Sending, client_token};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::local::{Clients, Local};

/// Blocks of the images here.
const COUNT: u64 = 200;

/// An image of [`COUNT`] blocks: data in each of `data`, of which the first bytes say `what`.
fn image(folder: &Path, what: &str, data: &[Range<u64>]) -> PathBuf {
    let path = folder.join(what);
    let file = File::create(&path).unwrap();
    file.set_len(COUNT * BLOCK).unwrap();
    for index in data.iter().cloned().flatten() {
        file.write_all_at(format!("block {index} of {what}").as_bytes(), index * BLOCK + 100).unwrap();
    }
    path
}

/// Its blocks: of the zeroes, those in `read` are read by something.
fn blocks(path: &Path, read: &[Range<u64>]) -> DiskBlocks {
    let map = block_map(&File::open(path).unwrap()).unwrap();
    let read: Vec<_> = read.iter().map(|range| range.start * BLOCK..range.end * BLOCK).collect();
    DiskBlocks::new(&map, &read)
}

/// A server, an image, and what is sent of it.
struct Case {
    local: Local,
    clients: Clients,
    folder: tempfile::TempDir,
    path: PathBuf,
    blocks: DiskBlocks,
    encrypted: bool,
}

impl Case {
    /// 120 blocks of data, 40 of zeroes that something reads, 40 holes.
    fn new() -> Case {
        let local = Local::start();
        let clients = local.clients("eu-central-1");
        let folder = tempfile::tempdir().unwrap();
        let path = image(folder.path(), "first", &[0..60, 140..200]);
        let blocks = blocks(&path, from_ref(&(60..100)));
        assert_eq!(blocks.counts(), (120, 40, 40));
        Case { local, clients, folder, path, blocks, encrypted: false }
    }

    fn sending(&self) -> Sending {
        self.blocks.full(self.encrypted)
    }

    /// Begins a snapshot, as a new run of the program would.
    async fn begun(&self, sending: &Sending) -> Result<Begun, SnapshotError> {
        let token = client_token(&["test", &sending.id().to_string()]);
        let tags = BTreeMap::from([("Name".to_owned(), "test".to_owned())]);
        let request = Start {
            volume_size: sending.volume_size,
            parent: sending.parent.as_deref(),
            description: "a test",
            tags: &tags,
            encrypted: self.encrypted,
            kms_key: None,
            token: &token,
        };
        start(&self.clients.ebs, "eu-central-1", &request).await
    }

    /// Makes the snapshot of what `sending` says, or goes on with it.
    async fn make(&self, sending: &Sending) -> Result<(String, Uploaded), SnapshotError> {
        let begun = self.begun(sending).await?;
        let image = Image::open(&self.path).unwrap();
        let mut patience = Patience::default();
        patience.policy.deadline = Duration::from_secs(2);
        patience.policy.longest = Duration::from_secs(1);
        let job = Make {
            ebs: &self.clients.ebs,
            ec2: &self.clients.ec2,
            region: "eu-central-1",
            image: &image,
            sending,
            journals: &self.folder.path().join("journals"),
            patience,
            wait: wait(),
            pace: Arc::new(Pace::default()),
            listener: &(),
        };
        Ok((begun.snapshot.clone(), make(&job, &begun).await?))
    }

    async fn verify(&self, snapshot: &str) -> Verified {
        let pace = Arc::new(Pace::default());
        verify(&self.clients.ebs, "eu-central-1", snapshot, &self.blocks, pace, &()).await.unwrap()
    }

    /// Makes a snapshot under `faults` and reads it back: how it went.
    fn survives(&self, faults: &Value) -> Uploaded {
        self.local.faults(faults);
        let (verified, uploaded) = self.local.run(async {
            let (snapshot, uploaded) = self.make(&self.sending()).await.unwrap();
            (self.verify(&snapshot).await, uploaded)
        });
        assert!(verified.is_same() && verified.unwritten.is_empty(), "{verified:?}");
        assert_eq!((verified.same, verified.absent, uploaded.sent), (160, 40, 160));
        uploaded
    }

    /// Fails under `faults`, in how long, and goes on once they are gone.
    fn fails(&self, faults: &Value) -> (SnapshotError, Duration) {
        self.local.faults(faults);
        let began = Instant::now();
        let error = self.local.run(self.make(&self.sending())).unwrap_err();
        let took = began.elapsed();
        let before = self.local.count("PutSnapshotBlock");
        self.local.clear();
        let (verified, uploaded) = self.local.run(async {
            let (snapshot, uploaded) = self.make(&self.sending()).await.unwrap();
            (self.verify(&snapshot).await, uploaded)
        });
        assert!(verified.is_same(), "{verified:?}");
        assert_eq!(uploaded.sent + uploaded.earlier, 160);
        // Calls that were under way when it failed may be counted late.
        assert!(self.local.count("PutSnapshotBlock") - before <= uploaded.sent as usize + MOST);
        assert_eq!(self.local.snapshots("eu-central-1"), 1, "a second snapshot was made");
        (error, took)
    }
}

fn wait() -> Wait {
    Wait {
        first: Duration::from_millis(20),
        longest: Duration::from_millis(100),
        limit: Duration::from_secs(20),
    }
}

fn kind(error: &SnapshotError) -> Option<Kind> {
    if let SnapshotError::Aws(error) = error { Some(error.kind) } else { None }
}

#[test]
fn what_matters_goes_up_and_reads_back() {
    let case = Case::new();
    let uploaded = case.survives(&json!([]));
    assert_eq!((uploaded.earlier, uploaded.again), (0, 0));
    assert_eq!(case.local.count("PutSnapshotBlock"), 160);
    assert_eq!(std::fs::read_dir(case.folder.path().join("journals")).unwrap().count(), 0);
    // A second run finds it complete and sends nothing.
    let (_, again) = case.local.run(case.make(&case.sending())).unwrap();
    assert_eq!((again.sent, case.local.count("PutSnapshotBlock")), (0, 160));
    assert_eq!((case.local.count("CompleteSnapshot"), case.local.snapshots("eu-central-1")), (1, 1));
}

#[test]
fn all_of_an_encrypted_one_goes_up() {
    let mut case = Case::new();
    case.encrypted = true;
    let (snapshot, uploaded) = case.local.run(case.make(&case.sending())).unwrap();
    let verified = case.local.run(case.verify(&snapshot));
    assert_eq!((uploaded.sent, verified.same, verified.absent), (200, 200, 0));
    assert!(verified.is_same());
}

#[test]
fn a_delta_reads_back_whole() {
    let mut case = Case::new();
    let (parent, _) = case.local.run(case.make(&case.sending())).unwrap();
    let old = case.blocks.clone();
    // Blocks 50 to 59 are zeroes now that nothing reads, 100 to 104 hold something, 5 says something else, and
    // something reads 110.
    let file = File::options().write(true).open(&case.path).unwrap();
    let zeroes = vec![0; BLOCK as usize];
    (50..60).for_each(|index| file.write_all_at(&zeroes, index * BLOCK).unwrap());
    (100..105).for_each(|index| file.write_all_at(b"new", index * BLOCK).unwrap());
    file.write_all_at(b"changed", 5 * BLOCK).unwrap();
    case.blocks = blocks(&case.path, &[60..100, 110..111]);
    let sending = case.blocks.changed(&old, &parent);
    assert_eq!(sending.blocks.len(), 10 + 5 + 1 + 1);
    let (snapshot, uploaded) = case.local.run(case.make(&sending)).unwrap();
    let verified = case.local.run(case.verify(&snapshot));
    assert!(verified.is_same(), "{verified:?}");
    assert_eq!((uploaded.sent, verified.same + verified.absent), (17, COUNT));
    // The parent is what it was, and isn't the new image.
    let old = case.local.run(case.verify(&parent));
    assert!(old.differing.keys().copied().eq([5].into_iter().chain(50..60).chain(100..105)), "{old:?}");
    assert_eq!((old.unwritten, old.differing[&100]), (vec![110], Difference::Missing));
}

#[test]
fn throttling_is_waited_for() {
    let case = Case::new();
    let uploaded = case.survives(&json!([
        { "operation": "PutSnapshotBlock", "throttle": true, "from": 10, "times": 40 },
        { "operation": "CompleteSnapshot", "throttle": true, "times": 2 },
        { "operation": "StartSnapshot", "throttle": true, "times": 2 },
    ]));
    assert_eq!(uploaded.again, 40);
}

#[test]
fn the_real_quota_is_kept_to() {
    let case = Case::new();
    case.local.settings(&json!({ "rates": true, "rate_overrides": { "PutSnapshotBlock": 50 } }));
    let uploaded = case.survives(&json!([]));
    // 50 at once and 110 more at 50 a second; the first second finds out how slow that is.
    assert!(uploaded.again < 250 && uploaded.seconds < 8.0, "{uploaded:?}");
}

#[test]
fn failures_of_theirs_are_tried_again() {
    let case = Case::new();
    case.local.settings(&json!({ "snapshot_unseen": 30 }));
    let uploaded = case.survives(&json!([
        { "operation": "PutSnapshotBlock", "internal": 500, "from": 20, "times": 5 },
        { "operation": "PutSnapshotBlock", "internal": 503, "from": 60, "times": 5 },
        { "operation": "PutSnapshotBlock", "reset": true, "from": 90, "times": 5 },
        { "operation": "PutSnapshotBlock", "hang": 30, "from": 120, "times": 2 },
        { "operation": "CompleteSnapshot", "internal": 500, "times": 1 },
        { "operation": "DescribeSnapshots", "reset": true, "times": 1 },
        { "operation": "GetSnapshotBlock", "reset": true, "from": 3, "times": 2 },
        { "operation": "GetSnapshotBlock", "throttle": true, "from": 30, "times": 9 },
        { "operation": "ListSnapshotBlocks", "internal": 500, "times": 1 },
    ]));
    assert!(uploaded.again >= 17, "{uploaded:?}");
}

#[test]
fn lost_answers_do_no_harm() {
    let case = Case::new();
    case.survives(&json!([
        { "operation": "StartSnapshot", "reset": true, "after": true, "times": 1 },
        { "operation": "PutSnapshotBlock", "reset": true, "after": true, "from": 5, "times": 5 },
        { "operation": "CompleteSnapshot", "reset": true, "after": true, "times": 1 },
    ]));
    assert_eq!(case.local.snapshots("eu-central-1"), 1);
}

#[test]
fn what_is_final_ends_it_at_once_and_it_can_be_gone_on_with() {
    let case = Case::new();
    let fault = json!([{ "operation": "PutSnapshotBlock", "expire": true, "from": 70 }]);
    let (error, took) = case.fails(&fault);
    assert_eq!(kind(&error), Some(Kind::Expired), "{error}");
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn no_permission_is_told_within_seconds() {
    let case = Case::new();
    let (error, took) = case.fails(&json!([{ "operation": "PutSnapshotBlock", "deny": true }]));
    assert_eq!(kind(&error), Some(Kind::Denied), "{error}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert!(error.to_string().contains("PutSnapshotBlock in eu-central-1"), "{error}");
}

#[test]
fn completing_is_gone_on_with() {
    let case = Case::new();
    let (error, _) = case.fails(&json!([{ "operation": "CompleteSnapshot", "expire": true, "after": true }]));
    assert_eq!(kind(&error), Some(Kind::Expired), "{error}");
    assert_eq!(case.local.count("PutSnapshotBlock"), 160);
}

#[test]
fn a_dead_service_is_given_up() {
    let case = Case::new();
    let (error, took) =
        case.fails(&json!([{ "operation": "PutSnapshotBlock", "internal": 500, "from": 40 }]));
    assert_eq!(kind(&error), Some(Kind::Transient), "{error}");
    assert!(took < Duration::from_secs(30), "{took:?}");
}

#[test]
fn an_image_that_changed_is_not_sent() {
    let case = Case::new();
    let sending = case.sending();
    let file = File::options().write(true).open(&case.path).unwrap();
    file.write_all_at(b"x", 30 * BLOCK).unwrap();
    let error = case.local.run(case.make(&sending)).unwrap_err();
    assert!(matches!(error, SnapshotError::Changed { index: 30 }), "{error}");
    assert_eq!(case.local.count("CompleteSnapshot"), 0);
}

#[test]
fn differences_are_named() {
    let mut case = Case::new();
    let (snapshot, _) = case.local.run(case.make(&case.sending())).unwrap();
    case.path = image(case.folder.path(), "other", &[0..60, 141..200]);
    let file = File::options().write(true).open(&case.path).unwrap();
    for index in (1..60).chain(141..200) {
        let text = format!("block {index} of first\0");
        file.write_all_at(text.as_bytes(), index * BLOCK + 100).unwrap();
    }
    case.blocks = blocks(&case.path, from_ref(&(60..101)));
    let verified = case.local.run(case.verify(&snapshot));
    let found: Vec<_> = verified.differing.keys().copied().collect();
    assert_eq!((found, verified.unwritten), (vec![0, 140], vec![100]));
}

// ---- in a process of its own

impl Case {
    /// A `kiln` that uploads the image and reads it back.
    fn process(&self) -> Command {
        let mut kiln = Command::new(env!("CARGO_BIN_EXE_kiln"));
        kiln.env_clear().env("HOME", self.folder.path()).env("AWS_EC2_METADATA_DISABLED", "true");
        kiln.env("AWS_ACCESS_KEY_ID", "AKIATEST").env("AWS_SECRET_ACCESS_KEY", "secret");
        kiln.args(["internal", "aws-upload", "--verify", "--endpoint", self.local.url(), "--journals"]);
        kiln.arg(self.folder.path().join("journals")).arg(&self.path);
        kiln.stdout(Stdio::piped()).stderr(Stdio::piped());
        kiln
    }

    /// Starts one, and stops it with `signal` when so many blocks are there.
    fn stopped(&self, signal: Signal, blocks: usize) -> (Output, Duration) {
        let child = self.process().spawn().unwrap();
        let began = Instant::now();
        while self.local.count("PutSnapshotBlock") < blocks {
            assert!(began.elapsed() < Duration::from_secs(60), "no {blocks} blocks in a minute");
            std::thread::sleep(Duration::from_millis(20));
        }
        let id = nix::unistd::Pid::from_raw(child.id() as i32);
        nix::sys::signal::kill(id, signal).unwrap();
        let signalled = Instant::now();
        (child.wait_with_output().unwrap(), signalled.elapsed())
    }
}

#[test]
fn whoever_stops_it_can_go_on() {
    let case = Case::new();
    case.local.settings(&json!({ "rates": true, "rate_overrides": { "PutSnapshotBlock": 20 } }));
    let (output, took) = case.stopped(Signal::SIGINT, 70);
    assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(took < Duration::from_secs(1), "{took:?}");
    // Nobody listens to the second process.
    let (output, _) = case.stopped(Signal::SIGKILL, 100);
    assert_eq!(output.status.code(), None);
    case.local.settings(&json!({ "rates": false }));
    let output = case.process().output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let (sent, earlier) = (told["sent"].as_u64().unwrap(), told["earlier"].as_u64().unwrap());
    // There is no table on this image: all of its blocks count as read.
    assert_eq!((sent + earlier, &told["same"]), (COUNT, &Value::Bool(true)), "{told}");
    assert!(earlier >= 20, "{told}");
    assert_eq!((case.local.snapshots("eu-central-1"), case.local.count("CompleteSnapshot")), (1, 1));
}

#[test]
fn two_at_once_are_one_too_many() {
    let case = Case::new();
    case.local.faults(&json!([{ "operation": "PutSnapshotBlock", "delay": 1.0, "times": 64 }]));
    let first = case.process().spawn().unwrap();
    while case.local.count("PutSnapshotBlock") == 0 {
        std::thread::sleep(Duration::from_millis(20));
    }
    let second = case.process().output().unwrap();
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && said.contains("another process is uploading to snap-"), "{said}");
    assert!(first.wait_with_output().unwrap().status.success());
}

// ---- through a bucket

const BUCKET: &str = "images";
const KEY: &str = "kiln/test.raw";

impl Case {
    async fn import(&self) -> Result<Imported, SnapshotError> {
        let image = Image::open(&self.path).unwrap();
        let tags = BTreeMap::from([("Name".to_owned(), "test".to_owned())]);
        let job = Import {
            s3: &self.clients.s3,
            ec2: &self.clients.ec2,
            region: "eu-central-1",
            bucket: BUCKET,
            key: KEY,
            image: &image,
            description: "a test",
            tags: &tags,
            encrypted: self.encrypted,
            kms_key: None,
            role: None,
            token: &client_token(&["test", "import"]),
            wait: wait(),
            listener: &(),
        };
        import(&job).await
    }

    async fn bucket(&self) {
        let place = aws_sdk_s3::types::BucketLocationConstraint::EuCentral1;
        let place =
            aws_sdk_s3::types::CreateBucketConfiguration::builder().location_constraint(place).build();
        self.clients
            .s3
            .create_bucket()
            .bucket(BUCKET)
            .create_bucket_configuration(place)
            .send()
            .await
            .unwrap();
    }

    /// How many objects and unfinished uploads the bucket holds.
    async fn left(&self) -> (usize, usize) {
        let objects = self.clients.s3.list_objects_v2().bucket(BUCKET).send().await.unwrap();
        let uploads = self.clients.s3.list_multipart_uploads().bucket(BUCKET).send().await.unwrap();
        (objects.contents().len(), uploads.uploads().len())
    }
}

#[test]
fn an_object_is_imported_and_removed() {
    let case = Case::new();
    case.local.run(case.bucket());
    case.local.faults(&json!([
        { "operation": "UploadPart", "internal": 500, "times": 2 },
        { "operation": "UploadPart", "throttle": true, "from": 4, "times": 2 },
        { "operation": "CompleteMultipartUpload", "reset": true, "after": true, "times": 1 },
        { "operation": "ImportSnapshot", "reset": true, "after": true, "times": 1 },
    ]));
    let imported = case.local.run(case.import()).unwrap();
    assert_eq!((imported.sent, imported.earlier), (COUNT * BLOCK, 0));
    let verified = case.local.run(case.verify(&imported.snapshot));
    assert!(verified.is_same(), "{verified:?}");
    assert_eq!(case.local.run(case.left()), (0, 0));
    let found = case.local.run(case.clients.ec2.describe_snapshots().owner_ids("self").send()).unwrap();
    assert_eq!(found.snapshots().len(), 1);
    assert_eq!(found.snapshots()[0].tags().len(), 1);
}

#[test]
fn an_import_is_gone_on_with() {
    let case = Case::new();
    case.local.run(case.bucket());
    case.local.faults(&json!([{ "operation": "UploadPart", "expire": true, "from": 4 }]));
    let error = case.local.run(case.import()).unwrap_err();
    assert_eq!(kind(&error), Some(Kind::Expired), "{error}");
    assert_eq!(case.local.run(case.left()), (0, 1));
    case.local.clear();
    case.local.faults(
        &json!([{ "operation": "DescribeImportSnapshotTasks", "expire": true, "from": 2, "times": 1 }]),
    );
    let error = case.local.run(case.import()).unwrap_err();
    assert_eq!(kind(&error), Some(Kind::Expired), "{error}");
    assert_eq!(case.local.run(case.left()), (1, 0));
    let before = case.local.count("UploadPart");
    let imported = case.local.run(case.import()).unwrap();
    assert_eq!((imported.sent, imported.earlier, case.local.count("UploadPart")), (0, COUNT * BLOCK, before));
    assert!(case.local.run(case.verify(&imported.snapshot)).is_same());
    assert_eq!((case.local.run(case.left()), case.local.snapshots("eu-central-1")), ((0, 0), 1));
}

#[test]
fn an_import_that_fails_leaves_nothing() {
    let case = Case::new();
    case.local.run(case.bucket());
    case.local.faults(&json!([{ "operation": "UploadPart", "deny": true, "from": 3 }]));
    let error = case.local.run(case.import()).unwrap_err();
    assert_eq!(kind(&error), Some(Kind::Denied), "{error}");
    assert_eq!(case.local.run(case.left()), (0, 0));
    case.local.clear();
    case.local.settings(&json!({ "service_roles": [] }));
    let error = case.local.run(case.import()).unwrap_err();
    assert!(error.to_string().contains("vmimport"), "{error}");
    assert_eq!(case.local.run(case.left()), (0, 0));
}
