//! Commands that what recsync does at the same time must not hold up.

use std::time::{Duration, Instant};

use postgres::Client;

use crate::support::{Database, Sql};

/// Runs a command that has to be done `within` a time.
#[track_caller]
pub fn at_once(db: &mut Client, statement: &str, within: Duration) {
    let started = Instant::now();
    db.run(statement);
    println!("{statement}: {:?}", started.elapsed());
    assert!(
        started.elapsed() < within,
        "{statement} took {:?}",
        started.elapsed()
    );
}

/// Copies, renames and drops databases in which a process of recsync's is at work, each as `busy` gives it.
#[track_caller]
pub fn copy_rename_and_drop<'a>(
    admin: &mut Client,
    within: Duration,
    busy: impl Fn() -> Database<'a>,
) {
    for statement in [
        "CREATE DATABASE copy TEMPLATE $",
        "ALTER DATABASE $ RENAME TO renamed",
        "DROP DATABASE $",
    ] {
        let db = busy();
        admin.run(&format!(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
              WHERE datname = '{}' AND backend_type = 'client backend'",
            db.name
        ));
        at_once(admin, &statement.replace('$', &db.name), within);
    }
    admin.run("DROP DATABASE copy WITH (FORCE)");
    at_once(admin, "DROP DATABASE renamed", within);
}
