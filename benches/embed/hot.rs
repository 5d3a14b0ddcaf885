//! One row changed a thousand times in a second, each time in a transaction of its own: how many texts are sent, how
//! long the last one takes, and that it is the one that stays.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::bench::loopback::{Loopback, Model, Vectors};
use crate::bench::tables::table;
use crate::figures::Figures;
use crate::support::Sql;
use crate::{SETTINGS, Sizes, fill, settle, start};

pub const PART: &str = "hot";
pub const INPUTS: &str = "inputs";

const DIMENSIONS: usize = 384;
const UPDATES: u32 = 1_000;
const TIME: Duration = Duration::from_secs(1);

/// The variants: an API that answers at once, and one that takes its time.
pub fn variants(sizes: &Sizes) -> [(String, Duration); 2] {
    [Duration::ZERO, sizes.delay].map(|delay| (format!("API of {} ms", delay.as_millis()), delay))
}

pub fn run(sizes: &Sizes, figures: &mut Figures) {
    let (_cluster, mut client) = start(SETTINGS);
    let mut rows = Vec::new();
    for (index, (variant, delay)) in variants(sizes).into_iter().enumerate() {
        let model = Model {
            dimensions: DIMENSIONS,
            vectors: Vectors::Random,
            delay,
        };
        let api = Loopback::start(model);
        let table = format!("item_{index}");
        let pipeline = format!("{table}_embedding");
        client.run(&api.server(&format!("loopback_{index}"), &[]));
        fill(&mut client, &table, 100);
        client.run(&format!(
            "SELECT recsync.create_pipeline('{pipeline}', '{table}', index => 'none', columns => '{{title}}',
                    server => 'loopback_{index}')"
        ));
        settle(&mut client, &pipeline);
        drop(api.take());
        // A commit that waits for the disk could take longer than the millisecond that it has.
        client.run("SET synchronous_commit = off");
        let update = format!("UPDATE {table} SET title = $1 WHERE id = 1");
        let update = client.prepare(&update).unwrap();
        let started = Instant::now();
        let mut title = String::new();
        for number in 1..=UPDATES {
            title = format!("Title {number} of this row");
            client.execute(&update, &[&title]).unwrap();
            sleep((TIME * number / UPDATES).saturating_sub(started.elapsed()));
        }
        let updates_s = started.elapsed().as_secs_f64();
        let last_ms = settle(&mut client, &pipeline) * 1e3;
        let vector: Vec<String> = model.vector(&title).iter().map(f32::to_string).collect();
        let distance: f64 = client.one(&format!(
            "SELECT embedding <-> '[{}]' FROM {pipeline} WHERE id = 1",
            vector.join(",")
        ));
        assert!(distance < 1e-5, "the last text wins");
        let requests = api.take();
        let inputs: usize = requests.iter().map(|request| request.inputs).sum();
        rows.push(format!(
            "{variant} | {updates_s:.2} | {} | {inputs} | {last_ms:.0}",
            requests.len()
        ));
        figures.add(PART, &variant, INPUTS, inputs as f64);
        figures.add(
            PART,
            &variant,
            "ms from the last change to visible",
            last_ms,
        );
    }
    let head = " | updates, s | requests | inputs | last change → visible, ms";
    table(&format!("{UPDATES} updates of one row"), head, &rows);
}
