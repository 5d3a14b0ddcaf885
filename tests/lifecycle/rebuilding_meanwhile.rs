//! A rebuild through DDL, pauses, restores, crashes, and while its index is built.

use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::rebuilding::{embedded, generation, states, wait_for_generation};
use crate::support::cluster::bin;
use crate::support::{Api, Cluster, PATIENCE, Sql, process, shared, wait_until};

#[test]
fn renamed_columns_and_tables_are_followed_by_both_generations() {
    let (api, new) = (Api::start(), Api::of_model("new", 24));
    let mut db = shared().database();
    embedded(&mut db, &api, &new, "none");
    new.hold();
    db.run("SELECT recsync.rebuild('item_embedding', server => 'new')");
    new.wait_until_held(1);
    db.run("ALTER TABLE item RENAME title TO name; ALTER TABLE item RENAME id TO number; ALTER TABLE item RENAME TO thing; ALTER SERVER new RENAME TO newer");
    db.run("UPDATE thing SET name = 'renamed' WHERE number = 3");
    new.release();
    wait_for_generation(&mut db, 2);
    db.settle("item_embedding");
    db.assert_in_step(
        &new,
        "SELECT t.number::text, t.name, e.embedding::text FROM thing t FULL JOIN item_embedding e USING (number)",
    );
    db.run("DROP TABLE thing CASCADE");
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.pipeline"), 0);
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM pg_class WHERE relname LIKE 'item\\_embedding%'"),
        0
    );
}

#[test]
fn paused_pipeline_rests_with_the_generation_that_is_being_built() {
    let (api, new) = (Api::start(), Api::of_model("new", 24));
    let mut db = shared().database();
    embedded(&mut db, &api, &new, "none");
    new.hold();
    db.run("SELECT recsync.rebuild('item_embedding', server => 'new')");
    new.wait_until_held(1);
    db.run("SELECT recsync.pause('item_embedding')");
    new.release();
    db.run("UPDATE item SET title = 'meanwhile' WHERE id = 3");
    db.pause(Duration::from_secs(4));
    assert_eq!(generation(&mut db), 1);
    db.run("SELECT recsync.resume('item_embedding')");
    wait_for_generation(&mut db, 2);
    db.settle("item_embedding");
    db.assert_items_in_step(&new);
}

#[test]
fn pipeline_whose_provider_refuses_it_is_rebuilt_by_another_one_and_runs_again() {
    let (api, new) = (Api::start(), Api::of_model("new", 24));
    let mut db = shared().database();
    embedded(&mut db, &api, &new, "none");
    api.accept_only_key("another");
    db.run("UPDATE item SET title = 'refused' WHERE id = 3");
    const STATE: &str = "SELECT state FROM recsync.status";
    wait_until(PATIENCE, "it is paused", || {
        db.one::<String>(STATE) == "paused"
    });
    db.run("SELECT recsync.rebuild('item_embedding', server => 'new')");
    wait_for_generation(&mut db, 2);
    db.assert_items_in_step(&new);
    assert_eq!(db.one::<String>(STATE), "running");
}

#[test]
fn dumped_in_the_middle_of_a_rebuild_it_is_finished_after_the_restore_and_pays_for_the_rest_alone()
{
    let cluster = Cluster::start(&[]);
    let (api, new) = (Api::of_model("old", 16), Api::of_model("new", 24));
    let mut db = cluster.database();
    embedded(&mut db, &api, &new, "none");
    new.hold_texts_with("row 299");
    db.run("SELECT recsync.rebuild('item_embedding', server => 'new')");
    wait_until(PATIENCE, "most rows have their vector", || {
        db.one::<i64>("SELECT count(*) FROM item_embedding_g2") >= 200
    });
    let mut copy = cluster.empty_database();
    let host: String = db.one("SHOW unix_socket_directories");
    let client = |program: &str, database: &str| {
        let mut command = Command::new(bin().join(program));
        command.args(["-h", &host, "-U", "postgres", "-d", database]);
        command
    };
    let mut dump = client("pg_dump", &db.name);
    let mut dump = dump.stdout(Stdio::piped()).spawn().unwrap();
    let restored = client("psql", &copy.name)
        .args(["-q", "-v", "ON_ERROR_STOP=1"])
        .stdin(dump.stdout.take().unwrap())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(restored.success() && dump.wait().unwrap().success());
    db.run("SELECT recsync.drop_pipeline('item_embedding')");
    new.release();
    let before = new.texts().len();
    wait_for_generation(&mut copy, 2);
    copy.settle("item_embedding");
    copy.assert_items_in_step(&new);
    assert!(
        new.texts().len() - before <= 100,
        "{}",
        new.texts().len() - before
    );
    assert_eq!(states(&mut copy), ["1 kept", "2 in service"]);
}

#[test]
fn killed_in_the_middle_of_a_rebuild_it_goes_on_and_around_the_swap_it_is_one_or_the_other() {
    let cluster = Cluster::start(&[]);
    let (api, new) = (Api::of_model("old", 16), Api::of_model("new", 24));
    let mut db = cluster.database();
    embedded(&mut db, &api, &new, "none");
    new.hold_texts_with("row 29");
    db.run("SELECT recsync.rebuild('item_embedding', server => 'new')");
    new.wait_until_held(1);
    db.kill9_worker();
    assert_eq!(states(&mut db), ["1 in service", "2 building"]);
    new.release();
    wait_for_generation(&mut db, 2);
    db.assert_items_in_step(&new);
    for round in 0..4u64 {
        let before = generation(&mut db);
        let server = ["api", "new"][round as usize % 2];
        db.run(&format!(
            "SELECT recsync.rebuild('item_embedding', server => '{server}')"
        ));
        let next: i32 = db.one("SELECT max(generation) FROM recsync.generation");
        db.run(&format!(
            "SELECT recsync.wait_for('item_embedding_g{next}', '60 s')"
        ));
        thread::sleep(Duration::from_millis(70 * round));
        db.kill9_worker();
        // Whoever holds the view keeps the swap from happening between two looks.
        db.run("BEGIN; SELECT FROM item_embedding LIMIT 0");
        let now = generation(&mut db);
        assert!(now == before || now == next, "{now}");
        let (of, api) = match now == before {
            true => (
                ["new", "api"][round as usize % 2],
                [&new, &api][round as usize % 2],
            ),
            false => (server, [&api, &new][round as usize % 2]),
        };
        assert_eq!(
            db.one::<String>("SELECT server FROM recsync.generation WHERE state = 'in service'"),
            of
        );
        db.assert_items_in_step(api);
        db.run("COMMIT");
        wait_for_generation(&mut db, next);
        db.settle("item_embedding");
    }
}

#[test]
fn index_of_a_new_generation_is_built_while_changes_wait_and_its_progress_is_seen() {
    let cluster = Cluster::start(&[
        ("max_worker_processes", "16"),
        ("recsync.max_workers", "4"),
        ("maintenance_work_mem", "1MB"),
        ("max_parallel_maintenance_workers", "0"),
    ]);
    let api = Api::with_dimensions(100);
    let mut db = cluster.database();
    db.server("api", &api, "max_batch_inputs '1000'");
    db.run("CREATE TABLE item (id int PRIMARY KEY, title text, stock int NOT NULL DEFAULT 0)");
    db.run("INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 16000) i");
    db.run("SELECT recsync.create_pipeline('item_embedding', 'item', columns => '{title}', server => 'api', index => 'none')");
    db.settle("item_embedding");
    db.run("SELECT recsync.rebuild('item_embedding', index => 'hnsw')");
    db.wait_until_index_is_being_built();
    let indexer = db.indexer();
    db.run("UPDATE item SET title = 'meanwhile' WHERE id = 77; DELETE FROM item WHERE id = 78");
    // The one in service does not wait for it, nor does the build have to give way.
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
    db.pause(Duration::from_secs(1));
    assert_eq!(db.indexer(), indexer);
    let (phase, done): (String, f64) = {
        let mut seen = None;
        wait_until(PATIENCE, "its progress is seen", || {
            let rows = db.rows("SELECT index_phase, index_done FROM recsync.generation WHERE state = 'building' AND index_phase LIKE 'building index%' AND index_done > 0");
            seen = rows.first().map(|row| (row.get(0), row.get(1)));
            seen.is_some()
        });
        seen.unwrap()
    };
    assert!(done <= 1.0, "{phase}: {done}");
    let statement: String = db.one("SELECT query FROM pg_stat_activity WHERE backend_type = 'recsync indexer' AND datname = current_database()");
    println!("{phase} {done} {statement}");
    let locks: Vec<String> = db.column("SELECT mode FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE a.backend_type = 'recsync indexer' AND l.relation = 'item_embedding_g2'::regclass");
    assert!(locks.contains(&"ShareLock".to_owned()), "{locks:?}");
    cluster.set("maintenance_work_mem", "64MB");
    process::signal(db.indexer().unwrap(), libc::SIGTERM);
    wait_for_generation(&mut db, 2);
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
    assert!(db.one::<bool>("SELECT indexed FROM recsync.generation WHERE state = 'in service'"));
}
