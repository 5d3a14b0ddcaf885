//! Processes of a cluster, by their ids. It never signals one that this test run has not started.

use std::fs;
use std::time::Duration;

use super::wait::wait_until;

pub fn signal(pid: i32, signal: libc::c_int) {
    // SAFETY: a system call without pointers; a process that has ended meanwhile is no harm.
    unsafe { libc::kill(pid, signal) };
}

/// kill -9: no handler runs.
pub fn kill9(pid: i32) {
    signal(pid, libc::SIGKILL);
}

/// Whether it runs: a zombie does not.
pub fn is_running(pid: i32) -> bool {
    state_and_parent(pid).is_some_and(|(state, _)| !matches!(state, 'Z' | 'X'))
}

pub fn children(parent: i32) -> Vec<i32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|&pid| state_and_parent(pid).is_some_and(|(_, its)| its == parent))
        .collect()
}

/// Every one of them at once, as a machine that loses its power does.
pub fn kill9_with_children(parent: i32) {
    let mut pids = children(parent);
    pids.insert(0, parent);
    for &pid in &pids {
        kill9(pid);
    }
    wait_until(Duration::from_secs(10), "the killed processes end", || {
        !pids.iter().any(|&pid| is_running(pid))
    });
}

fn state_and_parent(pid: i32) -> Option<(char, i32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything.
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}
