//! `POST {url}/embeddings`, as OpenAI, and many servers and gateways after it, speak it.
//!
//! Source: OpenAI API reference, "Create embeddings" (2,048 inputs and 300,000 tokens a request,
//! 8,192 tokens an input).

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Api, Asked, KeyHeader, Texts, Wire, join, json, said};
use crate::embed::endpoint::Encoding;
use crate::embed::reply::{List, Numbers, Reply, number};

pub(crate) static API: Api = Api {
    name: "openai",
    url: None,
    example_url: "http://localhost:8080/v1",
    example_model: "text-embedding-3-small",
    max_batch_inputs: 2_048,
    max_batch_tokens: Some(300_000),
    max_input_tokens: 8_191,
    token_share: 100,
    options: &[],
    wire: Some(Wire {
        key: KeyHeader::Bearer,
        url: |endpoint| join(&endpoint.url, "/embeddings"),
        body,
        own_members: OWN_MEMBERS,
        encoding_member: Some("encoding_format"),
        echoes: false,
        read,
        said: said::common,
    }),
};

pub(super) const OWN_MEMBERS: &[(&str, &str)] = &[
    ("input", "The texts are put there by recsync."),
    ("model", "Use the option \"model\"."),
    ("encoding_format", "Use the option \"encoding\"."),
    (
        "dimensions",
        "Use the options \"dimensions\" and \"send_dimensions\".",
    ),
];

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    input: Texts<'a>,
    encoding_format: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    dimensions: Option<usize>,
    #[serde(flatten)]
    extra: &'a Map<String, Value>,
}

fn body(asked: &Asked<'_>) -> Vec<u8> {
    body_for(asked, &asked.endpoint.model)
}

/// The body where `model` may be another name than the endpoint's.
pub(super) fn body_for(asked: &Asked<'_>, model: &str) -> Vec<u8> {
    json(&Body {
        model,
        input: Texts(asked),
        encoding_format: match asked.encoding {
            Encoding::Base64 => "base64",
            Encoding::Float => "float",
        },
        dimensions: asked.dimensions(),
        extra: &asked.endpoint.extra_body,
    })
}

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    data: List<Item<'a>>,
    #[serde(default)]
    usage: Value,
}

#[derive(Deserialize)]
struct Item<'a> {
    index: Option<u64>,
    #[serde(borrow)]
    embedding: Numbers<'a>,
}

/// `data[].index` and `data[].embedding`; `usage.total_tokens`, else `usage.prompt_tokens`.
pub(super) fn read(body: &[u8]) -> serde_json::Result<Reply<'_>> {
    let answer: Answer<'_> = serde_json::from_slice(body)?;
    let items = answer.data.items.into_iter();
    Ok(Reply {
        vectors: items.map(|item| (item.index, item.embedding)).collect(),
        count: answer.data.count,
        tokens: number(&answer.usage, &["/total_tokens", "/prompt_tokens"]),
    })
}

#[cfg(test)]
#[path = "openai_tests.rs"]
mod tests;
