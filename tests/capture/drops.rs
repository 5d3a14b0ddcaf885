//! Columns, tables and schemas that are dropped or retyped; triggers that are switched off. The user's DDL and DML
//! always go through; what is rolled back leaves no trace.

use super::case::{Case, Mode, Pipelines};
use super::runner::check;
use crate::support::shared;

#[test]
fn a_used_column_that_is_dropped_or_retyped_pauses_the_pipeline_and_says_why() {
    check(shared(), Mode::Keys, columns());
}

#[test]
fn a_used_column_that_is_dropped_or_retyped_does_not_end_the_audit() {
    check(shared(), Mode::Audited, columns());
}

#[test]
fn a_dropped_table_takes_its_pipelines_with_it() {
    check(shared(), Mode::Keys, tables());
}

#[test]
fn a_dropped_table_takes_its_audit_with_it() {
    check(shared(), Mode::Audited, tables());
}

#[test]
fn triggers_that_were_switched_off_cost_the_log_its_lines_but_no_vector() {
    check(shared(), Mode::Keys, triggers());
}

#[test]
fn triggers_of_audited_tables_may_be_switched_off() {
    check(shared(), Mode::Audited, triggers());
}

/// `item` with rows 1 to 3, column `name` of type `kind` its text; `change` pauses the pipeline, and `mend` and resume
/// end that.
fn pauses(what: &str, kind: &str, arguments: &str, text: &str, change: &str, mend: &str) -> Case {
    Case::over(what, format!("CREATE TABLE item (id int PRIMARY KEY, name {kind}, stock int DEFAULT 0); INSERT INTO item (id, name) VALUES (1, '1.11'), (2, '2.22'), (3, '3.33')"))
        .not_replayed()
        .text(arguments, text)
        .rolled_back(format!("UPDATE item SET name = '4.44' WHERE id = 1; {change}; DELETE FROM item WHERE id = 3"))
        .rolled_back(format!("SAVEPOINT s; {change}; ROLLBACK TO s"))
        .paused(format!("BEGIN; DELETE FROM item WHERE id = 1; {change}; INSERT INTO item (id) VALUES (4); COMMIT"), "DELETE 1; INSERT 4", "name")
        .paused("INSERT INTO item (id) VALUES (5); DELETE FROM item WHERE id = 4", "INSERT 5; DELETE 4", "name")
        .paused("UPDATE item SET id = 6 WHERE id = 5", "UPDATE 6 <- 5", "name")
        .paused(mend, "", "name")
        .run("SELECT recsync.resume('item_embedding')", "")
        .run("UPDATE item SET name = '7.7' WHERE id = 6", "UPDATE 6")
        .run("UPDATE item SET stock = 1 WHERE id = 6", "(UPDATE 6)")
}

// A case a line.
#[rustfmt::skip]
fn columns() -> Vec<Case> {
    const COLUMNS: &str = "columns => '{name}'";
    const CONTENT: &str = "content => $$'name: ' || name$$";
    const FILTER: &str = "content => $$'row ' || id$$, row_filter => $$name <> 'never'$$";
    const AGAIN: &str = "ALTER TABLE item ADD name text DEFAULT 'again'";
    const DROP: &str = "ALTER TABLE item DROP name";
    vec![
        pauses("a used column is dropped and added again", "text", COLUMNS, "s.name", DROP, AGAIN),
        pauses("a column of the content is dropped and added again", "text", CONTENT, "'name: ' || s.name", DROP, AGAIN),
        pauses("a column of the row_filter is dropped and added again", "text", FILTER, "CASE WHEN s.name <> 'never' THEN 'row ' || s.id END", DROP, AGAIN),
        pauses("a used column is dropped with its type", "text", COLUMNS, "s.name", "CREATE DOMAIN code AS text; ALTER TABLE item DROP name; ALTER TABLE item ADD name code; DROP DOMAIN code CASCADE", AGAIN),
        pauses("a used text becomes a varchar", "text", COLUMNS, "s.name::text", "ALTER TABLE item ALTER name TYPE varchar(100)", ""),
        pauses("a used text becomes a number", "text", CONTENT, "'name: ' || s.name", "ALTER TABLE item ALTER name TYPE numeric USING name::numeric", ""),
        pauses("a used number becomes a rounder one", "numeric(10,2)", CONTENT, "'name: ' || s.name", "ALTER TABLE item ALTER name TYPE numeric(10,1)", ""),
        pauses("a used varchar becomes a shorter one", "varchar(10)", COLUMNS, "s.name::text", "ALTER TABLE item ALTER name TYPE varchar(3) USING left(name, 3)", ""),
        Case::three("a used column is dropped and added again at once").not_replayed()
            .leaves("BEGIN; ALTER TABLE item DROP title; ALTER TABLE item ADD title text DEFAULT 'again'; COMMIT", "", Pipelines::Unchecked)
            .run("SELECT recsync.resume('item_embedding')", "")
            .run("UPDATE item SET title = 'changed' WHERE id = 1", "UPDATE 1"),
        Case::three("the key column is dropped").not_replayed()
            .rolled_back("ALTER TABLE item DROP id")
            .paused("ALTER TABLE item DROP id", "", "id")
            .paused("INSERT INTO item (title) VALUES ('four'); UPDATE item SET title = 'changed'; DELETE FROM item WHERE title = 'four'", "", "id"),
        Case::three("the key column gets another type and its old one back").not_replayed()
            .rolled_back("ALTER TABLE item ALTER id TYPE bigint")
            .paused("ALTER TABLE item ALTER id TYPE bigint", "", "id")
            .paused("INSERT INTO item VALUES (3000000000, 'four'); DELETE FROM item WHERE id = 3000000000; UPDATE item SET title = 'changed' WHERE id = 1", "INSERT 3000000000; DELETE 3000000000; UPDATE 1", "id")
            .paused("ALTER TABLE item ALTER id TYPE int", "", "id")
            .run("SELECT recsync.resume('item_embedding')", "")
            .run("UPDATE item SET title = 'changed' WHERE id = 2", "UPDATE 2"),
        Case::three("the primary key becomes another").not_replayed()
            .rolled_back("ALTER TABLE item DROP CONSTRAINT item_pkey, ADD PRIMARY KEY (title)")
            .paused("ALTER TABLE item DROP CONSTRAINT item_pkey, ADD PRIMARY KEY (title)", "", "primary key")
            .paused("INSERT INTO item VALUES (1, 'four'); DELETE FROM item WHERE title = 'four'", "INSERT 1; DELETE 1", "primary key"),
        Case::three("an unused column is dropped and added again").not_replayed()
            .run("ALTER TABLE item DROP stock", "")
            .run("UPDATE item SET title = 'changed' WHERE id = 1", "UPDATE 1")
            .run("ALTER TABLE item ADD stock text; UPDATE item SET stock = 'new'", "~ (UPDATE 1); (UPDATE 2); (UPDATE 3)"),
        Case::over("one of two pipelines is paused", "CREATE TABLE item (id int PRIMARY KEY, title text, body text); INSERT INTO item VALUES (1, 'one', 'its body')").not_replayed()
            .given("SELECT recsync.create_pipeline('bodies', 'item', columns => '{body}', server => 'api', index => 'none')")
            .leaves("ALTER TABLE item DROP body", "", Pipelines::Unchecked)
            .becomes("SELECT paused_reason LIKE '%body%' FROM recsync.status WHERE name = 'shop.bodies'")
            .leaves("UPDATE item SET title = 'changed'", "UPDATE 1", Pipelines::Unchecked)
            .holds("SELECT recsync.wait_for('item_embedding')")
            .holds("SELECT state <> 'paused' FROM recsync.status WHERE name = 'shop.item_embedding'")
            .run("SELECT recsync.drop_pipeline('bodies')", ""),
    ]
}

// A step a line.
#[rustfmt::skip]
fn tables() -> Vec<Case> {
    const AGAIN: &str = "CREATE TABLE item (id int PRIMARY KEY, title text); INSERT INTO item VALUES (1, 'again');
        SELECT recsync.create_pipeline('item_embedding', 'item', columns => '{title}', server => 'api', index => 'none')";
    const TENANT: &str = "CREATE SCHEMA tenant; CREATE TABLE tenant.item (id int PRIMARY KEY, title text); INSERT INTO tenant.item VALUES (1, 'one')";
    vec![
        Case::three("DROP TABLE").not_replayed()
            .rolled_back("UPDATE item SET title = 'never'; DROP TABLE item")
            .rolled_back("SAVEPOINT s; DROP TABLE item; ROLLBACK TO s; DELETE FROM item WHERE id = 1")
            .run("UPDATE item SET title = 'before' WHERE id = 1", "UPDATE 1")
            .leaves("DROP TABLE item", "", Pipelines::Gone)
            .run(AGAIN, "")
            .run("UPDATE item SET title = 'changed'", "UPDATE 1"),
        Case::three("DROP TABLE by the owner, who is no superuser").not_replayed()
            .given("GRANT ALL ON SCHEMA shop TO pg_monitor; ALTER TABLE item OWNER TO pg_monitor; GRANT USAGE ON FOREIGN SERVER api TO pg_monitor")
            .leaves("SET ROLE pg_monitor; DROP TABLE item", "", Pipelines::Gone),
        Case::three("DROP TABLE after changes in the same transaction").not_replayed()
            .leaves("BEGIN; UPDATE item SET title = 'before' WHERE id = 1; DROP TABLE item; COMMIT", "gone UPDATE 1", Pipelines::Gone)
            .run(AGAIN, "")
            .run("UPDATE item SET title = 'changed'", "UPDATE 1"),
        Case::three("DROP TABLE of several, with foreign keys").also("line").not_replayed()
            .given("CREATE TABLE line (id int PRIMARY KEY, title text, item int REFERENCES item); INSERT INTO line VALUES (1, 'of one', 1)")
            .refused("DROP TABLE item", "2BP01")
            .rolled_back("DROP TABLE item CASCADE")
            .leaves("DROP TABLE line, item", "", Pipelines::Gone),
        Case::three("DROP TABLE of one of two watched tables").not_replayed()
            .given("CREATE TABLE line (id int PRIMARY KEY, title text); SELECT recsync.create_pipeline('lines', 'line', columns => '{title}', server => 'api', index => 'none')")
            .run("DROP TABLE line", "")
            .run("UPDATE item SET title = 'changed' WHERE id = 1", "UPDATE 1"),
        Case::three("DROP TABLE with several pipelines").also("item").not_replayed()
            .watch(|w| w.pipeline = "second_embedding".into())
            .leaves("DROP TABLE item", "", Pipelines::Gone),
        Case::over("DROP SCHEMA … CASCADE", TENANT).not_replayed()
            .watch(|w| (w.pipeline, w.source, w.rows) = ("tenant.item_embedding".into(), "tenant.item".into(), "tenant.item".into()))
            .rolled_back("DROP SCHEMA tenant CASCADE")
            .leaves("DROP SCHEMA tenant CASCADE", "", Pipelines::Gone),
        Case::over("DROP SCHEMA … CASCADE with the table, where the pipeline's view is elsewhere", TENANT).not_replayed()
            .watch(|w| (w.pipeline, w.source, w.rows) = ("tenant.item_embedding".into(), "tenant.item".into(), "tenant.item".into()))
            .now(|w| w.pipeline = "item_embedding".into())
            .run("ALTER VIEW tenant.item_embedding SET SCHEMA shop", "")
            .leaves("DROP SCHEMA tenant CASCADE", "", Pipelines::Gone),
        Case::three("DROP TABLE where a view of the user's depends on the pipeline's").not_replayed()
            .run("CREATE VIEW mine AS SELECT id FROM item_embedding", "")
            .leaves_saying("DROP TABLE item", "", "item_embedding", Pipelines::Unchecked)
            .holds("SELECT count(*) = 0 FROM recsync.status")
            .holds("SELECT count(*) = 3 FROM mine")
            .leaves("DROP VIEW mine, item_embedding; DROP TABLE item_embedding_g1", "", Pipelines::Gone),
        Case::three("DROP OWNED BY").not_replayed().only(&[Mode::Keys])
            .run("CREATE ROLE shopkeeper; GRANT ALL ON SCHEMA shop TO shopkeeper; GRANT USAGE ON FOREIGN SERVER api TO shopkeeper; ALTER TABLE item OWNER TO shopkeeper", "")
            .leaves("DROP OWNED BY shopkeeper", "", Pipelines::Unchecked)
            .becomes("SELECT count(*) = 0 FROM recsync.status")
            .leaves("DROP VIEW IF EXISTS item_embedding; DROP TABLE IF EXISTS item_embedding_g1; DROP ROLE shopkeeper", "", Pipelines::Gone),
    ]
}

// A step a line.
#[rustfmt::skip]
fn triggers() -> Vec<Case> {
    fn capture(switch: &str) -> String {
        format!("DO $$ BEGIN EXECUTE (SELECT format('ALTER TABLE item {switch} TRIGGER %I', tgname) FROM pg_trigger WHERE tgrelid = 'item'::regclass AND tgname LIKE '00_recsync_capture%'); END $$")
    }
    const WHILE_OFF: &str = "UPDATE item SET title = 'while off' WHERE id = 1; DELETE FROM item WHERE id = 2; INSERT INTO item VALUES (4, 'while off')";
    vec![
        Case::three("triggers that are switched off and on in one transaction").not_replayed()
            .rolled_back(format!("ALTER TABLE item DISABLE TRIGGER USER; {WHILE_OFF}; ALTER TABLE item ENABLE TRIGGER USER"))
            .run(format!("BEGIN; ALTER TABLE item DISABLE TRIGGER USER; {WHILE_OFF}; ALTER TABLE item ENABLE TRIGGER USER; COMMIT"), "")
            .run("UPDATE item SET title = 'after' WHERE id = 3", "UPDATE 3"),
        Case::three("triggers that are switched off and on one after the other").not_replayed()
            .rolled_back("ALTER TABLE item DISABLE TRIGGER ALL")
            .leaves("ALTER TABLE item DISABLE TRIGGER ALL", "", Pipelines::Unchecked)
            .leaves(WHILE_OFF, "", Pipelines::Unchecked)
            .run("ALTER TABLE item ENABLE TRIGGER ALL", "")
            .run("UPDATE item SET title = 'after' WHERE id = 3", "UPDATE 3"),
        Case::three("the capture trigger alone is switched off and on").not_replayed()
            .run(format!("BEGIN; UPDATE item SET title = 'before' WHERE id = 3; {}; {WHILE_OFF}; {}; UPDATE item SET title = 'after' WHERE id = 4; COMMIT", capture("DISABLE"), capture("ENABLE")), "UPDATE 3; UPDATE 4")
            .run("TRUNCATE item", "TRUNCATE"),
        Case::three("the TRUNCATE trigger is off while the table is truncated").not_replayed()
            .run("BEGIN; ALTER TABLE item DISABLE TRIGGER USER; TRUNCATE item; ALTER TABLE item ENABLE TRIGGER USER; COMMIT", "")
            .holds("SELECT count(*) = 0 FROM item_embedding"),
    ]
}
