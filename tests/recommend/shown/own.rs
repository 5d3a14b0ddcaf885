//! impressions: a table of the user's own says what was shown, and counts as what log_shown has noted does.

use super::{REASONS, counts, event_ago, show};
use crate::rights::role;
use crate::shop::{shop, tables, views};
use crate::support::{Cluster, Database, Sql, shared};

/// Recommender `shop`, and table `impression`, which it does not know of.
fn untold(cluster: &Cluster) -> Database<'_> {
    let mut db = shop(cluster, 20);
    db.run(
        "CREATE TABLE impression (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, session uuid, list_id uuid, product_id int REFERENCES product,
                                  rank int, placement varchar(20), reason jsonb, at timestamptz DEFAULT clock_timestamp())",
    );
    db
}

fn told(cluster: &Cluster) -> Database<'_> {
    let mut db = untold(cluster);
    db.run("SELECT recsync.alter_recommender('shop', impressions => 'impression')");
    db.settle("shop");
    db
}

/// These items of the user's list, shown at that place: into the table.
fn note(db: &mut Database, recommender: &str, user: &str, place: &str, items: &[i32]) {
    db.run(&format!(
        "INSERT INTO impression (list_id, product_id, rank, placement)
         SELECT r.list_id, i, n, '{place}' FROM {recommender}_recommend({user}, k => 1) r, unnest(ARRAY{items:?}::int[]) WITH ORDINALITY AS s (i, n)"
    ));
}

#[test]
fn what_the_table_says_counts_as_what_was_logged_and_both_together() {
    let mut db = told(shared());
    note(&mut db, "shop", "'ann'", "home", &[1, 2, 3]);
    note(&mut db, "shop", "NULL", "home", &[1, 2]); // whose, nobody knows
    note(&mut db, "shop", "'bob'", "cart", &[4, 5]);
    show(&mut db, "bob", "cart", &[5, 6]); // 5 once more
    db.run("INSERT INTO impression (list_id, placement) SELECT list_id, 'home' FROM shop_recommend('ann', k => 1)");
    // None of its lists.
    db.run(
        "INSERT INTO impression (list_id, product_id) SELECT gen_random_uuid(), 1 FROM generate_series(1, 50);
         INSERT INTO impression (list_id, product_id) VALUES (NULL, 1);
         INSERT INTO impression (list_id, product_id, at) SELECT list_id, 2, NULL FROM shop_recommend('ann', k => 1);
         INSERT INTO impression (list_id, product_id)
         SELECT overlay(list_id::text PLACING '4' FROM 15)::uuid, 3 FROM shop_recommend('ann', k => 1)",
    );
    for (user, product, kind) in [("ann", 1, "view"), ("ann", 2, "buy"), ("bob", 5, "buy")] {
        event_ago(&mut db, user, product, kind, "0");
    }
    db.settle("shop");
    let expected = ["cart 4 4 1 1", "home 6 3 2 1"];
    assert_eq!(counts(&mut db, "recsync.attribution"), expected);
    assert_eq!(counts(&mut db, "recsync.attribution('shop')"), expected);
    // It is read when it is asked for: nothing of it is kept.
    db.run("DELETE FROM impression WHERE placement = 'home'");
    assert_eq!(counts(&mut db, "recsync.attribution"), ["cart 4 4 1 1"]);
    assert_eq!(
        counts(
            &mut db,
            "recsync.attribution(since => now() + interval '1 h')"
        ),
        Vec::<String>::new()
    );
}

#[test]
fn the_source_is_told_by_the_reason_as_log_shown_tells_it() {
    let mut db = told(shared());
    for (n, (reason, _)) in REASONS.iter().enumerate() {
        db.run(&format!(
            "INSERT INTO impression (list_id, product_id, reason) SELECT list_id, {}, '{reason}' FROM shop_recommend('ann', k => 1)",
            n + 1
        ));
    }
    let mut expected: Vec<&str> = REASONS.iter().map(|(_, source)| *source).collect();
    expected.sort_unstable();
    let sources: Vec<String> = db.column(
        "SELECT COALESCE(source, '') FROM recsync.attribution, generate_series(1, shown) ORDER BY COALESCE(source, '') COLLATE \"C\"",
    );
    assert_eq!(sources, expected);
    db.run("UPDATE impression SET reason = '{\"popular\": \"first\", \"latest\": -70}'");
    assert_eq!(counts(&mut db, "recsync.attribution"), ["latest 8 8 0 0"]);
}

#[test]
fn one_table_serves_several_recommenders_and_each_counts_its_own() {
    let mut db = told(shared());
    db.run("SELECT recsync.create_recommender('other', 'product', 'event', impressions => 'impression')");
    db.settle("other");
    note(&mut db, "shop", "'ann'", "home", &[1, 2]);
    note(&mut db, "other", "'bob'", "home", &[1, 2, 3]);
    views(&mut db, "ann", &[1]);
    views(&mut db, "bob", &[2, 3]);
    db.settle("shop");
    db.settle("other");
    assert_eq!(
        db.column::<String>(
            "SELECT concat_ws(' ', recommender, shown, clicked) FROM recsync.attribution ORDER BY 1"
        ),
        ["public.other 3 2", "public.shop 2 1"]
    );
}

#[test]
fn a_view_will_do_with_keys_as_recommend_gives_them() {
    let mut db = shop(shared(), 20);
    db.run(
        "CREATE TABLE tracked (kind text, list uuid, item text, seen_at timestamptz, received_at timestamptz DEFAULT now());
         CREATE VIEW shown_items AS SELECT list AS list_id, item, seen_at AS shown_at, received_at FROM tracked WHERE kind = 'impression';
         SELECT recsync.alter_recommender('shop', impressions => 'shown_items')",
    );
    db.settle("shop");
    db.run(
        "INSERT INTO tracked SELECT k, list_id, item, now() FROM recsync.recommend('shop', 'ann', k => 4), unnest('{impression,scroll}'::text[]) k;
         INSERT INTO tracked SELECT 'impression', list_id, 'not a key', now() FROM recsync.recommend('shop', 'ann', k => 1)",
    );
    let first: i32 = db.one("SELECT item::int FROM tracked LIMIT 1");
    views(&mut db, "ann", &[first]);
    db.settle("shop");
    assert_eq!(counts(&mut db, "recsync.attribution"), ["5 5 1 0"]);
}

#[test]
fn what_cannot_be_found_is_refused_with_all_that_was_looked_for() {
    let mut db = tables(shared());
    db.run("CREATE TABLE no_list (item int, at timestamptz); CREATE TABLE two (list_id uuid, a int REFERENCES product, b int REFERENCES product, at timestamptz);
            CREATE TABLE times (list_id uuid, item int, began timestamptz, ended timestamptz); CREATE TABLE nothing (list_id text, at timestamp);
            CREATE TEMP TABLE passing (list_id uuid, item int, at timestamptz)");
    for (table, reasons) in [
        ("no_list", &["no uuid called list_id"][..]),
        ("two", &["several that can be the item (a, b)"]),
        (
            "times",
            &["several timestamps with time zone, none called shown_at"],
        ),
        (
            "nothing",
            &[
                "no uuid called list_id",
                "none that is the item",
                "no timestamp with time zone",
            ],
        ),
        (
            "passing",
            &["no table or view that other sessions can read"],
        ),
        (
            "product_pkey",
            &["no table or view that other sessions can read"],
        ),
    ] {
        let error = db.refused(&format!(
            "SELECT recsync.create_recommender('shop', 'product', 'event', impressions => '{table}')"
        ));
        assert_eq!(error.code().code(), "22023", "{table}: {error:?}");
        for reason in reasons {
            assert!(error.message().contains(reason), "{table}: {error:?}");
        }
    }
    db.run("CREATE TABLE otherwise (list_id uuid, item date, at timestamptz)");
    let error = db.refused(
        "SELECT recsync.create_recommender('shop', 'product', 'event', impressions => 'otherwise')",
    );
    assert_eq!(error.code().code(), "42846", "{error:?}");
    let error = db.refused(
        "SELECT recsync.create_recommender('shop', 'product', 'event', impressions => 'nothing')",
    );
    assert_eq!(
        error.hint().unwrap(),
        "Looked for are a uuid called list_id; the item's key, by a foreign key to public.product or as product_id, product or item; a timestamp with time zone, called shown_at where there are several; and, where they are, a placement of a text type and a reason of type jsonb. The columns are list_id, at. A view can show them so."
    );
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.recommender"), 0);
}

#[test]
fn renames_are_followed_and_what_is_gone_is_said() {
    let mut db = told(shared());
    note(&mut db, "shop", "'ann'", "home", &[1, 2]);
    for change in [
        "ALTER TABLE impression RENAME list_id TO list",
        "ALTER TABLE impression RENAME product_id TO thing",
        "ALTER TABLE impression RENAME at TO \"When\"",
        "ALTER TABLE impression RENAME placement TO place",
        "ALTER TABLE impression ADD list_id int, ADD added timestamptz",
        "ALTER TABLE impression RENAME TO \"Shown\"",
        "CREATE SCHEMA web; ALTER TABLE \"Shown\" SET SCHEMA web",
        "ALTER SCHEMA web RENAME TO site",
    ] {
        db.run(change);
        assert_eq!(
            counts(&mut db, "recsync.attribution('shop')"),
            ["home 2 2 0 0"],
            "{change}"
        );
    }
    // Another recommender's numbers are there all the same, and so are lists.
    db.run("SELECT recsync.create_recommender('other', 'product', 'event')");
    db.run("SELECT recsync.log_shown(list_id, 'mail') FROM other_recommend('ann', k => 1)");
    for (change, reason) in [
        (
            "ALTER TABLE site.\"Shown\" ALTER list TYPE text",
            "its column list is text, not uuid",
        ),
        (
            "ALTER TABLE site.\"Shown\" DROP thing",
            "its column thing does not exist",
        ),
        ("DROP TABLE site.\"Shown\"", "it does not exist"),
    ] {
        db.run(change);
        let error = db.refused("SELECT FROM recsync.attribution('shop')");
        assert_eq!(error.code().code(), "55000", "{change}: {error:?}");
        assert!(error.message().ends_with(reason), "{change}: {error:?}");
        assert!(
            error.hint().unwrap().contains("alter_recommender"),
            "{error:?}"
        );
        let left = db.column::<String>("SELECT recommender FROM recsync.attribution");
        assert_eq!(left, ["public.other"], "{change}");
        db.run("ALTER TABLE IF EXISTS site.\"Shown\" ALTER list TYPE uuid USING list::uuid");
    }
    assert_eq!(
        db.column::<String>("SELECT DISTINCT state FROM recsync.status"),
        ["running"]
    );
    db.run("SELECT recsync.alter_recommender('shop', impressions => '-')");
    assert_eq!(
        counts(&mut db, "recsync.attribution('shop')"),
        Vec::<String>::new()
    );
}

#[test]
fn it_is_read_as_the_owner_of_the_items_who_has_to_be_able_to() {
    let mut db = tables(shared());
    let [owner, watcher] = ["impressions_owner", "impressions_watcher"].map(role);
    db.run(&format!(
        "GRANT SELECT ON event TO {owner}; GRANT pg_monitor TO {watcher}; GRANT CREATE ON SCHEMA public TO {owner}; ALTER TABLE product OWNER TO {owner};
         CREATE SCHEMA hidden; CREATE TABLE hidden.impression (list_id uuid, product_id int, rank int, placement text, at timestamptz DEFAULT now());
         INSERT INTO product SELECT generate_series(1, 5); SELECT recsync.create_recommender('shop', 'product', 'event')"
    ));
    db.settle("shop");
    let alter = "SELECT recsync.alter_recommender('shop', impressions => 'hidden.impression')";
    let error = db.refused(alter);
    assert_eq!(
        (error.code().code(), error.hint()),
        (
            "42501",
            Some(format!("GRANT SELECT ON hidden.impression TO {owner};").as_str())
        )
    );
    db.run(&format!("GRANT USAGE ON SCHEMA hidden TO {owner}; GRANT SELECT ON hidden.impression TO {owner}; {alter}"));
    db.run("SET search_path = public, hidden");
    note(&mut db, "shop", "'ann'", "home", &[1]);
    // Who may see the numbers need not be able to read the table, and cannot.
    let mut client = db.connect_as(&watcher);
    assert_eq!(counts_of(&mut client), ["home 1"]);
    assert_eq!(
        client
            .refused("SELECT FROM hidden.impression")
            .code()
            .code(),
        "42501"
    );
    // Rows that a policy hides from the owner are not left out without a word.
    db.run("ALTER TABLE hidden.impression ENABLE ROW LEVEL SECURITY");
    let error = db.refused("SELECT FROM recsync.attribution('shop')");
    assert_eq!(error.code().code(), "42501", "{error:?}");
    assert_eq!(counts_of(&mut client), Vec::<String>::new());
    db.run(&format!("ALTER TABLE hidden.impression DISABLE ROW LEVEL SECURITY; REVOKE SELECT ON hidden.impression FROM {owner}"));
    let error = db.refused("SELECT FROM recsync.attribution('shop')");
    assert_eq!(error.code().code(), "55000", "{error:?}");
    assert!(error.message().contains("GRANT SELECT"), "{error:?}");
}

fn counts_of(client: &mut impl Sql) -> Vec<String> {
    client.column("SELECT concat_ws(' ', placement, shown) FROM recsync.attribution")
}

#[test]
fn invariant_13_a_view_of_the_owners_runs_as_the_owner_whoever_asks() {
    let mut db = tables(shared());
    let owner = role("impressions_viewer");
    db.run(&format!(
        "CREATE SCHEMA mine AUTHORIZATION {owner}; GRANT SELECT ON event TO {owner}"
    ));
    let mut client = db.connect_as(&owner);
    client.run(
        "CREATE FUNCTION mine.whoever(uuid) RETURNS uuid LANGUAGE plpgsql STABLE AS $$
           BEGIN IF current_user <> (SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'mine') THEN
             RAISE EXCEPTION 'ran as %', current_user; END IF; RETURN $1; END $$;
         CREATE TABLE mine.product (id int PRIMARY KEY);
         CREATE TABLE mine.event (id int PRIMARY KEY, user_id int, product_id int, at timestamptz);
         CREATE TABLE mine.shown (list_id uuid, item int, at timestamptz);
         CREATE VIEW mine.impression AS SELECT mine.whoever(list_id) AS list_id, item, at FROM mine.shown;
         INSERT INTO mine.product VALUES (1), (2);
         SELECT recsync.create_recommender('shop', 'mine.product', 'mine.event', impressions => 'mine.impression')",
    );
    db.settle("mine.shop");
    db.run("INSERT INTO mine.shown SELECT list_id, 1, now() FROM recsync.recommend('mine.shop', 1, k => 1)");
    assert_eq!(counts(&mut db, "recsync.attribution"), ["1 1 0 0"]);
}

#[test]
fn it_is_declared_changed_and_compared_like_any_setting() {
    let mut db = untold(shared());
    let create = |impressions: &str| {
        format!(
            "SELECT recsync.create_recommender('other', 'product', 'event', impressions => {impressions}, if_not_exists => true)"
        )
    };
    db.run(&create("'impression'"));
    db.run(&create("'impression'"));
    db.run("SELECT recsync.alter_recommender('other', history => 7)");
    let error = db.refused(
        "SELECT recsync.create_recommender('other', 'product', 'event', history => 7, if_not_exists => true)",
    );
    assert_eq!(error.code().code(), "42710");
    assert!(
        error
            .hint()
            .unwrap()
            .contains("impressions (is public.impression, given none)"),
        "{error:?}"
    );
    // What is kept of it is in a dump by its names.
    assert_eq!(
        db.one::<String>(
            "SELECT impressions::text FROM recsync.recommender WHERE impressions IS NOT NULL"
        ),
        r#"{"at": "at", "item": "product_id", "reason": "reason", "list_id": "list_id", "relation": "public.impression", "placement": "placement"}"#
    );
}
