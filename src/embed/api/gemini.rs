//! `POST {url}/models/{model}:batchEmbedContents` of the Gemini API. Vectors come as floats, in
//! the order of the inputs.
//!
//! `extra_body` is merged into each of the request's `requests`, where `taskType` stands: that of
//! retrieval, as a document or as a query, unless `extra_body` says another.
//!
//! Sources: Gemini API reference, "Embeddings", method `models.batchEmbedContents`; the limit of
//! 100 requests is the server's own ("at most 100 requests can be in one batch"); errors are
//! `google.rpc.Status` with `ErrorInfo` and `RetryInfo`; "Troubleshooting guide".

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::said::{self, Said};
use super::{Api, Asked, KeyHeader, Wire, join, json, segment};
use crate::embed::endpoint::Endpoint;
use crate::embed::failure::Class;
use crate::embed::limits;
use crate::embed::reply::{List, Numbers, Reply, number};

pub(crate) static API: Api = Api {
    name: "gemini",
    url: Some("https://generativelanguage.googleapis.com/v1beta"),
    example_url: "https://generativelanguage.googleapis.com/v1beta",
    example_model: "gemini-embedding-001",
    max_batch_inputs: 100,
    max_batch_tokens: None,
    max_input_tokens: 2_048,
    token_share: 70,
    options: &[],
    wire: Some(Wire {
        key: KeyHeader::Named("x-goog-api-key"),
        url,
        body,
        own_members: &[
            ("content", "The texts are put there by recsync."),
            ("model", "Use the option \"model\"."),
            (
                "outputDimensionality",
                "Use the options \"dimensions\" and \"send_dimensions\".",
            ),
        ],
        encoding_member: None,
        echoes: false,
        read,
        said,
    }),
};

/// The model without the folder that its full name has.
fn model(endpoint: &Endpoint) -> &str {
    let model = endpoint.model.as_str();
    model.strip_prefix("models/").unwrap_or(model)
}

fn url(endpoint: &Endpoint) -> String {
    let path = format!("/models/{}:batchEmbedContents", segment(model(endpoint)));
    join(&endpoint.url, &path)
}

#[derive(Serialize)]
struct Body<'a> {
    requests: Vec<Request<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    model: &'a str,
    content: Content<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_dimensionality: Option<usize>,
    #[serde(flatten)]
    extra: &'a Map<String, Value>,
}

#[derive(Serialize)]
struct Content<'a> {
    parts: [Part<'a>; 1],
}

#[derive(Serialize)]
struct Part<'a> {
    text: Cow<'a, str>,
}

fn body(asked: &Asked<'_>) -> Vec<u8> {
    let model = format!("models/{}", model(asked.endpoint));
    let task = asked.word("RETRIEVAL_DOCUMENT", "RETRIEVAL_QUERY");
    let extra = asked.extra([("taskType", task.into())]);
    let requests = asked.texts().map(|text| Request {
        model: &model,
        content: Content {
            parts: [Part { text }],
        },
        output_dimensionality: asked.dimensions(),
        extra: &extra,
    });
    json(&Body {
        requests: requests.collect(),
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer<'a> {
    #[serde(borrow)]
    embeddings: List<ContentEmbedding<'a>>,
    #[serde(default)]
    usage_metadata: Value,
}

#[derive(Deserialize)]
struct ContentEmbedding<'a> {
    #[serde(borrow)]
    values: Numbers<'a>,
}

fn read(body: &[u8]) -> serde_json::Result<Reply<'_>> {
    let answer: Answer<'_> = serde_json::from_slice(body)?;
    let items = answer.embeddings.items.into_iter();
    let embeddings = List {
        items: items.map(|item| item.values).collect(),
        count: answer.embeddings.count,
    };
    let tokens = number(&answer.usage_metadata, &["/promptTokenCount"]);
    Ok(Reply::in_order(embeddings, tokens))
}

/// A key that is not valid gets a 400 here, as does an account or a place that may not use the
/// API; how long to wait stands in the body.
fn said(status: u16, body: &[u8]) -> Said {
    let body = said::json(body);
    let details = body.pointer("/error/details").and_then(Value::as_array);
    let details = || details.into_iter().flatten();
    let key_refused = details().any(|detail| {
        let reason = detail.get("reason").and_then(Value::as_str);
        reason.is_some_and(|reason| reason.starts_with("API_KEY_"))
    });
    let delay = details().find_map(|detail| detail.get("retryDelay")?.as_str());
    let word = body.pointer("/error/status").and_then(Value::as_str);
    let by_account = key_refused || word == Some("FAILED_PRECONDITION");
    let said = said::of_json(status, &body);
    Said {
        class: by_account.then_some(Class::Configuration).or(said.class),
        retry_after: delay.and_then(limits::duration),
        key_refused,
        ..said
    }
}

#[cfg(test)]
#[path = "gemini_tests.rs"]
mod tests;
