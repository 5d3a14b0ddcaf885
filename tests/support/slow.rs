//! A pipeline into an HNSW index whose stores are as slow as those into a large graph, whoever stores them, and note
//! who did. It never depends on the machine's speed.

use std::time::Duration;

use super::api::Api;
use super::database::Database;
use super::sql::Sql;
use super::wait::{PATIENCE, wait_until};

impl Database<'_> {
    /// Table `item` with `rows` rows, server `api`, and pipeline `item_embedding` with an HNSW index, which is there
    /// before the load as somebody may make it, and into which each row takes `store` longer. Table `stored_by` notes the process that stored a row.
    pub fn slow_items(&mut self, api: &Api, options: &str, rows: usize, store: Duration) {
        self.server("api", api, options);
        self.run(&format!(
            "CREATE TABLE item (id int PRIMARY KEY, title text, stock int NOT NULL DEFAULT 0);
             INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, {rows}) i;
             CREATE TABLE stored_by (id int, pid int);
             CREATE TABLE patience (seconds float8);
             INSERT INTO patience VALUES ({});
             CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS $$
               BEGIN
                 PERFORM pg_sleep(seconds) FROM public.patience;
                 INSERT INTO public.stored_by VALUES (NEW.id, pg_backend_pid());
                 RETURN NEW;
               END $$",
            store.as_secs_f64()
        ));
        self.run(
            "BEGIN;
             SELECT recsync.create_pipeline('item_embedding', 'item', columns => '{title}', server => 'api', index => 'hnsw');
             CREATE INDEX ON item_embedding_g1 USING hnsw (embedding vector_cosine_ops);
             CREATE TRIGGER slowly BEFORE INSERT OR UPDATE ON item_embedding_g1 FOR EACH ROW EXECUTE FUNCTION slowly();
             COMMIT",
        );
    }

    /// How long a row's store takes from the next statement on.
    pub fn store_takes(&mut self, time: Duration) {
        self.run(&format!(
            "UPDATE patience SET seconds = {}",
            time.as_secs_f64()
        ));
    }

    /// The process ids of this database's writers.
    pub fn writers(&mut self) -> Vec<i32> {
        let name = self.name.clone();
        self.column(&format!(
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'recsync writer' AND datname = '{name}' ORDER BY pid"
        ))
    }

    /// Waits until this many writers are in the middle of a store.
    #[track_caller]
    pub fn wait_until_writers_store(&mut self, count: i64) {
        let name = self.name.clone();
        wait_until(PATIENCE, "writers store", || {
            self.one::<i64>(&format!(
                "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'recsync writer' AND datname = '{name}'
                    AND xact_start IS NOT NULL AND wait_event = 'PgSleep'"
            )) >= count
        });
    }
}
