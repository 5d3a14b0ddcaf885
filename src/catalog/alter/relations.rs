//! A pipeline's view, table of vectors and function: under other names, or of another owner; its index.
//!
//! It never carries a name over to what is declared: that follows, as after anybody's DDL.

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::wanted::Names;
use crate::catalog::column;
use crate::catalog::index::name_pattern;
use crate::catalog::names::{quote, resolve, select_one};
use crate::catalog::pipeline::Pipeline;
use crate::catalog::rights::{As, in_catalog};
use crate::catalog::watch::lock_in_tries;
use crate::error::Result;

/// Readers and the worker wait for the transaction from here on: the view first, as they do.
pub fn lock(is: &Pipeline) -> Result<()> {
    for relation in [&is.relation, &is.vectors] {
        if let Some(oid) = resolve(relation)? {
            lock_in_tries(oid, relation, pg_sys::AccessExclusiveLock)?;
        }
    }
    Ok(())
}

/// The index that was made for the pipeline goes, also one whose build was broken off. One of the user's own stays.
pub fn drop_index(is: &Pipeline) -> Result<()> {
    const OURS: &str = "\
SELECT pg_catalog.array_agg(pg_catalog.format('%I.%I', n.nspname, x.relname))
  FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid JOIN pg_catalog.pg_am m ON m.oid = x.relam
  JOIN pg_catalog.pg_namespace n ON n.oid = x.relnamespace
 WHERE i.indrelid = pg_catalog.to_regclass($1) AND m.amname = 'hnsw' AND x.relname ~ $2";
    let ours = [is.vectors.as_str().into(), name_pattern(is).into()];
    let indexes = select_one::<Vec<String>>(OURS, &ours)?;
    let _as = As::maker(is.owner());
    for index in indexes.unwrap_or_default() {
        Spi::run(&format!("DROP INDEX {index}"))?;
    }
    Ok(())
}

pub fn rename(is: &Pipeline, names: &Names) -> Result<()> {
    let function = column::function_of(&is.relation)?;
    let mut statements = vec![format!(
        "ALTER VIEW {} RENAME TO {}",
        is.relation,
        quote(&names.own)
    )];
    if let Some(vectors) = &names.vectors {
        let vectors = quote(vectors);
        statements.push(format!("ALTER TABLE {} RENAME TO {vectors}", is.vectors));
        if let Some(function) = function {
            statements.push(format!("ALTER FUNCTION {function}() RENAME TO {vectors}"));
        }
    }
    for (table, name) in &names.kept {
        statements.push(format!("ALTER TABLE {table} RENAME TO {}", quote(name)));
    }
    let _as = As::maker(is.owner());
    for statement in statements {
        Spi::run(&statement)?;
    }
    Ok(())
}

/// By the rights of the caller, as ALTER VIEW asks for them; table and function follow.
pub fn give_to(relation: &str, owner: &str) -> Result<()> {
    in_catalog(|| Spi::run(&format!("ALTER VIEW {relation} OWNER TO {}", quote(owner))))?;
    Ok(())
}
