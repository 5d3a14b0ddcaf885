//! Whom the leader gives what, and what it does with what comes back.
//!
//! It never gives a row away that somebody waits for alone: that one is stored at once.

use std::time::Duration;

use super::super::rest::works;
use super::{Given, Heard, Writers};
use crate::dispatch::jobs;
use crate::dispatch::queue::Lane;
use crate::settings;
use crate::store::Written;
use crate::worker::leader::{Leader, report};
use crate::worker::process::{Failed, transaction};
use crate::worker::running::State;
use crate::worker::unstored::BULK;

impl Leader {
    /// What the writers have done, and what those have left that have ended.
    pub(in crate::worker) fn hear_writers(&mut self) -> Result<(), Failed> {
        for heard in self.writers.hear() {
            match heard {
                Heard::Answer(mut given, outcome, took) => {
                    let bills = std::mem::take(&mut given.bills);
                    self.spending.settle(bills, outcome.is_ok());
                    self.take_answer(given, outcome, took)?;
                }
                // One that ended between its commit and its answer is the rarest case: then they are there twice.
                Heard::Lost(mut given) => {
                    let bills = std::mem::take(&mut given.bills);
                    self.spending.settle(bills, false);
                    self.take_back(given);
                }
            }
        }
        Ok(())
    }

    fn take_answer(
        &mut self,
        given: Given,
        outcome: Result<Written, Failed>,
        took: Duration,
    ) -> Result<(), Failed> {
        let id = given.pipeline;
        let Some(running) = self.pipelines.get_mut(&id).and_then(State::running) else {
            return Ok(());
        };
        if given.declaration != Some(running.declaration) {
            self.take_back(given);
            return Ok(());
        }
        let embedded = &given.part.embedded;
        if given.written
            && let Ok(written) = &outcome
            && written.is_all_of(embedded)
        {
            // The writer did not know of these rows.
            transaction(|| jobs::complete(id, written.ended(embedded).map(|job| &job.row)))?;
        }
        self.stored(id, given.part, outcome, took)
    }

    /// Rows that are not stored, or by a declaration that is no more. Whatever has changed is rendered anew; the rest
    /// has its vector already.
    fn take_back(&mut self, given: Given) {
        let running = self.pipelines.get_mut(&given.pipeline);
        let (Some(running), Some(declaration)) =
            (running.and_then(State::running), given.declaration)
        else {
            return; // `load` let go of its rows
        };
        let mut part = given.part;
        let same = declaration == running.declaration;
        let queue = &mut self.queue;
        part.embedded.retain(|embedded| {
            let row = &embedded.job.row;
            let changed = queue.changed_since(row);
            if changed {
                queue.put_back(row, Lane::Live);
            } else if !same {
                queue.put_back(row, part.lane);
            }
            same && !changed
        });
        running.unstored.push_part(part);
    }

    /// Gives the writers what they can take, and asks for one more where that is not enough.
    pub(in crate::worker) fn give_to_writers(&mut self) -> Result<(), Failed> {
        let most = match works() {
            true => settings::max_writers(),
            false => 0,
        };
        while self.writers.free(most).is_some() {
            // In turn: whoever was given something the longest ago.
            let next = self
                .pipelines
                .values_mut()
                .filter_map(State::running)
                .filter(|running| running.bulk() > 0)
                .min_by_key(|running| running.given_at);
            let Some(running) = next else {
                break;
            };
            let rows = Writers::rows_of_order(running);
            let Some(part) = running.unstored.take_bulk(rows) else {
                break;
            };
            running.given_at = self.turns.next();
            let bills = self.spending.open.take(running.pipeline.id);
            if let Err((part, bills)) = self.writers.give(most, running, part, bills) {
                running.unstored.push_part(part);
                self.spending.open.put_back(bills);
                break;
            }
        }
        let waiting: usize = self
            .pipelines
            .values_mut()
            .filter_map(State::running)
            .map(|running| running.bulk())
            .sum();
        if waiting > BULK && self.writers.count() < most && !self.writers.is_starting() {
            let (shared, database) = (self.shared, self.database_oid());
            if let Err(failed) = self.writers.start(shared, database, most) {
                report(None, &failed); // the leader stores by itself meanwhile
            }
        }
        self.writers.let_go(most);
        Ok(())
    }
}
