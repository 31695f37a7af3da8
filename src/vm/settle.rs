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
/// Between two looks once nothing has changed for [`UNCHANGED`], and as long as [`START`] waits: a look is work for an emulated
/// machine, which hides whether it has any other.
const LONG_PAUSE: Duration = Duration::from_secs(10);
const UNCHANGED: Duration = Duration::from_secs(20);
/// In so many long pauses in a row a guest that hangs has done nothing.
const IDLE_PAUSES: u32 = 3;
/// A question takes at most this long, even of a system that is busy with starting.
const QUESTION: Duration = Duration::from_secs(60);
/// Waits for the end of the start, without taking processor time from what is started.
const START: &str = "timeout 10 systemctl --quiet is-system-running --wait";
/// First line the state, then the jobs that run, then units on their way, each with its word, and those that failed.
const LOOK: &str = r"echo state $(systemctl is-system-running)
systemctl list-jobs --no-legend --plain --full | while read -r id unit kind state; do echo job $unit $kind $state; done
systemctl list-units --no-legend --plain --full --state=activating,auto-restart,deactivating,reloading,failed |
while read -r unit load active sub rest; do
case $active:$unit in failed:*) echo failed $unit ;; *.timer) ;; *) echo moving $unit $sub ;; esac; done";

/// What a look saw.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Seen {
    state: String,
    /// Jobs that run or wait, and units on their way.
    moving: Vec<String>,
    failed: Vec<String>,
}

impl Seen {
    /// Nothing known is as good as a system that starts.
    fn starts(&self) -> bool {
        matches!(self.state.as_str(), "" | "starting" | "initializing")
    }
}

/// Waits until the system has settled: nothing queued, nothing on its way, three times in a row a second apart.
/// (`is-system-running --wait` alone is too early when a service restarts itself.)
///
/// # Errors
/// [`VmError`] as for [`Guest::run`]; a unit that never gets there; [`VmError::Timeout`] when units keep starting.
pub fn until_settled(vm: &Vm, guest: &mut dyn Guest, limit: Duration) -> Result<Settled, VmError> {
    let begun = Instant::now();
    let (mut quiet, mut idle, mut last, mut since) = (0, 0, Seen::default(), Instant::now());
    loop {
        idle = if pause(vm, guest, &last, since.elapsed())? { idle + 1 } else { 0 };
        let seen = parse(&guest.run(LOOK, QUESTION)?.stdout);
        if seen != last {
            (quiet, idle, since) = (0, 0, Instant::now());
        }
        if seen.moving.is_empty() && !seen.starts() {
            quiet += 1;
        }
        if quiet >= SAMPLES {
            return Ok(Settled { state: seen.state, failed: seen.failed });
        }
        if !seen.moving.is_empty() && since.elapsed() > HANG && idle >= IDLE_PAUSES {
            return Err(hang(vm, &seen, since.elapsed()));
        }
        if begun.elapsed() > limit {
            let what = format!("end of the boot: {}", waits_for(&seen));
            return Err(VmError::Timeout { what, limit, tail: vm.tail() });
        }
        last = seen;
    }
}

/// Lets a while pass, until the next look at what has been the same for `unchanged`. Whether it was a long one, in which the
/// guest did nothing.
fn pause(vm: &Vm, guest: &mut dyn Guest, seen: &Seen, unchanged: Duration) -> Result<bool, VmError> {
    let (begun, used, mut lines) = (Instant::now(), vm.processor_time(), vm.line_count());
    let mut length = PAUSE;
    if seen.starts() {
        guest.run(START, QUESTION)?;
    } else if !seen.moving.is_empty() && unchanged > UNCHANGED {
        length = LONG_PAUSE;
    }
    while begun.elapsed() < length {
        std::thread::sleep(TICK);
        vm.news(&mut lines, "end of the boot")?;
    }
    let passed = begun.elapsed();
    Ok(passed >= LONG_PAUSE && pulse::only_waited(vm.processor_time().saturating_sub(used), passed))
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
    fn the_shell_reads_our_script() {
        let status = std::process::Command::new("/bin/sh").args(["-n", "-c", LOOK]).status().unwrap();
        assert!(status.success());
    }
}
