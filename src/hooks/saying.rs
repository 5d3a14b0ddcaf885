//! What is said of an event that is to be told: the letter, and what NOTIFY says.
//!
//! It never decides when.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::event::{Event, users};
use super::hook::Hook;
use super::outbox::Stored;
use super::{body, notice};
use crate::embed::webhook::Letter;

/// What NOTIFY says together.
struct Batch {
    about: Map<String, Value>,
    keys: Vec<Value>,
    known: HashSet<String>,
}

/// By what a letter keeps its place: its keys; one without keys is of its source.
pub fn order_keys(stored: &Stored) -> Vec<String> {
    match stored.keys.as_slice() {
        [] => vec![stored.source.clone()],
        keys => keys
            .iter()
            .map(|key| format!("{} {key}", stored.source))
            .collect(),
    }
}

/// What placeholders stand for.
fn values(hook: &Hook, stored: &Stored) -> Map<String, Value> {
    let mut values = stored.data.clone();
    for (name, value) in [
        ("id", json!(message_id(stored))),
        ("event", json!(hook.event().as_str())),
        ("hook", json!(hook.name)),
        ("source", json!(stored.source)),
        ("timestamp", json!(stored.created_at)),
        ("keys", json!(stored.keys)),
    ] {
        values.insert(name.to_owned(), value);
    }
    if hook.event() == Event::Invalidated {
        values.insert("users".to_owned(), json!(users(&stored.keys)));
    }
    values
}

fn message_id(stored: &Stored) -> String {
    format!("msg_{}", stored.message_id)
}

/// `None` where there is nothing to say: its body is of a list that is empty here.
pub fn letter_of(hook: &Hook, stored: &Stored) -> Option<Letter> {
    let (template, values) = (hook.body(), values(hook, stored));
    if hook.has_own_body() && body::says_nothing(&template, &values) {
        return None;
    }
    Some(Letter {
        method: hook.method.clone(),
        path: hook.path.clone(),
        id: message_id(stored),
        body: body::fill(&template, &values).to_string(),
    })
}

/// What NOTIFY says of events: those of one source that say nothing but keys are said together, each key once.
pub fn coalesced<'a>(hook: &Hook, events: impl Iterator<Item = &'a Stored>) -> Vec<String> {
    let mut batches: Vec<Batch> = Vec::new();
    for stored in events {
        let mut about = stored.data.clone();
        about.insert("event".to_owned(), json!(hook.event().as_str()));
        about.insert("hook".to_owned(), json!(hook.name));
        about.insert("source".to_owned(), json!(stored.source));
        if batches.last().is_none_or(|last| last.about != about) {
            batches.push(Batch {
                about,
                keys: Vec::new(),
                known: HashSet::new(),
            });
        }
        if let Some(batch) = batches.last_mut() {
            let new = stored.keys.iter();
            let new = new.filter(|key| batch.known.insert(key.to_string()));
            batch.keys.extend(new.cloned());
        }
    }
    let payloads = batches.iter();
    payloads
        .flat_map(|batch| notice::payloads(&batch.about, &batch.keys))
        .collect()
}
