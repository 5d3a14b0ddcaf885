//! `POST {url}/embed` of Cohere, version 2. Vectors stand in the order of the inputs, in a list by
//! the type that was asked for.
//!
//! Source: Cohere API reference, "Embed API (v2)" (96 texts a request), "Errors".

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::said::{self, Said};
use super::{Api, Asked, KeyHeader, Texts, Wire, join, json};
use crate::embed::endpoint::Encoding;
use crate::embed::failure::Class;
use crate::embed::reply::{List, Numbers, Reply, number};

pub(crate) static API: Api = Api {
    name: "cohere",
    url: Some("https://api.cohere.com/v2"),
    example_url: "https://api.cohere.com/v2",
    example_model: "embed-v4.0",
    max_batch_inputs: 96,
    max_batch_tokens: None,
    max_input_tokens: 512,
    token_share: 70,
    options: &[],
    wire: Some(Wire {
        key: KeyHeader::Bearer,
        url: |endpoint| join(&endpoint.url, "/embed"),
        body,
        own_members: &[
            ("texts", "The texts are put there by recsync."),
            ("inputs", "The texts are put there by recsync."),
            ("images", "The texts are put there by recsync."),
            ("model", "Use the option \"model\"."),
            ("embedding_types", "Use the option \"encoding\"."),
            (
                "output_dimension",
                "Use the options \"dimensions\" and \"send_dimensions\".",
            ),
        ],
        encoding_member: Some("embedding_types"),
        echoes: true,
        read,
        said,
    }),
};

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    texts: Texts<'a>,
    embedding_types: [&'static str; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    output_dimension: Option<usize>,
    #[serde(flatten)]
    extra: Map<String, Value>,
}

fn body(asked: &Asked<'_>) -> Vec<u8> {
    let purpose = asked.word("search_document", "search_query");
    json(&Body {
        model: &asked.endpoint.model,
        texts: Texts(asked),
        embedding_types: match asked.encoding {
            Encoding::Base64 => ["base64"],
            Encoding::Float => ["float"],
        },
        output_dimension: asked.dimensions(),
        extra: asked.extra([("input_type", purpose.into()), ("truncate", "NONE".into())]),
    })
}

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    embeddings: ByType<'a>,
    #[serde(default)]
    meta: Value,
}

#[derive(Deserialize)]
struct ByType<'a> {
    #[serde(borrow)]
    base64: Option<List<Numbers<'a>>>,
    #[serde(borrow)]
    float: Option<List<Numbers<'a>>>,
}

fn read(body: &[u8]) -> serde_json::Result<Reply<'_>> {
    let answer: Answer<'_> = serde_json::from_slice(body)?;
    let embeddings = answer.embeddings.base64.or(answer.embeddings.float);
    let counted = ["/billed_units/input_tokens", "/tokens/input_tokens"];
    let tokens = number(&answer.meta, &counted);
    Ok(Reply::in_order(embeddings.unwrap_or_default(), tokens))
}

/// 498 is Cohere's word for a text that it does not want.
fn said(status: u16, body: &[u8]) -> Said {
    let said = said::common(status, body);
    Said {
        class: (status == 498).then_some(Class::Permanent).or(said.class),
        ..said
    }
}

#[cfg(test)]
#[path = "cohere_tests.rs"]
mod tests;
