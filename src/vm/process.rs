//! A running machine: QEMU as a child that dies with Kiln, its console, its monitor.
//!
//! One thread belongs to each machine. It starts QEMU and stays as long as QEMU does, because the kernel ends a child when
//! the *thread* that started it ends ([`super::launch`]); meanwhile it reads whatever QEMU and the guest say, so that
//! neither ever waits for Kiln.

use std::collections::HashMap;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::console::{Console, Line};
use super::failure::{BootFailure, DISK_FAILED, Ending, VmError, named};
use super::machine::{Machine, Network};
use super::netns::Namespace;
use super::prepare::Prepared;
use super::pulse::Pulse;
use super::qemu::Qemu;
use super::{launch, qmp};
use crate::host::interrupt;

/// Is given the console's bytes as they come.
pub type Tap = Box<dyn FnMut(&[u8]) + Send>;

/// How often waiting looks for Ctrl-C, and for QEMU's end.
const TICK: Duration = Duration::from_millis(50);
/// Within this the monitor answers, busy host included.
const ANSWER: Duration = Duration::from_secs(30);
/// A boot loader speaks within this of being started, under emulation on a busy host.
const BOOT_CODE: Duration = Duration::from_secs(20);
/// A console that says nothing for so long may be waiting at a prompt that only the screen shows.
const SILENCE: Duration = Duration::from_secs(6);
/// Between two looks at the screen.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// Where VGA's text mode keeps its characters, two bytes each, and how many there are.
const TEXT_MEMORY: u64 = 0xb8000;
const TEXT_COLUMNS: usize = 80;
const TEXT_ROWS: usize = 25;
/// How many of the console's lines an error shows.
const TAIL: usize = 15;
/// How much of QEMU's standard error is kept.
const STDERR_LIMIT: usize = 64 << 10;

/// A running machine. Dropping it ends it.
pub struct Vm {
    /// What it is made of.
    pub machine: Machine,
    started: Instant,
    shared: Arc<Shared>,
    monitor: Mutex<(UnixStream, u64)>,
    serial: UnixStream,
    thread: Option<JoinHandle<()>>,
    pid: Pid,
    read_lines: Mutex<usize>,
    ports: Mutex<u32>,
    looked: Mutex<Duration>,
    namespace: Option<Namespace>,
    survives: Vec<BootFailure>,
    // Goes away last, when nothing uses its files any more.
    folder: TempDir,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    console: Console,
    replies: HashMap<u64, Result<Value, String>>,
    reason: Option<String>,
    paused: bool,
    stderr: Vec<u8>,
    ending: Option<Ending>,
    pulse: Pulse,
    resets: Vec<Reset>,
    expected_resets: usize,
}

/// A restart of the guest by itself.
#[derive(Debug, Clone, Copy)]
struct Reset {
    at: Duration,
    /// How many lines the console had.
    lines: usize,
}

impl Reset {
    /// A restart may reset the machine twice: SeaBIOS, when it finds itself in memory still, resets it once more before it
    /// says a word. No boot loader comes that far as quickly.
    fn is_one_with(self, next: Reset) -> bool {
        const TWICE: Duration = Duration::from_secs(4);
        self.lines == next.lines && next.at.saturating_sub(self.at) < TWICE
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A line with its number, counted from 1.
struct Numbered {
    number: usize,
    at: Duration,
    text: String,
}

/// The command that starts QEMU with its life tied to the thread that spawns it, in the network that it is to have.
pub(super) fn tied(kiln: Option<&Path>, qemu: &Qemu, namespace: Option<&Namespace>) -> Command {
    let namespaces = namespace.map(Namespace::descriptors).unwrap_or_default();
    let mut command = launch::command(kiln, &namespaces);
    qemu.environment(&mut command);
    command.args(qemu.words());
    command
}

impl Prepared {
    /// Starts the machine; `tap` is given the console's bytes as they come.
    ///
    /// # Errors
    /// [`VmError::Start`] when QEMU can't be started; that it ends at once shows at the first wait.
    pub fn start(self, tap: Option<Tap>) -> Result<Vm, VmError> {
        let (monitor, monitor_theirs) = UnixStream::pair().map_err(VmError::Start)?;
        let (serial, serial_theirs) = UnixStream::pair().map_err(VmError::Start)?;
        let namespace = match self.machine.network {
            Network::Isolated => {
                let instance = self.machine.platform.instance();
                Some(Namespace::start(self.kiln.as_deref(), self.folder.path(), instance)?)
            }
            Network::None | Network::Restricted | Network::User => None,
        };
        let mut command = tied(self.kiln.as_deref(), &self.qemu, namespace.as_ref());
        command.args(self.machine.argv());
        command
            .stdin(OwnedFd::from(monitor_theirs))
            .stdout(OwnedFd::from(serial_theirs))
            .stderr(Stdio::piped());

        let started = Instant::now();
        let shared = Arc::new(Shared::default());
        let reader = Reader {
            monitor: Some(monitor.try_clone().map_err(VmError::Start)?),
            serial: Some(serial.try_clone().map_err(VmError::Start)?),
            shared: shared.clone(),
            started,
            tap,
            unfinished: Vec::new(),
        };
        let (send, spawned) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("vm".to_owned())
            .spawn(move || {
                let child = command.spawn();
                // Closes our copies of QEMU's ends, so that QEMU's end is seen.
                drop(command);
                let _ = send
                    .send(child.as_ref().map(Child::id).map_err(|e| io::Error::new(e.kind(), e.to_string())));
                if let Ok(child) = child {
                    reader.read(child);
                }
            })
            .map_err(VmError::Start)?;
        let pid = spawned.recv().map_err(io::Error::other).and_then(|pid| pid).map_err(VmError::Start)?;
        let vm = Vm {
            machine: self.machine,
            started,
            shared,
            monitor: Mutex::new((monitor, 0)),
            serial,
            thread: Some(thread),
            pid: Pid::from_raw(pid as i32),
            read_lines: Mutex::new(0),
            ports: Mutex::new(0),
            looked: Mutex::new(Duration::ZERO),
            namespace,
            survives: self.survives,
            folder: self.folder,
        };
        vm.send("qmp_capabilities", &Value::Null, None)?;
        Ok(vm)
    }
}

impl Vm {
    /// Time since the start.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// QEMU's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }

    /// The network of the machine's own, when it has one.
    #[must_use]
    pub fn namespace(&self) -> Option<&Namespace> {
        self.namespace.as_ref()
    }

    /// How the machine ended, once it did.
    #[must_use]
    pub fn ending(&self) -> Option<Ending> {
        self.shared.lock().ending.clone()
    }

    /// The console's text so far, each line with its time.
    #[must_use]
    pub fn console_log(&self) -> String {
        self.shared.lock().console.log()
    }

    /// The console's last lines.
    #[must_use]
    pub fn tail(&self) -> Vec<String> {
        self.shared.lock().console.tail(TAIL)
    }

    /// The console's lines so far, the last of them perhaps unfinished.
    #[must_use]
    pub fn lines(&self) -> Vec<Line> {
        let state = self.shared.lock();
        let unfinished = Line { at: self.started.elapsed(), text: state.console.partial() };
        let whole = state.console.since(0).cloned();
        whole.chain(Some(unfinished).filter(|line| !line.text.trim().is_empty())).collect()
    }

    /// Number of the console's next line.
    #[must_use]
    pub fn line_count(&self) -> usize {
        self.shared.lock().console.count()
    }

    /// Number of the next port of a channel: QEMU keeps the names of old ones for a while.
    pub(super) fn next_port(&self) -> u32 {
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        *ports += 1;
        *ports - 1
    }

    /// Takes the next restart of the guest as asked for.
    pub fn expect_reset(&self) {
        self.shared.lock().expected_resets += 1;
    }

    /// How often the guest has restarted itself.
    #[must_use]
    pub fn resets(&self) -> usize {
        self.shared.lock().resets.len()
    }

    /// Fails when nothing has moved for `limit`: neither the console spoke, nor did the guest use its processors. Boot code
    /// that never speaks is told sooner.
    ///
    /// # Errors
    /// [`VmError::Boot`] with [`BootFailure::Hang`] or [`BootFailure::NoBootCode`].
    pub fn check_pulse(&self, limit: Duration) -> Result<(), VmError> {
        self.check_screen()?;
        let idle = self.shared.lock().pulse.idle_since();
        match idle {
            Some(since) if self.age().saturating_sub(since) > limit => {
                let tail = self.tail();
                let line = tail.last().cloned().unwrap_or_default();
                Err(VmError::Boot { failure: BootFailure::Hang, line, at: since, tail })
            }
            _ => Ok(()),
        }
    }

    /// A console that is silent for a while is not all there is: boot loaders under BIOS write to the screen, and so does a
    /// system without a console on the serial port. Boot code that shows nothing anywhere runs through empty memory.
    fn check_screen(&self) -> Result<(), VmError> {
        let state = self.shared.lock();
        let spoken = state.console.since(state.console.count().saturating_sub(8));
        let last = spoken.filter(|line| !line.text.trim().is_empty()).last().cloned();
        drop(state);
        let (at, text) = last.map_or_else(Default::default, |line| (line.at, line.text));
        let silent = self.age().saturating_sub(at);
        if silent < SILENCE || !self.time_to_look() {
            return Ok(());
        }
        let screen = self.screen_text();
        for line in &screen {
            // A prompt ends with a blank, which a screen is full of.
            let named = named(&format!("{line} "));
            if let Some(failure) = named.filter(|failure| !self.survives.contains(failure)) {
                let line = line.trim().to_owned();
                return Err(VmError::Boot { failure, line, at: self.age(), tail: screen });
            }
        }
        let stuck = text.starts_with("Booting from ")
            && silent > BOOT_CODE
            && !screen.iter().any(|l| l.contains("GRUB"));
        if stuck {
            return Err(VmError::Boot {
                failure: BootFailure::NoBootCode,
                line: text,
                at,
                tail: self.tail(),
            });
        }
        Ok(())
    }

    fn time_to_look(&self) -> bool {
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        let due = self.age().saturating_sub(*looked) > LOOK_EVERY;
        if due {
            *looked = self.age();
        }
        due
    }

    /// The lines of a screen in VGA's text mode, the empty ones left out; nothing under UEFI, which has no such mode.
    #[must_use]
    pub fn screen_text(&self) -> Vec<String> {
        if !self.machine.screen || self.machine.flash.is_some() {
            return Vec::new();
        }
        let file = self.folder.path().join("screen.text");
        let area = json!({ "val": TEXT_MEMORY, "size": TEXT_COLUMNS * TEXT_ROWS * 2, "filename": file });
        let bytes = match self.execute("pmemsave", &area) {
            Ok(_) => std::fs::read(&file).unwrap_or_default(),
            Err(_) => return Vec::new(),
        };
        let rows = bytes.chunks(TEXT_COLUMNS * 2).map(|row| {
            // Each character is followed by its colours.
            let letters =
                row.iter().step_by(2).map(|&b| if b.is_ascii_graphic() { char::from(b) } else { ' ' });
            letters.collect::<String>().trim_end().to_owned()
        });
        rows.filter(|row| !row.is_empty()).collect()
    }

    /// Writes what the screen shows to a new PNG file; the machine must have one ([`Machine::screen`]).
    ///
    /// # Errors
    /// [`VmError::Monitor`].
    pub fn screenshot(&self, path: &Path) -> Result<(), VmError> {
        self.execute("screendump", &json!({ "filename": path, "format": "png" })).map(|_| ())
    }

    /// Fails when the host could not read or write for a disk. QEMU pauses some machines then; others are told of an error
    /// by their disk, which looks as if the image were at fault.
    ///
    /// # Errors
    /// [`VmError::Paused`], as for those that QEMU pauses.
    pub fn check_disks(&self) -> Result<(), VmError> {
        let Ok(answer) = self.execute("query-blockstats", &Value::Null) else { return Ok(()) };
        let failed = |disk: &Value| {
            let count = |name: &str| disk["stats"][name].as_u64().unwrap_or_default();
            count("failed_rd_operations") + count("failed_wr_operations") + count("failed_flush_operations")
        };
        match answer.as_array().is_some_and(|disks| disks.iter().any(|disk| failed(disk) > 0)) {
            true => Err(VmError::Paused { status: DISK_FAILED.to_owned() }),
            false => Ok(()),
        }
    }

    /// Types into the serial console.
    ///
    /// # Errors
    /// When the machine has ended.
    pub fn type_in(&self, bytes: &[u8]) -> io::Result<()> {
        (&self.serial).write_all(bytes)
    }

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

    /// Runs a command of QEMU's monitor and answers what it returns; `arguments` may be null.
    ///
    /// # Errors
    /// [`VmError::Monitor`] when it is refused, or not answered.
    pub fn execute(&self, command: &str, arguments: &Value) -> Result<Value, VmError> {
        let id = self.send(command, arguments, None)?;
        self.answer(command, id)
    }

    /// Gives QEMU a file descriptor under `name`, for commands that take one.
    pub(super) fn give(&self, name: &str, fd: BorrowedFd<'_>) -> Result<(), VmError> {
        let id = self.send("getfd", &json!({ "fdname": name }), Some(fd))?;
        self.answer("getfd", id).map(|_| ())
    }

    fn send(&self, command: &str, arguments: &Value, fd: Option<BorrowedFd<'_>>) -> Result<u64, VmError> {
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

    /// Presses the power button and waits; a guest that has not shut down within `limit` is switched off. Ctrl-C doesn't
    /// cut this short: it is what follows a Ctrl-C.
    pub fn power_down(mut self, limit: Duration) -> Ending {
        let begun = Instant::now();
        if self.execute("system_powerdown", &Value::Null).is_ok() {
            while self.ending().is_none() && begun.elapsed() < limit {
                std::thread::sleep(TICK);
            }
        }
        self.kill();
        self.ending().unwrap_or_default()
    }

    /// Switches the machine off at once.
    pub fn kill(&mut self) {
        {
            // Under the lock the child is either not waited for yet, or its end is known: the number is its own.
            let state = self.shared.lock();
            if state.ending.is_none() {
                let _ = kill(self.pid, Signal::SIGKILL);
            }
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The part of a machine that its thread has.
struct Reader {
    monitor: Option<UnixStream>,
    serial: Option<UnixStream>,
    shared: Arc<Shared>,
    started: Instant,
    tap: Option<Tap>,
    unfinished: Vec<u8>,
}

impl Reader {
    /// Reads until QEMU has ended and nothing is left to read.
    fn read(mut self, mut child: Child) {
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
