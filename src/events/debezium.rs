//! Debezium's envelopes, with and without their schema, as Kafka Connect's JSON converter writes them.
//!
//! After <https://debezium.io/documentation/reference/stable/connectors/postgresql.html#postgresql-events>, and MySQL's
//! page of the same name. It never guesses what a number means: without a schema a value goes to the column as it is.

use pgrx::PgSqlErrorCode;
use serde_json::value::RawValue;
use std::borrow::Cow;

use super::given::{
    Checked, Fields, Given, Id, Key, Name, Object, Operation, Read, Refusal, event_id, given,
    object, sequence, text,
};
use super::semantic::{Schemas, Types};

/// What stands for a large value that an update has not touched, and the same as bytes.
const UNAVAILABLE: &str = "\"__debezium_unavailable_value\"";
const UNAVAILABLE_BYTES: &str = "\"X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==\"";

/// `{schema, payload}`.
pub fn wrapped<'a>(
    outer: &Object<'a>,
    payload: &'a str,
    schemas: &mut Schemas<'a>,
) -> Checked<Read<'a>> {
    if payload == "null" {
        return Ok(Read::Nothing("a tombstone"));
    }
    let fields =
        object(payload).ok_or_else(|| Refusal::malformed("payload", "it is not a JSON object"))?;
    envelope(outer, &fields, outer.get("schema").copied(), schemas)
}

/// `{before, after, op, source}`. `outer` is what may have an event_id, a sequence and a table of the sender's.
pub fn envelope<'a>(
    outer: &Object<'a>,
    fields: &Object<'a>,
    schema: Option<&'a RawValue>,
    schemas: &mut Schemas<'a>,
) -> Checked<Read<'a>> {
    let op = text(fields, "op")?;
    let op =
        op.ok_or_else(|| Refusal::malformed("op", "it is missing: this is no change of a row"))?;
    let row_field = match op.as_str() {
        "c" | "r" | "u" => "after",
        "d" => "before",
        "m" => {
            return Ok(Read::Nothing(
                "a message of the source's, and no change of a row",
            ));
        }
        "t" => {
            let refusal = Refusal::malformed("op", "a TRUNCATE of the source is not applied");
            return Err(refusal.with_code(PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED));
        }
        _ => {
            return Err(Refusal::malformed(
                "op",
                "it is none of c, r, u, d, t and m",
            ));
        }
    };
    let source = given(fields, "source").and_then(object);
    let source = source.ok_or_else(|| Refusal::malformed("source", "it is not there"))?;
    let row = given(fields, row_field)
        .and_then(object)
        .ok_or_else(|| Refusal::malformed(row_field, "it is not there, or not a JSON object"))?;
    let types = schemas.types_of(schema.map(RawValue::get), row_field);
    let (data, is_whole) = columns(row, &types);
    let operation = match op.as_str() {
        "d" => Operation::Delete,
        // What is not known cannot be inserted.
        _ if !is_whole => Operation::Update,
        _ => Operation::Upsert,
    };
    let id = match event_id(outer)? {
        Some(id) => Id::Given(id),
        None => Id::Position(position(&source, &op).ok_or_else(|| {
            let reason = "there is none, and source has no position (lsn, or file and pos)";
            Refusal::malformed("event_id", reason)
        })?),
    };
    let origin = text(&source, "name")?.unwrap_or_default();
    Ok(Read::Event(Given {
        id,
        operation,
        table: table(outer, &source)?,
        key: Key::InData,
        data,
        data_field: row_field,
        sequence: sequence(outer)?.or_else(|| lsn(&source)),
        origin,
    }))
}

/// The columns, but for those of which only the source knows the value; and whether there are none of these.
fn columns<'a>(row: Object<'a>, types: &Types) -> (Fields<'a>, bool) {
    let mut is_whole = true;
    let mut columns = Fields::new();
    for (name, value) in row {
        let text = value.get();
        let bare = text.trim_start_matches('[').trim_end_matches(']');
        if bare == UNAVAILABLE || text == UNAVAILABLE_BYTES {
            is_whole = false;
            continue;
        }
        let converted = types.get(&name).and_then(|kind| kind.convert(text));
        let value = converted.map_or(Cow::Borrowed(text), Cow::Owned);
        columns.insert(name, value);
    }
    (columns, is_whole)
}

/// The table that the sender names, else the source's by schema, or by database where it has no schemas.
fn table(outer: &Object, source: &Object) -> Checked<Name> {
    if let Some(name) = text(outer, "table")? {
        return Ok(Name::Written(name));
    }
    let schema = match text(source, "schema")? {
        Some(schema) => Some(schema),
        None => text(source, "db")?,
    };
    match (schema, text(source, "table")?) {
        (Some(schema), Some(table)) => Ok(Name::Exact([schema, table])),
        _ => Err(Refusal::malformed(
            "source.table",
            "it is missing, or its schema or db is",
        )),
    }
}

/// Where the change stands in its source: the same whenever it is sent, and another for each change of a row. The
/// time tells apart what two servers, one after the other, have at the same place.
fn position(source: &Object, op: &str) -> Option<String> {
    let one = |name: &str| given(source, name).unwrap_or("").trim_matches('"');
    let parts = if given(source, "lsn").is_some() {
        [one("lsn"), one("txId"), one("ts_ms"), "", ""]
    } else if !one("file").is_empty() && given(source, "pos").is_some() {
        [
            one("server_id"),
            one("file"),
            one("pos"),
            one("row"),
            one("ts_ms"),
        ]
    } else {
        return None;
    };
    Some(format!("{}:{}:{op}", one("name"), parts.join(":")))
}

/// PostgreSQL's, which rises with each change of a row. Positions in a binary log do not, once another server takes over.
fn lsn(source: &Object) -> Option<i64> {
    given(source, "lsn")?.trim_matches('"').parse().ok()
}

#[cfg(test)]
#[path = "debezium_tests.rs"]
mod tests;
