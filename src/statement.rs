//! A statement that is planned once a process and kept.
//!
//! It never holds a value: values are always parameters.

use pgrx::datum::DatumWithOid;
use pgrx::pg_sys::PgOid;
use pgrx::spi::{OwnedPreparedStatement, SpiClient, SpiTupleTable};
use std::cell::OnceCell;

use crate::error::Result;

pub struct Statement {
    text: String,
    plan: OnceCell<OwnedPreparedStatement>,
}

impl Statement {
    pub fn new(text: impl Into<String>) -> Statement {
        Statement {
            text: text.into(),
            plan: OnceCell::new(),
        }
    }

    /// Runs it for its rows, under the active snapshot and without a transaction id.
    pub fn select<'conn>(
        &self,
        client: &SpiClient<'conn>,
        arguments: &[DatumWithOid],
    ) -> Result<SpiTupleTable<'conn>> {
        Ok(client.select(self.plan(client, arguments)?, None, arguments)?)
    }

    /// Runs it for its effect (and its rows).
    pub fn update<'conn>(
        &self,
        client: &mut SpiClient<'conn>,
        arguments: &[DatumWithOid],
    ) -> Result<SpiTupleTable<'conn>> {
        let plan = self.plan(client, arguments)?;
        Ok(client.update(plan, None, arguments)?)
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
