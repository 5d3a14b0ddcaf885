//! alter_pipeline: what was declared is changed in place. A row whose text and model stay what they were keeps its vector.
//!
//! It never touches a vector itself: where texts can differ, the worker looks at all rows again, as after a pause. Where the
//! table of vectors would be another, for their type or for rows of chunks, that is a new generation, which it begins.

use pgrx::datum::{AnyNumeric, Interval};
use pgrx::pg_sys;
use pgrx::prelude::*;

// The declaration as it is to be: each argument checked.
mod wanted;

// Its view, table and function under other names or of another owner; its index.
mod relations;

use super::ddl::seeing_its_effects;
use super::generation::{self, Wish, require_none_builds};
use super::pipeline::{self, Pipeline};
use super::rights::{As, in_subtransaction, in_undone_subtransaction, with_settings};
use super::watch::{lock_in_tries, refresh, table_owner};
use crate::capture::wake;
use crate::dispatch::backfill;
use crate::error::{Error, OrReport, Result};
use crate::ledger::budget;
use crate::observe::estimate::alteration::{self, Comes};
use wanted::Wanted;

/// `None`: as it is.
pub struct Given<'a> {
    columns: Option<Vec<String>>,
    content: Option<&'a str>,
    server: Option<&'a str>,
    schedule: Option<&'a str>,
    debounce: Option<Interval>,
    max_delay: Option<Interval>,
    row_filter: Option<&'a str>,
    long_text: Option<&'a str>,
    storage: Option<&'a str>,
    index: Option<&'a str>,
    into_column: Option<&'a str>,
    capture: Option<&'a str>,
    on_replica: Option<bool>,
    chunk_tokens: Option<i32>,
    monthly_budget: Option<AnyNumeric>,
    new_name: Option<&'a str>,
    owner: Option<&'a str>,
}

#[pg_extern(sql = r#"
CREATE FUNCTION alter_pipeline(name text, columns text[] DEFAULT NULL, content text DEFAULT NULL, server text DEFAULT NULL, schedule text DEFAULT NULL, debounce interval DEFAULT NULL,
    max_delay interval DEFAULT NULL, row_filter text DEFAULT NULL, long_text text DEFAULT NULL, storage text DEFAULT NULL, index text DEFAULT NULL, into_column text DEFAULT NULL, capture text DEFAULT NULL,
    on_replica boolean DEFAULT NULL, chunk_tokens integer DEFAULT NULL, monthly_budget numeric DEFAULT NULL, new_name text DEFAULT NULL, owner text DEFAULT NULL, dry_run boolean DEFAULT false)
RETURNS TABLE (rows bigint, unchanged bigint, embeds bigint, removes bigint, fails bigint, tokens bigint, cost numeric, duration interval)
LANGUAGE c VOLATILE ROWS 1 AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION alter_pipeline IS
'Changes a pipeline in place: the arguments are those of create_pipeline, NULL leaves a setting as it is; row_filter => ''-'': none; debounce, max_delay => ''0'': as if not given; new_name renames its view, table and function, owner gives them to another role. After a change of columns, content, row_filter, long_text or chunk_tokens or of the server''s model all rows are looked at again, and only those whose text, pieces or model are others are embedded again. Another storage, and long_text to or from chunks, is a new generation: recsync.rebuild builds it beside the one in service, with the server, index and long_text that are given; the rest is changed at once. monthly_budget: as set_budget, which also removes one. dry_run: changes nothing and says what it would come to. rows: those that pass row_filter and have a text; unchanged: of these, those that keep their vector; embeds: those that are embedded again, or for the first time; removes: rows that lose their vector; fails: rows whose text cannot be computed; tokens, cost and duration of embeds, as recsync.estimate reckons; of a new generation at the most. Where no text can differ nothing is counted, and rows and unchanged are NULL. Errors: 42704 where it or the server does not exist, 42501 for others than its owner, or no USAGE on the server, 22023 impossible argument (other dimensions: recsync.rebuild), 55006 a generation is being built or rolled back to, and what recsync.rebuild refuses where it is one, 42P07 the new name is taken, 42703, 55000, 55P03 a lock, 25006 on a standby.';
"#)]
#[allow(clippy::type_complexity, clippy::too_many_arguments)] // the columns and arguments of an SQL function
fn alter_pipeline(
    name: Option<&str>,
    columns: Option<Vec<Option<String>>>,
    content: Option<&str>,
    server: Option<&str>,
    schedule: Option<&str>,
    debounce: Option<Interval>,
    max_delay: Option<Interval>,
    row_filter: Option<&str>,
    long_text: Option<&str>,
    storage: Option<&str>,
    index: Option<&str>,
    into_column: Option<&str>,
    capture: Option<&str>,
    on_replica: Option<bool>,
    chunk_tokens: Option<i32>,
    monthly_budget: Option<AnyNumeric>,
    new_name: Option<&str>,
    owner: Option<&str>,
    dry_run: Option<bool>,
) -> TableIterator<
    'static,
    (
        name!(rows, Option<i64>),
        name!(unchanged, Option<i64>),
        name!(embeds, i64),
        name!(removes, i64),
        name!(fails, i64),
        name!(tokens, i64),
        name!(cost, Option<AnyNumeric>),
        name!(duration, Interval),
    ),
> {
    let given = Given {
        columns: columns.map(|columns| columns.into_iter().flatten().collect()),
        content,
        server,
        schedule,
        debounce,
        max_delay,
        row_filter,
        long_text,
        storage,
        index,
        into_column,
        capture,
        on_replica,
        chunk_tokens,
        monthly_budget,
        new_name,
        owner,
    };
    let name = name.unwrap_or_default();
    let comes = alter(name, &given, dry_run.unwrap_or(false)).or_report();
    TableIterator::once((
        comes.rows,
        comes.unchanged,
        comes.embeds,
        comes.removes,
        comes.fails,
        comes.tokens,
        comes.cost,
        comes.duration,
    ))
}

fn alter(name: &str, given: &Given, dry_run: bool) -> Result<Comes> {
    crate::catalog::install::require_primary()?;
    super::install::require_worker()?;
    let (is, wanted) = look(name, given)?;
    if wanted.is_as(&is) {
        notice!(
            "pipeline {} is declared so already, nothing is changed",
            is.relation
        );
        return Ok(Comes::nothing());
    }
    if wanted.rebuilds {
        generation::check(&is, given.wish())?;
    }
    // All rows are rendered: before anything is locked.
    let comes = comes(&is, &wanted)?;
    if !dry_run {
        hold(&is)?;
        // Somebody else may have altered it meanwhile.
        let (is, wanted) = seeing_its_effects(|| look(name, given))?;
        carry_out(&is, &wanted.in_place(&is))?;
        if wanted.rebuilds {
            rebuild(wanted.relation(&is), given)?;
        }
        if is.paused {
            notice!(
                "pipeline {0} is paused: SELECT recsync.resume('{0}') lets it run as it is declared now",
                wanted.relation(&is)
            );
        }
        wake::after_catalog_change();
    }
    Ok(comes)
}

impl<'a> Given<'a> {
    /// What of it goes with a new generation.
    fn wish(&self) -> Wish<'a> {
        Wish {
            server: self.server,
            storage: self.storage,
            index: self.index,
            long_text: self.long_text,
            chunk_tokens: self.chunk_tokens,
            ..Wish::default()
        }
    }
}

/// What it comes to: in place, and beside that for a new generation.
fn comes(is: &Pipeline, wanted: &Wanted) -> Result<Comes> {
    let of = |wanted: &Wanted| match wanted.looks_again(is) {
        true => alteration::of(as_declared(is, wanted)?, is),
        false => Ok(Comes::nothing()),
    };
    let all = of(wanted)?;
    match wanted.rebuilds {
        true => Ok(all.and(of(&wanted.in_place(is))?)),
        false => Ok(all),
    }
}

fn rebuild(name: &str, given: &Given) -> Result<()> {
    seeing_its_effects(|| generation::begin(name, given.wish()))?;
    ereport!(
        NOTICE,
        PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION,
        format!(
            "a new generation of {name} is being built, which takes the place of the one in service once it is complete"
        ),
        "SELECT * FROM recsync.generation shows how far it is; recsync.cancel_rebuild ends it."
    );
    Ok(())
}

/// The pipeline as it is, and as it is to be; for those only who may do what its owner may: its expressions run with
/// the owner's rights.
fn look(name: &str, given: &Given) -> Result<(Pipeline, Wanted)> {
    let is = pipeline::find(name)?;
    // SAFETY: role look-ups by OID.
    if !unsafe { pg_sys::has_privs_of_role(pg_sys::GetUserId(), is.owner()) } {
        return Err(Error::Denied {
            what: format!("you are not the owner of pipeline {}", is.relation),
            grant: format!(
                "Its owner may call this, and members of that role: GRANT {} TO …",
                super::names::quote(is.owner_name.as_deref().unwrap_or_default())
            ),
        });
    }
    if is.source_oid() == pg_sys::InvalidOid {
        return Err(Error::BrokenPipeline {
            name: is.relation.clone(),
            reason: format!("its source {} does not exist", is.source),
        });
    }
    require_none_builds(&is, &generation::of(is.id)?)?;
    let wanted = Wanted::of(&is, given)?;
    Ok((is, wanted))
}

/// The pipeline as it would be loaded if it were declared so.
fn as_declared(is: &Pipeline, wanted: &Wanted) -> Result<Pipeline> {
    let tried = in_undone_subtransaction(|| {
        write(is.id, wanted)?;
        seeing_its_effects(|| pipeline::find(&is.relation))
    });
    tried.map_err(Error::from)
}

/// Nobody else alters it until the end of the transaction.
fn hold(is: &Pipeline) -> Result<()> {
    const HOLD: &str = "SELECT id FROM recsync.pipeline WHERE id = $1 FOR UPDATE";
    let held = with_settings(&[(c"lock_timeout", c"1s")], || {
        in_subtransaction(|| {
            let _as = As::extension();
            Spi::connect_mut(|client| Ok(client.update(HOLD, None, &[is.id.into()])?.len()))
        })
    });
    match held {
        Ok(1) => Ok(()),
        Ok(_) => Err(Error::NoSuchPipeline(is.relation.clone())),
        Err(failed) if failed.code == PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE => {
            Err(Error::LockBusy(is.relation.clone()))
        }
        Err(failed) => Err(failed.into()),
    }
}

/// Locks first, the source's before the others, then the declaration, then what follows from it.
fn carry_out(is: &Pipeline, wanted: &Wanted) -> Result<()> {
    let source = is.source_oid();
    let captures = wanted.captures_otherwise(is);
    if captures {
        // Who is writing has been told to log by the columns of before: what they write has to be seen to.
        lock_in_tries(source, &is.source, pg_sys::ShareRowExclusiveLock)?;
    }
    let drops_index = wanted.index != is.index;
    if drops_index || wanted.names.is_some() || wanted.owner.is_some() {
        relations::lock(is)?;
    }
    if drops_index {
        relations::drop_index(is)?;
    }
    write(is.id, wanted)?;
    if let Some(budget) = &wanted.monthly_budget {
        let _as = As::extension();
        budget::set(is, Some(budget.clone()))?;
    }
    if captures {
        refresh(source, &is.source, is.source_id, table_owner(source)?)?;
    }
    if wanted.looks_again(is) {
        let _as = As::extension();
        backfill::restart(&[is.id])?;
    }
    if let Some(names) = &wanted.names {
        relations::rename(is, names)?;
    }
    if let Some(owner) = &wanted.owner {
        relations::give_to(wanted.relation(is), owner)?;
    }
    Ok(())
}

/// A generation that is kept follows, but for what its table is made by.
fn write(id: i32, wanted: &Wanted) -> Result<()> {
    const WRITE: &str = "\
UPDATE recsync.pipeline SET columns = $2, content = $3, row_filter = $4, used_columns = $5, schedule = $7, every = $8 * interval '1 s',
       debounce = $9 * interval '1 s', max_delay = $10 * interval '1 s', capture = $12, on_replica = $13,
       server = CASE id WHEN $1 THEN $6 ELSE server END, index = CASE id WHEN $1 THEN $11 ELSE index END,
       long_text = CASE WHEN id = $1 OR 'chunks' NOT IN (long_text, $14) THEN $14 ELSE long_text END,
       chunk_tokens = CASE WHEN id = $1 OR 'chunks' = ALL (ARRAY[long_text, $14]) THEN $15 ELSE chunk_tokens END
 WHERE $1 IN (id, of_pipeline)";
    let _as = As::extension();
    Spi::run_with_args(
        WRITE,
        &[
            id.into(),
            wanted.columns.clone().into(),
            wanted.content.as_str().into(),
            wanted.row_filter.as_deref().into(),
            wanted.used_columns.clone().into(),
            wanted.server.as_str().into(),
            wanted.when.schedule.as_str().into(),
            wanted.when.every_s.into(),
            wanted.when.debounce_s.into(),
            wanted.when.max_delay_s.into(),
            wanted.index.as_str().into(),
            wanted.capture.as_str().into(),
            wanted.on_replica.into(),
            wanted.long_text.0.name().into(),
            wanted.long_text.1.into(),
        ],
    )?;
    Ok(())
}
