//! What the options of a foreign server add up to: where to send texts, what to ask for, and
//! within which limits. Known models ([`super::presets`]) bring URL, dimensions, limits and price.
//!
//! It never reads a key, a file or the environment: an endpoint holds names only.

use std::time::Duration;

use serde_json::{Map, Value};
use sha2::Digest;

use super::api::{Api, webhook};
use super::batch::Room;
use super::builtin;
use super::given::{Given, missing};
use super::options::{self, Kind, OPTIONS};
pub use super::options::{OptionError, OptionErrorKind};
use super::presets::{self, Preset};
use super::tokens::estimate_tokens;

/// Options that only superusers and members of recsync_admin may set: together they decide which
/// secret goes to which host.
pub const PROTECTED_OPTIONS: &[&str] = &[
    "url",
    "headers",
    "header_file",
    "proxy",
    "ca_file",
    "extra_body",
    "api_key_file",
    "api_key_env",
];

/// Options that say what a server costs, and nothing of what is asked of it.
pub const MONEY_OPTIONS: &[&str] = &["price_per_million_tokens", "monthly_budget", "currency"];

/// What a text is embedded for; some models want a prefix that tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// To be found.
    Document,
    /// To find.
    Query,
}

/// How vectors are written in an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// Little-endian float4 in base64: exact, and a third of the bytes.
    Base64,
    /// JSON numbers.
    Float,
}

/// Where a key is to be read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum KeySource {
    /// A file under the secret directory.
    File(String),
    /// An environment variable of the server.
    Environment(String),
}

/// What the SQL/MED validator is called for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// `pg_foreign_server`.
    Server,
    /// `pg_user_mapping`.
    UserMapping,
    /// `pg_foreign_data_wrapper`.
    Wrapper,
    /// `pg_foreign_table`, `pg_attribute`.
    Elsewhere,
}

/// A server as its options describe it.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    /// The wire protocol.
    pub api: &'static Api,
    /// Base of the API; empty for the built-in one.
    pub url: String,
    /// Name of the model.
    pub model: String,
    /// Name of the deployment, where it is not the model's.
    pub deployment: Option<String>,
    /// Version of the API, where it is not the usual one.
    pub api_version: Option<String>,
    /// Length of an embedding.
    pub dimensions: usize,
    /// Inputs in one request.
    pub max_batch_inputs: usize,
    /// Tokens in one request, as the provider counts them.
    pub max_batch_tokens: Option<u64>,
    /// Tokens in one input.
    pub max_input_tokens: u64,
    /// Limit of the account.
    pub requests_per_minute: Option<u64>,
    /// Limit of the account.
    pub tokens_per_minute: Option<u64>,
    /// Requests in flight at a time.
    pub max_concurrency: usize,
    /// Tries of one row before it is a dead letter.
    pub max_attempts: u32,
    /// For the name, the connection and TLS, each of the two steps.
    pub connect_timeout: Duration,
    /// For each piece of the answer.
    pub read_timeout: Duration,
    /// For a whole request.
    pub total_timeout: Duration,
    /// Where the key is; the user mapping's before the server's.
    pub key: Option<KeySource>,
    /// File under the secret directory with secret headers.
    pub header_file: Option<String>,
    /// Further headers, none of them secret.
    pub headers: Vec<(String, String)>,
    /// How vectors are asked for.
    pub encoding: Encoding,
    /// Whether to scale each vector to length 1.
    pub normalize: bool,
    /// Whether to ask the model for `dimensions`.
    pub send_dimensions: bool,
    /// Put before each query.
    pub query_prefix: String,
    /// Put before each document.
    pub document_prefix: String,
    /// Merged into each request.
    pub extra_body: Map<String, Value>,
    /// HTTP proxy.
    pub proxy: Option<String>,
    /// PEM file of the certificate authorities to trust instead of the public ones.
    pub ca_file: Option<String>,
    /// For cost counters and budgets.
    pub price_per_million_tokens: Option<f64>,
    /// What may be spent in a calendar month.
    pub monthly_budget: Option<f64>,
    /// Of price and budget.
    pub currency: String,
}

/// Checks the options of a server, a user mapping or a wrapper, all of them together: ALTER
/// presents those that stay, too.
///
/// # Errors
/// An [`OptionError`] for the first option that is unknown, misplaced, malformed or out of range,
/// and for one that is missing.
pub fn validate(place: Place, options: &[(String, String)]) -> Result<(), OptionError> {
    match place {
        Place::Server => Endpoint::from_options(options, &[]).map(drop),
        Place::UserMapping => Given::new(&[], options).map(drop),
        Place::Wrapper => match options.first() {
            None => Ok(()),
            Some((name, _)) => Err(OptionError::new(
                OptionErrorKind::NotAllowed,
                format!("invalid option \"{name}\""),
            )
            .hint("The wrapper recsync has no options; they belong to its servers.")),
        },
        Place::Elsewhere => Err(OptionError::new(
            OptionErrorKind::NotAllowed,
            "recsync servers have no tables",
        )
        .hint("Name the server in recsync.create_pipeline or recsync.embed.")),
    }
}

impl Endpoint {
    /// The endpoint that a server's options describe; those of the user mapping override.
    ///
    /// # Errors
    /// As [`validate`].
    pub fn from_options(
        server: &[(String, String)],
        mapping: &[(String, String)],
    ) -> Result<Endpoint, OptionError> {
        let given = Given::new(server, mapping)?;
        let api = given.api()?;
        if api.is_for_hooks() {
            webhook::require_own_options(&given)?;
        }
        let model = match given.owned("model") {
            Some(model) => model,
            None if api.wire.is_none() => api.example_model.to_owned(),
            None if api.is_for_hooks() => String::new(),
            None => {
                let hint = format!("Name the model, such as {}.", api.example_model);
                return Err(missing("model").hint(hint));
            }
        };
        let preset = presets::find(&model)
            .filter(|preset| preset.api != builtin::API.name || api.wire.is_none());
        let dimensions = dimensions(&given, api, &model, preset)?;
        let shortened = preset.is_some_and(|preset| preset.dimensions != dimensions);
        let usual = preset.filter(|preset| preset.api == api.name);
        Ok(Endpoint {
            api,
            url: url(&given, api, usual)?,
            dimensions,
            deployment: given.owned("deployment"),
            api_version: given.owned("api_version"),
            max_batch_inputs: batch_inputs(&given, api)?,
            max_batch_tokens: given
                .integer("max_batch_tokens")?
                .or(usual.map_or(api.max_batch_tokens, |preset| preset.max_batch_tokens)),
            max_input_tokens: given
                .integer("max_input_tokens")?
                .unwrap_or(preset.map_or(api.max_input_tokens, |preset| preset.max_input_tokens)),
            requests_per_minute: given.integer("requests_per_minute")?,
            tokens_per_minute: given.integer("tokens_per_minute")?,
            max_concurrency: given.size("max_concurrency", 4)?,
            max_attempts: u32::try_from(given.integer("max_attempts")?.unwrap_or(3))
                .unwrap_or(u32::MAX),
            connect_timeout: given.seconds("connect_timeout", 30)?,
            read_timeout: given.seconds("read_timeout", 60)?,
            total_timeout: given.seconds("total_timeout", 120)?,
            key: given.key(),
            header_file: given.owned("header_file"),
            headers: given
                .text("headers")
                .map_or(Ok(Vec::new()), |value| options::headers("headers", value))?,
            encoding: match given.text("encoding") {
                Some("float") => Encoding::Float,
                _ => Encoding::Base64,
            },
            // Some APIs cut a vector without scaling it.
            normalize: given.boolean("normalize", shortened)?,
            send_dimensions: given.boolean("send_dimensions", shortened)?,
            query_prefix: given
                .text("query_prefix")
                .or(preset.map(|preset| preset.query_prefix))
                .unwrap_or_default()
                .to_owned(),
            document_prefix: given
                .text("document_prefix")
                .or(preset.map(|preset| preset.document_prefix))
                .unwrap_or_default()
                .to_owned(),
            extra_body: extra_body(&given, api)?,
            proxy: given.owned("proxy"),
            ca_file: given.owned("ca_file"),
            price_per_million_tokens: given
                .number("price_per_million_tokens")?
                .or(usual.and_then(|preset| preset.price_per_million_tokens)),
            monthly_budget: given.number("monthly_budget")?,
            currency: given.owned("currency").unwrap_or_else(|| "USD".to_owned()),
            model,
        })
    }

    /// Where requests go; empty where none are sent.
    pub fn request_url(&self) -> String {
        let wire = self.api.wire.as_ref();
        wire.map_or(String::new(), |wire| (wire.url)(self))
    }

    /// A digest of all that makes a document's vector, but the text.
    pub fn recipe(&self) -> [u8; 32] {
        let digest = sha2::Sha256::new()
            .chain_update(self.api.name)
            .chain_update([0])
            .chain_update(self.request_url())
            .chain_update([0])
            .chain_update(&self.model)
            .chain_update([0])
            .chain_update(self.document_prefix.as_bytes())
            .chain_update([0])
            .chain_update(Value::Object(self.extra_body.clone()).to_string())
            .chain_update(self.dimensions.to_le_bytes())
            .chain_update([u8::from(self.normalize), u8::from(self.send_dimensions)]);
        digest.finalize().into()
    }

    /// Whether the same is asked in the same way, whatever it costs.
    pub fn asks_as(&self, other: &Endpoint) -> bool {
        let mut same = other.clone();
        same.take_prices(self);
        *self == same
    }

    /// From now on it costs what `other` costs.
    pub fn take_prices(&mut self, other: &Endpoint) {
        self.price_per_million_tokens = other.price_per_million_tokens;
        self.monthly_budget = other.monthly_budget;
        self.currency.clone_from(&other.currency);
    }

    /// Tokens of a text that one input may have, its prefix aside; `None` where nothing is sent. Estimated ones
    /// ([`super::tokens`]).
    pub fn input_tokens(&self) -> Option<u64> {
        self.api.wire.as_ref()?;
        let most = self.max_input_tokens.saturating_mul(self.api.token_share) / 100;
        let prefix = match self.document_prefix.as_str() {
            "" => 0, // the tokenizer takes its time to load
            prefix => estimate_tokens(prefix),
        };
        Some(most.saturating_sub(prefix).max(1))
    }

    /// What one request may hold. Tokens are estimated ones ([`super::tokens`]).
    pub fn room(&self) -> Room {
        let share = |tokens: u64| (tokens.saturating_mul(self.api.token_share) / 100).max(1);
        Room::new(self.max_batch_inputs, self.max_batch_tokens.map(share))
    }
}

/// The base that is given, or the usual one of the model or the API.
fn url(given: &Given, api: &Api, usual: Option<&Preset>) -> Result<String, OptionError> {
    if api.wire.is_none() {
        return Ok(String::new());
    }
    let known = usual.and_then(|preset| preset.url).or(api.url);
    given
        .text("url")
        .or(known)
        .map(str::to_owned)
        .ok_or_else(|| {
            let hint = format!("Give the base of the API, such as {}.", api.example_url);
            missing("url").hint(hint)
        })
}

/// The inputs of a request that are given, if the API takes as many, or 50.
fn batch_inputs(given: &Given, api: &Api) -> Result<usize, OptionError> {
    let most = api.max_batch_inputs;
    let wanted = given.size("max_batch_inputs", most.min(50))?;
    if wanted <= most {
        return Ok(wanted);
    }
    let range = format!("a whole number from 1 to {most} for api \"{}\"", api.name);
    Err(options::not_this(
        "max_batch_inputs",
        &wanted.to_string(),
        &range,
    ))
}

/// What is to be merged into each request, if nothing in it is recsync's own to say.
fn extra_body(given: &Given, api: &Api) -> Result<Map<String, Value>, OptionError> {
    let Some(value) = given.text("extra_body") else {
        return Ok(Map::new());
    };
    let members = options::body("extra_body", value)?;
    let own = api.wire.as_ref().map_or(&[][..], |wire| wire.own_members);
    match own.iter().find(|(name, _)| members.contains_key(*name)) {
        None => Ok(members),
        Some((name, hint)) => {
            let detail = format!("It holds \"{name}\".");
            Err(options::invalid("extra_body", &detail, hint))
        }
    }
}

/// The dimensions that are given, if the model can have them, or those that it is known for.
fn dimensions(
    given: &Given,
    api: &Api,
    model: &str,
    preset: Option<&Preset>,
) -> Result<usize, OptionError> {
    let invalid = |name: &str, value: &str| {
        OptionError::new(
            OptionErrorKind::InvalidValue,
            format!("invalid value for option \"{name}\": \"{value}\""),
        )
    };
    if api.wire.is_none() && model != api.example_model {
        let only = api.example_model;
        return Err(invalid("model", model).hint(format!(
            "The model of api \"{}\" is \"{only}\"; leave the option out.",
            api.name
        )));
    }
    let own = preset.map(|preset| preset.dimensions);
    let wanted = given.size("dimensions", own.unwrap_or(0))?;
    match preset {
        None if api.is_for_hooks() => Ok(0),
        Some(preset) if !preset.lengths.allow(preset.dimensions, wanted) => {
            let own = preset.dimensions;
            Err(invalid("dimensions", &wanted.to_string())
                .detail(format!("Model \"{model}\" has {own} dimensions."))
                .hint(preset.lengths.hint(own)))
        }
        None if wanted == 0 => Err(missing("dimensions")
            .detail(format!(
                "Model \"{model}\" is not one of those that recsync knows."
            ))
            .hint("Give the length of the model's embeddings.")),
        _ => Ok(wanted),
    }
}

/// Name, kind and meaning of every option, for documentation.
pub fn documented_options() -> impl Iterator<Item = (&'static str, String, &'static str)> {
    OPTIONS.iter().map(|spec| {
        let kind = match spec.kind {
            Kind::Integer { min, max } => format!("{min} to {max}"),
            Kind::Number { min, max } => format!("{min} to {max}"),
            Kind::Interval { min, max } => format!("{min:?} to {max:?}"),
            Kind::Api => Api::names(),
            Kind::OneOf(words) => words.join(" or "),
            Kind::Boolean => "boolean".to_owned(),
            Kind::Headers | Kind::Body => "JSON object".to_owned(),
            Kind::Url | Kind::ProxyUrl => "URL".to_owned(),
            Kind::SecretFile | Kind::Path => "file".to_owned(),
            Kind::Text | Kind::Word | Kind::EnvironmentName | Kind::Version | Kind::Currency => {
                "text".to_owned()
            }
        };
        (spec.name, kind, spec.doc)
    })
}

#[cfg(test)]
#[path = "endpoint_tests.rs"]
mod tests;
