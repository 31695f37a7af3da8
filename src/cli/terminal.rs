//! A guest's console on the user's terminal.

use std::io::IsTerminal;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use crate::vm::failure::Ending;
use crate::vm::{Vm, VmError};

/// Ctrl-]: the key that leaves the console.
const LEAVE: u8 = 0x1d;
const TICK: Duration = Duration::from_millis(100);

/// Why the console was left.
pub(super) enum Leave {
    /// The machine ended.
    Ended(Ending),
    /// The user pressed the key.
    Asked,
}

/// Whether standard input is a terminal.
pub(super) fn is_one() -> bool {
    std::io::stdin().is_terminal()
}

/// A terminal that passes every key on as it is, until dropped.
struct Raw<'a> {
    terminal: BorrowedFd<'a>,
    before: Termios,
}

impl<'a> Raw<'a> {
    fn new(terminal: BorrowedFd<'a>) -> nix::Result<Raw<'a>> {
        let before = tcgetattr(terminal)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(terminal, SetArg::TCSANOW, &raw)?;
        Ok(Raw { terminal, before })
    }
}

impl Drop for Raw<'_> {
    fn drop(&mut self) {
        let _ = tcsetattr(self.terminal, SetArg::TCSANOW, &self.before);
    }
}

/// Passes keys to the guest until it ends or the user leaves. Its console is shown by the machine's tap.
///
/// # Errors
/// [`VmError`]: Ctrl-C while standard input is no terminal, a machine that QEMU paused.
pub(super) fn attend(vm: &Vm) -> Result<Leave, VmError> {
    let stdin = std::io::stdin();
    let _raw = match is_one() {
        true => Some(Raw::new(stdin.as_fd()).map_err(|e| VmError::Start(e.into()))?),
        false => None,
    };
    let mut open = true;
    loop {
        match vm.wait_for_end(Duration::ZERO) {
            Ok(ending) => return Ok(Leave::Ended(ending)),
            Err(VmError::Timeout { .. }) => {}
            Err(e) => return Err(e),
        }
        if !open {
            std::thread::sleep(TICK);
            continue;
        }
        let Some(keys) = keys(stdin.as_fd())? else { continue };
        open = !keys.is_empty();
        let (typed, leave) = until_leave(&keys);
        // A machine that has just ended is told of at the next turn.
        let _ = vm.type_in(typed);
        if leave && is_one() {
            return Ok(Leave::Asked);
        }
    }
}

/// What was typed within one tick; empty at the end of the input.
fn keys(stdin: BorrowedFd<'_>) -> Result<Option<Vec<u8>>, VmError> {
    let mut polled = [PollFd::new(stdin, PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(TICK).unwrap_or(PollTimeout::ZERO);
    if !matches!(poll(&mut polled, timeout), Ok(1..)) {
        return Ok(None);
    }
    let mut buffer = [0; 1024];
    match nix::unistd::read(stdin, &mut buffer) {
        Ok(n) => Ok(Some(buffer[..n].to_vec())),
        Err(nix::errno::Errno::EINTR) => Ok(None),
        Err(e) => Err(VmError::Start(e.into())),
    }
}

fn until_leave(keys: &[u8]) -> (&[u8], bool) {
    match keys.iter().position(|&k| k == LEAVE) {
        Some(at) => (&keys[..at], true),
        None => (keys, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_before_the_leaving_one_are_typed() {
        assert_eq!(until_leave(b"poweroff\n"), (&b"poweroff\n"[..], false));
        assert_eq!(until_leave(b"ab\x1dcd"), (&b"ab"[..], true));
    }
}
