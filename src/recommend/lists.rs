//! recommend, similar, popular: lists of items, in the caller's session.
//!
//! What may be listed, and in what order, is asked as the owner of the items; which of them pass the filter and may be
//! seen is asked of the live rows as the caller. It never returns fewer than there are: where the candidates are too
//! few, it goes on through all items. It writes nothing, so that a standby answers, too.

use pgrx::datum::{DatumWithOid, Uuid};
use pgrx::prelude::*;
use pgrx::{JsonB, pg_sys};
use serde_json::json;

// The functions themselves.
mod functions;

// What all lists of a statement have in common.
mod once;

// What is asked for.
pub(super) mod question;

// What a list is called.
pub(super) mod list_id;

// What is asked as the owner.
pub(super) mod statements;

// What models and neighbours make of it.
pub(super) mod learnt;

// The same of vectors.
pub(super) mod content;

// Lists that the worker has made before: what of them is served.
mod ready;

// How it makes them.
pub mod warm;

// Items that are alike.
mod similar;

// Candidates from elsewhere.
mod rank;

// Places for what is unlike the others.
mod diversity;

// What the caller may see of it.
mod sieve;

// Which of it gets which place.
mod selection;

// Why.
mod explanation;

use super::interest;
use super::search::require_select;
use crate::catalog::recommender::functions::{Kind, require_execute};
use crate::catalog::recommender::{Recommender, tables};
use crate::error::{Error, Result};
use crate::statement::Finds;
use content::For;
use diversity::Spread;
use list_id::ListId;
use question::Question;
use selection::{Offer, Selection};
use sieve::{Candidate, Sieve};

type Recommended = TableIterator<'static, (String, f64, i32, JsonB, Uuid)>;
type Listed = TableIterator<'static, (String, f64, i32)>;

fn recommended(
    recommender: &Recommender,
    user: Option<&str>,
    question: &Question,
) -> Result<Recommended> {
    require_rights(recommender, Kind::Recommend)?;
    let list = ListId::of(recommender, user, question)?;
    let session = question.session();
    if question.diversity > 0.0 && recommender.vectors.is_none() {
        return Err(Error::argument(
            "diversity",
            format!("the items of {} have no vectors", recommender.name),
            "Make the recommender with text and server, or with a pipeline as its items; max_per needs no vectors.",
        ));
    }
    let sieve = Sieve::new(recommender, question)?;
    let mut found = match ready::list(recommender, user, question, &sieve)? {
        Some(found) => found,
        None => {
            let of = For {
                user,
                session: &session,
                exclude_seen: question.exclude_seen,
            };
            made_now(recommender, &of, question, &sieve, list)?
        }
    };
    if question.explain {
        explanation::explain(recommender, user, &session, &mut found)?;
    }
    let ranked = numbered(question, found).map(move |(rank, candidate)| {
        (
            candidate.item,
            candidate.score,
            rank,
            JsonB(candidate.reason),
            list.uuid(),
        )
    });
    Ok(TableIterator::new(ranked))
}

fn made_now(
    recommender: &Recommender,
    of: &For,
    question: &Question,
    sieve: &Sieve,
    list: ListId,
) -> Result<Vec<Candidate>> {
    let nearest = of.nearest(recommender, recommender, question, |near| {
        match near.conditions.is_empty() {
            true => Ok(()),
            false => sieve.require_rights(),
        }
    })?;
    let factors = learnt::factors(recommender, of.user, of.session)?;
    list_with(
        recommender,
        question,
        sieve,
        &statements::recommend(recommender)?,
        &statements::rests(recommender)?,
        (question.explore > 0.0).then(|| list.seed()),
        || of.arguments(&nearest, &factors),
    )
}

fn most_popular(recommender: &Recommender, question: &Question) -> Result<Listed> {
    require_rights(recommender, Kind::Popular)?;
    let nobody = For {
        user: None,
        session: &[],
        exclude_seen: false,
    };
    let nobody = || nobody.arguments(&[], &None);
    let first = match question.since {
        None => statements::popular(recommender)?,
        Some(seconds) => statements::popular_since(recommender, seconds)?,
    };
    let rests = statements::rests(recommender)?;
    let found = list_of(recommender, question, &first, &rests, nobody)?;
    Ok(listed(question, found))
}

fn listed(question: &Question, found: Vec<Candidate>) -> Listed {
    TableIterator::new(
        numbered(question, found).map(|(rank, candidate)| (candidate.item, candidate.score, rank)),
    )
}

/// With their places in the list, of which the page is a part.
fn numbered(
    question: &Question,
    found: Vec<Candidate>,
) -> impl Iterator<Item = (i32, Candidate)> + use<> {
    (question.skip as i32 + 1..).zip(found)
}

/// Refuses unless the caller may ask, and there is something to ask.
fn require_rights(recommender: &Recommender, kind: Kind) -> Result<()> {
    once::require(recommender, kind, || {
        require_execute(recommender, kind)?;
        if recommender.items_oid() == pg_sys::InvalidOid {
            return Err(recommender.broken(format!("table {} does not exist", recommender.items)));
        }
        tables::hold(recommender);
        require_select(&[&recommender.items])
    })
}

/// The page of the candidates that pass: of `first`, then of `rests`, which are given those of the first in vain.
fn list_of<'a>(
    recommender: &Recommender,
    question: &Question,
    first: &str,
    rests: &[String],
    arguments: impl Fn() -> Vec<DatumWithOid<'a>>,
) -> Result<Vec<Candidate>> {
    let sieve = Sieve::new(recommender, question)?;
    list_with(recommender, question, &sieve, first, rests, None, arguments)
}

/// The same, through a sieve; some places are for items that are tried out, chosen by the seed `explore`.
fn list_with<'a>(
    recommender: &Recommender,
    question: &Question,
    sieve: &Sieve,
    first: &str,
    rests: &[String],
    explore: Option<i64>,
    arguments: impl Fn() -> Vec<DatumWithOid<'a>>,
) -> Result<Vec<Candidate>> {
    let limits = question.max_per.values().copied().collect();
    let mut selection = Selection::new(question.up_to(), limits);
    if let Some(seed) = explore {
        let mut explored: Vec<Offer<Candidate>> = Vec::new();
        let mut arguments = arguments();
        arguments.push(seed.into());
        let statement = statements::explore(recommender)?;
        let mut place = 0;
        let number = |candidate: &mut Candidate| {
            place += 1;
            candidate.reason = json!({ "explored": place });
        };
        sieve.read(&statement, Finds::ByKey, &arguments, number, |offer| {
            explored.push(offer);
            true
        })?;
        // A part of the seed that the order of the items does not depend on.
        let phase = f64::from(seed as u16) / 65_536.0;
        selection.explore(question.explore, phase, explored);
    }
    if question.diversity > 0.0 {
        let mut pool = Vec::new();
        sieve.read(
            first,
            Finds::ByKey,
            &arguments(),
            |_| (),
            |offer| {
                pool.push(offer);
                pool.len() < diversity::POOL
            },
        )?;
        spread(recommender, question.diversity, pool, &mut selection)?;
    }
    let mut looked_at = Vec::new();
    let note = |candidate: &mut Candidate| looked_at.push(candidate.item.clone());
    if !selection.is_full() {
        sieve.read(first, Finds::ByKey, &arguments(), note, |offer| {
            selection.offer(offer)
        })?;
    }
    let mut place = 0;
    for rest in rests {
        if selection.is_full() {
            break;
        }
        let mut arguments = arguments();
        arguments.push(looked_at.clone().into());
        let number = |candidate: &mut Candidate| {
            place += 1;
            candidate.reason = json!({ "rest": place });
        };
        sieve.read(rest, Finds::InOrder, &arguments, number, |offer| {
            selection.offer(offer)
        })?;
    }
    Ok(selection.chosen().into_iter().skip(question.skip).collect())
}

/// Offers these in an order in which those that are alike are apart.
fn spread(
    recommender: &Recommender,
    diversity: f64,
    pool: Vec<Offer<Candidate>>,
    selection: &mut Selection<Candidate>,
) -> Result<()> {
    let items: Vec<String> = pool.iter().map(|offer| offer.item.clone()).collect();
    let vectors = interest::vectors_of(recommender, &items)?;
    let scored = pool
        .iter()
        .map(|offer| (offer.item.as_str(), offer.candidate.score));
    let spread = Spread::new(scored, &vectors, diversity);
    let mut pool: Vec<Option<Offer<Candidate>>> = pool.into_iter().map(Some).collect();
    for number in spread {
        let offer = pool.get_mut(number).and_then(Option::take);
        if offer.is_some_and(|offer| !selection.offer(offer)) {
            break;
        }
    }
    Ok(())
}
