//! A worker's place, where more databases have something to do than there are workers: it is left to another one.
//!
//! It never leaves with vectors that are paid for and not stored.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use super::leader::Leader;
use super::process::Failed;

/// How long a worker with nothing to do keeps its slot while other databases wait for one.
pub(super) const IDLE: Duration = Duration::from_secs(1);
/// How long a busy one keeps it.
const SHIFT: Duration = Duration::from_secs(10);

impl Leader {
    /// Whether other databases wait and this worker has had its turn: it sends nothing more, lands what flies, and goes.
    pub(super) fn is_relieved(&self) -> bool {
        self.shared.waiting_databases.load(SeqCst) > 0 && self.started.elapsed() >= SHIFT
    }

    /// Whether this worker leaves its slot to another database.
    pub(super) fn gives_way(&mut self) -> std::result::Result<bool, Failed> {
        if self.shared.waiting_databases.load(SeqCst) == 0
            || !self.flights.is_empty()
            || self.hooks.are_flying()
            || self.has_unstored()
        {
            return Ok(false);
        }
        let idle = self.busy_at.elapsed() >= IDLE
            && self.started.elapsed() >= IDLE
            && self.queue.is_empty()
            && self.keeps_on().is_none()
            && self.hooks.next().is_none()
            && !self.has_jobs()
            && !self.is_about_to_index()
            && !self.is_about_to_swap()
            && !self.is_about_to_train();
        if idle {
            // Whoever commits from here on wakes the launcher; what was committed before has to be looked at once more.
            self.database.wake.follow(&self.shared.launcher);
            self.dispatch()?;
            if self.queue.is_empty()
                && !self.reader.has_more()
                && !self.database.catalog_changed.load(SeqCst)
            {
                self.database.gave_way.store(true, SeqCst);
                self.write_bills(true)?;
                return Ok(true);
            }
            self.database.wake.claim();
            return Ok(false);
        }
        // A busy one hands over between two rounds; what is in memory is read again from the checkpoint.
        let over = self.is_relieved();
        if over {
            self.database.gave_way.store(true, SeqCst);
            self.database.catalog_changed.store(true, SeqCst);
            self.keep_locked()?;
            self.write_bills(true)?;
        }
        Ok(over)
    }
}
