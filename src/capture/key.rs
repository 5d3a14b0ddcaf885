//! A row's key as JSON: `{"id": 42}`.
//!
//! Integers, numerics and booleans are JSON's own; every other type is the text of its output function under
//! fixed date, interval and float settings, so that the type's input function gives the same value back. It
//! never depends on the session's settings.

use pgrx::pg_sys;
use std::ffi::CStr;

use super::sources::Column;
use crate::settings::set;

/// The key of the row in `slot` as a jsonb datum, in the current memory context.
///
/// # Safety
/// `slot` is deformed up to every column of `key`.
pub unsafe fn to_jsonb(key: &[Column], slot: *mut pg_sys::TupleTableSlot) -> pg_sys::Datum {
    use pg_sys::JsonbIteratorToken as T;
    let mut state: *mut pg_sys::JsonbParseState = std::ptr::null_mut();
    // SAFETY: PostgreSQL's own builder, called in the order it asks for; names and values live in the
    // current memory context until the datum is built.
    unsafe {
        pg_sys::pushJsonbValue(&mut state, T::WJB_BEGIN_OBJECT, std::ptr::null_mut());
        for column in key {
            let mut name = string(
                column.name.as_bytes().as_ptr().cast_mut().cast(),
                column.name.len(),
            );
            pg_sys::pushJsonbValue(&mut state, T::WJB_KEY, &mut name);
            let mut value = value(
                column,
                *(*slot).tts_values.add(column.index),
                *(*slot).tts_isnull.add(column.index),
            );
            pg_sys::pushJsonbValue(&mut state, T::WJB_VALUE, &mut value);
        }
        let object = pg_sys::pushJsonbValue(&mut state, T::WJB_END_OBJECT, std::ptr::null_mut());
        pg_sys::Datum::from(pg_sys::JsonbValueToJsonb(object))
    }
}

fn string(pointer: *mut std::ffi::c_char, length: usize) -> pg_sys::JsonbValue {
    // SAFETY: all-zero bytes are a valid JsonbValue (null).
    let mut value: pg_sys::JsonbValue = unsafe { std::mem::zeroed() };
    value.type_ = pg_sys::jbvType::jbvString;
    value.val.string.len = length as _;
    value.val.string.val = pointer;
    value
}

unsafe fn value(column: &Column, datum: pg_sys::Datum, null: bool) -> pg_sys::JsonbValue {
    // SAFETY: all-zero bytes are a valid JsonbValue (null).
    let mut value: pg_sys::JsonbValue = unsafe { std::mem::zeroed() };
    if null {
        return value;
    }
    let integer = match column.type_oid {
        pg_sys::INT2OID => Some(datum.value() as i16 as i64),
        pg_sys::INT4OID => Some(datum.value() as i32 as i64),
        pg_sys::INT8OID => Some(datum.value() as i64),
        _ => None,
    };
    if let Some(integer) = integer {
        value.type_ = pg_sys::jbvType::jbvNumeric;
        // SAFETY: allocates a numeric in the current memory context.
        value.val.numeric = unsafe { pg_sys::int64_to_numeric(integer) };
        return value;
    }
    if column.type_oid == pg_sys::BOOLOID {
        value.type_ = pg_sys::jbvType::jbvBool;
        value.val.boolean = datum.value() != 0;
        return value;
    }
    // SAFETY: the datum is of the column's type, not null.
    unsafe {
        let text = output(column.type_oid, datum);
        string(text, CStr::from_ptr(text).to_bytes().len())
    }
}

/// The output function's text under fixed settings; they are set only where the session's differ.
unsafe fn output(type_oid: pg_sys::Oid, datum: pg_sys::Datum) -> *mut std::ffi::c_char {
    // SAFETY: plain globals of this process; the settings changed here are put back by AtEOXact_GUC, and by
    // the transaction's abort if the output function raises.
    unsafe {
        let level = (pg_sys::DateStyle != pg_sys::USE_ISO_DATES as i32
            || pg_sys::IntervalStyle != pg_sys::INTSTYLE_POSTGRES as i32
            || pg_sys::extra_float_digits < 1)
            .then(|| {
                let level = pg_sys::NewGUCNestLevel();
                set(c"datestyle", c"ISO, YMD");
                set(c"intervalstyle", c"postgres");
                set(c"extra_float_digits", c"1");
                level
            });
        let mut function = pg_sys::InvalidOid;
        let mut variable_length = false;
        pg_sys::getTypeOutputInfo(type_oid, &mut function, &mut variable_length);
        let text = pg_sys::OidOutputFunctionCall(function, datum);
        if let Some(level) = level {
            pg_sys::AtEOXact_GUC(true, level);
        }
        text
    }
}
