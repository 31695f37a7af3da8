//! Whether a machine still lives: how much processor time QEMU used lately, and how long ago the console spoke.

use std::time::Duration;

/// How often the processor time is looked at.
const PERIOD: Duration = Duration::from_secs(2);
/// Below this share of one processor a guest only waits: its clock, QEMU's own threads.
const IDLE_SHARE: f64 = 0.2;
/// Linux counts processor time in hundredths of a second (USER_HZ, proc(5)).
const TICKS_PER_SECOND: f64 = 100.0;

/// What is known of a machine's life.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    looked: Duration,
    ticks: u64,
    idle_since: Option<Duration>,
}

impl Pulse {
    /// Looks at the process at time `now`, when it is time to.
    pub(super) fn look(&mut self, pid: u32, now: Duration) {
        let passed = now.saturating_sub(self.looked);
        if passed < PERIOD {
            return;
        }
        if let Some(ticks) = ticks(pid) {
            self.note(ticks, now);
        }
    }

    fn note(&mut self, ticks: u64, now: Duration) {
        let passed = now.saturating_sub(self.looked).as_secs_f64();
        let used = ticks.saturating_sub(self.ticks) as f64 / TICKS_PER_SECOND;
        if used > passed * IDLE_SHARE {
            self.idle_since = None;
        } else if self.idle_since.is_none() {
            self.idle_since = Some(self.looked);
        }
        (self.looked, self.ticks) = (now, ticks);
    }

    /// The console spoke.
    pub(super) fn spoke(&mut self) {
        self.idle_since = None;
    }

    /// Since when nothing has moved.
    pub(super) fn idle_since(&self) -> Option<Duration> {
        self.idle_since
    }
}

/// Processor time that a process has used; nothing of one that is gone.
pub(super) fn processor_time(pid: u32) -> Duration {
    Duration::from_secs_f64(ticks(pid).unwrap_or_default() as f64 / TICKS_PER_SECOND)
}

/// Whether a guest that used so much processor time in a while only waited.
pub(super) fn only_waited(used: Duration, passed: Duration) -> bool {
    used <= passed.mul_f64(IDLE_SHARE)
}

fn ticks(pid: u32) -> Option<u64> {
    ticks_of(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// User and system time of a process in ticks: the fields 14 and 15 of proc(5)'s stat, counted behind the program's name, which may
/// hold anything.
fn ticks_of(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    user.checked_add(system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_time_can_be_read() {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        assert!(ticks_of(&stat).is_some());
        assert_eq!(ticks_of("1 (a) b) S 1 2 3 4 5 6 7 8 9 10 20 30 0"), Some(50));
        assert_eq!(ticks_of("nonsense"), None);
    }

    #[test]
    fn a_machine_that_only_waits_is_idle() {
        let (mut pulse, second) = (Pulse::default(), Duration::from_secs);
        pulse.note(500, second(5));
        assert_eq!(pulse.idle_since(), None);
        pulse.note(520, second(10));
        pulse.note(530, second(15));
        assert_eq!(pulse.idle_since(), Some(second(5)));
        pulse.spoke();
        assert_eq!(pulse.idle_since(), None);
        pulse.note(531, second(20));
        assert_eq!(pulse.idle_since(), Some(second(15)));
        pulse.note(900, second(25));
        assert_eq!(pulse.idle_since(), None);
    }
}
