//! The inner side's start: three processes, each a fork of the one before.
//!
//! 1. *outer*: makes the namespaces and waits;
//! 2. *init*: process 1 of the namespace, collects orphans and ends when the worker ends (then the kernel ends all others);
//! 3. *worker*: does the task.

use std::io::{Read, Write};
use std::process::ExitCode;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, umask};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, getppid, setgroups, sethostname, setresgid, setresuid, setsid};

use super::error::{Doing, Failure, Inner};
use super::wire::{Event, Outcome, Request, Task, Teller};
use super::{customise, install, remove};
use crate::host::sys;

/// Host name in every sandbox; some packages write it into their configuration.
const HOST_NAME: &str = "localhost";

/// Makes and leaves a user namespace: the probe of [`super::tier()`].
pub(super) fn probe() -> ExitCode {
    // CLONE_NEWNS needs rights in the new user namespace, which is what AppArmor takes away.
    let made = unshare(CloneFlags::CLONE_NEWUSER)
        .and_then(|()| unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID));
    match made {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{}", e.desc());
            ExitCode::FAILURE
        }
    }
}

/// Process *outer*.
pub(super) fn run(user_namespace: bool) -> ExitCode {
    let teller = Teller::new();
    let parent = getppid();
    match enter(user_namespace, parent, &teller) {
        Ok(request) => become_init(&request, &teller),
        Err(failure) => {
            teller.tell(&Event::Failed(failure));
            ExitCode::FAILURE
        }
    }
}

/// Dies when the parent does, also when that has already happened.
fn die_with(parent: Pid) -> Inner<()> {
    prctl::set_pdeathsig(Signal::SIGKILL).doing("asking to end with Kiln")?;
    if getppid() == parent { Ok(()) } else { Err(Errno::ESRCH).doing("looking for Kiln") }
}

fn enter(user_namespace: bool, parent: Pid, teller: &Teller) -> Inner<Request> {
    die_with(parent)?;
    // No controlling terminal: a script that asks there would stop us for ever.
    setsid()
        .map(drop)
        .or_else(|e| if e == Errno::EPERM { Ok(()) } else { Err(e) })
        .doing("leaving the terminal")?;
    if user_namespace {
        unshare(CloneFlags::CLONE_NEWUSER).doing("making a user namespace")?;
        teller.tell(&Event::Unshared);
    }
    let mut text = Vec::new();
    std::io::stdin().read_to_end(&mut text).doing("reading the task")?;
    let request: Request = serde_json::from_slice(&text).doing("reading the task")?;
    if user_namespace {
        setresgid(0.into(), 0.into(), 0.into()).doing("becoming root of the namespace")?;
        setresuid(0.into(), 0.into(), 0.into()).doing("becoming root of the namespace")?;
        // A change of ids forgets the signal.
        die_with(parent)?;
    } else {
        sys::start_no_device_makers().doing("giving up the right to make devices")?;
    }
    setgroups(&[]).doing("leaving all groups")?;
    if matches!(request.task, Task::Remove { .. }) {
        return Ok(request);
    }
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    unshare(namespaces).doing("making namespaces")?;
    sethostname(HOST_NAME).doing("naming the host")?;
    sys::set_domain_name("(none)").doing("naming the domain")?;
    sys::loopback_up().doing("bringing up the loopback interface")?;
    umask(Mode::from_bits_truncate(0o022));
    Ok(request)
}

/// Forks *init* and, inside it, *worker*; each waits for the next.
fn become_init(request: &Request, teller: &Teller) -> ExitCode {
    if let Task::Remove { path } = &request.task {
        return finish(remove::here(path).map(|()| Outcome::default()), teller);
    }
    match sys::fork_single_threaded() {
        Err(e) => finish(Err(e).doing("forking"), teller),
        Ok(ForkResult::Parent { child }) => wait_for(child),
        Ok(ForkResult::Child) => {
            // Its parent lies in another process namespace, where getppid() answers 0.
            if let Err(failure) = prctl::set_pdeathsig(Signal::SIGKILL).doing("asking to end with Kiln") {
                return finish(Err(failure), teller);
            }
            match sys::fork_single_threaded() {
                Err(e) => finish(Err(e).doing("forking"), teller),
                Ok(ForkResult::Parent { child }) => wait_for(child),
                Ok(ForkResult::Child) => finish(work(request, teller), teller),
            }
        }
    }
}

fn work(request: &Request, teller: &Teller) -> Inner<Outcome> {
    match &request.task {
        Task::Install { job, scratch } => install::run(job, scratch, teller),
        Task::Customise { job, scratch, packs } => customise::run(job, scratch, packs, teller),
        Task::Remove { path } => remove::here(path).map(|()| Outcome::default()),
    }
}

fn finish(result: Result<Outcome, Failure>, teller: &Teller) -> ExitCode {
    let (event, code) = match result {
        Ok(outcome) => (Event::Done(outcome), ExitCode::SUCCESS),
        Err(failure) => (Event::Failed(failure), ExitCode::FAILURE),
    };
    teller.tell(&event);
    let _ = std::io::stdout().flush();
    code
}

/// Waits for `child`, collecting every other process that was left to us.
fn wait_for(child: Pid) -> ExitCode {
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, code)) if pid == child => return ExitCode::from(code as u8),
            Ok(WaitStatus::Signaled(pid, ..)) if pid == child => return ExitCode::FAILURE,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return ExitCode::FAILURE,
        }
    }
}
