//! Bodies: JSON with placeholders. A string that is `{{name}}` and nothing else becomes the value of that name, a
//! list a list; in a longer string a name is replaced by its text, which lists have none of.
//!
//! It never makes JSON of text: a value cannot end a string.

use serde_json::{Map, Value};

use super::event::{Event, Kind};

/// What a body is filled with, by the placeholders' names.
pub type Values = Map<String, Value>;

enum Piece<'a> {
    Text(&'a str),
    Name(&'a str),
}

/// A string's pieces; `None` where a placeholder has no end.
fn pieces(text: &str) -> Option<Vec<Piece<'_>>> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let (name, tail) = after.split_once("}}")?;
        if !before.is_empty() {
            pieces.push(Piece::Text(before));
        }
        pieces.push(Piece::Name(name.trim()));
        rest = tail;
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest));
    }
    Some(pieces)
}

/// What is wrong with a body for an event.
pub fn check(event: Event, body: &Value) -> Result<(), String> {
    match body {
        Value::String(text) => check_text(event, text),
        Value::Array(values) => values.iter().try_for_each(|value| check(event, value)),
        Value::Object(members) => members.values().try_for_each(|value| check(event, value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
    }
}

fn check_text(event: Event, text: &str) -> Result<(), String> {
    let pieces = pieces(text).ok_or("a \"{{\" has no \"}}\"")?;
    for piece in &pieces {
        let Piece::Name(name) = piece else { continue };
        let known = event.placeholders().find(|(known, _)| known == name);
        match known {
            None => {
                return Err(format!(
                    "event {} has no \"{{{{{name}}}}}\"",
                    event.as_str()
                ));
            }
            Some((_, Kind::List)) if pieces.len() > 1 => {
                return Err(format!(
                    "\"{{{{{name}}}}}\" is a list: it has to be the whole string"
                ));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// The body with its values.
pub fn fill(body: &Value, values: &Values) -> Value {
    match body {
        Value::String(text) => fill_text(text, values),
        Value::Array(list) => list.iter().map(|value| fill(value, values)).collect(),
        Value::Object(members) => {
            let members = members.iter();
            let members = members.map(|(name, value)| (name.clone(), fill(value, values)));
            Value::Object(members.collect())
        }
        plain => plain.clone(),
    }
}

fn fill_text(text: &str, values: &Values) -> Value {
    let value = |name: &str| values.get(name).unwrap_or(&Value::Null);
    match pieces(text).unwrap_or_default().as_slice() {
        [Piece::Name(name)] => value(name).clone(),
        pieces => {
            let texts = pieces.iter().map(|piece| match piece {
                Piece::Text(text) => (*text).to_owned(),
                Piece::Name(name) => match value(name) {
                    Value::String(text) => text.clone(),
                    Value::Null => String::new(),
                    other => other.to_string(),
                },
            });
            Value::String(texts.collect())
        }
    }
}

/// Whether the body is of a list that is empty here: then there is nothing to say.
pub fn says_nothing(body: &Value, values: &Values) -> bool {
    match body {
        Value::String(text) => {
            let pieces = pieces(text).unwrap_or_default();
            let mut names = pieces.iter().filter_map(|piece| match piece {
                Piece::Name(name) => values.get(*name),
                Piece::Text(_) => None,
            });
            names.any(|value| value.as_array().is_some_and(Vec::is_empty))
        }
        Value::Array(list) => list.iter().any(|value| says_nothing(value, values)),
        Value::Object(members) => members.values().any(|value| says_nothing(value, values)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn values() -> Values {
        let values = json!({"keys": ["1", "a\"}, {\"b"], "source": "public.item", "model": null, "users": []});
        values.as_object().unwrap().clone()
    }

    #[test]
    fn a_placeholder_becomes_its_value_and_never_more_than_that() {
        let body = json!({"keys": "{{keys}}", "n": 1, "deep": [{"of": "from {{ source }}!"}], "m": "{{model}}"});
        assert_eq!(
            fill(&body, &values()),
            json!({"keys": ["1", "a\"}, {\"b"], "n": 1, "deep": [{"of": "from public.item!"}], "m": null})
        );
    }

    #[test]
    fn a_body_is_checked_by_the_event() {
        for (event, body, reason) in [
            (Event::Embedded, json!("{{keys}}"), None),
            (Event::Embedded, Event::Embedded.usual_body(), None),
            (Event::Budget, Event::Budget.usual_body(), None),
            (
                Event::Embedded,
                json!({"a": ["{{users}}"]}),
                Some("no \"{{users}}\""),
            ),
            (Event::Embedded, json!("of {{keys}}"), Some("whole string")),
            (Event::Embedded, json!("{{keys"), Some("no \"}}\"")),
            (Event::Embedded, json!("{{}}"), Some("no \"{{}}\"")),
        ] {
            let checked = check(event, &body).err();
            match reason {
                None => assert_eq!(checked, None),
                Some(reason) => assert!(checked.unwrap().contains(reason), "{body}"),
            }
        }
    }

    #[test]
    fn a_body_of_an_empty_list_says_nothing() {
        assert!(says_nothing(&json!({"user_ids": "{{users}}"}), &values()));
        assert!(!says_nothing(
            &json!({"keys": "{{keys}}", "x": []}),
            &values()
        ));
    }
}
