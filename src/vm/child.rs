//! A child beside QEMU that ends when its value is dropped, and with Kiln in any case.

use std::io::{self, Read};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

/// How much of its standard error is kept.
const SAID_LIMIT: u64 = 16 << 10;
const TICK: Duration = Duration::from_millis(20);

/// A running child. The thread that started it stays as long as it does: the kernel ends a child with the *thread* that
/// made it ([`super::launch`]).
pub(super) struct Kept {
    child: Arc<Mutex<Child>>,
    thread: Option<JoinHandle<String>>,
    pid: u32,
}

impl Kept {
    /// Starts a child whose standard input and output are set already.
    pub(super) fn spawn(mut command: Command, name: &str) -> io::Result<Kept> {
        let (send, spawned) = mpsc::channel();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let child = command.stderr(Stdio::piped()).spawn();
            // Closes our copies of the child's ends, so that its end is seen.
            drop(command);
            let (child, stderr) = match child {
                Ok(mut child) => {
                    let stderr = child.stderr.take();
                    (Arc::new(Mutex::new(child)), stderr)
                }
                Err(e) => {
                    let _ = send.send(Err(e));
                    return String::new();
                }
            };
            let _ = send.send(Ok(child.clone()));
            let mut said = Vec::new();
            if let Some(mut stderr) = stderr {
                let _ = stderr.by_ref().take(SAID_LIMIT).read_to_end(&mut said);
                let _ = io::copy(&mut stderr, &mut io::sink());
            }
            while running(&child) {
                std::thread::sleep(TICK);
            }
            String::from_utf8_lossy(&said).into_owned()
        })?;
        let child = spawned.recv().map_err(io::Error::other)??;
        let pid = child.lock().unwrap_or_else(PoisonError::into_inner).id();
        Ok(Kept { child, thread: Some(thread), pid })
    }

    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it still runs.
    pub(super) fn runs(&self) -> bool {
        running(&self.child)
    }

    /// Ends it, and answers what it wrote to standard error.
    pub(super) fn end(&mut self) -> String {
        // Under the lock it is either not waited for yet, or its end is known: the number is its own.
        let _ = self.child.lock().unwrap_or_else(PoisonError::into_inner).kill();
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.end();
    }
}

fn running(child: &Mutex<Child>) -> bool {
    matches!(child.lock().unwrap_or_else(PoisonError::into_inner).try_wait(), Ok(None))
}
