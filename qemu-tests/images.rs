//! Every ready-made profile's image, as other programs see it: partition table, file systems, qcow2.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use kiln::publish::blocks::DiskBlocks;
use kiln::vm::{Boots, until_settled};

use crate::machine::{self, SETTLED, SHUTDOWN, said};

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

/// What lies within the system's image is looked into by `immutable::witnesses`.
#[test]
fn store() {
    nothing_is_wrong_with("store");
}

fn nothing_is_wrong_with(profile: &str) {
    let raw = machine::image(profile);
    let said = finds_nothing(Command::new("sgdisk").arg("-v").arg(&raw));
    assert!(said.contains("No problems found"), "{said}");
    finds_nothing(Command::new("sfdisk").arg("--verify").arg(&raw));
    holes_are_those_of_the_layout(&raw);
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

/// A volume that is made encrypted of a snapshot holds noise wherever nothing was uploaded. It boots, grows, and its file
/// system is sound before and after.
#[test]
fn noise_where_nothing_reads_is_never_seen() {
    let folder = tempfile::Builder::new().tempdir_in("/var/tmp").expect("a folder");
    let (disk, kept) = (folder.path().join("noise.raw"), folder.path().join("grown.qcow2"));
    finds_nothing(Command::new("cp").arg("--sparse=always").args([&machine::image("minimal"), &disk]));
    // Room to grow into: it holds noise as well.
    let size = std::fs::metadata(&disk).expect("a disk").len() + (512 << 20);
    std::fs::File::options().write(true).open(&disk).and_then(|f| f.set_len(size)).expect("a larger disk");
    finds_nothing(Command::new("sh").args(["-c", "echo ', +' | sfdisk -q -N 1 \"$0\""]).arg(&disk));
    noise(&disk);
    let checks = |disk: &Path| {
        let (root, _) = partition(disk, 1);
        finds_nothing(Command::new("e2fsck").arg("-fn").arg(format!("{}?offset={root}", disk.display())));
    };
    checks(&disk);
    for firmware in [Boots::Seabios, Boots::Ovmf] {
        let mut setup = machine::setup(&disk);
        setup.firmware = firmware;
        setup.keep = Some(kept.clone());
        let vm = machine::with_channel(setup, |vm, channel| {
            let settled =
                until_settled(vm, channel, Duration::ZERO, SETTLED).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!((settled.state.as_str(), settled.failed.len()), ("running", 0), "{settled:?}");
            // Inodes behind those in use, and more data through the journal than it has room for.
            said(channel, "mkdir /many && cd /many && for n in $(seq 3000); do echo $n > $n; done && sync");
            said(
                channel,
                "touch /logged && chattr +j /logged && dd if=/dev/urandom of=/logged bs=1M count=100 conv=fsync",
            );
            said(channel, "resize2fs $(findmnt -no SOURCE /)");
            let errors = said(channel, "dmesg | grep -i 'ext4-fs error\\|jbd2.*error' || true");
            assert_eq!(errors, "");
            let size = said(channel, "df --output=size -BM / | tail -1").trim().replace('M', "");
            assert!(size.parse::<u64>().expect("a size") > 1000, "{size}");
        });
        let ending = vm.power_down(SHUTDOWN);
        assert_eq!(ending.reason.as_deref(), Some("guest-shutdown"), "{ending}");
        let after = folder.path().join("after.raw");
        finds_nothing(Command::new("qemu-img").args(["convert", "-O", "raw"]).args([&kept, &after]));
        checks(&after);
        std::fs::remove_file(&kept).expect("removed");
    }
}

/// Fills a copy of an image with noise wherever nothing reads.
fn noise(disk: &Path) {
    let mut file = std::fs::File::options().read(true).write(true).open(disk).expect("a disk");
    let size = file.metadata().expect("its size").len();
    let read = kiln::publish::holes::read_ranges(&mut file).expect("ranges");
    let noise: Vec<u8> =
        (0..1_u64 << 20).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 29) as u8).collect();
    let starts = read.iter().skip(1).map(|range| range.start).chain([size]);
    let mut written = 0;
    for (mut at, end) in read.iter().map(|range| range.end).zip(starts) {
        while at < end {
            let count = (end - at).min(1 << 20);
            file.write_all_at(&noise[..count as usize], at).expect("written");
            (at, written) = (at + count, written + count);
        }
    }
    println!("{} of {} MiB are noise", written >> 20, size >> 20);
    assert!(written > size / 4, "{written} of {size} bytes");
}

/// What is no hole of the raw file is what a snapshot is sent.
fn holes_are_those_of_the_layout(raw: &Path) {
    let mut file = std::fs::File::open(raw).expect("a disk");
    let map = kiln::image::block_map(&file).expect("blocks");
    let blocks = DiskBlocks::new(&map, &kiln::publish::holes::read_ranges(&mut file).expect("ranges"));
    let block = kiln::artifact::BLOCK;
    let ranges = kiln::host::fs::data_ranges(&file, map.size).expect("ranges");
    let mut there: Vec<u32> = ranges
        .iter()
        .flat_map(|r| r.start / block..r.end.div_ceil(block))
        .map(|index| index as u32)
        .collect();
    there.dedup();
    let sent: Vec<u32> = blocks.full(false).blocks.into_iter().map(|(index, _)| index).collect();
    let (data, zeroes, holes) = blocks.counts();
    println!("{}: {data} blocks of data, {zeroes} zeroes that are read, {holes} holes", raw.display());
    assert_eq!(there, sent);
    assert!(zeroes <= 8, "{zeroes} blocks of zeroes");
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
