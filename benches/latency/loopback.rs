//! An embedding API on the loopback address that answers at once and notes when. Its vectors are a function of the
//! text, 384 numbers of length 1, in base64. It never fails and never waits.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

pub const DIMENSIONS: usize = 384;

/// A request's two moments: its last byte has come, its answer's last byte is given to the kernel.
#[derive(Clone, Copy)]
pub struct Seen {
    pub inputs: usize,
    pub arrived: Instant,
    pub answered: Instant,
}

pub struct Loopback {
    port: u16,
    seen: Arc<Mutex<Vec<Seen>>>,
}

#[derive(Deserialize)]
struct Request {
    input: Vec<String>,
    encoding_format: String,
}

impl Loopback {
    pub fn start() -> Loopback {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let notes = Arc::clone(&seen);
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let notes = Arc::clone(&notes);
                thread::spawn(move || serve(connection, &notes));
            }
        });
        Loopback { port, seen }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/v1", self.port)
    }

    /// The requests since the last call.
    pub fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

/// One connection, as long as the client keeps it.
fn serve(connection: TcpStream, notes: &Mutex<Vec<Seen>>) {
    connection.set_nodelay(true).unwrap();
    let mut writer = connection.try_clone().unwrap();
    let mut reader = BufReader::new(connection);
    while let Some(body) = read_body(&mut reader) {
        let arrived = Instant::now();
        let request: Request = serde_json::from_slice(&body).unwrap();
        assert_eq!(request.encoding_format, "base64");
        let answer = answer(&request.input);
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            answer.len()
        );
        // Noted before it is sent: the client may be quicker than this thread afterwards.
        notes.lock().unwrap().push(Seen {
            inputs: request.input.len(),
            arrived,
            answered: Instant::now(),
        });
        if writer.write_all((head + &answer).as_bytes()).is_err() {
            return;
        }
    }
}

fn read_body(reader: &mut impl BufRead) -> Option<Vec<u8>> {
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

fn answer(inputs: &[String]) -> String {
    let data = inputs.iter().enumerate().map(|(index, input)| {
        let embedding = STANDARD.encode(vector(input));
        format!(r#"{{"object":"embedding","index":{index},"embedding":"{embedding}"}}"#)
    });
    format!(
        r#"{{"object":"list","model":"loopback","data":[{}],"usage":{{"prompt_tokens":1,"total_tokens":1}}}}"#,
        data.collect::<Vec<_>>().join(",")
    )
}

/// The little-endian bytes of a unit vector that the text alone decides.
fn vector(text: &str) -> Vec<u8> {
    let mut state = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let numbers = (0..DIMENSIONS).map(|_| {
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
    numbers
        .iter()
        .flat_map(|number| (number / length).to_le_bytes())
        .collect()
}
