//! Commands inside an unchanged image.
//!
//! A systemd credential (`tmpfiles.extra`, known since systemd 252) makes systemd-tmpfiles write three files into the
//! guest's /run at boot: a small shell script, a service that runs it, and a udev rule that starts the service once a
//! virtio-serial port of our name appears. Then the port is plugged in. Nothing of this is on the disk, and nothing is left
//! after the machine.
//!
//! The protocol has lines of words. Kiln writes `RUN id seconds base64(script)`; the agent answers `OUT id base64`, `ERR id
//! base64` and `RC id status`. `HELLO 1` comes first.

use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::json;

use super::credentials::Credential;
use super::failure::VmError;
use super::machine::PORTS_BUS;
use super::process::Vm;
use crate::base64::{base64, from_base64};

const PORT: &str = "org.kiln.check.0";
/// Output beyond this is cut off, in bytes of each of both streams.
const OUTPUT_LIMIT: usize = 1 << 20;
/// A line longer than this is none of the agent's: both streams' limit in base64, and some words.
const LINE_LIMIT: usize = OUTPUT_LIMIT / 3 * 4 + 1024;
const TICK: Duration = Duration::from_millis(50);
/// When the console shows nothing of systemd, the port is plugged in at this age for the first time.
const FIRST_PLUG: Duration = Duration::from_secs(8);
/// From the sign that early boot is done to udev's having read our rule.
const RULE_READ: Duration = Duration::from_secs(1);
/// A port that nobody opened is pulled and plugged in again after this; each time half as long again.
const REPLUG: Duration = Duration::from_secs(5);
/// The same once early boot is done: then the agent should only be given time.
const AGENT_START: Duration = Duration::from_secs(15);
/// Beyond a command's own limit: for killing it and sending what it said.
const GRACE: Duration = Duration::from_secs(20);

const AGENT: &str = r#"exec 3<>/dev/virtio-ports/org.kiln.check.0 || exit 1
printf 'HELLO 1\n' >&3
while IFS=' ' read -r op id limit text <&3; do
  case $op in
  RUN)
    base=/run/kiln/$id
    printf %s "$text" | base64 -d >"$base.sh"
    timeout -k 5 "$limit" /bin/sh "$base.sh" </dev/null >"$base.out" 2>"$base.err" 3>&-
    status=$?
    {
      printf 'OUT %s %s\n' "$id" "$(head -c 1048576 "$base.out" | base64 -w0)"
      printf 'ERR %s %s\n' "$id" "$(head -c 1048576 "$base.err" | base64 -w0)"
      printf 'RC %s %s\n' "$id" "$status"
    } >&3
    rm -f "$base".*
    ;;
  esac
done
"#;

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
    let mut lines = String::new();
    for (path, mode, text) in [
        ("/run/kiln/agent", "0600", AGENT),
        ("/run/systemd/system/kiln-check.service", "0644", SERVICE),
        ("/run/udev/rules.d/99-kiln.rules", "0644", RULE),
    ] {
        let folder = path.rsplit_once('/').map_or("/", |(folder, _)| folder);
        let _ = writeln!(lines, "d {folder} 0755 root root -");
        let _ = writeln!(lines, "f~ {path} {mode} root root - {}", base64(text.as_bytes()));
    }
    Credential { name: "tmpfiles.extra".to_owned(), value: lines.into_bytes() }
}

/// What a command said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its exit status; 124 when it ran into its limit.
    pub status: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// How long it took, seen from here.
    pub took: Duration,
}

/// The system once nothing starts or stops any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// What `systemctl is-system-running` says: `running`, `degraded`, ….
    pub state: String,
    /// The units that failed.
    pub failed: Vec<String>,
}

/// A way to run commands in a guest as root.
pub struct Channel<'a> {
    vm: &'a Vm,
    stream: UnixStream,
    unread: Vec<u8>,
    commands: u32,
    lines: usize,
}

impl<'a> Channel<'a> {
    /// Plugs the port into a machine that was prepared for it ([`super::Setup::channel`]), and waits for the agent.
    ///
    /// # Errors
    /// [`VmError`]: a boot that failed, `limit`, Ctrl-C.
    pub fn attach(vm: &'a Vm, limit: Duration) -> Result<Channel<'a>, VmError> {
        const WHAT: &str = "answer of the agent in the guest";
        let (begun, mut lines, mut done) = (Instant::now(), 0, false);
        let mut next = begun + FIRST_PLUG.saturating_sub(vm.age());
        let mut pause = REPLUG;
        let mut plugged = None;
        for plugs in 0.. {
            while Instant::now() < next {
                let news = vm.news(&mut lines, WHAT)?;
                if !done && news.iter().any(|line| early_boot_is_done(line)) {
                    (done, next, pause) = (true, Instant::now() + RULE_READ, AGENT_START);
                }
                match plugged.as_mut().map(Channel::line).transpose()?.flatten() {
                    Some(line) if line == "HELLO 1" => {
                        return plugged.ok_or_else(|| VmError::Channel(WHAT.to_owned()));
                    }
                    None if plugged.is_none() => std::thread::sleep(TICK),
                    _ => {}
                }
                if begun.elapsed() > limit {
                    return Err(VmError::Timeout { what: WHAT.to_owned(), limit, tail: vm.tail() });
                }
            }
            plugged = Some(Channel::plug(vm, plugs)?);
            next = Instant::now() + pause;
            pause = pause * 3 / 2;
        }
        Err(VmError::Channel("no port is left".to_owned()))
    }

    /// Plugs in port number `number` and pulls the one before. A port that was plugged in before udev had our rule started
    /// nothing, so that another one has to come; QEMU keeps the socket of the old one for a while, so that each has its own.
    fn plug(vm: &'a Vm, number: u32) -> Result<Channel<'a>, VmError> {
        let wrong = |e: std::io::Error| VmError::Channel(e.to_string());
        let (ours, theirs) = UnixStream::pair().map_err(wrong)?;
        ours.set_read_timeout(Some(TICK)).map_err(wrong)?;
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
        Ok(Channel { vm, stream: ours, unread: Vec::new(), commands: 0, lines: 0 })
    }

    /// Runs a shell script as root and answers what it said, at most 1 MiB of each stream.
    ///
    /// # Errors
    /// [`VmError`]: the machine ended, the agent broke off, no answer some time after `limit`, Ctrl-C.
    pub fn run(&mut self, script: &str, limit: Duration) -> Result<Output, VmError> {
        self.commands += 1;
        let (id, begun) = (self.commands.to_string(), Instant::now());
        let seconds = limit.as_secs().max(1);
        let line = format!("RUN {id} {seconds} {}\n", base64(script.as_bytes()));
        self.stream.write_all(line.as_bytes()).map_err(|e| VmError::Channel(e.to_string()))?;
        let what = || format!("end of `{}` in the guest", script.lines().next().unwrap_or_default());
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            self.vm.news(&mut self.lines, &what())?;
            if let Some(line) = self.line()? {
                let words: Vec<&str> = line.split(' ').collect();
                match words[..] {
                    ["OUT", of, text] if of == id => stdout = decoded(text)?,
                    ["ERR", of, text] if of == id => stderr = decoded(text)?,
                    ["RC", of, status] if of == id => {
                        let status = status.parse().map_err(|_| nonsense(&line))?;
                        let [stdout, stderr] =
                            [stdout, stderr].map(|s| String::from_utf8_lossy(&s).into_owned());
                        return Ok(Output { status, stdout, stderr, took: begun.elapsed() });
                    }
                    ["HELLO", ..] => return Err(VmError::Channel("the agent was started anew".to_owned())),
                    _ => {}
                }
            }
            if begun.elapsed() > limit + GRACE {
                return Err(VmError::Timeout { what: what(), limit: limit + GRACE, tail: self.vm.tail() });
            }
        }
    }

    /// Waits until the system has settled: three equal answers a second apart, no job queued, no unit on its way up or
    /// down. (`is-system-running --wait` alone is too early when a service restarts itself.)
    ///
    /// # Errors
    /// [`VmError`] as for [`Channel::run`]; [`VmError::Timeout`] when units keep starting.
    pub fn wait_until_settled(&mut self, limit: Duration) -> Result<Settled, VmError> {
        let script = SETTLE.replace("LIMIT", &limit.as_secs().to_string());
        let output = self.run(&script, limit + GRACE)?;
        let mut lines = output.stdout.lines();
        match (output.status, lines.next()) {
            (0, Some(state)) => {
                Ok(Settled { state: state.to_owned(), failed: lines.map(str::to_owned).collect() })
            }
            _ => Err(VmError::Timeout {
                what: "end of the boot: units keep starting".to_owned(),
                limit,
                tail: output.stdout.lines().map(str::to_owned).collect(),
            }),
        }
    }

    /// The next whole line, waited for during one tick.
    fn line(&mut self) -> Result<Option<String>, VmError> {
        loop {
            if let Some(end) = self.unread.iter().position(|&b| b == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                return Ok(Some(String::from_utf8_lossy(&line).trim_end().to_owned()));
            }
            if self.unread.len() > LINE_LIMIT {
                return Err(VmError::Channel(format!("a line of more than {LINE_LIMIT} bytes")));
            }
            let mut buffer = [0; 64 << 10];
            match self.stream.read(&mut buffer) {
                // QEMU is gone; the machine's news say why.
                Ok(0) => {
                    std::thread::sleep(TICK);
                    return Ok(None);
                }
                Ok(n) => self.unread.extend_from_slice(&buffer[..n]),
                Err(e)
                    if matches!(
                        e.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) =>
                {
                    return Ok(None);
                }
                Err(e) => return Err(VmError::Channel(e.to_string())),
            }
        }
    }
}

fn early_boot_is_done(line: &str) -> bool {
    line.contains("Reached target") && line.contains("ystem Initialization")
        || line.contains("Reached target sysinit.target")
        || line.ends_with("login: ")
}

fn decoded(text: &str) -> Result<Vec<u8>, VmError> {
    from_base64(text).ok_or_else(|| nonsense(text))
}

fn nonsense(line: &str) -> VmError {
    let start: String = line.chars().take(60).collect();
    VmError::Channel(format!("the agent answered nonsense: {start}"))
}

/// First line: the state; then the failed units. Status 1 and the jobs at hand when it never settles.
const SETTLE: &str = r#"samples=0 last=
while [ $((i += 1)) -le LIMIT ]; do
  state=$(systemctl is-system-running)
  jobs=$(systemctl list-jobs --no-legend | wc -l)
  moving=$(systemctl list-units --no-legend --plain --state=activating,auto-restart,deactivating,reloading | grep -vc '\.timer')
  now="$state $jobs $moving"
  if [ "$now" = "$last" ] && [ "$jobs $moving" = "0 0" ] && [ "$state" != starting ]; then samples=$((samples + 1)); else samples=0; fi
  last=$now
  if [ $samples -ge 2 ]; then
    echo "$state"
    systemctl --failed --no-legend --plain --full | cut -d' ' -f1
    exit 0
  fi
  sleep 1
done
echo "$last"
systemctl list-jobs --no-legend
systemctl list-units --no-legend --plain --state=activating,auto-restart,deactivating,reloading
exit 1
"#;

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn the_shell_reads_our_scripts() {
        for script in [AGENT, SETTLE] {
            let status = std::process::Command::new("/bin/sh").args(["-n", "-c", script]).status().unwrap();
            assert!(status.success());
        }
    }
}
