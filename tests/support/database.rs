//! A database for one test, in a cluster that many tests share or in the test's own.

use std::ops::{Deref, DerefMut};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use postgres::Client;

use super::api::Api;
use super::cluster::{Cluster, last_lines};
use super::process;
use super::sql::Sql;
use super::wait::{PATIENCE, wait_until};

static SHARED: OnceLock<Cluster> = OnceLock::new();
static BY_HAND: OnceLock<Cluster> = OnceLock::new();

/// The cluster for tests that neither restart nor crash theirs. It has slots enough for all of them.
pub fn shared() -> &'static Cluster {
    SHARED.get_or_init(|| many_databases(&[]))
}

/// The same, where rows that nobody has seen are looked at when somebody asks for it.
pub fn by_hand() -> &'static Cluster {
    BY_HAND.get_or_init(|| many_databases(&[("recsync.auto_verify", "off")]))
}

fn many_databases(settings: &[(&str, &str)]) -> Cluster {
    let slots = [
        ("max_worker_processes", "64"),
        ("recsync.max_workers", "32"),
        ("max_connections", "200"),
    ];
    let cluster = Cluster::start(&[&slots, settings].concat());
    // Role recsync_admin belongs to the cluster: there is always a database that uses it.
    cluster
        .connect("postgres")
        .run("CREATE EXTENSION recsync CASCADE");
    cluster
}

/// At the end of the process.
pub fn remove_shared() {
    for cluster in [&SHARED, &BY_HAND].into_iter().filter_map(OnceLock::get) {
        cluster.remove();
    }
}

pub struct Database<'a> {
    pub cluster: &'a Cluster,
    pub name: String,
    client: Client,
}

impl Cluster {
    /// A new database with recsync in it.
    pub fn database(&self) -> Database<'_> {
        let mut database = self.empty_database();
        database.run("CREATE EXTENSION recsync CASCADE");
        database
    }

    pub fn empty_database(&self) -> Database<'_> {
        static NUMBER: AtomicUsize = AtomicUsize::new(1);
        let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        self.connect("postgres")
            .run(&format!("CREATE DATABASE {name}"));
        self.database_named(&name)
    }

    /// One that is there.
    pub fn database_named(&self, name: &str) -> Database<'_> {
        Database {
            cluster: self,
            name: name.to_owned(),
            client: self.connect(name),
        }
    }
}

impl Database<'_> {
    pub fn connect(&self) -> Client {
        self.cluster.connect(&self.name)
    }

    pub fn connect_as(&self, role: &str) -> Client {
        self.cluster.connect_as(role, &self.name)
    }

    /// kill -9 of the worker: the postmaster restarts every process, this connection's among them.
    pub fn kill9_worker(&mut self) {
        process::kill9(self.worker());
        wait_until(PATIENCE, "the server notices the crash", || {
            self.client.batch_execute("SELECT 1").is_err()
        });
        self.reconnect();
    }

    /// The server was restarted or has crashed: a new connection once it is back.
    pub fn reconnect(&mut self) {
        self.client = self.cluster.reconnect(&self.name);
    }

    /// A foreign server `name` for `api`, with further options such as `max_attempts '1'`.
    pub fn server(&mut self, name: &str, api: &Api, options: &str) {
        let comma = if options.is_empty() { "" } else { ", " };
        self.run(&format!(
            "CREATE SERVER {name} FOREIGN DATA WRAPPER recsync OPTIONS (api 'openai', url '{}', model 'test',
             dimensions '{}', api_key_env 'TEST_API_KEY'{comma}{options})",
            api.url(),
            api.dimensions()
        ));
    }

    /// Table `item (id, title, stock)`, server `api` and pipeline `item_embedding` over the title, without an index.
    pub fn items(&mut self, api: &Api, options: &str) {
        self.server("api", api, options);
        self.run(
            "CREATE TABLE item (id int PRIMARY KEY, title text, stock int NOT NULL DEFAULT 0)",
        );
        self.pipeline("item_embedding", "item");
    }

    /// Pipeline `name` over column `title` of `source` by server `api`, without an index.
    pub fn pipeline(&mut self, name: &str, source: &str) {
        self.run(&format!(
            "SELECT recsync.create_pipeline('{name}', '{source}', columns => '{{title}}', server => 'api', index => 'none')"
        ));
    }

    /// Waits until everything committed before is embedded or dead-lettered.
    #[track_caller]
    pub fn settle(&mut self, pipeline: &str) {
        let done: bool = self.one(&format!(
            "SELECT recsync.wait_for('{pipeline}', '{} s')",
            PATIENCE.as_secs()
        ));
        if !done {
            let status: Vec<String> = self.column("SELECT s::text FROM recsync.status s");
            let jobs: Vec<String> =
                self.column("SELECT j::text FROM recsync.job j ORDER BY available_at LIMIT 20");
            let now: String = self.one("SELECT now()::text");
            panic!(
                "{pipeline} is not done within {PATIENCE:?}; recsync.status at {now}:\n{}\nrecsync.job:\n{}",
                status.join("\n"),
                jobs.join("\n")
            );
        }
    }

    /// That every row of `item` has the vector of its current title and there is no other vector.
    #[track_caller]
    pub fn assert_items_in_step(&mut self, api: &Api) {
        self.assert_in_step(
            api,
            "SELECT COALESCE(i.id, e.id)::text, i.title, e.embedding::text
               FROM item i FULL JOIN item_embedding e ON e.id = i.id",
        );
    }

    /// `query` gives name, current text (NULL: none) and vector (NULL: none) of every row and of every vector.
    #[track_caller]
    pub fn assert_in_step(&mut self, api: &Api, query: &str) {
        let mut wrong = Vec::new();
        for row in self.rows(query) {
            let (key, text, vector): (String, Option<String>, Option<String>) =
                (row.get(0), row.get(1), row.get(2));
            let text = text.filter(|text| !text.is_empty());
            match (&text, &vector) {
                (None, None) => {}
                (Some(text), Some(vector)) if api.is_vector_of(vector, text) => {}
                (Some(_), Some(_)) => wrong.push(format!("{key}: the vector of another text")),
                (Some(_), None) => wrong.push(format!("{key}: no vector")),
                (None, Some(_)) => wrong.push(format!("{key}: a vector without a text")),
            }
        }
        wrong.truncate(20);
        assert!(
            wrong.is_empty(),
            "vectors and rows differ:\n{}",
            wrong.join("\n")
        );
    }

    /// The process id of this database's worker.
    #[track_caller]
    pub fn worker(&mut self) -> i32 {
        let mut found = None;
        wait_until(PATIENCE, "the worker runs", || {
            found = self.worker_now();
            found.is_some()
        });
        found.unwrap()
    }

    pub fn worker_now(&mut self) -> Option<i32> {
        let name = self.name.clone();
        self.column(&format!(
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'recsync worker' AND datname = '{name}'"
        ))
        .first()
        .copied()
    }

    /// The process that builds an index of this database, if one does.
    pub fn indexer(&mut self) -> Option<i32> {
        let name = self.name.clone();
        self.column(&format!(
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'recsync indexer' AND datname = '{name}'"
        ))
        .first()
        .copied()
    }

    /// Waits until an index of this database is in the middle of its build.
    #[track_caller]
    pub fn wait_until_index_is_being_built(&mut self) {
        wait_until(PATIENCE, "an index is being built", || {
            self.one(
                "SELECT count(*) > 0 FROM pg_stat_progress_create_index p JOIN pg_stat_activity a USING (pid)
                  WHERE a.datname = current_database() AND a.backend_type = 'recsync indexer' AND p.phase LIKE 'building index%'",
            )
        });
    }

    /// Waits until the build of an index waits for somebody's transaction to end.
    #[track_caller]
    pub fn wait_until_indexer_waits(&mut self) {
        wait_until(PATIENCE, "the indexer waits", || {
            self.one(
                "SELECT count(*) > 0 FROM pg_locks l JOIN pg_stat_activity a USING (pid)
                  WHERE NOT l.granted AND l.locktype = 'virtualxid' AND a.backend_type = 'recsync indexer' AND a.datname = current_database()",
            )
        });
    }

    /// Waits until this database's worker waits for a lock that the test holds: its store is half done.
    #[track_caller]
    pub fn wait_until_worker_waits_for_lock(&mut self) {
        let name = self.name.clone();
        wait_until(PATIENCE, "the worker waits for the lock", || {
            self.one(&format!(
                "SELECT count(*) > 0 FROM pg_locks l JOIN pg_stat_activity a USING (pid)
                  WHERE NOT l.granted AND a.backend_type = 'recsync worker' AND a.datname = '{name}'"
            ))
        });
    }

    /// A pause while something must not happen.
    pub fn pause(&mut self, time: Duration) {
        self.run(&format!("SELECT pg_sleep({})", time.as_secs_f64()));
    }
}

impl Deref for Database<'_> {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for Database<'_> {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

impl Drop for Database<'_> {
    fn drop(&mut self) {
        let name = format!(" {} ", self.name);
        if thread::panicking() {
            let log = self.cluster.log();
            eprintln!(
                "the server's log on {}:\n{}",
                self.name,
                last_lines(&log, 60, |line| line.contains(&name))
            );
        }
        // The worker's slot is for other tests; a cluster that has been stopped needs nothing.
        if let Ok(mut client) = self.cluster.try_connect("postgres", "postgres") {
            let _ = client.batch_execute(&format!(
                "DROP DATABASE IF EXISTS {} WITH (FORCE)",
                self.name
            ));
        }
    }
}
