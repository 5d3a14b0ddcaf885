//! INSERT, COPY, UPDATE, MERGE, DELETE, TRUNCATE, triggers and rules, cursors, plans; many rows at once.

use super::case::{Case, Mode};
use super::runner::check;
use crate::support::shared;

#[test]
fn statements_of_every_kind_are_logged_and_embedded() {
    check(shared(), Mode::Keys, statements());
}

#[test]
fn statements_of_every_kind_are_audited() {
    check(shared(), Mode::Audited, statements());
}

#[test]
fn triggers_rules_and_constraints_around_a_statement_are_heeded() {
    check(shared(), Mode::Keys, around());
}

#[test]
fn triggers_rules_and_constraints_around_an_audited_statement_are_heeded() {
    check(shared(), Mode::Audited, around());
}

/// A table of lines that belong to items.
const LINE: &str = "CREATE TABLE line (id int PRIMARY KEY, title text, item int REFERENCES item ON DELETE CASCADE ON UPDATE CASCADE);
    INSERT INTO line VALUES (10, 'of one', 1), (20, 'of two', 2), (21, 'of two, too', 2)";

// A step a line.
#[rustfmt::skip]
fn statements() -> Vec<Case> {
    vec![
        Case::new("INSERT")
            .run("INSERT INTO item VALUES (1, 'one')", "INSERT 1")
            .run("INSERT INTO item VALUES (3, 'three'), (2, 'two'), (4, NULL), (5, '')", "INSERT 3; INSERT 2; INSERT 4; INSERT 5")
            .run("INSERT INTO item SELECT i, 'row ' || i FROM generate_series(6, 9) i", "INSERT 6..9")
            .run("INSERT INTO item (id) VALUES (10) RETURNING *", "INSERT 10")
            .run("INSERT INTO item SELECT id + 100, title FROM item WHERE id < 3 ORDER BY id", "INSERT 101; INSERT 102")
            .run("INSERT INTO item SELECT 1, 'never' WHERE false", ""),
        Case::three("COPY")
            .run("COPY item (id, title) FROM PROGRAM $$printf '4\\tby copy\\n5\\t\\\\N\\n'$$", "INSERT 4; INSERT 5")
            .run("COPY item FROM PROGRAM $$printf '6,\"by, copy\",1\\n'$$ (FORMAT csv)", "INSERT 6")
            .run("COPY item (id, title) FROM PROGRAM $$printf '7\\tseven\\n8\\teight\\n'$$ WHERE id <> 7", "INSERT 8")
            .refused("COPY item (id, title) FROM PROGRAM $$printf '9\\tnine\\n1\\tone\\n'$$", "23505")
            .run("COPY item TO PROGRAM 'cat >/dev/null'", "")
            .run("BEGIN; TRUNCATE item; COPY item (id, title) FROM PROGRAM $$printf '9\\tnine\\n'$$ (FREEZE); COMMIT", "TRUNCATE; INSERT 9"),
        Case::three("UPDATE of columns that a text uses and of others")
            .run("UPDATE item SET title = 'changed' WHERE id = 1", "UPDATE 1")
            .run("UPDATE item SET stock = 7 WHERE id < 3", "(UPDATE 1); (UPDATE 2)")
            .run("UPDATE item SET title = 'changed, too', stock = 8 WHERE id = 2", "UPDATE 2")
            .run("UPDATE item SET title = title", "")
            .run("UPDATE item SET title = 'changed' WHERE id = 1", "")
            .run("UPDATE item SET id = id WHERE id = 1", "")
            .run("UPDATE item SET title = NULL WHERE id = 3", "UPDATE 3")
            .run("UPDATE item SET title = NULL, stock = 9 WHERE id = 3", "(UPDATE 3)")
            .run("UPDATE item SET title = '' WHERE id = 3", "UPDATE 3")
            .run("UPDATE item SET title = 'never' WHERE false", "")
            .run("UPDATE item SET title = n.title FROM (VALUES (1, 'joined')) AS n (id, title) WHERE n.id = item.id RETURNING item.*", "UPDATE 1"),
        Case::three("UPDATE of keys")
            .run("UPDATE item SET id = 10 WHERE id = 1", "UPDATE 10 <- 1")
            .run("UPDATE item SET id = 20, title = 'changed' WHERE id = 2", "UPDATE 20 <- 2")
            .run("UPDATE item SET id = -id WHERE id > 5", "~ UPDATE -10 <- 10; UPDATE -20 <- 20")
            .run("BEGIN; UPDATE item SET id = 0 WHERE id = -10; UPDATE item SET id = -10 WHERE id = -20; UPDATE item SET id = -20 WHERE id = 0; COMMIT",
                 "UPDATE 0 <- -10; UPDATE -10 <- -20; UPDATE -20 <- 0")
            .run("UPDATE item SET id = 4 WHERE id = 3; UPDATE item SET id = 3 WHERE id = 4", "UPDATE 4 <- 3; UPDATE 3 <- 4")
            .refused("UPDATE item SET id = 3 WHERE id = -10", "23505"),
        Case::over("keys that are exchanged in one statement", "CREATE TABLE item (id int PRIMARY KEY DEFERRABLE, title text); INSERT INTO item VALUES (1, 'one'), (2, 'two')")
            .not_replayed()
            .run("UPDATE item SET id = 3 - id", "UPDATE 2 <- 1; UPDATE 1 <- 2")
            .run("UPDATE item SET id = id + 1", "~ UPDATE 2 <- 1; UPDATE 3 <- 2"),
        Case::three("INSERT … ON CONFLICT")
            .run("INSERT INTO item VALUES (1, 'upserted') ON CONFLICT (id) DO UPDATE SET title = excluded.title", "UPDATE 1")
            .run("INSERT INTO item VALUES (2, 'upserted'), (4, 'new') ON CONFLICT (id) DO UPDATE SET title = excluded.title", "UPDATE 2; INSERT 4")
            .run("INSERT INTO item VALUES (1, 'x'), (5, 'new') ON CONFLICT DO NOTHING", "INSERT 5")
            .run("INSERT INTO item VALUES (1, 'x') ON CONFLICT (id) DO UPDATE SET stock = 9", "(UPDATE 1)")
            .run("INSERT INTO item VALUES (1, 'x') ON CONFLICT (id) DO UPDATE SET title = 'x' WHERE item.stock = 0", "")
            .run("INSERT INTO item VALUES (1, 'x') ON CONFLICT (id) DO UPDATE SET id = 11", "UPDATE 11 <- 1")
            .refused("INSERT INTO item VALUES (6, 'a'), (6, 'b') ON CONFLICT (id) DO UPDATE SET title = excluded.title", "21000"),
        Case::three("MERGE")
            .run("MERGE INTO item USING (VALUES (2, 'merged'), (4, 'new')) AS m (id, title) ON m.id = item.id
                  WHEN MATCHED THEN UPDATE SET title = m.title WHEN NOT MATCHED THEN INSERT (id, title) VALUES (m.id, m.title)", "~ UPDATE 2; INSERT 4")
            .run("MERGE INTO item USING (VALUES (1), (2), (3)) AS m (id) ON m.id = item.id
                  WHEN MATCHED AND m.id = 1 THEN DELETE WHEN MATCHED AND m.id = 2 THEN UPDATE SET stock = 2 WHEN MATCHED THEN DO NOTHING", "~ DELETE 1; (UPDATE 2)")
            .run("MERGE INTO item USING (VALUES (5)) AS m (id) ON m.id = item.id WHEN NOT MATCHED THEN DO NOTHING", "")
            .run("MERGE INTO item USING (VALUES (3)) AS m (id) ON m.id = item.id WHEN MATCHED THEN UPDATE SET id = 33, title = 'moved'", "UPDATE 33 <- 3"),
        Case::three("DELETE")
            .run("DELETE FROM item WHERE id = 1 RETURNING *", "DELETE 1")
            .run("DELETE FROM item USING (VALUES (2)) AS gone (id) WHERE gone.id = item.id", "DELETE 2")
            .run("DELETE FROM item WHERE false", "")
            .run("BEGIN; DELETE FROM item WHERE id = 3; INSERT INTO item VALUES (3, 'three'); COMMIT", "DELETE 3; INSERT 3")
            .run("DELETE FROM item", "DELETE 3"),
        Case::three("TRUNCATE")
            .run("TRUNCATE item", "TRUNCATE")
            .run("TRUNCATE item", "TRUNCATE")
            .run("BEGIN; INSERT INTO item VALUES (1, 'before'); TRUNCATE item; INSERT INTO item VALUES (1, 'after'); COMMIT", "INSERT 1; TRUNCATE; INSERT 1")
            .run("BEGIN; TRUNCATE item; ROLLBACK", "")
            .run("BEGIN; TRUNCATE item; INSERT INTO item VALUES (2, 'two'); SAVEPOINT s; TRUNCATE item; ROLLBACK TO s; COMMIT", "TRUNCATE; INSERT 2"),
        Case::three("TRUNCATE … CASCADE").given(LINE).also("line")
            .refused("TRUNCATE item", "0A000")
            .run("TRUNCATE item CASCADE", "~ TRUNCATE; line TRUNCATE")
            .run("INSERT INTO item VALUES (1, 'one'); INSERT INTO line VALUES (1, 'of one', 1)", "INSERT 1; line INSERT 1")
            .run("TRUNCATE line, item", "~ TRUNCATE; line TRUNCATE"),
        Case::three("foreign keys that cascade").given(LINE).also("line")
            .run("UPDATE item SET id = 11 WHERE id = 1", "~ UPDATE 11 <- 1; (line UPDATE 10)")
            .run("DELETE FROM item WHERE id = 2", "~ DELETE 2; line DELETE 20; line DELETE 21")
            .run("ALTER TABLE line DROP CONSTRAINT line_item_fkey, ADD FOREIGN KEY (item) REFERENCES item ON DELETE SET NULL", "")
            .run("DELETE FROM item WHERE id = 11", "~ DELETE 11; (line UPDATE 10)"),
        Case::three("WITH … that writes").given(LINE).also("line")
            .run("WITH moved AS (DELETE FROM line WHERE item = 2 RETURNING *) INSERT INTO item SELECT id, title FROM moved ORDER BY id",
                 "~ line DELETE 20; line DELETE 21; INSERT 20; INSERT 21")
            .run("WITH a AS (UPDATE item SET title = 'a' WHERE id = 1), b AS (DELETE FROM item WHERE id = 2), c AS (INSERT INTO item VALUES (4, 'c') RETURNING id)
                  UPDATE item SET title = 'd' WHERE id = 3", "~ UPDATE 1; DELETE 2; INSERT 4; UPDATE 3")
            .run("WITH a AS (UPDATE item SET title = 'first' WHERE id = 1 RETURNING id) UPDATE item SET title = 'second' FROM a WHERE item.id = a.id", "UPDATE 1")
            .run("WITH a AS (SELECT * FROM item) SELECT count(*) FROM a", ""),
        Case::three("EXPLAIN")
            .run("EXPLAIN INSERT INTO item VALUES (4, 'never')", "")
            .run("EXPLAIN ANALYZE INSERT INTO item VALUES (4, 'really')", "INSERT 4")
            .run("BEGIN; EXPLAIN ANALYZE DELETE FROM item; ROLLBACK", ""),
        Case::three("prepared statements that change to a generic plan")
            .run(format!("PREPARE p (int, text) AS INSERT INTO item VALUES ($1, $2); {}", (11..=20).map(|id| format!("EXECUTE p ({id}, 'row {id}'); ")).collect::<String>()), "INSERT 11..20")
            .run("PREPARE u (int, text) AS UPDATE item SET title = $2 WHERE id = $1; SET plan_cache_mode = force_generic_plan; EXECUTE u (1, 'changed'); EXECUTE u (1, 'changed'); EXECUTE u (4, 'x')", "UPDATE 1")
            .run("ALTER TABLE item ADD note text; EXECUTE u (2, 'after DDL'); EXECUTE p (21, 'after DDL')", "UPDATE 2; INSERT 21")
            .not_replayed(),
        Case::three("cursors")
            .run("BEGIN; DECLARE c CURSOR FOR SELECT * FROM item ORDER BY id FOR UPDATE; FETCH c; UPDATE item SET title = 'at the cursor' WHERE CURRENT OF c; FETCH c; DELETE FROM item WHERE CURRENT OF c; COMMIT",
                 "UPDATE 1; DELETE 2")
            .run("BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT * FROM item; UPDATE item SET title = 'changed' WHERE id = 3; COMMIT; FETCH c; CLOSE c", "UPDATE 3")
            .run("DO $$ DECLARE r record; BEGIN FOR r IN SELECT * FROM item ORDER BY id LOOP UPDATE item SET title = r.title || '!' WHERE id = r.id; END LOOP; END $$", "UPDATE 1; UPDATE 3"),
        Case::three("a cursor that outlives its transaction, whose function writes at the commit")
            .given("CREATE FUNCTION write(int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN INSERT INTO item VALUES ($1, 'at the commit'); RETURN $1; END $$")
            .run("BEGIN; UPDATE item SET title = 'before' WHERE id = 1; DECLARE c CURSOR WITH HOLD FOR SELECT write(i) FROM generate_series(4, 6) i; COMMIT", "UPDATE 1; INSERT 4..6"),
        Case::three("parallel plans between writes")
            .run("SELECT set_config(name, 'on', false) FROM pg_settings WHERE name IN ('debug_parallel_query', 'force_parallel_mode');
                  SET min_parallel_table_scan_size = 0; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET max_parallel_workers_per_gather = 2", "")
            .run("INSERT INTO item SELECT i, 'row ' || i FROM generate_series(4, 5) i", "INSERT 4; INSERT 5")
            .run("INSERT INTO item SELECT id + 10, title FROM item WHERE id < 3 ORDER BY id", "INSERT 11; INSERT 12")
            .run("BEGIN; UPDATE item SET title = 'before' WHERE id = 1; SELECT count(*), max(title) FROM item; SAVEPOINT s; SELECT sum(id) FROM item; UPDATE item SET title = 'after' WHERE id = 2; COMMIT", "UPDATE 1; UPDATE 2")
            .run("BEGIN; UPDATE item SET title = 'kept' WHERE id = 3; CREATE TABLE copied AS SELECT * FROM item; COMMIT", "UPDATE 3")
            .run("BEGIN; UPDATE item SET title = 'never'; SELECT count(*) FROM item; ROLLBACK", ""),
        Case::new("five thousand rows at once")
            .run("INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 5000) i", "INSERT 1..5000")
            .run("UPDATE item SET title = 'changed ' || id WHERE id <= 1200", "UPDATE 1..1200")
            .run("DELETE FROM item WHERE id > 1500", "~ DELETE 1501..5000")
            .run("COPY item (id, title) FROM PROGRAM $$seq 6001 7200 | sed 's/$/\\tby copy/'$$", "INSERT 6001..7200"),
        Case::new("two thousand changes of one row in a transaction")
            .run("DO $$ BEGIN INSERT INTO item VALUES (1, 'row'); FOR i IN 1 .. 1000 LOOP UPDATE item SET title = 'change ' || i, id = 2 WHERE id = 1; UPDATE item SET id = 1; END LOOP; END $$",
                 format!("INSERT 1{}", "; UPDATE 2 <- 1; UPDATE 1 <- 2".repeat(1000))),
    ]
}

// A step a line.
#[rustfmt::skip]
fn around() -> Vec<Case> {
    const SHOUT: &str = "CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.title := upper(NEW.title); RETURN NEW; END $$;
        CREATE TRIGGER shout BEFORE INSERT OR UPDATE ON item FOR EACH ROW EXECUTE FUNCTION shout()";
    const COUNT_UP: &str = "CREATE FUNCTION count_up() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN UPDATE item SET title = title || '+' WHERE id = NEW.id; RETURN NULL; END $$;";
    vec![
        Case::new("a BEFORE trigger that changes the text").given(SHOUT)
            .run("INSERT INTO item VALUES (1, 'one')", "INSERT 1")
            .run("UPDATE item SET stock = 1", "(UPDATE 1)")
            .run("ALTER TABLE item DISABLE TRIGGER shout; UPDATE item SET title = 'one'; ALTER TABLE item ENABLE TRIGGER shout", "UPDATE 1")
            .run("UPDATE item SET stock = 2", "UPDATE 1"),
        Case::three("a BEFORE trigger that keeps a row from being written")
            .given("CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
                    CREATE TRIGGER refuse BEFORE INSERT OR UPDATE OR DELETE ON item FOR EACH ROW WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION refuse()")
            .run("INSERT INTO item VALUES (4, 'never'); UPDATE item SET title = 'never'; DELETE FROM item", ""),
        Case::three("a BEFORE trigger that changes the key")
            .given("CREATE FUNCTION shift() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.id := NEW.id + 100; RETURN NEW; END $$;
                    CREATE TRIGGER shift BEFORE INSERT OR UPDATE ON item FOR EACH ROW EXECUTE FUNCTION shift()")
            .run("INSERT INTO item VALUES (4, 'four')", "INSERT 104")
            .run("UPDATE item SET stock = 1 WHERE id = 1", "UPDATE 101 <- 1"),
        Case::three("an AFTER trigger that writes the row again, after the log").given(COUNT_UP)
            .run("CREATE TRIGGER z AFTER INSERT ON item FOR EACH ROW EXECUTE FUNCTION count_up(); INSERT INTO item VALUES (4, 'four'), (5, 'five')", "~ INSERT 4; INSERT 5; UPDATE 4; UPDATE 5"),
        Case::three("an AFTER trigger that writes the row again, before the log").given(COUNT_UP)
            .run("CREATE TRIGGER a AFTER INSERT ON item FOR EACH ROW EXECUTE FUNCTION count_up(); INSERT INTO item VALUES (4, 'four')", "INSERT 4; UPDATE 4"),
        Case::three("a trigger that writes another watched table").given("CREATE TABLE line (id int PRIMARY KEY, title text)").also("line")
            .given("CREATE FUNCTION mirror() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO line VALUES (NEW.id, NEW.title) ON CONFLICT (id) DO UPDATE SET title = excluded.title; RETURN NULL; END $$;
                    CREATE TRIGGER z AFTER INSERT OR UPDATE ON item FOR EACH ROW EXECUTE FUNCTION mirror()")
            .run("INSERT INTO item VALUES (4, 'four'), (5, 'five')", "~ INSERT 4; line INSERT 4; INSERT 5; line INSERT 5")
            .run("UPDATE item SET title = 'changed' WHERE id IN (4, 1)", "~ UPDATE 1; line INSERT 1; UPDATE 4; line UPDATE 4")
            .refused("INSERT INTO item VALUES (6, 'six'), (1, 'one')", "23505"),
        Case::three("a statement trigger with transition tables").given("CREATE TABLE line (id int PRIMARY KEY, title text)").also("line")
            .given("CREATE FUNCTION mirror() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO line SELECT id, title FROM n; RETURN NULL; END $$;
                    CREATE TRIGGER a AFTER INSERT ON item REFERENCING NEW TABLE AS n FOR EACH STATEMENT EXECUTE FUNCTION mirror()")
            .run("INSERT INTO item VALUES (4, 'four'), (5, 'five')", "~ INSERT 4; INSERT 5; line INSERT 4; line INSERT 5"),
        Case::three("a view that is written through")
            .given("CREATE VIEW cheap AS SELECT id, title FROM item WHERE stock = 0")
            .run("INSERT INTO cheap VALUES (4, 'four')", "INSERT 4")
            .run("UPDATE cheap SET title = 'changed' WHERE id = 1", "UPDATE 1")
            .run("DELETE FROM cheap WHERE id = 2", "DELETE 2"),
        Case::three("a view with an INSTEAD OF trigger")
            .given("CREATE VIEW shown AS SELECT id, upper(title) AS loud FROM item;
                    CREATE FUNCTION instead() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN UPDATE item SET title = lower(NEW.loud) WHERE id = NEW.id; RETURN NEW; END $$;
                    CREATE TRIGGER instead INSTEAD OF UPDATE ON shown FOR EACH ROW EXECUTE FUNCTION instead()")
            .run("UPDATE shown SET loud = 'CHANGED' WHERE id = 1", "UPDATE 1"),
        Case::three("rules")
            .given("CREATE RULE keep AS ON DELETE TO item WHERE OLD.id = 1 DO INSTEAD UPDATE item SET title = 'kept' WHERE id = OLD.id")
            .run("DELETE FROM item WHERE id <= 2", "~ UPDATE 1; DELETE 2"),
        Case::three("a constraint that is checked at the end of a statement")
            .given("ALTER TABLE item ADD UNIQUE (title) DEFERRABLE")
            .run("UPDATE item SET title = CASE id WHEN 1 THEN 'two' ELSE 'one' END WHERE id < 3", "UPDATE 1; UPDATE 2")
            .refused("UPDATE item SET title = 'same'", "23505"),
        Case::three("a constraint that is checked at the commit")
            .given("ALTER TABLE item ADD UNIQUE (title) DEFERRABLE INITIALLY DEFERRED")
            .run("BEGIN; UPDATE item SET title = 'two' WHERE id = 1; UPDATE item SET title = 'one' WHERE id = 2; COMMIT", "UPDATE 1; UPDATE 2")
            .refused("BEGIN; UPDATE item SET title = 'three' WHERE id = 1; INSERT INTO item VALUES (4, 'four'); COMMIT", "23505")
            .run("BEGIN; UPDATE item SET title = 'three' WHERE id = 1; UPDATE item SET title = 'else' WHERE id = 3; SET CONSTRAINTS ALL IMMEDIATE; COMMIT", "UPDATE 1; UPDATE 3"),
        Case::three("a foreign key that is checked at the commit").also("line")
            .given("CREATE TABLE line (id int PRIMARY KEY, title text, item int REFERENCES item DEFERRABLE INITIALLY DEFERRED)")
            .run("BEGIN; INSERT INTO line VALUES (40, 'of four', 4); INSERT INTO item VALUES (4, 'four'); COMMIT", "line INSERT 40; INSERT 4")
            .refused("BEGIN; INSERT INTO item VALUES (5, 'five'); INSERT INTO line VALUES (60, 'of six', 6); COMMIT", "23503")
            .refused("DELETE FROM item", "23503"),
        Case::three("a deferred trigger that writes the watched table at the commit")
            .given("CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN UPDATE item SET title = 'at the commit' WHERE id = 3; INSERT INTO item VALUES (NEW.id + 100, 'at the commit'); RETURN NULL; END $$;
                    CREATE CONSTRAINT TRIGGER late AFTER INSERT ON item DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.id < 100) EXECUTE FUNCTION late()")
            .run("BEGIN; INSERT INTO item VALUES (4, 'four'); UPDATE item SET title = 'in the transaction' WHERE id = 1; COMMIT", "INSERT 4; UPDATE 1; UPDATE 3; INSERT 104")
            .run("INSERT INTO item VALUES (5, 'five')", "INSERT 5; INSERT 105")
            .run("BEGIN; SAVEPOINT s; INSERT INTO item VALUES (6, 'never'); ROLLBACK TO s; UPDATE item SET title = 'kept' WHERE id = 2; COMMIT", "UPDATE 2")
            .run("BEGIN; SAVEPOINT s; INSERT INTO item VALUES (6, 'six'); RELEASE s; COMMIT", "INSERT 6; INSERT 106")
            .refused("BEGIN; INSERT INTO item VALUES (7, 'seven'), (107, 'in its way'); COMMIT", "23505"),
        Case::three("a deferred trigger that raises")
            .given("CREATE FUNCTION veto() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not this one'; END $$;
                    CREATE CONSTRAINT TRIGGER veto AFTER UPDATE ON item DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.title = 'bad') EXECUTE FUNCTION veto()")
            .refused("BEGIN; UPDATE item SET title = 'good' WHERE id = 1; UPDATE item SET title = 'bad' WHERE id = 2; COMMIT", "P0001")
            .run("UPDATE item SET title = 'good'", "UPDATE 1..3"),
        Case::three("a statement that fails half-way")
            .given("ALTER TABLE item ADD CHECK (stock >= 0)")
            .refused("INSERT INTO item VALUES (4, 'four', 0), (5, 'five', -1)", "23514")
            .refused("UPDATE item SET title = 'never', stock = 2 - id", "23514")
            .refused("INSERT INTO item VALUES (4, 'never', 0); SELECT 1 / 0", "22012")
            .refused("UPDATE item SET title = 'never' WHERE 1 / (3 - id) > -1", "22012")
            .run("UPDATE item SET stock = 0, title = 'fine' WHERE id = 3", "UPDATE 3"),
    ]
}
