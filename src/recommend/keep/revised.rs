//! `revise_v1`, the trigger function behind the table of a pipeline whose vectors a recommender uses: an item that gets
//! another vector, or loses its own, is noted with it. Its name and argument (the recommender's number) are frozen.
//!
//! It never waits for the worker, and never raises because a recommender is not what it was: a vector is stored whatever
//! becomes of recommenders.

use pgrx::datum::{DatumWithOid, IntoDatum};
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CStr, CString};

use crate::catalog::names::own_relation;
use crate::catalog::recommender::tables;
use crate::catalog::rights::As;
use crate::error::{OrReport, Result};
use crate::statement::Statement;

thread_local! {
    /// By the recommender's number and the type of its items' key.
    static NOTE: RefCell<HashMap<(i32, pg_sys::Oid), Statement>> = RefCell::new(HashMap::new());
}

extension_sql!(
    r#"
CREATE FUNCTION revise_v1() RETURNS trigger LANGUAGE c AS 'MODULE_PATHNAME', 'revise_v1';
COMMENT ON FUNCTION revise_v1() IS 'Trigger function of a pipeline''s table: notes which items have got another vector. Made by create_recommender; its argument is the id of recsync.recommender.';
"#,
    name = "revise_v1",
    requires = ["tables"]
);

#[unsafe(no_mangle)]
#[doc(hidden)]
pub extern "C" fn pg_finfo_revise_v1() -> &'static pg_sys::Pg_finfo_record {
    const V1: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &V1
}

/// AFTER ROW (INSERT, UPDATE, DELETE).
///
/// # Safety
/// Called by PostgreSQL's trigger manager.
#[pg_guard]
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn revise_v1(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: the trigger manager's contract: `context` is a TriggerData when the tag says so, and a row event has a
    // slot; tgargs holds tgnargs NUL-terminated strings.
    unsafe {
        let data = (*fcinfo).context.cast::<pg_sys::TriggerData>();
        let event = |data: *mut pg_sys::TriggerData| (*data).tg_event;
        if data.is_null()
            || (*data).type_ != pg_sys::NodeTag::T_TriggerData
            || event(data) & pg_sys::TRIGGER_EVENT_ROW == 0
        {
            ereport!(
                ERROR,
                PgSqlErrorCode::ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED,
                "recsync.revise_v1 can only be called as a row trigger"
            );
        }
        let trigger = (*data).tg_trigger;
        let recommender = match (*trigger).tgnargs {
            1.. => CStr::from_ptr(*(*trigger).tgargs).to_str().ok(),
            _ => None,
        };
        if let Some(Ok(id)) = recommender.map(str::parse::<i32>) {
            // The key comes first in the table, and is of one column. Writes of recsync's change no key.
            let slot = (*data).tg_trigslot;
            pg_sys::slot_getsomeattrs_int(slot, 1);
            let kind = pg_sys::get_atttype((*(*data).tg_relation).rd_id, 1);
            note(id, Item(*(*slot).tts_values), kind).or_report();
        }
        pg_sys::Datum::from(0)
    }
}

/// A key, as it stands in the row.
#[derive(Clone, Copy)]
struct Item(pg_sys::Datum);

impl IntoDatum for Item {
    fn into_datum(self) -> Option<pg_sys::Datum> {
        Some(self.0)
    }

    fn type_oid() -> pg_sys::Oid {
        pg_sys::InvalidOid
    }
}

fn note(id: i32, item: Item, kind: pg_sys::Oid) -> Result<()> {
    let table = tables::revised(id);
    let bare = table.rsplit('.').next().unwrap_or_default();
    let bare = CString::new(bare).unwrap_or_default();
    if own_relation(&bare).is_none() {
        return Ok(()); // a restore is under way, or the recommender has gone
    }
    let _as = As::extension();
    NOTE.with_borrow_mut(|notes| {
        let statement = notes.entry((id, kind)).or_insert_with(|| {
            Statement::by_key(format!("INSERT INTO {table} (item_id) VALUES ($1)"))
        });
        // SAFETY: the key's value and its type.
        let item = unsafe { DatumWithOid::new(item, kind) };
        Spi::connect_mut(|client| statement.update(client, &[item]).map(|_| ()))
    })
}
