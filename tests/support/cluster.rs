//! PostgreSQL clusters of the tests' own: initdb, start, crash, stop. It never touches one that it did not make.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use postgres::{Client, Config, NoTls};

use super::process;
use super::wait::{eventually, wait_until};
use folders::{KEPT, new_directory, template};
pub use programs::bin;
use programs::{bindir, initdb, run, spawn, version_of};
use user::as_server_user;
pub use user::own;

/// PostgreSQL's programs.
mod programs;

/// Where clusters are.
mod folders;

/// Who runs them.
mod user;

/// The key that servers of the tests name by `api_key_env 'TEST_API_KEY'`.
pub const TEST_API_KEY: &str = "sk-test-0f9e8d7c6b5a43210123456789abcdef";

const PORT: u16 = 5432;
const START: Duration = Duration::from_secs(60);

/// What every cluster is set to; a test's own settings come after it and win.
const SETTINGS: &[(&str, &str)] = &[
    ("listen_addresses", ""),
    ("shared_preload_libraries", "recsync"),
    ("fsync", "off"),
    ("full_page_writes", "off"),
    ("shared_buffers", "48MB"),
    ("max_wal_size", "256MB"),
    ("log_line_prefix", "%m [%p] %d %b "),
    ("log_checkpoints", "off"),
    ("timezone", "UTC"),
];

pub struct Cluster {
    directory: PathBuf,
    postmaster: Mutex<Option<Child>>,
    environment: Vec<(String, String)>,
    kept: bool,
    /// The programs of its PostgreSQL.
    bin: PathBuf,
}

impl Cluster {
    /// A running cluster with recsync preloaded and `settings`.
    pub fn start(settings: &[(&str, &str)]) -> Cluster {
        Cluster::start_with(settings, &[], false)
    }

    /// A hot standby of it.
    pub fn standby(&self) -> Cluster {
        let standby = self.copied(&["--write-recovery-conf"]);
        standby.start_again();
        standby
    }

    /// A copy of its disk that goes on by itself, not started yet.
    pub fn copy(&self) -> Cluster {
        self.copied(&[])
    }

    /// Stops it, and makes one of a newer PostgreSQL of it by pg_upgrade, not started yet.
    pub fn upgraded(&self, pg_config: &str) -> Cluster {
        self.stop_fast();
        let directory = new_directory();
        own(&directory);
        let newer = Cluster {
            postmaster: Mutex::new(None),
            environment: self.environment.clone(),
            kept: false,
            bin: bindir(pg_config),
            directory,
        };
        let major: u32 = version_of(&newer.bin);
        let mut initdb = initdb(&newer.bin, &newer.data_directory());
        if major >= 18 {
            initdb.arg("--no-data-checksums"); // the default was another before
        }
        run(&mut initdb);
        let settings = self.data_directory().join("postgresql.auto.conf");
        fs::copy(
            &settings,
            newer.data_directory().join("postgresql.auto.conf"),
        )
        .unwrap();
        newer.set_for_next_start("unix_socket_directories", newer.directory.to_str().unwrap());
        own(&newer.data_directory().join("postgresql.auto.conf"));
        let mut upgrade = Command::new(newer.bin.join("pg_upgrade"));
        as_server_user(&mut upgrade);
        upgrade
            .current_dir(&newer.directory)
            .args(["--username=postgres", "--no-sync", "--old-bindir"])
            .arg(&self.bin)
            .arg("--new-bindir")
            .arg(&newer.bin)
            .arg("--old-datadir")
            .arg(self.data_directory())
            .arg("--new-datadir")
            .arg(newer.data_directory())
            .env("TEST_API_KEY", TEST_API_KEY);
        run(&mut upgrade);
        newer
    }

    fn copied(&self, options: &[&str]) -> Cluster {
        let directory = new_directory();
        own(&directory);
        let mut copy = Command::new(bin().join("pg_basebackup"));
        copy.args(["--checkpoint=fast", "--no-sync"])
            .args(options)
            .args(["--username=postgres", "--pgdata"])
            .arg(directory.join("data"))
            .arg("--host")
            .arg(&self.directory);
        as_server_user(&mut copy);
        run(&mut copy);
        let copied = Cluster {
            postmaster: Mutex::new(None),
            environment: self.environment.clone(),
            kept: false,
            bin: self.bin.clone(),
            directory,
        };
        let sockets = copied.directory.to_str().unwrap();
        copied.set_for_next_start("unix_socket_directories", sockets);
        copied
    }

    /// The same, with more environment for the server. One that is `kept` outlives this process.
    pub fn start_with(
        settings: &[(&str, &str)],
        environment: &[(&str, &str)],
        kept: bool,
    ) -> Cluster {
        let directory = new_directory();
        // As the caller: as root, the copy keeps its owner.
        run(Command::new("cp")
            .arg("-a")
            .arg(template())
            .arg(directory.join("data")));
        own(&directory);
        let socket_directory = [("unix_socket_directories", directory.to_str().unwrap())];
        let settings: BTreeMap<&str, &str> = SETTINGS
            .iter()
            .chain(&socket_directory)
            .chain(settings)
            .copied()
            .collect();
        let lines = settings
            .iter()
            .map(|(name, value)| format!("{name} = '{value}'\n"));
        fs::write(
            directory.join("data/postgresql.auto.conf"),
            lines.collect::<String>(),
        )
        .unwrap();
        own(&directory.join("data/postgresql.auto.conf"));
        let cluster = Cluster {
            directory,
            postmaster: Mutex::new(None),
            environment: environment
                .iter()
                .map(|&(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            kept,
            bin: bin().to_owned(),
        };
        KEPT.fetch_or(kept, Ordering::Relaxed);
        cluster.start_again();
        cluster
    }

    /// Starts it after `stop_fast` or a crash. Processes of a killed server let go of its shared memory only when
    /// they have noticed: until then PostgreSQL refuses to start.
    pub fn start_again(&self) {
        assert!(
            eventually(START, || self.start_once()),
            "PostgreSQL does not start:\n{}",
            self.log()
        );
    }

    /// Whether it started; false when it ended at once.
    fn start_once(&self) -> bool {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .unwrap();
        let mut command = Command::new(self.bin.join("postgres"));
        command
            .arg("-D")
            .arg(self.directory.join("data"))
            .stderr(log)
            .stdout(Stdio::null())
            .stdin(Stdio::null());
        *self.postmaster.lock().unwrap() = Some(spawn(command, &self.environment, self.kept));
        let up = || match self.postmaster.lock().unwrap().as_mut() {
            Some(child) => {
                child.try_wait().unwrap().is_some()
                    || self.try_connect("postgres", "postgres").is_ok()
            }
            None => true,
        };
        eventually(START, up) && self.try_connect("postgres", "postgres").is_ok()
    }

    /// Runs one of PostgreSQL's programs, such as pg_dump, against a database; returns what it has written.
    #[track_caller]
    pub fn tool(&self, program: &str, database: &str, arguments: &[&str], input: &[u8]) -> Vec<u8> {
        use std::io::Write;
        let mut command = Command::new(self.bin.join(program));
        as_server_user(&mut command);
        let mut child = command
            .args(["--username=postgres", "--dbname", database, "--host"])
            .arg(&self.directory)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut pipe = child.stdin.take().unwrap();
        let output = thread::scope(|scope| {
            scope.spawn(move || pipe.write_all(input));
            child.wait_with_output().unwrap()
        });
        assert!(
            output.status.success(),
            "{program}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        output.stdout
    }

    pub fn restart(&self) {
        self.stop_fast();
        self.start_again();
    }

    /// Fast shutdown; how long it took.
    pub fn stop_fast(&self) -> Duration {
        process::signal(self.postmaster_pid(), libc::SIGINT);
        self.wait_until_stopped()
    }

    /// After a signal of the test's own.
    pub fn wait_until_stopped(&self) -> Duration {
        let took = wait_until(START, "the server shuts down", || {
            self.postmaster
                .lock()
                .unwrap()
                .as_mut()
                .is_none_or(|child| child.try_wait().unwrap().is_some())
        });
        *self.postmaster.lock().unwrap() = None;
        took
    }

    /// kill -9 of the postmaster and of every process of it.
    pub fn kill9_all(&self) {
        let mut child = self.postmaster.lock().unwrap().take().unwrap();
        process::kill9_with_children(child.id() as i32);
        child.wait().unwrap();
    }

    /// Sets a setting for the whole cluster and reloads, as ALTER SYSTEM and pg_reload_conf() do.
    pub fn set(&self, name: &str, value: &str) {
        use super::sql::Sql;
        let mut client = self.connect("postgres");
        client.run(&format!("ALTER SYSTEM SET {name} = '{value}'"));
        client.run("SELECT pg_reload_conf()");
    }

    /// Sets what only a restart changes.
    pub fn set_for_next_start(&self, name: &str, value: &str) {
        // Not by ALTER SYSTEM, which makes a list with one empty name of an empty list.
        let file = self.directory.join("data/postgresql.auto.conf");
        let settings = fs::read_to_string(&file).unwrap();
        fs::write(&file, format!("{settings}{name} = '{value}'\n")).unwrap();
    }

    pub fn connect(&self, database: &str) -> Client {
        self.connect_as("postgres", database)
    }

    #[track_caller]
    pub fn connect_as(&self, role: &str, database: &str) -> Client {
        match self.try_connect(role, database) {
            Ok(client) => client,
            Err(error) => panic!(
                "cannot connect to {database} as {role}: {}",
                super::sql::describe(&error)
            ),
        }
    }

    pub fn try_connect(&self, role: &str, database: &str) -> Result<Client, postgres::Error> {
        self.config(role, database).connect(NoTls)
    }

    /// For a connection with settings of its own.
    pub fn config(&self, role: &str, database: &str) -> Config {
        let mut config = Config::new();
        config
            .host_path(&self.directory)
            .port(PORT)
            .user(role)
            .dbname(database);
        config
            .application_name("test")
            .connect_timeout(Duration::from_secs(10));
        // What is said to a test is in its way, unless it asks for it.
        config.notice_callback(|_| ());
        config
    }

    /// A connection once the server has recovered from a crash that the test has caused.
    pub fn reconnect(&self, database: &str) -> Client {
        wait_until(START, "the server takes connections again", || {
            self.try_connect("postgres", database).is_ok()
        });
        self.connect(database)
    }

    pub fn postmaster_pid(&self) -> i32 {
        self.postmaster.lock().unwrap().as_ref().unwrap().id() as i32
    }

    /// What the server has logged since the cluster was made.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    pub fn data_directory(&self) -> PathBuf {
        self.directory.join("data")
    }

    fn log_path(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// At once, whatever it does; nothing is kept.
    pub fn remove(&self) {
        // Not `lock().unwrap()`: a test may have failed while it held the lock.
        let child = self
            .postmaster
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .take();
        if let Some(mut child) = child {
            process::signal(child.id() as i32, libc::SIGQUIT);
            if !eventually(Duration::from_secs(10), || {
                matches!(child.try_wait(), Ok(Some(_)))
            }) {
                process::kill9_with_children(child.id() as i32);
                let _ = child.wait();
            }
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!(
                "the server's log:\n{}",
                last_lines(&self.log(), 120, |_| true)
            );
        }
        if !self.kept {
            self.remove();
        }
    }
}

pub fn last_lines(text: &str, count: usize, wanted: impl Fn(&str) -> bool) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| wanted(line)).collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
