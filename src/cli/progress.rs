//! How far long work is: bars on a terminal, plain lines elsewhere, nothing when quiet.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::report::tell;
use crate::units::Bytes;

/// Where progress is shown. All of it goes to standard error.
pub struct Progress {
    mode: Mode,
}

enum Mode {
    Silent,
    Lines,
    Bars { bars: MultiProgress, color: bool },
}

/// Between two plain lines of the same task.
const LINE_EVERY: Duration = Duration::from_secs(5);

impl Progress {
    /// Shows nothing.
    #[must_use]
    pub fn silent() -> Progress {
        Progress { mode: Mode::Silent }
    }

    /// Plain lines, for logs.
    #[must_use]
    pub fn lines() -> Progress {
        Progress { mode: Mode::Lines }
    }

    /// Bars, for terminals.
    #[must_use]
    pub fn bars(color: bool) -> Progress {
        Progress { mode: Mode::Bars { bars: MultiProgress::new(), color } }
    }

    /// Says one thing in passing, as `  lock  183 packages`.
    pub fn say(&self, what: &str, text: &str) {
        match &self.mode {
            Mode::Silent => {}
            Mode::Lines => line(what, text),
            Mode::Bars { bars, color } => {
                let line = if *color {
                    format!("\x1b[1;32m{what:>10}\x1b[0m  {text}")
                } else {
                    format!("{what:>10}  {text}")
                };
                // A terminal that went away is no reason to fail.
                let _ = bars.println(line);
            }
        }
    }

    /// Begins a task of `total` bytes; one of unknown length when zero.
    #[must_use]
    pub fn task(&self, what: &str, text: &str, total: u64) -> Task {
        let bar = match &self.mode {
            Mode::Silent => None,
            Mode::Lines => {
                line(what, text);
                None
            }
            Mode::Bars { bars, .. } => {
                let bar =
                    bars.add(if total == 0 { ProgressBar::new_spinner() } else { ProgressBar::new(total) });
                bar.set_style(style(total));
                bar.set_prefix(what.to_owned());
                bar.set_message(text.to_owned());
                bar.enable_steady_tick(Duration::from_millis(120));
                Some(bar)
            }
        };
        let lines = matches!(self.mode, Mode::Lines);
        Task { what: what.to_owned(), total, bar, lines, last: Mutex::new(Instant::now()) }
    }

    /// Takes all bars off the terminal, before something else is written there.
    pub fn clear(&self) {
        if let Mode::Bars { bars, .. } = &self.mode {
            let _ = bars.clear();
        }
    }
}

/// A plain line.
fn line(what: &str, text: &str) {
    tell(format_args!("{what:>10}  {}", text.trim_end()));
}

fn style(total: u64) -> ProgressStyle {
    let template = if total == 0 {
        "{prefix:>10}  {spinner} {wide_msg} {elapsed}"
    } else {
        "{prefix:>10}  [{bar:28}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}  {wide_msg}"
    };
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

/// A task under way. Dropping it takes its bar away.
pub struct Task {
    what: String,
    total: u64,
    bar: Option<ProgressBar>,
    lines: bool,
    last: Mutex<Instant>,
}

impl Task {
    /// Says that `done` bytes of the total are done, and what is at hand.
    pub fn at(&self, done: u64, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            if !text.is_empty() {
                bar.set_message(text.to_owned());
            }
        } else if self.lines {
            self.line(done, text);
        }
    }

    fn line(&self, done: u64, text: &str) {
        let Ok(mut last) = self.last.try_lock() else { return };
        if last.elapsed() < LINE_EVERY {
            return;
        }
        *last = Instant::now();
        let (done, total) = (Bytes(done), Bytes(self.total));
        match self.total {
            0 => line(&self.what, text),
            _ => line(&self.what, &format!("{done} of {total} {text}")),
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
