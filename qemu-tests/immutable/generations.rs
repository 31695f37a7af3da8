//! Generations on one disk, under both firmwares: the newest is started, the menu offers the others, one that doesn't come up gives
//! way by itself; state is that of the machine, whichever runs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use kiln::vm::{BootFailure, Boots, Channel, Setup, Vm};

use super::state::{answer, settled};
use super::{Disk, Project, said as ran, setup};
use crate::bake::folder_in;
use crate::machine::{self, BOOT, COMMAND, KILN, SHUTDOWN, said};

/// What both good generations have in common: a menu that waits, and only two generations kept.
const BOTH: &str = "boot.timeout | force = 4, state.generations = 2,";
/// Cursor down, enter.
const SECOND: &[u8] = b"\x1b[B\r";
/// How often a generation is tried.
const TRIES: usize = 3;
/// Between two looks at the console.
const LOOK: Duration = Duration::from_millis(50);

#[test]
fn under_bios_and_a_kernel_that_panics() {
    let panics = "kernel.arguments = { init = \"/bin/false\", panic = 1 }";
    generations("bios", Boots::Seabios, panics, BootFailure::KernelPanic);
}

#[test]
#[ignore = "eight boots, as many as under BIOS; run by name"]
fn under_uefi_and_emergency_mode() {
    let emergency = "kernel.arguments.\"systemd.unit\" = \"emergency.target\"";
    generations("uefi", Boots::Ovmf, emergency, BootFailure::EmergencyMode);
}

/// Two generations, of which the second came offline, and a third that comes on the machine and fails.
fn generations(name: &str, firmware: Boots, broken: &str, failure: BootFailure) {
    let project = Project::of(&format!("generations-{name}"));
    let folder = folder_in("/var/tmp");
    let (disk, old) = disk(&project, folder.path(), broken);
    let vm = machine::start(Setup { firmware, channel: true, survives: vec![failure], ..setup(&disk) });

    let mut channel = Channel::attach(&vm, BOOT).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(answer(&mut channel, "cat /usr/share/edition /etc/edition"), "two\ntwo");
    settled(&mut channel, &vm);
    standings(&mut channel, &["* 2 good", "1 new, 3 tries left"]);
    writes(&mut channel, "second");

    let mut channel = restart(&vm, channel, Some(&old));
    assert_eq!(answer(&mut channel, "cat /usr/share/edition /etc/edition"), "one\none");
    reads(&mut channel, "second");
    writes(&mut channel, "first");
    settled(&mut channel, &vm);
    standings(&mut channel, &["2 good", "* 1 good"]);

    let mut channel = restart(&vm, channel, None);
    assert_eq!(answer(&mut channel, "cat /usr/share/edition /etc/edition"), "two\ntwo");
    reads(&mut channel, "first");
    reads(&mut channel, "second");

    let told = said(&mut channel, "kiln switch /kiln/third.kiln");
    assert!(told.starts_with("generation 3 is there: tiny 1 ("), "{told}");
    assert!(told.ends_with("the machine goes back by itself\nremoved: 1\n"), "{told}");
    standings(&mut channel, &["3 new, 3 tries left", "* 2 good"]);
    // The first one's system went with it.
    assert_eq!(answer(&mut channel, "ls -A /kiln/store | wc -l"), "1");

    let mut channel = falls_back(&vm, channel);
    assert_eq!(answer(&mut channel, "cat /usr/share/edition /etc/edition"), "two\ntwo");
    reads(&mut channel, "first");
    reads(&mut channel, "second");
    settled(&mut channel, &vm);
    standings(&mut channel, &["3 did not come up", "* 2 good"]);
    let told = said(&mut channel, "kiln switch /kiln/third.kiln");
    assert!(
        told.starts_with("generation 3 is there already and did not come up: it is tried again"),
        "{told}"
    );
    standings(&mut channel, &["3 new, 3 tries left", "* 2 good"]);
    drop(channel);
    vm.power_down(SHUTDOWN);
}

/// A disk with two generations, and with the file of a third one that is broken; how the first one's title ends.
fn disk(project: &Project, folder: &Path, broken: &str) -> (PathBuf, String) {
    let edition = |name: &str| {
        format!(
            "{BOTH} files = {{ \"/usr/share/edition\".text = \"{name}\\n\", \"/etc/edition\".text = \"{name}\\n\" }}"
        )
    };
    let disk = Disk::copy(&project.image("one", &edition("one")), folder, "disk.raw");
    let digest = disk.system().trim_start_matches("/store/").to_owned();
    let second = project.profile("two", &edition("two"));
    let mut command = Command::new(KILN);
    command.args(["generation", "add"]).arg(&disk.path).arg(second);
    let told = ran(command.arg("--store").arg(machine::cache().join("store")));
    assert!(told.contains("generation 2"), "{told}");
    // The same system, started in another way: which of the two runs is told by the arguments alone.
    let third = project.generation("three", &format!("{}, {broken}", edition("two")));
    disk.debugfs(&format!("write {} third.kiln", third.display()));
    (disk.path, format!("({})", &digest[..12]))
}

/// Starts the machine anew; when a title is given, the menu must show it in its second place, and it is chosen.
fn restart<'a>(vm: &'a Vm, mut channel: Channel<'a>, second: Option<&str>) -> Channel<'a> {
    let mut lines = vm.line_count();
    reboots(vm, &mut channel);
    drop(channel);
    if let Some(title) = second {
        wait_for(vm, &mut lines, title);
        vm.type_in(SECOND).expect("typed");
    }
    wait_for(vm, &mut lines, "Linux version");
    Channel::attach_again(vm, BOOT).unwrap_or_else(|e| panic!("{e}"))
}

/// Lets a generation fail until the machine starts the one before it.
fn falls_back<'a>(vm: &'a Vm, mut channel: Channel<'a>) -> Channel<'a> {
    let (before, begun) = (vm.resets(), Instant::now());
    (0..TRIES).for_each(|_| vm.expect_reset());
    let mut lines = vm.line_count();
    reboots(vm, &mut channel);
    drop(channel);
    while vm.resets() < before + 1 + TRIES {
        vm.news(&mut lines, "third failure").unwrap_or_else(|e| panic!("{e}"));
        assert!(begun.elapsed() < BOOT, "{} restarts: {:#?}", vm.resets() - before, vm.tail());
        std::thread::sleep(LOOK);
    }
    println!("fell back after {:.0} s", begun.elapsed().as_secs_f64());
    wait_for(vm, &mut lines, "Linux version");
    let channel = Channel::attach_again(vm, BOOT).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(vm.resets(), before + 1 + TRIES);
    channel
}

/// Asks the guest to start anew; systemd does it once the channel is gone.
fn reboots(vm: &Vm, channel: &mut Channel<'_>) {
    vm.expect_reset();
    said(channel, "systemd-run --quiet --on-active=1 systemctl reboot");
}

fn wait_for(vm: &Vm, lines: &mut usize, text: &str) {
    let begun = Instant::now();
    loop {
        let news = vm.news(lines, text).unwrap_or_else(|e| panic!("{e}"));
        if news.iter().any(|line| line.contains(text)) {
            return;
        }
        assert!(begun.elapsed() < COMMAND, "no `{text}`: {:#?}", vm.tail());
        std::thread::sleep(LOOK);
    }
}

/// The lines of `kiln generations`, without digests and titles.
fn standings(channel: &mut Channel<'_>, expected: &[&str]) {
    let told = said(channel, "kiln generations");
    let short = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let title =
            words.iter().position(|word| word.len() == 12 && word.bytes().all(|b| b.is_ascii_hexdigit()));
        words[..title.unwrap_or(words.len())].join(" ")
    };
    assert_eq!(told.lines().map(short).collect::<Vec<_>>(), expected, "{told}");
}

/// A file in each place of the state.
const PLACES: &str = "/var/lib /home /root /srv /etc";

fn writes(channel: &mut Channel<'_>, name: &str) {
    said(channel, &format!("for place in {PLACES}; do echo {name} > $place/by-{name}; done"));
}

fn reads(channel: &mut Channel<'_>, name: &str) {
    let script = format!("for place in {PLACES}; do cat $place/by-{name}; done");
    assert_eq!(answer(channel, &script), [name; 5].join("\n"));
}
