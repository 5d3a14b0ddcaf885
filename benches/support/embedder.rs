//! The model all-MiniLM-L6-v2 on this machine, which `make bench` builds a server of. It never sends a text elsewhere.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use crate::support::cluster::TEST_API_KEY;

/// The model's server; it ends with this process.
pub struct Embedder {
    process: Child,
    address: String,
}

impl Embedder {
    /// `None` where the environment names none.
    pub fn start() -> Option<Embedder> {
        let program = std::env::var("LOCAL_EMBEDDER").ok()?;
        let model = std::env::var("MODEL_DIR").ok()?;
        let mut process = Command::new(program)
            .args(["--model", &model, "--listen", "127.0.0.1:0"])
            .args(["--api-key", TEST_API_KEY, "--until-stdin-closes"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let address = line.trim().strip_prefix("listening on http://").unwrap();
        Some(Embedder {
            address: address.to_owned(),
            process,
        })
    }

    /// A foreign server `name` for it.
    pub fn server(&self, name: &str) -> String {
        format!(
            "CREATE SERVER {name} FOREIGN DATA WRAPPER recsync OPTIONS (api 'openai', url 'http://{}/v1',
             model 'all-MiniLM-L6-v2', dimensions '384', api_key_env 'TEST_API_KEY')",
            self.address
        )
    }
}

impl Drop for Embedder {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}
