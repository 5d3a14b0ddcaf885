//! What NOTIFY says of events: JSON below its limit of 8,000 bytes, in as many parts as it takes.
//!
//! It never says half of a key: one that fits nowhere is left out, and how many are is said.

use serde_json::{Map, Value, json};

/// PostgreSQL's limit is 8,000 bytes with the byte that ends the text.
pub const MOST_BYTES: usize = 7_900;

/// What the payloads for one batch of events are: `about` is the same in each of them, `keys` are spread over them.
pub fn payloads(about: &Map<String, Value>, keys: &[Value]) -> Vec<String> {
    let payload = |keys: &[&Value], omitted: usize| {
        let mut payload = about.clone();
        payload.insert("keys".to_owned(), json!(keys));
        if omitted > 0 {
            payload.insert("omitted".to_owned(), json!(omitted));
        }
        Value::Object(payload).to_string()
    };
    // With room for the word and a number.
    let room = MOST_BYTES.saturating_sub(payload(&[], usize::MAX).len());
    let mut payloads = Vec::new();
    let (mut part, mut bytes, mut omitted) = (Vec::new(), 0, 0);
    for key in keys {
        let length = key.to_string().len() + 1;
        if length > room {
            omitted += 1;
            continue;
        }
        if bytes + length > room {
            payloads.push(payload(&part, 0));
            (part, bytes) = (Vec::new(), 0);
        }
        part.push(key);
        bytes += length;
    }
    payloads.push(payload(&part, omitted));
    payloads
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about() -> Map<String, Value> {
        let about = json!({"event": "embedded", "source": "public.item_embedding"});
        about.as_object().unwrap().clone()
    }

    #[test]
    fn keys_are_spread_over_payloads_that_are_short_enough() {
        let keys: Vec<Value> = (0..5_000).map(|n| json!(format!("käy\"{n}"))).collect();
        let payloads = payloads(&about(), &keys);
        assert!(payloads.len() > 5);
        let mut seen = Vec::new();
        for payload in payloads {
            assert!(payload.len() <= MOST_BYTES, "{}", payload.len());
            let payload: Value = serde_json::from_str(&payload).unwrap();
            assert_eq!(payload["event"], "embedded");
            seen.extend(payload["keys"].as_array().unwrap().clone());
        }
        assert_eq!(seen, keys);
    }

    #[test]
    fn a_key_that_fits_nowhere_is_counted() {
        let long = json!("x".repeat(MOST_BYTES));
        let payloads = payloads(&about(), &[json!("1"), long, json!("2")]);
        assert_eq!(payloads.len(), 1);
        let payload: Value = serde_json::from_str(&payloads[0]).unwrap();
        assert_eq!(payload["keys"], json!(["1", "2"]));
        assert_eq!(payload["omitted"], 1);
        assert!(payloads[0].len() <= MOST_BYTES);
    }

    #[test]
    fn an_event_without_keys_is_said_once() {
        assert_eq!(payloads(&about(), &[]).len(), 1);
    }
}
