//! An embeddings server for the example and for tests: OpenAI's `/v1/embeddings`, answered by
//! all-MiniLM-L6-v2 on this machine's CPU. It never reaches out to the network, and it is not made
//! to be reached from one: it expects friendly clients on the same machine.
//!
//! ```text
//! request ─ server (16 threads) ─ route ─ request ─ model: text → tokens
//!                                                        │
//!    answer ─ response ─ embeddings ─ bert ─ batch (1 thread, rounds of what waits)
//! ```

mod cli;

mod server;

mod route;

mod request;

mod model;

mod batch;

mod bert;

mod kernels;

mod response;

mod error;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Why the program ends.
enum End {
    /// A signal, or the end of standard input.
    Asked,
    Failed(String),
}

fn main() -> ExitCode {
    let options = match cli::parse(std::env::args().skip(1)) {
        Ok(cli::Parsed::Run(options)) => options,
        Ok(cli::Parsed::Help) => {
            print!("{}", cli::USAGE);
            return ExitCode::SUCCESS;
        }
        Err(message) => {
            eprintln!("local-embedder: {message}\n\n{}", cli::USAGE);
            return ExitCode::from(2);
        }
    };
    // Forward passes run side by side, one on each thread (`batch`), so each multiplies its
    // matrices on its own thread. This variable is the only way to tell candle.
    // SAFETY: no other thread has been started yet.
    unsafe { std::env::set_var("RAYON_NUM_THREADS", "1") };
    match run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("local-embedder: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: cli::Options) -> Result<(), String> {
    let (end, ended) = mpsc::channel();
    end_on_signal(end.clone())?;
    if options.until_stdin_closes {
        end_with_stdin(end.clone());
    }

    let (tokenizer, bert) = model::load(&options.model)?;
    let batcher = batch::Batcher::start(bert, options.threads)?;
    let listener = TcpListener::bind(&options.listen)
        .map_err(|e| format!("cannot listen on {}: {e}", options.listen))?;
    let address = server::start(
        listener,
        Arc::new(server::App::new(tokenizer, batcher, options.api_key)),
        move |failure| {
            // Nobody listens any more once the program is ending.
            let _ = end.send(End::Failed(failure));
        },
    )?;
    announce(&format!("listening on http://{address}"))?;

    match ended.recv() {
        Ok(End::Failed(message)) => Err(message),
        Ok(End::Asked) | Err(_) => Ok(()),
    }
}

fn announce(line: &str) -> Result<(), String> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}")
        .and_then(|()| stdout.flush())
        .map_err(|e| format!("cannot write to standard output: {e}"))
}

fn end_on_signal(end: Sender<End>) -> Result<(), String> {
    let mut signals =
        Signals::new([SIGTERM, SIGINT]).map_err(|e| format!("cannot watch for signals: {e}"))?;
    thread::spawn(move || {
        if signals.forever().next().is_some() {
            let _ = end.send(End::Asked);
        }
    });
    Ok(())
}

fn end_with_stdin(end: Sender<End>) {
    thread::spawn(move || {
        let mut sink = [0; 4096];
        let mut stdin = std::io::stdin().lock();
        while matches!(stdin.read(&mut sink), Ok(1..)) {}
        let _ = end.send(End::Asked);
    });
}
