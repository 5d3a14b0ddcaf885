//! Pipelines whose vectors go into a column of the source: the user's own rows are written.

/// What the column must be, and what becomes of it and of the pipeline.
mod declared;

/// Rows that users hold locked, and what they do meanwhile.
mod locked;

/// What makes a row's vector come, go and move.
mod rows;

/// Users' triggers on the table that is written.
mod triggers;

use crate::support::{Api, Database, Sql, shared};

const CREATE: &str = "SELECT recsync.create_pipeline('item_embedding', 'item', columns => '{title}', server => 'api', index => 'none', into_column => 'embedding')";

/// Server `api` and table `item (id, title, stock)`.
fn table<'a>(api: &Api, options: &str) -> Database<'a> {
    let mut db = shared().database();
    db.server("api", api, options);
    db.run("CREATE TABLE item (id int PRIMARY KEY, title text, stock int NOT NULL DEFAULT 0)");
    db
}

/// The same with a pipeline into its column `embedding`.
fn items<'a>(api: &Api) -> Database<'a> {
    let mut db = table(api, "");
    db.run(CREATE);
    db
}

/// That every row's column holds the vector of its text, and that the view shows just those.
#[track_caller]
fn in_step(db: &mut Database, api: &Api) {
    db.assert_in_step(api, "SELECT id::text, title, embedding::text FROM item");
    db.assert_items_in_step(api);
}

/// Runs a change, waits, and says how many texts were sent for it.
#[track_caller]
fn sent(db: &mut Database, api: &Api, change: &str) -> usize {
    let before = api.texts().len();
    db.run(change);
    db.settle("item_embedding");
    in_step(db, api);
    api.texts().len() - before
}
