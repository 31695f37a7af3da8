//! State on a machine that runs: what it outlives, how it is wiped, and what apt says to it.

use std::time::Duration;

use kiln::vm::{Channel, until_settled};

use super::{Disk, Project, setup};
use crate::bake::folder_in;
use crate::machine::{self, BOOT, SETTLED, SHUTDOWN, said};

const KEPT: &str = "state.keep = { \"/var/lib/kept\" = true, \"/etc/kept.conf\" = true },";

/// Makes files in all places of the state, and asks for a clean slate.
const USE: &str = "mkdir -p /var/lib/kept /var/lib/lost /home/somebody /srv/data \
    && for f in /var/lib/kept/a /var/lib/lost/a /home/somebody/a /srv/data/a /root/a /etc/kept.conf /etc/lost.conf; do \
         echo mine > $f; done && cat /etc/machine-id";

fn settled(channel: &mut Channel<'_>, vm: &kiln::vm::Vm) {
    let settled = until_settled(vm, channel, SETTLED).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((settled.state.as_str(), settled.failed.len()), ("running", 0), "{settled:?}");
}

/// What a script prints, without the blanks around it.
fn answer(channel: &mut Channel<'_>, script: &str) -> String {
    said(channel, script).trim().to_owned()
}

#[test]
fn a_clean_slate_leaves_what_is_kept() {
    let image = Project::of("slate").image("slate", KEPT);
    let mut setup = setup(&image);
    setup.channel = true;
    let vm = machine::start(setup);
    let mut channel = Channel::attach(&vm, BOOT).unwrap_or_else(|e| panic!("{e}"));
    let old = answer(&mut channel, USE);
    assert_eq!(old.len(), 32, "{old}");
    is_immutable(&mut channel);
    settled(&mut channel, &vm);
    let told = said(&mut channel, "kiln lustrate");
    assert!(told.contains("kept: /etc/kept.conf, /var/lib/kept"), "{told}");
    assert!(answer(&mut channel, "kiln generations").starts_with("*     1  good "));

    let mut channel = channel.reboot(BOOT).unwrap_or_else(|e| panic!("{e}"));
    let new = answer(&mut channel, "cat /etc/machine-id");
    assert!(new.len() == 32 && new != old, "{new}");
    let gone = "ls -d /var/lib/lost /home/somebody /srv/data /root/a /etc/lost.conf 2>/dev/null | wc -l";
    assert_eq!(answer(&mut channel, gone), "0");
    assert_eq!(answer(&mut channel, "cat /var/lib/kept/a /etc/kept.conf"), "mine\nmine");
    let readable = "cd /kiln/state.old-* && cat var/lib/lost/a home/somebody/a srv/data/a root/a etc/lost.conf etc/machine-id";
    assert_eq!(answer(&mut channel, readable), format!("{}{old}", "mine\n".repeat(5)));
    assert_eq!(
        answer(&mut channel, "ls -A /kiln | grep -v state.old- | sort | xargs"),
        "lost+found state store"
    );
    settled(&mut channel, &vm);
    drop(channel);
    vm.power_down(SHUTDOWN);
}

/// The system can't be changed, says so, and can be asked about its packages.
fn is_immutable(channel: &mut Channel<'_>) {
    let mut fails = |script: &str| {
        let output = channel.run(script, Duration::from_secs(60)).unwrap_or_else(|e| panic!("{e}"));
        assert_ne!(output.status, 0, "{script}");
        output.stdout + &output.stderr
    };
    for script in ["apt-get update 2>&1", "apt-get -y remove zstd 2>&1"] {
        let told = fails(script);
        assert_eq!(told.matches("this system is immutable").count(), 1, "{script}: {told}");
    }
    assert!(fails("touch /usr/bin/new 2>&1").contains("Read-only file system"));
    assert!(fails("touch /var/lib/dpkg/new 2>&1").contains("Read-only file system"));
    assert_eq!(answer(channel, "dpkg-query -W -f='${Status}' systemd"), "install ok installed");
    assert_eq!(answer(channel, "dpkg --audit"), "");
}

#[test]
fn a_state_in_memory_is_gone_at_the_next_boot() {
    let ephemeral = "state = { ephemeral = true, keep.\"/var/lib/kept\" = true }";
    let image = Project::of("ephemeral").image("ephemeral", ephemeral);
    let mut setup = setup(&image);
    setup.channel = true;
    let vm = machine::start(setup);
    let mut channel = Channel::attach(&vm, BOOT).unwrap_or_else(|e| panic!("{e}"));
    let old = answer(&mut channel, USE);
    assert_eq!(answer(&mut channel, "stat -f -c %T /var /etc/.. /home"), "tmpfs\nerofs\ntmpfs");
    let mut channel = channel.reboot(BOOT).unwrap_or_else(|e| panic!("{e}"));
    assert_ne!(answer(&mut channel, "cat /etc/machine-id"), old);
    let left =
        "cat /var/lib/kept/a; ls -d /var/lib/lost /home/somebody /root/a /etc/kept.conf 2>/dev/null | wc -l";
    assert_eq!(answer(&mut channel, left), "mine\n0");
    settled(&mut channel, &vm);
    drop(channel);
    vm.power_down(SHUTDOWN);
}

/// The machine is switched off at many moments of a clean slate, each time resumed by the next boot, which is cut again.
#[test]
#[ignore = "fails: after a cut e2fsck found errors beyond the journal, and it is not known why; run by name"]
fn a_clean_slate_that_is_cut_is_finished() {
    let always = format!("{KEPT} kernel.arguments.\"kiln.lustrate\" = true");
    let project = Project::of("cuts");
    let image = project.image("cuts", &always);
    let folder = folder_in("/var/tmp");
    let kept = folder.path().join("cut.qcow2");
    let mut setup = setup(&image);
    (setup.keep, setup.resume) = (Some(kept.clone()), true);

    // The first boot makes a state; from then on each boot wipes it.
    let window = begin(&setup);
    let seed = u64::from(std::process::id());
    println!("seed {seed}, window {window:?}");
    let mut random = super::Random(seed);
    for cut in 0..super::cuts() {
        let vm = machine::start(setup.clone());
        vm.wait_for("the kernel's end of its own work", BOOT, starts_init).unwrap_or_else(|e| panic!("{e}"));
        let pause = random.below(window);
        std::thread::sleep(pause);
        let said: Vec<String> = vm.lines().into_iter().map(|line| line.text).collect();
        let ours: Vec<&String> = said.iter().filter(|line| line.contains("kiln: ")).collect();
        println!("cut {cut} after {:.3} s: {ours:?}", pause.as_secs_f64());
        drop(vm);
        if cut % 4 == 3 {
            Disk::of_overlay(&kept, folder.path()).assert_sound();
        }
    }
    ends(setup, folder.path());
}

fn starts_init(line: &str) -> bool {
    line.contains("Run /init as init process")
}

/// Boots twice: with a state that has something to keep, then through a whole clean slate, of which the length is told.
fn begin(setup: &kiln::vm::Setup) -> Duration {
    let mut first = setup.clone();
    first.channel = true;
    let vm = machine::start(first);
    let mut channel = Channel::attach(&vm, BOOT).unwrap_or_else(|e| panic!("{e}"));
    said(&mut channel, USE);
    drop(channel);
    vm.power_down(SHUTDOWN);
    let vm = machine::start(setup.clone());
    let begun = vm.wait_for("the initrd", BOOT, starts_init).unwrap_or_else(|e| panic!("{e}"));
    let done = vm.wait_for("a clean slate", BOOT, |line| line.contains("kiln: a clean slate"));
    let done = done.unwrap_or_else(|e| panic!("{e}"));
    done.at - begun.at + Duration::from_millis(500)
}

/// One whole boot: up, with what is kept and nothing half done; and both file systems are sound.
fn ends(mut setup: kiln::vm::Setup, folder: &std::path::Path) {
    setup.channel = true;
    let overlay = setup.keep.clone().expect("an overlay");
    let vm = machine::start(setup);
    let mut channel = Channel::attach(&vm, BOOT).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(answer(&mut channel, "cat /var/lib/kept/a /etc/kept.conf"), "mine\nmine");
    assert_eq!(answer(&mut channel, "ls -d /var/lib/lost /etc/lost.conf 2>/dev/null | wc -l"), "0");
    let left = "ls -A /kiln | grep -v '^state.old-' | sort | xargs";
    assert_eq!(answer(&mut channel, left), "lost+found state store");
    // What was lost is in the first of the old states.
    assert_eq!(answer(&mut channel, "cat /kiln/state.old-*/etc/lost.conf"), "mine");
    settled(&mut channel, &vm);
    drop(channel);
    vm.power_down(SHUTDOWN);
    Disk::of_overlay(&overlay, folder).assert_sound();
}
