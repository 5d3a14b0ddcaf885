//! How a case is run and what is checked after each of its statements. It never passes over what was not expected.

use std::collections::BTreeSet;
use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::thread;

use postgres::error::DbError;
use postgres::{Client, NoTls};

use super::case::{Case, Mode, Outcome, Pipelines, Step, Watched, Writer};
use super::history::{self, History};
use crate::support::sql::describe;
use crate::support::{Api, Cluster, Database, PATIENCE, Sql, eventually, wait_until};

const PATH: &str = "SET search_path = shop, public";

/// What was declared: pipelines, their state, the triggers.
const DECLARED: &str = "
SELECT ARRAY(SELECT concat_ws(' ', kind, name, state = 'paused', paused_reason) FROM recsync.status ORDER BY kind, name)
    || ARRAY(SELECT p::text FROM recsync.pipeline p ORDER BY 1)
    || ARRAY(SELECT concat_ws(' ', tgrelid::regclass, tgname, tgenabled) FROM pg_trigger WHERE tgname LIKE '00_recsync%' ORDER BY 1)
    || ARRAY(SELECT concat_ws(' ', oid, relnamespace::regnamespace, relname, relkind) FROM pg_class
              WHERE relnamespace::regnamespace::text NOT IN ('pg_catalog', 'pg_toast', 'information_schema', 'recsync') ORDER BY 1)";

/// Pipelines that are paused, with the reason, and rows that were given up.
const TROUBLE: &str = "
PREPARE trouble AS
SELECT concat('paused: ', paused_reason) FROM recsync.status WHERE kind = 'pipeline' AND state = 'paused'
 UNION ALL SELECT 'dead: ' || d::text FROM recsync.dead_letter d";

/// Pipelines, audits, their relations and triggers: nothing of them may be left.
const LEFT: &str = "
PREPARE left_behind AS
SELECT kind || ' ' || name FROM recsync.status UNION ALL SELECT 'relation ' || oid::regclass FROM pg_class WHERE relname LIKE '%\\_embedding%'
 UNION ALL SELECT 'trigger on ' || tgrelid::regclass FROM pg_trigger WHERE tgname LIKE '00_recsync%'";

/// Runs every case in `mode`, each in a schema of its own. CASE names a part of those that are wanted.
#[track_caller]
pub fn check(cluster: &Cluster, mode: Mode, cases: Vec<Case>) {
    let wanted = env::var("CASE").unwrap_or_default();
    let names: BTreeSet<&str> = cases.iter().map(|case| case.what.as_str()).collect();
    assert_eq!(names.len(), cases.len(), "two cases of one name");
    let mut runner = None;
    let mut failed = Vec::new();
    for case in &cases {
        if !case.modes.contains(&mode) || !case.what.contains(&wanted) {
            continue;
        }
        // A case that has failed takes its database with it: the next one begins in another.
        let mut ready = runner.take().unwrap_or_else(|| Runner::new(cluster));
        let result = catch_unwind(AssertUnwindSafe(move || {
            if ready.version >= case.since {
                ready.run(case, mode);
            }
            ready
        }));
        match result {
            Ok(ready) => runner = Some(ready),
            Err(_) => failed.push(&case.what),
        }
    }
    assert!(
        failed.is_empty(),
        "{mode:?}: {} of {} cases fail: {failed:#?}",
        failed.len(),
        cases.len()
    );
}

struct Runner<'a> {
    api: Api,
    db: Database<'a>,
    version: i32,
    /// How much of the server's log has been read.
    read: usize,
}

/// What one case holds while it runs.
struct Scene {
    writers: [Client; 2],
    notices: Arc<Mutex<Vec<DbError>>>,
    history: History,
    watched: Vec<Watched>,
    /// What was said to a writer and may stand in the server's log.
    expected: Vec<String>,
}

impl<'a> Runner<'a> {
    fn new(cluster: &'a Cluster) -> Runner<'a> {
        let api = Api::start();
        let mut db = cluster.database();
        db.server("api", &api, "");
        let version = db.one("SELECT current_setting('server_version_num')::int / 10000");
        let read = cluster.log().len();
        let mut runner = Runner {
            api,
            db,
            version,
            read,
        };
        runner.prepare();
        runner
    }

    fn run(&mut self, case: &Case, mode: Mode) {
        println!("{mode:?}: {}", case.what);
        self.db.run("CREATE SCHEMA shop");
        let worker = self.db.worker();
        let notices = Arc::default();
        let mut scene = Scene {
            writers: [self.writer(&notices), self.writer(&notices)],
            notices,
            history: History::begin(&mut self.db, mode),
            watched: case.watched.clone(),
            expected: Vec::new(),
        };
        for sql in &case.given {
            scene.writers[0].run(sql);
        }
        for watched in &case.watched {
            self.declare(&mut scene, watched, mode, case.replayed);
        }
        self.assert_in_step(&scene);
        scene
            .history
            .assert_grown(&mut self.db, "", "the declaration");
        scene.notices.lock().unwrap().clear();
        let mut crashed = false;
        for step in &case.steps {
            match step {
                Step::Run { by, sql, outcome } => self.step(&mut scene, *by, sql, outcome),
                Step::RolledBack(sql) => self.rolled_back(&mut scene, sql),
                Step::Holds(sql) => {
                    assert!(self.db.one::<bool>(sql), "does not hold: {sql}");
                }
                Step::Becomes(sql) => {
                    wait_until(PATIENCE, sql, || self.db.one(sql));
                }
                Step::Read(watched) => match scene.watched.first_mut() {
                    Some(first) => *first = watched.clone(),
                    None => scene.watched.push(watched.clone()),
                },
                Step::Crash => {
                    crashed = true;
                    self.crash(&mut scene);
                }
            }
        }
        if mode == Mode::Audited {
            scene.history.assert_replays(&mut self.db);
        }
        if !crashed {
            assert_eq!(
                self.db.worker_now(),
                Some(worker),
                "the worker is another one"
            );
        }
        self.assert_nothing_else_logged(&scene);
        drop(scene);
        self.clear();
    }

    /// A connection whose notices are kept.
    fn writer(&self, notices: &Arc<Mutex<Vec<DbError>>>) -> Client {
        let notices = Arc::clone(notices);
        let mut config = self.db.cluster.config("postgres", &self.db.name);
        config.notice_callback(move |notice| notices.lock().unwrap().push(notice));
        let mut client = config.connect(NoTls).unwrap();
        client.run(PATH);
        client
    }

    fn declare(&mut self, scene: &mut Scene, watched: &Watched, mode: Mode, replayed: bool) {
        let Watched {
            pipeline,
            source,
            arguments,
            ..
        } = watched;
        scene.writers[0].run(&format!(
            "SELECT recsync.create_pipeline('{pipeline}', '{source}', {arguments}, server => 'api', index => 'none')"
        ));
        if mode == Mode::Audited {
            scene.writers[0].run(&format!(
                "SELECT recsync.audit('{source}', large_values => true)"
            ));
            if replayed {
                scene.history.follow(&mut self.db, source);
            }
        }
    }

    fn step(&mut self, scene: &mut Scene, by: Writer, sql: &str, outcome: &Outcome) {
        let result = scene.writers[by as usize].batch_execute(sql);
        match (outcome.refused, result) {
            (None, Ok(())) => {}
            (None, Err(error)) => panic!("{sql}\n{}", describe(&error)),
            (Some(_), Ok(())) => panic!("went through, but must be refused: {sql}"),
            (Some((code, hint)), Err(error)) => {
                let Some(error) = error.as_db_error() else {
                    panic!("{sql}\n{error}")
                };
                let said = format!(
                    "{} {}",
                    error.code().code(),
                    error.hint().unwrap_or_default()
                );
                assert!(
                    said.starts_with(code) && said.contains(hint),
                    "{sql}\n{error:?}"
                );
                scene.expected.push(error.message().to_owned());
            }
        }
        scene.assert_said(sql, outcome.says);
        match outcome.pipelines {
            Pipelines::InStep => self.assert_in_step(scene),
            Pipelines::Paused(reason) => self.assert_paused(scene, reason),
            Pipelines::Gone => assert_eq!(
                self.db.column::<String>("EXECUTE left_behind"),
                [""; 0],
                "{sql}"
            ),
            Pipelines::Unchecked => {}
        }
        scene.history.assert_grown(&mut self.db, &outcome.log, sql);
    }

    fn rolled_back(&mut self, scene: &mut Scene, sql: &str) {
        let before: Vec<String> = self.db.one(DECLARED);
        scene.writers[0].run(&format!("BEGIN; {sql}; ROLLBACK"));
        scene.assert_said(sql, "");
        self.assert_in_step(scene);
        scene.history.assert_grown(&mut self.db, "", sql);
        assert_eq!(
            self.db.one::<Vec<String>>(DECLARED),
            before,
            "rolled back: {sql}"
        );
    }

    /// Everything that is committed has its vector or has none; nothing is paused, nothing was given up.
    fn assert_in_step(&mut self, scene: &Scene) {
        for watched in &scene.watched {
            let Watched {
                pipeline,
                rows,
                key,
                text,
                ..
            } = watched;
            self.db.settle(pipeline);
            self.db.assert_in_step(
                &self.api,
                &format!("SELECT concat_ws(', ', {key}), {text}, e.embedding::text FROM {rows} s FULL JOIN {pipeline} e USING ({key})"),
            );
        }
        assert_eq!(self.trouble(), [""; 0]);
    }

    fn assert_paused(&mut self, scene: &mut Scene, reason: &str) {
        let mut trouble = Vec::new();
        let all = eventually(PATIENCE, || {
            trouble = self.trouble();
            trouble.len() >= scene.watched.len()
        });
        let paused = |trouble: &String| trouble.starts_with("paused: ") && trouble.contains(reason);
        assert!(
            all && trouble.iter().all(paused),
            "paused for \"{reason}\"? {trouble:?}"
        );
        scene.expected.extend(
            trouble
                .iter()
                .map(|trouble| trouble.replace("paused: ", "")),
        );
    }

    fn trouble(&mut self) -> Vec<String> {
        self.db.column("EXECUTE trouble")
    }

    /// What is asked again and again is planned once.
    fn prepare(&mut self) {
        self.db.run(PATH);
        history::prepare(&mut self.db);
        self.db.run(TROUBLE);
        self.db.run(LEFT);
    }

    fn crash(&mut self, scene: &mut Scene) {
        self.assert_nothing_else_logged(scene);
        self.db.cluster.kill9_all();
        self.db.cluster.start_again();
        self.db.reconnect();
        self.prepare();
        scene.writers = [self.writer(&scene.notices), self.writer(&scene.notices)];
        // What the crash itself has made the server say.
        self.read = self.db.cluster.log().len();
    }

    fn assert_nothing_else_logged(&mut self, scene: &Scene) {
        let log = self.db.cluster.log();
        let database = format!(" {} ", self.db.name);
        let unexpected: Vec<&str> = log
            .get(self.read..)
            .unwrap_or(&log)
            .lines()
            .filter(|line| line.contains(&database))
            .filter(|line| {
                ["WARNING: ", "ERROR: ", "FATAL: ", "PANIC: "]
                    .iter()
                    .any(|level| line.contains(level))
            })
            .filter(|line| {
                !scene
                    .expected
                    .iter()
                    .any(|expected| line.contains(expected))
            })
            .collect();
        assert_eq!(unexpected, [""; 0], "in the server's log");
        self.read = log.len();
    }

    /// Back to an empty database.
    fn clear(&mut self) {
        for row in self.db.rows("SELECT kind, name FROM recsync.status") {
            let end = match row.get(0) {
                "audit" => "unaudit",
                _ => "drop_pipeline",
            };
            self.db.run(&format!(
                "SELECT recsync.{end}($${}$$)",
                row.get::<_, &str>(1)
            ));
        }
        let schemas = "SELECT quote_ident(nspname) FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname NOT IN ('public', 'information_schema', 'recsync')";
        for schema in self.db.column::<String>(schemas) {
            self.db.run(&format!("DROP SCHEMA {schema} CASCADE"));
        }
        assert_eq!(
            self.db.column::<String>("EXECUTE left_behind"),
            [""; 0],
            "left behind"
        );
    }
}

impl Drop for Runner<'_> {
    /// What a failed case has prepared would be in the way of others.
    fn drop(&mut self) {
        const PREPARED: &str =
            "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()";
        if thread::panicking()
            && let Ok(mut client) = self.db.cluster.try_connect("postgres", &self.db.name)
        {
            for row in client.query(PREPARED, &[]).unwrap_or_default() {
                let gid: String = row.get(0);
                let _ = client.batch_execute(&format!("ROLLBACK PREPARED '{gid}'"));
            }
        }
    }
}

impl Scene {
    /// That the last statement has said `wanted`, and given no other WARNING.
    fn assert_said(&mut self, sql: &str, wanted: &str) {
        let said: Vec<DbError> = self.notices.lock().unwrap().drain(..).collect();
        let is_wanted = |notice: &&DbError| !wanted.is_empty() && notice.message().contains(wanted);
        assert!(
            wanted.is_empty() || said.iter().any(|notice| is_wanted(&notice)),
            "{sql}\n\"{wanted}\" was not said, but: {said:?}"
        );
        self.expected.extend(
            said.iter()
                .filter(is_wanted)
                .map(|notice| notice.message().to_owned()),
        );
        let other: Vec<&DbError> = said
            .iter()
            .filter(|notice| notice.severity() == "WARNING" && !is_wanted(notice))
            .collect();
        assert!(other.is_empty(), "{sql}\n{other:?}");
    }
}
