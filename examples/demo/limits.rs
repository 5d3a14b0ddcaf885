//! What must not happen: a call for nothing, a deleted row in a result, a key where people can read it.
//! It never takes silence for proof: each search for what must not be there finds something that is.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use crate::changes::milliseconds;
use crate::setting::KEY_VARIABLE;
use crate::{DATABASE, Demo, PATIENCE, Result};

const QUERY: &str = "a shark attacks swimmers at a beach";

impl Demo {
    pub fn unused_column(&mut self) -> Result<()> {
        self.terminal
            .step("A column that the text does not use: no log row, no call");
        let log = "SELECT count(*) FROM recsync.change_log";
        let logged: i64 = self.one(log)?;
        let before = self.setting.embedder.asked()?;
        for sql in [
            "UPDATE film SET year = year + 1;",
            "UPDATE film SET year = year - 1;",
        ] {
            self.terminal.sql(sql);
            let updated = self.client.execute(sql, &[])?;
            self.terminal.note(&format!("UPDATE {updated}"));
        }
        self.settle()?;
        let after = self.setting.embedder.asked()?;
        let logged_since = self.one::<i64>(log)? - logged;
        self.promise(
            logged_since == 0 && logged > 0,
            &format!("{logged_since} more rows in recsync.change_log, which has {logged}"),
        )?;
        self.promise(
            before == after,
            &format!(
                "{} more requests to the embedding server, which counts {}",
                after.requests - before.requests,
                after.requests
            ),
        )
    }

    pub fn delete(&mut self) -> Result<()> {
        self.terminal.step("A deleted row is in no result");
        let search = format!(
            "SELECT rank, item, (SELECT title FROM film WHERE id = item::int), round(score::numeric, 3) AS score\n  \
             FROM recsync.search('film_embedding', '{QUERY}', 4);"
        );
        let before = self.show(&search)?;
        let item = before.column("item").first().copied().unwrap_or_default();
        let (item, id) = (item.to_owned(), item.parse::<i32>()?);
        let delete = format!("DELETE FROM film WHERE id = {id};");
        self.terminal.sql(&delete);

        // Another thread looks at the vector while this one asks for results.
        let mut watcher = self.setting.cluster.try_connect("postgres", DATABASE)?;
        let look = watcher.prepare("SELECT EXISTS (SELECT FROM film_embedding WHERE id = $1)")?;
        let (commit, committed) = mpsc::channel::<Instant>();
        let gone = thread::spawn(move || -> std::result::Result<Duration, String> {
            let committed = committed.recv().map_err(|error| error.to_string())?;
            loop {
                let row = watcher.query_one(&look, &[&id]);
                let row = row.map_err(|error| error.to_string())?;
                if !row.get::<_, bool>(0) {
                    return Ok(committed.elapsed());
                }
                if committed.elapsed() > PATIENCE {
                    return Err(format!("its vector is there {PATIENCE:?} later"));
                }
                sleep(Duration::from_micros(200));
            }
        });
        self.client.batch_execute(&delete)?;
        commit.send(Instant::now())?;
        let mut results = vec![self.ask(&search)?];
        let gone = gone.join().map_err(|_| "the watching thread failed")??;
        results.push(self.ask(&search)?);
        self.terminal.sql("-- the same search, at once:");
        self.terminal.table(&results[0]);
        let absent = |table: &crate::Table| {
            table.rows.len() == 4 && !table.column("item").contains(&item.as_str())
        };
        self.promise(
            results.iter().all(absent),
            &format!("item {item} is in no result from its delete's commit on"),
        )?;
        self.terminal.kept(&format!(
            "its vector was gone {} after the commit",
            milliseconds(gone)
        ));
        self.settle()?;
        self.every_row_has_its_vector()
    }

    pub fn key_is_nowhere(&mut self) -> Result<()> {
        self.terminal
            .step("The API key: used for every request, stored nowhere");
        let key = self.setting.key.clone();
        self.show("SELECT srvname, unnest(srvoptions) AS option FROM pg_foreign_server;")?;
        let (searched, named) = self.relations_with(KEY_VARIABLE)?;
        let (_, holding) = self.relations_with(&key)?;
        self.promise(
            named.iter().any(|relation| relation == "pg_foreign_server"),
            &format!(
                "its variable's name is in {} of {searched} catalogs and views",
                named.len()
            ),
        )?;
        self.promise(
            holding.is_empty(),
            &format!("the key is in none of the {searched}{}", list(&holding)),
        )?;
        // The name's own row is on disk after a checkpoint, which proves that the search finds what is there.
        self.client.batch_execute("CHECKPOINT")?;
        let folder = self.setting.folder();
        let named = files_with(&folder, KEY_VARIABLE)?;
        let holding = files_with(&folder, &key)?;
        self.promise(
            !named.is_empty() && holding.is_empty(),
            &format!(
                "nor in any file of the cluster, WAL and log included (the name is in {}){}",
                named.len(),
                list(&holding)
            ),
        )
    }

    /// How many catalogs and views there are, and which of them hold `text` in any column.
    fn relations_with(&mut self, text: &str) -> Result<(usize, Vec<String>)> {
        let relations = self.watcher.query(
            "SELECT c.oid::regclass::text FROM pg_class c
              WHERE c.relkind IN ('r', 'v', 'm', 'f')
                AND c.relnamespace::regnamespace::text IN ('pg_catalog', 'information_schema', 'recsync', 'public')
                AND c.relname <> 'pg_shmem_allocations_numa' -- PostgreSQL 18: an error where the machine knows no NUMA
              ORDER BY 1",
            &[],
        )?;
        let mut holding = Vec::new();
        for relation in &relations {
            let relation: String = relation.try_get(0)?;
            // As a parameter, so that the search does not find its own statement.
            let found = self.watcher.query_one(
                &format!("SELECT EXISTS (SELECT FROM {relation} whole_row WHERE strpos(whole_row::text, $1) > 0)"),
                &[&text],
            )?;
            if found.try_get(0)? {
                holding.push(relation);
            }
        }
        Ok((relations.len(), holding))
    }
}

/// Files under `folder` that hold `text`, which grep gets by its standard input: its arguments are public.
fn files_with(folder: &std::path::Path, text: &str) -> Result<Vec<String>> {
    let mut grep = Command::new("grep")
        .args(["-rlF", "--devices=skip", "-f", "-"])
        .arg(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    if let Some(mut input) = grep.stdin.take() {
        writeln!(input, "{text}")?;
    }
    let output = grep.wait_with_output()?;
    let files = String::from_utf8_lossy(&output.stdout);
    Ok(files.lines().map(str::to_owned).collect())
}

/// What is there although it must not be.
fn list(found: &[String]) -> String {
    if found.is_empty() {
        return String::new();
    }
    format!(", but in {}", found.join(", "))
}
