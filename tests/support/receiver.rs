//! A receiver of hooks' letters over real HTTP: it checks every signature, remembers what came, and goes wrong as a
//! test tells it. It listens on the loopback address only.

use std::collections::{HashSet, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::Value;
use sha2::Sha256;

use super::api::reset;
use super::wait::{PATIENCE, wait_until};

/// The secret that servers of the tests name by `api_key_env 'TEST_HOOK_API_KEY'`.
pub const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

/// What becomes of a letter instead of 204.
#[derive(Clone, Debug, PartialEq)]
pub enum Mishap {
    /// This status, and header lines, each ended by CRLF; the letter does not count as taken.
    Status(u16, &'static str),
    /// Read, not taken, and the connection reset.
    Reset,
    /// Taken, and the connection reset before the answer.
    ResetAfterwards,
    /// Not taken, and no answer for as long as the sender waits.
    Silence,
}

/// A letter as it came.
#[derive(Clone, Debug)]
pub struct Letter {
    pub at: Instant,
    pub method: String,
    pub path: String,
    pub id: String,
    pub headers: Vec<(String, String)>,
    pub text: String,
    pub body: Value,
    /// It was answered by 2xx, or would have been.
    pub taken: bool,
}

impl Letter {
    pub fn header(&self, wanted: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(name, _)| name == wanted);
        found.map(|(_, value)| value.as_str())
    }
}

#[derive(Default)]
struct Script {
    letters: Vec<Letter>,
    mishaps: VecDeque<Mishap>,
    /// Letters whose body holds the text go wrong so.
    of_texts: Vec<(String, Mishap)>,
    always: Option<Mishap>,
    held: bool,
    waiting: usize,
    up: bool,
}

#[derive(Default)]
struct State {
    script: Mutex<Script>,
    changed: Condvar,
}

pub struct Receiver {
    state: Arc<State>,
    port: u16,
}

impl Receiver {
    pub fn start() -> Receiver {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State::default());
        state.lock().up = true;
        let receiver = Receiver {
            state: Arc::clone(&state),
            port,
        };
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                if !state.lock().up {
                    return;
                }
                let state = Arc::clone(&state);
                thread::spawn(move || state.serve(&connection));
            }
        });
        receiver
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Everything that came, also what was not taken.
    pub fn letters(&self) -> Vec<Letter> {
        self.state.lock().letters.clone()
    }

    /// What was taken, each once by its id, as a receiver is to do.
    pub fn taken(&self) -> Vec<Letter> {
        let mut known = HashSet::new();
        let taken = self.letters().into_iter().filter(|letter| letter.taken);
        taken
            .filter(|letter| known.insert(letter.id.clone()))
            .collect()
    }

    /// The keys of what was taken, in order.
    pub fn keys(&self) -> Vec<Value> {
        let keys = self.taken().into_iter().flat_map(|letter| {
            let keys = letter.body["data"]["keys"].as_array().cloned();
            keys.unwrap_or_default()
        });
        keys.collect()
    }

    /// Waits until so many letters were taken.
    #[track_caller]
    pub fn wait_for(&self, count: usize) -> Vec<Letter> {
        wait_until(PATIENCE, "the letters have come", || {
            self.taken().len() >= count
        });
        self.taken()
    }

    /// The next letters go wrong.
    pub fn play(&self, mishaps: impl IntoIterator<Item = Mishap>) {
        self.state.lock().mishaps.extend(mishaps);
    }

    /// How many of these are still to come.
    pub fn mishaps_left(&self) -> usize {
        self.state.lock().mishaps.len()
    }

    /// All others do, until `None`.
    pub fn play_always(&self, mishap: Option<Mishap>) {
        self.state.lock().always = mishap;
    }

    /// Letters with this text in their body go wrong.
    pub fn fail_letters_with(&self, text: &str, mishap: Mishap) {
        self.state.lock().of_texts.push((text.to_owned(), mishap));
    }

    pub fn fail_nothing(&self) {
        self.state.lock().of_texts.clear();
    }

    /// Letters wait for `release` before they are taken.
    pub fn hold(&self) {
        self.state.lock().held = true;
    }

    pub fn release(&self) {
        self.state.lock().held = false;
        self.state.changed.notify_all();
    }

    #[track_caller]
    pub fn wait_until_held(&self, count: usize) {
        wait_until(PATIENCE, "a letter is in flight", || {
            self.state.lock().waiting >= count
        });
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.release();
        self.state.lock().up = false;
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, connection: &TcpStream) {
        let _ = connection.set_nodelay(true);
        let mut reader = BufReader::new(connection);
        while let Some(letter) = read(&mut reader) {
            if !self.answer(letter, connection) {
                let _ = connection.shutdown(Shutdown::Both);
                return;
            }
        }
    }

    /// Whether the connection can be used again.
    fn answer(&self, mut letter: Letter, mut connection: &TcpStream) -> bool {
        let mut script = self.lock();
        let next = script.mishaps.pop_front();
        script.waiting += 1;
        while next.is_none() && script.held {
            script = self.changed.wait(script).unwrap();
        }
        script.waiting -= 1;
        let of_text = script.of_texts.iter();
        let of_text = of_text
            .filter(|(text, _)| letter.text.contains(text))
            .map(|(_, mishap)| mishap.clone())
            .next();
        let mishap = next.or(of_text).or_else(|| script.always.clone());
        letter.taken = matches!(mishap, None | Some(Mishap::ResetAfterwards));
        script.letters.push(letter);
        drop(script);
        match mishap {
            None => connection
                .write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
                .is_ok(),
            Some(Mishap::Status(status, headers)) => {
                let answer =
                    format!("HTTP/1.1 {status} Scripted\r\n{headers}Content-Length: 0\r\n\r\n");
                connection.write_all(answer.as_bytes()).is_ok()
            }
            Some(Mishap::Reset | Mishap::ResetAfterwards) => {
                reset(connection);
                false
            }
            Some(Mishap::Silence) => {
                while matches!(connection.read(&mut [0; 64]), Ok(1..)) {}
                false
            }
        }
    }
}

/// A letter whose signature is right; anything else ends the test run's thread loudly.
fn read(reader: &mut impl BufRead) -> Option<Letter> {
    let mut line = String::new();
    reader
        .read_line(&mut line)
        .ok()
        .filter(|&length| length > 0)?;
    let mut words = line.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
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
    let header = |wanted: &str| {
        headers
            .iter()
            .find(|(name, _)| name == wanted)
            .map(|(_, value)| value.clone())
    };
    let mut body = vec![0; header("content-length")?.parse().ok()?];
    reader.read_exact(&mut body).ok()?;
    let text = String::from_utf8(body).ok()?;
    let id = header("webhook-id").unwrap_or_default();
    let timestamp = header("webhook-timestamp").unwrap_or_default();
    let signed = header("webhook-signature").unwrap_or_default();
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let age = now.abs_diff(timestamp.parse().unwrap_or(0));
    if signature(SECRET, &id, &timestamp, &text) != signed
        || age > 300
        || header("authorization").is_some()
    {
        eprintln!("a letter with a wrong signature or time: {headers:?}");
        return None; // the sender sees its connection end, and the test does not get its letter
    }
    Some(Letter {
        at: Instant::now(),
        method,
        path,
        id,
        body: serde_json::from_str(&text).unwrap_or_default(),
        text,
        headers,
        taken: false,
    })
}

/// As Standard Webhooks 1.0 has it.
pub fn signature(secret: &str, id: &str, timestamp: &str, body: &str) -> String {
    let key = STANDARD
        .decode(secret.strip_prefix("whsec_").unwrap())
        .unwrap();
    let mut hmac = Hmac::<Sha256>::new_from_slice(&key).unwrap();
    hmac.update(format!("{id}.{timestamp}.{body}").as_bytes());
    format!("v1,{}", STANDARD.encode(hmac.finalize().into_bytes()))
}
