//! The invariants that recsync promises, each by tests that carry its number. The clusters are real; they are
//! crashed and stopped. No test looks inside the library.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;

/// 1 and 4: what a crash may cost.
mod crash;

/// 2 and 6: what is captured and what is not.
mod capture;

/// 3 and 5: while a request is in flight.
mod in_flight;

/// 8 and 9: one bad row, a bad provider.
mod failures;

/// 9: a provider's limits.
mod limits;

/// 9: the limits of an account that several databases and sessions use.
mod shared_limits;
/// 1, 5 and 8: while writers store.
mod writers;

/// Of what must not wait for others: a change during a backfill, a row beside a million.
mod fairness;

/// 10 and 11: users' transactions and recsync's.
mod bystanders;

/// 13: who may read what.
mod rights;
