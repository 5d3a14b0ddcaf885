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
mod estimate;

// status and the numbers that the worker keeps.
mod status;

// Lists that were ready, and those that were not.
mod list_cache;

// retry_dead_letters, purge_dead_letters.
mod dead_letters;
