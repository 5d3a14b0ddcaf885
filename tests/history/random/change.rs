//! A change as SQL, and what has happened by what PostgreSQL returned.
//!
//! It never takes for granted that a change did what was planned: other sessions are in between.

use std::collections::HashMap;

use super::model::{Event, Op};
use super::plan::{Change, Column};
use super::tables::{Record, TABLES, Table};

/// A row that a statement returned; `fresh`: it was inserted.
pub struct Returned {
    pub record: Record,
    pub fresh: bool,
}

/// What rows were before, where they were locked, by their keys.
pub type Before = HashMap<String, Record>;

impl Change {
    /// The table and the rows that the change may meet.
    fn meets(&self) -> (usize, &[u32]) {
        match self {
            Change::Insert { table, rows, .. }
            | Change::Copy { table, rows }
            | Change::Set { table, rows, .. }
            | Change::Delete { table, rows } => (*table, rows),
            Change::Rekey { table, from, .. } => (*table, std::slice::from_ref(from)),
            Change::Upsert { table, row } | Change::Merge { table, row } => {
                (*table, std::slice::from_ref(row))
            }
            Change::Move { from, .. } => (from.0, std::slice::from_ref(&from.1)),
            Change::Truncate { table } => (*table, &[]),
        }
    }

    pub fn table(&self) -> &'static Table {
        &TABLES[self.meets().0]
    }

    /// Locks the rows and returns them.
    pub fn lock_sql(&self) -> Option<String> {
        let (table, rows) = (self.table(), self.meets().1);
        (!rows.is_empty()).then(|| {
            format!(
                "SELECT as_logged({0}), false FROM {0} WHERE {1} ORDER BY {2} FOR UPDATE",
                table.name,
                table.is_one_of(rows),
                table.key_list()
            )
        })
    }

    /// Whether what came of it is seen only by a look at the rows before and after.
    pub fn returns_nothing(&self) -> bool {
        matches!(self, Change::Copy { .. } | Change::Merge { .. })
    }

    /// The rows as they are now.
    pub fn look_sql(&self) -> String {
        let (table, rows) = (self.table(), self.meets().1);
        format!(
            "SELECT as_logged({0}), false FROM {0} WHERE {1}",
            table.name,
            table.is_one_of(rows)
        )
    }

    /// The statement; texts that it writes begin with `token` and are written by nobody else.
    pub fn sql(&self, token: &str) -> String {
        let table = self.table();
        let (name, keys) = (table.name, table.key_list());
        let returning = format!("RETURNING as_logged({name}), false");
        match self {
            Change::Insert {
                rows,
                shown,
                or_nothing,
                ..
            } => {
                let rows = rows.iter().enumerate().map(|(at, &row)| {
                    format!("({}, '{token} row {at}', {shown})", table.key_sql(row))
                });
                let rows: Vec<String> = rows.collect();
                let conflict = if *or_nothing {
                    "ON CONFLICT DO NOTHING"
                } else {
                    ""
                };
                format!(
                    "INSERT INTO {name} ({keys}, title, shown) VALUES {} {conflict} {returning}",
                    rows.join(", ")
                )
            }
            Change::Copy { .. } => format!("COPY {name} ({keys}, title) FROM STDIN"),
            Change::Set { rows, column, .. } => {
                let set = match column.of(table) {
                    Column::Title => format!("title = '{token} ' || {}", table.key_text),
                    Column::Remark => format!(
                        "remark = CASE WHEN remark IS NULL THEN '{token} remark ' || {} END",
                        table.key_text
                    ),
                    Column::Shown => "shown = NOT shown".into(),
                    Column::Stock => "stock = stock + 1".into(),
                    Column::Nothing => "title = title".into(),
                    Column::Body => {
                        format!("body = repeat('{token} ', 100 + length(coalesce(body, '')) % 2000)")
                    }
                };
                format!(
                    "UPDATE {name} SET {set} WHERE {} {returning}",
                    table.is_one_of(rows)
                )
            }
            Change::Rekey {
                from, to, retitled, ..
            } => {
                let title = if *retitled {
                    format!(", title = '{token}'")
                } else {
                    String::new()
                };
                format!(
                    "UPDATE {name} SET ({keys}) = ROW({}){title} WHERE {} {returning}",
                    table.key_sql(*to),
                    table.is_one_of(&[*from])
                )
            }
            Change::Upsert { row, .. } => format!(
                "INSERT INTO {name} ({keys}, title) VALUES ({}, '{token}')
                 ON CONFLICT ({keys}) DO UPDATE SET title = excluded.title RETURNING as_logged({name}), xmax::text = '0'",
                table.key_sql(*row)
            ),
            Change::Merge { row, .. } => {
                let key = table.key_sql(*row);
                format!(
                    "MERGE INTO {name} USING (SELECT 1) AS one ON {}
                     WHEN MATCHED AND stock % 2 = 1 THEN DELETE
                     WHEN MATCHED THEN UPDATE SET title = '{token} over'
                     WHEN NOT MATCHED THEN INSERT ({keys}, title) VALUES ({key}, '{token} in')",
                    table.is_one_of(&[*row])
                )
            }
            Change::Move { from, to } => {
                let target = &TABLES[to.0];
                format!(
                    "WITH gone AS (DELETE FROM {name} WHERE {} RETURNING 1)
                     INSERT INTO {1} ({2}, title) SELECT {3}, '{token}' FROM gone RETURNING as_logged({1}), true",
                    table.is_one_of(&[from.1]),
                    target.name,
                    target.key_list(),
                    target.key_sql(to.1)
                )
            }
            Change::Delete { rows, .. } => {
                format!("DELETE FROM {name} WHERE {} {returning}", table.is_one_of(rows))
            }
            Change::Truncate { .. } => format!("TRUNCATE {name}"),
        }
    }

    /// What COPY is given.
    pub fn copied(&self, token: &str) -> String {
        let (table, rows) = (self.table(), self.meets().1);
        let lines = rows
            .iter()
            .enumerate()
            .map(|(at, &row)| format!("{}\t{token} row {at}\n", table.key_copied(row)));
        lines.collect()
    }

    /// The row events, in order. `returned`: by the statement, or by the look after one that returns nothing.
    pub fn events(&self, returned: Vec<Returned>, before: &Before) -> Vec<Event> {
        let table = self.table();
        let at = self.meets().0;
        let updated = |record: Record, key_before: Option<String>, logged: bool| {
            let key = record.key(table);
            let changed = key_before.filter(|before| *before != key);
            Event {
                table: at,
                op: Op::Update,
                old: before.get(changed.as_ref().unwrap_or(&key)).cloned(),
                logged: logged || changed.is_some(),
                key_before: changed,
                key,
                new: Some(record),
            }
        };
        let inserted = |table: usize, record: Record| Event {
            table,
            op: Op::Insert,
            key: record.key(&TABLES[table]),
            key_before: None,
            old: None,
            new: Some(record),
            logged: true,
        };
        let deleted = |key: String, old: Option<Record>| Event {
            table: at,
            op: Op::Delete,
            key,
            key_before: None,
            old,
            new: None,
            logged: true,
        };
        let records = returned.into_iter();
        match self {
            Change::Insert { .. } => records.map(|row| inserted(at, row.record)).collect(),
            Change::Copy { rows, .. } => {
                let mut found: HashMap<String, Record> = records
                    .map(|row| (row.record.key(table), row.record))
                    .collect();
                let copied = rows
                    .iter()
                    .map(|&row| found.remove(&table.key_of(row)).expect("a copied row"));
                copied.map(|record| inserted(at, record)).collect()
            }
            Change::Set { column, .. } => {
                let column = column.of(table).name();
                let logged = column.is_some_and(|column| table.logs_update_of(column));
                records
                    .map(|row| updated(row.record, None, logged))
                    .collect()
            }
            Change::Rekey { from, retitled, .. } => {
                let from = table.key_of(*from);
                records
                    .map(|row| updated(row.record, Some(from.clone()), *retitled))
                    .collect()
            }
            Change::Upsert { .. } => records
                .map(|row| match row.fresh {
                    true => inserted(at, row.record),
                    false => updated(row.record, None, true),
                })
                .collect(),
            Change::Merge { row, .. } => {
                let key = table.key_of(*row);
                match records.last().map(|row| row.record) {
                    None => vec![deleted(key.clone(), before.get(&key).cloned())],
                    Some(record) if record.title().ends_with(" in") => vec![inserted(at, record)],
                    Some(record) => vec![updated(record, None, true)],
                }
            }
            Change::Move { from, to } => records
                .flat_map(|row| {
                    let key = table.key_of(from.1);
                    let old = before.get(&key).cloned();
                    [deleted(key, old), inserted(to.0, row.record)]
                })
                .collect(),
            Change::Delete { .. } => records
                .map(|row| deleted(row.record.key(table), Some(row.record)))
                .collect(),
            Change::Truncate { .. } => vec![Event {
                table: at,
                op: Op::Truncate,
                key: String::new(),
                key_before: None,
                old: None,
                new: None,
                logged: true,
            }],
        }
    }
}

impl Column {
    /// Only the audited table has a body.
    fn of(self, table: &Table) -> Column {
        match self {
            Column::Body if table.logged != super::tables::Logged::Everything => Column::Stock,
            column => column,
        }
    }

    fn name(self) -> Option<&'static str> {
        match self {
            Column::Title => Some("title"),
            Column::Remark => Some("remark"),
            Column::Shown => Some("shown"),
            Column::Stock => Some("stock"),
            Column::Body => Some("body"),
            Column::Nothing => None,
        }
    }
}
