//! The SQL surface: what users declare and call, and what they are told when it cannot be.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;

/// Servers and the options that are refused.
mod servers;

/// create_pipeline, drop_pipeline: refusals, repetition.
mod declaring;

/// Keys of all types, names of all kinds, texts and filters.
mod rows;

/// embed, search, wait_for, change_log, status.
mod reading;

/// Indexes by width, searches by them.
mod indexes;

/// What near means, how an index is made.
mod distances;

/// Vectors in a column of the source.
mod into_column;

/// Capture modes and audits.
mod auditing;

/// apply_events.
mod events;

/// README.md's quick start, as it stands there.
mod quickstart;
