//! What a user is interested in, as a vector: the weighted mean of the vectors of the items of their last interactions,
//! less for each the older it is and the more have come after it. What is disliked, by a negative weight, pushes away.
//!
//! Age counts from the user's latest interaction: as time passes all weights fade alike, and the direction stays. It is
//! never added to: a correction or a new vector of an item would not be undone. It is made of the interactions anew.
//!
//! What a user is like, by a vector of their own, counts beside that where a list is made, and is in nothing that is kept.

use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::{SpiClient, SpiTupleTable};
use std::collections::BTreeMap;

use crate::catalog::recommender::embedding::Vectors;
use crate::catalog::recommender::{Recommender, tables};
use crate::catalog::rights::As;
use crate::error::Result;
use crate::statement::{Finds, Statement};
use crate::store::vector::Numbers;

/// What a user is like counts as so many interactions of now, each of the weight that theirs have on average: all
/// there is of somebody new, some two fifths beside ten of theirs.
const PRIOR: f64 = 3.0;

/// How the weight of an interaction fades.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decay {
    pub half_life_s: f64,
    /// After how many newer ones it counts half, after twice as many a third, and so on; `None`: it does not matter.
    pub half_life_rank: Option<f64>,
}

impl Decay {
    pub fn of(r: &Recommender) -> Decay {
        Decay {
            half_life_s: r.half_life_s,
            half_life_rank: r.learning.half_life_rank,
        }
    }

    /// `place`: how many have come after it. Long ago fades slower by place than by halves (Wixted, Ebbesen, Psychological
    /// Science 1991).
    fn factor(self, age_s: f64, place: f64) -> f64 {
        let by_place = self
            .half_life_rank
            .map_or(1.0, |half_life| 1.0 / (1.0 + place / half_life));
        let lives = age_s.max(0.0) / self.half_life_s;
        // An age that is no number is that of a time without end, like the latest one's.
        by_place * if lives.is_nan() { 1.0 } else { (-lives).exp2() }
    }
}

/// Whether interests are not made any more as they were.
pub fn is_made_otherwise(was: &Recommender, is: &Recommender) -> bool {
    Decay::of(was) != Decay::of(is) || was.history != is.history
}

/// A weighted mean of vectors.
#[derive(Default)]
pub struct Mean {
    sum: Vec<f64>,
    weights: f64,
}

impl Mean {
    pub fn add(&mut self, weight: f64, vector: &[f32]) {
        if !weight.is_finite() {
            return;
        }
        self.sum.resize(vector.len().max(self.sum.len()), 0.0);
        for (sum, number) in self.sum.iter_mut().zip(vector) {
            *sum += weight * f64::from(*number);
        }
        self.weights += weight.abs();
    }

    /// `None` where nothing counts, or all of it comes to nothing: no direction is left.
    pub fn finish(self) -> Option<Vec<f32>> {
        let mean: Vec<f32> = self
            .sum
            .iter()
            .map(|sum| (sum / self.weights) as f32)
            .collect();
        let has_direction = mean.iter().any(|number| number.abs() > f32::EPSILON)
            && mean.iter().all(|number| number.is_finite());
        has_direction.then_some(mean)
    }
}

/// An interaction of a user's, with the vector of its item, where it has one.
pub struct Interaction {
    place: f64,
    age_s: f64,
    weight: f64,
    vector: Option<Numbers>,
}

/// Of users, by their numbers (from 0): those without any are left out.
pub type Histories = BTreeMap<usize, Vec<Interaction>>;

/// The vector of a user's interests; the session's items count as what they have just done, and `prior` is what they are
/// like.
pub fn of_history(
    decay: Decay,
    history: &[Interaction],
    session: &[Numbers],
    prior: Option<&Numbers>,
) -> Option<Vec<f32>> {
    let mut mean = Mean::default();
    let weights = history.iter().map(|interaction| interaction.weight.abs());
    let weights: Vec<f64> = weights.filter(|weight| *weight > 0.0).collect();
    // An item of the session counts as much as the weightiest interaction.
    let unit = match session {
        [] => 1.0,
        _ => weights.iter().copied().reduce(f64::max).unwrap_or(1.0),
    };
    if let Some(prior) = prior {
        let usual = match weights.len() {
            0 => unit,
            count => weights.iter().sum::<f64>() / count as f64,
        };
        mean.add(PRIOR * usual / unit, &prior.0);
    }
    for vector in session {
        mean.add(1.0, &vector.0);
    }
    for interaction in history {
        if let Some(vector) = &interaction.vector {
            let factor = decay.factor(interaction.age_s, interaction.place);
            mean.add(interaction.weight / unit * factor, &vector.0);
        }
    }
    mean.finish()
}

/// The last interactions of the users `$1`, as rows for [`histories`].
pub fn select_histories(r: &Recommender, vectors: &Vectors) -> Result<String> {
    let (user, item, schema) = (r.user_key()?, r.item_key()?, &vectors.schema);
    Ok(format!(
        "SELECT u.i::int4, h.place::float8, h.age, h.weight, v.embedding::{schema}.vector
           FROM pg_catalog.unnest($1::text[]) WITH ORDINALITY AS u (given, i)
          CROSS JOIN LATERAL (
                SELECT e.item_id, e.weight, pg_catalog.row_number() OVER latest_first - 1 AS place,
                       pg_catalog.max(extract(epoch FROM e.at)::float8) OVER () - extract(epoch FROM e.at)::float8 AS age
                  FROM (SELECT e.item_id, e.at, e.weight, {keys} FROM {interactions} e WHERE e.user_id {user_equals} u.given::{user_type}
                         ORDER BY e.at DESC, {latest_first} LIMIT {history}) e
                WINDOW latest_first AS (ORDER BY e.at DESC, {latest_first})) h
           LEFT JOIN {relation} v ON v.{key} {item_equals} h.item_id",
        keys = r.order().join(", "),
        interactions = r.interactions(),
        user_equals = user.equals,
        user_type = user.type_name,
        latest_first = r.latest_first(),
        history = r.history,
        relation = vectors.relation,
        key = vectors.key,
        item_equals = item.equals,
    ))
}

pub fn histories(rows: SpiTupleTable) -> Result<Histories> {
    let mut histories = Histories::new();
    for row in rows {
        let user = row.get::<i32>(1)?.unwrap_or(1) as usize - 1;
        histories.entry(user).or_default().push(Interaction {
            place: row.get::<f64>(2)?.unwrap_or_default(),
            age_s: row.get::<f64>(3)?.unwrap_or_default(),
            weight: row.get::<f64>(4)?.unwrap_or_default(),
            vector: row.get::<Numbers>(5)?,
        });
    }
    Ok(histories)
}

/// The vector of a user's interests as they are now, where the items have vectors: the one that is kept if it is known
/// to be right and nothing else counts, else made of the interactions.
pub fn of_user(
    r: &Recommender,
    user: Option<&str>,
    session: &[String],
) -> Result<Option<Vec<f32>>> {
    let Some(vectors) = &r.vectors else {
        return Ok(None);
    };
    let _as = As::owner(r.owner());
    Spi::connect(|client| {
        let prior = match (user, &r.users) {
            (Some(user), Some(users)) => match users.select(r)? {
                Some(sql) => vector_of(client, &sql, user)?,
                None => None,
            },
            _ => None,
        };
        if let (Some(user), [], true, None) = (user, session, vectors.noted, &prior)
            && let Some(row) = Statement::kept(&kept(r, vectors)?, Finds::ByKey)
                .select(client, &[user.into()])?
                .next()
        {
            return Ok(row.get::<Numbers>(1)?.map(|numbers| numbers.0));
        }
        let mut history = Vec::new();
        if let Some(user) = user {
            let arguments: [DatumWithOid; 1] = [vec![user.to_owned()].into()];
            let sql = select_histories(r, vectors)?;
            let rows = Statement::kept(&sql, Finds::ByKey).select(client, &arguments)?;
            history = histories(rows)?.remove(&0).unwrap_or_default();
        }
        let seen = match session {
            [] => Vec::new(),
            items => vectors_of(r, items)?.into_values().map(Numbers).collect(),
        };
        Ok(of_history(Decay::of(r), &history, &seen, prior.as_ref()))
    })
}

/// The one that is selected for a user, if there is one.
fn vector_of(client: &SpiClient, sql: &str, user: &str) -> Result<Option<Numbers>> {
    let statement = Statement::kept(sql, Finds::ByKey);
    let row = statement.select(client, &[user.into()])?.next();
    Ok(row.map(|row| row.get::<Numbers>(1)).transpose()?.flatten())
}

/// The vector that is kept of user `$1`, where it is right.
fn kept(r: &Recommender, vectors: &Vectors) -> Result<String> {
    let (user, schema) = (r.user_key()?, &vectors.schema);
    Ok(format!(
        "SELECT i.interest::{schema}.vector FROM {interests} i
          WHERE i.user_id {equals} $1::{kind} AND NOT i.stale AND {known}",
        interests = tables::interests(r.of),
        equals = user.equals,
        kind = user.type_name,
        known = is_known(r, "$1")?,
    ))
}

/// Whether it is known of all items of `user` that have got another vector.
pub fn is_known(r: &Recommender, user: &str) -> Result<String> {
    let (key, item) = (r.user_key()?, r.item_key()?);
    Ok(format!(
        "NOT EXISTS (SELECT FROM {revised} v JOIN {interactions} e ON e.item_id {item_equals} v.item_id
                      WHERE e.user_id {equals} {user}::{kind})",
        revised = tables::revised(r.of),
        interactions = r.interactions(),
        item_equals = item.equals,
        equals = key.equals,
        kind = key.type_name,
    ))
}

/// The vectors of items, by their keys: of those that have one.
pub fn vectors_of(r: &Recommender, items: &[String]) -> Result<BTreeMap<String, Vec<f32>>> {
    let Some(vectors) = &r.vectors else {
        return Ok(BTreeMap::new());
    };
    let sql = select_vectors(r, vectors)?;
    let _as = As::owner(r.owner());
    Spi::connect(|client| {
        let mut found = BTreeMap::new();
        let statement = Statement::kept(&sql, Finds::ByKey);
        for row in statement.select(client, &[items.to_vec().into()])? {
            if let (Some(item), Some(vector)) = (row.get::<String>(1)?, row.get::<Numbers>(2)?) {
                found.insert(item, vector.0);
            }
        }
        Ok(found)
    })
}

/// The items `$1` that have vectors, and these.
fn select_vectors(r: &Recommender, vectors: &Vectors) -> Result<String> {
    let (item, schema) = (r.item_key()?, &vectors.schema);
    Ok(format!(
        "SELECT v.{key}::text, v.embedding::{schema}.vector
           FROM (SELECT DISTINCT given::{kind} AS item_id FROM pg_catalog.unnest($1::text[]) AS given) g
           JOIN {relation} v ON v.{key} {equals} g.item_id",
        key = vectors.key,
        kind = item.type_name,
        relation = vectors.relation,
        equals = item.equals,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DECAY: Decay = Decay {
        half_life_s: 10.0,
        half_life_rank: Some(2.0),
    };

    fn at(place: f64, age_s: f64, weight: f64, vector: [f32; 2]) -> Interaction {
        Interaction {
            place,
            age_s,
            weight,
            vector: Some(Numbers(vector.to_vec())),
        }
    }

    #[test]
    fn half_is_left_after_each_half_life() {
        assert_eq!(DECAY.factor(0.0, 0.0), 1.0);
        assert_eq!(DECAY.factor(20.0, 0.0), 0.25);
        assert_eq!(DECAY.factor(10.0, 2.0), 0.25);
        assert_eq!(DECAY.factor(f64::NAN, 0.0), 1.0);
        let without_rank = Decay {
            half_life_rank: None,
            ..DECAY
        };
        assert_eq!(without_rank.factor(0.0, 50.0), 1.0);
    }

    #[test]
    fn it_is_the_weighted_mean_and_dislikes_push_away() {
        let history = [
            at(0.0, 0.0, 3.0, [1.0, 0.0]),
            at(0.0, 10.0, 2.0, [0.0, 1.0]),
        ];
        assert_eq!(
            of_history(DECAY, &history, &[], None),
            Some(vec![0.75, 0.25])
        );
        let disliked = [
            at(0.0, 0.0, 1.0, [1.0, 0.0]),
            at(0.0, 0.0, -1.0, [0.0, 1.0]),
        ];
        assert_eq!(
            of_history(DECAY, &disliked, &[], None),
            Some(vec![0.5, -0.5])
        );
        let session = [Numbers(vec![0.0, 1.0])];
        assert_eq!(
            of_history(DECAY, &[at(0.0, 0.0, 5.0, [1.0, 0.0])], &session, None),
            Some(vec![0.5, 0.5])
        );
    }

    #[test]
    fn what_a_user_is_like_counts_as_three_of_their_usual_interactions_and_as_all_there_is_without_any()
     {
        let prior = Numbers(vec![0.0, 1.0]);
        let of = |history: &[Interaction], session: &[Numbers]| {
            of_history(DECAY, history, session, Some(&prior))
        };
        assert_eq!(of(&[], &[]), Some(vec![0.0, 1.0]));
        let one = [at(0.0, 0.0, 7.0, [1.0, 0.0])];
        assert_eq!(of(&one, &[]), Some(vec![0.25, 0.75]));
        // Of weight 5 on average, though one has faded and the other is disliked: 5 and -5 / 4 beside 15.
        let two = [
            at(0.0, 0.0, 5.0, [1.0, 0.0]),
            at(2.0, 10.0, -5.0, [0.0, 1.0]),
        ];
        let sum = 5.0 + 1.25 + 15.0;
        let expected = [5.0 / sum, (15.0 - 1.25) / sum].map(|number| number as f32);
        assert_eq!(of(&two, &[]), Some(expected.to_vec()));
        // Items of the session count as the weightiest.
        let session = [Numbers(vec![1.0, 0.0])];
        assert_eq!(of(&[], &session), Some(vec![0.25, 0.75]));
        let zeros = [at(0.0, 0.0, 0.0, [1.0, 0.0])];
        assert_eq!(of(&zeros, &session), Some(vec![0.25, 0.75]));
        let light_and_heavy = [at(0.0, 0.0, 2.0, [1.0, 0.0]), at(0.0, 0.0, 4.0, [1.0, 0.0])];
        let expected = [(0.5 + 1.0 + 1.0) / 4.75, 2.25 / 4.75].map(|number: f64| number as f32);
        assert_eq!(of(&light_and_heavy, &session), Some(expected.to_vec()));
    }

    #[test]
    fn what_comes_to_nothing_has_no_direction() {
        assert_eq!(of_history(DECAY, &[], &[], None), None);
        let opposite = [
            at(0.0, 0.0, 1.0, [1.0, 0.0]),
            at(0.0, 0.0, -1.0, [1.0, 0.0]),
        ];
        assert_eq!(of_history(DECAY, &opposite, &[], None), None);
        assert_eq!(
            of_history(DECAY, &[at(0.0, 0.0, 0.0, [1.0, 0.0])], &[], None),
            None
        );
    }
}
