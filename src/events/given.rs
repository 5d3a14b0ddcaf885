//! Events as they are given: recsync's own form. Plain text in, plain text out.
//!
//! A value stays the JSON text that it is, so that no number loses a digit. It never looks at a table: whether there is
//! such a column is found out later.

use pgrx::PgSqlErrorCode;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::BTreeMap;

use super::debezium;
use super::semantic::Schemas;

/// A JSON object whose values are looked at when they are needed.
pub type Object<'a> = BTreeMap<String, &'a RawValue>;
/// Columns and their values as JSON.
pub type Fields<'a> = BTreeMap<String, Cow<'a, str>>;

/// Why an event is not applied.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    pub code: PgSqlErrorCode,
    /// Of the event, as `data.price`; none where it is not one field's fault.
    pub field: Option<String>,
    pub reason: String,
}

impl Refusal {
    /// A field is missing or not what it has to be.
    pub fn malformed(field: impl Into<String>, reason: impl Into<String>) -> Refusal {
        Refusal {
            code: PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            field: Some(field.into()),
            reason: reason.into(),
        }
    }

    pub fn with_code(self, code: PgSqlErrorCode) -> Refusal {
        Refusal { code, ..self }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, to: &mut std::fmt::Formatter) -> std::fmt::Result {
        match &self.field {
            Some(field) => write!(to, "{field}: {}", self.reason),
            None => to.write_str(&self.reason),
        }
    }
}

pub type Checked<T> = std::result::Result<T, Refusal>;

#[derive(Debug, PartialEq)]
pub enum Read<'a> {
    Event(Given<'a>),
    /// Nothing is to be done, and why.
    Nothing(&'static str),
}

#[derive(Debug, PartialEq)]
pub struct Given<'a> {
    pub id: Id,
    pub operation: Operation,
    pub table: Name,
    pub key: Key<'a>,
    pub data: Fields<'a>,
    /// Where the data were, for messages.
    pub data_field: &'static str,
    pub sequence: Option<i64>,
    /// Whose numbers the sequence is one of: a Debezium connector's; empty for events of recsync's own form.
    pub origin: String,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Id {
    Given(String),
    /// Where the change stands in its source: with the row's key it is as good as an id.
    Position(String),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Operation {
    Insert,
    Update,
    Upsert,
    Delete,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Name {
    /// As in SQL: folded unless quoted, qualified or not.
    Written(String),
    /// Schema and name, exactly.
    Exact([String; 2]),
}

#[derive(Debug, PartialEq)]
pub enum Key<'a> {
    /// Of the only column of a primary key.
    Single(Cow<'a, str>),
    Columns(Fields<'a>),
    /// What the data say, if they do.
    InData,
}

/// The elements of an array, each as its text; an object, or null, is the only one. `None` for anything else.
pub fn elements(events: &str) -> Option<Vec<&str>> {
    match events.as_bytes().first()? {
        b'[' => {
            let elements: Vec<&RawValue> = serde_json::from_str(events).ok()?;
            Some(elements.into_iter().map(RawValue::get).collect())
        }
        b'{' => Some(vec![events]),
        _ => (events == "null").then(|| vec![events]),
    }
}

pub fn read<'a>(event: &'a str, schemas: &mut Schemas<'a>) -> Checked<Read<'a>> {
    if event == "null" {
        return Ok(Read::Nothing("a tombstone"));
    }
    let fields = object(event).ok_or_else(|| Refusal {
        code: PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
        field: None,
        reason: "it is not a JSON object".into(),
    })?;
    match fields.get("payload") {
        Some(payload) => debezium::wrapped(&fields, payload.get(), schemas),
        None if fields.contains_key("op") => debezium::envelope(&fields, &fields, None, schemas),
        None => own(&fields).map(Read::Event),
    }
}

/// `{event_id, operation, table, record_id | key, data, timestamp, sequence}`.
fn own<'a>(fields: &Object<'a>) -> Checked<Given<'a>> {
    let id = event_id(fields)?.ok_or_else(|| Refusal::malformed("event_id", "it is missing"))?;
    let operation = match text(fields, "operation")?.as_deref() {
        Some("insert") => Operation::Insert,
        Some("update") => Operation::Update,
        Some("upsert") => Operation::Upsert,
        Some("delete") => Operation::Delete,
        Some(_) => {
            let reason = "it is none of insert, update, upsert and delete";
            return Err(Refusal::malformed("operation", reason));
        }
        None => return Err(Refusal::malformed("operation", "it is missing")),
    };
    let table = text(fields, "table")?;
    let table = table.ok_or_else(|| Refusal::malformed("table", "it is missing"))?;
    let key = match (given(fields, "record_id"), given(fields, "key")) {
        (Some(_), Some(_)) => {
            return Err(Refusal::malformed("key", "there is a record_id, too"));
        }
        (Some(value), None) if is_scalar(value) => Key::Single(Cow::Borrowed(value)),
        (Some(_), None) => {
            let reason = "it is not a string or a number: give key, an object by columns";
            return Err(Refusal::malformed("record_id", reason));
        }
        (None, Some(value)) => Key::Columns(columns(value, "key")?),
        (None, None) => Key::InData,
    };
    let data = match given(fields, "data") {
        _ if operation == Operation::Delete && !matches!(key, Key::InData) => Fields::new(),
        Some(data) => columns(data, "data")?,
        None if operation == Operation::Delete => Fields::new(),
        None => return Err(Refusal::malformed("data", "it is missing")),
    };
    Ok(Given {
        id: Id::Given(id),
        operation,
        table: Name::Written(table),
        key,
        data,
        data_field: "data",
        sequence: sequence(fields)?,
        origin: String::new(),
    })
}

/// The objects that JSON text is; `None` where it is something else.
pub fn object(text: &str) -> Option<Object<'_>> {
    serde_json::from_str(text).ok()
}

fn columns<'a>(text: &'a str, field: &str) -> Checked<Fields<'a>> {
    let object =
        object(text).ok_or_else(|| Refusal::malformed(field, "it is not a JSON object"))?;
    let columns = object.into_iter();
    Ok(columns
        .map(|(name, value)| (name, Cow::Borrowed(value.get())))
        .collect())
}

/// The text of a field that is there and not null.
pub fn given<'a>(fields: &Object<'a>, name: &str) -> Option<&'a str> {
    let value = fields.get(name)?.get();
    (value != "null").then_some(value)
}

/// The string that a field holds.
pub fn text(fields: &Object, name: &str) -> Checked<Option<String>> {
    let Some(value) = given(fields, name) else {
        return Ok(None);
    };
    match serde_json::from_str::<String>(value) {
        Ok(text) if !text.is_empty() => Ok(Some(text)),
        _ => Err(Refusal::malformed(name, "it is not a string, or empty")),
    }
}

/// The id of an event, a string or a number.
pub fn event_id(fields: &Object) -> Checked<Option<String>> {
    match given(fields, "event_id") {
        Some(value) if is_number(value) => Ok(Some(value.to_owned())),
        _ => text(fields, "event_id"),
    }
}

/// The place of an event among those of its row, a whole number, also as a string.
pub fn sequence(fields: &Object) -> Checked<Option<i64>> {
    given(fields, "sequence").map(whole).transpose()
}

fn whole(value: &str) -> Checked<i64> {
    let number = value.trim_matches('"').parse::<i64>();
    number.map_err(|_| {
        let reason =
            "it is not a whole number between -9223372036854775808 and 9223372036854775807";
        Refusal::malformed("sequence", reason)
    })
}

fn is_number(value: &str) -> bool {
    value.starts_with(|first: char| first == '-' || first.is_ascii_digit())
}

fn is_scalar(value: &str) -> bool {
    !value.starts_with(['{', '['])
}

/// Whether two JSON texts say the same key: 42 and "42" do.
pub fn say_the_same(one: &str, other: &str) -> bool {
    one == other || one.trim_matches('"') == other.trim_matches('"')
}

#[cfg(test)]
#[path = "given_tests.rs"]
mod tests;
