//! The models of recommenders: when it is time to have them trained.
//!
//! That is when the rows that were there before have been read, at the times of the recommender's schedule, and whenever
//! as many interactions have come as there were: what is young changes fast. It never waits for the training, which is
//! a process's of its own.

use std::collections::HashMap;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use super::calendar::{Calendar, Due};
use super::keeping::Keeping;
use super::leader::{Leader, report};
use super::process::{Dynamic, Failed, guard_user_code, transaction};
use super::rest::works;
use crate::catalog::recommender::Recommender;
use crate::dispatch::queue::Lane;
use crate::recommend::keep::bulk;
use crate::recommend::train::{self, knn};
use crate::shared::slots::{self, Reservation};

// The process.
mod process;

use process::Task;

/// How long nothing has to have come: between the batches of somebody who loads a table in many, nothing does either.
const QUIET: Duration = Duration::from_secs(2);
/// The longest that one waits for that which never is quiet.
const MOST_QUIET: Duration = Duration::from_secs(60);
/// How soon it is looked again where another database's models are trained, or the server had no place for a process.
const LATER: Duration = Duration::from_secs(2);
/// After a training that was broken off; doubling, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// A recommender's way to its models, as its leader knows it.
pub struct Progress {
    calendar: Option<Calendar>,
    /// Interactions that have to come before it is looked whether it is worth it.
    missing: usize,
    /// Since when there have been enough, and since when no more have come.
    enough_since: Option<Instant>,
    kept_at: Instant,
    /// The number of the last `recsync.run` that waits for its models; 0: none does.
    run: i64,
}

impl Progress {
    pub fn of(recommender: &Recommender) -> Progress {
        let mut progress = Progress {
            calendar: recommender.learning.when.schedule().ok().map(Calendar::new),
            missing: 0,
            enough_since: None,
            kept_at: Instant::now(),
            run: 0,
        };
        progress.start(recommender);
        progress
    }

    /// What was trained counts from here: as many again are awaited.
    fn start(&mut self, recommender: &Recommender) {
        self.missing = usize::try_from(recommender.trained_on).unwrap_or(0);
        self.enough_since = None;
        if recommender.trained_us.is_some() {
            self.missing = self.missing.max(train::LEAST);
        }
    }

    /// The settings, or the time zone, may be other than before.
    pub fn look_again(&mut self, recommender: &Recommender) {
        if let Some(calendar) = &mut self.calendar {
            calendar.forget();
        }
        if recommender.trained_us.is_none() {
            self.missing = 0;
        }
    }

    pub fn kept(&mut self, interactions: usize) {
        self.missing = self.missing.saturating_sub(interactions);
        self.kept_at = Instant::now();
    }

    /// When it is to be looked, for what has come.
    fn by_growth(&mut self) -> Option<Instant> {
        if self.missing > 0 {
            self.enough_since = None;
            return None;
        }
        let since = *self.enough_since.get_or_insert_with(Instant::now);
        Some((self.kept_at + QUIET).min(since + MOST_QUIET))
    }
}

/// Trainings of one database: one at a time.
#[derive(Default)]
pub struct Trainer {
    asked: Option<Asked>,
    pauses: HashMap<i32, Pause>,
}

struct Asked {
    recommender: i32,
    /// Whose lists it has in hand.
    of: i32,
    task: Task,
    since: Instant,
    /// Up to which run it is for.
    run: i64,
    /// When it was last trained before.
    before: Option<i64>,
    place: Reservation,
    worker: Dynamic,
}

struct Pause {
    until: Instant,
    /// The next one after a failure.
    next: Duration,
}

impl Trainer {
    fn put_off(&mut self, recommender: i32, for_time: Duration) {
        let pause = self.pauses.entry(recommender).or_insert(Pause {
            until: Instant::now(),
            next: FIRST_PAUSE,
        });
        pause.until = pause.until.max(Instant::now() + for_time);
    }

    /// Counting lists takes no more than a part of the time, however fast they become stale: what comes meanwhile is
    /// counted by the worker, as far as it can.
    fn rest_after(&mut self, recommender: i32, took: Duration) {
        let pause = Pause {
            until: Instant::now() + took * 2,
            next: FIRST_PAUSE,
        };
        self.pauses.insert(recommender, pause);
    }

    fn was_broken_off(&mut self, recommender: i32) {
        let next = self
            .pauses
            .get(&recommender)
            .map_or(FIRST_PAUSE, |pause| pause.next);
        let pause = Pause {
            until: Instant::now() + next,
            next: (next * 2).min(LONGEST_PAUSE),
        };
        self.pauses.insert(recommender, pause);
    }
}

impl Keeping {
    /// When its models are due; `None`: not before something changes.
    fn trains_at(&mut self) -> Option<Instant> {
        self.recommender.learning.models().next()?;
        let by_growth = self.training.by_growth();
        let Some(trained) = self.recommender.trained_us else {
            return by_growth;
        };
        let by_time = match self.training.calendar.as_ref()?.due(trained) {
            Due::In(time) => Instant::now() + time,
            Due::Soon(_) => return by_growth,
        };
        Some(by_growth.map_or(by_time, |by_growth| by_growth.min(by_time)))
    }

    fn look_at_calendar(&mut self) -> std::result::Result<(), Failed> {
        match &mut self.training.calendar {
            Some(calendar) => calendar.look(),
            None => Ok(()),
        }
    }
}

impl Leader {
    /// Has models trained that are due.
    pub(super) fn train(&mut self) -> std::result::Result<(), Failed> {
        self.hear_trainer();
        self.hear_runs();
        let ids: Vec<i32> = self.recommenders.keys().copied().collect();
        for id in ids {
            if let Some(keeping) = self.recommenders.get_mut(&id) {
                keeping.look_at_calendar()?;
            }
            if self.trains_at(id).is_none_or(|at| at > Instant::now()) || self.is_training() {
                continue;
            }
            match self.missing_for(id) {
                Ok(0) => self.start_trainer(id, Task::Models),
                Ok(missing) => {
                    if let Some(keeping) = self.recommenders.get_mut(&id) {
                        keeping.training.missing = missing;
                    }
                }
                Err(failed) => {
                    report(None, &failed);
                    self.trainer.was_broken_off(id);
                }
            }
        }
        Ok(())
    }

    /// `recsync.run`: models are trained now, whenever it would be time, and without the rest after what went before.
    fn hear_runs(&mut self) {
        let database = self.database_oid();
        for (id, keeping) in &mut self.recommenders {
            let Some(counters) = self.shared.counters(database, *id) else {
                continue;
            };
            let wanted = counters.runs_wanted.load(SeqCst);
            let run = match counters.runs_ended.load(SeqCst) < wanted {
                true => wanted,
                false => 0,
            };
            if run > keeping.training.run {
                self.trainer.pauses.remove(id);
            }
            keeping.training.run = run;
        }
    }

    /// `None` while rows that were there before are read.
    fn trains_at(&mut self, id: i32) -> Option<Instant> {
        let reads = self.queue.waits(id, Lane::Backfill) > 0;
        let keeping = self.recommenders.get_mut(&id)?;
        if reads || !keeping.recommender.backfilled {
            return None;
        }
        let (own, members) = (keeping.recommender.of, keeping.recommender.members());
        let backfilled = |member: &i32| {
            let member = self.recommenders.get(member);
            member.is_some_and(|member| member.recommender.backfilled)
        };
        // A model is the recommender's, and made of all its tables of interactions.
        if own != id || !members.iter().all(backfilled) {
            return None;
        }
        let keeping = self.recommenders.get_mut(&id)?;
        let at = match keeping.training.run {
            0 => keeping.trains_at()?,
            _ => Instant::now(),
        };
        let pause = self.trainer.pauses.get(&id);
        Some(pause.map_or(at, |pause| pause.until.max(at)))
    }

    /// How many more interactions make it worth it, at the least.
    fn missing_for(&self, id: i32) -> std::result::Result<usize, Failed> {
        let Some(keeping) = self.recommenders.get(&id) else {
            return Ok(1);
        };
        if keeping.training.run > 0 {
            return Ok(0);
        }
        let recommender = &keeping.recommender;
        let wanted = match recommender.learning.is_chosen() {
            true => 1,
            false => train::LEAST,
        };
        transaction(|| {
            guard_user_code()?;
            train::missing(recommender, wanted)
        })
    }

    /// Has lists of neighbours counted by a process where many are stale; until it has taken them upon itself, some are
    /// counted here. False where they are not many, or there is no process for it.
    pub(super) fn count_elsewhere(&mut self, id: i32) -> std::result::Result<bool, Failed> {
        self.have_done(id, Task::Lists, knn::are_many)
    }

    /// The same of what is known of items, where there are many interactions.
    pub(super) fn count_items_elsewhere(&mut self, id: i32) -> std::result::Result<bool, Failed> {
        self.have_done(id, Task::Items, bulk::are_many)
    }

    fn have_done(
        &mut self,
        id: i32,
        task: Task,
        is_much: impl FnOnce(&Recommender) -> crate::error::Result<bool>,
    ) -> std::result::Result<bool, Failed> {
        let pause = self.trainer.pauses.get(&id);
        let pauses = pause.is_some_and(|pause| pause.until > Instant::now());
        if !works() || self.is_training() || pauses {
            return Ok(false);
        }
        let Some(keeping) = self.recommenders.get(&id) else {
            return Ok(false);
        };
        if transaction(|| is_much(&keeping.recommender))? {
            self.start_trainer(id, task);
        }
        Ok(self.is_training())
    }

    /// Whether a process has lists of this recommender in hand.
    pub(super) fn counts_elsewhere(&self, id: i32) -> bool {
        let of = self
            .recommenders
            .get(&id)
            .map(|keeping| keeping.recommender.of);
        let asked = self.trainer.asked.as_ref();
        asked.is_some_and(|asked| Some(asked.of) == of)
    }

    /// Whether models of this recommender are about to be others: lists that are made now are of no use then.
    pub(super) fn is_trained_elsewhere(&self, id: i32) -> bool {
        let asked = self.trainer.asked.as_ref();
        asked.is_some_and(|asked| asked.of == id && asked.task == Task::Models)
    }

    /// Whether a process counts what has been read of this one's rows.
    pub(super) fn counts_items_elsewhere(&self, id: i32) -> bool {
        let asked = self.trainer.asked.as_ref();
        asked.is_some_and(|asked| asked.recommender == id && asked.task == Task::Items)
    }

    fn is_training(&self) -> bool {
        self.trainer.asked.is_some()
    }

    fn start_trainer(&mut self, id: i32, task: Task) {
        let oid = self.database_oid();
        let Some(keeping) = self.recommenders.get(&id) else {
            return;
        };
        let (of, before) = (keeping.recommender.of, keeping.recommender.trained_us);
        let run = match task {
            Task::Models => keeping.training.run,
            Task::Items | Task::Lists => 0,
        };
        let place = slots::reserve(&self.shared.trainer, oid, 1);
        let Some(place) = place else {
            return self.trainer.put_off(id, LATER);
        };
        match Dynamic::start(&mut process::description(oid, place, id, (task, run))) {
            Some(worker) => {
                self.trainer.asked = Some(Asked {
                    recommender: id,
                    of,
                    task,
                    since: Instant::now(),
                    run,
                    before,
                    place,
                    worker,
                });
            }
            None => {
                slots::take_back(&self.shared.trainer, place);
                self.trainer.put_off(id, LATER);
            }
        }
    }

    /// A process that has ended: what has become of it stands in the catalog.
    fn hear_trainer(&mut self) {
        let Some(asked) = self.trainer.asked.take_if(|asked| asked.worker.has_ended()) else {
            return;
        };
        slots::take_back(&self.shared.trainer, asked.place); // in case it never began
        self.trainer.was_broken_off(asked.recommender);
        self.database.catalog_changed.store(true, SeqCst);
        self.database.signal_progress();
        let id = asked.recommender;
        let counters = self.shared.counters(self.database_oid(), id);
        let ended = counters.map_or(0, |counters| counters.runs_ended.load(SeqCst));
        let now = transaction(|| crate::catalog::recommender::by_id(id));
        let (Ok(Some(now)), Some(keeping)) = (now, self.recommenders.get_mut(&id)) else {
            return;
        };
        let left = keeping.take_back_lists();
        let many = transaction(|| knn::are_many(&keeping.recommender));
        let read = asked.task != Task::Items || now.backfilled;
        if asked.task != Task::Models && read && matches!((left, many), (Ok(false), Ok(false))) {
            self.trainer.rest_after(id, asked.since.elapsed());
        }
        // What was done for somebody who waits needs no rest, nor do they wait for that of what was done for nobody.
        if asked.run > 0 && ended >= asked.run
            || keeping.training.run > 0 && asked.task != Task::Models
        {
            self.trainer.pauses.remove(&id);
        }
        if now.trained_us != asked.before {
            self.trainer.pauses.remove(&id);
            keeping.recommender.take_training(&now);
            keeping.training.start(&now);
        }
    }

    /// Whether some are to be trained before long: a worker with nothing else to do stays for that.
    pub(super) fn is_about_to_train(&mut self) -> bool {
        works()
            && self
                .next_training()
                .is_some_and(|at| at <= Instant::now() + QUIET)
    }

    /// When [`Leader::train`] has something to look at that nobody will wake this worker for.
    pub(super) fn next_training(&mut self) -> Option<Instant> {
        if self.is_training() {
            return None;
        }
        let ids: Vec<i32> = self.recommenders.keys().copied().collect();
        ids.into_iter().filter_map(|id| self.trains_at(id)).min()
    }
}
