//! What was sent to a provider and what it has counted: the figures of a bill.
//!
//! It knows no price.

use serde::{Deserialize, Serialize};

use super::endpoint::{Endpoint, Purpose};
use super::tokens::estimate_tokens;

/// Figures of one request or of many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// HTTP requests that the provider has had, answered well or not.
    pub requests: u64,
    /// The texts in them.
    pub inputs: u64,
    /// The bytes of their bodies.
    pub bytes: u64,
    /// Tokens that are paid for: those of answers with vectors.
    pub tokens: u64,
    /// How many of these are an estimate, because the answer did not say.
    pub estimated: u64,
}

impl Sent {
    /// A request with so many texts and bytes has gone out.
    pub(crate) fn request(&mut self, inputs: usize, bytes: usize) {
        self.requests += 1;
        self.inputs += inputs as u64;
        self.bytes += bytes as u64;
    }

    /// It is paid for: by the provider's count, or by ours where that is missing.
    pub(crate) fn paid(
        &mut self,
        counted: Option<u64>,
        endpoint: &Endpoint,
        inputs: &[String],
        purpose: Purpose,
    ) {
        if let Some(tokens) = counted.filter(|tokens| *tokens > 0) {
            self.tokens += tokens;
            return;
        }
        let prefix = match purpose {
            Purpose::Document => &endpoint.document_prefix,
            Purpose::Query => &endpoint.query_prefix,
        };
        let texts: u64 = inputs.iter().map(|input| estimate_tokens(input)).sum();
        let tokens = texts + estimate_tokens(prefix) * inputs.len() as u64;
        self.tokens += tokens;
        self.estimated += tokens;
    }

    /// Whether there is anything.
    pub fn is_nothing(&self) -> bool {
        *self == Sent::default()
    }
}

impl std::ops::AddAssign for Sent {
    fn add_assign(&mut self, more: Sent) {
        self.requests += more.requests;
        self.inputs += more.inputs;
        self.bytes += more.bytes;
        self.tokens += more.tokens;
        self.estimated += more.estimated;
    }
}
