//! What capture costs whoever writes, and what it takes to read the log: recsync's three modes beside no trigger and
//! the customary audit trigger, in one run, on the same machine and data. See benches/README.md.
//!
//! The variants take turns in rounds, so that what else the machine does falls on all of them. It never measures
//! inside the server's processes: CPU time is what the kernel counts for them, WAL what the server's position says.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

/// What is compared.
mod variant;

/// Processors and CPU time.
mod cpu;

/// recsync's worker, stopped and waited for.
mod worker;

/// Many rows in a statement.
mod bulk;

/// One row in a transaction.
mod clients;

/// Rows with a large text.
mod toast;

/// Reading the log.
mod dispatch;

/// What was measured.
mod figures;

/// What is printed of it.
mod report;

/// What is drawn of it.
mod picture;

#[path = "../support/mod.rs"]
mod bench;

#[path = "../../tests/support/mod.rs"]
mod support;

use bench::setting::{conditions, is_wanted, load, size_or_quick};
use figures::Figures;
use support::{Cluster, Database};

/// Of an ordinary server, where the tests' clusters are set to be quick; but nothing runs that would fall on one
/// variant only: no autovacuum, no checkpoint but those that are asked for, no embedding, no rotation for size.
const SETTINGS: &[(&str, &str)] = &[
    ("fsync", "on"),
    ("full_page_writes", "on"),
    ("shared_buffers", "1GB"),
    ("max_wal_size", "8GB"),
    ("checkpoint_timeout", "1h"),
    ("autovacuum", "off"),
    ("recsync.enabled", "off"),
    ("recsync.log_max_size", "100GB"),
];

/// What the environment may set.
pub struct Sizes {
    pub rows: usize,
    pub wide_rows: usize,
    /// Of every workload but dispatch.
    pub rounds: usize,
    /// Of one run of pgbench.
    pub seconds: usize,
    /// Of one round.
    pub updates: usize,
    pub log_rows: usize,
}

impl Sizes {
    fn given() -> Sizes {
        let of = size_or_quick;
        Sizes {
            rows: of("ROWS", 200_000, 5_000),
            wide_rows: of("WIDE_ROWS", 50_000, 2_000),
            rounds: of("ROUNDS", 5, 1),
            seconds: of("RUN_SECONDS", 3, 1),
            updates: of("UPDATES", 2_000, 200),
            log_rows: of("LOG_ROWS", 1_000_000, 20_000),
        }
    }
}

type Workload = fn(&mut Database, &Sizes, &mut Figures);

/// By the names of variable WORKLOADS.
const WORKLOADS: [(&str, Workload); 6] = [
    ("bulk", bulk::narrow),
    ("wide", bulk::wide),
    ("insert", clients::insert),
    ("unused", clients::update_unused),
    ("toast", toast::run),
    ("wake", clients::wake),
];

fn main() {
    let sizes = Sizes::given();
    let wanted = |name| is_wanted("WORKLOADS", name);
    println!("{}\n", conditions(SETTINGS));
    let mut figures = Figures::default();
    {
        let cluster = Cluster::start(SETTINGS);
        let mut db = cluster.database();
        variant::prepare(&mut db);
        bulk::prepare(&mut db, &sizes);
        toast::prepare(&mut db);
        for (name, run) in WORKLOADS.iter().filter(|(name, _)| wanted(name)) {
            eprintln!("{name} …");
            run(&mut db, &sizes, &mut figures);
        }
    }
    if wanted("dispatch") {
        eprintln!("dispatch …");
        dispatch::run(&sizes, &mut figures);
    }
    report::print(&figures);
    println!("\n{}", figures.write_csv());
    println!("{}", picture::write(&figures));
    println!("load average now: {}", load());
}

/// All of them, in another order each round.
fn in_turn<T: Copy>(all: &[T], round: usize) -> impl Iterator<Item = T> {
    (0..all.len()).map(move |turn| all[(round + turn) % all.len()])
}
