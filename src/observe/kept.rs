//! Views that take longer to plan than to read: a session plans what they ask once, and keeps the plan.
//!
//! It never says who may see what: the view that is read does, with the caller's rights.

use pgrx::pg_sys;
use pgrx::prelude::*;
use std::cell::Cell;
use std::ffi::{CStr, c_char};

use crate::error::{Error, OrReport, Result};

// PostgreSQL's, which pgrx does not declare. It fills in fields of the receiver: it neither raises nor allocates. As in
// executor/tstoreReceiver.h, of PostgreSQL 14 and later.
unsafe extern "C-unwind" {
    #[link_name = "SetTuplestoreDestReceiverParams"]
    fn raw_set_receiver(
        receiver: *mut pg_sys::DestReceiver,
        store: *mut pg_sys::Tuplestorestate,
        memory: pg_sys::MemoryContext,
        detoast: bool,
        target: pg_sys::TupleDesc,
        failure: *const c_char,
    );
}

/// A query for all of a view, and its plan in this session.
struct Kept {
    query: &'static CStr,
    plan: Cell<pg_sys::SPIPlanPtr>,
}

impl Kept {
    const fn new(query: &'static CStr) -> Kept {
        Kept {
            query,
            plan: Cell::new(std::ptr::null_mut()),
        }
    }

    /// Runs it into the result of a function that returns the view's rows.
    ///
    /// # Safety
    /// `fcinfo` is that of a call of a function `RETURNS SETOF` that view.
    unsafe fn rows(&self, fcinfo: pg_sys::FunctionCallInfo) -> Result<()> {
        // SAFETY: the call's own result, which PostgreSQL has prepared for a set of rows, or raises.
        let (store, memory) = unsafe {
            pg_sys::InitMaterializedSRF(fcinfo, 0);
            let result = (*fcinfo).resultinfo.cast::<pg_sys::ReturnSetInfo>();
            let memory = (*(*result).econtext).ecxt_per_query_memory;
            ((*result).setResult, memory)
        };
        Spi::connect(|_| {
            let plan = self.plan()?;
            // SAFETY: the receiver writes into the result, which outlives it; the plan is kept.
            let code = unsafe {
                let receiver = pg_sys::CreateDestReceiver(pg_sys::CommandDest::DestTuplestore);
                raw_set_receiver(
                    receiver,
                    store,
                    memory,
                    false,
                    std::ptr::null_mut(),
                    std::ptr::null(),
                );
                let options = pg_sys::SPIExecuteOptions {
                    read_only: true,
                    must_return_tuples: true,
                    dest: receiver,
                    ..Default::default()
                };
                let code = pg_sys::SPI_execute_plan_extended(plan, &options);
                if let Some(destroy) = (*receiver).rDestroy {
                    destroy(receiver);
                }
                code
            };
            Spi::check_status(code).map(|_| ()).map_err(Error::from)
        })
    }

    /// Inside a connection to SPI.
    fn plan(&self) -> Result<pg_sys::SPIPlanPtr> {
        if self.plan.get().is_null() {
            // SAFETY: a query without parameters; what is kept lives as long as the process.
            unsafe {
                let plan = pg_sys::SPI_prepare(self.query.as_ptr(), 0, std::ptr::null_mut());
                if plan.is_null() {
                    Spi::check_status(pg_sys::SPI_result)?;
                }
                pg_sys::SPI_keepplan(plan); // it refuses only what is none, or kept already
                self.plan.set(plan);
            }
        }
        Ok(self.plan.get())
    }
}

/// What PostgreSQL needs beside a C function.
#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_status_rows_v1() -> &'static pg_sys::Pg_finfo_record {
    const V1: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &V1
}

/// The rows of recsync.status_query, which the caller may see.
///
/// # Safety
/// Called by PostgreSQL, as `RETURNS SETOF recsync.status_query`.
#[unsafe(no_mangle)]
#[pg_guard]
pub unsafe extern "C-unwind" fn status_rows_v1(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    thread_local! {
        static STATUS: Kept = const { Kept::new(c"SELECT * FROM recsync.status_query") };
    }
    // SAFETY: as the caller of this function has promised.
    STATUS.with(|kept| unsafe { kept.rows(fcinfo) }).or_report();
    pg_sys::Datum::from(0)
}
