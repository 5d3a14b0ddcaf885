//! What processes have used of the processors, as the kernel counts it; and which processors they may use. It never
//! counts a process that it was not asked about.

use std::fs;

/// Seconds of CPU that a running process has used so far, all of its threads together.
pub fn used(pid: i32) -> f64 {
    let nanoseconds = threads(pid).into_iter().map(|thread| {
        let file = format!("/proc/{pid}/task/{thread}/schedstat");
        let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{file}: {error}"));
        let first = text.split_ascii_whitespace().next();
        first.and_then(|number| number.parse::<u64>().ok()).unwrap()
    });
    nanoseconds.sum::<u64>() as f64 / 1e9
}

/// Seconds of CPU of the children of a process that have ended, in steps of 10 ms.
pub fn used_by_ended_children(pid: i32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name in parentheses may hold anything; after it come the fields from the third on.
    let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 1..]
        .split_ascii_whitespace()
        .collect();
    let (user, system): (u64, u64) = (fields[13].parse().unwrap(), fields[14].parse().unwrap());
    // SAFETY: a system call without pointers.
    let ticks_per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    (user + system) as f64 / ticks_per_second as f64
}

/// As long as it lives, one process has the last processor to itself and the others, with this one and what they
/// start, have the rest.
pub struct Apart {
    all: Vec<usize>,
    pids: Vec<i32>,
}

impl Apart {
    /// `None` on a machine with one processor.
    pub fn keep(alone: i32, others: &[i32]) -> Option<Apart> {
        let all = allowed();
        let (last, rest) = all.split_last()?;
        if rest.is_empty() {
            return None;
        }
        allow(alone, &[*last]);
        let own = std::process::id() as i32;
        let others = others.iter().copied().chain([own]);
        let others: Vec<i32> = others.inspect(|&pid| allow(pid, rest)).collect();
        let pids = others.into_iter().chain([alone]).collect();
        Some(Apart { all, pids })
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        self.pids.iter().for_each(|&pid| allow(pid, &self.all));
    }
}

fn threads(pid: i32) -> Vec<i32> {
    let folder = format!("/proc/{pid}/task");
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder}: {error}"));
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// The processors that this process may use.
fn allowed() -> Vec<usize> {
    // SAFETY: an all-zero cpu_set_t is an empty set, which the call fills; reading it stays within its size.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        let failed = libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set);
        assert_eq!(failed, 0, "sched_getaffinity");
        let known = 0..libc::CPU_SETSIZE as usize;
        known.filter(|&cpu| libc::CPU_ISSET(cpu, &set)).collect()
    }
}

/// A process that has ended meanwhile is no harm.
fn allow(pid: i32, cpus: &[usize]) {
    if !fs::exists(format!("/proc/{pid}")).unwrap_or(false) {
        return;
    }
    for thread in threads(pid) {
        // SAFETY: as in `allowed`; the numbers come from there.
        unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            cpus.iter().for_each(|&cpu| libc::CPU_SET(cpu, &mut set));
            libc::sched_setaffinity(thread, size_of::<libc::cpu_set_t>(), &set);
        }
    }
}
