//! Codes of MFA devices: given on the command line or in the environment, printed by a command, or typed on the terminal.
//! No code is used twice, since AWS would refuse it.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::Mutex;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::environment::{Environment, Secret};
use super::process;
use crate::aws::AwsError;
use crate::aws::error::{Call, Kind};
use crate::host::interrupt;

/// How often one is asked on the terminal before it counts as failed.
pub const PROMPTS: u32 = 3;

/// Where codes come from.
#[derive(Debug, Default)]
pub struct Mfa {
    code: Option<Secret>,
    command: Option<String>,
    terminal: bool,
    used: Mutex<Vec<Secret>>,
    #[cfg(test)]
    typed: Mutex<Vec<String>>,
}

impl Mfa {
    /// `code` is the command line's; the environment may have KILN_MFA_CODE or KILN_MFA_COMMAND.
    #[must_use]
    pub fn new(code: Option<String>, environment: &Environment) -> Mfa {
        let code = code.or_else(|| environment.get("KILN_MFA_CODE").map(str::to_owned));
        Mfa {
            code: code.map(Secret::new),
            command: environment.get("KILN_MFA_COMMAND").map(str::to_owned),
            terminal: true,
            ..Mfa::default()
        }
    }

    /// One that a test types.
    #[cfg(test)]
    pub fn of_script(code: Option<&str>, typed: &[&str]) -> Mfa {
        let typed = Mutex::new(typed.iter().rev().map(|&t| t.to_owned()).collect());
        Mfa { code: code.map(Secret::new), typed, ..Mfa::default() }
    }

    /// Whether another code can be had after a wrong one.
    #[must_use]
    pub fn asks_a_person(&self) -> bool {
        self.code.is_none() && self.command.is_none()
    }

    /// A fresh code of the device `serial`, for `profile`.
    ///
    /// # Errors
    /// When there is no way to get one, or it was used already.
    pub fn code(&self, serial: &str, profile: &str) -> Result<Secret, AwsError> {
        let code = match (&self.code, &self.command) {
            (Some(code), _) => digits(code.reveal()).ok_or_else(|| wrong("an MFA code has 6 digits"))?,
            (None, Some(command)) => of_command(command, serial)?,
            (None, None) => self.typed(serial, profile)?,
        };
        let mut used = self.used.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if used.contains(&code) {
            return Err(wrong(format!(
                "the MFA code for {serial} was used already, and AWS takes each only once: wait for the next one"
            )));
        }
        used.push(code.clone());
        Ok(code)
    }

    /// Tells who types codes that the last one was wrong.
    pub fn complain(&self, text: &str) {
        if let Some(mut terminal) = self.terminal.then(Terminal::open).flatten() {
            terminal.say(&format!("{text}\n"));
        }
    }

    fn typed(&self, serial: &str, profile: &str) -> Result<Secret, AwsError> {
        #[cfg(test)]
        if let Some(typed) = self.typed.lock().unwrap().pop() {
            return digits(&typed).ok_or_else(|| wrong("no code"));
        }
        let terminal = if self.terminal { Terminal::open() } else { None };
        let Some(mut terminal) = terminal else {
            return Err(wrong(format!(
                "profile `{profile}` asks for a code of the MFA device {serial}, and there is no terminal to type it on: give \
                 --mfa-code, or set KILN_MFA_CODE, or KILN_MFA_COMMAND to a command that prints it"
            )));
        };
        for _ in 0..PROMPTS {
            let line = terminal.ask(&format!("MFA code for {serial} (profile `{profile}`): "))?;
            match digits(&line) {
                Some(code) => return Ok(code),
                None => terminal.say("an MFA code has 6 digits\n"),
            }
        }
        Err(wrong(format!("no MFA code for {serial} was typed")))
    }
}

fn wrong(message: impl Into<String>) -> AwsError {
    Call::new("sts", "", "").error(Kind::Mfa, message)
}

/// The code in what was typed or printed: six digits; blanks between them don't matter, words before them neither.
fn digits(text: &str) -> Option<Secret> {
    let bare: String = text.split_whitespace().collect();
    let tail = bare.len().checked_sub(6).and_then(|start| bare.get(start..))?;
    let rest = &bare[..bare.len() - 6];
    let whole = tail.bytes().all(|b| b.is_ascii_digit()) && !rest.ends_with(|c: char| c.is_ascii_digit());
    whole.then(|| Secret::new(tail))
}

fn of_command(line: &str, serial: &str) -> Result<Secret, AwsError> {
    let told = |what: String| wrong(format!("KILN_MFA_COMMAND: {what}"));
    let mut command = Command::new("sh");
    command.arg("-c").arg(line).env("KILN_MFA_SERIAL", serial);
    let printed = process::output(&mut command).map_err(|error| error.of(&told, "sh"))?;
    let printed = String::from_utf8_lossy(&printed);
    let first = printed.lines().map(str::trim).find(|l| !l.is_empty()).unwrap_or_default();
    digits(first).ok_or_else(|| told("it printed no code of 6 digits".to_owned()))
}

/// The terminal of this process, whatever its standard streams are.
struct Terminal {
    file: File,
}

impl Terminal {
    /// None where there is no terminal, or this process works in its background.
    fn open() -> Option<Terminal> {
        let file = OpenOptions::new().read(true).write(true).open("/dev/tty").ok()?;
        let ours = nix::unistd::tcgetpgrp(file.as_fd()).ok()? == nix::unistd::getpgrp();
        ours.then_some(Terminal { file })
    }

    fn say(&mut self, text: &str) {
        let _ = self.file.write_all(text.as_bytes());
    }

    /// A line that is typed. Looks out for Ctrl-C meanwhile.
    fn ask(&mut self, question: &str) -> Result<String, AwsError> {
        let failed = |error: std::io::Error| wrong(format!("can't read from the terminal: {error}"));
        self.say(question);
        let mut line = Vec::new();
        let mut byte = [0_u8];
        loop {
            interrupt::check()?;
            let mut wait = [PollFd::new(self.file.as_fd(), PollFlags::POLLIN)];
            match poll(&mut wait, PollTimeout::from(100_u16)) {
                Ok(0) | Err(nix::errno::Errno::EINTR) => continue,
                Ok(_) => {}
                Err(error) => return Err(failed(error.into())),
            }
            match self.file.read(&mut byte) {
                Ok(0) => return Err(wrong("the terminal was closed before a code was typed")),
                Ok(_) if byte[0] == b'\n' => return Ok(String::from_utf8_lossy(&line).into_owned()),
                Ok(_) if line.len() < 200 => line.push(byte[0]),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn with(variables: &[(&str, &str)], code: Option<&str>) -> Mfa {
        let environment = Environment::new(Path::new("/none"), variables);
        Mfa { terminal: false, ..Mfa::new(code.map(str::to_owned), &environment) }
    }

    #[test]
    fn codes_come_from_where_they_are_given() {
        let set = [("KILN_MFA_CODE", "222222"), ("KILN_MFA_COMMAND", "echo 333333")];
        assert_eq!(with(&set, Some("111 111")).code("s", "p").unwrap().reveal(), "111111");
        assert_eq!(with(&set, None).code("s", "p").unwrap().reveal(), "222222");
        let command = [("KILN_MFA_COMMAND", "echo; echo \"$KILN_MFA_SERIAL  333333\"")];
        assert_eq!(with(&command, None).code("arn:x", "p").unwrap().reveal(), "333333");
    }

    #[test]
    fn a_code_is_used_once() {
        let mfa = with(&[], Some("111111"));
        mfa.code("s", "p").unwrap();
        let error = mfa.code("s", "p").unwrap_err();
        assert_eq!(error.kind, Kind::Mfa);
        assert!(error.message.contains("used already") && !error.message.contains("111111"));
    }

    #[test]
    fn without_any_way_it_fails_at_once_and_says_so() {
        let error = with(&[], None).code("arn:aws:iam::1:mfa/me", "work").unwrap_err().to_string();
        for told in
            ["profile `work`", "arn:aws:iam::1:mfa/me", "--mfa-code", "KILN_MFA_CODE", "KILN_MFA_COMMAND"]
        {
            assert!(error.contains(told), "{error}");
        }
    }

    #[test]
    fn what_is_no_code_is_told() {
        for (text, code) in [
            ("123456", Some("123456")),
            (" 123 456\r", Some("123456")),
            ("aws:me  123456", Some("123456")),
            ("1234567", None),
            ("12345", None),
            ("", None),
            ("é", None),
            ("12345x", None),
        ] {
            assert_eq!(digits(text).as_ref().map(Secret::reveal), code, "{text}");
        }
        let error = with(&[("KILN_MFA_COMMAND", "echo hush")], None).code("s", "p").unwrap_err().to_string();
        assert_eq!(error, "KILN_MFA_COMMAND: it printed no code of 6 digits");
        let error = with(&[("KILN_MFA_COMMAND", "exit 7")], None).code("s", "p").unwrap_err().to_string();
        assert_eq!(error, "KILN_MFA_COMMAND: `sh` failed (exit status: 7)");
    }
}
