//! Commands inside an unchanged image.
//!
//! A systemd credential (`tmpfiles.extra`, known since systemd 252) makes systemd-tmpfiles write three files into the
//! guest's /run at boot: a small shell script, a service that runs it, and a udev rule that starts the service once a
//! virtio-serial port of our name appears. Then the port is plugged in. Nothing of this is on the disk, and nothing is left
//! after the machine.
//!
//! What is said over the port: [`super::agent`].

use std::fmt::Write as _;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::json;

use super::agent::{Talk, script};
use super::credentials::Credential;
use super::failure::{BootFailure, VmError};
use super::guest::{Guest, Output, REBOOT};
use super::machine::PORTS_BUS;
use super::process::Vm;
use crate::base64::base64;

const PORT: &str = "org.kiln.check.0";
const TICK: Duration = Duration::from_millis(50);
/// When the console shows nothing of systemd, the port is plugged in at this age for the first time.
const FIRST_PLUG: Duration = Duration::from_secs(8);
/// From the sign that early boot is done to udev's having read our rule.
const RULE_READ: Duration = Duration::from_secs(1);
/// A port that nobody opened is pulled and plugged in again after this; each time half as long again.
const REPLUG: Duration = Duration::from_secs(5);
/// The same once early boot is done: then the agent should only be given time.
const AGENT_START: Duration = Duration::from_secs(15);
/// A system that asks who logs in has started all that it starts early: an agent that isn't there after so long never comes,
/// even in an emulated machine on a busy host.
const AGENT_LIMIT: Duration = Duration::from_secs(120);
/// A guest that neither speaks nor uses its processors for so long hangs. Longer than systemd's own default for a start
/// (90 s), which ends in a failed unit or in emergency mode and is told as such.
pub const HANG: Duration = Duration::from_secs(100);
/// A command that only asks for something.
const QUESTION: Duration = Duration::from_secs(60);
/// Takes the port as both of the agent's ends.
const OPEN: &str = "exec 3<>/dev/virtio-ports/org.kiln.check.0 4>&3 || exit 1\nfolder=/run/kiln\n";

const SERVICE: &str = "[Unit]
Description=Kiln's channel into the machine
DefaultDependencies=no
Conflicts=shutdown.target
Before=shutdown.target
[Service]
Type=exec
ExecStart=/bin/sh /run/kiln/agent
";

const RULE: &str = r#"SUBSYSTEM=="virtio-ports", ATTR{name}=="org.kiln.check.0", TAG+="systemd", ENV{SYSTEMD_WANTS}+="kiln-check.service"
"#;

/// The credential that brings the agent. In tmpfiles.d(5) `~` marks base64.
pub(super) fn credential() -> Credential {
    let (agent, mut lines) = (script(OPEN), String::new());
    for (path, mode, text) in [
        ("/run/kiln/agent", "0600", agent.as_str()),
        ("/run/systemd/system/kiln-check.service", "0644", SERVICE),
        ("/run/udev/rules.d/99-kiln.rules", "0644", RULE),
    ] {
        let folder = path.rsplit_once('/').map_or("/", |(folder, _)| folder);
        let _ = writeln!(lines, "d {folder} 0755 root root -");
        let _ = writeln!(lines, "f~ {path} {mode} root root - {}", base64(text.as_bytes()));
    }
    Credential { name: "tmpfiles.extra".to_owned(), value: lines.into_bytes() }
}

/// A way to run commands in a guest as root.
pub struct Channel<'a> {
    vm: &'a Vm,
    talk: Talk,
    lines: usize,
}

impl<'a> Channel<'a> {
    /// Plugs the port into a machine that was prepared for it ([`super::Setup::channel`]), and waits for the agent.
    ///
    /// # Errors
    /// [`VmError`]: a boot that failed, `limit`, Ctrl-C.
    pub fn attach(vm: &'a Vm, limit: Duration) -> Result<Channel<'a>, VmError> {
        Channel::wait(vm, 0, FIRST_PLUG.saturating_sub(vm.age()), limit)
    }

    /// Plugs another port into a machine that is up and whose channel is gone.
    ///
    /// # Errors
    /// As [`Channel::attach`].
    pub fn attach_again(vm: &'a Vm, limit: Duration) -> Result<Channel<'a>, VmError> {
        Channel::wait(vm, vm.line_count(), Duration::ZERO, limit)
    }

    /// Restarts the guest and waits for its agent once more. The machine must have been prepared with `reboots`.
    ///
    /// # Errors
    /// As [`Channel::attach`]; [`VmError::Timeout`] when it does not go down.
    pub fn reboot(mut self, limit: Duration) -> Result<Channel<'a>, VmError> {
        let (vm, begun, resets) = (self.vm, Instant::now(), self.vm.resets());
        vm.expect_reset();
        self.run(REBOOT, QUESTION)?.success("the restart")?;
        let mut lines = self.lines;
        drop(self);
        while vm.resets() == resets {
            vm.news(&mut lines, "restart of the guest")?;
            if begun.elapsed() > limit {
                let what = "restart of the guest".to_owned();
                return Err(VmError::Timeout { what, limit, tail: vm.tail() });
            }
            std::thread::sleep(TICK);
        }
        Channel::wait(vm, vm.line_count(), FIRST_PLUG, limit.saturating_sub(begun.elapsed()))
    }

    /// Waits for the agent, looking at the console from line `lines` on; the first port comes after `first`.
    fn wait(vm: &'a Vm, mut lines: usize, first: Duration, limit: Duration) -> Result<Channel<'a>, VmError> {
        const WHAT: &str = "answer of the agent in the guest";
        let (begun, mut done, mut asks) = (Instant::now(), false, None);
        let mut next = begun + first;
        let mut pause = REPLUG;
        let mut plugged: Option<Channel<'a>> = None;
        loop {
            while Instant::now() < next {
                let news = vm.news(&mut lines, WHAT)?;
                // A system that waits for someone to log in may be quiet for as long as it likes.
                if asks.is_none() {
                    vm.check_pulse(HANG)?;
                }
                if !done && news.iter().any(|line| early_boot_is_done(line)) {
                    (done, next, pause) = (true, Instant::now() + RULE_READ, AGENT_START);
                }
                if let Some(line) = news.into_iter().find(|line| asks_who_logs_in(line)) {
                    asks.get_or_insert((Instant::now(), vm.age(), line));
                }
                match plugged.as_mut().map(|channel| channel.talk.greeted()).transpose()? {
                    Some(true) => return plugged.ok_or_else(|| VmError::Channel(WHAT.to_owned())),
                    Some(false) => {}
                    None => std::thread::sleep(TICK),
                }
                if let Some((since, at, line)) =
                    asks.as_ref().filter(|(since, ..)| since.elapsed() > AGENT_LIMIT)
                {
                    let line = format!("`{}` was there for {} s", line.trim(), since.elapsed().as_secs());
                    return Err(VmError::Boot {
                        failure: BootFailure::NoAgent,
                        line,
                        at: *at,
                        tail: vm.tail(),
                    });
                }
                if begun.elapsed() > limit {
                    return Err(VmError::Timeout { what: WHAT.to_owned(), limit, tail: vm.tail() });
                }
            }
            plugged = Some(Channel::plug(vm, vm.next_port())?);
            next = Instant::now() + pause;
            pause = pause * 3 / 2;
        }
    }

    /// Plugs in port number `number` and pulls the one before. A port that was plugged in before udev had our rule started
    /// nothing, so that another one has to come; QEMU keeps the socket of the old one for a while, so that each has its own.
    fn plug(vm: &'a Vm, number: u32) -> Result<Channel<'a>, VmError> {
        let wrong = |e: std::io::Error| VmError::Channel(e.to_string());
        let (ours, theirs) = UnixStream::pair().map_err(wrong)?;
        let talk = Talk::new(ours).map_err(wrong)?;
        let name = format!("check{number}");
        vm.give(&name, theirs.as_fd())?;
        let address = json!({ "type": "fd", "data": { "str": name } });
        let backend = json!({ "type": "socket", "data": { "addr": address, "server": false } });
        vm.execute("chardev-add", &json!({ "id": name, "backend": backend }))?;
        if let Some(last) = number.checked_sub(1) {
            vm.execute("device_del", &json!({ "id": format!("port{last}") }))?;
        }
        let port = json!({
            "driver": "virtserialport", "id": format!("port{number}"), "bus": format!("{PORTS_BUS}.0"),
            "chardev": name, "name": PORT,
        });
        vm.execute("device_add", &port)?;
        Ok(Channel { vm, talk, lines: 0 })
    }

    /// As [`Guest::run`].
    ///
    /// # Errors
    /// As [`Guest::run`].
    pub fn run(&mut self, script: &str, limit: Duration) -> Result<Output, VmError> {
        self.talk.run(self.vm, &mut self.lines, script, limit)
    }
}

impl Guest for Channel<'_> {
    fn run(&mut self, script: &str, limit: Duration) -> Result<Output, VmError> {
        Channel::run(self, script, limit)
    }
}

fn early_boot_is_done(line: &str) -> bool {
    line.contains("Reached target") && line.contains("ystem Initialization")
        || line.contains("Reached target sysinit.target")
        || asks_who_logs_in(line)
}

/// The prompt of a getty; what the kernel says afterwards stands on the same line.
fn asks_who_logs_in(line: &str) -> bool {
    let host = |name: &str| !name.is_empty() && !name.contains(char::is_whitespace);
    line.split_once(" login: ")
        .is_some_and(|(name, rest)| host(name) && (rest.is_empty() || rest.starts_with('[')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_recognised_whatever_the_kernel_adds() {
        assert!(asks_who_logs_in("web login: ") && asks_who_logs_in("web login: [   38.015161] cryptd: max"));
        for line in ["User login: started", "[    1.0] a login: x", "web login: admin", "", " login: "] {
            assert!(!asks_who_logs_in(line), "{line}");
        }
    }

    #[test]
    fn the_agent_fits_into_an_smbios_table() {
        let credential = credential();
        assert!(credential.smbios().len() < 8 << 10, "{}", credential.smbios().len());
        let text = String::from_utf8(credential.value).unwrap();
        assert!(
            text.starts_with("d /run/kiln 0755 root root -\nf~ /run/kiln/agent 0600 root root - ZXhlYyAz")
        );
        assert_eq!(text.lines().count(), 6);
    }

    #[test]
    fn signs_of_early_boot() {
        for line in ["[  OK  ] Reached target sysinit.target - System Initialization.", "kiln login: "] {
            assert!(early_boot_is_done(line), "{line}");
        }
        assert!(!early_boot_is_done("Starting systemd-udevd.service"));
    }
}
