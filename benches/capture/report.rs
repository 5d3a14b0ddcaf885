//! The tables, in Markdown, and what the figures were to reach. It leaves out workloads that were not run.

use crate::bench::setting::percentile;
use crate::bench::tables::{self, least, most};
use crate::figures::{
    CPU_US, Figures, Measure, PER_CPU_SECOND, PER_SECOND, WAL_BYTES, WALL_US, WORKER_US,
};
use crate::variant::{VARIANTS, Variant, WITHOUT_AUDIT};
use crate::{bulk, clients, dispatch, toast};

const BASE: &str = "no trigger";

pub fn print(figures: &Figures) {
    for workload in [bulk::INSERT, bulk::COPY, bulk::WIDE] {
        print_bulk(figures, workload);
    }
    for workload in [clients::INSERT_OFF, clients::INSERT_ON, clients::UNUSED] {
        print_single(figures, workload);
    }
    for workload in [toast::ONE, toast::MANY] {
        print_toast(figures, workload);
    }
    for workload in [clients::WAKE, clients::WAKE_APART] {
        print_wake(figures, workload);
    }
    print_dispatch(figures);
    print_goals(figures);
}

fn print_bulk(figures: &Figures, workload: &str) {
    let head = "variant | CPU µs/row | added | of the audit trigger's | wall µs/row | WAL bytes/row | added";
    let audit = |measure| added(figures, workload, Variant::Audit, measure);
    let rows = VARIANTS.map(|variant| {
        let median = |measure| figures.median(workload, variant.label(), measure);
        let added = |measure| added(figures, workload, variant, measure);
        format!(
            "{} | {:.2} | {:.2} | {:.0}% | {:.2} | {:.0} | {:.1}",
            variant.label(),
            median(CPU_US),
            added(CPU_US),
            100.0 * added(CPU_US) / audit(CPU_US),
            median(WALL_US),
            median(WAL_BYTES),
            added(WAL_BYTES)
        )
    });
    table(figures, workload, head, &rows);
}

fn print_single(figures: &Figures, workload: &str) {
    let head = "variant | transactions/s | ratio | CPU µs/transaction | added";
    let rows = VARIANTS.map(|variant| {
        format!(
            "{} | {:.0} | {:.3} | {:.1} | {:.1}",
            variant.label(),
            figures.median(workload, variant.label(), PER_SECOND),
            figures.ratio(workload, variant.label(), BASE, PER_SECOND),
            figures.median(workload, variant.label(), CPU_US),
            added(figures, workload, variant, CPU_US)
        )
    });
    table(figures, workload, head, &rows);
}

fn print_toast(figures: &Figures, workload: &str) {
    let head = "variant | wall µs/update | ratio | CPU µs/update | ratio";
    let rows = WITHOUT_AUDIT.map(|variant| {
        let median = |measure| figures.median(workload, variant.label(), measure);
        let ratio = |measure| figures.ratio(workload, variant.label(), BASE, measure);
        format!(
            "{} | {:.2} | {:.2} | {:.2} | {:.2}",
            variant.label(),
            median(WALL_US),
            ratio(WALL_US),
            median(CPU_US),
            ratio(CPU_US)
        )
    });
    table(figures, workload, head, &rows);
}

fn print_wake(figures: &Figures, workload: &str) {
    let head = "recsync keys | transactions/s | stopped = 1 | CPU µs/transaction | stopped = 1 | worker's CPU µs/transaction";
    let rows = [clients::WITHOUT, clients::STOPPED, clients::DRAINING].map(|variant| {
        let median = |measure| figures.median(workload, variant, measure);
        let ratio = |measure| figures.ratio(workload, variant, clients::STOPPED, measure);
        format!(
            "{variant} | {:.0} | {:.3} | {:.1} | {:.3} | {:.1}",
            median(PER_SECOND),
            ratio(PER_SECOND),
            median(CPU_US),
            ratio(CPU_US),
            median(WORKER_US)
        )
    });
    table(figures, workload, head, &rows);
}

fn print_dispatch(figures: &Figures) {
    let head = "log | log rows per s of CPU | CPU s | wall s | batch of 1,000 read, ms: p50 | p99 | CPU ms | stragglers, ms";
    let rows = dispatch::SIDES.map(|side| {
        let of = |workload, measure| figures.median(workload, side, measure);
        let batches = batch_ms(figures, side);
        let rows: f64 = of(dispatch::DISPATCH, |figure| figure.units as f64);
        format!(
            "{rows} rows, {side} | {:.0} | {:.2} | {:.1} | {:.2} | {:.2} | {:.2} | {:.2}",
            of(dispatch::DISPATCH, PER_CPU_SECOND),
            of(dispatch::DISPATCH, |figure| figure.cpu_s),
            of(dispatch::DISPATCH, |figure| figure.wall_s),
            percentile(&batches, 50),
            percentile(&batches, 99),
            of(dispatch::READ, |figure| figure.cpu_s) * 1e3,
            of(dispatch::STRAGGLERS, WALL_US) / 1e3
        )
    });
    table(figures, dispatch::DISPATCH, head, &rows);
}

/// What the design asks for, and whether it was reached.
fn print_goals(figures: &Figures) {
    let added = |workload, variant| added(figures, workload, variant, CPU_US);
    let wal = |workload| crate::report::added(figures, workload, Variant::Keys, WAL_BYTES);
    let tps =
        |workload, variant: Variant| figures.ratio(workload, variant.label(), BASE, PER_SECOND);
    let share = |workload| added(workload, Variant::Full) / added(workload, Variant::Audit);
    let draining =
        |workload, measure| figures.ratio(workload, clients::DRAINING, clients::STOPPED, measure);
    let toast = |variant: Variant| figures.ratio(toast::ONE, variant.label(), BASE, WALL_US);
    let dispatched = |side| figures.median(dispatch::DISPATCH, side, PER_CPU_SECOND);
    let batch = |side| percentile(&batch_ms(figures, side), 50);
    let [free, held] = dispatch::SIDES;
    let goals = [
        most(
            "keys, INSERT … SELECT: CPU µs/row added",
            2.0,
            added(bulk::INSERT, Variant::Keys),
        ),
        most(
            "keys, COPY: CPU µs/row added",
            2.0,
            added(bulk::COPY, Variant::Keys),
        ),
        most(
            "keys, INSERT … SELECT: WAL bytes/row added",
            160.0,
            wal(bulk::INSERT),
        ),
        most("keys, COPY: WAL bytes/row added", 160.0, wal(bulk::COPY)),
        most(
            "full / audit trigger, INSERT … SELECT: CPU added",
            0.6,
            share(bulk::INSERT),
        ),
        most(
            "full / audit trigger, COPY: CPU added",
            0.6,
            share(bulk::COPY),
        ),
        most(
            "full / audit trigger, 40 columns: CPU added",
            0.6,
            share(bulk::WIDE),
        ),
        least(
            "keys / no trigger, single INSERT, synchronous_commit off: tps",
            0.82,
            tps(clients::INSERT_OFF, Variant::Keys),
        ),
        least(
            "keys / no trigger, unused column: tps",
            0.95,
            tps(clients::UNUSED, Variant::Keys),
        ),
        least(
            "columns / no trigger, unused column: tps",
            0.95,
            tps(clients::UNUSED, Variant::Columns),
        ),
        least(
            "full / no trigger, unused column: tps",
            0.95,
            tps(clients::UNUSED, Variant::Full),
        ),
        most(
            "keys / no trigger, unused column with 200 kB: time",
            1.2,
            toast(Variant::Keys),
        ),
        most(
            "full / no trigger, unused column with 200 kB: time",
            1.2,
            toast(Variant::Full),
        ),
        least(
            "draining / stopped, processors apart: tps",
            0.97,
            draining(clients::WAKE_APART, PER_SECOND),
        ),
        most(
            "draining / stopped, processors apart: CPU",
            1.03,
            draining(clients::WAKE_APART, CPU_US),
        ),
        least("dispatch: log rows/s", 200_000.0, dispatched(free)),
        least(
            "dispatch, transaction held: log rows/s",
            200_000.0,
            dispatched(held),
        ),
        most("batch of 1,000: ms", 2.0, batch(free)),
        most(
            "batch of 1,000, transaction held / not: ms",
            1.5,
            batch(held) / batch(free),
        ),
    ];
    tables::print_goals(&goals);
}

fn added(figures: &Figures, workload: &str, variant: Variant, measure: Measure) -> f64 {
    figures.added(workload, variant.label(), BASE, measure)
}

/// In ascending order.
fn batch_ms(figures: &Figures, side: &str) -> Vec<f64> {
    figures.all(dispatch::READ, side, |figure| figure.wall_s * 1e3)
}

fn table(figures: &Figures, workload: &str, head: &str, rows: &[String]) {
    if figures.has(workload) {
        tables::table(workload, head, rows);
    }
}
