//! recsync.errors: what has gone wrong lately, by pipeline or recommender.
//!
//! It never shows a message of the provider's or of PostgreSQL's, which may quote a text: those of rows that were given up
//! are in recsync.dead_letter, for the owner.

use pgrx::pg_sys;
use pgrx::prelude::*;
use std::sync::atomic::Ordering::SeqCst;

use super::status::{time, visible};
use crate::error::{Failed, OrReport, sqlstate_text};
use crate::shared::failures::Kind;
use crate::shared::meters::now_us;
use crate::shared::{self, Counters};

/// A transaction of the worker's has failed; `name`: the pipeline or recommender that it was for.
pub fn note(name: Option<&str>, failed: &Failed) {
    let (Some(name), Some(shared)) = (name, shared::shared()) else {
        return;
    };
    // SAFETY: this process's database.
    let database = unsafe { pg_sys::MyDatabaseId };
    let counters = shared.counters.iter().find(|counters| {
        counters.database.load(SeqCst) == database.to_u32()
            && shared.meters(counters).name.get() == name
    });
    if let Some(counters) = counters {
        let failures = &shared.meters(counters).failures;
        failures.note(Kind::Database, None, Some(failed.code as i32), now_us());
    }
}

type Row = (
    i32,
    String,
    Option<i32>,
    Option<String>,
    String,
    Option<TimestampWithTimeZone>,
    i64,
);

#[pg_extern(volatile)]
#[allow(clippy::type_complexity)] // the columns of an SQL function
fn failures() -> TableIterator<
    'static,
    (
        name!(pipeline_id, i32),
        name!(class, String),
        name!(status, Option<i32>),
        name!(sqlstate, Option<String>),
        name!(message, String),
        name!(at, Option<TimestampWithTimeZone>),
        name!(count, i64),
    ),
> {
    // SAFETY: this process's database.
    let database = unsafe { pg_sys::MyDatabaseId };
    let visible = visible().or_report();
    let mut rows: Vec<Row> = Vec::new();
    let Some(shared) = shared::shared() else {
        return TableIterator::new(rows);
    };
    let own = |counters: &&Counters| counters.database.load(SeqCst) == database.to_u32();
    for counters in shared.counters.iter().filter(own) {
        let id = counters.pipeline.load(SeqCst);
        if !visible.contains(&id) {
            continue;
        }
        let failures = shared.meters(counters).failures.lately().into_iter();
        rows.extend(failures.map(|failure| {
            let code = failure.sqlstate.map(PgSqlErrorCode::from);
            (
                id,
                failure.class.as_str().to_owned(),
                failure.status.map(i32::from),
                code.map(sqlstate_text),
                failure.class.meaning().to_owned(),
                time(failure.at_us),
                failure.count as i64,
            )
        }));
    }
    TableIterator::new(rows)
}

extension_sql!(
    r#"
COMMENT ON FUNCTION failures() IS 'What has gone wrong lately, kept in shared memory, of the pipelines and recommenders that the caller may see; see recsync.errors.';
CREATE VIEW errors WITH (security_barrier) AS
    SELECT p.kind, p.name, f.class, f.status, f.sqlstate, f.message, f.at, f.count
      FROM failures() f
      JOIN (SELECT id, 'pipeline' AS kind, relation AS name FROM pipeline
            UNION ALL SELECT m.id, 'recommender', r.name FROM member m JOIN recommender r ON r.id = m.recommender_id
            UNION ALL SELECT id, 'hook', name FROM hook) p ON p.id = f.pipeline_id;
COMMENT ON VIEW errors IS 'What has gone wrong lately: of each pipeline, recommender and hook the last eight kinds of failure since the server started, by class, HTTP status and SQLSTATE, with when the last was and how often it came. message says what the class means, and nothing of a row''s. Readable by the owner of the pipeline, of the hook or of the recommender''s items, recsync_admin and pg_monitor.';
GRANT SELECT ON errors TO PUBLIC;
"#,
    name = "errors_view",
    requires = [failures, "hook_tables"]
);
