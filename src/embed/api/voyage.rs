//! `POST {url}/embeddings` of Voyage AI (and of MongoDB, at `https://ai.mongodb.com/v1`): like
//! OpenAI's, with a purpose, another name for the dimensions, and no word for floats.
//!
//! Source: Voyage AI documentation, "Text embedding models" (API reference): 1,000 inputs, and
//! 120,000, 320,000 or 1,000,000 tokens a request by model; "Rate Limits"; "Error Codes".

use serde::Serialize;
use serde_json::{Map, Value};

use super::said::{self, Said};
use super::{Api, Asked, KeyHeader, Texts, Wire, join, json, openai};
use crate::embed::endpoint::Encoding;
use crate::embed::failure::Class;

pub(crate) static API: Api = Api {
    name: "voyage",
    url: Some("https://api.voyageai.com/v1"),
    example_url: "https://api.voyageai.com/v1",
    example_model: "voyage-4",
    max_batch_inputs: 1_000,
    max_batch_tokens: Some(120_000),
    max_input_tokens: 32_000,
    token_share: 70,
    options: &[],
    wire: Some(Wire {
        key: KeyHeader::Bearer,
        url: |endpoint| join(&endpoint.url, "/embeddings"),
        body,
        own_members: &[
            ("input", "The texts are put there by recsync."),
            ("model", "Use the option \"model\"."),
            ("encoding_format", "Use the option \"encoding\"."),
            ("output_dtype", "Vectors are asked for as floats."),
            (
                "output_dimension",
                "Use the options \"dimensions\" and \"send_dimensions\".",
            ),
        ],
        encoding_member: Some("encoding_format"),
        echoes: false,
        read: openai::read,
        said,
    }),
};

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    input: Texts<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding_format: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_dimension: Option<usize>,
    #[serde(flatten)]
    extra: Map<String, Value>,
}

fn body(asked: &Asked<'_>) -> Vec<u8> {
    json(&Body {
        model: &asked.endpoint.model,
        input: Texts(asked),
        encoding_format: (asked.encoding == Encoding::Base64).then_some("base64"),
        output_dimension: asked.dimensions(),
        extra: asked.extra([
            ("input_type", asked.word("document", "query").into()),
            ("truncation", false.into()),
        ]),
    })
}

/// A model that does not exist gets a 400 here.
fn said(status: u16, body: &[u8]) -> Said {
    let said = said::common(status, body);
    let message = said.message.as_deref().unwrap_or_default();
    let no_model = status == 400 && message.contains("Supported models are");
    Said {
        class: no_model.then_some(Class::Configuration).or(said.class),
        ..said
    }
}

#[cfg(test)]
#[path = "voyage_tests.rs"]
mod tests;
