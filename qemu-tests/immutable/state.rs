//! State on a machine that runs: what it outlives, how it is wiped, and what apt says to it.

use std::time::Duration;

use kiln::vm::{Channel, until_settled};

use super::{Project, setup};
use crate::machine::{self, BOOT, SETTLED, SHUTDOWN, said};

pub const KEPT: &str = "state.keep = { \"/var/lib/kept\" = true, \"/etc/kept.conf\" = true },";

/// Makes files in all places of the state, and asks for a clean slate.
pub const USE: &str = "mkdir -p /var/lib/kept /var/lib/lost /home/somebody /srv/data \
    && for f in /var/lib/kept/a /var/lib/lost/a /home/somebody/a /srv/data/a /root/a /etc/kept.conf /etc/lost.conf; do \
         echo mine > $f; done && cat /etc/machine-id";

pub fn settled(channel: &mut Channel<'_>, vm: &kiln::vm::Vm) {
    let settled = until_settled(vm, channel, Duration::ZERO, SETTLED).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((settled.state.as_str(), settled.failed.len()), ("running", 0), "{settled:?}");
}

/// What a script prints, without the blanks around it.
pub fn answer(channel: &mut Channel<'_>, script: &str) -> String {
    said(channel, script).trim().to_owned()
}

#[test]
fn a_clean_slate_leaves_what_is_kept() {
    let image = Project::of("slate").image("slate", &format!("{KEPT} ssh.enable = true"));
    let mut setup = setup(&image);
    setup.channel = true;
    let vm = machine::start(setup);
    let mut channel = Channel::attach(&vm, BOOT).unwrap_or_else(|e| panic!("{e}"));
    let old = answer(&mut channel, USE);
    assert_eq!(old.len(), 32, "{old}");
    is_immutable(&mut channel);
    settled(&mut channel, &vm);
    let old_keys = host_keys(&mut channel, "/etc/ssh");
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
    assert_eq!(host_keys(&mut channel, "/kiln/state.old-*/etc/ssh"), old_keys);
    assert_eq!(
        answer(&mut channel, "ls -A /kiln | grep -v state.old- | sort | xargs"),
        "lost+found state store"
    );
    settled(&mut channel, &vm);
    let new_keys = host_keys(&mut channel, "/etc/ssh");
    assert!(new_keys.iter().all(|key| !old_keys.contains(key)), "{new_keys:?} {old_keys:?}");
    drop(channel);
    let left: Vec<_> = vm.lines().into_iter().filter(|l| l.text.contains("Failed unmounting")).collect();
    assert!(left.is_empty(), "{left:?}");
    vm.power_down(SHUTDOWN);
}

/// The host keys of OpenSSH's server in a folder; there are some, and each is whole.
fn host_keys(channel: &mut Channel<'_>, folder: &str) -> Vec<String> {
    let told =
        answer(channel, &format!("for key in {folder}/ssh_host_*_key; do ssh-keygen -y -f $key; done"));
    let keys: Vec<String> = told.lines().map(str::to_owned).collect();
    assert!(keys.len() >= 2, "{told}");
    keys
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
