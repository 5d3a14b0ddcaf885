//! What came back for a batch, and whether to believe it.
//!
//! The APIs differ in where their vectors stand in an answer; each of [`super::api`] finds them,
//! and here they are all checked alike before a number is believed: as many embeddings as inputs,
//! each index once, the right length, finite and not all zero. It never quotes an answer, and
//! never reserves more memory than the answer's own size warrants.

use std::borrow::Cow;
use std::fmt;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::endpoint::Endpoint;
use super::failure::Failure;
use super::limits::Limits;
use super::options::{MAX_BATCH_INPUTS, MAX_DIMENSIONS};

/// Standard alphabet, with or without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What came back for a batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Embeddings {
    /// One vector of the endpoint's dimensions for each input, in the order of the inputs.
    pub vectors: Vec<Vec<f32>>,
    /// Tokens that the provider counted; 0 if it does not say.
    pub tokens: u64,
    /// What is left of the account's limits.
    pub limits: Limits,
}

/// An answer as an API found it, not checked yet.
#[derive(Default)]
pub(crate) struct Reply<'a> {
    /// The vectors and the index of the input that each is said to belong to.
    pub vectors: Vec<(Option<u64>, Numbers<'a>)>,
    /// How many there were; those beyond the longest batch are counted, not kept.
    pub count: usize,
    /// Tokens; a float, because some gateways write `5.0`.
    pub tokens: Option<f64>,
}

impl<'a> Reply<'a> {
    /// Vectors that stand in the order of the inputs.
    pub(crate) fn in_order(vectors: List<Numbers<'a>>, tokens: Option<f64>) -> Reply<'a> {
        Reply {
            count: vectors.count,
            vectors: (0..).map(Some).zip(vectors.items).collect(),
            tokens,
        }
    }
}

/// The number at the first of these JSON pointers that leads to one.
pub(crate) fn number(usage: &Value, pointers: &[&str]) -> Option<f64> {
    let mut values = pointers.iter().filter_map(|pointer| usage.pointer(pointer));
    values.find_map(Value::as_f64)
}

/// One embedding as it stands in the answer.
pub(crate) enum Numbers<'a> {
    Base64(Cow<'a, str>),
    /// The numbers, and how many there were.
    List(Vec<f32>, usize),
}

/// The items of a list up to the longest batch, and how many there were.
pub(crate) struct List<T> {
    pub items: Vec<T>,
    pub count: usize,
}

impl<T> Default for List<T> {
    fn default() -> Self {
        List {
            items: Vec::new(),
            count: 0,
        }
    }
}

/// Collects what a list holds, up to `most`, and counts the rest.
fn collect<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(
    mut list: A,
    most: u64,
) -> Result<(Vec<T>, usize), A::Error> {
    let mut items = Vec::new();
    while (items.len() as u64) < most {
        match list.next_element()? {
            Some(item) => {
                items.try_reserve(1).map_err(serde::de::Error::custom)?;
                items.push(item);
            }
            None => {
                let count = items.len();
                return Ok((items, count));
            }
        }
    }
    let mut count = items.len();
    while list.next_element::<IgnoredAny>()?.is_some() {
        count += 1;
    }
    Ok((items, count))
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Items<T> {
            type Value = List<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of embeddings")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<List<T>, A::Error> {
                let (items, count) = collect(list, MAX_BATCH_INPUTS)?;
                Ok(List { items, count })
            }
        }
        deserializer.deserialize_seq(Items(std::marker::PhantomData))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Numbers<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Numbers<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("base64 or a list of numbers")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Numbers<'de>, E> {
                Ok(Numbers::Base64(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Numbers<'de>, E> {
                Ok(Numbers::Base64(Cow::Owned(text.to_owned())))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Numbers<'de>, A::Error> {
                let (numbers, count) = collect(list, MAX_DIMENSIONS)?;
                Ok(Numbers::List(numbers, count))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// The vectors in the body of a 200 to a request with `count` inputs.
///
/// # Errors
/// Temporary if it is malformed in any way, configuration if the vectors have another length than
/// the server's option `dimensions` says.
pub fn read(endpoint: &Endpoint, count: usize, body: &[u8]) -> Result<Embeddings, Failure> {
    let found = match &endpoint.api.wire {
        Some(wire) => (wire.read)(body).map_err(|error| unreadable(&error))?,
        None => Reply::default(), // nothing is sent, so there is no answer
    };
    check(endpoint, count, found)
}

/// The tokens that the body of a 200 says to have been used, whatever is wrong with its vectors.
pub(crate) fn tokens(endpoint: &Endpoint, body: &[u8]) -> Option<u64> {
    let wire = endpoint.api.wire.as_ref()?;
    let found = (wire.read)(body).ok()?;
    found.tokens.map(|tokens| tokens as u64)
}

/// The vectors where an API has found them.
fn check(endpoint: &Endpoint, count: usize, reply: Reply<'_>) -> Result<Embeddings, Failure> {
    if reply.count != count {
        let got = reply.count;
        return Err(malformed(format!(
            "has {got} embeddings for {count} inputs"
        )));
    }
    let mut vectors = Vec::new();
    reserve(&mut vectors, count)?;
    vectors.resize_with(count, Vec::new);
    let mut bytes = Vec::new();
    for (index, numbers) in reply.vectors {
        let place = index
            .and_then(|index| usize::try_from(index).ok())
            .and_then(|index| vectors.get_mut(index))
            .filter(|place| place.is_empty())
            .ok_or_else(|| malformed("has an index that is missing, twice there or too large"))?;
        let mut vector = match numbers {
            Numbers::Base64(text) => decode(&text, endpoint, &mut bytes)?,
            Numbers::List(_, length) if length != endpoint.dimensions => {
                return Err(wrong_length(endpoint, length));
            }
            Numbers::List(numbers, _) => numbers,
        };
        let norm = norm(&vector)?;
        if endpoint.normalize {
            vector
                .iter_mut()
                .for_each(|number| *number = (f64::from(*number) / norm) as f32);
        }
        *place = vector;
    }
    Ok(Embeddings {
        vectors,
        tokens: reply.tokens.map_or(0, |tokens| tokens as u64),
        limits: Limits::default(),
    })
}

/// The failure of a reply in which an API found no list of embeddings.
fn unreadable(error: &serde_json::Error) -> Failure {
    // The error's own text may quote the answer.
    let what = match error.classify() {
        serde_json::error::Category::Eof => "is cut short",
        serde_json::error::Category::Syntax => "is not JSON",
        serde_json::error::Category::Data | serde_json::error::Category::Io => {
            "is not a list of embeddings"
        }
    };
    let place = format!("line {} column {}", error.line(), error.column());
    malformed(format!("{what} ({place})"))
}

fn malformed(what: impl fmt::Display) -> Failure {
    Failure::temporary(format!("the server's answer {what}")).with_status(200)
}

fn reserve<T>(list: &mut Vec<T>, more: usize) -> Result<(), Failure> {
    list.try_reserve_exact(more)
        .map_err(|_| Failure::temporary("out of memory for the server's answer"))
}

fn wrong_length(endpoint: &Endpoint, length: usize) -> Failure {
    Failure::configuration(format!(
        "the model returned {length} dimensions where the server's option \"dimensions\" says {}",
        endpoint.dimensions
    ))
    .with_status(200)
}

/// Little-endian float4 in base64; `bytes` is room to work in.
fn decode(text: &str, endpoint: &Endpoint, bytes: &mut Vec<u8>) -> Result<Vec<f32>, Failure> {
    let room = base64::decoded_len_estimate(text.len());
    if bytes.len() < room {
        let more = room - bytes.len();
        reserve(bytes, more)?;
        bytes.resize(room, 0);
    }
    let length = BASE64
        .decode_slice(text, bytes)
        .map_err(|_| malformed("has an embedding that is not base64"))?;
    let (numbers, rest) = bytes.get(..length).unwrap_or_default().as_chunks::<4>();
    if !rest.is_empty() {
        return Err(malformed("has an embedding that is cut short"));
    }
    if numbers.len() != endpoint.dimensions {
        return Err(wrong_length(endpoint, numbers.len()));
    }
    let mut vector = Vec::new();
    reserve(&mut vector, numbers.len())?;
    vector.extend(numbers.iter().copied().map(f32::from_le_bytes));
    Ok(vector)
}

/// The L2 norm of a vector of finite numbers that are not all zero.
fn norm(vector: &[f32]) -> Result<f64, Failure> {
    // Eight sums side by side, because one would wait for each addition.
    let (eights, rest) = vector.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for eight in eights {
        for (sum, number) in sums.iter_mut().zip(eight) {
            *sum += f64::from(*number) * f64::from(*number);
        }
    }
    let rest = rest.iter().map(|x| f64::from(*x) * f64::from(*x));
    let squares: f64 = sums.into_iter().chain(rest).sum();
    if !squares.is_finite() {
        return Err(malformed("has an embedding with NaN or infinity"));
    }
    if squares == 0.0 {
        return Err(malformed("has an embedding of zeros"));
    }
    Ok(squares.sqrt())
}

#[cfg(test)]
#[path = "reply_tests.rs"]
mod tests;
