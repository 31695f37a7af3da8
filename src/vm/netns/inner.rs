//! `kiln internal vm-net PARENT`: the process that makes a machine's network namespace, answers for the metadata service in
//! it, and leads connections into it. It ends when Kiln closes its standard input, or with Kiln.

use std::ffi::OsString;
use std::io::{self, BufRead, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};

use super::super::{ec2::Instance, imds, launch};
use super::netlink;
use super::wire::{CONNECTED, Event, GATE, REFUSED, tell};

/// Leads into the machine that are open at once.
const LEADS: usize = 256;

/// Runs the process; `args` is its parent's process id.
#[must_use]
pub fn main(args: &[OsString]) -> ExitCode {
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            tell(&failed);
            ExitCode::FAILURE
        }
    }
}

/// What fails here is told as an event.
fn failed<E: Into<io::Error>>(doing: &str) -> impl FnOnce(E) -> Event {
    move |e| {
        let e: io::Error = e.into();
        Event::Failed { doing: doing.to_owned(), why: e.to_string(), number: e.raw_os_error() }
    }
}

fn run(args: &[OsString]) -> Result<(), Event> {
    let parent = args.first().cloned().unwrap_or_default();
    launch::tie(&parent).map_err(failed("tying its life to Kiln's"))?;
    let mut stdin = io::stdin().lock();
    let mut line = String::new();
    stdin.read_line(&mut line).map_err(failed("reading what to do"))?;
    let instance: Option<Instance> =
        serde_json::from_str(&line).map_err(|e| failed("reading what to do")(io::Error::other(e)))?;

    let users = enter()?;
    // A change of rights makes the kernel forget the signal.
    launch::tie(&parent).map_err(failed("tying its life to Kiln's"))?;
    netlink::loopback(imds::ADDRESS).map_err(failed("bringing up its loopback interface"))?;
    let gate = UnixListener::bind(GATE).map_err(failed("making the gate into it"))?;
    if let Some(instance) = instance {
        let listener = TcpListener::bind((imds::ADDRESS, imds::PORT))
            .map_err(failed("listening as the metadata service"))?;
        start("imds", move || {
            imds::server::serve(&listener, instance, |logged| tell(&Event::Asked(logged.clone())))
        })?;
    }
    start("gate", move || attend(&gate))?;
    tell(&Event::Ready { users });
    let _ = io::copy(&mut stdin, &mut io::sink());
    Ok(())
}

fn start(name: &str, task: impl FnOnce() + Send + 'static) -> Result<(), Event> {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(task);
    thread.map(drop).map_err(failed("starting a thread"))
}

/// Makes the namespace, and a user namespace around it when that takes no privilege. Answers whether it did.
fn enter() -> Result<bool, Event> {
    // Root may do it at once, also where user namespaces are switched off.
    match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => return Ok(false),
        Err(Errno::EPERM) => {}
        Err(e) => return Err(failed("making a network namespace")(e)),
    }
    let (user, group) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER).map_err(failed("making a user namespace"))?;
    // Everybody stays who they are: what joins later loses its rights in here as soon as it becomes another program.
    for (file, text) in [
        ("/proc/self/setgroups", "deny".to_owned()),
        ("/proc/self/uid_map", format!("{user} {user} 1")),
        ("/proc/self/gid_map", format!("{group} {group} 1")),
    ] {
        std::fs::write(file, text).map_err(failed("mapping the user into its namespace"))?;
    }
    unshare(CloneFlags::CLONE_NEWNET).map_err(failed("making a network namespace in a user namespace"))?;
    Ok(true)
}

/// Leads connections at the gate to ports in here, a pair of threads each.
fn attend(gate: &UnixListener) {
    let open = Arc::new(AtomicUsize::new(0));
    for stream in gate.incoming() {
        let Ok(stream) = stream else {
            std::thread::sleep(std::time::Duration::from_millis(20));
            continue;
        };
        if open.fetch_add(1, Ordering::Relaxed) >= LEADS {
            open.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let counted = open.clone();
        let started = start("lead", move || {
            // Either end breaks off as it likes; the other one sees it.
            let _ = lead(stream);
            counted.fetch_sub(1, Ordering::Relaxed);
        });
        if started.is_err() {
            open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The first two bytes name a port of 127.0.0.1; the first byte back says whether it answered.
fn lead(mut outer: UnixStream) -> io::Result<()> {
    let mut port = [0; 2];
    outer.read_exact(&mut port)?;
    let mut inner = match TcpStream::connect((Ipv4Addr::LOCALHOST, u16::from_be_bytes(port))) {
        Ok(inner) => inner,
        Err(_) => return outer.write_all(&[REFUSED]),
    };
    outer.write_all(&[CONNECTED])?;
    let (mut outer_read, mut inner_write) = (outer.try_clone()?, inner.try_clone()?);
    let inwards = std::thread::Builder::new().spawn(move || {
        let _ = io::copy(&mut outer_read, &mut inner_write);
        let _ = inner_write.shutdown(Shutdown::Write);
    })?;
    let copied = io::copy(&mut inner, &mut outer);
    // After an orderly end the other direction may go on; after a broken one nothing does.
    let how = if copied.is_ok() { Shutdown::Write } else { Shutdown::Both };
    let _ = outer.shutdown(how);
    let _ = inwards.join();
    Ok(())
}
