//! What watches it: status, waiting, verifying, dead letters.
//!
//! It never shows a text or a vector: numbers, names and reasons only.

// wait_for: read-your-writes.
pub mod wait;

// run: what waits for its time, now.
mod run;

// verify, verify_rows, repair: rows compared with their vectors.
mod verify;

// estimate: what embedding a table would come to.
pub mod estimate;

// backfill: the rows that are there, looked at.
mod filling;

// status and the numbers that the worker keeps.
pub mod status;

// Views whose plan is kept.
mod kept;

// How many jobs wait.
mod jobs;

// How far the build of an index is.
mod generations;

// metrics, health.
mod metrics;

// What shared memory says at a moment.
pub mod snapshot;

// Numbers that only tables know.
pub mod gauges;

// A snapshot as OpenMetrics.
pub mod openmetrics;

// Whether all is well.
pub mod health;

// A small HTTP server.
pub mod http;

// What it serves.
pub mod site;

// errors: what has gone wrong lately.
pub mod errors;

// Lists that were ready, and those that were not.
mod list_cache;

// retry_dead_letters, purge_dead_letters.
mod dead_letters;
