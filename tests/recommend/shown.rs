//! log_shown and attribution: what was shown, and what has come of it. Counts are compared with what the tests did.

use crate::shop::{items, shop, views};
use crate::support::{Database, Sql, shared};

/// Tables of the user's own that say what was shown.
mod own;

/// Who may log and read it, how long it is kept, and where it goes.
mod kept;

/// Reasons, and the source that each names; of one without, none.
const REASONS: [(&str, &str); 8] = [
    (r#"{"popular": 1, "neighbours": 3}"#, "neighbours"),
    (r#"{"ease": 400, "neighbours": 1}"#, "neighbours"),
    (r#"{"ease": 2, "als": 1, "popular": 1}"#, "ease"),
    (r#"{"explored": 1, "latest": 1}"#, "explored"),
    (r#"{"rest": 12}"#, "rest"),
    (
        r#"{"latest": 7, "boost": 2, "scores": {"latest": 0.1}, "because": []}"#,
        "latest",
    ),
    (r#"{"something": 1}"#, ""),
    ("null", ""),
];

/// These items of the user's list have been shown at that place, `ago`.
fn show_ago(db: &mut Database, user: &str, place: &str, items: &[i32], ago: &str) {
    db.run(&format!(
        "SELECT recsync.log_shown(list_id, '{place}', ARRAY{items:?}::text[], shown_at => now() - interval '{ago}')
           FROM shop_recommend('{user}', k => 1)"
    ));
}

fn show(db: &mut Database, user: &str, place: &str, items: &[i32]) {
    show_ago(db, user, place, items, "0");
}

/// What has come of it, a text a row: placement, source, shown, attributable, clicked, converted.
fn counts(db: &mut Database, of: &str) -> Vec<String> {
    db.column(&format!(
        "SELECT concat_ws(' ', placement, source, shown, COALESCE(attributable::text, '?'), COALESCE(clicked::text, '?'), COALESCE(converted::text, '?')) FROM {of}"
    ))
}

/// An interaction of that kind, `ago`.
fn event_ago(db: &mut Database, user: &str, product: i32, kind: &str, ago: &str) {
    db.run(&format!(
        "INSERT INTO event (user_id, product_id, kind, created_at) VALUES ('{user}', {product}, '{kind}', now() - interval '{ago}')"
    ));
}

#[test]
fn what_was_shown_is_counted_with_what_its_user_has_done_with_it_since() {
    let mut db = shop(shared(), 20);
    views(&mut db, "ann", &[1, 2]); // before anything was shown
    db.settle("shop");
    show(&mut db, "ann", "home", &[1, 2, 3, 4, 5]);
    show(&mut db, "bob", "home", &[1, 2]);
    show(&mut db, "ann", "cart", &[7, 8, 9]);
    show(&mut db, "cid", "mail", &[3]);
    for (user, product, kind) in [
        ("ann", 3, "view"),
        ("ann", 3, "view"), // once more
        ("ann", 4, "buy"),
        ("ann", 7, "buy"),
        ("ann", 7, "return"),
        ("ann", 8, "return"), // counts less than nothing
        ("ann", 20, "buy"),   // was not shown
        ("bob", 3, "buy"),    // was shown to others
    ] {
        event_ago(&mut db, user, product, kind, "0");
    }
    db.settle("shop");
    let expected = ["cart 3 3 1 1", "home 7 7 2 1", "mail 1 1 0 0"];
    assert_eq!(counts(&mut db, "recsync.attribution"), expected);
    assert_eq!(counts(&mut db, "recsync.attribution('shop')"), expected);
    assert_eq!(
        db.column::<String>("SELECT DISTINCT recommender FROM recsync.attribution"),
        ["public.shop"]
    );
    // It follows what is corrected.
    db.run("DELETE FROM event WHERE product_id = 4; UPDATE event SET user_id = 'bob' WHERE product_id = 3 AND user_id = 'ann'");
    db.settle("shop");
    assert_eq!(
        counts(&mut db, "recsync.attribution"),
        ["cart 3 3 1 1", "home 7 7 0 0", "mail 1 1 0 0"]
    );
}

#[test]
fn an_interaction_counts_once_for_the_last_showing_before_it_and_not_for_ever() {
    let mut db = shop(shared(), 5);
    db.settle("shop");
    show_ago(&mut db, "ann", "old", &[1, 2], "9 days");
    show_ago(&mut db, "ann", "first", &[1, 2, 3], "5 days");
    show_ago(&mut db, "ann", "second", &[1, 2], "2 days");
    // In one transaction at two places: one of them.
    db.run("BEGIN");
    show_ago(&mut db, "bob", "left", &[4], "2 days");
    show_ago(&mut db, "bob", "right", &[4], "2 days");
    db.run("COMMIT");
    for (user, product, kind, ago) in [
        ("ann", 1, "view", "4 days"), // of the first
        ("ann", 1, "buy", "1 day"),   // of the second
        ("ann", 2, "buy", "1 hour"),
        ("ann", 3, "view", "1 hour"),
        ("bob", 4, "view", "1 day"),
    ] {
        event_ago(&mut db, user, product, kind, ago);
    }
    db.settle("shop");
    assert_eq!(
        counts(&mut db, "recsync.attribution"),
        [
            "first 3 3 2 0",
            "left 1 1 0 0",
            "old 2 2 0 0",
            "right 1 1 1 0",
            "second 2 2 2 2"
        ]
    );
    let of = |db: &mut Database, arguments: &str| {
        counts(db, &format!("recsync.attribution('shop', {arguments})"))
    };
    assert_eq!(
        of(
            &mut db,
            "within => '25 hours', until => now() - interval '3 days'"
        ),
        ["first 3 3 1 0", "old 2 2 0 0"]
    );
    assert_eq!(
        of(&mut db, "since => now() - interval '3 days'")
            .last()
            .unwrap(),
        "second 2 2 2 2"
    );
    assert_eq!(of(&mut db, "since => now()"), Vec::<String>::new());
    assert_eq!(
        of(
            &mut db,
            "within => '1 day', until => now() - interval '5 days'"
        ),
        ["first 3 3 0 0", "old 2 2 0 0"]
    );
    for within in ["0", "-1 day"] {
        let error = db.refused(&format!(
            "SELECT FROM recsync.attribution(within => '{within}')"
        ));
        assert_eq!(error.code().code(), "22023");
    }
}

#[test]
fn the_source_is_the_one_that_has_added_most_by_the_reason() {
    let mut db = shop(shared(), 9);
    db.settle("shop");
    let given: Vec<&str> = REASONS.iter().map(|(reason, _)| *reason).collect();
    db.run(&format!(
        "SELECT recsync.log_shown(list_id, NULL, '{{1,2,3,4,5,6,7,8}}', '[{}]') FROM shop_recommend('ann', k => 1)",
        given.join(",")
    ));
    let sources: Vec<String> =
        db.column("SELECT COALESCE(source, '') FROM recsync.shown ORDER BY place");
    let expected: Vec<&str> = REASONS.iter().map(|(_, source)| *source).collect();
    assert_eq!(sources, expected);
    event_ago(&mut db, "ann", 2, "view", "0");
    db.settle("shop");
    assert_eq!(
        counts(&mut db, "recsync.attribution"),
        [
            "ease 1 1 0 0",
            "explored 1 1 0 0",
            "latest 1 1 0 0",
            "neighbours 2 2 1 0",
            "rest 1 1 0 0",
            "2 2 0 0"
        ]
    );
}

#[test]
fn a_list_is_logged_as_it_was_recommended_alone_or_in_a_batch() {
    let mut db = shop(shared(), 30);
    views(&mut db, "ann", &[1, 2]);
    views(&mut db, "bob", &[1, 3]);
    db.settle("shop");
    db.run(
        "SELECT recsync.log_shown(list_id, 'home', array_agg(id::text ORDER BY rank), jsonb_agg(reason ORDER BY rank))
           FROM shop_recommend('ann', k => 8, explain => true, explore => 0.2) GROUP BY list_id",
    );
    db.run(
        "SELECT recsync.log_shown(list_id, 'mail', array_agg(item ORDER BY rank), jsonb_agg(reason ORDER BY rank))
           FROM recsync.recommend_batch('shop', $$ VALUES ('ann'), ('bob'), (NULL) $$, k => 5) GROUP BY list_id",
    );
    let shown: Vec<i32> =
        db.column("SELECT item::int FROM recsync.shown WHERE placement = 'home' ORDER BY place");
    assert_eq!(
        shown,
        items(&mut db, "shop_recommend('ann', k => 8, explore => 0.2)")
    );
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM recsync.shown WHERE source IS NULL"),
        0
    );
    assert_eq!(
        db.one::<String>("SELECT string_agg(DISTINCT source, ' ') FROM recsync.shown WHERE item = '2' AND placement = 'mail'"),
        "neighbours popular" // bob's neighbour, nobody's most popular
    );
    event_ago(&mut db, "bob", 2, "buy", "0");
    db.settle("shop");
    let totals = "SELECT concat_ws(' ', placement, sum(shown), sum(attributable), sum(clicked), sum(converted)) FROM recsync.attribution GROUP BY placement ORDER BY placement";
    assert_eq!(
        db.column::<String>(totals),
        ["home 8 8 0 0", "mail 15 10 1 1"]
    );
}

#[test]
fn the_simple_call_counts_and_says_that_nothing_more_is_known() {
    let mut db = shop(shared(), 5);
    db.settle("shop");
    for list in ["shop_recommend('ann', k => 1)", "shop_recommend(k => 1)"] {
        db.run(&format!(
            "SELECT recsync.log_shown(list_id) FROM {list}; SELECT recsync.log_shown(list_id, 'home', '{{1,2}}') FROM {list};
             SELECT recsync.log_shown(list_id, 'home', '{{}}') FROM {list}"
        ));
    }
    views(&mut db, "ann", &[1]);
    db.settle("shop");
    assert_eq!(
        counts(&mut db, "recsync.attribution"),
        ["home 4 2 1 0", "2 0 0 0"]
    );
}

#[test]
fn two_recommenders_over_the_same_events_are_compared() {
    let mut db = shop(shared(), 9);
    db.run("SELECT recsync.create_recommender('other', 'product', 'event', collaborative => '{}')");
    db.settle("shop");
    db.settle("other");
    for (user, recommender) in [("ann", "shop"), ("bob", "other"), ("cid", "other")] {
        db.run(&format!(
            "SELECT recsync.log_shown(list_id, 'home', '{{1,2,3,4}}') FROM {recommender}_recommend('{user}', k => 1)"
        ));
        views(&mut db, user, &[4]);
    }
    views(&mut db, "bob", &[1, 2]);
    db.settle("shop");
    db.settle("other");
    let compared: Vec<String> = db.column(
        "SELECT concat_ws(' ', recommender, shown, clicked, converted) FROM recsync.attribution ORDER BY recommender",
    );
    // Of other, every event counts as seen.
    assert_eq!(compared, ["public.other 8 4 4", "public.shop 4 1 0"]);
    // One is renamed, the other goes, with what was shown of it.
    db.run("ALTER SCHEMA public RENAME TO market; SET search_path = market; SELECT recsync.drop_recommender('other')");
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.shown_log"), 1);
    assert_eq!(
        db.column::<String>("SELECT recommender || ' ' || clicked FROM recsync.attribution"),
        ["market.shop 1"]
    );
}

#[test]
fn a_list_is_its_users_however_their_key_and_the_items_are_written() {
    let mut db = shared().database();
    db.run(
        "CREATE TABLE film (id numeric PRIMARY KEY);
         CREATE TABLE rating (id int PRIMARY KEY, person uuid, film_id numeric REFERENCES film, at timestamptz DEFAULT clock_timestamp());
         INSERT INTO film SELECT generate_series(1, 5);
         SELECT recsync.create_recommender('cinema', 'film', 'rating', user_column => 'person')",
    );
    db.settle("cinema");
    let person = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11";
    let lists = [
        format!("cinema_recommend('{person}', k => 1)"),
        format!(
            "recsync.recommend('cinema', '{{{}}}'::text, k => 1)",
            person.to_uppercase()
        ),
        format!("recsync.recommend('cinema', '{person}'::uuid, k => 1)"),
    ];
    let ids: Vec<String> = lists
        .iter()
        .map(|list| db.one(&format!("SELECT list_id::text FROM {list}")))
        .collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    // It does not say who that is.
    assert!(!ids[0].contains("a0eebc99"));
    db.run(&format!(
        "SELECT recsync.log_shown('{}', 'a', '{{1e0, 2,03}}')",
        ids[1]
    ));
    db.run(&format!(
        "INSERT INTO rating VALUES (1, '{person}', 1), (2, '{person}', 3)"
    ));
    db.settle("cinema");
    assert_eq!(counts(&mut db, "recsync.attribution"), ["a 3 3 2 2"]);
}

#[test]
fn what_cannot_have_been_shown_is_refused_and_leaves_nothing() {
    let mut db = shop(shared(), 5);
    db.settle("shop");
    let list: String = db.one("SELECT list_id::text FROM shop_recommend('ann', k => 1)");
    let many = format!("array_fill('1'::text, ARRAY[{}])", 10_001);
    let long = "x".repeat(101);
    for (call, code, message) in [
        ("gen_random_uuid()".to_owned(), "22023", "list_id"),
        ("NULL".into(), "22023", "list_id"),
        (format!("'{list}', '{long}', '{{1}}'"), "22023", "placement"),
        (format!("'{list}', 'home', '{{1,NULL}}'"), "22023", "items"),
        (format!("'{list}', 'home', {many}"), "22023", "items"),
        (format!("'{list}', 'home', '{{1,two}}'"), "22P02", "two"),
        (
            format!("'{list}', 'home', '{{1,2}}', '[null]'"),
            "22023",
            "reasons",
        ),
        (
            format!("'{list}', 'home', '{{1}}', '{{\"popular\": 1}}'"),
            "22023",
            "reasons",
        ),
        (
            format!("'{list}', 'home', NULL, '[null]'"),
            "22023",
            "reasons",
        ),
    ] {
        let error = db.refused(&format!("SELECT recsync.log_shown({call})"));
        assert_eq!(error.code().code(), code, "{call}: {error:?}");
        assert!(error.message().contains(message), "{call}: {error:?}");
        assert!(
            code != "22023" || error.hint().is_some(),
            "{call}: {error:?}"
        );
    }
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.shown_log"), 0);
    // A time that is to come is now.
    db.run(&format!(
        "SELECT recsync.log_shown('{list}', shown_at => 'infinity')"
    ));
    assert!(db.one::<bool>("SELECT shown_at <= now() FROM recsync.shown"));
    db.run("SELECT recsync.drop_recommender('shop')");
    let error = db.refused(&format!("SELECT recsync.log_shown('{list}')"));
    assert_eq!(error.code().code(), "42704");
}
