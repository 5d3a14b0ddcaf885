//! All ratings, one transaction after the other, each followed as it comes; then each film's neighbours, beside those of
//! the same ratings counted at once by plain SQL.

use std::time::Instant;

use postgres::Client;

use crate::goal;
use crate::ratings::{Insert, Rating, load_films};
use crate::support::Sql;

/// Ratings of a transaction.
const BATCH: usize = 20;
const HISTORY: usize = 100;

pub fn run(client: &mut Client, ratings: &[Rating]) {
    let mut films: Vec<i32> = ratings.iter().map(|rating| rating.film).collect();
    films.sort_unstable();
    films.dedup();
    load_films(client, &films);
    client.run("SELECT recsync.create_recommender('shop', 'film', 'rating', collaborative => '{item_knn}')");
    let mut in_order: Vec<&Rating> = ratings.iter().collect();
    in_order.sort_by_key(|rating| rating.at);
    let insert = Insert::prepare(client);
    let started = Instant::now();
    for (batch, ratings) in in_order.chunks(BATCH).enumerate() {
        insert.run(client, batch * BATCH, ratings);
    }
    assert!(client.one::<bool>("SELECT recsync.wait_for('shop', '2 h')"));
    let took = started.elapsed().as_secs_f64();
    let id: i32 = client.one("SELECT id FROM recsync.recommender WHERE name = 'public.shop'");
    client.run("ANALYZE");
    client.run(&format!(
        "CREATE TEMP TABLE had AS SELECT DISTINCT user_id, film_id FROM (SELECT *, row_number() OVER (PARTITION BY user_id ORDER BY at DESC, id DESC) AS n FROM rating) r WHERE n <= {HISTORY};
         CREATE TEMP TABLE together AS SELECT a.film_id AS item, b.film_id AS other, count(*) AS users FROM had a JOIN had b ON b.user_id = a.user_id AND b.film_id <> a.film_id GROUP BY 1, 2;
         CREATE TEMP TABLE alone AS SELECT film_id AS item, count(*) AS users FROM had GROUP BY 1;
         ANALYZE had, together, alone"
    ));
    let kept = format!(
        "SELECT item_id AS item, others[:20] AS others FROM recsync.neighbour_{id} WHERE others <> '{{}}'"
    );
    let counted = "SELECT p.item, array_agg(p.other ORDER BY p.place) AS others FROM (
           SELECT t.item, t.other, row_number() OVER (PARTITION BY t.item ORDER BY t.users / (sqrt(a.users::float8 * b.users) + 10) DESC, t.other) AS place
             FROM together t JOIN alone a ON a.item = t.item JOIN alone b ON b.item = t.other) p
          WHERE p.place <= 20 GROUP BY p.item";
    let row = client.rows(&format!(
        "SELECT count(*), avg(j.both::float8 / j.any), min(j.both::float8 / j.any) FROM ({counted}) c FULL JOIN ({kept}) k ON k.item = c.item
          CROSS JOIN LATERAL (SELECT (SELECT count(*) FROM (SELECT unnest(c.others) INTERSECT SELECT unnest(k.others)) x) AS both,
                                     (SELECT count(*) FROM (SELECT unnest(c.others) UNION SELECT unnest(k.others)) x) AS any) j"
    ));
    let (films, mean, least): (i64, f64, f64) = (row[0].get(0), row[0].get(1), row[0].get(2));
    println!(
        "\nNeighbours: {} ratings in {:.0} s ({:.0} a second), {films} films with neighbours",
        ratings.len(),
        took,
        ratings.len() as f64 / took,
    );
    goal(
        &format!(
            "Jaccard of each film's 20 nearest with those counted at once: {mean:.4} on average, {least:.4} at the least"
        ),
        mean >= 0.99,
    );
}
