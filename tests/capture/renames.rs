//! Names that change, rewrites, and whatever else leaves a pipeline as it was. What is rolled back leaves no trace.

use super::case::{Case, ITEM, Mode};
use super::runner::check;
use crate::support::shared;

#[test]
fn ddl_that_concerns_no_text_changes_nothing() {
    check(shared(), Mode::Keys, unchanged());
}

#[test]
fn ddl_that_concerns_no_text_changes_nothing_of_the_audit() {
    check(shared(), Mode::Audited, unchanged());
}

#[test]
fn a_pipeline_follows_the_names_of_what_it_is_made_of() {
    check(shared(), Mode::Keys, renames());
}

#[test]
fn the_audit_follows_the_names_of_what_it_logs() {
    check(shared(), Mode::Audited, renames());
}

const NAMES: &str = "SELECT ARRAY(SELECT name FROM recsync.status WHERE kind = 'pipeline') = ";

/// Statement `sql` on table `item` of `create`, after which everything goes on.
fn on(create: &str, what: &str, sql: &str) -> Case {
    Case::over(what, create)
        .given("INSERT INTO item (id, title) VALUES (1, 'one'), (2, 'two'), (3, 'three')")
        .not_replayed()
        .rolled_back(format!("UPDATE item SET title = 'never' WHERE id = 1; {sql}; INSERT INTO item (id, title) VALUES (4, 'never')"))
        .rolled_back(format!("SAVEPOINT s; {sql}; ROLLBACK TO s"))
        .run(format!("BEGIN; UPDATE item SET title = 'before' WHERE id = 1; {sql}; UPDATE item SET title = 'after' WHERE id = 2; COMMIT"), "UPDATE 1; UPDATE 2")
        .probe()
}

/// The same for a statement that no transaction may hold.
fn alone(what: &str, sql: &str) -> Case {
    Case::three(what).run(sql, "").probe()
}

impl Case {
    /// That changes of every kind are captured and embedded.
    fn probe(self) -> Case {
        self.run("UPDATE item SET title = 'probe' WHERE id = 1", "UPDATE 1")
            .run("UPDATE item SET stock = 3 WHERE id = 2", "(UPDATE 2)")
            .run("UPDATE item SET id = 33 WHERE id = 3", "UPDATE 33 <- 3")
            .run(
                "INSERT INTO item (id, title) VALUES (5, 'five'); DELETE FROM item WHERE id = 33",
                "INSERT 5; DELETE 33",
            )
            .holds(format!("{NAMES} '{{shop.item_embedding}}'"))
    }
}

// A case a line.
#[rustfmt::skip]
fn unchanged() -> Vec<Case> {
    const SPARE: &str = "CREATE TABLE item (spare text, id int PRIMARY KEY, title varchar(20), stock int)";
    const MOOD: &str = "CREATE TYPE mood AS ENUM ('sad', 'fine'); CREATE TABLE item (id int PRIMARY KEY, title text, stock int, mood mood DEFAULT 'sad')";
    vec![
        on(ITEM, "a column is added", "ALTER TABLE item ADD note text"),
        on(ITEM, "a column is added with a default", "ALTER TABLE item ADD note text NOT NULL DEFAULT 'noted'"),
        on(ITEM, "a column is added that rewrites the table", "ALTER TABLE item ADD token uuid DEFAULT gen_random_uuid()"),
        on(SPARE, "an unused column is dropped", "ALTER TABLE item DROP spare"),
        on(SPARE, "an unused column is dropped and added again", "ALTER TABLE item DROP spare; ALTER TABLE item ADD spare int"),
        on(SPARE, "an unused column is renamed", "ALTER TABLE item RENAME spare TO extra"),
        on(SPARE, "an unused column gets another type", "ALTER TABLE item ALTER spare TYPE int USING 7"),
        on(SPARE, "a used column may be longer than before", "ALTER TABLE item ALTER title TYPE varchar(40)"),
        on(ITEM, "a used column gets a default and a constraint", "ALTER TABLE item ALTER title SET DEFAULT 'none', ALTER title SET NOT NULL"),
        on(ITEM, "a used column is stored otherwise", "ALTER TABLE item ALTER title SET STORAGE external, ALTER title SET STATISTICS 10, ALTER title SET (n_distinct = -1)"),
        on(ITEM, "constraints come and go", "ALTER TABLE item ADD CONSTRAINT c CHECK (stock >= 0) NOT VALID; ALTER TABLE item VALIDATE CONSTRAINT c; ALTER TABLE item DROP CONSTRAINT c, ADD UNIQUE (title, id)"),
        on(ITEM, "the primary key's constraint is renamed", "ALTER TABLE item RENAME CONSTRAINT item_pkey TO item_key"),
        on(ITEM, "the primary key's constraint is made anew", "ALTER TABLE item DROP CONSTRAINT item_pkey, ADD PRIMARY KEY (id)"),
        on(ITEM, "the primary key's index is exchanged", "CREATE UNIQUE INDEX fresh ON item (id); ALTER TABLE item DROP CONSTRAINT item_pkey, ADD CONSTRAINT item_pkey PRIMARY KEY USING INDEX fresh"),
        on(ITEM, "indexes come and go", "CREATE INDEX i ON item (title); REINDEX TABLE item; DROP INDEX i"),
        on(ITEM, "settings of the table", "ALTER TABLE item SET (fillfactor = 50), REPLICA IDENTITY FULL; COMMENT ON TABLE item IS 'items'"),
        on(ITEM, "row-level security", "CREATE POLICY p ON item USING (stock = 0); ALTER TABLE item ENABLE ROW LEVEL SECURITY"),
        on(ITEM, "grants", "GRANT SELECT, INSERT ON item TO PUBLIC; REVOKE INSERT ON item FROM PUBLIC"),
        on(ITEM, "triggers of others", "CREATE TRIGGER other BEFORE UPDATE ON item FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger(); ALTER TABLE item DISABLE TRIGGER other; DROP TRIGGER other ON item"),
        on(ITEM, "a child that comes and goes", "CREATE TABLE child () INHERITS (item); DROP TABLE child"),
        on(ITEM, "a rewrite by ALTER TABLE … SET UNLOGGED and back", "ALTER TABLE item SET UNLOGGED; ALTER TABLE item SET LOGGED"),
        on(ITEM, "a table that becomes unlogged", "ALTER TABLE item SET UNLOGGED"),
        on(ITEM, "a move to the tablespace where it is", "ALTER TABLE item SET TABLESPACE pg_default"),
        on(ITEM, "CLUSTER", "CLUSTER item USING item_pkey"),
        on(MOOD, "an enum's value is renamed", "ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'"),
        on(MOOD, "an enum gets a value", "ALTER TYPE mood ADD VALUE 'happy' BEFORE 'fine'"),
        on(MOOD, "an enum type is renamed and moved", "ALTER TYPE mood RENAME TO feeling; CREATE SCHEMA types; ALTER TYPE feeling SET SCHEMA types"),
        alone("VACUUM FULL", "VACUUM FULL item"),
        alone("VACUUM and ANALYZE", "VACUUM (ANALYZE, FREEZE) item"),
        alone("VACUUM FULL of the vectors", "VACUUM FULL item_embedding_g1"),
        alone("CREATE INDEX CONCURRENTLY", "CREATE INDEX CONCURRENTLY ON item (title)"),
        alone("REINDEX CONCURRENTLY", "REINDEX TABLE CONCURRENTLY item"),
        Case::over("an enum that is the key", "CREATE TYPE mood AS ENUM ('sad', 'fine'); CREATE TABLE item (id mood PRIMARY KEY, title text); INSERT INTO item VALUES ('sad', 'one'), ('fine', 'two')")
            .not_replayed()
            .rolled_back("ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'")
            .run("ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'", "")
            .run("UPDATE item SET title = 'changed' WHERE id = 'blue'", "UPDATE blue")
            .run("ALTER TYPE mood ADD VALUE 'sad'", "")
            .run("INSERT INTO item VALUES ('sad', 'three')", "INSERT sad")
            .run("ALTER TYPE mood RENAME TO feeling; UPDATE item SET title = 'changed' WHERE id = 'fine'", "UPDATE fine")
            .run("DELETE FROM item WHERE id = 'blue'", "DELETE blue"),
        Case::over("a domain that is the key and the text", "CREATE DOMAIN code AS text; CREATE TABLE item (id code PRIMARY KEY, title code); INSERT INTO item VALUES ('a', 'one')")
            .run("ALTER DOMAIN code ADD CHECK (value <> 'x'); ALTER DOMAIN code RENAME TO letter", "")
            .run("UPDATE item SET title = 'changed', id = 'b'", "UPDATE b <- a"),
    ]
}

// A step a line.
#[rustfmt::skip]
fn renames() -> Vec<Case> {
    vec![
        Case::three("a table is renamed").not_replayed()
            .rolled_back("ALTER TABLE item RENAME TO ware; UPDATE ware SET title = 'never'")
            .run("UPDATE item SET title = 'before' WHERE id = 1", "UPDATE 1")
            .now(|w| (w.source, w.rows) = ("ware".into(), "ware".into()))
            .run("BEGIN; UPDATE item SET title = 'within' WHERE id = 1; ALTER TABLE item RENAME TO ware; UPDATE ware SET title = 'after' WHERE id = 2; COMMIT", "ware UPDATE 1; ware UPDATE 2")
            .run("UPDATE ware SET title = 'later' WHERE id = 3; INSERT INTO ware VALUES (4, 'four')", "ware UPDATE 3; ware INSERT 4")
            .holds(format!("{NAMES} '{{shop.item_embedding}}'"))
            .run("CREATE TABLE item (id int PRIMARY KEY, title text); INSERT INTO item VALUES (1, 'another table')", "")
            .run("TRUNCATE ware", "ware TRUNCATE"),
        Case::three("two tables exchange their names").not_replayed()
            .given("CREATE TABLE fresh (LIKE item INCLUDING ALL); INSERT INTO fresh VALUES (1, 'fresh')")
            .rolled_back("ALTER TABLE item RENAME TO old; ALTER TABLE fresh RENAME TO item; UPDATE item SET title = 'never'")
            .now(|w| (w.source, w.rows) = ("old".into(), "old".into()))
            .run("BEGIN; ALTER TABLE item RENAME TO old; ALTER TABLE fresh RENAME TO item; COMMIT", "")
            .run("UPDATE item SET title = 'not watched'; UPDATE old SET title = 'changed' WHERE id = 1", "old UPDATE 1"),
        Case::three("a table is renamed and renamed back, and twice over").not_replayed()
            .run("BEGIN; ALTER TABLE item RENAME TO ware; ALTER TABLE ware RENAME TO item; UPDATE item SET title = 'a' WHERE id = 1; COMMIT", "UPDATE 1")
            .run("BEGIN; SAVEPOINT s; ALTER TABLE item RENAME TO ware; ROLLBACK TO s; UPDATE item SET title = 'b' WHERE id = 1; COMMIT", "UPDATE 1")
            .now(|w| (w.source, w.rows) = ("third".into(), "third".into()))
            .run("DO $$ BEGIN ALTER TABLE item RENAME TO second; EXECUTE 'ALTER TABLE second RENAME TO third'; END $$", "")
            .run("UPDATE third SET title = 'c' WHERE id = 1", "third UPDATE 1"),
        Case::three("a table moves to another schema").not_replayed()
            .given("CREATE SCHEMA other")
            .rolled_back("ALTER TABLE item SET SCHEMA other")
            .now(|w| (w.source, w.rows) = ("other.item".into(), "other.item".into()))
            .run("ALTER TABLE item SET SCHEMA other", "")
            .run("UPDATE other.item SET title = 'changed' WHERE id = 1", "other.item UPDATE 1")
            .now(|w| (w.source, w.rows) = ("other.ware".into(), "other.ware".into()))
            .run("BEGIN; ALTER TABLE other.item RENAME TO ware; DELETE FROM other.ware WHERE id = 2; COMMIT", "other.ware DELETE 2"),
        Case::over("a schema is renamed", "CREATE SCHEMA tenant; CREATE TABLE tenant.item (id int PRIMARY KEY, title text); INSERT INTO tenant.item VALUES (1, 'one')").not_replayed()
            .watch(|w| (w.pipeline, w.source, w.rows) = ("tenant.item_embedding".into(), "tenant.item".into(), "tenant.item".into()))
            .rolled_back("ALTER SCHEMA tenant RENAME TO customer")
            .now(|w| (w.pipeline, w.rows) = ("customer.item_embedding".into(), "customer.item".into()))
            .run("ALTER SCHEMA tenant RENAME TO customer", "")
            .run("UPDATE customer.item SET title = 'changed'", "customer.item UPDATE 1")
            .holds(format!("{NAMES} '{{customer.item_embedding}}'"))
            .run("CREATE SCHEMA tenant; CREATE TABLE tenant.item (id int PRIMARY KEY, title text); INSERT INTO tenant.item VALUES (1, 'of another tenant')", "")
            .now(|w| (w.pipeline, w.rows) = (r#""Customer 1".item_embedding"#.into(), r#""Customer 1".item"#.into()))
            .run(r#"BEGIN; INSERT INTO customer.item VALUES (2, 'two'); ALTER SCHEMA customer RENAME TO "Customer 1"; COMMIT"#, r#""Customer 1".item INSERT 2"#),
        Case::three("the key column is renamed").not_replayed()
            .other("UPDATE item SET title = 'by another session' WHERE id = 1", "UPDATE 1")
            .rolled_back("ALTER TABLE item RENAME id TO number")
            .now(|w| w.key = "number".into())
            .run("ALTER TABLE item RENAME id TO number", "")
            .other("INSERT INTO item VALUES (4, 'four')", r#"INSERT {"number": 4}"#)
            .run("UPDATE item SET number = 5 WHERE number = 4", r#"UPDATE {"number": 5} <- {"number": 4}"#)
            .now(|w| w.key = r#""Num""ber""#.into())
            .run(r#"BEGIN; DELETE FROM item WHERE number = 5; ALTER TABLE item RENAME number TO "Num""ber"; DELETE FROM item WHERE "Num""ber" = 1; COMMIT"#, r#"~ DELETE {"number": 5}; DELETE {"Num\"ber": 1}"#),
        Case::three("a used column is renamed").not_replayed()
            .rolled_back("ALTER TABLE item RENAME title TO headline; UPDATE item SET headline = 'never'")
            .now(|w| w.text = "s.headline".into())
            .run("BEGIN; UPDATE item SET title = 'before' WHERE id = 1; ALTER TABLE item RENAME title TO headline; UPDATE item SET headline = 'after' WHERE id = 2; COMMIT", "UPDATE 1; UPDATE 2")
            .other("UPDATE item SET headline = 'changed' WHERE id = 3", "UPDATE 3")
            .other("UPDATE item SET stock = 1 WHERE id = 3", "(UPDATE 3)")
            .holds("SELECT columns = '{headline}' FROM recsync.pipeline")
            .run("ALTER TABLE item ADD title text; UPDATE item SET title = 'another column'", "~ (UPDATE 1); (UPDATE 2); (UPDATE 3)"),
        Case::three("two columns exchange their names").not_replayed()
            .given("ALTER TABLE item ADD body text; UPDATE item SET body = 'body of ' || title")
            .now(|w| w.text = "s.body".into())
            .run("ALTER TABLE item RENAME title TO swap; ALTER TABLE item RENAME body TO title; ALTER TABLE item RENAME swap TO body", "")
            .run("UPDATE item SET body = 'changed' WHERE id = 1", "UPDATE 1")
            .run("UPDATE item SET title = 'no text' WHERE id = 1", "(UPDATE 1)"),
        Case::three("a column of a content expression is renamed").not_replayed()
            .text("content => $$title || ' title: ' || COALESCE(stock::text, 'title')$$", "s.title || ' title: ' || COALESCE(s.stock::text, 'title')")
            .rolled_back("ALTER TABLE item RENAME title TO headline")
            .now(|w| w.text = "s.headline || ' title: ' || COALESCE(s.stock::text, 'title')".into())
            .run("ALTER TABLE item RENAME title TO headline", "")
            .run("UPDATE item SET headline = 'changed' WHERE id = 1", "UPDATE 1")
            .now(|w| w.text = r#"s.headline || ' title: ' || COALESCE(s."Stock ""left""  "::text, 'title')"#.into())
            .run(r#"ALTER TABLE item RENAME stock TO "Stock ""left""  ""#, "")
            .run(r#"UPDATE item SET "Stock ""left""  " = 7 WHERE id = 2"#, "UPDATE 2")
            .run("INSERT INTO item (id, headline) VALUES (4, 'four')", "INSERT 4"),
        Case::three("a column of a row_filter is renamed").not_replayed()
            .text("columns => '{title}', row_filter => $$stock = 0 AND title <> 'stock'$$", "CASE WHEN s.stock = 0 AND s.title <> 'stock' THEN s.title END")
            .rolled_back("ALTER TABLE item RENAME stock TO amount")
            .now(|w| w.text = "CASE WHEN s.amount = 0 AND s.title <> 'stock' THEN s.title END".into())
            .run("ALTER TABLE item RENAME stock TO amount", "")
            .run("UPDATE item SET amount = 1 WHERE id = 1", "UPDATE 1")
            .run("UPDATE item SET title = 'stock' WHERE id = 2", "UPDATE 2")
            .run("UPDATE item SET amount = 0, title = 'back'", "~ UPDATE 1; UPDATE 2; UPDATE 3"),
        Case::over("a type that a content expression names is renamed", "CREATE TYPE mood AS ENUM ('sad', 'fine'); CREATE TABLE item (id int PRIMARY KEY, title text); INSERT INTO item VALUES (1, 'sad'), (2, 'fine')")
            .text("content => $$(title::mood)::text || '!'$$", "s.title || '!'")
            .rolled_back("ALTER TYPE mood RENAME TO feeling")
            .run("ALTER TYPE mood RENAME TO feeling", "")
            .run("UPDATE item SET title = 'sad' WHERE id = 2", "UPDATE 2"),
        Case::three("a column of one of two pipelines is renamed").not_replayed()
            .given("ALTER TABLE item ADD body text")
            .also("item")
            .watch(|w| (w.pipeline, w.arguments, w.text) = ("bodies".into(), "content => 'upper(body)'".into(), "upper(s.body)".into()))
            .now(|w| w.text = "s.headline".into())
            .run("ALTER TABLE item RENAME title TO headline", "")
            .run("UPDATE item SET body = 'its body' WHERE id = 1", "UPDATE 1")
            .run("UPDATE item SET headline = 'changed' WHERE id = 1", "UPDATE 1"),
        Case::three("a table, its schema and a column are renamed by their owner, who is no superuser").not_replayed()
            .given("GRANT ALL ON SCHEMA shop TO pg_monitor; ALTER TABLE item OWNER TO pg_monitor; GRANT USAGE ON FOREIGN SERVER api TO pg_monitor")
            .run("SET ROLE pg_monitor; UPDATE item SET title = 'by the owner' WHERE id = 1", "UPDATE 1")
            .now(|w| (w.source, w.rows, w.key, w.text) = ("ware".into(), "ware".into(), "number".into(), "s.headline".into()))
            .run("ALTER TABLE item RENAME id TO number; ALTER TABLE item RENAME title TO headline; ALTER TABLE item RENAME TO ware", "")
            .run("UPDATE ware SET headline = 'changed' WHERE number = 1", r#"ware UPDATE {"number": 1}"#)
            .other("INSERT INTO ware VALUES (4, 'four')", r#"ware INSERT {"number": 4}"#),
        Case::three("names are followed where strings are not those of the standard").not_replayed()
            .text("content => $$title || E'\\n' || 'it''s'$$", r"s.title || E'\n' || 'it''s'")
            .now(|w| w.text = r#"s."head\line" || E'\n' || 'it''s'"#.into())
            .run(r#"SET standard_conforming_strings = off; SET escape_string_warning = off; SET backslash_quote = off; SET array_nulls = off; SET search_path = ''; ALTER TABLE shop.item RENAME title TO "head\line""#, "")
            .run(r#"UPDATE shop.item SET "head\line" = 'changed' WHERE id = 1"#, "UPDATE 1")
            .other(r#"UPDATE item SET "head\line" = 'changed' WHERE id = 2"#, "UPDATE 2"),
        Case::three("names are followed where all identifiers are quoted").not_replayed()
            .now(|w| w.text = "s.headline".into())
            .run("SET quote_all_identifiers = on; ALTER TABLE item RENAME title TO headline", "")
            .run("UPDATE item SET headline = 'changed' WHERE id = 1", "UPDATE 1")
            .holds(format!("{NAMES} '{{shop.item_embedding}}'")),
        Case::three("a column that is inherited is renamed").not_replayed()
            .given("CREATE TABLE parent (title text); ALTER TABLE item INHERIT parent")
            .now(|w| w.text = "s.headline".into())
            .run("ALTER TABLE parent RENAME title TO headline", "")
            .run("UPDATE item SET headline = 'changed' WHERE id = 1", "UPDATE 1"),
        Case::over("a column of the table's type is renamed", "CREATE TYPE item_type AS (id int, title text); CREATE TABLE item OF item_type (PRIMARY KEY (id)); INSERT INTO item VALUES (1, 'one')").not_replayed()
            .now(|w| w.text = "s.headline".into())
            .run("ALTER TYPE item_type RENAME ATTRIBUTE title TO headline CASCADE", "")
            .run("UPDATE item SET headline = 'changed'", "UPDATE 1"),
        Case::three("the pipeline's view is renamed and moved").not_replayed()
            .given("CREATE SCHEMA other")
            .rolled_back("ALTER VIEW item_embedding RENAME TO vectors")
            .now(|w| w.pipeline = "vectors".into())
            .run("ALTER VIEW item_embedding RENAME TO vectors", "")
            .holds(format!("{NAMES} '{{shop.vectors}}'"))
            .run("UPDATE item SET title = 'changed' WHERE id = 1", "UPDATE 1")
            .now(|w| w.pipeline = r#"other."Vectors""#.into())
            .run(r#"ALTER TABLE vectors RENAME TO "Vectors"; ALTER VIEW "Vectors" SET SCHEMA other"#, "")
            .holds(format!(r#"{NAMES} ARRAY['other."Vectors"']"#))
            .run("UPDATE item SET title = 'changed' WHERE id = 2", "UPDATE 2")
            .holds(r#"SELECT count(*) = 1 FROM recsync.search('other."Vectors"', 'changed', k => 1)"#),
        Case::three("the server is renamed").not_replayed()
            .rolled_back("ALTER SERVER api RENAME TO other")
            .run(r#"ALTER SERVER api RENAME TO "Other API""#, "")
            .holds("SELECT server = 'Other API' FROM recsync.pipeline")
            .run("UPDATE item SET title = 'changed' WHERE id = 1", "UPDATE 1")
            .run(r#"ALTER SERVER "Other API" RENAME TO api"#, "")
            .run("UPDATE item SET title = 'changed again' WHERE id = 1", "UPDATE 1"),
    ]
}
