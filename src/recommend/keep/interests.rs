//! The vectors of users' interests, kept: which of them do not fit any more, and those made anew.
//!
//! A row that is not stale is right: what makes it wrong marks it stale in the same transaction, or is noted in the
//! table of revised items in that transaction. It never adds to a vector that is there.

use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::SpiClient;

use super::ready::Ready;
use crate::catalog::names::vector_types;
use crate::catalog::recommender::{Recommender, tables};
use crate::catalog::rights::As;
use crate::error::{Error, Result};
use crate::recommend::interest::{Decay, histories, of_history, select_histories};
use crate::statement::Statement;
use crate::store::vector;

/// Users whose vectors are made by one statement: their items' vectors are in memory meanwhile.
pub const AT_ONCE: usize = 16;
/// Revised items that are looked at together, and users' rows that are marked for them.
const REVISED: usize = 256;
const MARKED: usize = 1_000;
/// Users that are looked at together for whether they have a vector.
const WALKED: usize = 1_000;

/// The statements of one recommender.
pub struct Interests {
    recommender: Recommender,
    decay: Decay,
    outdate: Statement,
    histories: Statement,
    write: Statement,
    remove: Statement,
    revised: Statement,
    outdate_of_items: Statement,
    forget_revised: Statement,
    walk: Statement,
    walk_on: Statement,
    ready: Ready,
}

/// Items that have got another vector.
pub struct Revised {
    /// Whose interests they have been part of.
    pub users: Vec<String>,
    /// The number up to which all is done.
    pub up_to: i64,
    pub more: bool,
}

/// Users in the order of their keys.
pub struct Walked {
    /// Those who have no vector that is right.
    pub users: Vec<String>,
    /// Where to go on; `None`: those were the last.
    pub after: Option<String>,
}

impl Interests {
    /// `None` where the items have no vectors, or other ones than what is kept was made of.
    pub fn of(r: &Recommender) -> Result<Option<Interests>> {
        let Some(vectors) = r.vectors.as_ref().filter(|vectors| !vectors.outdated) else {
            return Ok(None);
        };
        let (user, item, schema) = (r.user_key()?, r.item_key()?, &vectors.schema);
        let (user_type, equals, storage) = (&user.type_name, &user.equals, &vectors.storage);
        let interactions = r.interactions();
        let (interests, revised) = (tables::interests(r.of), tables::revised(r.of));
        let those = format!("i.user_id {equals} ANY ($1::text[]::{user_type}[])");
        let items = format!(
            "e.item_id {} ANY ($1::text[]::{}[])",
            item.equals, item.type_name
        );
        // An index is entered where the walk goes on.
        let walk = |from: &str| {
            Statement::by_key(format!(
                "SELECT u.user_id::text, i.user_id IS NULL
                   FROM (SELECT DISTINCT e.user_id FROM {interactions} e WHERE {from} ORDER BY e.user_id LIMIT {WALKED}) u
                   LEFT JOIN {interests} i ON i.user_id {equals} u.user_id AND NOT i.stale ORDER BY u.user_id"
            ))
        };
        Ok(Some(Interests {
            outdate: Statement::by_key(format!(
                "UPDATE {interests} i SET interest = NULL, stale = true WHERE {those} AND NOT i.stale"
            )),
            histories: Statement::by_key(select_histories(r, vectors)?),
            write: Statement::by_key(format!(
                "INSERT INTO {interests} AS i (user_id, interest, stale)
                 SELECT v.u::{user_type}, v.interest::{schema}.{storage}, false
                   FROM ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::{schema}.vector[])) AS v (u, interest)
                     ON CONFLICT (user_id) DO UPDATE SET interest = excluded.interest, stale = false"
            )),
            remove: Statement::by_key(format!("DELETE FROM {interests} i WHERE {those}")),
            revised: Statement::by_key(format!(
                "SELECT v.number, v.item_id::text FROM {revised} v WHERE v.number > $1 ORDER BY v.number LIMIT {REVISED}"
            )),
            outdate_of_items: Statement::by_key(format!(
                "UPDATE {interests} i SET interest = NULL, stale = true
                  WHERE i.ctid = ANY (ARRAY(SELECT DISTINCT i.ctid FROM {interactions} e JOIN {interests} i ON i.user_id {equals} e.user_id
                                             WHERE {items} AND NOT i.stale LIMIT {MARKED}))
                 RETURNING i.user_id::text"
            )),
            forget_revised: Statement::by_key(format!(
                "DELETE FROM {revised} v WHERE v.number = ANY ($1)"
            )),
            walk: walk("true"),
            walk_on: walk(&format!("e.user_id {} $1::text::{user_type}", user.after)),
            ready: Ready::of(r)?,
            decay: Decay::of(r),
            recommender: r.clone(),
        }))
    }

    /// What these users are interested in has changed.
    pub fn outdate(&self, client: &mut SpiClient, users: &[String]) -> Result<()> {
        self.outdate.update(client, &[users.to_vec().into()])?;
        Ok(())
    }

    /// Makes the vectors of users anew, [`AT_ONCE`] of them at the most.
    pub fn refresh(&self, users: &[String]) -> Result<()> {
        let _as = As::owner(self.recommender.owner());
        Spi::connect_mut(|client| {
            let given = [users.to_vec().into()];
            let mut histories = histories(self.histories.select(client, &given)?)?;
            let (mut with, mut without, mut gone) = (Vec::new(), Vec::new(), Vec::new());
            for (number, user) in users.iter().enumerate() {
                match histories.remove(&number) {
                    None => gone.push(user.clone()),
                    Some(history) => match of_history(self.decay, &history, &[], None) {
                        Some(interest) => with.push((user, interest)),
                        None => without.push(user),
                    },
                }
            }
            if !gone.is_empty() {
                self.remove.update(client, &[gone.into()])?;
            }
            // Where there are fewer vectors than users, the last have none.
            let there = with.iter().map(|(user, _)| *user);
            let there: Vec<String> = there.chain(without).cloned().collect();
            if !there.is_empty() {
                let (vector, array) = vector_types()
                    .ok_or_else(|| Error::Internal("extension vector is missing".into()))?;
                let vectors: Vec<&[f32]> = with.iter().map(|(_, of)| of.as_slice()).collect();
                let arguments: [DatumWithOid; 2] =
                    [there.into(), vector::array(&vectors, vector, array)];
                self.write.update(client, &arguments)?;
            }
            Ok(())
        })
    }

    /// Marks the users of items that have got another vector, those beyond number `after`.
    pub fn follow_revised(&self, after: i64) -> Result<Revised> {
        let _as = As::owner(self.recommender.owner());
        Spi::connect_mut(|client| {
            let (mut numbers, mut items) = (Vec::new(), Vec::new());
            for row in self.revised.select(client, &[after.into()])? {
                numbers.extend(row.get::<i64>(1)?);
                items.extend(row.get::<String>(2)?);
            }
            let mut users = Vec::new();
            if items.is_empty() {
                return Ok(Revised {
                    users,
                    up_to: after,
                    more: false,
                });
            }
            let full = items.len() == REVISED;
            for row in self.outdate_of_items.update(client, &[items.into()])? {
                users.extend(row.get::<String>(1)?);
            }
            // A list is made where the interest is right: whoever has one and is not among these has none of it.
            self.ready.remove(client, &users)?;
            let (mut up_to, all) = (after, users.len() < MARKED);
            if all {
                up_to = numbers.last().copied().unwrap_or(after);
                self.forget_revised.update(client, &[numbers.into()])?;
            }
            Ok(Revised {
                users,
                up_to,
                more: full || !all,
            })
        })
    }

    /// The users who come after that one.
    pub fn walk(&self, after: Option<&str>) -> Result<Walked> {
        let _as = As::owner(self.recommender.owner());
        Spi::connect(|client| {
            let (mut users, mut last, mut count) = (Vec::new(), None, 0);
            let rows = match after {
                None => self.walk.select(client, &[])?,
                Some(after) => self.walk_on.select(client, &[after.into()])?,
            };
            for row in rows {
                last = row.get::<String>(1)?;
                count += 1;
                if row.get::<bool>(2)? == Some(true) {
                    users.extend(last.clone());
                }
            }
            Ok(Walked {
                users,
                after: last.filter(|_| count == WALKED),
            })
        })
    }
}
