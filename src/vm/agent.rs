//! What is said to the agent, a small shell script in the guest, over whichever way it was brought there.
//!
//! The protocol has lines of words. Kiln writes `RUN id seconds base64(script)`; the agent answers `OUT id base64`, `ERR id
//! base64` and `RC id status`. `HELLO 1` comes first.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::failure::VmError;
use super::guest::Output;
use super::process::Vm;
use crate::base64::{base64, from_base64};

/// Output beyond this is cut off, in bytes of each of both streams.
const OUTPUT_LIMIT: usize = 1 << 20;
/// A line longer than this is none of the agent's: both streams' limit in base64, and some words.
const LINE_LIMIT: usize = OUTPUT_LIMIT / 3 * 4 + 1024;
/// How long one look for a line takes at most.
const TICK: Duration = Duration::from_millis(50);
/// Beyond a command's own limit: for killing it and sending what it said.
const GRACE: Duration = Duration::from_secs(20);
/// Between the end of the way and the end of the machine that explains it.
const EXPLAINED: Duration = Duration::from_secs(2);

/// The agent. It reads from file descriptor 3, writes to 4, and keeps its files in `$folder`: what comes before it has to
/// provide them.
const AGENT: &str = r#"cd /
printf 'HELLO 1\n' >&4
while IFS=' ' read -r op id limit text <&3; do
  case $op in
  RUN)
    base=$folder/$id
    printf %s "$text" | base64 -d >"$base.sh"
    timeout -k 5 "$limit" /bin/sh "$base.sh" </dev/null >"$base.out" 2>"$base.err" 3>&- 4>&-
    status=$?
    {
      printf 'OUT %s %s\n' "$id" "$(head -c 1048576 "$base.out" | base64 -w0)"
      printf 'ERR %s %s\n' "$id" "$(head -c 1048576 "$base.err" | base64 -w0)"
      printf 'RC %s %s\n' "$id" "$status"
    } >&4
    rm -f "$base".*
    ;;
  esac
done
"#;

/// The agent with the beginning that its way needs.
pub(super) fn script(beginning: &str) -> String {
    format!("{beginning}{AGENT}")
}

/// Kiln's end of the way.
pub(super) struct Talk {
    stream: UnixStream,
    unread: Vec<u8>,
    commands: u32,
    closed: Option<Instant>,
}

impl Talk {
    pub(super) fn new(stream: UnixStream) -> io::Result<Talk> {
        stream.set_read_timeout(Some(TICK))?;
        Ok(Talk { stream, unread: Vec::new(), commands: 0, closed: None })
    }

    /// Whether the agent's first line has come, waited for during one tick.
    pub(super) fn greeted(&mut self) -> Result<bool, VmError> {
        Ok(self.line()?.is_some_and(|line| line == "HELLO 1"))
    }

    /// Runs a script; `lines` is the place in the console up to which it was judged.
    pub(super) fn run(
        &mut self,
        vm: &Vm,
        lines: &mut usize,
        script: &str,
        limit: Duration,
    ) -> Result<Output, VmError> {
        self.commands += 1;
        let (id, begun) = (self.commands.to_string(), Instant::now());
        let what = || format!("end of `{}` in the guest", script.lines().next().unwrap_or_default());
        self.ask(&id, script, limit)?;
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            vm.news(lines, &what())?;
            if let Some(line) = self.line()? {
                let words: Vec<&str> = line.split(' ').collect();
                match words[..] {
                    ["OUT", of, text] if of == id => stdout = decoded(text)?,
                    ["ERR", of, text] if of == id => stderr = decoded(text)?,
                    ["RC", of, status] if of == id => {
                        let status = status.parse().map_err(|_| nonsense(&line))?;
                        let [stdout, stderr] =
                            [stdout, stderr].map(|s| String::from_utf8_lossy(&s).into_owned());
                        return Ok(Output { status, stdout, stderr, took: begun.elapsed() });
                    }
                    ["HELLO", ..] => return Err(VmError::Channel("the agent was started anew".to_owned())),
                    _ => {}
                }
            }
            if self.closed.is_some_and(|at| at.elapsed() > EXPLAINED) {
                return Err(VmError::Channel(format!("it was closed, waiting for the {}", what())));
            }
            if begun.elapsed() > limit + GRACE {
                return Err(VmError::Timeout { what: what(), limit: limit + GRACE, tail: vm.tail() });
            }
        }
    }

    fn ask(&mut self, id: &str, script: &str, limit: Duration) -> Result<(), VmError> {
        let seconds = limit.as_secs().max(1);
        let line = format!("RUN {id} {seconds} {}\n", base64(script.as_bytes()));
        match self.stream.write_all(line.as_bytes()) {
            // Whether the machine ended or only the way is told by the one who waits.
            Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
            other => other.map_err(|e| VmError::Channel(e.to_string())),
        }
    }

    /// The next whole line, waited for during one tick.
    fn line(&mut self) -> Result<Option<String>, VmError> {
        loop {
            if let Some(end) = self.unread.iter().position(|&b| b == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                return Ok(Some(String::from_utf8_lossy(&line).trim_end().to_owned()));
            }
            if self.unread.len() > LINE_LIMIT {
                return Err(VmError::Channel(format!("a line of more than {LINE_LIMIT} bytes")));
            }
            let mut buffer = [0; 64 << 10];
            match self.stream.read(&mut buffer) {
                Ok(n) if n > 0 => self.unread.extend_from_slice(&buffer[..n]),
                Err(e)
                    if matches!(
                        e.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) =>
                {
                    return Ok(None);
                }
                // The other end is gone; the machine's news may say why.
                Ok(_) => {
                    self.closed.get_or_insert_with(Instant::now);
                    std::thread::sleep(TICK);
                    return Ok(None);
                }
                Err(e) => return Err(VmError::Channel(e.to_string())),
            }
        }
    }
}

fn decoded(text: &str) -> Result<Vec<u8>, VmError> {
    from_base64(text).ok_or_else(|| nonsense(text))
}

fn nonsense(line: &str) -> VmError {
    let start: String = line.chars().take(60).collect();
    VmError::Channel(format!("the agent answered nonsense: {start}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shell_reads_the_agent() {
        let status = std::process::Command::new("/bin/sh").args(["-n", "-c", AGENT]).status().unwrap();
        assert!(status.success());
    }
}
