//! A session's turn: when the limits of the account let its request go.
//!
//! It never waits longer than the caller can, and never at all for what will not be in time: then it says when.

use std::time::{Duration, Instant};

use crate::embed::account::Account;
use crate::embed::rate::{self, Asker, Spent};
use crate::embed::tokens::estimate_tokens;
use crate::error::{Error, Result};
use crate::worker::process::Bell;

/// Waits, cancellable, until `input` may be sent.
///
/// # Errors
/// [`Error::RateLimited`] at once, where that would be after `deadline`.
pub fn wait(
    server: &str,
    account: &Account,
    input: &str,
    deadline: Instant,
    bell: &mut Bell,
) -> Result<Spent> {
    let refused = |wait: Duration, reason| Error::RateLimited {
        server: server.to_owned(),
        seconds: wait.as_millis().div_ceil(1_000) as u64,
        reason,
    };
    let tokens = if account.counts_tokens() {
        estimate_tokens(input)
    } else {
        0
    };
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let now = rate::now();
        let rest = account.rest(now);
        if rest > left {
            return Err(refused(rest, "it has asked to be left alone until then"));
        }
        if !rest.is_zero() {
            sleep(bell, rest);
            continue;
        }
        let latest = now.saturating_add(left.as_nanos() as i64);
        let grant = match account.ask(tokens, Asker::Session, now, latest) {
            Ok(grant) => grant,
            Err(at) => {
                let wait = rate::until(at, now);
                return Err(refused(wait, "the account's limit a minute is reached"));
            }
        };
        loop {
            let now = rate::now();
            if !account.rest(now).is_zero() || grant.has_lapsed(now) {
                break;
            }
            let wait = rate::until(grant.at(), now);
            if wait.is_zero() {
                return Ok(grant.spend());
            }
            sleep(bell, wait);
        }
    }
}

fn sleep(bell: &mut Bell, time: Duration) {
    bell.wait(time + Duration::from_millis(1));
}
