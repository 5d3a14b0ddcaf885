//! evaluate: how lists would have been, counted by the tests themselves.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;

use crate::shop::tables;
use crate::support::{Database, Sql, shared};

const PRODUCTS: i32 = 40;
const K: usize = 10;
const LAST: &str = "recsync.evaluate('shop', 10, sample => NULL)";

/// Products of users, in the order of time.
type Events = BTreeMap<i32, Vec<i32>>;

/// Users like products near one of three, and a few others.
fn random_events(rng: &mut Rng) -> Events {
    let of_user = |rng: &mut Rng, user: i32| -> Vec<i32> {
        let mut products: Vec<i32> = Vec::new();
        let wanted = rng.usize(2..18);
        while products.len() < wanted {
            let near = (user % 3) * 13 + rng.i32(1..=14);
            let product = if rng.u8(0..5) == 0 {
                rng.i32(1..=PRODUCTS)
            } else {
                near
            };
            if !products.contains(&product) {
                products.push(product);
            }
        }
        products
    };
    (1..=80).map(|user| (user, of_user(rng, user))).collect()
}

fn shop(db: &mut Database, events: &Events, options: &str) {
    db.run(&format!(
        "INSERT INTO product SELECT i, 'product ' || i FROM generate_series(1, {PRODUCTS}) i"
    ));
    for (user, products) in events {
        for (n, product) in products.iter().enumerate() {
            db.run(&format!(
                "INSERT INTO event (user_id, product_id, kind, created_at) VALUES ('{user}', {product}, '{}', timestamptz '2026-05-01' + interval '{} min')",
                if product % 4 == 0 { "buy" } else { "view" },
                n * 1_000 + *user as usize,
            ));
        }
    }
    db.run(&format!("SELECT recsync.create_recommender('shop', 'product', 'event', half_life => '1000000 days'{options})"));
    db.settle("shop");
}

/// What is left, and what is held out.
fn cut(events: &Events) -> (Events, Events) {
    let (mut left, mut held) = (events.clone(), Events::new());
    for (user, products) in &mut left {
        let out = (products.len() / 5).max(1);
        held.insert(*user, products.split_off(products.len() - out));
    }
    (left, held)
}

/// Items by score, the best first, without those that the user has.
fn best(scores: &BTreeMap<i32, f64>, has: &[i32]) -> Vec<i32> {
    let mut items: Vec<(&i32, &f64)> = scores
        .iter()
        .filter(|(item, _)| !has.contains(item))
        .collect();
    items.sort_by(|a, b| b.1.total_cmp(a.1).then(a.0.cmp(b.0)));
    items.into_iter().take(K).map(|(item, _)| *item).collect()
}

/// How many users have an item, and two items.
fn counts(left: &Events) -> (BTreeMap<i32, f64>, BTreeMap<(i32, i32), f64>) {
    let (mut users, mut pairs) = (BTreeMap::new(), BTreeMap::new());
    for products in left.values() {
        for a in products {
            *users.entry(*a).or_default() += 1.0;
            for b in products.iter().filter(|b| *b != a) {
                *pairs.entry((*a, *b)).or_default() += 1.0;
            }
        }
    }
    (users, pairs)
}

/// By the 20 neighbours of each of the user's products, of which the newest counts most.
fn neighbours(left: &Events, has: &[i32]) -> Vec<i32> {
    let (users, pairs) = counts(left);
    let mut scores: BTreeMap<i32, f64> = BTreeMap::new();
    for (place, product) in has.iter().rev().enumerate() {
        let of_product = pairs.iter().filter(|((a, _), _)| a == product);
        let mut near: Vec<(i32, f64)> = of_product
            .map(|((a, b), both)| (*b, both / ((users[a] * users[b]).sqrt() + 10.0)))
            .collect();
        near.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        for (other, likeness) in near.into_iter().take(20) {
            *scores.entry(other).or_default() += likeness / (1.0 + place as f64 / 2.0);
        }
    }
    best(&scores, has)
}

/// NDCG, recall, precision, MRR, hit rate, coverage, novelty, as they are defined.
fn measures(lists: &BTreeMap<i32, Vec<i32>>, wanted: &Events, left: &Events) -> [f64; 7] {
    let (users, _) = counts(left);
    let all = left
        .values()
        .filter(|products| !products.is_empty())
        .count() as f64;
    let mut sums = [0.0; 5];
    let (mut listed, mut surprise, mut places) = (BTreeSet::new(), 0.0, 0.0);
    for (user, list) in lists {
        let wanted = &wanted[user];
        let hit = |place: &usize| wanted.contains(&list[*place]);
        let hits: Vec<usize> = (0..list.len()).filter(hit).collect();
        let gain = |place: usize| 2f64.ln() / (place as f64 + 2.0).ln();
        let ideal: f64 = (0..wanted.len().min(K)).map(gain).sum();
        sums[0] += hits.iter().map(|place| gain(*place)).sum::<f64>() / ideal;
        sums[1] += hits.len() as f64 / wanted.len() as f64;
        sums[2] += hits.len() as f64 / K as f64;
        sums[3] += hits
            .first()
            .map_or(0.0, |place| 1.0 / (1.0 + *place as f64));
        sums[4] += if hits.is_empty() { 0.0 } else { 1.0 };
        for item in list {
            listed.insert(*item);
            surprise -= (users.get(item).copied().unwrap_or(1.0) / all).ln() / 2f64.ln();
            places += 1.0;
        }
    }
    let [ndcg, recall, precision, mrr, hit_rate] = sums.map(|sum| sum / lists.len() as f64);
    [
        ndcg,
        recall,
        precision,
        mrr,
        hit_rate,
        listed.len() as f64 / f64::from(PRODUCTS),
        surprise / places,
    ]
}

fn found(db: &mut Database, call: &str, source: &str) -> (i64, [f64; 7]) {
    let row = &db.rows(&format!("SELECT * FROM {call} WHERE source = '{source}'"))[0];
    (
        row.get("users"),
        [
            "ndcg",
            "recall",
            "precision",
            "mrr",
            "hit_rate",
            "coverage",
            "novelty",
        ]
        .map(|name| row.get(name)),
    )
}

#[track_caller]
fn assert_close(is: [f64; 7], wanted: [f64; 7]) {
    for (is_one, wanted_one) in is.iter().zip(&wanted) {
        assert!(
            (is_one - wanted_one).abs() < 1e-6,
            "{is:?} is not {wanted:?}"
        );
    }
}

#[test]
fn measures_are_those_of_another_implementation() {
    let events = random_events(&mut Rng::with_seed(5));
    let mut db = tables(shared());
    shop(&mut db, &events, "");
    let (left, held) = cut(&events);
    let asked: Vec<i32> = left
        .iter()
        .filter(|(_, has)| has.len() >= 5)
        .map(|(user, _)| *user)
        .collect();
    assert!(asked.len() > 40 && asked.len() < 80);
    let lists = |of: &dyn Fn(i32) -> Vec<i32>| -> BTreeMap<i32, Vec<i32>> {
        asked.iter().map(|user| (*user, of(*user))).collect()
    };
    let by_neighbours = lists(&|user| neighbours(&left, &left[&user]));
    let (users, _) = counts(&left);
    let popular: BTreeMap<i32, f64> = (1..=PRODUCTS)
        .map(|item| (item, users.get(&item).copied().unwrap_or(0.0)))
        .collect();
    let by_users = lists(&|user| best(&popular, &left[&user]));
    for (source, lists) in [("neighbours", by_neighbours), ("by users", by_users)] {
        let (count, is) = found(&mut db, LAST, source);
        assert_eq!(count as usize, asked.len());
        assert_close(is, measures(&lists, &held, &left));
    }
    let ndcg = |db: &mut Database, source: &str| found(db, LAST, source).1[0];
    assert!(ndcg(&mut db, "recommend") > ndcg(&mut db, "random") * 1.5);
    // What is held out was not looked at: with it, everything would be found.
    assert!(ndcg(&mut db, "neighbours") < 0.8);
}

#[test]
fn it_leaves_nothing_and_changes_nothing() {
    let events = random_events(&mut Rng::with_seed(6));
    let mut db = tables(shared());
    shop(&mut db, &events, ", collaborative => '{item_knn,ease,als}'");
    let everything = "SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_class WHERE relnamespace = 'recsync'::regnamespace AND relkind = 'r'";
    let (before, listed): (String, Option<String>) = (
        db.one(everything),
        db.one(
            "SELECT string_agg(item, ',' ORDER BY rank) FROM recsync.similar('shop', 5, k => 40)",
        ),
    );
    let sources: Vec<String> = db.column(&format!("SELECT source FROM {LAST}"));
    assert_eq!(
        sources,
        [
            "recommend",
            "ease",
            "neighbours",
            "als",
            "popular",
            "latest",
            "by users",
            "random"
        ]
    );
    assert_eq!(db.one::<String>(everything), before);
    assert_eq!(
        db.one::<Option<String>>(
            "SELECT string_agg(item, ',' ORDER BY rank) FROM recsync.similar('shop', 5, k => 40)"
        ),
        listed
    );
    for source in ["ease", "als"] {
        assert!(
            found(&mut db, LAST, source).1[0] > found(&mut db, LAST, "random").1[0],
            "{source}"
        );
    }
}

#[test]
fn what_is_held_out_and_what_is_a_hit_is_the_caller_s_choice() {
    let events = random_events(&mut Rng::with_seed(7));
    let mut db = tables(shared());
    shop(&mut db, &events, ", collaborative => '{item_knn}'");
    let users = |db: &mut Database, arguments: &str| {
        found(
            db,
            &format!("recsync.evaluate('shop', 10{arguments})"),
            "by users",
        )
        .0
    };
    // Of those with five items left, who has bought something of what is held out.
    let (left, held) = cut(&events);
    let buyers = left
        .iter()
        .filter(|(user, has)| has.len() >= 5 && held[user].iter().any(|item| item % 4 == 0));
    assert_eq!(
        users(&mut db, ", hit => $$ kind = 'buy' $$"),
        buyers.count() as i64
    );
    assert_eq!(users(&mut db, ", sample => 7"), 7);
    assert_eq!(users(&mut db, ", holdout => 'random'"), users(&mut db, ""));
    let late: i64 = db.one(
        "WITH limits AS (SELECT percentile_disc(0.8) WITHIN GROUP (ORDER BY created_at) AS cut FROM event)
         SELECT count(*) FROM (SELECT user_id FROM event, limits GROUP BY user_id HAVING count(*) FILTER (WHERE created_at <= cut) >= 5 AND count(*) FILTER (WHERE created_at > cut) > 0) u",
    );
    assert!(late > 0);
    assert_eq!(users(&mut db, ", holdout => 'time'"), late);
    for (arguments, code) in [
        (", holdout => 'first'", "22023"),
        (", sample => 0", "22023"),
        (", hit => 'no_such_column'", "42703"),
    ] {
        let error = db.refused(&format!(
            "SELECT * FROM recsync.evaluate('shop', 10{arguments})"
        ));
        assert_eq!(error.code().code(), code, "{arguments}");
    }
    assert_eq!(
        db.refused("SELECT * FROM recsync.evaluate('shop', 0)")
            .code()
            .code(),
        "22023"
    );
    db.run("DROP ROLE IF EXISTS looker; CREATE ROLE looker");
    assert_eq!(
        db.refused("SET ROLE looker; SELECT * FROM recsync.evaluate('shop')")
            .code()
            .code(),
        "42501"
    );
}
