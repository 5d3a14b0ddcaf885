//! What the declarations of older versions call and this one declares otherwise. A database calls by them until it is
//! updated, and its catalog names these symbols after pg_upgrade, too: they are there for ever, and say what to do.
//!
//! It never reads an argument: those are the older version's.

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::install::installed_version;
use crate::error::{Error, OrReport, Result};

macro_rules! retired {
    ($($symbol:ident, $information:ident;)*) => {$(
        #[unsafe(no_mangle)]
        #[doc(hidden)]
        pub extern "C" fn $information() -> &'static pg_sys::Pg_finfo_record {
            const V1: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
            &V1
        }

        #[pg_guard]
        #[unsafe(no_mangle)]
        #[doc(hidden)]
        pub extern "C-unwind" fn $symbol(_call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
            update_is_due().or_report()
        }
    )*};
}

retired! {
    // Of 0.1.0.
    create_pipeline_wrapper, pg_finfo_create_pipeline_wrapper;
    counters_wrapper, pg_finfo_counters_wrapper;
}

fn update_is_due() -> Result<pg_sys::Datum> {
    Err(Error::WrongVersion {
        loaded: env!("CARGO_PKG_VERSION").into(),
        installed: installed_version()?.unwrap_or_default(),
    })
}
