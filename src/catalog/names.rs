//! Names as PostgreSQL writes and resolves them.
//!
//! It never builds SQL from an identifier that has not been quoted here or by PostgreSQL itself.

use pgrx::pg_sys;
use pgrx::prelude::*;
use pgrx::spi::SpiTupleTable;
use std::ffi::{CStr, CString};

use super::rights::As;
use crate::error::{Error, Result};
use crate::statement::{Finds, Statement};

/// Names are written as PostgreSQL writes them by default while this lives, whatever quote_all_identifiers the session
/// has: they are stored and compared.
pub struct Canonical(bool);

impl Canonical {
    pub fn begin() -> Canonical {
        // SAFETY: a plain global of this process.
        unsafe {
            let before = pg_sys::quote_all_identifiers;
            pg_sys::quote_all_identifiers = false;
            Canonical(before)
        }
    }
}

impl Drop for Canonical {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { pg_sys::quote_all_identifiers = self.0 };
    }
}

/// `name` as an SQL identifier.
pub fn quote(name: &str) -> String {
    let _canonical = Canonical::begin();
    let Ok(name) = CString::new(name) else {
        return String::from("\"\"");
    };
    // SAFETY: returns its argument or a palloc'd copy, NUL-terminated.
    unsafe {
        CStr::from_ptr(pg_sys::quote_identifier(name.as_ptr()))
            .to_string_lossy()
            .into_owned()
    }
}

/// The full names that a name may stand for, in the order of the search path.
pub fn full_names(name: &str) -> Result<Vec<String>> {
    let full = |schema: &str, name: &str| format!("{}.{}", quote(schema), quote(name));
    match parts(name).as_deref() {
        Some([schema, name]) => Ok(vec![full(schema, name)]),
        Some([name]) => {
            let schemas =
                select_kept::<Vec<String>>("SELECT pg_catalog.current_schemas(true)::text[]", &[])?;
            let schemas = schemas.unwrap_or_default();
            Ok(schemas.iter().map(|schema| full(schema, name)).collect())
        }
        _ => Ok(Vec::new()),
    }
}

/// `text` as an SQL string constant.
pub fn literal(text: &str) -> String {
    pgrx::spi::quote_literal(text)
}

/// A relation's name, qualified and quoted; `None` where it is gone.
pub fn qualified(relation: pg_sys::Oid) -> Option<String> {
    // SAFETY: syscache look-ups; null where there is no such relation.
    unsafe {
        let name = pg_sys::get_rel_name(relation);
        let schema = pg_sys::get_namespace_name(pg_sys::get_rel_namespace(relation));
        if name.is_null() || schema.is_null() {
            return None;
        }
        Some(format!(
            "{}.{}",
            quote(&CStr::from_ptr(schema).to_string_lossy()),
            quote(&CStr::from_ptr(name).to_string_lossy())
        ))
    }
}

/// The parts of a possibly qualified name, unquoted and folded as SQL does; `None` where it is no name.
pub fn parts(name: &str) -> Option<Vec<String>> {
    let text = CString::new(name).ok()?;
    // SAFETY: the callee works in the copy and points the list's entries into it; both live in the current context.
    unsafe {
        let copy = pg_sys::pstrdup(text.as_ptr());
        let mut list: *mut pg_sys::List = std::ptr::null_mut();
        if !pg_sys::SplitIdentifierString(copy, b'.' as std::ffi::c_char, &mut list) {
            return None;
        }
        let length = list.as_ref().map_or(0, |list| list.length as usize);
        let part = |index| CStr::from_ptr((*(*list).elements.add(index)).ptr_value.cast());
        Some(
            (0..length)
                .map(|index| part(index).to_string_lossy().into_owned())
                .collect(),
        )
    }
}

/// The OID of one of recsync's own relations; `None` where the extension is not there.
pub fn own_relation(name: &CStr) -> Option<pg_sys::Oid> {
    // SAFETY: syscache look-ups by NUL-terminated names.
    unsafe {
        let schema = pg_sys::get_namespace_oid(c"recsync".as_ptr(), true);
        let relation = pg_sys::get_relname_relid(name.as_ptr(), schema);
        (relation != pg_sys::InvalidOid).then_some(relation)
    }
}

/// What `to_regclass` finds: search_path applies.
pub fn resolve(name: &str) -> Result<Option<pg_sys::Oid>> {
    select_one::<pg_sys::Oid>("SELECT pg_catalog.to_regclass($1)::oid", &[name.into()])
}

/// Holds the relation that a name means, as a reader does, to the end of the transaction; where there is none, nothing.
/// Who may read it is asked elsewhere.
pub fn hold(name: &str) {
    let Some(parts) = parts(name) else {
        return;
    };
    let texts: Vec<CString> = parts
        .into_iter()
        .filter_map(|part| CString::new(part).ok())
        .collect();
    let (schema, relation) = match texts.as_slice() {
        [relation] => (std::ptr::null(), relation),
        [schema, relation] => (schema.as_ptr(), relation),
        _ => return,
    };
    // A schema that the caller may not look into is no error here.
    let _as = (!schema.is_null()).then(As::extension);
    // SAFETY: the names outlive the call; the range variable is in the current context. Whoever replaces the relation
    // while this waits for its lock, has done so when it is looked up again.
    unsafe {
        let name = pg_sys::makeRangeVar(schema.cast_mut(), relation.as_ptr().cast_mut(), -1);
        pg_sys::RangeVarGetRelidExtended(
            name,
            pg_sys::AccessShareLock as _,
            pg_sys::RVROption::RVR_MISSING_OK,
            None,
            std::ptr::null_mut(),
        );
    }
}

/// The first value of a read-only query. Allocates no transaction id, works on a standby.
pub fn select_one<T: FromDatum + IntoDatum>(
    sql: &str,
    arguments: &[pgrx::datum::DatumWithOid],
) -> Result<Option<T>> {
    Spi::connect(|client| {
        let table = client.select(sql, Some(1), arguments)?;
        first_of(table)
    })
}

/// The same of a query that this session asks again and again; as it is planned by keys.
pub fn select_kept<T: FromDatum + IntoDatum>(
    sql: &str,
    arguments: &[pgrx::datum::DatumWithOid],
) -> Result<Option<T>> {
    let statement = Statement::kept(sql, Finds::ByKey);
    Spi::connect(|client| {
        let table = statement.select(client, arguments)?;
        first_of(table)
    })
}

fn first_of<T: FromDatum + IntoDatum>(table: SpiTupleTable) -> Result<Option<T>> {
    if table.is_empty() {
        return Ok(None);
    }
    table.first().get_one::<T>().map_err(Error::from)
}

/// The quoted schema that pgvector is installed in: it may live anywhere and is relocatable.
pub fn vector_schema() -> Option<String> {
    // SAFETY: look-ups of the catalog.
    unsafe {
        let extension = pg_sys::get_extension_oid(c"vector".as_ptr(), true);
        if extension == pg_sys::InvalidOid {
            return None;
        }
        let schema = pg_sys::get_namespace_name(extension_schema(extension));
        (!schema.is_null()).then(|| quote(&CStr::from_ptr(schema).to_string_lossy()))
    }
}

/// The OID of pgvector's type `vector` (and of its array type).
pub fn vector_types() -> Option<(pg_sys::Oid, pg_sys::Oid)> {
    // SAFETY: look-ups of the catalog.
    unsafe {
        let extension = pg_sys::get_extension_oid(c"vector".as_ptr(), true);
        if extension == pg_sys::InvalidOid {
            return None;
        }
        let vector = type_in(c"vector", extension_schema(extension));
        let array = pg_sys::get_array_type(vector);
        (vector != pg_sys::InvalidOid && array != pg_sys::InvalidOid).then_some((vector, array))
    }
}

unsafe fn type_in(name: &CStr, schema: pg_sys::Oid) -> pg_sys::Oid {
    // SAFETY: a syscache look-up by a NUL-terminated name; get_typname's namedata is filled from a C string.
    unsafe {
        pg_sys::GetSysCacheOid(
            pg_sys::SysCacheIdentifier::TYPENAMENSP as _,
            pg_sys::Anum_pg_type_oid as _,
            pg_sys::Datum::from(name.as_ptr()),
            pg_sys::Datum::from(schema),
            pg_sys::Datum::from(0),
            pg_sys::Datum::from(0),
        )
    }
}

/// `get_extension_schema`, which PostgreSQL 15 does not export.
unsafe fn extension_schema(extension: pg_sys::Oid) -> pg_sys::Oid {
    // SAFETY: an index scan of pg_extension by OID; the tuple is read before the scan ends.
    unsafe {
        let relation =
            pg_sys::table_open(pg_sys::ExtensionRelationId, pg_sys::AccessShareLock as _);
        let mut key = pg_sys::ScanKeyData::default();
        pg_sys::ScanKeyInit(
            &mut key,
            pg_sys::Anum_pg_extension_oid as _,
            pg_sys::BTEqualStrategyNumber as _,
            pg_sys::F_OIDEQ.into(),
            pg_sys::Datum::from(extension),
        );
        let scan = pg_sys::systable_beginscan(
            relation,
            pg_sys::Oid::from(pg_sys::ExtensionOidIndexId),
            true,
            std::ptr::null_mut(),
            1,
            &mut key,
        );
        let tuple = pg_sys::systable_getnext(scan);
        let schema = if tuple.is_null() {
            pg_sys::InvalidOid
        } else {
            (*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_extension>()).extnamespace
        };
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, pg_sys::AccessShareLock as _);
        schema
    }
}
