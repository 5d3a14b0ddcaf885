//! Whose a pipeline is: given away, reassigned, dropped with its owner or with the owner of its server.

use crate::support::{Api, Database, PATIENCE, Sql, shared, wait_until};

/// Roles belong to the cluster: each test has its own, which end with it.
struct Roles {
    old: String,
    new: String,
}

fn roles(db: &mut Database) -> Roles {
    let [old, new] = ["old", "new"].map(|name| format!("{name}_{}", db.name));
    db.run(&format!(
        "DROP ROLE IF EXISTS {old}, {new}; CREATE ROLE {old} LOGIN; CREATE ROLE {new} LOGIN; GRANT CREATE ON SCHEMA public TO {old}, {new}"
    ));
    Roles { old, new }
}

/// A pipeline of role `old` over a table of theirs, whose text says as whom it is rendered.
fn pipeline(db: &mut Database, api: &Api, roles: &Roles) {
    let Roles { old, .. } = roles;
    db.server("api", api, "");
    db.run(&format!("GRANT USAGE ON FOREIGN SERVER api TO {old}"));
    db.connect_as(old).run(
        "CREATE TABLE item (id int PRIMARY KEY, title text); INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 3) i;
         SELECT recsync.create_pipeline('e', 'item', content => $$ title || ' by ' || current_user $$, server => 'api', index => 'none')",
    );
    db.settle("e");
}

#[track_caller]
fn assert_rendered_by(db: &mut Database, api: &Api, role: &str) {
    db.settle("e");
    db.assert_in_step(
        api,
        &format!("SELECT i.id::text, i.title || ' by {role}', e.embedding::text FROM item i FULL JOIN e ON e.id = i.id"),
    );
}

fn owners(db: &mut Database) -> Vec<String> {
    db.column(
        "SELECT DISTINCT relowner::regrole::text FROM pg_class WHERE relname IN ('e', 'e_g1')",
    )
}

/// Why the pipeline is paused, once it is.
fn paused_because(db: &mut Database) -> String {
    let mut reason = None;
    wait_until(PATIENCE, "it is paused", || {
        reason = db
            .column("SELECT paused_reason FROM recsync.status WHERE state = 'paused' AND paused_reason IS NOT NULL")
            .pop();
        reason.is_some()
    });
    reason.unwrap()
}

#[test]
fn table_follows_the_view_to_a_new_owner_and_rows_are_rendered_as_them() {
    let api = Api::start();
    let mut db = shared().database();
    let roles = roles(&mut db);
    pipeline(&mut db, &api, &roles);
    let Roles { old, new } = &roles;
    db.run(&format!("GRANT SELECT ON item TO {new}; GRANT USAGE ON FOREIGN SERVER api TO {new}; ALTER VIEW e OWNER TO {new}"));
    assert_eq!(owners(&mut db), [new.as_str()]);
    db.run("UPDATE item SET title = 'changed'");
    assert_rendered_by(&mut db, &api, new);
    // The new owner may do what the owner may, and the old one may not any more.
    db.connect_as(new).run("SELECT recsync.pause('e'); SELECT recsync.resume('e'); SELECT recsync.alter_pipeline('e', schedule => 'near_realtime')");
    let error = db
        .connect_as(old)
        .refused("SELECT recsync.alter_pipeline('e', schedule => 'daily')");
    assert_eq!(error.code().code(), "42501");
    assert!(error.hint().unwrap().contains(new), "{error:?}");
    // Back again by the other way; and dropped by who owns it, but not its source.
    db.run(&format!("GRANT {old} TO {new}"));
    db.connect_as(new).run(&format!(
        "SELECT recsync.alter_pipeline('e', owner => '{old}', schedule => 'realtime')"
    ));
    assert_eq!(owners(&mut db), [old.as_str()]);
    db.run("UPDATE item SET title = 'changed back'");
    assert_rendered_by(&mut db, &api, old);
    db.run(&format!("ALTER VIEW e OWNER TO {new}"));
    db.connect_as(new).run("SELECT recsync.drop_pipeline('e')");
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM pg_trigger WHERE tgname ~ 'recsync'"),
        0
    );
    drop_roles(&mut db, &roles);
}

fn drop_roles(db: &mut Database, Roles { old, new }: &Roles) {
    db.run(&format!(
        "DROP OWNED BY {old}, {new} CASCADE; DROP ROLE {old}, {new}"
    ));
}

#[test]
fn new_owner_without_rights_pauses_with_the_grant_and_goes_on_once_they_are_granted() {
    let api = Api::start();
    let mut db = shared().database();
    let roles = roles(&mut db);
    pipeline(&mut db, &api, &roles);
    let new = &roles.new;
    db.run(&format!(
        "SELECT recsync.alter_pipeline('e', owner => '{new}')"
    ));
    assert!(
        db.one::<bool>("SELECT paused FROM recsync.pipeline"),
        "in the same transaction"
    );
    let reason = paused_because(&mut db);
    let grant = format!("GRANT SELECT ON public.item TO {new}");
    assert!(reason.contains(&grant), "{reason}");
    db.run("UPDATE item SET title = 'meanwhile'");
    db.run(&grant);
    let reason = {
        wait_until(PATIENCE, "the other reason", || {
            paused_because(&mut db).contains("USAGE")
        });
        paused_because(&mut db)
    };
    let grant = format!("GRANT USAGE ON FOREIGN SERVER api TO {new}");
    assert!(reason.contains(&grant), "{reason}");
    db.run(&grant);
    assert_rendered_by(&mut db, &api, new);
    // A right that is taken away later.
    db.run(&format!("REVOKE SELECT ON item FROM {new}"));
    db.run("UPDATE item SET title = 'revoked'");
    assert!(paused_because(&mut db).contains("GRANT SELECT"));
    db.run(&format!("GRANT SELECT ON item TO {new}"));
    assert_rendered_by(&mut db, &api, new);
    drop_roles(&mut db, &roles);
}

#[test]
fn giving_away_needs_what_postgresql_asks_for() {
    let api = Api::start();
    let mut db = shared().database();
    let roles = roles(&mut db);
    pipeline(&mut db, &api, &roles);
    let Roles { old, new } = &roles;
    for statement in [
        format!("SELECT recsync.alter_pipeline('e', owner => '{new}')"),
        format!("ALTER VIEW e OWNER TO {new}"),
    ] {
        let error = db.connect_as(old).refused(&statement);
        assert_eq!(error.code().code(), "42501", "{statement}: {error:?}");
    }
    let error = db
        .connect_as(new)
        .refused("SELECT recsync.alter_pipeline('e', content => 'title')");
    assert_eq!(error.code().code(), "42501");
    // An administrator of recsync's is not the owner: expressions run with the owner's rights.
    db.run(&format!("GRANT recsync_admin TO {new}"));
    let error = db
        .connect_as(new)
        .refused("SELECT recsync.alter_pipeline('e', content => 'title')");
    assert_eq!(error.code().code(), "42501");
    // Another server needs its USAGE.
    db.server("second", &api, "");
    let error = db
        .connect_as(old)
        .refused("SELECT recsync.alter_pipeline('e', server => 'second')");
    assert_eq!(error.code().code(), "42501");
    assert!(
        error
            .hint()
            .unwrap()
            .contains("GRANT USAGE ON FOREIGN SERVER second"),
        "{error:?}"
    );
    assert_eq!(owners(&mut db), [old.as_str()]);
    // Who holds the view keeps nobody waiting.
    let mut other = db.connect();
    let mut reader = other.transaction().unwrap();
    reader.batch_execute("SELECT count(*) FROM e").unwrap();
    let error = db.refused(&format!(
        "SELECT recsync.alter_pipeline('e', owner => '{new}')"
    ));
    assert_eq!(error.code().code(), "55P03");
    reader.commit().unwrap();
    db.run(&format!("REVOKE recsync_admin FROM {new}"));
    drop_roles(&mut db, &roles);
}

#[test]
fn reassign_owned_gives_the_pipeline_away_with_its_source() {
    let api = Api::start();
    let mut db = shared().database();
    let roles = roles(&mut db);
    pipeline(&mut db, &api, &roles);
    let Roles { old, new } = &roles;
    db.run(&format!("REASSIGN OWNED BY {old} TO {new}"));
    assert_eq!(owners(&mut db), [new.as_str()]);
    let reason = db.one::<String>("SELECT paused_reason FROM recsync.pipeline");
    assert!(
        reason.contains(&format!("GRANT USAGE ON FOREIGN SERVER api TO {new}")),
        "{reason}"
    );
    db.run(&format!("DROP OWNED BY {old}; DROP ROLE {old}"));
    db.run("UPDATE item SET title = 'reassigned'; DELETE FROM item WHERE id = 3");
    db.run(&format!("GRANT USAGE ON FOREIGN SERVER api TO {new}"));
    assert_rendered_by(&mut db, &api, new);
    db.run(&format!("DROP OWNED BY {new} CASCADE; DROP ROLE {new}"));
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.pipeline"), 0);
}

#[test]
fn drop_owned_of_its_owner_leaves_nothing_of_the_pipeline_and_no_write_fails() {
    for into_column in ["", ", into_column => 'v'"] {
        let api = Api::start();
        let mut db = shared().database();
        let roles = roles(&mut db);
        let Roles { old, new } = &roles;
        db.server("api", &api, "");
        db.run(&format!(
            "CREATE TABLE item (id int PRIMARY KEY, title text); INSERT INTO item VALUES (1, 'one');
             SELECT recsync.create_pipeline('e', 'item', columns => '{{title}}', server => 'api'{into_column});
             GRANT SELECT, UPDATE ON item TO {old}; GRANT USAGE ON FOREIGN SERVER api TO {old}"
        ));
        db.run("SELECT recsync.create_pipeline('other', 'item', columns => '{title}', server => 'api', index => 'none')");
        db.settle("e");
        db.run(&format!("ALTER VIEW e OWNER TO {old}"));
        db.settle("e");
        // Rolled back it is as before.
        db.run(&format!("BEGIN; DROP OWNED BY {old}; ROLLBACK"));
        db.run("UPDATE item SET title = 'rolled back'");
        db.settle("e");
        db.run(&format!("BEGIN; UPDATE item SET title = 'in it'; DROP OWNED BY {old}; INSERT INTO item VALUES (2, 'after it'); COMMIT"));
        let of_e = "SELECT relname::text FROM pg_class WHERE relname ~ '^e(_g1)?$' UNION ALL SELECT proname::text FROM pg_proc WHERE proname = 'e_g1'
                    UNION ALL SELECT relation FROM recsync.pipeline WHERE relation = 'public.e' UNION ALL SELECT 'backfill ' || pipeline_id FROM recsync.backfill WHERE pipeline_id = 1";
        assert_eq!(db.column::<String>(of_e), Vec::<String>::new());
        db.run("INSERT INTO item VALUES (3, 'three'); UPDATE item SET title = title || '.'; DELETE FROM item WHERE id = 1");
        db.settle("other");
        db.assert_in_step(&api, "SELECT i.id::text, i.title, o.embedding::text FROM item i FULL JOIN other o ON o.id = i.id");
        // With the last of them go the triggers.
        db.run(&format!("GRANT SELECT ON item TO {new}; GRANT USAGE ON FOREIGN SERVER api TO {new}; ALTER VIEW other OWNER TO {new}"));
        db.run(&format!("DROP OWNED BY {new}"));
        assert_eq!(db.one::<i64>("SELECT (SELECT count(*) FROM recsync.pipeline) + (SELECT count(*) FROM recsync.source) + (SELECT count(*) FROM pg_trigger WHERE tgname ~ 'recsync')"), 0);
        db.run("INSERT INTO item VALUES (4, 'four'); UPDATE item SET title = title || '.'; TRUNCATE item");
        drop_roles(&mut db, &roles);
    }
}

#[test]
fn drop_owned_whose_source_is_locked_leaves_triggers_that_harm_nobody() {
    let api = Api::start();
    let mut db = shared().database();
    let roles = roles(&mut db);
    let Roles { old, .. } = &roles;
    db.items(&api, "");
    db.run(&format!("GRANT SELECT ON item TO {old}; GRANT USAGE ON FOREIGN SERVER api TO {old}; ALTER VIEW item_embedding OWNER TO {old}"));
    let mut other = db.connect();
    let mut writer = other.transaction().unwrap();
    writer
        .batch_execute("INSERT INTO item VALUES (1, 'one')")
        .unwrap();
    // GRANTs on the source go, too, for which PostgreSQL locks nothing.
    db.run(&format!("DROP OWNED BY {old}"));
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.pipeline"), 0);
    writer
        .batch_execute("UPDATE item SET title = 'two'")
        .unwrap();
    writer.commit().unwrap();
    db.run("INSERT INTO item VALUES (2, 'two'); UPDATE item SET title = 'three'; TRUNCATE item");
    db.pipeline("again", "item");
    db.run("INSERT INTO item VALUES (3, 'three')");
    db.settle("again");
    db.assert_in_step(&api, "SELECT i.id::text, i.title, e.embedding::text FROM item i FULL JOIN again e ON e.id = i.id");
    drop_roles(&mut db, &roles);
}

#[test]
fn drop_owned_of_the_servers_owner_pauses_the_pipeline() {
    let api = Api::start();
    let mut db = shared().database();
    let roles = roles(&mut db);
    pipeline(&mut db, &api, &roles);
    let Roles { old, new } = &roles;
    db.run(&format!(
        "GRANT USAGE ON FOREIGN DATA WRAPPER recsync TO {new}; ALTER SERVER api OWNER TO {new}"
    ));
    db.run(&format!("DROP OWNED BY {new} CASCADE"));
    let reason = db.one::<String>("SELECT paused_reason FROM recsync.pipeline");
    assert!(reason.contains("\"api\" does not exist"), "{reason}");
    db.run("UPDATE item SET title = 'without a server'");
    // Both at once: a server without the right would be a reason to pause, which comes when it likes.
    db.run("BEGIN");
    db.server("api", &api, "");
    db.run(&format!("GRANT USAGE ON FOREIGN SERVER api TO {old}"));
    db.run("COMMIT; SELECT recsync.resume('e')");
    assert_rendered_by(&mut db, &api, old);
    drop_roles(&mut db, &roles);
}

#[test]
fn source_given_to_another_owner_with_the_view_after_it_goes_on() {
    let api = Api::start();
    let mut db = shared().database();
    let roles = roles(&mut db);
    pipeline(&mut db, &api, &roles);
    let Roles { old, new } = &roles;
    db.run(&format!("GRANT USAGE ON FOREIGN SERVER api TO {new}"));
    db.run(&format!("ALTER TABLE item OWNER TO {new}"));
    db.run("UPDATE item SET title = 'of another'");
    let reason = paused_because(&mut db);
    assert!(
        reason.contains(&format!("GRANT SELECT ON public.item TO {old}")),
        "{reason}"
    );
    db.run(&format!("ALTER VIEW e OWNER TO {new}"));
    assert_rendered_by(&mut db, &api, new);
    drop_roles(&mut db, &roles);
}

#[test]
fn a_filter_runs_with_its_owners_rights_whoever_searches() {
    let api = Api::start();
    let mut db = shared().database();
    let roles = roles(&mut db);
    pipeline(&mut db, &api, &roles);
    let Roles { old, .. } = &roles;
    db.connect_as(old).run(&format!(
        "CREATE FUNCTION is_owners(title text) RETURNS boolean LANGUAGE plpgsql STABLE AS
           $$ BEGIN RETURN current_user = '{old}' AND current_setting('search_path') LIKE 'pg_catalog,%' AND title <> 'hidden'; END $$;
         SELECT recsync.alter_pipeline('e', row_filter => 'is_owners(title)')"
    ));
    db.settle("e");
    assert_eq!(db.one::<i64>("SELECT count(*) FROM e"), 3);
    let found = "SELECT COALESCE(string_agg(item, ' ' ORDER BY item), '') FROM recsync.search('e', 'row', k => 2)";
    assert_eq!(db.one::<String>(found).len(), 3, "two rows");
    // The nearest are hidden, and their vectors are not removed yet: more are looked at.
    db.run("SELECT recsync.pause('e')");
    db.run("INSERT INTO item SELECT i, 'row ' || i FROM generate_series(4, 20) i; UPDATE item SET title = 'hidden' WHERE id <> 2");
    assert_eq!(db.one::<String>(found), "2");
    let similar = "SELECT count(*) FROM recsync.similar('e', '1')";
    assert_eq!(
        db.one::<i64>(similar),
        0,
        "a row that does not match has no neighbours"
    );
    db.run("UPDATE item SET title = 'shown' WHERE id <> 2");
    assert_eq!(db.one::<i64>(similar), 2);
    drop_roles(&mut db, &roles);
}

#[test]
fn table_that_somebody_holds_is_left_to_its_owner_and_a_cancelled_command_is_no_harm() {
    let api = Api::start();
    let mut db = shared().database();
    let roles = roles(&mut db);
    pipeline(&mut db, &api, &roles);
    let new = &roles.new;
    db.run(&format!(
        "GRANT SELECT ON item TO {new}; GRANT USAGE ON FOREIGN SERVER api TO {new}"
    ));
    let mut other = db.connect();
    let mut reader = other.transaction().unwrap();
    reader
        .batch_execute("LOCK TABLE e_g1 IN ACCESS SHARE MODE")
        .unwrap();
    let give = format!("ALTER VIEW e OWNER TO {new}");
    db.run("SET statement_timeout = '300 ms'");
    let error = db.refused(&give);
    assert_eq!(error.code().code(), "57014");
    db.run("SET statement_timeout = 0; ALTER VIEW e RENAME TO f; ALTER VIEW f RENAME TO e");
    db.run(&give);
    let reason =
        db.one::<String>("SELECT paused_reason FROM recsync.pipeline WHERE relation = 'public.e'");
    let left = format!("ALTER TABLE public.e_g1 OWNER TO {new}");
    assert!(reason.contains(&left), "{reason}");
    reader.commit().unwrap();
    db.run(&left);
    db.run("UPDATE item SET title = 'changed'");
    assert_rendered_by(&mut db, &api, new);
    drop_roles(&mut db, &roles);
}
