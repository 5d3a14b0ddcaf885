//! Failures that wait for a person: the pipeline is paused with the reason, and goes on when it is told to or when
//! its server is changed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use crate::subject::{ROWS, Subject};
use crate::support::{Api, Cluster, Fault, PATIENCE, Sql, wait_until};

/// A change of the server that mends what only the script knows of.
const ALTER: &str = "ALTER SERVER api OPTIONS (SET price_per_million_tokens '3')";

#[test]
fn refused_configuration_pauses_with_its_reason_and_nothing_more_is_sent_until_somebody_acts() {
    let mut subject = Subject::new("max_attempts '1', price_per_million_tokens '2'");
    let names_the_key = r#"{"error":{"code":401,"message":"unknown key"}}"#;
    for (fault, says) in [
        (Fault::Status(401), "401"),
        (Fault::Status(402), "402"),
        (Fault::Status(403), "403"),
        (Fault::Status(404), "404"),
        (Fault::Dimensions(8), "returned 8 dimensions"),
        (
            Fault::Says("application/json", names_the_key),
            "unknown key",
        ),
    ] {
        for act in ["SELECT recsync.resume('item_embedding')", ALTER] {
            subject.api.play([fault.clone()]);
            subject.insert(ROWS);
            let reason = subject.paused_because();
            assert!(reason.contains(says), "{fault:?}: {reason}");
            // Another text each time: one that was known would need no request.
            subject.db.run(&format!(
                "INSERT INTO item VALUES (1000, 'while it is paused, after ' || {})",
                subject.next
            ));
            subject.db.pause(Duration::from_millis(100));
            assert_eq!(subject.sizes(), [4], "{fault:?}: sent while it is paused");
            subject.db.run(act);
            assert_ne!(subject.state(), "paused", "{fault:?}: {act}");
            subject.settle_in_step();
            // What had its vector before is not sent again.
            assert_eq!(subject.sizes(), [4, 5], "{fault:?}: {act}");
            subject.db.run("DELETE FROM item WHERE id = 1000");
        }
    }
}

#[test]
fn server_without_tls_behind_an_https_address_pauses_and_the_right_address_mends_it() {
    let mut subject = Subject::new("");
    let address = subject.api.url();
    let secure = address.replace("http:", "https:");
    subject
        .db
        .run(&format!("ALTER SERVER api OPTIONS (SET url '{secure}')"));
    subject.insert(ROWS);
    let reason = subject.paused_because();
    assert!(reason.starts_with("TLS failed"), "{reason}");
    assert_eq!(subject.sizes(), [0; 0], "a request was read");
    subject
        .db
        .run(&format!("ALTER SERVER api OPTIONS (SET url '{address}')"));
    subject.settle_in_step();
    assert_eq!(subject.sizes(), [4]);
}

#[test]
fn options_that_do_not_fit_pause_and_are_mended_by_another_change() {
    let mut subject = Subject::new("");
    subject.insert(ROWS);
    subject.settle_in_step();
    subject
        .db
        .run("ALTER SERVER api OPTIONS (SET dimensions '8')");
    let reason = subject.paused_because();
    assert!(reason.contains("now gives 8 dimensions"), "{reason}");
    subject.insert(ROWS);
    // A change that mends nothing.
    subject
        .db
        .run("ALTER SERVER api OPTIONS (SET dimensions '9')");
    crate::support::wait_until(crate::support::PATIENCE, "it is paused again", || {
        subject.db.one("SELECT COALESCE(bool_or(paused_reason LIKE '%gives 9 dim%'), false) FROM recsync.status")
    });
    assert_eq!(subject.sizes(), [0; 0]);
    subject
        .db
        .run("ALTER SERVER api OPTIONS (SET dimensions '16')");
    subject.settle_in_step();
    assert_eq!(
        subject.sizes(),
        [4],
        "rows that had their vectors are not sent again"
    );
}

#[test]
fn server_that_is_gone_pauses_and_one_of_its_name_lets_it_go_on() {
    let mut subject = Subject::new("");
    subject.db.run("DROP SERVER api CASCADE");
    subject.insert(ROWS);
    let reason = subject.paused_because();
    assert!(reason.contains("does not exist"), "{reason}");
    let Subject { api, db, .. } = &mut subject;
    db.server("api", api, "");
    subject.settle_in_step();
    assert_eq!(subject.sizes(), [4]);
}

#[test]
fn right_to_use_the_server_and_a_user_mapping_mend_what_they_were_the_reason_of() {
    let mut subject = Subject::new("");
    subject.db.run("DROP ROLE IF EXISTS keeper; CREATE ROLE keeper LOGIN; GRANT CREATE ON SCHEMA public TO keeper");
    subject.db.run("ALTER TABLE item OWNER TO keeper; ALTER VIEW item_embedding OWNER TO keeper; ALTER TABLE item_embedding_g1 OWNER TO keeper");
    subject.insert(ROWS);
    let reason = subject.paused_because();
    assert!(reason.contains("no USAGE"), "{reason}");
    subject
        .db
        .run("GRANT USAGE ON FOREIGN SERVER api TO keeper");
    subject.settle_in_step();

    subject.api.accept_only_key("another");
    subject.insert(ROWS);
    assert!(subject.paused_because().contains("401"));
    subject
        .api
        .accept_only_key(crate::support::cluster::TEST_API_KEY);
    subject
        .db
        .run("CREATE USER MAPPING FOR keeper SERVER api OPTIONS (api_key_env 'TEST_API_KEY')");
    subject.settle_in_step();
    subject
        .db
        .run("DROP OWNED BY keeper CASCADE; DROP ROLE keeper");
}

#[test]
fn alter_server_resumes_neither_what_a_person_paused_nor_what_lacks_a_column_nor_others_pipelines()
{
    let mut subject = Subject::new("price_per_million_tokens '2'");
    let other = Api::start();
    subject.db.server("other", &other, "");
    let paused = "SELECT state = 'paused' AND paused_reason IS NULL FROM recsync.status";

    subject.db.run("SELECT recsync.pause('item_embedding')");
    subject.db.run(ALTER);
    assert!(subject.db.one::<bool>(paused), "a person's pause was ended");
    subject.db.run("SELECT recsync.resume('item_embedding')");

    // A person takes over a pause that recsync has made.
    subject.api.play([Fault::Status(403)]);
    subject.insert(ROWS);
    subject.paused_because();
    subject
        .db
        .run("ALTER SERVER other OPTIONS (ADD max_attempts '4')");
    subject.db.run(&format!("BEGIN; {ALTER}; ROLLBACK"));
    assert_eq!(
        subject.state(),
        "paused",
        "another server, and what never happened"
    );
    subject.db.run("SELECT recsync.pause('item_embedding')");
    subject.db.run(ALTER);
    assert!(subject.db.one::<bool>(paused), "a person's pause was ended");
    subject.db.run("SELECT recsync.resume('item_embedding')");
    subject.settle_in_step();

    subject.db.run("ALTER TABLE item DROP COLUMN title");
    assert!(subject.paused_because().contains("title"));
    subject.db.run(ALTER);
    assert_eq!(subject.state(), "paused", "it lacks a column");
}

#[test]
fn key_file_that_is_changed_heals_a_401_at_once_or_after_the_pause() {
    let directory = std::env::temp_dir().join(format!("recsync-keys-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let directory = directory.canonicalize().unwrap();
    let write = |key: &str| {
        let file = directory.join("provider.key");
        fs::write(&file, key).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        crate::support::cluster::own(&file);
    };
    write("first");
    let cluster = Cluster::start(&[("recsync.secret_directory", directory.to_str().unwrap())]);
    let api = Api::start();
    let mut db = cluster.database();
    db.run(&format!(
        "CREATE SERVER api FOREIGN DATA WRAPPER recsync OPTIONS (api 'openai', url '{}', model 'test', dimensions '16',
         api_key_file 'provider.key', max_concurrency '1')",
        api.url()
    ));
    db.run("CREATE TABLE item (id int PRIMARY KEY, title text)");
    db.pipeline("item_embedding", "item");
    let mut subject = Subject::of(api, db);

    // The key is changed while a request with the old one is in the air.
    subject.api.accept_only_key("second");
    subject.api.hold();
    subject.insert(ROWS);
    subject.api.wait_until_held(1);
    write("second");
    subject.api.release();
    subject.settle_in_step();
    assert_eq!(subject.sizes(), [4, 4]);

    // The provider is quicker than the person.
    subject.api.accept_only_key("third");
    subject.insert(ROWS);
    assert!(subject.paused_because().contains("401"));
    assert_eq!(subject.sizes(), [4]);
    write("third");
    subject.db.run("SELECT recsync.resume('item_embedding')");
    subject.settle_in_step();
    assert_eq!(subject.sizes(), [4, 4]);
    let request = subject.api.requests().pop().unwrap();
    assert_eq!(request.header("authorization"), Some("Bearer third"));
    drop(subject);
    fs::remove_dir_all(&directory).unwrap();
}

/// Whoever gives the right finds no pause that could be ended yet.
#[test]
fn right_that_is_given_while_its_lack_is_being_noted_ends_the_pause() {
    const ABOUT_TO: &str = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'recsync worker' AND wait_event_type = 'Lock' AND datname = current_database())";
    let mut subject = Subject::new("");
    subject.db.run("DROP ROLE IF EXISTS holder; CREATE ROLE holder LOGIN; GRANT CREATE ON SCHEMA public TO holder; GRANT SELECT ON item TO holder; GRANT USAGE ON FOREIGN SERVER api TO holder");
    subject.db.run(
        "ALTER VIEW item_embedding OWNER TO holder; ALTER TABLE item_embedding_g1 OWNER TO holder",
    );
    let mut holds = subject.db.connect();
    for (id, right, what) in [
        (1000, "USAGE", "FOREIGN SERVER api"),
        (1001, "SELECT", "TABLE item"),
    ] {
        subject.insert(ROWS);
        subject.settle_in_step();
        let db = &mut subject.db;
        holds.run("BEGIN; SELECT FROM recsync.pipeline FOR UPDATE");
        db.run(&format!("REVOKE {right} ON {what} FROM holder"));
        wait_until(PATIENCE, "the worker is about to pause it", || {
            db.one(ABOUT_TO)
        });
        db.run(&format!("GRANT {right} ON {what} TO holder"));
        db.run(&format!("INSERT INTO item VALUES ({id}, 'meanwhile')"));
        holds.run("COMMIT");
        wait_until(PATIENCE, "it goes on", || {
            db.one(&format!(
                "SELECT EXISTS (SELECT FROM item_embedding WHERE id = {id})"
            ))
        });
    }
    subject
        .db
        .run("DROP OWNED BY holder CASCADE; DROP ROLE holder");
}
