//! What was to be reached, of the parts that were run.

use crate::bench::tables::{self, Goal, least, most};
use crate::decode;
use crate::drain::{self, CONCURRENCY, MODES};
use crate::figures::Figures;
use crate::graph;
use crate::hot;
use crate::jobs::{self, PHASES, SIDES};
use crate::latency::{self, HELD, IDLE, INTO_EMPTY, INTO_INDEX};

pub fn print(figures: &Figures) {
    let mut goals = Vec::new();
    latency_goals(figures, &mut goals);
    drain_goals(figures, &mut goals);
    job_goals(figures, &mut goals);
    tables::print_goals(&goals);
}

fn latency_goals(figures: &Figures, goals: &mut Vec<Goal>) {
    let at = |name, percent| figures.percentile(latency::PART, name, latency::OWN, percent);
    let wanted = [[6.5, 12.0], [2.0, 5.0]];
    for (name, [p50, p99]) in IDLE.into_iter().zip(wanted) {
        goals.push(most(format!("{name}: ms at p50"), p50, at(name, 50)));
        goals.push(most(format!("{name}: ms at p99"), p99, at(name, 99)));
    }
    for (free, held) in IDLE.into_iter().zip(HELD) {
        let ratio = at(held, 99) / at(free, 99);
        goals.push(most(format!("{held} / not: p99"), 1.1, ratio));
    }
    for name in INTO_INDEX.into_iter().chain(INTO_EMPTY) {
        goals.push(most(format!("{name}: ms at p99"), 100.0, at(name, 99)));
    }
}

fn drain_goals(figures: &Figures, goals: &mut Vec<Goal>) {
    for (dimensions, wanted) in drain::DIMENSIONS.into_iter().zip([30_000.0, 9_000.0]) {
        for mode in MODES {
            for concurrency in CONCURRENCY {
                let variant = mode.variant(dimensions, Some(concurrency));
                let rate = figures.one(drain::PART, &variant, drain::ROWS);
                goals.push(least(format!("{variant}: rows/s"), wanted, rate));
            }
        }
    }
    let (_, name) = decode::VARIANTS[1];
    let us = figures.one(decode::PART, name, decode::US);
    goals.push(most(format!("decode, {name}: µs"), 8.0, us));
    for kind in graph::KINDS {
        for writers in graph::WRITERS {
            let rates = graph::variants(kind, writers);
            let rates = rates.map(|one| figures.one(graph::PART, &one, graph::ROWS));
            let kind = kind.label();
            let what = format!("HNSW, {kind}, {writers} writers: recsync / INSERT … SELECT");
            goals.push(least(what, 0.9, rates[0] / rates[1]));
        }
    }
}

fn job_goals(figures: &Figures, goals: &mut Vec<Goal>) {
    for variant in figures.variants(hot::PART) {
        let inputs = figures.one(hot::PART, &variant, hot::INPUTS);
        goals.push(most(format!("hot row, {variant}: inputs"), 5.0, inputs));
    }
    for side in SIDES {
        let peak = figures.one(jobs::PART, side, jobs::PEAK_MB);
        goals.push(most(format!("jobs, {side}: MB of the worker"), 200.0, peak));
        let claim = |phase| {
            let variant = jobs::variant(side, phase);
            figures.one(jobs::PART, &variant, jobs::CLAIM_MS)
        };
        // Flat: what two runs of the same thing may differ by.
        for phase in &PHASES[1..] {
            let ratio = claim(phase) / claim(PHASES[0]);
            goals.push(most(
                format!("jobs, {side}: a claim, {phase} / start"),
                1.5,
                ratio,
            ));
        }
    }
}
