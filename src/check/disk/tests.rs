//! Small disks made by the writers of this crate and the host's mke2fs; breakages; nothing panics on damage.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use proptest::prelude::*;
use uuid::{Uuid, uuid};

use super::*;
use crate::format::fat::Volume as FatVolume;
use crate::format::gpt::{BACKUP_SECTORS, Entry, Table};
use crate::format::mbr;
use crate::units::{Bytes, Lba, MIB, SECTOR};

const ROOT_FS: &str = "26ada0c0-1165-4098-884d-aafd2220c2c6";
const ROOT_PART: &str = "8e0a5fa5-f7ea-4f4e-b3d0-5a3b2c9c7f83";
const BIOS: u64 = MIB;
const ESP: u64 = 2 * MIB;
const ROOT: u64 = 36 * MIB;
const SIZE: u64 = 53 * MIB;

/// What a test's disk holds.
struct Spec {
    code: Vec<u8>,
    core: Vec<u8>,
    esp: BTreeMap<String, Vec<u8>>,
    root: BTreeMap<&'static str, Vec<u8>>,
    links: BTreeMap<&'static str, &'static str>,
}

fn elf(machine: u8, loader: &str) -> Vec<u8> {
    let mut b = vec![0; 256];
    b[..6].copy_from_slice(b"\x7fELF\x02\x01");
    b[18] = machine;
    b[32] = 64; // program headers
    b[54] = 56;
    if !loader.is_empty() {
        b[56] = 1;
        b[64] = 3; // PT_INTERP
        b[72] = 128;
        b[96] = loader.len() as u8;
        b[128..128 + loader.len()].copy_from_slice(loader.as_bytes());
    }
    b
}

fn pe(machine: u16, content: &str) -> Vec<u8> {
    let mut b = vec![0; 1024];
    b[..2].copy_from_slice(b"MZ");
    b[0x3c] = 0x40;
    b[0x40..0x44].copy_from_slice(b"PE\0\0");
    b[0x44..0x46].copy_from_slice(&machine.to_le_bytes());
    b.extend_from_slice(content.as_bytes());
    b.push(b'\n');
    b
}

/// A unified kernel image with these sections.
fn unified(sections: &[(&str, &[u8])]) -> Vec<u8> {
    let mut b = pe(0x8664, "");
    b.resize(2048, 0);
    b[0x46] = sections.len() as u8;
    for (n, (name, content)) in sections.iter().enumerate() {
        let (at, size, offset) = (0x58 + n * 40, content.len() as u32, b.len() as u32);
        b[at..at + name.len()].copy_from_slice(name.as_bytes());
        for (place, word) in [(8, size), (16, size), (20, offset)] {
            b[at + place..at + place + 4].copy_from_slice(&word.to_le_bytes());
        }
        b.extend_from_slice(content);
    }
    b
}

fn bzimage(wide: bool) -> Vec<u8> {
    let mut b = vec![0; 4096];
    b[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    b[0x202..0x206].copy_from_slice(b"HdrS");
    b[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    b[0x236] = u8::from(wide);
    b
}

fn grub_cfg() -> String {
    format!(
        "set default=0\nmenuentry 'a system' {{\n  linux /vmlinuz root=PARTUUID={ROOT_PART} ro console=tty0 \
         console=ttyS0,115200n8\n  initrd /initrd.img\n}}\n"
    )
}

impl Default for Spec {
    fn default() -> Spec {
        let mut code = vec![0x90; mbr::CODE_SIZE];
        code[0x5c..0x64].copy_from_slice(&(BIOS / SECTOR).to_le_bytes());
        code[0x180..0x184].copy_from_slice(b"GRUB");
        let loader = pe(0x8664, &format!("search.fs_uuid\0 search.fs_uuid {ROOT_FS} root hd0,gpt1"));
        let interpreter = "/lib64/ld-linux-x86-64.so.2\0";
        let root: [(&'static str, Vec<u8>); 7] = [
            ("boot/grub/grub.cfg", grub_cfg().into()),
            ("boot/vmlinuz-6", bzimage(true)),
            ("boot/initrd.img-6", vec![7; 9000]),
            ("usr/lib/systemd/systemd", elf(62, interpreter)),
            ("usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", elf(62, "")),
            ("usr/lib/x86_64-linux-gnu/libc.so.6", elf(62, "")),
            (
                "etc/fstab",
                format!("# root\nUUID={ROOT_FS} / ext4 defaults 0 1\nUUID=1-2 /mnt ext4 nofail\n").into(),
            ),
        ];
        let links = [
            ("vmlinuz", "boot/vmlinuz-6"),
            ("initrd.img", "boot/initrd.img-6"),
            ("lib", "usr/lib"),
            ("lib64", "usr/lib64"),
            ("sbin", "usr/sbin"),
            ("usr/sbin/init", "../lib/systemd/systemd"),
            ("usr/lib64/ld-linux-x86-64.so.2", "../lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"),
        ];
        Spec {
            code,
            core: vec![0xfa; 1000],
            esp: [("EFI/BOOT/BOOTX64.EFI".to_owned(), loader)].into(),
            root: root.into(),
            links: links.into(),
        }
    }
}

impl Spec {
    fn write(&self) -> Vec<u8> {
        let mut disk = vec![0; SIZE as usize];
        let mut put =
            |at: u64, bytes: &[u8]| disk[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
        let sectors = SIZE / SECTOR;
        let entry = |number, type_guid, guid, from: u64, to: u64| Entry {
            number,
            type_guid,
            guid,
            first: Lba(from / SECTOR),
            last: Lba(to / SECTOR - 1),
            attributes: 0,
            name: format!("part{number}"),
        };
        let table = Table {
            disk_guid: Uuid::from_u128(7),
            sectors,
            entries: vec![
                entry(
                    1,
                    uuid!("4f68bce3-e8cd-4db1-96e7-fbcaf984b709"),
                    ROOT_PART.parse().unwrap(),
                    ROOT,
                    SIZE - MIB,
                ),
                entry(14, uuid!("21686148-6449-6e6f-744e-656564454649"), Uuid::from_u128(14), BIOS, ESP),
                entry(15, uuid!("c12a7328-f81f-11d2-ba4b-00a0c93ec93b"), Uuid::from_u128(15), ESP, ROOT),
            ],
        };
        let encoded = table.encode().unwrap();
        put(0, &mbr::protective(self.code.as_slice().try_into().unwrap(), sectors));
        put(SECTOR, &encoded.primary);
        put((sectors - BACKUP_SECTORS) * SECTOR, &encoded.backup);
        put(BIOS, &self.core);
        let esp = FatVolume {
            size: Bytes(ROOT - ESP),
            hidden_sectors: 0,
            id: 0xabcd_1234,
            label: "ESP",
            time: 0,
            files: &self.esp,
        };
        esp.write(|at, bytes| {
            put(ESP + at, bytes);
            Ok(())
        })
        .unwrap();
        put(ROOT, &self.ext4());
        disk
    }

    fn ext4(&self) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("tree");
        let make_room = |path: &Path| fs::create_dir_all(path.parent().unwrap()).unwrap();
        for (path, content) in &self.root {
            make_room(&tree.join(path));
            fs::write(tree.join(path), content).unwrap();
        }
        for (path, target) in &self.links {
            let path = tree.join(path);
            make_room(&path);
            symlink(target, path).unwrap();
        }
        let image = folder.path().join("root");
        let args = [
            "-q",
            "-F",
            "-t",
            "ext4",
            "-b",
            "1024",
            "-I",
            "256",
            "-O",
            "^has_journal,metadata_csum",
            "-U",
            ROOT_FS,
            "-L",
            "root",
            "-d",
        ];
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        let mut mke2fs = Command::new("mke2fs");
        mke2fs
            .args(args)
            .arg(&tree)
            .arg(&image)
            .arg(format!("{}k", (SIZE - MIB - ROOT) / 1024))
            .env("PATH", path);
        let output = mke2fs.env("MKE2FS_CONFIG", "/dev/null").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        fs::read(image).unwrap()
    }
}

fn expect() -> Expect {
    Expect { arch: Arch::Amd64, firmware: Firmware::Both, serial: true }
}

fn shown(results: &[CheckResult]) -> String {
    results.iter().map(|r| format!("{:7} {}: {}\n", r.verdict.word(), r.name, r.detail)).collect()
}

/// What is found of a disk that a change of the specification broke; only failures.
fn failures(change: impl FnOnce(&mut Spec)) -> String {
    let mut spec = Spec::default();
    change(&mut spec);
    let results = inspect(&mut Cursor::new(spec.write()), &expect());
    let failed: Vec<_> = results.into_iter().filter(|r| r.verdict == Verdict::Failed).collect();
    shown(&failed)
}

fn whole() -> &'static [u8] {
    static DISK: OnceLock<Vec<u8>> = OnceLock::new();
    DISK.get_or_init(|| Spec::default().write())
}

#[test]
fn a_whole_disk_passes() {
    let results = inspect(&mut Cursor::new(whole()), &expect());
    insta::assert_snapshot!(shown(&results));
    let uefi = Expect { firmware: Firmware::Uefi, serial: false, ..expect() };
    assert!(inspect(&mut Cursor::new(whole()), &uefi).iter().all(|r| r.verdict != Verdict::Failed));
    let arm = Expect { arch: Arch::Arm64, ..expect() };
    insta::assert_snapshot!(shown(&inspect(&mut Cursor::new(whole()), &arm)));
}

#[test]
fn each_breakage_is_named() {
    let mut all = String::new();
    let mut add =
        |what: &str, change: &dyn Fn(&mut Spec)| all += &format!("# {what}\n{}\n", failures(|s| change(s)));
    let cfg = |s: &mut Spec, from: &str, to: &str| {
        s.root.insert("boot/grub/grub.cfg", grub_cfg().replace(from, to).into());
    };
    add("no boot code", &|s| s.code.fill(0));
    add("no core image", &|s| s.core.clear());
    add("core image elsewhere", &|s| s.code[0x5d] = 1);
    add("no loader", &|s| s.esp = [("EFI/debian/grubx64.efi".to_owned(), pe(0x8664, ""))].into());
    add("another machine's loader", &|s| {
        s.esp.insert("EFI/BOOT/BOOTX64.EFI".to_owned(), pe(0xaa64, ""));
    });
    add("a text as loader", &|s| {
        s.esp.insert("EFI/BOOT/BOOTX64.EFI".to_owned(), b"#!/bin/sh".to_vec());
    });
    add("loader searches another root", &|s| {
        s.esp.insert("EFI/BOOT/BOOTX64.EFI".to_owned(), pe(0x8664, "search.fs_uuid 00000000-1165-4098 root"));
    });
    add("no configuration", &|s| drop(s.root.remove("boot/grub/grub.cfg")));
    add("another root", &|s| cfg(s, ROOT_PART, "00000000-0000-0000-0000-000000000001"));
    add("no serial console", &|s| cfg(s, "console=ttyS0,115200n8", "quiet"));
    add("no kernel", &|s| drop(s.root.remove("boot/vmlinuz-6")));
    add("a kernel of 32 bits", &|s| drop(s.root.insert("boot/vmlinuz-6", bzimage(false))));
    add("vmlinux", &|s| drop(s.root.insert("boot/vmlinuz-6", elf(62, ""))));
    add("no initrd", &|s| drop(s.root.remove("boot/initrd.img-6")));
    add("an empty initrd", &|s| drop(s.root.insert("boot/initrd.img-6", vec![0; 9000])));
    add("no init", &|s| {
        s.links.remove("usr/sbin/init");
    });
    add("another init system", &|s| {
        s.links.remove("usr/sbin/init");
        let mut other = elf(62, "/lib64/ld-linux-x86-64.so.2\0");
        other.push(1);
        s.root.insert("usr/sbin/init", other);
    });
    add("an init that starts no other", &|s| {
        s.links.remove("usr/sbin/init");
        s.root.insert("usr/bin/sh", elf(62, ""));
        s.root.insert("usr/sbin/init", b"#!/usr/bin/sh\nwhile :; do sleep 1; done\n".to_vec());
    });
    add("another machine's init", &|s| drop(s.root.insert("usr/lib/systemd/systemd", elf(183, ""))));
    add("no dynamic loader", &|s| drop(s.root.remove("usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2")));
    add("no libc", &|s| drop(s.root.remove("usr/lib/x86_64-linux-gnu/libc.so.6")));
    add("fstab", &|s| drop(s.root.insert("etc/fstab", b"LABEL=data /srv ext4 defaults 0 2\n".to_vec())));
    insta::assert_snapshot!(all);
}

/// The loader's configurations other than GRUB's.
#[test]
fn entries_and_unified_images_are_read() {
    let options = format!("root=UUID={ROOT_FS} console=ttyS0");
    let mut type_one = Spec::default();
    type_one.root.remove("boot/grub/grub.cfg");
    let entry = format!("title A\nlinux /kernel\ninitrd /initrd\noptions {options}\n");
    type_one.esp.insert("loader/entries/a.conf".into(), entry.replace("/kernel", "/gone").into());
    type_one.esp.insert("loader/entries/b.conf".into(), entry.clone().into());
    type_one.esp.insert("loader/loader.conf".into(), b"timeout 3\ndefault b*\n".to_vec());
    type_one.esp.insert("kernel".into(), bzimage(true));
    type_one.esp.insert("initrd".into(), vec![1; 900]);
    let mut two = Spec::default();
    two.root.remove("boot/grub/grub.cfg");
    let image = unified(&[(".linux", &bzimage(true)), (".cmdline", format!("{options}\0").as_bytes())]);
    two.esp.insert("EFI/Linux/a-6.12.efi".into(), image);
    let uefi = Expect { firmware: Firmware::Uefi, ..expect() };
    let said = [type_one, two].map(|spec| shown(&inspect(&mut Cursor::new(spec.write()), &uefi)));
    insta::assert_snapshot!(said.join("\n"));
}

/// The whole disk with bytes that differ.
struct Patched {
    patches: BTreeMap<u64, u8>,
    size: u64,
    at: u64,
}

impl Read for Patched {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let count = self.size.saturating_sub(self.at).min(to.len() as u64) as usize;
        to[..count].copy_from_slice(&whole()[self.at as usize..self.at as usize + count]);
        for (&at, &byte) in self.patches.range(self.at..self.at + count as u64) {
            to[(at - self.at) as usize] = byte;
        }
        self.at += count as u64;
        Ok(count)
    }
}

impl Seek for Patched {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.at = match to {
            SeekFrom::Start(at) => at,
            SeekFrom::End(by) => self.size.saturating_add_signed(by),
            SeekFrom::Current(by) => self.at.saturating_add_signed(by),
        };
        Ok(self.at)
    }
}

/// Findings of the disk with `bytes` at `at`, cut to `size`.
fn patched(at: u64, bytes: &[u8], size: u64) -> String {
    let patches = (at..).zip(bytes.iter().copied()).collect();
    let mut disk = Patched { patches, size, at: 0 };
    let results = inspect(&mut disk, &expect());
    shown(&results.into_iter().filter(|r| r.verdict != Verdict::Passed).collect::<Vec<_>>())
}

#[test]
fn damaged_tables_and_file_systems_are_named() {
    let last = SIZE - SECTOR;
    let mut all = String::new();
    let mut add = |what: &str, said: String| all += &format!("# {what}\n{said}\n");
    add("the table's checksum", patched(SECTOR + 17, &[1], SIZE));
    add("its entries", patched(2 * SECTOR + 40, &[1], SIZE));
    add("its copy", patched(last, &[0; 8], SIZE));
    add("no protective MBR", patched(446, &[0; 64], SIZE));
    add("nothing in front", patched(446, &[0; 600], SIZE));
    add("the ESP's boot sector", patched(ESP, &[0; 512], SIZE));
    add("the root's superblock", patched(ROOT + 1024 + 0x68, &[1], SIZE));
    add("the root's groups", patched(ROOT + 2048 + 9, &[99], SIZE));
    add("no root at all", patched(ROOT + 1024, &[0; 1024], SIZE));
    add("cut off", patched(0, &[], SIZE - 8 * MIB));
    add("empty", shown(&inspect(&mut Cursor::new(vec![0; 4 << 20]), &expect())));
    add("a bare file system", shown(&inspect(&mut Cursor::new(&whole()[ROOT as usize..]), &expect())[..1]));
    insta::assert_snapshot!(all);
}

#[test]
fn a_disk_with_an_mbr_is_read() {
    let mut disk = whole()[..(SIZE - MIB) as usize].to_vec();
    disk[SECTOR as usize..34 * SECTOR as usize].fill(0);
    disk[440..444].copy_from_slice(&0x1234_abcdu32.to_le_bytes());
    for (slot, kind, start, end) in [(0, 0x83, ROOT, SIZE - MIB), (1, 0xef, ESP, ROOT)] {
        let record = &mut disk[446 + slot * 16..462 + slot * 16];
        record[4] = kind;
        record[8..12].copy_from_slice(&((start / SECTOR) as u32).to_le_bytes());
        record[12..16].copy_from_slice(&(((end - start) / SECTOR) as u32).to_le_bytes());
    }
    insta::assert_snapshot!(shown(&inspect(&mut Cursor::new(disk), &expect())));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    /// Damage where structures are dense; more than one place at once.
    #[test]
    fn damage_never_panics_or_loops(
        holes in proptest::collection::vec((0usize..8, 0u64..4096, any::<[u8; 4]>()), 1..12),
        cut in 0u64..16,
    ) {
        let areas = [0, SECTOR, ESP, ESP + 32 * SECTOR, ESP + 560 * SECTOR, ROOT + 1024, ROOT + 2048, ROOT + 130 * 1024];
        let mut patches = BTreeMap::new();
        for (area, by, bytes) in holes {
            patches.extend((areas[area] + by..).zip(bytes));
        }
        let size = if cut < 14 { SIZE } else { SIZE * cut / 17 };
        let results = inspect(&mut Patched { patches, size, at: 0 }, &expect());
        // One result alone would mean that a reader panicked.
        prop_assert_eq!(results.len(), 12);
    }
}
