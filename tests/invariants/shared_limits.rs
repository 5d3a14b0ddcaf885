//! Invariant 9 where several databases and sessions use one account: its limits hold for all of them together, what the
//! provider asks of one is obeyed by all, and what one session has asked for another need not.

use std::time::{Duration, Instant};

use crate::support::{Api, Database, PATIENCE, Sql, shared, wait_until};

/// Two databases with a pipeline of the same account.
fn two_databases(api: &Api, options: &str) -> [Database<'static>; 2] {
    [(); 2].map(|()| {
        let mut db = shared().database();
        db.items(api, options);
        db
    })
}

/// That the requests from `first` on, each of `size`, came no faster than `burst` at once and then `a_second`. Those
/// that came together may have overtaken each other on their way by a little.
#[track_caller]
fn assert_paced(api: &Api, size: impl Fn(&[String]) -> usize, burst: usize, a_second: f64) {
    let requests = api.requests();
    let sizes: Vec<usize> = requests.iter().map(|r| size(&r.inputs)).collect();
    for first in 0..requests.len() {
        for last in first..requests.len() {
            let time = requests[last]
                .at
                .saturating_duration_since(requests[first].at);
            let sum: usize = sizes[first..=last].iter().sum();
            let most = burst as f64 + a_second * (time.as_secs_f64() + 0.1);
            assert!(
                sum as f64 <= most,
                "{sum} within {time:?}, {most} at the most: {sizes:?}"
            );
        }
    }
}

#[test]
fn two_databases_and_a_session_together_keep_requests_per_minute() {
    let api = Api::start();
    let limits = "requests_per_minute '600', max_batch_inputs '1', max_concurrency '8'";
    let [mut one, mut other] = two_databases(&api, limits);
    for db in [&mut one, &mut other] {
        db.run("INSERT INTO item SELECT i, current_database() || i FROM generate_series(1, 40) i");
    }
    let mut session = one.connect();
    for number in 0..10 {
        session.run(&format!("SELECT recsync.embed('api', 'question {number}')"));
    }
    for db in [&mut one, &mut other] {
        db.settle("item_embedding");
        db.assert_items_in_step(&api);
        assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.dead_letter"), 0);
    }
    assert_eq!(
        api.requests().len(),
        90,
        "nothing was refused or sent twice"
    );
    // A tenth of the limit at once, and so much less each second that a minute has not more than the limit.
    assert_paced(&api, |_| 1, 60, 541.0 / 61.0);
}

#[test]
fn two_databases_together_keep_tokens_per_minute_as_the_provider_counts_them() {
    let api = Api::start();
    let limits = "tokens_per_minute '6000', max_batch_inputs '1', max_concurrency '1'";
    let [mut one, mut other] = two_databases(&api, limits);
    // The estimate takes the spaces for one token, the scripted provider counts four bytes as one.
    for db in [&mut one, &mut other] {
        db.run(
            "INSERT INTO item SELECT i, 'a' || repeat(' ', 96) || i FROM generate_series(1, 18) i",
        );
    }
    for db in [&mut one, &mut other] {
        db.settle("item_embedding");
        db.assert_items_in_step(&api);
    }
    let counted = |inputs: &[String]| inputs.iter().map(|i| i.len().div_ceil(4)).sum::<usize>();
    let total: usize = api.requests().iter().map(|r| counted(&r.inputs)).sum();
    assert!(total > 880, "{total} tokens are more than go at once");
    // One request of each database is on its way before its count is known.
    assert_paced(&api, counted, 600 + 2 * 25, 5_401.0 / 61.0);
}

#[test]
fn tokens_count_before_a_request_is_answered() {
    let api = Api::start();
    let mut db = shared().database();
    // 45 at once by workers, and 9 a second.
    db.items(&api, "tokens_per_minute '600', max_batch_inputs '1'");
    api.hold();
    db.run("INSERT INTO item SELECT i, repeat('word ', 38) || i FROM generate_series(1, 2) i");
    api.wait_until_held(1);
    db.pause(Duration::from_millis(300));
    assert_eq!(api.held(), 1, "requests in flight");
    api.release();
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
    let requests = api.requests();
    let pause = requests[1].at - requests[0].at;
    assert!(pause >= Duration::from_secs(3), "asked after {pause:?}");
}

#[test]
fn text_with_more_tokens_than_a_minute_allows_goes_and_has_the_minute_to_itself() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, "tokens_per_minute '40'");
    db.run("INSERT INTO item VALUES (1, repeat('word ', 60))");
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
    db.run("INSERT INTO item VALUES (2, 'short')");
    wait_until(PATIENCE, "the next one waits", || {
        db.one("SELECT count(*) = 1 FROM recsync.job WHERE leased_until > now()")
    });
    let error = db.refused("SELECT recsync.embed('api', 'a question')");
    assert_eq!(error.code().code(), "53400", "{error:?}");
    assert_eq!(api.requests().len(), 1);
}

#[test]
fn rows_that_wait_for_a_limit_are_charged_nothing_and_hold_up_neither_the_log_nor_other_servers() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(
        &api,
        "requests_per_minute '10', max_attempts '1', max_batch_inputs '1'",
    );
    db.run("INSERT INTO item VALUES (1, 'first')");
    db.settle("item_embedding");
    // The next one may go after six seconds.
    db.run("INSERT INTO item VALUES (2, 'second')");
    let asked = Instant::now();
    wait_until(PATIENCE, "it becomes a job under a lease", || {
        db.one("SELECT count(*) = 1 FROM recsync.job WHERE attempt = 0 AND leased_until > now()")
    });
    assert!(asked.elapsed() < Duration::from_secs(3));
    assert_eq!(api.requests().len(), 1);
    let free = Api::start();
    db.server("free", &free, "");
    db.run("CREATE TABLE film (id int PRIMARY KEY, title text)");
    db.run("SELECT recsync.create_pipeline('film_embedding', 'film', columns => '{title}', server => 'free', index => 'none')");
    db.run("INSERT INTO film VALUES (1, 'a film')");
    db.settle("film_embedding");
    assert!(asked.elapsed() < Duration::from_secs(5));
    assert_eq!(api.requests().len(), 1);
    db.settle("item_embedding");
    let requests = api.requests();
    let pause = requests[1].at - requests[0].at;
    assert!(pause >= Duration::from_secs(6), "asked after {pause:?}");
    assert!(pause < Duration::from_secs(8), "asked after {pause:?}");
    db.assert_items_in_step(&api);
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.dead_letter"), 0);
}

#[test]
fn what_waits_for_a_limit_goes_together_when_it_may() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, "requests_per_minute '20'");
    for id in 1..=3 {
        db.run(&format!("INSERT INTO item VALUES ({id}, 'row {id}')"));
        if id <= 2 {
            db.settle("item_embedding");
        }
    }
    for id in 4..=30 {
        db.run(&format!("INSERT INTO item VALUES ({id}, 'row {id}')"));
    }
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
    let requests = api.requests();
    let sizes: Vec<usize> = requests.iter().map(|r| r.inputs.len()).collect();
    assert_eq!(sizes, [1, 1, 28], "a request is for all that is there");
}

#[test]
fn retry_after_given_to_one_databases_worker_is_obeyed_by_anothers_and_by_sessions() {
    let api = Api::start();
    let [mut one, mut other] = two_databases(&api, "max_attempts '1'");
    api.fail_next(1, 429, Some(3));
    one.run("INSERT INTO item VALUES (1, 'one')");
    wait_until(PATIENCE, "the answer is there", || {
        one.one("SELECT bool_or(last_error IS NOT NULL) FROM recsync.status WHERE name LIKE '%item_embedding'")
    });
    other.run("INSERT INTO item VALUES (1, 'other')");
    let mut session = other.connect();
    session.run("SET recsync.embed_timeout = '500 ms'");
    let started = Instant::now();
    let error = session.refused("SELECT recsync.embed('api', 'a question')");
    assert!(started.elapsed() < Duration::from_millis(400), "at once");
    assert_eq!(error.code().code(), "53400", "{error:?}");
    assert!(
        error.message().contains("asked to be left alone"),
        "{error:?}"
    );
    assert!(error.hint().unwrap().contains("Try again in"), "{error:?}");
    session.run("SET recsync.embed_timeout = '10 s'");
    session.run("SELECT recsync.embed('api', 'a question')");
    for db in [&mut one, &mut other] {
        db.settle("item_embedding");
        db.assert_items_in_step(&api);
        assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.dead_letter"), 0);
    }
    let requests = api.requests();
    assert_eq!(requests.len(), 4, "the refused one, and one for each text");
    let pause = requests[1].at - requests[0].at;
    assert!(
        pause >= Duration::from_millis(2_900),
        "asked after {pause:?}"
    );
}

#[test]
fn worker_obeys_what_a_session_was_told() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, "");
    api.fail_next(1, 503, Some(2));
    let error = db.refused("SELECT recsync.embed('api', 'a question')");
    assert_eq!(error.code().code(), "38000");
    db.run("INSERT INTO item VALUES (1, 'one')");
    db.settle("item_embedding");
    let requests = api.requests();
    let pause = requests[1].at - requests[0].at;
    assert!(
        pause >= Duration::from_millis(1_900),
        "asked after {pause:?}"
    );
}

#[test]
fn embed_waits_for_the_limit_if_there_is_time_and_says_at_once_if_there_is_not() {
    let api = Api::start();
    let mut db = shared().database();
    db.server("api", &api, "requests_per_minute '30'");
    for number in 0..4 {
        db.run(&format!("SELECT recsync.embed('api', 'text {number}')"));
    }
    let requests = api.requests();
    let pause = requests[3].at - requests[2].at;
    assert!(pause >= Duration::from_secs(2), "asked after {pause:?}");
    db.run("SET recsync.embed_timeout = '1 s'");
    let started = Instant::now();
    let error = db.refused("SELECT recsync.embed('api', 'text 4')");
    assert!(started.elapsed() < Duration::from_millis(700), "at once");
    assert_eq!(error.code().code(), "53400", "{error:?}");
    assert!(error.message().contains("limit a minute"), "{error:?}");
    assert!(
        error.hint().unwrap().contains("requests_per_minute"),
        "{error:?}"
    );
    // One that is cancelled while it waits has not used its turn up.
    db.run("SET recsync.embed_timeout = '60 s'; SET statement_timeout = '200 ms'");
    for _ in 0..5 {
        let error = db.refused("SELECT recsync.embed('api', 'text 4')");
        assert_eq!(error.code().code(), "57014", "{error:?}");
    }
    db.run("RESET statement_timeout");
    db.run("SELECT recsync.embed('api', 'text 4')");
    let requests = api.requests();
    let pause = requests[4].at - requests[3].at;
    assert!(pause < Duration::from_secs(4), "asked after {pause:?}");
    assert_eq!(requests.len(), 5);
}

#[test]
fn text_that_one_session_has_asked_for_costs_another_no_request() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, "query_prefix 'query: '");
    let ask = "SELECT recsync.embed('item_embedding', 'common question')::text";
    let first: String = db.one(ask);
    let second: String = db.connect().one(ask);
    assert_eq!(first, second);
    assert!(api.is_vector_of(&second, "query: common question"));
    db.connect()
        .run("SELECT * FROM recsync.search('item_embedding', 'common question')");
    assert_eq!(api.requests().len(), 1);
    // Another purpose or another option makes another vector.
    let document = "SELECT recsync.embed('api', 'common question', purpose => 'document')::text";
    let document: String = db.connect().one(document);
    assert!(api.is_vector_of(&document, "common question"));
    assert_eq!(api.requests().len(), 2);
    db.run("ALTER SERVER api OPTIONS (SET query_prefix 'q: ')");
    let third: String = db.connect().one(ask);
    assert!(api.is_vector_of(&third, "q: common question"));
    assert_eq!(api.requests().len(), 3);
    // It is for those who may use the server.
    db.run("DROP ROLE IF EXISTS shared_limits_reader; CREATE ROLE shared_limits_reader LOGIN");
    let mut stranger = db.connect_as("shared_limits_reader");
    let error = stranger.refused("SELECT recsync.embed('api', 'common question')");
    assert_eq!(error.code().code(), "42501", "{error:?}");
}
