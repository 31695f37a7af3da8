//! Cuts of the power: whenever it goes in the middle of a clean slate or of `kiln switch`, the machine boots, and what was begun
//! is finished.
//!
//! The work is done once, and the disk is looked at as it was at many moments: each must have sound file systems and be the old or
//! the new machine, whole. Some of them are booted as well, as many as `KILN_TEST_CUTS` says.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use kiln::format::fat::read::Reader;
use kiln::vm::{Boots, Channel, Setup, Vm};
use kiln_guest::menu::{ENTRIES, ENVIRONMENT, EntryName, Environment, MENUS};

use super::moments::{Moment, Moments, Partitions};
use super::state::{KEPT, USE, answer, settled};
use super::{Disk, Project, Random, said as ran, setup};
use crate::bake::folder_in;
use crate::machine::{self, BOOT, COMMAND, KILN, SHUTDOWN, said};

/// What [`USE`] makes: what a clean slate wipes, and what it keeps.
const LOST: [&str; 5] = ["var/lib/lost/a", "home/somebody/a", "srv/data/a", "root/a", "etc/lost.conf"];
const KEEPS: [&str; 2] = ["var/lib/kept/a", "etc/kept.conf"];
/// A piece of work of which fewer moments are seen was not watched.
const FEWEST: usize = 10;
/// Where the generation file lies on the partition, and what it makes.
const FILE: &str = "next.kiln";
const NEXT: &str = "files.\"/usr/share/edition\".text = \"next\\n\"";

#[test]
fn a_clean_slate_that_is_cut_is_finished() {
    let image = Project::of("cut-slate").image("slate", KEPT);
    let folder = folder_in("/var/tmp");
    let overlay = folder.path().join("disk.qcow2");
    let mut setup = setup(&image);
    (setup.keep, setup.resume) = (Some(overlay.clone()), true);
    let old = ask_for_a_clean_slate(&setup);

    let vm = machine::start(setup.clone());
    let starts = |line: &str| line.contains("Run /init as init process");
    vm.wait_for("the initrd", BOOT, starts).unwrap_or_else(|e| panic!("{e}"));
    let mut moments = Moments::of(&vm, &overlay, folder.path());
    let done = |vm: &Vm| vm.lines().iter().any(|line| line.text.contains("kiln: a clean slate"));
    moments.watch(&mut random(), Duration::from_millis(300), BOOT, done);
    let taken = moments.taken;
    drop(vm);

    each(&taken, |moment, boots| {
        let partitions = Partitions::of(&image, &moment.overlay, folder.path());
        partitions.assert_sound(false);
        println!("    {}", assert_old_or_new(&partitions, &old));
        if boots {
            setup.keep = Some(moment.overlay.clone());
            has_a_clean_slate(&setup, &old);
            Partitions::of(&image, &moment.overlay, folder.path()).assert_sound(true);
        }
    });
}

fn random() -> Random {
    let seed = u64::from(std::process::id());
    println!("seed {seed}");
    Random(seed)
}

/// Looks at each moment; some, spread over all of them, are to be booted.
fn each(taken: &[Moment], mut look: impl FnMut(&Moment, bool)) {
    assert!(taken.len() >= FEWEST, "{} moments", taken.len());
    let (all, wanted) = (taken.len(), super::cuts().min(taken.len()));
    let booted: Vec<usize> = (0..wanted).map(|n| (2 * n + 1) * all / (2 * wanted)).collect();
    for (number, moment) in taken.iter().enumerate() {
        let boots = booted.contains(&number);
        println!("{number}: {}{}", moment.what, if boots { ", booted" } else { "" });
        look(moment, boots);
        fs::remove_file(&moment.overlay).expect("removed");
    }
}

/// Boots a machine for the first time, uses its state, and lets it wish for a clean slate; its machine id.
fn ask_for_a_clean_slate(setup: &Setup) -> String {
    let mut setup = setup.clone();
    setup.channel = true;
    let vm = machine::start(setup);
    let mut channel = Channel::attach(&vm, BOOT).unwrap_or_else(|e| panic!("{e}"));
    let id = answer(&mut channel, USE);
    settled(&mut channel, &vm);
    said(&mut channel, "kiln lustrate");
    drop(channel);
    vm.power_down(SHUTDOWN);
    id
}

/// The state is the old one, or the fresh one with the old one aside; never something of both. Says which.
fn assert_old_or_new(partitions: &Partitions, id: &str) -> String {
    let folder = tempfile::tempdir_in("/var/tmp").expect("a folder");
    let aside = partitions.names("/").into_iter().filter(|name| name.starts_with("state."));
    let names: Vec<String> = aside.chain(["state".to_owned()]).collect();
    for name in &names {
        partitions.debugfs(&format!("rdump /{name} {}", folder.path().display()));
    }
    let has = |name: &str, path: &str| folder.path().join(name).join(path).exists();
    let id_of = |name: &str| fs::read_to_string(folder.path().join(name).join("etc/machine-id")).ok();
    let old = names.iter().find(|name| id_of(name).is_some_and(|found| found.trim() == id));
    let old = old.unwrap_or_else(|| panic!("the old state is gone: {names:?}"));
    assert!(LOST.iter().all(|path| has(old, path)), "{old} is not whole");
    for path in KEEPS {
        assert!(has("state", path) || has(old, path), "{path} is gone");
    }
    if old == "state" {
        assert!(KEEPS.iter().all(|path| has(old, path)), "the old state is not whole");
    } else {
        assert!(!LOST.iter().any(|path| has("state", path)), "the new state is not fresh");
    }
    format!("{names:?}: the old state is in {old}")
}

/// Boots: up, with what is kept and nothing half done.
fn has_a_clean_slate(setup: &Setup, old: &str) {
    let mut setup = setup.clone();
    setup.channel = true;
    let vm = machine::start(setup);
    let mut channel = Channel::attach(&vm, BOOT).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(answer(&mut channel, "cat /var/lib/kept/a /etc/kept.conf"), "mine\nmine");
    assert_eq!(answer(&mut channel, "ls -d /var/lib/lost /etc/lost.conf 2>/dev/null | wc -l"), "0");
    let left = "ls -A /kiln | grep -v '^state.old-' | sort | xargs";
    assert_eq!(answer(&mut channel, left), "lost+found state store");
    assert_eq!(answer(&mut channel, "cat /kiln/state.old-*/etc/lost.conf"), "mine");
    assert_eq!(answer(&mut channel, "cat /kiln/state.old-*/etc/machine-id"), old);
    assert_ne!(answer(&mut channel, "cat /etc/machine-id"), old);
    settled(&mut channel, &vm);
    drop(channel);
    vm.power_down(SHUTDOWN);
}

#[test]
#[ignore = "ten minutes; the guest's own tests cut a switch before each step; run by name"]
fn a_switch_that_is_cut_is_finished() {
    let project = Project::of("cut-switch");
    let file = project.generation("next", NEXT);
    let folder = folder_in("/var/tmp");
    let disk = Disk::copy(&project.image("plain", ""), folder.path(), "disk.raw");
    disk.debugfs(&format!("write {} {FILE}", file.display()));
    let kernels = Kernels::of(&disk.path, &file);
    let overlay = folder.path().join("disk.qcow2");
    let mut setup = setup(&disk.path);
    (setup.keep, setup.resume, setup.channel) = (Some(overlay.clone()), true, true);

    let vm = machine::start(setup.clone());
    let mut channel = Channel::attach(&vm, BOOT).unwrap_or_else(|e| panic!("{e}"));
    settled(&mut channel, &vm);
    let script = format!("kiln switch /kiln/{FILE} >/dev/ttyS0 2>&1; echo switched: $? >/dev/ttyS0");
    said(&mut channel, &format!("systemd-run --quiet sh -c '{script}'"));
    let mut moments = Moments::of(&vm, &overlay, folder.path());
    let done = |vm: &Vm| vm.lines().iter().any(|line| line.text.contains("switched: "));
    moments.watch(&mut random(), Duration::from_secs(2), COMMAND, done);
    assert!(vm.lines().iter().any(|line| line.text.contains("switched: 0")), "{:#?}", vm.tail());
    let taken = moments.taken;
    drop(channel);
    drop(vm);

    let mut firmware = [Boots::Seabios, Boots::Ovmf].into_iter().cycle();
    each(&taken, |moment, boots| {
        let partitions = Partitions::of(&disk.path, &moment.overlay, folder.path());
        partitions.assert_sound(false);
        println!("    {:?}", kernels.assert_boots(&partitions));
        if boots {
            setup.keep = Some(moment.overlay.clone());
            setup.firmware = firmware.next().unwrap_or(Boots::Seabios);
            finishes_the_switch(&setup);
            let partitions = Partitions::of(&disk.path, &moment.overlay, folder.path());
            partitions.assert_sound(false);
            kernels.assert_finished(&partitions);
        }
    });
}

/// Boots, and does the same once more.
fn finishes_the_switch(setup: &Setup) {
    let vm = machine::start(setup.clone());
    let mut channel = Channel::attach(&vm, BOOT).unwrap_or_else(|e| panic!("{e}"));
    let output = channel.run(&format!("kiln switch /kiln/{FILE}"), COMMAND);
    let output = output.unwrap_or_else(|e| panic!("{e}\n{} restarts\n{}", vm.resets(), vm.console_log()));
    let told = output.stdout;
    assert_eq!(output.status, 0, "{told}{}", output.stderr);
    assert!(told.starts_with("generation 2 is there"), "{told}");
    settled(&mut channel, &vm);
    assert_eq!(answer(&mut channel, "kiln generations | wc -l"), "2");
    drop(channel);
    vm.power_down(SHUTDOWN);
}

/// The two unified kernel images that may be on a disk, by their numbers.
struct Kernels(BTreeMap<u32, Vec<u8>>);

impl Kernels {
    fn of(image: &Path, generation: &Path) -> Kernels {
        let (start, size) = crate::images::partition(image, 15);
        let part = kiln::host::part::Part::new(File::open(image).expect("the disk"), start, size);
        let mut reader = Reader::open(part).expect("an EFI system partition");
        let old = reader.read(&format!("{ENTRIES}/{}", EntryName::untried(1)), 1 << 30).expect("readable");
        let new = Command::new("tar").arg("-xOf").arg(generation).arg("./uki.efi").output().expect("tar");
        assert!(new.status.success() && new.stdout.len() > 1 << 20, "no kernel in {}", generation.display());
        Kernels([(1, old.expect("generation 1")), (2, new.stdout)].into())
    }

    /// Every entry is whole, GRUB's menu names nothing else, and each one's system is in the store, whole: the machine boots,
    /// whichever is taken. The numbers of the entries.
    fn assert_boots(&self, partitions: &Partitions) -> Vec<u32> {
        let mut esp = Reader::open(File::open(&partitions.esp).expect("a file")).expect("a file system");
        let mut numbers = Vec::new();
        for entry in esp.list(ENTRIES).expect("readable").expect("entries") {
            let Some(name) = EntryName::parse(&entry.name) else { continue };
            let bytes = esp.read(&format!("{ENTRIES}/{}", entry.name), 1 << 30).expect("readable");
            assert!(bytes.as_ref() == self.0.get(&name.generation), "{} is not whole", entry.name);
            assert!(!numbers.contains(&name.generation), "{} is there twice", name.generation);
            numbers.push(name.generation);
        }
        let menu = menu(&mut esp);
        let named: Vec<u32> = menu
            .lines()
            .filter_map(|line| line.split_once("--id kiln-")?.1.trim_end_matches(" {").parse().ok())
            .collect();
        assert!(numbers.contains(&1) && named.contains(&1), "{numbers:?} {named:?}");
        assert!(named.iter().all(|number| numbers.contains(number)), "{numbers:?} {named:?}");
        assert!(menu.trim_end().ends_with("}"), "{menu}");
        for number in &numbers {
            assert_whole_system(partitions, &self.system(*number));
        }
        numbers
    }

    fn system(&self, number: u32) -> String {
        let entry = kiln_guest::menu::Entry::of(number, &self.0[&number]).expect("a kernel image");
        let arguments = kiln_guest::cmdline::arguments(&entry.cmdline);
        kiln_guest::cmdline::value(&arguments, "kiln.system").expect("a system").to_owned()
    }

    /// Both are there, and nothing else.
    fn assert_finished(&self, partitions: &Partitions) {
        let mut numbers = self.assert_boots(partitions);
        numbers.sort_unstable();
        assert_eq!(numbers, [1, 2]);
        let mut esp = Reader::open(File::open(&partitions.esp).expect("a file")).expect("a file system");
        assert_eq!(esp.list(ENTRIES).expect("readable").expect("entries").len(), 2);
        let menu = menu(&mut esp);
        assert_eq!(menu.matches("--id kiln-").count(), 2, "{menu}");
        let mut systems = [self.system(1), self.system(2)];
        systems.sort();
        let mut store = partitions.names("/store");
        store.sort();
        assert_eq!(store, systems);
    }
}

/// GRUB's menu, as GRUB finds it.
fn menu(esp: &mut Reader<File>) -> String {
    let mut file = |path| esp.read(path, 1 << 20).expect("readable").expect("a file");
    let menu = Environment::parse(&file(ENVIRONMENT)).menu();
    String::from_utf8(file(MENUS[menu])).expect("text")
}

fn assert_whole_system(partitions: &Partitions, name: &str) {
    let file = tempfile::NamedTempFile::new_in("/var/tmp").expect("a file");
    partitions.debugfs(&format!("dump /store/{name} {}", file.path().display()));
    let digest = ran(Command::new("sha256sum").arg(file.path()));
    assert_eq!(digest[..64], name[..64], "{name} is not whole");
}

#[test]
fn a_generation_comes_to_a_disk_whose_machine_was_cut() {
    let project = Project::of("cut-add");
    let image = project.image("plain", "");
    let folder = folder_in("/var/tmp");
    let overlay = folder.path().join("disk.qcow2");
    let mut setup = setup(&image);
    setup.keep = Some(overlay.clone());
    // Its first boot fills the state: there is something in the journal.
    let vm = machine::start(setup);
    vm.wait_for("a first boot", BOOT, |line| line.contains("kiln: first boot"))
        .unwrap_or_else(|e| panic!("{e}"));
    let mut moments = Moments::of(&vm, &overlay, folder.path());
    moments.take("after the first boot");
    let moment = moments.taken.remove(0);
    drop(vm);

    let disk = Disk::of_overlay(&moment.overlay, folder.path());
    assert!(disk.debugfs("stats -h").contains("needs_recovery"), "its journal is empty");
    ran(Command::new(KILN)
        .args(["generation", "add"])
        .arg(&disk.path)
        .arg(project.profile("next", NEXT))
        .arg("--store")
        .arg(machine::cache().join("store")));
    let added: PathBuf = project.generation("next", NEXT);
    let kernels = Kernels::of(&disk.path, &added);
    let partitions = Partitions::of_raw(&disk.path, folder.path());
    partitions.assert_sound(true);
    kernels.assert_finished(&partitions);
}
