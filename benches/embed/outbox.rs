//! The customary consumer beside recsync: a program that polls an outbox table every second and, in one transaction,
//! sends a request with a batch of 100 and updates the vectors. A full batch is followed by the next one at once.

use std::collections::HashMap;
use std::io::{BufReader, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use postgres::{Client, Statement};
use serde::Deserialize;
use serde_json::json;

use crate::bench::loopback::{Loopback, Vectors, read_body};
use crate::bench::tables::table;
use crate::bench::visible::Watched;
use crate::figures::Figures;
use crate::support::{Cluster, PATIENCE, Sql, wait_until};
use crate::{SETTINGS, Sizes, fill, settle, start, text};

pub const PART: &str = "outbox";
pub const ROWS: &str = "rows/s";
pub const VISIBLE: &str = "ms commit to visible";

pub const RECSYNC: &str = "recsync";
pub const OUTBOX: &str = "outbox, polled every second";

const DIMENSIONS: usize = 384;
const BATCH: i64 = 100;
const POLL: Duration = Duration::from_secs(1);
/// Between two single changes, at the most: they come at any time between two polls.
const PAUSE_MS: u64 = 75;

/// The vector stands beside the text, without an index; what changes is put into the outbox by a trigger.
const TABLES: &str = "
    ALTER TABLE item ADD embedding vector(384);
    CREATE TABLE outbox (id bigserial PRIMARY KEY, item_id int NOT NULL);
    CREATE FUNCTION put() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO outbox (item_id) VALUES (NEW.id);
        RETURN NULL;
    END $$;
    CREATE TRIGGER put AFTER INSERT OR UPDATE OF title ON item FOR EACH ROW EXECUTE FUNCTION put()";

pub fn run(sizes: &Sizes, figures: &mut Figures) {
    let (cluster, mut client) = start(SETTINGS);
    let api = sizes.api(DIMENSIONS, Vectors::Random);
    let rows = sizes.outbox_rows;
    fill(&mut client, "item", rows);
    client.run(TABLES);
    consume(&cluster, &mut client, &api, sizes, figures);
    client.run("DROP TABLE item, outbox");
    fill(&mut client, "item", rows);
    recsync(&cluster, &mut client, &api, sizes, figures);
    let rows = [RECSYNC, OUTBOX].map(|variant| {
        let rate = figures.one(PART, variant, ROWS);
        let at = |percent| figures.percentile(PART, variant, VISIBLE, percent);
        format!("{variant} | {rate:.0} | {:.1} | {:.1}", at(50), at(99))
    });
    let head = "variant | rows/s | commit → visible, ms: p50 | p99";
    table("the customary consumer, no index", head, &rows);
}

/// When the consumer's commit returned, by the id of the row.
type Seen = Mutex<HashMap<i32, Instant>>;

fn consume(
    cluster: &Cluster,
    client: &mut Client,
    api: &Loopback,
    sizes: &Sizes,
    figures: &mut Figures,
) {
    let (seen, stop) = (Seen::default(), AtomicBool::new(false));
    thread::scope(|scope| {
        let mut consumer = Consumer::start(cluster, api);
        let (seen, stop) = (&seen, &stop);
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                if consumer.round(seen) < BATCH as usize {
                    sleep(POLL);
                }
            }
        });
        let wait = |client: &mut Client| {
            wait_until(PATIENCE * 20, "the outbox is empty", || {
                sleep(Duration::from_millis(10));
                client.one::<bool>("SELECT NOT EXISTS (SELECT FROM outbox)")
            })
        };
        let change_all = format!("UPDATE item SET title = {}", text("-id"));
        client.run(&change_all); // the first vectors: the rows have room for those that follow
        wait(client);
        client.run("VACUUM ANALYZE item");
        client.run("VACUUM ANALYZE outbox");
        client.run("CHECKPOINT");
        client.run(&change_all.replace("-id", "id"));
        let took = wait(client).as_secs_f64();
        figures.add(PART, OUTBOX, ROWS, sizes.outbox_rows as f64 / took);
        seen.lock().unwrap().clear();
        let change = "UPDATE item SET title = 'Changed ' || now() WHERE id = $1";
        let change = client.prepare(change).unwrap();
        let mut committed = Vec::new();
        for id in 1..=sizes.outbox_changes as i32 {
            sleep(Duration::from_millis(fastrand::u64(0..=PAUSE_MS)));
            client.execute(&change, &[&id]).unwrap();
            committed.push((id, Instant::now()));
        }
        wait(client);
        stop.store(true, Ordering::Relaxed);
        wait_until(PATIENCE, "all changes are seen", || {
            seen.lock().unwrap().len() == committed.len()
        });
        let seen = seen.lock().unwrap();
        for (id, at) in committed {
            let took = seen[&id].saturating_duration_since(at);
            figures.add(PART, OUTBOX, VISIBLE, took.as_secs_f64() * 1e3);
        }
    });
}

struct Consumer {
    client: Client,
    read: Statement,
    write: Statement,
    delete: Statement,
    api: TcpStream,
    answers: BufReader<TcpStream>,
}

#[derive(Deserialize)]
struct Answer {
    data: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    embedding: String,
}

impl Consumer {
    fn start(cluster: &Cluster, api: &Loopback) -> Consumer {
        let mut client = cluster.connect("postgres");
        let mut prepare = |sql: &str| client.prepare(sql).unwrap();
        let read = "SELECT o.id, i.id, i.title FROM outbox o JOIN item i ON i.id = o.item_id
                     ORDER BY o.id LIMIT $1 FOR UPDATE OF o SKIP LOCKED";
        let write = "UPDATE item i SET embedding = v.embedding::vector
                       FROM unnest($1::int[], $2::text[]) v (id, embedding) WHERE i.id = v.id";
        let delete = "DELETE FROM outbox WHERE id = ANY ($1)";
        let (read, write, delete) = (prepare(read), prepare(write), prepare(delete));
        let api = TcpStream::connect(("127.0.0.1", api.port())).unwrap();
        api.set_nodelay(true).unwrap();
        Consumer {
            client,
            read,
            write,
            delete,
            answers: BufReader::new(api.try_clone().unwrap()),
            api,
        }
    }

    /// One batch in one transaction; how many rows it had.
    fn round(&mut self, seen: &Seen) -> usize {
        let mut transaction = self.client.transaction().unwrap();
        let rows = transaction.query(&self.read, &[&BATCH]).unwrap();
        if rows.is_empty() {
            return 0;
        }
        let numbers: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
        let ids: Vec<i32> = rows.iter().map(|row| row.get(1)).collect();
        let titles: Vec<String> = rows.iter().map(|row| row.get(2)).collect();
        let vectors = ask(&mut self.api, &mut self.answers, &titles);
        transaction.execute(&self.write, &[&ids, &vectors]).unwrap();
        transaction.execute(&self.delete, &[&numbers]).unwrap();
        transaction.commit().unwrap();
        let now = Instant::now();
        let mut seen = seen.lock().unwrap();
        seen.extend(ids.into_iter().map(|id| (id, now)));
        numbers.len()
    }
}

/// The vectors as pgvector reads them.
fn ask(api: &mut TcpStream, answers: &mut BufReader<TcpStream>, inputs: &[String]) -> Vec<String> {
    let body = json!({"model": "loopback", "input": inputs, "encoding_format": "base64"});
    let body = body.to_string();
    let head = format!(
        "POST /v1/embeddings HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    api.write_all((head + &body).as_bytes()).unwrap();
    let answer = read_body(answers).unwrap();
    let answer: Answer = serde_json::from_slice(&answer).unwrap();
    let vectors = answer.data.into_iter().map(|item| {
        let bytes = STANDARD.decode(item.embedding).unwrap();
        let (numbers, _) = bytes.as_chunks::<4>();
        let numbers: Vec<f32> = numbers
            .iter()
            .map(|four| f32::from_le_bytes(*four))
            .collect();
        format!("{numbers:?}")
    });
    vectors.collect()
}

/// The same changes, the same API.
fn recsync(
    cluster: &Cluster,
    client: &mut Client,
    api: &Loopback,
    sizes: &Sizes,
    figures: &mut Figures,
) {
    client.run(&api.server(
        "loopback",
        &["max_batch_inputs '256'", "max_concurrency '8'"],
    ));
    client.run(
        "SELECT recsync.create_pipeline('item_embedding', 'item', index => 'none', columns => '{title}',
                server => 'loopback')",
    );
    settle(client, "item_embedding");
    client.run("VACUUM ANALYZE item_embedding_g1");
    client.run("CHECKPOINT");
    client.run(&format!("UPDATE item SET title = {}", text("-id")));
    let took = settle(client, "item_embedding");
    figures.add(PART, RECSYNC, ROWS, sizes.outbox_rows as f64 / took);
    let mut watched = Watched::new(cluster, "item", sizes.outbox_rows);
    for _ in 0..sizes.outbox_changes {
        sleep(Duration::from_millis(fastrand::u64(0..=PAUSE_MS / 2)));
        let stages = watched.change(api);
        figures.add(PART, RECSYNC, VISIBLE, stages.total_ms);
    }
}
