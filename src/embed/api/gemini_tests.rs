use std::time::Duration;

use super::*;
use crate::embed::endpoint::{Encoding, Purpose};
use crate::embed::provider::embed_once;
use crate::embed::testing::{
    Directory, KEY, Server, ask, endpoint, options, refused, request, texts,
};

const GEMINI: (&str, &str) = ("api", "gemini");

/// Source: https://ai.google.dev/api/embeddings, methods models.batchEmbedContents ("embeddings[]:
/// in the same order as provided in the batch request"), ContentEmbedding and
/// EmbeddingUsageMetadata; taken 2026-11-23.
const ANSWER: &str = r#"{
  "embeddings": [
    {"values": [-0.010632273, 0.019375853, 0.020965198]},
    {"values": [0.018467998, 0.0054281196, -0.017658804]}
  ],
  "usageMetadata": {
    "promptTokenCount": 14,
    "promptTokenDetails": [{"modality": "TEXT", "tokenCount": 14}]
  }
}"#;

#[test]
fn the_documented_answer_is_read_in_the_order_of_the_inputs() {
    let server = Server::always(200, "", ANSWER);
    let inputs = ["What is the meaning of life?", "How does the brain work?"];
    let more = [
        GEMINI,
        ("model", "models/gemini-embedding-001"),
        ("send_dimensions", "on"),
    ];
    let three = [("dimensions", "128")];
    let short = ask(
        &server,
        &[&more[..], &three].concat(),
        &inputs,
        Purpose::Query,
    );
    assert_eq!(short.unwrap_err().class, Class::Configuration);
    let seen = server.seen().remove(0);
    assert_eq!(
        seen.path,
        "/v1/models/gemini-embedding-001:batchEmbedContents"
    );
    assert_eq!(seen.header("x-goog-api-key"), Some(KEY));
    assert_eq!(seen.header("authorization"), None);
    assert!(!seen.path.contains(KEY));
    let embeddings = ask(&server, &[GEMINI], &inputs, Purpose::Document).unwrap();
    assert_eq!(embeddings.vectors[0][0], -0.010_632_273);
    assert_eq!(embeddings.vectors[1][0], 0.018_467_998);
    assert_eq!(embeddings.tokens, 14);
}

#[test]
fn each_text_is_a_request_with_model_task_and_dimensions() {
    let more = [GEMINI, ("send_dimensions", "on"), ("document_prefix", "> ")];
    let body = request(
        &endpoint("http://x", &more),
        &["a", "b"],
        Purpose::Document,
        Encoding::Float,
    );
    let entry = |text: &str| {
        serde_json::json!({
            "model": "models/test",
            "content": {"parts": [{"text": text}]},
            "taskType": "RETRIEVAL_DOCUMENT",
            "outputDimensionality": 3,
        })
    };
    assert_eq!(
        body,
        serde_json::json!({"requests": [entry("> a"), entry("> b")]})
    );
    let extra = ("extra_body", r#"{"taskType": "SEMANTIC_SIMILARITY"}"#);
    let endpoint = endpoint("http://x", &[GEMINI, extra]);
    let body = request(&endpoint, &["a"], Purpose::Query, Encoding::Float);
    assert_eq!(body["requests"][0]["taskType"], "SEMANTIC_SIMILARITY");
}

#[test]
fn a_model_cannot_lead_elsewhere() {
    let given = [GEMINI, ("model", "../x?y#z"), ("dimensions", "3")];
    let endpoint = Endpoint::from_options(&options(&given), &[]).unwrap();
    assert_eq!(
        endpoint.request_url(),
        "https://generativelanguage.googleapis.com/v1beta/models/..%2Fx%3Fy%23z:batchEmbedContents"
    );
}

/// Sources: https://ai.google.dev/gemini-api/docs/troubleshooting, "Error codes", and google.rpc's
/// error_details.proto (ErrorInfo, RetryInfo), with the service's own words; taken 2026-11-23.
#[test]
fn documented_errors_are_told_apart() {
    let invalid_key = r#"{"error":{"code":400,"message":"API key not valid. Please pass a valid API key.","status":"INVALID_ARGUMENT","details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"API_KEY_INVALID","domain":"googleapis.com"}]}}"#;
    let exhausted = r#"{"error":{"code":429,"message":"You exceeded your current quota, please check your plan and billing details.","status":"RESOURCE_EXHAUSTED","details":[{"@type":"type.googleapis.com/google.rpc.Help"},{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"34.074824224s"}]}}"#;
    let too_many = r#"{"error":{"code":400,"message":"* BatchEmbedContentsRequest.requests: at most 100 requests can be in one batch\n","status":"INVALID_ARGUMENT"}}"#;
    let no_billing = r#"{"error":{"code":400,"message":"Gemini API free tier is not available in your country. Please enable billing on your project in Google AI Studio.","status":"FAILED_PRECONDITION"}}"#;
    for (status, body, class, wait) in [
        (400, invalid_key, Class::Configuration, None),
        (429, exhausted, Class::Provider, Some(34.074_824_224)),
        (400, too_many, Class::Permanent, None),
        (400, no_billing, Class::Configuration, None),
        (503, "[{}]", Class::Provider, None),
    ] {
        let failure = refused(&Server::always(status, "", body), &[GEMINI]);
        assert_eq!(failure.class, class, "{body}");
        assert_eq!(failure.retry_after, wait.map(Duration::from_secs_f64));
    }
}

#[test]
fn a_key_that_was_changed_meanwhile_is_tried_after_a_400_of_the_key() {
    let directory = std::sync::Arc::new(Directory::new());
    directory.write("k", "old-key", 0o600);
    let rotated = std::sync::Arc::clone(&directory);
    let server = Server::new(move |seen| {
        if seen.header("x-goog-api-key") == Some("new-key") {
            let answer = r#"{"embeddings":[{"values":[1,2,3]}]}"#;
            return (200, String::new(), answer.to_owned());
        }
        rotated.write("k", "new-key", 0o600);
        let body = r#"{"error":{"details":[{"reason":"API_KEY_INVALID"}]}}"#;
        (400, String::new(), body.to_owned())
    });
    let endpoint = server.endpoint(&[GEMINI, ("api_key_file", "k")]);
    let policy = directory.policy();
    assert!(embed_once(&endpoint, &policy, &texts(&["a"]), Purpose::Query).is_ok());
}
