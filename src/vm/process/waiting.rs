//! Waiting for what a machine says or does; whatever fails meanwhile is told.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{TICK, Vm};
use crate::host::interrupt;
use crate::vm::console::Line;
use crate::vm::failure::{BootFailure, DISK_FAILED, Ending, VmError, named};

/// A line with its number, counted from 1.
struct Numbered {
    number: usize,
    at: Duration,
    text: String,
}

impl Vm {
    /// Waits until `seen` is true of a line of the console, an unfinished one included, beginning behind the line that the
    /// last such wait found. `what` names it in errors.
    ///
    /// # Errors
    /// [`VmError`]: a line that tells a failed boot, the machine's end, `limit`, Ctrl-C.
    pub fn wait_for(
        &self,
        what: &str,
        limit: Duration,
        seen: impl Fn(&str) -> bool,
    ) -> Result<Line, VmError> {
        let begun = Instant::now();
        let mut next = *self.read_lines.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let (lines, ended) = self.new_lines(&mut next);
            for line in lines {
                if seen(&line.text) {
                    *self.read_lines.lock().unwrap_or_else(PoisonError::into_inner) = line.number;
                    return Ok(Line { at: line.at, text: line.text });
                }
                self.judge(&line)?;
            }
            self.rest(ended, what, begun, limit)?;
        }
    }

    /// The lines of the console behind number `next`, which moves on; the unfinished line comes last, every time.
    ///
    /// # Errors
    /// [`VmError`]: a line that tells a failed boot, the machine's end, Ctrl-C.
    pub fn news(&self, next: &mut usize, what: &str) -> Result<Vec<String>, VmError> {
        let (lines, ended) = self.new_lines(next);
        for line in &lines {
            self.judge(line)?;
        }
        self.vital(ended, what)?;
        Ok(lines.into_iter().map(|line| line.text).collect())
    }

    fn new_lines(&self, next: &mut usize) -> (Vec<Numbered>, Option<Ending>) {
        let state = self.shared.lock();
        let console = &state.console;
        let first = (*next).max(console.count() - console.since(0).count());
        let whole = console.since(first).zip(first.saturating_add(1)..);
        let mut lines: Vec<Numbered> =
            whole.map(|(line, number)| Numbered { number, at: line.at, text: line.text.clone() }).collect();
        *next = console.count();
        lines.push(Numbered { number: *next, at: self.age(), text: console.partial() });
        (lines, state.ending.clone())
    }

    fn judge(&self, line: &Numbered) -> Result<(), VmError> {
        match named(&line.text) {
            None => Ok(()),
            Some(failure) if self.survives.contains(&failure) => Ok(()),
            Some(failure) => {
                Err(VmError::Boot { failure, line: line.text.clone(), at: line.at, tail: self.tail() })
            }
        }
    }

    /// Waits until the machine ends by itself.
    ///
    /// # Errors
    /// [`VmError`]: `limit`, Ctrl-C, a pause.
    pub fn wait_for_end(&self, limit: Duration) -> Result<Ending, VmError> {
        let begun = Instant::now();
        loop {
            if let Some(ending) = self.ending() {
                return Ok(ending);
            }
            self.rest(None, "end of the machine", begun, limit)?;
        }
    }

    /// One round of waiting: fails when there is nothing left to wait for.
    fn rest(
        &self,
        ended: Option<Ending>,
        what: &str,
        begun: Instant,
        limit: Duration,
    ) -> Result<(), VmError> {
        self.vital(ended, what)?;
        if begun.elapsed() > limit {
            return Err(VmError::Timeout { what: what.to_owned(), limit, tail: self.tail() });
        }
        let state = self.shared.lock();
        drop(self.shared.changed.wait_timeout(state, TICK));
        Ok(())
    }

    /// Fails when the machine has ended or paused, or Kiln is to end.
    fn vital(&self, ended: Option<Ending>, what: &str) -> Result<(), VmError> {
        if let Some(ending) = ended {
            return Err(VmError::Ended { what: what.to_owned(), ending, tail: self.tail() });
        }
        let paused = self.shared.lock().paused;
        if paused {
            self.check_paused()?;
        }
        self.check_resets()?;
        Ok(interrupt::check()?)
    }

    /// One restart nobody asked for may be meant (a first boot that needs it); a second one is a loop. One before any kernel
    /// spoke is the boot loader's.
    fn check_resets(&self) -> Result<(), VmError> {
        let state = self.shared.lock();
        let unasked = &state.resets[state.expected_resets.min(state.resets.len())..];
        let (Some(last), count) = (unasked.last().copied(), unasked.len()) else { return Ok(()) };
        let began = state.resets.iter().rev().nth(1).map_or(0, |reset| reset.lines);
        let dropped = state.console.count() - state.console.since(0).count();
        let lines = last.lines.saturating_sub(began.max(dropped));
        let kernel = state.console.since(began).take(lines).any(|l| l.text.contains("Linux version"));
        drop(state);
        let failure = match count {
            _ if !kernel => BootFailure::LoaderReset,
            1 => return Ok(()),
            _ => BootFailure::RebootLoop,
        };
        let (tail, line) = (self.tail(), format!("the guest reset itself at {:.1} s", last.at.as_secs_f64()));
        Err(VmError::Boot { failure, line, at: last.at, tail })
    }

    /// A machine that paused unasked stays paused for ever. One on its way out is none of those.
    fn check_paused(&self) -> Result<(), VmError> {
        let Ok(answer) = self.execute("query-status", &Value::Null) else { return Ok(()) };
        let status = answer["status"].as_str().unwrap_or_default();
        match status {
            "internal-error" | DISK_FAILED => Err(VmError::Paused { status: status.to_owned() }),
            _ => {
                self.shared.lock().paused = false;
                Ok(())
            }
        }
    }
}
