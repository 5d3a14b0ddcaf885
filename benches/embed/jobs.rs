//! Millions of jobs that are due: what the worker takes of memory, and how long it takes to claim some of them, at the
//! start, in the middle and at the end. It looks at the worker's own claims at work: triggers of a statement note when
//! one begins and ends.
//!
//! Two clusters: in one of them another session holds a snapshot from before the first job is claimed. The jobs in
//! between are not worked through but deleted, which leaves the dead entries that the worker would have left.

use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use postgres::Client;

use crate::bench::loopback::{Loopback, Vectors};
use crate::bench::setting::memory_mb;
use crate::bench::tables::table;
use crate::figures::Figures;
use crate::support::{Cluster, PATIENCE, Sql, wait_until};
use crate::{SETTINGS, Sizes, start, text};

pub const PART: &str = "jobs";
pub const CLAIM_MS: &str = "ms a claim";
pub const PEAK_MB: &str = "MB at the most";

pub const SIDES: [&str; 2] = ["no snapshot held", "snapshot held"];
pub const PHASES: [&str; 3] = ["start", "middle", "end"];

const DIMENSIONS: usize = 384;
/// Jobs of one claim, or more; only to have enough rows that can be embedded.
const CLAIM: usize = 1_024;
/// The key of the first job: all keys have as many digits, so that they come in the same order as text.
const FIRST: usize = 10_000_000;
/// A phase ends then, however few claims there were.
const LONGEST: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// What a process may have is counted with what it has read of shared_buffers: PostgreSQL's default for those.
const OWN_SETTINGS: &[(&str, &str)] = &[("shared_buffers", "128MB"), ("recsync.enabled", "off")];

/// Notes each statement that updates jobs: while nothing fails, those are claims.
const CLOCK: &str = "
    CREATE TABLE claim (began timestamptz, ms float8);
    CREATE FUNCTION claim_begins() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_catalog.set_config('bench.began', pg_catalog.clock_timestamp()::text, true);
        RETURN NULL;
    END $$;
    CREATE FUNCTION claim_ends() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        began timestamptz := pg_catalog.current_setting('bench.began');
    BEGIN
        INSERT INTO public.claim VALUES (began, extract(epoch FROM pg_catalog.clock_timestamp() - began) * 1000);
        RETURN NULL;
    END $$;
    CREATE TRIGGER claim_begins BEFORE UPDATE ON recsync.job FOR EACH STATEMENT EXECUTE FUNCTION claim_begins();
    CREATE TRIGGER claim_ends AFTER UPDATE ON recsync.job FOR EACH STATEMENT EXECUTE FUNCTION claim_ends()";

struct Side {
    name: &'static str,
    client: Client,
    holder: Client,
    worker: i32,
    /// The most that the worker had of its own, as far as it was looked at.
    own_mb: f64,
    api: Loopback,
    cluster: Cluster,
}

/// What a phase has come to.
struct Phase {
    ms: Vec<f64>,
    /// Texts that were sent.
    jobs_per_s: f64,
}

pub fn run(sizes: &Sizes, figures: &mut Figures) {
    // Loading takes most of the time: both at once.
    let mut sides = thread::scope(|scope| {
        let loading = SIDES.map(|name| scope.spawn(move || Side::start(name, sizes)));
        loading.map(|loading| loading.join().unwrap())
    });
    let mut rows = Vec::new();
    let mut memory = Vec::new();
    for side in &mut sides {
        for (phase, first) in PHASES.into_iter().zip(firsts(sizes)) {
            let Phase { ms, jobs_per_s } = side.run(first, sizes.claims);
            let variant = variant(side.name, phase);
            let first = ms.first().copied().unwrap_or(f64::NAN);
            for &ms in &ms {
                figures.add(PART, &variant, CLAIM_MS, ms);
            }
            figures.add(PART, &variant, "jobs/s", jobs_per_s);
            let at = |percent| figures.percentile(PART, &variant, CLAIM_MS, percent);
            rows.push(format!(
                "{variant} | {} | {first:.1} | {:.1} | {:.1} | {jobs_per_s:.0}",
                ms.len(),
                at(50),
                at(99)
            ));
        }
        let peak = side.finish();
        figures.add(PART, side.name, PEAK_MB, peak);
        figures.add(PART, side.name, "MB of its own at the most", side.own_mb);
        memory.push(format!("{} | {peak:.0} | {:.0}", side.name, side.own_mb));
    }
    let title = format!("{} jobs, claims", sizes.jobs);
    let head = "jobs | claims | ms: first | p50 | p99 | jobs/s";
    table(&title, head, &rows);
    let head = "worker | MB at the most | without shared memory";
    table("memory", head, &memory);
}

pub fn variant(side: &str, phase: &str) -> String {
    format!("{phase}, {side}")
}

/// Numbers of the jobs with which the phases begin.
fn firsts(sizes: &Sizes) -> [usize; 3] {
    let jobs = sizes.jobs;
    [0, jobs / 2, jobs - window(sizes)]
}

/// Jobs of a phase that can be embedded: more than are claimed in it.
fn window(sizes: &Sizes) -> usize {
    (2 * (sizes.claims + 20) * CLAIM).min(sizes.jobs / 4)
}

impl Side {
    fn start(name: &'static str, sizes: &Sizes) -> Side {
        let settings: Vec<_> = SETTINGS.iter().chain(OWN_SETTINGS).copied().collect();
        let (cluster, mut client) = start(&settings);
        let api = sizes.api(DIMENSIONS, Vectors::Random);
        let options = ["max_batch_inputs '256'", "max_concurrency '8'"];
        client.run(&api.server("loopback", &options));
        client.run("CREATE TABLE item (id bigint PRIMARY KEY, title text NOT NULL)");
        for first in firsts(sizes).map(|first| FIRST + first) {
            client.run(&format!(
                "INSERT INTO item SELECT n, {} FROM generate_series({first}, {}) n",
                text("n"),
                first + window(sizes) - 1
            ));
        }
        client.run("VACUUM ANALYZE item");
        client.run(
            "SELECT recsync.create_pipeline('item_embedding', 'item', index => 'none', columns => '{title}',
                    server => 'loopback', backfill => false)",
        );
        // Not a foreign key's check for each of them; and each is due a microsecond after the one before.
        client.run("SET session_replication_role = replica");
        client.run(&format!(
            "INSERT INTO recsync.job (pipeline_id, record_key, available_at)
             SELECT p.id, ARRAY[({FIRST} + n)::text], timestamptz '2020-01-01' + n * interval '1 us'
               FROM recsync.pipeline p, generate_series(0, {} - 1) n",
            sizes.jobs
        ));
        client.run("RESET session_replication_role");
        client.run("VACUUM ANALYZE recsync.job");
        client.run("CHECKPOINT");
        client.run(CLOCK);
        let mut holder = cluster.connect("postgres");
        if name == SIDES[1] {
            holder.run("BEGIN ISOLATION LEVEL REPEATABLE READ");
            holder.run("SELECT FROM item LIMIT 1");
        }
        Side {
            name,
            worker: worker(&mut client),
            client,
            holder,
            own_mb: 0.0,
            api,
            cluster,
        }
    }

    /// Lets the worker go until it has claimed so many times; it begins with job `first`.
    fn run(&mut self, first: usize, claims: usize) -> Phase {
        let client = &mut self.client;
        client.run(&format!(
            "DELETE FROM recsync.job WHERE available_at < timestamptz '2020-01-01' + {first} * interval '1 us'"
        ));
        client.run("TRUNCATE claim");
        client.run("CHECKPOINT");
        drop(self.api.take());
        let started = Instant::now();
        self.cluster.set("recsync.enabled", "on");
        while started.elapsed() < LONGEST
            && client.one::<i64>("SELECT count(*) FROM claim") < claims as i64
        {
            self.own_mb = self.own_mb.max(memory_mb(self.worker, "RssAnon:"));
            sleep(POLL);
        }
        let took = started.elapsed().as_secs_f64();
        let jobs: usize = self.api.take().iter().map(|seen| seen.inputs).sum();
        self.cluster.set("recsync.enabled", "off");
        Phase {
            ms: client.column("SELECT ms FROM claim ORDER BY began"),
            jobs_per_s: jobs as f64 / took,
        }
    }

    /// The most memory that the worker had; and that it was the same all the time, and the snapshot, too.
    fn finish(&mut self) -> f64 {
        assert_eq!(
            worker(&mut self.client),
            self.worker,
            "the worker has not ended"
        );
        let isolation: String = self.holder.one("SHOW transaction_isolation");
        let held = isolation == "repeatable read";
        assert_eq!(
            held,
            self.name == SIDES[1],
            "the snapshot was held throughout"
        );
        memory_mb(self.worker, "VmHWM:")
    }
}

fn worker(client: &mut Client) -> i32 {
    let pids = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'recsync worker'";
    wait_until(PATIENCE, "the worker runs", || {
        !client.column::<i32>(pids).is_empty()
    });
    client.one(pids)
}
