//! Every kind of table, statement and DDL, a case a line: what the change log holds afterwards, that the vectors
//! are in step with the rows, and that nothing else happens: no error, no pause, no dead letter, no warning.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;

/// What a case says: a table, statements, and what must come of each.
mod case;

/// How a case is run and what is checked after each of its statements.
mod runner;

/// The change log as cases write it.
mod history;

/// Keys, names, columns, inheritance, and what is no table for a pipeline.
mod tables;

/// INSERT, COPY, UPDATE, MERGE, DELETE, TRUNCATE, triggers, cursors, plans.
mod statements;

/// Savepoints, rollbacks, deferred work, replication roles, several sessions.
mod transactions;

/// Trees of partitions: what is written, moved, attached, detached and truncated.
mod partitions;

/// Names that change, rewrites and whatever else leaves a pipeline as it was.
mod renames;

/// Columns, tables and schemas that are dropped or retyped; triggers that are switched off.
mod drops;

/// Two-phase commit and unlogged tables, before and after a crash of the server.
mod crashes;
