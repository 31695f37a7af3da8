//! `kiln export` takes raw images, and never writes over what it reads.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn export(folder: &Path, from: &str, to: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    command.args(["export", from, "-o", to]).current_dir(folder).output().expect("kiln runs")
}

#[test]
fn an_image_is_not_written_over_itself_nor_exported_twice() {
    let folder = tempfile::tempdir().unwrap();
    let raw = vec![7; 1 << 20];
    fs::write(folder.path().join("a.raw"), &raw).unwrap();
    fs::write(folder.path().join("empty.raw"), "").unwrap();
    assert!(export(folder.path(), "a.raw", "a.qcow2").status.success());
    fs::hard_link(folder.path().join("a.raw"), folder.path().join("b.raw")).unwrap();
    for (from, to, why) in [
        ("a.raw", "a.raw", "would be written over itself"),
        ("a.raw", "b.raw", "would be written over itself"),
        ("a.qcow2", "c.qcow2", "is a qcow2 image already"),
        ("empty.raw", "c.qcow2", "it is empty"),
        ("missing.raw", "c.qcow2", "can't read"),
    ] {
        let output = export(folder.path(), from, to);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{from}: {said}");
        assert!(said.contains(why), "{from}: {said}");
    }
    assert_eq!(fs::read(folder.path().join("a.raw")).unwrap(), raw);
    assert!(!folder.path().join("c.qcow2").exists());
}
