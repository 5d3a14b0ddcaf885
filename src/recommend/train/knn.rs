//! The lists of items' neighbours, all that are stale counted at once: the same lists as one after the other gives.
//!
//! The lists that it counts are *taken* before anything is read, and written while they still are: one that becomes stale
//! meanwhile is the leader's again, who counts it by what is newer. So it never writes over a newer list, and one that
//! is broken off has lost no mark.

use pgrx::prelude::*;

use super::sets::Sets;
use super::{NoModel, Stop};
use crate::catalog::names::select_one;
use crate::catalog::recommender::{Recommender, tables};
use crate::catalog::rights::{As, with_settings};
use crate::error::Result;
use crate::recommend::keep::neighbours::{KEPT, REPLACE};
use crate::recommend::likeness;

/// Lists of which it is noted at once that they are taken, and that are written at once: whoever marks one of them
/// waits for that.
const TAKEN_AT_ONCE: i64 = 500;
const WRITTEN_AT_ONCE: usize = 200;

/// One after the other, so many take some seconds.
const MANY: usize = 1_000;

/// What lists are counted from.
pub struct Input {
    /// Items' keys by their numbers, and how many users have each.
    keys: Vec<String>,
    users: Vec<i32>,
    /// Items of users, and users of items' last interactions.
    sets: Sets,
    last: Sets,
}

/// Bytes that counting takes, at the most.
pub fn bytes(items: usize, pairs: usize) -> u64 {
    const PAIR_BYTES: u64 = 64; // as a user's item, and as an item's user
    const ITEM_BYTES: u64 = 160 + 8 * KEPT as u64;
    pairs as u64 * PAIR_BYTES + items as u64 * ITEM_BYTES
}

/// An item's neighbours, the most alike first, and how alike they are.
pub type List = Vec<(u32, f32)>;

/// All lists of a recommender are to be counted anew, those of items that are gone included.
pub fn mark_all(r: &Recommender) -> Result<()> {
    add_all(r, false)
}

/// All lists, stale or not, are taken.
pub fn take_all(r: &Recommender) -> Result<()> {
    add_all(r, true)
}

fn add_all(r: &Recommender, taken: bool) -> Result<()> {
    let sql = format!(
        "INSERT INTO {} (item_id, since, taken)
         SELECT t.item_id, pg_catalog.clock_timestamp(), {taken} FROM (SELECT i.item_id FROM {} i UNION SELECT n.item_id FROM {} n) t
             ON CONFLICT DO NOTHING",
        tables::stale(r.of),
        tables::items(r.of),
        tables::neighbours(r.of),
    );
    let _as = As::owner(r.owner());
    Ok(Spi::run(&sql)?)
}

/// Takes some of the lists that are stale; false when these were the last.
pub fn take(r: &Recommender) -> Result<bool> {
    let stale = tables::stale(r.of);
    let sql = format!(
        "WITH batch AS (DELETE FROM {stale} s USING (SELECT n.item_id FROM {stale} n WHERE NOT n.taken ORDER BY n.since LIMIT {TAKEN_AT_ONCE}) n
                        WHERE NOT s.taken AND s.item_id {equals} n.item_id RETURNING s.item_id, s.since),
              taken AS (INSERT INTO {stale} (item_id, since, taken) SELECT b.item_id, b.since, true FROM batch b ON CONFLICT DO NOTHING)
         SELECT pg_catalog.count(*) FROM batch",
        equals = r.item_key()?.equals,
    );
    let _as = As::owner(r.owner());
    let taken = Spi::connect_mut(|client| -> Result<Option<i64>> {
        Ok(client.update(sql.as_str(), None, &[])?.first().get_one()?)
    })?;
    Ok(taken == Some(TAKEN_AT_ONCE))
}

/// Waits until whoever has found a list marked that was taken since has committed what it was marked for: then it is
/// read.
pub fn wait_for_marks(r: &Recommender) -> Result<()> {
    let _as = As::owner(r.owner());
    Ok(Spi::run(&format!(
        "LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE",
        tables::stale(r.of)
    ))?)
}

/// Everything as one snapshot shows it.
pub fn read(r: &Recommender) -> Result<Input> {
    let sql = format!(
        "WITH item AS MATERIALIZED (SELECT t.item_id, t.users, pg_catalog.row_number() OVER (ORDER BY t.item_id) AS i FROM {items} t),
              person AS MATERIALIZED (SELECT n.user_id, pg_catalog.row_number() OVER (ORDER BY n.user_id) AS n FROM (SELECT DISTINCT e.user_id FROM {interactions} e) n)
         SELECT (SELECT pg_catalog.array_agg(a.item_id::text ORDER BY a.i) FROM item a),
                (SELECT pg_catalog.array_agg(a.users ORDER BY a.i) FROM item a),
                (SELECT pg_catalog.array_agg(u.n << 32 | a.i) FROM person u CROSS JOIN LATERAL ({set}) x JOIN item a ON a.item_id {item} x.item_id),
                (SELECT pg_catalog.array_agg(u.n << 32 | a.i) FROM item a CROSS JOIN LATERAL ({last}) l JOIN person u ON u.user_id {user} l.user_id)",
        items = tables::items(r.of),
        interactions = r.interactions(),
        set = likeness::set_of_user(r)?,
        last = likeness::last_users(r)?,
        item = r.item_key()?.equals,
        user = r.user_key()?.equals,
    );
    let _as = As::owner(r.owner());
    with_settings(&[(c"jit", c"off")], || {
        Spi::connect(|client| {
            let row = client.select(sql.as_str(), None, &[])?.first();
            let keys = row.get::<Vec<String>>(1)?.unwrap_or_default();
            let users = row.get::<Vec<i32>>(2)?.unwrap_or_default();
            let halves = |pairs: Vec<i64>| -> (Vec<i32>, Vec<i32>) {
                pairs
                    .into_iter()
                    .map(|pair| ((pair >> 32) as i32, pair as i32))
                    .unzip()
            };
            let (of, what) = halves(row.get::<Vec<i64>>(3)?.unwrap_or_default());
            let sets = Sets::new(&of, &what);
            let (of, what) = halves(row.get::<Vec<i64>>(4)?.unwrap_or_default());
            let last = Sets::new(&what, &of);
            Ok(Input {
                keys,
                users,
                sets,
                last,
            })
        })
    })
}

/// The list of each item, by its number.
pub fn count(input: &Input, stop: &Stop) -> std::result::Result<Vec<List>, NoModel> {
    let mut lists = Vec::new();
    lists.try_reserve_exact(input.keys.len())?;
    // Users in common with each item, and with which there are any.
    let mut common = Vec::new();
    common.try_reserve_exact(input.keys.len())?;
    common.resize(input.keys.len(), 0_u32);
    let mut others: Vec<u32> = Vec::new();
    for item in 0..input.keys.len() {
        stop.check()?;
        let mut looked_at = 0_u32;
        for user in input.last.of_user(item) {
            let set = input.sets.of_user(*user as usize);
            if set.binary_search(&(item as u32)).is_err() {
                continue;
            }
            looked_at += 1;
            for other in set.iter().filter(|other| **other as usize != item) {
                if let Some(users) = common.get_mut(*other as usize) {
                    if *users == 0 {
                        others.push(*other);
                    }
                    *users += 1;
                }
            }
        }
        let own = input.users_of(item);
        let mut list: Vec<(u32, f64)> = others
            .drain(..)
            .map(|other| {
                let users = std::mem::take(&mut common[other as usize]);
                let users = f64::from(users) * own / f64::from(looked_at.max(1));
                (
                    other,
                    likeness::of(users, own, input.users_of(other as usize)),
                )
            })
            .collect();
        list.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        list.truncate(KEPT);
        lists.push(
            list.into_iter()
                .map(|(other, likeness)| (other, likeness as f32))
                .collect(),
        );
    }
    Ok(lists)
}

/// Into empty tables.
pub fn write_all(r: &Recommender, input: &Input, lists: &[List]) -> Result<()> {
    let kind = &r.item_key()?.type_name;
    let sql = format!(
        "INSERT INTO {} (item_id, others, likeness) SELECT (v.item)::{kind}, (v.others)::{kind}[], (v.likeness)::float4[] FROM {GIVEN}",
        tables::neighbours(r.of)
    );
    let _as = As::owner(r.owner());
    for part in input.parts(lists) {
        Spi::run_with_args(&sql, &input.arguments(part))?;
        pgrx::check_for_interrupts!();
    }
    Ok(())
}

/// A part of the lists, those that are still taken; each in a transaction of its own.
pub fn write(r: &Recommender, input: &Input, part: Part) -> Result<()> {
    let item = r.item_key()?;
    let (kind, equals) = (&item.type_name, &item.equals);
    let sql = format!(
        "WITH own AS (DELETE FROM {stale} s USING pg_catalog.unnest($1::text[]) AS g (item) WHERE s.taken AND s.item_id {equals} (g.item)::{kind} RETURNING s.item_id)
         INSERT INTO {lists} AS n (item_id, others, likeness)
         SELECT own.item_id, (v.others)::{kind}[], (v.likeness)::float4[] FROM {GIVEN} JOIN own ON own.item_id {equals} (v.item)::{kind}
         {REPLACE}",
        stale = tables::stale(r.of),
        lists = tables::neighbours(r.of),
    );
    let _as = As::owner(r.owner());
    Ok(Spi::run_with_args(&sql, &input.arguments(part))?)
}

/// What is left that is taken are items that are gone.
pub fn finish(r: &Recommender) -> Result<()> {
    let equals = &r.item_key()?.equals;
    let (stale, lists, items) = (
        tables::stale(r.of),
        tables::neighbours(r.of),
        tables::items(r.of),
    );
    let sql = format!(
        "WITH gone AS (DELETE FROM {stale} s WHERE s.taken AND NOT EXISTS (SELECT FROM {items} t WHERE t.item_id {equals} s.item_id) RETURNING s.item_id)
         DELETE FROM {lists} n USING gone WHERE n.item_id {equals} gone.item_id"
    );
    let _as = As::owner(r.owner());
    Ok(Spi::run(&sql)?)
}

/// Whether so many lists are stale that it is better to count them at once.
pub fn are_many(r: &Recommender) -> Result<bool> {
    let sql = format!(
        "SELECT pg_catalog.count(*) = {MANY} FROM (SELECT FROM {} s WHERE NOT s.taken LIMIT {MANY}) AS counted",
        tables::stale(r.of)
    );
    let _as = As::owner(r.owner());
    Ok(select_one::<bool>(&sql, &[])? == Some(true))
}

/// What [`Input::arguments`] gives.
const GIVEN: &str = "ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[]), pg_catalog.unnest($3::text[])) AS v (item, others, likeness)";

/// Items' keys and their lists.
pub type Part<'a> = (&'a [String], &'a [List]);

impl Input {
    fn users_of(&self, item: usize) -> f64 {
        f64::from(self.users.get(item).copied().unwrap_or(0))
    }

    pub fn parts<'a>(&'a self, lists: &'a [List]) -> impl Iterator<Item = Part<'a>> {
        self.keys
            .chunks(WRITTEN_AT_ONCE)
            .zip(lists.chunks(WRITTEN_AT_ONCE))
    }

    /// Keys, and arrays of their neighbours and of how alike they are, as text.
    fn arguments(&self, (keys, lists): Part) -> [pgrx::datum::DatumWithOid<'static>; 3] {
        let key = |number: u32| self.keys.get(number as usize).map_or("", String::as_str);
        let others = lists
            .iter()
            .map(|list| array(list.iter().map(|(other, _)| quoted(key(*other)))));
        let likeness = lists
            .iter()
            .map(|list| array(list.iter().map(|(_, likeness)| likeness.to_string())));
        [
            keys.to_vec().into(),
            others.collect::<Vec<String>>().into(),
            likeness.collect::<Vec<String>>().into(),
        ]
    }
}

fn array(elements: impl Iterator<Item = String>) -> String {
    format!("{{{}}}", elements.collect::<Vec<String>>().join(","))
}

/// As an element of an array's text.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(pairs: &[(i32, i32)], last: &[(i32, i32)], items: usize) -> Input {
        let (of, what): (Vec<i32>, Vec<i32>) = pairs.iter().copied().unzip();
        let sets = Sets::new(&of, &what);
        let turned = sets.turned();
        let users = (0..items).map(|item| turned.of_user(item).len() as i32);
        let (of, what): (Vec<i32>, Vec<i32>) = last.iter().copied().unzip();
        Input {
            keys: (1..=items).map(|item| format!("i{item}")).collect(),
            users: users.collect(),
            last: Sets::new(&what, &of),
            sets,
        }
    }

    #[test]
    fn the_most_alike_come_first_and_of_those_that_are_as_much_the_smaller_key() {
        // ann: 1 2 3, bob: 1 2, eve: 1 3, joe: 4.
        let pairs = [
            (1, 1),
            (1, 2),
            (1, 3),
            (2, 1),
            (2, 2),
            (3, 1),
            (3, 3),
            (4, 4),
        ];
        let lists = count(&input(&pairs, &pairs, 5), &Stop::default()).unwrap();
        let alike = |common: f64, a: f64, b: f64| (common / ((a * b).sqrt() + 10.0)) as f32;
        assert_eq!(
            lists[0],
            [(1, alike(2.0, 3.0, 2.0)), (2, alike(2.0, 3.0, 2.0))]
        );
        assert_eq!(
            lists[1],
            [(0, alike(2.0, 2.0, 3.0)), (2, alike(1.0, 2.0, 2.0))]
        );
        assert_eq!((lists[3].len(), lists[4].len()), (0, 0));
    }

    #[test]
    fn the_users_of_the_last_interactions_stand_for_all_those_who_have_it() {
        // Four users have 1; of the last two, one has 2 as well; and one who does not have 1 any more is not counted.
        let pairs = [(1, 1), (2, 1), (3, 1), (4, 1), (4, 2), (5, 2)];
        let lists = count(
            &input(&pairs, &[(3, 1), (4, 1), (5, 1)], 2),
            &Stop::default(),
        )
        .unwrap();
        let wanted = (1.0 * 4.0 / 2.0) / ((4.0_f64 * 2.0).sqrt() + 10.0);
        assert_eq!(lists[0], [(1, wanted as f32)]);
    }

    #[test]
    fn it_stops_when_nobody_waits() {
        let input = input(&[(1, 1)], &[(1, 1)], 1);
        assert!(matches!(count(&input, &Stop::set()), Err(NoModel::Stopped)));
    }

    #[test]
    fn no_more_are_kept_than_there_is_room_for() {
        let pairs: Vec<(i32, i32)> = (1..=KEPT as i32 + 50).map(|item| (1, item)).collect();
        let lists = count(&input(&pairs, &pairs, pairs.len()), &Stop::default()).unwrap();
        assert!(lists.iter().all(|list| list.len() == KEPT));
    }

    #[test]
    fn an_array_s_text_holds_any_key() {
        let keys = ["a,b", "say \"hi\"", "back\\slash", "{}", "NULL", ""];
        let text = array(keys.iter().map(|key| quoted(key)));
        assert_eq!(text, r#"{"a,b","say \"hi\"","back\\slash","{}","NULL",""}"#);
    }
}
