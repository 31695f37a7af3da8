//! Witnesses: what other programs say of the system's image and of its hash tree, and a second bake that gives the same bytes.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use kiln::host::tools;
use kiln_guest::cmdline;
use kiln_guest::menu::Entry;

use super::{Project, said};
use crate::bake::{finished, folder_in, on_another_host, part_of_store};
use crate::machine;

#[test]
fn the_system_is_what_others_take_it_for() {
    let file = Project::of("witnesses").generation("plain", "");
    let folder = folder_in("/var/tmp");
    said(Command::new("tar").arg("-xf").arg(&file).arg("-C").arg(folder.path()));
    let system = folder.path().join("system");
    let kernel = fs::read(folder.path().join("uki.efi")).expect("a kernel");
    let arguments = cmdline::arguments(&Entry::of(1, &kernel).expect("an entry").cmdline);
    let argument = |key| cmdline::value(&arguments, key).expect("an argument");

    let digest = said(Command::new("sha256sum").arg(&system));
    assert!(argument("kiln.system").starts_with(&digest[..64]), "{digest}");
    let tree = format!("--hash-offset={}", erofs_size(&system));
    let verify = |roothash: &str| {
        let mut command = Command::new("veritysetup");
        command.arg("verify").args([&system, &system]).arg(roothash).arg(&tree);
        command.output().expect("veritysetup runs")
    };
    let roothash = argument("kiln.roothash");
    let output = verify(roothash);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let other = roothash.replace(['0', '1'], "2");
    assert!(!verify(&other).status.success(), "another root hash is taken as well");
    let mut command = tools::command(&erofs_tools(), "fsck.erofs").expect("fsck.erofs");
    // Every file is unpacked, and thrown away.
    let output = command.args(["-d3", "--extract"]).arg(&system).output().expect("fsck.erofs runs");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.contains("No errors found"), "{told}");
}

/// Where an EROFS image ends, as its superblock says (the kernel's `fs/erofs/erofs_fs.h`): the hash tree follows.
fn erofs_size(image: &Path) -> u64 {
    let file = File::open(image).expect("an image");
    let (mut bits, mut blocks) = ([0], [0; 4]);
    file.read_exact_at(&mut bits, 1024 + 12).expect("a superblock");
    file.read_exact_at(&mut blocks, 1024 + 36).expect("a superblock");
    u64::from(u32::from_le_bytes(blocks)) << bits[0]
}

/// The tools tree that wrote the image, or one that has the same program.
fn erofs_tools() -> PathBuf {
    let trees = fs::read_dir(machine::cache().join("store/dirs")).expect("tools trees");
    let has = |tree: &PathBuf| tools::find(tree, "fsck.erofs").is_some();
    trees.flatten().map(|entry| entry.path()).find(has).expect("a tools tree with erofs-utils")
}

#[test]
fn another_host_gives_the_same_disk_and_generation() {
    let project = Project::of("elsewhere");
    let images = [project.image("plain", ""), project.generation("plain", "")];
    let folder = folder_in("/dev/shm");
    let copy = folder.path().join("project");
    fs::create_dir(&copy).expect("a folder");
    for name in ["plain.ncl", "plain.lock", "tiny.ncl", "minimal.ncl"] {
        fs::copy(project.folder.join(name), copy.join(name)).expect("a copy");
    }
    let lock = fs::read_to_string(copy.join("plain.lock")).expect("a lock");
    let store = part_of_store(&machine::cache().join("store"), &lock, folder.path());
    let mut command = on_another_host(&store, folder.path());
    let out = folder.path().join("elsewhere/out");
    command.arg("build").arg(copy.join("plain.ncl")).arg("-o").arg(&out);
    command.args(["--offline", "--format", "raw,generation"]);
    finished(command);
    for image in &images {
        let other = out.join(image.file_name().expect("a name"));
        said(Command::new("cmp").args([image, &other]));
    }
}
