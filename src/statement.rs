//! A statement that is planned once a process and kept.
//!
//! It never holds a value: values are always parameters.

use pgrx::datum::DatumWithOid;
use pgrx::pg_sys::PgOid;
use pgrx::spi::{OwnedPreparedStatement, SpiClient, SpiTupleTable};
use std::cell::OnceCell;
use std::ffi::CStr;

use crate::catalog::rights::with_settings;
use crate::error::Result;

/// Plans are made while the tables are small, and kept: without these the planner would read them as a whole, and go on
/// to do so when they have millions of rows.
const BY_KEY: &[(&CStr, &CStr)] = &[
    (c"enable_seqscan", c"off"),
    (c"enable_hashjoin", c"off"),
    (c"enable_mergejoin", c"off"),
];
const EACH_TIME: &[(&CStr, &CStr)] = &[(c"plan_cache_mode", c"force_custom_plan")];

pub struct Statement {
    text: String,
    settings: &'static [(&'static CStr, &'static CStr)],
    plan: OnceCell<OwnedPreparedStatement>,
}

impl Statement {
    pub fn new(text: impl Into<String>) -> Statement {
        Statement::with(text, &[])
    }

    /// One that finds its rows by keys that it is given, a few hundred of them at the most.
    pub fn by_key(text: impl Into<String>) -> Statement {
        Statement::with(text, BY_KEY)
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
        }
    }

    /// Runs it for its rows, under the active snapshot and without a transaction id.
    pub fn select<'conn>(
        &self,
        client: &SpiClient<'conn>,
        arguments: &[DatumWithOid],
    ) -> Result<SpiTupleTable<'conn>> {
        let plan = self.plan(client, arguments)?;
        Ok(self.planned(|| client.select(plan, None, arguments))?)
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
        let plan = client.prepare_mut(self.text.as_str(), &types)?.keep();
        Ok(self.plan.get_or_init(|| plan))
    }
}
