//! A machine made of an image is upgraded in place: apt installs another kernel, the next boot takes it, the one before can
//! still be chosen in GRUB's menu, which nobody wrote anew, and GRUB falls back to it when the new one is lost.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use kiln::vm::{BootFailure, Channel, Setup, Vm, until_settled};

use crate::bake::{finished, folder_in, shared_store};
use crate::machine::{self, BOOT, KILN, SETTLED, SHUTDOWN, said};

/// Unpacking a kernel's modules and making its initrd, under emulation on a busy host.
const INSTALL: Duration = Duration::from_secs(900);
/// From power on to GRUB's menu.
const MENU: Duration = Duration::from_secs(60);

/// What the machine is upgraded to: the same system with the kernel of the backports.
const NEWER: &str = r#"{
  name = "upgrade",
  sources.debian.pockets.backports = true,
  packages."linux-image-cloud-amd64".suite = "trixie-backports",
}
"#;

/// The image, with an archive of the newer packages in it; the menu stays long enough to be seen.
const IMAGE: &str = r#"{
  name = "upgrade",
  boot.timeout = 20,
  disk.free = "1GiB",
  files."/srv/archive".source = "archive",
  files."/etc/apt/sources.list.d/local.sources".text = "Types: deb\nURIs: file:/srv/archive\nSuites: ./\nTrusted: yes\n",
}
"#;

#[test]
fn apt_installs_a_kernel_and_both_boot() {
    let folder = folder_in("/var/tmp");
    let (image, packages) = image(folder.path());
    let kept = folder.path().join("upgraded.qcow2");
    let mut setup = machine::setup(&image);
    setup.keep = Some(kept.clone());
    let vm = booted(setup, |_| {});
    let mut channel = Channel::attach(&vm, BOOT).unwrap_or_else(|e| panic!("{e}"));
    let old = said(&mut channel, "uname -r");
    install(&mut channel, &packages);
    let links = said(&mut channel, "readlink -f /vmlinuz /initrd.img /vmlinuz.old /initrd.img.old");
    let new =
        links.lines().next().and_then(|l| l.strip_prefix("/boot/vmlinuz-")).expect("a kernel").to_owned();
    let old = old.trim();
    assert_ne!(new, old);
    let wanted =
        format!("/boot/vmlinuz-{new}\n/boot/initrd.img-{new}\n/boot/vmlinuz-{old}\n/boot/initrd.img-{old}\n");
    assert_eq!(links, wanted);
    drop(channel);
    assert_eq!(vm.power_down(SHUTDOWN).reason.as_deref(), Some("guest-shutdown"));

    // By itself the menu takes its first entry.
    runs(machine::setup(&kept), &new, |_| {}, "true");
    let second = |vm: &Vm| {
        let line = vm.wait_for("GRUB's menu", MENU, |line| line.contains("previous kernel"));
        line.unwrap_or_else(|e| panic!("{e}"));
        // The arrow key down, as a terminal sends it, and Enter.
        vm.type_in(b"\x1b[B\r").expect("typed");
    };
    let mut setup = machine::setup(&kept);
    let lost = folder.path().join("lost.qcow2");
    setup.keep = Some(lost.clone());
    runs(setup, old, second, &format!("rm /boot/vmlinuz-{new}"));
    // The new kernel's file is lost: GRUB falls back to the one before by itself.
    let mut setup = machine::setup(&lost);
    setup.survives = vec![BootFailure::NoKernel];
    runs(setup, old, |_| {}, "true");
}

/// Boots a machine, which must come up with that kernel and no failed unit, and runs a script in it.
fn runs(setup: Setup, kernel: &str, at_menu: impl Fn(&Vm), script: &str) {
    let vm = booted(setup, at_menu);
    let mut channel = Channel::attach(&vm, BOOT).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(said(&mut channel, "uname -r").trim(), kernel);
    let settled = until_settled(&vm, &mut channel, Duration::ZERO, SETTLED).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((settled.state.as_str(), settled.failed.len()), ("running", 0), "{settled:?}");
    said(&mut channel, script);
    drop(channel);
    vm.power_down(SHUTDOWN);
}

fn booted(mut setup: Setup, at_menu: impl Fn(&Vm)) -> Vm {
    setup.channel = true;
    setup.reboots = false;
    let vm = machine::start(setup);
    at_menu(&vm);
    vm
}

fn install(channel: &mut Channel<'_>, packages: &[String]) {
    let script = format!(
        "export DEBIAN_FRONTEND=noninteractive HOME=/root PATH=/usr/sbin:/usr/bin\n\
         cd /srv/archive && apt-get -o Dir::Etc::SourceList=/dev/null update 2>&1 \
         && apt-get -y install {} 2>&1",
        packages.join(" ")
    );
    let done = channel.run(&script, INSTALL).unwrap_or_else(|e| panic!("{e}"));
    println!("installed in {:.0} s:\n{}", done.took.as_secs_f64(), done.stdout);
    assert_eq!(done.status, 0, "{}", done.stdout);
    assert_eq!(said(channel, "dpkg --audit"), "");
}

/// The image, and the packages that are newer in its archive.
fn image(folder: &Path) -> (PathBuf, Vec<String>) {
    let project = folder.join("project");
    fs::create_dir_all(project.join("archive")).expect("a folder");
    fs::write(project.join("newer.ncl"), NEWER).expect("a profile");
    fs::write(project.join("upgrade.ncl"), NEWER.replace("true", "false").replace("-backports", ""))
        .expect("a profile");
    for name in ["newer", "upgrade"] {
        kiln(Command::new(KILN).arg("lock").arg(project.join(format!("{name}.ncl"))));
    }
    // `kiln tree` fetches the newer packages and proves on the way that an image can be made of them.
    kiln(Command::new(KILN).arg("tree").arg(project.join("newer.ncl")).arg("/boot"));
    let packages = archive(&project);
    fs::write(project.join("upgrade.ncl"), IMAGE).expect("a profile");
    kiln(Command::new(KILN).arg("lock").arg(project.join("upgrade.ncl")));
    kiln(Command::new(KILN).arg("build").arg(project.join("upgrade.ncl")).arg("-o").arg(folder.join("out")));
    (folder.join("out/upgrade.raw"), packages)
}

fn kiln(command: &mut Command) {
    let mut whole = Command::new(command.get_program());
    whole.args(command.get_args()).arg("--store").arg(shared_store());
    finished(whole);
}

/// Copies the packages in which the locks of `newer` and `upgrade` differ, and writes their index.
fn archive(project: &Path) -> Vec<String> {
    let lines = |name: &str| -> Vec<String> {
        let text = fs::read_to_string(project.join(name)).expect("a lock");
        let image = text.split("[tools]").next().unwrap_or_default();
        image
            .lines()
            .filter(|l| l.contains("sha256 = ") && l.contains("name = "))
            .map(str::to_owned)
            .collect()
    };
    let present = lines("upgrade.lock");
    let (mut index, mut names) = (String::new(), Vec::new());
    for line in lines("newer.lock").iter().filter(|l| !present.contains(l)) {
        let field = |name: &str| {
            let start = line.find(&format!("{name} = \"")).expect("a field") + name.len() + 4;
            line[start..].split('"').next().unwrap_or_default().to_owned()
        };
        let (name, sha256) = (field("name"), field("sha256"));
        let deb = project.join("archive").join(format!("{name}.deb"));
        fs::copy(shared_store().join("blobs").join(&sha256[..2]).join(&sha256), &deb).expect("a package");
        let control = Command::new("dpkg-deb").arg("--field").arg(&deb).output().expect("dpkg-deb");
        let size = fs::metadata(&deb).expect("its size").len();
        index += String::from_utf8_lossy(&control.stdout).trim_end();
        index += &format!("\nFilename: ./{name}.deb\nSize: {size}\nSHA256: {sha256}\n\n");
        names.push(name);
    }
    fs::write(project.join("archive/Packages"), index).expect("an index");
    names
}
