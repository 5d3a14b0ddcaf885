//! Rows that have no text any more, of pipelines whose vectors are in a column of the source: the column is emptied.
//!
//! It never waits for a row that somebody has locked, and holds the locks of few rows at a time.

use std::time::{Duration, Instant};

use super::intake::write_down;
use super::leader::Leader;
use super::process::{
    Failed, guard_user_code, is_definition, is_passing, release_user_code, transaction,
};
use super::running::State;
use crate::dispatch::jobs::{self, Again};
use crate::dispatch::queue::Job;

/// Rows of a transaction: each takes a fraction of a millisecond, for which a user's statement may wait.
const AT_ONCE: usize = 32;
/// When a row that was locked is looked at again, and how much later for each that was locked with it.
const SOON: Duration = Duration::from_millis(100);
const PER_ROW: Duration = Duration::from_millis(50);

impl Leader {
    /// Empties the column of these rows. Those that are locked come back.
    pub(super) fn clear(&mut self, id: i32, jobs: Vec<Job>) -> Result<(), Failed> {
        for jobs in jobs.chunks(AT_ONCE) {
            self.clear_at_once(id, jobs)?;
        }
        Ok(())
    }

    fn clear_at_once(&mut self, id: i32, jobs: &[Job]) -> Result<(), Failed> {
        let Some(running) = self.pipelines.get_mut(&id).and_then(State::running) else {
            return Ok(()); // paused meanwhile: `load` let go of its rows
        };
        let (renderer, model) = (&running.renderer, &running.endpoint.model);
        let dead_letters = running.dead_letters;
        let cleared = transaction(|| {
            guard_user_code()?;
            let rows: Vec<&Job> = jobs.iter().collect();
            let busy = renderer.remove(&rows, model)?;
            release_user_code();
            let (busy, done): (Vec<_>, Vec<_>) = jobs
                .iter()
                .enumerate()
                .partition(|(index, _)| busy.contains(index));
            let done = done.iter().map(|(_, job)| *job);
            let stored = done.clone().filter(|job| job.stored);
            jobs::complete(id, stored.map(|job| &job.row))?;
            if dead_letters {
                jobs::unbury(id, done.map(|job| &job.row))?;
            }
            Ok(busy.into_iter().map(|(_, job)| job.clone()).collect())
        });
        let busy: Vec<Job> = match cleared {
            Ok(busy) => busy,
            Err(failed)
                if jobs.len() > 1 && !is_definition(failed.code) && !is_passing(failed.code) =>
            {
                let (half, rest) = jobs.split_at(jobs.len() / 2);
                self.clear_at_once(id, half)?;
                return self.clear_at_once(id, rest);
            }
            Err(failed) => return self.cannot_store(id, jobs.to_vec(), failed),
        };
        if !busy.is_empty() {
            let delay = SOON + PER_ROW * busy.len() as u32;
            write_down(id, &busy, delay, Again::Then)?;
            self.job_due_at(id, Instant::now() + delay);
        }
        let done = jobs.iter().map(|job| &job.row);
        let done = done.filter(|row| !busy.iter().any(|job| job.row == **row));
        self.change_ends(done, true);
        for job in jobs {
            self.queue.finish(&job.row);
        }
        Ok(())
    }
}
