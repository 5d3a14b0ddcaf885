//! PostgreSQL clusters of the tests' own: initdb, start, crash, stop. It never touches one that it did not make.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, mpsc};
use std::time::Duration;
use std::{env, thread};

use postgres::{Client, Config, NoTls};

use super::process;
use super::wait::{eventually, wait_until};

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

/// The programs of the PostgreSQL that `PG_CONFIG` names.
pub fn bin() -> &'static Path {
    static BIN: OnceLock<PathBuf> = OnceLock::new();
    BIN.get_or_init(|| {
        let config = env::var("PG_CONFIG").unwrap_or_else(|_| {
            panic!("PG_CONFIG must name the pg_config of a PostgreSQL with recsync installed; `make test` sets it")
        });
        let ask = |what: &str| {
            let output = Command::new(&config).arg(what).output();
            let output = output.unwrap_or_else(|error| panic!("PG_CONFIG={config} cannot be run: {error}"));
            PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
        };
        for file in [ask("--sharedir").join("extension/recsync.control"), ask("--pkglibdir").join("recsync.so")] {
            assert!(
                file.exists(),
                "recsync is not installed in PG_CONFIG={config}: {} is missing; `make install PG_CONFIG={config}` puts it there",
                file.display()
            );
        }
        ask("--bindir")
    })
}

fn bindir(pg_config: &str) -> PathBuf {
    let output = Command::new(pg_config).arg("--bindir").output();
    let output = output.unwrap_or_else(|error| panic!("{pg_config} cannot be run: {error}"));
    PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
}

/// The major version.
fn version_of(bin: &Path) -> u32 {
    let output = Command::new(bin.join("pg_config"))
        .arg("--version")
        .output()
        .unwrap();
    let version = String::from_utf8_lossy(&output.stdout).into_owned();
    let digits = version.trim_start_matches(|c: char| !c.is_ascii_digit());
    digits
        .split(|c: char| !c.is_ascii_digit())
        .next()
        .unwrap()
        .parse()
        .unwrap()
}

/// Whether a cluster of this process outlives it.
static KEPT: AtomicBool = AtomicBool::new(false);

/// For a cluster.
fn new_directory() -> PathBuf {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let directory = base().join(NUMBER.fetch_add(1, Ordering::Relaxed).to_string());
    fs::create_dir(&directory).unwrap();
    directory
}

/// A folder of this test run's, which ends with it.
fn base() -> &'static Path {
    static BASE: OnceLock<PathBuf> = OnceLock::new();
    BASE.get_or_init(|| {
        // The path of a socket must stay short, and root's TMPDIR is often closed to others.
        let given = env::temp_dir();
        let fits = given.as_os_str().len() <= 60
            && server_user().is_none_or(|user| user.may_enter(&given));
        let parent = if fits { given } else { PathBuf::from("/tmp") };
        let base = parent.join(format!("recsync-{}", std::process::id()));
        let _ = fs::remove_dir_all(&base);
        fs::create_dir(&base)
            .unwrap_or_else(|error| panic!("cannot make {}: {error}", base.display()));
        own(&base);
        // SAFETY: the handler is a plain function that removes a folder.
        unsafe { libc::atexit(remove_base) };
        base
    })
}

extern "C" fn remove_base() {
    super::database::remove_shared();
    let all = !KEPT.load(Ordering::Relaxed);
    let _ = fs::remove_dir_all(if all { base() } else { template() });
}

/// An initialised data directory that every cluster begins as a copy of.
fn template() -> &'static Path {
    static TEMPLATE: OnceLock<PathBuf> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let template = base().join("template");
        run(&mut initdb(bin(), &template));
        template
    })
}

fn initdb(bin: &Path, directory: &Path) -> Command {
    let mut initdb = Command::new(bin.join("initdb"));
    initdb.args([
        "--no-sync",
        "--username=postgres",
        "--auth=trust",
        "--encoding=UTF8",
        "--locale=C",
    ]);
    initdb.arg("-D").arg(directory);
    as_server_user(&mut initdb);
    initdb
}

fn run(command: &mut Command) {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Starts a postmaster that the kernel stops when this process ends, however it ends, unless it is `kept`. That is
/// tied to the life of the thread that has started it, and tests' threads are short.
fn spawn(mut command: Command, environment: &[(String, String)], kept: bool) -> Child {
    type Order = (Command, mpsc::Sender<std::io::Result<Child>>);
    static NURSERY: OnceLock<Mutex<mpsc::Sender<Order>>> = OnceLock::new();
    as_server_user(&mut command);
    command
        .env("TEST_API_KEY", TEST_API_KEY)
        .env("TEST_HOOK_API_KEY", super::receiver::SECRET)
        .envs(environment.iter().cloned())
        .process_group(0);
    // SAFETY: one system call between fork and exec, after the change of user, which would undo it.
    unsafe {
        command.pre_exec(move || {
            match libc::prctl(libc::PR_SET_PDEATHSIG, if kept { 0 } else { libc::SIGQUIT }) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    let nursery = NURSERY.get_or_init(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        thread::spawn(move || {
            for (mut command, reply) in inbox {
                let _ = reply.send(command.spawn());
            }
        });
        Mutex::new(orders)
    });
    let (reply, child) = mpsc::channel();
    nursery.lock().unwrap().send((command, reply)).unwrap();
    child
        .recv()
        .unwrap()
        .unwrap_or_else(|error| panic!("cannot start PostgreSQL: {error}"))
}

/// Who runs PostgreSQL when the tests run as root, which it refuses.
struct ServerUser {
    uid: u32,
    gid: u32,
}

impl ServerUser {
    fn may_enter(&self, directory: &Path) -> bool {
        use std::os::unix::fs::MetadataExt;
        directory.ancestors().all(|directory| {
            fs::metadata(directory).is_ok_and(|found| {
                let mode = found.mode();
                mode & 0o001 != 0 || (found.uid() == self.uid && mode & 0o100 != 0)
            })
        })
    }
}

fn server_user() -> Option<&'static ServerUser> {
    static USER: OnceLock<Option<ServerUser>> = OnceLock::new();
    USER.get_or_init(|| {
        // SAFETY: a system call that cannot fail.
        if unsafe { libc::geteuid() } != 0 {
            return None;
        }
        ["postgres", "nobody"].iter().find_map(|name| {
            let name = CString::new(*name).unwrap();
            // SAFETY: a NUL-terminated name; the static record is read before anybody else asks (inside get_or_init).
            unsafe { libc::getpwnam(name.as_ptr()).as_ref() }.map(|found| ServerUser {
                uid: found.pw_uid,
                gid: found.pw_gid,
            })
        })
    })
    .as_ref()
}

fn as_server_user(command: &mut Command) {
    command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("LC_ALL", "C")
        .current_dir("/");
    for name in ["LD_LIBRARY_PATH", "TMPDIR"] {
        if let Ok(value) = env::var(name) {
            command.env(name, value);
        }
    }
    if let Some(user) = server_user() {
        command.uid(user.uid).gid(user.gid);
    }
}

/// Gives it to whoever runs PostgreSQL.
pub fn own(path: &Path) {
    if let Some(user) = server_user() {
        std::os::unix::fs::chown(path, Some(user.uid), Some(user.gid)).unwrap();
    }
}
