use super::*;
use crate::digest::Digest;
use proptest::prelude::*;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

fn volume(files: &BTreeMap<String, Vec<u8>>, size: u64) -> Volume<'_> {
    Volume {
        size: Bytes(size),
        hidden_sectors: 4096,
        id: 0xdead_beef,
        label: "ESP",
        time: 1_795_132_801,
        files,
    }
}

fn files(list: &[(&str, usize)]) -> BTreeMap<String, Vec<u8>> {
    let bytes = |len: usize| (0..len).map(|i| (i * 7 + i / 251) as u8).collect();
    list.iter().map(|&(path, len)| (path.to_owned(), bytes(len))).collect()
}

fn write(volume: &Volume<'_>, path: &Path) {
    let file = File::create(path).unwrap();
    file.set_len(volume.size.0).unwrap();
    volume.write(|at, bytes| file.write_all_at(bytes, at)).unwrap();
}

fn run(program: &str, args: &[&str], image: &Path) -> String {
    let args = args.iter().map(|a| a.replace('@', image.to_str().unwrap()));
    let mut command = Command::new(program);
    let out = command.args(args).env("TZ", "UTC").env("LC_ALL", "C.UTF-8").output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{program}: {text}");
    text
}

fn many() -> BTreeMap<String, Vec<u8>> {
    let mut all = files(&[
        ("EFI/BOOT/BOOTX64.EFI", 700_001),
        ("EFI/Linux/kiln-a-long-name_6.12.107+deb13.efi", 100_000),
        ("EFI/Linux/Ünïcode 𝄞 naming of thirteen", 5),
        ("loader/loader.conf", 10),
        (".hidden", 512),
        ("empty.txt", 0),
        ("LONGNA~1.TXT", 3),
        ("long name.txt", 4),
    ]);
    for i in 0..60 {
        all.extend(files(&[(&format!("loader/entries/Some Long File name {i}.conf"), i * 37)]));
    }
    all
}

#[test]
fn fsck_finds_nothing_and_mtools_reads_it_back() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("esp");
    for mib in [33, 64, 260, 512] {
        let files = many();
        write(&volume(&files, mib * MIB), &image);
        let text = run("fsck.fat", &["-n", "-v", "@"], &image);
        assert!(text.contains("FAT32") || text.contains("32 bit"), "{text}");
        assert!(!text.contains("differ") && !text.contains("rror"), "{text}");
        for (path, bytes) in files.iter().step_by(9) {
            let out = Command::new("mtype").arg("-i").arg(&image).arg(format!("::{path}")).output().unwrap();
            assert!(out.stdout == *bytes, "{path}");
        }
    }
}

#[test]
fn the_bytes_are_pinned() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("esp");
    write(&volume(&many(), 64 * MIB), &image);
    let list = run("mdir", &["-i", "@", "-/", "-a", "::"], &image);
    insta::assert_snapshot!(list);
    let digest = Digest::of_reader(File::open(&image).unwrap()).unwrap().0;
    insta::assert_snapshot!(digest.short());
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_written() {
    let message = |list: &[(&str, usize)], size: u64| {
        let files = files(list);
        let result = volume(&files, size).write(|_, _| panic!("something was written"));
        result.unwrap_err().to_string()
    };
    let long = "x".repeat(256);
    let messages = [
        message(&[("EFI/BOOT/BOOTX64.EFI", 40 << 20)], 36 * MIB),
        message(&[], 32 * MIB),
        message(&[("a/b", 1), ("a", 1)], 64 * MIB),
        message(&[("readme", 1), ("README", 1)], 64 * MIB),
        message(&[("a:b", 1)], 64 * MIB),
        message(&[("dot.", 1)], 64 * MIB),
        message(&[(&long, 1)], 64 * MIB),
    ];
    insta::assert_snapshot!(messages.join("\n"));
}

#[test]
fn times_are_clamped_and_exact() {
    let text = |time| {
        let Stamp { date, time } = stamp(time);
        let (year, month, day) = (1980 + (date >> 9), date >> 5 & 15, date & 31);
        format!("{year}-{month:02}-{day:02} {:02}:{:02}:{:02}", time >> 11, time >> 5 & 63, (time & 31) * 2)
    };
    assert_eq!(text(0), "1980-01-01 00:00:00");
    assert_eq!(text(951_782_399), "2000-02-28 23:59:58");
    assert_eq!(text(951_782_400), "2000-02-29 00:00:00");
    assert_eq!(text(1_795_132_801), "2026-11-20 00:00:00");
    assert_eq!(text(i64::MAX), "2107-12-31 23:59:58");
}

/// Reads a directory of a volume in memory back: paths with their bytes.
fn read(volume: &[u8], cluster: u32, prefix: &str, out: &mut BTreeMap<String, Vec<u8>>) {
    let geometry = Geometry::of(Bytes(volume.len() as u64)).unwrap();
    let next = |cluster: u32| {
        let at = (RESERVED * SECTOR) as usize + cluster as usize * 4;
        u32::from_le_bytes(volume[at..at + 4].try_into().unwrap())
    };
    let chain = |first: u32| {
        let mut bytes = Vec::new();
        let mut at = first;
        while at != 0 && at != END_OF_CHAIN {
            let offset = geometry.offset(at) as usize;
            bytes.extend_from_slice(&volume[offset..offset + geometry.cluster_bytes() as usize]);
            at = next(at);
        }
        bytes
    };
    let mut long: Vec<u16> = Vec::new();
    for e in chain(cluster).chunks(ENTRY).take_while(|e| e[0] != 0) {
        if e[11] == LONG_NAME {
            let places = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];
            let part = places.map(|at| u16::from_le_bytes([e[at], e[at + 1]]));
            let part = part.into_iter().take_while(|&unit| unit != 0);
            long.splice(0..0, part.collect::<Vec<_>>());
            continue;
        }
        let short = String::from_utf8_lossy(&e[..8]).trim_end().to_owned();
        let extension = String::from_utf8_lossy(&e[8..11]).trim_end().to_owned();
        let short = if extension.is_empty() { short } else { format!("{short}.{extension}") };
        let name = if long.is_empty() { short } else { String::from_utf16(&long).unwrap() };
        long.clear();
        let first = u32::from(u16::from_le_bytes([e[20], e[21]])) << 16
            | u32::from(u16::from_le_bytes([e[26], e[27]]));
        match e[11] {
            DIRECTORY if !name.starts_with('.') || name.len() > 2 => {
                read(volume, first, &format!("{prefix}{name}/"), out);
            }
            ARCHIVE => {
                let mut bytes = chain(first);
                bytes.truncate(u32::from_le_bytes(e[28..32].try_into().unwrap()) as usize);
                out.insert(format!("{prefix}{name}"), bytes);
            }
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn what_was_written_reads_back(
        list in proptest::collection::btree_map("(D[a-z]{0,9}/){0,2}[A-Za-z0-9é~+._ ]{0,30}[a-zA-Z]", 0usize..3000, 0..12),
    ) {
        let files: BTreeMap<String, Vec<u8>> = list.into_iter().map(|(p, len)| (p, vec![len as u8; len])).collect();
        let volume = volume(&files, 33 * MIB);
        let mut bytes = vec![0; volume.size.0 as usize];
        let result = volume.write(|at, piece| {
            bytes[at as usize..at as usize + piece.len()].copy_from_slice(piece);
            Ok(())
        });
        prop_assume!(result.is_ok()); // names that FAT refuses
        let mut back = BTreeMap::new();
        read(&bytes, FIRST_CLUSTER, "", &mut back);
        prop_assert_eq!(back, files);
    }
}

fn read_all(
    reader: &mut read::Reader<impl std::io::Read + std::io::Seek>,
    folder: &str,
    all: &mut BTreeMap<String, Vec<u8>>,
) {
    for entry in reader.list(folder).unwrap().unwrap() {
        let path = if folder.is_empty() { entry.name.clone() } else { format!("{folder}/{}", entry.name) };
        if entry.is_dir {
            read_all(reader, &path, all);
        } else {
            all.insert(path.clone(), reader.read(&path, 1 << 20).unwrap().unwrap());
        }
    }
}

#[test]
fn what_is_written_is_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("esp");
    write(&volume(&many(), 64 * MIB), &image);
    let mut reader = read::Reader::open(File::open(&image).unwrap()).unwrap();
    assert_eq!((reader.serial().as_str(), reader.label()), ("DEAD-BEEF", "ESP"));
    let mut all = BTreeMap::new();
    read_all(&mut reader, "", &mut all);
    assert_eq!(all, many());
    assert_eq!(reader.read("efi/boot/bootx64.efi", 1 << 20).unwrap().unwrap().len(), 700_001);
    assert!(reader.read("EFI/none", 1).unwrap().is_none());
    assert!(reader.read("empty.txt/below", 1).unwrap().is_none());
    assert!(matches!(reader.read("EFI", 1), Err(read::ReadError::Kind(_))));
    assert!(matches!(
        reader.read("loader/loader.conf", 9),
        Err(read::ReadError::TooLarge { size: 10, limit: 9 })
    ));
    assert_eq!(reader.head("loader/loader.conf", 4).unwrap().unwrap().0.len(), 4);
}

/// Volumes of dosfstools and mtools, in all three widths.
#[test]
fn other_programs_volumes_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let content: Vec<u8> = (0..300_000u32).map(|i| (i / 7) as u8).collect();
    let source = folder.path().join("source");
    std::fs::write(&source, &content).unwrap();
    for (width, kib) in [("12", "2000"), ("16", "20000"), ("32", "40000")] {
        let image = folder.path().join(width);
        run("mkfs.fat", &["-F", width, "-n", "LABEL", "-i", "12345678", "-C", "@", kib], &image);
        run("mmd", &["-i", "@", "::/Some folder", "::/Some folder/EFI"], &image);
        run("mcopy", &["-i", "@", source.to_str().unwrap(), "::/Some folder/EFI/a longer name.efi"], &image);
        let mut reader = read::Reader::open(File::open(&image).unwrap()).unwrap();
        assert_eq!((reader.serial().as_str(), reader.label()), ("1234-5678", "LABEL"));
        assert_eq!(
            reader.read("some FOLDER/efi/A longer name.EFI", 1 << 20).unwrap().unwrap(),
            content,
            "{width}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn damaged_volumes_are_read_without_panic_and_end(
        holes in proptest::collection::vec((0usize..4, 0usize..1024, any::<u8>()), 1..20),
    ) {
        static IMAGE: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        let whole = IMAGE.get_or_init(|| {
            let mut bytes = vec![0; 34 << 20];
            let put = |at: u64, b: &[u8]| { bytes[at as usize..at as usize + b.len()].copy_from_slice(b); Ok(()) };
            volume(&many(), 34 * MIB).write(put).unwrap();
            bytes.truncate(2 << 20);
            bytes
        });
        let mut bytes = whole.clone();
        for (area, at, byte) in holes {
            // The boot sector, the first table, the root directory and what follows it.
            bytes[[0, 32 * 512, 1_100 * 512, 1_104 * 512][area] + at] = byte;
        }
        if let Ok(mut reader) = read::Reader::open(std::io::Cursor::new(bytes)) {
            let _ = reader.list("loader/entries");
            let _ = reader.read("EFI/BOOT/BOOTX64.EFI", 1 << 20);
            let _ = reader.head("long name.txt", 100);
        }
    }
}
