//! The law of the limiter under random askers and under threads, and what its corners do.

use super::*;

const SECOND: i64 = 1_000_000_000;
/// Long after the clock's start, as on a machine that has run for a while.
const START: i64 = 1_000 * SECOND;

fn entry() -> &'static Entry {
    let rates: &'static Rates = Box::leak(Box::default());
    rates.entry(1, START).unwrap()
}

fn limits(requests: Option<u64>, tokens: Option<u64>) -> Limits {
    Limits {
        requests: requests.map(Pace::per_minute),
        tokens: tokens.map(Pace::per_minute),
    }
}

fn requests(limit: u64) -> Limits {
    limits(Some(limit), None)
}

fn tokens(limit: u64) -> Limits {
    limits(None, Some(limit))
}

/// When a request would be granted; it is used.
fn sent_at(entry: &'static Entry, limits: Limits, tokens: u64, now: i64) -> i64 {
    let grant = entry.ask(limits, tokens, Asker::Session, now, i64::MAX);
    let grant = grant.unwrap();
    let at = grant.at();
    grant.spend();
    at
}

/// That no 60 seconds have more than the limit of these (when, how many), but for one that is alone with more.
#[track_caller]
fn assert_kept(limit: u64, sent: impl Iterator<Item = (i64, u64)>) {
    let mut sent: Vec<(i64, u64)> = sent.collect();
    sent.sort_unstable();
    let (mut first, mut sum) = (0, 0);
    for last in 0..sent.len() {
        sum += sent[last].1;
        while sent[last].0 - sent[first].0 >= 60 * SECOND {
            sum -= sent[first].1;
            first += 1;
        }
        let time = until(sent[last].0, sent[first].0);
        assert!(
            sum <= limit || first == last,
            "{sum} of {limit} in {time:?}"
        );
    }
}

/// Askers that ask at random for little or too much, and use what is granted up to a second late or not at all.
#[test]
fn no_60_seconds_have_more_than_the_limit_whoever_asks_when() {
    for seed in 1..300_u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut random = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        let most_requests = [1, 2, 3, 9, 10, 11, 60, 600][random(8) as usize];
        let most_tokens = [1, 7, 100, 1_000, 150_000][random(5) as usize];
        let limits = match random(3) {
            0 => requests(most_requests),
            1 => tokens(most_tokens),
            _ => limits(Some(most_requests), Some(most_tokens)),
        };
        let entry = entry();
        let longest_step = 1 + random(2 * SECOND as u64);
        let mut askers: Vec<Option<(Grant, i64, u64)>> = (0..6).map(|_| None).collect();
        let mut sent: Vec<(i64, u64)> = Vec::new();
        let mut now = START;
        for _ in 0..3_000 {
            now += random(longest_step) as i64;
            for asker in &mut askers {
                if let Some((grant, at, count)) = asker.take_if(|(_, at, _)| *at <= now) {
                    if random(10) > 0 {
                        sent.push((at, count));
                        grant.spend();
                    }
                } else if asker.is_none() && random(4) == 0 {
                    let share = [1, 2, 30, 30, 30, 30][random(6) as usize];
                    let count = 1 + random(2 * most_tokens / share + 1);
                    let who = [Asker::Worker, Asker::Session][random(2) as usize];
                    if let Ok(grant) = entry.ask(limits, count, who, now, now + 300 * SECOND) {
                        let at = grant.at() + random(SLACK as u64) as i64;
                        *asker = Some((grant, at, count));
                    }
                }
            }
        }
        if limits.requests.is_some() {
            assert_kept(most_requests, sent.iter().map(|(at, _)| (*at, 1)));
        }
        if limits.tokens.is_some() {
            assert_kept(most_tokens, sent.iter().copied());
        }
    }
}

#[test]
fn threads_that_ask_at_once_get_no_more_than_one_would() {
    let entry = entry();
    let both = limits(Some(600), Some(9_000));
    let ask = || {
        let mut sent = Vec::new();
        for number in 0..500 {
            let count = 1 + number % 30;
            sent.push((sent_at(entry, both, count, START), count));
        }
        sent
    };
    let sent: Vec<(i64, u64)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
        let sent = threads.into_iter().map(|thread| thread.join().unwrap());
        sent.flatten().collect()
    });
    assert_eq!(sent.len(), 4_000);
    assert_kept(600, sent.iter().map(|(at, _)| (*at, 1)));
    assert_kept(9_000, sent.iter().copied());
    // And not much less either: nothing that was charged was lost in the races.
    let took = sent.iter().map(|(at, _)| at - START).max().unwrap();
    let total: u64 = sent.iter().map(|(_, count)| count).sum();
    let least = total as i64 * 60 * SECOND / 9_000;
    assert!(took < least + least / 6, "{took} for what takes {least}");
}

#[test]
fn no_charge_is_lost_among_threads() {
    let entry = entry();
    let limit = requests(1_000_000);
    let ask = || {
        for _ in 0..50_000 {
            sent_at(entry, limit, 0, START);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(ask);
        }
    });
    let charged = entry.requests.load(SeqCst) - START;
    assert_eq!(charged, 200_000 * Pace::per_minute(1_000_000).interval);
}

#[test]
fn a_tenth_goes_at_once_and_the_rest_evenly() {
    let entry = entry();
    let ten = requests(100);
    let at: Vec<i64> = (0..12).map(|_| sent_at(entry, ten, 0, START)).collect();
    assert_eq!(at[..10], [START; 10]);
    let interval = at[11] - at[10];
    assert_eq!(at[10] - START, interval);
    assert!((0.65..0.68).contains(&(interval as f64 / SECOND as f64)));
    // After a pause there is a burst again, and not two.
    let later = START + 3_600 * SECOND;
    let at: Vec<i64> = (0..11).map(|_| sent_at(entry, ten, 0, later)).collect();
    assert_eq!(at[9], later);
    assert_eq!(at[10], later + interval);
}

#[test]
fn one_request_a_minute_is_one_a_minute() {
    let entry = entry();
    let at: Vec<i64> = (0..3)
        .map(|_| sent_at(entry, requests(1), 0, START) - START)
        .collect();
    assert_eq!(at, [0, 61 * SECOND, 122 * SECOND]);
}

#[test]
fn more_tokens_than_a_minute_has_go_alone_and_are_not_kept_out_by_small_requests() {
    let entry = entry();
    let limit = tokens(1_000);
    let before = sent_at(entry, limit, 1, START);
    let large = sent_at(entry, limit, 5_000, START);
    assert!((60..63).contains(&((large - before) / SECOND)), "{large}");
    let mut after = i64::MAX;
    for second in 1..60 {
        after = after.min(sent_at(entry, limit, 1, START + second * SECOND));
    }
    assert!((60..63).contains(&((after - large) / SECOND)), "{after}");
}

#[test]
fn the_limit_that_is_reached_first_decides() {
    let entry = entry();
    let both = limits(Some(10), Some(6_000));
    assert_eq!(sent_at(entry, both, 600, START), START);
    // The next request may go after 6.1 s, as many tokens again after 6.8 s.
    let by_tokens = sent_at(entry, both, 600, START);
    assert!((6..7).contains(&((by_tokens - START) / SECOND)));
    let by_requests = sent_at(entry, both, 1, by_tokens);
    assert!((6..7).contains(&((by_requests - by_tokens) / SECOND)));
}

#[test]
fn what_comes_too_late_or_is_not_used_costs_nothing() {
    let entry = entry();
    let limit = requests(10);
    assert_eq!(sent_at(entry, limit, 0, START), START);
    let ask = |latest| entry.ask(limit, 0, Asker::Session, START, latest);
    let next = ask(START + 5 * SECOND).unwrap_err();
    assert!(next > START + 5 * SECOND);
    for _ in 0..3 {
        let grant = ask(next).unwrap();
        assert_eq!(grant.at(), next);
        assert!(!grant.has_lapsed(next + SLACK - 1) && grant.has_lapsed(next + SLACK));
    }
}

#[test]
fn a_worker_leaves_something_to_sessions() {
    let entry = entry();
    let limit = requests(400);
    let now = |who| entry.ask(limit, 0, who, START, START).map(Grant::spend);
    let workers = std::iter::from_fn(|| now(Asker::Worker).ok()).count();
    let sessions = std::iter::from_fn(|| now(Asker::Session).ok()).count();
    assert_eq!((workers, sessions), (30, 10));
}

#[test]
fn the_providers_count_replaces_the_estimate() {
    for (counted, wanted) in [(10, 90), (150, 0), (100, 0)] {
        let entry = entry();
        let limit = tokens(1_000);
        let grant = entry.ask(limit, 100, Asker::Session, START, START);
        grant.unwrap().spend().correct(counted, START + 1);
        let one = || entry.ask(limit, 1, Asker::Session, START, START);
        let left = std::iter::from_fn(|| one().ok().map(Grant::spend)).count();
        assert_eq!(left, wanted, "of 100 after {counted}");
    }
    // What would have been free again by now is not given twice.
    let entry = entry();
    let limit = tokens(1_000);
    let grant = entry.ask(limit, 100, Asker::Session, START, START);
    let spent = grant.unwrap().spend();
    let later = START + 100 * SECOND;
    sent_at(entry, limit, 100, later);
    spent.correct(10, later);
    assert!(entry.ask(limit, 1, Asker::Session, later, later).is_err());
}

#[test]
fn what_is_left_is_what_would_be_granted_now() {
    let entry = entry();
    let limit = requests(60);
    let left = |now| entry.left(limit, now)[0].unwrap().now;
    assert_eq!((left(START), entry.left(limit, START)[1]), (6, None));
    for asked in 1..20 {
        let now = START + asked * SECOND / 3;
        sent_at(entry, limit, 0, START);
        let shown = left(now);
        let one = || entry.ask(limit, 0, Asker::Session, now, now);
        let grants: Vec<Grant> = std::iter::from_fn(|| one().ok()).collect();
        assert_eq!(shown, grants.len() as u64, "after {asked}");
        grants.into_iter().rev().for_each(drop); // given back
    }
    // The provider's word counts where it is narrower.
    let later = START + 600 * SECOND;
    entry.said()[0].set(2, Some(100), None, later);
    let narrower = entry.left(limit, later)[0];
    assert_eq!(
        narrower.map(|left| (left.now, left.limit)),
        Some((2, Some(60)))
    );
}

#[test]
fn an_account_that_takes_anothers_counters_does_not_take_what_was_said_to_it() {
    let rates: &'static Rates = Box::leak(Box::default());
    let said = |key, now| rates.left(key, Limits::default(), now)[0].map(|left| left.now);
    for key in 1..=ENTRIES as u64 {
        let entry = rates.entry(key, START).unwrap();
        entry.said()[0].set(key, None, None, START);
    }
    assert_eq!((said(7, START), said(1_000, START)), (Some(7), None));
    assert!(rates.entry(1_000, START).is_some(), "others are idle");
    assert_eq!(said(1_000, START), None);
}

#[test]
fn the_clock_runs_on() {
    let before = now();
    std::thread::sleep(Duration::from_millis(2));
    let passed = until(now(), before);
    assert!((1..1_000).contains(&passed.as_millis()), "{passed:?}");
    assert_eq!(until(before, now()), Duration::ZERO);
}
