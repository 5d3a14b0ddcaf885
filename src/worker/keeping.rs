//! What is kept for recommenders: changed interactions and those that were there before, a chunk at a time.
//!
//! It never works for long before the log is looked at again, and never lets a bad row hold up the others: a chunk that
//! fails is halved until the row is alone, which is put aside as a dead letter.

use pgrx::prelude::*;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use super::intake::MOST_IN_MEMORY;
use super::interests::Due;
use super::latency::Change;
use super::leader::Leader;
use super::load::RESTORE;
use super::process::{
    Failed, guard_user_code, is_definition, is_passing, release_user_code, transaction,
};
use super::telling::was_paused;
use super::trainer::Progress;
use super::warming::Warming;
use crate::catalog::pipeline::Trouble;
use crate::catalog::recommender::{self, Recommender, tables};
use crate::dispatch::backfill;
use crate::dispatch::jobs;
use crate::dispatch::queue::{Job, Lane, RowKey};
use crate::dispatch::read::Block;
use crate::error::{Error, Result, sqlstate_text};
use crate::hooks::outbox;
use crate::recommend::interest::is_made_otherwise;
use crate::recommend::keep::{Keeper, Rows};

/// Interactions taken at once.
const CHUNK: usize = 256;
/// How long a round spends on one kind of work: texts and vectors wait no longer for it.
const SLICE: Duration = Duration::from_millis(20);
/// A chunk may take longer than that: then interests, which are behind by so much, may as well, up to this.
const LONGEST: Duration = Duration::from_millis(100);
/// After a failure that passes by itself.
pub(super) const REST: Duration = Duration::from_secs(1);

/// A recommender as the worker runs it.
pub struct Keeping {
    pub recommender: Recommender,
    pub(super) keeper: Keeper,
    /// What is to be done for the interests of its users.
    pub(super) due: Due,
    pub(super) warming: Warming,
    rests_until: Option<Instant>,
    /// All its rows are to be looked at again: too much has changed at once to be remembered row by row.
    starts_over: bool,
    /// Lists of neighbours may have to be counted anew.
    pub(super) may_be_stale: bool,
    /// Not before that: somebody had one of them locked.
    pub(super) counts_from: Option<Instant>,
    /// When it was last looked whether they are many.
    pub(super) were_many_at: Option<Instant>,
    pub(super) training: Progress,
}

impl Leader {
    /// Takes up what is declared.
    pub(super) fn load_recommenders(
        &mut self,
        declared: Vec<Recommender>,
    ) -> std::result::Result<(), Failed> {
        let mut known = std::mem::take(&mut self.recommenders);
        for recommender in declared {
            let id = recommender.id;
            let keeping = match known.remove(&id) {
                Some(mut keeping)
                    if keeping.recommender.is_declared_as(&recommender)
                        && !is_outdated(&recommender) =>
                {
                    let read = recommender.backfilled && !keeping.recommender.backfilled;
                    if read || keeping.recommender.backfill_round != recommender.backfill_round {
                        keeping.recommender.take_position(&recommender);
                    }
                    keeping.recommender.take_training(&recommender);
                    keeping.training.look_again(&recommender);
                    Some(keeping)
                }
                before => {
                    // Some may have been made by the rule of before in this round.
                    let was = before.as_ref().map(|before| &before.recommender);
                    if was.is_some_and(|was| is_made_otherwise(was, &recommender)) {
                        transaction(|| tables::forget_interests(recommender.of))?;
                    }
                    self.taken_up(recommender, before.is_some())?
                }
            };
            match keeping {
                Some(mut keeping) => {
                    keeping.warming.look_again();
                    self.recommenders.insert(id, keeping);
                }
                None => self.queue.forget(id),
            }
        }
        for id in known.into_keys() {
            self.queue.forget(id);
        }
        Ok(())
    }

    fn taken_up(
        &mut self,
        mut recommender: Recommender,
        ran: bool,
    ) -> std::result::Result<Option<Keeping>, Failed> {
        let id = recommender.id;
        if recommender.paused {
            return Ok(None);
        }
        if let Some(trouble) = recommender.trouble() {
            let since = *self.incomplete.since.entry(id).or_insert_with(Instant::now);
            match trouble {
                Trouble::Broken(reason) if ran || since.elapsed() > RESTORE => {
                    note_pause(&recommender, &reason)?;
                }
                _ => {
                    self.restoring = true;
                    transaction(|| backfill::restart(&[id]))?;
                }
            }
            return Ok(None);
        }
        self.incomplete.since.remove(&id);
        // After a restore its tables are not there, after a change of owner they are not the owner's. After a crash an
        // unlogged table is empty, and nobody says so.
        if !recommender.is_kept() || recommender.unlogged && !ran {
            let loaded = transaction(|| tables::made_again(id));
            match loaded {
                Ok(Some(loaded)) if loaded.is_kept() => recommender = loaded,
                Ok(Some(_)) => {
                    self.restoring = true;
                    return Ok(None);
                }
                Ok(None) => return Ok(None),
                Err(failed) => {
                    report(&recommender, &failed);
                    note_pause(&recommender, &failed.message)?;
                    return Ok(None);
                }
            }
        }
        if is_outdated(&recommender) {
            // The items' vectors are of another generation: those of interests are made of the interactions until then.
            let made = transaction(|| {
                wait_briefly()?;
                tables::interests_again(id)
            });
            match made {
                Ok(Some(made)) => recommender = made,
                Ok(None) => return Ok(None),
                Err(failed) => {
                    report(&recommender, &failed);
                    self.restoring = true; // soon again
                }
            }
        }
        match Keeper::new(&recommender) {
            Ok(keeper) => Ok(Some(Keeping {
                training: Progress::of(&recommender),
                recommender,
                keeper,
                due: Due::default(),
                warming: Warming::default(),
                rests_until: None,
                starts_over: false,
                may_be_stale: true,
                counts_from: None,
                were_many_at: None,
            })),
            Err(error) => {
                note_pause(&recommender, &error.to_string())?;
                Ok(None)
            }
        }
    }

    /// Changes of the log, row by row.
    pub(super) fn dispatch_to_recommenders(&mut self, block: &Block, ticket: u64) {
        let database = self.database_oid();
        let change = Change::of(block, &self.shared.commits);
        for (id, keeping) in &mut self.recommenders {
            if keeping.recommender.source_id != block.source_id {
                continue;
            }
            if let Some(counters) = self.shared.counters_or_new(database, *id) {
                counters.last_change_us.store(block.changed_at, SeqCst);
            }
            let full = self.queue.waits(*id, Lane::Live) >= MOST_IN_MEMORY;
            keeping.starts_over |= full || matches!(block.op, 'T' | 'R');
            if keeping.starts_over {
                continue;
            }
            let width = keeping.recommender.keys().len();
            // Keys of another width were logged before the primary key was another.
            for key in block.keys.iter().chain(&block.old_keys) {
                if key.len() == width {
                    let row = row_of(*id, key);
                    self.latency
                        .changed(&row, change, || self.queue.is_taken(&row));
                    self.queue.add(row, Lane::Live, Some(ticket));
                }
            }
        }
    }

    /// Those for which too much has changed look at all rows again: that is written before the checkpoint may pass.
    pub(super) fn start_over(&mut self) -> std::result::Result<(), Failed> {
        let wanted = self.recommenders.values_mut();
        let ids: Vec<i32> = wanted
            .filter_map(|keeping| {
                std::mem::take(&mut keeping.starts_over).then_some(keeping.recommender.id)
            })
            .collect();
        self.restart(&ids)
    }

    fn restart(&mut self, ids: &[i32]) -> std::result::Result<(), Failed> {
        if ids.is_empty() {
            return Ok(());
        }
        let positions = transaction(|| {
            backfill::restart(ids)?;
            ids.iter()
                .map(|id| recommender::by_id(*id))
                .collect::<crate::error::Result<Vec<_>>>()
        })?;
        for position in positions.into_iter().flatten() {
            self.queue.forget(position.id);
            self.latency.keep(|other| other != position.id);
            if let Some(keeping) = self.recommenders.get_mut(&position.id) {
                keeping.recommender.take_position(&position);
            }
        }
        Ok(())
    }

    /// What waits is taken, changes first, for a slice of time; a chunk of each recommender in any case. How long it took.
    pub(super) fn keep(&mut self) -> std::result::Result<Duration, Failed> {
        let ids: Vec<i32> = self.recommenders.keys().copied().collect();
        let began = Instant::now();
        for id in &ids {
            self.backfill_recommender(*id)?;
            while self.keep_a_chunk(*id)? && began.elapsed() < SLICE {}
        }
        Ok(began.elapsed())
    }

    /// What is made of interactions, of which keeping them took so long: interests, something of each recommender in any
    /// case, and lists of neighbours for a slice of time.
    pub(super) fn derive(&mut self, kept_for: Duration) -> std::result::Result<(), Failed> {
        let ids: Vec<i32> = self.recommenders.keys().copied().collect();
        let until = Instant::now() + kept_for.clamp(SLICE, LONGEST);
        for id in &ids {
            self.refresh_interests(*id, until)?;
        }
        let until = Instant::now() + SLICE;
        for id in &ids {
            while self.may_count() && self.count_neighbours(*id)? && Instant::now() < until {}
        }
        Ok(())
    }

    /// False when nothing of this recommender's can be taken now.
    fn keep_a_chunk(&mut self, id: i32) -> std::result::Result<bool, Failed> {
        if self.counts_items_elsewhere(id) && !self.is_read(id) {
            return Ok(false);
        }
        let Some(keeping) = self
            .recommenders
            .get_mut(&id)
            .filter(|keeping| !keeping.rests())
        else {
            return Ok(false);
        };
        let taken = [Lane::Live, Lane::Backfill].into_iter().find_map(|lane| {
            let jobs = self.queue.take(id, lane, CHUNK);
            (!jobs.is_empty()).then_some((lane, jobs))
        });
        let Some((lane, jobs)) = taken else {
            return Ok(false);
        };
        self.busy_at = Instant::now();
        // While all rows are read, nothing is counted: at the end, everything is.
        let counts = keeping.recommender.backfilled;
        match keeping.follow(&jobs, counts) {
            Ok(()) => {
                keeping.may_be_stale |= counts;
                let of = keeping.recommender.of;
                // Models are the recommender's, whichever of its tables this is of.
                if let Some(keeping) = self.recommenders.get_mut(&of) {
                    keeping.training.kept(jobs.len());
                }
                self.change_ends(jobs.iter().map(|job| &job.row), lane == Lane::Live);
                for job in &jobs {
                    self.queue.finish(&job.row);
                }
            }
            Err(failed) => {
                for job in jobs.iter().rev() {
                    self.queue.put_back(&job.row, lane);
                }
                self.failed_to_keep(id, failed)?;
            }
        }
        Ok(true)
    }

    /// It rests; or, where that would not help, is paused.
    pub(super) fn failed_to_keep(
        &mut self,
        id: i32,
        failed: Failed,
    ) -> std::result::Result<(), Failed> {
        if let Some(keeping) = self.recommenders.get_mut(&id) {
            report(&keeping.recommender, &failed);
            keeping.rests_until = Some(Instant::now() + REST);
        }
        match is_passing(failed.code) {
            true => Ok(()),
            false => self.pause_recommender(id, &failed.message),
        }
    }

    pub(super) fn publish_recommenders(&self) {
        let database = self.database_oid();
        for id in self.recommenders.keys() {
            if let Some(counters) = self.shared.counters_or_new(database, *id) {
                let waiting = [Lane::Live, Lane::Backfill].map(|lane| self.queue.waits(*id, lane));
                counters
                    .pending
                    .store(waiting.iter().sum::<usize>() as i64, SeqCst);
            }
        }
    }

    /// In how long a recommender has something to do; `None`: nothing waits.
    pub(super) fn keeps_on(&self) -> Option<Duration> {
        let now = Instant::now();
        let busy = self.recommenders.iter().filter_map(|(id, keeping)| {
            if self.counts_items_elsewhere(*id) && !keeping.recommender.backfilled {
                return None; // it wakes this worker
            }
            let rows = !keeping.recommender.backfilled
                && self.queue.waits(*id, Lane::Backfill) == 0
                || [Lane::Live, Lane::Backfill]
                    .into_iter()
                    .any(|lane| self.queue.waits(*id, lane) > 0);
            let interests = keeping.keeper.interests.as_ref();
            let interests = interests.and_then(|_| keeping.due.next());
            let in_time = match rows {
                true => Duration::ZERO,
                false => keeping.lists_in().into_iter().chain(interests).min()?,
            };
            let until = keeping.rests_until.unwrap_or(now);
            Some(until.saturating_duration_since(now).max(in_time))
        });
        busy.min()
    }

    /// After an error that is not the fault of one row. A rename may have been faster than this worker's look at it:
    /// one that is declared otherwise by now goes on so.
    fn pause_recommender(&mut self, id: i32, reason: &str) -> std::result::Result<(), Failed> {
        self.database.catalog_changed.store(true, SeqCst);
        let declared = transaction(|| recommender::by_id(id))?;
        if let (Some(declared), Some(keeping)) = (declared, self.recommenders.get(&id))
            && keeping.recommender.is_declared_as(&declared)
        {
            note_pause(&declared, reason)?;
        }
        Ok(())
    }
}

impl Keeping {
    pub(super) fn rests(&self) -> bool {
        self.rests_until.is_some_and(|until| until > Instant::now())
    }

    /// Interactions and their effect, in a transaction of their own. A chunk that fails is halved until the row that
    /// is the cause is alone.
    fn follow(&mut self, jobs: &[Job], counts: bool) -> std::result::Result<(), Failed> {
        let (keeper, id, of) = (&self.keeper, self.recommender.id, self.recommender.of);
        let (dead_letters, round) = (
            self.recommender.dead_letters,
            self.recommender.backfill_round,
        );
        let followed = transaction(|| {
            wait_briefly()?;
            guard_user_code()?;
            let rows = keeper.read(jobs)?;
            release_user_code();
            let users = keeper.keep(jobs, rows, counts)?;
            // What it is kept in is locked by now: who makes that anew has done so, or waits.
            require_round(id, round, counts)?;
            if dead_letters {
                jobs::unbury(id, jobs.iter().map(|job| &job.row))?;
            }
            outbox::invalidated_users(of, &users)?;
            Ok(users)
        });
        match followed {
            Err(failed) if is_definition(failed.code) || is_passing(failed.code) => Err(failed),
            Err(failed) if jobs.len() == 1 => {
                report(&self.recommender, &failed);
                self.recommender.dead_letters = true;
                let message = format!("it could not be read: {}", failed.message);
                let users = transaction(|| {
                    let users = keeper.keep(jobs, Rows::new(), counts)?;
                    jobs.iter()
                        .try_for_each(|job| jobs::bury(job, "permanent", None, &message))?;
                    outbox::invalidated_users(of, &users)?;
                    outbox::dead_letters(of, keys_of(jobs), "permanent", None)?;
                    Ok(users)
                })?;
                self.warming.add(&users);
                self.due.add(users);
                Ok(())
            }
            Err(_) => {
                let (one, other) = jobs.split_at(jobs.len() / 2);
                self.follow(one, counts)?;
                self.follow(other, counts)
            }
            Ok(users) => {
                self.warming.add(&users);
                self.due.add(users);
                Ok(())
            }
        }
    }
}

fn keys_of(jobs: &[Job]) -> impl Iterator<Item = &[String]> {
    jobs.iter().map(|job| &*job.row.key)
}

/// Refuses, for the moment, where all rows are to be looked at again since: by another declaration, it may be. And where
/// they have all been `read` and counted, unless that is known.
pub fn require_round(recommender: i32, round: i32, read: bool) -> Result<()> {
    const ROUND: &str =
        "SELECT round FROM recsync.backfill WHERE pipeline_id = $1 AND ($2 OR finished_at IS NULL)";
    let now = Spi::connect_mut(|client| {
        // Not read-only, which would be blind to what was committed while this waited.
        let rows = client.update(ROUND, Some(1), &[recommender.into(), read.into()])?;
        match rows.is_empty() {
            true => Ok(None),
            false => rows.first().get_one::<i32>(),
        }
    })?;
    if now == Some(round) {
        return Ok(());
    }
    Err(Error::Option {
        code: PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
        message: "it is declared otherwise by now".into(),
        detail: None,
        hint: None,
    })
}

/// Whether the interests that are kept are of other vectors than the items have.
fn is_outdated(recommender: &Recommender) -> bool {
    let vectors = recommender.vectors.as_ref();
    vectors.is_some_and(|vectors| vectors.outdated)
}

pub(super) fn row_of(recommender: i32, key: &Arc<[String]>) -> RowKey {
    RowKey {
        pipeline: recommender,
        key: Arc::clone(key),
    }
}

/// Within a transaction: the worker has more to do than to wait for a table that somebody changes. A lock that is not to
/// be had passes by itself.
pub(super) fn wait_briefly() -> Result<()> {
    Ok(Spi::run("SET LOCAL lock_timeout = '200ms'")?)
}

/// What an operator reads: the SQLSTATE, not the text, which may quote a row.
pub(super) fn report(recommender: &Recommender, failed: &Failed) {
    let (name, code) = (&recommender.name, sqlstate_text(failed.code));
    crate::observe::errors::note(Some(name), failed);
    log!("recsync worker: recommender {name}: SQLSTATE {code}");
}

fn note_pause(recommender: &Recommender, reason: &str) -> std::result::Result<(), Failed> {
    transaction(|| recommender::pause_for(recommender.id, reason))?;
    was_paused();
    Ok(())
}
