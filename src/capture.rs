//! Capture: the row trigger that appends each change of a watched table to the change log.
//!
//! It never touches anything of recsync's but the log: no vector, no job, no lock that another session could
//! wait for, no user's expression, no request.

// The trigger function itself.
mod trigger;

// The one that says that the first has not seen something.
mod unseen;

// What is watched of a table, kept per backend until its definition changes.
mod sources;

// What this process writes itself.
pub mod own;

// Keys and rows as JSON.
pub mod json;

// Changes of a transaction in blocks, until it commits.
pub mod buffer;

// A block appended to the log.
mod log;

// The wake-up of the worker at commit.
pub mod wake;
