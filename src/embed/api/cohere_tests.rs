use super::*;
use crate::embed::endpoint::Purpose;
use crate::embed::testing::{KEY, Server, ask, endpoint, refused, request};

const COHERE: (&str, &str) = ("api", "cohere");

/// Source: https://docs.cohere.com/reference/embed, example "Texts", of which three numbers are
/// kept; https://github.com/cohere-ai/cohere-developer-experience, cohere-openapi.yaml; taken
/// 2026-11-23.
const FLOATS: &str = r#"{
  "id": "da6e531f-54c6-4a73-bf92-f60566d8d753",
  "embeddings": {
    "float": [
      [0.016296387, -0.008354187, -0.04699707],
      [-0.046020508, -0.0017137527, -0.014457703]
    ]
  },
  "texts": ["hello", "goodbye"],
  "meta": {
    "api_version": {"version": "2", "is_experimental": true},
    "billed_units": {"input_tokens": 2},
    "warnings": ["You are using an experimental version"]
  },
  "response_type": "embeddings_by_type"
}"#;

#[test]
fn the_documented_answer_is_read_in_the_order_of_the_inputs() {
    let server = Server::always(200, "", FLOATS);
    let inputs = ["hello", "goodbye"];
    let embeddings = ask(&server, &[COHERE], &inputs, Purpose::Document).unwrap();
    assert_eq!(embeddings.vectors[0][0], 0.016_296_387);
    assert_eq!(embeddings.vectors[1][0], -0.046_020_508);
    assert_eq!(embeddings.tokens, 2);
    let seen = server.seen().remove(0);
    assert_eq!(seen.path, "/v1/embed");
    let bearer = format!("Bearer {KEY}");
    assert_eq!(seen.header("authorization"), Some(bearer.as_str()));
    assert_eq!(seen.json()["texts"], serde_json::json!(inputs));
}

/// The reference says of `embeddings.base64`: "Each string is the result of appending the float
/// embedding bytes together and base64 encoding that."
#[test]
fn base64_is_read_where_it_was_asked_for() {
    let body = r#"{"embeddings":{"base64":["AACAPwAAAEAAAEBA"]},"meta":{}}"#;
    let server = Server::always(200, "", body);
    let embeddings = ask(&server, &[COHERE], &["a"], Purpose::Query).unwrap();
    assert_eq!(embeddings.vectors, [[1.0, 2.0, 3.0]]);
}

#[test]
fn a_request_tells_its_purpose_and_is_not_cut() {
    let plain = endpoint("http://x", &[COHERE, ("send_dimensions", "on")]);
    assert_eq!(
        request(&plain, &["a"], Purpose::Query, Encoding::Base64),
        serde_json::json!({
            "model": "test",
            "texts": ["a"],
            "embedding_types": ["base64"],
            "output_dimension": 3,
            "input_type": "search_query",
            "truncate": "NONE",
        })
    );
    let extra = r#"{"input_type": "clustering", "truncate": "END"}"#;
    let endpoint = endpoint("http://x", &[COHERE, ("extra_body", extra)]);
    let body = request(&endpoint, &["a"], Purpose::Document, Encoding::Float);
    assert_eq!(body["input_type"], "clustering");
    assert_eq!(body["truncate"], "END");
    assert_eq!(body["embedding_types"], serde_json::json!(["float"]));
}

#[test]
fn an_answer_may_hold_the_texts_however_they_are_escaped() {
    let text = "\u{1}".repeat(100_000);
    let escaped = "\\u0001".repeat(100_000);
    let body = format!(r#"{{"texts":["{escaped}"],"embeddings":{{"float":[[1,2,3]]}}}}"#);
    let server = Server::always(200, "", &body);
    assert!(ask(&server, &[COHERE], &[text.as_str()], Purpose::Document).is_ok());
}

/// Source: https://docs.cohere.com/reference/errors, example messages, and the responses of
/// cohere-openapi.yaml ({id, message}; 498 "a deny-listed token"); taken 2026-11-23.
#[test]
fn documented_errors_are_told_apart() {
    for (status, message, class) in [
        (
            400,
            "invalid request: total number of texts must be at most 96 - received 104",
            Class::Permanent,
        ),
        (401, "invalid api token", Class::Configuration),
        (
            402,
            "Please add or update your payment method at https://dashboard.cohere.com/billing?tab=payment to continue",
            Class::Configuration,
        ),
        (
            404,
            "model 'xyz' not found, make sure the correct model ID was used and that you have access to the model.",
            Class::Configuration,
        ),
        (
            429,
            "You are past the per minute request limit, please wait and try again later.",
            Class::Provider,
        ),
        (498, "blocked", Class::Permanent),
        (499, "request cancelled", Class::Temporary),
        (503, "service unavailable", Class::Provider),
    ] {
        let body = format!(r#"{{"id":"0","message":"{message}"}}"#);
        let failure = refused(&Server::always(status, "", &body), &[COHERE]);
        assert_eq!(failure.class, class, "{message}");
        assert!(failure.message.contains(message), "{failure}");
    }
}
