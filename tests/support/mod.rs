//! What the tests from outside share: clusters that they start, crash and stop, a scripted embedding API, and
//! waiting for a condition. It never uses recsync's own code: what is tested is the library that is installed.

// Each test binary uses a part of it.
#![allow(dead_code, unused_imports)]

pub mod api;
pub mod browser;
pub mod cluster;
pub mod database;
pub mod numbers;
pub mod process;
pub mod receiver;
pub mod slow;
pub mod sql;
pub mod wait;

pub use api::{Api, Fault, Request};
pub use cluster::Cluster;
pub use database::{Database, by_hand, shared};
pub use receiver::{Mishap, Receiver};
pub use sql::Sql;
pub use wait::{PATIENCE, eventually, wait_until};
