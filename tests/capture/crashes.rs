//! Two-phase commit and unlogged tables, before and after a crash of the server.

use super::case::{Case, Mode, Pipelines};
use super::runner::check;
use crate::support::Cluster;

#[test]
fn prepared_transactions_and_unlogged_tables_are_logged_and_embedded_also_after_a_crash() {
    let cluster = Cluster::start(&[("max_prepared_transactions", "4")]);
    check(&cluster, Mode::Keys, crashes());
}

#[test]
fn prepared_transactions_and_unlogged_tables_are_audited_also_after_a_crash() {
    let cluster = Cluster::start(&[("max_prepared_transactions", "4")]);
    check(&cluster, Mode::Audited, crashes());
}

// A step a line.
#[rustfmt::skip]
fn crashes() -> Vec<Case> {
    const CHANGES: &str = "BEGIN; INSERT INTO item VALUES (4, 'prepared'); UPDATE item SET title = 'prepared', id = 11 WHERE id = 1; SAVEPOINT s; DELETE FROM item; ROLLBACK TO s; DELETE FROM item WHERE id = 2; PREPARE TRANSACTION 'p'";
    const LOGGED: &str = "INSERT 4; UPDATE 11 <- 1; DELETE 2";
    vec![
        Case::three("a prepared transaction is seen when it is committed")
            .run(CHANGES, "")
            .run("UPDATE item SET title = 'beside' WHERE id = 3", "UPDATE 3")
            .run("COMMIT PREPARED 'p'", LOGGED)
            .run("INSERT INTO item VALUES (5, 'five')", "INSERT 5"),
        Case::three("a prepared transaction that is rolled back leaves nothing")
            .run(CHANGES, "")
            .run("ROLLBACK PREPARED 'p'", "")
            .run("BEGIN; UPDATE item SET title = 'kept' WHERE id = 1; COMMIT", "UPDATE 1"),
        Case::three("a prepared transaction that another session ends")
            .run(CHANGES, "")
            .other("INSERT INTO item VALUES (6, 'six')", "INSERT 6")
            .other("COMMIT PREPARED 'p'", LOGGED)
            .run(CHANGES.replace("item VALUES (4", "item VALUES (7").replace("id = 1;", "id = 3;").replace("id = 11", "id = 33"), "")
            .other("ROLLBACK PREPARED 'p'", ""),
        Case::three("two prepared transactions, ended the other way round")
            .run("BEGIN; UPDATE item SET title = 'a' WHERE id = 1; PREPARE TRANSACTION 'a'", "")
            .run("BEGIN; UPDATE item SET title = 'b' WHERE id = 2; PREPARE TRANSACTION 'b'", "")
            .run("COMMIT PREPARED 'b'", "UPDATE 2")
            .run("COMMIT PREPARED 'a'", "UPDATE 1"),
        Case::three("a prepared transaction of many rows")
            .run("BEGIN; INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1001, 2200) i; PREPARE TRANSACTION 'p'", "")
            .run("COMMIT PREPARED 'p'", "INSERT 1001..2200"),
        Case::three("a prepared TRUNCATE")
            .leaves("BEGIN; TRUNCATE item; INSERT INTO item VALUES (1, 'after'); PREPARE TRANSACTION 'p'", "", Pipelines::Unchecked)
            .run("COMMIT PREPARED 'p'", "TRUNCATE; INSERT 1"),
        Case::three("a deferred trigger that writes when the transaction is prepared")
            .given("CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO item VALUES (NEW.id + 100, 'late'); RETURN NULL; END $$;
                    CREATE CONSTRAINT TRIGGER late AFTER INSERT ON item DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.id < 100) EXECUTE FUNCTION late()")
            .run("BEGIN; INSERT INTO item VALUES (4, 'four'); PREPARE TRANSACTION 'p'", "")
            .run("COMMIT PREPARED 'p'", "INSERT 4; INSERT 104"),
        Case::three("a column is renamed in a prepared transaction").not_replayed()
            .leaves("BEGIN; UPDATE item SET title = 'prepared' WHERE id = 1; ALTER TABLE item RENAME title TO headline; PREPARE TRANSACTION 'p'", "", Pipelines::Unchecked)
            .run("ROLLBACK PREPARED 'p'", "")
            .run("UPDATE item SET title = 'after' WHERE id = 1", "UPDATE 1")
            .leaves("BEGIN; UPDATE item SET title = 'prepared' WHERE id = 2; ALTER TABLE item RENAME title TO headline; PREPARE TRANSACTION 'p'", "", Pipelines::Unchecked)
            .now(|w| w.text = "s.headline".into())
            .run("COMMIT PREPARED 'p'", "UPDATE 2")
            .other("UPDATE item SET headline = 'after' WHERE id = 3", "UPDATE 3"),
        Case::three("a pipeline is declared in a prepared transaction").unwatched()
            .run("BEGIN; SELECT recsync.create_pipeline('item_embedding', 'item', columns => '{title}', server => 'api', index => 'none'); PREPARE TRANSACTION 'p'", "")
            .now_watched("item")
            .run("COMMIT PREPARED 'p'", "")
            .run("UPDATE item SET title = 'changed' WHERE id = 1", "UPDATE 1"),
        Case::three("a table is dropped in a prepared transaction").not_replayed()
            .leaves("BEGIN; DROP TABLE item; PREPARE TRANSACTION 'p'", "", Pipelines::Unchecked)
            .leaves("COMMIT PREPARED 'p'", "", Pipelines::Gone),
        Case::three("a transaction that cannot be prepared leaves nothing")
            .refused("BEGIN; UPDATE item SET title = 'never'; CREATE TEMP TABLE mine (id int); PREPARE TRANSACTION 'p'", "0A000")
            .run("UPDATE item SET title = 'kept' WHERE id = 1", "UPDATE 1"),
        Case::three("a prepared transaction that is committed after a crash")
            .run(CHANGES, "")
            .crash()
            .run("UPDATE item SET title = 'after the crash' WHERE id = 3", "UPDATE 3")
            .run("COMMIT PREPARED 'p'", LOGGED),
        Case::three("a prepared transaction that is rolled back after a crash")
            .run(CHANGES, "")
            .crash()
            .run("ROLLBACK PREPARED 'p'", "")
            .run("UPDATE item SET title = 'after the crash' WHERE id = 1", "UPDATE 1"),
        Case::three("a transaction that a crash ends leaves nothing")
            .run("UPDATE item SET title = 'before the crash' WHERE id = 1", "UPDATE 1")
            .run("BEGIN; UPDATE item SET title = 'never'; INSERT INTO item VALUES (4, 'never')", "")
            .crash()
            .run("SELECT", "")
            .run("INSERT INTO item VALUES (4, 'after the crash')", "INSERT 4"),
        Case::over("an unlogged table is empty after a crash, and its vectors go", "CREATE UNLOGGED TABLE item (id int PRIMARY KEY, title text)")
            .not_replayed()
            .run("INSERT INTO item VALUES (1, 'one'), (2, 'two')", "INSERT 1; INSERT 2")
            .crash()
            .holds("SELECT count(*) = 0 FROM item")
            .becomes("SELECT count(*) = 0 FROM item_embedding")
            .run("INSERT INTO item VALUES (1, 'again')", "INSERT 1"),
        Case::three("a table that became unlogged")
            .not_replayed()
            .run("ALTER TABLE item SET UNLOGGED", "")
            .run("UPDATE item SET title = 'changed' WHERE id = 1", "UPDATE 1")
            .crash()
            .becomes("SELECT count(*) = 0 FROM item_embedding")
            .run("INSERT INTO item VALUES (1, 'again')", "INSERT 1")
            .run("ALTER TABLE item SET LOGGED", "")
            .crash()
            .run("UPDATE item SET title = 'kept' WHERE id = 1", "UPDATE 1"),
    ]
}
