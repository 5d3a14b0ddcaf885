//! What is compared: the same tables without a trigger, with recsync's in its three modes, and with the customary
//! audit trigger. It never changes what one variant does because of another.

use crate::support::{Database, Sql};

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    None,
    Keys,
    Columns,
    Full,
    Audit,
}

pub const VARIANTS: [Variant; 5] = [
    Variant::None,
    Variant::Keys,
    Variant::Columns,
    Variant::Full,
    Variant::Audit,
];

/// Those in which recsync is there or nothing.
pub const WITHOUT_AUDIT: [Variant; 4] = [
    Variant::None,
    Variant::Keys,
    Variant::Columns,
    Variant::Full,
];

/// As it is found in many databases: both versions of the row, a serial key and a position of its own.
const AUDIT: &str = "
    CREATE TABLE audit_log (
        id         bigserial PRIMARY KEY,
        position   bigint GENERATED ALWAYS AS IDENTITY,
        table_name text NOT NULL,
        op         text NOT NULL,
        changed_at timestamptz NOT NULL DEFAULT now(),
        changed_by text NOT NULL DEFAULT session_user,
        old_record jsonb,
        record     jsonb
    );
    CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO audit_log (table_name, op, old_record, record)
        VALUES (TG_TABLE_NAME, TG_OP, to_jsonb(OLD), to_jsonb(NEW));
        RETURN NULL;
    END $$";

impl Variant {
    pub fn label(self) -> &'static str {
        match self {
            Variant::None => "no trigger",
            Variant::Keys => "recsync keys",
            Variant::Columns => "recsync columns",
            Variant::Full => "recsync full",
            Variant::Audit => "audit trigger",
        }
    }

    /// The argument `capture` of its pipeline.
    pub fn mode(self) -> Option<&'static str> {
        match self {
            Variant::Keys => Some("keys"),
            Variant::Columns => Some("columns"),
            Variant::Full => Some("full"),
            Variant::None | Variant::Audit => None,
        }
    }

    /// Its table of a kind.
    pub fn table(self, kind: &str) -> String {
        let name = match self {
            Variant::None => "none",
            Variant::Keys => "keys",
            Variant::Columns => "columns",
            Variant::Full => "full",
            Variant::Audit => "audit",
        };
        format!("{kind}_{name}")
    }

    /// Makes its table of a kind and watches it. A pipeline would use title and body.
    pub fn create(self, db: &mut Database, kind: &str, columns: &str) {
        let table = self.table(kind);
        db.run(&format!("CREATE TABLE {table} ({columns})"));
        if self == Variant::Audit {
            db.run(&format!(
                "CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON {table}
                 FOR EACH ROW EXECUTE FUNCTION audit()"
            ));
        }
        if let Some(mode) = self.mode() {
            db.run(&format!(
                "SELECT recsync.create_pipeline('{table}_embedding', '{table}', columns => '{{title, body}}',
                        server => 'local', index => 'none', backfill => false, capture => '{mode}')"
            ));
        }
    }

    /// That every one of `count` changes was logged as this variant does, and nothing else was.
    pub fn assert_logged(self, db: &mut Database, count: usize) {
        let expected = match self {
            Variant::None => [0, 0, 0, 0],
            Variant::Keys => [count, 0, 0, 0],
            Variant::Columns | Variant::Full => [count, count, 0, 0],
            Variant::Audit => [0, 0, count, count],
        };
        let row = &db.rows(
            "SELECT l.*, a.* FROM (SELECT count(*), count(record) FROM recsync.change_log) l,
                                  (SELECT count(*), count(record) FROM audit_log) a",
        )[0];
        let found = [0, 1, 2, 3].map(|index| row.get::<_, i64>(index) as usize);
        assert_eq!(
            found,
            expected,
            "{}: changes and records in recsync's log, in the audit's",
            self.label()
        );
    }
}

/// A server without HTTP for the pipelines, and the audit trigger.
pub fn prepare(db: &mut Database) {
    db.run("CREATE SERVER local FOREIGN DATA WRAPPER recsync OPTIONS (api 'builtin')");
    db.run(AUDIT);
}

/// An empty table and empty logs, and nothing left to be written to disk under what is measured next. That writes new
/// pages: of those that were there before, which go to the WAL in full at their first change after a checkpoint, there
/// is only a handful.
pub fn empty(db: &mut Database, table: &str) {
    db.run(&format!("TRUNCATE {table}"));
    empty_logs(db);
}

pub fn empty_logs(db: &mut Database) {
    db.run(&format!("TRUNCATE audit_log, {}", log_tables()));
    db.run("CHECKPOINT");
}

/// The tables of recsync's log.
pub fn log_tables() -> String {
    let tables: Vec<String> = (0..8).map(|n| format!("recsync.log_{n}")).collect();
    tables.join(", ")
}

/// The ids of transactions in recsync's log, a row each as it is stored.
pub fn log() -> String {
    let tables = log_tables();
    let all = tables
        .split(", ")
        .map(|table| format!("SELECT transaction_id FROM {table}"));
    all.collect::<Vec<_>>().join(" UNION ALL ")
}

/// How many rows recsync has ever written to its log.
pub fn log_inserts(db: &mut Database) -> i64 {
    log_statistic(db, "n_tup_ins")
}

/// A column of pg_stat_all_tables, summed up over the tables of recsync's log; of sessions that have reported.
pub fn log_statistic(db: &mut Database, column: &str) -> i64 {
    db.run("SELECT pg_stat_force_next_flush()");
    let tables = log_tables().replace(", ", ",");
    db.one(&format!(
        "SELECT sum({column})::bigint FROM pg_stat_all_tables
          WHERE relid = ANY (string_to_array('{tables}', ',')::regclass[])"
    ))
}
