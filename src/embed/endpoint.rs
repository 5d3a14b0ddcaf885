//! What the options of a foreign server add up to: where to send texts, what to ask for, and
//! within which limits. Known models bring URL, dimensions, limits and price.
//!
//! It never reads a key, a file or the environment: an endpoint holds names only.

use std::time::Duration;

use serde_json::{Map, Value};

use super::options::{self, Kind, OPTIONS, Where};
pub use super::options::{OptionError, OptionErrorKind};

/// The name of the built-in model and of its api.
const BUILTIN: &str = "builtin";

/// APIs of the design that a later version will speak.
const LATER_APIS: &[&str] = &[
    "azure_openai",
    "ollama",
    "gemini",
    "voyage",
    "cohere",
    "webhook",
];

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

/// The wire protocol of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Api {
    /// `POST {url}/embeddings`, as OpenAI and many others speak it.
    OpenAi,
    /// No request at all: [`super::builtin`].
    Builtin,
}

impl Api {
    /// The word in the option `api`.
    pub fn as_str(self) -> &'static str {
        match self {
            Api::OpenAi => "openai",
            Api::Builtin => BUILTIN,
        }
    }
}

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
    pub api: Api,
    /// Base of the API; empty for the built-in one.
    pub url: String,
    /// Name of the model.
    pub model: String,
    /// Length of an embedding.
    pub dimensions: usize,
    /// Inputs in one request.
    pub max_batch_inputs: usize,
    /// Tokens in one request.
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

/// What is known of a model by its name.
struct Preset {
    model: &'static str,
    url: Option<&'static str>,
    dimensions: usize,
    /// Whether the model shortens its embeddings on request.
    shortens: bool,
    max_input_tokens: u64,
    price_per_million_tokens: Option<f64>,
}

const OPENAI_URL: &str = "https://api.openai.com/v1";

#[rustfmt::skip]
const PRESETS: &[Preset] = &[
    Preset { model: "text-embedding-3-small", url: Some(OPENAI_URL), dimensions: 1_536, shortens: true, max_input_tokens: 8_191, price_per_million_tokens: Some(0.02) },
    Preset { model: "text-embedding-3-large", url: Some(OPENAI_URL), dimensions: 3_072, shortens: true, max_input_tokens: 8_191, price_per_million_tokens: Some(0.13) },
    Preset { model: "text-embedding-ada-002", url: Some(OPENAI_URL), dimensions: 1_536, shortens: false, max_input_tokens: 8_191, price_per_million_tokens: Some(0.10) },
    Preset { model: "all-minilm-l6-v2", url: None, dimensions: 384, shortens: false, max_input_tokens: 256, price_per_million_tokens: None },
];

/// By the name without its publisher: `sentence-transformers/all-MiniLM-L6-v2`.
fn preset(model: &str) -> Option<&'static Preset> {
    let name = model.rsplit('/').next().unwrap_or(model);
    PRESETS
        .iter()
        .find(|preset| preset.model.eq_ignore_ascii_case(name))
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

/// Options that have been checked one by one.
struct Given<'a> {
    options: Vec<(&'static options::Spec, &'a str)>,
}

impl<'a> Given<'a> {
    fn new(
        server: &'a [(String, String)],
        mapping: &'a [(String, String)],
    ) -> Result<Given<'a>, OptionError> {
        let mut options = Vec::new();
        let placed = (mapping.iter().map(|option| (true, option)))
            .chain(server.iter().map(|option| (false, option)));
        for (mapped, (name, value)) in placed {
            let (kind, owner) = match (options::spec(name), mapped) {
                (Some(spec), true) if spec.place == Where::Server => {
                    (OptionErrorKind::NotAllowed, "user mapping")
                }
                (Some(spec), _) => {
                    options::check(spec, value)?;
                    options.push((spec, value.as_str()));
                    continue;
                }
                (None, true) => (OptionErrorKind::UnknownOption, "user mapping"),
                (None, false) => (OptionErrorKind::UnknownOption, "server"),
            };
            let valid = options::names(mapped).join(", ");
            return Err(OptionError::new(kind, format!("invalid option \"{name}\""))
                .hint(format!("Valid options of a {owner} are: {valid}.")));
        }
        for options in [server, mapping] {
            let has = |wanted: &str| options.iter().any(|(name, _)| name == wanted);
            if has("api_key_file") && has("api_key_env") {
                return Err(OptionError::new(
                    OptionErrorKind::InvalidValue,
                    "options \"api_key_file\" and \"api_key_env\" exclude each other",
                )
                .hint("Drop one of them."));
            }
        }
        Ok(Given { options })
    }

    fn text(&self, wanted: &str) -> Option<&'a str> {
        self.options
            .iter()
            .find(|(spec, _)| spec.name == wanted)
            .map(|(_, value)| *value)
    }

    fn owned(&self, wanted: &str) -> Option<String> {
        self.text(wanted).map(str::to_owned)
    }

    fn integer(&self, wanted: &str) -> Result<Option<u64>, OptionError> {
        self.text(wanted)
            .map(|value| options::integer(wanted, value, 0, u64::MAX))
            .transpose()
    }

    fn size(&self, wanted: &str, default: usize) -> Result<usize, OptionError> {
        let given = self.integer(wanted)?;
        Ok(given.map_or(default, |value| {
            usize::try_from(value).unwrap_or(usize::MAX)
        }))
    }

    fn number(&self, wanted: &str) -> Result<Option<f64>, OptionError> {
        self.text(wanted)
            .map(|value| options::number(wanted, value, f64::MIN, f64::MAX))
            .transpose()
    }

    fn seconds(&self, wanted: &str, default: u64) -> Result<Duration, OptionError> {
        self.text(wanted)
            .map_or(Ok(Duration::from_secs(default)), |value| {
                options::interval(wanted, value, Duration::ZERO, Duration::MAX)
            })
    }

    fn boolean(&self, wanted: &str, default: bool) -> Result<bool, OptionError> {
        self.text(wanted)
            .map_or(Ok(default), |value| options::boolean(wanted, value))
    }

    /// The first of the two that is given: those of the user mapping come first.
    fn key(&self) -> Option<KeySource> {
        self.options.iter().find_map(|(spec, value)| {
            let name = (*value).to_owned();
            match spec.name {
                "api_key_file" => Some(KeySource::File(name)),
                "api_key_env" => Some(KeySource::Environment(name)),
                _ => None,
            }
        })
    }

    fn api(&self) -> Result<Api, OptionError> {
        let hint = format!("Valid now are: {}, {BUILTIN}.", Api::OpenAi.as_str());
        let invalid = |message: String| {
            Err(OptionError::new(OptionErrorKind::InvalidValue, message).hint(&hint))
        };
        match self.text("api") {
            Some("openai") => Ok(Api::OpenAi),
            Some(BUILTIN) => Ok(Api::Builtin),
            Some(api) if LATER_APIS.contains(&api) => {
                invalid(format!("api \"{api}\" is not available in this version"))
            }
            Some(api) => invalid(format!("invalid value for option \"api\": \"{api}\"")),
            None => Err(missing("api").hint(hint)),
        }
    }
}

fn missing(name: &str) -> OptionError {
    OptionError::new(
        OptionErrorKind::Missing,
        format!("option \"{name}\" is required"),
    )
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
        let model = given.owned("model");
        let model = match api {
            Api::OpenAi => model.ok_or_else(|| {
                missing("model").hint("Name the model, such as text-embedding-3-small.")
            })?,
            Api::Builtin => model.unwrap_or_else(|| BUILTIN.to_owned()),
        };
        let preset = preset(&model);
        let dimensions = dimensions(&given, api, &model, preset)?;
        let url = match (given.owned("url"), preset.and_then(|preset| preset.url)) {
            _ if api == Api::Builtin => String::new(),
            (Some(url), _) => url,
            (None, Some(url)) => url.to_owned(),
            (None, None) => {
                let hint = "Give the base of the API, such as http://localhost:8080/v1.";
                return Err(missing("url").hint(hint));
            }
        };
        let shortened = preset.is_some_and(|preset| preset.dimensions != dimensions);
        Ok(Endpoint {
            api,
            url,
            dimensions,
            max_batch_inputs: given.size("max_batch_inputs", 50)?,
            max_batch_tokens: given.integer("max_batch_tokens")?,
            max_input_tokens: given
                .integer("max_input_tokens")?
                .unwrap_or(preset.map_or(8_191, |preset| preset.max_input_tokens)),
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
            normalize: given.boolean("normalize", false)?,
            send_dimensions: given.boolean("send_dimensions", shortened)?,
            query_prefix: given.owned("query_prefix").unwrap_or_default(),
            document_prefix: given.owned("document_prefix").unwrap_or_default(),
            extra_body: given
                .text("extra_body")
                .map_or(Ok(Map::new()), |value| options::body("extra_body", value))?,
            proxy: given.owned("proxy"),
            ca_file: given.owned("ca_file"),
            price_per_million_tokens: given
                .number("price_per_million_tokens")?
                .or(preset.and_then(|preset| preset.price_per_million_tokens)),
            monthly_budget: given.number("monthly_budget")?,
            currency: given.owned("currency").unwrap_or_else(|| "USD".to_owned()),
            model,
        })
    }

    /// Where requests go: the base with `/embeddings` before its query, if it has one.
    pub fn request_url(&self) -> String {
        let (base, query) = match self.url.split_once('?') {
            Some((base, query)) => (base, format!("?{query}")),
            None => (self.url.as_str(), String::new()),
        };
        let base = base.trim_end_matches('/');
        let path = if base.ends_with("/embeddings") {
            ""
        } else {
            "/embeddings"
        };
        format!("{base}{path}{query}")
    }

    /// What is put before a text.
    pub(crate) fn prefix(&self, purpose: Purpose) -> &str {
        match purpose {
            Purpose::Document => &self.document_prefix,
            Purpose::Query => &self.query_prefix,
        }
    }
}

/// The dimensions that are given, if the model can have them, or those that it is known for.
fn dimensions(
    given: &Given,
    api: Api,
    model: &str,
    preset: Option<&Preset>,
) -> Result<usize, OptionError> {
    if api == Api::Builtin && model != BUILTIN {
        return Err(OptionError::new(
            OptionErrorKind::InvalidValue,
            format!("invalid value for option \"model\": \"{model}\""),
        )
        .hint("The model of api \"builtin\" is \"builtin\"; leave the option out."));
    }
    let (native, least) = match (api, preset) {
        (Api::Builtin, _) => (Some(super::builtin::DIMENSIONS), super::builtin::DIMENSIONS),
        (Api::OpenAi, Some(preset)) if preset.shortens => (Some(preset.dimensions), 1),
        (Api::OpenAi, Some(preset)) => (Some(preset.dimensions), preset.dimensions),
        (Api::OpenAi, None) => (None, 1),
    };
    let wanted = given.size("dimensions", native.unwrap_or(0))?;
    match native {
        Some(most) if !(least..=most).contains(&wanted) => Err(OptionError::new(
            OptionErrorKind::InvalidValue,
            format!("invalid value for option \"dimensions\": \"{wanted}\""),
        )
        .detail(format!("Model \"{model}\" has {most} dimensions."))
        .hint(if least < most {
            format!("Option \"dimensions\" must be a whole number from {least} to {most}.")
        } else {
            "Leave the option out.".to_owned()
        })),
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
            Kind::OneOf(words) => words.join(" or "),
            Kind::Boolean => "boolean".to_owned(),
            Kind::Headers | Kind::Body => "JSON object".to_owned(),
            Kind::Url | Kind::ProxyUrl => "URL".to_owned(),
            Kind::SecretFile | Kind::Path => "file".to_owned(),
            Kind::Text | Kind::Word | Kind::EnvironmentName | Kind::Currency => "text".to_owned(),
        };
        (spec.name, kind, spec.doc)
    })
}

#[cfg(test)]
#[path = "endpoint_tests.rs"]
mod tests;
