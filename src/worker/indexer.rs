//! The index over a pipeline's vectors: when it is time to have it built.
//!
//! That is once, after the first load: a graph that grows row by row costs milliseconds a row, and one that is built
//! over all of them a fraction of it. Until it is there search looks at every vector. It never waits for the build,
//! which is a process's of its own, and goes on when the leader ends.

use std::collections::HashMap;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use pgrx::datum::DatumWithOid;

use super::leader::{Leader, report};
use super::process::{Dynamic, Failed, guard_user_code, transaction};
use super::rest::works;
use super::running::{Running, State};
use crate::catalog::names::select_one;
use crate::catalog::pipeline::Holder;
use crate::catalog::rights::As;
use crate::error::Result;
use crate::settings;
use crate::shared::slots::{self, Reservation};

// The process.
mod process;

/// Rows of a pipeline that may wait, in memory or written down, while the load counts as over.
const FEW: usize = 256;
/// How long there have to be no more: between the batches of somebody who loads a table in many, there are none either.
const QUIET: Duration = Duration::from_secs(2);
/// How soon it is looked again where more are written down, or the server had no place for a process.
const LATER: Duration = Duration::from_secs(5);
/// After a build that came to nothing; doubling, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// A pipeline's way to its index, as its leader knows it.
pub struct Progress {
    /// Vectors that have to come before it is worth looking again whether there are enough.
    missing: usize,
    /// Since when no load has been under way.
    calm_since: Option<Instant>,
}

impl Progress {
    /// Nothing is known: it is looked at once the pipeline is calm.
    pub fn unknown() -> Progress {
        Progress {
            missing: 0,
            calm_since: None,
        }
    }

    /// Its table, its index or the settings may be other than before.
    pub fn look_again(&mut self) {
        self.missing = 0;
    }

    pub fn stored(&mut self, new: usize) {
        self.missing = self.missing.saturating_sub(new);
    }

    /// When it is to be looked whether the index is due.
    fn looks_at(&self) -> Option<Instant> {
        let since = self.calm_since.filter(|_| self.missing == 0);
        since.map(|since| since + QUIET)
    }
}

/// Builds of one database: one at a time.
#[derive(Default)]
pub struct Indexer {
    asked: Option<Asked>,
    pauses: HashMap<i32, Pause>,
}

struct Asked {
    pipeline: i32,
    place: Reservation,
    worker: Dynamic,
}

struct Pause {
    until: Instant,
    /// The next one after a failure.
    next: Duration,
}

impl Indexer {
    /// When it is to be looked whether a pipeline's index is to be built (again); `None`: not before something changes.
    fn due(&self, pipeline: i32, running: &Running) -> Option<Instant> {
        let looks_at = running.index.looks_at().filter(|_| running.lacks_index())?;
        let pause = self.pauses.get(&pipeline);
        Some(pause.map_or(looks_at, |pause| pause.until.max(looks_at)))
    }

    fn put_off(&mut self, pipeline: i32) {
        let pause = self.pauses.entry(pipeline).or_insert(Pause {
            until: Instant::now(),
            next: FIRST_PAUSE,
        });
        pause.until = pause.until.max(Instant::now() + LATER);
    }

    fn came_to_nothing(&mut self, pipeline: i32) {
        let next = self.pauses.get(&pipeline).map_or(FIRST_PAUSE, |p| p.next);
        let pause = Pause {
            until: Instant::now() + next,
            next: (next * 2).min(LONGEST_PAUSE),
        };
        self.pauses.insert(pipeline, pause);
    }

    /// The index is there, or the pipeline is no more.
    fn forget(&mut self, gone: impl Fn(i32) -> bool) {
        self.pauses.retain(|pipeline, _| !gone(*pipeline));
    }
}

impl Running {
    /// It was declared with an index that is not there.
    fn lacks_index(&self) -> bool {
        self.pipeline.index != "none" && !self.pipeline.indexed
    }
}

impl Leader {
    /// Has an index built that is due.
    pub(super) fn index(&mut self) -> std::result::Result<(), Failed> {
        self.hear_indexer();
        let lacking: Vec<i32> = self
            .pipelines
            .iter_mut()
            .filter_map(|(id, state)| Some((*id, state.running()?)))
            .filter_map(|(id, running)| running.lacks_index().then_some(id))
            .collect();
        let now = Instant::now();
        for id in lacking {
            let busy = self.is_indexing();
            let calm = self.is_calm(id);
            let Some(running) = self.pipelines.get_mut(&id).and_then(State::running) else {
                continue;
            };
            running.index.calm_since = match calm {
                true => running.index.calm_since.or(Some(now)),
                false => None,
            };
            let due = self.indexer.due(id, running);
            if due.is_none_or(|at| at > now) || busy {
                continue;
            }
            match transaction(|| look(running)) {
                Ok(Look { jobs, .. }) if jobs > FEW => self.indexer.put_off(id),
                Ok(Look { missing: 0, .. }) => self.start_indexer(id),
                Ok(Look { missing, .. }) => running.index.missing = missing,
                Err(failed) => {
                    report(Some(&running.pipeline.relation), &failed);
                    self.indexer.came_to_nothing(id);
                }
            }
        }
        Ok(())
    }

    /// Whether the first load is over, as far as memory knows.
    pub(super) fn is_calm(&mut self, id: i32) -> bool {
        if self.reader.has_more() {
            return false;
        }
        let waiting = self.queue.waiting(id) + self.writers.rows(id).len();
        let Some(running) = self.pipelines.get_mut(&id).and_then(State::running) else {
            return false;
        };
        let own = running.ready_count() + running.in_flight + running.unstored.len();
        running.pipeline.backfilled && waiting + own <= FEW
    }

    /// A generation that is not in service is indexed while nobody writes to it: what it misses waits, in memory or
    /// written down, until that is done.
    pub(super) fn hold_what_is_indexed(&mut self) {
        let indexing = self.is_indexing();
        let indexed = self.database.indexed_pipeline.load(SeqCst);
        for (id, state) in &mut self.pipelines {
            if let Some(running) = state.running() {
                let aside = running.pipeline.of_pipeline.is_some();
                running.held = aside && indexing && *id == indexed;
            }
        }
    }

    /// Whether a process builds an index of this database, whoever has asked for it.
    fn is_indexing(&self) -> bool {
        self.indexer.asked.is_some() || !slots::are_free(&self.database.indexer)
    }

    fn start_indexer(&mut self, id: i32) {
        let oid = self.database_oid();
        let Some(place) = slots::reserve(&self.database.indexer, oid, 1) else {
            return;
        };
        self.database.indexed_pipeline.store(id, SeqCst);
        match Dynamic::start(&mut process::description(oid, place, id)) {
            Some(worker) => {
                self.indexer.asked = Some(Asked {
                    pipeline: id,
                    place,
                    worker,
                });
            }
            None => {
                slots::take_back(&self.database.indexer, place);
                self.indexer.put_off(id);
            }
        }
    }

    /// A process that has ended: whether the index is there, [`Leader::load`] has seen or will see.
    fn hear_indexer(&mut self) {
        if let Some(asked) = self.indexer.asked.take_if(|asked| asked.worker.has_ended()) {
            slots::take_back(&self.database.indexer, asked.place); // in case it never began
            self.indexer.came_to_nothing(asked.pipeline);
            self.database.catalog_changed.store(true, SeqCst);
        }
    }

    /// After a look at what is declared: a build for a pipeline that does not run is broken off, and what is there is
    /// not waited for.
    pub(super) fn follow_up_indexes(&mut self) {
        let mut lacking = Vec::new();
        for (id, state) in &mut self.pipelines {
            if let Some(running) = state.running() {
                lacking.push((*id, running.lacks_index()));
            }
        }
        let lacks = |id| lacking.iter().any(|(of, lacks)| *of == id && *lacks);
        self.indexer.forget(|id| !lacks(id));
        let built = self.database.indexed_pipeline.load(SeqCst);
        if !lacking.iter().any(|(id, _)| *id == built) {
            for pid in slots::pids(&self.database.indexer, self.database_oid()) {
                // SAFETY: a signal to a process of ours; one that has ended meanwhile is no harm.
                unsafe { libc::kill(pid, libc::SIGTERM) };
            }
        }
    }

    /// Whether one is to be built before long: a worker with nothing else to do stays for that.
    pub(super) fn is_about_to_index(&mut self) -> bool {
        works()
            && self
                .next_index()
                .is_some_and(|at| at <= Instant::now() + QUIET)
    }

    /// When [`Leader::index`] has something to look at that nobody will wake this worker for.
    pub(super) fn next_index(&mut self) -> Option<Instant> {
        if self.is_indexing() {
            return None;
        }
        let indexer = &self.indexer;
        let due = |(id, state): (&i32, &mut State)| indexer.due(*id, state.running()?);
        self.pipelines.iter_mut().filter_map(due).min()
    }
}

/// What the tables say of a pipeline.
pub(super) struct Look {
    /// Vectors that are missing to as many as an index is worth.
    pub(super) missing: usize,
    /// Jobs that are written down, as far as they were counted.
    jobs: usize,
}

pub(super) fn look(running: &Running) -> Result<Look> {
    guard_user_code()?;
    let pipeline = &running.pipeline;
    let wanted = settings::index_min_rows().max(1);
    let jobs = count(
        "recsync.job WHERE pipeline_id = $1",
        FEW + 1,
        &[pipeline.id.into()],
    )?;
    let Holder { table, column } = pipeline.holder();
    let vectors = {
        let _as = As::owner(pipeline.owner());
        count(&format!("{table} WHERE {column} IS NOT NULL"), wanted, &[])?
    };
    Ok(Look {
        missing: wanted - vectors.min(wanted),
        jobs,
    })
}

/// How many rows there are, counted up to `most`.
fn count(of: &str, most: usize, arguments: &[DatumWithOid]) -> Result<usize> {
    let sql = format!("SELECT pg_catalog.count(*) FROM (SELECT FROM {of} LIMIT {most}) AS counted");
    Ok(select_one::<i64>(&sql, arguments)?.unwrap_or(0) as usize)
}
