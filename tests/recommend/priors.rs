//! users: what users are like, by the vectors of a pipeline over their table, counts where they have done little.

use crate::interests::{settle, with_server};
use crate::rights::role;
use crate::shop::{items, number, views};
use crate::support::{Cluster, Database, PATIENCE, Sql, shared, wait_until};

const TOPICS: i32 = 10;

/// SQL: a text of that topic.
fn text(topic: &str) -> String {
    format!(
        "(SELECT string_agg(md5(({topic})::text || '-' || w), ' ') FROM generate_series(1, 6) w)"
    )
}

/// Recommender `shop` over 100 products, each of the topic of its number's last digit, and customers ann, bob and eve, who
/// like topics 3, 5 and 8: pipeline `customer_embedding`, which it does not know of.
fn untold(cluster: &Cluster) -> Database<'_> {
    let mut db = with_server(cluster);
    db.run(&format!(
        "INSERT INTO product SELECT i, {} || ' ' || md5('product ' || i) FROM generate_series(1, 100) i;
         CREATE TABLE customer (name text PRIMARY KEY, likes text);
         INSERT INTO customer VALUES ('ann', {}), ('bob', {}), ('eve', {});
         SELECT recsync.create_pipeline('customer_embedding', 'customer', columns => '{{likes}}', server => 'local');
         SELECT recsync.create_recommender('shop', 'product', 'event', text => '{{title}}', server => 'local', half_life => '10000 days',
            weight => $$ CASE kind WHEN 'buy' THEN 4 WHEN 'return' THEN -1 ELSE 1 END $$, seen => 'false')",
        text(&format!("i % {TOPICS}")),
        text("3"),
        text("5"),
        text("8"),
    ));
    db
}

fn told(cluster: &Cluster) -> Database<'_> {
    let mut db = untold(cluster);
    db.run("SELECT recsync.alter_recommender('shop', users => 'customer_embedding')");
    settle(&mut db);
    db
}

/// The items in the order of the places that interest gave them.
fn by_interest(db: &mut Database, list: &str) -> Vec<i32> {
    db.column(&format!(
        "SELECT id FROM {list} WHERE reason ? 'interest' ORDER BY (reason ->> 'interest')::int LIMIT 20"
    ))
}

/// The same by a count of the events: three of their usual weight are what the user is like, and the session's items count
/// as much as the weightiest.
fn counted(db: &mut Database, user: &str, session: &[i32]) -> Vec<i32> {
    db.column(&format!(
        "WITH history AS (SELECT product_id, CASE kind WHEN 'buy' THEN 4.0 WHEN 'return' THEN -1 ELSE 1 END AS weight,
                                 row_number() OVER (ORDER BY created_at DESC, id DESC) - 1 AS n FROM event WHERE user_id = '{user}'),
              part AS (SELECT 3 * COALESCE((SELECT avg(abs(weight)) FROM history), 1) AS weight, embedding FROM customer_embedding WHERE name = '{user}'
                        UNION ALL SELECT weight / (1 + n / 2.0), embedding FROM history JOIN shop_embedding v ON v.id = product_id
                        UNION ALL SELECT COALESCE((SELECT max(abs(weight)) FROM history), 1), embedding FROM shop_embedding WHERE id = ANY (ARRAY{session:?}::int[])),
              number AS (SELECT x.i, sum(p.weight * x.x) AS x FROM part p, unnest(p.embedding::real[]) WITH ORDINALITY AS x (x, i) GROUP BY 1)
         SELECT v.id FROM shop_embedding v ORDER BY v.embedding <=> (SELECT array_agg(x ORDER BY i)::real[]::vector FROM number), v.id LIMIT 20"
    ))
}

fn of_topic(topic: i32, listed: &[i32]) -> usize {
    listed.iter().filter(|id| **id % TOPICS == topic).count()
}

#[test]
fn a_user_without_events_gets_what_is_near_to_what_they_are_like() {
    let mut db = told(shared());
    views(&mut db, "mob", &[7, 17, 27]);
    settle(&mut db);
    let list = "shop_recommend('ann', k => 100)";
    let listed = by_interest(&mut db, list);
    assert_eq!(of_topic(3, &listed[..10]), 10, "{listed:?}");
    assert_eq!(listed, counted(&mut db, "ann", &[]));
    // Whoever is in no table of users gets what they got before, and so does nobody.
    for user in ["'nobody'", "NULL"] {
        let list = format!("shop_recommend({user}, k => 100)");
        assert_eq!(by_interest(&mut db, &list), Vec::<i32>::new());
    }
    assert_eq!(
        of_topic(
            7,
            &by_interest(&mut db, "shop_recommend('mob', k => 100)")[..7]
        ),
        7
    );
    // What comes from elsewhere is put in order by it, too.
    let ranked = items(&mut db, "shop_rank('eve', '{31,38,40}')");
    assert_eq!(ranked[0], 38);
}

#[test]
fn it_counts_as_three_interactions_and_a_session_as_before() {
    let mut db = told(shared());
    for (user, kinds) in [
        ("ann", &["view"; 9][..]),
        ("bob", &["view", "buy", "return", "view"]),
    ] {
        for (n, kind) in kinds.iter().enumerate() {
            let product = 10 * n as i32 + 8;
            db.run(&format!(
                "INSERT INTO event (user_id, product_id, kind) VALUES ('{user}', {product}, '{kind}')"
            ));
            settle(&mut db);
            let list = format!("shop_recommend('{user}', k => 100)");
            let expected = counted(&mut db, user, &[]);
            assert_eq!(by_interest(&mut db, &list), expected, "{user} {n}");
            let list = format!(
                "shop_recommend('{user}', k => 100, session_items => '{{4,14}}', exclude_seen => false)"
            );
            let expected = counted(&mut db, user, &[4, 14]);
            assert_eq!(by_interest(&mut db, &list), expected, "{user} {n}");
        }
    }
    // It is soon outweighed: of nine views, all that is listed first is of their topic.
    let listed = by_interest(&mut db, "shop_recommend('ann', k => 100)");
    assert_eq!(of_topic(8, &listed[..9]), 9, "{listed:?}");
    let session = "shop_recommend('eve', k => 100, session_items => '{4}', exclude_seen => false)";
    assert_eq!(by_interest(&mut db, session), counted(&mut db, "eve", &[4]));
    // Nothing of it is in what is kept.
    let kept = "SELECT string_agg(interest::text, ' ' ORDER BY user_id) FROM recsync.interest_";
    let id = number(&mut db);
    let before: String = db.one(&format!("{kept}{id}"));
    db.run("SELECT recsync.alter_recommender('shop', users => '-')");
    settle(&mut db);
    assert_eq!(db.one::<String>(&format!("{kept}{id}")), before);
}

#[test]
fn it_follows_the_row_of_the_user_and_goes_with_it() {
    let mut db = told(shared());
    let list = "shop_recommend('ann', k => 100)";
    db.run(&format!(
        "UPDATE customer SET likes = {} WHERE name = 'ann'",
        text("6")
    ));
    db.settle("shop"); // which waits for users' vectors, too
    assert_eq!(of_topic(6, &by_interest(&mut db, list)[..10]), 10);
    db.run("ALTER TABLE customer RENAME name TO called; ALTER VIEW customer_embedding RENAME TO \"Likes\"; ALTER SCHEMA public RENAME TO market; SET search_path = market");
    assert_eq!(of_topic(6, &by_interest(&mut db, list)[..10]), 10);
    db.run("DELETE FROM customer WHERE called = 'ann'");
    db.settle("shop");
    assert_eq!(by_interest(&mut db, list), Vec::<i32>::new());
    // A pipeline that is needed is not dropped alone; with its table it goes, and lists go on.
    let error = db.refused("SELECT recsync.drop_pipeline('\"Likes\"')");
    assert_eq!(error.code().code(), "2BP01");
    assert!(error.hint().unwrap().contains("users => '-'"), "{error:?}");
    db.run("DROP TABLE customer");
    assert_eq!(items(&mut db, "shop_recommend('bob', k => 5)").len(), 5);
    assert_eq!(
        db.one::<i64>("SELECT count(users_pipeline_id) FROM recsync.recommender"),
        0
    );
}

#[test]
fn what_cannot_be_compared_is_refused_with_the_reason() {
    let mut db = untold(shared());
    db.run(
        "CREATE SERVER other FOREIGN DATA WRAPPER recsync OPTIONS (api 'builtin');
         CREATE TABLE member (id int, part int, likes text, PRIMARY KEY (id, part)); CREATE TABLE person (id int PRIMARY KEY, likes text);
         SELECT recsync.create_pipeline('member_embedding', 'member', columns => '{likes}', server => 'local');
         SELECT recsync.create_pipeline('person_embedding', 'person', columns => '{likes}', server => 'local');
         SELECT recsync.create_pipeline('elsewhere', 'customer', columns => '{likes}', server => 'other');
         SELECT recsync.create_recommender('plain', 'product', 'event')",
    );
    for (recommender, users, reason) in [
        ("shop", "customer", "public.customer is no pipeline"),
        (
            "plain",
            "customer_embedding",
            "the items of public.plain have no vectors",
        ),
        (
            "shop",
            "elsewhere",
            "by server other, the items have vectors of 384 by server local",
        ),
        (
            "shop",
            "member_embedding",
            "the key of public.member has several columns",
        ),
        (
            "shop",
            "person_embedding",
            "users of the interactions are not found by the key of public.person",
        ),
    ] {
        let error = db.refused(&format!(
            "SELECT recsync.alter_recommender('{recommender}', users => '{users}')"
        ));
        assert_eq!(error.code().code(), "22023", "{users}: {error:?}");
        assert!(error.message().contains(reason), "{users}: {error:?}");
        assert!(error.hint().is_some(), "{users}");
    }
    let error = db.refused(
        "SELECT recsync.create_recommender('new', 'product', 'event', users => 'customer_embedding')",
    );
    assert_eq!(error.code().code(), "22023", "{error:?}");
    assert_eq!(
        db.column::<String>(
            "SELECT DISTINCT COALESCE(users_pipeline_id::text, 'none') FROM recsync.recommender"
        ),
        ["none"]
    );
}

#[test]
fn keys_of_another_kind_that_compare_will_do() {
    let mut db = shared().database();
    db.run(&format!(
        "CREATE SERVER local FOREIGN DATA WRAPPER recsync OPTIONS (api 'builtin');
         CREATE TABLE product (id int PRIMARY KEY, title text); CREATE TABLE event (id int PRIMARY KEY, user_id bigint, product_id int, at timestamptz);
         CREATE TABLE account (id int PRIMARY KEY, likes text);
         INSERT INTO product SELECT i, {} || ' ' || i FROM generate_series(1, 50) i; INSERT INTO account VALUES (42, {});
         SELECT recsync.create_pipeline('account_embedding', 'account', columns => '{{likes}}', server => 'local');
         SELECT recsync.create_recommender('shop', 'product', 'event', text => '{{title}}', server => 'local', users => 'account_embedding')",
        text("i % 10"),
        text("4"),
    ));
    db.settle("shop");
    let listed = by_interest(&mut db, "shop_recommend(42, k => 50)");
    assert_eq!(of_topic(4, &listed[..5]), 5, "{listed:?}");
    assert_eq!(
        by_interest(&mut db, "shop_recommend(99999999999, k => 50)"),
        Vec::<i32>::new()
    );
    // Accepted as the same, refused as another.
    let create = |users: &str| {
        format!(
            "SELECT recsync.create_recommender('shop', 'product', 'event', text => '{{title}}', server => 'local'{users}, if_not_exists => true)"
        )
    };
    db.run(&create(", users => 'account_embedding'"));
    let error = db.refused(&create(""));
    assert_eq!(error.code().code(), "42710");
    assert!(
        error
            .hint()
            .unwrap()
            .contains("users (is public.account_embedding, given none)"),
        "{error:?}"
    );
}

#[test]
fn the_pipeline_s_owner_gives_it_and_the_items_owner_reads_it_as_long_as_they_may() {
    let mut db = untold(shared());
    let [owner, stranger] = ["prior_owner", "prior_stranger"].map(role);
    db.run(&format!(
        "GRANT USAGE ON FOREIGN SERVER local TO {owner}; GRANT CREATE ON SCHEMA public TO {owner}; GRANT SELECT ON event TO {owner};
         SELECT recsync.drop_recommender('shop'); ALTER TABLE product OWNER TO {owner}; GRANT recsync_admin TO {stranger}"
    ));
    db.run("SELECT recsync.create_recommender('shop', 'product', 'event', text => '{title}', server => 'local', seen => 'false')");
    let alter = "SELECT recsync.alter_recommender('shop', users => 'customer_embedding')";
    let error = db.connect_as(&owner).refused(alter);
    assert_eq!(error.code().code(), "42501", "{error:?}");
    let error = db.refused(alter);
    assert_eq!(
        (error.code().code(), error.hint()),
        (
            "42501",
            Some(format!("GRANT SELECT ON public.customer_embedding TO {owner};").as_str())
        )
    );
    db.run(&format!(
        "GRANT SELECT ON customer_embedding TO {owner}; {alter}"
    ));
    db.settle("shop");
    let list = "shop_recommend('ann', k => 100)";
    let mut client = db.connect_as(&owner);
    let mut count = || {
        client.one::<i64>(&format!(
            "SELECT count(*) FROM {list} WHERE reason ? 'interest'"
        ))
    };
    wait_until(PATIENCE, "what ann is like counts", || count() == 100);
    db.run(&format!("REVOKE SELECT ON customer_embedding FROM {owner}"));
    assert_eq!(count(), 0);
}
