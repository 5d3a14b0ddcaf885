use super::*;
use crate::embed::endpoint::Purpose;
use crate::embed::failure::Class;
use crate::embed::testing::{KEY, Server, ask, endpoint, refused, request};

#[test]
fn a_request_holds_model_inputs_with_prefix_and_extras() {
    let endpoint = endpoint(
        "http://x",
        &[
            ("query_prefix", "query: "),
            ("extra_body", r#"{"user":"recsync"}"#),
            ("send_dimensions", "true"),
        ],
    );
    let inputs = ["a \"b\"\n", "ä"];
    let body = request(&endpoint, &inputs, Purpose::Query, Encoding::Base64);
    assert_eq!(
        body,
        serde_json::json!({
            "model": "test",
            "input": ["query: a \"b\"\n", "query: ä"],
            "encoding_format": "base64",
            "dimensions": 3,
            "user": "recsync",
        })
    );
    let body = request(&endpoint, &inputs, Purpose::Document, Encoding::Float);
    assert_eq!(body["input"][1], "ä");
    assert_eq!(body["encoding_format"], "float");
}

/// Source: OpenAI API reference, "Create embeddings", example response, of which three numbers
/// are kept; https://github.com/openai/openai-openapi, openapi.yaml; taken 2026-11-23.
const ANSWER: &str = r#"{
  "object": "list",
  "data": [
    {
      "object": "embedding",
      "embedding": [0.0023064255, -0.009327292, -0.0028842222],
      "index": 0
    }
  ],
  "model": "text-embedding-ada-002",
  "usage": {"prompt_tokens": 8, "total_tokens": 8}
}"#;

#[test]
fn the_documented_answer_is_read_with_tokens_and_limits() {
    let headers = "x-ratelimit-remaining-requests: 59\r\nx-ratelimit-remaining-tokens: 149984\r\n";
    let server = Server::always(200, headers, ANSWER);
    let text = ["The food was delicious and the waiter..."];
    let embeddings = ask(&server, &[], &text, Purpose::Document).unwrap();
    assert_eq!(
        embeddings.vectors,
        [[0.002_306_425_5, -0.009_327_292, -0.002_884_222_2]]
    );
    assert_eq!(embeddings.tokens, 8);
    assert_eq!(embeddings.limits.remaining_requests, Some(59));
    assert_eq!(embeddings.limits.remaining_tokens, Some(149_984));
    let seen = server.seen().remove(0);
    assert_eq!(seen.path, "/v1/embeddings");
    let bearer = format!("Bearer {KEY}");
    assert_eq!(seen.header("authorization"), Some(bearer.as_str()));
}

/// Sources: https://help.openai.com/en/articles/6891839-api-error-codes for statuses and messages,
/// and the schema "Error" of openapi.yaml (message, type, param, code); the two of status 400 are
/// the service's own words; taken 2026-11-23.
#[test]
fn documented_errors_are_told_apart() {
    let error = |message: &str, kind: &str, param: &str, code: &str| {
        format!(
            r#"{{"error":{{"message":"{message}","type":"{kind}","param":{param},"code":{code}}}}}"#
        )
    };
    for (status, body, class, rate_limited) in [
        (
            429,
            error(
                "Rate limit reached for requests",
                "requests",
                "null",
                "\"rate_limit_exceeded\"",
            ),
            Class::Provider,
            true,
        ),
        (
            429,
            error(
                "You exceeded your current quota, please check your plan and billing details",
                "insufficient_quota",
                "null",
                "\"insufficient_quota\"",
            ),
            Class::Provider,
            true,
        ),
        (
            401,
            error(
                "Incorrect API key provided",
                "invalid_request_error",
                "null",
                "\"invalid_api_key\"",
            ),
            Class::Configuration,
            false,
        ),
        (
            400,
            error(
                "This model's maximum context length is 8192 tokens",
                "invalid_request_error",
                "\"input\"",
                "null",
            ),
            Class::Permanent,
            false,
        ),
        (
            400,
            error(
                "This model does not support specifying dimensions.",
                "invalid_request_error",
                "\"dimensions\"",
                "null",
            ),
            Class::Configuration,
            false,
        ),
        (
            500,
            error(
                "The server had an error while processing your request",
                "server_error",
                "null",
                "null",
            ),
            Class::Provider,
            false,
        ),
    ] {
        let headers = "x-ratelimit-remaining-tokens: 0\r\nx-ratelimit-reset-tokens: 6m0s\r\n";
        let failure = refused(&Server::always(status, headers, &body), &[]);
        assert_eq!((failure.class, failure.rate_limited), (class, rate_limited));
        assert_eq!(failure.status, Some(status));
        assert_eq!(failure.limits.wait_for(1).as_secs(), 360);
        assert!(failure.message.starts_with("the server answered"));
    }
}

#[test]
fn base64_is_asked_for_by_a_member_that_may_be_refused() {
    let refusal = r#"{"error":{"message":"Unknown parameter: encoding_format"}}"#;
    let server = Server::new(|seen| match seen.json()["encoding_format"].as_str() {
        Some("base64") => (422, String::new(), refusal.to_owned()),
        _ => (200, String::new(), ANSWER.to_owned()),
    });
    assert!(ask(&server, &[], &["a"], Purpose::Query).is_ok());
    assert_eq!(server.seen().len(), 2);
    let elsewhere = Server::always(500, "", refusal);
    assert_eq!(refused(&elsewhere, &[]).status, Some(500));
    assert_eq!(elsewhere.seen().len(), 1);
}
