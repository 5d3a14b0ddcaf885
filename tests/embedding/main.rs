//! When texts are sent, and when they need not be. Real clusters, a scripted API that counts.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;

/// Schedules: at once, when it is quiet, by a timetable, when somebody asks.
mod schedules;

/// Texts that are known cost no call.
mod known;

/// Texts that the model does not take in one piece: their beginning, the mean of their parts.
mod long_texts;

/// A row a chunk.
mod chunks;

/// The same while requests fail, rows change and processes end.
mod chunks_meanwhile;
