//! The static checks on real images: nothing to say of those of `profiles/`, and each breakage named.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kiln::arch::Arch;
use kiln::check::disk::{Expect, inspect};
use kiln::check::report::Verdict;
use kiln::system::Firmware;
use tempfile::TempDir;

use crate::images::partition;
use crate::machine;

const EXPECT: Expect = Expect { arch: Arch::Amd64, firmware: Firmware::Both, serial: true };
/// Milliseconds are what it takes; a busy machine may be slow to read.
const SOON: Duration = Duration::from_secs(5);

#[test]
fn nothing_is_wrong_with_the_ready_made_images() {
    for profile in ["minimal", "server", "web", "postgres"] {
        let image = machine::image(profile);
        let began = Instant::now();
        let results = inspect(&mut File::open(&image).expect("an image"), &EXPECT);
        assert!(began.elapsed() < SOON, "{profile} took {:?}", began.elapsed());
        for result in &results {
            assert_eq!(result.verdict, Verdict::Passed, "{profile}: {}: {}", result.name, result.detail);
        }
        assert_eq!(results.len(), 12);
    }
}

/// A copy of an image to be broken.
struct Copy {
    folder: TempDir,
    root: u64,
    esp: u64,
}

impl Copy {
    fn new() -> Copy {
        let image = machine::image("minimal");
        let folder = tempfile::tempdir_in(image.parent().expect("a folder")).expect("a folder");
        succeeds(Command::new("cp").arg("--sparse=always").arg(&image).arg(folder.path().join("disk")));
        succeeds(Command::new("chmod").arg("u+w").arg(folder.path().join("disk")));
        Copy { folder, root: partition(&image, 1).0, esp: partition(&image, 15).0 }
    }

    fn disk(&self) -> std::path::PathBuf {
        self.folder.path().join("disk")
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        let file = OpenOptions::new().write(true).open(self.disk()).expect("the copy");
        file.write_all_at(bytes, at).expect("written");
    }

    /// Runs debugfs' commands on the root.
    fn debugfs(&self, commands: &str) -> String {
        let script = self.folder.path().join("script");
        fs::write(&script, commands).expect("a script");
        let mut debugfs = Command::new("debugfs");
        debugfs.current_dir(self.folder.path()).arg("-w").arg("-f").arg(&script);
        succeeds(debugfs.arg(format!("{}?offset={}", self.disk().display(), self.root)))
    }

    /// Puts a file in place of another.
    fn replace(&self, path: &str, content: &[u8]) {
        fs::write(self.folder.path().join("new"), content).expect("a file");
        self.debugfs(&format!("rm {path}\nwrite new {path}\n"));
    }

    fn read(&self, path: &str) -> String {
        let out = self.folder.path().join("read");
        self.debugfs(&format!("dump {path} {}\n", out.display()));
        fs::read_to_string(out).expect("a text")
    }

    /// The path of the kernel or initrd, whose names hold a version.
    fn boot_file(&self, prefix: &str) -> String {
        let listed = self.debugfs("ls -p /boot\n");
        let name = listed.split('/').find(|name| name.starts_with(prefix)).expect("a file in /boot");
        format!("/boot/{name}")
    }

    /// What fails, by its name, and why.
    fn failures(&self) -> Vec<(String, String)> {
        let results = inspect(&mut File::open(self.disk()).expect("the copy"), &EXPECT);
        let failed = results.into_iter().filter(|r| r.verdict == Verdict::Failed);
        failed.map(|r| (r.name, r.detail)).collect()
    }
}

fn succeeds(command: &mut Command) -> String {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = command
        .env("PATH", path)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Breaks a copy and expects the check `name` to fail first, saying `words`.
fn breaks(name: &str, words: &str, breakage: impl FnOnce(&Copy)) {
    let copy = Copy::new();
    breakage(&copy);
    let failures = copy.failures();
    let (first, detail) = failures.first().unwrap_or_else(|| panic!("`{words}` was not noticed"));
    assert_eq!(first, name, "{failures:#?}");
    assert!(detail.contains(words), "{detail}");
}

#[test]
fn each_breakage_of_what_boots_is_named() {
    breaks("BIOS boot code", "holds no boot code", |c| c.write(0, &[0; 440]));
    breaks("partition table", "its header's checksum is wrong", |c| c.write(512 + 60, &[0xee]));
    breaks("EFI system partition", "holds no file system", |c| c.write(c.esp, &vec![0; 4 << 20]));
    breaks("EFI boot loader", "BOOTX64.EFI is missing", |c| {
        let esp = format!("{}@@{}", c.disk().display(), c.esp);
        succeeds(Command::new("mdel").args(["-i", &esp, "::/EFI/BOOT/BOOTX64.EFI"]));
    });
    breaks("EFI boot loader", "is a program for arm64", |c| {
        let esp = format!("{}@@{}", c.disk().display(), c.esp);
        let copied = c.folder.path().join("loader");
        succeeds(Command::new("mcopy").args(["-i", &esp, "::/EFI/BOOT/BOOTX64.EFI"]).arg(&copied));
        let mut loader = fs::read(&copied).expect("a loader");
        let header = u32::from_le_bytes(loader[0x3c..0x40].try_into().expect("four bytes")) as usize;
        loader[header + 4..header + 6].copy_from_slice(&0xaa64u16.to_le_bytes());
        fs::write(&copied, loader).expect("written");
        succeeds(Command::new("mcopy").args(["-o", "-i", &esp]).arg(&copied).arg("::/EFI/BOOT/BOOTX64.EFI"));
    });
    // With its checksum, as tune2fs does it, which would want the whole checked before.
    breaks("EFI boot loader", "isn't on this disk", |c| {
        c.debugfs("set_super_value uuid 26ada0c0-1165-4098-884d-aafd2220c2c6\n");
    });
}

#[test]
fn each_breakage_of_the_system_is_named() {
    breaks("kernel", "is missing", |c| drop(c.debugfs(&format!("rm {}\n", c.boot_file("vmlinuz-")))));
    breaks("kernel", "is a kernel for arm64", |c| {
        let mut image = vec![0; 4096];
        image[0x38..0x3c].copy_from_slice(b"ARM\x64");
        c.replace(&c.boot_file("vmlinuz-"), &image);
    });
    breaks("initrd", "is missing", |c| drop(c.debugfs(&format!("rm {}\n", c.boot_file("initrd.img-")))));
    breaks("serial console", "nothing will be seen", |c| {
        let text = c.read("/boot/grub/grub.cfg").replace("console=ttyS0", "consolation=ttyS0");
        c.replace("/boot/grub/grub.cfg", text.as_bytes());
    });
    breaks("root file system", "isn't on this disk; the root seems to be partition 1", |c| {
        let text = c.read("/boot/grub/grub.cfg").replace("root=PARTUUID=", "root=PARTUUID=0");
        c.replace("/boot/grub/grub.cfg", text.as_bytes());
    });
    breaks("init", "/sbin/init is missing", |c| drop(c.debugfs("rm /usr/sbin/init\n")));
    breaks("init", "missing libc", |c| {
        c.debugfs("rm /usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2\n");
    });
    breaks("fstab", "mounts LABEL=data on /srv", |c| {
        let text = c.read("/etc/fstab") + "LABEL=data /srv ext4 defaults 0 2\n";
        c.replace("/etc/fstab", text.as_bytes());
    });
}

/// A download that ended early.
#[test]
fn a_cut_image_is_named() {
    breaks("partition table", "the image was cut off", |c| {
        let file = OpenOptions::new().write(true).open(c.disk()).expect("the copy");
        file.set_len(file.metadata().expect("its size").len() / 2).expect("cut");
    });
}
