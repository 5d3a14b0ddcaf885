//! create_pipeline, drop_pipeline, pause, resume: what a user declares, checked and written down.
//!
//! It never queues for a lock on the user's table: short tries, and an error when they are all in vain.

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::expression::{self, Wanted};
use super::names::{literal, qualified, quote, select_one};
use super::pipeline::{self, Pipeline};
use super::rights::{As, with_settings};
use super::server;
use crate::capture::wake;
use crate::error::{Error, OrReport, Result};
use crate::shared;

/// What create_pipeline was asked for.
struct Declaration {
    name: String,
    source: pg_sys::Oid,
    columns: Option<Vec<String>>,
    content: Option<String>,
    server: String,
    row_filter: Option<String>,
    storage: Option<String>,
    index: String,
    backfill: bool,
}

#[pg_extern(sql = r#"
CREATE FUNCTION create_pipeline(name text, source regclass, columns text[] DEFAULT NULL, content text DEFAULT NULL, server text DEFAULT NULL,
    schedule text DEFAULT 'realtime', row_filter text DEFAULT NULL, storage text DEFAULT NULL, index text DEFAULT 'hnsw', backfill boolean DEFAULT true, if_not_exists boolean DEFAULT false)
RETURNS regclass LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION create_pipeline(text, regclass, text[], text, text, text, text, text, text, boolean, boolean) IS
'Keeps a table embedded. name: the pipeline and the view that will hold its vectors, in the source''s schema; columns (joined by newlines, NULLs left out) or content (an SQL expression over the row): the text; server: a foreign server of wrapper recsync; schedule: realtime; row_filter: only rows for which it is true; storage: vector or halfvec (by default what the width asks for); index: hnsw or none; backfill: embed the rows that are there. Returns the view. Errors: 42501 without the rights, 42710 where it exists otherwise, 55000 without a primary key, 22023 for an impossible argument.';
"#)]
#[allow(clippy::too_many_arguments)]
fn create_pipeline(
    name: Option<&str>,
    source: Option<pg_sys::Oid>,
    columns: Option<Vec<Option<String>>>,
    content: Option<&str>,
    server: Option<&str>,
    schedule: Option<&str>,
    row_filter: Option<&str>,
    storage: Option<&str>,
    index: Option<&str>,
    backfill: Option<bool>,
    if_not_exists: Option<bool>,
) -> pg_sys::Oid {
    (|| {
        if schedule.unwrap_or("realtime") != "realtime" {
            return Err(Error::argument(
                "schedule",
                format!("\"{}\" is not a schedule that this version knows", schedule.unwrap_or_default()),
                "The valid one is realtime.",
            ));
        }
        let required = |argument: &'static str, value: Option<&str>| {
            value.map(str::to_owned).ok_or_else(|| {
                Error::argument(argument, "it is missing", format!("Give {argument} => '…'."))
            })
        };
        let declaration = Declaration {
            name: required("name", name)?,
            source: source.ok_or_else(|| Error::argument("source", "it is missing", "Give the table to be embedded."))?,
            columns: columns.map(|columns| columns.into_iter().flatten().collect()),
            content: content.map(str::to_owned),
            server: required("server", server)?,
            row_filter: row_filter.map(str::to_owned),
            storage: storage.map(str::to_owned),
            index: index.unwrap_or("hnsw").to_owned(),
            backfill: backfill.unwrap_or(true),
        };
        create(&declaration, if_not_exists.unwrap_or(false))
    })()
    .or_report()
}

fn create(wanted: &Declaration, if_not_exists: bool) -> Result<pg_sys::Oid> {
    // SAFETY: a plain question to the server.
    if unsafe { pg_sys::RecoveryInProgress() } {
        return Err(Error::Recovery);
    }
    if shared::shared().is_none() {
        return Err(Error::NotPreloaded);
    }
    let source_name = qualified(wanted.source).ok_or_else(|| Error::argument("source", "there is no such table", "Give the table to be embedded."))?;
    let table = describe_source(wanted.source, &source_name)?;
    let (_, relation_name) = wanted.name.rsplit_once('.').unwrap_or(("", &wanted.name));
    let relation_name = relation_name.trim_matches('"');
    if relation_name.is_empty() || relation_name.len() > 59 {
        return Err(Error::argument(
            "name",
            format!("\"{}\" cannot be a relation's name with room for a generation's suffix", wanted.name),
            "Give 1 to 59 bytes.",
        ));
    }
    let relation = format!("{}.{}", quote(&table.schema), quote(relation_name));
    let vectors = format!("{}.{}", quote(&table.schema), quote(&format!("{relation_name}_g1")));

    let (text, columns) = match (&wanted.columns, &wanted.content) {
        (Some(columns), None) if !columns.is_empty() => (content_of_columns(wanted.source, &source_name, columns)?, Some(columns.clone())),
        (None, Some(content)) => (content.clone(), None),
        _ => {
            return Err(Error::argument(
                "columns",
                "give either columns or content",
                "columns => ARRAY['title', 'description'] joins columns by newlines; content => $$title || ' by ' || author$$ is any expression.",
            ));
        }
    };
    let argument = if columns.is_some() { "columns" } else { "content" };
    let content = expression::parse(argument, wanted.source, &text, Wanted::Text)?;
    let filter = wanted
        .row_filter
        .as_deref()
        .map(|filter| expression::parse("row_filter", wanted.source, filter, Wanted::Boolean))
        .transpose()?;
    // SAFETY: the current user's OID.
    server::endpoint(&wanted.server, unsafe { pg_sys::GetUserId() })?;
    let endpoint = server::endpoint(&wanted.server, table.owner)?;
    let storage = storage(wanted.storage.as_deref(), endpoint.dimensions)?;
    if !matches!(wanted.index.as_str(), "hnsw" | "none") {
        return Err(Error::argument("index", format!("\"{}\" is not an index", wanted.index), "The valid ones are hnsw and none."));
    }
    let mut used: Vec<String> = content.columns.clone();
    used.extend(filter.iter().flat_map(|filter| filter.columns.clone()));
    used.sort();
    used.dedup();

    if let Some(existing) = existing(&relation)? {
        let difference = difference(&existing, &source_name, &content.sql, filter.as_ref().map(|f| f.sql.as_str()), &wanted.server, storage);
        return match difference {
            None if if_not_exists => {
                notice!("pipeline {relation} already exists, skipping");
                Ok(select_one::<pg_sys::Oid>("SELECT $1::regclass::oid", &[relation.into()])?.unwrap_or(pg_sys::InvalidOid))
            }
            difference => Err(Error::PipelineDiffers {
                name: relation,
                difference: difference.unwrap_or_else(|| "nothing; pass if_not_exists => true to accept it".into()),
            }),
        };
    }
    for name in [&relation, &vectors] {
        if select_one::<bool>("SELECT pg_catalog.to_regclass($1) IS NOT NULL", &[name.as_str().into()])? == Some(true) {
            return Err(Error::RelationExists(name.clone()));
        }
    }

    lock_in_tries(wanted.source, &source_name)?;
    let source_id = watch(wanted.source, &source_name, &table, &used)?;
    make_relations(&relation, &vectors, &source_name, &table, storage, endpoint.dimensions, &wanted.index)?;
    {
        let _as = As::extension();
        Spi::run_with_args(
            "WITH p AS (INSERT INTO recsync.pipeline (relation, vectors, source_id, columns, content, row_filter, used_columns, server, schedule, storage, index, dimensions)
                        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 'realtime', $9, $10, $11) RETURNING id)
             INSERT INTO recsync.backfill (pipeline_id, finished_at) SELECT id, CASE WHEN $12 THEN NULL ELSE pg_catalog.now() END FROM p",
            &[
                relation.as_str().into(),
                vectors.as_str().into(),
                source_id.into(),
                columns.into(),
                content.sql.into(),
                filter.map(|filter| filter.sql).into(),
                used.into(),
                wanted.server.as_str().into(),
                storage.into(),
                wanted.index.as_str().into(),
                (endpoint.dimensions as i32).into(),
                wanted.backfill.into(),
            ],
        )?;
    }
    forget_cached(wanted.source)?;
    wake::after_catalog_change();
    Ok(select_one::<pg_sys::Oid>("SELECT $1::regclass::oid", &[relation.into()])?.unwrap_or(pg_sys::InvalidOid))
}

struct SourceTable {
    schema: String,
    owner: pg_sys::Oid,
    key_columns: Vec<String>,
}

fn describe_source(source: pg_sys::Oid, name: &str) -> Result<SourceTable> {
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
    let refused = |kind, hint| Err(Error::NotATable { relation: name.to_owned(), kind, hint });
    const TABLE: &str = "Name an ordinary or partitioned table.";
    match (kind.as_str(), is_system) {
        (_, true) => return refused("a system table", TABLE),
        ("rt" | "pt", _) => return refused("a temporary table", "Other sessions, recsync's worker among them, cannot read it: use an ordinary table."),
        ("ru" | "rp" | "pp" | "pu", _) => {}
        ("vp", _) | ("vt", _) => return refused("a view", "Name the table that it shows; content and row_filter can compute."),
        ("mp", _) => return refused("a materialized view", "Triggers do not fire there: name the tables that it shows."),
        ("fp", _) => return refused("a foreign table", "Its changes are made elsewhere: declare the pipeline there, or on a local copy."),
        _ => return refused("not a table", TABLE),
    }
    if !is_owner {
        return Err(Error::Denied {
            what: format!("you do not own table {name}"),
            grant: format!("Its owner can create the pipeline, or a member of that role: GRANT {} TO …", quote(&owner_name)),
        });
    }
    if !may_create {
        return Err(Error::Denied {
            what: format!("role {} cannot create relations in schema {}", quote(&owner_name), quote(&schema)),
            grant: format!("GRANT CREATE ON SCHEMA {} TO {};", quote(&schema), quote(&owner_name)),
        });
    }
    match key_columns {
        Some(key_columns) => Ok(SourceTable { schema, owner, key_columns }),
        None => Err(Error::NoPrimaryKey(name.to_owned())),
    }
}

/// `concat_ws(newline, a, b)`: NULLs left out.
fn content_of_columns(source: pg_sys::Oid, name: &str, columns: &[String]) -> Result<String> {
    let known = select_one::<Vec<String>>(
        "SELECT pg_catalog.array_agg(attname::text ORDER BY attnum) FROM pg_catalog.pg_attribute WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped",
        &[source.into()],
    )?
    .unwrap_or_default();
    for column in columns {
        if !known.contains(column) {
            return Err(Error::NoSuchColumn { relation: name.to_owned(), column: column.clone(), columns: known.join(", ") });
        }
    }
    let columns: Vec<String> = columns.iter().map(|column| format!("{}::text", quote(column))).collect();
    Ok(format!("pg_catalog.concat_ws(E'\\n', {})", columns.join(", ")))
}

fn storage(wanted: Option<&str>, dimensions: usize) -> Result<&'static str> {
    let widest = match wanted {
        None if dimensions <= 2_000 => return Ok("vector"),
        None if dimensions <= 4_000 => {
            notice!("{dimensions} dimensions are too wide for an index on vector: storage is halfvec");
            return Ok("halfvec");
        }
        None | Some("vector") => ("vector", 2_000),
        Some("halfvec") => ("halfvec", 4_000),
        Some(other) => {
            return Err(Error::argument("storage", format!("\"{other}\" is not a storage"), "The valid ones are vector (up to 2,000 dimensions) and halfvec (up to 4,000)."));
        }
    };
    if dimensions > widest.1 {
        return Err(Error::argument(
            "storage",
            format!("{dimensions} dimensions are more than {} can index ({})", widest.0, widest.1),
            "Choose a model with fewer dimensions, or ask it for fewer with the server's option dimensions.",
        ));
    }
    Ok(widest.0)
}

fn existing(relation: &str) -> Result<Option<Pipeline>> {
    let _as = As::extension();
    Ok(pipeline::load_all()?.into_iter().find(|pipeline| pipeline.relation == relation))
}

fn difference(is: &Pipeline, source: &str, content: &str, filter: Option<&str>, server: &str, storage: &str) -> Option<String> {
    let pairs = [
        ("source", is.source.as_str(), source),
        ("content", is.content.as_str(), content),
        ("row_filter", is.row_filter.as_deref().unwrap_or("none"), filter.unwrap_or("none")),
        ("server", is.server.as_str(), server),
        ("storage", is.storage.as_str(), storage),
    ];
    let differing: Vec<String> = pairs
        .into_iter()
        .filter(|(_, is, wanted)| is != wanted)
        .map(|(name, is, wanted)| format!("{name} (is {is}, given {wanted})"))
        .collect();
    (!differing.is_empty()).then(|| differing.join(", "))
}

/// SHARE ROW EXCLUSIVE on the source, as CREATE TRIGGER needs it: 20 tries of 50 ms, so that writers that queue
/// behind it wait for 50 ms at the most.
fn lock_in_tries(relation: pg_sys::Oid, name: &str) -> Result<()> {
    let granted = (0..20).any(|_| {
        with_settings(&[(c"lock_timeout", c"50ms")], || {
            in_subtransaction(|| {
                // SAFETY: an ordinary lock request; it raises when lock_timeout passes.
                unsafe { pg_sys::LockRelationOid(relation, pg_sys::ShareRowExclusiveLock as _) }
            })
        })
    });
    if granted { Ok(()) } else { Err(Error::LockBusy(name.to_owned())) }
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
fn watch(source: pg_sys::Oid, name: &str, table: &SourceTable, used: &[String]) -> Result<i32> {
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

fn make_relations(
    relation: &str,
    vectors: &str,
    source: &str,
    table: &SourceTable,
    storage: &str,
    dimensions: usize,
    index: &str,
) -> Result<()> {
    let schema = super::names::vector_schema().ok_or_else(|| Error::Internal("extension vector is missing".into()))?;
    let keys: Vec<String> = table.key_columns.iter().map(|key| quote(key)).collect();
    let keys = keys.join(", ");
    let _as = As::maker(table.owner);
    // The key columns take their types, collations included, from the source.
    Spi::run(&format!(
        "CREATE TABLE {vectors} AS SELECT {keys}, NULL::{schema}.{storage}({dimensions}) AS embedding, NULL::bytea AS content_hash,
                NULL::text AS model, NULL::timestamptz AS embedded_at FROM {source} WITH NO DATA"
    ))?;
    Spi::run(&format!(
        "ALTER TABLE {vectors} ADD PRIMARY KEY ({keys}), ALTER embedding SET NOT NULL, ALTER content_hash SET NOT NULL,
               ALTER model SET NOT NULL, ALTER embedded_at SET NOT NULL, ALTER embedding SET STORAGE PLAIN"
    ))?;
    if index == "hnsw" {
        Spi::run(&format!("CREATE INDEX ON {vectors} USING hnsw (embedding {schema}.{storage}_cosine_ops)"))?;
    }
    Spi::run(&format!("CREATE VIEW {relation} AS SELECT {keys}, embedding, content_hash, model, embedded_at FROM {vectors}"))?;
    Spi::run(&format!(
        "COMMENT ON VIEW {relation} IS {}",
        literal(&format!("Embeddings of {source}, kept by recsync; drop it with recsync.drop_pipeline."))
    ))?;
    Ok(())
}

/// Every backend forgets what it knew of the table and its partitions.
fn forget_cached(source: pg_sys::Oid) -> Result<()> {
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

#[pg_extern(sql = r#"
CREATE FUNCTION drop_pipeline(name text, keep_vectors boolean DEFAULT false, if_exists boolean DEFAULT false) RETURNS void LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION drop_pipeline(text, boolean, boolean) IS
'Ends a pipeline: its view, its vectors (unless keep_vectors), its work, and the triggers when no other pipeline needs them. Errors: 42704 where it does not exist (unless if_exists), 42501 for others than its owner and recsync_admin.';
"#)]
fn drop_pipeline(name: &str, keep_vectors: bool, if_exists: bool) {
    (|| -> Result<()> {
        let pipeline = match pipeline::find(name) {
            Err(Error::NoSuchPipeline(_)) if if_exists => {
                notice!("pipeline \"{name}\" does not exist, skipping");
                return Ok(());
            }
            found => found?,
        };
        if pipeline.owner() != pg_sys::InvalidOid {
            pipeline::require_owner(&pipeline)?;
        }
        let source = pipeline.source_oid();
        if source != pg_sys::InvalidOid {
            lock_in_tries(source, &pipeline.source)?;
        }
        let last = {
            let _as = As::extension();
            Spi::get_one_with_args::<bool>(
                "WITH d AS (DELETE FROM recsync.pipeline WHERE id = $1 RETURNING source_id)
                 SELECT NOT EXISTS (SELECT FROM recsync.pipeline p, d WHERE p.source_id = d.source_id AND p.id <> $1)",
                &[pipeline.id.into()],
            )?
        };
        if pipeline.owner() != pg_sys::InvalidOid {
            let _as = As::maker(pipeline.owner());
            Spi::run(&format!("DROP VIEW IF EXISTS {}", pipeline.relation))?;
            if !keep_vectors {
                Spi::run(&format!("DROP TABLE IF EXISTS {}", pipeline.vectors))?;
            }
        }
        if last == Some(true) {
            unwatch(&pipeline)?;
        }
        wake::after_catalog_change();
        Ok(())
    })()
    .or_report();
}

fn unwatch(pipeline: &Pipeline) -> Result<()> {
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
    Spi::run_with_args("DELETE FROM recsync.source WHERE id = $1", &[pipeline.source_id.into()])?;
    Ok(())
}

#[pg_extern(sql = r#"
CREATE FUNCTION pause(name text) RETURNS void LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION pause(text) IS 'Stops embedding for a pipeline; capture goes on, so nothing is lost. resume(name) picks up.';
"#)]
fn pause(name: &str) {
    set_paused(name, true).or_report();
}

#[pg_extern(sql = r#"
CREATE FUNCTION resume(name text) RETURNS void LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION resume(text) IS 'Lets a paused pipeline run again. All its rows are looked at; those whose text is unchanged cost no call.';
"#)]
fn resume(name: &str) {
    set_paused(name, false).or_report();
}

fn set_paused(name: &str, paused: bool) -> Result<()> {
    let pipeline = pipeline::find(name)?;
    pipeline::require_owner(&pipeline)?;
    let _as = As::extension();
    Spi::run_with_args(
        "UPDATE recsync.pipeline SET paused = $2, paused_reason = NULL WHERE id = $1",
        &[pipeline.id.into(), paused.into()],
    )?;
    if !paused && pipeline.paused {
        Spi::run_with_args(
            "INSERT INTO recsync.backfill (pipeline_id) VALUES ($1) ON CONFLICT (pipeline_id) DO UPDATE SET after_key = NULL, done = 0, finished_at = NULL",
            &[pipeline.id.into()],
        )?;
    }
    wake::after_catalog_change();
    Ok(())
}
