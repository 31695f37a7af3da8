//! What a guest writes to its serial console: lines with the time at which they came, free of terminal control.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::time::Duration;

/// A line of the console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// When its first character came, since the machine was started: a prompt ends with what is said long after it.
    pub at: Duration,
    /// Its text.
    pub text: String,
}

/// The console's text so far. A guest that never stops writing costs no more memory than [`Console::LINES`] lines.
#[derive(Debug, Default)]
pub struct Console {
    lines: VecDeque<Line>,
    dropped: usize,
    partial: Vec<u8>,
    /// When the first byte of `partial` came.
    pub(super) began: Option<Duration>,
    control: Control,
}

/// Where in a control sequence (ECMA-48) the console is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Control {
    /// In plain text.
    #[default]
    Text,
    /// After ESC.
    Escape,
    /// After ESC and an intermediate byte: one more follows (character sets).
    Intermediate,
    /// In a control sequence: parameters until a final byte.
    Sequence,
    /// In a string (OSC, DCS, …): until BEL or ESC \.
    String,
    /// In such a string, after ESC.
    StringEscape,
}

impl Console {
    /// How many lines are kept.
    pub const LINES: usize = 20_000;
    /// A line longer than this is broken.
    const LINE_LENGTH: usize = 4096;

    /// Takes in what came at time `at`.
    pub fn feed(&mut self, bytes: &[u8], at: Duration) {
        for &byte in bytes {
            self.control = match (self.control, byte) {
                (Control::Text, 0x1b) => Control::Escape,
                (Control::Text, _) => {
                    self.text(byte, at);
                    Control::Text
                }
                (Control::Escape, b'[') => Control::Sequence,
                (Control::Escape, b']' | b'P' | b'X' | b'^' | b'_') => Control::String,
                (Control::Escape, b' '..=b'/') => Control::Intermediate,
                (Control::Escape | Control::Intermediate, _) => Control::Text,
                (Control::Sequence, b'@'..=b'~') => {
                    self.sequence(byte, at);
                    Control::Text
                }
                (Control::Sequence, 0x1b) => Control::Escape,
                (Control::Sequence, _) => Control::Sequence,
                (Control::String, 0x07) | (Control::StringEscape, b'\\') => Control::Text,
                (Control::String | Control::StringEscape, 0x1b) => Control::StringEscape,
                (Control::String | Control::StringEscape, _) => Control::String,
            };
        }
    }

    fn text(&mut self, byte: u8, at: Duration) {
        match byte {
            b'\n' => self.end_line(at),
            b'\t' | b' '..=b'~' | 0x80.. => {
                self.began.get_or_insert(at);
                self.partial.push(byte);
                if self.partial.len() >= Self::LINE_LENGTH {
                    self.end_line(at);
                }
            }
            _ => {}
        }
    }

    /// Firmware and boot loaders paint screens: a cursor that is sent elsewhere begins another line.
    fn sequence(&mut self, last: u8, at: Duration) {
        if matches!(last, b'H' | b'f' | b'J') && !self.partial.is_empty() {
            self.end_line(at);
        }
    }

    fn end_line(&mut self, at: Duration) {
        let text = String::from_utf8_lossy(&self.partial).trim_end().to_owned();
        self.partial.clear();
        let at = self.began.take().unwrap_or(at);
        if self.lines.len() == Self::LINES {
            self.lines.pop_front();
            self.dropped += 1;
        }
        self.lines.push_back(Line { at, text });
    }

    /// How many lines ended so far, those no longer kept included.
    #[must_use]
    pub fn count(&self) -> usize {
        self.dropped + self.lines.len()
    }

    /// The kept lines from number `from` on, in order.
    pub fn since(&self, from: usize) -> impl Iterator<Item = &Line> {
        self.lines.iter().skip(from.saturating_sub(self.dropped))
    }

    /// The line that has not ended yet: a prompt, often.
    #[must_use]
    pub fn partial(&self) -> String {
        String::from_utf8_lossy(&self.partial).into_owned()
    }

    /// The last `count` lines that are not empty, the unfinished one included.
    #[must_use]
    pub fn tail(&self, count: usize) -> Vec<String> {
        let mut tail: Vec<String> = self.lines.iter().rev().map(|l| l.text.clone()).collect();
        tail.insert(0, self.partial());
        tail.retain(|text| !text.trim().is_empty());
        tail.truncate(count);
        tail.reverse();
        tail
    }

    /// The whole text, every line with its time in seconds.
    #[must_use]
    pub fn log(&self) -> String {
        let mut log = String::new();
        for line in &self.lines {
            let _ = writeln!(log, "[{:8.2}] {}", line.at.as_secs_f64(), line.text);
        }
        if !self.partial.is_empty() {
            let _ = writeln!(log, "[   ...  ] {}", self.partial());
        }
        log
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(bytes: &[u8]) -> (Vec<String>, String) {
        let mut console = Console::default();
        console.feed(bytes, Duration::ZERO);
        (console.since(0).map(|l| l.text.clone()).collect(), console.partial())
    }

    #[test]
    fn control_is_stripped_and_the_prompt_is_seen() {
        let bytes =
            b"\x1b[0;32m  OK  \x1b[0m Started\r\n\x1b[!p\x1b]104\x07\x1b[?7h\x1b(B\x1bP+q\x1b\\kiln login: ";
        assert_eq!(lines(bytes), (vec!["  OK   Started".to_owned()], "kiln login: ".to_owned()));
    }

    #[test]
    fn a_prompt_has_the_time_at_which_it_was_shown() {
        let mut console = Console::default();
        console.feed(b"kiln login: ", Duration::from_secs(3));
        console.feed(b"[ 60.0] reboot\n\n", Duration::from_secs(60));
        let times: Vec<u64> = console.since(0).map(|line| line.at.as_secs()).collect();
        assert_eq!(times, [3, 60]);
    }

    #[test]
    fn painted_screens_become_lines() {
        let bytes = b"\x1b[2J\x1b[01;01Hone\x1b[02;01Htwo";
        assert_eq!(lines(bytes), (vec!["one".to_owned()], "two".to_owned()));
    }

    #[test]
    fn a_flood_costs_no_memory() {
        let mut console = Console::default();
        for n in 0..Console::LINES + 10 {
            console.feed(format!("{n}\n").as_bytes(), Duration::ZERO);
        }
        assert_eq!(console.count(), Console::LINES + 10);
        assert_eq!(console.since(0).next().unwrap().text, "10");
        assert_eq!(console.since(Console::LINES + 9).count(), 1);
        assert_eq!(console.tail(2), ["20008", "20009"]);
    }

    proptest! {
        #[test]
        fn how_bytes_are_cut_makes_no_difference(bytes in any::<Vec<u8>>(), cut in any::<prop::sample::Index>()) {
            let mut parts = Console::default();
            let at = cut.index(bytes.len() + 1);
            parts.feed(&bytes[..at], Duration::ZERO);
            parts.feed(&bytes[at..], Duration::ZERO);
            let seen = (parts.since(0).map(|l| l.text.clone()).collect(), parts.partial());
            prop_assert_eq!(seen, lines(&bytes));
        }
    }
}
