//! An OpenAI-compatible embedding server over real HTTP that does what a test tells it: answers, waits, refuses,
//! fails in every way, is gone. Its vectors are a function of the text. It listens on the loopback address only.

use std::collections::VecDeque;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde_json::Value;

use super::wait::{PATIENCE, wait_until};
pub use fault::Fault;
use fault::{Asked, Wire};

/// What goes wrong, on the wire.
mod fault;

/// A connection, request after request.
mod connection;
pub use connection::reset;

/// What goes right.
mod vectors;

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
    /// Another model has other vectors.
    model: &'static str,
}

#[derive(Default)]
struct Script {
    /// What the only key that is not refused looks like in its header.
    key: Option<String>,
    /// Requests with an input that holds one of these are kept waiting.
    hold: Vec<String>,
    held: usize,
    /// Once the failures are used up, everything that follows is kept waiting.
    hold_after_failures: bool,
    delay: Duration,
    /// Requests with more inputs take longer.
    slow_above: Option<(usize, Duration)>,
    /// Requests with an input of more words are refused as too long.
    most_words: Option<usize>,
    /// Requests with an input that holds the marker go wrong.
    faults_of_texts: Vec<(String, Fault)>,
    /// How the next requests go wrong.
    faults: VecDeque<Fault>,
    /// How all others do.
    fault: Option<Fault>,
    random: Option<Random>,
    echo: bool,
    /// Header lines of every answer that is a success.
    announced: String,
    requests: Vec<Request>,
    /// Bytes of each answer without an end, up to where the client hung up.
    sent: Vec<usize>,
    connections: Vec<Weak<TcpStream>>,
    connections_made: usize,
    /// Counts every `up` and `down`: an acceptor of an earlier time ends.
    time: u64,
    up: bool,
}

/// Faults of a share of all requests.
struct Random {
    rng: Rng,
    percent: u8,
    faults: Vec<Fault>,
    played: usize,
}

impl Api {
    pub fn start() -> Api {
        Api::with_dimensions(DIMENSIONS)
    }

    pub fn with_dimensions(dimensions: usize) -> Api {
        Api::of_model("", dimensions)
    }

    /// Its vectors are those of no other model.
    pub fn of_model(model: &'static str, dimensions: usize) -> Api {
        let state = State {
            script: Mutex::default(),
            changed: Condvar::new(),
            dimensions,
            model,
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
        self.fail_texts_with(marker, Fault::Status(status));
    }

    pub fn refuse_nothing(&self) {
        self.script().faults_of_texts.clear();
    }

    /// Requests with an input of more words than that are refused, as a model does that takes no more tokens.
    pub fn refuse_longer_than(&self, words: usize) {
        self.script().most_words = Some(words);
    }

    /// A request with an input that holds `marker` goes wrong.
    pub fn fail_texts_with(&self, marker: &str, fault: Fault) {
        let mut script = self.script();
        script.faults_of_texts.push((marker.to_owned(), fault));
    }

    /// Every other key is refused with 401.
    pub fn accept_only_key(&self, key: &str) {
        self.script().key = Some(format!("Bearer {key}"));
    }

    /// The next requests go wrong.
    pub fn play(&self, faults: impl IntoIterator<Item = Fault>) {
        self.script().faults.extend(faults);
    }

    /// Every request that nothing else is scripted for goes wrong, until `None`.
    pub fn play_always(&self, fault: Option<Fault>) {
        self.script().fault = fault;
    }

    /// This share of all requests goes wrong, in one of these ways at random.
    pub fn play_at_random(&self, percent: u8, faults: &[Fault], seed: u64) {
        self.script().random = Some(Random {
            rng: Rng::with_seed(seed),
            percent,
            faults: faults.to_vec(),
            played: 0,
        });
    }

    /// The end of `play_at_random`; how many requests went wrong.
    pub fn play_no_more(&self) -> usize {
        let random = self.script().random.take();
        random.map_or(0, |random| random.played)
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
        let fault = match retry_after {
            Some(seconds) => Fault::StatusWith(status, format!("Retry-After: {seconds}\r\n")),
            None => Fault::Status(status),
        };
        self.play(std::iter::repeat_n(fault, count));
    }

    /// The next request fails, and everything after it is held: no moment in between.
    pub fn fail_next_and_hold_the_rest(&self, status: u16) {
        let mut script = self.script();
        script.faults.push_back(Fault::Status(status));
        script.hold_after_failures = true;
    }

    /// How many failures are still to come.
    pub fn failures_left(&self) -> usize {
        self.script().faults.len()
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
            if let Some(connection) = connection.upgrade() {
                let _ = connection.shutdown(Shutdown::Both);
            }
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

    /// How many requests there were.
    pub fn requests_made(&self) -> usize {
        self.script().requests.len()
    }

    /// Forgets what was asked.
    pub fn forget(&self) {
        self.script().requests.clear();
    }

    /// Connections so far.
    pub fn connections_made(&self) -> usize {
        self.script().connections_made
    }

    /// Bytes of each answer without an end, once the client has hung up.
    pub fn bytes_sent(&self) -> Vec<usize> {
        self.script().sent.clone()
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
        vectors::vector(self.state.model, text, self.state.dimensions)
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
                let connection = Arc::new(connection);
                script.connections.retain(|other| other.strong_count() > 0);
                script.connections.push(Arc::downgrade(&connection));
                script.connections_made += 1;
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

    /// Whether the script wants this request to be lost with its connection.
    fn resets_before_it_reads(&self) -> bool {
        let mut script = self.lock();
        script.faults.front() == Some(&Fault::ResetBeforeRequest)
            && script.faults.pop_front().is_some()
    }

    fn answer(&self, headers: Headers, body: &[u8]) -> Wire {
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
        let next = script.faults.pop_front();
        if next.is_some() && script.hold_after_failures && script.faults.is_empty() {
            script.hold_after_failures = false;
            script.hold.push(String::new());
        } else if script.hold.iter().any(has) {
            script.held += 1;
            while script.hold.iter().any(has) {
                script = self.changed.wait(script).unwrap();
            }
            script.held -= 1;
        }
        let slow = script
            .slow_above
            .filter(|(most, _)| inputs.len() > *most)
            .map_or(Duration::ZERO, |(_, delay)| delay);
        let refused = script.key.as_ref().is_some_and(|good| *good != key);
        let of_text = || {
            let mut faults = script.faults_of_texts.iter();
            faults.find(|(marker, _)| has(marker))
        };
        let too_long = |most: usize| {
            let mut words = inputs.iter().map(|input| input.split_whitespace().count());
            words.any(|words| words > most)
        };
        let too_long = script.most_words.filter(|most| too_long(*most));
        let scripted = next
            .or(too_long.map(|_| Fault::Status(400)))
            .or(refused.then_some(Fault::Status(401)))
            .or_else(|| of_text().map(|(_, fault)| fault.clone()))
            .or_else(|| script.fault.clone());
        let fault = scripted.or_else(|| script.random.as_mut().and_then(Random::next));
        let delay = script.delay.max(slow);
        let (echo, announced) = (script.echo, script.announced.clone());
        drop(script);
        if !delay.is_zero() {
            thread::sleep(delay);
        }
        let message = match (too_long, echo) {
            (Some(most), _) => format!("This model's maximum context length is {most} tokens."),
            (None, true) => format!("not with {key} for {}", inputs.join(" ")),
            (None, false) => "as scripted".to_owned(),
        };
        let asked = Asked {
            body: &body,
            inputs: &inputs,
            dimensions: self.dimensions,
            model: self.model,
            message: &message,
            announced: &announced,
        };
        match fault {
            Some(fault) => fault.play(&asked),
            None => fault::right(&asked),
        }
    }
}

impl Random {
    fn next(&mut self) -> Option<Fault> {
        if self.rng.u8(0..100) >= self.percent {
            return None;
        }
        self.played += 1;
        self.rng.choice(&self.faults).cloned()
    }
}
