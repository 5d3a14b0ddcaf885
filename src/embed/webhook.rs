//! Letters of hooks: signed, sent, and what an answer means.
//!
//! The signature is that of Standard Webhooks 1.0 (standardwebhooks.com): headers `webhook-id`, `webhook-timestamp`
//! (seconds since 1970) and `webhook-signature`, which is `v1,` and the base64 of the HMAC-SHA256 of
//! `id.timestamp.body` by the key, a secret `whsec_` and base64. The id stays the same however often a letter is sent;
//! the timestamp is that of the attempt. It never sends the key, and never sends a letter unsigned.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use ureq::http::{HeaderName, HeaderValue};

use super::api::join;
use super::endpoint::Endpoint;
use super::failure::{Class, Failure};
use super::http::LateClient;
use super::reply::Embeddings;
use super::secret::{Credentials, Secret, SecretPolicy};

/// What a letter may be sent by.
pub const METHODS: &[&str] = &["POST", "PUT", "PATCH"];
/// What a secret begins with.
const PREFIX: &str = "whsec_";
/// The shortest key that the standard allows, in bytes.
const SHORTEST_KEY: usize = 24;

/// What is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// One of [`METHODS`].
    pub method: String,
    /// Below the server's url.
    pub path: String,
    /// The same for every attempt.
    pub id: String,
    /// JSON.
    pub body: String,
}

impl Letter {
    /// As a lane takes it.
    pub fn into_inputs(self) -> Vec<String> {
        vec![self.method, self.path, self.id, self.body]
    }
}

/// The signature of one attempt.
pub fn signature(key: &[u8], id: &str, timestamp: u64, body: &str) -> String {
    // A key of any length is one for HMAC.
    let signed = Hmac::<Sha256>::new_from_slice(key).map(|mut hmac| {
        hmac.update(format!("{id}.{timestamp}.").as_bytes());
        hmac.update(body.as_bytes());
        STANDARD.encode(hmac.finalize().into_bytes())
    });
    format!("v1,{}", signed.unwrap_or_default())
}

/// The bytes of a secret.
fn key(secret: Option<&Secret>) -> Result<Vec<u8>, Failure> {
    let Some(secret) = secret else {
        return Err(Failure::configuration(
            "the server has no signing key: give it api_key_file or api_key_env",
        ));
    };
    let encoded = secret.expose().strip_prefix(PREFIX);
    let key = encoded.and_then(|encoded| STANDARD.decode(encoded).ok());
    key.filter(|key| key.len() >= SHORTEST_KEY).ok_or_else(|| {
        Failure::configuration(format!(
            "the signing key is not \"{PREFIX}\" and the base64 of at least {SHORTEST_KEY} bytes"
        ))
    })
}

/// A server's letters, with its connections.
pub(crate) struct Courier {
    endpoint: Endpoint,
    policy: SecretPolicy,
    client: LateClient,
}

impl Courier {
    pub(crate) fn new(endpoint: Endpoint, policy: SecretPolicy) -> Courier {
        Courier {
            endpoint,
            policy,
            client: LateClient::default(),
        }
    }

    /// Sends one letter, of which `inputs` are the parts. Its key is read now: one that has changed is used from the
    /// next letter on.
    ///
    /// # Errors
    /// A [`Failure`] whose message holds neither the key nor a piece of the letter.
    pub(crate) fn deliver(&self, inputs: &[String]) -> Result<Embeddings, Failure> {
        let [method, path, id, body] = inputs else {
            return Err(Failure::temporary("internal error"));
        };
        let credentials = Credentials::read(&self.endpoint, &self.policy)?;
        let key = key(credentials.key.as_ref())?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let timestamp = now.unwrap_or_default().as_secs();
        let signed = [
            ("webhook-id", id.clone()),
            ("webhook-timestamp", timestamp.to_string()),
            ("webhook-signature", signature(&key, id, timestamp, body)),
        ];
        let signed = signed.into_iter().filter_map(|(name, value)| {
            let value = HeaderValue::try_from(value).ok()?;
            Some((HeaderName::from_static(name), value))
        });
        let url = join(&self.endpoint.url, path);
        let unkeyed = Credentials {
            key: None,
            ..credentials
        };
        let client = self.client.get(&self.endpoint, &self.policy)?;
        let answer = client.deliver(method, &url, &unkeyed, signed.collect(), body.as_bytes())?;
        match answer.status {
            200..=299 => Ok(Embeddings {
                limits: answer.limits,
                ..Embeddings::default()
            }),
            status => Err(refused(
                status,
                Failure::of_status(status, answer.retry_after, None),
            )),
        }
    }
}

/// An address that answers elsewhere, not by this method or not any more is a matter of the hook's, not of the letter's.
fn refused(status: u16, failure: Failure) -> Failure {
    match status {
        300..=399 | 405 | 410 => Failure {
            class: Class::Configuration,
            ..failure
        },
        _ => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embed::testing::{Directory, Server};

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    /// Source: the example of the Standard Webhooks libraries
    /// (github.com/standard-webhooks/standard-webhooks, tests of each of them).
    #[test]
    fn a_signature_is_that_of_standard_webhooks() {
        let key = STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        assert_eq!(
            signature(
                &key,
                "msg_p5jXN8AQM9LWM0D4loKWxJek",
                1_614_265_330,
                r#"{"test": 2432232314}"#
            ),
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        );
    }

    fn courier(url: &str, secret: &str) -> (Directory, Courier) {
        let directory = Directory::new();
        directory.write("hook.key", secret, 0o600);
        let options = [
            ("api", "webhook"),
            ("url", url),
            ("api_key_file", "hook.key"),
        ];
        let options = options.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let endpoint = Endpoint::from_options(&options, &[]).unwrap();
        let policy = SecretPolicy {
            allowed_hosts: vec!["127.0.0.1".to_owned()],
            ..directory.policy()
        };
        let courier = Courier::new(endpoint, policy);
        (directory, courier)
    }

    fn letter() -> Vec<String> {
        let letter = Letter {
            method: "PUT".into(),
            path: "/models/refresh".into(),
            id: "msg_1".into(),
            body: "{}".into(),
        };
        letter.into_inputs()
    }

    #[test]
    fn a_letter_goes_to_its_path_signed_and_without_the_key() {
        let server = Server::always(204, "", "");
        let (_directory, courier) = courier(&server.url, SECRET);
        courier.deliver(&letter()).unwrap();
        let seen = server.seen();
        let seen = seen.first().unwrap();
        assert!(seen.path.ends_with("/models/refresh"), "{}", seen.path);
        let key = STANDARD.decode(&SECRET[PREFIX.len()..]).unwrap();
        let timestamp = seen.header("webhook-timestamp").unwrap().parse().unwrap();
        assert_eq!(
            seen.header("webhook-signature").unwrap(),
            signature(&key, "msg_1", timestamp, "{}")
        );
        assert_eq!(seen.header("authorization"), None);
    }

    #[test]
    fn a_key_that_is_none_sends_nothing_and_is_not_shown() {
        let server = Server::always(200, "", "");
        for secret in ["s3cr3t", "whsec_s3cr3t!", "whsec_c2hvcnQ="] {
            let (_directory, courier) = courier(&server.url, secret);
            let failure = courier.deliver(&letter()).unwrap_err();
            assert_eq!(failure.class, Class::Configuration);
            assert!(!failure.message.contains(secret), "{}", failure.message);
        }
        assert!(server.seen().is_empty());
    }

    #[test]
    fn what_moved_or_is_gone_is_for_a_person_and_what_is_refused_for_the_dead_letters() {
        for (status, class) in [
            (301, Class::Configuration),
            (404, Class::Configuration),
            (410, Class::Configuration),
            (422, Class::Permanent),
            (409, Class::Temporary),
            (503, Class::Provider),
        ] {
            let server = Server::always(status, "", "");
            let (_directory, courier) = courier(&server.url, SECRET);
            assert_eq!(courier.deliver(&letter()).unwrap_err().class, class);
        }
    }
}
