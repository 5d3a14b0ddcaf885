//! What is asked of models and neighbours: how they score items for a user, and what is listed of that.
//!
//! It never says what a source counts for.

use pgrx::prelude::*;

use super::statements::{MOST, Parts};
use crate::catalog::names::vector_schema;
use crate::catalog::recommender::{Model, Recommender, models};
use crate::catalog::rights::As;
use crate::error::Result;
use crate::recommend::train::{self, als};
use crate::statement::{Finds, Statement};
use crate::store::vector::Numbers;

/// What an item of the user's counts by its place, the newest one's being 0. It counts half where as many newer ones stand
/// before it as half_life_rank says, and a third at twice that place: what is long past fades slower than by halves, as
/// what people remember does (Wixted, Ebbesen, Psychological Science 1991). Where the place does not matter, the time
/// since the newest does: on the validation cuts of benches/README.md both together were worse than the place alone.
pub fn fading(r: &Recommender) -> String {
    match r.learning.half_life_rank {
        Some(places) => format!(
            "(1 / (1 + (pg_catalog.row_number() OVER (ORDER BY h.place) - 1) / {places}::float8))"
        ),
        None => format!(
            "pg_catalog.power(2::float8, GREATEST(extract(epoch FROM h.at - pg_catalog.max(h.at) OVER ())::float8 / {}::float8, -60))",
            r.half_life_s
        ),
    }
}

/// What ALS makes of the user's items and the session's as they are now, as parameter $5 of [`scored`]. `None`: there is no
/// such model, or it knows none of them.
pub fn factors(r: &Recommender, user: Option<&str>, session: &[String]) -> Result<Option<Numbers>> {
    if !r.learning.models().any(|model| model == Model::Als) {
        return Ok(None);
    }
    let parts = Parts::new(r)?;
    let of_items = format!(
        "WITH {seeds} SELECT i.factors, g.weight::float8 FROM seeds g JOIN {factors} i ON i.key {equals} g.item_id",
        seeds = parts.seeds(r, [""; 3])?,
        factors = models::item_factors(r.id),
        equals = parts.equals,
    );
    let squares = format!("SELECT s.numbers FROM {} s", models::factor_squares(r.id));
    let _as = As::owner(r.owner());
    Spi::connect(|client| {
        let arguments = [user.into(), session.to_vec().into()];
        let mut items = Vec::new();
        for row in Statement::kept(&of_items, Finds::ByKey).select(client, &arguments)? {
            if let (Some(factors), Some(weight)) = (row.get::<Numbers>(1)?, row.get::<f64>(2)?) {
                items.push((factors.0, weight));
            }
        }
        if items.is_empty() {
            return Ok(None);
        }
        let rows = Statement::kept(&squares, Finds::ByKey).select(client, &[])?;
        let squares = rows.first().get::<Vec<f64>>(1)?.unwrap_or_default();
        Ok(als::fold_in(&squares, &items, &train::ALS)
            .ok()
            .map(Numbers))
    })
}

/// `told`, by the weights of EASE and the user's items in `seeds`; `alike`, by the factors of ALS. Which of them is read
/// [`listed`] says.
pub fn scored(r: &Recommender, equals: &str) -> Result<String> {
    Ok(format!(
        "told AS (
           SELECT w.other_id AS item_id, pg_catalog.sum(g.weight * w.weight) AS score
             FROM seeds g JOIN {ease} w ON w.item_id {equals} g.item_id
            GROUP BY w.other_id HAVING pg_catalog.sum(g.weight * w.weight) > 0
         ), alike AS (
           SELECT i.key AS item_id, -(i.factors OPERATOR({vector}.<#>) $5::{vector}.vector) AS score
             FROM {of_items} i WHERE $5 IS NOT NULL
         )",
        ease = models::ease(r.id),
        of_items = models::item_factors(r.id),
        vector = vector_schema().unwrap_or_default(),
    ))
}

/// Of each source that the recommender has, its best candidates; what follows is added to them. They are put in order
/// before the items' rows are looked up, which ends where there are enough.
pub fn listed(r: &Recommender, parts: &Parts) -> String {
    let models = r.learning.models().map(|model| match model {
        Model::ItemKnn => ("neighbours", "near"),
        Model::Ease => ("ease", "told"),
        Model::Als => ("als", "alike"),
    });
    let listed = models.map(|(source, scored)| {
        format!(
            "SELECT '{source}' AS source, c.item_id, pg_catalog.row_number() OVER (ORDER BY c.score DESC, c.item_id) AS place
               FROM (SELECT n.item_id, n.score
                       FROM (SELECT n.item_id, n.score FROM {scored} n ORDER BY n.score DESC, n.item_id OFFSET 0) n JOIN {} s ON {} {} n.item_id
                      WHERE {} ORDER BY n.score DESC, n.item_id LIMIT {MOST}) c
              UNION ALL
            ",
            parts.rows, parts.key, parts.equals, parts.open(r),
        )
    });
    listed.collect()
}
