//! Commands of QEMU's monitor, and their answers.

use std::io::{self, IoSlice, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::{Value, json};

use super::{TICK, Vm};
use crate::vm::failure::VmError;
use crate::vm::qmp;

/// Within this the monitor answers, busy host included.
const ANSWER: Duration = Duration::from_secs(30);

impl Vm {
    /// Runs a command of QEMU's monitor and answers what it returns; `arguments` may be null.
    ///
    /// # Errors
    /// [`VmError::Monitor`] when it is refused, or not answered.
    pub fn execute(&self, command: &str, arguments: &Value) -> Result<Value, VmError> {
        let id = self.send(command, arguments, None)?;
        self.answer(command, id)
    }

    /// Gives QEMU a file descriptor under `name`, for commands that take one.
    pub(in crate::vm) fn give(&self, name: &str, fd: BorrowedFd<'_>) -> Result<(), VmError> {
        let id = self.send("getfd", &json!({ "fdname": name }), Some(fd))?;
        self.answer("getfd", id).map(|_| ())
    }

    pub(super) fn send(
        &self,
        command: &str,
        arguments: &Value,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<u64, VmError> {
        let mut monitor = self.monitor.lock().unwrap_or_else(PoisonError::into_inner);
        monitor.1 += 1;
        let (stream, id) = (&monitor.0, monitor.1);
        let line = qmp::command(id, command, arguments);
        let sent = match fd {
            None => (&mut &*stream).write_all(&line),
            Some(fd) => {
                let fds = [fd.as_raw_fd()];
                let rights = [ControlMessage::ScmRights(&fds)];
                sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(&line)], &rights, MsgFlags::empty(), None)
                    .map(|_| ())
                    .map_err(io::Error::from)
            }
        };
        match sent {
            Ok(()) => Ok(id),
            // QEMU is gone: whoever waits next is told why.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(id),
            Err(e) => Err(VmError::Monitor { command: command.to_owned(), why: e.to_string() }),
        }
    }

    fn answer(&self, command: &str, id: u64) -> Result<Value, VmError> {
        let deadline = Instant::now() + ANSWER;
        let mut state = self.shared.lock();
        let wrong = |why: String| VmError::Monitor { command: command.to_owned(), why };
        loop {
            if let Some(reply) = state.replies.remove(&id) {
                return reply.map_err(wrong);
            }
            if let Some(ending) = &state.ending {
                return Err(wrong(ending.to_string()));
            }
            if Instant::now() > deadline {
                return Err(wrong(format!("no answer within {} s", ANSWER.as_secs())));
            }
            (state, _) =
                self.shared.changed.wait_timeout(state, TICK).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
