//! Processes that are killed while they write, and several that write at once: whatever bears a final name is right.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::tests::temporary;
use super::*;

/// Says to the test binary, run again as a child, which store to write to until it is killed.
const CHILD: &str = "KILN_TEST_CRASH_STORE";
/// Says with which number its contents begin.
const SEED: &str = "KILN_TEST_CRASH_SEED";

/// How many times children are killed.
const ROUNDS: u64 = 12;

/// No test by itself: what the children do.
#[test]
#[ignore = "run by the tests of this module as a child process"]
fn child() {
    let Some(root) = std::env::var_os(CHILD) else { return };
    let seed: u64 = std::env::var(SEED).unwrap().parse().unwrap();
    let store = Store::open(Path::new(&root)).unwrap();
    for number in 0.. {
        work(&store, (seed + number) % 500).unwrap();
    }
}

/// Writes one thing of each kind and records it; the same number writes the same bytes.
fn work(store: &Store, number: u64) -> Result<(), StoreError> {
    let bytes: Vec<u8> = (0..20_000 + number * 7).map(|i| (i * (number + 3)) as u8).collect();
    let mut writer = store.writer()?;
    for piece in bytes.chunks(4096) {
        writer.write_all(piece).map_err(store.wrong("can't write to", store.root(), None))?;
    }
    let (blob, _) = writer.finish()?;
    let small = store.put_bytes(&number.to_le_bytes())?;
    let scratch = store.scratch("crash")?;
    let put = |path: &Path| fs::write(path, &bytes).map_err(store.wrong("can't write", path, None));
    let image = scratch.path().join("disk");
    put(&image)?;
    store.adopt_image(&image, &blob)?;
    let download = store.scratch("download")?;
    let deb = download.path().join("deb");
    put(&deb)?;
    store.adopt(&deb, &blob)?;
    let inputs = Inputs::new("crash", 1).with("number", number);
    let outputs = [("blob".to_owned(), blob), ("small".to_owned(), small)].into();
    store.record(&inputs, &StepResult { outputs, ..StepResult::default() })
}

fn spawn(store: &Store, seed: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::crash::child", "--ignored", "--nocapture"])
        .env(CHILD, store.root())
        .env(SEED, seed.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Opens the store anew, as the next process does, and looks at everything in it.
fn assert_sound(store: &Store) -> u64 {
    let store = Store::open(store.root()).unwrap();
    let blocks = |file: &File| Digest::of_reader(file).map(|(digest, _)| digest);
    let report = store.verify_all(&blocks, &|_, _| {}).unwrap();
    assert_eq!(report.damaged, []);
    for number in 0..500_u64 {
        if let Some(result) = store.lookup(&Inputs::new("crash", 1).with("number", number)) {
            assert_eq!(store.read_blob(&result.outputs["small"]).unwrap(), number.to_le_bytes());
            store.read_blob(&result.outputs["blob"]).unwrap();
        }
    }
    report.right.count
}

#[test]
fn killed_writers_leave_nothing_wrong_under_a_final_name() {
    let (_folder, store) = temporary();
    for round in 0..ROUNDS {
        let mut children = [spawn(&store, round * 40), spawn(&store, round * 40 + 3)];
        // Spread over the start, the first writes and the steady state, without a pattern that repeats.
        std::thread::sleep(Duration::from_micros(15_000 + (round * 7919) % 60_000));
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert_sound(&store);
        assert_eq!(fs::read_dir(store.root().join("tmp")).unwrap().count(), 0, "scratch was not swept");
    }
    assert!(assert_sound(&store) > ROUNDS, "the children wrote next to nothing");
}

#[test]
fn several_processes_share_a_store() {
    let (_folder, store) = temporary();
    let mut children: Vec<Child> = (0..3).map(|_| spawn(&store, 0)).collect();
    // Written by this process too, at the same time and with the same contents.
    for number in 0..60 {
        work(&store, number).unwrap();
    }
    for child in &mut children {
        assert_eq!(child.try_wait().unwrap(), None, "a child failed");
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(assert_sound(&store) >= 180);
}
