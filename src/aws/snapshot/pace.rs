//! How fast calls go out: as fast as the quota and the line allow, found out on the way.
//!
//! The rate begins at the ceiling, falls below what was really reached when AWS throttles, and rises again little
//! by little (additive increase, multiplicative decrease, as in TCP). The number of calls under way begins in the middle and
//! grows while answers come; those that don't come in time halve it, so that a slow line isn't shared by too many.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// `PutSnapshotBlock` calls a second that a snapshot takes, and an account unless it asked for more; `GetSnapshotBlock`
/// has the same.
pub const QUOTA: f64 = 1000.0;
/// Calls under way at first.
const FIRST: usize = 32;
/// Calls under way at most: with 512 KiB each, 32 MiB.
pub const MOST: usize = 64;
/// What is left of the rate after throttling.
const CUT: f64 = 5.0 / 6.0;
/// By what share of itself the rate rises in a second.
const RISE: f64 = 0.2;
/// By how many calls it rises at least.
const LEAST_RISE: f64 = 10.0;
/// The slowest rate.
const SLOWEST: f64 = 1.0;
/// Throttled answers that come within this time mean one and the same burst.
const BURST: Duration = Duration::from_millis(250);
/// How far calls that were late may catch up.
const CATCH_UP: Duration = Duration::from_millis(20);

/// The pace of calls to one quota.
#[derive(Debug)]
pub struct Pace(Mutex<Control>);

impl Default for Pace {
    fn default() -> Pace {
        Pace::new(QUOTA)
    }
}

impl Pace {
    /// A pace of at most `ceiling` calls a second.
    #[must_use]
    pub fn new(ceiling: f64) -> Pace {
        Pace(Mutex::new(Control::new(ceiling, Instant::now())))
    }

    fn control(&self) -> MutexGuard<'_, Control> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the next call may go out.
    pub async fn turn(&self) {
        let wait = self.control().reserve(Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    /// How many calls may be under way.
    #[must_use]
    pub fn window(&self) -> usize {
        self.control().window
    }

    /// A call succeeded.
    pub fn good(&self) {
        self.control().good(Instant::now());
    }

    /// A call was throttled.
    pub fn throttled(&self) {
        self.control().throttled(Instant::now());
    }

    /// A call had no answer in time, or the service failed.
    pub fn slow(&self) {
        self.control().slow(Instant::now());
    }

    /// Calls begin now: silence is counted from here.
    pub fn begin(&self) {
        self.control().last_good = Instant::now();
    }

    /// How long ago a call last succeeded, or calls began.
    #[must_use]
    pub fn silence(&self) -> Duration {
        self.control().last_good.elapsed()
    }
}

/// The state of a pace, told the time.
#[derive(Debug)]
struct Control {
    ceiling: f64,
    rate: f64,
    /// When the next call may go out.
    next: Instant,
    window: usize,
    /// Answers since the window grew.
    since_grown: usize,
    /// Answers since `counted_from`.
    count: u32,
    counted_from: Instant,
    /// What was reached in the second before.
    reached: Option<f64>,
    last_cut: Option<Instant>,
    last_halved: Option<Instant>,
    last_good: Instant,
}

impl Control {
    fn new(ceiling: f64, now: Instant) -> Control {
        Control {
            ceiling: ceiling.max(SLOWEST),
            rate: ceiling.max(SLOWEST),
            next: now,
            window: FIRST,
            since_grown: 0,
            count: 0,
            counted_from: now,
            reached: None,
            last_cut: None,
            last_halved: None,
            last_good: now,
        }
    }

    fn reserve(&mut self, now: Instant) -> Duration {
        let earliest = now.checked_sub(CATCH_UP).unwrap_or(now);
        let slot = self.next.max(earliest);
        self.next = slot + Duration::from_secs_f64(1.0 / self.rate);
        slot.saturating_duration_since(now)
    }

    fn good(&mut self, now: Instant) {
        self.last_good = now;
        self.count += 1;
        let passed = now.duration_since(self.counted_from).as_secs_f64();
        if passed >= 1.0 {
            self.reached = Some(f64::from(self.count) / passed);
            (self.count, self.counted_from) = (0, now);
        }
        // About as many answers come in a second as the rate says.
        self.rate = (self.rate + RISE.max(LEAST_RISE / self.rate)).min(self.ceiling);
        self.since_grown += 1;
        if self.since_grown >= self.window {
            self.since_grown = 0;
            self.window = (self.window + 4).min(MOST);
        }
    }

    fn throttled(&mut self, now: Instant) {
        if self.last_cut.is_some_and(|last| now.duration_since(last) < BURST) {
            return;
        }
        self.last_cut = Some(now);
        // What was reached while calls were held back says too little: never less than half.
        let reached = self.reached.unwrap_or(self.rate / 2.0).max(self.rate / 2.0);
        self.rate = (self.rate.min(reached) * CUT).max(SLOWEST);
        self.next = self.next.max(now + BURST / 2);
    }

    fn slow(&mut self, now: Instant) {
        if self.last_halved.is_some_and(|last| now.duration_since(last) < Duration::from_secs(1)) {
            return;
        }
        self.last_halved = Some(now);
        self.window = (self.window / 2).max(1);
        self.since_grown = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A service that lets `quota` calls a second through, with a bucket of a tenth of that; how many got through in
    /// `seconds`, and how many were throttled.
    fn against(quota: f64, seconds: f64) -> (f64, f64) {
        let start = Instant::now();
        let mut control = Control::new(QUOTA, start);
        let (mut now, mut tokens, mut last) = (start, quota / 10.0, start);
        let (mut good, mut bad) = (0.0, 0.0);
        while now.duration_since(start).as_secs_f64() < seconds {
            now += control.reserve(now).max(Duration::from_micros(200));
            tokens = (tokens + now.duration_since(last).as_secs_f64() * quota).min(quota / 10.0);
            last = now;
            if tokens >= 1.0 {
                tokens -= 1.0;
                good += 1.0;
                control.good(now);
            } else {
                bad += 1.0;
                control.throttled(now);
            }
        }
        (good / seconds, bad / seconds)
    }

    #[test]
    fn the_quota_is_nearly_reached_and_rarely_hit() {
        for quota in [1000.0, 500.0, 100.0, 20.0] {
            let (good, bad) = against(quota, 20.0);
            assert!(good > quota * 0.8, "{good} of {quota}");
            assert!(bad < quota * 0.1 + 5.0, "{bad} throttled at {quota}");
        }
    }

    #[test]
    fn it_starts_fast_and_keeps_to_its_ceiling() {
        let start = Instant::now();
        let mut control = Control::new(QUOTA, start);
        let waits: Vec<Duration> = (0..100).map(|_| control.reserve(start)).collect();
        assert_eq!(waits[0], Duration::ZERO);
        assert!((75..=105).contains(&waits[99].as_millis()), "{:?}", waits[99]);
    }

    #[test]
    fn late_answers_halve_what_is_under_way() {
        let start = Instant::now();
        let mut control = Control::new(QUOTA, start);
        assert_eq!(control.window, FIRST);
        for second in 1..20 {
            control.slow(start + Duration::from_secs(second));
            control.slow(start + Duration::from_secs(second));
        }
        assert_eq!(control.window, 1);
        for n in 0..10_000 {
            control.good(start + Duration::from_secs(30) + Duration::from_millis(n));
        }
        assert_eq!(control.window, MOST);
    }
}
