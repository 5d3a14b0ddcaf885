//! What every measurement says of itself and where its figures go: the machine, the server's settings, sizes from the
//! environment, files in target/bench. It never measures.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::{env, fs};

use crate::support::cluster;

/// What the figures depend on; `settings` are those of the server.
pub fn conditions(settings: &[(&str, &str)]) -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let server = Command::new(cluster::bin().join("postgres"))
        .arg("--version")
        .output();
    let settings = settings
        .iter()
        .map(|(name, value)| format!("{name} {value}"));
    format!(
        "{}; {} × {}, kernel {}; {}; load average {}",
        String::from_utf8_lossy(&server.unwrap().stdout).trim(),
        std::thread::available_parallelism().map_or(0, usize::from),
        cpu.map_or("unknown CPU", |(_, model)| model),
        kernel.trim(),
        settings.collect::<Vec<_>>().join(", "),
        load()
    )
}

/// Of the last minute and of the last five.
pub fn load() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// A number that the environment may set.
pub fn size(variable: &str, default: usize) -> usize {
    match env::var(variable) {
        Ok(value) => {
            usize::from_str(&value).unwrap_or_else(|_| panic!("{variable}={value} is not a number"))
        }
        Err(_) => default,
    }
}

/// The same; with `QUICK=1` another default, for a run that only shows that everything works.
pub fn size_or_quick(variable: &str, ordinary: usize, quick: usize) -> usize {
    let is_quick = size("QUICK", 0) > 0;
    size(variable, if is_quick { quick } else { ordinary }).max(1)
}

/// Whether `name` is to be run: it stands in the list that the variable holds, or there is no list.
pub fn is_wanted(variable: &str, name: &str) -> bool {
    match env::var(variable) {
        Ok(list) => list.split(',').any(|one| one == name),
        Err(_) => true,
    }
}

/// Writes a file of target/bench.
pub fn keep(name: &str, content: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench");
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, content).unwrap();
    path
}

/// By nearest rank; `times` in order.
pub fn percentile(times: &[f64], percent: usize) -> f64 {
    let rank = (times.len() * percent).div_ceil(100).max(1);
    times.get(rank - 1).copied().unwrap_or(f64::NAN)
}

/// What a process has of memory, by a line of its status.
pub fn memory_mb(pid: i32, line: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let found = status.lines().find_map(|each| each.strip_prefix(line));
    let kb = found.and_then(|rest| rest.trim().strip_suffix(" kB"));
    kb.and_then(|kb| kb.trim().parse::<f64>().ok())
        .unwrap_or(f64::NAN)
        / 1024.0
}
