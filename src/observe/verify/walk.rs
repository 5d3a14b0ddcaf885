//! All rows of a pipeline, and then all of its vectors, in slices in the order of the key: what is wrong with them, as
//! they stand when it comes to them.
//!
//! It never holds more than a slice of keys and a chunk of texts, and never calls a row wrong that the worker has yet
//! to come to.

use pgrx::PgMemoryContexts;
use pgrx::prelude::*;
use std::sync::Arc;

use crate::catalog::names;
use crate::catalog::pipeline::{self, Pipeline, Trouble};
use crate::catalog::rights::{As, in_undone_subtransaction};
use crate::dispatch::backfill::{self, Rows};
use crate::dispatch::environment::Environment;
use crate::dispatch::fault::Fault;
use crate::dispatch::pending::Pending;
use crate::dispatch::queue::{Job, RowKey};
use crate::dispatch::read::in_snapshot_of_now;
use crate::dispatch::render::{Renderer, secret};
use crate::error::{Error, Failed, Result};
use crate::observe::wait::require_new_snapshots;
use crate::worker::process::{is_definition, is_passing};

/// Rows whose texts are in memory at a time.
const CHUNK: usize = 256;

/// What is looked at now.
#[derive(Clone, Copy, PartialEq)]
enum Stage {
    Rows,
    Vectors,
    Done,
}

/// A row with a fault.
pub type Found = (Job, Fault);

pub struct Walk {
    pub pipeline: Pipeline,
    /// The vectors, as they stand in a FROM, each row of the source once.
    of_vectors: String,
    renderer: Renderer,
    pending: Pending,
    environment: Environment,
    model: String,
    secret: Vec<u8>,
    stage: Stage,
    after: Option<Vec<String>>,
}

impl Walk {
    /// Of the pipeline that `name` means, for its owner.
    pub fn of(name: &str) -> Result<Walk> {
        let pipeline = pipeline::find_any(name)?;
        pipeline::require_owner(&pipeline)?;
        require_new_snapshots()?;
        if pipeline.paused {
            return Err(Error::Paused(pipeline.relation));
        }
        if pipeline.trouble() == Some(Trouble::Restoring) {
            return Err(pipeline.broken(format!(
                "the triggers of {} are not in place or disabled; a restore may be under way",
                pipeline.source
            )));
        }
        let endpoint = pipeline.require_endpoint()?;
        let long_text = pipeline.long_text(&endpoint);
        let secret = {
            let _as = As::extension();
            secret()?
        };
        let schema = names::vector_schema().unwrap_or_default();
        Ok(Walk {
            renderer: Renderer::new(&pipeline, &schema, None, long_text),
            pending: Pending::new(&pipeline),
            environment: Environment::noted()?,
            of_vectors: match pipeline.has_chunks() {
                true => format!("(SELECT * FROM {} WHERE chunk = 1)", pipeline.vectors),
                false => pipeline.vectors.clone(),
            },
            pipeline,
            model: endpoint.model,
            secret,
            stage: Stage::Rows,
            after: None,
        })
    }

    /// What is wrong in the next slice; `None` at the end.
    pub fn next(&mut self) -> Result<Option<Vec<Found>>> {
        if self.stage == Stage::Done {
            return Ok(None);
        }
        pgrx::check_for_interrupts!();
        // What the statements are given is freed with each slice.
        let mut memory = PgMemoryContexts::new("recsync verify");
        // SAFETY: nothing that is allocated in it is used after it.
        let found = unsafe { memory.switch_to(|_| self.next_slice()) };
        found.map(Some)
    }

    fn next_slice(&mut self) -> Result<Vec<Found>> {
        let slice = in_snapshot_of_now(|| backfill::slice(&self.rows(), self.after.as_deref()))?;
        let is_last = slice.len() < backfill::SLICE;
        let last = slice.last().cloned();
        let jobs: Vec<Job> = slice
            .into_iter()
            .map(|key| {
                Job::new(RowKey {
                    pipeline: self.pipeline.id,
                    key: Arc::from(key),
                })
            })
            .collect();
        let mut found = Vec::new();
        for chunk in jobs.chunks(CHUNK) {
            self.check(chunk, &mut found)?;
        }
        (self.stage, self.after) = match (self.stage, is_last) {
            (stage, false) => (stage, last),
            (Stage::Rows, true) => (Stage::Vectors, None),
            (_, true) => (Stage::Done, None),
        };
        Ok(found)
    }

    fn rows(&self) -> Rows<'_> {
        let of_rows = self.stage == Stage::Rows;
        Rows {
            of: match of_rows {
                true => &self.pipeline.rows_of,
                false => &self.of_vectors,
            },
            keys: self.pipeline.keys(),
            column: match of_rows {
                true => |key| &key.column,
                false => |key| &key.stored,
            },
            owner: self.pipeline.owner(),
        }
    }

    /// Where the texts of some rows cannot be rendered together, each half is looked at by itself, until the row that is
    /// the cause is alone.
    fn check(&self, jobs: &[Job], found: &mut Vec<Found>) -> Result<()> {
        match self.faults_among(jobs) {
            Ok(faults) => found.extend(faults),
            Err(failed) if !is_of_a_row(failed.code) => fail(&self.pipeline, failed)?,
            Err(_) if jobs.len() > 1 => {
                let (one, other) = jobs.split_at(jobs.len() / 2);
                self.check(one, found)?;
                self.check(other, found)?;
            }
            Err(_) => {
                let stale = |jobs: &[Job]| Ok(vec![Some(Fault::Stale); jobs.len()]);
                match self.confirm(jobs, stale) {
                    Ok(faults) => found.extend(faults),
                    Err(failed) => fail(&self.pipeline, failed)?,
                }
            }
        }
        Ok(())
    }

    fn faults_among(&self, jobs: &[Job]) -> std::result::Result<Vec<Found>, Failed> {
        let look = |jobs: &[Job]| self.look(jobs);
        let suspects = in_undone_subtransaction(|| in_snapshot_of_now(|| look(jobs)))?;
        let suspects: Vec<Job> = with_fault(jobs, suspects)
            .map(|(job, _)| job.clone())
            .collect();
        if suspects.is_empty() {
            return Ok(Vec::new());
        }
        self.confirm(&suspects, look)
    }

    fn look(&self, jobs: &[Job]) -> Result<Vec<Option<Fault>>> {
        if self.stage == Stage::Vectors {
            return self.renderer.without_row(jobs);
        }
        let renderer = &self.renderer;
        self.environment
            .within(|| renderer.faults(jobs, &self.model, &self.secret))
    }

    /// Those that are wrong, and for which nothing is still to be done, as of one snapshot: in a subtransaction that
    /// writes nothing, statements can be run under the active one.
    fn confirm(
        &self,
        jobs: &[Job],
        look: impl Fn(&[Job]) -> Result<Vec<Option<Fault>>>,
    ) -> std::result::Result<Vec<Found>, Failed> {
        in_undone_subtransaction(|| {
            Pending::hold_log();
            in_snapshot_of_now(|| {
                let faults = look(jobs)?;
                let waits = self.pending.among(jobs, self.stage == Stage::Vectors)?;
                let dead = self.pending.dead_letters(jobs)?;
                // A dead letter says itself why a row has no vector; one without a row can be done away with.
                let is_known = |(job, fault): &(&Job, Fault)| {
                    waits.has(job) || *fault != Fault::Orphaned && dead.contains(&job.row.key)
                };
                Ok(with_fault(jobs, faults)
                    .filter(|found| !is_known(found))
                    .map(|(job, fault)| (job.clone(), fault))
                    .collect())
            })
        })
    }
}

fn with_fault(jobs: &[Job], faults: Vec<Option<Fault>>) -> impl Iterator<Item = (&Job, Fault)> {
    let pairs = jobs.iter().zip(faults);
    pairs.filter_map(|(job, fault)| Some((job, fault?)))
}

/// Why rows cannot be rendered: the pipeline is broken, or what it was is raised.
pub fn fail<T>(pipeline: &Pipeline, failed: Failed) -> Result<T> {
    if is_definition(failed.code) {
        return Err(pipeline.broken(failed.message));
    }
    failed.raise()
}

/// Whether an error may be due to one row's values: not the declaration, a lock, the server's resources or its faults.
pub fn is_of_a_row(code: PgSqlErrorCode) -> bool {
    let class = crate::error::sqlstate_text(code);
    let of_the_server = ["53", "57", "58", "XX"];
    !is_definition(code)
        && !is_passing(code)
        && !of_the_server.iter().any(|start| class.starts_with(start))
}
