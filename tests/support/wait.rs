//! Waiting for what another process does. It never sleeps longer than a poll.

use std::time::{Duration, Instant};

/// How long a test waits for what should happen within a second, on a machine that does something else, too.
pub const PATIENCE: Duration = Duration::from_secs(30);

const POLL: Duration = Duration::from_millis(5);

/// Whether `condition` holds before `timeout` has passed.
pub fn eventually(timeout: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + timeout;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(POLL);
    }
}

/// Waits until `condition` holds and says how long that took; fails the test when it does not in time.
#[track_caller]
pub fn wait_until(timeout: Duration, what: &str, condition: impl FnMut() -> bool) -> Duration {
    let started = Instant::now();
    assert!(
        eventually(timeout, condition),
        "not within {timeout:?}: {what}"
    );
    started.elapsed()
}
