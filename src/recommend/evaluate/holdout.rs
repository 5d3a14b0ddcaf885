//! Which of a user's items are held out, and what is made of the rest.
//!
//! A user has an item if their interactions with it add up to more than 0, and has it since the first of them. It never
//! makes anything of what is held out.

use pgrx::prelude::*;

use crate::catalog::recommender::{Recommender, tables};
use crate::catalog::rights::{As, with_settings};
use crate::error::{Error, Result};
use crate::recommend::keep::bulk;

/// The share of items that is held out.
const SHARE: f64 = 0.2;
/// Items that a user must have left: of fewer, nobody can say much.
const LEAST: usize = 5;

#[derive(Clone, Copy)]
pub enum Holdout {
    Last,
    Random,
    Time,
}

/// A user whose lists are looked at.
pub struct Case {
    /// Keys, as text.
    pub user: String,
    pub has: Vec<String>,
    pub relevant: Vec<String>,
}

impl Holdout {
    pub fn of(name: &str) -> Result<Holdout> {
        match name {
            "last" => Ok(Holdout::Last),
            "random" => Ok(Holdout::Random),
            "time" => Ok(Holdout::Time),
            _ => Err(Error::argument(
                "holdout",
                format!("\"{name}\" is none"),
                "The valid ones are last, random and time.",
            )),
        }
    }

    /// Users' items, each with whether it is held out.
    fn items(self, recommender: &Recommender) -> String {
        let interactions = tables::interactions(recommender.id);
        let has = format!(
            "has AS MATERIALIZED (
               SELECT e.user_id, e.item_id, pg_catalog.min(e.at) AS since FROM {interactions} e
                GROUP BY e.user_id, e.item_id HAVING pg_catalog.sum(e.weight::numeric) > 0)"
        );
        let of_user = |order: &str| {
            format!(
                "pg_catalog.row_number() OVER (PARTITION BY h.user_id ORDER BY {order})
                   <= GREATEST(pg_catalog.floor({SHARE} * pg_catalog.count(*) OVER (PARTITION BY h.user_id)), 1)"
            )
        };
        let held = match self {
            Holdout::Last => of_user("h.since DESC, h.item_id DESC"),
            Holdout::Random => of_user("pg_catalog.md5(h.user_id::text || ' ' || h.item_id::text)"),
            Holdout::Time => format!(
                "h.since > (SELECT pg_catalog.percentile_disc(1 - {SHARE}) WITHIN GROUP (ORDER BY a.since) FROM has a)"
            ),
        };
        format!(
            "{has}, item AS MATERIALIZED (SELECT h.user_id, h.item_id, {held} AS held FROM has h)"
        )
    }

    /// Fills the shadow's tables without what is held out; returns users by whom it is tried.
    pub fn split(
        self,
        recommender: &Recommender,
        shadow: &Recommender,
        hit: &str,
        sample: Option<i32>,
    ) -> Result<Vec<Case>> {
        let (from, to) = (
            tables::interactions(recommender.id),
            tables::interactions(shadow.id),
        );
        let (user, item) = (recommender.user_key()?, recommender.item_key()?);
        let items = self.items(recommender);
        let fill = format!(
            "WITH {items}
             INSERT INTO {to} SELECT e.* FROM {from} e
              WHERE NOT EXISTS (SELECT FROM item i WHERE i.held AND i.user_id {} e.user_id AND i.item_id {} e.item_id)",
            user.equals, item.equals,
        );
        let same: Vec<String> = recommender
            .keys()
            .iter()
            .map(|key| format!("s.{} {} e.{}", key.column, key.equals, key.stored))
            .collect();
        let cases = format!(
            "WITH {items}, relevant AS (
               SELECT DISTINCT i.user_id, i.item_id
                 FROM item i JOIN {from} e ON e.user_id {users} i.user_id AND e.item_id {items_equal} i.item_id
                 JOIN {rows} s ON {same}
                WHERE i.held AND ({hit}))
             SELECT r.user_id::text, l.items, pg_catalog.array_agg(r.item_id::text)
               FROM relevant r JOIN (SELECT i.user_id, pg_catalog.array_agg(i.item_id::text) AS items FROM item i WHERE NOT i.held
                                      GROUP BY i.user_id HAVING pg_catalog.count(*) >= {LEAST}) l ON l.user_id {users} r.user_id
              GROUP BY r.user_id, l.items ORDER BY pg_catalog.md5(r.user_id::text), r.user_id LIMIT $1",
            users = user.equals,
            items_equal = item.equals,
            rows = recommender.rows_of.as_deref().unwrap_or_default(),
            same = same.join(" AND "),
        );
        let _as = As::owner(recommender.owner());
        with_settings(&[(c"jit", c"off")], || {
            Spi::run(&fill)?;
            bulk::count(shadow)?;
            Spi::connect(|client| {
                let mut found = Vec::new();
                for row in client.select(cases.as_str(), None, &[sample.into()])? {
                    found.push(Case {
                        user: row.get::<String>(1)?.unwrap_or_default(),
                        has: row.get::<Vec<String>>(2)?.unwrap_or_default(),
                        relevant: row.get::<Vec<String>>(3)?.unwrap_or_default(),
                    });
                }
                Ok(found)
            })
        })
    }
}
