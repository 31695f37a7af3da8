use super::*;
use crate::digest::Digest;
use proptest::prelude::*;
use std::path::PathBuf;
use std::process::Command;

/// A disk in a folder of its own: pieces of text, noise or zeroes at offsets.
struct Disk {
    folder: tempfile::TempDir,
}

impl Disk {
    fn new(size: u64, pieces: &[(u64, Vec<u8>)]) -> Disk {
        let folder = tempfile::tempdir().unwrap();
        let file = File::create(folder.path().join("raw")).unwrap();
        file.set_len(size).unwrap();
        for (at, bytes) in pieces {
            file.write_all_at(bytes, *at).unwrap();
        }
        Disk { folder }
    }

    fn raw(&self) -> PathBuf {
        self.folder.path().join("raw")
    }

    fn export(&self, compression: Compression) -> PathBuf {
        let out = self.folder.path().join("out.qcow2");
        let size = qcow2(&self.raw(), &out, compression).unwrap();
        assert_eq!(size.0, std::fs::metadata(&out).unwrap().len());
        out
    }
}

fn text(len: usize) -> Vec<u8> {
    b"All work and no play makes Jack a dull boy.\n".iter().copied().cycle().take(len).collect()
}

fn noise(len: usize, seed: u32) -> Vec<u8> {
    let mut x = seed | 1;
    let next = |_| {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        x as u8
    };
    (0..len).map(next).collect()
}

fn sample() -> Disk {
    Disk::new(
        700 << 20,
        &[
            (0, text(100_000)),
            (1 << 20, noise(300_000, 1)),
            (9 << 20, vec![0; 1 << 20]),
            (20 << 20, text(3 << 20)),
            (513 << 20, noise(65_536, 2)),
            ((700 << 20) - 512, text(512)),
        ],
    )
}

const ALL: [Compression; 3] =
    [Compression::None, Compression::Zstd { level: 3 }, Compression::Zstd { level: 12 }];

#[test]
fn qemu_img_finds_nothing_and_the_same_bytes() {
    let disk = sample();
    for compression in ALL {
        let out = disk.export(compression);
        let run = |args: &[&str]| {
            let out = Command::new("qemu-img").args(args).arg(&out).output().unwrap();
            let text =
                String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
            assert!(out.status.success(), "{compression:?} {args:?}: {text}");
            text
        };
        let text = run(&["check", "-f", "qcow2"]);
        assert!(text.contains("No errors were found"), "{text}");
        let raw = disk.raw();
        run(&["compare", "-f", "raw", "-F", "qcow2", raw.to_str().unwrap()]);
    }
}

#[test]
fn the_bytes_are_pinned_whatever_the_threads_and_holes() {
    let mut digests = Vec::new();
    for compression in ALL {
        let disk = sample();
        let bytes = std::fs::read(disk.export(compression)).unwrap();
        // The zeroes that were a hole are data now.
        File::options()
            .write(true)
            .open(disk.raw())
            .unwrap()
            .write_all_at(&vec![0; 1 << 20], 50 << 20)
            .unwrap();
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let again = one.install(|| std::fs::read(disk.export(compression)).unwrap());
        assert!(bytes == again, "{compression:?}");
        digests.push(format!("{compression:?} {} bytes {}", bytes.len(), Digest::of(&bytes).short()));
    }
    insta::assert_snapshot!(digests.join("\n"));
}

#[test]
fn a_missing_source_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (raw, out) = (folder.path().join("raw"), folder.path().join("out"));
    let error = qcow2(&raw, &out, Compression::None).unwrap_err().to_string();
    assert!(error.starts_with("can't read"), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// Reads an image back, by the specification and not by the writer.
fn decode(image: &[u8]) -> Vec<u8> {
    let u64_at = |at: u64| u64::from_be_bytes(image[at as usize..at as usize + 8].try_into().unwrap());
    let size = u64_at(24);
    let (l1_entries, l1) = (u64_at(32) & 0xffff_ffff, u64_at(40));
    let mut disk = vec![0; size as usize];
    for guest in 0..size.div_ceil(CLUSTER) {
        assert!(guest / 8192 < l1_entries);
        let l2 = u64_at(l1 + guest / 8192 * 8) & 0x00ff_ffff_ffff_fe00;
        let entry = if l2 == 0 { 0 } else { u64_at(l2 + guest % 8192 * 8) };
        let cluster = if entry & 1 << 62 != 0 {
            let host = (entry & ((1 << 54) - 1)) as usize;
            let sectors = (entry >> 54 & 0xff) as usize + 1;
            let end = (host / 512 + sectors) * 512;
            let mut decoder =
                zstd::stream::read::Decoder::new(&image[host..end.min(image.len())]).unwrap().single_frame();
            let mut bytes = Vec::new();
            io::Read::read_to_end(&mut decoder, &mut bytes).unwrap();
            bytes
        } else if entry == 0 {
            continue;
        } else {
            let host = (entry & 0x00ff_ffff_ffff_fe00) as usize;
            image[host..host + CLUSTER as usize].to_vec()
        };
        let at = (guest * CLUSTER) as usize;
        let end = disk.len().min(at + CLUSTER as usize);
        disk[at..end].copy_from_slice(&cluster[..end - at]);
    }
    disk
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn what_was_written_reads_back(
        sectors in 1u64..6000,
        pieces in proptest::collection::vec((0u64..3_000_000, 1usize..200_000, any::<u32>()), 0..6),
        level in proptest::option::of(1i32..4),
    ) {
        let size = sectors * 512;
        let pieces: Vec<(u64, Vec<u8>)> = pieces
            .into_iter()
            .filter(|(at, ..)| *at < size)
            .map(|(at, len, seed)| {
                let len = len.min((size - at) as usize);
                (at, if seed % 2 == 0 { text(len) } else { noise(len, seed) })
            })
            .collect();
        let disk = Disk::new(size, &pieces);
        let compression = level.map_or(Compression::None, |level| Compression::Zstd { level });
        let image = std::fs::read(disk.export(compression)).unwrap();
        prop_assert!(decode(&image) == std::fs::read(disk.raw()).unwrap());
    }
}
