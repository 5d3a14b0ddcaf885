//! Lists that are ready before they are asked for: the same as those that are made now, and gone with what they were made
//! of.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use fastrand::Rng;
use postgres::Client;

use crate::interests::settle;
use crate::learning::of_600_items;
use crate::shop::{change_at_random, items, number, shop, tables, views};
use crate::support::{Cluster, Database, PATIENCE, Sql, shared, wait_until};

fn now(db: &mut Database) -> String {
    db.one("SELECT clock_timestamp()::text")
}

/// Waits until every user has a list that was made after that, and by the declaration of now: then it is served.
fn wait_until_ready(db: &mut Database, since: &str) {
    let id = number(db);
    let missing = format!(
        "SELECT count(*) FROM (SELECT DISTINCT user_id FROM recsync.interaction_{id}) e
           LEFT JOIN recsync.list_{id} l USING (user_id) WHERE l.user_id IS NULL OR l.made_at < '{since}'"
    );
    wait_until(PATIENCE, "all lists are ready", || {
        db.one::<i64>(&missing) == 0
    });
    let ask = format!(
        "SELECT count(*) FROM (SELECT DISTINCT user_id FROM recsync.interaction_{id}) e CROSS JOIN LATERAL shop_recommend(e.user_id, k => 1)"
    );
    wait_until(PATIENCE, "all lists are served", || {
        let [_, made] = counted(db);
        db.one::<i64>(&ask);
        counted(db)[1] == made
    });
}

/// All of them are made anew.
fn renew(db: &mut Database, factor: usize) {
    db.settle("shop");
    let since = now(db);
    db.run(&format!(
        "SELECT recsync.alter_recommender('shop', boost => '1.0 + 0 * {factor} * price')"
    ));
    wait_until_ready(db, &since);
}

fn has_list(db: &mut Database, user: &str) -> bool {
    let id = number(db);
    db.one(&format!(
        "SELECT count(*) > 0 FROM recsync.list_{id} WHERE user_id = '{user}'"
    ))
}

fn wait_for_list(db: &mut Database, user: &str) {
    wait_until(PATIENCE, "the list is ready", || has_list(db, user));
}

/// A list with all that is said of it.
fn list(client: &mut Client, asked: &str) -> Vec<String> {
    client.column(&format!(
        "SELECT format('%s %s %s %s %s', id, score, rank, reason, list_id) FROM shop_recommend({asked}) ORDER BY rank"
    ))
}

/// Lists that were ready and lists that were made when they were asked for.
fn counted(db: &mut Database) -> [i64; 2] {
    let row =
        &db.rows("SELECT ready, made FROM recsync.list_cache WHERE recommender = 'public.shop'")[0];
    [row.get(0), row.get(1)]
}

/// That lists that are ready are those that are made now, whatever is asked; some of them were ready.
fn assert_ready_ones_are_right(db: &mut Database) {
    let before = counted(db);
    for user in 0..12 {
        for more in [
            "",
            ", k => 3",
            ", k => 4, skip => 5",
            ", k => 200",
            ", exclude_seen => false",
            ", max_per => '{\"price\": 2}'",
            ", filter => '{\"price\": [1, 2, 3]}'",
            ", explain => true",
            ", session_items => '{3,4}'",
            ", explore => 0.2",
        ] {
            let asked = format!("'u{user}'{more}");
            let ready = list(db, &asked);
            db.run("SET recsync.list_age = 0");
            let now = list(db, &asked);
            db.run("RESET recsync.list_age");
            assert_eq!(ready, now, "{asked}");
        }
    }
    let after = counted(db);
    assert!(after[0] >= before[0] + 40, "{before:?} {after:?}");
}

/// In a cluster of its own: a worker whose slot another database waits for makes no lists.
fn compare_at_random(mut db: Database) {
    let mut rng = Rng::with_seed(7);
    for round in 1..=3 {
        for _ in 0..40 {
            change_at_random(&mut db, &mut rng);
        }
        renew(&mut db, round);
        // What goes and comes without the lists being made anew.
        db.run(&format!(
            "UPDATE product SET hidden = id % 5 = {round};
             DELETE FROM product WHERE id = 30 + {round}"
        ));
        views(&mut db, "u1", &[2]); // by chance there may be nothing of theirs
        db.settle("shop");
        db.run("UPDATE product SET hidden = false WHERE id % 7 = 0");
        renew(&mut db, 10 + round);
        assert_ready_ones_are_right(&mut db);
        // What goes leaves the others in their order.
        let before = items(&mut db, "shop_recommend('u1', k => 200)");
        db.run("UPDATE product SET hidden = hidden OR id % 4 = 0");
        let left: Vec<i32> = before.into_iter().filter(|id| id % 4 != 0).collect();
        let [ready, _] = counted(&mut db);
        assert_eq!(items(&mut db, "shop_recommend('u1', k => 8)"), left[..8]);
        assert_eq!(counted(&mut db)[0], ready + 1);
    }
}

#[test]
fn a_list_that_is_ready_is_the_one_that_would_be_made() {
    let cluster = Cluster::start(&[]);
    let mut db = shop(&cluster, 60);
    db.run("UPDATE product SET price = id % 6");
    compare_at_random(db);
}

#[test]
fn so_it_is_where_items_have_vectors() {
    let cluster = Cluster::start(&[]);
    let mut db = tables(&cluster);
    db.run(
        "INSERT INTO product SELECT i, 'product ' || i, i % 6 FROM generate_series(1, 60) i;
         CREATE SERVER local FOREIGN DATA WRAPPER recsync OPTIONS (api 'builtin');
         SELECT recsync.create_recommender('shop', 'product', 'event', weight => $$ CASE kind WHEN 'buy' THEN 3 ELSE 1 END $$,
                seen => $$ kind = 'buy' $$, eligible => 'NOT hidden', text => '{title}', server => 'local')",
    );
    compare_at_random(db);
}

#[test]
fn what_a_user_does_takes_their_list_in_the_transaction_in_which_it_counts() {
    let mut db = shop(shared(), 20);
    views(&mut db, "ann", &[1, 2]);
    views(&mut db, "bob", &[2, 3]);
    db.settle("shop");
    for user in ["ann", "bob"] {
        wait_for_list(&mut db, user);
    }
    let id = number(&mut db);
    let since = now(&mut db);
    let mut holder = db.connect();
    let mut hold = holder.transaction().unwrap();
    hold.execute(
        &format!("SELECT FROM recsync.list_{id} WHERE user_id = 'ann' FOR UPDATE"),
        &[],
    )
    .unwrap();
    db.run("INSERT INTO event (user_id, product_id, kind) VALUES ('ann', 5, 'buy')");
    for _ in 0..2 {
        db.wait_until_worker_waits_for_lock();
        let counted: i64 = db.one(&format!(
            "SELECT count(*) FROM recsync.interaction_{id} WHERE user_id = 'ann'"
        ));
        assert_eq!(counted, 2, "the event counts, and the list is there");
    }
    hold.rollback().unwrap();
    db.settle("shop");
    let before =
        format!("SELECT string_agg(user_id, ' ') FROM recsync.list_{id} WHERE made_at < '{since}'");
    assert_eq!(db.one::<String>(&before), "bob");
    assert!(!items(&mut db, "shop_recommend('ann')").contains(&5));
    wait_for_list(&mut db, "ann");
    let before = counted(&mut db);
    assert!(!items(&mut db, "shop_recommend('ann')").contains(&5));
    assert_eq!(counted(&mut db), [before[0] + 1, before[1]]);
}

#[test]
fn another_vector_of_an_item_that_the_user_has_seen_counts_before_the_worker_has_come_to_it() {
    let mut db = tables(shared());
    db.run(
        "INSERT INTO product SELECT i, 'product ' || i, i FROM generate_series(1, 60) i;
         CREATE SERVER local FOREIGN DATA WRAPPER recsync OPTIONS (api 'builtin');
         SELECT recsync.create_recommender('shop', 'product', 'event', text => '{title}', server => 'local')",
    );
    views(&mut db, "ann", &[1, 2]);
    settle(&mut db);
    wait_for_list(&mut db, "ann");
    let before = counted(&mut db);
    items(&mut db, "shop_recommend('ann')");
    assert_eq!(counted(&mut db), [before[0] + 1, before[1]], "it is ready");
    let (id, pipeline) = (
        number(&mut db),
        db.one::<String>("SELECT relation FROM recsync.pipeline"),
    );
    let mut holder = db.connect();
    let mut hold = holder.transaction().unwrap();
    hold.execute(
        &format!("SELECT FROM recsync.list_{id} WHERE user_id = 'ann' FOR UPDATE"),
        &[],
    )
    .unwrap();
    db.run("UPDATE product SET title = 'something else altogether' WHERE id = 1");
    db.settle(&pipeline);
    items(&mut db, "shop_recommend('ann')");
    assert!(has_list(&mut db, "ann"));
    assert_eq!(
        counted(&mut db),
        [before[0] + 1, before[1] + 1],
        "it was made now"
    );
    hold.rollback().unwrap();
    wait_until(PATIENCE, "it has gone", || !has_list(&mut db, "ann"));
}

#[test]
fn what_a_commit_took_away_is_in_no_list_that_is_asked_for_after_it() {
    let mut db = shop(shared(), 400);
    db.run("INSERT INTO event (user_id, product_id) SELECT 'u' || i % 12, 1 + i * 7 % 400 FROM generate_series(1, 600) i");
    db.settle("shop");
    wait_until_ready(&mut db, "-infinity");
    let before = counted(&mut db);
    let gone: Mutex<Vec<(Option<u8>, i32)>> = Mutex::default();
    let (stop, lists) = (AtomicBool::new(false), AtomicUsize::new(0));
    let clients: Vec<Client> = (0..8).map(|_| db.connect()).collect();
    thread::scope(|scope| {
        for (n, mut client) in clients.into_iter().enumerate() {
            let (gone, stop, lists) = (&gone, &stop, &lists);
            scope.spawn(move || {
                let mut rng = Rng::with_seed(n as u64);
                while !stop.load(SeqCst) {
                    let user = rng.u8(0..12);
                    let known = gone.lock().unwrap().clone();
                    let listed: Vec<i32> = client.column(&format!(
                        "SELECT id FROM shop_recommend('u{user}', k => 20)"
                    ));
                    assert_eq!(listed.len(), 20);
                    let wrong = known
                        .iter()
                        .find(|(of, item)| of.is_none_or(|of| of == user) && listed.contains(item));
                    assert_eq!(wrong, None, "a list of u{user}");
                    lists.fetch_add(1, SeqCst);
                }
            });
        }
        let mut rng = Rng::with_seed(42);
        let mut changes = || {
            for n in 0..90 {
                let user = rng.u8(0..12);
                let listed: Vec<i32> =
                    db.column(&format!("SELECT id FROM shop_recommend('u{user}', k => 5)"));
                let item = listed[rng.usize(0..listed.len())];
                match n % 3 {
                    0 => db.run(&format!("UPDATE product SET hidden = true WHERE id = {item}")),
                    1 => db.run(&format!(
                        "BEGIN; DELETE FROM event WHERE product_id = {item}; DELETE FROM product WHERE id = {item}; COMMIT"
                    )),
                    _ => {
                        db.run(&format!(
                            "INSERT INTO event (user_id, product_id, kind) VALUES ('u{user}', {item}, 'buy')"
                        ));
                        db.settle("shop");
                    }
                }
                gone.lock()
                    .unwrap()
                    .push(((n % 3 == 2).then_some(user), item));
            }
        };
        let changed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(&mut changes));
        stop.store(true, SeqCst);
        changed.unwrap();
    });
    let after = counted(&mut db);
    assert!(lists.load(SeqCst) > 90);
    assert!(after[0] > before[0] + 20, "{before:?} {after:?}");
}

#[test]
fn an_eligible_that_fails_is_an_error_of_lists_that_are_ready_too_and_the_worker_goes_on() {
    let mut db = shop(shared(), 20);
    for user in ["ann", "bob"] {
        views(&mut db, user, &[1, 2]);
    }
    db.settle("shop");
    let since = now(&mut db);
    db.run("SELECT recsync.alter_recommender('shop', eligible => '100 / price > 0')");
    wait_until_ready(&mut db, &since);
    let worker = db.worker();
    let before = counted(&mut db);
    let listed = items(&mut db, "shop_recommend('ann')");
    assert_eq!(counted(&mut db), [before[0] + 1, before[1]], "it was ready");
    db.run(&format!(
        "UPDATE product SET price = 0 WHERE id = {}",
        listed[0]
    ));
    for age in ["5min", "0"] {
        db.run(&format!("SET recsync.list_age = '{age}'"));
        let refused = db.refused("SELECT FROM shop_recommend('ann')");
        assert_eq!(refused.code().code(), "22012", "list_age {age}");
    }
    db.run("RESET recsync.list_age");
    // Lists cannot be made, and what users do counts all the same.
    views(&mut db, "ann", &[3]);
    db.settle("shop");
    assert!(!has_list(&mut db, "ann"));
    wait_until(PATIENCE, "it is said", || {
        db.one("SELECT count(*) > 0 FROM recsync.errors WHERE kind = 'recommender' AND name = 'public.shop' AND sqlstate = '22012'")
    });
    db.run("UPDATE product SET price = 1");
    views(&mut db, "bob", &[3]);
    db.settle("shop");
    assert_eq!(items(&mut db, "shop_recommend('ann', k => 20)").len(), 20);
    assert_eq!(db.worker(), worker, "it is another worker");
}

#[test]
fn another_declaration_makes_lists_unknown_and_they_go_with_the_recommender_and_the_person() {
    let mut db = shop(shared(), 20);
    views(&mut db, "ann", &[1, 2]);
    views(&mut db, "bob", &[1, 2, 3]);
    db.settle("shop");
    wait_until_ready(&mut db, "-infinity");
    let id = number(&mut db);
    // Nobody else makes scores of 42.
    let tamper = format!(
        "UPDATE recsync.list_{id} SET scores = ARRAY(SELECT 42 FROM unnest(scores)) WHERE user_id = 'ann'"
    );
    let best = "SELECT max(score) FROM shop_recommend('ann')";
    db.run(&tamper);
    assert_eq!(db.one::<f64>(best), 42.0);
    // Seen by a snapshot of before it still is.
    let mut other = db.connect();
    other.run("BEGIN ISOLATION LEVEL REPEATABLE READ");
    assert_eq!(other.one::<f64>(best), 42.0);
    let since = now(&mut db);
    db.run("BEGIN; SELECT recsync.alter_recommender('shop', boost => '2')");
    assert!(db.one::<f64>(best) < 1.0);
    db.run("COMMIT");
    assert!(db.one::<f64>(best) < 1.0);
    assert_eq!(other.one::<f64>(best), 42.0);
    other.run("COMMIT");
    assert!(other.one::<f64>(best) < 1.0);
    // A model that is swapped in.
    wait_until_ready(&mut db, &since);
    db.run(&tamper);
    assert_eq!(db.one::<f64>(best), 42.0);
    let since = now(&mut db);
    db.run("INSERT INTO recsync.trained_model (recommender_id, model, started_at, trained_at, users, items, interactions, memory_bytes)
            SELECT id, 'ease', now(), now(), 1, 1, 1, 1 FROM recsync.recommender");
    assert!(db.one::<f64>(best) < 1.0);
    db.run("SELECT recsync.resume('shop')"); // the worker looks at what is declared
    wait_until_ready(&mut db, &since);
    db.run("DELETE FROM event WHERE user_id = 'ann'");
    db.settle("shop");
    assert!(!has_list(&mut db, "ann"));
    db.run("SELECT recsync.forget('shop', 'ann')");
    assert!(!has_list(&mut db, "ann") && has_list(&mut db, "bob"));
    db.run("SELECT recsync.drop_recommender('shop')");
    assert!(db.one::<bool>(&format!("SELECT to_regclass('recsync.list_{id}') IS NULL")));
}

#[test]
fn a_crash_leaves_no_list_of_before_and_a_standby_serves_those_that_are_ready() {
    let cluster = Cluster::start(&[]);
    let mut db = shop(&cluster, 40);
    for user in ["ann", "bob"] {
        views(&mut db, user, &[1, 2, 3]);
    }
    db.settle("shop");
    wait_until_ready(&mut db, "-infinity");
    for item in 5..8 {
        db.run(&format!(
            "INSERT INTO event (user_id, product_id, kind) VALUES ('ann', {item}, 'buy')"
        ));
        thread::sleep(Duration::from_millis(5 * (item - 5) as u64));
        db.kill9_worker();
        db.worker();
        db.settle("shop");
        let listed = items(&mut db, "shop_recommend('ann', k => 40)");
        assert!(!listed.contains(&item), "{listed:?}");
        wait_for_list(&mut db, "ann");
        let ready = list(&mut db, "'ann'");
        db.run("SET recsync.list_age = 0");
        assert_eq!(ready, list(&mut db, "'ann'"));
        db.run("RESET recsync.list_age");
    }
    let standby = cluster.standby();
    let mut client = standby.connect(&db.name);
    let id = number(&mut db);
    db.run(&format!(
        "UPDATE recsync.list_{id} SET scores = ARRAY(SELECT 42 FROM unnest(scores)) WHERE user_id = 'ann'"
    ));
    let best = "SELECT max(score) FROM shop_recommend('ann')";
    wait_until(PATIENCE, "the standby serves the list", || {
        client.one::<f64>(best) == 42.0
    });
    views(&mut db, "ann", &[9]);
    db.settle("shop");
    wait_until(PATIENCE, "the list is gone there, too", || {
        client.one::<f64>(best) < 1.0
    });
}

#[test]
fn a_list_is_ready_again_while_there_is_much_else_to_do() {
    let cluster = Cluster::start(&[]);
    let mut db = shop(&cluster, 60);
    views(&mut db, "u1", &[2]);
    db.settle("shop");
    wait_for_list(&mut db, "u1");
    db.run(
        "INSERT INTO event (user_id, product_id, kind) VALUES ('u1', 3, 'view');
         INSERT INTO event (user_id, product_id, kind) SELECT 'v' || i % 500, 1 + i * 7 % 60, 'view' FROM generate_series(1, 60000) i",
    );
    wait_until(PATIENCE, "the list of before has gone", || {
        !has_list(&mut db, "u1")
    });
    wait_for_list(&mut db, "u1");
    let waiting: i64 = db.one("SELECT pending FROM recsync.status WHERE kind = 'recommender'");
    assert!(waiting > 1000, "{waiting}");
}

#[test]
fn a_training_that_comes_to_nothing_leaves_lists_as_they_are() {
    let cluster = Cluster::start(&[("recsync.training_memory", "1MB")]);
    let mut db = of_600_items(&cluster, "collaborative => '{ease}'");
    let train = "SELECT count(*) FROM recsync.run('shop')";
    db.one::<i64>(train);
    wait_until_ready(&mut db, "2000-01-01");
    let [before, _] = counted(&mut db);
    db.one::<i64>(train);
    items(&mut db, "shop_recommend('u1')");
    assert_eq!(counted(&mut db)[0], before + 1);
}

#[test]
fn no_more_lists_are_kept_than_the_setting_allows_those_of_who_was_there_last() {
    let cluster = Cluster::start(&[("recsync.warm_limit", "0")]);
    let mut db = shop(&cluster, 20);
    for user in ["ann", "bob", "eve"] {
        views(&mut db, user, &[1, 2]);
    }
    db.settle("shop");
    let id = number(&mut db);
    let whose = format!("SELECT string_agg(user_id, ' ' ORDER BY user_id) FROM recsync.list_{id}");
    db.pause(Duration::from_secs(4));
    assert_eq!(db.one::<Option<String>>(&whose), None);
    cluster.set("recsync.warm_limit", "2");
    let lists = |db: &mut Database| db.one::<Option<String>>(&whose).unwrap_or_default();
    // The settings are taken over when something happens.
    views(&mut db, "joe", &[4]);
    wait_until(PATIENCE, "two lists are ready", || {
        lists(&mut db) == "eve joe"
    });
    assert_eq!(items(&mut db, "shop_recommend('ann', k => 5)").len(), 5);
    cluster.set("recsync.list_age", "0");
    let [ready, _] = counted(&mut db);
    wait_until(PATIENCE, "the setting holds", || {
        db.one::<String>("SHOW recsync.list_age") == "0"
    });
    items(&mut db, "shop_recommend('joe')");
    assert_eq!(counted(&mut db)[0], ready);
}

#[test]
fn no_more_lists_are_made_in_a_minute_than_the_setting_allows() {
    let cluster = Cluster::start(&[("recsync.warm_limit", "70")]);
    let mut db = shop(&cluster, 20);
    db.run("INSERT INTO event (user_id, product_id) SELECT 'u' || i, 1 + i % 20 FROM generate_series(1, 70) i");
    db.settle("shop");
    let id = number(&mut db);
    let lists = format!("SELECT count(*) FROM recsync.list_{id}");
    wait_until(PATIENCE, "all lists are ready", || {
        db.one::<i64>(&lists) == 70
    });
    // What goes now would be made again three seconds later, had all of them not been made a moment ago.
    db.run("INSERT INTO event (user_id, product_id) SELECT 'u' || i, 1 + (i + 1) % 20 FROM generate_series(1, 20) i");
    db.settle("shop");
    db.pause(Duration::from_secs(8));
    let warmed = "SELECT warmed FROM recsync.list_cache WHERE recommender = 'public.shop'";
    assert_eq!((db.one::<i64>(warmed), db.one::<i64>(&lists)), (70, 50));
    assert_eq!(items(&mut db, "shop_recommend('u1', k => 5)").len(), 5);
}
