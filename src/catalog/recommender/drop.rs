//! drop_recommender.
//!
//! It never touches a row of the items or the interactions.

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::{Recommender, embedding, feeds, find, functions, require_owner, tables};
use crate::capture::wake;
use crate::catalog::pipeline;
use crate::catalog::rights::As;
use crate::catalog::watch::{release, table_owner};
use crate::error::{Error, OrReport, Result};
use crate::hooks::watched;
use crate::recommend::shown;

#[pg_extern(sql = r#"
CREATE FUNCTION drop_recommender(name text, if_exists boolean DEFAULT false) RETURNS void LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION drop_recommender(text, boolean) IS
'Ends a recommender: its functions, what is kept for it, what log_shown has noted of its lists, the pipeline that create_recommender made of text (unless another recommender uses it), and the triggers of its interactions when nothing else needs them. Errors: 42704 where it does not exist (unless if_exists), 42501 for others than the owner of its items and recsync_admin.';
"#)]
fn drop_recommender(name: &str, if_exists: bool) {
    (|| -> Result<()> {
        let recommender = match find(name) {
            Err(Error::NoSuchRecommender(_)) if if_exists => {
                notice!("recommender \"{name}\" does not exist, skipping");
                return Ok(());
            }
            found => found?,
        };
        if recommender.owner() != pg_sys::InvalidOid {
            require_owner(&recommender)?;
        }
        embedding::hold(&recommender)?;
        end(&recommender)?;
        embedding::drop(&recommender)?;
        let source = recommender.source_oid();
        release(
            source,
            &recommender.interactions,
            recommender.source_id,
            table_owner(source)?,
        )?;
        wake::after_catalog_change();
        Ok(())
    })()
    .or_report();
}

/// Everything of the recommender's but the triggers on the interactions that it was created with.
pub fn end(recommender: &Recommender) -> Result<()> {
    // There may be many, and no table of the worker's is locked yet.
    {
        let _as = As::extension();
        shown::remove(recommender.id, None)?;
    }
    for feed in feeds::of(recommender)? {
        feeds::end(&feed)?;
    }
    watched::forget(recommender.id)?;
    functions::drop(recommender)?;
    tables::drop(recommender.id, &recommender.members())?;
    let _as = As::extension();
    pipeline::forget(recommender.id)?;
    Spi::run_with_args(
        "DELETE FROM recsync.recommender WHERE id = $1",
        &[recommender.id.into()],
    )?;
    Ok(())
}
