//! Adding generations to a machine's two partitions, which are folders here, with a cut at every step.

use std::fs;
use std::path::{Path, PathBuf};

use kiln_guest::generation::{self, Manifest};
use kiln_guest::generations::{Generation, Roots, Running};
use kiln_guest::menu::{ENTRIES, ENVIRONMENT, Environment, MENUS, Standing};
use kiln_guest::steps::Steps;
use kiln_guest::switch::{self, Outcome, SwitchError, Switched, Target};
use kiln_guest::uki::{self, Parts};
use kiln_guest::verity;
use sha2::{Digest, Sha256};

const PARTITION: &str = "11111111-2222-4333-8444-555555555555";

/// The smallest PE32+ image that gets sections.
fn stub() -> Vec<u8> {
    let mut bytes = vec![0; 1024];
    bytes[..2].copy_from_slice(b"MZ");
    bytes[0x3c] = 0x40;
    bytes[0x40..0x44].copy_from_slice(b"PE\0\0");
    bytes[0x54] = 240;
    bytes[0x58..0x5a].copy_from_slice(&[0x0b, 2]);
    bytes[0x58 + 32..0x58 + 36].copy_from_slice(&4096u32.to_le_bytes());
    bytes[0x58 + 36..0x58 + 40].copy_from_slice(&512u32.to_le_bytes());
    bytes
}

/// A generation, and the file that it comes in.
struct Made {
    manifest: Manifest,
    uki: Vec<u8>,
    system: Vec<u8>,
}

impl Made {
    fn new(version: u8, more: &str) -> Made {
        let mut system = vec![version; 3 * 4096];
        system[1024..1028].copy_from_slice(&0xE0F5_E1E2u32.to_le_bytes());
        system[1036] = 12;
        system[1060..1064].copy_from_slice(&3u32.to_le_bytes());
        let tree = verity::tree(system.as_slice(), [version; 16]).unwrap();
        system.extend_from_slice(&tree.bytes);
        let digest: String = Sha256::digest(&system).iter().map(|b| format!("{b:02x}")).collect();
        let name = format!("{digest}-web");
        let title = format!("web {version}{more}");
        let cmdline =
            format!("kiln.partition={PARTITION} kiln.system={name} kiln.roothash={} quiet{more}", tree.root);
        let os_release = format!("ID=kiln\nPRETTY_NAME=\"{title}\"\n");
        let parts = Parts {
            stub: &stub(),
            os_release: &os_release,
            cmdline: &cmdline,
            release: "6.12",
            linux: &[version; 3000],
            initrd: &[version; 2000],
        };
        let uki = uki::build(&parts).unwrap();
        let manifest = Manifest {
            name: "web".into(),
            version: version.to_string(),
            title,
            arch: "amd64".into(),
            system: name,
            roothash: tree.root,
            size: system.len() as u64,
        };
        Made { manifest, uki, system }
    }

    fn archive(&self) -> Vec<u8> {
        let text = self.manifest.print();
        let mut archive = Vec::new();
        for (name, content) in [
            (generation::MANIFEST, text.as_bytes()),
            (generation::UKI, &self.uki),
            (generation::SYSTEM, &self.system),
        ] {
            let mut header = [0; 512];
            header[..name.len()].copy_from_slice(name.as_bytes());
            header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
            header[156] = b'0';
            header[257..263].copy_from_slice(b"ustar\0");
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
            header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
            archive.extend_from_slice(&header);
            archive.extend_from_slice(content);
            archive.resize(archive.len().next_multiple_of(512), 0);
        }
        archive.resize(archive.len() + 1024, 0);
        archive
    }
}

/// A machine whose first generation has come up.
struct Machine {
    root: tempfile::TempDir,
    target: Target,
}

impl Machine {
    fn new(first: &Made, keep: usize) -> Machine {
        let root = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let roots = Roots { kiln: root.path().join("kiln"), esp: root.path().join("esp") };
        fs::create_dir_all(roots.store()).unwrap();
        fs::create_dir_all(roots.entries()).unwrap();
        fs::create_dir_all(roots.esp.join(ENVIRONMENT).parent().unwrap()).unwrap();
        let running = Running { generation: Some(1), system: Some(first.manifest.system.clone()) };
        let target = Target { roots, arch: "amd64".into(), partition: PARTITION.into(), running, keep };
        let machine = Machine { root, target };
        machine.switch(first).unwrap();
        machine.roots().bless(1, &mut Steps::all()).unwrap();
        machine
    }

    fn roots(&self) -> &Roots {
        &self.target.roots
    }

    fn switch(&self, made: &Made) -> Result<Switched, SwitchError> {
        self.switch_until(made, &mut Steps::all())
    }

    fn switch_until(&self, made: &Made, steps: &mut Steps) -> Result<Switched, SwitchError> {
        switch::switch(&self.target, made.archive().as_slice(), steps)
    }

    fn names(&self, folder: &str) -> Vec<String> {
        let folder = self.root.path().join(folder);
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn entries(&self) -> Vec<String> {
        self.names(&format!("esp/{ENTRIES}"))
    }

    fn environment(&self) -> Environment {
        Environment::parse(&fs::read(self.roots().esp.join(ENVIRONMENT)).unwrap())
    }

    fn menu(&self) -> String {
        fs::read_to_string(self.roots().esp.join(MENUS[self.environment().menu()])).unwrap()
    }

    /// Whatever a boot loader may choose is whole.
    fn assert_boots(&self, all: &[&Made]) {
        let generations = self.roots().generations().unwrap();
        assert!(generations.iter().any(|g| g.number() == 1 && g.blessed()), "{generations:?}");
        for generation in &generations {
            let system = generation.system().expect("the entry can be read");
            let made = all.iter().find(|made| made.manifest.system == system).expect("one of ours");
            let uki = fs::read(self.roots().entries().join(&generation.file)).unwrap();
            assert!(all.iter().any(|made| made.uki == uki), "{}", generation.file);
            assert_eq!(fs::read(self.roots().store().join(&system)).unwrap(), made.system);
        }
        // GRUB's menu names nothing that it would choose and that isn't there.
        let numbers: Vec<u32> = generations.iter().map(Generation::number).collect();
        let listed = (1..20).filter(|n| self.menu().contains(&format!("--id kiln-{n} ")));
        let newest = listed.max().unwrap();
        assert!(numbers.contains(&newest), "{newest} {numbers:?}");
        assert!(self.environment().standing(newest).is_some());
    }
}

#[test]
fn two_names_of_one_entry_become_one() {
    let all: Vec<Made> = (1..3).map(|version| Made::new(version, "")).collect();
    let machine = Machine::new(&all[0], 3);
    machine.switch(&all[1]).unwrap();
    let entries = machine.roots().entries();
    // A rename that was cut off: of an entry that was written, and of one that has come up.
    fs::copy(entries.join("kiln-00002+3.efi"), entries.join("kiln-00002.tmp")).unwrap();
    assert_eq!(machine.switch(&all[1]).unwrap().outcome, Outcome::There);
    assert_eq!(machine.entries(), ["kiln-00001.efi", "kiln-00002+3.efi"]);
    machine.assert_boots(&[&all[0], &all[1]]);
    fs::copy(entries.join("kiln-00002+3.efi"), entries.join("kiln-00002.efi")).unwrap();
    assert!(machine.roots().bless(2, &mut Steps::all()).unwrap());
    assert_eq!(machine.entries(), ["kiln-00001.efi", "kiln-00002.efi"]);
    machine.assert_boots(&[&all[0], &all[1]]);
}

#[test]
fn the_menu_in_use_stays_as_it_is() {
    let all: Vec<Made> = (1..3).map(|version| Made::new(version, "")).collect();
    let machine = Machine::new(&all[0], 3);
    let (in_use, before) = (machine.environment().menu(), machine.menu());
    machine.switch(&all[1]).unwrap();
    assert_eq!(machine.environment().menu(), 1 - in_use);
    assert_eq!(fs::read_to_string(machine.roots().esp.join(MENUS[in_use])).unwrap(), before);
    assert_eq!(machine.menu().len(), 16 << 10);
}

#[test]
fn a_generation_is_added_and_old_ones_go() {
    let all: Vec<Made> = (1..6).map(|version| Made::new(version, "")).collect();
    let machine = Machine::new(&all[0], 3);
    for (number, made) in (2..).zip(&all[1..]) {
        let switched = machine.switch(made).unwrap();
        assert_eq!((switched.generation, switched.outcome), (number, Outcome::Added));
        assert_eq!(switched.title, format!("web {number}"));
    }
    // The first is running and the only one that has come up.
    assert_eq!(machine.entries(), ["kiln-00001.efi", "kiln-00004+3.efi", "kiln-00005+3.efi"]);
    assert_eq!(machine.names("kiln/store").len(), 3);
    let environment = machine.environment();
    assert_eq!(environment.standing(1), Some(Standing::Good));
    assert_eq!(environment.standing(3), None);
    assert_eq!(environment.standing(5), Some(Standing::Left(3)));
    machine.assert_boots(&all.iter().collect::<Vec<_>>());
    // Once another one has come up and runs, the first may go.
    let mut machine = machine;
    machine.roots().bless(5, &mut Steps::all()).unwrap();
    machine.target.running = Running { generation: Some(5), system: Some(all[4].manifest.system.clone()) };
    let switched = machine.switch(&Made::new(6, "")).unwrap();
    assert_eq!(switched.removed, [1]);
    assert_eq!(machine.entries(), ["kiln-00004+3.efi", "kiln-00005.efi", "kiln-00006+3.efi"]);
}

#[test]
fn the_same_file_again_changes_nothing() {
    let (first, second) = (Made::new(1, ""), Made::new(2, ""));
    let machine = Machine::new(&first, 3);
    machine.switch(&second).unwrap();
    let before = machine.entries();
    let switched = machine.switch(&second).unwrap();
    assert_eq!((switched.generation, switched.outcome), (2, Outcome::There));
    assert_eq!(machine.entries(), before);
    // It failed as often as it may: asked for again, it is tried again.
    let entry = |name: &str| machine.roots().entries().join(name);
    fs::rename(entry("kiln-00002+3.efi"), entry("kiln-00002+0-3.efi")).unwrap();
    let switched = machine.switch(&second).unwrap();
    assert_eq!(switched.outcome, Outcome::TriedAgain);
    assert_eq!(machine.entries(), before);
    // The older one again becomes the newest, with the system that is there.
    let switched = machine.switch(&first).unwrap();
    assert_eq!((switched.generation, switched.outcome), (3, Outcome::Added));
    assert_eq!(machine.names("kiln/store").len(), 2);
}

#[test]
fn a_lost_or_damaged_system_is_brought_again() {
    let first = Made::new(1, "");
    let machine = Machine::new(&first, 3);
    let path = machine.roots().store().join(&first.manifest.system);
    fs::remove_file(&path).unwrap();
    assert_eq!(machine.switch(&first).unwrap().outcome, Outcome::There);
    let mut damaged = first.system.clone();
    damaged[5] ^= 1;
    fs::write(&path, damaged).unwrap();
    machine.switch(&first).unwrap();
    machine.assert_boots(&[&first]);
}

#[test]
fn wrong_files_are_refused_and_leave_nothing() {
    let first = Made::new(1, "");
    let machine = Machine::new(&first, 3);
    let (entries, store) = (machine.entries(), machine.names("kiln/store"));
    let with = |change: &dyn Fn(&mut Made)| {
        let mut made = Made::new(2, "");
        change(&mut made);
        machine.switch(&made).unwrap_err()
    };
    let error = with(&|made| made.system[5] ^= 1);
    assert!(matches!(error, SwitchError::Digest { .. }), "{error}");
    let error = with(&|made| made.manifest.arch = "arm64".into());
    assert_eq!(error.to_string(), "it is made for arm64, this machine is amd64");
    let error = with(&|made| made.manifest.roothash.0[0] ^= 1);
    assert!(matches!(error, SwitchError::Mismatch { key: "kiln.roothash", .. }), "{error}");
    let error = with(&|made| made.uki = Made::new(3, "").uki);
    assert!(matches!(error, SwitchError::Mismatch { key: "kiln.system", .. }), "{error}");
    let error = with(&|made| made.uki.truncate(900));
    assert!(matches!(error, SwitchError::Uki(_)), "{error}");
    let error = with(&|made| made.manifest.size += 1);
    assert!(matches!(error, SwitchError::NotThere("system")), "{error}");
    // A system that is named right but isn't what the root hash stands for.
    let mut made = Made::new(2, "");
    made.system[4096] ^= 1;
    let digest: String = Sha256::digest(&made.system).iter().map(|b| format!("{b:02x}")).collect();
    let old = made.manifest.system.clone();
    made.manifest.system = format!("{digest}-web");
    let text = String::from_utf8_lossy(&made.uki).into_owned();
    let at = made.uki.windows(old.len()).position(|w| w == old.as_bytes()).expect(&text);
    made.uki[at..at + old.len()].copy_from_slice(made.manifest.system.as_bytes());
    let error = machine.switch(&made).unwrap_err();
    assert!(matches!(error, SwitchError::System(_)), "{error}");
    let other = Target { partition: "0".into(), ..machine.target.clone() };
    let error = switch::switch(&other, Made::new(2, "").archive().as_slice(), &mut Steps::all()).unwrap_err();
    assert!(matches!(error, SwitchError::Partition { .. }), "{error}");
    assert_eq!((machine.entries(), machine.names("kiln/store")), (entries, store));
}

#[test]
fn a_file_that_ends_anywhere_is_refused() {
    let first = Made::new(1, "");
    let machine = Machine::new(&first, 3);
    let archive = Made::new(2, "").archive();
    for len in (0..archive.len() - 1024).step_by(509) {
        let result = switch::switch(&machine.target, &archive[..len], &mut Steps::all());
        assert!(result.is_err(), "{len}");
        machine.assert_boots(&[&first]);
    }
    assert_eq!(machine.entries(), ["kiln-00001.efi"]);
}

#[test]
fn a_cut_anywhere_leaves_a_machine_that_boots_and_the_next_call_finishes() {
    let all: Vec<Made> = (1..5).map(|version| Made::new(version, "")).collect();
    let refs: Vec<&Made> = all.iter().collect();
    let prepared = || {
        let machine = Machine::new(&all[0], 3);
        machine.switch(&all[1]).unwrap();
        machine.switch(&all[2]).unwrap();
        machine
    };
    let mut steps = 0;
    loop {
        let machine = prepared();
        let done = machine.switch_until(&all[3], &mut Steps::until(steps)).is_ok();
        machine.assert_boots(&refs);
        for second in 0..if done { 0 } else { 12 } {
            let _ = machine.switch_until(&all[3], &mut Steps::until(second));
            machine.assert_boots(&refs);
        }
        machine.switch(&all[3]).unwrap();
        machine.assert_boots(&refs);
        assert_eq!(machine.entries(), ["kiln-00001.efi", "kiln-00003+3.efi", "kiln-00004+3.efi"], "{steps}");
        assert_eq!(machine.names("kiln/store").len(), 3, "{steps}");
        assert_eq!(machine.environment().standing(2), None);
        assert!(!machine.menu().contains("kiln-2 "));
        if done {
            break;
        }
        steps += 1;
    }
    assert!(steps >= 8, "{steps}");
}

#[test]
fn only_kernel_and_arguments_may_differ() {
    let (first, second) = (Made::new(1, ""), Made::new(1, " debug"));
    let machine = Machine::new(&first, 2);
    assert_eq!(machine.switch(&second).unwrap().outcome, Outcome::Added);
    assert_eq!(machine.names("kiln/store").len(), 1);
    let generations = machine.roots().generations().unwrap();
    let arguments = |made: &Made| {
        let entry = kiln_guest::menu::Entry::of(0, &made.uki).unwrap();
        kiln_guest::cmdline::arguments(&entry.cmdline)
    };
    assert_eq!(Running::of(&generations, &arguments(&first), None).generation, Some(1));
    assert_eq!(Running::of(&generations, &arguments(&second), None).generation, Some(2));
}

#[test]
fn disks_without_grub_get_none() {
    let first = Made::new(1, "");
    let machine = Machine::new(&first, 2);
    let grub: PathBuf = machine.roots().esp.join(Path::new(ENVIRONMENT).parent().unwrap());
    fs::remove_dir_all(&grub).unwrap();
    machine.switch(&Made::new(2, "")).unwrap();
    machine.roots().bless(2, &mut Steps::all()).unwrap();
    assert_eq!(machine.entries(), ["kiln-00001.efi", "kiln-00002.efi"]);
    assert!(!grub.exists());
}
