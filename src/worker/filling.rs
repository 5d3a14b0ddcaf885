//! Backfills: the next slices, where nothing live waits; how fast they go, how far they are, and what they wait for.
//!
//! It never renders a row, and never holds up a change: only rows that were there before wait here.

use std::collections::VecDeque;
use std::ffi::CString;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use super::leader::{Leader, report};
use super::process::{Failed, guard_user_code, transaction};
use super::running::{Running, State};
use crate::catalog::change::Cause;
use crate::catalog::names::select_one;
use crate::catalog::pipeline::Pipeline;
use crate::dispatch::backfill::throttle::Throttle;
use crate::dispatch::backfill::{self, Rows, size};
use crate::dispatch::queue::{Lane as QueueLane, Queue};
use crate::error::sqlstate_text;
use crate::settings;
use crate::shared::Counters;
use crate::store::adopted;

/// Over how long the rate is measured.
const MEASURED: Duration = Duration::from_secs(60);

/// How often standbys are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Milliseconds by which the slowest standby is behind. Logical subscribers, and copies that are being taken, replay nothing.
const LAG: &str = "\
SELECT (extract(epoch FROM pg_catalog.max(r.replay_lag)) * 1000)::bigint FROM pg_catalog.pg_stat_replication r
 WHERE r.state = 'streaming'
   AND NOT EXISTS (SELECT FROM pg_catalog.pg_replication_slots s WHERE s.active_pid = r.pid AND s.slot_type = 'logical')";

/// A pipeline's backfill, as this worker knows it.
#[derive(Default)]
pub struct Filler {
    pub throttle: Throttle,
    /// Rows that are done, and about how many there are.
    done: i64,
    total: Option<i64>,
    /// When how many were done, in the last minute or so.
    samples: VecDeque<(Instant, i64)>,
}

impl Filler {
    /// From where it stands.
    pub fn start(&mut self, pipeline: &Pipeline) {
        self.done = pipeline.filling.done;
        self.total = pipeline.filling.total;
        self.samples = VecDeque::from([(Instant::now(), self.done)]);
        self.set_rate(pipeline);
    }

    pub fn set_rate(&mut self, pipeline: &Pipeline) {
        self.throttle.set(rate(pipeline));
    }

    /// Rows have been done.
    pub fn passed(&mut self, rows: i64, now: Instant) {
        self.done += rows;
        self.samples.push_back((now, self.done));
        while self.samples.len() > 2
            && self
                .samples
                .get(1)
                .is_some_and(|(at, _)| now.saturating_duration_since(*at) > MEASURED)
        {
            self.samples.pop_front();
        }
    }

    /// Rows a second, as of late.
    pub fn rate(&self) -> Option<f64> {
        let ((since, first), (until, last)) = self.samples.front().zip(self.samples.back())?;
        let seconds = until.saturating_duration_since(*since).as_secs_f64();
        (last > first && seconds > 0.0).then(|| (last - first) as f64 / seconds)
    }

    /// `12000 of 20000 rows`.
    fn text(&self) -> String {
        match self.total {
            Some(total) => format!("{} of {} rows", self.done, total.max(self.done)),
            None => format!("{} rows", self.done),
        }
    }
}

/// Rows a second; 0: no limit.
fn rate(pipeline: &Pipeline) -> u32 {
    pipeline
        .filling
        .rate
        .unwrap_or_else(settings::backfill_rate)
}

impl Running {
    /// What somebody has said of the backfill, where it goes on.
    pub fn take_over_filling(&mut self, declared: &Pipeline) {
        let (is, said) = (&mut self.pipeline.filling, &declared.filling);
        (is.held, is.advised, is.adopted) = (said.held, said.advised, said.adopted);
        self.renderer.adopts(said.adopted);
    }

    /// Whether there are rows that were there before and have not been queued.
    pub fn wants_slice(&self) -> bool {
        self.reads_rows() && !self.pipeline.filling.held
    }

    /// Whether all rows are to be looked at once more, by itself.
    fn is_advised(&self) -> bool {
        self.pipeline.backfilled && self.pipeline.filling.advised && settings::auto_verify()
    }

    /// Whether the vectors that were there before are of no use any more.
    fn has_done_with_adopted(&self) -> bool {
        self.pipeline.backfilled && self.pipeline.filling.adopted
    }

    /// In how long its backfill has something to do; `None`: not by itself.
    pub fn fills_in(&self, queue: &Queue, standbys: &Standbys, now: Instant) -> Option<Duration> {
        let id = self.pipeline.id;
        let renders =
            !self.is_full(QueueLane::Backfill) && queue.waits(id, QueueLane::Backfill) > 0;
        let begins = self.wants_slice() || self.is_advised() || self.has_done_with_adopted();
        (renders || begins && !queue.has_slice(id)).then(|| standbys.rest(&self.filling, now))
    }
}

/// What is known of the standbys.
#[derive(Default)]
pub struct Standbys {
    looked_at: Option<Instant>,
    pub behind: bool,
}

impl Standbys {
    /// In how long rows of a backfill may be taken; zero: now.
    pub fn rest(&self, filler: &Filler, now: Instant) -> Duration {
        let looks = self.looked_at.map_or(now, |at| at + LOOK);
        let behind = match self.behind {
            true => looks
                .saturating_duration_since(now)
                .max(Duration::from_millis(1)),
            false => Duration::ZERO,
        };
        behind.max(filler.throttle.rest(now))
    }
}

impl Leader {
    /// The next slices of backfills, where nothing live waits.
    pub(super) fn backfill(&mut self) -> std::result::Result<(), Failed> {
        self.look_at_standbys()?;
        let ids: Vec<i32> = self.pipelines.keys().copied().collect();
        for id in ids {
            self.start_over_if_advised(id)?;
            if !self.standbys.behind {
                self.next_slice(id)?;
            }
            self.forget_adopted(id)?;
        }
        Ok(())
    }

    /// Nobody has seen what became of the rows: all of them are looked at.
    fn start_over_if_advised(&mut self, id: i32) -> std::result::Result<(), Failed> {
        let running = self.pipelines.get_mut(&id).and_then(State::running);
        let Some(running) = running.filter(|running| running.is_advised()) else {
            return Ok(());
        };
        if self.queue.has_slice(id) {
            return Ok(()); // the last one has to be over
        }
        running.pipeline.filling.advised = false;
        transaction(|| backfill::follow_advice(id))?;
        self.database.catalog_changed.store(true, SeqCst);
        Ok(())
    }

    /// What was there before has been taken, or is of no use.
    fn forget_adopted(&mut self, id: i32) -> std::result::Result<(), Failed> {
        let running = self.pipelines.get_mut(&id).and_then(State::running);
        let Some(running) = running.filter(|running| running.has_done_with_adopted()) else {
            return Ok(());
        };
        if !self.queue.has_slice(id) {
            let more = transaction(|| adopted::forget(id))?;
            running.pipeline.filling.adopted = more;
            running.renderer.adopts(more);
        }
        Ok(())
    }

    fn next_slice(&mut self, id: i32) -> std::result::Result<(), Failed> {
        let Some(running) = self.pipelines.get_mut(&id).and_then(State::running) else {
            return Ok(());
        };
        if !running.wants_slice() || self.queue.waits(id, QueueLane::Backfill) > backfill::SLICE / 2
        {
            return Ok(());
        }
        let after = running.pipeline.backfill_after.clone();
        let pipeline = &running.pipeline;
        let filter = pipeline.filling.row_filter.as_deref();
        let rows = Rows {
            of: &pipeline.rows_of,
            keys: pipeline.keys(),
            column: |key| &key.column,
            owner: pipeline.owner(),
        };
        // So few that the position moves about once a second.
        let most = match rate(pipeline) {
            0 => backfill::SLICE,
            rate => (rate as usize).min(backfill::SLICE),
        };
        let slice = transaction(|| {
            guard_user_code()?;
            backfill::slice_of(&rows, after.as_deref(), most, filter)
        });
        let slice = match slice {
            Ok(slice) => slice,
            Err(failed) => {
                let relation = running.pipeline.relation.clone();
                report(Some(&relation), &failed);
                return match filter {
                    Some(_) => self.hold_for_filter(id, &failed),
                    None => self
                        .pause_unless_changed(id, &failed.message, Cause::Declaration)
                        .map(drop),
                };
            }
        };
        if running.filling.total.is_none() {
            running.filling.total = expect(&running.pipeline);
        }
        let looked = slice.len();
        let last = looked < most;
        let up_to = match last {
            true => None,
            false => slice.last().map(|(key, _)| key.clone()),
        };
        running.pipeline.backfill_after.clone_from(&up_to);
        running.pipeline.backfilled = last;
        let round = running.pipeline.backfill_round;
        let wanted = slice.into_iter().filter(|(_, wanted)| *wanted);
        let wanted = wanted.map(|(key, _)| key).collect();
        self.queue_slice(id, round, wanted, up_to, looked as i64);
        Ok(())
    }

    /// What is to be looked at cannot be told from the rest; changes go on.
    fn hold_for_filter(&mut self, id: i32, failed: &Failed) -> std::result::Result<(), Failed> {
        let reason = format!(
            "the row_filter of its backfill fails (SQLSTATE {}): mend the rows and call recsync.resume, or call recsync.backfill with another one",
            sqlstate_text(failed.code)
        );
        transaction(|| backfill::hold(id, &reason))?;
        if let Some(running) = self.pipelines.get_mut(&id).and_then(State::running) {
            running.pipeline.filling.held = true;
        }
        Ok(())
    }

    /// Once a second, where there is something to fill.
    fn look_at_standbys(&mut self) -> std::result::Result<(), Failed> {
        let Some(most) = settings::max_replica_lag() else {
            self.standbys.behind = false;
            return Ok(());
        };
        let queue = &self.queue;
        let fills = self.pipelines.iter_mut().any(|(id, state)| {
            state.running().is_some_and(|running| running.wants_slice())
                || queue.waits(*id, QueueLane::Backfill) > 0
        });
        let looked = self.standbys.looked_at;
        if !fills || looked.is_some_and(|at| at.elapsed() < LOOK) {
            return Ok(());
        }
        self.standbys.looked_at = Some(Instant::now());
        let lag = transaction(|| select_one::<i64>(LAG, &[]))?;
        self.standbys.behind = lag.is_some_and(|lag| lag > most.as_millis() as i64);
        Ok(())
    }

    /// How many rows of a backfill may be taken now.
    pub(super) fn filling_allows(&self, id: i32, most: usize) -> usize {
        match self.pipelines.get(&id) {
            Some(State::Runs(running)) if !self.standbys.behind => {
                running.filling.throttle.allows(Instant::now(), most)
            }
            _ => 0,
        }
    }

    /// What it says of the backfill of a pipeline, in numbers.
    pub(super) fn publish_filling(&self, id: i32, counters: &Counters) {
        let Some(State::Runs(running)) = self.pipelines.get(&id) else {
            return;
        };
        let fills = !running.pipeline.backfilled || self.queue.has_slice(id);
        let rate = running.filling.rate().filter(|_| fills).unwrap_or(0.0);
        counters
            .filled_per_1000_s
            .store((rate * 1_000.0) as i64, SeqCst);
        let waits = fills && !running.pipeline.filling.held && self.standbys.behind;
        counters.waits_for_standby.store(waits, SeqCst);
    }

    /// What pg_stat_activity shows.
    pub(super) fn activity(&self) -> CString {
        let fills = self.pipelines.iter().find_map(|(id, state)| match state {
            State::Runs(running)
                if !running.pipeline.filling.held
                    && (!running.pipeline.backfilled || self.queue.has_slice(*id)) =>
            {
                Some(running)
            }
            _ => None,
        });
        let text = match fills {
            Some(running) => format!(
                "recsync: backfill {}: {}{}",
                running.pipeline.relation,
                running.filling.text(),
                match self.standbys.behind {
                    true => ", waiting for a standby",
                    false => "",
                }
            ),
            None => "recsync: working".to_owned(),
        };
        CString::new(text).unwrap_or_default()
    }
}

/// About how many rows it will have looked at: noted, and not worth a failure.
fn expect(pipeline: &Pipeline) -> Option<i64> {
    let counted = transaction(|| {
        guard_user_code()?;
        let total = size::rows(pipeline.source_oid(), &pipeline.rows_of, pipeline.owner())?;
        backfill::expect(pipeline.id, pipeline.backfill_round, total)?;
        Ok(total)
    });
    match counted {
        Ok(total) => Some(total),
        Err(failed) => {
            report(Some(&pipeline.relation), &failed);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_last_minute() {
        let start = Instant::now();
        let mut filler = Filler {
            samples: VecDeque::from([(start, 0)]),
            ..Filler::default()
        };
        assert_eq!(filler.rate(), None);
        for second in 1..=300 {
            let rows = if second <= 200 { 1_000 } else { 10 };
            filler.passed(rows, start + Duration::from_secs(second));
            if second == 200 {
                assert!((filler.rate().unwrap() - 1_000.0).abs() < 1.0);
            }
        }
        assert!((filler.rate().unwrap() - 10.0).abs() < 0.1);
        assert!(filler.samples.len() < 65);
        assert_eq!(filler.text(), "201000 rows");
        filler.total = Some(300_000);
        assert_eq!(filler.text(), "201000 of 300000 rows");
    }
}
