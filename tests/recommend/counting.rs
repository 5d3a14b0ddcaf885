//! Many lists of neighbours are counted at once, by a process, and are what a count of the events gives, whatever comes
//! meanwhile and whoever dies.

use postgres::Client;

use crate::shop::{WEIGHT, assert_kept_right, differing_lists, number, tables};
use crate::support::{Cluster, Database, PATIENCE, Sql, wait_until};

/// More than are counted one after the other in a second.
const ITEMS: i32 = 5_000;

/// Recommender `shop` over 5,000 users with three items each, whose lists are counted.
fn large(cluster: &Cluster) -> Database<'_> {
    let mut db = tables(cluster);
    db.run(&format!(
        "INSERT INTO product SELECT i, 'product ' || i FROM generate_series(1, {ITEMS}) i;
         INSERT INTO event (user_id, product_id, created_at)
         SELECT 'u' || u, 1 + (u * 7 + n * n * (1 + u % 5)) % {ITEMS}, timestamptz '2026-05-01' + (u * 10 + n) * interval '1 min'
           FROM generate_series(1, 5000) u, generate_series(0, 2) n;
         SELECT recsync.create_recommender('shop', 'product', 'event', weight => $$ {WEIGHT} $$, seen => $$ kind = 'buy' $$, history => {},
                                           collaborative => '{{}}')",
        crate::shop::HISTORY
    ));
    db.settle("shop");
    db
}

/// Empties all lists, has them counted, and holds up whoever writes one of them but two, which are not among the first that
/// are written together.
fn hold_up<'c>(db: &mut Database, other: &'c mut Client) -> postgres::Transaction<'c> {
    let id = number(db);
    db.run(&format!(
        "UPDATE recsync.neighbour_{id} SET others = '{{}}', likeness = '{{}}'"
    ));
    let holder: i32 = other.one("SELECT pg_backend_pid()");
    let mut lock = other.transaction().unwrap();
    lock.batch_execute(&format!(
        "SELECT FROM recsync.neighbour_{id} WHERE item_id NOT IN (2850, 2851) FOR UPDATE"
    ))
    .unwrap();
    db.run(&format!(
        "INSERT INTO recsync.stale_{id} SELECT item_id, now() FROM recsync.item_{id} ON CONFLICT DO NOTHING;
         INSERT INTO event (user_id, product_id) VALUES ('somebody', 2850)"
    ));
    // For this lock, and not for one of the worker's while it takes lists upon itself.
    let waits = format!(
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'recsync trainer' AND {holder} = ANY (pg_blocking_pids(pid)))"
    );
    wait_until(PATIENCE, "no process waits for the first list", || {
        db.one::<bool>(&waits)
    });
    lock
}

#[test]
fn many_lists_are_counted_by_a_process_and_are_what_a_count_of_the_events_gives() {
    let cluster = Cluster::start(&[]);
    let mut db = large(&cluster);
    assert!(cluster.log().contains("item_knn was trained"));
    assert_eq!(differing_lists(&mut db), [] as [String; 0]);
    assert_kept_right(&mut db);
}

#[test]
fn a_list_that_is_stale_again_meanwhile_is_not_written_over_by_what_was_before() {
    let cluster = Cluster::start(&[]);
    let mut db = large(&cluster);
    let mut other = db.connect();
    let lock = hold_up(&mut db, &mut other);
    let id = number(&mut db);
    // The lists of these are nobody's.
    db.run("INSERT INTO event (user_id, product_id) VALUES ('late', 2850), ('late', 2851)");
    let counted = format!(
        "SELECT count(*) FROM recsync.neighbour_{id} WHERE item_id = 2850 AND 2851 = ANY (others)"
    );
    wait_until(PATIENCE, "what is stale again is not counted", || {
        db.one::<i64>(&counted) == 1
    });
    lock.commit().unwrap();
    db.settle("shop");
    assert_kept_right(&mut db);
}

#[test]
fn what_a_process_had_in_hand_that_was_ended_is_counted_all_the_same() {
    let cluster = Cluster::start(&[]);
    let mut db = large(&cluster);
    let mut other = db.connect();
    let lock = hold_up(&mut db, &mut other);
    db.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'recsync trainer'");
    lock.commit().unwrap();
    db.settle("shop");
    assert_kept_right(&mut db);
    let id = number(&mut db);
    let left = format!("SELECT count(*) FROM recsync.stale_{id}");
    assert_eq!(db.one::<i64>(&left), 0);
}
