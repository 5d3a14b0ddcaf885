//! An embedding API on the loopback address that answers after a fixed time and notes when. Its vectors are a function
//! of the text, numbers of length 1, in base64. It never fails.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

/// Of clustered vectors.
const CENTRES: u64 = 100;
/// How far from its centre a vector is, where the centre's length is 1.
const SPREAD: f32 = 0.5;

/// How vectors lie.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Vectors {
    /// In all directions alike: the hardest for a graph.
    Random,
    /// Around a hundred centres, as those of texts do.
    Clustered,
}

impl Vectors {
    pub fn label(self) -> &'static str {
        match self {
            Vectors::Random => "random",
            Vectors::Clustered => "clustered",
        }
    }
}

/// What is asked: the length of a vector, and how long a request takes.
#[derive(Clone, Copy)]
pub struct Model {
    pub dimensions: usize,
    pub vectors: Vectors,
    pub delay: Duration,
}

/// A request's two moments: its last byte has come, its answer's last byte is given to the kernel.
#[derive(Clone, Copy)]
pub struct Seen {
    pub inputs: usize,
    /// Of the body, and what the answer says to have been used.
    pub bytes: usize,
    pub tokens: usize,
    pub arrived: Instant,
    pub answered: Instant,
}

pub struct Loopback {
    port: u16,
    model: Model,
    seen: Arc<Mutex<Vec<Seen>>>,
}

#[derive(Deserialize)]
struct Request {
    input: Vec<String>,
    encoding_format: String,
}

impl Loopback {
    pub fn start(model: Model) -> Loopback {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let notes = Arc::clone(&seen);
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let notes = Arc::clone(&notes);
                thread::spawn(move || serve(connection, model, &notes));
            }
        });
        Loopback { port, model, seen }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// A foreign server `name` for it, with further options such as `max_concurrency '8'`.
    pub fn server(&self, name: &str, options: &[&str]) -> String {
        let more: String = options.iter().map(|option| format!(", {option}")).collect();
        format!(
            "CREATE SERVER {name} FOREIGN DATA WRAPPER recsync OPTIONS (api 'openai', url 'http://127.0.0.1:{}/v1',
             model 'loopback', dimensions '{}', api_key_env 'TEST_API_KEY'{more})",
            self.port, self.model.dimensions
        )
    }

    /// The requests since the last call.
    pub fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

impl Model {
    /// The unit vector that a text has here.
    pub fn vector(&self, text: &str) -> Vec<f32> {
        let seed = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let own = direction(seed, self.dimensions);
        match self.vectors {
            Vectors::Random => own,
            Vectors::Clustered => {
                let centre = direction(seed % CENTRES, self.dimensions);
                let sum = centre.iter().zip(own).map(|(one, own)| one + SPREAD * own);
                unit(sum.collect())
            }
        }
    }

    /// The body of the answer to a request.
    pub fn answer(&self, inputs: &[String]) -> String {
        let data = inputs.iter().enumerate().map(|(index, input)| {
            let mut bytes = Vec::with_capacity(4 * self.dimensions);
            for number in self.vector(input) {
                bytes.extend_from_slice(&number.to_le_bytes());
            }
            let embedding = STANDARD.encode(bytes);
            format!(r#"{{"object":"embedding","index":{index},"embedding":"{embedding}"}}"#)
        });
        let data = data.collect::<Vec<_>>().join(",");
        let tokens: usize = inputs.iter().map(|input| tokens(input)).sum();
        format!(
            r#"{{"object":"list","model":"loopback","data":[{data}],"usage":{{"prompt_tokens":{tokens},"total_tokens":{tokens}}}}}"#
        )
    }
}

/// As it counts them: a token a word.
pub fn tokens(text: &str) -> usize {
    text.split_whitespace().count()
}

/// A vector of length 1 that the seed alone decides.
fn direction(seed: u64, dimensions: usize) -> Vec<f32> {
    let mut state = seed;
    let numbers = (0..dimensions).map(|_| {
        // SplitMix64 (Steele, Lea, Flood 2014).
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 40) as f32 / (1_u32 << 23) as f32 - 1.0
    });
    unit(numbers.collect())
}

fn unit(mut numbers: Vec<f32>) -> Vec<f32> {
    let squares = numbers.iter().map(|number| number * number);
    let length = squares.sum::<f32>().sqrt();
    numbers.iter_mut().for_each(|number| *number /= length);
    numbers
}

/// One connection, as long as the client keeps it.
fn serve(connection: TcpStream, model: Model, notes: &Mutex<Vec<Seen>>) {
    connection.set_nodelay(true).unwrap();
    let mut writer = connection.try_clone().unwrap();
    let mut reader = BufReader::new(connection);
    while let Some(body) = read_body(&mut reader) {
        let arrived = Instant::now();
        let request: Request = serde_json::from_slice(&body).unwrap();
        assert_eq!(request.encoding_format, "base64");
        let answer = model.answer(&request.input);
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            answer.len()
        );
        // Making the answer is a part of the time that a request takes.
        let left = model.delay.saturating_sub(arrived.elapsed());
        if !left.is_zero() {
            thread::sleep(left);
        }
        // Noted before it is sent: the client may be quicker than this thread afterwards.
        notes.lock().unwrap().push(Seen {
            inputs: request.input.len(),
            bytes: body.len(),
            tokens: request.input.iter().map(|input| tokens(input)).sum(),
            arrived,
            answered: Instant::now(),
        });
        if writer.write_all((head + &answer).as_bytes()).is_err() {
            return;
        }
    }
}

/// The body of the next HTTP message; `None` where the connection has ended.
pub fn read_body(reader: &mut impl BufRead) -> Option<Vec<u8>> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|&read| read > 0)?;
        if line == "\r\n" {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(body)
}
