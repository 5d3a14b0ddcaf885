//! A redis-server of the test's own, on the loopback address, and as much of its protocol as the test needs.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use std::{env, fs, iter};

use crate::support::{PATIENCE, process, wait_until};

/// redis-server, and what the script needs of Python.
pub struct Tools {
    server: PathBuf,
    pub python: PathBuf,
}

impl Tools {
    /// `None` where they are not to be had, which is a failure at night.
    pub fn find() -> Option<Tools> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/setup/redis.sh");
        let output = Command::new(script).output().expect(script);
        let paths = String::from_utf8(output.stdout).unwrap();
        let mut paths = paths.lines().map(PathBuf::from);
        if let (true, Some(server), Some(python)) =
            (output.status.success(), paths.next(), paths.next())
        {
            return Some(Tools { server, python });
        }
        let what = "examples/redis was not run: install redis-server, and python3 with pip";
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(env::var_os("RECSYNC_NIGHTLY").is_none(), "{what}\n{said}");
        println!("{what}");
        None
    }
}

pub struct Redis {
    program: PathBuf,
    pub address: SocketAddr,
    folder: PathBuf,
    child: Child,
}

/// A reply of its protocol.
enum Reply {
    Text(String),
    All(Vec<Reply>),
}

impl Redis {
    pub fn start(tools: &Tools, address: SocketAddr) -> Redis {
        let folder = env::temp_dir().join(format!("recsync-redis-{}", address.port()));
        fs::create_dir(&folder).unwrap();
        let redis = Redis {
            child: spawn(&tools.server, address, &folder),
            program: tools.server.clone(),
            address,
            folder,
        };
        redis.wait();
        redis
    }

    /// kill -9.
    pub fn kill9(&mut self) {
        process::kill9(self.child.id() as i32);
        self.child.wait().unwrap();
    }

    /// With what it has on disk.
    pub fn start_again(&mut self) {
        self.child = spawn(&self.program, self.address, &self.folder);
        self.wait();
    }

    /// Where it keeps its data, until it ends.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn wait(&self) {
        wait_until(
            PATIENCE,
            "redis-server answers",
            || matches!(self.try_ask(&["PING"]), Ok(Reply::Text(pong)) if pong == "PONG"),
        );
    }

    /// Sets keys to something.
    #[track_caller]
    pub fn set(&self, keys: &[impl AsRef<str>]) {
        let keys = keys.iter().flat_map(|key| [key.as_ref(), "a list"]);
        let command: Vec<&str> = iter::once("MSET").chain(keys).collect();
        let done = matches!(self.ask(&command), Reply::Text(ok) if ok == "OK");
        assert!(done, "MSET");
    }

    /// All keys, sorted.
    #[track_caller]
    pub fn keys(&self) -> Vec<String> {
        let Reply::All(keys) = self.ask(&["KEYS", "*"]) else {
            panic!("KEYS is not answered by a list");
        };
        let keys = keys.into_iter().map(|key| match key {
            Reply::Text(key) => key,
            Reply::All(_) => panic!("a list for a key"),
        });
        let mut keys: Vec<String> = keys.collect();
        keys.sort_unstable();
        keys
    }

    #[track_caller]
    fn ask(&self, command: &[&str]) -> Reply {
        match self.try_ask(command) {
            Ok(reply) => reply,
            Err(error) => panic!("{}: {error}", command[0]),
        }
    }

    fn try_ask(&self, command: &[&str]) -> io::Result<Reply> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let mut request = format!("*{}\r\n", command.len());
        for word in command {
            request += &format!("${}\r\n{word}\r\n", word.len());
        }
        stream.write_all(request.as_bytes())?;
        read(&mut BufReader::new(stream))
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Each write is on disk before it is answered.
fn spawn(program: &Path, address: SocketAddr, folder: &Path) -> Child {
    Command::new(program)
        .args([
            "--bind",
            &address.ip().to_string(),
            "--port",
            &address.port().to_string(),
        ])
        .args([
            "--save",
            "",
            "--appendonly",
            "yes",
            "--appendfsync",
            "always",
            "--dir",
        ])
        .arg(folder)
        .env("LD_LIBRARY_PATH", program.parent().unwrap())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server")
}

fn read(stream: &mut impl BufRead) -> io::Result<Reply> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let line = line.trim_end();
    let wrong = || io::Error::other(format!("answers {line:?}"));
    let (kind, rest) = line.split_at_checked(1).ok_or_else(wrong)?;
    let number = || rest.parse::<usize>().map_err(|_| wrong());
    match kind {
        "+" | ":" => Ok(Reply::Text(rest.to_owned())),
        "$" => {
            let mut text = vec![0; number()? + 2];
            stream.read_exact(&mut text)?;
            let text = String::from_utf8_lossy(&text);
            Ok(Reply::Text(text.trim_end_matches("\r\n").to_owned()))
        }
        "*" => {
            let parts = (0..number()?).map(|_| read(stream));
            parts.collect::<io::Result<_>>().map(Reply::All)
        }
        _ => Err(wrong()),
    }
}
