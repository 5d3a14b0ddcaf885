//! A backfill that costs more than a mistake may: it waits for recsync.resume, and says what it will come to.
//!
//! It never holds up a change, and never what recsync looks at again by itself: unchanged texts cost nothing.

use pgrx::prelude::*;

use crate::catalog::pipeline::Pipeline;
use crate::catalog::rights::{As, in_undone_subtransaction};
use crate::dispatch::backfill;
use crate::embed::endpoint::Endpoint;
use crate::error::Result;
use crate::observe::estimate::price::Work;
use crate::settings;

/// Holds the backfill of a new pipeline that is above `recsync.backfill_confirm_rows`. As its creator.
pub fn hold_if_large(pipeline: &Pipeline, endpoint: &Endpoint) -> Result<()> {
    let Some(most) = settings::backfill_confirm_rows() else {
        return Ok(());
    };
    let work = Work {
        source: pipeline.source_oid(),
        owner: pipeline.owner(),
        rows_of: &pipeline.rows_of,
        content: &pipeline.content,
        row_filter: pipeline.row_filter.as_deref(),
        endpoint,
        long_text: pipeline.long_text(endpoint),
    };
    // A row whose expressions fail is a dead letter in time, and no reason to refuse the pipeline.
    let price = match in_undone_subtransaction(|| work.price_above(most)) {
        Ok(Some(price)) => price.text(),
        Ok(None) => return Ok(()),
        Err(_) => {
            "more rows than recsync.backfill_confirm_rows, whose texts cannot be estimated".into()
        }
    };
    hold(pipeline, &price)
}

/// Holds it, with its price.
pub fn hold(pipeline: &Pipeline, price: &str) -> Result<()> {
    let relation = &pipeline.relation;
    let reason = format!(
        "its backfill waits for recsync.resume('{}'): {price}; changes are embedded meanwhile",
        relation.replace('\'', "''")
    );
    {
        let _as = As::extension();
        backfill::hold(pipeline.id, &reason)?;
    }
    ereport!(
        NOTICE,
        PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION,
        format!("the backfill of {relation} has not begun: {price}"),
        format!(
            "SELECT recsync.resume('{}') begins it; changes are embedded meanwhile. SET recsync.backfill_confirm_rows = -1 before create_pipeline never asks.",
            relation.replace('\'', "''")
        )
    );
    Ok(())
}
