//! What vectors take on disk and in the WAL, by how PostgreSQL and pgvector lay them out, and how long they take.
//!
//! It never looks at a table.

use std::time::Duration;

/// Room on a page for items and their pointers, and bytes of such a pointer.
const PAGE: u64 = 8_192;
const ROOM: u64 = 8_168;
const POINTER: u64 = 4;
/// Bytes of a value in a chunk of its own, and what a chunk has beside it.
const CHUNK: u64 = 1_996;
const CHUNK_HEADER: u64 = 36;
/// A row's header; the hash of a text as `bytea`; a time.
const ROW: u64 = 24;
const HASH: u64 = 33;
const TIME: u64 = 8;
/// In a B-tree: an entry's header; how full pages are that were filled in order, and at random.
const ENTRY: u64 = 8;
const IN_ORDER: f64 = 0.9;
const AT_RANDOM: f64 = 0.7;
/// In an HNSW graph with pgvector's m = 16: an element beside its vector, the list of its neighbours (on two layers
/// for nearly all), and what there is on a page beside them.
const ELEMENT: u64 = 72;
const NEIGHBOURS: u64 = 200;
const GRAPH_PAGE: u64 = 8_160;
/// Of a record in the WAL beside what it is about: of a row, and of each entry in an index.
const ROW_RECORD: u64 = 60;
const ENTRY_RECORD: u64 = 90;

/// What is stored of a row.
#[derive(Clone, Copy, Debug)]
pub struct Shape<'a> {
    pub dimensions: u64,
    pub storage: &'a str,
    pub index: &'a str,
    pub model: &'a str,
    /// Bytes of a key on the average.
    pub key: f64,
    /// Where the vectors go into a column of the source: bytes of a row there, which is written anew.
    pub source_row: Option<f64>,
}

/// Bytes of all rows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bytes {
    pub disk: f64,
    pub wal: f64,
}

impl Shape<'_> {
    fn vector(&self) -> u64 {
        8 + self.dimensions * if self.storage == "halfvec" { 2 } else { 4 }
    }

    /// Of `rows` vectors; pages that were in the WAL as a whole because of a checkpoint are not counted.
    pub fn bytes(&self, rows: f64) -> Bytes {
        let key = self.key.max(1.0) as u64;
        let beside = ROW + aligned(key) + HASH + 1 + self.model.len() as u64 + TIME;
        let mut of = Bytes::default();
        match self.source_row {
            Some(row) => {
                let written = row + self.vector() as f64;
                of.add(written, written + ROW_RECORD as f64 + ENTRY_RECORD as f64);
                of.add_row(beside + HASH);
            }
            // Wide ones are not kept in the row, see `make_relations`.
            None if self.vector() - 8 <= 7_000 => of.add_row(beside + self.vector()),
            None => {
                of.add_row(beside + 18);
                let (chunks, rest) = (self.vector() / CHUNK, self.vector() % CHUNK);
                for size in (0..chunks).map(|_| CHUNK).chain((rest > 0).then_some(rest)) {
                    of.add_row(size + CHUNK_HEADER);
                    of.add_entry(8, IN_ORDER);
                }
            }
        }
        of.add_entry(aligned(key), IN_ORDER);
        of.add_entry(aligned(HASH), AT_RANDOM);
        let graph = match self.index {
            "hnsw" => graph(self.vector()),
            "hnsw_bit" => graph(8 + self.dimensions.div_ceil(8)),
            _ => 0.0,
        };
        // A build writes each page as a whole.
        of.add(graph, graph);
        Bytes {
            disk: of.disk * rows,
            wal: of.wal * rows,
        }
    }
}

impl Bytes {
    fn add(&mut self, disk: f64, wal: f64) {
        self.disk += disk;
        self.wal += wal;
    }

    fn add_row(&mut self, bytes: u64) {
        let on_a_page = ROOM / (aligned(bytes) + POINTER);
        self.add(
            PAGE as f64 / on_a_page.max(1) as f64,
            (bytes + ROW_RECORD) as f64,
        );
    }

    fn add_entry(&mut self, bytes: u64, full: f64) {
        let entry = ENTRY + bytes + POINTER;
        self.add(entry as f64 / full, (entry + ENTRY_RECORD) as f64);
    }
}

fn aligned(bytes: u64) -> u64 {
    bytes.next_multiple_of(8)
}

/// Bytes of a vector in an HNSW graph. A vector that leaves no room for its neighbours has them on another page.
fn graph(vector: u64) -> f64 {
    let element = aligned(ELEMENT + vector) + POINTER;
    let neighbours = NEIGHBOURS + POINTER;
    match GRAPH_PAGE / (element + neighbours) {
        0 => PAGE as f64 + (PAGE / (GRAPH_PAGE / neighbours)) as f64,
        on_a_page => PAGE as f64 / on_a_page as f64,
    }
}

/// What bounds how fast texts are embedded.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub inputs: u64,
    pub batch_tokens: Option<u64>,
    pub batch_bytes: u64,
    pub concurrency: u64,
    pub requests_per_minute: Option<u64>,
    pub tokens_per_minute: Option<u64>,
    /// There are requests at all.
    pub sends: bool,
}

/// How long a provider is taken to need for a full request.
const REQUEST: f64 = 0.5;
/// Seconds to render and store a row without an index, and more for each of its numbers: `make bench BENCH=embed`,
/// drain, backfill (32,900 rows/s of 384 dimensions, 14,700 of 1,536).
const STORED_ROW: f64 = 18e-6;
const STORED_NUMBER: f64 = 33e-9;

impl Limits {
    /// How long it takes where nothing else is in the way: the longest of what the account's limits, the provider's
    /// answers and the store allow.
    pub fn duration(&self, rows: u64, tokens: f64, bytes: u64, dimensions: u64) -> Duration {
        let stored = rows as f64 * (STORED_ROW + STORED_NUMBER * dimensions as f64);
        let mut seconds = stored;
        if self.sends {
            let by_inputs = rows.div_ceil(self.inputs.max(1)) as f64;
            let by_tokens = self
                .batch_tokens
                .map_or(0.0, |most| (tokens / most.max(1) as f64).ceil());
            let by_bytes = bytes.div_ceil(self.batch_bytes.max(1)) as f64;
            let requests = by_inputs.max(by_tokens).max(by_bytes);
            let minutes = |count: f64, limit: Option<u64>| {
                limit.map_or(0.0, |limit| count / limit.max(1) as f64 * 60.0)
            };
            let rounds = (requests / self.concurrency.max(1) as f64).ceil();
            seconds = stored
                .max(rounds * REQUEST)
                .max(minutes(requests, self.requests_per_minute))
                .max(minutes(tokens, self.tokens_per_minute));
        }
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape {
        dimensions: 384,
        storage: "vector",
        index: "hnsw",
        model: "all-minilm",
        key: 8.0,
        source_row: None,
    };

    #[test]
    fn wider_vectors_take_more_halves_less_and_signs_least() {
        let disk = |shape: Shape| shape.bytes(1_000.0).disk;
        let wide = Shape {
            dimensions: 1_536,
            ..SHAPE
        };
        let half = Shape {
            storage: "halfvec",
            ..wide
        };
        let signs = Shape {
            index: "hnsw_bit",
            ..wide
        };
        let none = Shape {
            index: "none",
            ..wide
        };
        assert!(disk(SHAPE) < disk(half) && disk(half) < disk(wide));
        assert!(disk(none) < disk(signs) && disk(signs) < disk(wide));
        let huge = Shape {
            dimensions: 3_072,
            ..none
        };
        assert!(disk(huge) > 12_300.0 * 1_000.0, "{}", disk(huge));
        assert_eq!(SHAPE.bytes(0.0), Bytes::default());
    }

    #[test]
    fn the_slowest_limit_says_how_long_it_takes() {
        let free = Limits {
            inputs: 50,
            batch_tokens: None,
            batch_bytes: 4 << 20,
            concurrency: 4,
            requests_per_minute: None,
            tokens_per_minute: None,
            sends: true,
        };
        let seconds = |limits: Limits| {
            let time = limits.duration(10_000, 1_000_000.0, 4_000_000, 384);
            time.as_secs_f64().round()
        };
        assert_eq!(seconds(free), 25.0, "200 requests, four at a time");
        for (limits, wanted) in [
            (
                Limits {
                    requests_per_minute: Some(100),
                    ..free
                },
                120.0,
            ),
            (
                Limits {
                    tokens_per_minute: Some(100_000),
                    requests_per_minute: Some(100),
                    ..free
                },
                600.0,
            ),
            (
                Limits {
                    batch_tokens: Some(2_000),
                    ..free
                },
                63.0,
            ),
            (
                Limits {
                    sends: false,
                    requests_per_minute: Some(1),
                    ..free
                },
                0.0,
            ),
        ] {
            assert_eq!(seconds(limits), wanted, "{limits:?}");
        }
    }
}
