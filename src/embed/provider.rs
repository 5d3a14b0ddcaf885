//! One request to one server: the key read afresh, the encoding that the server understands, and
//! a failure that gives nothing away.
//!
//! A provider is shared by the threads of a lane. It sends a request a second time in two cases
//! only: if the key was refused and has changed meanwhile, and with floats once base64 is refused.
//! It never waits between requests and never tries again for another reason.

use std::sync::atomic::{AtomicBool, Ordering};

use super::api::{Asked, Wire, said};
use super::endpoint::{Encoding, Endpoint, Purpose};
use super::failure::Failure;
use super::http::{Answer, LateClient, answer_limit};
use super::reply::{self, Embeddings};
use super::secret::{Credentials, SecretPolicy};
use super::sent::Sent;
use super::{builtin, leak};

/// An endpoint with its connections and what has been learnt about it.
pub struct Provider {
    endpoint: Endpoint,
    policy: SecretPolicy,
    client: LateClient,
    /// Whether the server has refused base64.
    only_floats: AtomicBool,
}

impl Provider {
    /// A provider that has not connected yet.
    pub fn new(endpoint: Endpoint, policy: SecretPolicy) -> Provider {
        Provider {
            endpoint,
            policy,
            client: LateClient::default(),
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
        self.embed_and_count(inputs, purpose, &mut Sent::default())
    }

    /// The same, and what has gone out for it, whatever came of it, is added to `sent`.
    ///
    /// # Errors
    /// As [`Provider::embed`].
    pub fn embed_and_count(
        &self,
        inputs: &[String],
        purpose: Purpose,
        sent: &mut Sent,
    ) -> Result<Embeddings, Failure> {
        match &self.endpoint.api.wire {
            None => {
                sent.inputs += inputs.len() as u64;
                Ok(Embeddings {
                    vectors: inputs.iter().map(|input| builtin::embed(input)).collect(),
                    ..Embeddings::default()
                })
            }
            Some(_) if inputs.is_empty() => Ok(Embeddings::default()),
            Some(wire) => self.ask(wire, inputs, purpose, sent),
        }
    }

    fn ask(
        &self,
        wire: &Wire,
        inputs: &[String],
        purpose: Purpose,
        sent: &mut Sent,
    ) -> Result<Embeddings, Failure> {
        let client = self.client.get(&self.endpoint, &self.policy)?;
        let mut credentials = Credentials::read(&self.endpoint, &self.policy)?;
        let mut read_again = false;
        let limit = answer_limit(wire, inputs, self.endpoint.dimensions);
        loop {
            let encoding = self.encoding(wire);
            let body = (wire.body)(&Asked {
                endpoint: &self.endpoint,
                inputs,
                purpose,
                encoding,
            });
            let answer = client.post(&credentials, &body, limit);
            // Where there was no answer at all, the provider may never have had it.
            if answer.as_ref().map_or_else(was_sent, |_| true) {
                sent.request(inputs.len(), body.len());
            }
            let answer = answer?;
            if answer.status == 200 {
                let believed = self.believe(&answer, &credentials, inputs);
                if let Some(tokens) = self.charged(&answer, &believed) {
                    sent.paid(tokens, &self.endpoint, inputs, purpose);
                }
                return believed;
            }
            let said = (wire.said)(answer.status, &answer.body);
            if (answer.status == 401 || said.key_refused) && !read_again {
                read_again = true;
                let now = Credentials::read(&self.endpoint, &self.policy)?;
                if now != credentials {
                    credentials = now;
                    continue;
                }
            }
            if encoding == Encoding::Base64 && refuses_encoding(wire, &answer) {
                self.only_floats.store(true, Ordering::Relaxed);
                continue;
            }
            let message = said.message.as_deref();
            let message = message.and_then(|said| scrubbed(said, &credentials, inputs));
            let retry_after = answer.retry_after.or(said.retry_after);
            let failure = Failure::of_status(answer.status, retry_after, message.as_deref());
            return Err(Failure {
                class: said.class.unwrap_or(failure.class),
                too_long: said.too_long,
                limits: answer.limits,
                ..failure
            });
        }
    }

    /// The vectors of a 200, or why there are none.
    fn believe(
        &self,
        answer: &Answer,
        credentials: &Credentials,
        inputs: &[String],
    ) -> Result<Embeddings, Failure> {
        match reply::read(&self.endpoint, inputs.len(), &answer.body) {
            Ok(embeddings) => Ok(Embeddings {
                limits: answer.limits,
                ..embeddings
            }),
            Err(failure) => {
                let said = said::common(200, &answer.body).message;
                let said = said.and_then(|said| scrubbed(&said, credentials, inputs));
                let failure = match said {
                    Some(said) => Failure::inside_200(said::status_inside(&answer.body), &said),
                    None => failure,
                };
                Err(Failure {
                    retry_after: failure.retry_after.or(answer.retry_after),
                    limits: answer.limits,
                    ..failure
                })
            }
        }
    }

    /// The tokens that a 200 says are to be paid for, if it does; `None`: it is an error in a 200's clothes.
    fn charged(
        &self,
        answer: &Answer,
        believed: &Result<Embeddings, Failure>,
    ) -> Option<Option<u64>> {
        match believed {
            Ok(embeddings) => Some(Some(embeddings.tokens)),
            Err(_) if said::common(200, &answer.body).message.is_some() => None,
            Err(_) => Some(reply::tokens(&self.endpoint, &answer.body)),
        }
    }

    fn encoding(&self, wire: &Wire) -> Encoding {
        if wire.encoding_member.is_none() || self.only_floats.load(Ordering::Relaxed) {
            Encoding::Float
        } else {
            self.endpoint.encoding
        }
    }
}

/// Whether a request that failed had been taken.
fn was_sent(failure: &Failure) -> bool {
    failure.status.is_some() || failure.timed_out
}

/// Whether an error's body says that the member that asks for base64 is what is wrong.
fn refuses_encoding(wire: &Wire, answer: &Answer) -> bool {
    let named = |name: &str| {
        let mut windows = answer.body.windows(name.len());
        windows.any(|window| window == name.as_bytes())
    };
    matches!(answer.status, 400 | 422) && wire.encoding_member.is_some_and(named)
}

/// The vendor's message without what was sent; `None` where nothing is left.
fn scrubbed(said: &str, credentials: &Credentials, inputs: &[String]) -> Option<String> {
    let inputs = inputs.iter().map(String::as_str);
    let said = leak::scrub(said, credentials.hidden(), inputs);
    (!said.trim().is_empty()).then_some(said)
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
