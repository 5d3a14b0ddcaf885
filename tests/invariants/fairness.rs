//! What must not wait for others: a change while a backfill runs, one pipeline's row beside a million of another's.

use std::time::{Duration, Instant};

use crate::support::{Api, Cluster, PATIENCE, Sql, shared, wait_until};

#[test]
fn change_during_a_backfill_into_an_hnsw_index_is_stored_by_the_worker_and_visible_soon() {
    let cluster = Cluster::start(&[("max_worker_processes", "16"), ("recsync.max_writers", "2")]);
    let api = Api::start();
    let mut db = cluster.database();
    db.slow_items(&api, "", 6_000, Duration::from_millis(3));
    db.wait_until_writers_store(2);
    let worker = db.worker();
    let mut watcher = db.connect();
    let mut times = Vec::new();
    for change in 0..40 {
        // New rows, rows that are embedded already, rows whose turn in the backfill is now or later.
        let id = match change % 4 {
            0 => 10_000 + change,
            1 => 1 + change,
            _ => 6_000 - 100 * change,
        };
        db.run(&format!(
            "INSERT INTO item VALUES ({id}, 'change {change}') ON CONFLICT (id) DO UPDATE SET title = excluded.title"
        ));
        let committed = Instant::now();
        let wanted = api.vector(&format!("change {change}"));
        let wanted: Vec<String> = wanted.iter().map(|number| number.to_string()).collect();
        let look = format!(
            "SELECT count(*) = 1 FROM item_embedding WHERE id = {id} AND embedding <-> '[{}]' < 0.0001",
            wanted.join(",")
        );
        wait_until(PATIENCE, "the change is visible", || watcher.one(&look));
        times.push(committed.elapsed());
    }
    assert!(
        db.one::<bool>("SELECT count(*) < 6000 FROM item_embedding"),
        "the backfill was over too early"
    );
    times.sort();
    let (median, p90) = (times[times.len() / 2], times[times.len() * 9 / 10]);
    println!(
        "commit to visible during a backfill: p50 {median:?}, p90 {p90:?}, worst {:?}",
        times[39]
    );
    assert!(p90 < Duration::from_millis(250), "{times:?}");
    // The last store of a changed row is the worker's; the rows of the backfill are the writers'.
    let others: i64 = db.one(&format!(
        "SELECT count(*) FROM stored_by WHERE pid <> {worker} AND id >= 10000"
    ));
    assert_eq!(others, 0, "changes were given to writers");
    let own: i64 = db.one(&format!(
        "SELECT count(*) FROM stored_by WHERE pid = {worker}"
    ));
    let all: i64 = db.one("SELECT count(*) FROM stored_by");
    println!("{own} of {all} rows were stored by the worker");
    assert!(own < 400, "{own} of {all} rows were stored by the worker");
}

#[test]
fn single_row_beside_many_of_another_pipeline_waits_for_one_request_at_most() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, "max_batch_inputs '10', max_concurrency '2'");
    db.run("CREATE TABLE other (id int PRIMARY KEY, title text)");
    db.pipeline("other_embedding", "other");
    db.run("INSERT INTO other VALUES (0, 'warm up')");
    db.settle("other_embedding");
    for round in 1..=5 {
        api.hold();
        // Both places of the server are taken, and more is ready.
        db.run(&format!("INSERT INTO item SELECT {round} * 10000 + i, 'many {round} ' || i FROM generate_series(1, 600) i"));
        api.wait_until_held(2);
        db.run(&format!(
            "INSERT INTO other VALUES ({round}, 'single {round}')"
        ));
        wait_until(PATIENCE, "the row is known", || {
            db.one("SELECT bool_or(pending = 1) FROM recsync.status WHERE name LIKE '%other_embedding'")
        });
        let before = api.requests().len();
        api.release();
        db.settle("other_embedding");
        let requests = api.requests();
        let at = requests[before..]
            .iter()
            .position(|request| request.inputs == [format!("single {round}")]);
        println!("round {round}: {at:?} requests came before it");
        assert!(
            at.is_some_and(|at| at <= 1),
            "{at:?} requests came before it"
        );
        db.settle("item_embedding");
    }
    db.assert_items_in_step(&api);
}

#[test]
fn change_during_a_backfill_gets_the_next_place_at_the_server() {
    let api = Api::start();
    let mut db = shared().database();
    db.server("api", &api, "max_batch_inputs '10', max_concurrency '2'");
    db.run(
        "CREATE TABLE item (id int PRIMARY KEY, title text, stock int NOT NULL DEFAULT 0);
            INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 3000) i",
    );
    api.hold();
    db.pipeline("item_embedding", "item");
    api.wait_until_held(2);
    db.run("INSERT INTO item VALUES (5000, 'change')");
    let before = api.requests().len();
    // Before the change was seen, the backfill may have had one more.
    db.pause(Duration::from_millis(200));
    api.release();
    wait_until(PATIENCE, "the change is sent", || {
        api.times_asked("change") > 0
    });
    let at = api.requests()[before..]
        .iter()
        .position(|request| request.inputs.contains(&"change".to_owned()));
    assert!(
        at.is_some_and(|at| at <= 1),
        "{at:?} requests came before it"
    );
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
}
