//! verify while work is under way: what the worker has yet to come to is no fault. And who may call it, and when.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::support::{Api, Cluster, Database, PATIENCE, Sql, by_hand, wait_until};

#[track_caller]
fn verify(db: &mut Database) -> [i64; 4] {
    let row = &db
        .rows("SELECT missing, stale, orphaned, wrong_model FROM recsync.verify('item_embedding')")
        [0];
    [0, 1, 2, 3].map(|column| row.get(column))
}

#[test]
fn changes_that_are_not_worked_off_yet_are_no_faults_in_the_log_nor_as_jobs() {
    let api = Api::start();
    let mut db = by_hand().database();
    db.items(&api, "");
    db.run("INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 1500) i");
    db.settle("item_embedding");
    api.hold();
    db.run("INSERT INTO item VALUES (2000, 'new'); UPDATE item SET title = 'changed ' || id WHERE id <= 1200");
    db.run("UPDATE item SET id = id + 3000 WHERE id > 1400");
    api.wait_until_held(1);
    assert_eq!(verify(&mut db), [0; 4], "unread, or in flight");
    // What nobody saw is found all the same.
    db.run("DELETE FROM item_embedding_g1 WHERE id = 1300");
    assert_eq!(verify(&mut db), [1, 0, 0, 0]);
    wait_until(PATIENCE, "what flies is written down as jobs", || {
        db.one("SELECT count(*) > 0 FROM recsync.job WHERE leased_until IS NOT NULL")
    });
    assert_eq!(verify(&mut db), [1, 0, 0, 0], "jobs");
    api.release();
    db.settle("item_embedding");
    assert_eq!(verify(&mut db), [1, 0, 0, 0]);
    assert_eq!(
        db.one::<i64>("SELECT recsync.repair('item_embedding')"),
        1,
        "only that"
    );
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
}

#[test]
fn rows_that_wait_for_their_time_are_no_faults() {
    let api = Api::start();
    let mut db = by_hand().database();
    db.server("api", &api, "");
    db.run("CREATE TABLE item (id int PRIMARY KEY, title text)");
    db.run("INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 20) i");
    db.run("SELECT recsync.create_pipeline('item_embedding', 'item', columns => '{title}', server => 'api', index => 'none', schedule => '0 0 1 1 *')");
    db.settle("item_embedding");
    db.run("UPDATE item SET title = 'changed' WHERE id = 1; INSERT INTO item VALUES (21, 'new')");
    wait_until(PATIENCE, "the changes are jobs", || {
        db.one("SELECT count(*) = 2 FROM recsync.job")
    });
    assert_eq!(verify(&mut db), [0; 4]);
    assert_eq!(db.one::<i64>("SELECT recsync.repair('item_embedding')"), 0);
    db.run("DELETE FROM item_embedding_g1 WHERE id = 2");
    assert_eq!(db.one::<i64>("SELECT recsync.repair('item_embedding')"), 1);
    wait_until(PATIENCE, "a repair does not wait for that time", || {
        db.one("SELECT count(*) = 20 FROM item_embedding")
    });
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.job"), 2);
}

#[test]
fn rows_that_a_backfill_has_not_come_to_are_no_faults() {
    let api = Api::start();
    let mut db = by_hand().database();
    db.server("api", &api, "");
    db.run("CREATE TABLE item (id int, part text, title text, PRIMARY KEY (part, id))");
    db.run("INSERT INTO item SELECT i, 'part ' || i / 1000, 'row ' || i FROM generate_series(0, 2999) i");
    api.hold_texts_with("row 2500");
    db.run("SELECT recsync.create_pipeline('item_embedding', 'item', columns => '{title}', server => 'api', index => 'none')");
    wait_until(PATIENCE, "two slices are done", || {
        db.one("SELECT after_key IS NOT DISTINCT FROM '{part 1,1999}' FROM recsync.backfill")
    });
    assert_eq!(verify(&mut db), [0; 4]);
    db.run("DELETE FROM item_embedding_g1 WHERE id IN (5, 1999)");
    assert_eq!(verify(&mut db), [2, 0, 0, 0]);
    // The backfill's end removes what has no row.
    db.run("SET session_replication_role = replica; DELETE FROM item WHERE id = 6; RESET session_replication_role");
    assert_eq!(verify(&mut db), [2, 0, 0, 0]);
    assert_eq!(db.one::<i64>("SELECT recsync.repair('item_embedding')"), 2);
    api.release();
    db.settle("item_embedding");
    assert_eq!(verify(&mut db), [0; 4]);
    assert_eq!(db.one::<i64>("SELECT count(*) FROM item_embedding"), 2_999);
}

#[test]
fn while_others_write_nothing_is_called_wrong() {
    let api = Api::start();
    let mut db = by_hand().database();
    db.items(&api, "");
    db.run("INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 1500) i");
    db.settle("item_embedding");
    let (over, mut writer) = (AtomicBool::new(false), db.connect());
    let mut seen = 0;
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut rng = fastrand::Rng::with_seed(6);
            let mut round = 0;
            while !over.load(Ordering::SeqCst) {
                round += 1;
                let id = rng.i32(1..2000);
                writer.run(&match rng.u8(0..20) {
                    0..8 => format!("UPDATE item SET title = 'round {round}' WHERE id BETWEEN {id} AND {id} + 20"),
                    8..11 => format!("DELETE FROM item WHERE id BETWEEN {id} AND {id} + 5"),
                    11..16 => format!("INSERT INTO item SELECT i, 'round {round}' FROM generate_series({id}, {id} + 9) i ON CONFLICT (id) DO UPDATE SET title = excluded.title"),
                    16..18 => format!("UPDATE item SET title = NULL WHERE id = {id}"),
                    18 => format!("UPDATE item SET id = 10000 + {round} WHERE id = {id}"),
                    _ if round % 4 == 0 => "TRUNCATE item; INSERT INTO item SELECT i, 'again ' || i FROM generate_series(1, 1500) i".to_owned(),
                    _ => "BEGIN; UPDATE item SET title = 'not to be'; ROLLBACK".to_owned(),
                });
            }
        });
        for _ in 0..60 {
            let wrong = db.column::<String>(
                "SELECT fault || ' ' || key FROM recsync.verify_rows('item_embedding')",
            );
            seen += wrong.len();
            if seen > 0 {
                over.store(true, Ordering::SeqCst);
                assert_eq!(wrong, [""; 0]);
            }
        }
        assert_eq!(db.one::<i64>("SELECT recsync.repair('item_embedding')"), 0);
        over.store(true, Ordering::SeqCst);
    });
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
}

#[test]
fn verify_and_repair_are_the_owners_and_refuse_where_they_cannot_be_right() {
    let api = Api::start();
    let mut db = by_hand().database();
    db.items(&api, "");
    db.run("INSERT INTO item VALUES (1, 'one')");
    db.settle("item_embedding");
    db.run("DELETE FROM item_embedding_g1");
    db.run("DROP ROLE IF EXISTS verify_stranger; CREATE ROLE verify_stranger LOGIN; GRANT SELECT ON item, item_embedding TO verify_stranger");
    db.run("DROP ROLE IF EXISTS verify_admin; CREATE ROLE verify_admin LOGIN; GRANT recsync_admin TO verify_admin");
    let (mut stranger, mut admin) = (
        db.connect_as("verify_stranger"),
        db.connect_as("verify_admin"),
    );
    let calls = [
        "SELECT recsync.verify('item_embedding')",
        "SELECT recsync.verify_rows('item_embedding')",
        "SELECT recsync.repair('item_embedding')",
    ];
    for call in calls {
        let mut refused = |before: &str, code: &str, after: &str| {
            let error = db.refused(&format!("{before}; {call}"));
            assert_eq!(
                error.code().code(),
                code,
                "{before}; {call}: {}",
                error.message()
            );
            assert!(error.hint().is_some(), "{before}; {call}");
            db.run(&format!("ROLLBACK; {after}"));
        };
        refused("BEGIN ISOLATION LEVEL REPEATABLE READ", "25001", "SELECT");
        refused(
            "BEGIN; INSERT INTO item VALUES (2, 'own')",
            "25001",
            "SELECT",
        );
        db.run("SELECT recsync.pause('item_embedding')");
        let mut refused = |code: &str| {
            let error = db.refused(call);
            assert_eq!(error.code().code(), code, "{call}: {}", error.message());
            assert!(error.hint().is_some(), "{call}");
        };
        refused("55000");
        db.run("SELECT recsync.resume('item_embedding')");
        db.settle("item_embedding");
        db.run("DELETE FROM item_embedding_g1");
        let error = stranger.refused(call);
        assert_eq!(error.code().code(), "42501");
        assert!(error.hint().unwrap().contains("GRANT recsync_admin"));
        let unknown = call.replace("item_embedding", "nothing");
        assert_eq!(db.refused(&unknown).code().code(), "42704");
        admin.run(call);
    }
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
    db.run("ALTER TABLE item DISABLE TRIGGER USER");
    let error = db.refused(calls[0]);
    assert_eq!(error.code().code(), "55000", "{}", error.message());
}

#[test]
fn verify_renders_as_the_owner_and_can_be_cancelled() {
    let api = Api::start();
    let mut db = by_hand().database();
    db.server("api", &api, "");
    db.run("DROP ROLE IF EXISTS verify_owner; CREATE ROLE verify_owner LOGIN; GRANT USAGE ON FOREIGN SERVER api TO verify_owner;
            CREATE SCHEMA shop AUTHORIZATION verify_owner");
    let mut owner = db.connect_as("verify_owner");
    owner.run("CREATE TABLE shop.item (id int PRIMARY KEY, title text);
               CREATE TABLE shop.whoami (role text);
               CREATE FUNCTION shop.slowly(title text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS $$
               BEGIN
                   IF current_user <> 'verify_owner' THEN RAISE 'rendered as %', current_user; END IF;
                   IF title = 'slow' THEN PERFORM pg_sleep(60); END IF;
                   RETURN title;
               END $$;
               SELECT recsync.create_pipeline('shop.item_embedding', 'shop.item', content => 'shop.slowly(title)', server => 'api', index => 'none');
               INSERT INTO shop.item VALUES (1, 'one'), (2, 'two')");
    db.settle("shop.item_embedding");
    let verify = "SELECT missing + stale + orphaned + wrong_model FROM recsync.verify('shop.item_embedding')";
    assert_eq!(db.one::<i64>(verify), 0, "as a superuser");
    assert_eq!(owner.one::<i64>(verify), 0);
    // In a security-restricted operation nobody becomes anybody else.
    owner.run("CREATE OR REPLACE FUNCTION shop.slowly(title text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS $$
               BEGIN
                   PERFORM set_config('role', 'none', false);
                   RETURN title;
               END $$");
    let error = db.refused(verify);
    assert_eq!(error.code().code(), "55000", "{}", error.message());
    owner.run("CREATE OR REPLACE FUNCTION shop.slowly(title text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS $$
               BEGIN PERFORM pg_sleep(60); RETURN title; END $$");
    let before = std::time::Instant::now();
    let error = db.refused(&format!("SET statement_timeout = '300ms'; {verify}"));
    assert_eq!(error.code().code(), "57014", "{}", error.message());
    assert!(before.elapsed() < Duration::from_secs(30));
}

#[test]
fn verify_and_estimate_work_on_a_standby_and_repair_does_not() {
    let api = Api::start();
    let cluster = Cluster::start(&[]);
    let mut db = cluster.database();
    db.items(&api, "");
    db.run("INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 1200) i");
    db.settle("item_embedding");
    db.run("DELETE FROM item_embedding_g1 WHERE id IN (3, 1100)");
    let standby = cluster.standby();
    let mut reader = standby.connect(&db.name);
    wait_until(PATIENCE, "the standby has it", || {
        reader.one("SELECT missing = 2 FROM recsync.verify('item_embedding')")
    });
    assert_eq!(
        reader.column::<String>("SELECT key::text FROM recsync.verify_rows('item_embedding')"),
        [r#"{"id": 3}"#, r#"{"id": 1100}"#]
    );
    let rows: i64 = reader.one("SELECT rows FROM recsync.estimate('item_embedding')");
    assert_eq!(rows, 2);
    let error = reader.refused("SELECT recsync.repair('item_embedding')");
    assert_eq!(error.code().code(), "25006", "{}", error.message());
}
