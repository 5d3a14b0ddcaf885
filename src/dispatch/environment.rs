//! What a text depends on beside its row: an expression may show a time in the session's time zone. The worker notes
//! the settings by which it renders; whoever compares a text with its vector renders by the same.
//!
//! It never takes over a setting that decides what a statement may do or how it is planned.

use pgrx::prelude::*;
use std::ffi::{CStr, CString};

use crate::catalog::names::select_one;
use crate::catalog::rights::{As, with_settings};
use crate::error::Result;

/// What PostgreSQL's own stable functions and casts to text depend on.
const SETTINGS: &[&str] = &[
    "TimeZone",
    "DateStyle",
    "IntervalStyle",
    "extra_float_digits",
    "bytea_output",
    "timezone_abbreviations",
    "lc_monetary",
    "lc_numeric",
    "lc_time",
    "default_text_search_config",
    "xmlbinary",
    "xmloption",
];

const DIFFERS: &str = "\
SELECT EXISTS (SELECT FROM pg_catalog.unnest($1::text[]) AS n (name) LEFT JOIN recsync.rendering r ON r.name = n.name
                WHERE r.setting IS DISTINCT FROM pg_catalog.current_setting(n.name))";

const NOTE: &str = "\
INSERT INTO recsync.rendering (name, setting) SELECT n.name, pg_catalog.current_setting(n.name) FROM pg_catalog.unnest($1::text[]) AS n (name)
    ON CONFLICT (name) DO UPDATE SET setting = excluded.setting";

/// Notes this process's settings, where others are noted. As recsync's owner.
pub fn note() -> Result<()> {
    if select_one::<bool>(DIFFERS, &[names().into()])? == Some(true) {
        Spi::run_with_args(NOTE, &[names().into()])?;
    }
    Ok(())
}

fn names() -> Vec<&'static str> {
    SETTINGS.to_vec()
}

/// The settings that the worker has noted; none where there has been no worker yet.
pub struct Environment(Vec<(CString, CString)>);

impl Environment {
    pub fn noted() -> Result<Environment> {
        const NOTED: &str =
            "SELECT name, setting FROM recsync.rendering WHERE name = ANY ($1::text[])";
        let _as = As::extension();
        Spi::connect(|client| {
            let mut noted = Vec::new();
            for row in client.select(NOTED, None, &[names().into()])? {
                let text = |column| -> Result<Option<CString>> {
                    let text = row.get::<String>(column)?;
                    Ok(text.and_then(|text| CString::new(text).ok()))
                };
                noted.extend(text(1)?.zip(text(2)?));
            }
            Ok(Environment(noted))
        })
    }

    /// Runs `body` with these settings.
    pub fn within<T>(&self, body: impl FnOnce() -> T) -> T {
        let settings: Vec<(&CStr, &CStr)> = self
            .0
            .iter()
            .map(|(name, setting)| (name.as_c_str(), setting.as_c_str()))
            .collect();
        with_settings(&settings, body)
    }
}
