//! Hooks: others are told what has happened here, by signed letters and by NOTIFY.
//!
//! What is to be told is written in the transaction that makes it true ([`outbox`]); the worker tells it afterwards, in
//! the order of the commits for each key. Nothing here sends anything: that is `worker::hooks`, by `embed::webhook`.

// What there is to hear of.
pub mod event;

// JSON that is filled in.
pub mod body;

// Hooks as they are stored.
pub mod hook;

// create_hook, drop_hook.
mod declare;

// Renames of what hooks know by name.
pub mod follow;

// What has not been told yet.
pub mod outbox;

// How much is kept of that.
pub mod bound;

// Items that are watched for those who listen.
pub mod watched;

// What NOTIFY says.
pub mod notice;

// An event as a letter, and as NOTIFY says it.
pub mod saying;

pgrx::extension_sql_file!(
    "hooks/tables.sql",
    name = "hook_tables",
    requires = ["tables"]
);
