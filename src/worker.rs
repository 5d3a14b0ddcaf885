//! The background processes: one launcher for the cluster, one worker for each database that has recsync, writers
//! where it needs them.
//!
//! Nothing here knows what a change, a text or a vector is: `leader` alone strings the steps of the flow together.

// Signals, connection, exit, transactions: what each of our processes is made of.
pub mod process;

// Which database gets a worker when.
mod launcher;

// Where a worker's process begins and ends.
mod entry;

// One database's worker: the steps of the flow, in order, for ever.
mod leader;

// Who leaves a place to another database.
mod shift;

// Whether it does anything.
mod rest;

// What is declared, loaded.
mod load;

// Changes, jobs, slices; the checkpoint.
mod intake;

// When changes are due.
mod calendar;

// How fast backfills go, and how far they are.
mod filling;

// Jobs that are due.
mod claims;

// What is kept for recommenders.
mod keeping;

// The interactions that were there before.
mod reading;

// Their lists of neighbours.
mod counting;

// The vectors of users' interests.
mod interests;

// Lists made before they are asked for.
mod warming;

// Time for what there is always something else to do before.
mod share;

// Rows to texts, texts to requests.
mod rendering;

// Columns of rows without a text emptied.
mod clearing;

// Replies to vectors, retries, dead letters.
mod landing;

// Vectors that have come, until they are stored.
mod unstored;

// Vectors stored, jobs completed.
mod storing;

// Hooks told what has happened.
mod hooks;

// Processes that store where the index is the limit.
mod writers;

// The index over the vectors, built after the load.
mod indexer;

// Generations that are complete take the place of those in service.
mod rebuilding;

// Models of recommenders, trained when it is time.
mod trainer;

// The port for those who watch.
mod listening;

// Whom the two keep waiting.
mod waiters;

// A row on its way to its vector.
mod ready;

// Pipelines as the worker runs them: texts that are ready, requests in flight.
mod running;

// Batches sent, replies landed.
mod flights;

// What is spent and saved, written down; budgets.
mod spending;

// How long changes take until they show.
mod latency;

// Numbers that only the tables know, for those who watch.
mod watching;

// What the server's log says.
mod telling;

// What keeps the log and the tables small.
mod upkeep;

use pgrx::pg_sys;

/// Registers the launcher. Only from `_PG_init` while shared_preload_libraries are loaded, never under pg_upgrade.
pub fn register() {
    let mut launcher = process::description(
        "recsync launcher",
        "recsync_launcher_main",
        pg_sys::Oid::INVALID,
    );
    // On a standby, too: it has numbers to show.
    launcher.bgw_start_time = pg_sys::BgWorkerStartTime::BgWorkerStart_ConsistentState;
    launcher.bgw_restart_time = 1;
    // SAFETY: a filled-in description, copied by the callee.
    unsafe { pg_sys::RegisterBackgroundWorker(&mut launcher) };
}
