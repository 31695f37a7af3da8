//! The way into a guest that its users take: OpenSSH's client, from the tools tree, run inside the machine's own network.
//!
//! One session carries all commands ([`super::agent`]): logging in costs an emulated processor seconds. Nothing of the
//! user's own takes part: no configuration, no agent, no keys, no known hosts.

use std::ffi::OsString;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::agent::{Talk, script};
use super::child::Kept;
use super::failure::VmError;
use super::guest::{Guest, Output, REBOOT};
use super::process::Vm;
use super::qemu::Qemu;
use crate::base64::base64;
use crate::host::fs::FileError;

/// SSH's port in the guest.
const PORT: u16 = 22;
/// A server that is up greets within this.
const GREETING: Duration = Duration::from_secs(5);
/// From the greeting to the agent's first line: keys are exchanged on an emulated processor.
const LOGIN: Duration = Duration::from_secs(90);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(700);
/// A command that only looks something up.
const QUESTION: Duration = Duration::from_secs(60);

/// Makes a folder of its own and takes the session's two streams as the agent's.
const BEGINNING: &str = "exec 3<&0 4>&1 </dev/null >/dev/null\nfolder=$(mktemp -d /run/kiln-ssh.XXXXXX) || exit 1\n\
                         trap 'rm -rf \"$folder\"' EXIT\n";

/// A throw-away key. Its files go away with it.
#[derive(Debug)]
pub struct Key {
    folder: TempDir,
    tools: Qemu,
    public: String,
}

impl Key {
    /// Makes an ed25519 key in a folder of its own in `scratch`, with the `ssh-keygen` that comes with `tools`.
    ///
    /// # Errors
    /// [`VmError`] when there is no `ssh-keygen`, or a file can't be written.
    pub fn generate(tools: &Qemu, scratch: &Path) -> Result<Key, VmError> {
        std::fs::create_dir_all(scratch).map_err(FileError::at("can't make", scratch))?;
        let folder = tempfile::Builder::new().prefix("key-").tempdir_in(scratch);
        let folder = folder.map_err(FileError::at("can't make a folder in", scratch))?;
        let words = tools.tool("ssh-keygen")?;
        let mut keygen = Command::new(&words[0]);
        keygen.args(&words[1..]).args(["-q", "-t", "ed25519", "-N", "", "-C", "kiln", "-f", "key"]);
        keygen.current_dir(folder.path()).env_clear().stdin(Stdio::null());
        let output = keygen.output().map_err(|e| VmError::Ssh(format!("ssh-keygen can't be run: {e}")))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(VmError::Ssh(format!("ssh-keygen ended with {}: {}", output.status, said.trim())));
        }
        let path = folder.path().join("key.pub");
        let public = std::fs::read_to_string(&path).map_err(FileError::at("can't read", &path))?;
        Ok(Key { folder, tools: tools.clone(), public: public.trim().to_owned() })
    }

    /// The public half, as a line of `authorized_keys`.
    #[must_use]
    pub fn public(&self) -> &str {
        &self.public
    }
}

/// A login over SSH, as a way to run commands as root.
pub struct Ssh<'a> {
    vm: &'a Vm,
    key: &'a Key,
    user: String,
    session: Session,
    lines: usize,
}

impl<'a> Ssh<'a> {
    /// Waits until `user` can log in to a machine that forwards port 22 in a network of its own
    /// ([`super::Setup::ec2`]), and does so. A user other than root needs `sudo` without a password.
    ///
    /// # Errors
    /// [`VmError`]: a boot that failed, `limit` (with what `ssh` said last), Ctrl-C.
    pub fn log_in(vm: &'a Vm, key: &'a Key, user: &str, limit: Duration) -> Result<Ssh<'a>, VmError> {
        let (begun, mut lines) = (Instant::now(), 0);
        let what = format!("login of {user} over SSH");
        let mut said = "no SSH server answered on port 22".to_owned();
        loop {
            vm.news(&mut lines, &what)?;
            if greets(vm)? {
                match Session::open(vm, key, user, &mut lines)? {
                    Ok(session) => return Ok(Ssh { vm, key, user: user.to_owned(), session, lines }),
                    Err(why) => said = why,
                }
            }
            if begun.elapsed() > limit {
                let what = format!("{what} ({said})");
                return Err(VmError::Timeout { what, limit, tail: vm.tail() });
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Restarts the guest and logs in again, which is only done once it runs anew. The machine must have been prepared
    /// with `reboots`.
    ///
    /// # Errors
    /// As [`Ssh::log_in`].
    pub fn reboot(mut self, limit: Duration) -> Result<Ssh<'a>, VmError> {
        let begun = Instant::now();
        let before = self.boot()?;
        self.vm.expect_reset();
        self.run(REBOOT, QUESTION)?.success("the restart")?;
        let Ssh { vm, key, user, session, .. } = self;
        drop(session);
        loop {
            let left = limit.saturating_sub(begun.elapsed());
            let mut again = Ssh::log_in(vm, key, &user, left)?;
            // While it goes down it may let us in once more, and break off at once.
            match again.boot() {
                Ok(boot) if boot != before => return Ok(again),
                Ok(_) | Err(VmError::Channel(_)) => std::thread::sleep(PAUSE),
                Err(e) => return Err(e),
            }
        }
    }

    /// The kernel's number of this boot.
    fn boot(&mut self) -> Result<String, VmError> {
        self.run("cat /proc/sys/kernel/random/boot_id", QUESTION).map(|output| output.stdout)
    }

    /// As [`Guest::run`].
    ///
    /// # Errors
    /// As [`Guest::run`].
    pub fn run(&mut self, script: &str, limit: Duration) -> Result<Output, VmError> {
        self.session.talk.run(self.vm, &mut self.lines, script, limit)
    }
}

impl Guest for Ssh<'_> {
    fn run(&mut self, script: &str, limit: Duration) -> Result<Output, VmError> {
        Ssh::run(self, script, limit)
    }
}

/// Whether an SSH server says its name. The forwarded port itself always answers.
fn greets(vm: &Vm) -> Result<bool, VmError> {
    let mut stream = match vm.connect(PORT, GREETING) {
        Ok(stream) => stream,
        Err(e) if e.kind() == std::io::ErrorKind::Unsupported => return Err(VmError::Ssh(e.to_string())),
        Err(_) => return Ok(false),
    };
    let mut greeting = [0; 4];
    let read = stream.set_read_timeout(Some(GREETING)).and_then(|()| stream.read_exact(&mut greeting));
    Ok(read.is_ok() && greeting == *b"SSH-")
}

/// A running `ssh` with an agent at its other end.
struct Session {
    talk: Talk,
    // Ends after our end of its streams is closed.
    _process: Kept,
}

impl Session {
    /// The inner error is what `ssh` said when it was not let in.
    fn open(vm: &Vm, key: &Key, user: &str, lines: &mut usize) -> Result<Result<Session, String>, VmError> {
        let wrong = |e: std::io::Error| VmError::Ssh(format!("ssh can't be run: {e}"));
        let (ours, theirs) = UnixStream::pair().map_err(wrong)?;
        let theirs = OwnedFd::from(theirs);
        let Some((namespace, port)) = vm.way_to(PORT) else {
            return Err(VmError::Ssh("the machine forwards no port 22 in a network of its own".to_owned()));
        };
        let mut command = namespace.command();
        command.args(key.tools.tool("ssh")?).args(arguments(vm.pid(), port, user));
        command.current_dir(key.folder.path());
        command.stdin(theirs.try_clone().map_err(wrong)?).stdout(theirs);
        let mut process = Kept::spawn(command, "ssh").map_err(wrong)?;
        let (mut talk, begun) = (Talk::new(ours).map_err(wrong)?, Instant::now());
        loop {
            if talk.greeted()? {
                return Ok(Ok(Session { talk, _process: process }));
            }
            vm.news(lines, "answer of the agent over SSH")?;
            let silent = begun.elapsed() > LOGIN;
            if silent || !process.runs() {
                let said = process.end();
                return Ok(Err(match said.trim() {
                    "" if silent => format!("no answer within {} s", LOGIN.as_secs()),
                    "" => "ssh ended without a word".to_owned(),
                    said => said.to_owned(),
                }));
            }
        }
    }
}

/// The arguments of `ssh`, which runs in the key's folder: there its files have names that need no quoting. The guest's own
/// key is taken the first time and must then stay the same as long as the machine runs.
fn arguments(machine: u32, port: u16, user: &str) -> Vec<OsString> {
    let known = format!("UserKnownHostsFile=known-hosts-{machine}");
    let mut words: Vec<OsString> = ["-F", "none", "-T", "-i", "key"].map(OsString::from).to_vec();
    for option in [
        "BatchMode=yes",
        "IdentitiesOnly=yes",
        "IdentityAgent=none",
        "PreferredAuthentications=publickey",
        "StrictHostKeyChecking=accept-new",
        &known,
        "GlobalKnownHostsFile=/dev/null",
        "UpdateHostKeys=no",
        "ControlPath=none",
        "ClearAllForwardings=yes",
        "ForwardAgent=no",
        "ConnectTimeout=30",
        "ServerAliveInterval=15",
        "ServerAliveCountMax=8",
        "LogLevel=ERROR",
    ] {
        words.extend(["-o".into(), option.into()]);
    }
    let root = if user == "root" { "" } else { "sudo -n " };
    let agent = base64(script(BEGINNING).as_bytes());
    let command = format!("exec {root}/bin/sh -c \"$(echo {agent} | base64 -d)\"");
    words.extend(["-p", &port.to_string(), "-l", user, "127.0.0.1", &command].map(OsString::from));
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_user_takes_part() {
        let line: Vec<String> =
            arguments(7, 2222, "admin").iter().map(|w| w.to_string_lossy().into_owned()).collect();
        let (options, command) = line.split_at(line.len() - 1);
        let options = options.join(" ");
        assert!(
            options.starts_with(
                "-F none -T -i key -o BatchMode=yes -o IdentitiesOnly=yes -o IdentityAgent=none"
            )
        );
        assert!(options.contains(" -o UserKnownHostsFile=known-hosts-7 -o GlobalKnownHostsFile=/dev/null "));
        assert!(options.ends_with(" -p 2222 -l admin 127.0.0.1"), "{options}");
        assert!(command[0].starts_with("exec sudo -n /bin/sh -c \"$(echo "), "{command:?}");
        assert!(arguments(7, 2222, "root").last().unwrap().to_string_lossy().starts_with("exec /bin/sh -c"));
    }

    #[test]
    fn the_shell_reads_the_beginning() {
        let status = Command::new("/bin/sh").args(["-n", "-c", &script(BEGINNING)]).status().unwrap();
        assert!(status.success());
    }
}
