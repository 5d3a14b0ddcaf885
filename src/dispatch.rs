//! Dispatch: from the change log to jobs, and from a job to a text that needs an embedding.
//!
//! It never sends anything and never writes a vector; removing the vector of a row that is gone is its only
//! write to a pipeline's relation.

// When a change is due.
pub mod schedule;

// What a snapshot saw: the checkpoint's arithmetic.
pub mod snapshot;

// Whether a changed row waits.
pub mod pace;

// A row that is due.
pub mod job;

// Jobs in memory: coalesced by row, one flight a row, tied to the checkpoint that may pass them.
pub mod queue;

// Reads the change log between two snapshots.
pub mod read;

// Jobs that are rows: retried, delayed, put aside.
pub mod jobs;

// The rows that were there before: keyset slices.
pub mod backfill;

// Rows rendered to text; what is unchanged or gone ends here.
pub mod render;

// What a text depends on beside its row: the settings of the process that renders it.
pub mod environment;

// What is wrong with a row and its vector.
pub mod fault;

// Which rows have work that is still to be done.
pub mod pending;
