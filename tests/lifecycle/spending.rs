//! recsync.usage is what the provider has counted, and what it did not have to count; it is there with the vectors,
//! survives what it was spent for, and does not grow.

use std::time::Duration;

use crate::support::{
    Api, Cluster, Database, Fault, PATIENCE, Sql, eventually, shared, wait_until,
};

/// Columns of the usage of a pipeline, all days and models together.
fn usage(db: &mut Database, columns: &str) -> Vec<f64> {
    let columns: Vec<String> = columns
        .split(", ")
        .map(|column| format!("COALESCE(sum({column}), 0)::float8"))
        .collect();
    let sql = format!(
        "SELECT ARRAY[{}] FROM recsync.usage WHERE pipeline = 'public.item_embedding'",
        columns.join(", ")
    );
    db.one(&sql)
}

/// Waits for what is written by itself, since nothing is stored with it.
#[track_caller]
fn wait_for_usage(db: &mut Database, columns: &str, wanted: &[f64]) {
    let mut is = Vec::new();
    let came = eventually(PATIENCE, || {
        is = usage(db, columns);
        is == wanted
    });
    assert!(came, "{columns}: {is:?} is not {wanted:?}");
}

/// What the provider has seen: requests, inputs, bytes of the bodies, and the tokens by its own count.
fn asked(api: &Api) -> [f64; 4] {
    let requests = api.requests();
    let bytes: usize = requests
        .iter()
        .map(|request| {
            request
                .header("content-length")
                .unwrap()
                .parse::<usize>()
                .unwrap()
        })
        .sum();
    let texts = api.texts();
    let tokens: usize = texts.iter().map(|text| tokens(text)).sum();
    [requests.len(), texts.len(), bytes, tokens].map(|number| number as f64)
}

/// As the scripted API counts them.
fn tokens(text: &str) -> usize {
    text.len().div_ceil(4)
}

const SENT: &str = "requests, inputs, bytes, tokens";

#[test]
fn usage_is_what_the_provider_has_counted_at_the_price_of_the_time() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(
        &api,
        "price_per_million_tokens '0.5', currency 'EUR', max_batch_inputs '20'",
    );
    db.run("INSERT INTO item SELECT i, 'row number ' || i FROM generate_series(1, 130) i");
    db.settle("item_embedding");
    db.run("UPDATE item SET title = 'other text ' || id WHERE id <= 30");
    db.settle("item_embedding");
    let before = asked(&api);
    assert_eq!(usage(&mut db, SENT), before);
    let cost: String = db.one("SELECT cost::text FROM recsync.usage");
    assert_eq!(
        cost.parse::<f64>().unwrap(),
        before[3] * 0.5 / 1e6,
        "{cost}"
    );
    // Rows and model are the same, the price is another from now on.
    db.run("ALTER SERVER api OPTIONS (SET price_per_million_tokens '2')");
    db.run("UPDATE item SET title = 'third text ' || id WHERE id <= 10");
    db.settle("item_embedding");
    let after = asked(&api);
    assert_eq!(usage(&mut db, SENT), after);
    let cost = usage(&mut db, "cost")[0];
    let wanted = (before[3] * 0.5 + (after[3] - before[3]) * 2.0) / 1e6;
    assert!((cost - wanted).abs() < 1e-12, "{cost} is not {wanted}");
    let row: String = db.one("SELECT model || ' ' || currency || ' ' || (day = (now() AT TIME ZONE 'UTC')::date) || ' ' || server || ' ' || estimated_tokens FROM recsync.usage");
    assert_eq!(row, "test EUR true api 0");
}

#[test]
fn usage_is_there_with_the_vectors_and_not_before() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, "");
    db.run("INSERT INTO item VALUES (1, 'one')");
    db.settle("item_embedding");
    // A reader that stops the store in its transaction.
    let mut other = db.connect();
    other.run("BEGIN; LOCK TABLE item_embedding_g1 IN SHARE MODE");
    db.run("UPDATE item SET title = 'two' WHERE id = 1");
    db.wait_until_worker_waits_for_lock();
    assert_eq!(usage(&mut db, "requests"), [1.0]);
    other.run("COMMIT");
    wait_until(PATIENCE, "the vector is there", || {
        let vector: String = db.one("SELECT embedding::text FROM item_embedding");
        api.is_vector_of(&vector, "two")
    });
    assert_eq!(usage(&mut db, "requests"), [2.0], "in the same transaction");
}

#[test]
fn changes_that_come_together_unchanged_and_known_texts_are_saved() {
    let api = Api::start();
    let mut db = shared().database();
    db.server("api", &api, "price_per_million_tokens '1'");
    db.run("CREATE TABLE item (id int PRIMARY KEY, title text, note text)");
    db.run("SELECT recsync.create_pipeline('item_embedding', 'item', content => $$lower(title)$$, server => 'api', index => 'none', schedule => 'near_realtime')");
    db.settle("item_embedding"); // what is written from now on is no row from before it
    let first = "a text of some length, number ";
    db.run(&format!(
        "INSERT INTO item SELECT i, '{first}' || i FROM generate_series(100, 149) i"
    ));
    db.settle("item_embedding");
    const SAVED: &str = "coalesced, unchanged, known";
    assert_eq!(usage(&mut db, SAVED), [0.0; 3]);
    // Four changes of a row, one input.
    for n in 1..=4 {
        db.run(&format!(
            "UPDATE item SET title = 'The {n}th text of item ' || id WHERE id < 110"
        ));
    }
    db.settle("item_embedding");
    wait_for_usage(&mut db, SAVED, &[30.0, 0.0, 0.0]);
    let coalesced = 30 * tokens("the 4th text of item 100");
    close(usage(&mut db, "coalesced_tokens")[0], coalesced);
    // The text is the same in lower case.
    db.run("UPDATE item SET title = upper(title) WHERE id >= 140");
    db.settle("item_embedding");
    wait_for_usage(&mut db, SAVED, &[30.0, 10.0, 0.0]);
    let unchanged = 10 * tokens(&format!("{first}140"));
    close(usage(&mut db, "unchanged_tokens")[0], unchanged);
    // Taken back; and the text of another row.
    db.run(&format!(
        "UPDATE item SET title = '{first}' || id WHERE id < 110"
    ));
    db.run(&format!("INSERT INTO item VALUES (1, '{first}149')"));
    db.settle("item_embedding");
    wait_for_usage(&mut db, SAVED, &[30.0, 10.0, 11.0]);
    let known = 11 * tokens(&format!("{first}100"));
    close(usage(&mut db, "known_tokens")[0], known);
    let [saved, cost] = usage(&mut db, "saved_tokens, saved_cost")[..] else {
        panic!()
    };
    close(saved, coalesced + unchanged + known);
    assert!((cost - saved / 1e6).abs() < 1e-12, "{cost}");
    // Equal texts in one request.
    db.run("INSERT INTO item SELECT i, 'the same for all' FROM generate_series(2, 21) i");
    db.settle("item_embedding");
    wait_for_usage(&mut db, "known", &[30.0]);
    assert_eq!(api.times_asked("the same for all"), 1);
    // Not what the price changes, which is not even captured; nor what the worker looks at by itself.
    db.run("UPDATE item SET note = 'no text'");
    db.run("SELECT recsync.pause('item_embedding'); SELECT recsync.resume('item_embedding')");
    db.settle("item_embedding");
    assert_eq!(usage(&mut db, SAVED), [30.0, 10.0, 30.0]);
    assert_eq!(usage(&mut db, SENT), asked(&api));
}

/// Within 5%: what is not sent is estimated by the provider's count of what is.
#[track_caller]
fn close(is: f64, wanted: usize) {
    let wanted = wanted as f64;
    assert!(
        (is - wanted).abs() <= 0.05 * wanted,
        "{is} is not about {wanted}"
    );
}

#[test]
fn changes_that_wait_for_a_timetable_are_counted_in_the_job_table() {
    let api = Api::start();
    let mut db = shared().database();
    db.server("api", &api, "");
    db.run("CREATE TABLE item (id int PRIMARY KEY, title text)");
    db.run("SELECT recsync.create_pipeline('item_embedding', 'item', columns => '{title}', server => 'api', index => 'none', schedule => 'daily')");
    db.settle("item_embedding");
    for n in 1..=5 {
        db.run(&format!("INSERT INTO item SELECT i, 'text {n}' || i FROM generate_series(1, 10) i ON CONFLICT (id) DO UPDATE SET title = excluded.title"));
    }
    // Two changes of a row in one transaction.
    db.run("BEGIN; UPDATE item SET title = 'a' || id; UPDATE item SET title = 'b' || id; COMMIT");
    db.run("SELECT recsync.run('item_embedding')");
    wait_for_usage(&mut db, "inputs, coalesced", &[10.0, 60.0]);
}

#[test]
fn requests_whose_vectors_are_not_stored_are_counted_too() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, "max_attempts '1', max_batch_inputs '8'");
    // Refused: halved until one is alone.
    api.refuse_texts_with("bad", 400);
    db.run("INSERT INTO item SELECT i, CASE i WHEN 5 THEN 'bad' ELSE 'row ' || i END FROM generate_series(1, 8) i");
    db.settle("item_embedding");
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.dead_letter"), 1);
    let [requests, inputs, bytes, _] = asked(&api);
    wait_for_usage(
        &mut db,
        "requests, inputs, bytes",
        &[requests, inputs, bytes],
    );
    let paid: usize = (1..=8)
        .filter(|i| *i != 5)
        .map(|i| tokens(&format!("row {i}")))
        .sum();
    assert_eq!(
        usage(&mut db, "tokens"),
        [paid as f64],
        "what is refused costs nothing"
    );
    // Answered, counted, and not to be believed: that is paid for.
    api.play([Fault::Zeros]);
    db.run("UPDATE item SET title = 'zeros' WHERE id = 1");
    db.settle("item_embedding");
    let paid = paid + tokens("zeros");
    wait_for_usage(&mut db, "tokens", &[paid as f64]);
    // The row is gone when the answer comes.
    api.hold();
    db.run("UPDATE item SET title = 'too late' WHERE id = 2");
    api.wait_until_held(1);
    db.run("DELETE FROM item WHERE id = 2");
    api.release();
    db.settle("item_embedding");
    let paid = paid + tokens("too late");
    wait_for_usage(&mut db, "tokens", &[paid as f64]);
    // The pipeline is paused when the answer comes.
    api.hold();
    db.run("UPDATE item SET title = 'paused meanwhile' WHERE id = 3");
    api.wait_until_held(1);
    db.run("SELECT recsync.pause('item_embedding')");
    db.pause(Duration::from_millis(300));
    api.release();
    let paid = paid + tokens("paused meanwhile");
    wait_for_usage(&mut db, "tokens", &[paid as f64]);
    let [requests, inputs, bytes, _] = asked(&api);
    wait_for_usage(
        &mut db,
        "requests, inputs, bytes",
        &[requests, inputs, bytes],
    );
}

#[test]
fn where_the_reply_has_no_count_tokens_are_an_estimate_and_said_to_be() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, "");
    api.play_always(Some(Fault::NoUsage));
    db.run("INSERT INTO item VALUES (1, 'tiktoken is great!'), (2, 'hello world')");
    db.settle("item_embedding");
    assert_eq!(
        usage(&mut db, "inputs, tokens, estimated_tokens"),
        [2.0, 8.0, 8.0]
    );
    assert_eq!(
        db.one::<Option<String>>("SELECT cost::text FROM recsync.usage"),
        None,
        "no price is known"
    );
}

#[test]
fn queries_of_sessions_are_counted_for_their_pipeline_or_server() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, "price_per_million_tokens '3'");
    db.run("INSERT INTO item VALUES (1, 'one')");
    db.settle("item_embedding");
    db.run("SELECT recsync.search('item_embedding', 'a question of some length')");
    db.run("SELECT recsync.embed('item_embedding', 'another')");
    db.run("SELECT recsync.embed('item_embedding', 'another')");
    db.run("SELECT recsync.embed('api', 'by the name of the server')");
    wait_until(PATIENCE, "they are counted", || {
        db.one::<i64>("SELECT sum(queries)::bigint FROM recsync.usage") == 3
    });
    let own = tokens("one") + tokens("a question of some length") + tokens("another");
    assert_eq!(
        usage(&mut db, "requests, queries, inputs, tokens, cost"),
        [3.0, 2.0, 3.0, own as f64, own as f64 * 3.0 / 1e6]
    );
    let row =
        db.rows("SELECT requests, tokens, server, model FROM recsync.usage WHERE pipeline IS NULL");
    assert_eq!(row.len(), 1);
    let by_name: (i64, i64, String, String) =
        (row[0].get(0), row[0].get(1), row[0].get(2), row[0].get(3));
    assert_eq!(
        by_name,
        (
            1,
            tokens("by the name of the server") as i64,
            "api".into(),
            "test".into()
        )
    );
    // One that is given up by whoever asked, and answered.
    db.run("SET recsync.embed_timeout = '100ms'");
    api.hold();
    db.refused("SELECT recsync.embed('item_embedding', 'nobody waits for it')");
    api.release();
    wait_until(PATIENCE, "it is counted", || {
        db.run("SELECT recsync.wait_for('item_embedding')");
        usage(&mut db, "queries") == [3.0]
    });
}

#[test]
fn usage_follows_a_rename_survives_the_pipeline_and_is_seen_by_whom_it_concerns() {
    let api = Api::start();
    let mut db = shared().database();
    let (owner, stranger, monitor) = (
        format!("{}_owner", db.name),
        format!("{}_stranger", db.name),
        format!("{}_monitor", db.name),
    );
    for role in [&owner, &stranger, &monitor] {
        db.run(&format!("CREATE ROLE {role} LOGIN"));
    }
    db.run(&format!(
        "GRANT pg_monitor TO {monitor}; GRANT CREATE ON SCHEMA public TO {owner}"
    ));
    db.server("api", &api, "");
    db.run(&format!("GRANT USAGE ON FOREIGN SERVER api TO {owner}"));
    let mut session = db.connect_as(&owner);
    session.run("CREATE TABLE item (id int PRIMARY KEY, title text)");
    session.run("SELECT recsync.create_pipeline('item_embedding', 'item', columns => '{title}', server => 'api', index => 'none')");
    session.run("INSERT INTO item VALUES (1, 'one')");
    db.settle("item_embedding");
    const SEEN: &str = "SELECT pipeline FROM recsync.usage";
    for (role, sees) in [(&owner, 1), (&stranger, 0), (&monitor, 1)] {
        let seen: Vec<String> = db.connect_as(role).column(SEEN);
        assert_eq!(seen.len(), sees, "{role}");
    }
    let error = db
        .connect_as(&stranger)
        .refused("SELECT FROM recsync.usage_day");
    assert_eq!(error.code().code(), "42501");
    session.run("ALTER VIEW item_embedding RENAME TO renamed");
    assert_eq!(db.column::<String>(SEEN), ["public.renamed"]);
    session.run("SELECT recsync.drop_pipeline('renamed')");
    assert_eq!(db.column::<String>(SEEN), ["public.renamed"]);
    assert_eq!(db.connect_as(&monitor).column::<String>(SEEN).len(), 1);
    drop(session);
    db.run(&format!(
        "DROP OWNED BY {owner}, {monitor}; DROP ROLE {owner}, {stranger}, {monitor}"
    ));
}

#[test]
fn ledger_stays_small_while_a_snapshot_is_held_over_thousands_of_stores() {
    /// Stores after which what was appended is folded.
    const MOST_ROWS: i64 = 2_000;
    const PIPELINES: i64 = 20;
    let cluster = Cluster::start(&[("autovacuum", "off")]);
    let api = Api::start();
    let mut db = cluster.database();
    db.server(
        "api",
        &api,
        "price_per_million_tokens '1', max_concurrency '16'",
    );
    db.run(
        "CREATE TABLE item (id int PRIMARY KEY, title text); INSERT INTO item VALUES (1, 'one')",
    );
    for n in 1..=PIPELINES {
        db.pipeline(&format!("p{n}"), "item");
    }
    for n in 1..=PIPELINES {
        db.settle(&format!("p{n}"));
    }
    let mut holder = db.connect();
    holder.run("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM item");
    const REQUESTS: &str = "SELECT sum(requests)::bigint FROM recsync.usage";
    while db.one::<i64>(REQUESTS) < 2 * MOST_ROWS {
        db.run("DO $$ BEGIN FOR n IN 1..50 LOOP UPDATE item SET title = md5(random()::text); COMMIT; PERFORM pg_sleep(0.005); COMMIT; END LOOP; END $$");
    }
    const APPENDED: &str = "SELECT count(*) FROM recsync.usage_log";
    wait_until(PATIENCE, "it is folded under the snapshot", || {
        db.one::<i64>(APPENDED) < MOST_ROWS
    });
    let appended: i64 = db.one(APPENDED);
    let days: i64 = db.one("SELECT count(*) FROM recsync.usage_day");
    let bytes: Vec<i64> = db.column(
        "SELECT pg_relation_size('recsync.' || name) FROM unnest(ARRAY['usage_log', 'usage_day']) name",
    );
    println!("{appended} rows appended, {days} days, {bytes:?} bytes");
    assert_eq!(days, PIPELINES);
    assert!(bytes[0] < 2_000_000 && bytes[1] <= 65_536, "{bytes:?}");
    holder.run("COMMIT");
    // What is left is folded by the next worker, and nothing is lost on the way.
    for n in 1..=PIPELINES {
        db.settle(&format!("p{n}"));
    }
    let before: String =
        db.one("SELECT sum(requests) || ' ' || sum(tokens) || ' ' || sum(cost) FROM recsync.usage");
    assert!(
        before.starts_with(&format!("{} ", api.requests_made())),
        "{before}"
    );
    let worker = db.worker();
    db.run(&format!("SELECT pg_terminate_backend({worker})"));
    wait_until(PATIENCE, "it is folded", || {
        db.one::<i64>("SELECT count(*) FROM recsync.usage_log") == 0
    });
    let after: String =
        db.one("SELECT sum(requests) || ' ' || sum(tokens) || ' ' || sum(cost) FROM recsync.usage");
    assert_eq!(before, after);
    // And so are the months, which are the days added up.
    const SUMS: &str = "concat_ws(' ', sum(tokens), sum(cost), sum";
    let [of_days, of_months]: [String; 2] = [
        format!("SELECT {SUMS}(coalesced_tokens + unchanged_tokens + known_tokens), sum(coalesced_cost + unchanged_cost + known_cost)) FROM recsync.usage_day"),
        format!("SELECT {SUMS}(spared_tokens), sum(spared_cost)) FROM recsync.usage_month"),
    ]
    .map(|sums| db.one(&sums));
    assert_eq!(of_days, of_months);
    let differs: i64 = db.one(
        "SELECT count(*) FROM recsync.status s
          CROSS JOIN LATERAL (SELECT sum(tokens)::bigint AS tokens, trim_scale(sum(cost)) AS cost FROM recsync.usage WHERE pipeline = s.name) u
          WHERE s.month_tokens IS DISTINCT FROM u.tokens OR s.month_cost IS DISTINCT FROM u.cost",
    );
    assert_eq!(differs, 0);
}

#[test]
fn usage_of_a_thousand_pipelines_is_read_at_once() {
    let mut db = shared().database();
    db.run("INSERT INTO recsync.usage_day SELECT p, 'api', 'm', 'USD', (now() AT TIME ZONE 'UTC')::date - d, 1, 0, 1, 1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0
              FROM generate_series(1, 1000) p, generate_series(0, 29) d");
    db.run(
        "INSERT INTO recsync.usage_name SELECT p, 'public.p' || p FROM generate_series(1, 1000) p",
    );
    db.run("INSERT INTO recsync.usage_log SELECT 1 + n % 1000, 'api', 'm', 1, 'USD', (now() AT TIME ZONE 'UTC')::date, 1, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0
              FROM generate_series(1, 5000) n");
    db.run("ANALYZE recsync.usage_day; ANALYZE recsync.usage_log; ANALYZE recsync.usage_name");
    let mut times: Vec<Duration> = (0..9)
        .map(|_| {
            let started = std::time::Instant::now();
            let rows: Vec<i64> = db.column(
                "SELECT requests FROM recsync.usage WHERE day = (now() AT TIME ZONE 'UTC')::date",
            );
            assert_eq!(rows.len(), 1_000);
            started.elapsed()
        })
        .collect();
    times.sort();
    println!("{times:?}");
    // The fastest of them, a debug build's, with other tests beside: one look for each pipeline would take seconds.
    assert!(times[0] < Duration::from_millis(150), "{times:?}");
    // Who asks for one pipeline reads no other's days.
    let read = |db: &mut Database| -> i64 {
        db.run("SELECT pg_stat_force_next_flush()");
        db.one("SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables WHERE relid = 'recsync.usage_day'::regclass")
    };
    let before = read(&mut db);
    let of_one: i64 =
        db.one("SELECT sum(requests)::bigint FROM recsync.usage WHERE pipeline = 'public.p7'");
    assert_eq!(of_one, 30 + 5);
    let after = read(&mut db);
    assert!(after - before < 100, "{} rows were read", after - before);
}
