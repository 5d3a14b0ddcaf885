//! The options of a server and of a user mapping: one table of names, places, kinds and docs.
//!
//! It reads one value at a time and says precisely what is wrong with it. It never looks at two
//! options together; what they add up to is [`super::endpoint`].

use std::time::Duration;

use serde_json::{Map, Value};
use ureq::http::{HeaderName, HeaderValue};

use super::api::Api;
use super::leak::{looks_like_credential, names_credential};
use super::url::{proxy_url, url};

/// What is wrong with an option, in the terms of SQL/MED.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionErrorKind {
    /// No such option (HV00D, `fdw_invalid_option_name`).
    UnknownOption,
    /// A value that is malformed or out of range (HV024, `fdw_invalid_attribute_value`).
    InvalidValue,
    /// An option that has to be given (HV00J, `fdw_option_name_not_found`).
    Missing,
    /// An option that exists, but not here (HV00D).
    NotAllowed,
}

/// An option that cannot be accepted. It quotes no value of a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct OptionError {
    /// One line without a full stop, as PostgreSQL's messages are.
    pub message: String,
    /// A sentence on what is wrong.
    pub detail: Option<String>,
    /// A sentence on what to write instead.
    pub hint: Option<String>,
    /// For the SQLSTATE.
    pub kind: OptionErrorKind,
}

impl OptionError {
    pub(crate) fn new(kind: OptionErrorKind, message: impl Into<String>) -> OptionError {
        OptionError {
            message: message.into(),
            detail: None,
            hint: None,
            kind,
        }
    }

    pub(crate) fn detail(self, detail: impl Into<String>) -> OptionError {
        OptionError {
            detail: Some(detail.into()),
            ..self
        }
    }

    pub(crate) fn hint(self, hint: impl Into<String>) -> OptionError {
        OptionError {
            hint: Some(hint.into()),
            ..self
        }
    }
}

/// Where an option may stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Where {
    Server,
    ServerOrMapping,
}

/// What a value has to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    /// One of [`super::api::APIS`].
    Api,
    /// Any text.
    Text,
    /// Text that is not empty.
    Word,
    OneOf(&'static [&'static str]),
    Integer {
        min: u64,
        max: u64,
    },
    Number {
        min: f64,
        max: f64,
    },
    /// `30s`, `500ms`, `2min`, `1h`, or a number of seconds.
    Interval {
        min: Duration,
        max: Duration,
    },
    Boolean,
    Url,
    ProxyUrl,
    Headers,
    Body,
    /// A name or path under the secret directory.
    SecretFile,
    Path,
    EnvironmentName,
    /// Letters, digits, `.` and `-`.
    Version,
    Currency,
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spec {
    pub name: &'static str,
    pub place: Where,
    pub kind: Kind,
    pub doc: &'static str,
}

const fn on_server(name: &'static str, kind: Kind, doc: &'static str) -> Spec {
    Spec {
        name,
        place: Where::Server,
        kind,
        doc,
    }
}

const fn on_both(name: &'static str, kind: Kind, doc: &'static str) -> Spec {
    Spec {
        place: Where::ServerOrMapping,
        ..on_server(name, kind, doc)
    }
}

const TIMEOUT: Kind = Kind::Interval {
    min: Duration::from_millis(1),
    max: Duration::from_secs(3_600),
};
const POSITIVE: Kind = Kind::Integer {
    min: 1,
    max: 1_000_000_000,
};
const MONEY: Kind = Kind::Number { min: 0.0, max: 1e9 };

/// The widest vector that pgvector stores.
pub(crate) const MAX_DIMENSIONS: u64 = 16_000;
/// The longest batch that any provider takes (OpenAI).
pub(crate) const MAX_BATCH_INPUTS: u64 = 2_048;

/// All options. The order is the one in which they are listed to the user.
#[rustfmt::skip]
pub(crate) const OPTIONS: &[Spec] = &[
    on_server("api", Kind::Api, "wire protocol"),
    on_server("url", Kind::Url, "base of the API, up to and without /embeddings (that of the vendor; ollama: http://localhost:11434)"),
    on_server("model", Kind::Word, "name of the model"),
    on_server("deployment", Kind::Word, "azure_openai: name of the deployment (the model's name)"),
    on_server("api_version", Kind::Version, "azure_openai: date of the API, or v1 (2024-10-21)"),
    on_server("dimensions", Kind::Integer { min: 1, max: MAX_DIMENSIONS }, "length of an embedding"),
    on_both("api_key_file", Kind::SecretFile, "file under recsync.secret_directory that holds the key"),
    on_both("api_key_env", Kind::EnvironmentName, "environment variable of the server that holds the key"),
    on_server("headers", Kind::Headers, "JSON object of further headers, none of them secret"),
    on_server("header_file", Kind::SecretFile, "file under recsync.secret_directory with secret headers, one `Name: value` a line"),
    on_server("max_batch_inputs", Kind::Integer { min: 1, max: MAX_BATCH_INPUTS }, "inputs in one request, at most what the API takes (50)"),
    on_server("max_batch_tokens", POSITIVE, "tokens in one request (what the API takes)"),
    on_server("max_input_tokens", POSITIVE, "tokens in one input (what the model takes)"),
    on_server("requests_per_minute", POSITIVE, "limit of the account, for all databases and sessions together"),
    on_server("tokens_per_minute", POSITIVE, "limit of the account, for all databases and sessions together"),
    on_server("max_concurrency", Kind::Integer { min: 1, max: 256 }, "requests in flight at a time (4)"),
    on_server("connect_timeout", TIMEOUT, "for the name, the connection and TLS (30s)"),
    on_server("read_timeout", TIMEOUT, "for each piece of the answer (60s)"),
    on_server("total_timeout", TIMEOUT, "for a whole request (120s)"),
    on_server("max_attempts", Kind::Integer { min: 1, max: 100 }, "tries of one row before it is a dead letter (3)"),
    on_server("encoding", Kind::OneOf(&["base64", "float"]), "how vectors are asked for (base64 where the API has it)"),
    on_server("normalize", Kind::Boolean, "scale each vector to length 1 (on where a known model is shortened)"),
    on_server("send_dimensions", Kind::Boolean, "ask the model for this many dimensions (on where it is known to shorten)"),
    on_server("query_prefix", Kind::Text, "put before each query (what the card of a known model says)"),
    on_server("document_prefix", Kind::Text, "put before each document (what the card of a known model says)"),
    on_server("extra_body", Kind::Body, "JSON object merged into each request (gemini: into each of its requests)"),
    on_server("proxy", Kind::ProxyUrl, "HTTP proxy; the environment is ignored"),
    on_server("ca_file", Kind::Path, "PEM file of the certificate authorities to trust instead of the public ones"),
    on_server("price_per_million_tokens", MONEY, "for the cost counters and budgets"),
    on_server("monthly_budget", MONEY, "what may be spent in a calendar month"),
    on_server("currency", Kind::Currency, "of price and budget (USD)"),
];

/// The row of the option `name`.
pub(crate) fn spec(name: &str) -> Option<&'static Spec> {
    OPTIONS.iter().find(|spec| spec.name == name)
}

/// The names that may stand on a server, or in a user mapping.
pub(crate) fn names(mapping: bool) -> Vec<&'static str> {
    OPTIONS
        .iter()
        .filter(|spec| !mapping || spec.place == Where::ServerOrMapping)
        .map(|spec| spec.name)
        .collect()
}

/// Checks one value by itself.
pub(crate) fn check(spec: &Spec, value: &str) -> Result<(), OptionError> {
    let name = spec.name;
    match spec.kind {
        Kind::Api => api(name, value).map(drop),
        Kind::Text => Ok(()),
        Kind::Word if value.trim().is_empty() => Err(invalid(name, "It is empty.", spec.doc)),
        Kind::Word => Ok(()),
        Kind::OneOf(words) if words.contains(&value) => Ok(()),
        Kind::OneOf(words) => Err(not_this(
            name,
            value,
            &format!("one of {}", words.join(", ")),
        )),
        Kind::Integer { min, max } => integer(name, value, min, max).map(drop),
        Kind::Number { min, max } => number(name, value, min, max).map(drop),
        Kind::Interval { min, max } => interval(name, value, min, max).map(drop),
        Kind::Boolean => boolean(name, value).map(drop),
        Kind::Url => url(name, value).map(drop),
        Kind::ProxyUrl => proxy_url(name, value),
        Kind::Headers => headers(name, value).map(drop),
        Kind::Body => body(name, value).map(drop),
        Kind::SecretFile => secret_file(name, value),
        Kind::Path if value.is_empty() || value.contains('\0') => Err(invalid(
            name,
            "It is empty.",
            "Give the path of a PEM file.",
        )),
        Kind::Path => Ok(()),
        Kind::EnvironmentName => environment_name(name, value),
        Kind::Version
            if !value.is_empty()
                && (value.bytes()).all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b)) =>
        {
            Ok(())
        }
        Kind::Version => Err(not_this(name, value, "a version, such as 2024-10-21 or v1")),
        Kind::Currency if value.len() == 3 && value.bytes().all(|b| b.is_ascii_uppercase()) => {
            Ok(())
        }
        Kind::Currency => Err(not_this(name, value, "three capital letters, such as USD")),
    }
}

/// A value that is refused without quoting it.
pub(crate) fn invalid(name: &str, detail: &str, hint: &str) -> OptionError {
    OptionError::new(
        OptionErrorKind::InvalidValue,
        format!("invalid value for option \"{name}\""),
    )
    .detail(detail)
    .hint(hint)
}

pub(crate) fn not_this(name: &str, value: &str, wanted: &str) -> OptionError {
    OptionError::new(
        OptionErrorKind::InvalidValue,
        format!("invalid value for option \"{name}\": \"{value}\""),
    )
    .hint(format!("Option \"{name}\" must be {wanted}."))
}

/// The API that a value names.
pub(crate) fn api(name: &str, value: &str) -> Result<&'static Api, OptionError> {
    Api::find(value).ok_or_else(|| {
        let message = format!("invalid value for option \"{name}\": \"{value}\"");
        OptionError::new(OptionErrorKind::InvalidValue, message).hint(valid_apis())
    })
}

/// A sentence with all APIs.
pub(crate) fn valid_apis() -> String {
    format!("Valid are: {}.", Api::names())
}

/// A whole number from `min` to `max`.
pub(crate) fn integer(name: &str, value: &str, min: u64, max: u64) -> Result<u64, OptionError> {
    value
        .trim()
        .parse()
        .ok()
        .filter(|number| (min..=max).contains(number))
        .ok_or_else(|| not_this(name, value, &format!("a whole number from {min} to {max}")))
}

/// A decimal number from `min` to `max`.
pub(crate) fn number(name: &str, value: &str, min: f64, max: f64) -> Result<f64, OptionError> {
    value
        .trim()
        .parse()
        .ok()
        .filter(|number| (min..=max).contains(number))
        .ok_or_else(|| not_this(name, value, &format!("a number from {min} to {max}")))
}

/// A duration: a number with `ms`, `s`, `min` or `h`, or a number of seconds.
pub(crate) fn interval(
    name: &str,
    value: &str,
    min: Duration,
    max: Duration,
) -> Result<Duration, OptionError> {
    let text = value.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text.get(digits.len()..) {
        Some("ms") => Some(0.001),
        Some("" | "s") => Some(1.0),
        Some("min") => Some(60.0),
        Some("h") => Some(3_600.0),
        _ => None,
    };
    unit.zip(digits.trim_end().parse::<f64>().ok())
        .and_then(|(unit, count)| Duration::try_from_secs_f64(unit * count).ok())
        .filter(|duration| (min..=max).contains(duration))
        .ok_or_else(|| {
            let wanted = format!(
                "a duration from {min:?} to {max:?}, such as 500ms, 30s, 2min, or a number of seconds"
            );
            not_this(name, value, &wanted)
        })
}

/// A boolean as PostgreSQL writes them.
pub(crate) fn boolean(name: &str, value: &str) -> Result<bool, OptionError> {
    match value.trim().to_ascii_lowercase().as_str() {
        "true" | "on" | "yes" | "t" | "y" | "1" => Ok(true),
        "false" | "off" | "no" | "f" | "n" | "0" => Ok(false),
        _ => Err(not_this(name, value, "true or false")),
    }
}

/// The refusal of a value that carries a credential.
pub(crate) fn credential(name: &str, what: &str) -> OptionError {
    invalid(
        name,
        &format!("It carries {what}; the options of a server can be read by every role."),
        "Give a key by api_key_file or api_key_env and a secret header by header_file.",
    )
}

fn object(name: &str, value: &str) -> Result<Map<String, Value>, OptionError> {
    serde_json::from_str(value).map_err(|_| {
        let hint = "Give an object such as {\"name\": \"value\"}.";
        invalid(name, "It is not a JSON object.", hint)
    })
}

/// Headers that recsync or HTTP itself sets.
const OWN_HEADERS: &[&str] = &[
    "host",
    "content-length",
    "content-type",
    "content-encoding",
    "transfer-encoding",
    "accept-encoding",
    "connection",
    "upgrade",
    "expect",
    "te",
    "trailer",
];

/// The name and value of a header that may be added to a request.
pub(crate) fn header(name: &str, value: &str) -> Option<(HeaderName, HeaderValue)> {
    let name: HeaderName = name.parse().ok()?;
    let value: HeaderValue = value.parse().ok()?;
    (!OWN_HEADERS.contains(&name.as_str())).then_some((name, value))
}

/// Further headers: a JSON object of strings without credentials.
pub(crate) fn headers(name: &str, value: &str) -> Result<Vec<(String, String)>, OptionError> {
    let mut headers = Vec::new();
    for (header_name, header_value) in object(name, value)? {
        let hint = "Give an object of strings such as {\"OpenAI-Organization\": \"org-1\"}.";
        let Value::String(text) = header_value else {
            return Err(invalid(name, "A value is not a string.", hint));
        };
        if names_credential(&header_name) || looks_like_credential(&text) {
            return Err(credential(name, "a credential"));
        }
        if header(&header_name, &text).is_none() {
            let detail = "A header is malformed, or one that recsync sets itself.";
            return Err(invalid(name, detail, hint));
        }
        headers.push((header_name, text));
    }
    Ok(headers)
}

/// What is merged into each request: a JSON object without credentials. Which members it must not
/// hold depends on the API.
pub(crate) fn body(name: &str, value: &str) -> Result<Map<String, Value>, OptionError> {
    let members = object(name, value)?;
    if members
        .iter()
        .any(|(key, value)| member_carries(key, value))
    {
        return Err(credential(name, "a credential"));
    }
    Ok(members)
}

fn member_carries(key: &str, value: &Value) -> bool {
    names_credential(key) || value_carries(value)
}

fn value_carries(value: &Value) -> bool {
    match value {
        Value::String(text) => looks_like_credential(text),
        Value::Array(values) => values.iter().any(value_carries),
        Value::Object(members) => members
            .iter()
            .any(|(key, value)| member_carries(key, value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

fn secret_file(name: &str, value: &str) -> Result<(), OptionError> {
    if looks_like_credential(value) {
        return Err(credential(name, "the key itself instead of a file's name"));
    }
    if !is_below(value) {
        let hint = "Give the name of a file under recsync.secret_directory, such as openai.key.";
        return Err(invalid(
            name,
            "It is not a name or path below a directory.",
            hint,
        ));
    }
    Ok(())
}

/// Whether a path stays below the directory that it is joined to.
pub(crate) fn is_below(path: &str) -> bool {
    use std::path::{Component, Path};
    let mut components = Path::new(path).components();
    !path.is_empty()
        && !path.ends_with('/')
        && !path.chars().any(char::is_control)
        && components.all(|component| matches!(component, Component::Normal(_)))
}

fn environment_name(name: &str, value: &str) -> Result<(), OptionError> {
    let starts = value.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let goes_on = value
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if looks_like_credential(value) || !starts || !goes_on {
        let hint = "Give the name of an environment variable, such as OPENAI_API_KEY.";
        return Err(invalid(name, "It is not the name of a variable.", hint));
    }
    Ok(())
}
