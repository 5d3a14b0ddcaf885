//! An account at a provider: whoever in the cluster uses it shares its limits.
//!
//! It never sends anything and never waits: it says when a request may go.

use std::time::Duration;

use sha2::{Digest, Sha256};

use super::endpoint::Endpoint;
use super::limits::Limits as Announced;
use super::rate::{Asker, Entry, Grant, LOCAL, Limits, Pace, Rates, until};
use super::retry::RETRY_AFTER_MAX;

/// An account and the table that has its counters.
#[derive(Clone, Copy)]
pub struct Account {
    rates: &'static Rates,
    key: u64,
    limits: Limits,
}

impl Account {
    /// The account that an endpoint's requests are charged to, with the limits that the endpoint names.
    pub fn of(endpoint: &Endpoint, rates: &'static Rates) -> Account {
        let pace = |limit: Option<u64>| {
            let limit = limit.filter(|_| endpoint.api.wire.is_some());
            limit.map(Pace::per_minute)
        };
        Account {
            rates,
            key: key(endpoint),
            limits: Limits {
                requests: pace(endpoint.requests_per_minute),
                tokens: pace(endpoint.tokens_per_minute),
            },
        }
    }

    /// Whether a request needs a grant.
    pub fn is_limited(&self) -> bool {
        self.limits != Limits::default()
    }

    /// Whether a grant is for a number of tokens.
    pub fn counts_tokens(&self) -> bool {
        self.limits.tokens.is_some()
    }

    /// The tokens that a batch should have at most, so that others need not wait for long behind it: a fourth of what
    /// may go at once, more where few requests have to carry the minute's tokens.
    pub fn batch_tokens(&self) -> Option<u64> {
        let tokens = self.limits.tokens?;
        let share = |requests: Pace| tokens.limit() / requests.limit();
        let share = self.limits.requests.map_or(0, share);
        Some(share.max(tokens.burst() / 4).max(1))
    }

    /// The right to send one request of so many tokens; see [`Entry::ask`].
    ///
    /// # Errors
    /// When it could go, where that is later than `latest`.
    pub fn ask(&self, tokens: u64, asker: Asker, now: i64, latest: i64) -> Result<Grant, i64> {
        let entry = self.entry(now);
        entry.ask(self.limits, tokens, asker, now, latest)
    }

    /// By which its counters are found by those who watch, and the limits that are kept.
    pub fn kept(&self) -> (u64, Limits) {
        (self.key, self.limits)
    }

    /// What an answer says to everybody who uses the account: "retry after", or that nothing is left until a time; and
    /// what is left, to those who watch.
    pub fn heed(&self, retry_after: Option<Duration>, announced: Announced, now: i64) {
        let said = [
            (
                announced.remaining_requests,
                announced.limit_requests,
                announced.reset_requests,
            ),
            (
                announced.remaining_tokens,
                announced.limit_tokens,
                announced.reset_tokens,
            ),
        ];
        for (which, (left, limit, reset)) in said.into_iter().enumerate() {
            if let Some(left) = left {
                let limit = limit.map(|limit| limit.get().into());
                self.entry(now).said()[which].set(left, limit, reset, now);
            }
        }
        let rest = announced.wait_for(1).max(retry_after.unwrap_or_default());
        if !rest.is_zero() {
            let rest = rest.min(RETRY_AFTER_MAX).as_nanos() as i64;
            self.entry(now).rest_until(now.saturating_add(rest));
        }
    }

    /// How long the provider still wants to be left alone.
    pub fn rest(&self, now: i64) -> Duration {
        until(self.entry(now).rests_until(), now)
    }

    fn entry(&self, now: i64) -> &'static Entry {
        let own = self.rates.entry(self.key, now);
        own.unwrap_or_else(|| LOCAL.entry_or_shared(self.key, now))
    }
}

/// A number for what identifies the account: never 0, and the same in every database.
fn key(endpoint: &Endpoint) -> u64 {
    let identity = (
        endpoint.api.name,
        &endpoint.url,
        &endpoint.model,
        &endpoint.deployment,
        &endpoint.key,
        &endpoint.header_file,
    );
    let hash = Sha256::digest(format!("{identity:?}"));
    let first = hash.first_chunk::<8>().copied().unwrap_or_default();
    u64::from_le_bytes(first).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embed::testing::endpoint;

    const URL: &str = "http://127.0.0.1:1/v1";
    const MINUTE: i64 = 60_000_000_000;

    fn rates() -> &'static Rates {
        Box::leak(Box::default())
    }

    fn account(rates: &'static Rates, more: &[(&str, &str)]) -> Account {
        Account::of(&endpoint(URL, more), rates)
    }

    /// Requests that `account` may send at once.
    fn burst(account: Account, now: i64) -> usize {
        let ask = || account.ask(0, Asker::Session, now, now).map(Grant::spend);
        std::iter::from_fn(|| ask().ok()).take(1_000).count()
    }

    #[test]
    fn an_account_is_shared_by_whoever_names_the_same_endpoint_and_key() {
        let now = 2 * MINUTE;
        let limit = ("requests_per_minute", "100");
        let rates = rates();
        assert_eq!(burst(account(rates, &[limit]), now), 10);
        let same = [limit, ("max_attempts", "9"), ("dimensions", "5")];
        assert_eq!(burst(account(rates, &same), now), 0);
        for other in [
            ("model", "other"),
            ("url", "http://127.0.0.2:1/v1"),
            ("api_key_env", "OTHER_API_KEY"),
            ("header_file", "other"),
        ] {
            assert_eq!(burst(account(rates, &[limit, other]), now), 10, "{other:?}");
        }
    }

    #[test]
    fn without_limits_everything_goes_at_once() {
        let account = account(rates(), &[]);
        assert!(!account.is_limited());
        assert_eq!(account.batch_tokens(), None);
        assert_eq!(burst(account, 2 * MINUTE), 1_000);
    }

    #[test]
    fn nobody_sends_until_a_provider_that_has_asked_for_it_has_rested() {
        let now = 2 * MINUTE;
        let rates = rates();
        let (one, other) = (account(rates, &[]), account(rates, &[]));
        one.heed(None, Announced::default(), now);
        assert_eq!(other.rest(now), Duration::ZERO);
        one.heed(Some(Duration::from_secs(20)), Announced::default(), now);
        one.heed(Some(Duration::from_secs(5)), Announced::default(), now);
        assert_eq!(other.rest(now), Duration::from_secs(20));
        assert_eq!(other.rest(now + MINUTE), Duration::ZERO);
        let announced = Announced {
            remaining_requests: Some(0),
            reset_requests: Some(Duration::from_secs(30)),
            ..Announced::default()
        };
        one.heed(None, announced, now);
        assert_eq!(other.rest(now), Duration::from_secs(30));
        let some_left = Announced {
            remaining_requests: Some(1),
            reset_requests: Some(Duration::from_secs(50)),
            ..Announced::default()
        };
        one.heed(None, some_left, now);
        assert_eq!(other.rest(now), Duration::from_secs(30));
        one.heed(Some(Duration::MAX), Announced::default(), now);
        assert_eq!(other.rest(now), RETRY_AFTER_MAX);
    }

    #[test]
    fn a_batch_has_a_fourth_of_the_burst_or_what_few_requests_must_carry() {
        let tokens = |more: &[(&str, &str)]| account(rates(), more).batch_tokens();
        let million = ("tokens_per_minute", "1000000");
        assert_eq!(tokens(&[million]), Some(25_000));
        let many = ("requests_per_minute", "3000");
        assert_eq!(tokens(&[million, many]), Some(25_000));
        let few = ("requests_per_minute", "3");
        assert_eq!(tokens(&[("tokens_per_minute", "10000"), few]), Some(3_333));
        assert_eq!(tokens(&[("tokens_per_minute", "1")]), Some(1));
    }

    #[test]
    fn accounts_beyond_the_table_are_limited_by_this_process() {
        let now = 2 * MINUTE;
        let rates = rates();
        for other in 1..=u64::from(u16::MAX) {
            if let Some(entry) = rates.entry(other, now) {
                entry.rest_until(now + MINUTE);
            }
        }
        let limit = [("requests_per_minute", "100"), ("model", "one too many")];
        let account = account(rates, &limit);
        assert!(rates.entry(account.key, now).is_none());
        assert_eq!(burst(account, now), 10);
        // Once others have been idle for long there is room again.
        assert!(rates.entry(account.key, now + 3 * MINUTE).is_some());
    }
}
