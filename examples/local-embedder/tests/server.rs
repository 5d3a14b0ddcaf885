//! The server as a client sees it. Needs the model: set LOCAL_EMBEDDER_MODEL to its folder, or
//! every test here passes without looking at anything.

#![expect(
    clippy::unwrap_used,
    reason = "a test's helpers fail as the tests do: by panicking"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStdin, Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

const MODEL: &str = "all-MiniLM-L6-v2";

struct Embedder {
    process: Child,
    /// The server ends when this is closed.
    stdin: Option<ChildStdin>,
    address: String,
}

impl Embedder {
    /// None without a model.
    fn start(arguments: &[&str]) -> Option<Self> {
        let Ok(folder) = std::env::var("LOCAL_EMBEDDER_MODEL") else {
            eprintln!("skipped: LOCAL_EMBEDDER_MODEL is not set");
            return None;
        };
        let mut process = Command::new(env!("CARGO_BIN_EXE_local-embedder"))
            .args(["--model", &folder, "--until-stdin-closes"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let address = line.trim().strip_prefix("listening on http://").unwrap();
        Some(Self {
            stdin: process.stdin.take(),
            address: address.to_owned(),
            process,
        })
    }

    fn connect(&self) -> Connection {
        Connection(BufReader::new(TcpStream::connect(&self.address).unwrap()))
    }
}

impl Drop for Embedder {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let status = self.process.wait().unwrap();
        assert!(status.success() || std::thread::panicking());
    }
}

/// One connection that is kept alive.
struct Connection(BufReader<TcpStream>);

impl Connection {
    fn send(&mut self, line: &str, headers: &str, body: &[u8]) -> (u16, Value) {
        let length = body.len();
        let head =
            format!("{line} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {length}\r\n\r\n");
        self.0.get_mut().write_all(head.as_bytes()).unwrap();
        self.0.get_mut().write_all(body).unwrap();

        let mut next = || {
            let mut line = String::new();
            self.0.read_line(&mut line).unwrap();
            line.trim_end().to_ascii_lowercase()
        };
        let status = next().split(' ').nth(1).unwrap().parse().unwrap();
        let mut length = 0;
        loop {
            match next().split_once(": ") {
                Some(("content-length", value)) => length = value.parse().unwrap(),
                Some(_) => {}
                None => break,
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).unwrap();
        (status, serde_json::from_slice(&body).unwrap())
    }

    fn embed(&mut self, body: &Value) -> (u16, Value) {
        self.send("POST /v1/embeddings", "", body.to_string().as_bytes())
    }

    /// The embeddings of `input`.
    fn floats(&mut self, input: &Value) -> Vec<Vec<f32>> {
        let (status, answer) = self.embed(&json!({"model": MODEL, "input": input}));
        assert_eq!(status, 200, "{answer}");
        let data = answer["data"].as_array().unwrap();
        data.iter()
            .map(|item| serde_json::from_value(item["embedding"].clone()).unwrap())
            .collect()
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[test]
fn a_dog_is_nearer_to_a_puppy_than_to_tax_law() {
    let Some(server) = Embedder::start(&[]) else {
        return;
    };
    let vectors = server
        .connect()
        .floats(&json!(["a dog", "a puppy", "tax law"]));
    let [dog, puppy, law] = &vectors[..] else {
        panic!("{} vectors", vectors.len());
    };
    assert_eq!(dog.len(), 384);
    assert!((dot(dog, dog) - 1.0).abs() < 1e-5);
    assert!(dot(dog, puppy) > dot(dog, law) + 0.3);
    // As candle-transformers' BERT gives them.
    let known = [-0.014_369_089, 0.000_666_406, 0.033_595_923, 0.090_201_11];
    for (x, known) in dog.iter().zip(known) {
        assert!((x - known).abs() < 1e-5, "{x} is not {known}");
    }
}

#[test]
fn base64_gives_the_same_floats_and_the_tokens_are_counted() {
    let Some(server) = Embedder::start(&[]) else {
        return;
    };
    let mut connection = server.connect();
    let floats = connection.floats(&json!("a dog"));
    let (status, answer) = connection.embed(&json!({
        "model": MODEL, "input": "a dog", "encoding_format": "base64", "dimensions": 384,
    }));
    assert_eq!(status, 200);
    let usage = json!({"prompt_tokens": 4, "total_tokens": 4});
    assert_eq!(answer["usage"], usage);
    let text = answer["data"][0]["embedding"].as_str().unwrap();
    let bytes: Vec<u8> = floats[0].iter().flat_map(|x| x.to_le_bytes()).collect();
    assert_eq!(STANDARD.decode(text).unwrap(), bytes);

    let (_, stats) = connection.send("GET /stats", "", b"");
    assert_eq!(stats, json!({"requests": 2, "inputs": 2, "tokens": 8}));
}

#[test]
fn a_text_has_the_same_embedding_in_any_company() {
    let Some(server) = Embedder::start(&["--threads", "2"]) else {
        return;
    };
    let long = "The quick brown fox jumps over the lazy dog. ".repeat(100);
    let alone = server.connect().floats(&json!("a dog"));
    let mut inputs = vec!["A wireless headphone"; 70];
    inputs.extend(["a dog", long.as_str()]);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let vectors = server.connect().floats(&json!(inputs));
                assert_eq!(vectors.len(), 72);
                assert!(dot(&alone[0], &vectors[70]) > 0.9999);
                assert!(dot(&vectors[0], &vectors[69]) > 0.9999);
                assert!(dot(&vectors[71], &vectors[71]) > 0.9999);
            });
        }
    });
}

#[test]
fn refusals_keep_the_connection() {
    let Some(server) = Embedder::start(&["--api-key", "sk-1"]) else {
        return;
    };
    let mut connection = server.connect();
    let key = "Authorization: Bearer sk-1\r\n";
    let too_long = vec![b' '; 32 * 1024 * 1024 + 1];
    let refused: [(&str, &str, &[u8], u16); 8] = [
        ("POST /v1/embeddings", "", b"{}", 401),
        ("GET /v1/models", "Authorization: Bearer sk-2\r\n", b"", 401),
        ("POST /v1/embeddings", key, b"{", 400),
        ("POST /v1/embeddings", key, b"", 400),
        ("GET /v1/embeddings", key, b"", 405),
        ("PUT /v1/models", key, b"{}", 405),
        ("POST /v1/nothing", key, b"{}", 404),
        ("POST /v1/embeddings", key, &too_long, 413),
    ];
    for (line, headers, body, expected) in refused {
        let (status, answer) = connection.send(line, headers, body);
        assert_eq!(status, expected, "{line}");
        assert_eq!(answer["error"]["type"], "invalid_request_error");
        assert!(answer["error"]["message"].is_string());
    }
    let (status, answer) = connection.send("GET /v1/models", key, b"");
    assert_eq!((status, &answer["data"][0]["id"]), (200, &json!(MODEL)));
}
