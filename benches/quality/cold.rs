//! Films that nobody has rated yet: one in five, of which recsync is given the texts only. Whom they are for, by what else
//! is known of their users; beside chance.

use std::collections::{BTreeMap, HashSet};

use postgres::Client;

use crate::bench::embedder::Embedder;
use crate::bench::tables::table;
use crate::goal;
use crate::ratings::{Insert, Rating};
use crate::support::Sql;

const K: usize = 10;
/// Users who have rated fewer of the other films are not asked for.
const LEAST: usize = 5;

/// By which call, and what of its ten was rated, on average.
const LISTS: [(&str, &str); 2] = [
    (
        "recommend, films nobody has rated",
        "SELECT id FROM shop_recommend($1::int, k => 10, filter => '{\"cold\": true}')",
    ),
    (
        "similar by content to the user's last film",
        "SELECT s.id FROM (SELECT film_id FROM rating WHERE user_id = $1::int ORDER BY at DESC, id DESC LIMIT 1) r,
                          shop_similar(r.film_id, k => 10, filter => '{\"cold\": true}', by => 'content') s",
    ),
];

fn is_cold(film: i32) -> bool {
    film.wrapping_mul(37_199).rem_euclid(5) == 0
}

pub fn run(client: &mut Client, ratings: &[Rating], titles: &[(i32, String)]) {
    let Some(model) = Embedder::start() else {
        println!("\nno vectors of a model: LOCAL_EMBEDDER and MODEL_DIR name none");
        return;
    };
    let liked: Vec<&Rating> = ratings
        .iter()
        .filter(|rating| rating.stars >= 3.5)
        .collect();
    let rated: HashSet<i32> = liked.iter().map(|rating| rating.film).collect();
    let films: Vec<&(i32, String)> = titles
        .iter()
        .filter(|(film, _)| rated.contains(film))
        .collect();
    let (ids, texts): (Vec<i32>, Vec<&str>) = films
        .iter()
        .map(|(film, text)| (*film, text.as_str()))
        .unzip();
    let cold: Vec<bool> = ids.iter().map(|film| is_cold(*film)).collect();
    client.run("ALTER TABLE film ADD title text NOT NULL, ADD cold boolean NOT NULL");
    client
        .execute(
            "INSERT INTO film SELECT * FROM unnest($1::int[], $2::text[], $3::boolean[])",
            &[&ids, &texts, &cold],
        )
        .unwrap();
    let mut known: Vec<&Rating> = liked
        .iter()
        .copied()
        .filter(|rating| !is_cold(rating.film))
        .collect();
    known.sort_by_key(|rating| rating.at);
    Insert::prepare(client).run(client, 0, &known);
    client.run(&model.server("model"));
    client.run("SELECT recsync.create_recommender('shop', 'film', 'rating', text => '{title}', server => 'model')");
    for name in ["shop_embedding", "shop"] {
        assert!(client.one::<bool>(&format!("SELECT recsync.wait_for('{name}', '1 h')")));
    }
    let mut wanted: BTreeMap<i32, HashSet<i32>> = BTreeMap::new();
    for rating in liked.iter().filter(|rating| is_cold(rating.film)) {
        wanted.entry(rating.user).or_default().insert(rating.film);
    }
    wanted.retain(|user, _| known.iter().filter(|rating| rating.user == *user).count() >= LEAST);
    let count = cold.iter().filter(|cold| **cold).count();
    let chance = K as f64 / count as f64;
    let mut lines = vec![format!("chance | {chance:.4} | 1")];
    let mut best = 0.0_f64;
    for (name, sql) in LISTS {
        let list = client.prepare(sql).unwrap();
        let mut sum = 0.0;
        for (user, wanted) in &wanted {
            let rows = client.query(&list, &[user]).unwrap();
            let hits = rows
                .iter()
                .filter(|row| wanted.contains(&row.get(0)))
                .count();
            sum += hits as f64 / wanted.len() as f64;
        }
        let recall = sum / wanted.len() as f64;
        best = best.max(recall);
        lines.push(format!("{name} | {recall:.4} | {:.1}", recall / chance));
    }
    let title = format!(
        "{count} of {} films that nobody has rated, for {} users, by vectors of all-MiniLM-L6-v2 of title and genres",
        ids.len(),
        wanted.len()
    );
    table(&title, "list of ten | recall@10 | times chance", &lines);
    println!();
    goal(
        &format!(
            "the better one is {:.1} times as good as chance, at least 3",
            best / chance
        ),
        best >= 3.0 * chance,
    );
}
