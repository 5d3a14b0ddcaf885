//! What the headers of an answer say about rate limits: how much is left, and how long to wait.
//!
//! A header that is missing or malformed says nothing; none of them makes an answer fail.
//!
//! Sources: OpenAI, "Rate limits", section "Rate limits in headers"; Azure OpenAI, "Manage quota"
//! (`retry-after-ms`); RFC 9110, section 10.2.3 (`Retry-After`).

use std::num::NonZeroU32;
use std::time::{Duration, SystemTime};

use ureq::http::{HeaderMap, header};

/// The longest window of a limit; a number of seconds beyond it is a point in time, not a wait.
const MAX_RESET: Duration = Duration::from_secs(24 * 3_600);

/// What is left of an account's limits after a request, as far as the provider says it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Requests that may follow now (`x-ratelimit-remaining-requests`).
    pub remaining_requests: Option<u64>,
    /// Tokens that may follow now (`x-ratelimit-remaining-tokens`).
    pub remaining_tokens: Option<u64>,
    /// Of how many requests and tokens that is (`x-ratelimit-limit-requests`, `x-ratelimit-limit-tokens`).
    pub limit_requests: Option<NonZeroU32>,
    pub limit_tokens: Option<NonZeroU32>,
    /// Until all requests are there again (`x-ratelimit-reset-requests`).
    pub reset_requests: Option<Duration>,
    /// Until all tokens are there again (`x-ratelimit-reset-tokens`).
    pub reset_tokens: Option<Duration>,
}

impl Limits {
    pub(crate) fn of(headers: &HeaderMap) -> Limits {
        let count = |name| text(headers, name)?.parse().ok();
        let limit = |name| text(headers, name)?.parse().ok();
        let wait = |name| duration(text(headers, name)?).filter(|wait| *wait <= MAX_RESET);
        Limits {
            remaining_requests: count("x-ratelimit-remaining-requests"),
            remaining_tokens: count("x-ratelimit-remaining-tokens"),
            limit_requests: limit("x-ratelimit-limit-requests"),
            limit_tokens: limit("x-ratelimit-limit-tokens"),
            reset_requests: wait("x-ratelimit-reset-requests"),
            reset_tokens: wait("x-ratelimit-reset-tokens"),
        }
    }

    /// How long, from the answer on, a request of `tokens` tokens would be refused; zero where it
    /// would not, or where the provider does not say.
    pub fn wait_for(&self, tokens: u64) -> Duration {
        let refused = |left: Option<u64>, wanted| left.is_some_and(|left| left < wanted);
        let wait = |refused, reset: Option<Duration>| reset.filter(|_| refused).unwrap_or_default();
        let requests = wait(refused(self.remaining_requests, 1), self.reset_requests);
        let tokens = wait(refused(self.remaining_tokens, tokens), self.reset_tokens);
        requests.max(tokens)
    }
}

/// How long the server asks to be left alone: milliseconds, seconds or a date. A date counts from
/// the answer's own `Date`, so that a wrong clock does no harm; one that is past says nothing.
pub(crate) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let milliseconds = ["retry-after-ms", "x-ms-retry-after-ms"]
        .iter()
        .find_map(|name| text(headers, name)?.parse::<f64>().ok());
    if let Some(milliseconds) = milliseconds {
        return Duration::try_from_secs_f64(milliseconds / 1_000.0).ok();
    }
    let asked = text(headers, header::RETRY_AFTER.as_str())?;
    if let Ok(seconds) = asked.parse() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let until = httpdate::parse_http_date(asked).ok()?;
    let sent = text(headers, header::DATE.as_str());
    let since = sent.and_then(|date| httpdate::parse_http_date(date).ok());
    until.duration_since(since.unwrap_or(now)).ok()
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// `1s`, `6m0s`, `1h2m3.5s`, `20ms`, or a number of seconds.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.parse() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let mut seconds = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at_checked(digits)?;
        let end = tail.find(|c: char| !c.is_alphabetic());
        let (unit, tail) = tail.split_at_checked(end.unwrap_or(tail.len()))?;
        let scale = match unit {
            "h" => 3_600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        seconds += scale * number.parse::<f64>().ok()?;
        rest = tail;
    }
    (!text.is_empty())
        .then(|| Duration::try_from_secs_f64(seconds).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pairs = pairs.iter();
        pairs
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect()
    }

    fn seconds(seconds: f64) -> Option<Duration> {
        Some(Duration::from_secs_f64(seconds))
    }

    /// Source: https://platform.openai.com/docs/guides/rate-limits, table "Rate limits in
    /// headers", taken 2026-11-23.
    #[test]
    fn openais_headers_say_what_is_left_and_until_when() {
        let limits = Limits::of(&headers(&[
            ("x-ratelimit-limit-requests", "60"),
            ("x-ratelimit-limit-tokens", "150000"),
            ("x-ratelimit-remaining-requests", "59"),
            ("x-ratelimit-remaining-tokens", "149984"),
            ("x-ratelimit-reset-requests", "1s"),
            ("x-ratelimit-reset-tokens", "6m0s"),
        ]));
        assert_eq!(limits.remaining_requests, Some(59));
        assert_eq!(limits.remaining_tokens, Some(149_984));
        assert_eq!(limits.limit_requests, NonZeroU32::new(60));
        assert_eq!(limits.limit_tokens, NonZeroU32::new(150_000));
        assert_eq!(limits.reset_requests, seconds(1.0));
        assert_eq!(limits.reset_tokens, seconds(360.0));
        assert_eq!(limits.wait_for(149_984), Duration::ZERO);
        assert_eq!(limits.wait_for(149_985), Duration::from_secs(360));
        let spent = Limits {
            remaining_requests: Some(0),
            ..limits
        };
        assert_eq!(spent.wait_for(1), Duration::from_secs(1));
    }

    #[test]
    fn headers_that_are_missing_or_malformed_say_nothing() {
        assert_eq!(Limits::of(&HeaderMap::new()), Limits::default());
        let odd = headers(&[
            ("x-ratelimit-remaining-requests", "-1"),
            ("x-ratelimit-remaining-tokens", "many"),
            ("x-ratelimit-reset-requests", "soon"),
            ("x-ratelimit-reset-tokens", "1795392000"),
        ]);
        assert_eq!(Limits::of(&odd), Limits::default());
        assert_eq!(Limits::default().wait_for(u64::MAX), Duration::ZERO);
    }

    #[test]
    fn durations_are_written_as_go_writes_them_or_as_seconds() {
        for (text, wanted) in [
            ("1s", seconds(1.0)),
            ("6m0s", seconds(360.0)),
            ("20ms", seconds(0.02)),
            ("1h2m3.5s", seconds(3_723.5)),
            ("500µs", seconds(0.000_5)),
            ("2", seconds(2.0)),
            ("0.25", seconds(0.25)),
            ("", None),
            ("s", None),
            ("1", seconds(1.0)),
            ("1d", None),
            ("1s2", None),
            ("-1s", None),
            ("1..2s", None),
            ("inf", None),
            ("1e400", None),
        ] {
            assert_eq!(duration(text), wanted, "{text:?}");
        }
    }

    #[test]
    fn retry_after_is_seconds_milliseconds_or_a_date_of_any_of_the_three_forms() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:07 GMT").unwrap();
        for (pairs, wanted) in [
            (&[("retry-after", "20")][..], seconds(20.0)),
            (&[("retry-after", " 1.5 ")], seconds(1.5)),
            (
                &[("retry-after-ms", "250"), ("retry-after", "1")],
                seconds(0.25),
            ),
            (&[("x-ms-retry-after-ms", "250")], seconds(0.25)),
            (
                &[("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT")],
                seconds(30.0),
            ),
            (
                &[("retry-after", "Sunday, 06-Nov-94 08:49:37 GMT")],
                seconds(30.0),
            ),
            (
                &[("retry-after", "Sun Nov  6 08:49:37 1994")],
                seconds(30.0),
            ),
            (
                &[
                    ("retry-after", "Mon, 07 Nov 1994 00:00:10 GMT"),
                    ("date", "Mon, 07 Nov 1994 00:00:00 GMT"),
                ],
                seconds(10.0),
            ),
            (&[("retry-after", "Fri, 31 Dec 1993 23:59:59 GMT")], None),
            (&[("retry-after", "-1")], None),
            (&[("retry-after", "NaN")], None),
            (&[("retry-after", "tomorrow")], None),
            (&[], None),
        ] {
            assert_eq!(retry_after(&headers(pairs), now), wanted, "{pairs:?}");
        }
    }
}
