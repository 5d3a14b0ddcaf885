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
mod status;

// How far the build of an index is.
mod generations;

// retry_dead_letters, purge_dead_letters.
mod dead_letters;
