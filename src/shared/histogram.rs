//! Durations counted by size, without a lock: what a histogram of Prometheus is made of.
//!
//! It never keeps a single duration, and never loses one: whatever is longer than the last bound has a bucket, too.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::Serialize;

/// Upper bounds of the buckets, in microseconds: from 1 ms, since a change is rarely visible sooner, to a day, since a
/// pipeline's schedule may be `daily`.
pub const BOUNDS_US: [u64; 20] = [
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
    900_000_000,
    3_600_000_000,
    14_400_000_000,
    86_400_000_000,
];
/// One more than bounds: the last is of what is longer than all of them.
pub const BUCKETS: usize = BOUNDS_US.len() + 1;

/// Written by any process at any time.
#[repr(C)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum_us: AtomicU64,
}

impl Histogram {
    /// What has not happened yet took no time: clocks may differ by a little.
    pub fn observe(&self, us: i64) {
        let us = u64::try_from(us).unwrap_or(0);
        let bucket = BOUNDS_US.partition_point(|bound| *bound < us);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(us, Relaxed);
    }

    pub fn read(&self) -> Distribution {
        let mut read = Distribution {
            sum_us: self.sum_us.load(Relaxed),
            ..Distribution::default()
        };
        for (count, bucket) in read.counts.iter_mut().zip(&self.buckets) {
            *count = bucket.load(Relaxed);
        }
        read
    }

    pub fn reset(&self) {
        self.buckets
            .iter()
            .for_each(|bucket| bucket.store(0, Relaxed));
        self.sum_us.store(0, Relaxed);
    }
}

/// What a histogram holds at a time.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Distribution {
    /// Of each bucket, not of all up to it.
    pub counts: [u64; BUCKETS],
    pub sum_us: u64,
}

impl Distribution {
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    pub fn add(&mut self, other: &Distribution) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
        self.sum_us += other.sum_us;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty() -> Histogram {
        Histogram {
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
            sum_us: AtomicU64::new(0),
        }
    }

    #[test]
    fn a_duration_is_counted_once_in_the_smallest_bucket_that_holds_it() {
        let histogram = empty();
        // A bound belongs to its bucket, as `le` says.
        for us in [-5, 0, 1_000, 1_001, 86_400_000_000, 86_400_000_001] {
            histogram.observe(us);
        }
        let read = histogram.read();
        assert_eq!(read.counts[..2], [3, 1]);
        assert_eq!(read.counts[BUCKETS - 2..], [1, 1]);
        assert_eq!(read.count(), 6);
        assert_eq!(read.sum_us, 2_001 + 2 * 86_400_000_000 + 1);
    }

    #[test]
    fn counts_of_many_threads_are_all_there() {
        let histogram = empty();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|us| histogram.observe(us)));
            }
        });
        assert_eq!(histogram.read().count(), 40_000);
        histogram.reset();
        assert_eq!(histogram.read(), Distribution::default());
    }
}
