//! When to try again: the backoff of a job and the breaker of a server.
//!
//! Both are values computed from times and a random number that the caller brings; neither ever
//! sleeps, reads a clock or starts anything.

use std::time::{Duration, Instant};

/// The first wait of a job that failed.
const BACKOFF_FIRST: Duration = Duration::from_secs(1);
/// The longest wait of a job that failed: a mended input is not left alone for hours.
const BACKOFF_MAX: Duration = Duration::from_secs(600);
/// How long a server rests after its first failure: most are one dropped connection.
const BREAKER_FIRST: Duration = Duration::from_millis(500);
/// The longest rest: a provider that is back is noticed within a minute.
const BREAKER_MAX: Duration = Duration::from_secs(60);
/// What a provider may ask for at most by Retry-After: one day's quota must not stop probes.
pub(crate) const RETRY_AFTER_MAX: Duration = Duration::from_secs(3_600);
/// Answers in a row that help nobody until it is the provider that is blamed: more than come in a
/// row while one bad text is looked for in a batch, of which every other half is answered well.
const MOST_DOUBTS: u32 = 8;
/// When a probe that never reported back is taken for lost.
const PROBE_PATIENCE: Duration = Duration::from_secs(300);

/// How long a job waits after its `attempt`th failure (the first is 1): 1 s, doubling up to ten
/// minutes, of which `jitter` (0 to 1) takes between half and all.
///
/// Source: exponential backoff with equal jitter, as in "Exponential Backoff And Jitter"
/// (AWS Architecture Blog, 2015).
pub fn backoff(attempt: u32, jitter: f64) -> Duration {
    jittered(doubled(BACKOFF_FIRST, attempt, BACKOFF_MAX), jitter)
}

fn doubled(first: Duration, attempt: u32, longest: Duration) -> Duration {
    let factor = 1u32
        .checked_shl(attempt.saturating_sub(1))
        .unwrap_or(u32::MAX);
    first.saturating_mul(factor).min(longest)
}

fn jittered(wait: Duration, jitter: f64) -> Duration {
    let jitter = if jitter.is_finite() {
        jitter.clamp(0.0, 1.0)
    } else {
        1.0
    };
    wait.mul_f64(0.5 + 0.5 * jitter)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed,
    /// `asked`: until when is what the provider itself has said.
    Open {
        until: Instant,
        asked: bool,
    },
    HalfOpen {
        since: Instant,
    },
}

/// Whether a server may be asked: yes (closed), not before (open until), or once (half-open).
///
/// It opens at the first failure of the provider, for 500 ms, doubling up to a minute, or for as
/// long as Retry-After says. Then one probe decides: its success closes the breaker, its failure
/// opens it for longer.
#[derive(Clone, Debug)]
pub struct Breaker {
    state: State,
    failures: u32,
    /// Answers since the last good one that may be an input's fault or the provider's.
    doubts: u32,
    last_success: Option<Instant>,
}

impl Default for Breaker {
    fn default() -> Self {
        Breaker::new()
    }
}

impl Breaker {
    /// A closed breaker.
    pub fn new() -> Breaker {
        Breaker {
            state: State::Closed,
            failures: 0,
            doubts: 0,
            last_success: None,
        }
    }

    /// Whether a request may be sent now. After a rest the first `true` is the probe: whoever
    /// gets it sends a request and reports it, or calls [`Breaker::probe_lost`].
    pub fn allows(&mut self, now: Instant) -> bool {
        let probe = match self.state {
            State::Closed => return true,
            State::Open { until, .. } => now >= until,
            State::HalfOpen { since } => now.saturating_duration_since(since) >= PROBE_PATIENCE,
        };
        if probe {
            self.state = State::HalfOpen { since: now };
        }
        probe
    }

    /// The probe was not sent after all: the next caller may have it.
    pub fn probe_lost(&mut self, now: Instant) {
        if let State::HalfOpen { .. } = self.state {
            self.state = State::Open {
                until: now,
                asked: false,
            };
        }
    }

    /// Somebody wants to know now whether the server is back: the next request is a probe, unless the server itself
    /// has asked to be left alone.
    pub fn probe_now(&mut self, now: Instant) {
        if let State::Open {
            asked: false,
            until,
        } = &mut self.state
        {
            *until = now.min(*until);
        }
    }

    /// A request succeeded. While the breaker is open this is a straggler that was sent before,
    /// and the rest that the provider asked for goes on.
    pub fn success(&mut self, now: Instant) {
        self.last_success = Some(now);
        self.doubts = 0;
        self.close();
    }

    fn close(&mut self) {
        if !matches!(self.state, State::Open { .. }) {
            self.state = State::Closed;
            self.failures = 0;
        }
    }

    /// A request failed by an input's fault or the provider's: nobody can say. True once so many
    /// have in a row that it is the provider's, which has failed then.
    pub fn doubt(&mut self, now: Instant, jitter: f64) -> bool {
        self.doubts = self.doubts.saturating_add(1);
        let blamed = self.doubts >= MOST_DOUBTS;
        if blamed {
            self.failure(now, None, jitter);
        } else {
            self.close(); // it did answer
        }
        blamed
    }

    /// A request failed by the provider's fault. Requests that were in flight together count once.
    pub fn failure(&mut self, now: Instant, retry_after: Option<Duration>, jitter: f64) {
        let open_until = self.open_until();
        if open_until.is_none() {
            self.failures = self.failures.saturating_add(1);
        }
        let rest = match retry_after {
            Some(asked) => asked.clamp(BREAKER_FIRST, RETRY_AFTER_MAX),
            None if open_until.is_some() => return,
            None => jittered(doubled(BREAKER_FIRST, self.failures, BREAKER_MAX), jitter),
        };
        let until = open_until.map_or(now + rest, |until| until.max(now + rest));
        self.state = State::Open {
            until,
            asked: retry_after.is_some(),
        };
    }

    /// Until when the breaker is open; `None` when it is closed or probing.
    pub fn open_until(&self) -> Option<Instant> {
        match self.state {
            State::Open { until, .. } => Some(until),
            State::Closed | State::HalfOpen { .. } => None,
        }
    }

    /// Whether the last that was heard of the server is a failure.
    pub fn is_open(&self) -> bool {
        self.state != State::Closed
    }

    /// When a request last succeeded.
    pub fn last_success(&self) -> Option<Instant> {
        self.last_success
    }

    /// The word for SQL: `closed`, `open` or `half-open`.
    pub fn as_str(&self) -> &'static str {
        match self.state {
            State::Closed => "closed",
            State::Open { .. } => "open",
            State::HalfOpen { .. } => "half-open",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn backoff_doubles_from_one_second_to_ten_minutes() {
        let waits: Vec<u64> = [1, 2, 3, 10, 11, 40, u32::MAX]
            .map(|attempt| backoff(attempt, 1.0).as_secs())
            .to_vec();
        assert_eq!(waits, [1, 2, 4, 512, 600, 600, 600]);
        assert_eq!(backoff(0, 1.0), backoff(1, 1.0));
    }

    #[test]
    fn jitter_takes_between_half_and_all_whatever_it_is_given() {
        assert_eq!(backoff(3, 0.0), Duration::from_secs(2));
        assert_eq!(backoff(3, 0.5), Duration::from_secs(3));
        assert_eq!(backoff(3, -7.0), Duration::from_secs(2));
        assert_eq!(backoff(3, f64::NAN), Duration::from_secs(4));
    }

    #[test]
    fn somebody_who_asks_gets_a_probe_unless_the_provider_has_asked_for_a_rest() {
        let now = Instant::now();
        let mut breaker = Breaker::new();
        breaker.failure(now, None, 1.0);
        breaker.probe_now(now + ms(1));
        assert!(breaker.allows(now + ms(1)));
        breaker.failure(now + ms(2), Some(Duration::from_secs(9)), 1.0);
        breaker.probe_now(now + ms(3));
        assert!(!breaker.allows(now + ms(3)));
    }

    #[test]
    fn the_first_failure_opens_and_one_probe_closes() {
        let now = Instant::now();
        let mut breaker = Breaker::new();
        assert!(breaker.allows(now));
        breaker.failure(now, None, 1.0);
        assert_eq!(breaker.open_until(), Some(now + ms(500)));
        assert!(!breaker.allows(now + ms(499)));
        assert!(breaker.allows(now + ms(500)), "the probe");
        assert!(!breaker.allows(now + ms(501)), "only one");
        breaker.success(now + ms(600));
        assert!(breaker.allows(now + ms(600)));
        assert_eq!(breaker.last_success(), Some(now + ms(600)));
    }

    #[test]
    fn each_failed_probe_doubles_the_rest_up_to_a_minute() {
        let mut now = Instant::now();
        let mut breaker = Breaker::new();
        let mut rests = Vec::new();
        for _ in 0..9 {
            breaker.failure(now, None, 1.0);
            let until = breaker.open_until().unwrap();
            rests.push((until - now).as_millis());
            now = until;
            assert!(breaker.allows(now));
        }
        assert_eq!(
            rests,
            [
                500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000
            ]
        );
    }

    #[test]
    fn requests_in_flight_together_count_as_one_failure() {
        let now = Instant::now();
        let mut breaker = Breaker::new();
        for _ in 0..4 {
            breaker.failure(now, None, 1.0);
        }
        assert_eq!(breaker.open_until(), Some(now + ms(500)));
    }

    #[test]
    fn answers_in_a_row_that_help_nobody_are_the_providers_failure_in_the_end() {
        let mut now = Instant::now();
        let mut breaker = Breaker::new();
        for _ in 0..3 {
            for _ in 1..MOST_DOUBTS {
                assert!(!breaker.doubt(now, 1.0));
                assert!(breaker.allows(now));
            }
            breaker.success(now);
        }
        for _ in 1..MOST_DOUBTS {
            assert!(!breaker.doubt(now, 1.0));
        }
        for rest in [500, 1_000, 2_000] {
            assert!(breaker.doubt(now, 1.0));
            assert_eq!(breaker.open_until(), Some(now + ms(rest)));
            now += ms(rest);
            assert!(breaker.allows(now), "the probe");
        }
        breaker.success(now);
        assert!(!breaker.doubt(now, 1.0), "it is forgiven");
    }

    #[test]
    fn an_answer_that_helps_nobody_says_that_a_provider_is_back() {
        let now = Instant::now();
        let mut breaker = Breaker::new();
        breaker.failure(now, None, 1.0);
        assert!(breaker.allows(now + ms(500)));
        breaker.doubt(now + ms(600), 1.0);
        assert!(breaker.allows(now + ms(600)));
        assert_eq!(breaker.last_success(), None, "not that it is well");
    }

    #[test]
    fn retry_after_wins_and_a_straggler_neither_shortens_nor_ends_it() {
        let now = Instant::now();
        let mut breaker = Breaker::new();
        breaker.failure(now, Some(Duration::from_secs(20)), 1.0);
        breaker.failure(now, Some(Duration::from_secs(5)), 1.0);
        breaker.success(now + ms(10));
        assert_eq!(breaker.open_until(), Some(now + Duration::from_secs(20)));
        breaker.failure(now, Some(Duration::from_secs(30)), 1.0);
        assert_eq!(breaker.open_until(), Some(now + Duration::from_secs(30)));
    }

    #[test]
    fn retry_after_is_bounded_on_both_sides() {
        let now = Instant::now();
        let mut breaker = Breaker::new();
        breaker.failure(now, Some(Duration::ZERO), 1.0);
        assert_eq!(breaker.open_until(), Some(now + BREAKER_FIRST));
        breaker.failure(now, Some(Duration::MAX), 1.0);
        assert_eq!(breaker.open_until(), Some(now + RETRY_AFTER_MAX));
    }

    #[test]
    fn a_probe_that_was_not_sent_or_never_came_back_is_replaced() {
        let now = Instant::now();
        let mut breaker = Breaker::new();
        breaker.failure(now, None, 0.0);
        let later = now + ms(500);
        assert!(breaker.allows(later));
        breaker.probe_lost(later);
        assert!(breaker.allows(later));
        assert!(!breaker.allows(later));
        assert!(breaker.allows(later + PROBE_PATIENCE));
    }
}
