//! What becomes of the rows of one request: their vectors have come, or it has failed.
//!
//! It never sends anything, and knows of no other request.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::{Landed, Verdict};
use crate::embed::failure::{Class, Failure, describe};
use crate::embed::long_text::{Mode, Part};
use crate::embed::retry::backoff;
use crate::worker::ready::Ready;
use crate::worker::running::Running;

/// What is known of the provider when a row fails.
pub struct Blame {
    /// It answers nobody well.
    pub provider_is_blamed: bool,
    /// When it last did before.
    pub healthy_since: Option<i64>,
}

/// Vectors of a row have come: of all of its parts, or the others are next. Of a row that is rendered anew (not `own`) they
/// are only kept.
pub fn arrived<'a>(
    mut ready: Ready,
    own: bool,
    vectors: impl Iterator<Item = Option<&'a Vec<f32>>>,
    running: &mut Running,
    landed: &mut Landed,
) {
    let parts: Vec<&mut Part> = ready.pending_mut().collect();
    for (part, vector) in parts.into_iter().zip(vectors) {
        part.vector = vector.cloned();
    }
    if !own {
        running.spare.extend(ready.spare());
        return;
    }
    if !ready.is_complete() {
        ready.most = ready.most.saturating_mul(2);
        running.push_first(ready);
        return;
    }
    let coalesced = ready.job.coalesced();
    let tokens = ready.would_cost(&running.renderer.rate);
    landed.saved.coalesced.add(coalesced, coalesced * tokens);
    landed.truncated += u64::from(ready.parts.iter().any(|part| part.cut));
    let lane = ready.lane;
    let embedded = ready.into_embedded(running.long_text.mode);
    landed.embedded.push((lane, embedded));
}

pub fn fail(
    failure: Failure,
    mut rows: Vec<Ready>,
    running: &mut Running,
    landed: &mut Landed,
    blame: Blame,
    jitter: &mut impl FnMut() -> f64,
) {
    let texts = rows
        .iter()
        .flat_map(Ready::sent)
        .map(|part| &part.hash)
        .collect::<std::collections::HashSet<_>>()
        .len();
    let suspicious = match failure.class {
        Class::Permanent | Class::Temporary => true,
        // One row's text may be what makes the provider fail: a limit or a dead line is nobody's fault.
        Class::Provider => failure.status.is_some() && !failure.rate_limited,
        Class::Configuration => {
            landed
                .configuration
                .get_or_insert_with(|| describe(&failure));
            false
        }
    };
    // Fewer may be answered in time.
    if (suspicious || failure.timed_out) && texts > 1 {
        running.halves.extend(halves(rows, failure.too_long));
        return;
    }
    if failure.class == Class::Configuration {
        rows.into_iter().for_each(|ready| running.push_ready(ready));
        return;
    }
    if failure.class == Class::Provider && !suspicious {
        running.halves.push_front(rows);
        return;
    }
    if failure.too_long {
        rows.retain_mut(|ready| {
            let is_smaller = cut_again(ready, running.long_text.mode);
            if is_smaller {
                running.halves.push_front(vec![ready.clone()]);
            }
            !is_smaller
        });
    }
    for ready in rows {
        let mut job = ready.job.clone();
        // A failure of the provider is the row's own only where the provider has answered others since.
        let charged = match failure.class {
            Class::Provider => job
                .last_attempt_us
                .zip(blame.healthy_since)
                .is_some_and(|(last, healthy)| healthy > last),
            Class::Temporary => !blame.provider_is_blamed,
            Class::Permanent | Class::Configuration => true,
        };
        job.attempt += u32::from(charged);
        job.last_attempt_us = Some(microseconds_at(Instant::now()));
        let give_up =
            failure.class == Class::Permanent || job.attempt >= running.endpoint.max_attempts;
        landed.verdicts.push(if give_up && charged {
            Verdict::Bury {
                job,
                failure: of_part(&failure, &ready),
            }
        } else {
            let delay = backoff(job.attempt.max(1), jitter());
            Verdict::Retry { job, delay }
        });
        running.spare.extend(ready.spare());
    }
}

/// What failed together, in two requests: half of the rows each, or half of the parts of the only row. Where a text is too
/// long, the longer ones go together, and one that stands out goes alone.
fn halves(mut rows: Vec<Ready>, too_long: bool) -> Vec<Vec<Ready>> {
    for ready in &mut rows {
        ready.most = ready.sends;
    }
    if let [row] = &mut rows[..] {
        row.most = row.sends / 2;
        return vec![rows];
    }
    let mut at = rows.len() / 2;
    if too_long {
        let longest = |ready: &Ready| ready.sent().map(|part| part.text.len()).max();
        rows.sort_by_key(longest);
        let mut sizes = rows.iter().rev().filter_map(longest);
        if sizes.next() > sizes.next().map(|second| second * 2) {
            at = rows.len() - 1;
        }
    }
    let half = rows.split_off(at);
    vec![rows, half]
}

/// What was refused as too long becomes smaller parts, to be sent again; false where that was tried often enough.
fn cut_again(ready: &mut Ready, mode: Mode) -> bool {
    let mut parts = ready.parts.iter_mut().enumerate();
    let refused = parts.find(|(_, part)| part.vector.is_none());
    let smaller = refused.and_then(|(at, part)| Some((at, part.cut_again(mode)?)));
    let Some((at, smaller)) = smaller else {
        return false;
    };
    ready.parts.splice(at..=at, smaller);
    true
}

/// A row of several parts says which of them it was.
fn of_part(failure: &Failure, ready: &Ready) -> Failure {
    let at = ready.parts.iter().position(|part| part.vector.is_none());
    match (at, ready.parts.len()) {
        (Some(at), count @ 2..) => Failure {
            message: format!("chunk {} of {count}: {}", at + 1, failure.message),
            ..failure.clone()
        },
        _ => failure.clone(),
    }
}

/// An instant as microseconds since the epoch, as PostgreSQL's clock would have it.
pub fn microseconds_at(instant: Instant) -> i64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    (now.saturating_sub(instant.elapsed())).as_micros() as i64
}
