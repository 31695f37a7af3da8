//! Whole builds on one store: killed at any moment, two at once, with damaged packages, on a disk that is too small.
//!
//! Packages come from the user's own store (`KILN_STORE`), which is filled from the host's mirror when it lacks some; each
//! test links them into a store of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use kiln::digest::Digest;
use kiln::store::Store;

/// A project of one small profile with its lock, and a store that holds its packages and nothing else.
struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        let shared = std::env::var_os("KILN_STORE")
            .map_or_else(|| Store::default_root().expect("a store"), PathBuf::from);
        // Hard links need one file system.
        fs::create_dir_all(&shared).expect("the shared store");
        let beside = shared.parent().expect("a folder");
        let folder = tempfile::Builder::new().prefix("kiln-test-").tempdir_in(beside).expect("a folder");
        let bench = Bench { folder };
        fs::write(bench.profile(), "{ name = \"small\", disk.grow = false }\n").expect("a profile");
        let built = bench.kiln(&shared, "first", &[]).output().expect("kiln");
        assert!(built.status.success(), "{}", said(&built));
        drop(Store::open(&bench.store()).expect("a store"));
        link_all(&shared.join("blobs"), &bench.store().join("blobs"));
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn profile(&self) -> PathBuf {
        self.path("small.ncl")
    }

    fn store(&self) -> PathBuf {
        self.path("store")
    }

    /// `kiln build` into the output folder `out`.
    fn kiln(&self, store: &Path, out: &str, options: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
        command.arg("build").arg(self.profile()).arg("--out").arg(self.path(out)).arg("--store").arg(store);
        command.args(options).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// What the manifest in an output folder says the disk is.
    fn blocks(&self, out: &str) -> Digest {
        let text = fs::read(self.path(out).join("manifest.json")).expect("a manifest");
        let manifest: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        manifest["blocks"].as_str().and_then(|b| b.parse().ok()).expect("the identity of the disk")
    }

    fn verify(&self) {
        let verified = Command::new(env!("CARGO_BIN_EXE_kiln"))
            .args(["store", "verify", "--store"])
            .arg(self.store())
            .output()
            .expect("kiln");
        assert!(verified.status.success(), "{}", said(&verified));
    }
}

fn link_all(from: &Path, to: &Path) {
    for fan in fs::read_dir(from).expect("a folder").flatten() {
        for blob in fs::read_dir(fan.path()).expect("a folder").flatten() {
            let target = to.join(fan.file_name()).join(blob.file_name());
            fs::hard_link(blob.path(), target).expect("a link");
        }
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn a_killed_build_leaves_a_store_that_the_next_one_trusts() {
    let bench = Bench::new();
    // From the first moments to the writing of the disk; each build goes on from what the last one recorded.
    for milliseconds in [40, 400, 2_000, 6_000, 12_000, 3_000, 1_000] {
        let mut child = bench.kiln(&bench.store(), "killed", &["--offline"]).spawn().expect("kiln");
        std::thread::sleep(Duration::from_millis(milliseconds));
        child.kill().expect("SIGKILL");
        child.wait().expect("its end");
        bench.verify();
    }
    let built = bench.kiln(&bench.store(), "killed", &["--offline"]).output().expect("kiln");
    assert!(built.status.success(), "{}", said(&built));
    assert_eq!(bench.blocks("killed"), bench.blocks("first"));
    bench.verify();
    let left: Vec<_> =
        fs::read_dir(bench.store().join("tmp")).expect("tmp").flatten().map(|e| e.path()).collect();
    assert!(left.is_empty(), "dead builds left {left:?}");
}

#[test]
fn two_builds_at_once_share_the_work() {
    let bench = Bench::new();
    let both =
        ["one", "two"].map(|out| bench.kiln(&bench.store(), out, &["--offline"]).spawn().expect("kiln"));
    let both = both.map(|child| child.wait_with_output().expect("its end"));
    for built in &both {
        assert!(built.status.success(), "{}", said(built));
    }
    let waited = both.iter().filter(|b| said(b).contains("another kiln is making")).count();
    assert_eq!(waited, 1, "one of them waits for the other: {}\n{}", said(&both[0]), said(&both[1]));
    assert_eq!([bench.blocks("one"), bench.blocks("two")], [bench.blocks("first"); 2]);
    bench.verify();
}

#[test]
fn a_damaged_package_is_found_and_fetched_again() {
    let bench = Bench::new();
    let lock = fs::read_to_string(bench.path("small.lock")).expect("the lock");
    let store = Store::open(&bench.store()).expect("the store");
    let packages =
        lock.split(|c: char| !c.is_ascii_hexdigit()).filter_map(|word| word.parse::<Digest>().ok());
    let damaged = packages.into_iter().find(|d| store.contains(d)).expect("a package of the lock");
    let path = store.blob_path(&damaged);
    let mut bytes = fs::read(&path).expect("a package");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    // Not in place: the file is linked from the shared store.
    fs::remove_file(&path).expect("removal");
    fs::write(&path, bytes).expect("a damaged package");
    drop(store);

    let offline = bench.kiln(&bench.store(), "out", &["--offline"]).output().expect("kiln");
    assert_eq!(offline.status.code(), Some(1), "{}", said(&offline));
    assert!(said(&offline).contains("damaged") && said(&offline).contains("--offline"), "{}", said(&offline));
    let built = bench.kiln(&bench.store(), "out", &[]).output().expect("kiln");
    assert!(built.status.success(), "{}", said(&built));
    assert_eq!(bench.blocks("out"), bench.blocks("first"));
    assert!(bench.store().join("damaged").join(damaged.to_string()).exists());
    bench.verify();
}

#[test]
fn a_disk_that_is_too_small_is_told_with_both_numbers() {
    let bench = Bench::new();
    let small = bench.path("small-disk");
    fs::create_dir(&small).expect("a folder");
    let script = "mount -t tmpfs -o size=40m none \"$1\" && shift && exec \"$@\"";
    let built = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"])
        .arg(&small)
        .args([env!("CARGO_BIN_EXE_kiln"), "build"])
        .arg(bench.profile())
        .arg("--out")
        .arg(bench.path("out"))
        .arg("--store")
        .arg(small.join("store"))
        .output()
        .expect("unshare");
    let text = said(&built);
    assert_eq!(built.status.code(), Some(1), "{text}");
    assert!(text.contains("no space left") && text.contains("free") && text.contains("needed"), "{text}");
    assert!(text.contains("kiln gc"), "{text}");
}
