//! `unseen_v1`, a statement trigger that fires as a replica only: the row triggers of a table do not, and somebody has to
//! say that rows were written.
//!
//! It never says which: all rows of the table are looked at then. Its name and argument are frozen, as those of `capture_v1`.

use pgrx::pg_sys;
use pgrx::prelude::*;
use std::cell::RefCell;
use std::collections::HashMap;

use super::buffer::{self, Change, Kind, Op};
use super::sources;
use super::trigger::source_id;
use super::wake;

thread_local! {
    /// The transaction and subtransaction that has noted it last, of each source.
    static NOTED: RefCell<HashMap<i32, (u64, pg_sys::SubTransactionId)>> = RefCell::default();
}

#[unsafe(no_mangle)]
#[doc(hidden)]
pub extern "C" fn pg_finfo_unseen_v1() -> &'static pg_sys::Pg_finfo_record {
    const V1: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &V1
}

/// AFTER STATEMENT (INSERT, UPDATE, DELETE, TRUNCATE), ENABLE REPLICA.
///
/// # Safety
/// Called by PostgreSQL's trigger manager.
#[pg_guard]
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn unseen_v1(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: the trigger manager's contract: `context` is a TriggerData when the tag says so.
    unsafe {
        let data = (*fcinfo).context.cast::<pg_sys::TriggerData>();
        if data.is_null() || (*data).type_ != pg_sys::NodeTag::T_TriggerData {
            ereport!(
                ERROR,
                PgSqlErrorCode::ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED,
                "recsync.unseen_v1 can only be called as a trigger"
            );
        }
        // ALTER TABLE … ENABLE TRIGGER ALL has it fire for everybody, whose changes the row trigger logs.
        let as_replica =
            pg_sys::SessionReplicationRole as u32 == pg_sys::SESSION_REPLICATION_ROLE_REPLICA;
        if as_replica
            && let Some(id) = source_id((*data).tg_trigger)
            && is_news(id)
            && let Some(source) = sources::of((*data).tg_relation, id)
        {
            let kind = Kind {
                source: id,
                relation: (*(*data).tg_relation).rd_id,
                op: Op::Unseen,
                audit_only: !source.dispatched,
            };
            buffer::add(kind, &Change::default());
            wake::after_changes();
        }
        pg_sys::Datum::from(0)
    }
}

/// Whether this (sub)transaction, which has written something, has not noted it yet.
fn is_news(source: i32) -> bool {
    // SAFETY: plain questions to the server, inside a transaction.
    let (transaction, part) = unsafe {
        (
            pg_sys::GetTopFullTransactionIdIfAny().value,
            pg_sys::GetCurrentSubTransactionId(),
        )
    };
    transaction != 0
        && NOTED.with_borrow_mut(|noted| {
            noted.insert(source, (transaction, part)) != Some((transaction, part))
        })
}
