//! One request to one server: the key read afresh, the encoding that the server understands, and
//! a failure that gives nothing away.
//!
//! A provider is shared by the threads of a lane. It sends a request a second time in two cases
//! only: after a 401 if the key has changed meanwhile, and with floats once base64 is refused. It
//! never waits between requests and never tries again for another reason.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::endpoint::{Api, Encoding, Endpoint, Purpose};
use super::failure::Failure;
use super::http::{Answer, Client, answer_limit};
use super::openai::{self, Embeddings};
use super::secret::{Credentials, SecretPolicy};
use super::{builtin, leak};

/// An endpoint with its connections and what has been learnt about it.
pub struct Provider {
    endpoint: Endpoint,
    policy: SecretPolicy,
    /// Made at the first request: a `ca_file` that is not there yet is looked for again.
    client: Mutex<Option<Arc<Client>>>,
    /// Whether the server has refused base64.
    only_floats: AtomicBool,
}

impl Provider {
    /// A provider that has not connected yet.
    pub fn new(endpoint: Endpoint, policy: SecretPolicy) -> Provider {
        Provider {
            endpoint,
            policy,
            client: Mutex::new(None),
            only_floats: AtomicBool::new(false),
        }
    }

    /// What it was made for.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// One vector for each input. Blocks until the answer is there or the total timeout is over
    /// (for each of at most three requests).
    ///
    /// # Errors
    /// A [`Failure`] whose message holds neither a key nor an input.
    pub fn embed(&self, inputs: &[String], purpose: Purpose) -> Result<Embeddings, Failure> {
        match self.endpoint.api {
            Api::Builtin => Ok(Embeddings {
                vectors: inputs.iter().map(|input| builtin::embed(input)).collect(),
                tokens: 0,
            }),
            Api::OpenAi if inputs.is_empty() => Ok(Embeddings::default()),
            Api::OpenAi => self.ask(inputs, purpose),
        }
    }

    fn ask(&self, inputs: &[String], purpose: Purpose) -> Result<Embeddings, Failure> {
        let client = self.client()?;
        let mut credentials = Credentials::read(&self.endpoint, &self.policy)?;
        let mut read_again = false;
        loop {
            let encoding = self.encoding();
            let body = openai::request_body_as(&self.endpoint, inputs, purpose, encoding);
            let limit = answer_limit(inputs.len(), self.endpoint.dimensions);
            let answer = client.post(&credentials, &body, limit)?;
            match answer.status {
                200 => return openai::parse_reply(&self.endpoint, inputs.len(), &answer.body),
                401 if !read_again => {
                    read_again = true;
                    let now = Credentials::read(&self.endpoint, &self.policy)?;
                    if now != credentials {
                        credentials = now;
                        continue;
                    }
                }
                status
                    if encoding == Encoding::Base64
                        && openai::refuses_encoding(status, &answer.body) =>
                {
                    self.only_floats.store(true, Ordering::Relaxed);
                    continue;
                }
                _ => {}
            }
            return Err(failure_of(&answer, &credentials, inputs));
        }
    }

    fn encoding(&self) -> Encoding {
        if self.only_floats.load(Ordering::Relaxed) {
            Encoding::Float
        } else {
            self.endpoint.encoding
        }
    }

    fn client(&self) -> Result<Arc<Client>, Failure> {
        let mut made = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        match &*made {
            Some(client) => Ok(Arc::clone(client)),
            None => {
                let client = Arc::new(Client::new(&self.endpoint, &self.policy)?);
                *made = Some(Arc::clone(&client));
                Ok(client)
            }
        }
    }
}

/// What an answer other than 200 means, with the vendor's message but without what was sent.
fn failure_of(answer: &Answer, credentials: &Credentials, inputs: &[String]) -> Failure {
    let said = openai::error_message(&answer.body)
        .map(|message| {
            leak::scrub(
                &message,
                credentials.hidden(),
                inputs.iter().map(String::as_str),
            )
        })
        .filter(|message| !message.trim().is_empty());
    Failure::of_status(answer.status, answer.retry_after, said.as_deref())
}

/// One batch on the calling thread, on a connection of its own.
///
/// # Errors
/// As [`Provider::embed`].
pub fn embed_once(
    endpoint: &Endpoint,
    policy: &SecretPolicy,
    inputs: &[String],
    purpose: Purpose,
) -> Result<Embeddings, Failure> {
    Provider::new(endpoint.clone(), policy.clone()).embed(inputs, purpose)
}
