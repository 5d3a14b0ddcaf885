//! The options of a server and of a user mapping that were given, each checked by itself, and the
//! values that they stand for.
//!
//! It knows no defaults and no API: what the options add up to is [`super::endpoint`].

use std::time::Duration;

use super::api::{APIS, Api};
use super::endpoint::KeySource;
use super::options::{self, OptionError, OptionErrorKind, Spec, Where};

/// Options that have been checked one by one.
pub(crate) struct Given<'a> {
    options: Vec<(&'static Spec, &'a str)>,
}

impl<'a> Given<'a> {
    pub(crate) fn new(
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

    pub(crate) fn text(&self, wanted: &str) -> Option<&'a str> {
        self.options
            .iter()
            .find(|(spec, _)| spec.name == wanted)
            .map(|(_, value)| *value)
    }

    pub(crate) fn owned(&self, wanted: &str) -> Option<String> {
        self.text(wanted).map(str::to_owned)
    }

    pub(crate) fn integer(&self, wanted: &str) -> Result<Option<u64>, OptionError> {
        self.text(wanted)
            .map(|value| options::integer(wanted, value, 0, u64::MAX))
            .transpose()
    }

    pub(crate) fn size(&self, wanted: &str, default: usize) -> Result<usize, OptionError> {
        let given = self.integer(wanted)?;
        Ok(given.map_or(default, |value| {
            usize::try_from(value).unwrap_or(usize::MAX)
        }))
    }

    pub(crate) fn number(&self, wanted: &str) -> Result<Option<f64>, OptionError> {
        self.text(wanted)
            .map(|value| options::number(wanted, value, f64::MIN, f64::MAX))
            .transpose()
    }

    pub(crate) fn seconds(&self, wanted: &str, default: u64) -> Result<Duration, OptionError> {
        self.text(wanted)
            .map_or(Ok(Duration::from_secs(default)), |value| {
                options::interval(wanted, value, Duration::ZERO, Duration::MAX)
            })
    }

    pub(crate) fn boolean(&self, wanted: &str, default: bool) -> Result<bool, OptionError> {
        self.text(wanted)
            .map_or(Ok(default), |value| options::boolean(wanted, value))
    }

    /// The first of the two that is given: those of the user mapping come first.
    pub(crate) fn key(&self) -> Option<KeySource> {
        self.options.iter().find_map(|(spec, value)| {
            let name = (*value).to_owned();
            match spec.name {
                "api_key_file" => Some(KeySource::File(name)),
                "api_key_env" => Some(KeySource::Environment(name)),
                _ => None,
            }
        })
    }

    /// The API, and that no option is there that only another one has.
    pub(crate) fn api(&self) -> Result<&'static Api, OptionError> {
        let Some(name) = self.text("api") else {
            return Err(missing("api").hint(options::valid_apis()));
        };
        let api = options::api("api", name)?;
        for other in APIS.iter().filter(|other| ***other != *api) {
            let foreign = |(spec, _): &&(&Spec, &str)| other.options.contains(&spec.name);
            if let Some((spec, _)) = self.options.iter().find(foreign) {
                return Err(OptionError::new(
                    OptionErrorKind::NotAllowed,
                    format!("option \"{}\" is for api \"{}\"", spec.name, other.name),
                )
                .hint("Drop the option."));
            }
        }
        Ok(api)
    }
}

/// The refusal of a server without the option `name`.
pub(crate) fn missing(name: &str) -> OptionError {
    OptionError::new(
        OptionErrorKind::Missing,
        format!("option \"{name}\" is required"),
    )
}
