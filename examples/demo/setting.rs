//! What the demo runs in: a PostgreSQL cluster of its own, a local embedding server and a key that the two share.
//! It never touches a server that it has not started, and keeps the key out of every file and statement.

use std::error::Error;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::{env, thread, time};

use crate::Result;
use crate::support::{Cluster, cluster};

/// The environment variable of the server that holds the key, as `api_key_env` names it.
pub const KEY_VARIABLE: &str = "LOCAL_API_KEY";

pub struct Setting {
    pub cluster: Cluster,
    pub embedder: Embedder,
    pub key: String,
    kept: bool,
}

impl Setting {
    pub fn start() -> Result<Setting> {
        let kept = env::var_os("KEEP").is_some_and(|keep| !keep.is_empty());
        let key = random_key()?;
        let embedder = Embedder::start(&key, kept)?;
        let settings = [
            ("fsync", "on"),
            ("full_page_writes", "on"),
            ("shared_buffers", "128MB"),
            ("max_wal_size", "1GB"),
        ];
        let cluster = Cluster::start_with(&settings, &[(KEY_VARIABLE, &key)], kept);
        Ok(Setting {
            cluster,
            embedder,
            key,
            kept,
        })
    }

    /// Where everything of the cluster is: its data, its log, its socket.
    pub fn folder(&self) -> std::path::PathBuf {
        let data = self.cluster.data_directory();
        data.parent().unwrap_or(&data).to_owned()
    }

    /// How to go on with what KEEP=1 has left; `None` where everything ends now.
    pub fn how_to_go_on(&self, database: &str) -> Option<String> {
        let folder = self.folder();
        let all = folder.parent().unwrap_or(&folder);
        self.kept.then(|| {
            format!(
                "psql:  {} -h {} -U postgres {database}\n  stop:  kill -INT {} {} && sleep 2 && rm -rf {}",
                cluster::bin().join("psql").display(),
                folder.display(),
                self.cluster.postmaster_pid(),
                self.embedder.process.id(),
                all.display()
            )
        })
    }
}

/// The local embedding server; it ends with this value, or with this process, unless it is kept.
pub struct Embedder {
    process: Child,
    address: String,
    kept: bool,
}

/// What the embedding server has been asked so far.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    pub requests: u64,
    pub inputs: u64,
}

impl Embedder {
    fn start(key: &str, kept: bool) -> Result<Embedder> {
        let program = variable("LOCAL_EMBEDDER", "the local embedding server's program")?;
        let model = variable("MODEL_DIR", "the folder of the model all-MiniLM-L6-v2")?;
        let mut command = Command::new(&program);
        command.args(["--model", &model, "--listen", "127.0.0.1:0"]);
        command.args(["--api-key", key]).stdout(Stdio::piped());
        if kept {
            std::os::unix::process::CommandExt::process_group(&mut command, 0);
            command.stdin(Stdio::null()).stderr(Stdio::null());
        } else {
            command.arg("--until-stdin-closes").stdin(Stdio::piped());
        }
        let mut process = command
            .spawn()
            .map_err(|error| format!("LOCAL_EMBEDDER={program} cannot be started: {error}"))?;
        let mut line = String::new();
        if let Some(output) = process.stdout.take() {
            BufReader::new(output).read_line(&mut line)?;
        }
        let address = line.trim().strip_prefix("listening on http://");
        let address = address.ok_or("the local embedding server did not start")?;
        Ok(Embedder {
            address: address.to_owned(),
            process,
            kept,
        })
    }

    pub fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// The server's own counters.
    pub fn asked(&self) -> Result<Asked> {
        let mut connection = TcpStream::connect(&self.address)?;
        connection.write_all(b"GET /stats HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer)?;
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let counters: serde_json::Value = serde_json::from_str(body)?;
        let number = |name: &str| counters[name].as_u64().ok_or("no such counter in /stats");
        Ok(Asked {
            requests: number("requests")?,
            inputs: number("inputs")?,
        })
    }
}

impl Drop for Embedder {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        drop(self.process.stdin.take());
        let deadline = time::Instant::now() + time::Duration::from_secs(5);
        while matches!(self.process.try_wait(), Ok(None)) {
            if time::Instant::now() > deadline {
                let _ = self.process.kill();
            }
            thread::sleep(time::Duration::from_millis(10));
        }
    }
}

fn variable(name: &str, what: &str) -> Result<String> {
    env::var(name).map_err(|_| -> Box<dyn Error> {
        format!("{name} must name {what}; `make demo` sets it").into()
    })
}

fn random_key() -> Result<String> {
    let mut bytes = [0_u8; 24];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let digits = bytes.iter().map(|byte| format!("{byte:02x}"));
    Ok(format!("sk-demo-{}", digits.collect::<String>()))
}
