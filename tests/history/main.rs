//! What the change log tells and what the vectors show, after histories that nobody has written by hand: random
//! transactions of many sessions, changes that another server has made, a log that is rotated meanwhile.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;

/// Random transactions against a reference model, workers and servers killed at random.
mod random;

/// A logical subscriber that carries recsync for a primary that has none.
mod subscriber;

/// Publications on a database with recsync.
mod publications;

/// The log stays small, keeps what is not dispatched, and is in no writer's way.
mod rotation;
