//! Events applied: what is new, in its order, in as few statements as there are runs of the same kind.
//!
//! It never decides by itself what a caller may: rows are written as the caller, by SQL that the caller could have written,
//! and the register is of what was written. What fails takes its place in the register along when it is rolled back.

use pgrx::datum::Uuid;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::collections::{HashMap, HashSet};
use std::ffi::CStr;
use std::rc::Rc;

use super::given::{self, Checked, Name, Read, Refusal};
use super::prepare::{Prepared, prepare};
use super::register::Register;
use super::semantic::Schemas;
use super::target::{self, Target, Verb};
use crate::catalog::rights::{As, in_subtransaction};
use crate::error::{Error, Failed, Result, sqlstate_text};
use crate::statement::{Finds, Statement};

#[derive(Clone, Copy, PartialEq)]
pub enum OnError {
    /// The call is an error.
    Abort,
    /// The others are applied.
    Skip,
    /// The same, and the event is kept.
    DeadLetter,
}

/// What became of an event.
#[derive(Clone)]
pub struct Outcome {
    pub id: Option<String>,
    pub what: What,
}

#[derive(Clone)]
pub enum What {
    Applied,
    /// It was applied before.
    Repeated,
    /// Something newer was applied to its row before.
    Outdated,
    Ignored(&'static str),
    Refused(Refusal),
}

struct Call<'a> {
    events: Vec<&'a str>,
    schemas: Schemas<'a>,
    on_error: OnError,
    register: Register,
    targets: HashMap<Name, Checked<Rc<Target>>>,
    outcomes: Vec<Option<Outcome>>,
}

/// Events of one table, verb and columns, and each of another row: one statement.
#[derive(Default)]
struct Run {
    events: Vec<Prepared>,
    keys: HashSet<String>,
    ordered: HashSet<Uuid>,
}

/// Applies the events of a JSON text, in their order.
pub fn apply(events: &str, on_error: OnError) -> Result<Vec<Outcome>> {
    crate::catalog::install::require_primary()?;
    let events = given::elements(events).ok_or_else(|| {
        let hint = "Give a JSON array of events, or one event.";
        Error::argument("events", "it is neither an array nor an object", hint)
    })?;
    let mut call = Call {
        outcomes: vec![None; events.len()],
        events,
        schemas: Schemas::default(),
        on_error,
        register: Register::open()?,
        targets: HashMap::new(),
    };
    call.apply_all()?;
    if on_error == OnError::DeadLetter {
        call.bury()?;
    }
    Ok(call.outcomes.into_iter().flatten().collect())
}

impl<'a> Call<'a> {
    /// Stretches in which no event is there twice.
    fn apply_all(&mut self) -> Result<()> {
        let mut stretch: Vec<Prepared> = Vec::new();
        let mut seen = HashSet::new();
        for (position, event) in self.events.clone().into_iter().enumerate() {
            match self.prepare(position, event) {
                Ok(None) => {}
                Ok(Some(prepared)) => {
                    if !seen.insert(prepared.event) {
                        self.apply_stretch(std::mem::take(&mut stretch))?;
                        seen = HashSet::from([prepared.event]);
                    }
                    stretch.push(prepared);
                }
                Err(refusal) => {
                    let fields = given::object(event);
                    let id = fields.and_then(|fields| given::event_id(&fields).ok().flatten());
                    self.refuse(position, id, refusal)?;
                }
            }
        }
        self.apply_stretch(stretch)
    }

    /// `None` where there is nothing to do.
    fn prepare(&mut self, position: usize, event: &'a str) -> Checked<Option<Prepared>> {
        let given = match given::read(event, &mut self.schemas)? {
            Read::Event(given) => given,
            Read::Nothing(reason) => {
                self.set(position, None, What::Ignored(reason));
                return Ok(None);
            }
        };
        let target = match self.targets.get(&given.table) {
            Some(target) => target.clone(),
            None => {
                let target = target::find(&given.table).map(Rc::new);
                self.targets.insert(given.table.clone(), target.clone());
                target
            }
        };
        prepare(position, given, target?, &self.register).map(Some)
    }

    fn apply_stretch(&mut self, stretch: Vec<Prepared>) -> Result<()> {
        if stretch.is_empty() {
            return Ok(());
        }
        let stretch = self.find_keys(stretch)?;
        let new = self
            .register
            .note(stretch.iter().map(|event| event.event))?;
        let (new, repeated): (Vec<_>, Vec<_>) = stretch
            .into_iter()
            .partition(|event| new.contains(&event.event));
        for event in repeated {
            self.set(event.position, Some(event.id), What::Repeated);
        }
        let mut highest: HashMap<Uuid, i64> = HashMap::new();
        for (key, sequence) in new.iter().filter_map(Prepared::place) {
            let highest = highest.entry(key).or_insert(sequence);
            *highest = sequence.max(*highest);
        }
        let mut last = match highest.is_empty() {
            true => HashMap::new(),
            false => self.register.raise(highest.clone())?,
        };
        let raised: HashMap<Uuid, i64> = highest
            .into_iter()
            .map(|(key, sequence)| {
                let before = last.get(&key).copied().unwrap_or(sequence);
                (key, sequence.max(before))
            })
            .collect();
        let refused = self.apply_runs(new, &mut last)?;
        if refused.is_empty() {
            return Ok(());
        }
        self.register.forget(refused)?;
        let too_high = raised
            .into_iter()
            .map(|(key, raised)| (key, raised, last.get(&key).copied()))
            .filter(|(_, raised, last)| Some(*raised) != *last)
            .map(|(key, _, last)| (key, last));
        self.register.lower(too_high.collect())
    }

    /// Applies them run by run, and notes in `last` which sequence was applied to each key. Returns what was refused.
    fn apply_runs(
        &mut self,
        events: Vec<Prepared>,
        last: &mut HashMap<Uuid, i64>,
    ) -> Result<Vec<Uuid>> {
        let mut refused = Vec::new();
        let mut run = Run::default();
        for event in events {
            if !run.takes(&event) {
                refused.extend(self.apply_run(std::mem::take(&mut run), last)?);
            }
            // Of what is in the run none has this key: what was applied to it is known.
            let place = event.place();
            if place
                .is_some_and(|(key, sequence)| last.get(&key).is_some_and(|last| sequence < *last))
            {
                self.set(event.position, Some(event.id), What::Outdated);
                continue;
            }
            run.push(event);
        }
        refused.extend(self.apply_run(run, last)?);
        Ok(refused)
    }

    fn apply_run(&mut self, run: Run, last: &mut HashMap<Uuid, i64>) -> Result<Vec<Uuid>> {
        let mut refused = Vec::new();
        self.apply_part(&run.events, last, &mut refused)?;
        Ok(refused)
    }

    /// In one statement; where that fails, by halves, until the one is found that it fails for.
    fn apply_part(
        &mut self,
        events: &[Prepared],
        last: &mut HashMap<Uuid, i64>,
        refused: &mut Vec<Uuid>,
    ) -> Result<()> {
        if events.is_empty() {
            return Ok(());
        }
        match (write(events), events) {
            (Ok(()), events) => {
                last.extend(events.iter().filter_map(Prepared::place));
                for event in events {
                    self.set(event.position, Some(event.id.clone()), What::Applied);
                }
                Ok(())
            }
            (Err(failed), [event]) => {
                let refusal = Refusal {
                    code: failed.code,
                    field: None,
                    reason: failed.message,
                };
                if is_no_events_fault(refusal.code) {
                    return Err(error(event.position, Some(event.id.clone()), refusal));
                }
                refused.push(event.event);
                self.refuse(event.position, Some(event.id.clone()), refusal)
            }
            (Err(_), events) => {
                let (first, second) = events.split_at(events.len() / 2);
                self.apply_part(first, last, refused)?;
                self.apply_part(second, last, refused)
            }
        }
    }

    /// Gives those that have a sequence their key in the register.
    fn find_keys(&mut self, stretch: Vec<Prepared>) -> Result<Vec<Prepared>> {
        let mut wanted: HashMap<pg_sys::Oid, Vec<usize>> = HashMap::new();
        for (number, event) in stretch.iter().enumerate() {
            if event.sequence.is_some() {
                wanted.entry(event.target.oid).or_default().push(number);
            }
        }
        let mut found: HashMap<usize, std::result::Result<String, Failed>> = HashMap::new();
        for numbers in wanted.into_values() {
            let events: Vec<&Prepared> = numbers.iter().map(|number| &stretch[*number]).collect();
            match key_digests(&events) {
                Ok(digests) => found.extend(numbers.into_iter().zip(digests.into_iter().map(Ok))),
                Err(_) => {
                    for (number, event) in numbers.into_iter().zip(events) {
                        let digest = key_digests(&[event]).map(|digests| digests.concat());
                        found.insert(number, digest);
                    }
                }
            }
        }
        let mut kept = Vec::with_capacity(stretch.len());
        for (number, mut event) in stretch.into_iter().enumerate() {
            match found.remove(&number) {
                Some(Err(failed)) => {
                    let refusal = Refusal {
                        code: failed.code,
                        field: Some("key".into()),
                        reason: failed.message,
                    };
                    self.refuse(event.position, Some(event.id), refusal)?;
                    continue;
                }
                Some(Ok(digest)) => {
                    let key = self.register.key(event.target.oid, &event.origin, &digest);
                    event.ordered = Some(key);
                }
                None => {}
            }
            kept.push(event);
        }
        Ok(kept)
    }

    fn refuse(&mut self, position: usize, id: Option<String>, refusal: Refusal) -> Result<()> {
        if self.on_error == OnError::Abort {
            return Err(error(position, id, refusal));
        }
        self.set(position, id, What::Refused(refusal));
        Ok(())
    }

    fn set(&mut self, position: usize, id: Option<String>, what: What) {
        if let Some(outcome) = self.outcomes.get_mut(position) {
            *outcome = Some(Outcome { id, what });
        }
    }

    /// Puts aside what was refused, with the reason.
    fn bury(&self) -> Result<()> {
        const BURY: &str = "\
INSERT INTO recsync.event_dead_letter AS d (digest, event_id, event, sent_by, sqlstate, message)
VALUES ($1, $2, $3::jsonb, $4, $5, $6)
ON CONFLICT (digest) DO UPDATE
   SET attempts = d.attempts + 1, sqlstate = excluded.sqlstate, message = excluded.message, failed_at = excluded.failed_at";
        // SAFETY: the current user exists; the name is copied.
        let sender = unsafe {
            CStr::from_ptr(pg_sys::GetUserNameFromId(pg_sys::GetUserId(), false))
                .to_string_lossy()
                .into_owned()
        };
        let _as = As::extension();
        for (event, outcome) in self.events.iter().zip(&self.outcomes) {
            let Some((id, refusal)) = outcome.as_ref().and_then(Outcome::refusal) else {
                continue;
            };
            let arguments = [
                self.register.sent(event).into(),
                id.into(),
                (*event).into(),
                sender.as_str().into(),
                sqlstate_text(refusal.code).into(),
                refusal.to_string().into(),
            ];
            Spi::connect_mut(|client| {
                let statement = Statement::kept(BURY, Finds::ByKey);
                statement.update(client, &arguments).map(|_| ())
            })?;
        }
        Ok(())
    }
}

impl Outcome {
    pub fn refusal(&self) -> Option<(Option<&str>, &Refusal)> {
        match &self.what {
            What::Refused(refusal) => Some((self.id.as_deref(), refusal)),
            _ => None,
        }
    }
}

impl Prepared {
    /// The key in the register, and the event's sequence.
    fn place(&self) -> Option<(Uuid, i64)> {
        self.ordered.zip(self.sequence)
    }
}

impl Run {
    fn takes(&self, event: &Prepared) -> bool {
        let Some(first) = self.events.first() else {
            return true;
        };
        first.target.oid == event.target.oid
            && first.verb == event.verb
            && first.columns == event.columns
            && !event
                .key
                .as_ref()
                .is_some_and(|key| self.keys.contains(key))
            && !event.ordered.is_some_and(|key| self.ordered.contains(&key))
    }

    fn push(&mut self, event: Prepared) {
        self.keys.extend(event.key.clone());
        self.ordered.extend(event.ordered);
        self.events.push(event);
    }
}

/// Writes the rows of a run, as the caller.
fn write(run: &[Prepared]) -> std::result::Result<(), Failed> {
    in_subtransaction(|| {
        let Some(first) = run.first() else {
            return Ok(());
        };
        let sql = first.target.statement(first.verb, &first.columns);
        let rows = rows_of(run.iter());
        let written = Spi::connect_mut(|client| -> Result<u64> {
            let statement = Statement::kept(&sql, Finds::AsPlanned);
            statement.update(client, &[rows.into()])?;
            // SAFETY: a plain global, of the statement that has just run.
            Ok(unsafe { pg_sys::SPI_processed })
        })?;
        // Who asks for an update knows a row. One that a trigger or a policy keeps back is not updated, either.
        if first.verb == Verb::Update && written != run.len() as u64 {
            return Err(Error::NoSuchRow(first.target.name.clone()));
        }
        Ok(())
    })
}

/// For each event, of one table, a digest of its key.
fn key_digests(events: &[&Prepared]) -> std::result::Result<Vec<String>, Failed> {
    in_subtransaction(|| {
        let Some(first) = events.first() else {
            return Ok(Vec::new());
        };
        let sql = first.target.key_digests();
        let rows = rows_of(events.iter().copied());
        Spi::connect(|client| {
            let statement = Statement::kept(&sql, Finds::AsPlanned);
            let mut rows = statement.select(client, &[rows.into()])?;
            let digests = rows
                .next()
                .map(|row| row.get::<Vec<String>>(1))
                .transpose()?;
            Ok(digests.flatten().unwrap_or_default())
        })
    })
}

fn rows_of<'a>(events: impl Iterator<Item = &'a Prepared>) -> String {
    let rows: Vec<&str> = events.map(|event| event.row.as_str()).collect();
    format!("[{}]", rows.join(","))
}

/// What may go well the next time: a deadlock, a full disk, a shutdown.
fn is_no_events_fault(code: PgSqlErrorCode) -> bool {
    let code = sqlstate_text(code);
    matches!(&code[..2], "25" | "40" | "53" | "57" | "58" | "XX") || code == "55P03"
}

fn error(position: usize, id: Option<String>, refusal: Refusal) -> Error {
    Error::Event {
        position: position + 1,
        id,
        field: refusal.field,
        code: refusal.code,
        reason: refusal.reason,
    }
}
