//! An OpenAI-compatible embedding server over real HTTP that does what a test tells it: answers, waits, refuses,
//! fails, is gone. Its vectors are a function of the text. It listens on the loopback address only.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::wait::{PATIENCE, wait_until};

const DIMENSIONS: usize = 16;

pub struct Api {
    state: Arc<State>,
    port: u16,
}

/// Names in lower case, and values.
pub type Headers = Vec<(String, String)>;

/// A request as it came in.
#[derive(Clone, Debug)]
pub struct Request {
    pub at: Instant,
    pub inputs: Vec<String>,
    pub headers: Headers,
    pub body: Value,
}

impl Request {
    pub fn header(&self, wanted: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(wanted));
        found.map(|(_, value)| value.as_str())
    }
}

struct State {
    script: Mutex<Script>,
    changed: Condvar,
    dimensions: usize,
}

#[derive(Default)]
struct Script {
    /// Requests with an input that holds one of these are kept waiting.
    hold: Vec<String>,
    held: usize,
    /// Once the failures are used up, everything that follows is kept waiting.
    hold_after_failures: bool,
    delay: Duration,
    /// Requests with more inputs take longer.
    slow_above: Option<(usize, Duration)>,
    /// Requests with an input that holds the marker are refused.
    refused: Vec<(String, u16)>,
    /// How the next requests fail: status and Retry-After.
    failures: VecDeque<(u16, Option<u64>)>,
    echo: bool,
    /// Header lines of every answer that is a success.
    announced: String,
    requests: Vec<Request>,
    connections: Vec<TcpStream>,
    /// Counts every `up` and `down`: an acceptor of an earlier time ends.
    time: u64,
    up: bool,
}

impl Api {
    pub fn start() -> Api {
        Api::with_dimensions(DIMENSIONS)
    }

    pub fn with_dimensions(dimensions: usize) -> Api {
        let state = State {
            script: Mutex::default(),
            changed: Condvar::new(),
            dimensions,
        };
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let api = Api {
            port: listener.local_addr().unwrap().port(),
            state: Arc::new(state),
        };
        api.listen(listener);
        api
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/v1", self.port)
    }

    pub fn dimensions(&self) -> usize {
        self.state.dimensions
    }

    /// Requests that come from now on wait for `release`.
    pub fn hold(&self) {
        self.hold_texts_with("");
    }

    /// The same, only for requests with an input that holds `marker`.
    pub fn hold_texts_with(&self, marker: &str) {
        self.script().hold.push(marker.to_owned());
    }

    pub fn release(&self) {
        self.script().hold.clear();
        self.state.changed.notify_all();
    }

    /// Lets requests without `marker` go, as `release` does, and holds those with it.
    pub fn release_but_hold_texts_with(&self, marker: &str) {
        self.script().hold = vec![marker.to_owned()];
        self.state.changed.notify_all();
    }

    /// Requests that are being held.
    pub fn held(&self) -> usize {
        self.script().held
    }

    /// Waits until `count` requests are being held.
    #[track_caller]
    pub fn wait_until_held(&self, count: usize) {
        wait_until(PATIENCE, "the request is in flight", || {
            self.script().held >= count
        });
    }

    pub fn set_delay(&self, delay: Duration) {
        self.script().delay = delay;
    }

    /// A request with more inputs than `inputs` takes this long.
    pub fn slow_above(&self, inputs: usize, delay: Duration) {
        self.script().slow_above = Some((inputs, delay));
    }

    /// A request with an input that holds `marker` is answered with `status`.
    pub fn refuse_texts_with(&self, marker: &str, status: u16) {
        self.script().refused.push((marker.to_owned(), status));
    }

    pub fn refuse_nothing(&self) {
        self.script().refused.clear();
    }

    /// Every success from now on says so in its headers.
    pub fn announce(&self, headers: &[(&str, &str)]) {
        let lines = headers
            .iter()
            .map(|(name, value)| format!("{name}: {value}\r\n"));
        self.script().announced = lines.collect();
    }

    /// The next `count` requests are answered with `status`.
    pub fn fail_next(&self, count: usize, status: u16, retry_after: Option<u64>) {
        self.script()
            .failures
            .extend(std::iter::repeat_n((status, retry_after), count));
    }

    /// The next request fails, and everything after it is held: no moment in between.
    pub fn fail_next_and_hold_the_rest(&self, status: u16) {
        let mut script = self.script();
        script.failures.push_back((status, None));
        script.hold_after_failures = true;
    }

    /// How many failures are still to come.
    pub fn failures_left(&self) -> usize {
        self.script().failures.len()
    }

    /// Errors quote the request's key and inputs, as some servers do.
    pub fn echo_in_errors(&self) {
        self.script().echo = true;
    }

    /// Connections are refused, open ones end.
    pub fn down(&self) {
        let mut script = self.script();
        script.up = false;
        script.time += 1;
        for connection in script.connections.drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
        drop(script);
        // Wakes the acceptor, which closes its socket.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        wait_until(PATIENCE, "the API is down", || {
            TcpStream::connect(("127.0.0.1", self.port)).is_err()
        });
    }

    /// The end of `down`.
    pub fn up(&self) {
        let mut listener = None;
        wait_until(PATIENCE, "the API's port is free", || {
            listener = TcpListener::bind(("127.0.0.1", self.port)).ok();
            listener.is_some()
        });
        self.listen(listener.unwrap());
    }

    /// Everything that was asked so far.
    pub fn requests(&self) -> Vec<Request> {
        self.script().requests.clone()
    }

    /// Every text that was sent so far, in order.
    pub fn texts(&self) -> Vec<String> {
        self.requests()
            .into_iter()
            .flat_map(|request| request.inputs)
            .collect()
    }

    /// How many times `text` was sent.
    pub fn times_asked(&self, text: &str) -> usize {
        self.texts().iter().filter(|sent| *sent == text).count()
    }

    /// The vector of a text.
    pub fn vector(&self, text: &str) -> Vec<f32> {
        vector(text, self.state.dimensions)
    }

    /// Whether `stored`, as pgvector writes it, is the vector of `text`.
    pub fn is_vector_of(&self, stored: &str, text: &str) -> bool {
        let stored = stored
            .trim_matches(['[', ']'])
            .split(',')
            .map(|number| number.parse().unwrap_or(f32::NAN));
        let stored: Vec<f32> = stored.collect();
        let wanted = self.vector(text);
        stored.len() == wanted.len()
            && stored
                .iter()
                .zip(wanted)
                .all(|(is, wanted)| (is - wanted).abs() < 1e-5)
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.state.lock()
    }

    fn listen(&self, listener: TcpListener) {
        let state = Arc::clone(&self.state);
        let mut script = state.lock();
        script.up = true;
        script.time += 1;
        let time = script.time;
        drop(script);
        thread::spawn(move || {
            for connection in listener.incoming() {
                let Ok(connection) = connection else { continue };
                let mut script = state.lock();
                if !script.up || script.time != time {
                    return;
                }
                script.connections.extend(connection.try_clone());
                drop(script);
                let state = Arc::clone(&state);
                thread::spawn(move || state.serve(connection));
            }
        });
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.release();
        self.script().up = false;
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Script> {
        self.script
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// One connection, as long as the client keeps it.
    fn serve(&self, connection: TcpStream) {
        let _ = connection.set_nodelay(true);
        let mut writer = connection.try_clone().unwrap();
        let mut reader = BufReader::new(connection);
        while let Some((headers, body)) = read_request(&mut reader) {
            let (status, retry_after, answer) = self.answer(headers, &body);
            let more = match (status, retry_after) {
                (200, _) => self.lock().announced.clone(),
                (_, Some(seconds)) => format!("Retry-After: {seconds}\r\n"),
                _ => String::new(),
            };
            let answer = answer.to_string();
            let head = format!(
                "HTTP/1.1 {status} Scripted\r\nContent-Type: application/json\r\n{more}Content-Length: {}\r\n\r\n",
                answer.len()
            );
            if writer.write_all((head + &answer).as_bytes()).is_err() {
                return;
            }
        }
    }

    fn answer(&self, headers: Headers, body: &[u8]) -> (u16, Option<u64>, Value) {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let inputs: Vec<String> = match &body["input"] {
            Value::String(input) => vec![input.clone()],
            list => serde_json::from_value(list.clone()).unwrap_or_default(),
        };
        let request = Request {
            at: Instant::now(),
            inputs: inputs.clone(),
            headers,
            body: body.clone(),
        };
        let key = request
            .header("authorization")
            .unwrap_or_default()
            .to_owned();
        let has = |marker: &String| inputs.iter().any(|input| input.contains(marker));
        let mut script = self.lock();
        script.requests.push(request);
        let failure = script.failures.pop_front();
        if failure.is_some() && script.hold_after_failures && script.failures.is_empty() {
            script.hold_after_failures = false;
            script.hold.push(String::new());
        } else if script.hold.iter().any(has) {
            script.held += 1;
            while script.hold.iter().any(has) {
                script = self.changed.wait(script).unwrap();
            }
            script.held -= 1;
        }
        let refusal = script
            .refused
            .iter()
            .find(|(marker, _)| has(marker))
            .map(|(_, status)| (*status, None));
        let slow = script
            .slow_above
            .filter(|(most, _)| inputs.len() > *most)
            .map_or(Duration::ZERO, |(_, delay)| delay);
        let (delay, echo) = (script.delay.max(slow), script.echo);
        drop(script);
        if !delay.is_zero() {
            thread::sleep(delay);
        }
        if let Some((status, retry_after)) = failure.or(refusal) {
            let message = if echo {
                format!("not with {key} for {}", inputs.join(" "))
            } else {
                "as scripted".into()
            };
            return (
                status,
                retry_after,
                json!({"error": {"message": message, "type": "invalid_request_error"}}),
            );
        }
        let base64 = body["encoding_format"] == "base64";
        let data = inputs.iter().enumerate().map(|(index, input)| {
            let vector = vector(input, self.dimensions);
            let embedding = if base64 {
                let bytes: Vec<u8> = vector
                    .iter()
                    .flat_map(|number| number.to_le_bytes())
                    .collect();
                json!(STANDARD.encode(bytes))
            } else {
                json!(vector)
            };
            json!({"object": "embedding", "index": index, "embedding": embedding})
        });
        let tokens = inputs
            .iter()
            .map(|input| input.len().div_ceil(4))
            .sum::<usize>();
        let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
        (
            200,
            None,
            json!({"object": "list", "model": body["model"], "data": data.collect::<Vec<_>>(), "usage": usage}),
        )
    }
}

fn read_request(reader: &mut impl BufRead) -> Option<(Headers, Vec<u8>)> {
    let mut line = String::new();
    reader
        .read_line(&mut line)
        .ok()
        .filter(|&length| length > 0)?;
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader
            .read_line(&mut line)
            .ok()
            .filter(|&length| length > 0)?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => {
                headers.push((name.to_ascii_lowercase(), value.trim().to_owned()))
            }
            None => break,
        }
    }
    let length = headers
        .iter()
        .find(|(name, _)| name == "content-length")?
        .1
        .parse()
        .ok()?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((headers, body))
}

/// A unit vector that is a function of the text: other texts have other vectors.
fn vector(text: &str, dimensions: usize) -> Vec<f32> {
    let mut state = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let numbers = (0..dimensions).map(|_| {
        // SplitMix64 (Steele, Lea, Flood 2014).
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 40) as f32 / (1_u32 << 23) as f32 - 1.0
    });
    let numbers: Vec<f32> = numbers.collect();
    let length = numbers
        .iter()
        .map(|number| number * number)
        .sum::<f32>()
        .sqrt();
    numbers.iter().map(|number| number / length).collect()
}
