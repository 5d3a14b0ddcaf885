use super::*;
use crate::embed::endpoint::Purpose;
use crate::embed::testing::{KEY, Server, ask, endpoint, refused, request};

const VOYAGE: (&str, &str) = ("api", "voyage");

/// Source: https://docs.voyageai.com/reference/embeddings-api, the response's fields (object, data
/// of {object, embedding, index}, model, usage of {total_tokens}), in the order of a server that
/// answers out of order; taken 2026-11-23.
const ANSWER: &str = r#"{
  "object": "list",
  "data": [
    {"object": "embedding", "embedding": "AACAPwAAAEAAAEBA", "index": 1},
    {"object": "embedding", "embedding": [0.0046, 0.0121, -0.0087], "index": 0}
  ],
  "model": "voyage-3.5",
  "usage": {"total_tokens": 10}
}"#;

#[test]
fn the_documented_answer_is_read_by_index() {
    let server = Server::always(200, "", ANSWER);
    let inputs = ["I like cats", "I also like dogs"];
    let embeddings = ask(&server, &[VOYAGE], &inputs, Purpose::Document).unwrap();
    assert_eq!(
        embeddings.vectors,
        [[0.0046, 0.0121, -0.0087], [1.0, 2.0, 3.0]]
    );
    assert_eq!(embeddings.tokens, 10);
    let seen = server.seen().remove(0);
    assert_eq!(seen.path, "/v1/embeddings");
    let bearer = format!("Bearer {KEY}");
    assert_eq!(seen.header("authorization"), Some(bearer.as_str()));
}

#[test]
fn a_request_tells_its_purpose_and_is_not_cut() {
    let plain = endpoint("http://x", &[VOYAGE, ("send_dimensions", "on")]);
    assert_eq!(
        request(&plain, &["a"], Purpose::Query, Encoding::Base64),
        serde_json::json!({
            "model": "test",
            "input": ["a"],
            "encoding_format": "base64",
            "output_dimension": 3,
            "input_type": "query",
            "truncation": false,
        })
    );
    let extra = r#"{"input_type": null, "truncation": true}"#;
    let body = request(
        &endpoint("http://x", &[VOYAGE, ("extra_body", extra)]),
        &["a"],
        Purpose::Document,
        Encoding::Float,
    );
    assert_eq!(
        body,
        serde_json::json!({"model": "test", "input": ["a"], "input_type": null, "truncation": true})
    );
}

/// Sources: https://docs.voyageai.com/docs/error-codes and
/// https://www.mongodb.com/docs/voyageai/api-reference/overview ("exceeding token limits or batch
/// sizes … 400"), with the service's own words, which stand in `detail`; taken 2026-11-23.
#[test]
fn documented_errors_are_told_apart() {
    for (status, detail, class) in [
        (
            400,
            "Request to model 'voyage-3.5' failed. The max allowed tokens per submitted batch is 320000. Your batch has 327609 tokens after truncation.",
            Class::Permanent,
        ),
        (
            400,
            "Model test is not supported. Supported models are ['voyage-3.5', 'voyage-3.5-lite'].",
            Class::Configuration,
        ),
        (401, "Provided API key is invalid.", Class::Configuration),
        (403, "Forbidden", Class::Configuration),
        (
            429,
            "You have exceeded your rate limits of 2000 RPM.",
            Class::Provider,
        ),
        (502, "Bad gateway", Class::Provider),
    ] {
        let body = format!(r#"{{"detail":"{detail}"}}"#);
        let failure = refused(&Server::always(status, "", &body), &[VOYAGE]);
        assert_eq!(failure.class, class, "{detail}");
        assert!(failure.message.contains(detail), "{failure}");
        assert_eq!(failure.rate_limited, status == 429);
    }
}
