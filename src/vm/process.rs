//! A running machine: QEMU as a child that dies with Kiln, its console, its monitor.
//!
//! One thread belongs to each machine. It starts QEMU and stays as long as QEMU does, because the kernel ends a child when
//! the *thread* that started it ends ([`super::launch`]); meanwhile it reads whatever QEMU and the guest say, so that
//! neither ever waits for Kiln.
//!
//! | file | |
//! |---|---|
//! | `reader` | the thread: what QEMU and the guest say |
//! | `monitor` | commands of QEMU's monitor |
//! | `waiting` | waiting for the console, for the end |
//! | `looking` | what shows that a machine is stuck |

mod looking;
mod monitor;
mod reader;
mod waiting;

use std::collections::HashMap;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use super::console::{Console, Line};
use super::failure::{BootFailure, Ending, VmError};
use super::launch;
use super::machine::{Machine, Network};
use super::netns::Namespace;
use super::prepare::Prepared;
use super::pulse::Pulse;
use super::qemu::Qemu;
use reader::{Reader, Reset};

/// Is given the console's bytes as they come.
pub type Tap = Box<dyn FnMut(&[u8]) + Send>;

/// How often waiting looks for Ctrl-C, and for QEMU's end.
const TICK: Duration = Duration::from_millis(50);
/// How many of the console's lines an error shows.
const TAIL: usize = 15;

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

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
        tracing::debug!("runs {command:?}");
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
        let unfinished = state.console.began.map(|at| Line { at, text: state.console.partial() });
        let whole = state.console.since(0).cloned();
        whole.chain(unfinished.filter(|line| !line.text.trim().is_empty())).collect()
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

    /// Types into the serial console.
    ///
    /// # Errors
    /// When the machine has ended.
    pub fn type_in(&self, bytes: &[u8]) -> io::Result<()> {
        (&self.serial).write_all(bytes)
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
