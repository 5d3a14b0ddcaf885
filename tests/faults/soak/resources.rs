//! What a process holds: memory, threads, connections. It never asks the process itself.

use std::fs;

#[derive(Debug)]
pub struct Resources {
    /// Its own: of the shared buffers a process has the more the more of them it has read.
    pub memory_kb: u64,
    pub threads: u64,
    /// Sockets, pipes and the like: PostgreSQL opens and closes files of tables as it likes.
    pub sockets: u64,
}

impl Resources {
    pub fn of(pid: i32) -> Resources {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let digits = line.unwrap().split_ascii_whitespace().next();
            digits.unwrap().parse().unwrap()
        };
        let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        let links = open.filter_map(|entry| fs::read_link(entry.path()).ok());
        Resources {
            memory_kb: number("RssAnon:"),
            threads: number("Threads:"),
            sockets: links.filter(|link| link.is_relative()).count() as u64,
        }
    }
}
