//! audit and unaudit: every change of a table logged, with or without a pipeline.
//!
//! It never queues work: what is logged for an audit alone is not even read by the worker.

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::names::qualified;
use super::rights::As;
use super::watch::{
    describe_source, lock_in_tries, notice_of_source, owns_source, refresh, release, watch,
};
use crate::error::{Error, OrReport, Result};

#[pg_extern(sql = r#"
CREATE FUNCTION audit(source regclass, mode text DEFAULT 'full', large_values boolean DEFAULT false) RETURNS void LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION audit(regclass, text, boolean) IS
'Logs every change of a table in recsync.change_log. mode: full (old_record and record hold all columns) or keys (the key only); large_values: also values above 8,192 bytes and vectors, which are logged as {"omitted_bytes": n} otherwise. Called again, it changes the mode. By the table''s owner. Errors: 42501 for others, 55000 without a primary key, 42809 for what is no table, 22023 for an unknown mode.';
"#)]
fn audit(source: pg_sys::Oid, mode: &str, large_values: bool) {
    start(source, mode, large_values).or_report();
}

fn start(source: pg_sys::Oid, mode: &str, large_values: bool) -> Result<()> {
    if !matches!(mode, "keys" | "full") {
        return Err(Error::argument(
            "mode",
            format!("\"{mode}\" is not a mode of an audit"),
            "The valid ones are full and keys.",
        ));
    }
    let name = name_of(source)?;
    let table = describe_source(source, &name)?;
    lock_in_tries(source, &name, pg_sys::ShareRowExclusiveLock)?;
    let id = watch(source, &name, &table)?;
    {
        let _as = As::extension();
        Spi::run_with_args(
            "UPDATE recsync.source SET audit = $2, large_values = $3 WHERE id = $1",
            &[id.into(), mode.into(), large_values.into()],
        )?;
    }
    refresh(source, &name, id, table.owner)?;
    notice_of_source(source, &name)
}

#[pg_extern(sql = r#"
CREATE FUNCTION unaudit(source regclass, if_exists boolean DEFAULT false) RETURNS void LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION unaudit(regclass, boolean) IS
'Ends the audit of a table; what is logged stays for recsync.log_retention. Errors: 42501 for others than its owner, 42704 where it is not audited (unless if_exists).';
"#)]
fn unaudit(source: pg_sys::Oid, if_exists: bool) {
    end(source, if_exists).or_report();
}

fn end(source: pg_sys::Oid, if_exists: bool) -> Result<()> {
    let name = name_of(source)?;
    let owner = owns_source(source, &name)?;
    let id = {
        let _as = As::extension();
        Spi::connect_mut(|client| {
            let ended = client.update(
                "UPDATE recsync.source SET audit = NULL, large_values = false WHERE relation = $1 AND audit IS NOT NULL RETURNING id",
                None,
                &[name.as_str().into()],
            )?;
            if ended.is_empty() {
                return Ok(None);
            }
            ended.first().get_one::<i32>().map_err(Error::from)
        })?
    };
    match id {
        Some(id) => release(source, &name, id, owner),
        None if if_exists => {
            notice!("{name} is not audited, skipping");
            Ok(())
        }
        None => Err(Error::NotAudited(name)),
    }
}

fn name_of(source: pg_sys::Oid) -> Result<String> {
    qualified(source).ok_or_else(|| {
        Error::argument(
            "source",
            "there is no such table",
            "Give the table to be audited.",
        )
    })
}
