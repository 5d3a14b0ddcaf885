//! A watched table: what it must be, its lock, its triggers.
//!
//! It never queues for a lock on the user's table: short tries, and an error when they are all in vain.

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::names::{quote, select_one};
use super::rights::{As, in_catalog, in_subtransaction, with_settings};
use crate::error::{Error, Failed, Result};

pub struct SourceTable {
    pub schema: String,
    pub owner: pg_sys::Oid,
    pub key_columns: Vec<String>,
    may_create: bool,
}

impl SourceTable {
    /// For relations of a pipeline that is somebody else's by now.
    pub fn owned_by(self, owner: pg_sys::Oid) -> Result<SourceTable> {
        const MAY: &str = "SELECT pg_catalog.has_schema_privilege($1, $2, 'CREATE')";
        let may_create = select_one::<bool>(MAY, &[owner.into(), self.schema.as_str().into()])?;
        Ok(SourceTable {
            owner,
            may_create: may_create == Some(true),
            ..self
        })
    }

    /// Refuses where the owner cannot have a pipeline's relations made beside the table.
    pub fn require_create(&self) -> Result<()> {
        if self.may_create {
            return Ok(());
        }
        // SAFETY: the owner exists.
        let owner = unsafe {
            std::ffi::CStr::from_ptr(pg_sys::GetUserNameFromId(self.owner, false)).to_string_lossy()
        };
        let (schema, owner) = (quote(&self.schema), quote(&owner));
        Err(Error::Denied {
            what: format!("role {owner} cannot create relations in schema {schema}"),
            grant: format!("GRANT CREATE ON SCHEMA {schema} TO {owner};"),
        })
    }
}

/// The owner of a table; none where it is gone.
pub fn table_owner(table: pg_sys::Oid) -> Result<pg_sys::Oid> {
    const OWNER: &str = "SELECT relowner FROM pg_catalog.pg_class WHERE oid = $1";
    Ok(select_one::<pg_sys::Oid>(OWNER, &[table.into()])?.unwrap_or(pg_sys::InvalidOid))
}

/// The owner of a table, which the caller has to be.
pub fn owns_source(source: pg_sys::Oid, name: &str) -> Result<pg_sys::Oid> {
    let owner = table_owner(source)?;
    // SAFETY: look-ups of roles by OID; an unknown one has the name of its number.
    let (may, role) = unsafe {
        let role = pg_sys::GetUserNameFromId(owner, true);
        (
            pg_sys::has_privs_of_role(pg_sys::GetUserId(), owner),
            (!role.is_null()).then(|| std::ffi::CStr::from_ptr(role).to_string_lossy()),
        )
    };
    if may {
        return Ok(owner);
    }
    Err(Error::Denied {
        what: format!("you do not own table {name}"),
        grant: format!(
            "Its owner may do this, and members of that role: GRANT {} TO …",
            quote(&role.unwrap_or_default())
        ),
    })
}

pub fn describe_source(source: pg_sys::Oid, name: &str) -> Result<SourceTable> {
    let row = in_catalog(|| {
        Spi::connect(|client| -> Result<_> {
            let table = client.select(
            "SELECT n.nspname::text, c.relowner, c.relkind::text, c.relpersistence::text,
                    (SELECT pg_catalog.array_agg(a.attname::text ORDER BY k.n)
                       FROM pg_catalog.pg_index i, pg_catalog.unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, n), pg_catalog.pg_attribute a
                      WHERE i.indrelid = c.oid AND i.indisprimary AND k.n <= i.indnkeyatts AND a.attrelid = c.oid AND a.attnum = k.attnum),
                    pg_catalog.has_schema_privilege(c.relowner, n.oid, 'CREATE'),
                    n.nspname IN ('pg_catalog', 'information_schema', 'recsync')
               FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1",
            Some(1),
            &[source.into()],
        )?;
            let row = table.first();
            Ok((
                row.get::<String>(1)?.unwrap_or_default(),
                row.get::<pg_sys::Oid>(2)?.unwrap_or(pg_sys::InvalidOid),
                row.get::<String>(3)?.unwrap_or_default()
                    + &row.get::<String>(4)?.unwrap_or_default(),
                row.get::<Vec<String>>(5)?,
                row.get::<bool>(6)?.unwrap_or(false),
                row.get::<bool>(7)?.unwrap_or(false),
            ))
        })
    })?;
    let (schema, owner, kind, key_columns, may_create, is_system) = row;
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
    owns_source(source, name)?;
    match key_columns {
        Some(key_columns) => Ok(SourceTable {
            schema,
            owner,
            key_columns,
            may_create,
        }),
        None => Err(Error::NoPrimaryKey(name.to_owned())),
    }
}

/// What may surprise: rows of inheriting tables, and what a crash does to an unlogged one.
pub fn notice_of_source(source: pg_sys::Oid, name: &str) -> Result<()> {
    let children = select_one::<String>(
        "SELECT pg_catalog.string_agg(i.inhrelid::regclass::text, ', ' ORDER BY i.inhrelid)
           FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class c ON c.oid = i.inhparent WHERE c.oid = $1 AND c.relkind = 'r'",
        &[source.into()],
    )?;
    if let Some(children) = children {
        notice!(
            "only rows of {name} itself are watched, not those of {children}: declare them by themselves"
        );
    }
    let unlogged = select_one::<bool>(
        "SELECT relpersistence = 'u' FROM pg_catalog.pg_class WHERE oid = $1",
        &[source.into()],
    )?;
    if unlogged == Some(true) {
        notice!("{name} is unlogged: a crash empties it, and its vectors are removed then");
    }
    Ok(())
}

/// A lock on the source, SHARE ROW EXCLUSIVE to make a trigger, ACCESS EXCLUSIVE to drop it: 20 tries of 50 ms, so that writers that queue
/// behind it wait for 50 ms at the most.
pub fn lock_in_tries(relation: pg_sys::Oid, name: &str, mode: u32) -> Result<()> {
    for _ in 0..20 {
        let tried = with_settings(&[(c"lock_timeout", c"50ms")], || {
            in_subtransaction(|| {
                // SAFETY: an ordinary lock request; it raises when lock_timeout passes.
                unsafe { pg_sys::LockRelationOid(relation, mode as _) };
                Ok(())
            })
        });
        match tried {
            Ok(()) => return Ok(()),
            Err(Failed {
                code: PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE,
                ..
            }) => {}
            Err(failed) => return Err(failed.into()),
        }
    }
    Err(Error::LockBusy(name.to_owned()))
}

/// What of a row the change log is to hold. The widest wish of a table's pipelines and its audit counts.
pub const CAPTURES: [&str; 3] = ["keys", "columns", "full"];

/// What the triggers log follows from the pipelines, recommenders and the audit of the table.
const REFRESH: &str = "\
UPDATE recsync.source s
   SET used_columns = p.used, on_replica = p.on_replica,
       dispatched = p.pipelines > 0 OR EXISTS (SELECT FROM recsync.member WHERE source_id = $1)
                  OR EXISTS (SELECT FROM recsync.watched_items WHERE source_id = $1),
       capture = CASE WHEN s.audit = 'full' OR 'full' = ANY (p.captures) THEN 'full'
                      WHEN 'columns' = ANY (p.captures) THEN 'columns' ELSE 'keys' END
  FROM (SELECT pg_catalog.count(*) AS pipelines, COALESCE(pg_catalog.bool_or(on_replica), false) AS on_replica,
               pg_catalog.array_agg(capture) AS captures,
               ARRAY(SELECT pg_catalog.unnest(used_columns) AS u FROM recsync.pipeline WHERE source_id = $1
                      UNION SELECT pg_catalog.unnest(used_columns) FROM recsync.member WHERE source_id = $1
                      UNION SELECT pg_catalog.unnest(used_columns) FROM recsync.watched_items WHERE source_id = $1 ORDER BY u) AS used
          FROM recsync.pipeline WHERE source_id = $1) p
 WHERE s.id = $1
RETURNING s.on_replica";

/// recsync's triggers on the table `$1` and its partitions, but for those that PostgreSQL made from the root's.
const TRIGGERS: &str = "\
SELECT pg_catalog.array_agg(pg_catalog.format('%I ON %I.%I', g.tgname, n.nspname, c.relname))
  FROM (SELECT $1::oid AS relid UNION SELECT t.relid::oid FROM pg_catalog.pg_partition_tree($1::oid::regclass) t) t
  JOIN pg_catalog.pg_class c ON c.oid = t.relid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_catalog.pg_trigger g ON g.tgrelid = t.relid AND g.tgparentid = 0
 WHERE g.tgname IN ('00_recsync_capture_' || $2::text, '00_recsync_truncate_' || $2::text) AND ($3 IS NULL OR g.tgenabled::text = $3)";

/// The source's row and triggers, made where they are missing. Triggers fire in the order of their names: theirs
/// begin with 00, so that a row's change is logged before another trigger changes the row again. [`refresh`] has to follow.
pub fn watch(source: pg_sys::Oid, name: &str, table: &SourceTable) -> Result<i32> {
    let id = {
        let _as = As::extension();
        Spi::get_one_with_args::<i32>(
            "INSERT INTO recsync.source (relation, key_columns) VALUES ($1, $2)
             ON CONFLICT (relation) DO UPDATE SET key_columns = excluded.key_columns RETURNING id",
            &[name.into(), table.key_columns.clone().into()],
        )?
        .unwrap_or_default()
    };
    let there = select_one::<bool>(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_trigger WHERE tgrelid = $1 AND tgname = '00_recsync_capture_' || $2::text)",
        &[source.into(), id.into()],
    )?;
    if there != Some(true) {
        let _as = As::maker(table.owner);
        Spi::run(&format!(
            "CREATE TRIGGER \"00_recsync_capture_{id}\" AFTER INSERT OR UPDATE OR DELETE ON {name} FOR EACH ROW EXECUTE FUNCTION recsync.capture_v1('{id}')"
        ))?;
    }
    watch_truncate(source, id, table.owner)?;
    watch_unseen(source, id, table.owner)?;
    Ok(id)
}

/// TRUNCATE has statement triggers, which partitions do not take over from their root: each gets its own.
pub fn watch_truncate(source: pg_sys::Oid, id: i32, owner: pg_sys::Oid) -> Result<()> {
    let unwatched = select_one::<Vec<String>>(
        "SELECT pg_catalog.array_agg(pg_catalog.format('%I.%I', n.nspname, c.relname))
           FROM (SELECT $1::oid AS relid UNION SELECT t.relid::oid FROM pg_catalog.pg_partition_tree($1::oid::regclass) t) t
           JOIN pg_catalog.pg_class c ON c.oid = t.relid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
          WHERE c.relkind IN ('r', 'p') AND NOT EXISTS (SELECT FROM pg_catalog.pg_trigger g WHERE g.tgrelid = t.relid AND g.tgname = '00_recsync_truncate_' || $2::text)",
        &[source.into(), id.into()],
    )?;
    let _as = As::maker(owner);
    for table in unwatched.unwrap_or_default() {
        Spi::run(&format!(
            "CREATE TRIGGER \"00_recsync_truncate_{id}\" AFTER TRUNCATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION recsync.capture_v1('{id}')"
        ))?;
    }
    Ok(())
}

/// The table `$1` and its partitions, and how the trigger of source `$2` that says what others have not seen fires there.
const UNSEEN: &str = "\
SELECT pg_catalog.array_agg(pg_catalog.format('%I.%I', n.nspname, c.relname)),
       pg_catalog.array_agg(COALESCE((SELECT g.tgenabled::text FROM pg_catalog.pg_trigger g WHERE g.tgrelid = c.oid AND g.tgname = '00_recsync_unseen_' || $2::text), ''))
  FROM (SELECT $1::oid AS relid UNION SELECT t.relid::oid FROM pg_catalog.pg_partition_tree($1::oid::regclass) t) t
  JOIN pg_catalog.pg_class c ON c.oid = t.relid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p')";

/// A statement trigger on the table and each partition that fires as a replica, where the others do not: it is made where
/// it is missing, and put right where ENABLE TRIGGER ALL has been. Where the others fire always it is off.
pub fn watch_unseen(source: pg_sys::Oid, id: i32, owner: pg_sys::Oid) -> Result<()> {
    let on_replica = {
        let _as = As::extension();
        let asked = "SELECT on_replica FROM recsync.source WHERE id = $1";
        select_one::<bool>(asked, &[id.into()])? == Some(true)
    };
    let (tables, fire) = in_catalog(|| {
        Spi::connect(|client| -> Result<_> {
            let rows = client.select(UNSEEN, Some(1), &[source.into(), id.into()])?;
            let row = rows.first();
            let texts =
                |column| -> Result<_> { Ok(row.get::<Vec<String>>(column)?.unwrap_or_default()) };
            Ok((texts(1)?, texts(2)?))
        })
    })?;
    let (wanted, how) = match on_replica {
        true => ("D", "DISABLE"),
        false => ("R", "ENABLE REPLICA"),
    };
    if fire.iter().all(|fires| fires == wanted) {
        return Ok(());
    }
    lock_in_tries(
        source,
        tables.first().map_or("", String::as_str),
        pg_sys::ShareRowExclusiveLock,
    )?;
    let _as = As::maker(owner);
    for (table, fires) in tables.iter().zip(&fire) {
        if fires.is_empty() {
            Spi::run(&format!(
                "CREATE TRIGGER \"00_recsync_unseen_{id}\" AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION recsync.unseen_v1('{id}')"
            ))?;
        }
        if fires != wanted {
            Spi::run(&format!(
                "ALTER TABLE {table} {how} TRIGGER \"00_recsync_unseen_{id}\""
            ))?;
        }
    }
    Ok(())
}

/// What the triggers log and when they fire, after a pipeline or the audit of the table has come, gone or changed.
pub fn refresh(source: pg_sys::Oid, name: &str, id: i32, owner: pg_sys::Oid) -> Result<()> {
    let on_replica = {
        let _as = As::extension();
        Spi::get_one_with_args::<bool>(REFRESH, &[id.into()])?
    };
    let (is, wanted) = match on_replica {
        Some(true) => ("O", "ENABLE ALWAYS"),
        _ => ("A", "ENABLE"),
    };
    let triggers = select_one::<Vec<String>>(TRIGGERS, &[source.into(), id.into(), is.into()])?
        .unwrap_or_default();
    if !triggers.is_empty() {
        lock_in_tries(source, name, pg_sys::ShareRowExclusiveLock)?;
        let _as = As::maker(owner);
        for trigger in triggers {
            if let Some((trigger, table)) = trigger.split_once(" ON ") {
                Spi::run(&format!("ALTER TABLE {table} {wanted} TRIGGER {trigger}"))?;
            }
        }
    }
    watch_unseen(source, id, owner)?;
    forget_cached(source)
}

/// A pipeline, a recommender or the audit of the table is gone: the triggers log less, or go with the last of them.
pub fn release(source: pg_sys::Oid, name: &str, id: i32, owner: pg_sys::Oid) -> Result<()> {
    let wanted = {
        let _as = As::extension();
        select_one::<bool>(
            "SELECT s.audit IS NOT NULL OR EXISTS (SELECT FROM recsync.pipeline p WHERE p.source_id = s.id)
                 OR EXISTS (SELECT FROM recsync.member r WHERE r.source_id = s.id)
                 OR EXISTS (SELECT FROM recsync.watched_items w WHERE w.source_id = s.id) FROM recsync.source s WHERE s.id = $1",
            &[id.into()],
        )?
    };
    let exists = source != pg_sys::InvalidOid;
    if wanted == Some(true) {
        return if exists {
            refresh(source, name, id, owner)
        } else {
            Ok(())
        };
    }
    if exists {
        lock_in_tries(source, name, pg_sys::AccessExclusiveLock)?;
        drop_triggers(source, id, owner)?;
    }
    let _as = As::extension();
    Spi::run_with_args("DELETE FROM recsync.source WHERE id = $1", &[id.into()])?;
    Ok(())
}

/// The triggers of source `id` on a table and its partitions go.
pub fn drop_triggers(table: pg_sys::Oid, id: i32, owner: pg_sys::Oid) -> Result<()> {
    let all = TRIGGERS.replace("IN ('", "IN ('00_recsync_unseen_' || $2::text, '");
    let triggers =
        select_one::<Vec<String>>(&all, &[table.into(), id.into(), None::<&str>.into()])?;
    let _as = As::maker(owner);
    for trigger in triggers.unwrap_or_default() {
        Spi::run(&format!("DROP TRIGGER IF EXISTS {trigger}"))?;
    }
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
