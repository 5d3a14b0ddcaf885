//! The main job of recsync on real data: 501 films, a real model on this machine, a PostgreSQL of the demo's own.
//!
//! `make demo` builds everything and runs it. It shows each statement with its real output, measures, and checks what
//! recsync promises: it ends with an error if one promise does not hold. It never shows a figure that it has not just
//! measured. With KEEP=1 it leaves its servers running.

/// What it runs in.
mod setting;

/// What it looks like.
mod terminal;

/// The promises about single changes.
mod changes;

/// The promises about deletes, unused columns and keys.
mod limits;

/// The promises about recommendations.
mod recommendations;

#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#[path = "../../tests/support/mod.rs"]
mod support;

use std::io::Write;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use postgres::{Client, SimpleQueryMessage, Statement};

use setting::{KEY_VARIABLE, Setting};
use terminal::{Table, Terminal};

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const DATABASE: &str = "demo";
/// id, title, year, director, people, genres, description; the descriptions were written for this project.
const FILMS: &str = include_str!("../films.csv");
/// Longer than anything here takes; what is not there by then does not come.
const PATIENCE: Duration = Duration::from_secs(60);

/// The story's state: the setting and two connections.
pub struct Demo {
    setting: Setting,
    terminal: Terminal,
    /// Writes and asks, as an application does.
    client: Client,
    /// Looks at what becomes visible.
    watcher: Client,
}

fn main() -> ExitCode {
    match Demo::start().and_then(|mut demo| demo.tell()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let error = match error.downcast_ref::<postgres::Error>() {
                Some(error) => support::sql::describe(error),
                None => error.to_string(),
            };
            eprintln!("\ndemo: FAILED: {error}");
            ExitCode::FAILURE
        }
    }
}

impl Demo {
    fn start() -> Result<Demo> {
        let setting = Setting::start()?;
        let mut postgres = setting.cluster.try_connect("postgres", "postgres")?;
        postgres.batch_execute(&format!("CREATE DATABASE {DATABASE}"))?;
        let client = setting.cluster.try_connect("postgres", DATABASE)?;
        let watcher = setting.cluster.try_connect("postgres", DATABASE)?;
        Ok(Demo {
            setting,
            terminal: Terminal::new(),
            client,
            watcher,
        })
    }

    fn tell(&mut self) -> Result<()> {
        let told = self.tell_all();
        if told.is_err() {
            if let Ok(status) = self.ask("SELECT * FROM recsync.status") {
                self.terminal.step("recsync.status");
                self.terminal.record(&status);
            }
            let log = self.setting.cluster.log();
            eprintln!("\nthe end of the server's log:");
            eprintln!("{}", support::cluster::last_lines(&log, 20, |_| true));
        }
        if let Some(how) = self.setting.how_to_go_on(DATABASE) {
            self.terminal.step("Still running, because of KEEP=1");
            self.terminal.note(&how);
        }
        told
    }

    fn tell_all(&mut self) -> Result<()> {
        let started = Instant::now();
        self.declare()?;
        self.backfill()?;
        self.neighbours()?;
        self.changed_description()?;
        self.many_changes()?;
        self.unused_column()?;
        self.delete()?;
        self.key_is_nowhere()?;
        self.status()?;
        self.recommendations()?;
        self.terminal.step(&format!(
            "Everything holds ({:.0} s, backfill included)",
            started.elapsed().as_secs_f64()
        ));
        Ok(())
    }

    fn declare(&mut self) -> Result<()> {
        let version: String = self.one("SHOW server_version")?;
        self.terminal.note(&format!(
            "recsync {} on PostgreSQL {version}, with all-MiniLM-L6-v2 on this machine's processor",
            env!("CARGO_PKG_VERSION")
        ));
        self.terminal.step("A table, an extension, a server");
        self.run(
            "CREATE TABLE film (id int PRIMARY KEY, title text, year int, director text,\n                   \
             people text, genres text, description text);",
        )?;
        self.terminal
            .sql("COPY film FROM STDIN (FORMAT csv, HEADER);");
        let mut copy = self
            .client
            .copy_in("COPY film FROM STDIN (FORMAT csv, HEADER)")?;
        copy.write_all(FILMS.as_bytes())?;
        let copied = copy.finish()?;
        self.terminal.note(&format!("COPY {copied}"));
        self.run("CREATE EXTENSION recsync CASCADE;")?;
        let url = self.setting.embedder.url();
        self.run(&format!(
            "CREATE SERVER minilm FOREIGN DATA WRAPPER recsync OPTIONS (api 'openai',\n  \
             url '{url}', model 'all-MiniLM-L6-v2', dimensions '384',\n  \
             api_key_env '{KEY_VARIABLE}');"
        ))
    }

    /// The rows that were there before, with how fast they come.
    fn backfill(&mut self) -> Result<()> {
        self.terminal
            .step("A pipeline: from here on the table stays embedded");
        let total: i64 = self.one("SELECT count(*) FROM film")?;
        let started = Instant::now();
        self.run(
            "SELECT recsync.create_pipeline('film_embedding', 'film', server => 'minilm',\n         \
             columns => ARRAY['title', 'genres', 'description']);",
        )?;
        let mut moved = Instant::now();
        let mut before = 0;
        loop {
            let done: i64 = self.one("SELECT count(*) FROM film_embedding")?;
            if done > before {
                (before, moved) = (done, Instant::now());
            }
            let per_second = done as f64 / started.elapsed().as_secs_f64();
            self.terminal
                .progress(done as usize, total as usize, per_second);
            if done >= total {
                break;
            }
            if let Some(reason) =
                self.one::<Option<String>>("SELECT max(paused_reason) FROM recsync.status")?
            {
                return Err(format!("the pipeline is paused: {reason}").into());
            }
            if moved.elapsed() > PATIENCE {
                return Err(format!("the backfill stands still at {done} of {total} rows").into());
            }
            sleep(Duration::from_millis(50));
        }
        self.settle()?;
        let asked = self.setting.embedder.asked()?;
        self.terminal.note(&format!(
            "{} texts in {} requests, as the embedding server counts them",
            asked.inputs, asked.requests
        ));
        self.every_row_has_its_vector()
    }

    fn neighbours(&mut self) -> Result<()> {
        self.terminal.step("Similar items");
        for (number, title) in ["Interstellar", "Seven Samurai"].into_iter().enumerate() {
            let similar = match number {
                0 => self.show(&similar_to(title))?,
                _ => self.show_again(&format!("the same for '{title}'"), &similar_to(title))?,
            };
            let near = similar.column("similarity");
            let near: Vec<f64> = near.iter().filter_map(|s| s.parse().ok()).collect();
            self.promise(
                near.len() == 5 && near.is_sorted_by(|a, b| a >= b),
                &format!("five films near \"{title}\", the nearest first"),
            )?;
        }
        Ok(())
    }

    fn status(&mut self) -> Result<()> {
        self.terminal.step("What a DBA sees");
        let sql = "SELECT * FROM recsync.status;";
        self.terminal.sql(sql);
        let status = self.ask(sql)?;
        self.terminal.record(&status);
        let is = |column: &str, wanted: &str| status.column(column) == [wanted];
        self.promise(
            is("state", "running") && is("pending", "0") && is("dead", "0"),
            "running, nothing pending, no dead letters",
        )
    }

    /// That `holds`; the demo ends where it does not.
    fn promise(&self, holds: bool, what: &str) -> Result<()> {
        if !holds {
            return Err(format!("this does not hold: {what}").into());
        }
        self.terminal.kept(what);
        Ok(())
    }

    fn every_row_has_its_vector(&mut self) -> Result<()> {
        let unequal: i64 = self.one(
            "SELECT count(*) FROM film f FULL JOIN film_embedding e ON e.id = f.id
              WHERE f.id IS NULL OR e.id IS NULL",
        )?;
        let rows: i64 = self.one("SELECT count(*) FROM film_embedding")?;
        self.promise(
            unequal == 0,
            &format!("a vector for each of the {rows} rows, and no other"),
        )
    }

    /// Waits until everything that was committed before is done.
    fn settle(&mut self) -> Result<()> {
        let wait = format!(
            "SELECT recsync.wait_for('film_embedding', '{} s')",
            PATIENCE.as_secs()
        );
        match self.one::<bool>(&wait)? {
            true => Ok(()),
            false => Err(format!("recsync is not done within {PATIENCE:?}").into()),
        }
    }

    /// Shows a statement and runs it.
    fn run(&mut self, sql: &str) -> Result<()> {
        self.terminal.sql(sql);
        Ok(self.client.batch_execute(sql)?)
    }

    /// Shows a query and its answer.
    fn show(&mut self, sql: &str) -> Result<Table> {
        self.terminal.sql(sql);
        let table = self.ask(sql)?;
        self.terminal.table(&table);
        Ok(table)
    }

    /// A query that is shown already, with its answer of now.
    fn show_again(&mut self, what: &str, sql: &str) -> Result<Table> {
        self.terminal.sql(&format!("-- {what}:"));
        let table = self.ask(sql)?;
        self.terminal.table(&table);
        Ok(table)
    }

    fn ask(&mut self, sql: &str) -> Result<Table> {
        let mut table = Table {
            columns: Vec::new(),
            rows: Vec::new(),
        };
        for message in self.client.simple_query(sql)? {
            if let SimpleQueryMessage::Row(row) = message {
                table.columns = row
                    .columns()
                    .iter()
                    .map(|column| column.name().to_owned())
                    .collect();
                let cells = (0..row.len()).map(|index| row.get(index).map(str::to_owned));
                table.rows.push(cells.collect());
            }
        }
        Ok(table)
    }

    /// The only value of a query, by the second connection.
    fn one<T: postgres::types::FromSqlOwned>(&mut self, sql: &str) -> Result<T> {
        Ok(self.watcher.query_one(sql, &[])?.try_get(0)?)
    }

    fn prepare(&mut self, sql: &str) -> Result<Statement> {
        Ok(self.watcher.prepare(sql)?)
    }
}

/// The five films nearest to one, by its vector.
fn similar_to(title: &str) -> String {
    format!(
        "SELECT f.title, f.year, round(1 - (e.embedding <=> q.embedding)::numeric, 3) AS similarity\n  \
         FROM film_embedding q, film_embedding e JOIN film f USING (id)\n \
         WHERE q.id = (SELECT id FROM film WHERE title = '{title}') AND e.id <> q.id\n \
         ORDER BY e.embedding <=> q.embedding LIMIT 5;"
    )
}
