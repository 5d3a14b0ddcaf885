//! retry_dead_letters, purge_dead_letters: what was given up, tried again or forgotten.
//!
//! It never loses one by the way: a dead letter that is tried again is a job first.

use pgrx::prelude::*;

use crate::capture::wake;
use crate::catalog::pipeline::{self, Pipeline};
use crate::catalog::rights::As;
use crate::embed::failure::Class;
use crate::error::{Error, OrReport, Result};
use crate::hooks::hook::{self, Hook};
use crate::hooks::outbox;

/// Those that a row can be given up with.
const CLASSES: [Class; 3] = [Class::Permanent, Class::Temporary, Class::Provider];

const RETRY: &str = "\
WITH taken AS (DELETE FROM recsync.dead_letter_log WHERE pipeline_id = $1 AND ($2 IS NULL OR class = $2)
                  AND ($3 IS NULL OR failed_at < $3)
                  AND ($4 IS NULL OR record_key IN (SELECT ARRAY(SELECT pg_catalog.jsonb_array_elements_text(k.key::jsonb)) FROM pg_catalog.unnest($4::text[]) AS k (key)))
                RETURNING record_key),
     queued AS (INSERT INTO recsync.job (pipeline_id, record_key) SELECT $1, record_key FROM taken
                ON CONFLICT (pipeline_id, record_key) DO UPDATE SET attempt = 0, available_at = pg_catalog.now() RETURNING 1)
SELECT pg_catalog.count(*) FROM queued";

const PURGE: &str = "\
WITH gone AS (DELETE FROM recsync.dead_letter_log WHERE pipeline_id = $1 AND ($2 IS NULL OR failed_at < $2) RETURNING 1)
SELECT pg_catalog.count(*) FROM gone";

#[pg_extern(sql = r#"
CREATE FUNCTION retry_dead_letters(name text, class text DEFAULT NULL, before timestamptz DEFAULT NULL, keys text[] DEFAULT NULL) RETURNS bigint LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION retry_dead_letters(text, text, timestamptz, text[]) IS
'Tries rows again that were given up, with all their attempts: those of a class (permanent, temporary, provider), those before a time, those of these keys (as recsync.dead_letter shows them in record_key; several as ARRAY[''1'', ''2''] where a key has one column, else as an array of keys, such as array_agg(record_key)), or all. A hook''s are letters by their webhook-id (without msg_): what was told since comes before them. Returns how many. Errors: 42704 unknown pipeline or hook, 42501 for others than its owner and recsync_admin, 22023 for an unknown class, or keys that are none.';
"#)]
fn retry_dead_letters(
    name: Option<&str>,
    class: Option<&str>,
    before: Option<TimestampWithTimeZone>,
    keys: Option<Vec<Option<String>>>,
) -> i64 {
    (|| -> Result<i64> {
        let of = find(name.unwrap_or_default())?;
        if let Some(class) = class
            && !CLASSES.map(Class::as_str).contains(&class)
        {
            return Err(Error::argument(
                "class",
                format!("\"{class}\" is not a class of dead letters"),
                format!(
                    "The valid ones are {}.",
                    CLASSES.map(Class::as_str).join(", ")
                ),
            ));
        }
        let pipeline = match of {
            Of::Pipeline(pipeline) => pipeline,
            Of::Hook(hook) => {
                wake::after_catalog_change();
                let _as = As::extension();
                let ids = keys.map(|keys| keys.into_iter().flatten().collect());
                return outbox::retry_dead_letters(hook.id, class, before, ids);
            }
        };
        let keys = keys
            .map(|keys| json_keys(&keys, pipeline.keys().len()))
            .transpose()?;
        wake::after_catalog_change();
        let _as = As::extension();
        let count = Spi::get_one_with_args::<i64>(
            RETRY,
            &[pipeline.id.into(), class.into(), before.into(), keys.into()],
        )?;
        Ok(count.unwrap_or(0))
    })()
    .or_report()
}

/// Whose dead letters they are.
enum Of {
    Pipeline(Box<Pipeline>),
    Hook(Box<Hook>),
}

/// What a name means, where the caller may do with it what its owner may.
fn find(name: &str) -> Result<Of> {
    match pipeline::find_any(name) {
        Ok(pipeline) => {
            pipeline::require_owner(&pipeline)?;
            Ok(Of::Pipeline(Box::new(pipeline)))
        }
        Err(unknown @ Error::NoSuchPipeline(_)) => match hook::find(name) {
            Ok(hook) => {
                hook::require_owner(&hook)?;
                Ok(Of::Hook(Box::new(hook)))
            }
            Err(Error::NoSuchHook(_)) => Err(unknown),
            Err(error) => Err(error),
        },
        Err(error) => Err(error),
    }
}

/// Keys of so many columns, one after the other, each as a JSON array.
fn json_keys(values: &[Option<String>], columns: usize) -> Result<Vec<String>> {
    let columns = columns.max(1);
    let refused = |reason: String| {
        Err(Error::argument(
            "keys",
            reason,
            "Give them as recsync.dead_letter shows them: (SELECT array_agg(record_key) FROM recsync.dead_letter WHERE …), or ARRAY['1', '2'] where a key has one column.",
        ))
    };
    if !values.len().is_multiple_of(columns) {
        return refused(format!(
            "{} values are no keys of {columns} columns each",
            values.len()
        ));
    }
    if values.iter().any(Option::is_none) {
        return refused("a key has no NULL".into());
    }
    let keys = values.chunks(columns);
    Ok(keys
        .map(|key| serde_json::Value::from(key.to_vec()).to_string())
        .collect())
}

#[pg_extern(sql = r#"
CREATE FUNCTION purge_dead_letters(name text, before timestamptz DEFAULT NULL) RETURNS bigint LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION purge_dead_letters(text, timestamptz) IS
'Forgets rows that were given up, those before a time or all; they stay without a current vector until they change. Returns how many. Errors: 42704 unknown name, 42501 for others than its owner and recsync_admin.';
"#)]
fn purge_dead_letters(name: Option<&str>, before: Option<TimestampWithTimeZone>) -> i64 {
    (|| -> Result<i64> {
        let pipeline = match find(name.unwrap_or_default())? {
            Of::Pipeline(pipeline) => pipeline,
            Of::Hook(hook) => {
                let _as = As::extension();
                return outbox::purge_dead_letters(hook.id, before);
            }
        };
        let _as = As::extension();
        let count = Spi::get_one_with_args::<i64>(PURGE, &[pipeline.id.into(), before.into()])?;
        Ok(count.unwrap_or(0))
    })()
    .or_report()
}
