//! The change log as cases write it, and its replay. It never looks at the tables behind the view.
//!
//! A step's log is a list of lines with `; ` between them, in the order of their sequence:
//!
//! | written | means |
//! |---|---|
//! | `INSERT 1` | the key is `{"id": 1}`, the table is `item` |
//! | `UPDATE 2 <- 1` | and before it was 1 |
//! | `line DELETE {"order": 1, "number": 2}` | another table, another key |
//! | `TRUNCATE` | no key |
//! | `INSERT 1..3` | `INSERT 1; INSERT 2; INSERT 3` |
//! | `(UPDATE 1)` | only where the table is audited: no text is concerned |
//! | `~ INSERT 1; INSERT 2` | in any order |

use std::collections::{BTreeMap, BTreeSet};

use postgres::Client;
use serde_json::Value;

use super::case::Mode;
use crate::support::Sql;

/// The log from transaction `$1` on. The key before an update is shown where it was another.
const LINES: &str = r#"
PREPARE lines (text) AS SELECT l.transaction_id::text, l.sequence,
       concat_ws(' ', CASE WHEN l.table_name IS NULL THEN 'gone' ELSE NULLIF(l.table_name::text, 'item') END, l.op,
                 CASE WHEN l.record_key - 'id' = '{}' THEN l.record_key ->> 'id' ELSE l.record_key::text END,
                 '<- ' || CASE WHEN before - 'id' = '{}' THEN before ->> 'id' ELSE before::text END),
       array_remove(ARRAY[l.table_name::text || l.record_key::text, l.table_name::text || before::text], NULL)
  FROM recsync.change_log l
  LEFT JOIN LATERAL (SELECT jsonb_object_agg(k, l.old_record -> k) AS before, jsonb_object_agg(k, l.record -> k) AS after
                       FROM jsonb_object_keys(l.record_key) k WHERE l.op = 'UPDATE' AND l.old_record ? k) b
         ON l.record IS NULL OR before <> after
 WHERE l.transaction_id >= $1::xid8
 ORDER BY l.sequence"#;

const RECORDS: &str = "
SELECT op, old_record::text, record::text FROM recsync.change_log
 WHERE transaction_id >= $1::text::xid8 AND table_name = $2::oid ORDER BY sequence";

pub struct History {
    /// The first transaction that counts.
    since: String,
    seen: BTreeSet<(String, i64)>,
    /// The highest sequence of each row.
    last: BTreeMap<String, i64>,
    mode: Mode,
    /// The rows of each replayed table, as they were at the beginning.
    tables: Vec<(Table, BTreeMap<String, Value>)>,
}

/// What `client` needs to be asked for lines: planned once, since it is asked after every statement.
pub fn prepare(client: &mut Client) {
    client.run("SET plan_cache_mode = force_generic_plan; SET max_parallel_workers_per_gather = 0; SET jit = off");
    client.run(LINES);
}

impl History {
    /// For a client that was prepared.
    pub fn begin(client: &mut Client, mode: Mode) -> History {
        History {
            since: client.one("SELECT pg_snapshot_xmax(pg_current_snapshot())::text"),
            seen: BTreeSet::new(),
            last: BTreeMap::new(),
            mode,
            tables: Vec::new(),
        }
    }

    /// That the log has grown by `expected`, and by nothing else.
    pub fn assert_grown(&mut self, client: &mut Client, expected: &str, because_of: &str) {
        let mut new = Vec::new();
        for row in client.rows(&format!("EXECUTE lines ('{}')", self.since)) {
            let (transaction, sequence) = (row.get(0), row.get(1));
            if !self.seen.insert((transaction, sequence)) {
                continue;
            }
            new.push(row.get::<_, String>(2));
            for key in row.get::<_, Vec<String>>(3) {
                let before = self.last.insert(key, sequence);
                assert!(
                    before < Some(sequence),
                    "{sequence} after {before:?}, after\n{because_of}"
                );
            }
        }
        let (any_order, expected) = match expected.strip_prefix("~ ") {
            Some(rest) => (true, rest),
            None => (false, expected),
        };
        let mut expected = lines(expected, self.mode);
        if any_order {
            expected.sort();
            new.sort();
        }
        if expected != new {
            let different = (0..).find(|&i| expected.get(i) != new.get(i)).unwrap_or(0);
            let from = |lines: &[String]| {
                lines
                    .iter()
                    .skip(different)
                    .take(20)
                    .cloned()
                    .collect::<Vec<_>>()
                    .join("; ")
            };
            panic!(
                "the log differs from line {different} on after\n{because_of}\nexpected {} lines: {}\n     got {} lines: {}",
                expected.len(),
                from(&expected),
                new.len(),
                from(&new)
            );
        }
        let sequences: BTreeSet<i64> = self.seen.iter().map(|(_, sequence)| *sequence).collect();
        assert_eq!(
            sequences.len(),
            self.seen.len(),
            "a sequence was given twice"
        );
    }

    /// Replays what is logged of `table` from now on.
    pub fn follow(&mut self, client: &mut Client, table: &str) {
        let table = Table::of(client, table);
        let rows = table.rows(client);
        self.tables.push((table, rows));
    }

    /// That each record before a change is the one after the change before it, and the last ones are the table's rows.
    pub fn assert_replays(&self, client: &mut Client) {
        for (table, start) in &self.tables {
            let mut rows = start.clone();
            for row in client.query(RECORDS, &[&self.since, &table.oid]).unwrap() {
                let (op, old, new): (String, Option<String>, Option<String>) =
                    (row.get(0), row.get(1), row.get(2));
                let (old, new) = (old.map(parse), new.map(parse));
                let wanted = match op.as_str() {
                    "INSERT" => (false, true),
                    "UPDATE" => (true, true),
                    "DELETE" => (true, false),
                    _ => (false, false),
                };
                assert_eq!(
                    (old.is_some(), new.is_some()),
                    wanted,
                    "the records of a logged {op}"
                );
                if op == "TRUNCATE" {
                    rows.clear();
                }
                if let Some(old) = old {
                    let before = rows.remove(&table.key_of(&old));
                    assert_eq!(
                        before,
                        Some(old),
                        "what was there before {op}, and its old_record"
                    );
                }
                if let Some(new) = new {
                    let before = rows.insert(table.key_of(&new), new);
                    assert_eq!(before, None, "{op} of a key that was there");
                }
            }
            assert_eq!(rows, table.rows(client), "the log, replayed, and the table");
        }
    }
}

/// A table by its OID: it may be renamed.
struct Table {
    oid: u32,
    key: Vec<String>,
}

impl Table {
    fn of(client: &mut Client, name: &str) -> Table {
        let key = "SELECT a.attname::text FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
                    WHERE i.indisprimary AND i.indrelid = ";
        Table {
            oid: client.one(&format!("SELECT '{name}'::regclass::oid")),
            key: client.column(&format!("{key} '{name}'::regclass")),
        }
    }

    /// Its rows by their keys; those of partitions, not of children.
    fn rows(&self, client: &mut Client) -> BTreeMap<String, Value> {
        let from: String = client.one(&format!(
            "SELECT CASE relkind WHEN 'p' THEN '' ELSE 'ONLY ' END || oid::regclass FROM pg_class WHERE oid = {}",
            self.oid
        ));
        let rows = client.column(&format!("SELECT to_jsonb(s)::text FROM {from} s"));
        let rows = rows.into_iter().map(parse);
        rows.map(|row| (self.key_of(&row), row)).collect()
    }

    fn key_of(&self, record: &Value) -> String {
        let parts = self.key.iter().map(|name| record[name].to_string());
        parts.collect::<Vec<_>>().join(",")
    }
}

fn parse(record: String) -> Value {
    serde_json::from_str(&record).unwrap()
}

/// The lines that a case has written down, each written out.
fn lines(expected: &str, mode: Mode) -> Vec<String> {
    let mut all = Vec::new();
    for line in expected.split("; ").filter(|line| !line.is_empty()) {
        let line = match line
            .strip_prefix('(')
            .and_then(|line| line.strip_suffix(')'))
        {
            Some(_) if mode == Mode::Keys => continue,
            Some(line) => line,
            None => line,
        };
        let range = line.rsplit_once(' ').and_then(|(op, range)| {
            let (first, last) = range.split_once("..")?;
            Some((op, first.parse::<i64>().ok()?, last.parse::<i64>().ok()?))
        });
        match range {
            Some((op, first, last)) => all.extend((first..=last).map(|id| format!("{op} {id}"))),
            None => all.push(line.to_owned()),
        }
    }
    all
}
