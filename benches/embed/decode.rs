//! An answer's body turned into vectors by the library's own code, in this process: JSON, base64, every check.

use std::time::Instant;

use recsync::embed::endpoint::Endpoint;
use recsync::embed::reply;

use crate::Sizes;
use crate::bench::loopback::{Model, Vectors};
use crate::bench::tables::table;
use crate::figures::Figures;

pub const PART: &str = "decode";
pub const US: &str = "µs a vector";

/// Dimensions and the name of the variant.
pub const VARIANTS: [(usize, &str); 2] = [(384, "384 dimensions"), (1_536, "1536 dimensions")];

/// Inputs of the answer.
const BATCH: usize = 64;
const ROUNDS: usize = 500;

pub fn run(sizes: &Sizes, figures: &mut Figures) {
    let rows = VARIANTS.map(|(dimensions, name)| {
        let model = Model {
            dimensions,
            vectors: Vectors::Random,
            delay: sizes.delay,
        };
        let inputs: Vec<String> = (0..BATCH).map(|n| format!("text {n}")).collect();
        let body = model.answer(&inputs);
        let endpoint = endpoint(dimensions);
        let read = || {
            reply::read(&endpoint, BATCH, body.as_bytes())
                .unwrap()
                .vectors
        };
        assert_eq!(read()[BATCH - 1], model.vector(&inputs[BATCH - 1]));
        for _ in 0..ROUNDS {
            let started = Instant::now();
            std::hint::black_box(read());
            let took = started.elapsed().as_secs_f64();
            figures.add(PART, name, US, took * 1e6 / BATCH as f64);
        }
        let at = |percent| figures.percentile(PART, name, US, percent);
        format!("{name} | {:.2} | {:.2}", at(50), at(99))
    });
    let head = "a vector in base64 | µs: p50 | p99";
    table("decode, an answer of 64 vectors", head, &rows);
}

fn endpoint(dimensions: usize) -> Endpoint {
    let options = [
        ("api", "openai"),
        ("url", "http://127.0.0.1/v1"),
        ("model", "loopback"),
        ("dimensions", &dimensions.to_string()),
    ];
    let options = options.map(|(name, value)| (name.to_owned(), value.to_owned()));
    Endpoint::from_options(&options, &[]).unwrap()
}
