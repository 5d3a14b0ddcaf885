//! Who may call, what they see, and as whom it is done: EXECUTE on the typed function is the right, the live row is
//! read as the caller, everything else is done as the owner of the items.

use crate::shop::{items, shop, views};
use crate::support::{PATIENCE, Sql, shared, wait_until};

/// A role of its own for a test: roles belong to the cluster.
pub fn role(name: &str) -> String {
    let name = format!("{name}_{}", std::process::id());
    let mut client = shared().connect("postgres");
    client.run(&format!("CREATE ROLE {name} LOGIN"));
    name
}

#[test]
fn a_function_of_ones_own_that_looks_like_the_typed_one_gives_no_right() {
    let mut db = shop(shared(), 3);
    let forger = role("forger");
    views(&mut db, "ann", &[1, 2]);
    db.settle("shop");
    db.run(&format!("GRANT SELECT ON product TO {forger}"));
    db.run(&format!("GRANT CREATE ON SCHEMA public TO {forger}"));
    let body: String = db.one("SELECT prosrc FROM pg_proc WHERE oid = 'shop_popular'::regproc");
    let mut client = db.connect_as(&forger);
    client.run(&format!(
        "CREATE FUNCTION public.shop_popular(mine text) RETURNS int LANGUAGE sql AS $$ SELECT 1 /*{body}*/ $$"
    ));
    for call in ["recsync.popular('shop')", "shop_popular()"] {
        let error = client.refused(&format!("SELECT * FROM {call}"));
        assert_eq!(error.code().code(), "42501", "{call}");
    }
}

#[test]
fn invariant_13_operators_in_the_callers_search_path_run_as_nobody_else_and_give_no_right() {
    let mut db = shop(shared(), 3);
    let mallory = role("mallory");
    views(&mut db, "ann", &[1, 2]);
    db.settle("shop");
    db.run(&format!(
        "CREATE SCHEMA evil AUTHORIZATION {mallory}; GRANT USAGE ON SCHEMA evil TO PUBLIC;
         GRANT SELECT ON product, event TO {mallory}"
    ));
    let mut client = db.connect_as(&mallory);
    for kind in ["text", "name", "int4", "oid", "int8"] {
        client.run(&format!(
            "CREATE FUNCTION evil.eq({kind}, {kind}) RETURNS boolean LANGUAGE plpgsql AS $$
             BEGIN
                 IF current_user <> session_user THEN
                     RAISE EXCEPTION 'ran as %', current_user;
                 END IF;
                 RETURN true;
             END $$;
             CREATE OPERATOR evil.= (LEFTARG = {kind}, RIGHTARG = {kind}, FUNCTION = evil.eq)"
        ));
    }
    client.run("SET search_path = evil, pg_catalog, public");
    // The operator is one that would be found.
    client.run("SELECT 1 WHERE 'a'::text = 'b'::text");
    for call in [
        "recsync.recommend('public.shop')",
        "recsync.popular('public.shop')",
        "recsync.similar('public.shop', 1)",
        "recsync.rank('public.shop', 'ann', '{1}'::text[])",
        "recsync.pause('public.shop')",
        "recsync.forget('public.shop', 'ann')",
        "recsync.attribution('public.shop')",
        "recsync.alter_recommender('public.shop', history => 3)",
        "recsync.drop_recommender('public.shop')",
        "recsync.create_recommender('mine', 'public.product', 'public.event')",
    ] {
        let error = client.refused(&format!("SELECT * FROM {call}"));
        assert_eq!(error.code().code(), "42501", "{call}: {error:?}");
    }
    assert!(client.one::<bool>("SELECT recsync.wait_for('public.shop')"));
}

#[test]
fn execute_on_the_typed_function_is_the_right_to_call_either() {
    let mut db = shop(shared(), 3);
    let web = role("web");
    views(&mut db, "ann", &[1, 2]);
    db.settle("shop");
    db.run(&format!("GRANT SELECT ON product TO {web}"));
    let mut client = db.connect_as(&web);
    for call in [
        "shop_recommend()",
        "recsync.recommend('shop')",
        "recsync.recommend('shop', 1)",
        "shop_similar(1)",
        "recsync.popular('shop')",
        "recsync.rank('shop', 'ann', '{1}')",
        "shop_rank('ann', '{1}')",
    ] {
        let error = client.refused(&format!("SELECT * FROM {call}"));
        assert_eq!(error.code().code(), "42501", "{call}");
    }
    let hint = client
        .refused("SELECT * FROM recsync.recommend('shop')")
        .hint()
        .unwrap_or_default()
        .to_owned();
    assert_eq!(
        hint,
        "GRANT EXECUTE ON FUNCTION public.shop_recommend TO …;"
    );
    db.run(&format!(
        "GRANT EXECUTE ON FUNCTION public.shop_recommend TO {web}"
    ));
    assert_eq!(
        client.column::<i32>("SELECT id FROM shop_recommend('ann') ORDER BY rank"),
        [1, 2, 3]
    );
    assert_eq!(
        client.one::<i64>("SELECT count(*) FROM recsync.recommend('shop')"),
        3
    );
    assert_eq!(
        client
            .refused("SELECT * FROM shop_similar(1)")
            .code()
            .code(),
        "42501"
    );
    // Each has its own.
    for call in [
        "recsync.rank('shop', 'ann', '{3,1}')",
        "shop_rank('ann', '{3,1}')",
    ] {
        let error = client.refused(&format!("SELECT * FROM {call}"));
        assert_eq!(error.code().code(), "42501");
        assert!(error.message().contains("rank"), "{error:?}");
        db.run(&format!("GRANT EXECUTE ON FUNCTION shop_rank TO {web}"));
        assert_eq!(
            client.one::<i64>(&format!("SELECT count(*) FROM {call}")),
            2
        );
        db.run(&format!("REVOKE EXECUTE ON FUNCTION shop_rank FROM {web}"));
    }
    // It gives nothing else: neither the events nor what is kept of them.
    let id: i32 = db.one("SELECT id FROM recsync.recommender");
    for table in [
        "event".to_owned(),
        format!("recsync.interaction_{id}"),
        format!("recsync.stale_{id}"),
        "recsync.recommender".into(),
    ] {
        assert_eq!(
            client
                .refused(&format!("SELECT * FROM {table}"))
                .code()
                .code(),
            "42501",
            "{table}"
        );
    }
    db.run(&format!("REVOKE SELECT ON product FROM {web}"));
    let error = client.refused("SELECT * FROM shop_recommend('ann')");
    assert_eq!(
        (error.code().code(), error.hint()),
        ("42501", Some("GRANT SELECT ON public.product TO …;"))
    );
}

#[test]
fn the_users_of_a_batch_are_read_as_the_caller() {
    let mut db = shop(shared(), 8);
    let mailer = role("mailer");
    views(&mut db, "ann", &[1, 2, 3]);
    views(&mut db, "bob", &[1, 2]);
    db.run(&format!(
        "CREATE TABLE reader (name text, secret boolean); INSERT INTO reader VALUES ('ann', false), ('bob', false), ('cid', true);
         GRANT SELECT ON product TO {mailer}; GRANT EXECUTE ON FUNCTION shop_recommend TO {mailer}"
    ));
    db.settle("shop");
    let mut client = db.connect_as(&mailer);
    let batch = "SELECT user_id || ' ' || item FROM recsync.recommend_batch('shop', $$ SELECT name FROM reader ORDER BY name $$, k => 2) ORDER BY user_id, rank";
    assert_eq!(client.refused(batch).code().code(), "42501");
    db.run(&format!(
        "GRANT SELECT ON reader TO {mailer}; ALTER TABLE reader ENABLE ROW LEVEL SECURITY; CREATE POLICY open ON reader USING (NOT secret)"
    ));
    let mut expected = Vec::new();
    for user in ["ann", "bob"] {
        let list = items(&mut db, &format!("shop_recommend('{user}', k => 2)"));
        expected.extend(list.iter().map(|item| format!("{user} {item}")));
    }
    assert_eq!(expected.len(), 4);
    assert_eq!(client.column::<String>(batch), expected);
    db.run(&format!(
        "REVOKE EXECUTE ON FUNCTION shop_recommend FROM {mailer}"
    ));
    assert_eq!(client.refused(batch).code().code(), "42501");
}

#[test]
fn row_level_security_of_the_items_holds_for_the_caller() {
    let mut db = shop(shared(), 8);
    let web = role("tenant");
    views(&mut db, "ann", &[1, 2, 3, 4]);
    views(&mut db, "bob", &[1, 2, 3, 4]);
    db.run(&format!(
        "ALTER TABLE product ENABLE ROW LEVEL SECURITY;
         CREATE POLICY even ON product TO {web} USING (id % 2 = 0);
         GRANT SELECT (id, title) ON product TO {web};
         GRANT EXECUTE ON FUNCTION public.shop_recommend, public.shop_similar, public.shop_popular TO {web}"
    ));
    db.settle("shop");
    let mut client = db.connect_as(&web);
    let mut listed: Vec<i32> = client.column("SELECT id FROM shop_recommend()");
    listed.sort();
    assert_eq!(listed, [2, 4, 6, 8]);
    assert_eq!(
        client.column::<i32>("SELECT id FROM shop_similar(1) ORDER BY rank"),
        [2, 4]
    );
    // hidden and price are not theirs to read: what depends on hidden is asked as the owner, a filter on price is not.
    let error = client.refused("SELECT * FROM shop_recommend(filter => '{\"price\": 10}')");
    assert_eq!(error.code().code(), "42501");
    assert_eq!(
        client.one::<i64>(
            "SELECT count(*) FROM shop_recommend(filter => '{\"title\": \"product 4\"}')"
        ),
        1
    );
}

#[test]
fn invariant_13_expressions_run_with_the_owners_rights_whoever_calls() {
    let mut db = shared().database();
    let owner = role("owner");
    db.run(&format!("CREATE SCHEMA shop AUTHORIZATION {owner}"));
    let mut client = db.connect_as(&owner);
    client.run(
        "CREATE TABLE shop.product (id int PRIMARY KEY);
         CREATE TABLE shop.event (id int PRIMARY KEY, user_id text, product_id int, at timestamptz);
         CREATE FUNCTION shop.who(id int) RETURNS float8 LANGUAGE plpgsql STABLE AS $$
           BEGIN IF current_user <> (SELECT relowner::regrole::text FROM pg_class WHERE oid = 'shop.product'::regclass) THEN
             RAISE EXCEPTION 'ran as %', current_user; END IF; RETURN 1; END $$;
         INSERT INTO shop.product VALUES (1), (2), (3);
         SELECT recsync.create_recommender('shop', 'shop.product', 'shop.event', weight => 'shop.who(id)', eligible => 'shop.who(id) = 1', boost => 'shop.who(id)');
         INSERT INTO shop.event VALUES (1, 'ann', 1, now()), (2, 'ann', 2, now())",
    );
    db.settle("shop.shop");
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.dead_letter"), 0);
    assert_eq!(
        db.column::<i32>("SELECT id FROM shop.shop_recommend('ann') ORDER BY rank"),
        [3]
    );
    assert_eq!(db.column::<i32>("SELECT id FROM shop.shop_similar(1)"), [2]);
    // Nobody else may end it; members of the administrators may.
    let other = role("other");
    let mut stranger = db.connect_as(&other);
    assert_eq!(
        stranger
            .refused("SELECT recsync.drop_recommender('shop.shop')")
            .code()
            .code(),
        "42501"
    );
    assert_eq!(
        stranger
            .refused("SELECT recsync.pause('shop.shop')")
            .code()
            .code(),
        "42501"
    );
    assert_eq!(
        stranger.one::<i64>("SELECT count(*) FROM recsync.status"),
        0
    );
}

#[test]
fn the_owner_of_the_items_must_be_able_to_read_the_interactions() {
    let mut db = shop(shared(), 1);
    let owner = role("items");
    db.run(&format!(
        "SELECT recsync.drop_recommender('shop'); ALTER TABLE product OWNER TO {owner}; GRANT CREATE ON SCHEMA public TO {owner}"
    ));
    let error = db.refused("SELECT recsync.create_recommender('shop', 'product', 'event')");
    assert_eq!(error.code().code(), "42501");
    assert_eq!(
        error.hint().unwrap(),
        format!("GRANT SELECT ON public.event TO {owner};")
    );
    db.run(&format!("GRANT SELECT ON event TO {owner}"));
    db.run("SELECT recsync.create_recommender('shop', 'product', 'event')");
    views(&mut db, "ann", &[1]);
    db.settle("shop");
    assert_eq!(items(&mut db, "shop_popular()"), [1]);
    // What is kept follows the items to another owner.
    let next = role("next");
    db.run(&format!(
        "GRANT SELECT ON event TO {next}; ALTER TABLE product OWNER TO {next}"
    ));
    views(&mut db, "bob", &[1]);
    db.settle("shop");
    wait_until(PATIENCE, "it runs as the new owner", || {
        let id: i32 = db.one("SELECT id FROM recsync.recommender");
        db.one(&format!(
            "SELECT bool_and(state = 'running') AND has_table_privilege('{next}', to_regclass('recsync.stale_{id}'), 'INSERT') FROM recsync.status"
        ))
    });
    db.run(&format!("REVOKE SELECT ON event FROM {next}"));
    db.run("INSERT INTO event (user_id, product_id) VALUES ('cid', 1)");
    wait_until(PATIENCE, "it is paused", || {
        db.one("SELECT paused_reason IS NOT NULL FROM recsync.status")
    });
    assert_eq!(
        db.refused("SELECT recsync.wait_for('shop')").code().code(),
        "55000"
    );
    db.run(&format!(
        "GRANT SELECT ON event TO {next}; SELECT recsync.resume('shop')"
    ));
    db.settle("shop");
    let id: i32 = db.one("SELECT id FROM recsync.recommender");
    assert_eq!(
        db.one::<i64>(&format!("SELECT count(*) FROM recsync.interaction_{id}")),
        3
    );
}

#[test]
fn lists_are_read_only_and_need_no_transaction_id() {
    let mut db = shop(shared(), 3);
    views(&mut db, "ann", &[1, 2]);
    db.settle("shop");
    // What a standby forbids, a read-only transaction forbids.
    db.run("SET default_transaction_read_only = on");
    assert_eq!(items(&mut db, "shop_recommend('ann')"), [1, 2, 3]);
    assert_eq!(
        items(&mut db, "shop_popular(filter => '{\"id\": [2, 3]}')"),
        [2, 3]
    );
    assert!(db.one::<bool>("SELECT pg_current_xact_id_if_assigned() IS NULL FROM shop_similar(1)"));
}
