//! Whether a function is called because the planner wants to estimate what it would return.
//!
//! For that it runs stable functions with constant arguments (`estimate_expression_value`), in EXPLAIN, too. It
//! never changes a plan.

use pgrx::pg_sys;
use pgrx::prelude::*;
use std::cell::Cell;
use std::ffi::{c_char, c_int};

static mut PREVIOUS: pg_sys::planner_hook_type = None;

thread_local! {
    /// Where the innermost planning works; null outside.
    static PLANNING: Cell<pg_sys::MemoryContext> = const { Cell::new(std::ptr::null_mut()) };
}

/// Installs the hook. Only from `_PG_init` while shared_preload_libraries are loaded.
pub fn register() {
    // SAFETY: the postmaster is single-threaded; the hook is chained as PostgreSQL's own modules do.
    unsafe {
        PREVIOUS = pg_sys::planner_hook;
        pg_sys::planner_hook = Some(plan);
    }
}

/// Puts the planning around it back, also when an ERROR ends this one.
struct Around(pg_sys::MemoryContext);

impl Drop for Around {
    fn drop(&mut self) {
        PLANNING.set(self.0);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn plan(
    query: *mut pg_sys::Query,
    text: *const c_char,
    options: c_int,
    parameters: pg_sys::ParamListInfo,
) -> *mut pg_sys::PlannedStmt {
    // SAFETY: the hook's arguments are handed on as they came; an ERROR of the next hook unwinds as the server's do.
    unsafe {
        let _around = Around(PLANNING.replace(pg_sys::CurrentMemoryContext));
        match PREVIOUS {
            Some(previous) => {
                pg_sys::ffi::pg_guard_ffi_boundary(|| previous(query, text, options, parameters))
            }
            None => pg_sys::standard_planner(query, text, options, parameters),
        }
    }
}

/// Whether the planner itself calls, not something that runs while it plans: its expressions live in a context made
/// where it works (`evaluate_expr` in PostgreSQL's clauses.c), those of a function that it runs do not.
///
/// # Safety
/// `call` is a call in progress.
pub unsafe fn is_estimate(call: pg_sys::FunctionCallInfo) -> bool {
    // SAFETY: a call has its FmgrInfo, which has a context.
    let own = unsafe { (*(*(*call).flinfo).fn_mcxt).parent };
    !own.is_null() && own == PLANNING.get()
}
