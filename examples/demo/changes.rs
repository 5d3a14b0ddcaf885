//! Rows that change, and how long their vectors take to follow.
//! It never takes the server's clock for it: what is measured is what another connection sees.

use std::thread::sleep;
use std::time::{Duration, Instant};

use postgres::types::ToSql;

use crate::{Demo, PATIENCE, Result, similar_to};

/// Between two looks of the watching connection; with the query itself, a look every 0.4 ms.
const POLL: Duration = Duration::from_micros(200);
const CHANGES: usize = 200;
/// After each so many changes the model is asked alone, so that both meet the same load.
const MODEL_CALL_EACH: usize = 10;

impl Demo {
    pub fn changed_description(&mut self) -> Result<()> {
        self.terminal
            .step("A description changes, and with it the neighbours");
        let title = "The Third Man";
        let before = self.show(&similar_to(title))?;
        let update = format!(
            "UPDATE film SET genres = 'sci-fi; adventure', description =\n  \
             'An astronaut stranded alone on Mars grows his own food and hopes for a rescue ship.'\n \
             WHERE title = '{title}';"
        );
        self.terminal.sql(&update);
        let id: i32 = self.one(&format!("SELECT id FROM film WHERE title = '{title}'"))?;
        let took = self.until_visible(id, &update, &[])?;
        let after = self.show_again("the same query", &similar_to(title))?;
        self.promise(
            before.column("title") != after.column("title"),
            &format!("other neighbours, {} after the commit", milliseconds(took)),
        )
    }

    pub fn many_changes(&mut self) -> Result<()> {
        self.terminal
            .step(&format!("{CHANGES} single changes, one after the other"));
        let update = "UPDATE film SET description = description || $1 WHERE id = $2";
        self.terminal.sql(update);
        let ids = self.ask("SELECT id FROM film ORDER BY id")?;
        let ids: Vec<i32> = ids
            .column("id")
            .iter()
            .filter_map(|id| id.parse().ok())
            .collect();
        let before = self.setting.embedder.asked()?;
        let (mut times, mut alone) = (Vec::new(), Vec::new());
        for number in 0..CHANGES {
            let id = ids[number * ids.len() / CHANGES];
            let more = format!(" Shown in {} cinemas.", 100 + number);
            times.push(self.until_visible(id, update, &[&more, &id])?);
            if number % MODEL_CALL_EACH == 0 {
                alone.push(self.model_alone(id)?);
            }
        }
        let asked = self.setting.embedder.asked()?.inputs - before.inputs;
        let inputs = asked - alone.len() as u64;
        times.sort();
        alone.sort();
        self.terminal.note(&format!(
            "commit → visible:  p50 {}   p99 {}   (least {}, most {})",
            milliseconds(percentile(&times, 50)),
            milliseconds(percentile(&times, 99)),
            milliseconds(percentile(&times, 0)),
            milliseconds(percentile(&times, 100))
        ));
        self.terminal.note(&format!(
            "the model alone:   p50 {}, by {} × SELECT recsync.embed(…) in between",
            milliseconds(percentile(&alone, 50)),
            alone.len()
        ));
        self.promise(
            inputs == CHANGES as u64,
            &format!("{CHANGES} changes, {inputs} texts sent: each one once"),
        )?;
        self.settle()?;
        self.every_row_has_its_vector()
    }

    /// What one text of that length costs without any pipeline.
    fn model_alone(&mut self, id: i32) -> Result<Duration> {
        let sql = "SELECT concat_ws(E'\n', title, genres, description) FROM film WHERE id = $1";
        let text: String = self.watcher.query_one(sql, &[&id])?.try_get(0)?;
        let embed = "SELECT recsync.embed('film_embedding', $1)::text";
        let embed = self.client.prepare(embed)?;
        let started = Instant::now();
        self.client.query_one(&embed, &[&text])?;
        Ok(started.elapsed())
    }

    /// Time from the commit of `update`, as its client learns of it, until the vector of `id` is another one for
    /// everybody.
    fn until_visible(
        &mut self,
        id: i32,
        update: &str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<Duration> {
        let look = self.prepare("SELECT content_hash FROM film_embedding WHERE id = $1")?;
        let update = self.client.prepare(update)?;
        let before: Vec<u8> = self.watcher.query_one(&look, &[&id])?.try_get(0)?;
        self.client.execute(&update, values)?;
        let committed = Instant::now();
        loop {
            let now: Vec<u8> = self.watcher.query_one(&look, &[&id])?.try_get(0)?;
            if now != before {
                return Ok(committed.elapsed());
            }
            if committed.elapsed() > PATIENCE {
                return Err(format!("film {id} has its old vector {PATIENCE:?} later").into());
            }
            sleep(POLL);
        }
    }
}

pub fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

/// By nearest rank; `times` in order.
fn percentile(times: &[Duration], percent: usize) -> Duration {
    let rank = (times.len() * percent).div_ceil(100).max(1);
    times.get(rank - 1).copied().unwrap_or_default()
}
