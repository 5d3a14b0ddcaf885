//! What a list is asked for, beside whose it is.
//!
//! An argument is a field here, an argument in functions.sql and one of the typed functions'
//! (catalog/recommender/functions.rs). It comes as JSON, so that typed functions that were made before it was one go on.
//! It never holds whose list it is.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

use crate::error::{Error, Result};

#[derive(Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Question {
    pub k: usize,
    /// Pages of a list are the same list.
    #[serde(skip_serializing)]
    pub skip: usize,
    pub filter: Option<Value>,
    pub exclude_seen: bool,
    /// How much what is alike is kept apart.
    pub diversity: f64,
    /// How many of one value of a column there may be.
    pub max_per: BTreeMap<String, usize>,
    /// Share of the places that are for items with few interactions.
    pub explore: f64,
    session_items: Vec<Option<String>>,
    /// What makes items alike.
    pub by: Option<String>,
    #[serde(skip_serializing)]
    pub explain: bool,
    /// Interactions of so many seconds count.
    pub since: Option<f64>,
}

impl Default for Question {
    fn default() -> Question {
        Question {
            k: 10,
            skip: 0,
            filter: None,
            exclude_seen: true,
            diversity: 0.0,
            max_per: BTreeMap::new(),
            explore: 0.0,
            session_items: Vec::new(),
            by: None,
            explain: false,
            since: None,
        }
    }
}

impl Question {
    /// What was asked; a NULL is what was not said.
    pub fn of(mut asked: Value) -> Result<Question> {
        if let Value::Object(arguments) = &mut asked {
            arguments.retain(|_, value| !value.is_null());
        }
        let wrong = |argument: &str, right: &dyn Fn(&Value) -> bool| {
            asked.get(argument).is_some_and(|given| !right(given))
        };
        let within = |number: &Value, least: f64, most: f64| {
            number.as_f64().is_some_and(|n| (least..=most).contains(&n))
        };
        if wrong("k", &|k| within(k, 1.0, 10_000.0)) {
            return Err(Error::argument(
                "k",
                "so many rows cannot be asked for",
                "Give 1 to 10000.",
            ));
        }
        if wrong("skip", &|skip| within(skip, 0.0, 100_000.0)) {
            return Err(Error::argument(
                "skip",
                "so many rows cannot be left out",
                "Give 0 to 100000.",
            ));
        }
        if wrong("diversity", &|share| within(share, 0.0, 1.0)) {
            return Err(Error::argument(
                "diversity",
                "it is no share",
                "Give 0 (by score alone) to 1, for example 0.3.",
            ));
        }
        if wrong("explore", &|share| within(share, 0.0, 1.0)) {
            return Err(Error::argument(
                "explore",
                "it is no share",
                "Give 0 to 1, for example 0.1 for one of ten.",
            ));
        }
        if wrong("since", &|seconds| {
            within(seconds, f64::MIN_POSITIVE, f64::MAX)
        }) {
            return Err(Error::argument(
                "since",
                "it is no time that can have passed",
                "Give a positive interval such as 7 days.",
            ));
        }
        let limits = |per: &Value| {
            let limits = per.as_object();
            limits.is_some_and(|limits| limits.values().all(|most| within(most, 1.0, 10_000.0)))
        };
        if wrong("max_per", &limits) {
            return Err(Error::argument(
                "max_per",
                "it is not a JSON object from columns to numbers of items",
                r#"For example {"brand": 2}, with numbers of 1 to 10000."#,
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

    /// Rows of the list up to where the page ends.
    pub fn up_to(&self) -> usize {
        self.skip + self.k
    }

    /// Whether it is made of what the user has done alone, and listed by score alone.
    pub fn is_plain(&self) -> bool {
        self.session_items.is_empty()
            && self.exclude_seen
            && self.diversity == 0.0
            && self.explore == 0.0
    }

    /// Keys of the items of the session, as text.
    pub fn session(&self) -> Vec<String> {
        self.session_items.iter().flatten().cloned().collect()
    }
}
