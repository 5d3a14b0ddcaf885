//! One session: a connection that works through its plan, notes what each transaction did, and comes back after a crash.
//!
//! It never concludes from a lost connection whether a commit went through: the marker decides.

use std::collections::HashSet;
use std::io::Write;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use postgres::error::SqlState;
use postgres::{Client, SimpleQueryMessage};

use super::change::{Before, Returned};
use super::model::{Event, Transaction};
use super::plan::{Change, End, Step, Work};
use super::tables::{Record, TABLES};
use crate::support::sql::describe;
use crate::support::{Cluster, PATIENCE, Sql, wait_until};

/// What the sessions of a run share.
pub struct Stage<'a> {
    pub cluster: &'a Cluster,
    pub database: &'a str,
    /// Whether the server may go away.
    pub crashes: bool,
    /// Whose deadlocks are the sessions' own.
    pub backends: Mutex<HashSet<i32>>,
}

pub struct Session<'a> {
    stage: &'a Stage<'a>,
    name: String,
    client: Client,
    history: Vec<Transaction>,
    /// Prepared, and whether it is to be committed.
    prepared: Option<(usize, bool)>,
    simple: bool,
    pub conflicts: usize,
}

/// How a statement ended that has not gone through.
enum Trouble {
    /// With other sessions: the transaction, or the part since a savepoint, is to be rolled back.
    Conflict,
    Lost,
}

impl<'a> Session<'a> {
    pub fn open(stage: &'a Stage<'a>, number: u64) -> Session<'a> {
        let name = format!("s{number}");
        Session {
            client: connect(stage, &name),
            stage,
            name,
            history: Vec::new(),
            prepared: None,
            simple: true,
            conflicts: 0,
        }
    }

    /// All of `works`; what was tried, in order.
    pub fn run(mut self, works: &[Work]) -> (Vec<Transaction>, usize) {
        for (number, work) in works.iter().enumerate() {
            let before = self.prepared.take();
            self.simple = work.simple;
            self.history.push(Transaction {
                token: format!("{}.{number}", self.name),
                events: Vec::new(),
                committed: None,
            });
            self.attempt(work);
            if let Some((prepared, commit)) = before {
                self.finish_prepared(prepared, commit);
            }
        }
        if let Some((prepared, commit)) = self.prepared.take() {
            self.finish_prepared(prepared, commit);
        }
        (self.history, self.conflicts)
    }

    fn attempt(&mut self, work: &Work) {
        let outcome = match work.end {
            // Of one that was lost on the way back nobody knows what it did.
            End::Alone if !self.stage.crashes => self.alone(work),
            _ => self.transaction(work),
        };
        match outcome {
            Ok(()) => {}
            Err(Trouble::Conflict) => {
                self.conflicts += 1;
                match self.client.batch_execute("ROLLBACK") {
                    Ok(()) => self.now().committed = Some(false),
                    Err(error) => self.lost(&error),
                }
            }
            Err(Trouble::Lost) => self.client = connect(self.stage, &self.name),
        }
    }

    /// One statement, with its marker in it.
    fn alone(&mut self, work: &Work) -> Result<(), Trouble> {
        let Some(Step::Change { change, .. }) = work.steps.first() else {
            return Ok(());
        };
        let token = self.now().token.clone();
        let marker = format!(
            "WITH marked AS (INSERT INTO marker VALUES ('{token}', pg_current_xact_id())) "
        );
        let returned = self.fetch(&(marker + &change.sql(&token)))?;
        self.now().events = change.events(returned, &Before::new());
        self.now().committed = Some(true);
        Ok(())
    }

    fn transaction(&mut self, work: &Work) -> Result<(), Trouble> {
        self.run_sql(&format!("BEGIN ISOLATION LEVEL {}", work.isolation))?;
        let token = self.now().token.clone();
        // The events that were there when each savepoint was set.
        let mut savepoints: Vec<usize> = Vec::new();
        for (number, step) in work.steps.iter().enumerate() {
            let token = format!("{token}.{number}");
            match self.step(step, &token, &mut savepoints) {
                Err(Trouble::Conflict) if !savepoints.is_empty() => {
                    self.conflicts += 1;
                    self.step(&Step::RollbackTo, &token, &mut savepoints)?;
                }
                other => other?,
            }
        }
        if work.end == End::Rollback {
            self.run_sql("ROLLBACK")?;
            self.now().committed = Some(false);
            return Ok(());
        }
        self.run_sql(&format!(
            "INSERT INTO marker VALUES ('{token}', pg_current_xact_id())"
        ))?;
        if let End::Prepare { commit } = work.end {
            self.run_sql(&format!("PREPARE TRANSACTION '{token}'"))?;
            self.prepared = Some((self.history.len() - 1, commit));
        } else {
            self.run_sql("COMMIT")?;
            self.now().committed = Some(true);
        }
        Ok(())
    }

    fn step(
        &mut self,
        step: &Step,
        token: &str,
        savepoints: &mut Vec<usize>,
    ) -> Result<(), Trouble> {
        let name = |depth: usize| format!("s{depth}");
        match step {
            Step::Savepoint => {
                self.run_sql(&format!("SAVEPOINT {}", name(savepoints.len())))?;
                let events = self.now().events.len();
                savepoints.push(events);
            }
            Step::Release => {
                if savepoints.pop().is_some() {
                    self.run_sql(&format!("RELEASE {}", name(savepoints.len())))?;
                }
            }
            Step::RollbackTo => {
                if let Some(&events) = savepoints.last() {
                    self.run_sql(&format!("ROLLBACK TO {}", name(savepoints.len() - 1)))?;
                    self.now().events.truncate(events);
                }
            }
            Step::Hold(milliseconds) => thread::sleep(Duration::from_millis(*milliseconds)),
            Step::Change { change, locked } => {
                let events = self.change(change, *locked, token)?;
                self.now().events.extend(events);
            }
            Step::Block { changes, fails } => {
                let events = self.block(changes, *fails, token)?;
                self.now().events.extend(events);
            }
        }
        Ok(())
    }

    fn change(
        &mut self,
        change: &Change,
        locked: bool,
        token: &str,
    ) -> Result<Vec<Event>, Trouble> {
        let mut before = Before::new();
        let wanted = locked || change.returns_nothing();
        if let Some(sql) = change.lock_sql().filter(|_| wanted) {
            for row in self.fetch(&sql)? {
                before.insert(row.record.key(change.table()), row.record);
            }
        }
        let sql = change.sql(token);
        if let Change::Copy { .. } = change {
            let copied = self.client.copy_in(&sql).and_then(|mut copy| {
                // What fails here fails again at the end.
                let _ = copy.write_all(change.copied(token).as_bytes());
                copy.finish()
            });
            copied.map_err(|error| self.trouble(&error, &sql))?;
        } else {
            let returned = self.fetch(&sql)?;
            if !change.returns_nothing() {
                return Ok(change.events(returned, &before));
            }
        }
        let now = self.fetch(&change.look_sql())?;
        Ok(change.events(now, &before))
    }

    /// The changes in a block of PL/pgSQL; nothing where the block was rolled back.
    fn block(
        &mut self,
        changes: &[Change],
        fails: bool,
        token: &str,
    ) -> Result<Vec<Event>, Trouble> {
        let statements: Vec<String> = changes
            .iter()
            .enumerate()
            .map(|(at, change)| format!("$sql${}$sql$", change.sql(&format!("{token}.{at}"))))
            .collect();
        let sql = format!(
            "SELECT number, record, fresh FROM in_a_block(ARRAY[{}], {fails})",
            statements.join(", ")
        );
        let rows = self
            .client
            .query(&sql, &[])
            .map_err(|error| self.trouble(&error, &sql))?;
        let numbers: Vec<i32> = rows.iter().map(|row| row.get(0)).collect();
        if numbers.contains(&-1) {
            return Ok(Vec::new());
        }
        let of = |wanted: usize| {
            let rows = rows
                .iter()
                .filter(|row| row.get::<_, i32>(0) as usize == wanted);
            rows.map(|row| Returned {
                record: Record::read(row.get(1)),
                fresh: row.get(2),
            })
            .collect()
        };
        let events = changes
            .iter()
            .enumerate()
            .flat_map(|(at, change)| change.events(of(at), &Before::new()));
        Ok(events.collect())
    }

    /// COMMIT PREPARED or ROLLBACK PREPARED. Where the answer is lost the end of the run decides.
    fn finish_prepared(&mut self, at: usize, commit: bool) {
        let token = self.history[at].token.clone();
        let how = if commit { "COMMIT" } else { "ROLLBACK" };
        let sql = format!("{how} PREPARED '{token}'");
        match self.client.batch_execute(&sql) {
            Ok(()) => self.history[at].committed = Some(commit),
            Err(error) => self.lost(&error),
        }
    }

    fn run_sql(&mut self, sql: &str) -> Result<(), Trouble> {
        self.client
            .batch_execute(sql)
            .map_err(|error| self.trouble(&error, sql))
    }

    /// The rows that a statement returns.
    fn fetch(&mut self, sql: &str) -> Result<Vec<Returned>, Trouble> {
        if self.simple {
            let messages = self
                .client
                .simple_query(sql)
                .map_err(|error| self.trouble(&error, sql))?;
            let rows = messages.iter().filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some(Returned {
                    record: Record::read(row.get(0)?),
                    fresh: row.get(1)? == "t",
                }),
                _ => None,
            });
            return Ok(rows.collect());
        }
        let rows = self
            .client
            .query(sql, &[])
            .map_err(|error| self.trouble(&error, sql))?;
        let returned = rows.iter().map(|row| Returned {
            record: Record::read(row.get(0)),
            fresh: row.get(1),
        });
        Ok(returned.collect())
    }

    fn now(&mut self) -> &mut Transaction {
        self.history.last_mut().unwrap()
    }

    fn lost(&mut self, error: &postgres::Error) {
        match self.trouble(error, "the end of a transaction") {
            Trouble::Lost => self.client = connect(self.stage, &self.name),
            Trouble::Conflict => panic!("a conflict at the end: {}", describe(error)),
        }
    }

    fn trouble(&self, error: &postgres::Error, sql: &str) -> Trouble {
        let lost = [
            SqlState::ADMIN_SHUTDOWN,
            SqlState::CRASH_SHUTDOWN,
            SqlState::CANNOT_CONNECT_NOW,
        ];
        let conflicts = [
            SqlState::UNIQUE_VIOLATION,
            SqlState::T_R_DEADLOCK_DETECTED,
            SqlState::T_R_SERIALIZATION_FAILURE,
            SqlState::LOCK_NOT_AVAILABLE,
        ];
        let code = error.code();
        if self.stage.crashes && code.is_none_or(|code| lost.contains(code)) {
            return Trouble::Lost;
        }
        if !code.is_some_and(|code| conflicts.contains(code)) {
            panic!("{}: {}\n{sql}", self.name, describe(error));
        }
        if code == Some(&SqlState::T_R_DEADLOCK_DETECTED) {
            self.assert_deadlock_is_our_own(error);
        }
        Trouble::Conflict
    }

    /// That nobody but sessions had a part in it.
    fn assert_deadlock_is_our_own(&self, error: &postgres::Error) {
        let detail = error.as_db_error().and_then(|error| error.detail());
        let detail = detail.unwrap_or_default();
        let backends = self.stage.backends.lock().unwrap();
        let words: Vec<&str> = detail.split(|c: char| !c.is_alphanumeric()).collect();
        let pids = words
            .windows(2)
            .filter(|pair| pair[0].eq_ignore_ascii_case("process"))
            .filter_map(|pair| pair[1].parse().ok());
        let strange: Vec<i32> = pids.filter(|pid| !backends.contains(pid)).collect();
        assert!(
            strange.is_empty(),
            "a deadlock with {strange:?}, which is none of the sessions: {detail}"
        );
    }
}

fn connect(stage: &Stage, name: &str) -> Client {
    let mut config = stage.cluster.config("postgres", stage.database);
    config.application_name(name);
    let mut client = None;
    wait_until(PATIENCE * 2, "the server takes connections", || {
        client = config.connect(postgres::NoTls).ok();
        client.is_some()
    });
    let mut client = client.unwrap();
    let ready = client.batch_execute("SET deadlock_timeout = '20 ms'; SET lock_timeout = '300 ms'");
    let pid = ready.and_then(|()| client.query_one("SELECT pg_backend_pid()", &[]));
    match pid {
        Ok(row) => {
            stage.backends.lock().unwrap().insert(row.get(0));
            client
        }
        Err(_) if stage.crashes => connect(stage, name),
        Err(error) => panic!("{name}: {}", describe(&error)),
    }
}

/// Commits what is still prepared: its session has lost the answer.
pub fn finish_all_prepared(db: &mut Client) {
    let tokens: Vec<String> =
        db.column("SELECT gid::text FROM pg_prepared_xacts WHERE database = current_database()");
    for token in tokens {
        db.run(&format!("COMMIT PREPARED '{token}'"));
    }
}

/// Tables whose number of rows is printed with a run.
pub fn sizes(db: &mut Client) -> Vec<i64> {
    TABLES
        .iter()
        .map(|table| db.one(&format!("SELECT count(*) FROM {}", table.name)))
        .collect()
}
