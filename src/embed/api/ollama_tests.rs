use super::*;
use crate::embed::endpoint::{Encoding, Purpose};
use crate::embed::testing::{Server, ask, endpoint, refused, request};

const OLLAMA: (&str, &str) = ("api", "ollama");

/// Source: https://github.com/ollama/ollama, docs/api.md, "Generate Embeddings", "Request (Multiple
/// input)", of which three numbers are kept, with `prompt_eval_count` of the first example; taken
/// 2026-11-23.
const ANSWER: &str = r#"{
  "model": "all-minilm",
  "embeddings": [
    [0.010071029, -0.0017594862, 0.05007221],
    [-0.0098027075, 0.06042469, 0.025257962]
  ],
  "total_duration": 14143917,
  "load_duration": 1019500,
  "prompt_eval_count": 16
}"#;

#[test]
fn the_documented_answer_is_read_in_the_order_of_the_inputs() {
    let server = Server::always(200, "", ANSWER);
    let base = server.url.trim_end_matches("/v1").to_owned();
    let inputs = ["Why is the sky blue?", "Why is the grass green?"];
    let more = [OLLAMA, ("url", base.as_str())];
    let embeddings = ask(&server, &more, &inputs, Purpose::Document).unwrap();
    assert_eq!(embeddings.vectors[0][0], 0.010_071_029);
    assert_eq!(embeddings.vectors[1][1], 0.060_424_69);
    assert_eq!(embeddings.tokens, 16);
    let seen = server.seen().remove(0);
    assert_eq!(seen.path, "/api/embed");
    assert_eq!(seen.inputs(), inputs);
}

#[test]
fn a_long_text_is_refused_and_not_cut_unless_extra_body_says_so() {
    let plain = endpoint("http://x", &[OLLAMA]);
    let body = request(&plain, &["a"], Purpose::Document, Encoding::Float);
    assert_eq!(
        body,
        serde_json::json!({"model": "test", "input": ["a"], "truncate": false})
    );
    let extra = r#"{"truncate": true, "keep_alive": "1h", "options": {"num_ctx": 2048}}"#;
    let more = [OLLAMA, ("extra_body", extra), ("send_dimensions", "on")];
    let body = request(
        &endpoint("http://x", &more),
        &["a"],
        Purpose::Query,
        Encoding::Float,
    );
    assert_eq!(body["truncate"], true);
    assert_eq!(body["keep_alive"], "1h");
    assert_eq!(body["dimensions"], 3);
}

#[test]
fn a_base_may_end_in_the_port_or_in_api() {
    for (url, wanted) in [
        ("http://localhost:11434", "http://localhost:11434/api/embed"),
        (
            "http://localhost:11434/",
            "http://localhost:11434/api/embed",
        ),
        (
            "http://localhost:11434/api",
            "http://localhost:11434/api/embed",
        ),
        ("http://x/ollama/api/embed", "http://x/ollama/api/embed"),
    ] {
        assert_eq!(endpoint(url, &[OLLAMA]).request_url(), wanted);
    }
}

/// Sources: https://github.com/ollama/ollama, docs/api/errors.mdx, and the messages of
/// server/routes.go, `EmbedHandler`, which answers 400 to any failure of the model; taken
/// 2026-11-23.
#[test]
fn a_400_is_the_inputs_fault_only_where_it_names_the_input() {
    for (status, message, class) in [
        (
            400,
            "the input length exceeds the context length",
            Class::Permanent,
        ),
        (400, "invalid input type", Class::Permanent),
        (
            400,
            "do embedding request: Post \\\"http://127.0.0.1:37041/embedding\\\": EOF",
            Class::Provider,
        ),
        (
            400,
            "llama runner process has terminated: signal: killed",
            Class::Provider,
        ),
        (404, "model 'test' not found", Class::Configuration),
        (
            500,
            "the model failed to generate a response",
            Class::Provider,
        ),
    ] {
        let body = format!(r#"{{"error":"{message}"}}"#);
        let failure = refused(&Server::always(status, "", &body), &[OLLAMA]);
        assert_eq!(failure.class, class, "{message}");
        assert_eq!(failure.status, Some(status));
    }
}
