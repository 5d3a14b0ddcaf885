//! Work that can wait for ever, since there is always something else: it has a share of the worker's time all the same.
//!
//! Who changes something waits for it no longer than one step of it takes, and not often.

use std::time::{Duration, Instant};

/// One part in so many.
const PARTS: u32 = 8;
/// What was not used is kept, up to this.
const KEPT: Duration = Duration::from_millis(20);

/// When the share of one kind of work is due again.
pub struct Share {
    from: Instant,
}

/// Of what a recommender can wait for.
#[derive(Default)]
pub struct Shares {
    /// Lists of neighbours that are stale.
    pub counting: Share,
    /// Lists for users who have not asked yet.
    pub warming: Share,
}

impl Default for Share {
    fn default() -> Share {
        Share {
            from: Instant::now(),
        }
    }
}

impl Share {
    /// Whether it is its turn, also where something else waits.
    pub fn is_due(&self) -> bool {
        self.from <= Instant::now()
    }

    /// A step took so long.
    pub fn took(&mut self, time: Duration) {
        self.took_at(time, Instant::now());
    }

    fn took_at(&mut self, time: Duration, now: Instant) {
        let owed = time * PARTS;
        let kept = now.checked_sub(KEPT * PARTS).unwrap_or(now);
        // Where nothing else waited it may have had all of the time, and owes no more than for its last step.
        self.from = (self.from.max(kept) + owed).min(now + owed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(10);

    #[test]
    fn it_has_its_part_of_the_time_and_no_more() {
        let began = Instant::now();
        let mut share = Share { from: began };
        let (mut now, mut steps) = (began, 0);
        while now < began + 80 * STEP {
            if share.from <= now {
                now += STEP;
                share.took_at(STEP, now);
                steps += 1;
            } else {
                now += STEP; // something else
            }
        }
        assert_eq!(steps, 80 / PARTS);
    }

    #[test]
    fn what_it_had_while_nothing_else_waited_is_not_owed_and_what_it_left_is_kept_for_a_while() {
        let mut now = Instant::now();
        let mut share = Share { from: now };
        for _ in 0..1_000 {
            now += STEP;
            share.took_at(STEP, now);
        }
        assert_eq!(share.from, now + STEP * PARTS);
        now += Duration::from_secs(3600);
        let mut steps = 0;
        while share.from <= now {
            share.took_at(STEP, now);
            steps += 1;
        }
        assert_eq!(steps, 3); // two that were kept, and its turn
    }
}
