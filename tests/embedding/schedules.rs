//! When a change is due: realtime, near_realtime, timetables, recsync.run.

use std::time::{Duration, Instant};

use postgres::Row;

use crate::support::{Api, Cluster, Database, PATIENCE, Sql, shared, wait_until};

/// Table `item` with pipeline `item_embedding` and further arguments of create_pipeline.
fn items<'a>(api: &Api, arguments: &str) -> Database<'a> {
    items_in(shared().database(), api, arguments)
}

fn items_in<'a>(mut db: Database<'a>, api: &Api, arguments: &str) -> Database<'a> {
    db.server("api", api, "");
    db.run("CREATE TABLE item (id int PRIMARY KEY, title text, stock int NOT NULL DEFAULT 0)");
    db.run(&format!(
        "SELECT recsync.create_pipeline('item_embedding', 'item', columns => '{{title}}', server => 'api', index => 'none', {arguments})"
    ));
    // What is written from now on is a change, not a row that was there before.
    db.settle("item_embedding");
    db
}

fn run(db: &mut Database) -> Row {
    db.rows("SELECT * FROM recsync.run('item_embedding')")
        .remove(0)
}

/// processed, inserts, updates, deletes, embedded, unchanged
fn counts(row: &Row) -> [i64; 6] {
    std::array::from_fn(|n| row.get(n))
}

fn stored(db: &mut Database) -> i64 {
    db.one("SELECT count(*) FROM item_embedding")
}

/// Waits until the worker has taken up what was committed, as jobs for later.
fn wait_until_jobs(db: &mut Database, count: i64) {
    wait_until(PATIENCE, "the changes are written down", || {
        db.one::<i64>("SELECT count(*) FROM recsync.job") == count
    });
}

#[test]
fn a_thousand_updates_of_one_row_in_a_second_cost_five_inputs_and_the_last_text_wins() {
    let api = Api::start();
    let mut db = items(&api, "schedule => 'realtime'");
    db.run("INSERT INTO item VALUES (1, 'first')");
    db.settle("item_embedding");
    wait_until(PATIENCE, "the row is an ordinary one again", {
        let since = Instant::now();
        move || since.elapsed() > Duration::from_secs(2)
    });
    let before = api.requests().len();
    let update = db
        .prepare("UPDATE item SET title = $1 WHERE id = 1")
        .unwrap();
    let started = Instant::now();
    for n in 0..1_000 {
        // A thousand in a second, whatever a statement takes.
        while started.elapsed() < Duration::from_millis(n) {
            std::hint::spin_loop();
        }
        db.execute(&update, &[&format!("title {n}")]).unwrap();
    }
    let took = started.elapsed();
    db.settle("item_embedding");
    let sent: usize = api.requests()[before..]
        .iter()
        .map(|request| request.inputs.len())
        .sum();
    // On a machine that is slow, the second takes longer: one more input each 400 ms.
    let more = took
        .saturating_sub(Duration::from_millis(1_100))
        .as_millis()
        / 400;
    assert!(
        sent <= 5 + more as usize,
        "{sent} inputs for {took:?} of updates"
    );
    db.assert_items_in_step(&api);
    assert!(api.times_asked("title 999") == 1);
}

#[test]
fn near_realtime_waits_for_a_second_of_quiet_and_sends_a_burst_once() {
    let api = Api::start();
    let mut db = items(&api, "schedule => 'near_realtime'");
    let started = Instant::now();
    for n in 0..10 {
        db.run(&format!("INSERT INTO item VALUES (1, 'title {n}') ON CONFLICT (id) DO UPDATE SET title = excluded.title"));
    }
    let last = Instant::now();
    db.settle("item_embedding");
    let requests = api.requests();
    assert_eq!(requests.len(), 1, "a burst is one request");
    assert_eq!(requests[0].inputs, ["title 9"]);
    assert!(requests[0].at >= last + Duration::from_millis(900));
    assert!(started.elapsed() < Duration::from_secs(5));
    db.run("DELETE FROM item");
    wait_until(Duration::from_millis(900), "a delete does not wait", || {
        stored(&mut db) == 0
    });
}

#[test]
fn a_row_that_is_never_quiet_waits_no_longer_than_max_delay() {
    let api = Api::start();
    let mut db = items(&api, "debounce => '400 ms', max_delay => '1 s'");
    let started = Instant::now();
    let mut n = 0;
    while started.elapsed() < Duration::from_secs(3) {
        n += 1;
        db.run(&format!("INSERT INTO item VALUES (1, 'title {n}') ON CONFLICT (id) DO UPDATE SET title = excluded.title"));
        db.pause(Duration::from_millis(50));
    }
    let changing = api.requests().len();
    assert!((2..=3).contains(&changing), "{changing} requests in 3 s");
    let first = api.requests()[0].at - started;
    assert!(first >= Duration::from_millis(950), "asked after {first:?}");
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
}

#[test]
fn a_quiet_time_longer_than_the_worker_keeps_changes_in_memory_is_kept_all_the_same() {
    let api = Api::start();
    let mut db = items(&api, "debounce => '1 h'");
    db.run("INSERT INTO item VALUES (1, 'one'), (2, 'two')");
    wait_until_jobs(&mut db, 2);
    let due: Vec<bool> = db.column(
        "SELECT available_at BETWEEN now() + '50 min' AND now() + '60 min' FROM recsync.job",
    );
    assert_eq!(due, [true, true]);
    db.run("UPDATE recsync.job SET available_at = now() + '1 min', created_at = now() - interval '9 h 55 min' WHERE record_key = '{1}'");
    db.run("UPDATE item SET title = title || ' again'");
    wait_until(PATIENCE, "both are put off", || {
        db.one("SELECT bool_and(available_at > now() + '3 min') FROM recsync.job")
    });
    let close: bool =
        db.one("SELECT available_at < now() + '6 min' FROM recsync.job WHERE record_key = '{1}'");
    assert!(
        close,
        "at the latest ten times the quiet time after its first change"
    );
    assert_eq!(api.requests().len(), 0);
    assert_eq!(counts(&run(&mut db)), [2, 2, 0, 0, 2, 0]);
    db.assert_items_in_step(&api);
}

#[test]
fn hourly_changes_wait_for_their_time_and_run_does_them_now() {
    let api = Api::start();
    let mut db = items(&api, "schedule => 'hourly'");
    assert_eq!(counts(&run(&mut db)), [0; 6], "nothing to do");
    db.run("INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 300) i");
    wait_until_jobs(&mut db, 300);
    db.run("UPDATE item SET title = title || ' again' WHERE id <= 100");
    db.run("DELETE FROM item WHERE id = 300");
    let due: bool = db.one(
        "SELECT bool_and(available_at BETWEEN date_trunc('hour', now()) + '59 min' AND date_trunc('hour', now()) + '61 min') FROM recsync.job",
    );
    assert!(due, "at the full hour");
    assert_eq!(api.requests().len(), 0);
    let done = run(&mut db);
    let [processed, inserts, updates, deletes, embedded, unchanged] = counts(&done);
    assert!((299..=301).contains(&processed), "{processed}");
    assert_eq!((inserts, updates, deletes), (299, 0, 0));
    assert_eq!((embedded, unchanged), (299, 0));
    assert_eq!(api.texts().len(), 299, "each text once");
    db.assert_items_in_step(&api);
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.job"), 0);

    db.run("UPDATE item SET title = 'row 1' WHERE id = 1");
    db.run("UPDATE item SET title = title WHERE id = 2");
    db.run("DELETE FROM item WHERE id = 3");
    wait_until(PATIENCE, "a delete does not wait", || {
        stored(&mut db) == 298
    });
    assert_eq!(counts(&run(&mut db))[1..], [0, 1, 0, 1, 0]);
    db.assert_items_in_step(&api);
}

#[test]
fn timetables_run_by_themselves_and_send_a_row_once() {
    let api = Api::start();
    for (arguments, period) in [
        ("schedule => '2 seconds'", 2),
        ("schedule => '*/3 * * * * *'", 3),
    ] {
        let mut db = items(&api, arguments);
        let before = api.requests().len();
        let mut written = Vec::new();
        for n in 0..3 {
            db.run(&format!("INSERT INTO item VALUES (1, 'title {period} {n}') ON CONFLICT (id) DO UPDATE SET title = excluded.title"));
            written.push(Instant::now());
        }
        db.settle("item_embedding");
        let requests = api.requests().split_off(before);
        assert!(requests.len() <= 2, "{} requests", requests.len());
        let inputs = requests.last().unwrap().inputs.clone();
        assert_eq!(inputs, [format!("title {period} 2")]);
        let waited = requests.last().unwrap().at - written[0];
        assert!(waited < Duration::from_secs(period + 2), "{waited:?}");
        db.assert_items_in_step(&api);
    }
}

#[test]
fn timetables_go_by_the_time_zone_of_the_database() {
    let api = Api::start();
    let mut db = shared().database();
    let name = db.name.clone();
    db.run(&format!(
        "ALTER DATABASE {name} SET timezone = 'America/St_Johns'"
    ));
    // The worker has begun in the old zone; the next one is told.
    let worker = db.worker();
    db.run(&format!("SELECT pg_terminate_backend({worker})"));
    wait_until(PATIENCE, "another worker", || {
        db.worker_now().is_some_and(|pid| pid != worker)
    });
    let mut db = items_in(db, &api, "schedule => '30 3 * * *'");
    db.run("INSERT INTO item VALUES (1, 'one')");
    wait_until_jobs(&mut db, 1);
    let at: String = db.one("SELECT to_char(available_at AT TIME ZONE 'America/St_Johns' + '1 s', 'HH24:MI') FROM recsync.job");
    assert_eq!(at, "03:30");
}

#[test]
fn what_was_due_while_the_server_was_down_is_done_once_it_is_up() {
    let api = Api::start();
    let cluster = Cluster::start(&[]);
    let mut db = items_in(cluster.database(), &api, "schedule => 'daily'");
    db.run("INSERT INTO item VALUES (1, 'one'), (2, 'two')");
    wait_until_jobs(&mut db, 2);
    db.run("UPDATE item SET title = 'one again' WHERE id = 1");
    db.run("UPDATE recsync.job SET available_at = now() - interval '3 days'");
    cluster.kill9_all();
    cluster.start_again();
    db.reconnect();
    wait_until(PATIENCE, "both are embedded", || stored(&mut db) == 2);
    assert_eq!(api.texts().len(), 2, "once, however many times have passed");
    db.assert_items_in_step(&api);
}

#[test]
fn run_leaves_rows_that_fail_for_later_and_says_when_the_provider_is_down() {
    let api = Api::start();
    let mut db = items(&api, "schedule => 'daily'");
    api.refuse_texts_with("cursed", 418);
    db.run("INSERT INTO item VALUES (1, 'cursed'), (2, 'two')");
    wait_until_jobs(&mut db, 2);
    assert_eq!(counts(&run(&mut db))[1..], [1, 0, 0, 1, 0]);
    // To be tried again, as it may have been by now: it has as many attempts as requests by itself.
    wait_until(PATIENCE, "each attempt counts once", || {
        let left: Vec<i32> = db.column("SELECT attempt FROM recsync.job");
        let requests = api.requests();
        let alone = requests.iter().filter(|one| one.inputs == ["cursed"]);
        left == [alone.count() as i32]
    });
    api.refuse_nothing();
    api.down();
    db.run("INSERT INTO item VALUES (3, 'three')");
    let error = db.refused("SELECT recsync.run('item_embedding')");
    assert_eq!(error.code().code(), "38000");
    api.up();
    db.settle_all(&api);
}

impl Database<'_> {
    fn settle_all(&mut self, api: &Api) {
        run(self);
        self.settle("item_embedding");
        self.assert_items_in_step(api);
    }
}

#[test]
fn run_is_for_the_owner_outside_of_a_transaction_with_changes_of_its_own() {
    let api = Api::start();
    let mut db = items(&api, "schedule => 'daily'");
    db.run("DROP ROLE IF EXISTS run_stranger; CREATE ROLE run_stranger LOGIN");
    let error = db
        .connect_as("run_stranger")
        .refused("SELECT recsync.run('public.item_embedding')");
    assert_eq!(error.code().code(), "42501");
    let error = db
        .refused("BEGIN; INSERT INTO item VALUES (1, 'one'); SELECT recsync.run('item_embedding')");
    assert_eq!(error.code().code(), "25001");
    db.run("ROLLBACK; SELECT recsync.pause('item_embedding')");
    let error = db.refused("SELECT recsync.run('item_embedding')");
    assert_eq!(error.code().code(), "55000");
    assert_eq!(
        db.refused("SELECT recsync.run('nothing')").code().code(),
        "42704"
    );
}

#[test]
fn an_impossible_schedule_is_refused_with_the_valid_ones() {
    let api = Api::start();
    let mut db = shared().database();
    db.server("api", &api, "");
    db.run("CREATE TABLE item (id int PRIMARY KEY, title text)");
    for arguments in [
        "schedule => 'sometimes'",
        "schedule => '61 * * * *'",
        "schedule => '0 0 30 2 *'",
        "schedule => '10 ms'",
        "schedule => 'hourly', debounce => '1 s'",
        "debounce => '2 s', max_delay => '1 s'",
        "debounce => '-2 s'",
    ] {
        let error = db.refused(&format!(
            "SELECT recsync.create_pipeline('e', 'item', columns => '{{title}}', server => 'api', {arguments})"
        ));
        assert_eq!(error.code().code(), "22023", "{arguments}");
        assert!(error.hint().is_some(), "{arguments}");
    }
    let create = |more: &str| {
        format!(
            "SELECT recsync.create_pipeline('e', 'item', columns => '{{title}}', server => 'api', if_not_exists => true, {more})"
        )
    };
    db.run(&create("schedule => '15 minutes'"));
    db.run(&create("schedule => '15 minutes'"));
    let error = db.refused(&create("schedule => 'hourly'"));
    assert!(error.hint().unwrap().contains("schedule (is 15 minutes"));
}
