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

/// What was spent and what was saved.
mod spending;

/// Budgets.
mod budgets;
/// metrics, health and errors.
mod metrics;

/// Tokens, money, hooks and lists in the metrics.
mod metering;

/// What psql shows of it: widths, comments, long queues.
mod showing;

/// What the server's log says.
mod logging;

/// The same over HTTP, and the status page.
mod watching;

/// The page in a browser.
mod browsing;

/// What embedding would come to.
mod estimating;

/// Rows compared with their vectors, and repaired.
mod verifying;

/// The same while work is under way, and who may.
mod verifying_meanwhile;

/// Copied, dumped and restored, upgraded with its server.
mod moving;

/// Vectors from before the pipeline.
mod adopting;
/// Updated from older versions of recsync.
mod upgrading;

/// What triggers have not seen.
mod unseen;

/// The rows that were there before.
mod backfilling;

/// The index, built after the load.
mod indexing;

/// A pipeline changed in place.
mod altering;

/// The same while work is under way.
mod altering_meanwhile;

/// Whose it is.
mod owning;
/// A new generation of the vectors, swapped in.
mod rebuilding;

/// The same while other things happen.
mod rebuilding_meanwhile;

/// A pipeline is one thing, whichever of its generations is in service.
mod joined;
