//! What is asked of models and neighbours: how they score items for a user, and what is listed of that.
//!
//! It never says what a source counts for.

use super::statements::{MOST, Parts};
use crate::catalog::names::vector_schema;
use crate::catalog::recommender::{Model, Recommender, models};
use crate::error::Result;

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

/// `told`, by the weights of EASE and the user's items in `seeds`; `alike`, by the factors of ALS. Which of them is read
/// [`listed`] says.
pub fn scored(r: &Recommender, equals: &str) -> Result<String> {
    let user = r.user_key()?;
    Ok(format!(
        "told AS (
           SELECT w.other_id AS item_id, pg_catalog.sum(g.weight * w.weight) AS score
             FROM seeds g JOIN {ease} w ON w.item_id {equals} g.item_id
            GROUP BY w.other_id HAVING pg_catalog.sum(g.weight * w.weight) > 0
         ), alike AS (
           SELECT i.key AS item_id, -(i.factors OPERATOR({vector}.<#>) u.factors) AS score
             FROM {of_users} u CROSS JOIN {of_items} i WHERE u.key {user_equals} $1::{user_type}
         )",
        ease = models::ease(r.id),
        of_users = models::user_factors(r.id),
        of_items = models::item_factors(r.id),
        vector = vector_schema().unwrap_or_default(),
        user_equals = user.equals,
        user_type = user.type_name,
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
