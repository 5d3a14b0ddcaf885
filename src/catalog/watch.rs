//! A watched table: what it must be, its lock, its triggers.
//!
//! It never queues for a lock on the user's table: short tries, and an error when they are all in vain.

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::names::{quote, select_one};
use super::pipeline::Pipeline;
use super::rights::{As, with_settings};
use crate::error::{Error, Result};

pub struct SourceTable {
    pub schema: String,
    pub owner: pg_sys::Oid,
    pub key_columns: Vec<String>,
}

pub fn describe_source(source: pg_sys::Oid, name: &str) -> Result<SourceTable> {
    let row = Spi::connect(|client| -> Result<_> {
        let table = client.select(
            "SELECT n.nspname::text, c.relowner, pg_catalog.pg_get_userbyid(c.relowner)::text, c.relkind::text, c.relpersistence::text,
                    (SELECT pg_catalog.array_agg(a.attname::text ORDER BY k.n)
                       FROM pg_catalog.pg_index i, pg_catalog.unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, n), pg_catalog.pg_attribute a
                      WHERE i.indrelid = c.oid AND i.indisprimary AND k.n <= i.indnkeyatts AND a.attrelid = c.oid AND a.attnum = k.attnum),
                    pg_catalog.pg_has_role(c.relowner, 'USAGE'), pg_catalog.has_schema_privilege(c.relowner, n.oid, 'CREATE'),
                    n.nspname IN ('pg_catalog', 'information_schema', 'recsync')
               FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1",
            Some(1),
            &[source.into()],
        )?;
        let row = table.first();
        Ok((
            row.get::<String>(1)?.unwrap_or_default(),
            row.get::<pg_sys::Oid>(2)?.unwrap_or(pg_sys::InvalidOid),
            row.get::<String>(3)?.unwrap_or_default(),
            row.get::<String>(4)?.unwrap_or_default() + &row.get::<String>(5)?.unwrap_or_default(),
            row.get::<Vec<String>>(6)?,
            row.get::<bool>(7)?.unwrap_or(false),
            row.get::<bool>(8)?.unwrap_or(false),
            row.get::<bool>(9)?.unwrap_or(false),
        ))
    })?;
    let (schema, owner, owner_name, kind, key_columns, is_owner, may_create, is_system) = row;
    let refused = |kind, hint| {
        Err(Error::NotATable {
            relation: name.to_owned(),
            kind,
            hint,
        })
    };
    const TABLE: &str = "Name an ordinary or partitioned table.";
    match (kind.as_str(), is_system) {
        (_, true) => return refused("a system table", TABLE),
        ("rt" | "pt", _) => {
            return refused(
                "a temporary table",
                "Other sessions, recsync's worker among them, cannot read it: use an ordinary table.",
            );
        }
        ("ru" | "rp" | "pp" | "pu", _) => {}
        ("vp", _) | ("vt", _) => {
            return refused(
                "a view",
                "Name the table that it shows; content and row_filter can compute.",
            );
        }
        ("mp", _) => {
            return refused(
                "a materialized view",
                "Triggers do not fire there: name the tables that it shows.",
            );
        }
        ("fp", _) => {
            return refused(
                "a foreign table",
                "Its changes are made elsewhere: declare the pipeline there, or on a local copy.",
            );
        }
        _ => return refused("not a table", TABLE),
    }
    if !is_owner {
        return Err(Error::Denied {
            what: format!("you do not own table {name}"),
            grant: format!(
                "Its owner can create the pipeline, or a member of that role: GRANT {} TO …",
                quote(&owner_name)
            ),
        });
    }
    if !may_create {
        return Err(Error::Denied {
            what: format!(
                "role {} cannot create relations in schema {}",
                quote(&owner_name),
                quote(&schema)
            ),
            grant: format!(
                "GRANT CREATE ON SCHEMA {} TO {};",
                quote(&schema),
                quote(&owner_name)
            ),
        });
    }
    match key_columns {
        Some(key_columns) => Ok(SourceTable {
            schema,
            owner,
            key_columns,
        }),
        None => Err(Error::NoPrimaryKey(name.to_owned())),
    }
}

/// A lock on the source, SHARE ROW EXCLUSIVE to make a trigger, ACCESS EXCLUSIVE to drop it: 20 tries of 50 ms, so that writers that queue
/// behind it wait for 50 ms at the most.
pub fn lock_in_tries(relation: pg_sys::Oid, name: &str, mode: u32) -> Result<()> {
    let granted = (0..20).any(|_| {
        with_settings(&[(c"lock_timeout", c"50ms")], || {
            in_subtransaction(|| {
                // SAFETY: an ordinary lock request; it raises when lock_timeout passes.
                unsafe { pg_sys::LockRelationOid(relation, mode as _) }
            })
        })
    });
    if granted {
        Ok(())
    } else {
        Err(Error::LockBusy(name.to_owned()))
    }
}

/// Whether `body` ran through; false when it ran into a lock timeout. What it locked stays locked.
fn in_subtransaction(body: impl FnOnce() + std::panic::UnwindSafe) -> bool {
    // SAFETY: the pattern of PL/pgSQL's exception block: context and resource owner are put back either way.
    unsafe {
        let (context, owner) = (pg_sys::CurrentMemoryContext, pg_sys::CurrentResourceOwner);
        pg_sys::BeginInternalSubTransaction(std::ptr::null());
        let granted = PgTryBuilder::new(move || {
            body();
            true
        })
        .catch_when(PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE, |_| false)
        .execute();
        if granted {
            pg_sys::ReleaseCurrentSubTransaction();
        } else {
            pg_sys::RollbackAndReleaseCurrentSubTransaction();
        }
        pg_sys::MemoryContextSwitchTo(context);
        pg_sys::CurrentResourceOwner = owner;
        granted
    }
}

/// The source's row and triggers: made where they are missing, its used columns widened where they are there.
pub fn watch(source: pg_sys::Oid, name: &str, table: &SourceTable, used: &[String]) -> Result<i32> {
    let id = {
        let _as = As::extension();
        Spi::get_one_with_args::<i32>(
            "INSERT INTO recsync.source AS s (relation, key_columns, used_columns) VALUES ($1, $2, $3)
             ON CONFLICT (relation) DO UPDATE SET key_columns = excluded.key_columns, used_columns =
                 (SELECT pg_catalog.array_agg(DISTINCT u ORDER BY u) FROM pg_catalog.unnest(s.used_columns || excluded.used_columns) AS u)
             RETURNING id",
            &[name.into(), table.key_columns.clone().into(), used.to_vec().into()],
        )?
        .unwrap_or_default()
    };
    let there = select_one::<bool>(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_trigger WHERE tgrelid = $1 AND tgname = 'recsync_capture')",
        &[source.into()],
    )?;
    if there != Some(true) {
        let _as = As::maker(table.owner);
        Spi::run(&format!(
            "CREATE TRIGGER recsync_capture AFTER INSERT OR UPDATE OR DELETE ON {name} FOR EACH ROW EXECUTE FUNCTION recsync.capture_v1('{id}')"
        ))?;
        let leaves = select_one::<Vec<String>>(
            "SELECT pg_catalog.array_agg(pg_catalog.format('%I.%I', n.nspname, c.relname))
               FROM (SELECT $1::oid AS relid UNION SELECT t.relid::oid FROM pg_catalog.pg_partition_tree($1::oid::regclass) t) t
               JOIN pg_catalog.pg_class c ON c.oid = t.relid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace",
            &[source.into()],
        )?;
        for leaf in leaves.unwrap_or_default() {
            Spi::run(&format!(
                "CREATE TRIGGER recsync_capture_truncate AFTER TRUNCATE ON {leaf} FOR EACH STATEMENT EXECUTE FUNCTION recsync.capture_v1('{id}')"
            ))?;
        }
    }
    Ok(id)
}

pub fn unwatch(pipeline: &Pipeline) -> Result<()> {
    let source = pipeline.source_oid();
    if source != pg_sys::InvalidOid {
        let leaves = select_one::<Vec<String>>(
            "SELECT pg_catalog.array_agg(pg_catalog.format('%I ON %I.%I', g.tgname, n.nspname, c.relname))
               FROM (SELECT $1::oid AS relid UNION SELECT t.relid::oid FROM pg_catalog.pg_partition_tree($1::oid::regclass) t) t
               JOIN pg_catalog.pg_class c ON c.oid = t.relid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
               JOIN pg_catalog.pg_trigger g ON g.tgrelid = t.relid AND g.tgparentid = 0 AND g.tgname IN ('recsync_capture', 'recsync_capture_truncate')",
            &[source.into()],
        )?;
        let _as = As::maker(pipeline.owner());
        for trigger in leaves.unwrap_or_default() {
            Spi::run(&format!("DROP TRIGGER IF EXISTS {trigger}"))?;
        }
    }
    let _as = As::extension();
    Spi::run_with_args(
        "DELETE FROM recsync.source WHERE id = $1",
        &[pipeline.source_id.into()],
    )?;
    Ok(())
}

/// Every backend forgets what it knew of the table and its partitions.
pub fn forget_cached(source: pg_sys::Oid) -> Result<()> {
    let relations = select_one::<Vec<pg_sys::Oid>>(
        "SELECT pg_catalog.array_agg(relid) FROM (SELECT $1::oid AS relid UNION SELECT t.relid::oid FROM pg_catalog.pg_partition_tree($1::oid::regclass) t) t",
        &[source.into()],
    )?;
    for relation in relations.unwrap_or_default() {
        // SAFETY: sends an invalidation at commit; the relation exists, its lock is held.
        unsafe { pg_sys::CacheInvalidateRelcacheByRelid(relation) };
    }
    Ok(())
}
