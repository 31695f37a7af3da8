//! A network of a machine's own: a network namespace without a way out, in which QEMU runs. In it there are QEMU's
//! forwarded ports, and the metadata service where the machine has one; nothing of the host's network is.
//!
//! A process of Kiln's ([`inner`]) makes the namespace, with a user namespace around it when Kiln has no privilege,
//! answers for the metadata service and leads connections in. QEMU and other programs join through [`super::launch`].

pub mod inner;
mod netlink;
mod wire;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;

use super::child::Kept;
use super::ec2::Instance;
use super::imds::Logged;
use super::launch;
use super::process::Vm;
use wire::{CONNECTED, Event, GATE};

/// The name under which `kiln internal` knows the process in the namespace.
pub const PART: &str = "vm-net";

/// The namespace is there within this, busy host included.
const READY: Duration = Duration::from_secs(30);

/// Why a machine can't have a network of its own.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The kernel refuses the namespace.
    #[error("no network can be isolated on this host: {doing}: {why}. {help}")]
    Refused {
        /// Which step.
        doing: String,
        /// The kernel's answer.
        why: String,
        /// What the user or the administrator can do.
        help: &'static str,
    },
    /// Anything else.
    #[error("the machine's network: {doing}: {why}")]
    Failed {
        /// Which step.
        doing: String,
        /// What is wrong.
        why: String,
    },
}

impl NetworkError {
    fn failed(doing: &str) -> impl FnOnce(io::Error) -> NetworkError {
        move |e| NetworkError::Failed { doing: doing.to_owned(), why: e.to_string() }
    }

    /// `setting` reads a file of /proc/sys.
    fn told(
        doing: String,
        why: String,
        number: Option<i32>,
        setting: &dyn Fn(&str) -> Option<u64>,
    ) -> NetworkError {
        let refusals = [Errno::EPERM, Errno::EACCES, Errno::ENOSPC, Errno::EINVAL, Errno::ENOSYS];
        if !doing.contains("namespace") || !number.is_some_and(|n| refusals.contains(&Errno::from_raw(n))) {
            return NetworkError::Failed { doing, why };
        }
        let help = if setting("user/max_user_namespaces") == Some(0) {
            "User namespaces are switched off: `sysctl -w user.max_user_namespaces=15000` allows them, or run as root"
        } else if setting("kernel/unprivileged_userns_clone") == Some(0) {
            "Users may not make namespaces: `sysctl -w kernel.unprivileged_userns_clone=1` allows it, or run as root"
        } else if setting("kernel/apparmor_restrict_unprivileged_userns") == Some(1) {
            "AppArmor keeps users from it: `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0` allows it, or an \
             AppArmor profile for kiln with the rule `userns,`; or run as root"
        } else {
            "In a container, run it with CAP_SYS_ADMIN or with a seccomp profile that allows `unshare` (for Docker: \
             `--security-opt seccomp=unconfined --security-opt apparmor=unconfined`)"
        };
        NetworkError::Refused { doing, why, help }
    }
}

/// A network namespace with the process that serves it. Dropping it ends that process; the namespace goes with the last
/// program in it.
pub struct Namespace {
    control: UnixStream,
    /// The namespaces to join, in their order.
    files: Vec<File>,
    folder: File,
    log: Arc<Mutex<Vec<Logged>>>,
    kiln: Option<PathBuf>,
    process: Kept,
}

impl Namespace {
    /// Makes a namespace, with the metadata service of `instance` if it is given. `folder` takes a socket; `kiln` is as in
    /// [`super::Setup`].
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn start(
        kiln: Option<&Path>,
        folder: &Path,
        instance: Option<&Instance>,
    ) -> Result<Namespace, NetworkError> {
        let starting = || NetworkError::failed("starting its process");
        let (control, theirs) = UnixStream::pair().map_err(starting())?;
        let theirs = OwnedFd::from(theirs);
        let mut command = launch::part(kiln, PART);
        command.current_dir(folder).stdin(theirs.try_clone().map_err(starting())?).stdout(theirs);
        let mut process = Kept::spawn(command, "vm-net").map_err(starting())?;

        let mut order = serde_json::to_vec(&instance).map_err(|e| starting()(e.into()))?;
        order.push(b'\n');
        // A process that died early explains itself better than a broken pipe does.
        let _ = (&control).write_all(&order);
        control.set_read_timeout(Some(READY)).map_err(starting())?;
        let mut events = BufReader::new(control.try_clone().map_err(starting())?);
        let users = match next(&mut events).map_err(starting())? {
            Some(Event::Ready { users }) => users,
            Some(Event::Failed { doing, why, number }) => {
                return Err(NetworkError::told(doing, why, number, &setting));
            }
            Some(Event::Asked(_)) | None => {
                let said = process.end();
                let why = if said.trim().is_empty() { "it ended without a word" } else { said.trim() };
                return Err(NetworkError::Failed {
                    doing: "starting its process".to_owned(),
                    why: why.to_owned(),
                });
            }
        };
        control.set_read_timeout(None).map_err(starting())?;

        let kinds: &[&str] = if users { &["user", "net"] } else { &["net"] };
        let open = |kind: &&str| File::open(format!("/proc/{}/ns/{kind}", process.pid()));
        let files: Result<Vec<File>, io::Error> = kinds.iter().map(open).collect();
        let files = files.map_err(NetworkError::failed("opening its namespaces"))?;
        let folder = File::open(folder).map_err(NetworkError::failed("opening the machine's folder"))?;
        let log = Arc::new(Mutex::new(Vec::new()));
        keep(events, log.clone()).map_err(starting())?;
        Ok(Namespace { control, files, folder, log, kiln: kiln.map(Path::to_owned), process })
    }

    /// What the metadata service was asked so far.
    #[must_use]
    pub fn log(&self) -> Vec<Logged> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The process id of what serves the namespace.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The descriptors that a program joins by.
    pub(super) fn descriptors(&self) -> Vec<i32> {
        self.files.iter().map(AsRawFd::as_raw_fd).collect()
    }

    /// The beginning of a command that runs a program in here; the program and its arguments are to follow. The
    /// environment is empty, and the program ends with the thread that spawns it.
    #[must_use]
    pub fn command(&self) -> Command {
        launch::command(self.kiln.as_deref(), &self.descriptors())
    }

    /// Connects to a port of 127.0.0.1 in here.
    ///
    /// # Errors
    /// `ConnectionRefused` when nothing listens there, `TimedOut`.
    pub fn connect(&self, port: u16, limit: Duration) -> io::Result<UnixStream> {
        // A socket's path may have 107 bytes; the folder's own may be longer.
        let path = format!("/proc/self/fd/{}/{GATE}", self.folder.as_raw_fd());
        let mut stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(limit.max(Duration::from_millis(1))))?;
        stream.write_all(&port.to_be_bytes())?;
        let mut answer = [0];
        match stream.read_exact(&mut answer) {
            Ok(()) if answer == [CONNECTED] => {}
            Ok(()) => return Err(io::ErrorKind::ConnectionRefused.into()),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Err(io::ErrorKind::TimedOut.into()),
            Err(e) => return Err(e),
        }
        stream.set_read_timeout(None)?;
        Ok(stream)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.control.shutdown(Shutdown::Both);
    }
}

impl Vm {
    /// What the machine asked its metadata service so far; nothing when it has none.
    #[must_use]
    pub fn metadata_log(&self) -> Vec<Logged> {
        self.namespace().map(Namespace::log).unwrap_or_default()
    }

    /// The network in which a port leads to this one of the guest, and that port.
    pub(super) fn way_to(&self, guest: u16) -> Option<(&Namespace, u16)> {
        let forward = self.machine.forwards.iter().find(|forward| forward.guest == guest)?;
        Some((self.namespace()?, forward.host))
    }

    /// Connects to a port of the guest that is forwarded in a network of the machine's own ([`super::Network::Isolated`]). QEMU
    /// accepts such a connection before it knows of the guest: a port that is closed there shows as an end, or an error,
    /// of the first read.
    ///
    /// # Errors
    /// `Unsupported` when the machine was not prepared for it; `ConnectionRefused` while QEMU doesn't listen yet.
    pub fn connect(&self, guest: u16, limit: Duration) -> io::Result<UnixStream> {
        let (namespace, port) = self.way_to(guest).ok_or_else(|| {
            let why = format!("the machine forwards no port {guest} in a network of its own");
            io::Error::new(io::ErrorKind::Unsupported, why)
        })?;
        namespace.connect(port, limit)
    }
}

fn setting(name: &str) -> Option<u64> {
    std::fs::read_to_string(format!("/proc/sys/{name}")).ok()?.trim().parse().ok()
}

/// The next event; nothing at the end, and for what is no event.
fn next(events: &mut impl BufRead) -> io::Result<Option<Event>> {
    let mut line = Vec::new();
    events.read_until(b'\n', &mut line)?;
    Ok(serde_json::from_slice(&line).ok())
}

/// Keeps what the metadata service is asked, up to the end of its process.
fn keep(mut events: impl BufRead + Send + 'static, log: Arc<Mutex<Vec<Logged>>>) -> io::Result<()> {
    /// A guest that asks for ever must not fill the memory.
    const LIMIT: usize = 10_000;
    let thread = std::thread::Builder::new().name("vm-net-log".to_owned()).spawn(move || {
        while let Ok(Some(event)) = next(&mut events) {
            let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
            if let Event::Asked(logged) = event
                && log.len() < LIMIT
            {
                log.push(logged);
            }
        }
    });
    thread.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(number: Errno, off: &str) -> String {
        let setting = |name: &str| {
            let known = ["user/max_user_namespaces", "kernel/unprivileged_userns_clone"];
            match name == off {
                true => Some(u64::from(name.contains("apparmor"))),
                false => known.contains(&name).then_some(1),
            }
        };
        let doing = "making a user namespace".to_owned();
        NetworkError::told(doing, number.desc().to_owned(), Some(number as i32), &setting).to_string()
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        for (off, help) in [
            ("user/max_user_namespaces", "`sysctl -w user.max_user_namespaces=15000`"),
            ("kernel/unprivileged_userns_clone", "`sysctl -w kernel.unprivileged_userns_clone=1`"),
            ("kernel/apparmor_restrict_unprivileged_userns", "the rule `userns,`"),
            ("", "CAP_SYS_ADMIN"),
        ] {
            let text = told(Errno::EPERM, off);
            assert!(text.contains(help) && text.contains("making a user namespace: "), "{off}: {text}");
        }
        assert_eq!(
            told(Errno::EMFILE, ""),
            "the machine's network: making a user namespace: Too many open files"
        );
    }
}
