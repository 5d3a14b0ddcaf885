//! Models: when they are trained, what they hold, and that nobody is kept waiting or shown half of one.

use std::collections::{BTreeMap, BTreeSet};

use crate::shop::{number, tables};
use crate::support::{Cluster, Database, PATIENCE, Sql, shared, wait_until};

const ITEMS: i32 = 40;
const LAMBDA: f64 = 100.0;
/// Places between two items that count half of what neighbours count together.
const APART: f64 = 20.0;

/// Recommender `shop` over 150 users with four items each, whose numbers are alike.
pub fn trained(db: &mut Database, options: &str) {
    trained_on(db, 150, ITEMS, options);
}

/// The same of other numbers; each item is somebody's where there are as many users.
fn trained_on(db: &mut Database, users: i32, items: i32, options: &str) {
    db.run(&format!(
        "INSERT INTO product SELECT i, 'product ' || i FROM generate_series(1, {items}) i;
         INSERT INTO event (user_id, product_id, created_at)
         SELECT 'u' || u, 1 + (u * 7 + n * n * (1 + u % 3)) % {items}, timestamptz '2026-05-01' + (u * 10 + n) * interval '1 min'
           FROM generate_series(1, {users}) u, generate_series(0, 3) n;
         SELECT recsync.create_recommender('shop', 'product', 'event'{options})"
    ));
    db.settle("shop");
}

/// For a model of them 1 MB is too little.
pub fn of_600_items<'c>(cluster: &'c Cluster, options: &str) -> Database<'c> {
    let mut db = tables(cluster);
    db.run(&format!(
        "INSERT INTO product SELECT i, 'product ' || i FROM generate_series(1, 600) i;
         INSERT INTO event (user_id, product_id) SELECT 'u' || i % 50, i FROM generate_series(1, 600) i;
         SELECT recsync.create_recommender('shop', 'product', 'event', {options})"
    ));
    db
}

pub fn trained_at(db: &mut Database) -> Option<String> {
    db.column("SELECT trained_at::text FROM recsync.model WHERE recommender = 'public.shop' AND model = 'ease' AND trained_at IS NOT NULL")
        .pop()
}

pub fn wait_until_trained(db: &mut Database, before: Option<String>) {
    wait_until(PATIENCE, "the model is not trained", || {
        let now = trained_at(db);
        now.is_some() && now != before
    });
}

/// By Gauss and Jordan.
fn inverse(mut rows: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    let n = rows.len();
    for (i, row) in rows.iter_mut().enumerate() {
        row.resize(2 * n, 0.0);
        row[n + i] = 1.0;
    }
    for i in 0..n {
        let pivot = rows[i].clone();
        for (j, row) in rows.iter_mut().enumerate() {
            let by = row[i] / pivot[i];
            for (entry, of_pivot) in row.iter_mut().zip(&pivot) {
                *entry = if i == j {
                    of_pivot / pivot[i]
                } else {
                    *entry - by * of_pivot
                };
            }
        }
    }
    rows.iter().map(|row| row[n..].to_vec()).collect()
}

/// How much each item says for each other one, from the events: B = I − P diag(1 / diag P).
fn weights_from_events(db: &mut Database) -> BTreeMap<(i32, i32), f64> {
    let rows = db.rows(
        "SELECT user_id, product_id, (rank() OVER (PARTITION BY user_id ORDER BY max(created_at)))::int FROM event GROUP BY 1, 2",
    );
    let pairs: Vec<(String, i32, i32)> = rows
        .iter()
        .map(|row| (row.get(0), row.get(1), row.get(2)))
        .collect();
    let items: Vec<i32> = pairs
        .iter()
        .map(|(_, item, _)| *item)
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    let n = items.len();
    let mut rows = vec![vec![0.0; n]; n];
    for (user, a, place) in &pairs {
        for (_, b, other) in pairs.iter().filter(|(other, ..)| other == user) {
            let at = |item: &i32| items.iter().position(|known| known == item).unwrap();
            rows[at(a)][at(b)] += 1.0 / (1.0 + f64::from((place - other).abs()) / APART);
        }
    }
    for (i, row) in rows.iter_mut().enumerate() {
        row[i] += LAMBDA;
    }
    let inverse = inverse(rows);
    let mut weights = BTreeMap::new();
    for i in 0..n {
        for j in (0..n).filter(|j| *j != i) {
            weights.insert((items[i], items[j]), -inverse[i][j] / inverse[j][j]);
        }
    }
    weights
}

#[test]
fn ease_is_trained_once_the_events_are_read_and_holds_the_closed_form() {
    let mut db = tables(shared());
    trained(&mut db, "");
    wait_until_trained(&mut db, None);
    let id = number(&mut db);
    let kept: Vec<String> = db.column(&format!(
        "SELECT item_id || ' ' || other_id || ' ' || weight FROM recsync.ease_{id}"
    ));
    let wanted = weights_from_events(&mut db);
    assert!(wanted.len() > 100, "{}", wanted.len());
    assert_eq!(kept.len(), wanted.len());
    for row in kept {
        let [item, other, weight]: [f64; 3] = row
            .split(' ')
            .map(|n| n.parse().unwrap())
            .collect::<Vec<_>>()
            .try_into()
            .unwrap();
        let wanted = wanted[&(item as i32, other as i32)];
        assert!((weight - wanted).abs() < 1e-6, "{row}: is {wanted}");
    }
    let extent: String =
        db.one("SELECT concat_ws(' ', users, items, interactions, error) FROM recsync.model WHERE model = 'ease'");
    let counted: String = db.one("SELECT concat_ws(' ', count(DISTINCT user_id), count(DISTINCT product_id), count(DISTINCT (user_id, product_id))) FROM event");
    assert_eq!(extent, counted);
}

#[test]
fn each_source_adds_what_its_place_comes_to() {
    let mut db = tables(shared());
    trained(&mut db, "");
    wait_until_trained(&mut db, None);
    let rows = db.rows(
        "SELECT r.score, (SELECT sum(s.value::float8) FROM jsonb_each_text(r.reason->'scores') s), r.reason ?& '{ease,neighbours}'
           FROM shop_recommend('u1', k => 30, explain => true) r WHERE NOT r.reason ? 'rest'",
    );
    let by_both = rows.iter().filter(|row| row.get(2)).count();
    assert!(by_both > 3, "{by_both} of {}", rows.len());
    for row in rows {
        let [score, sum]: [f64; 2] = [row.get(0), row.get(1)];
        assert!((score - sum).abs() < 1e-12, "{score} {sum}");
    }
}

#[test]
fn a_list_is_in_the_order_of_what_the_user_s_items_say() {
    let mut db = tables(shared());
    trained(
        &mut db,
        ", collaborative => '{ease}', half_life_rank => 2, half_life => '1000000 days'",
    );
    wait_until_trained(&mut db, None);
    db.run("DELETE FROM event WHERE user_id = 'u1'");
    for product in [3, 11, 20] {
        db.run(&format!(
            "INSERT INTO event (user_id, product_id) VALUES ('u1', {product})"
        ));
    }
    db.settle("shop");
    let id = number(&mut db);
    // The newest counts 1, the one before 1/(1 + 1/2), the first 1/(1 + 2/2).
    let wanted: Vec<i32> = db.column(&format!(
        "SELECT w.other_id FROM recsync.ease_{id} w JOIN (VALUES (20, 1.0::float8), (11, 1 / 1.5::float8), (3, 0.5::float8)) p (item, share) ON p.item = w.item_id
          WHERE w.other_id NOT IN (3, 11, 20) GROUP BY w.other_id ORDER BY sum(w.weight * p.share) DESC, w.other_id LIMIT 5"
    ));
    assert_eq!(wanted.len(), 5);
    let places = "SELECT id FROM shop_recommend('u1', k => 40) WHERE reason ? 'ease' ORDER BY (reason ->> 'ease')::int LIMIT 5";
    assert_eq!(db.column::<i32>(places), wanted);
    let neighbours =
        "SELECT count(*) FROM shop_recommend('u1', k => 40) WHERE reason ? 'neighbours'";
    assert_eq!(db.one::<i64>(neighbours), 0);
}

#[test]
fn of_few_events_nothing_is_trained_unless_it_was_asked_for() {
    let mut db = tables(shared());
    db.run("INSERT INTO product SELECT i, 'product ' || i FROM generate_series(1, 600) i");
    db.run("INSERT INTO event (user_id, product_id) SELECT 'u' || i % 20, i FROM generate_series(1, 60) i");
    db.run("SELECT recsync.create_recommender('shop', 'product', 'event'), recsync.create_recommender('chosen', 'product', 'event', collaborative => '{ease}'),
                   recsync.create_recommender('none', 'product', 'event', collaborative => '{}')");
    let models =
        "SELECT DISTINCT recommender FROM recsync.model WHERE trained_at IS NOT NULL ORDER BY 1";
    wait_until(PATIENCE, "what was asked for is not trained", || {
        db.column::<String>(models) == ["public.chosen"]
    });
    db.run("INSERT INTO event (user_id, product_id) SELECT 'u' || i % 20, i FROM generate_series(61, 600) i");
    wait_until(PATIENCE, "it is not trained when there are enough", || {
        db.column::<String>(models) == ["public.chosen", "public.shop"]
    });
}

#[test]
fn models_are_trained_anew_by_schedule_and_readers_see_one_or_the_other() {
    let mut db = tables(shared());
    trained(&mut db, ", schedule => '1 second'");
    wait_until_trained(&mut db, None);
    let id = number(&mut db);
    let mut reader = db.connect();
    let count = format!("SELECT count(*), sum(weight::numeric) FROM recsync.ease_{id}");
    let all: i64 = db.one(&format!("SELECT count(*) FROM recsync.ease_{id}"));
    for _ in 0..2 {
        let before = trained_at(&mut db);
        wait_until(PATIENCE, "it is not trained anew", || {
            let row = reader.query_one(&count, &[]).unwrap();
            assert_eq!(row.get::<_, i64>(0), all);
            trained_at(&mut db) != before
        });
    }
}

#[test]
fn a_model_that_takes_too_much_memory_is_not_trained_and_says_so() {
    let cluster = Cluster::start(&[("recsync.training_memory", "1MB")]);
    let mut db = of_600_items(&cluster, "schedule => '1 second'");
    let error = "SELECT coalesce(last_error, '') FROM recsync.status WHERE name = 'public.shop'";
    wait_until(PATIENCE, "status does not say why", || {
        let error: String = db.one(error);
        error.contains("ease of 600 items") && error.contains("more than recsync.training_memory")
    });
    assert_eq!(trained_at(&mut db), None);
    cluster.set("recsync.training_memory", "100MB");
    wait_until_trained(&mut db, None);
    assert_eq!(db.one::<String>(error), "");
    assert!(cluster.log().contains("MB at the most"));
}

pub fn trainer(db: &mut Database) -> Option<i32> {
    db.column("SELECT pid FROM pg_stat_activity WHERE backend_type = 'recsync trainer' AND datname = current_database()").pop()
}

#[test]
fn a_trainer_ends_when_it_is_told_or_keeps_somebody_waiting_and_the_next_one_does_its_work() {
    let cluster = Cluster::start(&[]);
    let mut db = tables(&cluster);
    trained(&mut db, "");
    wait_until_trained(&mut db, None);
    let before = trained_at(&mut db);
    let id = number(&mut db);
    let mut other = db.connect();
    let mut lock = other.transaction().unwrap();
    lock.batch_execute(&format!("LOCK TABLE recsync.ease_{id} IN SHARE MODE"))
        .unwrap();
    db.run("INSERT INTO event (user_id, product_id) SELECT 'v' || u, 1 + (u * n) % 40 FROM generate_series(1, 300) u, generate_series(1, 3) n");
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'recsync trainer' AND wait_event_type = 'Lock'";
    wait_until(PATIENCE, "no trainer waits for the table", || {
        db.one::<i64>(waits) == 1
    });
    // Whoever writes and embeds goes on.
    db.run("INSERT INTO event (user_id, product_id) VALUES ('late', 1)");
    db.settle("shop");
    let first = trainer(&mut db).unwrap();
    db.run(&format!("SELECT pg_terminate_backend({first})"));
    wait_until(PATIENCE, "it does not end", || {
        trainer(&mut db) != Some(first)
    });
    assert_eq!(trained_at(&mut db), before);
    // The next one waits, too, and holds a lock on nothing that a drop would wait for long.
    wait_until(PATIENCE, "no other one comes", || db.one::<i64>(waits) == 1);
    lock.commit().unwrap();
    wait_until_trained(&mut db, before);
    let count: i64 = db.one("SELECT interactions FROM recsync.model WHERE model = 'ease'");
    assert_eq!(
        count,
        db.one::<i64>("SELECT count(DISTINCT (user_id, product_id)) FROM event")
    );
}

#[test]
fn a_recommender_is_dropped_while_it_is_trained() {
    let mut db = tables(shared());
    trained(&mut db, ", schedule => '1 second'");
    wait_until_trained(&mut db, None);
    wait_until(PATIENCE, "no trainer", || trainer(&mut db).is_some());
    db.run("SELECT recsync.drop_recommender('shop')");
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.model"), 0);
    let left = "SELECT count(*) FROM pg_class WHERE relname LIKE 'ease\\_%' AND relkind = 'r'";
    assert_eq!(db.one::<i64>(left), 0);
}

/// By α = 20 and λ = 0.05, as the paper has it; what a user did last counts as half_life_rank says.
#[test]
fn als_knows_what_a_user_has_done_since_it_was_trained_and_what_a_visitor_does() {
    let mut db = tables(shared());
    // A debug build needs ten milliseconds for each of them, fifteen times.
    let options = ", collaborative => '{als}', half_life_rank => 2";
    trained_on(&mut db, 24, 24, options);
    let trained_at =
        "SELECT trained_at::text FROM recsync.model WHERE model = 'als' AND trained_at IS NOT NULL";
    wait_until(4 * PATIENCE, "the model is not trained", || {
        db.column::<String>(trained_at).len() == 1
    });
    let before: String = db.one(trained_at);
    let by_als = |db: &mut Database, of: &str| -> Vec<i32> {
        db.column(&format!(
            "SELECT id FROM shop_recommend({of}, k => 40) WHERE reason ? 'als' ORDER BY (reason->>'als')::int"
        ))
    };
    assert!(by_als(&mut db, "'new'").is_empty());
    db.run("INSERT INTO event (user_id, product_id, created_at) VALUES ('new', 3, '2026-06-01'), ('new', 11, '2026-06-02'), ('new', 20, '2026-06-03')");
    db.settle("shop");
    let id = number(&mut db);
    let rows = db.rows(&format!(
        "SELECT key, factors::real[] FROM recsync.item_factor_{id}"
    ));
    let factors: BTreeMap<i32, Vec<f64>> = rows
        .iter()
        .map(|row| (row.get(0), row.get::<_, Vec<f32>>(1)))
        .map(|(item, row)| (item, row.into_iter().map(f64::from).collect()))
        .collect();
    let wanted = |has: &[(i32, f64)]| -> Vec<i32> {
        let width = factors[&3].len();
        let mut matrix = vec![vec![0.0; width]; width];
        let mut sum = vec![0.0; width];
        for (item, row) in &factors {
            let weight = has.iter().find(|(had, _)| had == item);
            let weight = weight.map_or(0.0, |(_, weight)| *weight);
            for i in 0..width {
                sum[i] += 20.0 * weight * row[i];
                for j in 0..width {
                    matrix[i][j] += (1.0 + 19.0 * weight) * row[i] * row[j];
                }
            }
        }
        for (i, row) in matrix.iter_mut().enumerate() {
            row[i] += 0.05;
        }
        let inverse = inverse(matrix);
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let user: Vec<f64> = inverse.iter().map(|row| dot(row, &sum)).collect();
        let others = factors
            .iter()
            .filter(|(item, _)| has.iter().all(|(had, _)| had != *item));
        let mut scored: Vec<(f64, i32)> = others
            .map(|(item, row)| (-dot(row, &user), *item))
            .collect();
        scored.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        scored.into_iter().map(|(_, item)| item).take(10).collect()
    };
    let of_user = by_als(&mut db, "'new'");
    assert_eq!(
        of_user[..10],
        wanted(&[(20, 1.0), (11, 2.0 / 3.0), (3, 0.5)])
    );
    let of_visitor = by_als(&mut db, "session_items => '{7}'");
    assert_eq!(of_visitor[..10], wanted(&[(7, 1.0)]));
    assert_eq!(db.one::<String>(trained_at), before);
}

#[test]
fn what_cannot_be_trained_is_refused() {
    let mut db = tables(shared());
    for (option, hint) in [
        ("collaborative => '{easy}'", "item_knn"),
        ("schedule => 'realtime'", "hourly"),
        ("schedule => 'sometimes'", "cron"),
        ("half_life_rank => 0", "positive"),
        ("half_life_rank => 'nan'", "positive"),
    ] {
        let error = db.refused(&format!(
            "SELECT recsync.create_recommender('shop', 'product', 'event', {option})"
        ));
        assert_eq!(error.code().code(), "22023", "{option}");
        assert!(error.hint().unwrap().contains(hint), "{option}: {error:?}");
    }
}

#[test]
fn what_is_learnt_is_changed_in_place() {
    let mut db = tables(shared());
    trained(
        &mut db,
        ", collaborative => '{item_knn}', half_life_rank => 'infinity'",
    );
    assert_eq!(trained_at(&mut db), None);
    db.run("SELECT recsync.alter_recommender('shop', collaborative => '{ease}', schedule => '2 hours')");
    wait_until_trained(&mut db, None);
    let stored = "SELECT concat_ws(' ', collaborative, schedule, every, half_life_rank) FROM recsync.recommender";
    assert_eq!(db.one::<String>(stored), "{ease} 2 hours 02:00:00");
    db.run("SELECT recsync.alter_recommender('shop', half_life_rank => 5)");
    assert_eq!(db.one::<String>(stored), "{ease} 2 hours 02:00:00 5");
    let error = db.refused("SELECT recsync.alter_recommender('shop', schedule => 'realtime')");
    assert_eq!(error.code().code(), "22023");
}
