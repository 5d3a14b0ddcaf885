//! recsync's worker, which is stopped where only the writers' cost is wanted. It is stopped between two rounds only:
//! in the middle of one it might hold a lock that everybody needs.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use crate::support::process::signal;
use crate::support::{Database, PATIENCE, Sql, wait_until};
use crate::variant;

/// Between two looks, which cost processor time that the worker may want.
const POLL: Duration = Duration::from_millis(50);

/// A worker that does nothing as long as this lives.
pub struct Stopped {
    pub pid: i32,
}

impl Stopped {
    pub fn stop(db: &mut Database) -> Stopped {
        let pid = db.worker();
        let mut stopped = None;
        wait_until(
            PATIENCE,
            "the worker can be stopped between two rounds",
            || {
                let attempt = Stopped { pid };
                signal(pid, libc::SIGSTOP);
                wait_until(PATIENCE, "the worker has stopped", || is_stopped(pid));
                let idle = is_idle(db, pid);
                // The one that is not idle goes on: the attempt ends here.
                stopped = idle.then_some(attempt);
                idle
            },
        );
        stopped.unwrap()
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        signal(self.pid, libc::SIGCONT);
    }
}

/// Waits until the worker has read what there was and waits for more.
pub fn wait_until_idle(db: &mut Database) {
    let pid = db.worker();
    let mut looks = 0;
    wait_until(PATIENCE, "the worker has nothing to do", || {
        looks = if is_idle(db, pid) { looks + 1 } else { 0 };
        looks == 20
    });
}

/// The id of the last transaction that is in the log.
pub fn last_logged(db: &mut Database) -> String {
    db.one(&format!(
        "SELECT max(transaction_id::text::bigint)::text FROM ({}) l",
        variant::log()
    ))
}

/// Waits until the checkpoint has passed a transaction.
pub fn wait_until_dispatched(db: &mut Database, transaction: &str) {
    let passed = format!(
        "SELECT pg_visible_in_snapshot('{transaction}'::xid8, snapshot) FROM recsync.checkpoint"
    );
    wait_until(PATIENCE * 10, "the log is dispatched", || {
        sleep(POLL);
        db.one(&passed)
    });
}

/// As it shows itself: between two rounds.
fn is_idle(db: &mut Database, pid: i32) -> bool {
    let states: Vec<String> = db.column(&format!(
        "SELECT state FROM pg_stat_activity WHERE pid = {pid}"
    ));
    states == ["idle"]
}

fn is_stopped(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") T "))
}
