//! What a provider's limits make of the requests: their size, their number at a time, their distance. Of invariant 9:
//! limits are obeyed by all threads at once and charge no attempt.

use std::time::Duration;

use crate::support::{Api, Sql, shared};

#[test]
fn request_holds_no_more_tokens_than_the_server_takes() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, "max_batch_tokens '20'");
    // Four tokens each, and one that is too large by itself.
    db.run("INSERT INTO item SELECT i, 'one two three ' || i FROM generate_series(1, 100) i");
    db.run("INSERT INTO item SELECT 101, string_agg('word', ' ') FROM generate_series(1, 60)");
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
    let requests = api.requests();
    let sizes: Vec<usize> = requests
        .iter()
        .map(|request| request.inputs.len())
        .collect();
    let most = sizes.iter().max().copied();
    assert!((Some(2)..=Some(5)).contains(&most), "{sizes:?}");
    let large = requests
        .iter()
        .find(|request| request.inputs.iter().any(|input| input.len() > 100));
    assert_eq!(large.unwrap().inputs.len(), 1, "it goes alone");
}

#[test]
fn provider_that_announces_that_its_limit_is_reached_is_left_alone_until_it_is_reset() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, "max_batch_inputs '1'");
    api.announce(&[
        ("x-ratelimit-remaining-requests", "0"),
        ("x-ratelimit-reset-requests", "700ms"),
    ]);
    db.run("INSERT INTO item VALUES (1, 'first')");
    db.settle("item_embedding");
    api.announce(&[]);
    db.run("INSERT INTO item VALUES (2, 'second'), (3, 'third')");
    db.settle("item_embedding");
    let requests = api.requests();
    let pause = requests[1].at - requests[0].at;
    assert!(pause >= Duration::from_millis(700), "asked after {pause:?}");
    assert_eq!(requests.len(), 3, "nothing was refused or sent twice");
    db.assert_items_in_step(&api);
}

#[test]
fn provider_that_fails_gets_half_as_many_requests_at_a_time() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, "max_batch_inputs '1', max_concurrency '8'");
    api.fail_next(1, 503, None);
    db.run("INSERT INTO item VALUES (0, 'row 0')");
    db.settle("item_embedding");
    api.hold();
    db.run("INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 100) i");
    api.wait_until_held(4);
    db.pause(Duration::from_millis(300));
    assert_eq!(api.held(), 4, "requests in flight");
    api.release();
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM recsync.dead_letter"),
        0,
        "the provider's failure is no row's"
    );
}

#[test]
fn batch_that_times_out_is_halved_and_its_size_remembered() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(
        &api,
        "max_batch_inputs '16', max_concurrency '1', max_attempts '1', read_timeout '300ms'",
    );
    api.slow_above(4, Duration::from_secs(1));
    db.run("INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 16) i");
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
    let sizes = |from: usize| -> Vec<usize> {
        let requests = api.requests();
        let sizes = requests.iter().skip(from);
        sizes.map(|request| request.inputs.len()).collect()
    };
    assert_eq!(sizes(0), [16, 8, 4, 4, 4, 4], "halved until it is in time");
    db.run("INSERT INTO item SELECT i, 'row ' || i FROM generate_series(17, 32) i");
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
    assert_eq!(sizes(6), [4; 4], "and not tried again with the next ones");
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM recsync.dead_letter"),
        0,
        "no row is charged"
    );
}

#[test]
fn provider_that_fails_otherwise_gets_batches_as_large_as_before() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, "max_batch_inputs '16', max_concurrency '1'");
    api.fail_next(1, 429, None);
    db.run("INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 16) i");
    db.settle("item_embedding");
    let requests = api.requests();
    let sizes: Vec<usize> = requests.iter().map(|r| r.inputs.len()).collect();
    assert_eq!(sizes, [16, 16]);
}

#[test]
fn another_api_is_spoken_by_its_name_and_a_known_model_brings_the_rest() {
    let api = Api::with_dimensions(1_024);
    let mut db = shared().database();
    db.run(&format!(
        "CREATE SERVER api FOREIGN DATA WRAPPER recsync OPTIONS (api 'voyage', model 'voyage-3.5', url '{}', api_key_env 'TEST_API_KEY')",
        api.url()
    ));
    db.run("CREATE TABLE item (id int PRIMARY KEY, title text)");
    db.pipeline("item_embedding", "item");
    db.run("INSERT INTO item VALUES (1, 'one'), (2, 'two')");
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
    assert_eq!(api.requests()[0].body["input_type"], "document");
    db.run("SELECT recsync.embed('item_embedding', 'a question')");
    assert_eq!(api.requests().last().unwrap().body["input_type"], "query");
    db.run("DROP ROLE IF EXISTS limits_reader; CREATE ROLE limits_reader LOGIN");
    let dimensions: i32 = db
        .connect_as("limits_reader")
        .one("SELECT dimensions FROM recsync.presets WHERE model = 'voyage-3.5' AND api = 'voyage' AND as_of IS NOT NULL");
    assert_eq!(dimensions, 1_024);
}
