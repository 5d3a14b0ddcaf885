//! Recommendations of films, by what people have watched: a list that has changed before the next prompt, a film that is
//! gone at once, and why each film is listed.
//! It never shows a list that it has not just asked for.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::changes::milliseconds;
use crate::{Demo, PATIENCE, Result};

/// Between two looks of the watching connection.
const POLL: Duration = Duration::from_micros(200);
const PERSONA: &str = "mia";
const CLICKS: [&str; 3] = ["Solaris", "Alien", "Interstellar"];

impl Demo {
    pub fn recommendations(&mut self) -> Result<()> {
        self.terminal
            .step("Recommendations: who has watched what, one statement, one SQL function");
        self.run(
            "CREATE TABLE watched (person_id text, film_id int REFERENCES film ON DELETE CASCADE,\n                      \
             watched_at timestamptz DEFAULT now(), PRIMARY KEY (person_id, film_id));\n\
             INSERT INTO watched  -- 120 people, each with a genre of their own\n\
             SELECT 'person ' || p, f.id, now() - (hashint8(p * 1000 + f.id) & 1023) * interval '1 hour'\n  \
               FROM generate_series(1, 120) p, film f\n \
              WHERE (hashint8(p * 1000 + f.id) & 65535) % CASE WHEN f.genres LIKE '%' ||\n        \
                      (ARRAY['sci-fi', 'comedy', 'crime', 'romance', 'horror', 'war'])[1 + p % 6] || '%'\n        \
                    THEN 3 ELSE 40 END = 0;\n\
             ALTER TABLE film ADD hidden boolean NOT NULL DEFAULT false;",
        )?;
        self.run(
            "SELECT recsync.create_recommender('cinema', items => 'film_embedding',\n         \
             interactions => 'watched', eligible => 'NOT hidden');",
        )?;
        let counted = format!(
            "SELECT recsync.wait_for('cinema', '{} s')",
            PATIENCE.as_secs()
        );
        if !self.one::<bool>(&counted)? {
            return Err(format!("what was watched is not counted within {PATIENCE:?}").into());
        }
        let before = self.show(&list())?;
        self.clicks(&before.column("title").join("\n"))?;
        self.hide()?;
        self.explain()
    }

    /// Three clicks, and how long the list takes to be another one.
    fn clicks(&mut self, before: &str) -> Result<()> {
        self.terminal
            .step(&format!("{PERSONA} clicks on three films"));
        let titles = CLICKS.map(|title| format!("'{title}'")).join(", ");
        self.run(&format!(
            "INSERT INTO watched (person_id, film_id)\nSELECT '{PERSONA}', id FROM film WHERE title IN ({titles});"
        ))?;
        let committed = Instant::now();
        let look = format!(
            "SELECT string_agg(f.title, E'\\n' ORDER BY r.rank), count(*) FILTER (WHERE f.title IN ({titles}))
               FROM cinema_recommend('{PERSONA}', k => 5) r JOIN film f USING (id)"
        );
        let took = loop {
            let row = self.watcher.query_one(&look, &[])?;
            let (now, seen): (String, i64) = (row.try_get(0)?, row.try_get(1)?);
            if now != before && seen == 0 {
                break committed.elapsed();
            }
            if committed.elapsed() > PATIENCE {
                return Err(format!("the list is the same {PATIENCE:?} later").into());
            }
            sleep(POLL);
        };
        let after = self.show_again("the same query", &list())?;
        let after = after.column("title");
        self.promise(
            after.len() == 5 && CLICKS.iter().all(|seen| !after.contains(seen)),
            &format!(
                "another list, without what was seen, {} after the clicks",
                milliseconds(took)
            ),
        )
    }

    fn hide(&mut self) -> Result<()> {
        self.terminal.step("A film is hidden");
        let first: String = self.one(&format!(
            "SELECT f.title FROM cinema_recommend('{PERSONA}', k => 1) r JOIN film f USING (id)"
        ))?;
        let quoted = first.replace('\'', "''");
        self.run(&format!(
            "UPDATE film SET hidden = true WHERE title = '{quoted}';"
        ))?;
        let after = self.show_again("the same query", &list())?;
        let after = after.column("title");
        self.promise(
            after.len() == 5 && !after.contains(&first.as_str()),
            &format!("\"{first}\" is gone at once, and there are still five"),
        )
    }

    fn explain(&mut self) -> Result<()> {
        self.terminal.step("Why these");
        let why = self.show(&format!(
            "SELECT f.title, (SELECT string_agg(key || ' ' || (r.reason ->> key), ', ')\n                   \
             FROM jsonb_object_keys(r.reason -> 'scores') AS key) AS places,\n       \
             (SELECT string_agg(b.title, ', ') FROM jsonb_array_elements(r.reason -> 'because') AS c\n          \
             JOIN film b ON b.id = (c ->> 'item')::int) AS like_what_was_watched\n  \
             FROM cinema_recommend('{PERSONA}', k => 5, explain => true) r JOIN film f USING (id) ORDER BY r.rank;"
        ))?;
        let places = why.column("places");
        self.promise(
            places.len() == 5 && places.iter().all(|places| !places.is_empty()),
            "each film says where it comes from",
        )
    }
}

fn list() -> String {
    format!(
        "SELECT f.title, f.year, f.genres\n  \
         FROM cinema_recommend('{PERSONA}', k => 5) r JOIN film f USING (id) ORDER BY r.rank;"
    )
}
