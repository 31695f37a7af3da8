//! Every ready-made profile's image, as other programs see it: partition table, file systems, qcow2.

use std::path::Path;
use std::process::Command;

use crate::machine;

#[test]
fn minimal() {
    nothing_is_wrong_with("minimal");
}

#[test]
fn server() {
    nothing_is_wrong_with("server");
}

#[test]
fn web() {
    nothing_is_wrong_with("web");
}

#[test]
fn postgres() {
    nothing_is_wrong_with("postgres");
}

fn nothing_is_wrong_with(profile: &str) {
    let raw = machine::image(profile);
    let said = finds_nothing(Command::new("sgdisk").arg("-v").arg(&raw));
    assert!(said.contains("No problems found"), "{said}");
    finds_nothing(Command::new("sfdisk").arg("--verify").arg(&raw));
    let (root, _) = partition(&raw, 1);
    finds_nothing(Command::new("e2fsck").arg("-fn").arg(format!("{}?offset={root}", raw.display())));

    let folder = tempfile::tempdir().expect("a folder");
    let esp = folder.path().join("esp");
    let (start, size) = partition(&raw, 15);
    let (skip, count) = (format!("skip={start}"), format!("count={size}"));
    let flags = "iflag=skip_bytes,count_bytes";
    let copy = ["bs=1M", "status=none", flags, &skip, &count].map(String::from);
    let (from, to) = (format!("if={}", raw.display()), format!("of={}", esp.display()));
    finds_nothing(Command::new("dd").args([from, to]).args(copy));
    finds_nothing(Command::new("fsck.fat").arg("-n").arg(&esp));

    for plain in [false, true] {
        let qcow2 = folder.path().join(if plain { "plain.qcow2" } else { "zstd.qcow2" });
        let mut export = Command::new(machine::KILN);
        export.arg("export").arg(&raw).arg("-o").arg(&qcow2).args(plain.then_some("--plain"));
        finds_nothing(&mut export);
        finds_nothing(Command::new("qemu-img").arg("check").arg(&qcow2));
        let said = finds_nothing(Command::new("qemu-img").arg("compare").arg(&raw).arg(&qcow2));
        assert!(said.contains("Images are identical"), "{said}");
    }
}

/// Runs a checker that must end with 0; what it printed.
fn finds_nothing(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {said}");
    said
}

/// First byte and size of a partition, as sfdisk reads the table.
pub fn partition(disk: &Path, number: u32) -> (u64, u64) {
    let said = finds_nothing(Command::new("sfdisk").arg("--json").arg(disk));
    let table: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    let node = format!("{}{number}", disk.display());
    let partitions = table["partitiontable"]["partitions"].as_array().expect("partitions");
    let found = partitions.iter().find(|p| p["node"] == node.as_str()).expect("the partition");
    let sectors = |field: &str| found[field].as_u64().expect("a number") * 512;
    (sectors("start"), sectors("size"))
}
