//! No answer of any embedding server makes recsync lose, double or misplace a vector. Each fault is played over real
//! HTTP; asserted are what the rows come to in the end and the requests that were made for it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;

/// Four rows, a fault, and what became of them.
mod subject;

/// Answers with status 200 that cannot be believed.
mod answers;

/// Other statuses.
mod statuses;

/// Connections that break, stall, drip or never end.
mod connections;

/// A server that answers nobody well.
mod providers;

/// Dead letters, tried again, forgotten and left.
mod dead_letters;

/// Failures that wait for a person.
mod pauses;

/// Changes of a server, pauses and resumptions while requests are in the air.
mod in_the_air;

/// What embed() and search() ask in plans of every shape.
mod plans;

/// Faults at random under load.
mod soak;
