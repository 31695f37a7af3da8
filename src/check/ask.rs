//! What a check asks inside a system: a script for POSIX sh, and many of them as one.
//!
//! The scripts change nothing and need nothing beyond coreutils, grep and what the check is about (systemd, dpkg).

use std::fmt::Write as _;
use std::time::Duration;

use super::{Check, FileFacts, What};
use crate::base64::from_base64;

/// What a script said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// Its exit status; 124 when it ran into its limit.
    pub status: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// How much of each stream of a script in a batch is answered, in bytes.
const BATCH_OUTPUT: usize = 64 << 10;

impl Check {
    /// The script that asks it inside the system; `None` for what is seen from outside.
    #[must_use]
    pub fn script(&self) -> Option<String> {
        Some(match &self.what {
            What::Command { command, .. } => command.clone(),
            What::Script { text } => program(text),
            What::Unit { name, .. } | What::Masked { name } => unit(name),
            What::NoFailedUnit => failed_units(),
            What::Port(port) => {
                // In /proc/net/tcp ports are hexadecimal, and state 0A is LISTEN.
                format!(
                    "cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | grep -E '^ *[0-9]+: [0-9A-F]+:{port:04X} [0-9A-F:]+ 0A '"
                )
            }
            What::File(file) => file_script(file),
            What::User { name, .. } => format!("getent passwd {}", quoted(name)),
            What::Group { name, .. } => format!("getent group {}", quoted(name)),
            What::Sysctl { key, .. } => format!("cat {}", quoted(&sysctl_path(key))),
            What::Mount { path, .. } => format!(
                "while read -r device at fs rest; do [ \"$at\" = {} ] && echo \"$device $fs\"; done </proc/mounts",
                quoted(&path.replace(' ', "\\040"))
            ),
            What::Swap => "cat /proc/swaps".to_owned(),
            What::RootSize { .. } => {
                "root=/; [ ! -d /kiln/store ] || root=/kiln\nstat -f -c '%S %b' $root".to_owned()
            }
            What::Packages { .. } => {
                "command -v dpkg >/dev/null || exit 42\ndpkg --verify; dpkg --audit >&2".to_owned()
            }
            What::BootTime
            | What::Http(_)
            | What::ImdsV1Refused
            | What::SshLogin
            | What::Reboot
            | What::UserData { .. } => return None,
        })
    }
}

fn unit(name: &str) -> String {
    let name = quoted(name);
    format!(
        "systemctl show --property=LoadState,ActiveState,SubState,Result,Type,ConditionResult,UnitFileState -- {name}\n\
         systemctl is-active --quiet -- {name} || journalctl --boot --no-pager --output=cat --lines=20 --unit={name} >&2"
    )
}

fn failed_units() -> String {
    "failed=$(systemctl --failed --no-legend --plain --full) || exit 1\n\
     [ -z \"$failed\" ] || echo \"$failed\" | while read -r unit rest; do\n\
     echo \"$unit\"; { echo \"-- $unit\"; \
     journalctl --boot --no-pager --output=cat --lines=20 --unit=\"$unit\"; } >&2; done"
        .to_owned()
}

/// A program that is written to a file of its own, because its first line names its interpreter.
fn program(text: &str) -> String {
    format!(
        "file=$(mktemp) && trap 'rm -f \"$file\"' EXIT && printf %s {} >\"$file\" && chmod 700 \"$file\" && \"$file\"",
        quoted(text)
    )
}

/// First line: what `stat` says; second: the digest; then the text, when it is looked at.
fn file_script(file: &FileFacts) -> String {
    let path = quoted(&file.path);
    let mut script = format!("[ -e {path} ] || [ -L {path} ] || {{ echo missing; exit 0; }}\n");
    let _ = writeln!(script, "stat -c '%a %U %G %u %g %F' -- {path}");
    match file.sha256 {
        Some(_) => {
            let _ = writeln!(script, "sha256sum <{path}");
        }
        None => script.push_str("echo -\n"),
    }
    if file.contains.is_some() {
        let _ = writeln!(script, "head -c 60000 <{path}");
    }
    script
}

fn sysctl_path(key: &str) -> String {
    // As sysctl.d(5): when the first separator is a slash, dots belong to the names.
    let slashes = key.find(['.', '/']).is_some_and(|at| key.as_bytes()[at] == b'/');
    let path = if slashes { key.to_owned() } else { key.replace('.', "/") };
    format!("/proc/sys/{path}")
}

/// Text as one word of a shell.
#[must_use]
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// One script that runs many, each with its limit; [`answers`] takes apart what it says.
#[must_use]
pub fn batch(scripts: &[(String, Duration)]) -> String {
    let mut text = format!(
        "dir=$(mktemp -d) && trap 'rm -rf \"$dir\"' EXIT || exit 1\n\
         ask() {{\n\
         timeout -k 2 \"$2\" sh -c \"$3\" >\"$dir/o\" 2>\"$dir/e\" </dev/null; status=$?\n\
         echo \"$1 $status $(head -c {BATCH_OUTPUT} \"$dir/o\" | base64 -w0)|$(head -c {BATCH_OUTPUT} \"$dir/e\" | base64 -w0)\"\n\
         }}\n"
    );
    for (number, (script, limit)) in scripts.iter().enumerate() {
        let _ = writeln!(text, "ask {number} {} {}", limit.as_secs().max(1), quoted(script));
    }
    text
}

/// What each of `count` scripts of a batch said; `None` for one that is missing or garbled.
#[must_use]
pub fn answers(stdout: &str, count: usize) -> Vec<Option<Answer>> {
    let mut answers = vec![None; count];
    for line in stdout.lines() {
        let mut words = line.split(' ');
        let (Some(number), Some(status), Some(streams), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            continue;
        };
        let parsed = (|| {
            let (number, status) = (number.parse::<usize>().ok()?, status.parse().ok()?);
            let (stdout, stderr) = streams_of(streams)?;
            Some((number, Answer { status, stdout, stderr }))
        })();
        if let Some((number, answer)) = parsed
            && let Some(place) = answers.get_mut(number)
        {
            *place = Some(answer);
        }
    }
    answers
}

fn streams_of(streams: &str) -> Option<(String, String)> {
    let (stdout, stderr) = streams.split_once('|')?;
    let text = |stream: &str| Some(String::from_utf8_lossy(&from_base64(stream)?).into_owned());
    Some((text(stdout)?, text(stderr)?))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn sh(script: &str) -> Answer {
        let output = Command::new("/bin/sh").args(["-c", script]).output().unwrap();
        Answer {
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    #[test]
    fn a_batch_answers_each_script() {
        let limit = Duration::from_secs(5);
        let scripts = ["echo one; echo two; exit 3", "echo 'it'\\''s' >&2", "sleep 9", "cat; printf 'a|b'"];
        let scripts: Vec<(String, Duration)> = scripts
            .iter()
            .map(|s| (s.to_string(), if *s == "sleep 9" { Duration::from_secs(1) } else { limit }))
            .collect();
        let said = sh(&batch(&scripts));
        let found = answers(&said.stdout, 5);
        let answer = |n: usize| found[n].clone().unwrap();
        assert_eq!((answer(0).status, answer(0).stdout.as_str()), (3, "one\ntwo\n"));
        assert_eq!((answer(1).status, answer(1).stderr.as_str()), (0, "it's\n"));
        assert_eq!(answer(2).status, 124);
        assert_eq!(answer(3).stdout, "a|b");
        assert_eq!(found[4], None);
    }

    #[test]
    fn garbage_is_no_answer() {
        for text in ["", "0", "0 0 x", "0 x YQ==|", "9 0 YQ==|", "0 0 ???|", "0 0 YQ==| more"] {
            assert_eq!(answers(text, 1), [None], "{text}");
        }
    }

    #[test]
    fn a_program_has_its_own_interpreter() {
        let check = Check::new("x", What::Script { text: "#!/bin/sh\necho \"$0\"; exit 7\n".into() });
        let said = sh(&check.script().unwrap());
        assert_eq!(said.status, 7);
        let file = said.stdout.trim();
        assert!(file.starts_with("/tmp/") && !std::path::Path::new(file).exists(), "{file}");
    }

    #[test]
    fn parameters_lie_below_proc_sys() {
        assert_eq!(sysctl_path("vm.swappiness"), "/proc/sys/vm/swappiness");
        assert_eq!(sysctl_path("net/ipv4/conf/eth0.1/rp_filter"), "/proc/sys/net/ipv4/conf/eth0.1/rp_filter");
    }
}
