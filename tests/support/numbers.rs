//! OpenMetrics text as Prometheus' own parser reads it, and what a scraper or a browser gets over HTTP.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::Value;

/// Reads it, and prints a sample a line: name, labels, value, and its family's name, type, unit and help.
const PARSE: &str = "\
import json, sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families
for family in text_string_to_metric_families(sys.stdin.read()):
    about = [family.name, family.type, family.unit, family.documentation]
    print(json.dumps([None, None, None] + about))
    for sample in family.samples:
        print(json.dumps([sample.name, sample.labels, sample.value] + about))
";

#[derive(Debug)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

#[derive(Debug)]
pub struct Numbers {
    pub samples: Vec<Sample>,
    /// Type, unit and help, by name.
    pub families: BTreeMap<String, (String, String, String)>,
}

impl Numbers {
    /// Fails where the text is not valid.
    #[track_caller]
    pub fn parse(text: &str) -> Numbers {
        let mut python = Command::new("python3")
            .args(["-c", PARSE])
            .env("PYTHONPATH", library())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("python3");
        let mut stdin = python.stdin.take().unwrap();
        let given = text.to_owned();
        let writer = std::thread::spawn(move || stdin.write_all(given.as_bytes()));
        let output = python.wait_with_output().unwrap();
        let _ = writer.join().unwrap();
        assert!(
            output.status.success(),
            "not OpenMetrics: {}\n{text}",
            String::from_utf8_lossy(&output.stderr)
        );
        let mut numbers = Numbers {
            samples: Vec::new(),
            families: BTreeMap::new(),
        };
        for line in String::from_utf8(output.stdout).unwrap().lines() {
            let line: Vec<Value> = serde_json::from_str(line).unwrap();
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            numbers.families.insert(
                text(&line[3]),
                (text(&line[4]), text(&line[5]), text(&line[6])),
            );
            if line[0].is_null() {
                continue;
            }
            let labels = line[1].as_object().unwrap();
            numbers.samples.push(Sample {
                name: text(&line[0]),
                labels: labels.iter().map(|(k, v)| (k.clone(), text(v))).collect(),
                value: line[2].as_f64().unwrap_or(f64::NAN),
            });
        }
        numbers
    }

    /// The value of the only sample of that name with these labels, whatever others it has.
    #[track_caller]
    pub fn of(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        match self.find(name, labels) {
            Some(value) => value,
            None => panic!("there is no {name} {labels:?}"),
        }
    }

    #[track_caller]
    pub fn find(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let found: Vec<&Sample> = self
            .samples
            .iter()
            .filter(|sample| sample.name == name)
            .filter(|sample| {
                labels
                    .iter()
                    .all(|(key, value)| sample.labels.get(*key).is_some_and(|v| v == value))
            })
            .collect();
        assert!(found.len() <= 1, "{name} {labels:?}: {found:?}");
        found.first().map(|sample| sample.value)
    }
}

/// Where the parser is, which is downloaded once.
fn library() -> &'static str {
    static LIBRARY: OnceLock<String> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/setup/prometheus.sh");
        let output = Command::new(script).output().expect(script);
        assert!(
            output.status.success(),
            "{script}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    })
}

/// A port of the loopback address that was free a moment ago.
pub fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

/// Status, head and body of an answer.
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

/// `None` where nobody listens.
pub fn ask(address: SocketAddr, method: &str, path: &str) -> Option<Answer> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some(Answer {
        status: head.split(' ').nth(1)?.parse().ok()?,
        head: head.to_owned(),
        body: body.to_owned(),
    })
}

#[track_caller]
pub fn get(address: SocketAddr, path: &str) -> Answer {
    ask(address, "GET", path).unwrap_or_else(|| panic!("nobody listens on {address}"))
}

#[track_caller]
pub fn get_json(address: SocketAddr, path: &str) -> Value {
    let answer = get(address, path);
    serde_json::from_str(&answer.body)
        .unwrap_or_else(|error| panic!("{path}: {error}\n{}", answer.body))
}
