//! The part of a machine that its thread has: reads what QEMU and the guest say until QEMU has ended.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Shared, TICK, Tap};
use crate::vm::failure::Ending;
use crate::vm::qmp;

/// How much of QEMU's standard error is kept.
const STDERR_LIMIT: usize = 64 << 10;

/// A restart of the guest by itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reset {
    pub(super) at: Duration,
    /// How many lines the console had.
    pub(super) lines: usize,
}

impl Reset {
    /// A restart may reset the machine twice: SeaBIOS, when it finds itself in memory still, resets it once more before it
    /// says a word. No boot loader comes that far as quickly.
    fn is_one_with(self, next: Reset) -> bool {
        const TWICE: Duration = Duration::from_secs(4);
        self.lines == next.lines && next.at.saturating_sub(self.at) < TWICE
    }
}

/// The part of a machine that its thread has.
pub(super) struct Reader {
    pub(super) monitor: Option<UnixStream>,
    pub(super) serial: Option<UnixStream>,
    pub(super) shared: Arc<Shared>,
    pub(super) started: Instant,
    pub(super) tap: Option<Tap>,
    pub(super) unfinished: Vec<u8>,
}

impl Reader {
    /// Reads until QEMU has ended and nothing is left to read.
    pub(super) fn read(mut self, mut child: Child) {
        let mut stderr = child.stderr.take();
        loop {
            let [monitor, serial, errors] = ready([
                self.monitor.as_ref().map(AsFd::as_fd),
                self.serial.as_ref().map(AsFd::as_fd),
                stderr.as_ref().map(AsFd::as_fd),
            ]);
            let mut buffer = [0; 16 << 10];
            if let Some(bytes) = part(&mut self.serial, serial, &mut buffer) {
                if let Some(tap) = &mut self.tap {
                    tap(bytes);
                }
                let mut state = self.shared.lock();
                state.console.feed(bytes, self.started.elapsed());
                state.pulse.spoke();
            }
            if let Some(bytes) = part(&mut self.monitor, monitor, &mut buffer) {
                self.unfinished.extend_from_slice(bytes);
                self.messages();
            }
            if let Some(bytes) = part(&mut stderr, errors, &mut buffer) {
                let mut state = self.shared.lock();
                let room = STDERR_LIMIT.saturating_sub(state.stderr.len());
                state.stderr.extend_from_slice(&bytes[..bytes.len().min(room)]);
            }
            if !(monitor || serial || errors) && self.ended(&mut child) {
                return;
            }
            self.shared.lock().pulse.look(child.id(), self.started.elapsed());
            self.shared.changed.notify_all();
        }
    }

    fn messages(&mut self) {
        let mut state = self.shared.lock();
        while let Some(end) = self.unfinished.iter().position(|&b| b == b'\n') {
            let line: Vec<u8> = self.unfinished.drain(..=end).collect();
            match qmp::parse(&line) {
                qmp::Message::Reply { id, result } => {
                    state.replies.insert(id, result);
                }
                qmp::Message::Event { name, data } => match name.as_str() {
                    "SHUTDOWN" => state.reason = data["reason"].as_str().map(str::to_owned),
                    "STOP" => state.paused = true,
                    "RESUME" => state.paused = false,
                    "RESET" if data["guest"].as_bool() == Some(true) => {
                        let reset = Reset { at: self.started.elapsed(), lines: state.console.count() };
                        if !state.resets.last().is_some_and(|last| last.is_one_with(reset)) {
                            state.resets.push(reset);
                        }
                    }
                    _ => {}
                },
                qmp::Message::Other => {}
            }
        }
    }

    fn ended(&self, child: &mut Child) -> bool {
        let mut state = self.shared.lock();
        let status = match child.try_wait() {
            Ok(None) => return false,
            Ok(Some(status)) => status.to_string(),
            Err(e) => e.to_string(),
        };
        let stderr = String::from_utf8_lossy(&state.stderr).into_owned();
        state.ending = Some(Ending { status, reason: state.reason.take(), stderr });
        drop(state);
        self.shared.changed.notify_all();
        true
    }
}

/// Which of the descriptors can be read from, within one tick.
fn ready<const N: usize>(fds: [Option<BorrowedFd<'_>>; N]) -> [bool; N] {
    let mut polled: Vec<PollFd<'_>> =
        fds.iter().flatten().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    let timeout = PollTimeout::try_from(TICK).unwrap_or(PollTimeout::ZERO);
    if polled.is_empty() {
        std::thread::sleep(TICK);
    } else if poll(&mut polled, timeout).is_err() {
        return [false; N];
    }
    let mut answers = polled.iter().map(|fd| fd.any().unwrap_or(false));
    fds.map(|fd| fd.is_some() && answers.next().unwrap_or(false))
}

/// Reads what is there; a stream that has ended is closed.
fn part<'b>(stream: &mut Option<impl Read>, ready: bool, buffer: &'b mut [u8]) -> Option<&'b [u8]> {
    let read = match stream {
        Some(stream) if ready => stream.read(buffer),
        _ => return None,
    };
    match read {
        Ok(n) if n > 0 => Some(&buffer[..n]),
        Err(e) if e.kind() == io::ErrorKind::Interrupted => None,
        _ => {
            *stream = None;
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_that_resets_twice_is_one() {
        let reset = |seconds, lines| Reset { at: Duration::from_secs(seconds), lines };
        assert!(reset(100, 7).is_one_with(reset(101, 7)));
        assert!(!reset(100, 7).is_one_with(reset(101, 8)), "something was said between them");
        assert!(!reset(100, 7).is_one_with(reset(114, 7)), "a boot loader had its time");
    }
}
