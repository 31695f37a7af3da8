//! The store on a disk that is full: a small tmpfs in a mount namespace of its own.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use kiln::digest::Digest;
use kiln::store::{Inputs, StepResult, Store, StoreError};

/// Says to this binary, run again in a namespace, where the small file system is.
const SMALL: &str = "KILN_TEST_SMALL_DISK";

#[test]
fn a_full_disk_is_a_clear_error_and_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let script = "mount -t tmpfs -o size=4m none \"$KILN_TEST_SMALL_DISK\" && \
                  exec \"$0\" --exact store::in_a_small_disk --ignored --nocapture";
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script])
        .arg(std::env::current_exe().expect("this binary"))
        .env(SMALL, folder.path())
        .output()
        .expect("unshare");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// No test by itself: what [`a_full_disk_is_a_clear_error_and_leaves_nothing`] runs.
#[test]
#[ignore = "run by another test in a mount namespace"]
fn in_a_small_disk() {
    let Some(folder) = std::env::var_os(SMALL) else { return };
    let store = Store::open(&Path::new(&folder).join("store")).expect("the store fits");
    let small = store.put_bytes(b"small").expect("a small blob fits");
    let before = used(&store);

    let big: Vec<u8> = (0..8_u32 << 20).map(|i| (i >> 3) as u8).collect();
    assert_full(store.put_bytes(&big).map(|_| ()));
    assert_eq!(used(&store), before, "a blob that didn't fit left something");

    let mut writer = store.writer().expect("a writer");
    let written = big.chunks(65_536).try_for_each(|piece| writer.write_all(piece));
    assert!(written.is_err());
    drop(writer);
    assert_eq!(used(&store), before, "a writer that didn't finish left something");

    let ballast = store.scratch("ballast").expect("a scratch");
    let _ = std::fs::write(ballast.path().join("all"), &big);
    let inputs = Inputs::new("step", 1);
    let result = StepResult { outputs: [("out".to_owned(), small)].into(), ..StepResult::default() };
    assert_full(store.record(&inputs, &result));
    assert_eq!(store.lookup(&inputs), None);
    drop(ballast);

    assert!(!store.contains(&Digest::of(&big)));
    assert_eq!(store.read_blob(&small).expect("what was there stays"), b"small");
    store.record(&inputs, &result).expect("there is room again");
    assert_eq!(store.lookup(&inputs), Some(result));
}

fn assert_full(result: Result<(), StoreError>) {
    match result {
        Err(error @ StoreError::Full { .. }) => {
            assert!(error.hint().is_some_and(|hint| hint.contains("kiln gc")));
            println!("{error}");
        }
        other => panic!("the disk should be full: {other:?}"),
    }
}

fn used(store: &Store) -> u64 {
    store.usage().expect("usage").total.count
}
