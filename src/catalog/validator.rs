//! The validator of servers and user mappings: SQL/MED calls it with all options merged.
//!
//! It never decides who may change what: it is not told which option changed (the utility hook is). Only where
//! the hook is absent, because recsync is not preloaded, does it refuse protected options to others than admins.

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::rights::is_admin;
use crate::embed::endpoint::{
    self, Endpoint, OptionError, OptionErrorKind, PROTECTED_OPTIONS, Place,
};
use crate::error::{Error, OrReport, Result};
use crate::shared;

#[unsafe(no_mangle)]
#[doc(hidden)]
pub extern "C" fn pg_finfo_fdw_validator_v1() -> &'static pg_sys::Pg_finfo_record {
    const V1: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &V1
}

/// `fdw_validator(options text[], catalog oid)`.
///
/// # Safety
/// Called by PostgreSQL with two arguments that are not NULL.
#[pg_guard]
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn fdw_validator_v1(
    fcinfo: pg_sys::FunctionCallInfo,
) -> pg_sys::Datum {
    // SAFETY: the arguments' types are those of the declaration.
    let (options, catalog) = unsafe {
        let arguments = (*fcinfo).args.as_slice((*fcinfo).nargs as usize);
        (
            Vec::<Option<String>>::from_datum(arguments[0].value, arguments[0].isnull)
                .unwrap_or_default(),
            pg_sys::Oid::from_datum(arguments[1].value, arguments[1].isnull)
                .unwrap_or(pg_sys::InvalidOid),
        )
    };
    check(&options, catalog).or_report();
    pg_sys::Datum::from(0)
}

fn check(options: &[Option<String>], catalog: pg_sys::Oid) -> Result<()> {
    let options: Vec<(String, String)> = options
        .iter()
        .flatten()
        .filter_map(|option| option.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let place = match catalog {
        pg_sys::ForeignServerRelationId => Place::Server,
        pg_sys::UserMappingRelationId => Place::UserMapping,
        pg_sys::ForeignDataWrapperRelationId => Place::Wrapper,
        _ => Place::Elsewhere,
    };
    endpoint::validate(place, &options).map_err(to_error)?;
    if place == Place::Server
        && let Ok(endpoint) = Endpoint::from_options(&options, &[])
        && endpoint.monthly_budget.is_some()
        && endpoint.price_per_million_tokens.is_none()
    {
        warning!(
            "monthly_budget has no effect without price_per_million_tokens: no price of model \"{}\" is known",
            endpoint.model
        );
    }
    let protected_one = options
        .iter()
        .find(|(name, _)| PROTECTED_OPTIONS.contains(&name.as_str()));
    match protected_one {
        Some((name, _)) if shared::shared().is_none() && !is_admin() => Err(protected(name)),
        _ => Ok(()),
    }
}

/// The refusal of a protected option.
pub fn protected(option: &str) -> Error {
    Error::Denied {
        what: format!("option \"{option}\" may be set by superusers and members of recsync_admin only"),
        grant: "A key and an address of one's own choosing together would leak any key: ask an administrator, or GRANT recsync_admin TO …".into(),
    }
}

pub fn to_error(error: OptionError) -> Error {
    let code = match error.kind {
        OptionErrorKind::UnknownOption => PgSqlErrorCode::ERRCODE_FDW_INVALID_OPTION_NAME,
        OptionErrorKind::InvalidValue => PgSqlErrorCode::ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE,
        OptionErrorKind::Missing => PgSqlErrorCode::ERRCODE_FDW_OPTION_NAME_NOT_FOUND,
        OptionErrorKind::NotAllowed => PgSqlErrorCode::ERRCODE_FDW_INVALID_OPTION_NAME,
    };
    Error::Option {
        code,
        message: error.message,
        detail: error.detail,
        hint: error.hint,
    }
}
