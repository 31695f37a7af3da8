//! Whole bakes: the same bytes whatever the host is like; a store that stays right through kills, full disks, damage and
//! two builds at once. Packages come from a store that all tests share; each test bakes into one of its own.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

const KILN: &str = env!("CARGO_BIN_EXE_kiln");

/// What all tests of this module start from: a locked profile, the packages, and the digests of a first bake.
pub(crate) struct Reference {
    lock: String,
    pub(crate) images: Vec<(String, String)>,
}

/// A profile that covers what could differ between hosts: files, users, a script that runs in the tree.
const PROFILE: &str = r##"(import "profiles/minimal.ncl") & {
  name | force = "same",
  users.deploy = { uid = 1500, ssh_keys.laptop = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKZqJ0m0r8k2l1o9WqQ1u3m4y5z6A7B8C9D0E1F2G3H4 deploy" },
  files."/etc/site".source = "site",
  files."/etc/motd".text = "hello\n",
  run."50-stamp".source = "stamp.sh",
}
"##;

/// Writes down what a script could learn of the host, and tries what root may and an ordinary user may not.
const STAMP: &str = r#"#!/bin/sh
set -e
times=$(find /boot /home /srv /usr /var /etc/site -printf '%p %m %U %G %T@\n' | sort | sha256sum)
{
    hostname
    umask
    env | sort
    echo "$times"
    if mknod /srv/device c 1 3; then echo "a device can be made"; fi
    touch /srv/file
    for id in 65534 65535 70000; do
        if chown "$id:$id" /srv/file; then echo "$id is an id"; fi
    done
} > /etc/stamp
"#;

pub(crate) fn reference() -> &'static Reference {
    static REFERENCE: OnceLock<Reference> = OnceLock::new();
    REFERENCE.get_or_init(|| {
        let folder = tempfile::Builder::new().prefix("kiln-bake-").tempdir_in("/var/tmp").expect("a folder");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("a mode");
        project(&folder.path().join("project"), false);
        let mut command = kiln(&shared_store(), &folder.path().join("project"), &folder.path().join("out"));
        command.args(["--format", "raw,qcow2"]);
        finished(command);
        let images = digests(&folder.path().join("out"));
        let lock = fs::read_to_string(folder.path().join("project/same.lock")).expect("a lock");
        Reference { lock, images }
    })
}

/// Where packages are downloaded to once for all tests.
pub(crate) fn shared_store() -> PathBuf {
    match std::env::var_os("KILN_STORE") {
        Some(store) => store.into(),
        None => Path::new(env!("CARGO_TARGET_TMPDIR")).join("store"),
    }
}

/// Writes the profile and its files; `reversed` makes them in another order, with other times.
fn project(folder: &Path, reversed: bool) {
    fs::create_dir_all(folder.join("site")).expect("a folder");
    let profiles = Path::new(env!("CARGO_MANIFEST_DIR")).join("profiles");
    let copied = Command::new("cp").arg("-r").arg(profiles).arg(folder).status().expect("cp");
    assert!(copied.success());
    let mut names: Vec<String> = (0..40).map(|n| format!("page-{n}")).collect();
    if reversed {
        names.reverse();
    }
    for name in names {
        fs::write(folder.join("site").join(&name), &name).expect("a file");
    }
    fs::write(folder.join("kiln.toml"), "").expect("a file");
    fs::write(folder.join("stamp.sh"), STAMP).expect("a script");
    fs::write(folder.join("same.ncl"), PROFILE).expect("a profile");
}

/// `kiln build` of a project with a store and an output folder.
pub(crate) fn kiln(store: &Path, project: &Path, out: &Path) -> Command {
    let mut command = Command::new(KILN);
    command.arg("--store").arg(store).arg("build").arg(project.join("same.ncl")).arg("-o").arg(out);
    command.stdin(Stdio::null());
    command
}

pub(crate) fn finished(mut command: Command) -> Output {
    let output = command.output().expect("kiln starts");
    assert!(output.status.success(), "{:?}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    output
}

/// Kiln on what seems to be another host: its name, umask, time zone, locale, folder of temporary files, and one processor.
pub(crate) fn on_another_host(store: &Path, folder: &Path) -> Command {
    let script = "hostname quite-another && umask 077 && exec taskset -c 0 \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--uts", "sh", "-c", script, "sh", KILN, "--store"]).arg(store);
    command.env("TZ", "Pacific/Kiritimati").env("LC_ALL", "tr_TR.UTF-8").env("LANG", "tr_TR.UTF-8");
    let temporary = folder.join("tmp");
    fs::create_dir(&temporary).expect("a folder");
    command
        .env("TMPDIR", &temporary)
        .env("HOME", "/nonexistent")
        .env("USER", "somebody")
        .env("SOURCE_DATE_EPOCH", "1");
    command
}

/// Each image's name and SHA-256, computed by another program than Kiln.
fn digests(out: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for name in ["same.raw", "same.qcow2"] {
        if out.join(name).exists() {
            let output = Command::new("sha256sum").arg(out.join(name)).output().expect("sha256sum");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            found.push((name.to_owned(), text[..64].to_owned()));
        }
    }
    found
}

/// A store with the packages of the reference and nothing else, below `folder`.
pub(crate) fn store_with_packages(folder: &Path) -> PathBuf {
    store_with(&reference().lock, folder)
}

/// A store with what a lock names, of what the shared store has, and nothing else, below `folder`.
pub(crate) fn store_with(lock: &str, folder: &Path) -> PathBuf {
    part_of_store(&shared_store(), lock, folder)
}

/// A store with what a lock names, of what another store has, and nothing else, below `folder`.
pub(crate) fn part_of_store(all: &Path, lock: &str, folder: &Path) -> PathBuf {
    let store = folder.join("store");
    for word in lock.split(|c: char| !c.is_ascii_hexdigit()).filter(|w| w.len() == 64) {
        let blob = Path::new("blobs").join(&word[..2]).join(word);
        if all.join(&blob).exists() {
            fs::create_dir_all(store.join(&blob).parent().expect("a parent")).expect("a folder");
            fs::copy(all.join(&blob), store.join(&blob)).expect("a copy");
        }
    }
    store
}

/// A folder of its own with a project as the reference's, locked the same.
pub(crate) fn copy_of_project(folder: &Path, reversed: bool) -> PathBuf {
    let project = folder.join("project");
    self::project(&project, reversed);
    fs::write(project.join("same.lock"), &reference().lock).expect("the lock");
    project
}

pub(crate) fn folder_in(parent: &str) -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("kiln-bake-").tempdir_in(parent).expect("a folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("a mode");
    folder
}

#[test]
fn another_host_gives_the_same_bytes() {
    let folder = folder_in("/dev/shm");
    let project = copy_of_project(folder.path(), true);
    let store = store_with_packages(folder.path());
    let out = folder.path().join("elsewhere/out");
    let mut command = on_another_host(&store, folder.path());
    command.arg("build").arg(project.join("same.ncl")).arg("-o").arg(&out);
    command.args(["--offline", "--format", "raw,qcow2"]);
    finished(command);
    assert_eq!(digests(&out), reference().images);
}

#[test]
fn an_ordinary_user_gives_the_same_bytes() {
    let user = "kiln-bake-test";
    let script = format!(
        "id {user} >/dev/null 2>&1 || useradd --create-home {user}; \
         grep -q ^{user}: /etc/subuid || usermod --add-subuids 700000-765535 --add-subgids 700000-765535 {user}"
    );
    assert!(Command::new("sh").args(["-c", &script]).status().expect("sh").success(), "a user can be made");
    let folder = folder_in("/var/tmp");
    let project = copy_of_project(folder.path(), false);
    let store = store_with_packages(folder.path());
    // The program's own folder may be closed to others.
    let program = folder.path().join("kiln");
    fs::copy(KILN, &program).expect("a copy");
    let owner = format!("{user}:{user}");
    assert!(Command::new("chown").args(["-R", &owner]).arg(folder.path()).status().expect("chown").success());
    let out = folder.path().join("out");
    let mut command = Command::new("setpriv");
    command.args(["--reuid", user, "--regid", user, "--init-groups", "--reset-env"]).arg(&program);
    command.arg("--store").arg(&store).arg("build").arg(project.join("same.ncl")).arg("-o").arg(&out);
    command.args(["--offline", "--format", "raw,qcow2"]);
    finished(command);
    assert_eq!(digests(&out), reference().images);
}

#[test]
fn a_killed_build_goes_on() {
    let folder = folder_in("/var/tmp");
    let project = copy_of_project(folder.path(), false);
    let store = store_with_packages(folder.path());
    let out = folder.path().join("out");
    for moment in [0.1, 0.7, 2.0, 4.0, 7.0, 11.0] {
        let mut command = kiln(&store, &project, &out);
        command.arg("--offline").stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let mut child = command.spawn().expect("kiln starts");
        let group = Pid::from_raw(child.id() as i32);
        std::thread::sleep(Duration::from_secs_f64(moment));
        // Only Kiln itself is killed; what it started must end by itself.
        let _ = child.kill();
        let _ = child.wait();
        let deadline = Instant::now() + Duration::from_secs(10);
        while killpg(group, None).is_ok() {
            assert!(Instant::now() < deadline, "processes are left behind after a kill at {moment} s");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    let mut command = kiln(&store, &project, &out);
    command.args(["--offline", "--format", "raw,qcow2"]);
    finished(command);
    assert_eq!(digests(&out), reference().images);
    let left: Vec<_> =
        fs::read_dir(store.join("tmp")).expect("a folder").flatten().map(|e| e.path()).collect();
    assert!(left.is_empty(), "scratch is left behind: {left:?}");
}

#[test]
fn ctrl_c_ends_a_build_cleanly() {
    let folder = folder_in("/var/tmp");
    let project = copy_of_project(folder.path(), false);
    let store = store_with_packages(folder.path());
    let out = folder.path().join("out");
    let mut command = kiln(&store, &project, &out);
    command.arg("--offline").stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    let mut child = command.spawn().expect("kiln starts");
    std::thread::sleep(Duration::from_secs(3));
    let before = Instant::now();
    let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGINT);
    let status = child.wait().expect("it ends");
    assert_eq!(status.code(), Some(130));
    assert!(before.elapsed() < Duration::from_secs(15), "it took {:?}", before.elapsed());
    assert!(!out.join("same.raw").exists());
    assert_eq!(fs::read_dir(store.join("tmp")).expect("a folder").count(), 0, "scratch is left behind");
}

#[test]
fn two_at_once_share_the_work() {
    let folder = folder_in("/var/tmp");
    let project = copy_of_project(folder.path(), false);
    let store = store_with_packages(folder.path());
    let outs = [folder.path().join("one"), folder.path().join("two")];
    let children = outs.each_ref().map(|out| {
        let mut command = kiln(&store, &project, out);
        command.arg("--offline").stdout(Stdio::null()).stderr(Stdio::piped());
        command.spawn().expect("kiln starts")
    });
    let said = children.map(|child| {
        let output = child.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        said
    });
    for out in &outs {
        assert_eq!(digests(out), reference().images[..1]);
    }
    let installed = said.iter().filter(|s| s.contains("installing")).count();
    assert_eq!(installed, 1, "both installed the packages:\n{}\n{}", said[0], said[1]);
}

#[test]
fn damage_is_found_and_made_good() {
    let folder = folder_in("/var/tmp");
    let project = copy_of_project(folder.path(), false);
    let store = store_with_packages(folder.path());
    let out = folder.path().join("out");
    let damage = |blob: &Path| {
        fs::set_permissions(blob, fs::Permissions::from_mode(0o644)).expect("a mode");
        let file = fs::File::options().read(true).write(true).open(blob).expect("a blob");
        let middle = file.metadata().expect("its size").len() / 2;
        let mut byte = [0];
        file.read_exact_at(&mut byte, middle).expect("a byte");
        file.write_all_at(&[!byte[0]], middle).expect("another byte");
    };
    let largest = |store: &Path| {
        let blobs = Command::new("find")
            .arg(store.join("blobs"))
            .args(["-type", "f", "-printf", "%s %p\\n"])
            .output();
        let text = String::from_utf8_lossy(&blobs.expect("find").stdout).into_owned();
        let sized =
            text.lines().filter_map(|l| l.split_once(' ')).map(|(s, p)| (s.parse::<u64>().unwrap_or(0), p));
        PathBuf::from(sized.max().expect("a blob").1)
    };
    // A package: found before it is used, and fetched again.
    damage(&largest(&store));
    finished(kiln(&store, &project, &out));
    assert_eq!(digests(&out), reference().images[..1]);
    // A step's result, which the next build needs: found, and made again.
    damage(&largest(&store));
    fs::write(project.join("same.ncl"), PROFILE.replace("hello", "good day")).expect("a profile");
    finished(kiln(&store, &project, &out));
    fs::write(project.join("same.ncl"), PROFILE).expect("a profile");
    finished(kiln(&store, &project, &out));
    assert_eq!(digests(&out), reference().images[..1]);
}

#[test]
fn a_full_disk_is_told_and_the_same_command_goes_on() {
    let folder = folder_in("/var/tmp");
    let project = copy_of_project(folder.path(), false);
    let small = folder.path().join("small");
    fs::create_dir(&small).expect("a folder");
    let run = |script: &str| {
        Command::new("sh").args(["-c", script]).arg("sh").arg(&small).status().expect("sh").success()
    };
    assert!(run("mount -t tmpfs -o size=130m none \"$1\""), "a tmpfs can be mounted");
    let store = store_with_packages(&small);
    let out = small.join("out");
    let mut command = kiln(&store, &project, &out);
    let output = command.arg("--offline").output().expect("kiln starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let images = digests(&out);
    let grown = run("mount -o remount,size=3g \"$1\"");
    let mut command = kiln(&store, &project, &out);
    command.arg("--offline");
    let again = command.output().expect("kiln starts");
    let repaired = digests(&out);
    assert!(run("umount -l \"$1\""));
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("space") || said.contains("full"), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    assert_eq!(images, [], "a half-made image stands under its final name");
    assert!(grown && again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    assert_eq!(repaired, reference().images[..1]);
}
