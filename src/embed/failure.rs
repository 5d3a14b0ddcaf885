//! One kind of failure for everything that can go wrong on the way to an embedding.
//!
//! It says whose fault it is, which decides who pays: a permanent failure belongs to an input, a
//! provider's failure charges no row an attempt, a configuration failure waits for a person.
//! It never decides when to try again; that is [`super::retry`].

use std::time::Duration;

use super::limits::Limits;

/// What a failure's message may be at most, in characters.
const MAX_MESSAGE_CHARS: usize = 300;

/// Whose fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Neither the input nor the settings: trying the same again may well succeed.
    Temporary,
    /// An input of the batch: the same batch will be refused again.
    Permanent,
    /// The provider or the way to it: everybody who asks it now gets the same.
    Provider,
    /// An option, a key or a right: a person has to change something.
    Configuration,
}

impl Class {
    /// The word for SQL: `temporary`, `permanent`, `provider` or `configuration`.
    pub fn as_str(self) -> &'static str {
        match self {
            Class::Temporary => "temporary",
            Class::Permanent => "permanent",
            Class::Provider => "provider",
            Class::Configuration => "configuration",
        }
    }

    /// The class of an HTTP status other than 200.
    pub fn of_status(status: u16) -> Class {
        match status {
            400 | 413 | 422 => Class::Permanent,
            401..=404 => Class::Configuration,
            408 | 425 | 429 | 500..=599 => Class::Provider,
            _ => Class::Temporary,
        }
    }
}

/// Why there is no embedding. `message` holds neither a key nor an input text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Whose fault it is.
    pub class: Class,
    /// The HTTP status, where there was an answer.
    pub status: Option<u16>,
    /// One short sentence, at most 300 characters.
    pub message: String,
    /// How long the provider asks to be left alone.
    pub retry_after: Option<Duration>,
    /// Whether the provider said "too many requests" (429).
    pub rate_limited: bool,
    /// Whether the provider said that an input has more tokens than the model takes.
    pub too_long: bool,
    /// Whether the server took the request and did not answer it in time.
    pub timed_out: bool,
    /// What is left of the account's limits, where the answer said it.
    pub limits: Limits,
}

impl Failure {
    /// A failure without an HTTP status.
    pub fn new(class: Class, message: impl Into<String>) -> Failure {
        Failure {
            class,
            status: None,
            message: cut(message.into()),
            retry_after: None,
            rate_limited: false,
            too_long: false,
            timed_out: false,
            limits: Limits::default(),
        }
    }

    pub(crate) fn temporary(message: impl Into<String>) -> Failure {
        Failure::new(Class::Temporary, message)
    }

    pub(crate) fn provider(message: impl Into<String>) -> Failure {
        Failure::new(Class::Provider, message)
    }

    pub(crate) fn configuration(message: impl Into<String>) -> Failure {
        Failure::new(Class::Configuration, message)
    }

    /// The failure that an answer with `status` (not 200) means. `said` is the vendor's own
    /// message, from which keys and inputs have been removed.
    pub(crate) fn of_status(
        status: u16,
        retry_after: Option<Duration>,
        said: Option<&str>,
    ) -> Failure {
        let message = match said {
            Some(said) => format!("the server answered {status}: {said}"),
            None if (300..400).contains(&status) => {
                format!("the server answered {status}: redirects are not followed")
            }
            None => format!("the server answered {status}"),
        };
        Failure {
            status: Some(status),
            retry_after,
            rate_limited: status == 429,
            ..Failure::new(Class::of_status(status), message)
        }
    }

    /// The failure that an error in the body of a 200 means: that of `status`, where the body
    /// names one.
    pub(crate) fn inside_200(status: Option<u16>, said: &str) -> Failure {
        let message = match status {
            Some(status) => format!("the server answered 200 with an error {status}: {said}"),
            None => format!("the server answered 200 with an error: {said}"),
        };
        let class = status.map_or(Class::Temporary, Class::of_status);
        Failure {
            status: Some(200),
            rate_limited: status == Some(429),
            ..Failure::new(class, message)
        }
    }

    /// How long the provider wants to be left alone by everybody, not only by the sender of this request.
    pub fn asked_to_wait(&self) -> Option<Duration> {
        self.retry_after.filter(|_| self.class == Class::Provider)
    }

    pub(crate) fn with_status(self, status: u16) -> Failure {
        Failure {
            status: Some(status),
            ..self
        }
    }
}

/// At most 300 characters, of which the last is an ellipsis where something was cut.
fn cut(message: String) -> String {
    match message.char_indices().nth(MAX_MESSAGE_CHARS) {
        None => message,
        Some(_) => message
            .chars()
            .take(MAX_MESSAGE_CHARS - 1)
            .chain(['…'])
            .collect(),
    }
}

/// What a pipeline's owner reads of a failure.
pub fn describe(failure: &Failure) -> String {
    match failure.status {
        Some(status) => format!("HTTP {status}: {}", failure.message),
        None => failure.message.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_tells_whose_fault_it_is() {
        for (class, statuses) in [
            (Class::Permanent, &[400, 413, 422][..]),
            (Class::Configuration, &[401, 402, 403, 404]),
            (Class::Provider, &[408, 425, 429, 500, 502, 503, 529]),
            (Class::Temporary, &[201, 204, 301, 307, 409, 418]),
        ] {
            for &status in statuses {
                assert_eq!(Class::of_status(status), class, "{status}");
            }
        }
    }

    #[test]
    fn only_429_is_a_rate_limit() {
        assert!(Failure::of_status(429, None, None).rate_limited);
        assert!(!Failure::of_status(503, None, None).rate_limited);
    }

    #[test]
    fn a_long_message_is_cut_at_a_character() {
        let failure = Failure::temporary("ä".repeat(1_000));
        assert_eq!(failure.message.chars().count(), MAX_MESSAGE_CHARS);
        assert!(failure.message.ends_with('…'));
    }
}
