//! run: a recommender's models are trained now, on all that was committed, and the caller waits for it.

use crate::learning::{of_600_items, trained, trained_at, trainer, wait_until_trained};
use crate::rights::role;
use crate::shop::{differing_lists, number, shop, tables, views};
use crate::support::{Cluster, Database, PATIENCE, Sql, shared, wait_until};

const RUN: &str = "SELECT concat_ws(' ', processed, inserts, updates, deletes, embedded, unchanged) FROM recsync.run('shop')";

/// Sessions that wait for their run.
const WAITING: &str = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%recsync.run(%' AND state = 'active' AND wait_event_type = 'Extension' AND datname = current_database()";

fn pairs(db: &mut Database) -> i64 {
    db.one("SELECT count(DISTINCT (user_id, product_id)) FROM event")
}

/// A trainer that waits for a lock.
fn wait_until_trainer_waits(db: &mut Database) -> i32 {
    let waits = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'recsync trainer' AND wait_event_type = 'Lock' AND datname = current_database()";
    wait_until(PATIENCE, "no trainer waits for the table", || {
        !db.column::<i32>(waits).is_empty()
    });
    db.one(waits)
}

#[test]
fn models_and_lists_are_made_of_all_that_was_committed() {
    let mut db = tables(shared());
    trained(&mut db, "");
    wait_until_trained(&mut db, None);
    for round in 1..4 {
        let before = trained_at(&mut db);
        db.run(&format!(
            "INSERT INTO event (user_id, product_id) SELECT 'new {round}', 1 + (i * {round}) % 40 FROM generate_series(1, 3) i"
        ));
        let pairs = pairs(&mut db);
        assert_eq!(db.one::<String>(RUN), format!("{pairs} 0 2 0 0 0"));
        let trained_on: Vec<i64> = db.column("SELECT interactions FROM recsync.model");
        assert_eq!(trained_on, [pairs; 2]);
        assert_ne!(trained_at(&mut db), before);
    }
    assert_eq!(differing_lists(&mut db), Vec::<String>::new());
    // What is trained for the first time is new.
    db.run("SELECT recsync.alter_recommender('shop', collaborative => '{item_knn}')");
    db.run("DELETE FROM recsync.trained_model");
    let pairs = pairs(&mut db);
    assert_eq!(db.one::<String>(RUN), format!("{pairs} 1 0 0 0 0"));
    assert!(db.one::<bool>("SELECT latency > interval '0' FROM recsync.run('shop')"));
}

#[test]
fn of_few_events_lists_are_counted_and_no_model_is_trained_unless_it_was_asked_for() {
    let mut db = shop(shared(), 5);
    views(&mut db, "ann", &[1, 2, 3]);
    assert_eq!(db.one::<String>(RUN), "3 1 0 0 0 1");
    assert_eq!(trained_at(&mut db), None);
    db.run("SELECT recsync.alter_recommender('shop', collaborative => '{ease}')");
    assert_eq!(db.one::<String>(RUN).split_once(' ').unwrap().0, "3");
    assert!(trained_at(&mut db).is_some());
    db.run("SELECT recsync.alter_recommender('shop', collaborative => '{}')");
    views(&mut db, "ann", &[4]);
    assert_eq!(db.one::<String>(RUN), "0 0 0 0 0 0");
    let id = number(&mut db);
    assert_eq!(
        db.one::<i64>(&format!("SELECT count(*) FROM recsync.interaction_{id}")),
        4
    );
}

#[test]
fn what_takes_too_much_memory_is_as_it_was() {
    let cluster = Cluster::start(&[("recsync.training_memory", "1MB")]);
    let mut db = of_600_items(&cluster, "collaborative => '{ease}'");
    assert_eq!(db.one::<String>(RUN), "0 0 0 0 0 1");
    cluster.set("recsync.training_memory", "100MB");
    wait_until(PATIENCE, "it is not trained", || {
        db.one::<String>(RUN) == "600 1 0 0 0 0"
    });
    assert_eq!(db.one::<String>(RUN), "600 0 1 0 0 0");
}

#[test]
fn it_can_be_cancelled_and_a_trainer_that_is_ended_is_followed_by_another() {
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
    db.run("SET statement_timeout = '3s'");
    assert_eq!(db.refused(RUN).code().code(), "57014");
    db.run("RESET statement_timeout");
    wait_until_trainer_waits(&mut db);
    let mut client = db.connect();
    let waits = std::thread::spawn(move || client.one::<String>(RUN));
    wait_until(PATIENCE, "nobody waits", || db.one::<i64>(WAITING) == 1);
    for _ in 0..2 {
        let waiting = wait_until_trainer_waits(&mut db);
        db.run(&format!("SELECT pg_terminate_backend({waiting})"));
        wait_until(PATIENCE, "it does not end", || {
            trainer(&mut db) != Some(waiting)
        });
    }
    assert_eq!(trained_at(&mut db), before);
    assert!(!waits.is_finished());
    lock.commit().unwrap();
    let pairs = pairs(&mut db);
    assert_eq!(waits.join().unwrap(), format!("{pairs} 0 2 0 0 0"));
}

#[test]
fn a_training_that_has_begun_before_is_not_the_one_that_is_waited_for() {
    let cluster = Cluster::start(&[]);
    let mut db = tables(&cluster);
    trained(&mut db, "");
    wait_until_trained(&mut db, None);
    let before = pairs(&mut db);
    let id = number(&mut db);
    let mut other = db.connect();
    let mut lock = other.transaction().unwrap();
    lock.batch_execute(&format!("LOCK TABLE recsync.ease_{id} IN SHARE MODE"))
        .unwrap();
    let mut client = db.connect();
    let first = std::thread::spawn(move || client.one::<String>(RUN));
    wait_until_trainer_waits(&mut db);
    db.run("INSERT INTO event (user_id, product_id) VALUES ('late', 1)");
    db.settle("shop");
    let mut client = db.connect();
    let second = std::thread::spawn(move || client.one::<String>(RUN));
    wait_until(PATIENCE, "not both wait", || db.one::<i64>(WAITING) == 2);
    // Nobody who wants to make the tables anew waits for those who wait.
    assert_eq!(
        db.column::<String>("SELECT c.relname::text FROM pg_locks l JOIN pg_class c ON c.oid = l.relation JOIN pg_stat_activity a USING (pid)
                              WHERE a.query LIKE '%recsync.run(%' AND a.pid <> pg_backend_pid() AND c.relname ~ '_[0-9]+$'"),
        Vec::<String>::new()
    );
    lock.commit().unwrap();
    assert_eq!(first.join().unwrap(), format!("{before} 0 2 0 0 0"));
    let after = before + 1;
    assert_eq!(second.join().unwrap(), format!("{after} 0 2 0 0 0"));
}

#[test]
fn a_training_that_fails_is_an_error_of_the_run() {
    let mut db = tables(shared());
    trained(&mut db, "");
    wait_until_trained(&mut db, None);
    let id = number(&mut db);
    db.run(&format!(
        "ALTER TABLE recsync.ease_{id} ADD CONSTRAINT never CHECK (false) NOT VALID"
    ));
    let error = db.refused(RUN);
    assert_eq!(error.code().code(), "38000", "{error:?}");
    assert!(error.message().contains("23514"), "{error:?}");
    db.run(&format!(
        "ALTER TABLE recsync.ease_{id} DROP CONSTRAINT never"
    ));
    let pairs = pairs(&mut db);
    assert_eq!(db.one::<String>(RUN), format!("{pairs} 0 2 0 0 0"));
}

#[test]
fn run_is_for_the_owner_of_the_items_outside_of_a_transaction_with_changes_of_its_own() {
    let mut db = shop(shared(), 3);
    db.settle("shop");
    let stranger = role("run_shop_stranger");
    let run = "SELECT recsync.run('public.shop')";
    let refused = |error: postgres::error::DbError| error.code().code().to_owned();
    assert_eq!(refused(db.connect_as(&stranger).refused(run)), "42501");
    let changed =
        format!("BEGIN; INSERT INTO event (user_id, product_id) VALUES ('ann', 1); {run}");
    assert_eq!(refused(db.refused(&changed)), "25001");
    db.run("ROLLBACK; SELECT recsync.pause('shop')");
    assert_eq!(refused(db.refused(run)), "55000");
    db.run("SELECT recsync.resume('shop')");
    db.run(run);
    assert_eq!(
        refused(db.refused("SELECT recsync.run('nothing')")),
        "42704"
    );
}

#[test]
fn a_worker_that_rests_is_said_at_once_also_to_those_who_wait_already() {
    let cluster = Cluster::start(&[]);
    let mut db = tables(&cluster);
    trained(&mut db, "");
    wait_until_trained(&mut db, None);
    db.run("CREATE SERVER local FOREIGN DATA WRAPPER recsync OPTIONS (api 'builtin')");
    db.run("SELECT recsync.create_pipeline('text', 'product', columns => '{title}', server => 'local')");
    db.settle("text");
    let id = number(&mut db);
    let mut other = db.connect();
    let mut lock = other.transaction().unwrap();
    lock.batch_execute(&format!("LOCK TABLE recsync.ease_{id} IN SHARE MODE"))
        .unwrap();
    let mut client = db.connect();
    let waits = std::thread::spawn(move || client.refused(RUN));
    wait_until_trainer_waits(&mut db);
    cluster.set("recsync.enabled", "off");
    let error = waits.join().unwrap();
    assert_eq!(error.code().code(), "55000", "{error:?}");
    assert!(
        error.message().contains("recsync.enabled is off"),
        "{error:?}"
    );
    db.run("UPDATE product SET title = title || '!'");
    for name in ["shop", "text"] {
        let error = db.refused(&format!("SELECT recsync.run('{name}')"));
        assert_eq!(error.code().code(), "55000", "{name}: {error:?}");
    }
    lock.commit().unwrap();
    cluster.set("recsync.enabled", "on");
    wait_until(PATIENCE, "it does not go on", || {
        db.one::<String>("SHOW recsync.enabled") == "on"
    });
    let pairs = pairs(&mut db);
    assert_eq!(db.one::<String>(RUN), format!("{pairs} 0 2 0 0 0"));
}

#[test]
fn without_a_worker_the_reason_is_said() {
    // The launchers of recsync and of logical replication have all places.
    let cluster = Cluster::start(&[("max_worker_processes", "2")]);
    let mut db = shop(&cluster, 3);
    let error = db.refused("SELECT recsync.run('shop')");
    assert_eq!(error.code().code(), "55000", "{error:?}");
    assert!(error.message().contains("no worker slot"), "{error:?}");
}
