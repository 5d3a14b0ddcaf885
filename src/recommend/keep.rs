//! What is kept for a recommender, brought in step with rows of its interactions: each interaction, the users and
//! the heat of each item, the neighbours of each item.
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

// The items of users, before and after.
mod sets;

// The items that are alike.
pub mod neighbours;

// All of it counted at once.
pub mod bulk;

// The vectors of users' interests.
mod interests;

// Items that have got another vector.
mod revised;

// Lists that are ready for users, until they are not right any more.
mod ready;

use crate::capture::json::KEY_SETTINGS;
use crate::catalog::names::select_one;
use crate::catalog::recommender::{Recommender, tables};
use crate::catalog::rights::{As, with_settings};
use crate::dispatch::queue::Job;
use crate::dispatch::render::{given, key_arguments, keyed, names};
use crate::error::Result;
use crate::recommend::likeness;
use crate::statement::Statement;
pub use interests::{AT_ONCE, Interests};
use neighbours::Neighbours;
use ready::Ready;
use sets::{Changes, Sets};

/// Interactions whose row is gone, taken at once.
const ORPHANS: usize = 1_000;

/// An interaction as text: user, item, time, weight, seen.
type Interaction = [String; 5];

/// Interactions by their jobs' numbers.
pub type Rows = BTreeMap<usize, Interaction>;

/// An interaction's share of its item's heat.
fn share(r: &Recommender) -> String {
    format!(
        "CASE WHEN e.weight > 0 THEN extract(epoch FROM e.at)::float8 / {}::float8 + pg_catalog.ln(e.weight) / pg_catalog.ln(2::float8) END",
        r.half_life_s
    )
}

/// What shares come to, of which `most` is the greatest.
const HEAT: &str = "pg_catalog.max(w.most) + pg_catalog.ln(pg_catalog.sum(pg_catalog.power(2::float8, GREATEST(w.share - w.most, -1000)))) / pg_catalog.ln(2::float8)";

/// The statements of one recommender; made anew when its declaration changes.
pub struct Keeper {
    recommender: Recommender,
    rows: Statement,
    kept: Statement,
    remove: Statement,
    write: Statement,
    sets: Statement,
    add_to_items: Statement,
    items: Statement,
    remove_items: Statement,
    neighbours: Neighbours,
    orphans: Statement,
    ready: Ready,
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
        let (interactions, items) = (tables::interactions(r.id), tables::items(r.of));
        let all = r.interactions();
        let (share, sum) = (share(r), HEAT);
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
        let stored = stored.join(", ");
        let five: Vec<String> = (count + 1..=count + 5)
            .map(|n| format!(", pg_catalog.unnest(${n}::text[])"))
            .collect();
        Ok(Keeper {
            // The expressions are nowhere but in what is selected: they are run for these rows only.
            rows: Statement::by_key(format!(
                "SELECT k.i::int4, (({})::{user_type})::text, (({})::{item_type})::text, ({})::timestamptz::text, ({})::float8::text, COALESCE({}, false)::text
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
            sets: Statement::by_key(format!(
                "SELECT u.user_id::text, x.item_id::text
                   FROM (SELECT DISTINCT given::{user_type} AS user_id FROM pg_catalog.unnest($1::text[]) AS given) u
                  CROSS JOIN LATERAL ({}) x",
                likeness::set_of_user(r)?,
            )),
            // Items that have only got more: $2 is how many users, $3 to $5 their new interactions.
            add_to_items: Statement::by_key(format!(
                "INSERT INTO {items} AS t (item_id, users, interactions, heat)
                 SELECT g.item_id, g.users, COALESCE(h.interactions, 0), h.heat
                   FROM (SELECT (v.item)::{item_type} AS item_id, pg_catalog.sum(v.users) AS users
                           FROM ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::int4[])) AS v (item, users) GROUP BY 1) g
                   LEFT JOIN (
                        SELECT w.item_id, pg_catalog.count(*) AS interactions, {sum} AS heat
                          FROM (SELECT c.item_id, c.share, pg_catalog.max(c.share) OVER (PARTITION BY c.item_id) AS most
                                  FROM (SELECT (e.item)::{item_type} AS item_id, {share} AS share
                                          FROM (SELECT v.item, v.at::timestamptz AS at, v.weight::float8 AS weight
                                                  FROM ROWS FROM (pg_catalog.unnest($3::text[]), pg_catalog.unnest($4::text[]), pg_catalog.unnest($5::text[])) AS v (item, at, weight)) e) c) w
                         GROUP BY w.item_id) h ON h.item_id {equals} g.item_id
                  ORDER BY g.item_id
                     ON CONFLICT (item_id) DO UPDATE SET users = t.users + excluded.users, interactions = t.interactions + excluded.interactions,
                        heat = CASE WHEN t.heat IS NULL OR excluded.heat IS NULL THEN COALESCE(t.heat, excluded.heat)
                                    ELSE GREATEST(t.heat, excluded.heat)
                                         + pg_catalog.ln(1 + pg_catalog.power(2::float8, GREATEST(-pg_catalog.abs(t.heat - excluded.heat), -1000))) / pg_catalog.ln(2::float8) END",
                equals = item.equals,
            )),
            items: Statement::by_key(format!(
                "INSERT INTO {items} AS t (item_id, users, interactions, heat)
                 SELECT g.item_id, g.users, h.interactions, h.heat
                   FROM (SELECT (v.item)::{item_type} AS item_id, pg_catalog.sum(v.users) AS users
                           FROM ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::int4[])) AS v (item, users) GROUP BY 1) g
                  CROSS JOIN LATERAL (
                        SELECT pg_catalog.count(*) AS interactions, {sum} AS heat
                          FROM (SELECT c.share, pg_catalog.max(c.share) OVER () AS most
                                  FROM (SELECT {share} AS share
                                          FROM {all} e WHERE e.item_id {equals} g.item_id) c) w) h
                  ORDER BY g.item_id
                     ON CONFLICT (item_id) DO UPDATE SET users = t.users + excluded.users, interactions = excluded.interactions, heat = excluded.heat",
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
            neighbours: Neighbours::new(r)?,
            ready: Ready::of(r)?,
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
    /// `counts`: whether what is known of items is in step after that; else all of it is counted later, by
    /// [`bulk::count_anew`]. Whose interactions have changed.
    pub fn keep(&self, jobs: &[Job], rows: Rows, counts: bool) -> Result<Vec<String>> {
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        let _as = As::owner(self.recommender.owner());
        Spi::connect_mut(|client| self.keep_with(client, jobs, rows, counts))
    }

    fn keep_with(
        &self,
        client: &mut SpiClient,
        jobs: &[Job],
        mut rows: Rows,
        counts: bool,
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
        let touched = kept.values().chain(rows.values());
        let users: BTreeSet<&String> = touched.map(|[user, ..]| user).collect();
        let users: Vec<String> = users.into_iter().cloned().collect();
        if counts {
            let before = self.sets(client, &users)?;
            self.write(client, jobs, &gone, &rows)?;
            let after = self.sets(client, &users)?;
            let changes = Changes::between(&before, &after);
            self.count(client, &changes.users, &kept, &rows)?;
            let stale = changes.stale.iter().map(|item| (*item).to_owned());
            self.neighbours.mark(client, stale.collect())?;
        } else {
            self.write(client, jobs, &gone, &rows)?;
        }
        if let Some(interests) = &self.interests {
            interests.outdate(client, &users)?;
        }
        self.ready.remove(client, &users)?;
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

    /// What is known of the items, which have so many users more or fewer. Interactions that are new are added; where
    /// one has changed or is gone, its item's are counted from the beginning: what was added cannot be taken off again.
    fn count(
        &self,
        client: &mut SpiClient,
        users: &BTreeMap<&str, i32>,
        kept: &Rows,
        rows: &Rows,
    ) -> Result<()> {
        let changed = rows.iter().filter(|(number, _)| kept.contains_key(number));
        let changed = kept.values().chain(changed.map(|(_, row)| row));
        let counted: BTreeSet<&str> = changed.map(|[_, item, ..]| item.as_str()).collect();
        let new: Vec<&Interaction> = rows
            .values()
            .filter(|[_, item, ..]| !counted.contains(item.as_str()))
            .collect();
        let mut added: BTreeMap<&str, i32> = new.iter().map(|row| (row[1].as_str(), 0)).collect();
        let others = users.iter().filter(|(item, _)| !counted.contains(*item));
        added.extend(others.map(|(item, users)| (*item, *users)));
        if !added.is_empty() {
            let column = |column: usize| -> DatumWithOid<'static> {
                let values = new.iter().filter_map(|row| row.get(column).cloned());
                values.collect::<Vec<String>>().into()
            };
            let arguments = [
                owned(added.keys().copied()),
                added.into_values().collect::<Vec<i32>>().into(),
                column(1),
                column(2),
                column(3),
            ];
            self.add_to_items.update(client, &arguments)?;
        }
        if !counted.is_empty() {
            let users = counted
                .iter()
                .map(|item| users.get(item).copied().unwrap_or(0));
            let users: Vec<i32> = users.collect();
            let items = || owned(counted.iter().copied());
            self.items.update(client, &[items(), users.into()])?;
            self.remove_items.update(client, &[items()])?;
        }
        Ok(())
    }

    /// Counts some of the lists that are stale. False when there were none.
    pub fn count_some(&mut self) -> Result<bool> {
        let _as = As::owner(self.recommender.owner());
        self.neighbours.count_some()
    }

    /// Lists that were taken to be counted elsewhere are to be counted here. False when there are none.
    pub fn give_back(&mut self) -> Result<bool> {
        let _as = As::owner(self.recommender.owner());
        self.neighbours.give_back()
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

    /// Where the only interactions are empty, so is everything. True then.
    pub fn empty(&self) -> Result<bool> {
        let r = &self.recommender;
        let _as = As::owner(r.owner());
        let source = r.rows_of.as_deref().unwrap_or_default();
        let some = select_one::<bool>(&format!("SELECT EXISTS (SELECT FROM {source})"), &[])?;
        if some != Some(false) || r.members().len() > 1 {
            return Ok(false);
        }
        let mut all = vec![
            tables::interactions(r.id),
            tables::items(r.of),
            tables::neighbours(r.of),
            tables::stale(r.of),
            tables::lists(r.of),
        ];
        all.extend(self.interests.as_ref().map(|_| tables::interests(r.of)));
        for table in all {
            Spi::run(&format!("DELETE FROM {table}"))?;
        }
        Ok(true)
    }
}

fn owned<'a>(items: impl Iterator<Item = &'a str>) -> DatumWithOid<'static> {
    items.map(str::to_owned).collect::<Vec<String>>().into()
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
