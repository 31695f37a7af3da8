//! Waits until a system is up: nothing queued, nothing starting, three times in a row. A unit that never gets there is
//! named.

use std::time::{Duration, Instant};

use super::channel::HANG;
use super::failure::{BootFailure, VmError};
use super::guest::Guest;
use super::process::Vm;
use super::pulse;

/// The system once nothing starts or stops any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// What `systemctl is-system-running` says: `running`, `degraded`, ….
    pub state: String,
    /// The units that failed.
    pub failed: Vec<String>,
}

/// Between two looks at a system that has started.
const PAUSE: Duration = Duration::from_secs(1);
/// Between two looks at the console meanwhile.
const TICK: Duration = Duration::from_millis(250);
/// How often in a row everything must be quiet: a service that restarts itself seems up for a moment.
const SAMPLES: u32 = 3;
/// Between two looks once nothing has changed for [`UNCHANGED`]: a look is work for an emulated machine, which hides whether it has
/// any other.
const LONG_PAUSE: Duration = Duration::from_secs(10);
const UNCHANGED: Duration = Duration::from_secs(20);
/// In so many long pauses in a row a guest that hangs has done nothing.
const IDLE_PAUSES: u32 = 3;
/// A question takes at most this long, even of a system that is busy with starting.
const QUESTION: Duration = Duration::from_secs(60);
/// Waits for the end of the start, without taking processor time from what is started.
const START: &str = "timeout 20 systemctl --quiet is-system-running --wait";
/// The status with which timeout(1) ends when it had to.
const TIMED_OUT: i32 = 124;
/// First line the state, then the jobs that run, then units on their way, each with its word, and those that failed. Timers wait by
/// nature, and a device of which only the kernel's table of mounts tells stays on its way for ever.
const LOOK: &str = r"echo state $(systemctl is-system-running)
systemctl list-jobs --no-legend --plain --full | while read -r id unit kind state; do echo job $unit $kind $state; done
systemctl list-units --no-legend --plain --full --state=activating,auto-restart,deactivating,reloading,failed |
while read -r unit load active sub rest; do
case $active:$unit in failed:*) echo failed $unit ;; *.timer|*.device) ;; *) echo moving $unit $sub ;; esac; done";

/// What a look saw.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Seen {
    state: String,
    /// Jobs that run or wait, and units on their way.
    moving: Vec<String>,
    failed: Vec<String>,
}

impl Seen {
    /// Whether the system still starts, or doesn't tell (no answer from systemd): nobody is up then.
    fn starts(&self) -> bool {
        matches!(self.state.as_str(), "" | "unknown" | "starting" | "initializing" | "stopping")
    }
}

/// Waits until the system has settled: nothing queued, nothing on its way, three times in a row a second apart.
/// (`is-system-running --wait` alone is too early when a service restarts itself.)
///
/// # Errors
/// [`VmError`] as for [`Guest::run`]; a unit that never gets there; rescue or emergency mode; [`VmError::Timeout`] when the whole start,
/// which has already taken `so_far`, takes longer than `limit`.
pub fn until_settled(
    vm: &Vm,
    guest: &mut dyn Guest,
    so_far: Duration,
    limit: Duration,
) -> Result<Settled, VmError> {
    let begun = Instant::now();
    let (mut quiet, mut idle, mut last, mut since) = (0, 0, Seen::default(), Instant::now());
    loop {
        let late = so_far + begun.elapsed() > limit;
        match pause(vm, guest, &last, since.elapsed())? {
            // Who is busy with starting isn't asked how far that is.
            Passed::Starting if !late => {
                (last, idle) = (Seen::default(), 0);
                continue;
            }
            Passed::Idle => idle += 1,
            _ => idle = 0,
        }
        let seen = parse(&guest.run(LOOK, QUESTION)?.stdout);
        if seen != last {
            (quiet, idle, since) = (0, 0, Instant::now());
        }
        if seen.moving.is_empty() && !seen.starts() {
            quiet += 1;
        }
        if quiet >= SAMPLES && seen.state == "maintenance" {
            let line = "systemctl says `maintenance`".to_owned();
            return Err(VmError::Boot {
                failure: BootFailure::EmergencyMode,
                line,
                at: vm.age(),
                tail: vm.tail(),
            });
        }
        if quiet >= SAMPLES {
            return Ok(Settled { state: seen.state, failed: seen.failed });
        }
        if !seen.moving.is_empty() && since.elapsed() > HANG && idle >= IDLE_PAUSES {
            return Err(hang(vm, &seen, since.elapsed()));
        }
        if late {
            let what = format!("end of the boot: {}", waits_for(&seen));
            return Err(VmError::Timeout { what, limit, tail: vm.tail() });
        }
        last = seen;
    }
}

/// What a guest did during a pause.
enum Passed {
    /// It went on starting.
    Starting,
    /// Nothing, for long.
    Idle,
    /// Whatever it did.
    Other,
}

/// Lets a while pass, until the next look at what has been the same for `unchanged`.
fn pause(vm: &Vm, guest: &mut dyn Guest, seen: &Seen, unchanged: Duration) -> Result<Passed, VmError> {
    let (begun, used, mut lines) = (Instant::now(), vm.processor_time(), vm.line_count());
    let (mut length, mut starting) = (PAUSE, false);
    if seen.starts() {
        starting = guest.run(START, QUESTION)?.status == TIMED_OUT;
    } else if !seen.moving.is_empty() && unchanged > UNCHANGED {
        length = LONG_PAUSE;
    }
    while begun.elapsed() < length {
        std::thread::sleep(TICK);
        vm.news(&mut lines, "end of the boot")?;
    }
    let (passed, used) = (begun.elapsed(), vm.processor_time().saturating_sub(used));
    Ok(match passed >= LONG_PAUSE && pulse::only_waited(used, passed) {
        true => Passed::Idle,
        false if starting => Passed::Starting,
        false => Passed::Other,
    })
}

fn hang(vm: &Vm, seen: &Seen, waited: Duration) -> VmError {
    let line = format!("for {} s {}", waited.as_secs(), waits_for(seen));
    VmError::Boot { failure: BootFailure::Hang, line, at: vm.age().saturating_sub(waited), tail: vm.tail() }
}

fn waits_for(seen: &Seen) -> String {
    // What runs holds up what waits.
    let running: Vec<&str> =
        seen.moving.iter().filter(|m| !m.ends_with(" waiting")).map(String::as_str).collect();
    let all: Vec<&str> = seen.moving.iter().map(String::as_str).collect();
    let named = if running.is_empty() { all } else { running };
    match named[..] {
        [] if seen.state.is_empty() => "systemd gives no answer".to_owned(),
        [] => format!("the system is {}", seen.state),
        _ => format!("it has waited for {}", named.join(", ")),
    }
}

fn parse(text: &str) -> Seen {
    let mut seen = Seen::default();
    for line in text.lines() {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "state" => rest.trim().clone_into(&mut seen.state),
            // The job behind it is told already.
            "moving" | "job" => {
                let unit = rest.split(' ').next().unwrap_or_default();
                if !seen.moving.iter().any(|m| m.split(' ').next() == Some(unit)) {
                    seen.moving.push(rest.to_owned());
                }
            }
            "failed" => seen.failed.push(rest.to_owned()),
            _ => {}
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_holds_up_the_boot_is_named() {
        let seen = parse(
            "state starting\njob multi-user.target start waiting\njob slow.service start running\n\
             moving slow.service start\nfailed bad.service\n",
        );
        assert_eq!(seen.state, "starting");
        assert_eq!(seen.moving, ["multi-user.target start waiting", "slow.service start running"]);
        assert_eq!(seen.failed, ["bad.service"]);
        assert_eq!(waits_for(&seen), "it has waited for slow.service start running");
        assert_eq!(waits_for(&parse("state maintenance\n")), "the system is maintenance");
    }

    #[test]
    fn who_gives_no_answer_is_not_up() {
        for (text, starts) in
            [("", true), ("state unknown\n", true), ("state stopping\n", true), ("state degraded\n", false)]
        {
            assert_eq!(parse(text).starts(), starts, "{text}");
        }
        assert_eq!(waits_for(&parse("state\n")), "systemd gives no answer");
    }

    #[test]
    fn the_shell_reads_our_script() {
        let status = std::process::Command::new("/bin/sh").args(["-n", "-c", LOOK]).status().unwrap();
        assert!(status.success());
    }
}
