//! The reference model: what the committed transactions did, held against what the change log tells, what the tables
//! hold and what the API was asked for.
//!
//! It never reads the log to learn what should be in it.

use std::collections::{BTreeMap, HashMap, HashSet};

use postgres::Client;

use super::tables::{Logged, Record, TABLES, Table, Watch};
use crate::support::Sql;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Op {
    Insert,
    Update,
    Delete,
    Truncate,
}

/// One row event of a session's own.
#[derive(Clone, Debug)]
pub struct Event {
    pub table: usize,
    pub op: Op,
    /// After the change; empty for TRUNCATE.
    pub key: String,
    /// Where an update changed it.
    pub key_before: Option<String>,
    /// `None` where the session cannot know it.
    pub old: Option<Record>,
    pub new: Option<Record>,
    /// Whether the log should hold it.
    pub logged: bool,
}

/// What a session tried as one transaction.
pub struct Transaction {
    /// Stands in table `marker` if and only if it has committed.
    pub token: String,
    pub events: Vec<Event>,
    /// What the server said about its end, if it said anything.
    pub committed: Option<bool>,
}

/// A row of the change log.
struct Logline {
    sequence: i64,
    table: String,
    op: String,
    key: Option<String>,
    old: Option<String>,
    new: Option<String>,
    application: Option<String>,
}

/// The rows of every table, by table and key.
pub type Rows = BTreeMap<(usize, String), Record>;

pub fn rows(db: &mut Client) -> Rows {
    let mut rows = Rows::new();
    for (at, table) in TABLES.iter().enumerate() {
        for text in db.column::<String>(&format!("SELECT as_logged({0}) FROM {0}", table.name)) {
            let record = Record::read(&text);
            rows.insert((at, record.key(table)), record);
        }
    }
    rows
}

/// The log against the model: every committed transaction's events in their order and nothing else; every row's life
/// by sequence; and from them how often each text became one that has to be asked for.
pub fn check_log(
    db: &mut Client,
    before: Rows,
    transactions: &[Transaction],
    watch: Watch,
) -> HashMap<String, usize> {
    let mut log = read_log(db);
    let markers: HashMap<String, String> = db
        .rows("SELECT token, xid::text FROM marker")
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    let mut told = Vec::new();
    for transaction in transactions {
        let token = &transaction.token;
        let xid = markers.get(token);
        if let Some(committed) = transaction.committed {
            assert_eq!(xid.is_some(), committed, "{token}: the server said so");
        }
        let Some(xid) = xid else { continue };
        let lines = log.remove(xid).unwrap_or_default();
        let wanted: Vec<&Event> = transaction
            .events
            .iter()
            .filter(|event| event.logged)
            .collect();
        let differ = (0..lines.len().max(wanted.len())).find(|&at| {
            let both = lines.get(at).zip(wanted.get(at));
            both.is_none_or(|(line, event)| !tells(line, event, token))
        });
        if let Some(at) = differ {
            panic!(
                "transaction {xid}, {token}: from its change {at} on the log has\n  {}\nand what happened is\n  {}",
                list(lines[at.min(lines.len())..].iter().map(describe_line)),
                list(
                    wanted[at.min(wanted.len())..]
                        .iter()
                        .map(|event| describe_event(event))
                )
            );
        }
        let xid = xid.clone();
        told.extend(
            lines
                .into_iter()
                .zip(wanted)
                .map(|(line, event)| (xid.clone(), line, event)),
        );
    }
    assert!(
        log.is_empty(),
        "the log has changes of transactions that did nothing or were rolled back:\n  {}",
        list(log.values().flatten().map(describe_line))
    );
    told.sort_by_key(|(_, line, _)| line.sequence);
    for pair in told.windows(2) {
        assert!(
            pair[0].1.sequence < pair[1].1.sequence,
            "{} stands there twice",
            pair[0].1.sequence
        );
    }
    replay(before, told, rows(db), watch)
}

fn read_log(db: &mut Client) -> HashMap<String, Vec<Logline>> {
    let mut log: HashMap<String, Vec<Logline>> = HashMap::new();
    for row in db.rows(
        "SELECT transaction_id::text, sequence, table_name::text, op, record_key::text, old_record::text, record::text, application_name
           FROM recsync.change_log WHERE changed_by = 'postgres' ORDER BY sequence",
    ) {
        let line = Logline {
            sequence: row.get(1),
            table: row.get(2),
            op: row.get(3),
            key: row.get(4),
            old: row.get(5),
            new: row.get(6),
            application: row.get(7),
        };
        log.entry(row.get(0)).or_default().push(line);
    }
    let all: i64 = db.one("SELECT count(*) FROM recsync.change_log");
    let read: usize = log.values().map(Vec::len).sum();
    assert_eq!(all as usize, read, "changes by somebody else");
    log
}

/// Whether `line` is what the log should hold of `event`, in its table's capture mode.
fn tells(line: &Logline, event: &Event, token: &str) -> bool {
    let table = &TABLES[event.table];
    let key = |text: &Option<String>| text.as_deref().map(|text| Record::read(text).key(table));
    let op = match event.op {
        Op::Insert => "INSERT",
        Op::Update => "UPDATE",
        Op::Delete => "DELETE",
        Op::Truncate => "TRUNCATE",
    };
    let session = token.split('.').next();
    if line.table != table.name || line.op != op || line.application.as_deref() != session {
        return false;
    }
    if key(&line.key) != Some(event.key.clone()).filter(|key| !key.is_empty()) {
        return false;
    }
    match table.logged {
        Logged::Keys => line.new.is_none() && key(&line.old) == event.key_before,
        Logged::Columns | Logged::Everything => {
            let has_old = matches!(event.op, Op::Update | Op::Delete);
            let moved = event.key_before.is_none() || key(&line.old) == event.key_before;
            moved
                && shows(table, &line.new, event.new.as_ref(), event.new.is_some())
                && shows(table, &line.old, event.old.as_ref(), has_old)
        }
    }
}

/// Whether the log shows `wanted` as it should; one that the session does not know may be anything.
fn shows(table: &Table, shown: &Option<String>, wanted: Option<&Record>, exists: bool) -> bool {
    let Some(shown) = shown.as_deref().map(Record::read) else {
        return !exists;
    };
    let known = |column: &str| table.used.contains(&column) || table.key.contains(&column);
    exists
        && (table.logged == Logged::Everything || shown.has_only(known))
        && wanted.is_none_or(|wanted| shown.told(table) == wanted.told(table))
}

/// Every row's life in the order of the log, from what was there before to what is there now.
fn replay(
    before: Rows,
    told: Vec<(String, Logline, &Event)>,
    now: Rows,
    watch: Watch,
) -> HashMap<String, usize> {
    let mut alive = before;
    let mut causes: HashMap<String, usize> = HashMap::new();
    let text = |table: usize, record: Option<&Record>| {
        let embedded = watch.is_embedded(&TABLES[table]);
        record
            .filter(|_| embedded)
            .and_then(|record| record.embedded_text(&TABLES[table]))
    };
    for ((table, _), record) in &alive {
        if let Some(text) = text(*table, Some(record)) {
            *causes.entry(text).or_default() += 1;
        }
    }
    // What each transaction found and left of each row's text.
    let mut found = HashMap::new();
    let mut left = HashMap::new();
    for (xid, line, event) in &told {
        let table = &TABLES[event.table];
        let at = |key: &String| (event.table, key.clone());
        let key_before = event.key_before.as_ref().unwrap_or(&event.key);
        let old = match event.op {
            Op::Truncate => {
                let keys: Vec<_> = alive
                    .keys()
                    .filter(|key| key.0 == event.table)
                    .cloned()
                    .collect();
                for key in keys {
                    let old = alive.remove(&key);
                    let place = (xid.clone(), key);
                    found
                        .entry(place.clone())
                        .or_insert_with(|| text(event.table, old.as_ref()));
                    left.insert(place, None);
                }
                continue;
            }
            _ => alive.remove(&at(key_before)),
        };
        assert_eq!(
            old.is_some(),
            event.op != Op::Insert,
            "a row's life is broken at {}; the row was {old:?}",
            describe_line(line)
        );
        if let (Some(old), Some(shown), false) = (&old, &line.old, table.logged == Logged::Keys) {
            assert_eq!(
                Record::read(shown).told(table),
                old.told(table),
                "old_record is not the record before, at {}",
                describe_line(line)
            );
        }
        let place = (xid.clone(), at(key_before));
        found
            .entry(place.clone())
            .or_insert_with(|| text(event.table, old.as_ref()));
        left.insert(place, None);
        if let Some(new) = &event.new {
            let taken = alive.insert(at(&event.key), new.clone());
            assert!(
                taken.is_none(),
                "two rows with one key at {}",
                describe_line(line)
            );
            let place = (xid.clone(), at(&event.key));
            found.entry(place.clone()).or_insert(None);
            left.insert(place, text(event.table, Some(new)));
        }
    }
    let differ = |key: &&(usize, String)| {
        let told = |rows: &Rows| rows.get(*key).map(|record| record.told(&TABLES[key.0]));
        told(&alive) != told(&now)
    };
    let keys: HashSet<&(usize, String)> = alive.keys().chain(now.keys()).collect();
    let wrong = keys.into_iter().filter(differ).map(|key| {
        format!(
            "{key:?}: by the log {:?}, in the table {:?}",
            alive.get(key),
            now.get(key)
        )
    });
    let wrong: Vec<String> = wrong.collect();
    assert!(
        wrong.is_empty(),
        "lives that do not end as the rows are:\n  {}",
        list(wrong)
    );
    for (place, text) in left {
        if let Some(text) = text.filter(|text| found[&place].as_ref() != Some(text)) {
            *causes.entry(text).or_default() += 1;
        }
    }
    causes
}

/// No text was asked for more often than it became a row's text; `kills` times more where flights were lost.
pub fn check_requests(causes: &HashMap<String, usize>, asked: &[String], kills: usize) {
    let mut times: HashMap<&String, usize> = HashMap::new();
    for text in asked {
        *times.entry(text).or_default() += 1;
    }
    let wrong = times.into_iter().filter_map(|(text, times)| {
        let causes = causes.get(text).copied().unwrap_or(0);
        let most = if causes == 0 { 0 } else { causes + kills };
        (times > most).then(|| {
            format!("{text:?} was asked for {times} times, and was a row's new text {causes} times")
        })
    });
    let wrong: Vec<String> = wrong.collect();
    assert!(wrong.is_empty(), "with {kills} kills:\n  {}", list(wrong));
}

fn list(lines: impl IntoIterator<Item = String>) -> String {
    let short = |line: String| line.chars().take(600).collect::<String>();
    let lines: Vec<String> = lines.into_iter().take(30).map(short).collect();
    lines.join("\n  ")
}

fn describe_line(line: &Logline) -> String {
    format!(
        "{} {} {} {:?}, old {:?}, record {:?}, by {:?}",
        line.sequence, line.op, line.table, line.key, line.old, line.new, line.application
    )
}

fn describe_event(event: &Event) -> String {
    let text = |record: &Option<Record>| record.as_ref().map(|record| record.text.clone());
    format!(
        "{:?} {} {:?}, key before {:?}, old {:?}, record {:?}",
        event.op,
        TABLES[event.table].name,
        event.key,
        event.key_before,
        text(&event.old),
        text(&event.new)
    )
}
