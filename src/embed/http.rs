//! One HTTP agent for one endpoint, bounded in time, in bytes and in where it goes.
//!
//! Connections are kept and shared by the threads of a lane. It never follows a redirect, never
//! takes a proxy from the environment, and never reads more of an answer than the batch warrants.

use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use ureq::config::Config;
use ureq::http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::unversioned::transport::DefaultConnector;
use ureq::{Agent, Proxy, Timeout};

use super::api::{KeyHeader, Wire};
use super::endpoint::Endpoint;
use super::failure::Failure;
use super::hosts::{AllowedHosts, CheckedResolver, Refusal};
use super::limits::{Limits, retry_after};
use super::options;
use super::secret::{Credentials, Secret, SecretPolicy, read_ca_file};
use super::traffic;

/// Enough for any vendor's explanation.
const MAX_ERROR_BYTES: usize = 16 * 1024;
/// For what an answer holds beside its numbers.
const ANSWER_FRAME_BYTES: usize = 64 * 1024;
/// A number of JSON at its longest, with comma and space.
const BYTES_PER_NUMBER: usize = 30;
/// A control character as `\u001f`.
const BYTES_PER_ECHOED_BYTE: usize = 6;
/// A connection that rested longer is made anew: many servers hang up after a minute.
const MAX_IDLE_AGE: Duration = Duration::from_secs(50);

/// An answer whose body has been read.
#[derive(Debug)]
pub(crate) struct Answer {
    pub status: u16,
    pub retry_after: Option<Duration>,
    pub limits: Limits,
    pub body: Vec<u8>,
}

/// What sends requests to one endpoint.
pub(crate) struct Client {
    agent: Agent,
    uri: Uri,
    headers: Vec<(HeaderName, HeaderValue)>,
    key: KeyHeader,
    allowed: Arc<AllowedHosts>,
}

impl Client {
    pub(crate) fn new(endpoint: &Endpoint, policy: &SecretPolicy) -> Result<Client, Failure> {
        let allowed = AllowedHosts::parse(&policy.allowed_hosts).map_err(|entry| {
            Failure::configuration(format!(
                "\"{entry}\" in recsync.allowed_hosts is no host, address or network"
            ))
        })?;
        let allowed = Arc::new(allowed);
        let uri = endpoint
            .request_url()
            .parse()
            .map_err(|_| Failure::configuration("the server's url is malformed"))?;
        let headers = endpoint.headers.iter();
        let wire = endpoint.api.wire.as_ref();
        let config = config(endpoint, policy)?;
        let resolver = CheckedResolver::new(Arc::clone(&allowed));
        Ok(Client {
            agent: Agent::with_parts(config, DefaultConnector::default(), resolver),
            uri,
            headers: headers
                .filter_map(|(name, value)| options::header(name, value))
                .collect(),
            key: wire.map_or(KeyHeader::Bearer, |wire| wire.key),
            allowed,
        })
    }

    /// Sends `body` and reads the answer: of a 200 at most `limit` bytes, of others 16 KiB.
    pub(crate) fn post(
        &self,
        credentials: &Credentials,
        body: &[u8],
        limit: usize,
    ) -> Result<Answer, Failure> {
        self.check_behind_proxy()?;
        let mut request = self.agent.post(&self.uri);
        if let Some(headers) = request.headers_mut() {
            self.set(headers, credentials);
        }
        let secure = self.uri.scheme_str() == Some("https");
        traffic::sent(body.len());
        let mut response = request
            .send(body)
            .map_err(|error| failure_of(error, secure))?;
        let status = response.status().as_u16();
        let retry_after = retry_after(response.headers(), SystemTime::now());
        let limits = Limits::of(response.headers());
        if status == 200
            && let Some(kind) = foreign_kind(response.headers())
        {
            let what = format!("the server's answer is {kind}, not JSON");
            return Err(Failure::provider(what).with_status(200));
        }
        let length = response.body().content_length();
        let mut reader = response.body_mut().as_reader();
        let body = if status == 200 {
            read_bounded(&mut reader, limit, length, secure)?
        } else {
            // What an error says is a courtesy: without it the status still counts.
            let mut body = Vec::new();
            let _ = reader.take(MAX_ERROR_BYTES as u64).read_to_end(&mut body);
            body
        };
        traffic::received(body.len());
        Ok(Answer {
            status,
            retry_after,
            limits,
            body,
        })
    }
}

/// Made for the first request: a `ca_file` that is not there yet is looked for again.
#[derive(Default)]
pub(crate) struct LateClient(Mutex<Option<Arc<Client>>>);

impl LateClient {
    pub(crate) fn get(
        &self,
        endpoint: &Endpoint,
        policy: &SecretPolicy,
    ) -> Result<Arc<Client>, Failure> {
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*made {
            Some(client) => Ok(Arc::clone(client)),
            None => {
                let client = Arc::new(Client::new(endpoint, policy)?);
                *made = Some(Arc::clone(&client));
                Ok(client)
            }
        }
    }
}

impl Client {
    /// Sends `body` to `url`, which is below the endpoint's, with further headers. Of the answer's body nothing counts:
    /// it is read so far that the connection can be used again.
    pub(crate) fn deliver(
        &self,
        method: &str,
        url: &str,
        credentials: &Credentials,
        further: Vec<(HeaderName, HeaderValue)>,
        body: &[u8],
    ) -> Result<Answer, Failure> {
        self.check_behind_proxy()?;
        let mut request = match method {
            "PUT" => self.agent.put(url),
            "PATCH" => self.agent.patch(url),
            _ => self.agent.post(url),
        };
        if let Some(headers) = request.headers_mut() {
            self.set(headers, credentials);
            headers.extend(further);
        }
        let secure = self.uri.scheme_str() == Some("https");
        let mut response = request
            .send(body)
            .map_err(|error| failure_of(error, secure))?;
        let answer = Answer {
            status: response.status().as_u16(),
            retry_after: retry_after(response.headers(), SystemTime::now()),
            limits: Limits::of(response.headers()),
            body: Vec::new(),
        };
        let reader = response.body_mut().as_reader();
        let _ = std::io::copy(
            &mut reader.take(MAX_ERROR_BYTES as u64),
            &mut std::io::sink(),
        );
        Ok(answer)
    }

    fn check_behind_proxy(&self) -> Result<(), Failure> {
        if self.agent.config().proxy().is_none() {
            return Ok(());
        }
        let host = self.uri.host().unwrap_or_default();
        let checked = self.allowed.check_behind_proxy(host);
        checked.map_err(|refusal| Failure::configuration(refusal.to_string()))
    }

    fn set(&self, headers: &mut HeaderMap, credentials: &Credentials) {
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        for (name, value) in &self.headers {
            headers.insert(name, value.clone());
        }
        authorize(headers, self.key, credentials);
    }
}

/// What the answer to `inputs` may weigh at most.
pub(crate) fn answer_limit(wire: &Wire, inputs: &[String], dimensions: usize) -> usize {
    let echoed: usize = if wire.echoes {
        inputs.iter().map(String::len).sum()
    } else {
        0
    };
    inputs
        .len()
        .saturating_mul(dimensions)
        .saturating_mul(BYTES_PER_NUMBER)
        .saturating_add(echoed.saturating_mul(BYTES_PER_ECHOED_BYTE))
        .saturating_add(ANSWER_FRAME_BYTES)
}

fn config(endpoint: &Endpoint, policy: &SecretPolicy) -> Result<Config, Failure> {
    let proxy = endpoint
        .proxy
        .as_deref()
        .map(Proxy::new)
        .transpose()
        .map_err(|_| Failure::configuration("the server's option \"proxy\" is malformed"))?;
    let roots = match &endpoint.ca_file {
        None => RootCerts::WebPki,
        Some(path) => authorities(path, policy)?,
    };
    Ok(Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .proxy(proxy)
        .tls_config(TlsConfig::builder().root_certs(roots).build())
        .user_agent(concat!("recsync/", env!("CARGO_PKG_VERSION")))
        .accept("application/json")
        .timeout_global(Some(endpoint.total_timeout))
        .timeout_resolve(Some(endpoint.connect_timeout))
        .timeout_connect(Some(endpoint.connect_timeout))
        .timeout_per_read(Some(endpoint.read_timeout))
        .timeout_per_write(Some(endpoint.read_timeout))
        .max_idle_connections(endpoint.max_concurrency)
        .max_idle_connections_per_host(endpoint.max_concurrency)
        .max_idle_age(MAX_IDLE_AGE)
        .build())
}

fn authorities(path: &str, policy: &SecretPolicy) -> Result<RootCerts, Failure> {
    let pem = read_ca_file(path, policy)?;
    let certificates: Vec<Certificate> = parse_pem(pem.as_bytes())
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        return Err(Failure::configuration(format!(
            "ca_file \"{path}\" holds no certificate"
        )));
    }
    Ok(RootCerts::from(certificates))
}

fn authorize(headers: &mut HeaderMap, key_header: KeyHeader, credentials: &Credentials) {
    let key = credentials.key.iter().filter_map(|key| match key_header {
        KeyHeader::Bearer => {
            let value = HeaderValue::try_from(format!("Bearer {}", key.expose())).ok()?;
            Some((header::AUTHORIZATION, value))
        }
        KeyHeader::Named(name) => {
            let value = HeaderValue::try_from(key.expose()).ok()?;
            Some((HeaderName::from_static(name), value))
        }
    });
    let others = |(name, value): &(String, Secret)| options::header(name, value.expose());
    for (name, mut value) in key.chain(credentials.headers.iter().filter_map(others)) {
        value.set_sensitive(true);
        headers.insert(name, value);
    }
}

/// What a body is said to be, where that is no JSON: a gateway's page, or that of another address. A
/// server that says nothing in particular is believed.
fn foreign_kind(headers: &HeaderMap) -> Option<&str> {
    let kind = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    let kind = kind.split(';').next().unwrap_or_default().trim();
    let json = kind.to_ascii_lowercase().contains("json");
    let particular = !["", "text/plain", "application/octet-stream"].contains(&kind);
    (particular && !json).then_some(kind)
}

fn read_bounded(
    reader: &mut impl Read,
    limit: usize,
    length: Option<u64>,
    secure: bool,
) -> Result<Vec<u8>, Failure> {
    let too_large = || {
        Failure::temporary(format!("the server's answer is larger than {limit} bytes"))
            .with_status(200)
    };
    let expected = length.map_or(0, |length| usize::try_from(length).unwrap_or(usize::MAX));
    if expected > limit {
        return Err(too_large());
    }
    let mut body = Vec::new();
    let mut piece = [0; 16 * 1024];
    let mut more = expected;
    loop {
        body.try_reserve(more)
            .map_err(|_| Failure::temporary("out of memory for the server's answer"))?;
        match reader.read(&mut piece) {
            Ok(0) => return Ok(body),
            Ok(size) => {
                let read = piece.get(..size).unwrap_or_default();
                if body.len() + read.len() > limit {
                    return Err(too_large());
                }
                body.try_reserve(read.len())
                    .map_err(|_| Failure::temporary("out of memory for the server's answer"))?;
                body.extend_from_slice(read);
                more = 0;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(body_failure(error.into(), secure)),
        }
    }
}

/// What went wrong while the body of a 200 was read. A connection that ends before it is the
/// provider's failure; what came over it may be garbled for a reason of the inputs'.
fn body_failure(error: ureq::Error, secure: bool) -> Failure {
    let ended = match &error {
        ureq::Error::Io(error) => error.kind() == std::io::ErrorKind::UnexpectedEof,
        ureq::Error::BodyStalled => true,
        _ => false,
    };
    let garbled = matches!(
        error,
        ureq::Error::Protocol(_) | ureq::Error::Decompress(..)
    );
    if ended {
        Failure::provider("the connection ended before the server's answer").with_status(200)
    } else if garbled {
        Failure::temporary("the server's answer is garbled").with_status(200)
    } else {
        failure_of(error, secure)
    }
}

/// A failure without an answer. None of ureq's own texts is shown that could quote the request.
fn failure_of(error: ureq::Error, secure: bool) -> Failure {
    use std::io::ErrorKind;
    match error {
        ureq::Error::Timeout(which) => Failure {
            timed_out: !matches!(which, Timeout::Resolve | Timeout::Connect),
            ..Failure::provider(format!("no answer in time (timeout: {which})"))
        },
        ureq::Error::HostNotFound => Failure::provider("the server's host is not known"),
        ureq::Error::Io(error) if secure && error.kind() == ErrorKind::InvalidData => {
            Failure::configuration(format!("TLS failed: {error}"))
        }
        ureq::Error::Io(error) => match error.kind() {
            ErrorKind::UnexpectedEof => {
                Failure::provider("the server closed the connection without an answer")
            }
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Failure {
                timed_out: true,
                ..Failure::provider("no answer in time")
            },
            kind => Failure::provider(format!("connection failed: {kind}")),
        },
        ureq::Error::ConnectionFailed => Failure::provider("connection failed"),
        ureq::Error::ConnectProxyFailed(_) => Failure::provider("the proxy refused to connect"),
        ureq::Error::Rustls(error) => Failure::configuration(format!("TLS failed: {error}")),
        ureq::Error::Tls(error) => Failure::configuration(format!("TLS failed: {error}")),
        ureq::Error::Pem(_) | ureq::Error::TlsRequired => Failure::configuration("TLS failed"),
        ureq::Error::Other(error) if error.is::<Refusal>() => {
            Failure::configuration(error.to_string())
        }
        ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::InvalidProxyUrl => {
            Failure::configuration("the server's url, proxy or a header is malformed")
        }
        ureq::Error::Protocol(_) | ureq::Error::LargeResponseHeader(..) => {
            Failure::temporary("the server's answer is not HTTP")
        }
        _ => Failure::temporary("the request failed"),
    }
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
