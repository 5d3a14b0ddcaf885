//! A share of the time for what comes after everything else, so that it goes on where that never ends.
//!
//! It never says how long something may take, only whether it may begin.

use std::time::{Duration, Instant};

/// One part of so many.
const PARTS: u32 = 8;
/// What is not taken is kept up to this much.
const KEPT: Duration = Duration::from_millis(20);

pub(super) struct Share {
    from: Instant,
}

impl Default for Share {
    fn default() -> Share {
        Share {
            from: Instant::now(),
        }
    }
}

impl Share {
    /// In how long it is its turn.
    pub fn next(&self) -> Duration {
        self.from.saturating_duration_since(Instant::now())
    }

    /// It has taken so long, just now.
    pub fn took(&mut self, time: Duration) {
        self.took_at(time, Instant::now());
    }

    fn took_at(&mut self, time: Duration, now: Instant) {
        let kept = now.checked_sub(KEPT * PARTS).unwrap_or(now);
        let from = self.from.max(kept) + time * PARTS;
        self.from = from.min(now + time * PARTS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn it_gets_its_part_and_no_more_than_has_been_kept_for_it() {
        let began = Instant::now();
        let mut share = Share { from: began };
        // A round of 100 ms, and again.
        for round in 1..=10 {
            let now = began + 100 * MS * round;
            let mut taken = 0;
            while share.from <= now {
                share.took_at(4 * MS, now);
                taken += 1;
            }
            assert!((3..=6).contains(&taken), "{taken}");
        }
        let later = began + 3_600_000 * MS;
        share.took_at(4 * MS, later);
        assert_eq!(later - share.from, 128 * MS);
        // What it takes while nothing else is to be done is no debt.
        for _ in 0..100 {
            share.took_at(4 * MS, later);
        }
        assert_eq!(share.from - later, 32 * MS);
    }
}
