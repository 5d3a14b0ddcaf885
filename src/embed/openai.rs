//! The bodies of the `/embeddings` protocol: what is asked, what is answered, what an error says.
//!
//! Every answer is checked before a number is believed: as many embeddings as inputs, each index
//! once, the right length, finite and not all zero. It never keeps a vendor's words for more than
//! an error's `message`, and never reserves more memory than the answer's own size warrants.
//!
//! Source: OpenAI API reference, "Create embeddings".

use std::borrow::Cow;
use std::fmt;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use super::endpoint::{Encoding, Endpoint, Purpose};
use super::failure::Failure;
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
}

#[derive(Serialize)]
struct Request<'a> {
    model: &'a str,
    input: Inputs<'a>,
    encoding_format: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    dimensions: Option<usize>,
    #[serde(flatten)]
    extra: &'a Map<String, Value>,
}

struct Inputs<'a> {
    prefix: &'a str,
    inputs: &'a [String],
}

impl Serialize for Inputs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.inputs.len()))?;
        for input in self.inputs {
            if self.prefix.is_empty() {
                list.serialize_element(input)?;
            } else {
                list.serialize_element(&format!("{}{input}", self.prefix))?;
            }
        }
        list.end()
    }
}

/// The body of a request for the embeddings of `inputs`.
pub fn request_body(endpoint: &Endpoint, inputs: &[String], purpose: Purpose) -> Vec<u8> {
    request_body_as(endpoint, inputs, purpose, endpoint.encoding)
}

/// The same with another encoding than the endpoint's.
pub(crate) fn request_body_as(
    endpoint: &Endpoint,
    inputs: &[String],
    purpose: Purpose,
    encoding: Encoding,
) -> Vec<u8> {
    let request = Request {
        model: &endpoint.model,
        input: Inputs {
            prefix: endpoint.prefix(purpose),
            inputs,
        },
        encoding_format: match encoding {
            Encoding::Base64 => "base64",
            Encoding::Float => "float",
        },
        dimensions: endpoint.send_dimensions.then_some(endpoint.dimensions),
        extra: &endpoint.extra_body,
    };
    // Strings, numbers and maps with string keys always serialize.
    serde_json::to_vec(&request).unwrap_or_default()
}

#[derive(Deserialize)]
struct Reply<'a> {
    #[serde(borrow)]
    data: Items<'a>,
    #[serde(default)]
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Item<'a> {
    index: Option<u64>,
    #[serde(borrow)]
    embedding: Numbers<'a>,
}

/// Floats, because some gateways write `5.0`.
#[derive(Deserialize)]
struct Usage {
    total_tokens: Option<f64>,
    prompt_tokens: Option<f64>,
}

/// The list of embeddings, and how many there were.
struct Items<'a> {
    items: Vec<Item<'a>>,
    count: usize,
}

/// One embedding as it stands in the answer.
enum Numbers<'a> {
    Base64(Cow<'a, str>),
    /// The numbers, and how many there were.
    List(Vec<f32>, usize),
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

impl<'de: 'a, 'a> Deserialize<'de> for Items<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Items<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of embeddings")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Items<'de>, A::Error> {
                let (items, count) = collect(list, MAX_BATCH_INPUTS)?;
                Ok(Items { items, count })
            }
        }
        deserializer.deserialize_seq(List)
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

/// Reads the answer to a request with `count` inputs.
///
/// # Errors
/// Temporary if it is malformed in any way, configuration if the vectors have another length than
/// the server's option `dimensions` says.
pub fn parse_reply(endpoint: &Endpoint, count: usize, body: &[u8]) -> Result<Embeddings, Failure> {
    let reply: Reply = serde_json::from_slice(body).map_err(|error| {
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
    })?;
    if reply.data.count != count {
        let got = reply.data.count;
        return Err(malformed(format!(
            "has {got} embeddings for {count} inputs"
        )));
    }
    let mut vectors = Vec::new();
    reserve(&mut vectors, count)?;
    vectors.resize_with(count, Vec::new);
    let mut bytes = Vec::new();
    for item in reply.data.items {
        let place = item
            .index
            .and_then(|index| usize::try_from(index).ok())
            .and_then(|index| vectors.get_mut(index))
            .filter(|place| place.is_empty())
            .ok_or_else(|| malformed("has an index that is missing, twice there or too large"))?;
        let mut vector = match item.embedding {
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
    let tokens = reply
        .usage
        .and_then(|usage| usage.total_tokens.or(usage.prompt_tokens))
        .map_or(0, |tokens| tokens as u64);
    Ok(Embeddings { vectors, tokens })
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

/// The message of an error's body: `error.message`, or `error` or `message` where that is a text.
pub(crate) fn error_message(body: &[u8]) -> Option<String> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let error = body.get("error");
    let candidates = [
        error.and_then(|error| error.get("message")),
        error,
        body.get("message"),
    ];
    candidates
        .into_iter()
        .flatten()
        .find_map(Value::as_str)
        .map(str::to_owned)
}

/// Whether an error's body says that `encoding_format` is what is wrong.
pub(crate) fn refuses_encoding(status: u16, body: &[u8]) -> bool {
    const NAME: &[u8] = b"encoding_format";
    matches!(status, 400 | 422) && body.windows(NAME.len()).any(|window| window == NAME)
}

#[cfg(test)]
#[path = "openai_tests.rs"]
mod tests;
