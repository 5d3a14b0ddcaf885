//! The rows of interactions that were there before, read in the order of their keys; then what is known of items is
//! counted from them, here or, where they are many, by a process.
//!
//! A backfill has not ended before that: whoever dies meanwhile has it counted once more.

use std::sync::Arc;
use std::time::Instant;

use super::keeping::{row_of, wait_briefly};
use super::leader::Leader;
use super::process::{Failed, guard_user_code, release_user_code, transaction};
use crate::dispatch::backfill;
use crate::dispatch::queue::{Job, Lane};
use crate::recommend::keep::{Rows, bulk};

/// What there is to do after a look at the rows.
enum Next {
    /// These are to be read.
    Read(Vec<Vec<String>>),
    /// There may be more that are gone.
    Again,
    /// There are no interactions, and nothing is kept.
    Nothing,
    Count,
}

impl Leader {
    /// The next slice of the rows that were there before. When all have been read, what is kept of rows that are
    /// gone goes, and what is left is counted.
    pub(super) fn backfill_recommender(&mut self, id: i32) -> std::result::Result<(), Failed> {
        let waits = self.queue.waits(id, Lane::Backfill);
        if waits > backfill::SLICE / 2 || self.is_read(id) || self.counts_items_elsewhere(id) {
            return Ok(());
        }
        let next = match self.look_at_rows(id, waits == 0) {
            Ok(next) => next,
            Err(failed) => return self.failed_to_keep(id, failed),
        };
        let counted = match next {
            Some(Next::Count) => self.count_items(id),
            Some(Next::Nothing) => Ok(true),
            _ => Ok(false),
        };
        let counted = match counted {
            Ok(counted) => counted,
            Err(failed) => return self.failed_to_keep(id, failed),
        };
        let Some(keeping) = self.recommenders.get_mut(&id) else {
            return Ok(());
        };
        let slice = match next {
            Some(Next::Read(slice)) => slice,
            _ if counted => Vec::new(),
            _ => return Ok(()),
        };
        let recommender = &mut keeping.recommender;
        let (round, up_to) = (recommender.backfill_round, slice.last().cloned());
        recommender.backfill_after.clone_from(&up_to);
        recommender.backfilled = counted;
        keeping.may_be_stale |= counted;
        if counted {
            keeping.were_many_at = None; // all of them are
        }
        let rows = slice.len() as i64;
        self.queue_slice(id, round, slice, up_to, rows);
        Ok(())
    }

    /// Nothing while slices of before wait.
    fn look_at_rows(&self, id: i32, none_wait: bool) -> std::result::Result<Option<Next>, Failed> {
        let Some(keeping) = self
            .recommenders
            .get(&id)
            .filter(|keeping| !keeping.rests())
        else {
            return Ok(None);
        };
        let (recommender, keeper) = (&keeping.recommender, &keeping.keeper);
        transaction(|| {
            guard_user_code()?;
            let rows = backfill::Rows {
                of: recommender.rows_of.as_deref().unwrap_or_default(),
                keys: recommender.keys(),
                column: |key| &key.column,
                owner: recommender.owner(),
            };
            let slice = backfill::slice(&rows, recommender.backfill_after.as_deref())?;
            release_user_code(); // what follows are keys
            if !slice.is_empty() {
                return Ok(Some(Next::Read(slice)));
            }
            if !none_wait {
                return Ok(None);
            }
            if keeper.empty()? {
                return Ok(Some(Next::Nothing));
            }
            let orphans: Vec<Job> = keeper
                .orphans()?
                .into_iter()
                .map(|key| Job::new(row_of(id, &Arc::from(key))))
                .collect();
            keeper.keep(&orphans, Rows::new(), false)?;
            Ok(Some(match orphans.is_empty() {
                true => Next::Count,
                false => Next::Again,
            }))
        })
    }

    /// False while a process does that.
    fn count_items(&mut self, id: i32) -> std::result::Result<bool, Failed> {
        if self.count_items_elsewhere(id)? {
            return Ok(false);
        }
        self.busy_at = Instant::now();
        let Some(keeping) = self.recommenders.get(&id) else {
            return Ok(false);
        };
        transaction(|| {
            wait_briefly()?;
            bulk::count_anew(&keeping.recommender)
        })
        .map(|()| true)
    }

    /// Whether all rows that were there before have been read and counted.
    pub(super) fn is_read(&self, id: i32) -> bool {
        let keeping = self.recommenders.get(&id);
        keeping.is_some_and(|keeping| keeping.recommender.backfilled)
    }
}
