//! The worker's life: it starts, obeys, gives way, comes back and is never in a DBA's way.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;

/// Commands that nothing must hold up.
mod commands;

/// CREATE and DROP of extension and databases, preloading.
mod databases;

/// Signals, settings, errors.
mod worker;

/// Processes that store for the worker.
mod writers;

/// metrics, health and errors.
mod metrics;

/// The same over HTTP, and the status page.
mod watching;

/// What embedding would come to.
mod estimating;

/// Rows compared with their vectors, and repaired.
mod verifying;

/// The same while work is under way, and who may.
mod verifying_meanwhile;

/// The index, built after the load.
mod indexing;
