//! What was spent at providers, and what was saved: bills from the worker to the tables, and budgets.
//!
//! Bills are appended to `recsync.usage_log` in the transaction that stores the vectors they paid for, and folded into
//! `recsync.usage_day` and `recsync.usage_month` now and then. Nothing here updates a row with each store, and nothing
//! sends anything.

// The figures, and who pays.
pub mod bill;

// The tables.
pub mod log;

// Months of UTC.
pub mod month;

// What sessions have asked for.
pub mod asked;

// What is left of a month's budget.
pub mod budget;
