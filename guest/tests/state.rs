//! The state of a machine: its first boot, later generations, and the mounts that make a running system of it.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use kiln_guest::config::Config;
use kiln_guest::copy::Copier;
use kiln_guest::mounts;
use kiln_guest::state::{self, Places};
use kiln_guest::steps::Steps;
use kiln_guest::sys;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

/// An image and a partition with its state, below a folder of their own.
struct Machine {
    root: tempfile::TempDir,
}

impl Machine {
    fn new(image: &[(&str, &str)]) -> Machine {
        let root = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let machine = Machine { root };
        fs::create_dir_all(machine.path("kiln")).unwrap();
        image.iter().for_each(|(path, text)| machine.write(&format!("image/{path}"), text));
        machine
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    fn places(&self, system: &str) -> Places {
        Places { kiln: self.path("kiln"), image: self.path("image"), system: system.to_owned() }
    }

    fn prepare(&self, system: &str) -> Vec<String> {
        state::prepare(&self.places(system), &mut Steps::all()).unwrap()
    }

    /// Paths and texts of all files of the state.
    fn state(&self) -> Vec<String> {
        fn walk(root: &Path, path: &Path, found: &mut Vec<String>) {
            for entry in fs::read_dir(path).unwrap() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(root).unwrap().display().to_string();
                if path.is_dir() {
                    walk(root, &path, found);
                } else {
                    found.push(format!("{name}={}", fs::read_to_string(&path).unwrap().trim()));
                }
            }
        }
        let (root, mut found) = (self.path("kiln/state"), Vec::new());
        walk(&root, &root, &mut found);
        found.sort();
        found
    }
}

const IMAGE: [(&str, &str); 6] = [
    ("etc/passwd", "root:x:0:\n"),
    ("var/lib/app/data", "1"),
    ("var/lib/dpkg/status", "1"),
    ("root/.profile", "1"),
    ("home/.keep", ""),
    ("srv/www/index", "1"),
];

#[test]
fn a_first_boot_begins_with_what_the_image_has() {
    let machine = Machine::new(&IMAGE);
    assert_eq!(machine.prepare("one"), ["first boot: the state begins as the image has it"]);
    let expected = [".seeded=one", "home/.keep=", "root/.profile=1", "srv/www/index=1", "var/lib/app/data=1"];
    assert_eq!(machine.state(), expected);
    assert!(machine.path("kiln/state/var/lib/dpkg").is_dir(), "empty: it shows the image's");
    assert!(machine.path("kiln/state/etc").is_dir());
    assert!(machine.prepare("one").is_empty());
}

/// What a second image brings that the first didn't have.
fn upgrade(machine: &Machine) {
    machine.prepare("one");
    machine.write("kiln/state/var/lib/app/data", "machine");
    machine.write("kiln/state/etc/passwd", "root:x:0:\nann:x:1000:\n");
    machine.write("kiln/state/srv/www/own", "machine");
    fs::remove_file(machine.path("kiln/state/root/.profile")).unwrap();
    symlink("/elsewhere", machine.path("kiln/state/srv/new")).unwrap();
    for (path, text) in [
        ("image/etc/passwd", "root:x:0:\nweb:x:105:\n"),
        ("image/var/lib/app/data", "2"),
        ("image/var/lib/app/more/deep", "2"),
        ("image/var/lib/web/a", "2"),
        ("image/srv/new/file", "2"),
    ] {
        machine.write(path, text);
    }
}

const UPGRADED: [&str; 9] = [
    ".seeded=one\ntwo",
    "etc/passwd=root:x:0:\nann:x:1000:\nweb:x:105:",
    "home/.keep=",
    "root/.profile=1",
    "srv/www/index=1",
    "srv/www/own=machine",
    "var/lib/app/data=machine",
    "var/lib/app/more/deep=2",
    "var/lib/web/a=2",
];

fn assert_upgraded(machine: &Machine) {
    fs::remove_file(machine.path("kiln/state/srv/new")).expect("the machine's own link stays");
    assert_eq!(machine.state(), UPGRADED);
    assert_eq!(fs::read_dir(machine.path("kiln")).unwrap().count(), 1, "nothing is left beside the state");
}

#[test]
fn a_later_generation_adds_and_never_overwrites() {
    let machine = Machine::new(&IMAGE);
    upgrade(&machine);
    let said = machine.prepare("two");
    assert_eq!(said[0], "the state lacked 3 of the system's files and folders: added");
    assert_eq!(said[1], "/etc/passwd: added web of the new system");
    assert_upgraded(&machine);
    // Only once: what the machine then removes stays removed, whichever of the generations is started.
    fs::remove_file(machine.path("kiln/state/var/lib/web/a")).unwrap();
    assert!(machine.prepare("two").is_empty() && machine.prepare("one").is_empty());
    assert!(!machine.path("kiln/state/var/lib/web/a").exists());
}

#[test]
fn a_cut_anywhere_is_made_up_for() {
    let mut steps = 0;
    loop {
        let machine = Machine::new(&IMAGE);
        upgrade(&machine);
        let done = state::prepare(&machine.places("two"), &mut Steps::until(steps)).is_ok();
        for path in ["kiln/state/var/lib/web", "kiln/state/var/lib/app/more"] {
            let complete =
                !machine.path(path).exists() || fs::read_dir(machine.path(path)).unwrap().count() == 1;
            assert!(complete, "{path} is there by half after {steps}");
        }
        machine.prepare("two");
        assert_upgraded(&machine);
        if done {
            break;
        }
        steps += 1;
    }
    assert!(steps >= 7, "{steps}");
    for steps in 0..6 {
        let machine = Machine::new(&IMAGE);
        let _ = state::prepare(&machine.places("one"), &mut Steps::until(steps));
        machine.prepare("one");
        assert_eq!(machine.state().len(), 5, "{steps}");
    }
}

/// Says so loudly when the rest of a test can't be run by an ordinary user.
fn is_root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("NOT RUN: {test} needs root");
    }
    root
}

#[test]
fn copies_keep_all_that_a_file_has() {
    let machine = Machine::new(&[("from/deep/file", "text"), ("from/left/out", "x")]);
    let (from, to) = (machine.path("image/from"), machine.path("to"));
    fs::hard_link(from.join("deep/file"), from.join("second")).unwrap();
    symlink("nowhere", from.join("link")).unwrap();
    fs::set_permissions(from.join("left"), fs::Permissions::from_mode(0o2750)).unwrap();
    fs::set_permissions(from.join("deep/file"), fs::Permissions::from_mode(0o4711)).unwrap();
    let root = is_root("copies_keep_all_that_a_file_has: owners, devices, attributes");
    let attribute = CString::new("trusted.kiln").unwrap();
    if root {
        mknod(&from.join("null"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, 3)).unwrap();
        std::os::unix::fs::lchown(from.join("link"), Some(7), Some(8)).unwrap();
        std::os::unix::fs::chown(from.join("deep"), Some(9), Some(10)).unwrap();
        sys::set_attribute(&from.join("deep"), &attribute, b"value").unwrap();
    }
    let left = from.join("left");
    Copier::default().copy(&from, &to, &|path| path == left).unwrap();
    for name in ["", "deep", "deep/file", "second", "link", "left"] {
        let (a, b) =
            (fs::symlink_metadata(from.join(name)).unwrap(), fs::symlink_metadata(to.join(name)).unwrap());
        let all = |m: &fs::Metadata| {
            (m.mode(), m.uid(), m.gid(), m.mtime(), m.mtime_nsec(), m.is_dir() || m.len() > 0)
        };
        assert_eq!(all(&a), all(&b), "{name}");
    }
    assert_eq!(fs::metadata(to.join("second")).unwrap().nlink(), 2);
    assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("nowhere"));
    assert_eq!(fs::read_dir(to.join("left")).unwrap().count(), 0);
    if root {
        let null = fs::symlink_metadata(to.join("null")).unwrap();
        assert!(null.file_type().is_char_device() && null.rdev() == makedev(1, 3));
        assert_eq!(sys::attribute(&to.join("deep"), &attribute).unwrap(), b"value");
    }
}

/// Runs in a mount namespace of its own, which the thread takes with it when it ends.
fn in_namespace(test: &str, work: impl FnOnce() + Send + 'static) {
    if !is_root(test) {
        return;
    }
    let thread = std::thread::spawn(|| {
        sys::leave_mount_namespace().unwrap();
        let nothing = None::<&str>;
        mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).unwrap();
        work();
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// Makes the image a mount of its own that can't be written, as it is on a machine.
fn mount_image(machine: &Machine) {
    let image = machine.path("image");
    mounts::bind(&image, &image).unwrap();
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(None::<&str>, &image, None::<&str>, flags, None::<&str>).unwrap();
}

#[test]
fn a_state_lies_over_an_image() {
    in_namespace("a_state_lies_over_an_image", || {
        let machine = Machine::new(&IMAGE);
        machine.prepare("one");
        mount_image(&machine);
        mounts::lay_over(&machine.path("image"), &machine.path("kiln/state"), &machine.path("aside"))
            .unwrap();
        machine.write("image/etc/new", "machine");
        machine.write("image/var/lib/app/data", "machine");
        assert_eq!(machine.read("kiln/state/etc/new"), "machine");
        assert_eq!(machine.read("kiln/state/var/lib/app/data"), "machine");
        assert_eq!(machine.read("image/etc/passwd"), "root:x:0:\n");
        assert_eq!(machine.read("image/var/lib/dpkg/status"), "1");
        let error = fs::write(machine.path("image/var/lib/dpkg/status"), "").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    });
}

#[test]
fn a_state_in_memory_keeps_what_is_to_be_kept() {
    in_namespace("a_state_in_memory_keeps_what_is_to_be_kept", || {
        let machine = Machine::new(&IMAGE);
        mount_image(&machine);
        let (config, _) =
            Config::parse("ephemeral\nkeep /var/lib/app\nkeep /etc/passwd\nkeep /home/new/deep\n");
        let (memory, places) = (machine.path("memory"), machine.places("one"));
        mounts::memory(&memory).unwrap();
        state::seed(&places, &memory).unwrap();
        mounts::lay_over(&places.image, &memory, &machine.path("aside")).unwrap();
        mounts::bind_kept(&places, &config, &memory).unwrap();
        machine.write("image/var/lib/app/data", "kept");
        machine.write("image/etc/passwd", "kept");
        machine.write("image/home/new/deep/file", "kept");
        machine.write("image/var/lib/other", "lost");
        machine.write("image/etc/other", "lost");
        assert_eq!(machine.state(), ["etc/passwd=kept", "home/new/deep/file=kept", "var/lib/app/data=kept"]);
    });
}
