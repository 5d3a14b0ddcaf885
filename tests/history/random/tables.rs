//! The tables that random transactions change: their keys, what is logged of them, which text a row has.
//!
//! It never asks recsync what it thinks of them.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use crate::support::{Api, Database, Sql};

/// What `record` and `old_record` of the log hold of a table, and which updates are logged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Logged {
    /// Keys only; updates of used columns.
    Keys,
    /// The used columns; updates of used columns.
    Columns,
    /// The whole row; every update.
    Everything,
}

pub struct Table {
    pub name: &'static str,
    pub key: &'static [&'static str],
    /// How an update tells its rows' titles apart, as SQL.
    pub key_text: &'static str,
    pub logged: Logged,
    /// What a pipeline's text or filter uses.
    pub used: &'static [&'static str],
    /// What the text is joined of.
    pub text: &'static [&'static str],
    /// Whether only rows that are `shown` have a text.
    pub filtered: bool,
    columns: &'static str,
    /// The key's values of the row with a number.
    values: fn(u32) -> Vec<Value>,
}

pub const TABLES: [Table; 3] = [
    Table {
        name: "item",
        key: &["id"],
        key_text: "id",
        logged: Logged::Keys,
        used: &["title", "shown"],
        text: &["title"],
        filtered: true,
        columns: "id int PRIMARY KEY",
        values: |number| vec![json!(number)],
    },
    Table {
        name: "part",
        key: &["name", "code"],
        key_text: "code",
        logged: Logged::Columns,
        used: &["title", "remark"],
        text: &["title", "remark"],
        filtered: false,
        columns: "name text, dropped int, code uuid, PRIMARY KEY (name, code)",
        values: |number| {
            vec![
                json!(format!("part \"{}\"", number % 3)),
                json!(format!("00000000-0000-4000-8000-{number:012x}")),
            ]
        },
    },
    Table {
        name: "entry",
        key: &["code"],
        key_text: "code",
        logged: Logged::Everything,
        used: &["title", "shown"],
        text: &["title"],
        filtered: true,
        columns: "code text PRIMARY KEY, price numeric NOT NULL DEFAULT 1.50, tags text[] DEFAULT '{a,\"b c\"}', dropped int,
                  at timestamptz DEFAULT clock_timestamp(), doc jsonb DEFAULT '{\"deep\": [1, null, \"ü\"]}', body text",
        values: |number| vec![json!(format!("entry {number}"))],
    },
];

/// The columns that every table has.
const COLUMNS: &str =
    "title text, remark text, shown boolean NOT NULL DEFAULT true, stock int NOT NULL DEFAULT 0";

/// Values above this size are logged as their size.
const LARGE: usize = 8_192;

/// How the tables are watched in this run.
#[derive(Clone, Copy, Debug)]
pub struct Watch {
    /// Whether the audited table has a pipeline, too.
    pub audited_is_embedded: bool,
}

impl Watch {
    pub fn is_embedded(self, table: &Table) -> bool {
        table.logged != Logged::Everything || self.audited_is_embedded
    }

    pub fn embedded(self) -> impl Iterator<Item = &'static Table> {
        TABLES.iter().filter(move |table| self.is_embedded(table))
    }

    /// Tables with rows, pipelines over them, and the functions that sessions use.
    pub fn declare(self, db: &mut Database, api: &Api, rows: u32) {
        db.server("api", api, "max_batch_inputs '7'");
        db.run("CREATE TABLE marker (token text PRIMARY KEY, xid xid8 NOT NULL)");
        db.run(IN_A_BLOCK);
        for table in &TABLES {
            let (name, key) = (table.name, table.key.join(", "));
            db.run(&format!(
                "CREATE TABLE {name} ({}, {COLUMNS})",
                table.columns
            ));
            if table.columns.contains("dropped") {
                db.run(&format!("ALTER TABLE {name} DROP dropped"));
            }
            let large = match table.logged {
                Logged::Everything => format!(
                    " || CASE WHEN octet_length($1.body) > {LARGE}
                      THEN jsonb_build_object('body', jsonb_build_object('omitted_bytes', octet_length($1.body))) ELSE '{{}}' END"
                ),
                _ => String::new(),
            };
            db.run(&format!("CREATE FUNCTION as_logged({name}) RETURNS text LANGUAGE sql STABLE AS $$ SELECT (to_jsonb($1){large})::text $$"));
            for number in 0..rows {
                db.run(&format!(
                    "INSERT INTO {name} ({key}, title) VALUES ({}, 'there before {number} of {name}')",
                    table.key_sql(number)
                ));
            }
        }
        for table in self.embedded() {
            let name = table.name;
            let capture = match table.logged {
                Logged::Columns => "columns",
                _ => "keys",
            };
            let filter = if table.filtered { "'shown'" } else { "NULL" };
            db.run(&format!(
                "SELECT recsync.create_pipeline('{name}_embedding', '{name}', columns => '{{{}}}', server => 'api',
                        index => 'none', row_filter => {filter}, capture => '{capture}')",
                table.text.join(",")
            ));
        }
        db.run("SELECT recsync.audit('entry')");
    }
}

impl Table {
    pub fn key_list(&self) -> String {
        self.key.join(", ")
    }

    /// The values of a row's key as SQL literals.
    pub fn key_sql(&self, number: u32) -> String {
        let literal = |value: Value| match value {
            Value::String(text) => format!("'{text}'"),
            other => other.to_string(),
        };
        let literals: Vec<String> = (self.values)(number).into_iter().map(literal).collect();
        literals.join(", ")
    }

    /// The values of a row's key as COPY reads them.
    pub fn key_copied(&self, number: u32) -> String {
        let text = |value: &Value| value.as_str().map_or(value.to_string(), str::to_owned);
        let texts: Vec<String> = (self.values)(number).iter().map(text).collect();
        texts.join("\t")
    }

    /// The key of the row with a number.
    pub fn key_of(&self, number: u32) -> String {
        let names = self.key.iter().map(|&name| name.to_owned());
        json(names.zip((self.values)(number)).collect())
    }

    /// Whether an update that changes `column` alone is logged.
    pub fn logs_update_of(&self, column: &str) -> bool {
        self.logged == Logged::Everything || self.used.contains(&column)
    }

    /// A condition for the rows with these numbers.
    pub fn is_one_of(&self, numbers: &[u32]) -> String {
        let keys = numbers
            .iter()
            .map(|&number| format!("({})", self.key_sql(number)));
        let distinct: HashSet<String> = keys.collect();
        let keys: Vec<String> = distinct.into_iter().collect();
        format!("({}) IN ({})", self.key_list(), keys.join(", "))
    }
}

/// A row of a table, as the log would show it in full.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub text: String,
    values: Map<String, Value>,
}

impl Record {
    pub fn read(text: &str) -> Record {
        Record {
            values: serde_json::from_str(text).unwrap(),
            text: text.to_owned(),
        }
    }

    pub fn key(&self, table: &Table) -> String {
        self.only(table.key)
    }

    /// What can be told of the row from the log of its table.
    pub fn told(&self, table: &Table) -> String {
        match table.logged {
            Logged::Keys | Logged::Columns => self.only(table.used),
            Logged::Everything => self.text.clone(),
        }
    }

    /// What the API is asked for, if anything.
    pub fn embedded_text(&self, table: &Table) -> Option<String> {
        if table.filtered && self.values["shown"] != json!(true) {
            return None;
        }
        let parts: Vec<&str> = table
            .text
            .iter()
            .filter_map(|&column| self.values[column].as_str())
            .collect();
        Some(parts.join("\n")).filter(|text| !text.is_empty())
    }

    pub fn title(&self) -> &str {
        self.values["title"].as_str().unwrap_or_default()
    }

    pub fn has_only(&self, columns: impl Fn(&str) -> bool) -> bool {
        self.values.keys().all(|column| columns(column))
    }

    fn only(&self, columns: &[&str]) -> String {
        let wanted = columns.iter().map(|&column| {
            let value = self.values.get(column).cloned().unwrap_or(json!("missing"));
            (column.to_owned(), value)
        });
        json(wanted.collect())
    }
}

/// JSON whose text is the same whenever it means the same.
pub fn json(values: Map<String, Value>) -> String {
    Value::Object(values).to_string()
}

/// Statements in a block of PL/pgSQL with an exception handler, and what each of them returned: nothing but -1 where
/// the block was rolled back.
const IN_A_BLOCK: &str = "
CREATE FUNCTION in_a_block(statements text[], fails boolean) RETURNS TABLE (number int, record text, fresh boolean) LANGUAGE plpgsql AS $$
BEGIN
  FOR i IN 1 .. cardinality(statements) LOOP
    IF statements[i] LIKE 'TRUNCATE %' THEN
      EXECUTE statements[i];
    ELSE
      RETURN QUERY EXECUTE format('WITH changed (record, fresh) AS (%s) SELECT %s, record, fresh FROM changed', statements[i], i - 1);
    END IF;
  END LOOP;
  IF fails THEN PERFORM 1 / 0; END IF;
EXCEPTION WHEN division_by_zero OR unique_violation THEN
  RETURN QUERY SELECT -1, NULL::text, NULL::boolean;
END $$";
