//! An event and its table, together: which columns of which row it writes.
//!
//! It never looks at a value, but to see whether a key is there.

use pgrx::PgSqlErrorCode;
use pgrx::datum::Uuid;
use std::borrow::Cow;
use std::rc::Rc;

use super::given::{Checked, Fields, Given, Id, Key, Operation, Refusal, say_the_same};
use super::register::Register;
use super::target::{Target, Verb};

/// An event that can be tried.
pub struct Prepared {
    /// Among the events of the call, from 0.
    pub position: usize,
    pub id: String,
    /// In the register.
    pub event: Uuid,
    pub target: Rc<Target>,
    pub verb: Verb,
    /// What of the table is written, in its order.
    pub columns: Vec<usize>,
    /// These columns as a JSON object.
    pub row: String,
    /// The key's values as JSON, where it is known.
    pub key: Option<String>,
    pub sequence: Option<i64>,
    pub origin: String,
    /// The key in the register, where it has a sequence.
    pub ordered: Option<Uuid>,
}

pub fn prepare(
    position: usize,
    given: Given,
    target: Rc<Target>,
    register: &Register,
) -> Checked<Prepared> {
    let row = row_of(&given, &target)?;
    let key = key_of(&given, &target, &row)?;
    let mut columns: Vec<usize> = row.keys().filter_map(|name| target.column(name)).collect();
    columns.sort_unstable();
    let verb = match given.operation {
        Operation::Insert | Operation::Upsert => Verb::Write,
        Operation::Update => Verb::Update,
        Operation::Delete => Verb::Delete,
    };
    if columns.is_empty() || verb == Verb::Update && !target.can_set(&columns) {
        return Err(Refusal::malformed(
            given.data_field,
            "there is nothing to be written in it",
        ));
    }
    let id = match given.id {
        Id::Given(id) => id,
        Id::Position(position) => format!("{position}:{}", key.as_deref().unwrap_or_default()),
    };
    Ok(Prepared {
        position,
        event: register.event(target.oid, &id),
        id,
        verb,
        columns,
        row: json(&row),
        ordered: None,
        sequence: given.sequence.filter(|_| key.is_some()),
        key,
        origin: given.origin,
        target,
    })
}

/// Data and key, without what PostgreSQL computes; of a deletion the key alone.
fn row_of<'a>(given: &Given<'a>, target: &Target) -> Checked<Fields<'a>> {
    let mut row = Fields::new();
    for (name, value) in &given.data {
        let is_key = target.is_key(name);
        if given.operation == Operation::Delete && !is_key {
            continue;
        }
        let field = || format!("{}.{name}", given.data_field);
        let number = target.column(name).ok_or_else(|| {
            let reason = format!("{} has no such column", target.name);
            Refusal::malformed(field(), reason).with_code(PgSqlErrorCode::ERRCODE_UNDEFINED_COLUMN)
        })?;
        if is_key || !target.columns[number].generated {
            row.insert(name.clone(), value.clone());
        }
    }
    let single;
    let key = match (&given.key, target.keys.as_slice()) {
        (Key::Single(value), [key]) => {
            single = Fields::from([(key.name.clone(), value.clone())]);
            &single
        }
        (Key::Single(_), _) => {
            let reason = format!(
                "the primary key of {} has several columns: give key, an object of them",
                target.name
            );
            return Err(Refusal::malformed("record_id", reason));
        }
        (Key::Columns(columns), _) => columns,
        (Key::InData, _) => return Ok(row),
    };
    for (name, value) in key {
        if !target.is_key(name) {
            let reason = format!("it is no column of the primary key of {}", target.name);
            return Err(Refusal::malformed(format!("key.{name}"), reason));
        }
        match row.get(name) {
            Some(other) if !say_the_same(other, value) => {
                let field = format!("{}.{name}", given.data_field);
                return Err(Refusal::malformed(field, "it is not what the key says"));
            }
            _ => row.insert(name.clone(), value.clone()),
        };
    }
    Ok(row)
}

/// The key's values; only what is inserted may be without, and gets one by its columns' defaults.
fn key_of(given: &Given, target: &Target, row: &Fields) -> Checked<Option<String>> {
    let mut values = Vec::new();
    for key in &target.keys {
        match row.get(&key.name) {
            Some(value) if value != "null" => values.push(value.as_ref()),
            _ if given.operation == Operation::Insert => return Ok(None),
            _ => {
                let field = match given.key {
                    Key::InData if given.data_field == "data" => "record_id".to_owned(),
                    Key::InData => format!("{}.{}", given.data_field, key.name),
                    Key::Single(_) => "record_id".to_owned(),
                    Key::Columns(_) => format!("key.{}", key.name),
                };
                return Err(Refusal::malformed(field, "the row's key is not there"));
            }
        }
    }
    Ok(Some(format!("[{}]", values.join(","))))
}

fn json(row: &Fields) -> String {
    let fields = row.iter().map(|(name, value): (&String, &Cow<str>)| {
        format!("{}:{value}", serde_json::Value::from(name.as_str()))
    });
    format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
}
