//! What the tests of this part share: a scripted HTTP server, a directory of secrets, endpoints.
//! It never leaves the machine.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{fs, thread};

use super::api::Asked;
use super::endpoint::{Encoding, Endpoint, Purpose};
use super::failure::Failure;
use super::provider::embed_once;
use super::reply::Embeddings;
use super::secret::SecretPolicy;

/// A directory that is removed with its content.
pub(crate) struct Directory(PathBuf);

impl Directory {
    pub(crate) fn new() -> Directory {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("recsync-embed-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Directory(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn write(&self, name: &str, text: &str, mode: u32) {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }

    pub(crate) fn policy(&self) -> SecretPolicy {
        SecretPolicy {
            directory: self.0.clone(),
            ..SecretPolicy::default()
        }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A request as the server saw it.
pub(crate) struct Seen {
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Seen {
    pub(crate) fn header(&self, wanted: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(wanted))
            .map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap()
    }

    /// The inputs of the request, in order.
    pub(crate) fn inputs(&self) -> Vec<String> {
        serde_json::from_value(self.json()["input"].clone()).unwrap()
    }
}

type Script = dyn Fn(&Seen, &mut TcpStream) + Send + Sync;

/// A server whose answers a test writes, byte for byte.
pub(crate) struct Server {
    pub url: String,
    connections: Arc<AtomicUsize>,
    seen: Arc<Mutex<Vec<Arc<Seen>>>>,
}

impl Server {
    /// Answers each request by `script`, which writes to the connection itself.
    pub(crate) fn raw(script: impl Fn(&Seen, &mut TcpStream) + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Server {
            url: format!("http://{}/v1", listener.local_addr().unwrap()),
            connections: Arc::default(),
            seen: Arc::default(),
        };
        let script: Arc<Script> = Arc::new(script);
        let (connections, seen) = (Arc::clone(&server.connections), Arc::clone(&server.seen));
        thread::spawn(move || {
            for stream in listener.incoming() {
                connections.fetch_add(1, Ordering::SeqCst);
                let (script, seen) = (Arc::clone(&script), Arc::clone(&seen));
                thread::spawn(move || serve(stream.unwrap(), &script, &seen));
            }
        });
        server
    }

    /// Answers each request by a status, headers (each ended by CRLF) and a body.
    pub(crate) fn new(
        script: impl Fn(&Seen) -> (u16, String, String) + Send + Sync + 'static,
    ) -> Server {
        Server::raw(move |seen, stream| {
            let (status, headers, body) = script(seen);
            let length = body.len();
            let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n{headers}\r\n");
            let _ = stream.write_all(format!("{head}{body}").as_bytes());
        })
    }

    pub(crate) fn always(status: u16, headers: &str, body: &str) -> Server {
        let (headers, body) = (headers.to_owned(), body.to_owned());
        Server::new(move |_| (status, headers.clone(), body.clone()))
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub(crate) fn seen(&self) -> Vec<Arc<Seen>> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }

    /// An endpoint of three dimensions at this server, with further options.
    pub(crate) fn endpoint(&self, more: &[(&str, &str)]) -> Endpoint {
        endpoint(&self.url, more)
    }
}

/// An endpoint of three dimensions with further options.
pub(crate) fn endpoint(url: &str, more: &[(&str, &str)]) -> Endpoint {
    let base = [
        ("api", "openai"),
        ("url", url),
        ("model", "test"),
        ("dimensions", "3"),
    ];
    let overridden = |name: &str| more.iter().any(|(other, _)| *other == name);
    let base = base.iter().filter(|(name, _)| !overridden(name));
    Endpoint::from_options(&options(base.chain(more)), &[]).unwrap()
}

pub(crate) fn options<'a>(
    options: impl IntoIterator<Item = &'a (&'a str, &'a str)>,
) -> Vec<(String, String)> {
    options
        .into_iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

pub(crate) fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

/// The body that an endpoint's API would send.
pub(crate) fn request(
    endpoint: &Endpoint,
    inputs: &[&str],
    purpose: Purpose,
    encoding: Encoding,
) -> serde_json::Value {
    let wire = endpoint.api.wire.as_ref().unwrap();
    let body = (wire.body)(&Asked {
        endpoint,
        inputs: &texts(inputs),
        purpose,
        encoding,
    });
    serde_json::from_slice(&body).unwrap()
}

/// The key that [`ask`] sends.
pub(crate) const KEY: &str = "zq9-k3y-8842-xw";

/// One batch to a server, with a key.
pub(crate) fn ask(
    server: &Server,
    more: &[(&str, &str)],
    inputs: &[&str],
    purpose: Purpose,
) -> Result<Embeddings, Failure> {
    let directory = Directory::new();
    directory.write("k", KEY, 0o600);
    let more: Vec<_> = more
        .iter()
        .copied()
        .chain([("api_key_file", "k")])
        .collect();
    let endpoint = server.endpoint(&more);
    embed_once(&endpoint, &directory.policy(), &texts(inputs), purpose)
}

/// The failure of one batch of one text, which its message does not hold.
pub(crate) fn refused(server: &Server, more: &[(&str, &str)]) -> Failure {
    let text = "a text that nobody else may read";
    let failure = ask(server, more, &[text], Purpose::Document).unwrap_err();
    assert!(!failure.message.contains("nobody else"), "{failure}");
    assert!(!failure.message.contains(KEY), "{failure}");
    failure
}

/// An answer of floats: `[n, 1, 0]` for the nth input.
pub(crate) fn floats(count: usize) -> String {
    let items: Vec<String> = (0..count)
        .map(|n| format!(r#"{{"object":"embedding","index":{n},"embedding":[{n},1,0]}}"#))
        .collect();
    let items = items.join(",");
    format!(
        r#"{{"object":"list","data":[{items}],"usage":{{"prompt_tokens":5,"total_tokens":7}}}}"#
    )
}

fn serve(stream: TcpStream, script: &Arc<Script>, all: &Mutex<Vec<Arc<Seen>>>) {
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    while let Some(seen) = read_request(&mut reader) {
        let seen = Arc::new(seen);
        all.lock().unwrap().push(Arc::clone(&seen));
        script(&seen, &mut stream);
    }
}

fn read_request(reader: &mut BufReader<TcpStream>) -> Option<Seen> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers.push((name.to_owned(), value.trim().to_owned())),
            None => break,
        }
    }
    let length = headers
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))?;
    let mut body = vec![0; length.1.parse().ok()?];
    reader.read_exact(&mut body).ok()?;
    Some(Seen {
        path,
        headers,
        body: String::from_utf8(body).ok()?,
    })
}
