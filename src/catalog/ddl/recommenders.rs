//! What a command did to a recommender's tables, carried over into its declaration.
//!
//! It never changes what is kept: the worker does that by the declaration.

use pgrx::pg_sys;
use pgrx::prelude::*;
use serde::Deserialize;
use std::collections::BTreeMap;

use super::{Before, Source, State, quietly, seeing_its_effects};
use crate::catalog::expression::{Analysed, Wanted};
use crate::catalog::names::quote;
use crate::catalog::recommender::impressions::{self, Impressions};
use crate::catalog::recommender::{self, drop, embedding, feeds};
use crate::catalog::rights::{As, in_subtransaction};
use crate::catalog::watch::release;
use crate::error::Result;

#[derive(Deserialize)]
pub struct Recommender {
    pub id: i32,
    /// The recommender's own number, where this is a feed.
    pub of: i32,
    pub source_id: i32,
    name: String,
    pub schema_oid: Option<i64>,
    schema: Option<String>,
    /// The items: the name that is stored; what is meant now, where it is there.
    pub stored: String,
    pub oid: Option<i64>,
    current: Option<String>,
    pub used_columns: Vec<String>,
    /// Expressions by the columns of the declaration.
    of_interactions: BTreeMap<String, String>,
    of_items: BTreeMap<String, String>,
    pub impressions: Option<Shown>,
}

/// Its impressions: as they are stored; what is meant now, where it is there, with its columns by their numbers.
#[derive(Deserialize)]
pub struct Shown {
    pub stored: Impressions,
    pub oid: Option<i64>,
    current: Option<String>,
    columns: Option<BTreeMap<String, String>>,
}

impl Shown {
    /// The names of now, in place of those of before; what is gone keeps its name.
    fn now(&self, was: &Shown) -> Impressions {
        let mut now = self.stored.clone();
        if let Some(current) = &self.current {
            now.relation.clone_from(current);
        }
        let (old, new) = (was.columns.as_ref(), self.columns.as_ref());
        let number = |name: &String| {
            let mut columns = old?.iter();
            columns.find_map(|(number, old)| (old == name).then_some(number))
        };
        let names = [&mut now.list_id, &mut now.item, &mut now.at].into_iter();
        let others = [&mut now.placement, &mut now.reason];
        for name in names.chain(others.into_iter().flatten()) {
            let renamed = number(name).and_then(|number| new?.get(number));
            if let Some(renamed) = renamed {
                name.clone_from(renamed);
            }
        }
        now
    }
}

/// The recommenders' expressions, those that can be analysed.
pub fn analysed(state: &State) -> Vec<(i32, String, Analysed)> {
    let _as = As::extension();
    let mut all = Vec::new();
    for recommender in state.recommenders.iter().flatten() {
        let mut sources = state.sources.iter().flatten();
        let source = sources.find(|source| source.id == recommender.source_id);
        for (table, expressions) in [
            (
                source.and_then(|source| source.oid),
                &recommender.of_interactions,
            ),
            (recommender.oid, &recommender.of_items),
        ] {
            let Some(table) = table.map(|oid| pg_sys::Oid::from(oid as u32)) else {
                continue;
            };
            for (column, text) in expressions {
                let analysed = in_subtransaction(|| {
                    Analysed::of("expression", table, text, Some(c"s"), Wanted::Any)
                });
                all.extend(
                    analysed
                        .ok()
                        .map(|analysed| (recommender.id, column.clone(), analysed)),
                );
            }
        }
    }
    all
}

impl Recommender {
    /// Names and expressions as they are now.
    pub fn carry(
        &self,
        renamed: &impl Fn(&[String]) -> Vec<String>,
        before: &Before,
    ) -> Result<()> {
        const CARRY: &str = "\
UPDATE recsync.recommender r
   SET name = COALESCE($2, r.name), items = $3, used_columns = $4,
       user_expression = n.user_expression, item_expression = n.item_expression, at_expression = n.at_expression,
       weight = n.weight, seen = n.seen, eligible = n.eligible, boost = n.boost
  FROM pg_catalog.jsonb_to_record($5::jsonb)
       AS n (user_expression text, item_expression text, at_expression text, weight text, seen text, eligible text, boost text)
 WHERE r.id = $1";
        const CARRY_FEED: &str = "\
UPDATE recsync.feed f
   SET used_columns = $2,
       user_expression = n.user_expression, item_expression = n.item_expression, at_expression = n.at_expression, weight = n.weight, seen = n.seen
  FROM pg_catalog.jsonb_to_record($3::jsonb) AS n (user_expression text, item_expression text, at_expression text, weight text, seen text)
 WHERE f.id = $1";
        let stored: BTreeMap<&String, &String> =
            self.of_interactions.iter().chain(&self.of_items).collect();
        let mut now: BTreeMap<&String, String> = stored
            .iter()
            .map(|(column, text)| (*column, (*text).clone()))
            .collect();
        for (_, column, analysed) in before
            .of_recommenders
            .iter()
            .filter(|(id, ..)| *id == self.id)
        {
            now.insert(column, analysed.sql());
        }
        let was = before
            .state
            .recommenders
            .iter()
            .flatten()
            .find(|was| was.id == self.id);
        let items = self.current.as_ref().unwrap_or(&self.stored);
        let used = renamed(&self.used_columns);
        let moved = was.is_some_and(|was| was.schema != self.schema);
        let same = now
            .iter()
            .all(|(column, text)| stored.get(column) == Some(&text));
        if same && *items == self.stored && !moved && used == self.used_columns {
            return Ok(());
        }
        if self.id != self.of {
            let _as = As::extension();
            let now = serde_json::json!(now).to_string();
            return Ok(Spi::run_with_args(
                CARRY_FEED,
                &[self.id.into(), used.into(), now.into()],
            )?);
        }
        let name = self
            .schema
            .as_ref()
            .map(|schema| format!("{}.{}", quote(schema), quote(&self.name)));
        let _as = As::extension();
        Spi::run_with_args(
            CARRY,
            &[
                self.id.into(),
                name.into(),
                items.as_str().into(),
                used.into(),
                serde_json::json!(now).to_string().into(),
            ],
        )?;
        Ok(())
    }

    /// The impressions' names as they are now.
    pub fn carry_impressions(&self, before: &Before) -> Result<()> {
        let mut those = before.state.recommenders.iter().flatten();
        let was = those.find(|was| was.id == self.id);
        let was = was.and_then(|was| was.impressions.as_ref());
        let (Some(is), Some(was)) = (&self.impressions, was) else {
            return Ok(());
        };
        let now = is.now(was);
        match now == is.stored {
            true => Ok(()),
            false => impressions::write(self.id, Some(&now)),
        }
    }

    /// It goes with its items, and the triggers on its interactions with it where nothing else needs them.
    pub fn end_without_items(&self, source: &Source, before: &Before) -> Result<()> {
        let mut those = before.state.recommenders.iter().flatten();
        let had_items = those.any(|was| was.id == self.id && was.oid.is_some());
        if self.current.is_some() || !had_items || self.id != self.of {
            return Ok(());
        }
        self.end()?;
        let name = source.current.as_deref().unwrap_or_default();
        seeing_its_effects(|| {
            quietly(|| release(source.relation(), name, source.id, source.owner()));
        });
        Ok(())
    }

    pub fn end(&self) -> Result<()> {
        match recommender::by_id(self.id)? {
            Some(feed) if feed.id != feed.of => feeds::end_and_make_anew(&feed),
            Some(recommender) => {
                drop::end(&recommender)?;
                // Where the items are gone, their pipelines are, too.
                if recommender.items_oid() != pg_sys::InvalidOid {
                    embedding::drop(&recommender)?;
                }
                Ok(())
            }
            None => Ok(()),
        }
    }
}
