//! Who may log what was shown and read it, how long it is kept, and where it goes: to a standby, into a dump, away.

use std::process::{Command, Stdio};

use super::{counts, show, show_ago};
use crate::rights::role;
use crate::shop::{shop, views};
use crate::support::cluster::bin;
use crate::support::{Cluster, PATIENCE, Sql, shared, wait_until};

#[test]
fn the_right_to_log_is_the_right_to_call_and_numbers_are_for_owner_administrators_and_monitors() {
    let mut db = shop(shared(), 5);
    db.settle("shop");
    let [web, watcher, admin] = ["shown_web", "shown_watcher", "shown_admin"].map(role);
    db.run(&format!(
        "GRANT pg_monitor TO {watcher}; GRANT recsync_admin TO {admin}; GRANT SELECT ON product TO {web}"
    ));
    let list: String = db.one("SELECT list_id::text FROM shop_recommend('ann', k => 1)");
    let log = format!("SELECT recsync.log_shown('{list}', 'home', '{{1}}')");
    let mut client = db.connect_as(&web);
    let error = client.refused(&log);
    assert_eq!(
        (error.code().code(), error.hint()),
        (
            "42501",
            Some("GRANT EXECUTE ON FUNCTION public.shop_recommend TO …;")
        )
    );
    db.run(&format!(
        "GRANT EXECUTE ON FUNCTION shop_recommend TO {web}"
    ));
    client.run(&log);
    // It may write, and reads nothing of it.
    assert_eq!(client.one::<i64>("SELECT count(*) FROM recsync.shown"), 0);
    assert_eq!(
        client.one::<i64>("SELECT count(*) FROM recsync.attribution"),
        0
    );
    for forbidden in ["recsync.shown_log", "recsync.attribution('shop')"] {
        let error = client.refused(&format!("SELECT * FROM {forbidden}"));
        assert_eq!(error.code().code(), "42501", "{forbidden}");
    }
    for (who, shown) in [(&watcher, 0), (&admin, 1)] {
        let mut client = db.connect_as(who);
        assert_eq!(
            client.one::<i64>("SELECT count(*) FROM recsync.shown"),
            shown
        );
        assert_eq!(
            client.one::<i64>("SELECT shown FROM recsync.attribution"),
            1
        );
        assert_eq!(
            client.one::<i64>("SELECT shown FROM recsync.attribution('shop')"),
            1
        );
    }
    // The owner of the items is none of these.
    let owner = role("shown_owner");
    db.run(&format!(
        "GRANT SELECT ON event TO {owner}; ALTER TABLE product OWNER TO {owner}"
    ));
    views(&mut db, "ann", &[1]);
    db.settle("shop");
    let mut client = db.connect_as(&owner);
    wait_until(PATIENCE, "it is kept for the new owner", || {
        client.one::<Option<i64>>("SELECT clicked FROM recsync.attribution") == Some(1)
    });
    assert_eq!(client.one::<String>("SELECT item FROM recsync.shown"), "1");
}

#[test]
fn invariant_13_a_cast_of_the_owners_runs_as_the_owner_whoever_asks() {
    let mut db = shared().database();
    let owner = role("shown_caster");
    db.run(&format!("CREATE SCHEMA mine AUTHORIZATION {owner}"));
    let mut client = db.connect_as(&owner);
    client.run(
        "CREATE TYPE mine.person AS ENUM ('ann', 'bob');
         CREATE FUNCTION mine.text_of(mine.person) RETURNS text LANGUAGE plpgsql AS $$
           BEGIN IF current_user <> (SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'mine') THEN
             RAISE EXCEPTION 'ran as %', current_user; END IF; RETURN CASE $1 WHEN 'ann'::mine.person THEN 'ann' ELSE 'bob' END; END $$;
         CREATE CAST (mine.person AS text) WITH FUNCTION mine.text_of(mine.person);
         CREATE TABLE mine.product (id int PRIMARY KEY);
         CREATE TABLE mine.event (id int PRIMARY KEY, user_id mine.person, product_id int, at timestamptz);
         INSERT INTO mine.product VALUES (1), (2);
         SELECT recsync.create_recommender('shop', 'mine.product', 'mine.event')",
    );
    db.settle("mine.shop");
    db.run(
        "SELECT recsync.log_shown(list_id, 'home', '{1,2}') FROM recsync.recommend('mine.shop', 'ann', k => 1);
         INSERT INTO mine.event VALUES (1, 'ann', 2, clock_timestamp())",
    );
    db.settle("mine.shop");
    assert_eq!(counts(&mut db, "recsync.attribution"), ["home 2 2 1 1"]);
}

#[test]
fn a_person_who_is_forgotten_was_shown_nothing() {
    let mut db = shop(shared(), 5);
    db.settle("shop");
    show(&mut db, "ann", "home", &[1]);
    show(&mut db, "ann", "cart", &[2]);
    show(&mut db, "bob", "home", &[1]);
    let of_ann: Vec<String> =
        db.column("SELECT DISTINCT list_id::text FROM shop_recommend('ann', k => 1)");
    let forgotten = "SELECT shown FROM recsync.forget('shop', 'ann')";
    assert_eq!(db.one::<i64>(forgotten), 2);
    assert_eq!(db.one::<i64>(forgotten), 0);
    let left: Vec<String> = db.column("SELECT list_id::text FROM recsync.shown");
    assert_eq!(left.len(), 1);
    assert_ne!(left, of_ann);
}

#[test]
fn what_was_shown_too_long_ago_goes_and_only_that() {
    let mut db = shop(shared(), 5);
    db.settle("shop");
    show_ago(&mut db, "ann", "old", &[1], "36 days");
    db.run(
        "INSERT INTO recsync.shown_log (shown_at, recommender_id, list_id)
         SELECT now() - interval '36 days', recommender_id, list_id FROM recsync.shown_log, generate_series(1, 20000)",
    );
    show_ago(&mut db, "ann", "young", &[1], "34 days");
    // A reload has it looked at, which happens once a minute anyway.
    db.run("SELECT pg_reload_conf()");
    wait_until(PATIENCE, "what is old is gone", || {
        db.column::<Option<String>>("SELECT placement FROM recsync.shown_log")
            == [Some("young".to_owned())]
    });
}

#[test]
fn a_list_of_a_standby_is_logged_on_the_primary() {
    let cluster = Cluster::start(&[]);
    let mut db = shop(&cluster, 5);
    views(&mut db, "ann", &[1, 2]);
    db.settle("shop");
    let standby = cluster.standby();
    let mut client = standby.connect(&db.name);
    let ask = "SELECT list_id::text FROM shop_recommend('ann', k => 1)";
    let of_primary: String = db.one(ask);
    wait_until(PATIENCE, "the standby has caught up", || {
        client.one::<String>(ask) == of_primary
    });
    let list: String = client.one(ask);
    let log = format!("SELECT recsync.log_shown('{list}', 'home', '{{3}}')");
    assert_eq!(client.refused(&log).code().code(), "25006");
    db.run(&log);
    views(&mut db, "ann", &[3]);
    wait_until(PATIENCE, "the standby counts it", || {
        counts_of(&mut client) == ["home 1 1 1 0"]
    });
}

fn counts_of(client: &mut impl Sql) -> Vec<String> {
    client.column("SELECT concat_ws(' ', placement, shown, attributable, clicked, converted) FROM recsync.attribution")
}

#[test]
fn invariant_14_a_dump_carries_what_was_shown_and_a_restored_copy_counts_the_same() {
    let mut db = shop(shared(), 5);
    db.settle("shop");
    show(&mut db, "ann", "home", &[1, 2, 3]);
    views(&mut db, "ann", &[1, 2]);
    db.settle("shop");
    let expected = counts(&mut db, "recsync.attribution");
    assert_eq!(expected, ["home 3 3 2 0"]);
    let mut copy = shared().empty_database();
    let sockets: String = db.one("SHOW unix_socket_directories");
    let client = |program: &str, database: &str| {
        let mut command = Command::new(bin().join(program));
        command.args(["-h", &sockets, "-U", "postgres", "-d", database]);
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
    // Before what is kept of the interactions is made again nothing is known of what was done, and later all of it.
    copy.settle("shop");
    assert_eq!(counts(&mut copy, "recsync.attribution"), expected);
    // Lists of now are of the same user, by the same secret.
    show(&mut copy, "ann", "home", &[4]);
    views(&mut copy, "ann", &[4]);
    copy.settle("shop");
    assert_eq!(counts(&mut copy, "recsync.attribution"), ["home 4 4 3 0"]);
    assert_eq!(
        copy.one::<i64>("SELECT shown FROM recsync.forget('shop', 'nobody')"),
        0
    );
}
