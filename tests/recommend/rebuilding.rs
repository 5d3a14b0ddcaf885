//! The items' vectors are rebuilt: lists and interests go over to the new generation.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use postgres::Client;

use crate::interests::assert_kept_right;
use crate::shop::{HISTORY, WEIGHT, tables, views};
use crate::support::sql::describe;
use crate::support::{Api, Cluster, Database, PATIENCE, Sql, wait_until};

fn wait_for_generation(db: &mut Database, number: i32) {
    wait_until(PATIENCE, "the generation is in service", || {
        db.one::<i32>("SELECT generation FROM recsync.generation WHERE state = 'in service'")
            == number
    });
}

/// Asks for lists until it is told to stop; how many.
fn ask_throughout(mut client: Client, stop: &AtomicBool) -> usize {
    let list = client
        .prepare("SELECT id FROM shop_recommend($1::text, k => 10, diversity => 0.3)")
        .unwrap();
    let similar = client
        .prepare("SELECT id FROM shop_similar($1::int, k => 5)")
        .unwrap();
    let mut count = 0;
    while !stop.load(Ordering::SeqCst) {
        for user in 0..6 {
            let found = client
                .query(&list, &[&format!("u{user}")])
                .unwrap_or_else(|error| panic!("{}", describe(&error)));
            assert_eq!(found.len(), 10);
            let found = client
                .query(&similar, &[&(user + 1)])
                .unwrap_or_else(|error| panic!("{}", describe(&error)));
            assert_eq!(found.len(), 5);
            count += 1;
        }
    }
    count
}

#[test]
fn lists_go_on_throughout_rebuilds_and_interests_are_those_of_the_vectors_in_service() {
    let cluster = Cluster::start(&[("max_worker_processes", "16")]);
    let (api, new) = (Api::of_model("old", 16), Api::of_model("new", 24));
    let mut db = tables(&cluster);
    db.server("api", &api, "");
    db.server("new", &new, "");
    db.run(&format!(
        "INSERT INTO product SELECT i, 'product ' || i FROM generate_series(1, 60) i;
         SELECT recsync.create_recommender('shop', 'product', 'event', text => '{{title}}', server => 'api', weight => $$ {WEIGHT} $$,
                                           seen => $$ kind = 'buy' $$, eligible => 'NOT hidden', history => {HISTORY})"
    ));
    for user in 0..6 {
        views(
            &mut db,
            &format!("u{user}"),
            &[1 + user, 7 + 2 * user, 30 + user],
        );
    }
    assert_kept_right(&mut db);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let asking: Vec<_> = (0..3)
            .map(|_| {
                let (client, stop) = (db.connect(), &stop);
                scope.spawn(move || ask_throughout(client, stop))
            })
            .collect();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let rebuild = "SELECT recsync.rebuild('shop_embedding'";
            for (number, call) in [
                (2, format!("{rebuild}, server => 'new')")),
                (3, format!("{rebuild}, distance => 'l2')")),
                (4, format!("{rebuild}, storage => 'halfvec')")),
                (
                    5,
                    format!(
                        "{rebuild}, server => 'api', storage => 'vector', distance => 'cosine')"
                    ),
                ),
                (
                    4,
                    "SELECT recsync.rollback_rebuild('shop_embedding')".to_owned(),
                ),
                (
                    5,
                    "SELECT recsync.rollback_rebuild('shop_embedding')".to_owned(),
                ),
            ] {
                db.run(&call);
                views(&mut db, "u1", &[40 + number]);
                wait_for_generation(&mut db, number);
                views(&mut db, "u2", &[50 + number]);
                if number != 4 {
                    assert_kept_right(&mut db);
                }
            }
        }));
        stop.store(true, Ordering::SeqCst);
        for asking in asking {
            let count = asking.join().unwrap();
            assert!(count > 20, "only {count} lists");
        }
        outcome.unwrap();
    });
    // A vector that changes is noted as before.
    db.run("UPDATE product SET title = 'another' WHERE id = 1");
    assert_kept_right(&mut db);
    db.run("SELECT recsync.drop_recommender('shop')");
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM pg_class WHERE relname LIKE 'shop\\_embedding%'"),
        0
    );
}
