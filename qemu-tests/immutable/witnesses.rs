//! Witnesses: what other programs say of the system's image and of its hash tree, and a second bake that gives the same bytes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use kiln::digest::Digest;
use kiln::host::tools;
use kiln_guest::cmdline;
use kiln_guest::menu::Entry;

use super::{Project, said};
use crate::bake::{finished, folder_in, on_another_host, part_of_store};
use crate::machine;

#[test]
fn the_system_is_what_others_take_it_for() {
    let project = Project::of("witnesses");
    let file = project.generation("plain", "");
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
    let fsck = |arguments: &[&str], says: &str| {
        let mut command = tools::command(&erofs_tools(), "fsck.erofs").expect("fsck.erofs");
        let output = command.arg("-d3").args(arguments).arg(&system).output().expect("fsck.erofs runs");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && told.contains(says), "{told}");
    };
    // Every file is unpacked, and thrown away.
    fsck(&["--extract"], "No errors found");
    let root = folder.path().join("root");
    fsck(&[&format!("--extract={}", root.display()), "--preserve"], "Extracted filesystem successfully");
    let (ours, theirs) = (of_the_tree(&project, "plain"), of_folder(&root));
    let differ = |path: &&String| ours.get(*path) != theirs.get(*path);
    let paths: Vec<&String> = ours.keys().chain(theirs.keys()).filter(differ).collect();
    let say = |path: &&String| format!("{path}: {:?}; fsck.erofs: {:?}", ours.get(*path), theirs.get(*path));
    assert!(paths.is_empty(), "{}", paths.iter().map(say).collect::<Vec<_>>().join("\n"));
    assert!(ours.len() > 1000, "{}", ours.len());
}

/// What `kiln tree` says of each path, in the words of [`of_folder`]. No initrd is in the system's image.
fn of_the_tree(project: &Project, name: &str) -> BTreeMap<String, String> {
    let mut command = Command::new(machine::KILN);
    command.args(["tree", "--json"]).arg(project.folder.join(name).with_extension("ncl"));
    command.arg("--store").arg(machine::cache().join("store"));
    let nodes: Vec<serde_json::Value> = serde_json::from_str(&said(&mut command)).expect("JSON");
    let by_path = |path: &str| nodes.iter().find(|node| node["path"] == path);
    let one = |node: &serde_json::Value| {
        let named = node;
        // A hard link has no metadata of its own.
        let node =
            node["target"].as_str().filter(|_| node["type"] == "hardlink").and_then(by_path).unwrap_or(node);
        let more = match node["type"].as_str().expect("a type") {
            "file" => format!("{} {}", node["size"], node["sha256"].as_str().expect("a digest")),
            "symlink" => node["target"].as_str().expect("a target").to_owned(),
            _ => String::new(),
        };
        let path = named["path"].as_str().expect("a path").to_owned();
        // A symbolic link's own mode means nothing.
        let mode = if node["type"] == "symlink" { "0777" } else { node["mode"].as_str().expect("a mode") };
        (path, format!("{mode} {}:{} {} {more}", node["uid"], node["gid"], node["mtime"]))
    };
    let initrd = |node: &&serde_json::Value| {
        let path = node["path"].as_str().expect("a path");
        path.starts_with("/boot/initrd.img") || path.starts_with("/initrd.img")
    };
    nodes.iter().filter(|node| !initrd(node)).map(one).collect()
}

/// What lies in a folder: mode, owner, time, size and digest, or target, of each path.
fn of_folder(root: &Path) -> BTreeMap<String, String> {
    let (mut seen, mut todo) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(path) = todo.pop() {
        let meta = fs::symlink_metadata(&path).expect("metadata");
        if meta.is_dir() {
            todo.extend(
                fs::read_dir(&path).expect("a directory").map(|entry| entry.expect("an entry").path()),
            );
        }
        let more = if meta.is_symlink() {
            fs::read_link(&path).expect("a link").display().to_string()
        } else if meta.is_file() {
            format!("{} {}", meta.len(), Digest::of(&fs::read(&path).expect("a file")))
        } else {
            String::new()
        };
        let inside = path.strip_prefix(root).expect("it lies below");
        let (mode, uid, gid) = (meta.mode() & 0o7777, meta.uid(), meta.gid());
        let node = format!("{mode:04o} {uid}:{gid} {} {more}", meta.mtime());
        seen.insert(format!("/{}", inside.display()), node);
    }
    seen
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
