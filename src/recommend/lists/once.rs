//! What is looked up once for all lists of a statement: the recommender, and that the caller may ask it.
//!
//! It never keeps that for another snapshot: a change that a statement sees counts for its next list.

use pgrx::pg_sys;
use std::cell::RefCell;
use std::rc::Rc;

use crate::catalog::recommender::functions::Kind;
use crate::catalog::recommender::{Recommender, hold};
use crate::error::{Error, Result};

/// When and for whom something was looked up: a statement's snapshots that are alike in this show the same.
#[derive(Clone, Copy, PartialEq)]
struct Moment {
    transaction: i64,
    statement: i64,
    /// Who had not ended: of those only fewer can be left, until there is another `xmax`.
    xmin: pg_sys::TransactionId,
    xmax: pg_sys::TransactionId,
    running: (u32, i32),
    command: pg_sys::CommandId,
    user: pg_sys::Oid,
}

struct Found {
    moment: Moment,
    recommender: Rc<Recommender>,
    /// The lists of its that the caller may be given.
    may: Vec<Kind>,
}

thread_local! {
    static FOUND: RefCell<Option<Found>> = const { RefCell::new(None) };
}

/// `None` where there is no snapshot.
fn now() -> Option<Moment> {
    // SAFETY: reads of this process's state; the active snapshot stays while a statement runs.
    unsafe {
        let snapshot = pg_sys::GetActiveSnapshot().as_ref()?;
        Some(Moment {
            transaction: pg_sys::GetCurrentTransactionStartTimestamp(),
            statement: pg_sys::GetCurrentStatementStartTimestamp(),
            xmin: snapshot.xmin,
            xmax: snapshot.xmax,
            running: (snapshot.xcnt, snapshot.subxcnt),
            command: snapshot.curcid,
            user: pg_sys::GetUserId(),
        })
    }
}

/// What `ask` says of what is known of recommender `id` at this moment.
fn known<T>(id: i32, ask: impl FnOnce(&mut Found) -> T) -> Option<T> {
    let moment = now();
    FOUND.with_borrow_mut(|found| {
        let found = found.as_mut()?;
        (Some(found.moment) == moment && found.recommender.id == id).then(|| ask(found))
    })
}

/// The recommender of that number.
pub fn recommender(id: i32) -> Result<Rc<Recommender>> {
    if let Some(known) = known(id, |found| Rc::clone(&found.recommender)) {
        return Ok(known);
    }
    let recommender = hold(id)?.ok_or_else(|| Error::NoSuchRecommender(id.to_string()))?;
    let recommender = Rc::new(recommender);
    FOUND.set(now().map(|moment| Found {
        moment,
        recommender: Rc::clone(&recommender),
        may: Vec::new(),
    }));
    Ok(recommender)
}

/// Refuses what `require` does; it is not asked again about what it has let pass.
pub fn require(r: &Recommender, kind: Kind, require: impl FnOnce() -> Result<()>) -> Result<()> {
    if known(r.id, |found| found.may.contains(&kind)) == Some(true) {
        return Ok(());
    }
    require()?;
    known(r.id, |found| found.may.push(kind));
    Ok(())
}
