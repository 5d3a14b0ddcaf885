//! What an error's body says: the message, and whose fault it is where the status alone would
//! blame the wrong one.
//!
//! It reads bodies of any shape and keeps a vendor's words for nothing but the message, from which
//! the caller still has to take keys and texts ([`crate::embed::leak`]).

use std::time::Duration;

use serde_json::Value;

use crate::embed::failure::Class;

/// Members that options of the server decide; `param` of an error names the culprit.
const SET_BY_OPTIONS: &[&str] = &["model", "dimensions", "encoding_format"];

/// What an error's body says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Said {
    /// The vendor's message.
    pub message: Option<String>,
    /// Whose fault it is, where the status does not tell.
    pub class: Option<Class>,
    /// How long to wait, where that stands in the body.
    pub retry_after: Option<Duration>,
    /// It is the key that was refused, whatever the status.
    pub key_refused: bool,
    /// An input is longer than the model takes.
    pub too_long: bool,
}

/// What providers and servers say of an input that is too long for the model, in lower case: OpenAI and vLLM ("maximum
/// context length is 8192 tokens"), OpenAI ("maximum input length is 8192 tokens"), Text Embeddings Inference ("must have
/// less than 512 tokens"), Ollama ("the input length exceeds the context length"), llama.cpp ("input is too large to
/// process", with 500, and "exceeds the available context size"), Voyage ("has too many tokens and does not fit into the
/// model's context window"), Cohere ("too many tokens"), Mistral ("has 9000 tokens, exceeding max 8192"), Gemini ("exceeds
/// the maximum number of tokens allowed").
const TOO_LONG: &[&str] = &[
    "context length",
    "context size",
    "context window",
    "input length",
    "must have less than",
    "too large to process",
    "too many tokens",
    "exceeding max",
    "number of tokens",
];

fn says_too_long(message: &str) -> bool {
    let message = message.to_lowercase();
    TOO_LONG.iter().any(|phrase| message.contains(phrase))
}

/// An error's body as JSON; of a list its first element, null where it is no JSON.
pub(crate) fn json(body: &[u8]) -> Value {
    match serde_json::from_slice(body) {
        Ok(Value::Array(list)) => list.into_iter().next().unwrap_or_default(),
        Ok(value) => value,
        Err(_) => Value::Null,
    }
}

/// What errors say in the shapes that most APIs and gateways share: `error.message`, or `error`,
/// `message` or `detail` where that is a text; `error.param`.
pub(crate) fn common(status: u16, body: &[u8]) -> Said {
    of_json(status, &json(body))
}

/// The same of a body that has been read.
pub(crate) fn of_json(status: u16, body: &Value) -> Said {
    let candidates = ["/error/message", "/error", "/message", "/detail"];
    let message = candidates
        .iter()
        .filter_map(|pointer| body.pointer(pointer))
        .find_map(Value::as_str);
    let param = body.pointer("/error/param").and_then(Value::as_str);
    let by_options = param.is_some_and(|param| SET_BY_OPTIONS.contains(&param));
    let too_long = message.is_some_and(says_too_long) && matches!(status, 400 | 413 | 422 | 500);
    Said {
        message: message.map(str::to_owned),
        class: match status {
            400 | 422 if by_options => Some(Class::Configuration),
            500 if too_long => Some(Class::Permanent), // it will be refused again
            _ => None,
        },
        too_long,
        ..Said::default()
    }
}

/// The status that an error in the body of a 200 stands for, as gateways send it
/// (`{"error": {"code": 429, …}}`).
pub(crate) fn status_inside(body: &[u8]) -> Option<u16> {
    let body = json(body);
    let code = body.pointer("/error/code")?;
    let code = code.as_u64().or_else(|| code.as_str()?.parse().ok())?;
    let status = u16::try_from(code).ok()?;
    (400..600).contains(&status).then_some(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_an_errors_body_only_the_message_is_kept() {
        for (body, message) in [
            (
                r#"{"error":{"message":"too long","param":"s3cr3t"}}"#,
                Some("too long"),
            ),
            (r#"{"error":"model not found"}"#, Some("model not found")),
            (r#"{"message":"no","detail":"s3cr3t"}"#, Some("no")),
            (r#"{"detail":"no credit"}"#, Some("no credit")),
            (r#"[{"error":{"message":"listed"}}]"#, Some("listed")),
            (r#"{"detail":[{"input":"s3cr3t"}]}"#, None),
            ("<html>s3cr3t</html>", None),
            ("[]", None),
            ("", None),
        ] {
            let said = common(400, body.as_bytes());
            assert_eq!(said.message.as_deref(), message);
            assert_eq!(said.class, None);
        }
    }

    #[test]
    fn what_providers_say_of_an_input_that_is_too_long_is_understood() {
        let said = |status, message: &str| {
            let body = serde_json::json!({"error": {"message": message}}).to_string();
            common(status, body.as_bytes())
        };
        for (status, message) in [
            (
                400,
                "This model's maximum context length is 8192 tokens, however you requested 10000 tokens",
            ),
            (
                400,
                "Invalid 'input[0]': maximum input length is 8192 tokens.",
            ),
            (
                413,
                "Input validation error: `inputs` must have less than 512 tokens. Given: 600",
            ),
            (400, "the input length exceeds the context length"),
            (
                500,
                "input is too large to process. increase the physical batch size",
            ),
            (
                400,
                "The example at index 0 in your batch has too many tokens and does not fit into the model's context window of 32000 tokens.",
            ),
            (
                400,
                "Input id 0 has 9000 tokens, exceeding max 8192 tokens.",
            ),
        ] {
            assert!(said(status, message).too_long, "{message}");
        }
        assert_eq!(
            said(500, "input is too large to process").class,
            Some(Class::Permanent)
        );
        assert!(!said(400, "an input is empty").too_long);
        assert!(!said(429, "too many tokens per minute").too_long);
    }

    #[test]
    fn a_member_that_an_option_decides_is_a_matter_of_configuration() {
        let refused = |status, param: &str| {
            let body = format!(r#"{{"error":{{"message":"no","param":"{param}"}}}}"#);
            common(status, body.as_bytes()).class
        };
        assert_eq!(refused(400, "dimensions"), Some(Class::Configuration));
        assert_eq!(refused(422, "model"), Some(Class::Configuration));
        assert_eq!(refused(400, "input"), None);
        assert_eq!(refused(500, "model"), None);
    }

    #[test]
    fn an_error_inside_a_200_has_the_status_of_its_code() {
        for (body, status) in [
            (r#"{"error":{"code":429,"message":"slow down"}}"#, Some(429)),
            (r#"{"error":{"code":"503"}}"#, Some(503)),
            (r#"{"error":{"code":"rate_limit_exceeded"}}"#, None),
            (r#"{"error":{"code":200}}"#, None),
            (r#"{"error":"no"}"#, None),
            ("", None),
        ] {
            assert_eq!(status_inside(body.as_bytes()), status, "{body}");
        }
    }
}
