//! `kiln internal vm-exec PARENT PROGRAM …`: the step between Kiln and QEMU that ties QEMU's life to Kiln's.
//!
//! A child survives a parent that is killed, unless the kernel is told otherwise (PR_SET_PDEATHSIG) by the child itself.
//! This part of Kiln tells it and then becomes QEMU; the setting outlives that exec.

use std::convert::Infallible;
use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::getppid;

/// The name under which `kiln internal` knows this part.
pub const PART: &str = "vm-exec";

/// Becomes the program in `args`: its parent's process id, the program, the program's arguments. Answers only when that
/// failed.
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
    let [parent, program, rest @ ..] = args else {
        return Err(io::Error::other("give a parent and a program"));
    };
    set_pdeathsig(Signal::SIGKILL)?;
    // Who died before the line above sends no signal any more.
    if parent.to_str() != Some(&getppid().to_string()) {
        return Err(io::Error::other("the parent has ended"));
    }
    Err(Command::new(program).args(rest).exec())
}
