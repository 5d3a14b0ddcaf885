//! `POST {url}/api/embed` of Ollama, which (unlike its `/v1/embeddings`) can be told not to cut a
//! long text. Vectors come as floats, in the order of the inputs.
//!
//! Sources: Ollama's documentation, "API", section "Generate Embeddings", and "Errors"; its
//! `server/routes.go` for what the status 400 is used for.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::said::{self, Said};
use super::{Api, Asked, KeyHeader, Texts, Wire, join, json};
use crate::embed::endpoint::Endpoint;
use crate::embed::failure::Class;
use crate::embed::reply::{List, Numbers, Reply};

pub(crate) static API: Api = Api {
    name: "ollama",
    url: Some("http://localhost:11434"),
    example_url: "http://localhost:11434",
    example_model: "nomic-embed-text",
    max_batch_inputs: 2_048,
    max_batch_tokens: None,
    max_input_tokens: 2_048,
    token_share: 70,
    options: &[],
    wire: Some(Wire {
        key: KeyHeader::Bearer,
        url,
        body,
        own_members: &[
            ("input", "The texts are put there by recsync."),
            ("model", "Use the option \"model\"."),
            (
                "dimensions",
                "Use the options \"dimensions\" and \"send_dimensions\".",
            ),
        ],
        encoding_member: None,
        echoes: false,
        read,
        said,
    }),
};

fn url(endpoint: &Endpoint) -> String {
    // The documentation's base ends in /api, the program's own in the port.
    let (base, _) = endpoint.url.split_once('?').unwrap_or((&endpoint.url, ""));
    let has_api = base.trim_end_matches('/').ends_with("/api");
    join(&endpoint.url, if has_api { "/embed" } else { "/api/embed" })
}

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    input: Texts<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dimensions: Option<usize>,
    #[serde(flatten)]
    extra: Map<String, Value>,
}

fn body(asked: &Asked<'_>) -> Vec<u8> {
    json(&Body {
        model: &asked.endpoint.model,
        input: Texts(asked),
        dimensions: asked.dimensions(),
        extra: asked.extra([("truncate", false.into())]),
    })
}

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    embeddings: List<Numbers<'a>>,
    #[serde(default)]
    prompt_eval_count: Value,
}

fn read(body: &[u8]) -> serde_json::Result<Reply<'_>> {
    let answer: Answer<'_> = serde_json::from_slice(body)?;
    let tokens = answer.prompt_eval_count.as_f64();
    Ok(Reply::in_order(answer.embeddings, tokens))
}

/// Ollama says 400 of whatever goes wrong while it computes, a model that has crashed included:
/// only what names the input is the input's fault.
fn said(status: u16, body: &[u8]) -> Said {
    let said = said::common(status, body);
    let message = said.message.as_deref().unwrap_or_default();
    let of_the_input = ["context length", "invalid input"];
    let named = of_the_input.iter().any(|words| message.contains(words));
    Said {
        class: (status == 400 && !named).then_some(Class::Provider),
        ..said
    }
}

#[cfg(test)]
#[path = "ollama_tests.rs"]
mod tests;
