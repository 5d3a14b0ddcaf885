//! Everything that a server of embeddings may do wrong, as it goes over the wire. It never decides when.

use std::io::Write;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use super::vectors::{self, Item};

/// What becomes of a request instead of the right answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// An error of this status.
    Status(u16),
    /// The same with header lines, each ended by CRLF.
    StatusWith(u16, String),
    /// 200 and this instead of embeddings: content type and body.
    Says(&'static str, &'static str),
    /// 307 to this address.
    Redirect(String),

    /// The last embedding is left out.
    TooFew,
    /// One embedding more than there are inputs.
    TooMany,
    /// The last embeddings first: nothing is wrong with that.
    Reversed,
    /// An embedding without an index.
    IndexMissing,
    /// Two embeddings of the first input, none of the last.
    IndexRepeated,
    /// An index beyond the inputs.
    IndexTooLarge,
    /// Vectors of another length.
    Dimensions(usize),
    /// This number among those of the last embedding.
    Number(f32),
    /// All numbers of the last embedding are 0.
    Zeros,

    /// Half of the JSON, as a body that is complete.
    HalfTheJson,
    /// Half of the body, then the end of the connection.
    HalfTheBody,
    /// The same in chunks, of which the last is missing.
    HalfTheChunks,
    /// Half of the body, then a reset.
    ResetInTheMiddle,
    /// The request is read, and the connection reset.
    ResetAfterRequest,
    /// The connection is reset before the request is read.
    ResetBeforeRequest,

    /// Nothing, for as long as the client waits.
    Silence,
    /// One byte of the body after each pause, without an end.
    Drip(Duration),
    /// A body in chunks, without an end.
    Endless,

    /// The right answer without a count of tokens: nothing is wrong with that.
    NoUsage,
    /// The right answer, compressed: nothing is wrong with that.
    Gzip,
    /// The same, of which the second half is not gzip.
    BrokenGzip,
    /// A body without an end, of which a hundredth goes over the wire.
    GzipBomb,
}

/// What a fault is played for.
pub struct Asked<'a> {
    pub body: &'a Value,
    pub inputs: &'a [String],
    pub dimensions: usize,
    pub model: &'a str,
    /// What an error says.
    pub message: &'a str,
    /// Header lines of a success.
    pub announced: &'a str,
}

/// What goes over the wire.
pub enum Wire {
    /// An answer, and the connection is kept.
    Whole(Vec<u8>),
    /// This, then the end of the connection.
    Closed(Vec<u8>),
    /// This, then a reset.
    Reset(Vec<u8>),
    /// The first, then the piece again and again until the client hangs up.
    Repeated {
        first: Vec<u8>,
        piece: Vec<u8>,
        pause: Duration,
    },
    /// Nothing until the client hangs up.
    Silence,
}

/// White space, with which JSON may begin.
static WHITE: [u8; 256 * 1024] = [b' '; 256 * 1024];

/// The right answer.
pub fn right(asked: &Asked) -> Wire {
    let items = vectors::items(asked.model, asked.inputs, asked.dimensions);
    Wire::Whole(json_answer(200, asked.announced, &body(asked, &items)))
}

impl Fault {
    pub fn play(&self, asked: &Asked) -> Wire {
        let items = vectors::items(asked.model, asked.inputs, asked.dimensions);
        let whole = body(asked, &items);
        let half = &whole[..whole.len() / 2];
        match self {
            Fault::NoUsage => {
                let mut body = vectors::body(asked.body, asked.inputs, &items);
                body.as_object_mut().unwrap().remove("usage");
                let body = body.to_string();
                Wire::Whole(json_answer(200, asked.announced, body.as_bytes()))
            }
            Fault::Status(status) => error(*status, "", asked),
            Fault::StatusWith(status, headers) => error(*status, headers, asked),
            Fault::Redirect(to) => error(307, &format!("Location: {to}\r\n"), asked),
            Fault::Says(kind, body) => Wire::Whole(answer(
                200,
                &format!("Content-Type: {kind}\r\n"),
                body.as_bytes(),
            )),
            Fault::HalfTheJson => Wire::Whole(json_answer(200, "", half)),
            Fault::HalfTheBody => Wire::Closed(cut(json_answer(200, "", &whole))),
            Fault::HalfTheChunks => Wire::Closed([&chunked()[..], &chunk(half)].concat()),
            Fault::ResetInTheMiddle => Wire::Reset(cut(json_answer(200, "", &whole))),
            Fault::ResetAfterRequest | Fault::ResetBeforeRequest => Wire::Reset(Vec::new()),
            Fault::Silence => Wire::Silence,
            Fault::Drip(pause) => Wire::Repeated {
                first: chunked(),
                piece: chunk(b" "),
                pause: *pause,
            },
            Fault::Endless => Wire::Repeated {
                first: chunked(),
                piece: chunk(&WHITE[..16 * 1024]),
                pause: Duration::ZERO,
            },
            Fault::Gzip => Wire::Whole(json_answer(200, GZIP, &gzip(&whole))),
            Fault::BrokenGzip => {
                let mut body = gzip(&whole);
                let half = body.len() / 2;
                body[half..].fill(0xff);
                Wire::Whole(json_answer(200, GZIP, &body))
            }
            Fault::GzipBomb => Wire::Repeated {
                first: head(200, &format!("{JSON}{GZIP}Connection: close\r\n")),
                // What is made of several gzip files is their contents one after the other (RFC 1952, 2.2).
                piece: gzip(&WHITE),
                pause: Duration::ZERO,
            },
            _ => Wire::Whole(json_answer(
                200,
                asked.announced,
                &body(asked, &self.spoil(items)),
            )),
        }
    }

    /// The embeddings of an answer that is well-formed and wrong.
    fn spoil(&self, mut items: Vec<Item>) -> Vec<Item> {
        let last = items.len() - 1;
        match self {
            Fault::TooFew => drop(items.pop()),
            Fault::TooMany => items.push((json!(last + 1), items[last].1.clone())),
            Fault::Reversed => items.reverse(),
            Fault::IndexMissing => items[last].0 = Value::Null,
            Fault::IndexRepeated => items[last].0 = json!(if last == 0 { 1 } else { 0 }),
            Fault::IndexTooLarge => items[last].0 = json!(last + 1),
            Fault::Dimensions(dimensions) => {
                for (_, numbers) in &mut items {
                    numbers.resize(*dimensions, 0.5);
                }
            }
            Fault::Number(number) => items[last].1[0] = *number,
            Fault::Zeros => items[last].1.fill(0.0),
            other => panic!("{other:?} is no fault of the embeddings"),
        }
        items
    }
}

const JSON: &str = "Content-Type: application/json\r\n";
const GZIP: &str = "Content-Encoding: gzip\r\n";

fn body(asked: &Asked, items: &[Item]) -> Vec<u8> {
    let body = vectors::body(asked.body, asked.inputs, items);
    body.to_string().into_bytes()
}

fn error(status: u16, headers: &str, asked: &Asked) -> Wire {
    let body = json!({"error": {"message": asked.message, "type": "invalid_request_error"}});
    Wire::Whole(json_answer(status, headers, body.to_string().as_bytes()))
}

fn json_answer(status: u16, headers: &str, body: &[u8]) -> Vec<u8> {
    answer(status, &format!("{JSON}{headers}"), body)
}

fn answer(status: u16, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = format!("{headers}Content-Length: {}\r\n", body.len());
    [&head(status, &length), body].concat()
}

fn head(status: u16, headers: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status} Scripted\r\n{headers}\r\n").into_bytes()
}

fn chunked() -> Vec<u8> {
    head(200, &format!("{JSON}Transfer-Encoding: chunked\r\n"))
}

fn chunk(bytes: &[u8]) -> Vec<u8> {
    let size = format!("{:x}\r\n", bytes.len());
    [size.as_bytes(), bytes, b"\r\n"].concat()
}

/// All of the head and half of the body.
fn cut(mut answer: Vec<u8>) -> Vec<u8> {
    let body = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let body = body.unwrap() + 4;
    answer.truncate(body + (answer.len() - body) / 2);
    answer
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
