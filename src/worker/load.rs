//! What is declared, as this worker runs it: loaded at the start and whenever a backend says that it has changed.
//!
//! It never runs a pipeline whose declaration does not fit its tables: that one is paused, with the reason.

use super::calendar::Calendar;
use super::claims::Claims;
use super::entry::say_update_is_due;
use super::filling::Filler;
use super::indexer::Progress;
use super::leader::Leader;
use super::process::{Failed, transaction};
use super::rest;
use super::running::{Running, State};
use super::telling::{Seen, was_paused};
use super::unstored::{Cost, Unstored};
use crate::catalog::change::Cause;
use crate::catalog::install::installed_version;
use crate::catalog::pipeline::{Filling, Pipeline, Trouble};
use crate::catalog::rights::As;
use crate::catalog::{change, names, pipeline, recommender};
use crate::dispatch::queue::{Lane as QueueLane, Queue};
use crate::dispatch::render::{Renderer, secret};
use crate::dispatch::{backfill, environment, jobs};
use crate::embed::lane::Lane;
use crate::embed::long_text::LongText;
use crate::ledger::bill::Payer;
use crate::settings;
use crate::shared::Presence;
use crate::store::Writer;
use crate::store::known::Recipe;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

/// Why all rows of a restored database are to be looked at.
pub(super) const RESTORED: &str = "it was restored, copied or upgraded";

/// How long a pipeline or recommender that has not run yet may lack its table, key or triggers: a restore may be under way.
pub(super) const RESTORE: Duration = Duration::from_secs(60);

/// Pipelines, recommenders and hooks that lack something.
#[derive(Default)]
pub(super) struct Incomplete {
    /// Those that have not run yet, since when.
    pub since: HashMap<i32, Instant>,
    /// Pipelines and hooks that this worker has paused for what they lacked. It may have been given to them between the look and the
    /// pause, by somebody who saw no pause to end: they are looked at again with each change.
    pub paused: HashSet<i32>,
}

impl Leader {
    /// Loads what is declared. False when the extension is gone.
    pub(super) fn load(&mut self) -> std::result::Result<bool, Failed> {
        self.watching.look_now();
        let load = || {
            let version = installed_version()?;
            if version.as_deref() != Some(env!("CARGO_PKG_VERSION")) {
                return Ok((version, Vec::new(), Vec::new(), String::new(), Vec::new()));
            }
            let schema = names::vector_schema().unwrap_or_default();
            let (mut pipelines, recommenders) = (pipeline::load_all()?, recommender::load_all()?);
            pipeline::find_copies(&mut pipelines);
            Ok((version, pipelines, recommenders, schema, secret()?))
        };
        let is_broken = |trouble| matches!(trouble, Some(Trouble::Broken(_)));
        let mut loaded = transaction(load)?;
        let (_, pipelines, recommenders, ..) = &loaded;
        if pipelines
            .iter()
            .any(|pipeline| is_broken(pipeline.trouble()))
            || recommenders
                .iter()
                .any(|recommender| is_broken(recommender.trouble()))
        {
            // A relation is looked up by its name as of now, in a declaration as of the snapshot: a rename may have been
            // faster than that.
            loaded = transaction(load)?;
        }
        let (version, pipelines, recommenders, vector_schema, secret) = loaded;
        let Some(version) = version else {
            self.shared.keep_counters(self.database_oid(), |_| false);
            self.database.set_presence(Presence::Absent);
            return Ok(false);
        };
        let was_suspended =
            std::mem::replace(&mut self.suspended, version != env!("CARGO_PKG_VERSION"));
        let facts = &self.database.facts;
        facts.suspended.store(self.suspended.into(), SeqCst);
        if self.suspended {
            if !was_suspended {
                say_update_is_due(&version);
            }
            return Ok(true);
        }
        self.telling.look("pipeline", &seen(&pipelines));
        let of_recommenders: Vec<Seen> = recommenders
            .iter()
            .filter(|recommender| recommender.id == recommender.of)
            .map(|recommender| Seen {
                id: recommender.id,
                name: recommender.name.clone(),
                paused: recommender.paused,
                for_a_reason: recommender.paused_reason.is_some(),
            })
            .collect();
        self.telling.look("recommender", &of_recommenders);
        transaction(environment::note)?;
        rest::look(self.database)?;
        self.secret = secret;
        self.restoring = false;
        let mut known = std::mem::take(&mut self.pipelines);
        let of_recommenders = recommenders.iter().map(|recommender| recommender.source_id);
        self.sources = pipelines
            .iter()
            .map(|pipeline| pipeline.source_id)
            .chain(of_recommenders)
            .collect();
        let mut off = Vec::new();
        for mut pipeline in pipelines {
            let before = known.remove(&pipeline.id);
            let state = match before {
                Some(State::Runs(mut running)) if running.pipeline.is_declared_as(&pipeline) => {
                    if running.pipeline.backfill_round != pipeline.backfill_round {
                        running.pipeline = pipeline.clone(); // all rows are to be looked at again
                        running.filling.start(&pipeline);
                    }
                    running.take_over_filling(&pipeline);
                    if pipeline.hnsw != running.pipeline.hnsw {
                        running.unstored.cost = Cost::guess(pipeline.is_slow_to_store());
                    }
                    running.take_prices(&pipeline);
                    running.pipeline.hnsw = pipeline.hnsw;
                    running.pipeline.indexed = pipeline.indexed;
                    running.index.look_again();
                    State::Runs(running)
                }
                before => {
                    let mut ran_as = None;
                    if let Some(State::Runs(mut running)) = before {
                        let_go_of_ready(&mut self.queue, &mut running);
                        for row in self.flights.retire(pipeline.id) {
                            self.queue.put_back(&row, QueueLane::Live);
                        }
                        ran_as = Some((running.endpoint.model, running.long_text));
                    }
                    let ran = ran_as.is_some();
                    if !ran {
                        pipeline.filling.advised |= advise_where_lost(&pipeline)?;
                    }
                    let state = self.state_of(&pipeline, &vector_schema, ran_as)?;
                    if matches!(state, State::Off) {
                        off.push(pipeline.id);
                        if ran {
                            transaction(|| jobs::take_back_leases(Some(pipeline.id)))?;
                        }
                    }
                    state
                }
            };
            self.pipelines.insert(pipeline.id, state);
        }
        for id in known.into_keys().chain(off) {
            self.queue.forget(id);
            self.writers.forget(id);
        }
        self.abandon_flights();
        self.spending.look_at_budgets();
        self.follow_up_indexes();
        self.load_recommenders(recommenders)?;
        self.load_hooks()?;
        self.shared.keep_counters(self.database_oid(), |id| {
            self.pipelines.contains_key(&id)
                || self.recommenders.contains_key(&id)
                || self.hooks.has(id)
        });
        let used: Vec<u64> = self
            .pipelines
            .values_mut()
            .filter_map(|state| state.running().map(|r| r.lane))
            .collect();
        self.lanes.keep(|lane| used.contains(&lane));
        // Somebody may have put jobs where claims have been already.
        for running in self.pipelines.values_mut().filter_map(State::running) {
            running.claims.start_over();
        }
        Ok(true)
    }

    /// `ran_as`: the model by which it has run in this worker until now, and what became of long texts.
    fn state_of(
        &mut self,
        pipeline: &pipeline::Pipeline,
        vector_schema: &str,
        ran_as: Option<(String, LongText)>,
    ) -> std::result::Result<State, Failed> {
        let lacks = || pipeline.lacks().map(Trouble::Broken);
        if pipeline.paused && self.incomplete.paused.contains(&pipeline.id) {
            let nothing_lacks = pipeline.trouble().or_else(lacks).is_none();
            if nothing_lacks && pipeline.endpoint().is_ok() {
                transaction(|| change::go_on(pipeline.id))?;
            }
        }
        if pipeline.paused || pipeline.is_kept() {
            return Ok(State::Off);
        }
        if let Some(trouble) = pipeline.trouble().or_else(lacks) {
            // While a restore is under way, tables, keys and triggers come one after the other.
            let since = *self
                .incomplete
                .since
                .entry(pipeline.id)
                .or_insert_with(Instant::now);
            match trouble {
                Trouble::Broken(reason) if ran_as.is_some() || since.elapsed() > RESTORE => {
                    self.incomplete.paused.insert(pipeline.id);
                    note_pause(pipeline.id, &reason, Cause::Declaration)?;
                }
                _ => {
                    self.restoring = true;
                    transaction(|| backfill::advise(&[pipeline.id], RESTORED))?;
                }
            }
            return Ok(State::Off);
        }
        self.incomplete.since.remove(&pipeline.id);
        let endpoint = match pipeline.endpoint() {
            Ok(endpoint) => endpoint,
            Err(reason) => {
                self.incomplete.paused.insert(pipeline.id);
                note_pause(pipeline.id, &reason, Cause::Server)?;
                return Ok(State::Off);
            }
        };
        let schedule = match pipeline.when.schedule() {
            Ok(schedule) => schedule,
            Err(reason) => {
                note_pause(pipeline.id, &reason, Cause::Declaration)?;
                return Ok(State::Off);
            }
        };
        self.incomplete.paused.remove(&pipeline.id);
        let mut pipeline = pipeline.clone();
        if pipeline.restored {
            // What was not done yet when the dump was made is not in it.
            transaction(|| backfill::advise(&[pipeline.id], RESTORED))?;
            pipeline.backfilled = true;
            pipeline.filling.advised = true;
        }
        let long_text = pipeline.long_text(&endpoint);
        if ran_as.is_some_and(|was| was != (endpoint.model.clone(), long_text)) {
            // Two models in one relation cannot be compared: every row is embedded anew. So are texts that are cut
            // elsewhere now.
            transaction(|| backfill::restart(&[pipeline.id]))?;
            pipeline.backfilled = false;
            pipeline.backfill_after = None;
            pipeline.backfill_round += 1;
            pipeline.filling = Filling {
                held: pipeline.filling.held,
                adopted: pipeline.filling.adopted,
                rate: pipeline.filling.rate,
                ..Filling::default()
            };
        }
        let (reply_to, ringer) = (self.reply_to.clone(), self.ringer.clone());
        let lane = self
            .lanes
            .of(&endpoint, pipeline.owner().to_u32(), |number| {
                Lane::start(
                    number,
                    endpoint.clone(),
                    settings::secret_policy(),
                    reply_to,
                    ringer,
                )
            });
        let recipe = Recipe::of(&endpoint, &pipeline.storage);
        let unlogged = pipeline.unlogged;
        let slow = pipeline.is_slow_to_store();
        let (id, account, server) = (pipeline.id, pipeline.account, pipeline.server.clone());
        self.declarations += 1;
        let mut filling = Filler::default();
        filling.start(&pipeline);
        Ok(State::Runs(Box::new(Running {
            filling,
            renderer: Renderer::new(&pipeline, vector_schema, recipe.clone(), long_text),
            writer: Writer::new(&pipeline, vector_schema, recipe),
            dead_letters: pipeline.dead_letters,
            pipeline,
            declaration: self.declarations,
            vector_schema: vector_schema.to_owned(),
            payer: Rc::new(Payer::new(id, account, &server, &endpoint)),
            is_spent: self.spending.stops(id),
            endpoint,
            long_text,
            lane,
            calendar: Calendar::new(schedule),
            claims: Claims::new(),
            ready: Default::default(),
            ready_backfill: Default::default(),
            halves: Default::default(),
            // After a crash an unlogged table is empty, and nobody says so.
            sweep: unlogged.then(Instant::now),
            changed: false,
            in_flight: 0,
            held: false,
            grant: None,
            unstored: Unstored::new(slow),
            spare: Vec::new(),
            index: Progress::unknown(),
            sent_at: 0,
            given_at: 0,
        })))
    }

    /// After a reload: lanes that were started under other rules end, with what they have in flight.
    pub(super) fn take_over_settings(&mut self) {
        rest::tell(self.database);
        let policy = settings::secret_policy();
        if policy != self.policy {
            self.policy = policy;
            self.lanes.clear();
            for state in self.pipelines.values_mut() {
                if let State::Runs(mut running) = std::mem::replace(state, State::Off) {
                    let_go_of_ready(&mut self.queue, &mut running);
                }
            }
        }
        for running in self.pipelines.values_mut().filter_map(State::running) {
            running.calendar.forget();
            running.filling.set_rate(&running.pipeline);
        }
        self.checkpoint.hasten_sweeps();
        self.database.catalog_changed.store(true, SeqCst);
    }

    /// After an error that means that the declaration does not fit the tables, or that the server is not to be used as it
    /// is: a change of them may have been faster than this worker's look at it. Pauses the pipeline, unless it has been
    /// declared otherwise since; false then. Of one that was dropped there is nothing to be done any more.
    pub(super) fn pause_unless_changed(
        &mut self,
        id: i32,
        reason: &str,
        cause: Cause,
    ) -> std::result::Result<bool, Failed> {
        self.database.catalog_changed.store(true, SeqCst);
        let declared = transaction(|| {
            let mut declared = pipeline::load_all()?;
            pipeline::find_copies(&mut declared);
            Ok(declared)
        })?;
        let Some(declared) = declared.iter().find(|pipeline| pipeline.id == id) else {
            return Ok(true);
        };
        let running = self.pipelines.get_mut(&id).and_then(State::running);
        if let Some(running) = running
            && running.pipeline.is_declared_as(declared)
        {
            self.pause(id, reason, cause)?;
            return Ok(true);
        }
        Ok(false)
    }

    /// Pauses a pipeline. From now on nothing of it is sent or stored.
    pub(super) fn pause(
        &mut self,
        id: i32,
        reason: &str,
        cause: Cause,
    ) -> std::result::Result<(), Failed> {
        note_pause(id, reason, cause)?;
        transaction(|| jobs::take_back_leases(Some(id)))?;
        if let Some(state) = self.pipelines.get_mut(&id) {
            *state = State::Off;
        }
        self.queue.forget(id);
        self.writers.forget(id);
        self.abandon_flights();
        Ok(())
    }

    /// Flights of pipelines that do not run any more, or by another server: their rows are due again.
    fn abandon_flights(&mut self) {
        let running = self.pipelines.iter_mut();
        let lanes: HashMap<i32, u64> = running
            .filter_map(|(id, state)| Some((*id, state.running()?.lane)))
            .collect();
        let keeps = |pipeline, lane| lanes.get(&pipeline) == Some(&lane);
        for row in self.flights.abandon(keeps) {
            self.queue.put_back(&row, QueueLane::Live);
        }
    }
}

/// An unlogged table of vectors that a crash has emptied.
fn advise_where_lost(pipeline: &Pipeline) -> std::result::Result<bool, Failed> {
    if !pipeline.vectors_unlogged || pipeline.filling.done == 0 || pipeline.trouble().is_some() {
        return Ok(false);
    }
    const LOST: &str = "its unlogged table of vectors is empty, as after a crash";
    transaction(|| {
        let lost = {
            let _as = As::owner(pipeline.owner());
            let sql = format!(
                "SELECT NOT EXISTS (SELECT FROM {}) AND EXISTS (SELECT FROM {})",
                pipeline.vectors, pipeline.rows_of
            );
            names::select_one::<bool>(&sql, &[])?
        };
        if lost == Some(true) {
            backfill::advise(&[pipeline.id], LOST)?;
        }
        Ok(lost == Some(true))
    })
}

fn seen(pipelines: &[pipeline::Pipeline]) -> Vec<Seen> {
    let in_service = pipelines
        .iter()
        .filter(|pipeline| pipeline.of_pipeline.is_none());
    in_service
        .map(|pipeline| Seen {
            id: pipeline.id,
            name: pipeline.relation.clone(),
            paused: pipeline.paused,
            for_a_reason: pipeline.paused_reason.is_some(),
        })
        .collect()
}

fn note_pause(id: i32, reason: &str, cause: Cause) -> std::result::Result<(), Failed> {
    if transaction(|| change::pause_for(id, reason, cause))? {
        was_paused();
    }
    Ok(())
}

/// Texts that are ready and vectors that are not stored become jobs that wait: they are rendered anew.
fn let_go_of_ready(queue: &mut Queue, running: &mut Running) {
    let ready = running
        .ready
        .drain(..)
        .chain(running.ready_backfill.drain(..))
        .chain(running.halves.drain(..).flatten());
    let unstored = running.unstored.drain();
    for row in ready.map(|ready| ready.job.row).chain(unstored) {
        queue.put_back(&row, QueueLane::Live);
    }
}
