//! What is kept for a recommender, brought in step with rows of its interactions: each interaction, the users and
//! the heat of each item, the users that each two items have in common.
//!
//! It never adds up what it has not seen: the items of a user are read before and after, and the difference counts.
//! So a correction, a deletion or a change that comes twice is right by itself.
//!
//! *Heat* is popularity that decays: the logarithm to base 2 of the sum of weight × 2^(time / half-life). As time
//! passes all of it decays alike, and nothing has to be written (forward decay: Cormode, Shkapenyuk, Srivastava,
//! Xu, ICDE 2009).

use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::{SpiClient, SpiTupleTable};
use std::collections::{BTreeMap, BTreeSet};

// The vectors of users' interests.
mod interests;

// Users of items, and of two items.
mod pairs;

// Items that have got another vector.
mod revised;

use crate::capture::json::KEY_SETTINGS;
use crate::catalog::names::select_one;
use crate::catalog::recommender::{Recommender, tables};
use crate::catalog::rights::{As, with_settings};
use crate::dispatch::queue::Job;
use crate::dispatch::render::{given, key_arguments, keyed, names};
use crate::error::Result;
use crate::statement::Statement;
pub use interests::{AT_ONCE, Interests};
use pairs::{Deltas, Sets};

/// Interactions whose row is gone, taken at once.
const ORPHANS: usize = 1_000;

/// An interaction as text: user, item, time, weight, seen.
type Interaction = [String; 5];

/// Interactions by their jobs' numbers.
pub type Rows = BTreeMap<usize, Interaction>;

/// The statements of one recommender; made anew when its declaration changes.
pub struct Keeper {
    recommender: Recommender,
    rows: Statement,
    kept: Statement,
    remove: Statement,
    write: Statement,
    sets: Statement,
    pairs: Statement,
    remove_pairs: Statement,
    items: Statement,
    remove_items: Statement,
    orphans: Statement,
    /// Where the items have vectors.
    pub interests: Option<Interests>,
}

impl Keeper {
    /// # Errors
    /// Where its tables are not there.
    pub fn new(recommender: &Recommender) -> Result<Keeper> {
        let r = recommender;
        let (keys, item, user) = (r.keys(), r.item_key()?, r.user_key()?);
        let (item_type, user_type) = (&item.type_name, &user.type_name);
        let source = r.rows_of.as_deref().unwrap_or_default();
        let (interactions, items) = (tables::interactions(r.id), tables::items(r.id));
        let pairs = tables::pairs(r.id);
        let count = keys.len();
        let (given_keys, key_names) = (given(count, ""), names(count));
        let on_kept = keyed(keys, "e", |key| &key.stored, "k");
        let stored: Vec<&str> = keys.iter().map(|key| key.stored.as_str()).collect();
        let texts: Vec<String> = stored.iter().map(|key| format!("e.{key}::text")).collect();
        let values: Vec<String> = keys
            .iter()
            .enumerate()
            .map(|(n, key)| format!("(v.k{})::{}", n + 1, key.type_name))
            .collect();
        let same: Vec<String> = keys
            .iter()
            .map(|key| format!("s.{} {} e.{}", key.column, key.equals, key.stored))
            .collect();
        let latest_first: Vec<String> = stored.iter().map(|key| format!("e.{key} DESC")).collect();
        let (stored, latest_first) = (stored.join(", "), latest_first.join(", "));
        let five: Vec<String> = (count + 1..=count + 5)
            .map(|n| format!(", pg_catalog.unnest(${n}::text[])"))
            .collect();
        Ok(Keeper {
            // The expressions are nowhere but in what is selected: they are run for these rows only.
            rows: Statement::by_key(format!(
                "SELECT k.i::int4, ({})::text, (({})::{item_type})::text, ({})::timestamptz::text, ({})::float8::text, COALESCE({}, false)::text
                   FROM {given_keys} WITH ORDINALITY AS k ({key_names}, i) JOIN {source} s ON {}",
                r.user_expression,
                r.item_expression,
                r.at_expression,
                r.weight,
                r.seen,
                keyed(keys, "s", |key| &key.column, "k"),
            )),
            kept: Statement::by_key(format!(
                "SELECT k.i::int4, e.user_id::text, e.item_id::text, e.at::text, e.weight::text, e.seen::text
                   FROM {given_keys} WITH ORDINALITY AS k ({key_names}, i) JOIN {interactions} e ON {on_kept}"
            )),
            remove: Statement::by_key(format!(
                "DELETE FROM {interactions} e USING {given_keys} AS k ({key_names}) WHERE {on_kept}"
            )),
            write: Statement::by_key(format!(
                "INSERT INTO {interactions} ({stored}, user_id, item_id, at, weight, seen)
                 SELECT {}, (v.u)::{user_type}, (v.item)::{item_type}, (v.at)::timestamptz, (v.weight)::float8, (v.seen)::boolean
                   FROM {} AS v ({key_names}, u, item, at, weight, seen)
                     ON CONFLICT ({stored}) DO UPDATE SET user_id = excluded.user_id, item_id = excluded.item_id,
                        at = excluded.at, weight = excluded.weight, seen = excluded.seen",
                values.join(", "),
                given(count, &five.concat()),
            )),
            // Weights are added as numeric: whether they come to more than 0 must not depend on their order.
            sets: Statement::by_key(format!(
                "SELECT u.user_id::text, x.item_id::text
                   FROM (SELECT DISTINCT given::{user_type} AS user_id FROM pg_catalog.unnest($1::text[]) AS given) u
                  CROSS JOIN LATERAL (
                        SELECT h.item_id
                          FROM (SELECT e.item_id, e.weight FROM {interactions} e WHERE e.user_id {} u.user_id
                                 ORDER BY e.at DESC, {latest_first} LIMIT {}) h
                         GROUP BY h.item_id HAVING pg_catalog.sum(h.weight::numeric) > 0) x",
                user.equals, r.history,
            )),
            pairs: Statement::by_key(format!(
                "INSERT INTO {pairs} AS p (item_id, other_id, users)
                 SELECT (v.item)::{item_type}, (v.other)::{item_type}, pg_catalog.sum(v.users)
                   FROM ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[]), pg_catalog.unnest($3::int4[])) AS v (item, other, users)
                  GROUP BY 1, 2 HAVING pg_catalog.sum(v.users) <> 0 ORDER BY 1, 2
                     ON CONFLICT (item_id, other_id) DO UPDATE SET users = p.users + excluded.users"
            )),
            remove_pairs: Statement::by_key(format!(
                "DELETE FROM {pairs} p USING ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[])) AS v (item, other)
                  WHERE p.item_id {equals} (v.item)::{item_type} AND p.other_id {equals} (v.other)::{item_type} AND p.users <= 0",
                equals = item.equals,
            )),
            items: Statement::by_key(format!(
                "INSERT INTO {items} AS t (item_id, users, interactions, heat)
                 SELECT g.item_id, g.users, h.interactions, h.heat
                   FROM (SELECT (v.item)::{item_type} AS item_id, pg_catalog.sum(v.users) AS users
                           FROM ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::int4[])) AS v (item, users) GROUP BY 1) g
                  CROSS JOIN LATERAL (
                        SELECT pg_catalog.count(*) AS interactions,
                               pg_catalog.max(w.most) + pg_catalog.ln(pg_catalog.sum(pg_catalog.power(2::float8, GREATEST(w.share - w.most, -1000)))) / pg_catalog.ln(2::float8) AS heat
                          FROM (SELECT c.share, pg_catalog.max(c.share) OVER () AS most
                                  FROM (SELECT CASE WHEN e.weight > 0 THEN extract(epoch FROM e.at)::float8 / {half_life}::float8 + pg_catalog.ln(e.weight) / pg_catalog.ln(2::float8) END AS share
                                          FROM {interactions} e WHERE e.item_id {equals} g.item_id) c) w) h
                  ORDER BY g.item_id
                     ON CONFLICT (item_id) DO UPDATE SET users = t.users + excluded.users, interactions = excluded.interactions, heat = excluded.heat",
                half_life = r.half_life_s,
                equals = item.equals,
            )),
            remove_items: Statement::by_key(format!(
                "DELETE FROM {items} t WHERE t.item_id {} ANY ($1::text[]::{item_type}[]) AND t.interactions = 0",
                item.equals,
            )),
            orphans: Statement::planned_each_time(format!(
                "SELECT ARRAY[{}] FROM {interactions} e WHERE NOT EXISTS (SELECT FROM {source} s WHERE {}) LIMIT {ORPHANS}",
                texts.join(", "),
                same.join(" AND "),
            )),
            interests: Interests::of(r)?,
            recommender: r.clone(),
        })
    }

    /// What rows of the interactions are now, as the owner of the items. One without a user, an item, a time or a
    /// weight is none.
    pub fn read(&self, jobs: &[Job]) -> Result<Rows> {
        let _as = As::owner(self.recommender.owner());
        let mut rows = Spi::connect(|client| {
            by_number(self.rows.select(client, &key_arguments(jobs.iter()))?)
        })?;
        rows.retain(|_, [_, _, at, weight, _]| {
            !at.ends_with("infinity") && weight.parse().is_ok_and(f64::is_finite)
        });
        Ok(rows)
    }

    /// Brings what is kept in step with the jobs' rows, as the owner of the items. A row that is not in `rows` is none.
    /// Whose interactions have changed.
    pub fn keep(&self, jobs: &[Job], rows: Rows) -> Result<Vec<String>> {
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        let _as = As::owner(self.recommender.owner());
        Spi::connect_mut(|client| self.keep_with(client, jobs, rows))
    }

    fn keep_with(
        &self,
        client: &mut SpiClient,
        jobs: &[Job],
        mut rows: Rows,
    ) -> Result<Vec<String>> {
        let mut kept = by_number(self.kept.select(client, &key_arguments(jobs.iter()))?)?;
        let gone: Vec<usize> = kept
            .keys()
            .filter(|number| !rows.contains_key(number))
            .copied()
            .collect();
        rows.retain(|number, row| kept.get(number) != Some(row));
        kept.retain(|number, _| rows.contains_key(number) || gone.contains(number));
        if rows.is_empty() && kept.is_empty() {
            return Ok(Vec::new());
        }
        let touched = || kept.values().chain(rows.values());
        let users: BTreeSet<&String> = touched().map(|[user, ..]| user).collect();
        let users: Vec<String> = users.into_iter().cloned().collect();
        let before = self.sets(client, &users)?;
        self.write(client, jobs, &gone, &rows)?;
        let after = self.sets(client, &users)?;
        let mut deltas = Deltas::between(&before, &after);
        for [_, item, ..] in touched() {
            deltas.items.entry(item).or_insert(0); // its heat has changed
        }
        self.count(client, &deltas)?;
        if let Some(interests) = &self.interests {
            interests.outdate(client, &users)?;
        }
        Ok(users)
    }

    fn write(
        &self,
        client: &mut SpiClient,
        jobs: &[Job],
        gone: &[usize],
        rows: &Rows,
    ) -> Result<()> {
        let of = |number: &usize| jobs.get(*number);
        if !gone.is_empty() {
            let keys = key_arguments(gone.iter().filter_map(of));
            self.remove.update(client, &keys)?;
        }
        if !rows.is_empty() {
            let mut arguments = key_arguments(rows.keys().filter_map(of));
            for column in 0..5 {
                let values = rows.values().filter_map(|row| row.get(column).cloned());
                arguments.push(values.collect::<Vec<String>>().into());
            }
            self.write.update(client, &arguments)?;
        }
        Ok(())
    }

    /// The items of these users, of their last interactions.
    fn sets(&self, client: &mut SpiClient, users: &[String]) -> Result<Sets> {
        let mut sets = Sets::new();
        // Not `select`, which would not see what was written a moment ago.
        for row in self.sets.update(client, &[users.to_vec().into()])? {
            if let (Some(user), Some(item)) = (row.get::<String>(1)?, row.get::<String>(2)?) {
                sets.entry(user).or_default().insert(item);
            }
        }
        Ok(sets)
    }

    fn count(&self, client: &mut SpiClient, deltas: &Deltas) -> Result<()> {
        let owned = |items: &mut dyn Iterator<Item = &&str>| -> DatumWithOid<'static> {
            items
                .map(|item| (*item).to_owned())
                .collect::<Vec<String>>()
                .into()
        };
        let items = || owned(&mut deltas.items.keys());
        let users: Vec<i32> = deltas.items.values().copied().collect();
        self.items.update(client, &[items(), users.into()])?;
        self.remove_items.update(client, &[items()])?;
        if !deltas.pairs.is_empty() {
            let users: Vec<i32> = deltas.pairs.values().copied().collect();
            let arguments = [
                owned(&mut deltas.pairs.keys().map(|(item, _)| item)),
                owned(&mut deltas.pairs.keys().map(|(_, other)| other)),
                users.into(),
            ];
            self.pairs.update(client, &arguments)?;
        }
        let fewer = || deltas.pairs.iter().filter(|(_, users)| **users < 0);
        if fewer().next().is_some() {
            let arguments = [
                owned(&mut fewer().map(|((item, _), _)| item)),
                owned(&mut fewer().map(|((_, other), _)| other)),
            ];
            self.remove_pairs.update(client, &arguments)?;
        }
        Ok(())
    }

    /// Keys of kept interactions whose row is gone; not all of them at once.
    pub fn orphans(&self) -> Result<Vec<Vec<String>>> {
        let _as = As::owner(self.recommender.owner());
        with_settings(KEY_SETTINGS, || {
            Spi::connect(|client| {
                let rows = self.orphans.select(client, &[])?;
                rows.map(|row| Ok(row.get::<Vec<String>>(1)?.unwrap_or_default()))
                    .collect()
            })
        })
    }

    /// Where the interactions are empty, so is everything. True then.
    pub fn empty(&self) -> Result<bool> {
        let r = &self.recommender;
        let _as = As::owner(r.owner());
        let source = r.rows_of.as_deref().unwrap_or_default();
        let some = select_one::<bool>(&format!("SELECT EXISTS (SELECT FROM {source})"), &[])?;
        if some != Some(false) {
            return Ok(false);
        }
        let mut all = vec![
            tables::interactions(r.id),
            tables::items(r.id),
            tables::pairs(r.id),
        ];
        all.extend(self.interests.as_ref().map(|_| tables::interests(r.id)));
        for table in all {
            Spi::run(&format!("DELETE FROM {table}"))?;
        }
        Ok(true)
    }
}

/// Rows of a job's number (from 1) and an interaction, by the numbers from 0; those without a NULL.
fn by_number(rows: SpiTupleTable) -> Result<Rows> {
    let mut found = Rows::new();
    for row in rows {
        let number = row.get::<i32>(1)?.unwrap_or(1) as usize - 1;
        let values = (2..=6).map(|column| Ok(row.get::<String>(column)?));
        let values = values.collect::<Result<Option<Vec<String>>>>()?;
        if let Some(Ok(interaction)) = values.map(Interaction::try_from) {
            found.insert(number, interaction);
        }
    }
    Ok(found)
}
