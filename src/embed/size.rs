//! How many inputs a server answers in time.
//!
//! It is a value computed from what is reported; it never reads a clock. A batch that times out is halved by the
//! caller, and its size remembered here: what was too much once is not tried again with every batch.

use std::time::{Duration, Instant};

/// How long a smaller size is kept without a time-out before twice as much is tried: a server that is slow for an hour
/// loses four requests to that, and one that was slow for a minute is back at its size soon enough.
const PATIENCE: Duration = Duration::from_secs(15 * 60);

#[derive(Clone, Debug)]
pub struct Size {
    most: usize,
    /// What is known to be enough, and since when.
    fits: Option<(usize, Instant)>,
    /// A single input has timed out: the server hangs, whatever it is given, and teaches nothing.
    hangs: bool,
}

impl Size {
    /// As many as are allowed, until a batch times out.
    pub fn new(most: usize) -> Size {
        Size {
            most: most.max(1),
            fits: None,
            hangs: false,
        }
    }

    /// The most that a batch may have now.
    pub fn most(&mut self, now: Instant) -> usize {
        if let Some((fits, since)) = self.fits
            && now.saturating_duration_since(since) >= PATIENCE
        {
            let twice = fits.saturating_mul(2);
            self.fits = (twice < self.most).then_some((twice, now));
        }
        self.fits.map_or(self.most, |(fits, _)| fits)
    }

    /// A batch of `inputs` got no answer in time.
    pub fn timed_out(&mut self, inputs: usize, now: Instant) {
        if inputs <= 1 {
            self.hangs = true;
            self.fits = None;
        } else if !self.hangs {
            let half = self.most(now).min(inputs.div_ceil(2));
            self.fits = Some((half, now));
        }
    }

    /// A batch was answered.
    pub fn answered(&mut self) {
        self.hangs = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_out_halves_and_a_quarter_of_an_hour_without_one_doubles() {
        let now = Instant::now();
        let mut size = Size::new(50);
        assert_eq!(size.most(now), 50);
        size.timed_out(50, now);
        size.timed_out(50, now);
        assert_eq!(size.most(now), 25, "requests in flight together count once");
        size.timed_out(25, now);
        assert_eq!(size.most(now), 13);
        let later = now + PATIENCE / 2;
        size.timed_out(13, later);
        assert_eq!(size.most(now + PATIENCE), 7);
        assert_eq!(size.most(later + PATIENCE), 14);
        assert_eq!(size.most(later + PATIENCE), 14);
        assert_eq!(size.most(later + 2 * PATIENCE), 28);
        assert_eq!(size.most(later + 3 * PATIENCE), 50);
    }

    #[test]
    fn a_small_batch_that_times_out_beside_large_ones_counts_by_its_own_size() {
        let now = Instant::now();
        let mut size = Size::new(50);
        size.timed_out(4, now);
        size.timed_out(50, now);
        assert_eq!(size.most(now), 2);
    }

    #[test]
    fn a_server_that_hangs_even_for_one_input_teaches_nothing() {
        let now = Instant::now();
        let mut size = Size::new(8);
        for inputs in [8, 4, 2, 1, 8] {
            size.timed_out(inputs, now);
        }
        assert_eq!(size.most(now), 8);
        size.answered();
        size.timed_out(8, now);
        assert_eq!(size.most(now), 4);
    }
}
