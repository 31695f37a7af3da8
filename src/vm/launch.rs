//! `kiln internal vm-exec PARENT NAMESPACES PROGRAM …`: the step between Kiln and a program that belongs to a machine. It
//! ties the program's life to Kiln's, and takes it into the machine's own network.
//!
//! A child survives a parent that is killed, unless the kernel is told otherwise (PR_SET_PDEATHSIG) by the child itself.
//! This part of Kiln tells it and then becomes the program; the setting outlives that exec. Namespaces are joined here
//! as well, because a process with several threads, as Kiln is, can't join a user namespace.

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::getppid;

/// The name under which `kiln internal` knows this part.
pub const PART: &str = "vm-exec";

/// Stands for no namespaces.
const NONE: &str = "-";

/// The beginning of a command that runs a program with its life tied to the thread that spawns it. `namespaces` are file
/// descriptors of this process, in the order in which they are joined.
pub(super) fn command(kiln: Option<&Path>, namespaces: &[i32]) -> Command {
    let mut command = part(kiln, PART);
    let numbers: Vec<String> = namespaces.iter().map(ToString::to_string).collect();
    command.arg(if numbers.is_empty() { NONE.to_owned() } else { numbers.join(",") });
    command
}

/// The beginning of a command that runs a part of Kiln, with the parent's process id as its first argument.
pub(super) fn part(kiln: Option<&Path>, part: &str) -> Command {
    // Not current_exe(): a program that was replaced while it ran has a path that no longer leads to it.
    let mut command = Command::new(kiln.unwrap_or(Path::new("/proc/self/exe")));
    command.args(["internal", part, &std::process::id().to_string()]).env_clear();
    // Ctrl-C on the terminal is for Kiln, which then ends the machine in its own way.
    command.process_group(0);
    command
}

/// Becomes the program in `args`: its parent's process id, namespaces, the program, the program's arguments. Answers only
/// when that failed.
#[must_use]
pub fn main(args: &[OsString]) -> ExitCode {
    match replace(args) {
        Ok(never) => match never {},
        Err(e) => {
            eprintln!("kiln internal {PART}: {e}");
            ExitCode::from(126)
        }
    }
}

fn replace(args: &[OsString]) -> io::Result<Infallible> {
    let [parent, namespaces, program, rest @ ..] = args else {
        return Err(io::Error::other("give a parent, namespaces and a program"));
    };
    join(parent, namespaces)?;
    tie(parent)?;
    Err(Command::new(program).args(rest).exec())
}

/// Joins namespaces that the parent holds open. All are opened before the first is joined: from inside, the parent's may be
/// out of reach.
fn join(parent: &OsStr, namespaces: &OsStr) -> io::Result<()> {
    let (parent, namespaces) = (parent.to_string_lossy(), namespaces.to_string_lossy());
    let numbers = namespaces.split(',').filter(|&number| number != NONE);
    let files: Result<Vec<File>, _> =
        numbers.map(|number| File::open(format!("/proc/{parent}/fd/{number}"))).collect();
    for file in files? {
        setns(file, CloneFlags::empty())?;
    }
    Ok(())
}

/// Dies when the parent does, also when that has already happened. A change of rights, as joining a user namespace is one,
/// makes the kernel forget the signal: this comes after it.
pub(super) fn tie(parent: &OsStr) -> io::Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    // Who died before the line above sends no signal any more.
    if parent.to_str() != Some(&getppid().to_string()) {
        return Err(io::Error::other("the parent has ended"));
    }
    Ok(())
}
