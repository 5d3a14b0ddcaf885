//! PostgreSQL's programs: where they are, and how they are run. It never looks for one that `PG_CONFIG` does not name.

use std::env;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Mutex, OnceLock, mpsc};
use std::thread;

use super::TEST_API_KEY;
use super::user::as_server_user;

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

pub fn bindir(pg_config: &str) -> PathBuf {
    let output = Command::new(pg_config).arg("--bindir").output();
    let output = output.unwrap_or_else(|error| panic!("{pg_config} cannot be run: {error}"));
    PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
}

/// The major version.
pub fn version_of(bin: &Path) -> u32 {
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

pub fn initdb(bin: &Path, directory: &Path) -> Command {
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

pub fn run(command: &mut Command) {
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
pub fn spawn(mut command: Command, environment: &[(String, String)], kept: bool) -> Child {
    type Order = (Command, mpsc::Sender<std::io::Result<Child>>);
    static NURSERY: OnceLock<Mutex<mpsc::Sender<Order>>> = OnceLock::new();
    as_server_user(&mut command);
    command
        .env("TEST_API_KEY", TEST_API_KEY)
        .env("TEST_HOOK_API_KEY", super::super::receiver::SECRET)
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
