//! Pipelines as they stand in the catalog: all of them, or the one of a name.
//!
//! It never looks at whose they are: see [`super::require_owner`].

use pgrx::prelude::*;

use super::Pipeline;
use crate::catalog::names;
use crate::catalog::rights::As;
use crate::dispatch::read::in_latest_snapshot;
use crate::error::{Error, Result};
use crate::statement::Statement;

/// All pipelines, or the one of `$1`, as JSON.
const LOAD: &str = include_str!("../pipelines.sql");

/// The columns of an index, as JSON that makes a list of [`super::Key`].
const KEYS: &str = include_str!("../keys.sql");

/// Every pipeline of the database. Runs as recsync's owner.
pub fn load_all() -> Result<Vec<Pipeline>> {
    load(&STATEMENT, None)
}

/// The pipeline that `name` means: its full name as recsync.status shows it, or a name by search_path.
pub fn find(name: &str) -> Result<Pipeline> {
    find_where(name, &STATEMENT, |pipeline, relation| {
        pipeline.of_pipeline.is_none() && pipeline.relation == relation
    })
}

/// The same, or one of its generations, by the name of its table.
pub fn find_any(name: &str) -> Result<Pipeline> {
    find_where(name, &STATEMENT, |_, _| true)
}

fn find_where(
    name: &str,
    statement: &'static std::thread::LocalKey<Statement>,
    is_it: impl Fn(&Pipeline, &str) -> bool,
) -> Result<Pipeline> {
    let by_name = |relation: &str| {
        let _as = As::extension();
        let mut of_that_name = load(statement, Some(relation))?.into_iter();
        Ok::<_, Error>(of_that_name.find(|pipeline| is_it(pipeline, relation)))
    };
    if let Some(pipeline) = by_name(name)? {
        return Ok(pipeline);
    }
    let found = match names::resolve(name)?.and_then(names::qualified) {
        Some(relation) => by_name(&relation)?,
        None => None,
    };
    found.ok_or_else(|| Error::NoSuchPipeline(name.to_owned()))
}

/// The same, and the generation that is in service stays so until the end of the transaction: what is asked of the
/// view goes to the table, and is by the model, that the pipeline has here.
pub fn hold(name: &str) -> Result<Pipeline> {
    thread_local! {
        static NOW: Statement = loading().under_active_snapshot();
    }
    names::hold(name);
    in_latest_snapshot(|| find_where(name, &NOW, |_, _| true))
}

fn loading() -> Statement {
    let keys = keys_sql(
        "s.relation",
        PRIMARY,
        &column_of("p.vectors"),
        &column_of("p.relation"),
    );
    Statement::new(LOAD.replace("{keys}", &keys))
}

thread_local! {
    static STATEMENT: Statement = loading();
}

fn load(
    statement: &'static std::thread::LocalKey<Statement>,
    relation: Option<&str>,
) -> Result<Vec<Pipeline>> {
    let _canonical = names::Canonical::begin();
    Spi::connect(|client| {
        let mut pipelines = Vec::new();
        let rows = statement.with(|statement| statement.select(client, &[relation.into()]))?;
        for row in rows {
            let json = row.get::<String>(1)?.unwrap_or_default();
            pipelines.push(
                serde_json::from_str(&json)
                    .map_err(|error| Error::Internal(format!("recsync.pipeline: {error}")))?,
            );
        }
        Ok(pipelines)
    })
}

/// For [`keys_sql`]: the primary key.
pub const PRIMARY: &str = "i.indisprimary";

/// SQL that gives the columns of an index of `relation`; all are expressions: `stored` and `shown` of a column's names.
pub fn keys_sql(relation: &str, index: &str, stored: &str, shown: &str) -> String {
    let mut sql = KEYS.to_owned();
    for (name, value) in [
        ("{relation}", relation),
        ("{index}", index),
        ("{stored}", stored),
        ("{shown}", shown),
    ] {
        sql = sql.replace(name, value);
    }
    sql
}

/// The column of `relation` that stands where the key's column stands in its index.
fn column_of(relation: &str) -> String {
    format!(
        "(SELECT pg_catalog.quote_ident(v.attname) FROM pg_catalog.pg_attribute v WHERE v.attrelid = pg_catalog.to_regclass({relation}) AND v.attnum = k.n)"
    )
}
