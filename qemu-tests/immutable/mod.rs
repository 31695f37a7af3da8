//! The store layout on real machines: what is damaged is refused, generations come and go, the clean slate, cuts of the power.

mod cuts;
mod generations;
mod moments;
mod refusals;
mod state;
mod witnesses;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use kiln::units::Bytes;
use kiln::vm::Setup;

use crate::images::partition;
use crate::machine::{self, KILN};

/// The smallest system in the store layout. Its menu doesn't wait.
const TINY: &str = r#"(import "minimal.ncl") & {
  name | priority 1 = "tiny",
  disk = { layout = 'store, free = "900MiB" },
  boot.timeout = 0,
}
"#;

/// A project of tiny systems, which have the packages and so the lock in common, but not their names.
struct Project {
    folder: PathBuf,
}

impl Project {
    /// Of one test: each has a folder of its own, as tests run beside each other.
    fn of(test: &str) -> Project {
        let folder = machine::cache().join("profiles").join(format!("tiny-{test}"));
        fs::create_dir_all(&folder).expect("a folder");
        let project = Project { folder };
        project.write("minimal", include_str!("../../profiles/minimal.ncl"));
        project.write("tiny", TINY);
        project
    }

    /// A profile that adds `fields` to the tiny one. It is locked anew: the lock of an earlier run has that day's archive, and
    /// what one test compares must be of the same.
    fn profile(&self, name: &str, fields: &str) -> PathBuf {
        let profile = self.write(name, &format!("(import \"tiny.ncl\") & {{ {fields} }}\n"));
        kiln(&["lock"], &profile);
        profile
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.join(format!("{name}.ncl"));
        if fs::read(&path).ok().as_deref() != Some(text.as_bytes()) {
            kiln::host::fs::write_atomically(&path, text.as_bytes()).expect("a profile");
        }
        path
    }

    /// The raw image of a profile.
    fn image(&self, name: &str, fields: &str) -> PathBuf {
        let (profile, out) = (self.profile(name, fields), self.folder.join("out").join(name));
        kiln(&["build", "--format", "raw", "-o", &out.to_string_lossy()], &profile);
        out.join("tiny.raw")
    }

    /// A profile's generation, as a file for `kiln switch`.
    fn generation(&self, name: &str, fields: &str) -> PathBuf {
        let (profile, out) =
            (self.profile(name, fields), self.folder.join("out").join(format!("{name}-file")));
        kiln(&["build", "--format", "generation", "-o", &out.to_string_lossy()], &profile);
        out.join("tiny.kiln")
    }
}

/// Runs Kiln with the tests' store.
fn kiln(arguments: &[&str], profile: &Path) {
    let mut command = Command::new(KILN);
    command.args(arguments).arg(profile).arg("--store").arg(machine::cache().join("store"));
    said(&mut command);
}

/// Runs a program that must end with 0; what it printed.
fn said(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A machine of little memory.
fn setup(disk: &Path) -> Setup {
    let mut setup = machine::setup(disk);
    setup.memory = Bytes(512 << 20);
    setup
}

/// How many of the moments at which the power may go are booted from: a few for a look, or as many as `KILN_TEST_CUTS` says.
fn cuts() -> usize {
    std::env::var("KILN_TEST_CUTS").ok().and_then(|text| text.parse().ok()).unwrap_or(2)
}

/// Numbers that look random and can be had again (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: Duration) -> Duration {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        limit.mul_f64(((mixed ^ mixed >> 31) >> 11) as f64 / (1u64 << 53) as f64)
    }
}

/// A disk of the store layout, as bytes.
struct Disk {
    path: PathBuf,
}

impl Disk {
    /// A copy that may be changed.
    fn copy(image: &Path, folder: &Path, name: &str) -> Disk {
        let path = folder.join(name);
        said(Command::new("cp").arg("--sparse=always").arg("--reflink=auto").args([image, &path]));
        Disk { path }
    }

    /// What a machine made of its disk.
    fn of_overlay(overlay: &Path, folder: &Path) -> Disk {
        let path = folder.join("as-it-is.raw");
        said(Command::new("qemu-img").args(["convert", "-O", "raw"]).args([overlay, &path]));
        Disk { path }
    }

    fn debugfs(&self, request: &str) -> String {
        let device = format!("{}?offset={}", self.path.display(), partition(&self.path, 1).0);
        said(Command::new("debugfs").args(["-w", "-R", request, &device]))
    }

    /// The path of the system's image on its partition.
    fn system(&self) -> String {
        let list = self.debugfs("ls -p /store");
        let name = list.split('/').find(|word| word.ends_with("-tiny")).expect("a system");
        format!("/store/{name}")
    }

    /// Where a byte of a file of the partition lies on the disk.
    fn place(&self, file: &str, offset: u64) -> u64 {
        const BLOCK: u64 = 4096;
        let said = self.debugfs(&format!("bmap {file} {}", offset / BLOCK));
        let block: u64 = said.trim().parse().expect("a block");
        partition(&self.path, 1).0 + block * BLOCK + offset % BLOCK
    }

    fn size(&self, file: &str) -> u64 {
        let said = self.debugfs(&format!("stat {file}"));
        let (_, rest) = said.split_once("Size: ").expect("a size");
        rest.split_whitespace().next().and_then(|word| word.parse().ok()).expect("a number")
    }

    /// Changes one byte.
    fn change(&self, at: u64, to: impl Fn(u8) -> u8) {
        let file = OpenOptions::new().read(true).write(true).open(&self.path).expect("the disk");
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("read");
        file.write_all_at(&[to(byte[0])], at).expect("written");
    }

    /// Every place of a text in the first `limit` bytes.
    fn find_all(&self, text: &[u8], limit: usize) -> Vec<u64> {
        let mut bytes = vec![0; limit];
        File::open(&self.path).and_then(|file| file.read_exact_at(&mut bytes, 0)).expect("read");
        let first = text[0];
        let starts = bytes.iter().enumerate().filter(|(_, byte)| **byte == first).map(|(at, _)| at);
        starts.filter(|at| bytes[*at..].starts_with(text)).map(|at| at as u64).collect()
    }
}
