//! Evaluation in a child process: a profile that loops or grows ends by a limit, not the machine's memory.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, ExitStatus, Stdio};

use nix::sys::resource::{Resource, setrlimit};
use serde::{Deserialize, Serialize};

use crate::host::interrupt::Interrupted;

use super::{EvalRequest, Problem, ProfileError, Raw, nickel};

/// Most memory that an evaluation may map, in bytes.
const MAX_MEMORY: u64 = 2 << 30;
/// Most processor time that an evaluation may use, in seconds.
const MAX_CPU: u64 = 60;

/// What the child answers.
#[derive(Serialize, Deserialize)]
enum Answer {
    Done(Raw),
    Unreadable { path: std::path::PathBuf, reason: String },
    Set { set: String, reason: String },
    Nickel(String),
    Invalid { problems: Vec<Problem>, shown: String },
    Limit(String),
    Internal(String),
}

/// Runs the child's side when `args` (what follows `kiln internal`) begin with `eval`.
#[must_use]
pub fn child_main(args: &[OsString]) -> Option<ExitCode> {
    if args.first().is_none_or(|a| a != "eval") {
        return None;
    }
    match serve() {
        Ok(()) => Some(ExitCode::SUCCESS),
        Err(e) => {
            eprintln!("kiln internal eval: {e}");
            Some(ExitCode::FAILURE)
        }
    }
}

fn serve() -> io::Result<()> {
    let mut request = String::new();
    io::stdin().lock().read_to_string(&mut request)?;
    let request: EvalRequest = serde_json::from_str(&request)?;
    limit()?;
    let answer = match nickel::evaluate_on_big_stack(&request) {
        Ok(raw) => Answer::Done(raw),
        Err(ProfileError::Unreadable { path, reason }) => Answer::Unreadable { path, reason },
        Err(ProfileError::Set { set, reason }) => Answer::Set { set, reason },
        Err(ProfileError::Nickel(text)) => Answer::Nickel(text),
        Err(ProfileError::Invalid { problems, shown }) => Answer::Invalid { problems, shown },
        Err(ProfileError::Limit(text)) => Answer::Limit(text),
        Err(ProfileError::Internal(text)) => Answer::Internal(text),
        Err(other) => Answer::Internal(other.to_string()),
    };
    let answer = serde_json::to_vec(&answer)?;
    io::stdout().lock().write_all(&answer)
}

fn limit() -> io::Result<()> {
    setrlimit(Resource::RLIMIT_AS, MAX_MEMORY, MAX_MEMORY)?;
    // The soft limit's signal tells why; at the hard one the kernel just kills.
    setrlimit(Resource::RLIMIT_CPU, MAX_CPU, MAX_CPU + 1)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    // Children are of no use to an evaluation, nor is writing files.
    setrlimit(Resource::RLIMIT_FSIZE, 0, 0)?;
    Ok(nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?)
}

/// The parent's side.
pub(super) fn evaluate(request: &EvalRequest) -> Result<Raw, ProfileError> {
    named_in_utf8(request)?;
    let internal = |what: &str, e: &dyn std::error::Error| ProfileError::Internal(format!("{what}: {e}"));
    let mut child = Command::new("/proc/self/exe")
        .args(["internal", "eval"])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| internal("can't start the evaluator", &e))?;
    let request = serde_json::to_vec(request).map_err(|e| internal("the request", &e))?;
    if let Some(mut stdin) = child.stdin.take() {
        // The child reads all of it before it answers, so that this can't block; when it died, its status tells more.
        let _ = stdin.write_all(&request);
    }
    let output = child.wait_with_output().map_err(|e| internal("can't wait for the evaluator", &e))?;
    if !output.status.success() {
        return Err(died(output.status, &String::from_utf8_lossy(&output.stderr)));
    }
    match serde_json::from_slice(&output.stdout).map_err(|e| internal("the evaluator's answer", &e))? {
        Answer::Done(raw) => Ok(raw),
        Answer::Unreadable { path, reason } => Err(ProfileError::Unreadable { path, reason }),
        Answer::Set { set, reason } => Err(ProfileError::Set { set, reason }),
        Answer::Nickel(text) => Err(ProfileError::Nickel(text)),
        Answer::Invalid { problems, shown } => Err(ProfileError::Invalid { problems, shown }),
        Answer::Limit(text) => Err(ProfileError::Limit(text)),
        Answer::Internal(text) => Err(ProfileError::Internal(text)),
    }
}

/// Nickel, JSON and the lock, all of which name files, are text.
fn named_in_utf8(request: &EvalRequest) -> Result<(), ProfileError> {
    let mut named = std::iter::once(&request.profile).chain(&request.roots);
    named.find(|path| path.to_str().is_none()).map_or(Ok(()), |path| {
        Err(ProfileError::Unreadable { path: path.clone(), reason: "its path isn't UTF-8".to_owned() })
    })
}

/// What usually makes evaluation go over its limits.
const ENDLESS: &str = "a function or field that refers to itself without end is the usual reason";

/// The profile went over its limit of memory.
pub(super) fn too_much_memory() -> ProfileError {
    let limit = crate::units::Bytes(MAX_MEMORY);
    ProfileError::Limit(format!("the profile needs more than {limit} of memory to evaluate: {ENDLESS}"))
}

/// What a child that gave no answer died of.
fn died(status: ExitStatus, stderr: &str) -> ProfileError {
    if stderr.contains("memory allocation") {
        return too_much_memory();
    }
    let endless = ENDLESS;
    if stderr.contains("overflowed its stack") {
        return ProfileError::Limit(format!("the profile is nested too deeply to evaluate: {endless}"));
    }
    match status.signal() {
        Some(nix::libc::SIGXCPU) => {
            ProfileError::Limit(format!("the profile takes more than {MAX_CPU} s to evaluate: {endless}"))
        }
        Some(nix::libc::SIGINT | nix::libc::SIGTERM) => ProfileError::Interrupted(Interrupted),
        _ => {
            let last = stderr.trim().lines().last().unwrap_or("it said nothing");
            ProfileError::Internal(format!("the evaluator ended with {status}: {last}"))
        }
    }
}
