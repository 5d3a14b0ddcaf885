//! How fast a backfill goes: no more than so many rows a second.
//!
//! It never sleeps: it says how many rows may be taken now, and in how long the next.

use std::time::{Duration, Instant};

/// Rows are taken this often at the most: fewer and larger batches are what a provider is cheap for.
const STEP: Duration = Duration::from_millis(100);

/// A rate, kept.
#[derive(Debug, Default)]
pub struct Throttle {
    /// Rows a second; `None`: no limit.
    rate: Option<u32>,
    /// When the rows that were taken are used up.
    next: Option<Instant>,
}

impl Throttle {
    /// From now on; 0: no limit.
    pub fn set(&mut self, rate: u32) {
        self.rate = (rate > 0).then_some(rate);
    }

    /// How many rows may be taken now, of `most`.
    pub fn allows(&self, now: Instant, most: usize) -> usize {
        match self.rate {
            None => most,
            Some(_) if !self.rest(now).is_zero() => 0,
            Some(rate) => most.min(self.step(rate)),
        }
    }

    /// Rows have been taken.
    pub fn took(&mut self, now: Instant, rows: usize) {
        let Some(rate) = self.rate else {
            return;
        };
        // Who comes late makes up for a step, not for an hour in which there was nothing to do.
        let due = self.next.unwrap_or(now);
        let due = due.max(now.checked_sub(STEP).unwrap_or(now));
        self.next = Some(due + Duration::from_secs_f64(rows as f64 / f64::from(rate)));
    }

    /// In how long rows may be taken.
    pub fn rest(&self, now: Instant) -> Duration {
        match (self.rate, self.next) {
            (Some(_), Some(next)) => next.saturating_duration_since(now),
            _ => Duration::ZERO,
        }
    }

    /// Rows at a time.
    fn step(&self, rate: u32) -> usize {
        ((f64::from(rate) * STEP.as_secs_f64()) as usize).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows that are taken in `seconds` by somebody who looks every 7 ms.
    fn taken(throttle: &mut Throttle, seconds: u64) -> usize {
        let start = Instant::now();
        let (mut now, mut rows) = (start, 0);
        while now < start + Duration::from_secs(seconds) {
            let most = throttle.allows(now, 256);
            if most > 0 {
                throttle.took(now, most);
                rows += most;
            }
            now += Duration::from_millis(7);
        }
        rows
    }

    #[test]
    fn as_many_rows_are_taken_as_the_rate_says() {
        for rate in [1, 7, 100, 2_000] {
            let mut throttle = Throttle::default();
            throttle.set(rate);
            let (rows, wanted) = (taken(&mut throttle, 20), rate as usize * 20);
            assert!(
                rows >= wanted * 95 / 100 && rows <= wanted + 2 * throttle.step(rate),
                "{rows} at {rate}/s"
            );
        }
    }

    #[test]
    fn nothing_is_made_up_for_after_a_rest_and_without_a_rate_nothing_waits() {
        let mut throttle = Throttle::default();
        let now = Instant::now();
        throttle.took(now, 1_000);
        assert_eq!(
            (throttle.allows(now, 256), throttle.rest(now)),
            (256, Duration::ZERO)
        );
        throttle.set(100);
        let later = now + Duration::from_secs(3_600);
        for at in [now, later] {
            assert_eq!(throttle.allows(at, 256), 10);
            throttle.took(at, 10);
        }
        throttle.took(later, 10);
        assert_eq!(
            throttle.allows(later, 256),
            0,
            "an hour of rest is no credit"
        );
        assert!(throttle.rest(later) > Duration::ZERO);
        throttle.set(0);
        assert_eq!(throttle.allows(later, 256), 256);
    }
}
