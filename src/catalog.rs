//! What the user declared: servers, pipelines and recommenders, by name, and who may do what with them.
//!
//! It never stores an OID or an attribute number, and never a key.

// Running as somebody else: recsync's owner for its own tables, a pipeline's owner for everything of theirs.
pub mod rights;

// Names as PostgreSQL writes and resolves them.
pub mod names;

// Foreign servers: where texts are sent.
pub mod server;

// Expressions of a pipeline: parsed at creation, stored fully qualified.
pub mod expression;

// Pipelines as they are stored, with all that their SQL needs.
pub mod pipeline;

// create_pipeline.
pub mod declare;

// Watched tables: what they must be, their lock and triggers.
pub mod watch;

// Recommenders: as they are stored, made, dropped.
pub mod recommender;

// The table and view of a pipeline.
mod relations;

// into_column: vectors in a column of the source.
mod column;
// The index over a pipeline's vectors, as it was declared.
pub mod index;

// audit, unaudit.
mod audit;

// DDL of others on what is declared: followed, or the reason of a pause.
mod ddl;

// alter_pipeline.
mod alter;

// drop_pipeline, pause, resume.
pub mod change;

// Where a database is at home, and what a copy of it does.
pub mod site;

// adopt_vectors: what was there before a pipeline.
mod adopt;

// rebuild, cancel_rebuild, rollback_rebuild, drop_generation.
pub mod generation;

// Models that are known by name.
mod presets;

// The validator of servers and user mappings.
mod validator;

// Commands of others that concern recsync: servers' protected options, databases that want no worker.
pub mod utility;

// What older versions call.
mod retired;

// What CREATE EXTENSION checks and announces.
pub mod install;
