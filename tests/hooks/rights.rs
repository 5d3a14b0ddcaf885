//! Who hears of what.

use serde_json::json;

use crate::server;
use crate::support::{Api, PATIENCE, Receiver, Sql, shared, wait_until};

#[test]
fn a_hook_on_everything_hears_of_what_its_owner_owns_and_of_nothing_else() {
    let (api, receiver) = (Api::start(), Receiver::start());
    let mut db = shared().database();
    db.items(&api, "");
    server(&mut db, &receiver, "");
    db.run(
        "CREATE ROLE hears_a LOGIN; CREATE ROLE hears_b LOGIN;
         GRANT USAGE ON FOREIGN SERVER hooks, api TO hears_a, hears_b;
         CREATE SCHEMA a AUTHORIZATION hears_a",
    );
    let mut a = db.connect_as("hears_a");
    a.run("CREATE TABLE a.note (id int PRIMARY KEY, title text)");
    a.run("SELECT recsync.create_pipeline('a.note_embedding', 'a.note', columns => '{title}', server => 'api', index => 'none')");
    a.run("SELECT recsync.create_hook('a.told', 'embedded', 'hooks', '/a')");
    // Without a schema of its own, without owning what it names, without the right to use the server.
    let mut b = db.connect_as("hears_b");
    for (hook, code) in [
        ("create_hook('a.told_b', 'embedded', 'hooks')", "42501"),
        (
            "create_hook('a.told', 'embedded', listens_to => 'a.note_embedding')",
            "42501",
        ),
        ("drop_hook('a.told')", "42501"),
        ("pause('a.told')", "42501"),
        ("hook_channel('a.told')", "42501"),
        ("retry_dead_letters('a.told')", "42501"),
    ] {
        assert_eq!(
            b.refused(&format!("SELECT recsync.{hook}")).code().code(),
            code,
            "{hook}"
        );
    }
    for table in ["hook", "delivery"] {
        assert_eq!(
            b.refused(&format!("SELECT * FROM recsync.{table}"))
                .code()
                .code(),
            "42501"
        );
    }
    assert!(b.rows("SELECT * FROM recsync.status").is_empty());
    db.run("REVOKE USAGE ON FOREIGN SERVER hooks FROM hears_a");
    assert_eq!(
        a.refused("SELECT recsync.create_hook('a.more', 'embedded', 'hooks')")
            .code()
            .code(),
        "42501"
    );
    db.run("GRANT USAGE ON FOREIGN SERVER hooks TO hears_a");
    // The owner's: told. Another's: not.
    db.run("INSERT INTO item VALUES (1, 'of postgres')");
    db.settle("item_embedding");
    a.run("INSERT INTO a.note VALUES (2, 'of a')");
    receiver.wait_for(1);
    wait_until(PATIENCE, "all has been told", || {
        crate::status(&mut db, "pending") == "0"
    });
    assert_eq!(receiver.keys(), [json!("2")]);
    assert_eq!(
        a.one::<i64>("SELECT count(*) FROM recsync.status WHERE kind = 'hook'"),
        1
    );
    // Sold: it is not heard of any more.
    db.run("ALTER TABLE a.note OWNER TO postgres; ALTER VIEW a.note_embedding OWNER TO postgres; ALTER TABLE a.note_embedding_g1 OWNER TO postgres");
    db.run("INSERT INTO a.note VALUES (3, 'sold')");
    db.settle("a.note_embedding");
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.delivery"), 0);
    assert_eq!(receiver.keys(), [json!("2")]);
    // A right that is taken away stops the letters; given again, it lets them go on.
    db.run("REVOKE USAGE ON FOREIGN SERVER hooks FROM hears_a");
    wait_until(PATIENCE, "the hook is paused", || {
        crate::status(&mut db, "state") == "paused"
    });
    assert!(crate::status(&mut db, "paused_reason").contains("USAGE"));
    db.run("GRANT USAGE ON FOREIGN SERVER hooks TO hears_a");
    wait_until(PATIENCE, "the hook runs", || {
        crate::status(&mut db, "state") == "running"
    });
    drop((a, b));
    db.run("SELECT recsync.drop_pipeline('a.note_embedding'); SELECT recsync.drop_hook('a.told'); DROP OWNED BY hears_a, hears_b CASCADE; DROP ROLE hears_a, hears_b");
}

/// Whoever gives the right finds no pause that could be ended yet.
#[test]
fn right_that_is_given_while_its_lack_is_being_noted_lets_the_hook_go_on() {
    const ABOUT_TO: &str = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'recsync worker' AND wait_event_type = 'Lock' AND datname = current_database())";
    let (api, receiver) = (Api::start(), Receiver::start());
    let mut db = shared().database();
    db.items(&api, "");
    server(&mut db, &receiver, "");
    db.run(
        "CREATE ROLE hears_late; GRANT USAGE ON FOREIGN SERVER hooks, api TO hears_late; GRANT SELECT ON item TO hears_late;
         GRANT CREATE ON SCHEMA public TO hears_late; SELECT recsync.create_hook('told', 'embedded', 'hooks');
         UPDATE recsync.hook SET owner = 'hears_late'; ALTER VIEW item_embedding OWNER TO hears_late; ALTER TABLE item_embedding_g1 OWNER TO hears_late",
    );
    let mut holds = db.connect();
    holds.run("BEGIN; SELECT FROM recsync.hook FOR UPDATE");
    db.run("REVOKE USAGE ON FOREIGN SERVER hooks FROM hears_late");
    wait_until(PATIENCE, "the worker is about to pause it", || {
        db.one(ABOUT_TO)
    });
    db.run("GRANT USAGE ON FOREIGN SERVER hooks TO hears_late");
    holds.run("COMMIT");
    db.run("INSERT INTO item VALUES (1, 'told at last')");
    receiver.wait_for(1);
    db.run("DROP OWNED BY hears_late CASCADE; DROP ROLE hears_late");
}
