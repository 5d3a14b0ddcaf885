//! What a hook may hear of, and what can be said of each event.
//!
//! It never sends anything, and nothing in an event is the text of a row.

use serde_json::{Map, Value, json};

/// The scope of everything that is made of what others did: neighbours and models.
pub const COLLABORATIVE: &str = "collab_recs:*";
/// The scope of one user's lists is this and their id.
pub const USER: &str = "user_recs:";
/// Instead of an id: of all users.
const ALL: &str = "*";

/// What a hook may hear of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Vectors of rows of a pipeline were stored: `keys` are those of the rows.
    Embedded,
    /// Lists of a recommender that somebody has kept are not those of now: `keys` are scopes.
    Invalidated,
    /// A model of a recommender was trained, or a pipeline's vectors are those of another generation.
    Generation,
    /// Rows of a pipeline or recommender were given up: `keys` are theirs.
    DeadLetter,
    /// So much of a server's budget is spent.
    Budget,
}

/// What a placeholder stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A text, or a number, or null.
    Scalar,
    /// A JSON array.
    List,
}

const COMMON: &[(&str, Kind)] = &[
    ("id", Kind::Scalar),
    ("event", Kind::Scalar),
    ("hook", Kind::Scalar),
    ("source", Kind::Scalar),
    ("timestamp", Kind::Scalar),
    ("keys", Kind::List),
];

impl Event {
    pub const ALL: [Event; 5] = [
        Event::Embedded,
        Event::Invalidated,
        Event::Generation,
        Event::DeadLetter,
        Event::Budget,
    ];

    /// The word for SQL.
    pub fn as_str(self) -> &'static str {
        match self {
            Event::Embedded => "embedded",
            Event::Invalidated => "invalidated",
            Event::Generation => "generation",
            Event::DeadLetter => "dead_letter",
            Event::Budget => "budget",
        }
    }

    pub fn find(word: &str) -> Option<Event> {
        Event::ALL.into_iter().find(|event| event.as_str() == word)
    }

    /// Whether pipelines have such events, and whether recommenders do.
    pub fn is_of(self) -> (bool, bool) {
        match self {
            Event::Embedded | Event::Budget => (true, false),
            Event::Invalidated => (false, true),
            Event::Generation | Event::DeadLetter => (true, true),
        }
    }

    /// What only this event has.
    fn own(self) -> &'static [(&'static str, Kind)] {
        match self {
            Event::Embedded => &[],
            Event::Invalidated => &[("users", Kind::List)],
            Event::Generation => &[("model", Kind::Scalar), ("generation", Kind::Scalar)],
            Event::DeadLetter => &[("class", Kind::Scalar), ("status", Kind::Scalar)],
            Event::Budget => &[
                ("server", Kind::Scalar),
                ("spent", Kind::Scalar),
                ("budget", Kind::Scalar),
                ("currency", Kind::Scalar),
            ],
        }
    }

    /// What a body may ask for.
    pub fn placeholders(self) -> impl Iterator<Item = (&'static str, Kind)> {
        COMMON.iter().chain(self.own()).copied()
    }

    /// The body where none is given: type, timestamp and data, as Standard Webhooks recommends.
    pub fn usual_body(self) -> Value {
        let mut data = Map::new();
        for name in ["hook", "source", "keys"] {
            data.insert(name.to_owned(), json!(format!("{{{{{name}}}}}")));
        }
        for (name, _) in self.own() {
            data.insert((*name).to_owned(), json!(format!("{{{{{name}}}}}")));
        }
        json!({"type": "{{event}}", "timestamp": "{{timestamp}}", "data": data})
    }
}

/// The ids of the users that scopes are of.
pub fn users(scopes: &[Value]) -> Vec<Value> {
    let texts = scopes.iter().filter_map(Value::as_str);
    let users = texts.filter_map(|scope| scope.strip_prefix(USER));
    let users = users.filter(|user| *user != ALL);
    users.map(|user| json!(user)).collect()
}
