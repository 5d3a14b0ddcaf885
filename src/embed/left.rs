//! What is left of an account's limits, for those who watch: by the account's own pace, and as the provider has last said.
//!
//! It never grants or refuses anything.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use serde::Serialize;

/// Of a limit, in requests or tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Left {
    /// What may go at this moment.
    pub now: u64,
    /// What may go in the limit's time, which is mostly a minute; `None`: the provider has not said.
    pub limit: Option<u64>,
}

impl Left {
    /// Of two limits the narrower one.
    pub fn narrower(one: Option<Left>, other: Option<Left>) -> Option<Left> {
        let (Some(one), Some(other)) = (one, other) else {
            return one.or(other);
        };
        let limits = [one.limit, other.limit].into_iter().flatten();
        Some(Left {
            now: one.now.min(other.now),
            limit: limits.min(),
        })
    }
}

/// What a provider has last said of one limit. Zeroed memory: nothing. Its numbers are for the eye: who reads between two
/// answers may get one of each.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Said {
    /// One more than is left; 0: it has said nothing.
    left: AtomicU64,
    /// 0: it has not said.
    limit: AtomicU64,
    /// When all of it is there again, by [`super::rate::now`].
    whole_at: AtomicI64,
}

impl Said {
    pub const fn nothing() -> Said {
        Said {
            left: AtomicU64::new(0),
            limit: AtomicU64::new(0),
            whole_at: AtomicI64::new(0),
        }
    }

    /// An answer says what is left. Where it does not say for how long, it is a minute's.
    pub fn set(&self, left: u64, limit: Option<u64>, reset: Option<Duration>, now: i64) {
        let reset = reset.unwrap_or(Duration::from_secs(60));
        let whole_at = now.saturating_add(reset.as_nanos() as i64);
        self.limit.store(limit.unwrap_or(0), SeqCst);
        self.whole_at.store(whole_at, SeqCst);
        self.left.store(left.saturating_add(1), SeqCst);
    }

    pub fn forget(&self) {
        self.left.store(0, SeqCst);
    }

    /// What is left now. When the limit's time is over that is all of it, as far as it is known how much.
    pub fn left(&self, now: i64) -> Option<Left> {
        let left = self.left.load(SeqCst).checked_sub(1)?;
        let limit = Some(self.limit.load(SeqCst)).filter(|limit| *limit > 0);
        match now < self.whole_at.load(SeqCst) {
            true => Some(Left { now: left, limit }),
            false => limit.map(|all| Left { now: all, limit }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: i64 = 60_000_000_000;

    #[test]
    fn what_a_provider_said_is_good_until_the_limit_is_whole_again() {
        let said = Said::nothing();
        assert_eq!(said.left(5), None);
        said.set(0, Some(60), Some(Duration::from_secs(20)), 0);
        let limit = Some(60);
        assert_eq!(said.left(5), Some(Left { now: 0, limit }));
        assert_eq!(said.left(MINUTE / 3), Some(Left { now: 60, limit }));
        said.set(7, None, None, 0);
        let limit = None;
        assert_eq!(said.left(MINUTE - 1), Some(Left { now: 7, limit }));
        assert_eq!(said.left(MINUTE), None, "nobody knows how much");
        said.forget();
        assert_eq!(said.left(5), None);
    }

    #[test]
    fn the_narrower_of_two_limits_counts_in_each_respect() {
        let left = |now, limit| Some(Left { now, limit });
        assert_eq!(Left::narrower(None, None), None);
        assert_eq!(Left::narrower(None, left(1, None)), left(1, None));
        assert_eq!(
            Left::narrower(left(6, Some(60)), left(3, None)),
            left(3, Some(60))
        );
        assert_eq!(
            Left::narrower(left(6, Some(60)), left(30, Some(40))),
            left(6, Some(40))
        );
    }
}
