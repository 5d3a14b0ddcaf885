//! OpenAI's models at Azure: the deployment stands in the path, the version in the query, the key
//! in the header `api-key`. Bodies are OpenAI's.
//!
//! With `api_version 'v1'` requests go to `/openai/v1/embeddings` and name the deployment as their
//! model. A token of Microsoft Entra goes into a header file as `Authorization: Bearer …`.
//!
//! Source: Azure OpenAI REST API reference, 2024-10-21, "Embeddings - Create" (2,048 inputs).

use super::{Api, Asked, KeyHeader, Wire, join, openai, said, segment};
use crate::embed::endpoint::Endpoint;

/// The last version that is not a preview and has a date.
const DEFAULT_VERSION: &str = "2024-10-21";
/// The API whose versions have no date.
const V1: &str = "v1";

pub(crate) static API: Api = Api {
    name: "azure_openai",
    url: None,
    example_url: "https://NAME.openai.azure.com",
    example_model: "text-embedding-3-small",
    max_batch_inputs: 2_048,
    max_batch_tokens: Some(300_000),
    max_input_tokens: 8_191,
    token_share: 100,
    options: &["deployment", "api_version"],
    wire: Some(Wire {
        key: KeyHeader::Named("api-key"),
        url,
        body,
        own_members: openai::OWN_MEMBERS,
        encoding_member: Some("encoding_format"),
        echoes: false,
        read: openai::read,
        said: said::common,
    }),
};

/// The deployment's name: the model's where the option is not given.
fn deployment(endpoint: &Endpoint) -> &str {
    endpoint.deployment.as_deref().unwrap_or(&endpoint.model)
}

fn url(endpoint: &Endpoint) -> String {
    let base = endpoint.url.split('?').next().unwrap_or_default();
    if base.trim_end_matches('/').ends_with("/openai/v1") {
        return join(&endpoint.url, "/embeddings");
    }
    let base = join(&endpoint.url, "/openai");
    let version = endpoint.api_version.as_deref().unwrap_or(DEFAULT_VERSION);
    if version == V1 {
        return join(&base, "/v1/embeddings");
    }
    let path = format!("/deployments/{}/embeddings", segment(deployment(endpoint)));
    let url = join(&base, &path);
    match url.split_once('?') {
        Some((_, query)) if query.contains("api-version=") => url,
        Some(_) => format!("{url}&api-version={version}"),
        None => format!("{url}?api-version={version}"),
    }
}

fn body(asked: &Asked<'_>) -> Vec<u8> {
    openai::body_for(asked, deployment(asked.endpoint))
}

#[cfg(test)]
#[path = "azure_openai_tests.rs"]
mod tests;
