//! The outer side: starts the sandbox's process, maps its ids, follows what it tells, ends it when the user says so.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{getgid, getuid};

use super::error::SandboxError;
use super::tier::{IDS_NEEDED, Refusal, Tier, find_program};
use super::wire::{Event, Outcome, Request, Task};
use super::{Progress, executable};
use crate::host::interrupt;

/// Runs a task in a new sandbox. `log` is named in errors about scripts.
pub(super) fn run(
    tier: Tier,
    task: Task,
    log: &Path,
    progress: &dyn Fn(&Progress),
) -> Result<Outcome, SandboxError> {
    let request =
        serde_json::to_vec(&Request { tier, task }).map_err(|e| SandboxError::failed("asking", e))?;
    tracing::debug!("a sandbox begins: {tier}");
    let mut child = Killed(
        Command::new(executable())
            .args(["internal", "sandbox", "run"])
            .arg(if tier == Tier::Root { "plain" } else { "user" })
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|e| SandboxError::failed("starting its process", e))?,
    );
    let complaints = child.0.stderr.take().map(read_in_background);
    let result = follow(&mut child.0, tier, &request, log, progress);
    drop(child);
    let complaints = complaints.and_then(|thread| thread.join().ok()).unwrap_or_default();
    match result {
        Ok(Some(outcome)) => Ok(outcome),
        Ok(None) => {
            let why =
                if complaints.trim().is_empty() { "it ended without a word" } else { complaints.trim() };
            Err(SandboxError::failed("running", why))
        }
        Err(e) => Err(e),
    }
}

/// A child that doesn't outlive the value; the kernel ends all that runs in its process namespace.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn read_in_background(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.by_ref().take(64 << 10).read_to_end(&mut bytes);
        let _ = io::copy(&mut from, &mut io::sink());
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// `None` when the child ended without a result.
fn follow(
    child: &mut Child,
    tier: Tier,
    request: &[u8],
    log: &Path,
    progress: &dyn Fn(&Progress),
) -> Result<Option<Outcome>, SandboxError> {
    let mut stdin = child.stdin.take();
    let Some(mut stdout) = child.stdout.take() else { return Ok(None) };
    let ask = |stdin: &mut Option<std::process::ChildStdin>| {
        // A child that died early explains itself better than a broken pipe does.
        let _ = stdin.take().map(|mut stdin| stdin.write_all(request));
    };
    if tier == Tier::Root {
        ask(&mut stdin);
    }
    let mut lines = Lines::default();
    while let Some(line) = lines.next(&mut stdout)? {
        let event = serde_json::from_slice(&line).map_err(|e| SandboxError::failed("listening to it", e))?;
        match event {
            Event::Unshared => {
                map_ids(child.id(), tier)?;
                ask(&mut stdin);
            }
            Event::Progress(step) => progress(&step),
            Event::Failed(failure) => return Err(failure.explain(log)),
            Event::Done(outcome) => {
                // The rest of its work is to end, which frees the tree's files.
                let _ = child.wait();
                return Ok(Some(outcome));
            }
        }
    }
    Ok(None)
}

/// Lines out of a pipe, looking every 200 ms whether the user wants to stop.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn next(&mut self, from: &mut (impl Read + AsFd)) -> Result<Option<Vec<u8>>, SandboxError> {
        let wrong = |e: io::Error| SandboxError::failed("listening to it", e);
        let mut buffer = [0; 4096];
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.0) {
                let rest = self.0.split_off(end + 1);
                return Ok(Some(std::mem::replace(&mut self.0, rest)));
            }
            interrupt::check()?;
            let mut fds = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::from(200_u8)) {
                Ok(0) | Err(nix::errno::Errno::EINTR) => continue,
                Ok(_) => {}
                Err(e) => return Err(wrong(e.into())),
            }
            match from.read(&mut buffer) {
                Ok(0) => return Ok(None),
                Ok(n) => self.0.extend_from_slice(&buffer[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(wrong(e)),
            }
        }
    }
}

/// Writes the id maps of the child's user namespace.
fn map_ids(pid: u32, tier: Tier) -> Result<(), SandboxError> {
    let (own_uid, own_gid) = (getuid().as_raw(), getgid().as_raw());
    match tier {
        Tier::Root => Ok(()),
        Tier::RootUserNamespace => {
            for kind in ["uid_map", "gid_map"] {
                let own = std::fs::read_to_string(format!("/proc/self/{kind}"));
                let own = own.map_err(|e| SandboxError::failed("reading the ids that there are", e))?;
                let path = format!("/proc/{pid}/{kind}");
                std::fs::write(&path, own_map(&own))
                    .map_err(|e| SandboxError::failed(format!("writing {path}"), e))?;
            }
            Ok(())
        }
        Tier::Subids { uid, gid, count } => {
            new_id_map("newuidmap", pid, own_uid, uid, count)?;
            new_id_map("newgidmap", pid, own_gid, gid, count)
        }
    }
}

/// Where ids that images don't have come to stand. They have to stand somewhere: root may pass folders of their owners only then.
const BEYOND: u32 = 1 << 31;

/// A map of the ids of this process's own namespace, whose map is `text`: each that images have to itself, the rest to
/// [`BEYOND`], as far as there is room.
fn own_map(text: &str) -> String {
    let (mut map, mut beyond) = (String::new(), BEYOND);
    for line in text.lines() {
        let mut numbers = line.split_whitespace().map_while(|word| word.parse::<u32>().ok());
        let (Some(start), Some(count)) = (numbers.next(), numbers.nth(1)) else { continue };
        let own = count.min(IDS_NEEDED.saturating_sub(start));
        let rest = (count - own).min(u32::MAX - beyond);
        if own > 0 {
            map += &format!("{start} {start} {own}\n");
        }
        if rest > 0 {
            map += &format!("{beyond} {} {rest}\n", start + own);
            beyond += rest;
        }
    }
    map
}

fn new_id_map(program: &str, pid: u32, own: u32, start: u32, count: u32) -> Result<(), SandboxError> {
    let path = find_program(program).unwrap_or_else(|| program.into());
    let numbers = [pid, 0, own, 1, 1, start, count].map(|n| n.to_string());
    let output = Command::new(path).args(numbers).env_clear().stdin(Stdio::null()).output();
    let output = output.map_err(|e| SandboxError::failed(format!("running {program}"), e))?;
    if output.status.success() {
        return Ok(());
    }
    Err(SandboxError::Refused(Refusal {
        missing: format!("{program} failed: {}", String::from_utf8_lossy(&output.stderr).trim()),
        help: "It must be installed setuid root (or with file capabilities), and /etc/subuid and /etc/subgid must give the user a range"
            .to_owned(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_images_are_themselves_and_others_stand_beyond() {
        let all = "0 0 65535\n2147483648 65535 2147483647\n";
        assert_eq!(own_map("         0          0 4294967295\n"), all);
        assert_eq!(own_map("0 1000 1\n1 100000 65536\n"), "0 0 1\n1 1 65534\n2147483648 65535 2\n");
        assert_eq!(own_map(""), "");
    }
}
