//! Trees of partitions: what is written, moved, attached, detached, made and truncated.

use super::case::{Case, Mode};
use super::runner::check;
use crate::support::shared;

#[test]
fn partitions_of_every_kind_are_logged_and_embedded() {
    check(shared(), Mode::Keys, partitions());
}

#[test]
fn partitions_of_every_kind_are_audited() {
    check(shared(), Mode::Audited, partitions());
}

/// Two levels: by region, and the European ones by id; columns stand in another order in one leaf.
const TREE: &str = "
    CREATE TABLE item (id int, region text, title text, stock int NOT NULL DEFAULT 0, PRIMARY KEY (region, id)) PARTITION BY LIST (region);
    CREATE TABLE item_eu PARTITION OF item FOR VALUES IN ('eu') PARTITION BY RANGE (id);
    CREATE TABLE item_eu_low PARTITION OF item_eu FOR VALUES FROM (MINVALUE) TO (100);
    CREATE TABLE item_eu_high (title text, gone int, stock int NOT NULL DEFAULT 0, region text NOT NULL, id int NOT NULL);
    ALTER TABLE item_eu_high DROP gone;
    ALTER TABLE item_eu ATTACH PARTITION item_eu_high FOR VALUES FROM (100) TO (1000);
    CREATE TABLE item_us PARTITION OF item FOR VALUES IN ('us');
    INSERT INTO item VALUES (1, 'eu', 'low'), (101, 'eu', 'high'), (1, 'us', 'american')";

/// Case `what` over that tree.
fn tree(what: &str) -> Case {
    Case::over(what, TREE).key("region, id")
}

/// Writes keys out: `INSERT eu 1` is short for `INSERT {"id": 1, "region": "eu"}`.
fn keys(log: &str) -> String {
    let mut words = log.split(' ');
    let mut written = Vec::new();
    while let Some(word) = words.next() {
        if ["eu", "us", "asia", "other"].contains(&word) {
            let id = words.next().unwrap();
            let (id, end) = id.split_at(id.find([';', ')']).unwrap_or(id.len()));
            written.push(format!(r#"{{"id": {id}, "region": "{word}"}}{end}"#));
        } else {
            written.push(word.to_owned());
        }
    }
    written.join(" ")
}

// A step a line.
#[rustfmt::skip]
fn partitions() -> Vec<Case> {
    const COUNT: &str = "SELECT count(*) = (SELECT count(*) FROM item_embedding) FROM item";
    vec![
        tree("partitions of two levels, written through the root and through each level")
            .run("INSERT INTO item VALUES (2, 'eu', 'two'), (102, 'eu', 'two'), (2, 'us', 'two')", keys("INSERT eu 2; INSERT eu 102; INSERT us 2"))
            .run("INSERT INTO item_eu VALUES (3, 'eu', 'three'), (103, 'eu', 'three')", keys("INSERT eu 3; INSERT eu 103"))
            .run("INSERT INTO item_eu_high (id, region, title) VALUES (104, 'eu', 'four')", keys("INSERT eu 104"))
            .run("UPDATE item SET title = 'changed' WHERE id = 2", keys("~ UPDATE eu 2; UPDATE us 2"))
            .run("UPDATE item_eu_high SET title = 'changed' WHERE id = 104", keys("UPDATE eu 104"))
            .run("UPDATE item SET stock = 1 WHERE id = 2", keys("~ (UPDATE eu 2); (UPDATE us 2)"))
            .run("DELETE FROM item_eu WHERE id = 3", keys("DELETE eu 3"))
            .run("DELETE FROM item_eu_low WHERE id = 2", keys("DELETE eu 2"))
            .run("COPY item (id, region, title) FROM PROGRAM $$printf '5\\teu\\tfive\\n105\\teu\\tfive\\n5\\tus\\tfive\\n'$$", keys("~ INSERT eu 5; INSERT eu 105; INSERT us 5"))
            .run("INSERT INTO item VALUES (5, 'us', 'upserted'), (6, 'us', 'six') ON CONFLICT (region, id) DO UPDATE SET title = excluded.title", keys("UPDATE us 5; INSERT us 6"))
            .run("MERGE INTO item USING (VALUES ('us', 6, 'merged')) AS m (region, id, title) ON m.region = item.region AND m.id = item.id WHEN MATCHED THEN UPDATE SET title = m.title", keys("UPDATE us 6")),
        tree("rows that move from partition to partition")
            .run("UPDATE item SET region = 'us', id = 7 WHERE id = 101", keys("DELETE eu 101; INSERT us 7"))
            .run("UPDATE item SET id = 107 WHERE region = 'eu' AND id = 1", keys("DELETE eu 1; INSERT eu 107"))
            .run("UPDATE item SET id = 108 WHERE id = 107", keys("UPDATE eu 108 <- eu 107"))
            .run("UPDATE item_eu SET id = 8, title = 'moved' WHERE id = 108", keys("DELETE eu 108; INSERT eu 8"))
            .run("BEGIN; UPDATE item SET region = 'us', id = 9 WHERE id = 8; SAVEPOINT s; UPDATE item SET region = 'eu' WHERE id = 9; ROLLBACK TO s; COMMIT", keys("DELETE eu 8; INSERT us 9"))
            .refused("UPDATE item SET region = 'nowhere' WHERE id = 9", "23514"),
        tree("TRUNCATE of a leaf, of a branch and of the root")
            .not_replayed()
            .run("TRUNCATE item_us", "item_us TRUNCATE")
            .holds("SELECT count(*) = 2 FROM item_embedding")
            .run("INSERT INTO item VALUES (1, 'us', 'again')", keys("INSERT us 1"))
            .run("TRUNCATE item_eu_low", "item_eu_low TRUNCATE")
            .run("INSERT INTO item VALUES (1, 'eu', 'again')", keys("INSERT eu 1"))
            .run("TRUNCATE item_eu", "~ item_eu TRUNCATE; item_eu_low TRUNCATE; item_eu_high TRUNCATE")
            .holds("SELECT count(*) = 1 FROM item_embedding")
            .run("BEGIN; TRUNCATE item_us; ROLLBACK", "")
            .run("BEGIN; TRUNCATE item_us; INSERT INTO item VALUES (2, 'us', 'after'); COMMIT", keys("item_us TRUNCATE; INSERT us 2"))
            .run("TRUNCATE item", "~ TRUNCATE; item_eu TRUNCATE; item_eu_low TRUNCATE; item_eu_high TRUNCATE; item_us TRUNCATE")
            .holds("SELECT count(*) = 0 FROM item_embedding"),
        tree("ATTACH of a table with rows")
            .not_replayed()
            .run("CREATE TABLE asia (stock int NOT NULL DEFAULT 0, title text, region text NOT NULL, id int NOT NULL); INSERT INTO asia VALUES (0, 'one', 'asia', 1), (0, 'two', 'asia', 2)", "")
            .rolled_back("ALTER TABLE item ATTACH PARTITION asia FOR VALUES IN ('asia')")
            .run("ALTER TABLE item ATTACH PARTITION asia FOR VALUES IN ('asia')", "")
            .holds("SELECT count(*) = 5 FROM item_embedding")
            .run("INSERT INTO item VALUES (3, 'asia', 'three'); UPDATE asia SET title = 'changed' WHERE id = 1", keys("INSERT asia 3; UPDATE asia 1"))
            .run("TRUNCATE asia", "asia TRUNCATE")
            .holds(COUNT),
        tree("ATTACH of a tree, to a branch and to the root")
            .not_replayed()
            .run("CREATE TABLE asia (LIKE item INCLUDING ALL) PARTITION BY HASH (id); CREATE TABLE asia_0 PARTITION OF asia FOR VALUES WITH (MODULUS 2, REMAINDER 0);
                  CREATE TABLE asia_1 PARTITION OF asia FOR VALUES WITH (MODULUS 2, REMAINDER 1); INSERT INTO asia SELECT i, 'asia', 'row ' || i FROM generate_series(1, 8) i", "")
            .run("ALTER TABLE item ATTACH PARTITION asia FOR VALUES IN ('asia')", "")
            .holds("SELECT count(*) = 11 FROM item_embedding")
            .run("INSERT INTO item VALUES (9, 'asia', 'nine')", keys("INSERT asia 9"))
            .run("TRUNCATE asia_0", "asia_0 TRUNCATE")
            .run("CREATE TABLE more (LIKE item INCLUDING ALL); INSERT INTO more VALUES (2001, 'eu', 'more'); ALTER TABLE item_eu ATTACH PARTITION more FOR VALUES FROM (2000) TO (3000)", "")
            .run("UPDATE more SET title = 'changed'", keys("UPDATE eu 2001"))
            .run("TRUNCATE more", "more TRUNCATE")
            .holds(COUNT),
        tree("DETACH of a leaf and of a branch")
            .not_replayed()
            .rolled_back("ALTER TABLE item DETACH PARTITION item_us")
            .run("ALTER TABLE item DETACH PARTITION item_us", "item_us TRUNCATE")
            .holds("SELECT count(*) = 2 FROM item_embedding")
            .run("INSERT INTO item_us VALUES (2, 'us', 'alone'); UPDATE item_us SET title = 'alone'; TRUNCATE item_us", "")
            .holds("SELECT count(*) = 0 FROM pg_trigger WHERE tgrelid = 'item_us'::regclass")
            .run("ALTER TABLE item DETACH PARTITION item_eu", "~ item_eu TRUNCATE; item_eu_low TRUNCATE; item_eu_high TRUNCATE")
            .holds("SELECT count(*) = 0 FROM item_embedding")
            .run("INSERT INTO item_eu VALUES (2, 'eu', 'alone'); TRUNCATE item_eu", "")
            .holds("SELECT count(*) = 0 FROM pg_trigger WHERE tgname LIKE '00_recsync%' AND tgrelid <> 'item'::regclass")
            .run("INSERT INTO item_eu VALUES (3, 'eu', 'attached again'); ALTER TABLE item ATTACH PARTITION item_eu FOR VALUES IN ('eu')", "")
            .run("UPDATE item SET title = 'changed'", keys("UPDATE eu 3"))
            .run("TRUNCATE item_eu_low", "item_eu_low TRUNCATE"),
        tree("DETACH CONCURRENTLY")
            .not_replayed()
            .run("ALTER TABLE item DETACH PARTITION item_us CONCURRENTLY", "item_us TRUNCATE")
            .holds("SELECT count(*) = 2 FROM item_embedding")
            .run("UPDATE item_us SET title = 'alone'; TRUNCATE item_us", "")
            .holds("SELECT count(*) = 0 FROM pg_trigger WHERE tgrelid = 'item_us'::regclass"),
        tree("partitions that are made later")
            .not_replayed()
            .rolled_back("CREATE TABLE item_asia PARTITION OF item FOR VALUES IN ('asia')")
            .run("CREATE TABLE item_asia PARTITION OF item FOR VALUES IN ('asia')", "")
            .run("INSERT INTO item VALUES (1, 'asia', 'one')", keys("INSERT asia 1"))
            .run("TRUNCATE item_asia", "item_asia TRUNCATE")
            .run("CREATE TABLE item_other PARTITION OF item DEFAULT PARTITION BY LIST (id); CREATE TABLE item_other_1 PARTITION OF item_other FOR VALUES IN (1); INSERT INTO item VALUES (1, 'other', 'one')", keys("INSERT other 1"))
            .run("TRUNCATE item_other_1", "item_other_1 TRUNCATE")
            .run("BEGIN; CREATE TABLE item_eu_top PARTITION OF item_eu FOR VALUES FROM (1000) TO (2000); INSERT INTO item VALUES (1001, 'eu', 'top'); COMMIT", keys("INSERT eu 1001"))
            .holds(COUNT),
        tree("partitions that are dropped")
            .not_replayed()
            .rolled_back("DROP TABLE item_us")
            .run("DROP TABLE item_us", "gone TRUNCATE")
            .holds("SELECT count(*) = 2 FROM item_embedding")
            .run("DROP TABLE item_eu", "gone TRUNCATE; gone TRUNCATE; gone TRUNCATE")
            .holds("SELECT count(*) = 0 FROM item_embedding")
            .run("CREATE TABLE item_us PARTITION OF item FOR VALUES IN ('us'); INSERT INTO item VALUES (1, 'us', 'anew')", keys("INSERT us 1")),
        tree("partitions that change their names and schemas")
            .run("ALTER TABLE item_us RENAME TO states; UPDATE states SET title = 'changed'", keys("UPDATE us 1"))
            .run("CREATE SCHEMA archive; ALTER TABLE item_eu_high SET SCHEMA archive; UPDATE item SET title = 'changed' WHERE id = 101", keys("UPDATE eu 101"))
            .run("ALTER TABLE item RENAME region TO zone; ALTER TABLE item RENAME zone TO region", "")
            .run("TRUNCATE states", "states TRUNCATE")
            .not_replayed(),
        tree("a leaf with a pipeline of its own")
            .not_replayed()
            .run("SELECT recsync.create_pipeline('own', 'item_us', columns => '{title}', server => 'api', index => 'none')", "")
            .run("UPDATE item SET title = 'changed' WHERE region = 'eu' AND id = 1", keys("UPDATE eu 1"))
            .run("SELECT recsync.drop_pipeline('own')", "")
            .run("UPDATE item_us SET title = 'changed'", keys("UPDATE us 1")),
        tree("ATTACH of a table that has a pipeline")
            .not_replayed()
            .run("CREATE TABLE asia (LIKE item INCLUDING ALL); INSERT INTO asia VALUES (1, 'asia', 'one'); SELECT recsync.create_pipeline('own', 'asia', columns => '{title}', server => 'api', index => 'none')", "")
            .run("ALTER TABLE item ATTACH PARTITION asia FOR VALUES IN ('asia')", "")
            .holds("SELECT count(*) = 4 FROM item_embedding")
            .run("SELECT recsync.drop_pipeline('own')", "")
            .run("UPDATE asia SET title = 'changed'", keys("UPDATE asia 1")),
    ]
}
