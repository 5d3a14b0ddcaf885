//! recsync.status: one row a pipeline or recommender, from the catalog and from the numbers that the worker keeps in shared memory.

use pgrx::pg_sys;
use pgrx::prelude::*;
use std::collections::HashSet;
use std::sync::atomic::Ordering::SeqCst;

use crate::catalog::names::{select_kept, select_one};
use crate::catalog::rights::{As, is_admin};
use crate::catalog::site;
use crate::embed::failure::Class;
use crate::error::{OrReport, Result, sqlstate_text};
use crate::shared;

type Numbers = (
    i32,
    i64,
    i64,
    i64,
    i64,
    i64,
    Option<String>,
    Option<TimestampWithTimeZone>,
    Option<TimestampWithTimeZone>,
    i64,
);

/// The owner of a pipeline's relation, whatever schema it is in; NULL where it is gone.
#[pg_extern(stable, strict)]
fn owner_of(relation: &str) -> Option<pg_sys::Oid> {
    const OWNER: &str =
        "SELECT relowner FROM pg_catalog.pg_class WHERE oid = pg_catalog.to_regclass($1)";
    let _as = As::extension();
    select_kept::<pg_sys::Oid>(OWNER, &[relation.into()]).or_report()
}

/// The pipelines, recommenders and hooks whose numbers somebody may see.
pub(super) enum Visible {
    /// For pg_monitor and recsync_admin.
    All,
    /// Their own.
    Those(HashSet<i32>),
}

impl Visible {
    pub fn contains(&self, id: &i32) -> bool {
        match self {
            Visible::All => true,
            Visible::Those(ids) => ids.contains(id),
        }
    }
}

/// What the caller may see.
pub(super) fn visible() -> Result<Visible> {
    // SAFETY: look-ups of roles.
    let (user, watches) = unsafe {
        let user = pg_sys::GetUserId();
        let watcher = pg_sys::get_role_oid(c"pg_monitor".as_ptr(), false);
        (user, pg_sys::has_privs_of_role(user, watcher))
    };
    if watches || is_admin() {
        return Ok(Visible::All);
    }
    Ok(Visible::Those(owned(user)?))
}

fn owned(user: pg_sys::Oid) -> Result<HashSet<i32>> {
    const OWNED: &str = "SELECT pg_catalog.array_agg(DISTINCT p.id)
          FROM (SELECT id, relation, NULL AS role FROM recsync.pipeline UNION ALL SELECT account, relation, NULL FROM recsync.pipeline WHERE account IS NOT NULL
                UNION ALL SELECT m.id, r.items, NULL FROM recsync.member m JOIN recsync.recommender r ON r.id = m.recommender_id
                UNION ALL SELECT id, NULL, owner FROM recsync.hook) p
          LEFT JOIN pg_catalog.pg_class c ON c.oid = pg_catalog.to_regclass(p.relation)
         WHERE pg_catalog.pg_has_role($1, COALESCE(pg_catalog.to_regrole(p.role)::oid, c.relowner), 'USAGE')";
    let _as = As::extension();
    let found = select_one::<Vec<i32>>(OWNED, &[user.into()])?;
    Ok(found.unwrap_or_default().into_iter().collect())
}

/// The pipelines that the caller owns, whose bills they may see; for recsync.usage.
#[pg_extern(stable)]
fn visible_pipelines() -> SetOfIterator<'static, i32> {
    // SAFETY: the current user's OID.
    let user = unsafe { pg_sys::GetUserId() };
    SetOfIterator::new(owned(user).or_report())
}

/// The numbers that this database's worker keeps.
#[pg_extern(volatile, name = "counters")]
#[allow(clippy::type_complexity)] // the columns of an SQL function
fn counters_v2() -> TableIterator<
    'static,
    (
        name!(pipeline_id, i32),
        name!(pending, i64),
        name!(in_flight, i64),
        name!(embedded, i64),
        name!(requests, i64),
        name!(tokens, i64),
        name!(failure, Option<String>),
        name!(last_change, Option<TimestampWithTimeZone>),
        name!(last_embedded, Option<TimestampWithTimeZone>),
        name!(truncated, i64),
    ),
> {
    // SAFETY: this process's database.
    let database = unsafe { pg_sys::MyDatabaseId };
    let visible = visible().or_report();
    let rows: Vec<Numbers> = shared::shared()
        .into_iter()
        .flat_map(|shared| shared.counters.iter())
        .filter(|counters| counters.database.load(SeqCst) == database.to_u32())
        .filter(|counters| visible.contains(&counters.pipeline.load(SeqCst)))
        .map(|counters| {
            (
                counters.pipeline.load(SeqCst),
                counters.pending.load(SeqCst),
                counters.in_flight.load(SeqCst),
                counters.embedded.load(SeqCst),
                counters.requests.load(SeqCst),
                counters.tokens.load(SeqCst),
                failure(counters.failure.load(SeqCst))
                    .or_else(|| index_failure(counters.index_failure.load(SeqCst))),
                time(counters.last_change_us.load(SeqCst)),
                time(counters.last_embedded_us.load(SeqCst)),
                counters.truncated.load(SeqCst),
            )
        })
        .collect();
    TableIterator::new(rows)
}

/// The last reply's failure, as dead letters show theirs.
pub fn failure(number: i64) -> Option<String> {
    let class = match number / 1_000 {
        1 => Class::Temporary,
        2 => Class::Permanent,
        3 => Class::Provider,
        4 => Class::Configuration,
        _ => return None,
    };
    Some(match number % 1_000 {
        0 => class.as_str().to_owned(),
        status => format!("{} (HTTP {status})", class.as_str()),
    })
}

/// The last build of the index.
fn index_failure(code: i64) -> Option<String> {
    let code = PgSqlErrorCode::from(code as i32);
    (code != PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION)
        .then(|| format!("index (SQLSTATE {})", sqlstate_text(code)))
}

pub(super) fn time(microseconds: i64) -> Option<TimestampWithTimeZone> {
    // SAFETY: a timestamptz is a count of microseconds, passed by value.
    (microseconds != 0)
        .then(|| unsafe {
            TimestampWithTimeZone::from_datum(pg_sys::Datum::from(microseconds), false)
        })
        .flatten()
}

/// Why this database has no worker right now; NULL where it has one.
#[pg_extern(volatile)]
pub fn worker_missing() -> Option<String> {
    let Some(shared) = shared::shared() else {
        return Some(
            "recsync is not preloaded: add it to shared_preload_libraries and restart the server"
                .into(),
        );
    };
    let Some(own) = shared.own_database() else {
        return Some("the launcher has not seen this database yet".into());
    };
    if own.elsewhere.load(SeqCst)
        && let Some(site) = site::elsewhere().or_report()
    {
        return Some(site::reason(&site));
    }
    if own.worker_pid.load(SeqCst) != 0 {
        return None;
    }
    if own.lacks_slot.load(SeqCst) {
        return Some(format!(
            "no worker slot for this database: all are taken, databases are served in turn (recsync.max_workers is {}, see max_worker_processes, too)",
            crate::settings::max_workers()
        ));
    }
    if own.gave_way.load(SeqCst) {
        return None; // nothing to do: it comes back with the next change
    }
    Some("the worker is starting".into())
}

extension_sql!(
    r#"
COMMENT ON FUNCTION counters() IS 'Numbers that the worker keeps in shared memory, of the pipelines and recommenders that the caller may see; see recsync.status.';
COMMENT ON FUNCTION visible_pipelines() IS 'The numbers of pipelines that the caller owns, by which recsync.usage shows their bills.';
COMMENT ON FUNCTION owner_of(text) IS 'The owner of a pipeline''s relation; for the views of recsync.';
COMMENT ON FUNCTION worker_missing() IS 'Why this database has no worker right now; NULL where it has one.';
"#,
    name = "status_rights",
    requires = [counters_v2, worker_missing, owner_of, visible_pipelines]
);
