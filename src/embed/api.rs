//! The wire protocols, one file each, and the table of them.
//!
//! An API says where a request goes, what is asked, where the vectors stand in the answer, what
//! its errors mean, and within which limits it may be asked. It sends nothing itself, which is
//! [`super::provider`]'s part, and it believes nothing: [`super::reply`] checks every answer.
//!
//! To add one: a file with a `static API`, and its line in [`APIS`].

use std::borrow::Cow;
use std::fmt;

use serde::ser::SerializeSeq;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use super::builtin;
use super::endpoint::{Encoding, Endpoint, Purpose};
use super::reply::Reply;

// What an error's body says: the message, and whose fault it is.
pub(crate) mod said;

// `POST /embeddings`, as OpenAI and many others speak it.
pub(crate) mod openai;

// OpenAI's models at Azure: the deployment in the path, another header for the key.
pub(crate) mod azure_openai;

// `POST /api/embed`.
pub(crate) mod ollama;

// `batchEmbedContents`.
pub(crate) mod gemini;

// Voyage AI, now MongoDB's.
pub(crate) mod voyage;

// `POST /v2/embed`.
pub(crate) mod cohere;

// Signed events, not texts.
pub(crate) mod webhook;

/// The APIs that embed, in the order in which they are listed to the user.
pub static APIS: &[&Api] = &[
    &openai::API,
    &azure_openai::API,
    &ollama::API,
    &gemini::API,
    &voyage::API,
    &cohere::API,
    &builtin::API,
];

/// A wire protocol and its limits. Two are the same if their names are.
pub struct Api {
    /// The word in the option `api`.
    pub name: &'static str,
    /// Base of the API where neither the server nor the model says it.
    pub url: Option<&'static str>,
    /// What a base looks like.
    pub(crate) example_url: &'static str,
    /// What a model's name looks like.
    pub(crate) example_model: &'static str,
    /// Inputs that one request may have.
    pub max_batch_inputs: usize,
    /// Tokens of all inputs of a request together, where there is a limit.
    pub max_batch_tokens: Option<u64>,
    /// Tokens of one input of a model that is not known.
    pub max_input_tokens: u64,
    /// How full a batch is made, in percent of `max_batch_tokens`: less than 100 where the models
    /// count by another tokenizer than [`super::tokens`]. A batch that is too large all the same
    /// is refused and halved.
    pub(crate) token_share: u64,
    /// Options that no other API has.
    pub(crate) options: &'static [&'static str],
    /// How it is spoken; `None` where nothing is sent.
    pub(crate) wire: Option<Wire>,
}

/// How an API is spoken.
pub(crate) struct Wire {
    pub key: KeyHeader,
    /// Where requests go.
    pub url: fn(&Endpoint) -> String,
    /// The body of a request.
    pub body: fn(&Asked<'_>) -> Vec<u8>,
    /// Members of the body that `extra_body` must not hold, and where to say them instead.
    pub own_members: &'static [(&'static str, &'static str)],
    /// The member that asks for base64, which an old server may refuse; `None` where the API has
    /// floats only.
    pub encoding_member: Option<&'static str>,
    /// Whether an answer holds the texts, too.
    pub echoes: bool,
    /// Finds the vectors in the body of a 200.
    pub read: for<'a> fn(&'a [u8]) -> serde_json::Result<Reply<'a>>,
    /// What the body of any other answer means.
    pub said: fn(u16, &[u8]) -> said::Said,
}

/// How a request is authorised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyHeader {
    /// `Authorization: Bearer …`
    Bearer,
    /// The key alone in a header of this name.
    Named(&'static str),
}

impl PartialEq for Api {
    fn eq(&self, other: &Api) -> bool {
        self.name == other.name
    }
}

impl Eq for Api {}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Api {
    /// The API that the option `api` names.
    pub fn find(name: &str) -> Option<&'static Api> {
        Api::all().find(|api| api.name == name)
    }

    fn all() -> impl Iterator<Item = &'static Api> {
        APIS.iter().copied().chain([&webhook::API])
    }

    /// The words that the option `api` may have, as a list for the user.
    pub fn names() -> String {
        let names: Vec<&str> = Api::all().map(|api| api.name).collect();
        names.join(", ")
    }

    /// Whether it takes events of hooks, and no texts.
    pub fn is_for_hooks(&self) -> bool {
        *self == webhook::API
    }
}

/// What is asked of an endpoint.
pub(crate) struct Asked<'a> {
    pub endpoint: &'a Endpoint,
    pub inputs: &'a [String],
    pub purpose: Purpose,
    pub encoding: Encoding,
}

impl<'a> Asked<'a> {
    /// The inputs with the prefix for the purpose.
    pub fn texts(&self) -> impl ExactSizeIterator<Item = Cow<'a, str>> {
        let prefix = match self.purpose {
            Purpose::Document => self.endpoint.document_prefix.as_str(),
            Purpose::Query => self.endpoint.query_prefix.as_str(),
        };
        self.inputs.iter().map(move |input| match prefix {
            "" => Cow::Borrowed(input.as_str()),
            prefix => Cow::Owned(format!("{prefix}{input}")),
        })
    }

    /// The dimensions to ask for, where the model is to be asked.
    pub fn dimensions(&self) -> Option<usize> {
        let endpoint = self.endpoint;
        endpoint.send_dimensions.then_some(endpoint.dimensions)
    }

    /// The word for the purpose.
    pub fn word(&self, document: &'static str, query: &'static str) -> &'static str {
        match self.purpose {
            Purpose::Document => document,
            Purpose::Query => query,
        }
    }

    /// `extra_body`, and those of `defaults` that it does not override.
    pub fn extra<const N: usize>(&self, defaults: [(&str, Value); N]) -> Map<String, Value> {
        let mut members = self.endpoint.extra_body.clone();
        for (name, value) in defaults {
            members.entry(name).or_insert(value);
        }
        members
    }
}

/// A body; strings, numbers and maps with string keys always serialize.
pub(crate) fn json(body: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(body).unwrap_or_default()
}

/// The texts of a request as a JSON list.
pub(crate) struct Texts<'a>(pub &'a Asked<'a>);

impl Serialize for Texts<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let texts = self.0.texts();
        let mut list = serializer.serialize_seq(Some(texts.len()))?;
        for text in texts {
            list.serialize_element(&text)?;
        }
        list.end()
    }
}

/// The base with `path` before its query, if it has one; a base may have the path already.
pub(crate) fn join(base: &str, path: &str) -> String {
    let (base, query) = match base.split_once('?') {
        Some((base, query)) => (base, format!("?{query}")),
        None => (base, String::new()),
    };
    let base = base.trim_end_matches('/');
    let path = if base.ends_with(path) { "" } else { path };
    format!("{base}{path}{query}")
}

/// A name as one segment of a path: what is not unreserved is percent-encoded (RFC 3986, 2.3).
pub(crate) fn segment(name: &str) -> String {
    let mut segment = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            segment.push(char::from(byte));
        } else {
            segment.push_str(&format!("%{byte:02X}"));
        }
    }
    segment
}

#[cfg(test)]
#[path = "api_tests.rs"]
mod tests;
