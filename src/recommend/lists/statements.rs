//! What is asked as the owner of the items: candidates in order, each with score and reason.
//!
//! It never holds a value of a caller's but numbers: $1 is the user or item, $2 the items of the session, $3 whether what
//! was seen is left out, $4 the items nearest to the user's interests, $5 the user's factors, $6 what has been looked at,
//! or what chance begins with.

use super::learnt;
use crate::catalog::recommender::{Recommender, tables};
use crate::error::Result;
use crate::recommend::likeness;
use serde_json::{Map, Value};

/// Neighbours of one item that count.
const NEIGHBOURS: usize = 20;
/// Candidates of one source.
pub const MOST: usize = 200;
/// Of which the latest are taken: no source reads all items.
const NEWEST: usize = 200;
/// Reciprocal-rank fusion: a source adds weight / (60 + place) (Cormack, Clarke, Büttcher, SIGIR 2009).
pub const FUSION: f64 = 60.0;
/// What candidates come from.
pub const SOURCES: usize = 6;
/// What each counts was chosen on the validation cuts of benches/README.md, but for interests: whatever popularity adds to
/// a list made of what the user likes makes it worse, so that it counts where nothing else is known.
const WEIGHTS: [(&str, f64); SOURCES] = [
    ("ease", 1.0),
    ("neighbours", 0.2),
    ("als", 0.1),
    ("interest", 0.2),
    ("popular", 0.01),
    ("latest", 0.003),
];
/// Of an item, the interactions of the user's that say most why it is listed.
const BECAUSE: usize = 3;

/// What a place that a source gave adds to the score.
pub fn share(source: &str, place: u64) -> Option<f64> {
    let (_, weight) = WEIGHTS.iter().find(|(name, _)| *name == source)?;
    Some(weight / (FUSION + place as f64))
}

/// The source that has added most to the score of an item, by its reason; of an item that was tried out, or is of the
/// rest, that. `None`: the reason names none.
pub fn main_source(reason: &Value) -> Option<&'static str> {
    const APART: [&str; 2] = ["explored", "rest"];
    let reason = reason.as_object()?;
    let apart = APART
        .into_iter()
        .find(|source| reason.contains_key(*source));
    let shares = WEIGHTS.iter().filter_map(|(source, _)| {
        let place = reason.get(*source)?.as_u64()?;
        Some((*source, share(source, place)?))
    });
    // The first of those that have added the same.
    let most = shares.reduce(|most, other| if other.1 > most.1 { other } else { most });
    apart.or(most.map(|(source, _)| source))
}

/// The same as SQL, of a jsonb.
pub fn main_source_of(reason: &str) -> String {
    let weights = WEIGHTS.iter().enumerate();
    let weights: Vec<String> = weights
        .map(|(n, (source, weight))| format!("({n}, '{source}', {weight})"))
        .collect();
    format!(
        "CASE WHEN pg_catalog.jsonb_typeof({reason}) <> 'object' THEN NULL
              WHEN {reason} ? 'explored' THEN 'explored' WHEN {reason} ? 'rest' THEN 'rest'
              ELSE (SELECT w.source FROM (VALUES {}) AS w (n, source, weight)
                     WHERE pg_catalog.jsonb_typeof({reason} -> w.source) = 'number'
                     ORDER BY w.weight / ({FUSION} + GREATEST(({reason} ->> w.source)::numeric, 0)) DESC, w.n LIMIT 1) END",
        weights.join(", ")
    )
}

/// Which place each source gave an item, from the places of [`recommend`].
pub fn reason(places: Vec<Option<i32>>) -> Value {
    let given = places_by_source(&places);
    let given = given.map(|(source, place)| (source.to_owned(), place.into()));
    Value::Object(given.collect::<Map<_, _>>())
}

pub fn places_by_source(places: &[Option<i32>]) -> impl Iterator<Item = (&'static str, i32)> {
    let sources = WEIGHTS.iter().map(|(source, _)| *source);
    sources
        .zip(places)
        .filter_map(|(source, place)| Some((source, (*place)?)))
}

/// What candidates of a recommender may come from.
pub fn sources(r: &Recommender) -> Vec<&'static str> {
    let trained = |name: &str| r.learning.models().any(|model| model.name() == name);
    let has = |name: &str| match name {
        "neighbours" => r.learning.has_neighbours(),
        "ease" | "als" => trained(name),
        "interest" => r.vectors.is_some(),
        _ => true,
    };
    let names = WEIGHTS.iter().map(|(name, _)| *name);
    names.filter(|name| has(name)).collect()
}

/// The parts that all statements are made of.
pub struct Parts {
    interactions: String,
    items: String,
    neighbours: String,
    /// The items' rows.
    pub rows: String,
    pub key: String,
    pub kind: String,
    pub equals: String,
}

impl Parts {
    pub fn new(r: &Recommender) -> Result<Parts> {
        let key = r.item_key()?;
        Ok(Parts {
            interactions: r.interactions(),
            items: tables::items(r.of),
            neighbours: tables::neighbours(r.of),
            rows: r.items_rows.clone().unwrap_or_default(),
            key: format!("s.{}", key.column),
            kind: key.type_name.clone(),
            equals: key.equals.clone(),
        })
    }

    /// Items of the user's last interactions and of the session, with weights and what `more` says of them.
    pub fn seeds(&self, r: &Recommender, more: [&str; 3]) -> Result<String> {
        let user = r.user_key()?;
        let [of_interactions, of_items, of_session] = more;
        Ok(format!(
            "history AS MATERIALIZED (
           SELECT e.item_id, pg_catalog.max(e.at) AS at, pg_catalog.min(e.place) AS place, pg_catalog.sum(e.weight::numeric)::float8 AS weight{of_interactions}
             FROM (SELECT e.*, pg_catalog.row_number() OVER (ORDER BY e.at DESC, {latest_first}) AS place FROM {interactions} e WHERE e.user_id {user_equals} $1::{user_type}
                    ORDER BY e.at DESC, {latest_first} LIMIT {history}) e
            GROUP BY e.item_id HAVING pg_catalog.sum(e.weight::numeric) > 0
         ), seeds AS MATERIALIZED (
           SELECT h.item_id, h.weight / pg_catalog.max(h.weight) OVER ()
                  * {fading} AS weight{of_items}
             FROM history h
            UNION ALL SELECT DISTINCT given::{kind}, 1{of_session} FROM pg_catalog.unnest($2::text[]) AS given
         )",
            interactions = self.interactions,
            user_equals = user.equals,
            user_type = user.type_name,
            latest_first = r.latest_first(),
            history = r.history,
            fading = learnt::fading(r),
            kind = self.kind,
        ))
    }

    /// Items that must not be listed.
    pub fn hidden(&self, r: &Recommender) -> Result<String> {
        let user = r.user_key()?;
        let recently = r.seen_for_s.map_or_else(String::new, |seconds| {
            format!(
                " AND e.at > pg_catalog.now() - pg_catalog.make_interval(secs => {seconds}::float8)"
            )
        });
        Ok(format!(
            "hidden AS MATERIALIZED (
               SELECT e.item_id FROM {} e WHERE $3 AND e.seen AND e.user_id {} $1::{}{recently}
                UNION SELECT given::{} FROM pg_catalog.unnest($2::text[]) AS given WHERE $3)",
            self.interactions, user.equals, user.type_name, self.kind,
        ))
    }

    /// Of the items' rows: that they may be listed. What is hidden is looked up by hash, and leaves an order as it is.
    pub fn open(&self, r: &Recommender) -> String {
        format!(
            "({}) AND NOT {} {} ANY (SELECT h.item_id FROM hidden h)",
            r.eligible, self.key, self.equals
        )
    }
}

/// The first neighbours that row `table` lists, each with its likeness.
fn listed(table: &str, most: usize) -> String {
    format!(
        "ROWS FROM (pg_catalog.unnest({table}.others[:{most}]), pg_catalog.unnest({table}.likeness[:{most}]))"
    )
}

/// Neighbours of the user's items and the session's, what is near to the user's interests, the popular, the latest;
/// fused, with the places that the sources gave.
pub fn recommend(r: &Recommender) -> Result<String> {
    let parts = Parts::new(r)?;
    let Parts {
        items,
        neighbours,
        rows,
        key,
        kind,
        equals,
        ..
    } = &parts;
    let by_source = |one: &dyn Fn(&str, f64) -> String, between: &str| {
        let all: Vec<String> = WEIGHTS
            .iter()
            .map(|(source, weight)| one(source, *weight))
            .collect();
        all.join(between)
    };
    let places = by_source(
        &|source, _| {
            format!("pg_catalog.min(l.place) FILTER (WHERE l.source = '{source}') AS {source}")
        },
        ", ",
    );
    let shares = by_source(
        &|source, weight| format!("COALESCE({weight}::float8 / ({FUSION} + l.{source}), 0)"),
        " + ",
    );
    let given = by_source(&|source, _| format!("f.{source}"), ", ");
    // All of them are items' rows already: where nothing of a row counts, it is not read again.
    let live = match r.boost.contains("s.") {
        true => format!(" JOIN {rows} s ON {key} {equals} f.item_id"),
        false => String::new(),
    };
    Ok(format!(
        "WITH {seeds}, {hidden}, near AS (
           SELECT o.other_id AS item_id, pg_catalog.sum(g.weight * o.likeness) AS score
             FROM seeds g JOIN {neighbours} n ON n.item_id {equals} g.item_id
            CROSS JOIN LATERAL {of_seed} AS o (other_id, likeness)
            GROUP BY o.other_id
         ), {learnt}, listed AS (
           {by_users}
           SELECT 'popular' AS source, c.item_id, pg_catalog.row_number() OVER (ORDER BY c.heat DESC, c.item_id DESC) AS place
             FROM (SELECT t.item_id, t.heat FROM {items} t JOIN {rows} s ON {key} {equals} t.item_id
                    WHERE t.heat IS NOT NULL AND {open} ORDER BY t.heat DESC, t.item_id DESC LIMIT {MOST}) c
            UNION ALL
           SELECT 'latest', c.item_id, pg_catalog.row_number() OVER (ORDER BY c.item_id DESC)
             FROM (SELECT {key} AS item_id FROM (SELECT s.* FROM {rows} s ORDER BY {key} DESC LIMIT {NEWEST}) s
                    WHERE NOT EXISTS (SELECT FROM {items} t WHERE t.item_id {equals} {key}) AND {open}) c
            UNION ALL
           SELECT 'interest', n.item::{kind}, n.place FROM pg_catalog.unnest($4::text[]) WITH ORDINALITY AS n (item, place)
         )
         SELECT f.item_id::text, f.score * COALESCE(GREATEST(({boost})::float8, 0), 1), ARRAY[{given}]::int4[]
           FROM (SELECT l.*, ({shares})::float8 AS score FROM (SELECT l.item_id, {places} FROM listed l GROUP BY l.item_id) l) f{live}
          ORDER BY 2 DESC, f.item_id",
        seeds = parts.seeds(r, [""; 3])?,
        of_seed = listed("n", NEIGHBOURS),
        hidden = parts.hidden(r)?,
        open = parts.open(r),
        boost = r.boost,
        learnt = learnt::scored(r, equals)?,
        by_users = learnt::listed(r, &parts),
    ))
}

/// Every item that may be listed and has not been looked at: the popular, then the latest. Each is read as far as it
/// is needed.
pub fn rests(r: &Recommender) -> Result<[String; 2]> {
    let parts = Parts::new(r)?;
    let Parts {
        items,
        rows,
        key,
        kind,
        equals,
        ..
    } = &parts;
    let (hidden, open) = (parts.hidden(r)?, parts.open(r));
    let given = format!(
        "given AS MATERIALIZED (SELECT given::{kind} AS item_id FROM pg_catalog.unnest($6::text[]) AS given)"
    );
    Ok([
        format!(
            "WITH {hidden}, {given}
             SELECT {key}::text, 0::float8, NULL::int4[] FROM {items} t JOIN {rows} s ON {key} {equals} t.item_id
              WHERE t.heat IS NOT NULL AND {open} AND NOT {key} {equals} ANY (SELECT g.item_id FROM given g)
              ORDER BY t.heat DESC, t.item_id DESC"
        ),
        format!(
            "WITH {hidden}, {given}
             SELECT {key}::text, 0::float8, NULL::int4[] FROM {rows} s
              WHERE NOT EXISTS (SELECT FROM {items} t WHERE t.item_id {equals} {key} AND t.heat IS NOT NULL)
                AND {open} AND NOT {key} {equals} ANY (SELECT g.item_id FROM given g)
              ORDER BY {key} DESC"
        ),
    ])
}

/// The neighbours that are kept of an item, the most alike first.
pub fn similar(r: &Recommender) -> Result<String> {
    let parts = Parts::new(r)?;
    let Parts {
        neighbours,
        rows,
        key,
        kind,
        equals,
        ..
    } = &parts;
    Ok(format!(
        "SELECT o.other_id::text, o.likeness::float8, NULL::int4[]
           FROM {neighbours} n
          CROSS JOIN LATERAL ROWS FROM (pg_catalog.unnest(n.others), pg_catalog.unnest(n.likeness)) WITH ORDINALITY AS o (other_id, likeness, place)
           JOIN {rows} s ON {key} {equals} o.other_id
          WHERE n.item_id {equals} $1::{kind} AND ({eligible})
          ORDER BY o.place",
        eligible = r.eligible,
    ))
}

/// All others that have users in common with an item: more than are kept.
pub fn similar_rest(r: &Recommender) -> Result<String> {
    let parts = Parts::new(r)?;
    let Parts {
        items,
        rows,
        key,
        kind,
        equals,
        ..
    } = &parts;
    Ok(format!(
        "WITH given AS MATERIALIZED (SELECT given::{kind} AS item_id FROM pg_catalog.unnest($2::text[]) AS given)
         SELECT l.other_id::text, l.likeness, NULL::int4[]
           FROM {items} a CROSS JOIN LATERAL ({counted}) l JOIN {rows} s ON {key} {equals} l.other_id
          WHERE a.item_id {equals} $1::{kind} AND ({eligible}) AND NOT EXISTS (SELECT FROM given g WHERE g.item_id {equals} l.other_id)
          ORDER BY l.likeness DESC, l.other_id",
        counted = likeness::counted(r)?,
        eligible = r.eligible,
    ))
}

/// The most popular items; the rest is in [`rests`].
pub fn popular(r: &Recommender) -> Result<String> {
    let parts = Parts::new(r)?;
    let Parts {
        items,
        rows,
        key,
        equals,
        ..
    } = &parts;
    Ok(format!(
        "WITH {hidden}
         SELECT c.item_id::text, pg_catalog.power(2::float8, GREATEST(c.heat - pg_catalog.max(c.heat) OVER (), -1000)), NULL::int4[]
           FROM (SELECT t.item_id, t.heat FROM {items} t JOIN {rows} s ON {key} {equals} t.item_id
                  WHERE t.heat IS NOT NULL AND {open} ORDER BY t.heat DESC, t.item_id DESC LIMIT {MOST}) c
          ORDER BY c.heat DESC, c.item_id DESC",
        hidden = parts.hidden(r)?,
        open = parts.open(r),
    ))
}

/// The most popular by what has happened in the last `seconds`.
pub fn popular_since(r: &Recommender, seconds: f64) -> Result<String> {
    let parts = Parts::new(r)?;
    let Parts {
        interactions,
        rows,
        key,
        equals,
        ..
    } = &parts;
    Ok(format!(
        "WITH {hidden}, recent AS (
           SELECT e.item_id, pg_catalog.sum(e.weight * pg_catalog.power(2::float8, GREATEST(extract(epoch FROM e.at - pg_catalog.now())::float8 / {half_life}::float8, -1000))) AS heat
             FROM {interactions} e
            WHERE e.weight > 0 AND e.at >= pg_catalog.now() - pg_catalog.make_interval(secs => {seconds}::float8) GROUP BY e.item_id)
         SELECT c.item_id::text, c.heat / pg_catalog.max(c.heat) OVER (), NULL::int4[]
           FROM (SELECT t.item_id, t.heat FROM recent t JOIN {rows} s ON {key} {equals} t.item_id
                  WHERE t.heat > 0 AND {open} ORDER BY t.heat DESC, t.item_id DESC LIMIT {MOST}) c
          ORDER BY c.heat DESC, c.item_id DESC",
        hidden = parts.hidden(r)?,
        half_life = r.half_life_s,
        open = parts.open(r),
    ))
}

/// Items to try out: of the latest and the least popular, by chance, the likelier the fewer interactions they have
/// (weighted sampling: Efraimidis, Spirakis, Information Processing Letters 97, 2006).
pub fn explore(r: &Recommender) -> Result<String> {
    let parts = Parts::new(r)?;
    let Parts {
        items,
        rows,
        key,
        equals,
        ..
    } = &parts;
    Ok(format!(
        "WITH {hidden}, pool AS (
           (SELECT {key} AS item_id FROM {rows} s ORDER BY {key} DESC LIMIT {NEWEST})
            UNION (SELECT t.item_id FROM {items} t WHERE t.heat IS NOT NULL ORDER BY t.heat, t.item_id LIMIT {MOST}))
         SELECT c.item_id::text, 0::float8, NULL::int4[]
           FROM (SELECT p.item_id,
                        -pg_catalog.ln(1 - ((pg_catalog.hashtextextended(p.item_id::text, $6) >> 12)::float8 / 4503599627370496 + 0.5))
                        * (1 + COALESCE(t.interactions, 0)) AS wait
                   FROM pool p JOIN {rows} s ON {key} {equals} p.item_id LEFT JOIN {items} t ON t.item_id {equals} p.item_id
                  WHERE {open}) c
          ORDER BY c.wait, c.item_id",
        hidden = parts.hidden(r)?,
        open = parts.open(r),
    ))
}

/// Why these items ($3) are listed: of each, its boost and the user's items that it is a neighbour of, with the key of
/// the latest interaction, which the session's have not.
pub fn explain(r: &Recommender) -> Result<String> {
    let parts = Parts::new(r)?;
    let Parts {
        neighbours,
        rows,
        key,
        kind,
        equals,
        ..
    } = &parts;
    let row = format!(
        ", (pg_catalog.array_agg({} ORDER BY e.at DESC))[1] AS row",
        r.row_key()
    );
    Ok(format!(
        "WITH {seeds}
         SELECT c.n::int4, COALESCE(GREATEST(({boost})::float8, 0), 1), n.item_id::text, n.weight, n.likeness, n.row
           FROM pg_catalog.unnest($3::text[]) WITH ORDINALITY AS c (item, n) JOIN {rows} s ON {key} {equals} (c.item)::{kind}
           LEFT JOIN LATERAL (
                SELECT g.item_id, g.weight, o.likeness::float8 AS likeness, g.row
                  FROM seeds g JOIN {neighbours} k ON k.item_id {equals} g.item_id
                 CROSS JOIN LATERAL {listed} AS o (other_id, likeness)
                 WHERE o.other_id {equals} {key}
                 ORDER BY g.weight * o.likeness DESC, g.item_id LIMIT {BECAUSE}) n ON true
          ORDER BY c.n, n.weight * n.likeness DESC, n.item_id",
        seeds = parts.seeds(r, [&row, ", h.row", ", NULL::jsonb"])?,
        boost = r.boost,
        listed = listed("k", NEIGHBOURS),
    ))
}
