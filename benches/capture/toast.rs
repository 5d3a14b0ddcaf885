//! Updates of an unused column of rows whose used column holds 200 kB outside of the row. That it is not read is seen
//! in the server's own statistics of the TOAST tables.

use std::time::Instant;

use postgres::Client;

use crate::figures::{Figure, Figures};
use crate::support::{Database, Sql};
use crate::variant::{self, Variant, WITHOUT_AUDIT};
use crate::worker::Stopped;
use crate::{Sizes, cpu, in_turn};

pub const ONE: &str = "single UPDATE of an unused column, 200 kB of text in the row";
pub const MANY: &str =
    "UPDATE of an unused column, 100 rows in a statement, 200 kB of text in each";

const ROWS: usize = 100;
const BYTES: usize = 200_000;

pub fn prepare(db: &mut Database) {
    for variant in WITHOUT_AUDIT {
        let columns =
            "id bigint PRIMARY KEY, title text NOT NULL, body text NOT NULL, stock int NOT NULL";
        variant.create(db, "big", columns);
        let table = variant.table("big");
        db.run(&format!(
            "ALTER TABLE {table} ALTER body SET STORAGE EXTERNAL;
             INSERT INTO {table} SELECT n, 'Item ' || n, repeat('x', {BYTES}), 0 FROM generate_series(1, {ROWS}) n"
        ));
        db.run(&format!("VACUUM {table}"));
    }
}

pub fn run(db: &mut Database, sizes: &Sizes, figures: &mut Figures) {
    let _stopped = Stopped::stop(db);
    let mut writer = db.connect();
    writer.run("SET synchronous_commit = off");
    variant::empty_logs(db);
    let logged = variant::log_inserts(db);
    for round in 0..=sizes.rounds {
        for workload in [ONE, MANY] {
            for variant in in_turn(&WITHOUT_AUDIT, round) {
                let before = text_blocks(db, &mut writer, variant);
                let figure = Figure::new(workload, variant.label(), round, 0);
                figures.add(update(&mut writer, variant, sizes.updates, figure));
                let after = text_blocks(db, &mut writer, variant);
                assert_eq!(after, before, "{}: the text was read", variant.label());
            }
        }
    }
    assert_eq!(variant::log_inserts(db), logged, "an update was logged");
}

/// At least `updates`, each row as often as the others, in transactions of one row or of all rows.
fn update(writer: &mut Client, variant: Variant, updates: usize, mut figure: Figure) -> Figure {
    let pid: i32 = writer.one("SELECT pg_backend_pid()");
    let table = variant.table("big");
    let rows = if figure.workload == ONE { 1 } else { ROWS };
    let statement = format!(
        "UPDATE {table} SET stock = stock + 1 WHERE id BETWEEN $1 AND $1 + {}",
        rows - 1
    );
    let statement = writer.prepare(&statement).unwrap();
    let passes = updates.div_ceil(ROWS);
    figure.units = passes * ROWS;
    let used = cpu::used(pid);
    let started = Instant::now();
    for _ in 0..passes {
        for first in (1..=ROWS as i64).step_by(rows) {
            writer.execute(&statement, &[&first]).unwrap();
        }
    }
    figure.wall_s = started.elapsed().as_secs_f64();
    figure.cpu_s = cpu::used(pid) - used;
    figure
}

/// How many blocks of the texts were read so far, from the disk or not.
fn text_blocks(db: &mut Database, writer: &mut Client, variant: Variant) -> i64 {
    writer.run("SELECT pg_stat_force_next_flush()");
    let table = variant.table("big");
    db.one(&format!(
        "SELECT toast_blks_read + toast_blks_hit FROM pg_statio_user_tables WHERE relname = '{table}'"
    ))
}
