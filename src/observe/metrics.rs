//! metrics() and health(): what `/metrics` and `/healthz` say, in SQL.
//!
//! They never wait for a worker, and work on a standby.

use pgrx::pg_sys;
use pgrx::prelude::*;
use std::sync::atomic::Ordering::SeqCst;

use super::gauges;
use super::health::{self, Check};
use super::openmetrics;
use super::snapshot::Snapshot;
use crate::catalog::rights::As;
use crate::error::{Error, OrReport, Result};
use crate::shared::meters::now_us;
use crate::shared::{self, Database, Shared};

#[pg_extern(sql = r#"
CREATE FUNCTION metrics() RETURNS text LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
REVOKE ALL ON FUNCTION metrics() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION metrics() TO pg_monitor, recsync_admin;
COMMENT ON FUNCTION metrics() IS
'Numbers of all databases of the cluster that have recsync, as OpenMetrics 1.0 text: what http://<recsync.metrics_listen>/metrics gives. Counters and histograms start at zero with the server. Holds names of databases, pipelines, recommenders and servers, and no text of a row. For pg_monitor and recsync_admin. Errors: 55000 recsync is not preloaded.';
"#)]
fn metrics() -> String {
    openmetrics::text(snapshot(|shared, own| gauges::look(shared, own, false)).or_report())
}

#[pg_extern(sql = r#"
CREATE FUNCTION health() RETURNS TABLE (check_name text, subject text, ok boolean, detail text, hint text) LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
REVOKE ALL ON FUNCTION health() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION health() TO pg_monitor, recsync_admin;
COMMENT ON FUNCTION health() IS
'Whether recsync does its work, in all databases of the cluster: a row a thing that was looked at (launcher, worker, pipeline, recommender, provider), what it is about (a database; with a pipeline or recommender), whether it is well, and if not what to do. What somebody has decided, as a pause, is no fault. http://<recsync.metrics_listen>/healthz is 503 where one is not ok. For pg_monitor and recsync_admin. Errors: 55000 recsync is not preloaded.';
"#)]
#[allow(clippy::type_complexity)] // the columns of an SQL function
fn health() -> TableIterator<
    'static,
    (
        name!(check_name, String),
        name!(subject, String),
        name!(ok, bool),
        name!(detail, String),
        name!(hint, Option<String>),
    ),
> {
    let checks = health::checks(&snapshot(gauges::look_at_pauses).or_report());
    TableIterator::new(checks.into_iter().map(|check: Check| {
        let hint = Some(check.hint).filter(|hint| !hint.is_empty());
        (
            check.check_name.to_owned(),
            check.subject,
            check.ok,
            check.detail,
            hint,
        )
    }))
}

/// Now, with what `look` finds in this database's tables as of now.
fn snapshot(look: impl FnOnce(&Shared, &Database) -> Result<()>) -> Result<Snapshot> {
    let shared = shared::shared().ok_or(Error::NotPreloaded)?;
    shared.watch.asked_us.store(now_us(), SeqCst);
    // SAFETY: a look into shared memory.
    let standby = unsafe { pg_sys::RecoveryInProgress() };
    if let Some(own) = shared.own_database().filter(|_| !standby) {
        let _as = As::extension();
        look(shared, own)?;
    }
    Ok(Snapshot {
        standby,
        ..Snapshot::take(shared)
    })
}
