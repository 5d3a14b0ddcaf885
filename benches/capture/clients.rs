//! Four clients of pgbench that commit one row at a time. The CPU time is that of their backends, as the postmaster
//! counts it of children that have ended, so it holds what it takes to start five of them: the same for all variants.

use std::path::PathBuf;
use std::process::Command;

use crate::bench::setting::keep;
use crate::cpu::{self, Apart};
use crate::figures::{Figure, Figures};
use crate::support::cluster::bin;
use crate::support::process::children;
use crate::support::{Database, PATIENCE, Sql, wait_until};
use crate::variant::{self, VARIANTS, Variant};
use crate::worker::{Stopped, wait_until_idle};
use crate::{Sizes, in_turn};

pub const INSERT_OFF: &str = "single INSERT, synchronous_commit off";
pub const INSERT_ON: &str = "single INSERT, synchronous_commit on";
pub const UNUSED: &str = "single UPDATE of an unused column";
pub const WAKE: &str = "worker stopped or draining";
pub const WAKE_APART: &str = "worker stopped or draining, on a processor of its own";

pub const WITHOUT: &str = "no trigger";
pub const STOPPED: &str = "worker stopped";
pub const DRAINING: &str = "worker draining";

const CLIENTS: &str = "4";
/// Rows that are updated, at random: two clients seldom want the same one.
const ROWS: usize = 10_000;
/// Of title, body, details, price and stock: about 500 bytes a row.
const VALUES: &str = "'Item of a client', repeat('a body of text, ', 12), repeat('and details of it, ', 10), 12.34, 56";

pub fn insert(db: &mut Database, sizes: &Sizes, figures: &mut Figures) {
    let _stopped = Stopped::stop(db);
    for round in 1..=sizes.rounds {
        for (workload, sync) in [(INSERT_OFF, "off"), (INSERT_ON, "on")] {
            for variant in in_turn(&VARIANTS, round) {
                let table = variant.table("item");
                let script = format!(
                    "INSERT INTO {table} (title, body, details, price, stock) VALUES ({VALUES});"
                );
                let figure = Figure::new(workload, variant.label(), round, 0);
                let figure = pgbench(db, &script, sync, sizes, figure);
                figures.add(figure);
                if round == 1 {
                    variant.assert_logged(db, figure.units);
                }
                variant::empty(db, &table);
            }
        }
    }
}

pub fn update_unused(db: &mut Database, sizes: &Sizes, figures: &mut Figures) {
    let _stopped = Stopped::stop(db);
    for round in 1..=sizes.rounds {
        for variant in in_turn(&VARIANTS, round) {
            let table = variant.table("item");
            fill(db, &table);
            let logged = variant::log_inserts(db);
            let script = format!(
                "\\set id random(1, {ROWS})\nUPDATE {table} SET stock = stock + 1 WHERE id = :id;"
            );
            let figure = Figure::new(UNUSED, variant.label(), round, 0);
            figures.add(pgbench(db, &script, "off", sizes, figure));
            if variant != Variant::Audit {
                assert_eq!(variant::log_inserts(db), logged, "{}", variant.label());
                variant.assert_logged(db, 0);
            }
            variant::empty(db, &table);
        }
    }
}

/// Updates of a used column with the worker stopped, so that after the first commit there is nobody to wake, and with
/// the worker reading and coalescing what they log.
pub fn wake(db: &mut Database, sizes: &Sizes, figures: &mut Figures) {
    let postmaster = db.cluster.postmaster_pid();
    for round in 1..=sizes.rounds {
        for workload in [WAKE, WAKE_APART] {
            let apart = (workload == WAKE_APART).then(|| Apart::keep(db.worker(), &[postmaster]));
            if let Some(None) = apart {
                continue; // one processor: nobody can have one of his own
            }
            for name in in_turn(&[WITHOUT, STOPPED, DRAINING], round) {
                let variant = match name {
                    WITHOUT => Variant::None,
                    _ => Variant::Keys,
                };
                let table = variant.table("item");
                fill(db, &table);
                wait_until_idle(db);
                let worker = db.worker();
                let stopped = (name != DRAINING).then(|| Stopped::stop(db));
                let used = cpu::used(worker);
                let script = format!(
                    "\\set id random(1, {ROWS})\n\\set n random(1, 1000000000)\n\
                     UPDATE {table} SET title = 'Title ' || :n::text WHERE id = :id;"
                );
                let figure = Figure::new(workload, name, round, 0);
                let mut figure = pgbench(db, &script, "off", sizes, figure);
                figure.worker_cpu_s = cpu::used(worker) - used;
                figures.add(figure);
                drop(stopped);
                wait_until_idle(db);
                db.run(&format!("TRUNCATE {table}"));
            }
        }
    }
}

fn fill(db: &mut Database, table: &str) {
    db.run(&format!(
        "INSERT INTO {table} (id, title, body, details, price, stock)
         SELECT n, {VALUES} FROM generate_series(1, {ROWS}) n"
    ));
    variant::empty_logs(db);
}

/// Runs a script for `sizes.seconds` and adds to the figure what there was.
fn pgbench(
    db: &mut Database,
    script: &str,
    synchronous_commit: &str,
    sizes: &Sizes,
    mut figure: Figure,
) -> Figure {
    let file = keep("capture.pgbench.sql", script);
    let (folder, port): (String, String) =
        (db.one("SHOW unix_socket_directories"), db.one("SHOW port"));
    let postmaster = db.cluster.postmaster_pid();
    let there = children(postmaster);
    let used = cpu::used_by_ended_children(postmaster);
    let output = Command::new(program())
        .args([
            "--no-vacuum",
            "--protocol=prepared",
            "--jobs=1",
            "--client",
            CLIENTS,
        ])
        .args(["--time", &sizes.seconds.to_string()])
        .args(["--host", &folder, "--port", &port, "--username=postgres"])
        .arg("--file")
        .arg(file)
        .arg(&db.name)
        .env(
            "PGOPTIONS",
            format!("-c synchronous_commit={synchronous_commit}"),
        )
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "pgbench: {text}{errors}");
    let number = |before: &str| {
        let after = text
            .split(before)
            .nth(1)
            .and_then(|after| after.split_ascii_whitespace().next());
        let number = after.and_then(|number| number.parse::<f64>().ok());
        number.unwrap_or_else(|| panic!("pgbench does not say \"{before}\":\n{text}"))
    };
    figure.units = number("transactions actually processed: ") as usize;
    figure.wall_s = figure.units as f64 / number("tps = ");
    wait_until(PATIENCE, "the clients' backends have ended", || {
        children(postmaster).iter().all(|pid| there.contains(pid))
    });
    figure.cpu_s = cpu::used_by_ended_children(postmaster) - used;
    figure
}

fn program() -> PathBuf {
    let program = bin().join("pgbench");
    assert!(
        program.exists(),
        "{} is missing: this PostgreSQL came without pgbench",
        program.display()
    );
    program
}
