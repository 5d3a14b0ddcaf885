//! recsync: recommendations that follow the data. A native PostgreSQL extension.
//!
//! ```text
//!  user's transaction                    worker (one a database)
//!  ------------------                    ----------------------------------------------------------------
//!  INSERT/UPDATE/DELETE/TRUNCATE
//!    | capture: one append                +----------- HTTP threads -----------+
//!    v                                    |                                    |
//!  change_log --commit--> wake ----> dispatch --> job --> render --> embed --> store + complete
//!                                    snapshot     one a               retry,   fenced, one
//!                                    checkpoint   row                 bisect   transaction
//!                                      |
//!                                      +----> keep: interactions, heat and neighbours ----> recommend
//! ```
//!
//! What holds whatever happens:
//!
//! 1. A committed change is never lost: each row ends with the embedding of its current text, or in the dead letters.
//! 2. A rolled-back change leaves nothing.
//! 3. No transaction, snapshot or lock is held while a request is in flight.
//! 4. A vector and the completion of its job commit together.
//! 5. An older text never overwrites a newer one; a deleted row is in no result from the delete's commit on.
//! 6. An update of columns that the text does not use costs no log row and no call.
//! 7. One bad row is isolated and delays no other; a bad provider charges no row.
//! 8. A user's write appends to the log and touches nothing else of recsync's.
//! 9. A transaction that is held open delays nobody else's changes.
//! 10. No key and no text of a row stands in a log line, an error or a table not meant for it.
//!
//! The modules stand in the order in which a changed row meets them.

pgrx::pg_module_magic!();

// The row trigger and the change log; the wake-up at commit.
pub mod capture;

// From the change log to jobs, from jobs to texts.
pub mod dispatch;

// From texts to vectors, by an embedding API. Knows nothing of PostgreSQL.
pub mod embed;

// Vectors written, jobs completed.
pub mod store;

// What was spent and saved.
pub mod ledger;

// What is asked of the vectors, embed and search; recommenders' lists, and what is kept for them.
pub mod recommend;

// Events of other systems, applied to tables.
pub mod events;

// Others told of what has happened here.
pub mod hooks;

// The processes that run it.
pub mod worker;

// The views and functions that watch it.
pub mod observe;

// What the user declared: servers, pipelines and recommenders, and who may do what.
pub mod catalog;

// A statement that is planned once.
pub mod statement;

// What the processes tell each other.
pub mod shared;

// `recsync.*`.
pub mod settings;

// What goes wrong, with SQLSTATE and hint.
pub mod error;

#[pgrx::pg_guard]
#[doc(hidden)]
pub extern "C-unwind" fn _PG_init() {
    settings::register();
    // SAFETY: plain globals of the postmaster.
    let (preloading, upgrading) = unsafe {
        (
            pgrx::pg_sys::process_shared_preload_libraries_in_progress,
            pgrx::pg_sys::IsBinaryUpgrade,
        )
    };
    if preloading && !upgrading {
        shared::register();
        catalog::utility::register();
        recommend::planning::register();
        worker::register();
    }
}

#[cfg(any(test, feature = "pg_test"))]
#[path = "../pgrx-tests/mod.rs"]
mod tests_in_server;

/// What pgrx asks for before it runs the tests in the server.
#[cfg(test)]
pub mod pg_test {
    pub fn setup(_options: Vec<&str>) {}

    #[must_use]
    pub fn postgresql_conf_options() -> Vec<&'static str> {
        vec!["shared_preload_libraries = 'recsync'"]
    }
}
