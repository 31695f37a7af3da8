//! A real tree on a real disk: written with the tools tree's programs, judged by the host's.

mod fixture;
mod special;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use fixture::{EPOCH, Fixture, layout_of, write};
use kiln::artifact::BLOCK;
use kiln::image::{block_map, boot_files};
use kiln::tree::{Content, Kind, Node, Tree};

/// Runs a program and gives what it printed; it has to succeed.
fn run(program: &str, args: &[&str]) -> String {
    let out = Command::new(program).args(args).env("LC_ALL", "C.UTF-8").output().expect(program);
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{program} {args:?}: {text}");
    text
}

/// What sgdisk, sfdisk, fsck.fat and e2fsck say of an image: nothing.
fn check(image: &Path, layout: &kiln::layout::Layout) {
    let path = image.to_str().expect("a path in UTF-8");
    let text = run("sgdisk", &["-v", path]);
    assert!(text.contains("No problems found"), "{text}");
    let text = run("sfdisk", &["--verify", path]);
    assert!(text.contains("No errors detected"), "{text}");
    let root = layout.partition("root").expect("a root");
    run("e2fsck", &["-fn", &format!("{path}?offset={}", root.offset().0)]);
    let esp = layout.partition("esp").expect("an ESP");
    let mut bytes = vec![0; esp.size().0 as usize];
    File::open(image).expect("the image").read_exact_at(&mut bytes, esp.offset().0).expect("the ESP");
    let folder = tempfile::tempdir().expect("a folder");
    let alone = folder.path().join("esp");
    fs::write(&alone, bytes).expect("room");
    run("fsck.fat", &["-n", alone.to_str().expect("a path in UTF-8")]);
}

#[test]
fn every_checker_is_content_and_two_disks_are_the_same() {
    let fixture = Fixture::get();
    let layout = layout_of(&fixture.tree);
    let start = Instant::now();
    let one = write(fixture, &fixture.tree, &layout, &BTreeSet::new(), "one.raw");
    eprintln!("written in {:?}: {layout}", start.elapsed());
    let two = write(fixture, &fixture.tree, &layout, &BTreeSet::new(), "two.raw");
    assert_eq!(one.blocks, two.blocks);
    check(&one.path, &layout);
    fs::remove_file(&two.path).expect("removed");
}

#[test]
fn boot_files_depend_on_nothing_but_name_and_tools() {
    let fixture = Fixture::get();
    let make = |name| boot_files(&fixture.tools, name, kiln::arch::Arch::Amd64).expect("boot files");
    assert_eq!(make("server"), make("server"));
    assert_ne!(make("server").esp, make("web").esp);
    assert!(boot_files(&fixture.tools, "server", kiln::arch::Arch::Arm64).is_err());
}

/// The size that is planned comes close to what the file system uses, and never below it.
#[test]
fn the_plan_knows_how_much_a_tree_takes() {
    let fixture = Fixture::get();
    let layout = layout_of(&fixture.tree);
    let image = write(fixture, &fixture.tree, &layout, &BTreeSet::new(), "plan.raw");
    let root = layout.partition("root").expect("a root");
    let device = format!("{}?offset={}", image.path.display(), root.offset().0);
    let text = run("dumpe2fs", &["-h", &device]);
    let number = |name: &str| -> u64 {
        let line = text.lines().find_map(|l| l.strip_prefix(name)).expect(name);
        line.trim().parse().expect("a number")
    };
    let used = number("Block count:") - number("Free blocks:");
    let kiln::layout::Holds::Ext4 { fs, .. } = &root.holds else { panic!("no ext4") };
    let need = kiln::format::ext4::Need::of(fixture.tree.iter().map(|(p, n)| (p.as_slice(), n)));
    let planned = need.blocks + fs.overhead(root.size());
    let inodes = number("Inode count:") - number("Free inodes:");
    eprintln!("blocks: {used} used, {planned} planned; inodes: {inodes} used, {} planned", need.inodes);
    assert!(planned >= used && planned <= used + used / 90, "{planned} planned, {used} used");
    assert_eq!(need.inodes, inodes);
    fs::remove_file(&image.path).expect("removed");
}

#[test]
fn a_changed_or_added_file_of_the_profile_moves_few_blocks() {
    let fixture = Fixture::get();
    let file = |len: usize, seed: usize| {
        let bytes: Vec<u8> = (0..len).map(|i| (i * 31 + seed * 7 + i / 255) as u8).collect();
        Node::new(Kind::File(Content::bytes(bytes)), 0o644, EPOCH)
    };
    let mut base = fixture.tree.clone();
    let mut late = BTreeSet::new();
    let mut add = |tree: &mut Tree, path: &str, node: Node| {
        tree.insert_with_parents(path, node);
        late.insert(path.as_bytes().to_vec());
    };
    for i in 0..40 {
        add(&mut base, &format!("etc/profile.d/own-{i}.sh"), file(100 + i * 300, i));
        add(&mut base, &format!("usr/lib/systemd/system/own-{i}.service"), file(500, i));
    }
    let mut added = base.clone();
    add(&mut added, "etc/cloud/own.cfg", file(20_000, 1));
    let mut small = base.clone();
    add(&mut small, "etc/bench", file(7, 5));
    let mut unit = base.clone();
    add(&mut unit, "usr/lib/systemd/system/another.service", file(20_000, 2));
    let mut changed = base.clone();
    add(&mut changed, "etc/profile.d/own-39.sh", file(20_000, 3));
    let mut edited = base.clone();
    edited.insert("etc/passwd", file(5000, 4));
    let layout = layout_of(&base);
    let map = |tree: &Tree, name: &str| {
        let image = write(fixture, tree, &layout, &late, name);
        let map = block_map(&File::open(&image.path).expect("the image")).expect("readable");
        fs::remove_file(&image.path).expect("removed");
        map
    };
    let before = map(&base, "before.raw");
    for (what, tree) in
        [("added", added), ("small", small), ("unit", unit), ("changed", changed), ("edited", edited)]
    {
        let after = map(&tree, "after.raw");
        let moved = before.differing(&after);
        let share = moved as f64 * 100.0 / before.used() as f64;
        eprintln!("{what}: {moved} of {} blocks of {BLOCK} bytes, {share:.2} %", before.used());
        assert!(share < 2.0, "{what}: {moved} of {}", before.used());
    }
}
