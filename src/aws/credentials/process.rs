//! Programs that print credentials or codes: `credential_process`, KILN_MFA_COMMAND.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Duration;

use aws_credential_types::Credentials;
use serde_json::Value;

use super::cache;
use crate::aws::AwsError;
use crate::host::interrupt;

/// No program has more to say than this.
const MOST: u64 = 1 << 20;

/// What `credential_process` of `profile` answers.
///
/// # Errors
/// When it can't be started, fails, or answers something else.
pub fn credentials(command: &str, profile: &str) -> Result<Credentials, AwsError> {
    let wrong =
        |what: String| AwsError::credentials(format!("credential_process of profile `{profile}`: {what}"));
    let words = words(command).ok_or_else(|| wrong("a quote is not closed".to_owned()))?;
    let (program, arguments) = words.split_first().ok_or_else(|| wrong("it is empty".to_owned()))?;
    let mut command = Command::new(program);
    command.args(arguments);
    let answer = output(&mut command).map_err(|error| error.of(&wrong, program))?;
    read_answer(&answer).map_err(|what| wrong(format!("`{program}` {what}")))
}

/// Reads what a `credential_process` prints. Never shows it: there are secrets in it.
fn read_answer(answer: &[u8]) -> Result<Credentials, String> {
    let value: Value =
        serde_json::from_slice(answer).map_err(|_| "printed something that is no JSON".to_owned())?;
    if value["Version"] != 1 {
        return Err(format!("printed Version {}, 1 is meant", value["Version"]));
    }
    let need = |name: &str| value[name].as_str().ok_or_else(|| format!("printed no {name}"));
    let ends = match value["Expiration"].as_str() {
        None => None,
        Some(text) => Some(cache::time(text).ok_or_else(|| format!("printed the Expiration `{text}`"))?),
    };
    let token = value["SessionToken"].as_str().map(str::to_owned);
    Ok(Credentials::new(need("AccessKeyId")?, need("SecretAccessKey")?, token, ends, "Process"))
}

/// Why a program gave no answer.
pub enum Wrong {
    /// It can't be started or read.
    Io(std::io::Error),
    /// It ended like this.
    Status(std::process::ExitStatus),
    /// The user asked to stop.
    Interrupted(interrupt::Interrupted),
}

impl Wrong {
    /// As an error that `wrong` makes of a text.
    pub fn of(self, wrong: &dyn Fn(String) -> AwsError, program: &str) -> AwsError {
        match self {
            Wrong::Io(error) => wrong(format!("can't run `{program}`: {error}")),
            Wrong::Status(status) => wrong(format!("`{program}` failed ({status})")),
            Wrong::Interrupted(interrupted) => interrupted.into(),
        }
    }
}

/// Runs a program and answers what it prints. It may talk to the user meanwhile: standard input and error are the
/// terminal's. It may take its time too, but not after Ctrl-C.
///
/// # Errors
/// When it can't be started, fails, or the user asks to stop.
pub fn output(command: &mut Command) -> Result<Vec<u8>, Wrong> {
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(Wrong::Io)?;
    let pipe = child.stdout.take();
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        pipe.map(|pipe| pipe.take(MOST).read_to_end(&mut text)).transpose().map(|_| text)
    });
    let status = loop {
        match child.try_wait().map_err(Wrong::Io)? {
            Some(status) => break status,
            None => std::thread::sleep(Duration::from_millis(10)),
        }
        if let Err(interrupted) = interrupt::check() {
            let _ = child.kill();
            let _ = child.wait();
            return Err(Wrong::Interrupted(interrupted));
        }
    };
    let text = reader.join().unwrap_or_else(|_| Ok(Vec::new())).map_err(Wrong::Io)?;
    if status.success() { Ok(text) } else { Err(Wrong::Status(status)) }
}

/// A command line's words as a POSIX shell splits them, without any expansion; `None` when a quote stays open.
fn words(line: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\n' | '\r' => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next()? {
                        '\'' => break,
                        c => word.push(c),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next()? {
                        '"' => break,
                        '\\' => match chars.next()? {
                            c @ ('"' | '\\') => word.push(c),
                            c => word.extend(['\\', c]),
                        },
                        c => word.push(c),
                    }
                }
            }
            '\\' => word.get_or_insert_default().push(chars.next()?),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines_split_as_in_a_shell() {
        for (line, expected) in [
            ("a  b", Some(vec!["a", "b"])),
            (r#""/opt/my tool" 'x y' --z="1 2""#, Some(vec!["/opt/my tool", "x y", "--z=1 2"])),
            (r#"a\ b "c\"d\n" '' "#, Some(vec!["a b", r#"c"d\n"#, ""])),
            ("", Some(vec![])),
            ("'a", None),
            ("\"a\\", None),
            ("a\\", None),
        ] {
            let found = words(line);
            assert_eq!(found.as_ref().map(|w| w.iter().map(String::as_str).collect()), expected, "{line}");
        }
    }

    #[test]
    fn a_program_answers() {
        let line = r#"sh -c 'echo "{\"Version\":1,\"AccessKeyId\":\"AK\",\"SecretAccessKey\":\"hush\",\"Expiration\":\"2026-11-22T10:00:00Z\"}"'"#;
        let found = credentials(line, "p").unwrap();
        assert_eq!((found.access_key_id(), found.secret_access_key()), ("AK", "hush"));
        assert_eq!(found.expiry(), cache::time("2026-11-22T10:00:00+00:00"));
    }

    #[test]
    fn wrong_answers_are_told_without_secrets() {
        for (script, told) in [
            ("echo hush", "printed something that is no JSON"),
            (r#"echo "{\"Version\":2,\"SecretAccessKey\":\"hush\"}""#, "printed Version 2"),
            (r#"echo "{\"Version\":1,\"SecretAccessKey\":\"hush\"}""#, "printed no AccessKeyId"),
            ("echo hush; exit 3", "failed (exit status: 3)"),
        ] {
            let error = credentials(&format!("sh -c '{script}'"), "p").unwrap_err().to_string();
            assert!(
                error.contains(told) && error.contains("profile `p`") && !error.contains("hush"),
                "{error}"
            );
        }
        assert!(credentials("/none/such", "p").unwrap_err().to_string().contains("can't run `/none/such`"));
    }
}
