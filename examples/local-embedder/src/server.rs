//! The HTTP side: threads that each take a request, answer it and take the next. It never starts
//! a forward pass itself: it hands tokens to the batcher and waits.

use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use socket2::SockRef;
use tiny_http::{Header, Request, Response, Server};

use crate::batch::Batcher;
use crate::error::ApiError;
use crate::model::TextTokenizer;
use crate::request;
use crate::response;
use crate::route::{self, Ask};

/// Requests answered at once: most of them wait in the batcher, where they make up one round.
const WORKERS: usize = 16;

/// The longest body that is read.
const MAX_BODY: usize = 32 * 1024 * 1024;

/// What every request needs.
pub struct App {
    tokenizer: TextTokenizer,
    batcher: Batcher,
    api_key: Option<String>,
    requests: AtomicU64,
    inputs: AtomicU64,
    tokens: AtomicU64,
}

impl App {
    pub fn new(tokenizer: TextTokenizer, batcher: Batcher, api_key: Option<String>) -> Self {
        Self {
            tokenizer,
            batcher,
            api_key,
            requests: AtomicU64::new(0),
            inputs: AtomicU64::new(0),
            tokens: AtomicU64::new(0),
        }
    }

    fn answer(
        &self,
        method: &str,
        url: &str,
        authorization: Option<&str>,
        body: Result<Vec<u8>, ApiError>,
    ) -> Result<String, ApiError> {
        let ask = route::find(method, url)?;
        route::check_method(ask, method)?;
        route::check_key(ask, self.api_key.as_deref(), authorization)?;
        match ask {
            Ask::Embeddings => self.embed(&body?),
            Ask::Models => Ok(response::models()),
            Ask::Stats => {
                let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
                Ok(response::stats(
                    read(&self.requests),
                    read(&self.inputs),
                    read(&self.tokens),
                ))
            }
        }
    }

    fn embed(&self, body: &[u8]) -> Result<String, ApiError> {
        let failed = |message: String| {
            eprintln!("local-embedder: {message}");
            ApiError::refused(500, None, message)
        };
        let request = request::parse(body)?;
        let texts: Vec<Vec<u32>> = request
            .inputs
            .iter()
            .map(|text| self.tokenizer.tokens(text))
            .collect::<Result<_, _>>()
            .map_err(failed)?;
        let inputs = texts.len();
        let tokens = texts.iter().map(Vec::len).sum();
        let embeddings = self.batcher.embed(texts).map_err(failed)?;
        let answer = response::embeddings(embeddings, tokens, request.encoding)
            .map_err(|e| failed(e.to_string()))?;
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.inputs.fetch_add(inputs as u64, Ordering::Relaxed);
        self.tokens.fetch_add(tokens as u64, Ordering::Relaxed);
        Ok(answer)
    }
}

/// Starts answering on `listener`. `on_failure` is told if no more requests can be taken.
///
/// # Errors
/// A listener that cannot be used.
pub fn start(
    listener: TcpListener,
    app: Arc<App>,
    on_failure: impl Fn(String) + Clone + Send + 'static,
) -> Result<SocketAddr, String> {
    let failed = |e: &dyn std::fmt::Display| format!("cannot serve: {e}");
    let address = listener.local_addr().map_err(|e| failed(&e))?;
    // Accepted connections inherit it: without it, an answer's last packet waits 40 ms for the
    // client's acknowledgement.
    SockRef::from(&listener)
        .set_tcp_nodelay(true)
        .map_err(|e| failed(&e))?;
    let server = Arc::new(Server::from_listener(listener, None).map_err(|e| failed(&e))?);
    let json = Header::from_bytes("Content-Type", "application/json")
        .map_err(|()| failed(&"bad header"))?;
    for _ in 0..WORKERS {
        let (server, app, json) = (server.clone(), app.clone(), json.clone());
        let on_failure = on_failure.clone();
        thread::spawn(move || {
            loop {
                match server.recv() {
                    Ok(request) => serve(request, &app, &json),
                    Err(e) => return on_failure(format!("cannot take requests: {e}")),
                }
            }
        });
    }
    Ok(address)
}

fn serve(mut request: Request, app: &App, json: &Header) {
    // Read before anything is refused, so that the connection can go on.
    let body = read_body(&mut request);
    let answer = app.answer(
        request.method().as_str(),
        request.url(),
        authorization(&request),
        body,
    );
    let (status, body) = match answer {
        Ok(body) => (200, body),
        Err(error) => (error.status, error.body()),
    };
    let response = Response::from_string(body)
        .with_status_code(status)
        .with_header(json.clone())
        .with_chunked_threshold(usize::MAX);
    // The client may have gone.
    let _ = request.respond(response);
}

fn authorization(request: &Request) -> Option<&str> {
    request
        .headers()
        .iter()
        .find(|header| header.field.equiv("Authorization"))
        .map(|header| header.value.as_str())
}

/// Reads the body to its end, but keeps no more of it than [`MAX_BODY`].
///
/// # Errors
/// 413, or 400 if it breaks off.
fn read_body(request: &mut Request) -> Result<Vec<u8>, ApiError> {
    let broken = |e| ApiError::refused(400, None, format!("The body broke off: {e}"));
    let mut body = Vec::new();
    let reader = request.as_reader();
    let read = reader.take(MAX_BODY as u64 + 1).read_to_end(&mut body);
    if read.map_err(broken)? > MAX_BODY {
        drop(body);
        std::io::copy(reader, &mut std::io::sink()).map_err(broken)?;
        let message = format!("The body is longer than {MAX_BODY} bytes.");
        return Err(ApiError::refused(413, None, message));
    }
    Ok(body)
}
