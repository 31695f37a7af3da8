//! Runs programs inside the tree: their output goes to the log, the last lines into errors.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError, RwLock};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::error::{Doing, Failure, Inner};

/// How many lines of output an error shows.
const TAIL: usize = 15;

/// The environment of everything that runs in a tree, beside the time.
const ENVIRONMENT: [(&str, &str); 10] = [
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", "/root"),
    ("LC_ALL", "C.UTF-8"),
    ("TZ", "UTC"),
    ("TERM", "dumb"),
    ("DEBIAN_FRONTEND", "noninteractive"),
    ("DEBCONF_NONINTERACTIVE_SEEN", "true"),
    ("DEBCONF_NOWARNINGS", "yes"),
    ("PYTHONHASHSEED", "0"),
    ("PYTHONDONTWRITEBYTECODE", "1"),
];

/// Runs programs; usable by several threads.
pub(super) struct Runner {
    log: Mutex<File>,
    epoch: i64,
    /// Read while a program runs beside others: whoever ends what is left behind waits for it.
    beside: RwLock<()>,
}

/// How a program ended.
pub(super) struct Ran {
    pub status: ExitStatus,
    pub tail: Vec<String>,
}

impl Ran {
    /// In words, as in `exit status 1`.
    pub fn status(&self) -> String {
        self.status.to_string().replace("exit status: ", "exit status ").replace("signal: ", "signal ")
    }
}

impl Runner {
    pub fn new(log: File, epoch: i64) -> Runner {
        Runner { log: Mutex::new(log), epoch, beside: RwLock::new(()) }
    }

    /// A program with the fixed environment.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .envs(ENVIRONMENT)
            .env("SOURCE_DATE_EPOCH", self.epoch.to_string())
            .current_dir("/");
        command
    }

    /// Writes a line of our own to the log.
    pub fn note(&self, line: &str) {
        if let Ok(mut log) = self.log.lock() {
            let _ = writeln!(log, "{line}");
        }
    }

    /// Runs a program to its end and ends whatever it leaves behind; each line of output is shown to `each`.
    pub fn run(&self, mut command: Command, each: &mut (dyn FnMut(&str) + Send)) -> Inner<Ran> {
        let (reader, writer) = std::io::pipe().doing("making a pipe")?;
        let doing = format!("running {}", command.get_program().to_string_lossy());
        command.stdin(Stdio::null()).stderr(writer.try_clone().doing("making a pipe")?).stdout(writer);
        let mut child = command.spawn().doing(&doing)?;
        drop(command);
        std::thread::scope(|scope| {
            let output = scope.spawn(move || self.follow(reader, each));
            let status = child.wait().doing(&doing);
            // Daemons that a script left behind hold the pipe open; process 1 and we ourselves are spared.
            let alone = self.beside.write().unwrap_or_else(PoisonError::into_inner);
            let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
            drop(alone);
            let tail = output.join().unwrap_or_default();
            Ok(Ran { status: status?, tail })
        })
    }

    fn follow(&self, from: impl std::io::Read, each: &mut (dyn FnMut(&str) + Send)) -> Vec<String> {
        let mut tail = VecDeque::new();
        let mut reader = BufReader::new(from);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            line.clear();
            self.note(&text);
            each(&text);
            tail.push_back(text);
            if tail.len() > TAIL {
                tail.pop_front();
            }
        }
        tail.into()
    }

    /// Runs a program beside others, keeping its output together in the log; fails when it fails.
    pub fn beside(&self, mut command: Command, what: &str) -> Inner<()> {
        let others = self.beside.read().unwrap_or_else(PoisonError::into_inner);
        let output = command.stdin(Stdio::null()).output().doing(what)?;
        drop(others);
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        self.note(&format!("{what}:\n{}", text.trim_end()));
        if output.status.success() {
            return Ok(());
        }
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let ran = Ran { status: output.status, tail: lines[lines.len().saturating_sub(TAIL)..].to_vec() };
        Err(Failure::Script {
            package: "the batch".into(),
            script: what.into(),
            status: ran.status(),
            tail: ran.tail,
        })
    }
}
