//! A statement that is planned once a process and kept.
//!
//! It never holds a value: values are always parameters.

use pgrx::datum::DatumWithOid;
use pgrx::pg_sys::PgOid;
use pgrx::prelude::Spi;
use pgrx::spi::{OwnedPreparedStatement, SpiClient, SpiCursor, SpiHeapTupleData, SpiTupleTable};
use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::ffi::CStr;
use std::rc::Rc;

use crate::catalog::rights::with_settings;
use crate::error::Result;

/// Plans are made while the tables are small, and kept: without these the planner would read them as a whole, and go on
/// to do so when they have millions of rows.
const BY_KEY: &[(&CStr, &CStr)] = &[
    (c"enable_seqscan", c"off"),
    (c"enable_hashjoin", c"off"),
    (c"enable_mergejoin", c"off"),
];
/// What is read in an index's order and ends where enough has been found must not be collected and sorted, either.
const IN_ORDER: &[(&CStr, &CStr)] = &[
    (c"enable_seqscan", c"off"),
    (c"enable_hashjoin", c"off"),
    (c"enable_mergejoin", c"off"),
    (c"enable_sort", c"off"),
];
/// The values that a kept one is given do not say how it is planned.
const ONCE: (&CStr, &CStr) = (c"plan_cache_mode", c"force_generic_plan");
const KEPT_BY_KEY: &[(&CStr, &CStr)] = &[BY_KEY[0], BY_KEY[1], BY_KEY[2], ONCE];
const KEPT_IN_ORDER: &[(&CStr, &CStr)] =
    &[IN_ORDER[0], IN_ORDER[1], IN_ORDER[2], IN_ORDER[3], ONCE];
const EACH_TIME: &[(&CStr, &CStr)] = &[(c"plan_cache_mode", c"force_custom_plan")];

/// How a statement that a session keeps finds its rows.
#[derive(Clone, Copy)]
pub enum Finds {
    /// By keys and indexes.
    ByKey,
    /// The same, and it is read as far as is needed.
    InOrder,
    /// As is best for the values that it is given and the tables as they are: it is planned each time.
    AsGiven,
    /// As PostgreSQL plans it. Nothing is set: a statement that users' triggers run in must leave theirs alone.
    AsPlanned,
}

/// Texts that a session keeps plans of.
const MOST_KEPT: usize = 200;

pub struct Statement {
    text: String,
    settings: &'static [(&'static CStr, &'static CStr)],
    plan: OnceCell<OwnedPreparedStatement>,
    /// Where nothing has been written, it sees what the active snapshot sees, and not what has been committed since.
    holds_snapshot: bool,
}

impl Statement {
    pub fn new(text: impl Into<String>) -> Statement {
        Statement::with(text, &[])
    }

    /// One that is planned alike whatever it is given.
    pub fn planned_once(text: impl Into<String>) -> Statement {
        Statement::with(text, &[ONCE])
    }

    /// One that finds its rows by keys that it is given, a few hundred of them at the most.
    pub fn by_key(text: impl Into<String>) -> Statement {
        Statement::with(text, BY_KEY)
    }

    /// The one of this text in this session.
    pub fn kept(text: &str, finds: Finds) -> Rc<Statement> {
        thread_local! {
            static KEPT: RefCell<HashMap<String, Rc<Statement>>> = RefCell::default();
        }
        KEPT.with_borrow_mut(|kept| {
            if let Some(statement) = kept.get(text) {
                return Rc::clone(statement);
            }
            if kept.len() >= MOST_KEPT {
                kept.clear(); // the next ones are planned again
            }
            let settings = match finds {
                Finds::ByKey => KEPT_BY_KEY,
                Finds::InOrder => KEPT_IN_ORDER,
                Finds::AsGiven => EACH_TIME,
                Finds::AsPlanned => &[],
            };
            let statement = Rc::new(Statement::with(text, settings));
            kept.insert(text.to_owned(), Rc::clone(&statement));
            statement
        })
    }

    /// One that looks at whole tables, and is planned each time for what they are.
    pub fn planned_each_time(text: impl Into<String>) -> Statement {
        Statement::with(text, EACH_TIME)
    }

    fn with(
        text: impl Into<String>,
        settings: &'static [(&'static CStr, &'static CStr)],
    ) -> Statement {
        Statement {
            text: text.into(),
            settings,
            plan: OnceCell::new(),
            holds_snapshot: false,
        }
    }

    /// The same, but that it sees what the active snapshot sees, where the (sub)transaction has written nothing.
    pub fn under_active_snapshot(self) -> Statement {
        Statement {
            holds_snapshot: true,
            ..self
        }
    }

    /// Runs it for its rows, without a transaction id. Unless it is one [`Statement::under_active_snapshot`], what was
    /// committed before the call is seen.
    pub fn select<'conn>(
        &self,
        client: &SpiClient<'conn>,
        arguments: &[DatumWithOid],
    ) -> Result<SpiTupleTable<'conn>> {
        let plan = self.plan(client, arguments)?;
        Ok(self.planned(|| client.select(plan, None, arguments))?)
    }

    /// Opens a cursor over its rows.
    pub fn cursor<'conn>(
        &self,
        client: &'conn SpiClient<'conn>,
        arguments: &[DatumWithOid],
    ) -> Result<SpiCursor<'conn>> {
        let plan = self.plan(client, arguments)?;
        Ok(self.planned(|| client.open_cursor(plan, arguments)))
    }

    /// Runs it for its effect (and its rows).
    pub fn update<'conn>(
        &self,
        client: &mut SpiClient<'conn>,
        arguments: &[DatumWithOid],
    ) -> Result<SpiTupleTable<'conn>> {
        let plan = self.plan(client, arguments)?;
        Ok(self.planned(|| client.update(plan, None, arguments))?)
    }

    /// A plan is made where a statement is run.
    fn planned<T>(&self, run: impl FnOnce() -> T) -> T {
        match self.settings {
            [] => run(),
            settings => with_settings(settings, run),
        }
    }

    fn plan(
        &self,
        client: &SpiClient,
        arguments: &[DatumWithOid],
    ) -> Result<&OwnedPreparedStatement> {
        if let Some(plan) = self.plan.get() {
            return Ok(plan);
        }
        let types: Vec<PgOid> = arguments
            .iter()
            .map(|argument| PgOid::from(argument.oid()))
            .collect();
        let text = self.text.as_str();
        let plan = match self.holds_snapshot {
            true => client.prepare(text, &types)?,
            false => client.prepare_mut(text, &types)?,
        };
        let plan = plan.keep();
        Ok(self.plan.get_or_init(|| plan))
    }
}

/// Reads the rows of a cursor that `open` has left open, `most` at a time: what has been read is freed with each part.
pub fn in_parts(
    most: i64,
    open: impl FnOnce(&SpiClient) -> Result<String>,
    mut each: impl FnMut(&SpiHeapTupleData) -> Result<()>,
) -> Result<()> {
    let mut name = Some(Spi::connect(|client| open(client))?);
    while let Some(open) = name.take() {
        name = Spi::connect(|client| -> Result<_> {
            let mut cursor = client.find_cursor(&open)?;
            let rows = cursor.fetch(most as _)?;
            if rows.is_empty() {
                return Ok(None); // it is closed
            }
            for row in rows {
                each(&row)?;
            }
            Ok(Some(cursor.detach_into_name()))
        })?;
    }
    Ok(())
}
