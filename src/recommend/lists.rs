//! recommend, similar, popular: lists of items, in the caller's session.
//!
//! What may be listed, and in what order, is asked as the owner of the items; which of them pass the filter and may be
//! seen is asked of the live rows as the caller. It never returns fewer than there are: where the candidates are too
//! few, it goes on through all items. It writes nothing, so that a standby answers, too.

use pgrx::datum::{DatumWithOid, Uuid};
use pgrx::prelude::*;
use pgrx::{JsonB, pg_sys};

// The functions themselves.
mod functions;

// What is asked for.
mod question;

// What is asked as the owner.
mod statements;

// The same of vectors.
mod content;

// Items that are alike.
mod similar;

// What the caller may see of it.
mod sieve;

use super::interest;
use super::search::require_select;
use crate::catalog::recommender::Recommender;
use crate::catalog::recommender::functions::{Kind, require_execute};
use crate::error::Result;
use crate::store::vector::Numbers;
use question::Question;
use sieve::{Candidate, Sieve};

type Recommended = TableIterator<'static, (String, f64, i32, JsonB, Uuid)>;
type Listed = TableIterator<'static, (String, f64, i32)>;

fn recommended(
    recommender: &Recommender,
    user: Option<&str>,
    question: &Question,
) -> Result<Recommended> {
    require_rights(recommender, Kind::Recommend)?;
    let list = question.list_id(recommender, user);
    let session = question.session();
    let interest = interest::of_user(recommender, user, &session)?;
    let near = recommender.vectors.as_ref().filter(|_| interest.is_some());
    let arguments = || {
        vec![
            user.into(),
            session.clone().into(),
            question.exclude_seen.into(),
            interest.clone().map(Numbers).into(),
        ]
    };
    let found = list_of(
        recommender,
        question,
        &statements::recommend(recommender, near)?,
        Some(&statements::rest(recommender)?),
        arguments,
    )?;
    let ranked = (1..).zip(found).map(move |(rank, candidate)| {
        (
            candidate.item,
            candidate.score,
            rank,
            JsonB(candidate.reason),
            list,
        )
    });
    Ok(TableIterator::new(ranked))
}

fn most_popular(recommender: &Recommender, question: &Question) -> Result<Listed> {
    require_rights(recommender, Kind::Popular)?;
    let nobody = || {
        vec![
            None::<&str>.into(),
            Vec::<String>::new().into(),
            false.into(),
            None::<Numbers>.into(),
        ]
    };
    let found = list_of(
        recommender,
        question,
        &statements::popular(recommender)?,
        Some(&statements::rest(recommender)?),
        nobody,
    )?;
    Ok(ranked(found))
}

fn ranked(found: Vec<Candidate>) -> Listed {
    TableIterator::new(
        (1..)
            .zip(found)
            .map(|(rank, candidate)| (candidate.item, candidate.score, rank)),
    )
}

/// Refuses unless the caller may ask, and there is something to ask.
fn require_rights(recommender: &Recommender, kind: Kind) -> Result<()> {
    require_execute(recommender, kind)?;
    if recommender.items_oid() == pg_sys::InvalidOid {
        return Err(recommender.broken(format!("table {} does not exist", recommender.items)));
    }
    require_select(&[&recommender.items])
}

/// The first k candidates that pass: of `first`, then of `rest`, which is given those of the first in vain.
fn list_of<'a>(
    recommender: &Recommender,
    question: &Question,
    first: &str,
    rest: Option<&str>,
    arguments: impl Fn() -> Vec<DatumWithOid<'a>>,
) -> Result<Vec<Candidate>> {
    let sieve = Sieve::new(recommender, question)?;
    let mut passed = Vec::new();
    let mut seen = Vec::new();
    sieve.read(first, &arguments(), question.k, &mut passed, |candidate| {
        seen.push(candidate.item.clone());
    })?;
    if let Some(rest) = rest
        && passed.len() < question.k
    {
        let mut arguments = arguments();
        arguments.push(seen.into());
        sieve.read(rest, &arguments, question.k, &mut passed, |_| ())?;
    }
    Ok(passed)
}
