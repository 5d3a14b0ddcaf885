//! What a list is asked for, beside whose it is.
//!
//! An argument is a field here, an argument in functions.sql and one of the typed functions'
//! (catalog/recommender/functions.rs). It comes as JSON, so that typed functions that were made before it was one go on.
//! It never holds whose list it is.

use pgrx::datum::Uuid;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::catalog::recommender::Recommender;
use crate::error::{Error, Result};

#[derive(Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Question {
    pub k: usize,
    pub filter: Option<Value>,
    pub exclude_seen: bool,
    session_items: Vec<Option<String>>,
    /// What makes items alike.
    pub by: Option<String>,
}

impl Default for Question {
    fn default() -> Question {
        Question {
            k: 10,
            filter: None,
            exclude_seen: true,
            session_items: Vec::new(),
            by: None,
        }
    }
}

impl Question {
    /// What was asked; a NULL is what was not said.
    pub fn of(mut asked: Value) -> Result<Question> {
        if let Value::Object(arguments) = &mut asked {
            arguments.retain(|_, value| !value.is_null());
        }
        if let Some(k) = asked.get("k").filter(|k| !in_range(k, 1, 10_000)) {
            return Err(Error::argument(
                "k",
                format!("{k} rows cannot be asked for"),
                "Give 1 to 10000.",
            ));
        }
        serde_json::from_value(asked).map_err(|error| {
            Error::argument(
                "asked",
                error.to_string(),
                "Call <name>_recommend, _similar and _popular, or recsync.recommend, similar and popular.",
            )
        })
    }

    /// Keys of the items of the session, as text.
    pub fn session(&self) -> Vec<String> {
        self.session_items.iter().flatten().cloned().collect()
    }

    /// The same for the same recommender, generation, user and arguments.
    pub fn list_id(&self, recommender: &Recommender, user: Option<&str>) -> Uuid {
        let asked = json!([recommender.id, recommender.backfill_round, user, self]);
        let mut bytes = [0; 16];
        for (byte, from) in bytes.iter_mut().zip(Sha256::digest(asked.to_string())) {
            *byte = from;
        }
        // A UUID of a form of one's own: version 8 of RFC 9562.
        bytes[6] = bytes[6] & 0x0f | 0x80;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Uuid::from_bytes(bytes)
    }
}

fn in_range(number: &Value, least: i64, most: i64) -> bool {
    number
        .as_i64()
        .is_some_and(|number| (least..=most).contains(&number))
}
