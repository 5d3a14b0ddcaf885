//! The indexer: a process that builds one pipeline's index while everybody reads and writes, and ends.
//!
//! CREATE INDEX CONCURRENTLY is a statement of several transactions, so it runs as a client's would: at the top level,
//! outside a transaction block. What an earlier try has left is dropped first. It never builds what is there already,
//! and never holds a lock that those who store or search wait for.

use pgrx::pg_sys;
use pgrx::prelude::*;
use std::ffi::{CString, c_int};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Instant;

use crate::catalog::index::{create, name_pattern};
use crate::catalog::names::{self, select_one};
use crate::catalog::pipeline::{self, Pipeline};
use crate::error::{Error, Result, sqlstate_text};
use crate::shared::failures::Kind;
use crate::shared::meters::now_us;
use crate::shared::slots::{Reservation, Slot};
use crate::shared::{Database, Shared};
use crate::worker::process::{self, Failed, transaction};

const NAME: &str = "recsync indexer";

/// What an indexer is told at its start, beside its database.
#[repr(C)]
#[derive(Clone, Copy)]
struct Start {
    place: Reservation,
    pipeline: i32,
}

/// How the leader asks the server for an indexer.
pub fn description(
    database: pg_sys::Oid,
    place: Reservation,
    pipeline: i32,
) -> pg_sys::BackgroundWorker {
    let mut worker = process::description(NAME, "recsync_indexer_main", database);
    process::tell(&mut worker, Start { place, pipeline });
    worker
}

#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn recsync_indexer_main(database: pg_sys::Datum) {
    // SAFETY: what `description` has filled in.
    let start = unsafe { process::told::<Start>() };
    let Some(own) = process::take_place(database, slots, start.place, sign_off) else {
        return;
    };
    let (oid, shared) = (own.database, own.shared);
    process::start(Some(oid));
    shared.launcher.set_latch(); // which looks whether somebody is kept waiting
    process::show(Some(c"recsync: building an index"));
    process::RoundMemory::create().renew();
    match build(start.pipeline) {
        Ok(()) => note(shared, oid, start.pipeline, None),
        Err(failed) => note(shared, oid, start.pipeline, Some(&failed)),
    }
}

fn slots(_: &'static Shared, entry: &'static Database) -> &'static [Slot] {
    &entry.indexer
}

unsafe extern "C-unwind" fn sign_off(_code: c_int, entry: pg_sys::Datum) {
    // SAFETY: what `take_place` has registered it with.
    if let Some(entry) = unsafe { process::leave_place(entry, slots) } {
        entry.catalog_changed.store(true, SeqCst);
        entry.wake.set_latch();
    }
}

/// For recsync.status and the log: the SQLSTATE of a failure, not its text.
fn note(shared: &Shared, database: pg_sys::Oid, pipeline: i32, failed: Option<&Failed>) {
    if let Some(counters) = shared.counters(database, pipeline) {
        let code = failed.map_or(0, |failed| failed.code as i64);
        counters.index_failure.store(code, SeqCst);
        if let Some(failed) = failed {
            let failures = &shared.meters(counters).failures;
            failures.note(Kind::Database, None, Some(failed.code as i32), now_us());
        }
    }
}

/// What is to be done for a pipeline.
struct Plan {
    relation: String,
    /// Left by builds that were broken off.
    invalid: Vec<String>,
    create: String,
}

fn build(id: i32) -> std::result::Result<(), Failed> {
    let started = Instant::now();
    let mut in_parallel = true;
    loop {
        let Some(plan) = transaction(|| plan(id))? else {
            return Ok(());
        };
        let outcome = plan
            .invalid
            .iter()
            .map(|index| format!("DROP INDEX CONCURRENTLY IF EXISTS {index}"))
            .chain([plan.create.clone()])
            .try_for_each(|statement| at_top_level(&statement));
        let Err(failed) = outcome else {
            let took = started.elapsed().as_secs_f64();
            log!(
                "recsync indexer: pipeline {}: the index was built in {took:.1} s",
                plan.relation
            );
            return Ok(());
        };
        let code = sqlstate_text(failed.code);
        let again = in_parallel && lacks_shared_memory(failed.code);
        let next = if again {
            ", tried again by one process alone"
        } else {
            ""
        };
        log!(
            "recsync indexer: pipeline {}: SQLSTATE {code}{next}",
            plan.relation
        );
        if !again {
            return Err(failed);
        }
        in_parallel = false;
        process::set(c"max_parallel_maintenance_workers", c"0");
    }
}

/// Several processes share one graph in a segment as large as maintenance_work_mem, for which /dev/shm may be too small.
fn lacks_shared_memory(code: PgSqlErrorCode) -> bool {
    use PgSqlErrorCode as C;
    matches!(
        code,
        C::ERRCODE_DISK_FULL | C::ERRCODE_IO_ERROR | C::ERRCODE_OUT_OF_MEMORY
    )
}

/// `None` where there is nothing to be built.
fn plan(id: i32) -> Result<Option<Plan>> {
    const INVALID: &str = "\
SELECT pg_catalog.array_agg(pg_catalog.format('%I.%I', n.nspname, x.relname))
  FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = x.relnamespace
 WHERE i.indrelid = pg_catalog.to_regclass($1) AND NOT i.indisvalid AND x.relname ~ $2";
    let Some(pipeline) = lacking(id)? else {
        return Ok(None);
    };
    let table = pipeline.holder().table.to_owned();
    // Somebody may be building one, a restore for example: what is there then is not built once more.
    Spi::run(&format!(
        "LOCK TABLE {table} IN SHARE UPDATE EXCLUSIVE MODE"
    ))?;
    let Some(pipeline) = lacking(id)? else {
        return Ok(None);
    };
    let schema = names::vector_schema()
        .ok_or_else(|| Error::Internal("extension vector is missing".into()))?;
    let invalid =
        select_one::<Vec<String>>(INVALID, &[table.into(), name_pattern(&pipeline).into()])?;
    Ok(create(&pipeline, &schema).map(|create| Plan {
        relation: pipeline.relation,
        invalid: invalid.unwrap_or_default(),
        create,
    }))
}

/// The pipeline, if it is there, runs and lacks its index.
fn lacking(id: i32) -> Result<Option<Pipeline>> {
    let declared = pipeline::load_all()?.into_iter().find(|p| p.id == id);
    Ok(declared.filter(|p| !p.paused && !p.indexed && p.trouble().is_none()))
}

/// Runs a utility statement as a client's own, which may begin and end transactions as it likes.
fn at_top_level(statement: &str) -> std::result::Result<(), Failed> {
    let text = CString::new(statement).map_err(|error| Error::Internal(error.to_string()))?;
    // SAFETY: the context of this process's work, which no transaction's end frees.
    let memory = unsafe { pg_sys::CurrentMemoryContext };
    let outcome = PgTryBuilder::new(AssertUnwindSafe(|| {
        // SAFETY: the frame that PostgreSQL's own loop gives a utility statement. The parsed statement stands in
        // `memory`, since the statement's transactions come and go; it pops the snapshot that it is given, or not.
        unsafe {
            pg_sys::SetCurrentStatementStartTimestamp();
            pg_sys::debug_query_string = text.as_ptr();
            pg_sys::StartTransactionCommand();
            pg_sys::MemoryContextSwitchTo(memory);
            let parsed = pg_sys::pg_parse_query(text.as_ptr());
            let raw = (*(*parsed).elements).ptr_value.cast::<pg_sys::RawStmt>();
            let planned =
                pg_sys::palloc0(size_of::<pg_sys::PlannedStmt>()).cast::<pg_sys::PlannedStmt>();
            (*planned).type_ = pg_sys::NodeTag::T_PlannedStmt;
            (*planned).commandType = pg_sys::CmdType::CMD_UTILITY;
            (*planned).utilityStmt = (*raw).stmt;
            pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
            pg_sys::ProcessUtility(
                planned,
                text.as_ptr(),
                false,
                pg_sys::ProcessUtilityContext::PROCESS_UTILITY_TOPLEVEL,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                pg_sys::None_Receiver,
                std::ptr::null_mut(),
            );
            if pg_sys::ActiveSnapshotSet() {
                pg_sys::PopActiveSnapshot();
            }
            pg_sys::CommitTransactionCommand();
            pg_sys::pgstat_report_stat(true);
        }
        Ok(())
    }))
    .catch_others(|cause| {
        let failed = Failed::from(cause);
        // SAFETY: after an ERROR the transaction has to be aborted before the next one begins.
        unsafe { pg_sys::AbortCurrentTransaction() };
        Err(failed)
    })
    .execute();
    // SAFETY: the text ends here; the context is the caller's.
    unsafe {
        pg_sys::debug_query_string = std::ptr::null();
        pg_sys::MemoryContextSwitchTo(memory);
    }
    outcome
}
