//! How good lists are on MovieLens, beside reference implementations. See benches/README.md.
//!
//! What comes after the cut is held out and never loaded; lists are asked by the SQL that people use. It never chooses a
//! setting.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

/// The ratings, and where they are cut.
mod ratings;

/// Lists, and how good they are.
mod lists;

/// Neighbours that were counted as ratings came, and the same counted at once.
mod neighbours;

/// Films that nobody has rated yet, by their texts.
mod cold;

#[path = "../support/mod.rs"]
mod bench;

#[path = "../../tests/support/mod.rs"]
mod support;

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use postgres::Client;
use serde_json::json;

use bench::setting::{conditions, is_wanted, keep, load as load_average};
use bench::tables::table;
use lists::{Lists, Score};
use ratings::Cut;
use support::{Cluster, PATIENCE, Sql, wait_until};

const SETTINGS: &[(&str, &str)] = &[
    ("shared_buffers", "1GB"),
    ("max_wal_size", "8GB"),
    ("work_mem", "64MB"),
];
/// Of how many of a user's last ratings lists are made.
const HISTORY: usize = 1_000;
/// Recommenders that are trained as the references are set, each of which begins ALS with other numbers: what chance
/// makes of that is more than the 2% that are asked about.
const PLAIN: [&str; 5] = ["plain", "plain_2", "plain_3", "plain_4", "plain_5"];

fn main() {
    let folder = std::env::var("DATA").expect("DATA=<the folder of ml-latest-small>");
    let folder = PathBuf::from(folder);
    let ratings = ratings::read(&folder.join("ratings.csv"));
    println!("{}", conditions(SETTINGS));
    if is_wanted("PARTS", "lists") {
        let cut = Cut::of(&ratings);
        let (scores, references) = (measure(&cut), references(&cut));
        report(&scores, &references);
    }
    if is_wanted("PARTS", "neighbours") {
        let (_cluster, mut client) = start();
        neighbours::run(&mut client, &ratings);
    }
    if is_wanted("PARTS", "cold") {
        let (_cluster, mut client) = start();
        cold::run(
            &mut client,
            &ratings,
            &ratings::titles(&folder.join("movies.csv")),
        );
    }
    println!("\nload average now: {}", load_average());
}

/// A cluster with recsync and tables `film` and `rating` in its database `postgres`.
fn start() -> (Cluster, Client) {
    let cluster = Cluster::start(SETTINGS);
    let mut client = cluster.connect("postgres");
    client.run("CREATE EXTENSION recsync CASCADE");
    client.run(
        "CREATE TABLE film (id int PRIMARY KEY);
         CREATE TABLE rating (id int PRIMARY KEY, user_id int NOT NULL, film_id int NOT NULL REFERENCES film, at timestamptz NOT NULL)",
    );
    (cluster, client)
}

/// What recsync lists: by each of its sources as the references are set, and by default.
fn measure(cut: &Cut) -> Vec<(String, Score)> {
    let (_cluster, mut client) = start();
    cut.load(&mut client);
    let started = Instant::now();
    for name in PLAIN {
        let models = if name == PLAIN[0] {
            "item_knn,ease,als"
        } else {
            "als"
        };
        client.run(&format!(
            "SELECT recsync.create_recommender('{name}', 'film', 'rating', history => {HISTORY}, half_life => '1000000 days', half_life_rank => 'infinity',
                                               collaborative => '{{{models}}}')"
        ));
    }
    client.run("SELECT recsync.create_recommender('shop', 'film', 'rating')");
    for name in PLAIN.into_iter().chain(["shop"]) {
        assert!(client.one::<bool>(&format!("SELECT recsync.wait_for('{name}', '1 h')")));
    }
    eprintln!("read in {:.0} s", started.elapsed().as_secs_f64());
    let trained = "SELECT count(*) FROM recsync.model WHERE trained_at IS NOT NULL";
    wait_until(PATIENCE * 20, "models are not trained", || {
        client.one::<i64>(trained) == 3 + 4 + 2
    });
    println!("\nModels:\n");
    for row in client.rows("SELECT recommender, model, items::text, interactions::text, (memory_bytes / 1048576)::text, round(extract(epoch FROM trained_at - started_at)::numeric, 1)::text FROM recsync.model ORDER BY 1, 2") {
        let [of, model, items, pairs, megabytes, seconds]: [String; 6] = std::array::from_fn(|n| row.get(n));
        println!("{of} {model}: {items} items, {pairs} pairs, at most {megabytes} MB, {seconds} s after the training began");
    }
    client.run("VACUUM ANALYZE");
    let mut scores = Vec::new();
    for (name, title) in [
        ("plain", "as the references are set"),
        ("shop", "by default"),
    ] {
        let lists = Lists::ask(&mut client, name, cut);
        for source in lists.sources() {
            scores.push((format!("{source}, {title}"), lists.score(&source, cut)));
        }
    }
    let of_als = PLAIN.map(|name| Lists::ask(&mut client, name, cut).score("als", cut));
    println!(
        "als by {} beginnings: {}",
        PLAIN.len(),
        of_als.map(|score| format!("{:.4}", score.ndcg)).join(", ")
    );
    let mean = |of: fn(&Score) -> f64| of_als.iter().map(of).sum::<f64>() / PLAIN.len() as f64;
    let mean = Score {
        ndcg: mean(|score| score.ndcg),
        recall: mean(|score| score.recall),
    };
    scores.push((format!("als, mean of {}", PLAIN.len()), mean));
    scores
}

fn references(cut: &Cut) -> Vec<(String, Score)> {
    let python = std::env::var("REFERENCE_PYTHON").expect("REFERENCE_PYTHON: make bench sets it");
    let folder = keep("quality/train.csv", &cut.train_csv());
    keep("quality/test.csv", &cut.test_csv());
    let settings = json!({"history": HISTORY, "shrinkage": 10, "neighbours": 20, "lambda": 100, "weights": 200, "width": 64, "alpha": 20, "als_lambda": 0.05, "rounds": 15, "seeds": 5});
    let output = Command::new(python)
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/benches/quality/references.py"
        ))
        .arg(folder.parent().unwrap())
        .arg(settings.to_string())
        .env("OPENBLAS_NUM_THREADS", "1")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines()
        .map(|line| {
            let fields: Vec<&str> = line.split(',').collect();
            let score = Score {
                ndcg: fields[1].parse().unwrap(),
                recall: fields[2].parse().unwrap(),
            };
            (fields[0].to_owned(), score)
        })
        .collect()
}

fn report(scores: &[(String, Score)], references: &[(String, Score)]) {
    let of = |list: &[(String, Score)], name: &str| {
        list.iter()
            .find(|(known, _)| known == name)
            .map_or(f64::NAN, |(_, score)| score.ndcg)
    };
    let rows = |list: &[(String, Score)], by: &str| -> Vec<String> {
        let row = |(name, score): &(String, Score)| {
            format!("{by} | {name} | {:.4} | {:.4}", score.ndcg, score.recall)
        };
        list.iter().map(row).collect()
    };
    let mut all = rows(references, "reference");
    all.extend(rows(scores, "recsync"));
    table("Lists of ten", "by | list | NDCG@10 | recall@10", &all);
    println!("\nGoals:\n");
    for (source, reference) in [
        ("neighbours, as the references are set", "item_knn"),
        ("ease, as the references are set", "ease"),
        ("als, mean of 5", "als"),
    ] {
        let ours = of(scores, source);
        let share = ours / of(references, reference);
        goal(
            &format!("{source}: {share:.3} of the reference's NDCG"),
            share >= 0.98,
        );
    }
    let blend = of(scores, "recommend, by default");
    goal(
        &format!("the default list: {blend:.4}, at least 0.115"),
        blend >= 0.115,
    );
    let best = scores
        .iter()
        .filter(|(name, _)| name != "recommend, by default");
    let best = best.map(|(_, score)| score.ndcg).fold(0.0, f64::max);
    goal(
        &format!("it is above every source alone: the best has {best:.4}"),
        blend > best,
    );
}

pub fn goal(what: &str, reached: bool) {
    println!("- {}: {what}", if reached { "reached" } else { "MISSED" });
}
