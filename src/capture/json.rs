//! Keys and rows as JSON text, written straight into a buffer.
//!
//! A key never depends on the session's settings: integers and booleans are JSON's own, every other type is the
//! text of its output function under fixed date, interval and float settings, so that the type's input function
//! gives the same value back. A row is as `to_jsonb` shows it, without what is too large for a log.

use pgrx::pg_sys;
use pgrx::prelude::*;
use std::ffi::{CStr, c_char, c_int};
use std::io::Write;

use super::sources::Column;
use crate::catalog::rights::with_settings;

unsafe extern "C-unwind" {
    // Not in pgrx's bindings: the setting of the same name.
    static bytea_output: c_int;
}
const BYTEA_OUTPUT_HEX: c_int = 1;

/// A value above this size stays out of the log unless large values are asked for. Before compression, so that
/// nothing has to be detoasted to know.
const LARGE: usize = 8_192;
/// Where they are asked for: what one row's JSON may come to, of the gigabyte that PostgreSQL allows, escapes included.
const RECORD: usize = 64 * 1024 * 1024;

/// What the text of a key depends on, whoever writes it.
pub const KEY_SETTINGS: &[(&CStr, &CStr)] = &[
    (c"datestyle", c"ISO, YMD"),
    (c"intervalstyle", c"postgres"),
    (c"extra_float_digits", c"1"),
    (c"bytea_output", c"hex"),
    (c"timezone", c"UTC"),
];

/// How a column's values become JSON.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Int2,
    Int4,
    Int8,
    Boolean,
    /// Its text is a JSON number, but for NaN and the infinities.
    Number,
    /// Its text is JSON.
    Json,
    /// Text as it is stored.
    Text,
    /// A date or timestamp: ISO 8601.
    Moment,
    Array,
    Composite,
    /// A range or multirange.
    Range,
    /// A vector of pgvector: too large for a log, whatever its width.
    Vector,
    /// The text of its output function.
    Other,
}

impl Kind {
    pub fn of(type_oid: pg_sys::Oid) -> Kind {
        match type_oid {
            pg_sys::INT2OID => Kind::Int2,
            pg_sys::INT4OID => Kind::Int4,
            pg_sys::INT8OID => Kind::Int8,
            pg_sys::BOOLOID => Kind::Boolean,
            pg_sys::FLOAT4OID | pg_sys::FLOAT8OID | pg_sys::NUMERICOID => Kind::Number,
            pg_sys::JSONOID | pg_sys::JSONBOID => Kind::Json,
            pg_sys::TEXTOID | pg_sys::VARCHAROID | pg_sys::BPCHAROID => Kind::Text,
            pg_sys::DATEOID | pg_sys::TIMESTAMPOID | pg_sys::TIMESTAMPTZOID => Kind::Moment,
            // SAFETY: catalog look-ups by OID.
            _ if unsafe { pg_sys::get_element_type(type_oid) } != pg_sys::InvalidOid => Kind::Array,
            // SAFETY: as above.
            _ if unsafe { pg_sys::type_is_rowtype(type_oid) } => Kind::Composite,
            // SAFETY: as above.
            _ if unsafe {
                pg_sys::type_is_range(type_oid) || pg_sys::type_is_multirange(type_oid)
            } =>
            {
                Kind::Range
            }
            _ if is_vector(type_oid) => Kind::Vector,
            _ => Kind::Other,
        }
    }
}

fn is_vector(type_oid: pg_sys::Oid) -> bool {
    // SAFETY: a syscache look-up; the name is read before the entry is released.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(
            pg_sys::SysCacheIdentifier::TYPEOID as _,
            pg_sys::Datum::from(type_oid),
        );
        if tuple.is_null() {
            return false;
        }
        let form = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_type>();
        let name = CStr::from_ptr((*form).typname.data.as_ptr());
        let vector = [c"vector", c"halfvec", c"sparsevec"].contains(&name);
        pg_sys::ReleaseSysCache(tuple);
        vector
    }
}

/// `{"id":42}`, appended to `into`.
///
/// # Safety
/// `slot` is deformed up to every column of `columns`.
pub unsafe fn key(columns: &[Column], slot: *mut pg_sys::TupleTableSlot, into: &mut Vec<u8>) {
    object(columns, into, |column, into| {
        // SAFETY: passed on from the caller; the datum is of the column's type.
        unsafe {
            match value(column, slot) {
                None => into.extend_from_slice(b"null"),
                Some(datum) => key_value(column, datum, into),
            }
        }
    });
}

/// `{"id":42,"title":"…"}`: the row's `columns`, appended to `into`.
///
/// # Safety
/// `slot` is deformed up to every column of `columns`.
pub unsafe fn record(
    columns: &[Column],
    slot: *mut pg_sys::TupleTableSlot,
    large_values: bool,
    into: &mut Vec<u8>,
) {
    let most = if large_values { RECORD } else { LARGE };
    object(columns, into, |column, into| {
        // SAFETY: as above; the size of a TOASTed value is read from its pointer.
        unsafe {
            match value(column, slot) {
                None => into.extend_from_slice(b"null"),
                Some(datum) => {
                    let size = if column.length == -1 {
                        pg_sys::toast_raw_datum_size(datum) - pg_sys::VARHDRSZ
                    } else {
                        0
                    };
                    let vector = column.kind == Kind::Vector && !large_values;
                    if vector || size > most || into.len() + size > RECORD {
                        let _ = write!(into, "{{\"omitted_bytes\":{size}}}");
                    } else {
                        record_value(column, datum, into);
                    }
                }
            }
        }
    });
}

fn object(columns: &[Column], into: &mut Vec<u8>, write: impl Fn(&Column, &mut Vec<u8>)) {
    into.push(b'{');
    for (number, column) in columns.iter().enumerate() {
        if number > 0 {
            into.push(b',');
        }
        into.extend_from_slice(&column.label);
        write(column, into);
    }
    into.push(b'}');
}

/// `"name":`, as it stands before a column's values.
pub fn label(name: &CStr) -> Vec<u8> {
    let mut label = Vec::new();
    string(name.to_bytes(), &mut label);
    label.push(b':');
    label
}

unsafe fn value(column: &Column, slot: *mut pg_sys::TupleTableSlot) -> Option<pg_sys::Datum> {
    // SAFETY: the slot is deformed up to the column.
    unsafe {
        let null = *(*slot).tts_isnull.add(column.index);
        (!null).then(|| *(*slot).tts_values.add(column.index))
    }
}

unsafe fn key_value(column: &Column, datum: pg_sys::Datum, into: &mut Vec<u8>) {
    if !plain(column.kind, datum, into) {
        // SAFETY: the datum is of the column's type, not null.
        unsafe {
            match column.kind {
                Kind::Text => string(text(datum), into),
                Kind::Moment => {
                    // As its output function would write it with datestyle ISO and timezone UTC.
                    let moment = moment(column, datum, Some(&0)).replacen('T', " ", 1);
                    string(moment.replacen("+00:00", "+00", 1).as_bytes(), into);
                }
                _ => string(fixed_output(column, datum), into),
            }
        }
    }
}

unsafe fn record_value(column: &Column, datum: pg_sys::Datum, into: &mut Vec<u8>) {
    if plain(column.kind, datum, into) {
        return;
    }
    // SAFETY: the datum is of the column's type, not null; what is made of it lives in the current memory context.
    unsafe {
        match column.kind {
            Kind::Text => string(text(datum), into),
            Kind::Json => into.extend_from_slice(output(column.output, datum)),
            Kind::Number => {
                let number = output(column.output, datum);
                if number.iter().any(u8::is_ascii_alphabetic) && !number.contains(&b'e') {
                    string(number, into); // NaN, Infinity
                } else {
                    into.extend_from_slice(number);
                }
            }
            Kind::Moment => string(moment(column, datum, None).as_bytes(), into),
            Kind::Array | Kind::Composite => {
                let function = if column.kind == Kind::Array {
                    pg_sys::array_to_json
                } else {
                    pg_sys::row_to_json
                };
                if let Some(json) = pgrx::direct_function_call_as_datum(function, &[Some(datum)]) {
                    into.extend_from_slice(text(json));
                }
            }
            _ => string(output(column.output, datum), into),
        }
    }
}

/// A date or timestamp in ISO 8601, in the time zone of `zone` seconds west of UTC, or the session's.
unsafe fn moment(column: &Column, datum: pg_sys::Datum, zone: Option<&c_int>) -> String {
    let mut buffer = [0 as c_char; 130];
    let zone = zone.map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the buffer has room for the longest timestamp (MAXDATELEN, 128).
    unsafe {
        pg_sys::JsonEncodeDateTime(buffer.as_mut_ptr(), datum, column.type_oid, zone);
        CStr::from_ptr(buffer.as_ptr())
            .to_string_lossy()
            .into_owned()
    }
}

/// Integers and booleans, the same in keys and rows; false for any other kind.
fn plain(kind: Kind, datum: pg_sys::Datum, into: &mut Vec<u8>) -> bool {
    let _ = match kind {
        Kind::Int2 => write!(into, "{}", datum.value() as i16),
        Kind::Int4 => write!(into, "{}", datum.value() as i32),
        Kind::Int8 => write!(into, "{}", datum.value() as i64),
        Kind::Boolean => write!(into, "{}", datum.value() as u8 != 0),
        _ => return false,
    };
    true
}

/// `bytes`, in the database's encoding, as a JSON string.
fn string(bytes: &[u8], into: &mut Vec<u8>) {
    if into.try_reserve(bytes.len() + 2).is_err() {
        ereport!(
            ERROR,
            PgSqlErrorCode::ERRCODE_OUT_OF_MEMORY,
            "out of memory for a row of the change log"
        );
    }
    into.push(b'"');
    let mut rest = bytes;
    while let Some(at) = rest
        .iter()
        .position(|byte| *byte < 0x20 || matches!(byte, b'"' | b'\\'))
    {
        into.extend_from_slice(&rest[..at]);
        match rest[at] {
            b'\n' => into.extend_from_slice(b"\\n"),
            b'\r' => into.extend_from_slice(b"\\r"),
            b'\t' => into.extend_from_slice(b"\\t"),
            byte @ (b'"' | b'\\') => into.extend_from_slice(&[b'\\', byte]),
            byte => {
                let _ = write!(into, "\\u{byte:04x}");
            }
        }
        rest = &rest[at + 1..];
    }
    into.extend_from_slice(rest);
    into.push(b'"');
}

/// The bytes of a text value, detoasted where it must be.
unsafe fn text<'a>(datum: pg_sys::Datum) -> &'a [u8] {
    // SAFETY: a varlena of type text; the copy, if any, lives in the current memory context.
    unsafe {
        let packed = pg_sys::pg_detoast_datum_packed(datum.cast_mut_ptr());
        std::slice::from_raw_parts(
            pgrx::vardata_any(packed).cast::<u8>(),
            pgrx::varsize_any_exhdr(packed),
        )
    }
}

unsafe fn output<'a>(function: pg_sys::Oid, datum: pg_sys::Datum) -> &'a [u8] {
    // SAFETY: the type's own output function gives a NUL-terminated string in the current memory context.
    unsafe { CStr::from_ptr(pg_sys::OidOutputFunctionCall(function, datum)).to_bytes() }
}

/// The output function's text under fixed settings; they are set only where the session's differ, or where the
/// type may hold timestamps.
unsafe fn fixed_output<'a>(column: &Column, datum: pg_sys::Datum) -> &'a [u8] {
    // SAFETY: plain globals of this process; the datum is of the column's type.
    unsafe {
        let differ = matches!(column.kind, Kind::Array | Kind::Composite | Kind::Range)
            || pg_sys::DateStyle != pg_sys::USE_ISO_DATES as c_int
            || pg_sys::IntervalStyle != pg_sys::INTSTYLE_POSTGRES as c_int
            || bytea_output != BYTEA_OUTPUT_HEX
            || pg_sys::extra_float_digits < 1;
        if differ {
            with_settings(KEY_SETTINGS, || output(column.output, datum))
        } else {
            output(column.output, datum)
        }
    }
}
