//! Lists of neighbours that are stale: a few are counted here, one after the other, many by a process at once.
//!
//! It never counts one that the process has in hand, unless it is stale again since.

use std::time::{Duration, Instant};

use super::keeping::{Keeping, REST, wait_briefly};
use super::leader::Leader;
use super::process::{Failed, is_passing, transaction};
use crate::dispatch::queue::Lane;
use crate::hooks::outbox;

/// How often it is looked whether they are many.
const LOOK: Duration = Duration::from_secs(1);

impl Leader {
    /// What else there is to do comes first, but for a share of the time.
    pub(super) fn may_count(&self) -> bool {
        let waits = |(id, keeping): (&i32, &Keeping)| {
            let follows = keeping.recommender.backfilled && !keeping.rests();
            follows && (self.queue.waits(*id, Lane::Live) > 0 || keeping.due.waits())
        };
        let others_wait = self.is_called() || self.recommenders.iter().any(waits);
        !others_wait || self.shares.counting.is_due()
    }

    /// Some that are stale are counted. False when there are none.
    pub(super) fn count_neighbours(&mut self, id: i32) -> std::result::Result<bool, Failed> {
        let Some(keeping) = self
            .recommenders
            .get_mut(&id)
            .filter(|keeping| !keeping.rests() && keeping.lists_in() == Some(Duration::ZERO))
        else {
            return Ok(false);
        };
        let looked = keeping.were_many_at.is_some_and(|at| at.elapsed() < LOOK);
        if !looked {
            keeping.were_many_at = Some(Instant::now());
        }
        let elsewhere = match looked {
            true => Ok(false),
            false => self.count_elsewhere(id),
        };
        let began = Instant::now();
        let counted = match elsewhere {
            Ok(false) => self.count_some(id),
            asked => asked,
        };
        self.shares.counting.took(began.elapsed());
        match counted {
            Ok(some) => {
                if let Some(keeping) = self.recommenders.get_mut(&id) {
                    keeping.may_be_stale = some;
                }
                self.jobs_ended |= some;
                Ok(some)
            }
            // Somebody has locked one of them: interactions are followed meanwhile.
            Err(failed) if is_passing(failed.code) => {
                if let Some(keeping) = self.recommenders.get_mut(&id) {
                    keeping.counts_from = Some(Instant::now() + REST);
                }
                Ok(false)
            }
            Err(failed) => self.failed_to_keep(id, failed).map(|()| false),
        }
    }

    fn count_some(&mut self, id: i32) -> std::result::Result<bool, Failed> {
        let elsewhere = self.counts_elsewhere(id);
        let Some(keeping) = self.recommenders.get_mut(&id) else {
            return Ok(false);
        };
        let (keeper, of) = (&mut keeping.keeper, keeping.recommender.of);
        let some = transaction(|| {
            wait_briefly()?;
            let some = keeper.count_some()?;
            if some {
                outbox::invalidated_neighbours(of)?;
            }
            Ok(some)
        })?;
        match some || elsewhere {
            true => Ok(some),
            false => keeping.take_back_lists(),
        }
    }
}

impl Keeping {
    /// In how long there may be some to count.
    pub(super) fn lists_in(&self) -> Option<Duration> {
        let from = self.counts_from.unwrap_or_else(Instant::now);
        self.may_be_stale
            .then(|| from.saturating_duration_since(Instant::now()))
    }

    /// What a process had in hand that has ended is to be counted here. False when that is nothing.
    pub(super) fn take_back_lists(&mut self) -> std::result::Result<bool, Failed> {
        self.may_be_stale = true;
        let keeper = &mut self.keeper;
        transaction(|| {
            wait_briefly()?;
            keeper.give_back()
        })
    }
}
