//! Models of what users have to do with, trained on what is kept of their interactions.
//!
//! Reading, training and writing are three steps: no transaction is open while a model is trained, and what was there
//! before is replaced in one, so that whoever reads sees one generation or the other. It never takes more memory than
//! it has said before.

use pgrx::prelude::*;
use std::collections::TryReserveError;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

// What models are made of.
pub mod sets;

// Which items are alike.
pub mod knn;

// By which items another one is told.
pub mod ease;

// Numbers of users and items, whose product counts.
pub mod als;

use super::query::{BUSY, leave_at_once_with_threads};
use crate::catalog::names::select_one;
use crate::catalog::recommender::{Model, Recommender, models};
use crate::catalog::rights::{As, with_settings};
use crate::embed::lane::with_signals_blocked;
use crate::error::{Error, Result};
use crate::worker::process::Bell;
use als::Factors;
use ease::Weight;
use sets::Sets;

/// λ of EASE: of the order that the paper found for its data sets, chosen on the validation cuts of benches/README.md.
pub const LAMBDA: f64 = 100.0;
/// Weights of EASE that are kept of an item, the heaviest by which it tells others, for or against them: on the validation
/// cuts and on what was held out lists were as good as with all of them, within 4% (benches/README.md).
pub const WEIGHTS: usize = 200;
/// Those of implicit 0.7 where it has defaults, and the width and certainty that were the best for it on the validation
/// cut.
pub const ALS: als::Settings = als::Settings {
    width: 64,
    alpha: 20.0,
    lambda: 0.05,
    rounds: 15,
    seed: 20_081_215,
};
/// A recommender that was not told to train anything does so from this many pairs of a user and an item on: of fewer,
/// models say less than the neighbours do.
pub const LEAST: usize = 500;

/// Bytes that a pair of a user and an item takes while it is read and counted.
const PAIR_BYTES: u64 = 40;
/// And an item's key.
const KEY_BYTES: u64 = 96;
/// Rows that are written at once.
const CHUNK: usize = 20_000;

/// What a recommender's interactions come to.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    pub users: i64,
    pub items: i64,
    pub pairs: i64,
}

/// What a model is trained on.
pub enum Input {
    Pairs(Pairs),
    Likeness(knn::Input),
}

/// What has been read, once for all models that are trained on it.
#[derive(Default)]
pub struct Inputs(Option<Arc<Input>>);

pub struct Pairs {
    /// What chance begins with: the same for the same recommender.
    seed: u64,
    /// Keys of the items and the users, by their numbers.
    keys: Vec<String>,
    users: Vec<String>,
    sets: Sets,
}

/// What has come of it.
pub enum Trained {
    Lists(Vec<knn::List>),
    Ease(Vec<Weight>),
    Als(Factors),
}

/// Why nothing has.
#[derive(Debug, thiserror::Error)]
pub enum NoModel {
    #[error("the server has not the memory for it")]
    Memory,
    #[error("a matrix has no Cholesky factor")]
    NotPositive,
    #[error("nobody waits for it any more")]
    Stopped,
}

/// Set once nobody waits any more for what a thread trains; it looks from time to time.
#[derive(Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    #[cfg(test)]
    pub fn set() -> Stop {
        Stop(Arc::new(AtomicBool::new(true)))
    }

    pub fn check(&self) -> std::result::Result<(), NoModel> {
        match self.0.load(SeqCst) {
            true => Err(NoModel::Stopped),
            false => Ok(()),
        }
    }
}

/// Stops the thread when whoever waits for it is gone, by an error too.
struct Waiting(Stop);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.0.store(true, SeqCst);
    }
}

impl From<TryReserveError> for NoModel {
    fn from(_: TryReserveError) -> NoModel {
        NoModel::Memory
    }
}

/// Users and the items that they have had to do with, of all their interactions.
pub fn pairs(recommender: &Recommender) -> String {
    format!(
        "(SELECT e.user_id, e.item_id, pg_catalog.max(e.at) AS at FROM {} e GROUP BY e.user_id, e.item_id HAVING pg_catalog.sum(e.weight::numeric) > 0)",
        recommender.interactions()
    )
}

/// How much there is to train on.
pub fn extent(recommender: &Recommender) -> Result<Extent> {
    let sql = format!(
        "SELECT ARRAY[pg_catalog.count(DISTINCT p.user_id), pg_catalog.count(DISTINCT p.item_id), pg_catalog.count(*)] FROM {} p",
        pairs(recommender)
    );
    let _as = As::owner(recommender.owner());
    let counts = select_one::<Vec<i64>>(&sql, &[])?.unwrap_or_default();
    let [users, items, pairs] = std::array::from_fn(|n| counts.get(n).copied().unwrap_or(0));
    Ok(Extent {
        users,
        items,
        pairs,
    })
}

/// Whether there are as many pairs as that.
pub fn missing(recommender: &Recommender, wanted: usize) -> Result<usize> {
    let sql = format!(
        "SELECT pg_catalog.count(*) FROM (SELECT FROM {} p LIMIT {wanted}) AS counted",
        pairs(recommender)
    );
    let _as = As::owner(recommender.owner());
    let there = select_one::<i64>(&sql, &[])?.unwrap_or(0) as usize;
    Ok(wanted - there.min(wanted))
}

/// The most bytes that a model's training takes.
pub fn bytes(model: Model, extent: &Extent) -> u64 {
    let counts = [extent.users, extent.items, extent.pairs].map(|count| count.max(0) as usize);
    let [users, items, pairs] = counts;
    let input = pairs as u64 * PAIR_BYTES + (users + items) as u64 * KEY_BYTES;
    input
        + match model {
            Model::ItemKnn => knn::bytes(items, pairs),
            Model::Ease => ease::bytes(items, WEIGHTS),
            Model::Als => als::bytes(users, items, pairs, ALS.width),
        }
}

impl Input {
    /// Of pairs, how much it is.
    pub fn extent(&self) -> Option<Extent> {
        let Input::Pairs(Pairs { sets, .. }) = self else {
            return None;
        };
        Some(Extent {
            users: sets.users() as i64,
            items: sets.items() as i64,
            pairs: sets.pairs() as i64,
        })
    }
}

impl Inputs {
    /// As one snapshot shows it.
    pub fn read(&mut self, recommender: &Recommender, model: Model) -> Result<Arc<Input>> {
        if model == Model::ItemKnn {
            return Ok(Arc::new(Input::Likeness(knn::read(recommender)?)));
        }
        let pairs = match self.0.take() {
            Some(pairs) => pairs,
            None => Arc::new(Input::Pairs(read(recommender)?)),
        };
        Ok(Arc::clone(self.0.insert(pairs)))
    }
}

fn read(recommender: &Recommender) -> Result<Pairs> {
    // What came at the same time has the same place.
    let place = match recommender.learning.half_life_rank {
        Some(_) => "pg_catalog.rank() OVER (PARTITION BY p.user_id ORDER BY p.at)::int4",
        None => "0",
    };
    // The keys come in the order of their numbers.
    let numbered = format!(
        "SELECT pg_catalog.array_agg(n.u), pg_catalog.array_agg(n.i), pg_catalog.array_agg(n.place)
           FROM (SELECT pg_catalog.dense_rank() OVER (ORDER BY p.user_id)::int4 AS u,
                        pg_catalog.dense_rank() OVER (ORDER BY p.item_id)::int4 AS i, {place} AS place FROM {} p) n",
        pairs(recommender)
    );
    let keys = |of: &str| {
        format!(
            "SELECT pg_catalog.array_agg(k.{of}::text ORDER BY k.{of}) FROM (SELECT DISTINCT p.{of} FROM {} p) k",
            pairs(recommender)
        )
    };
    let _as = As::owner(recommender.owner());
    with_settings(&[(c"jit", c"off")], || {
        Spi::connect(|client| {
            let row = client.select(numbered.as_str(), None, &[])?.first();
            let users = row.get::<Vec<i32>>(1)?.unwrap_or_default();
            let items = row.get::<Vec<i32>>(2)?.unwrap_or_default();
            let places = row.get::<Vec<i32>>(3)?.unwrap_or_default();
            let keys = |of: &str| -> Result<Vec<String>> {
                let row = client.select(keys(of).as_str(), None, &[])?.first();
                Ok(row.get::<Vec<String>>(1)?.unwrap_or_default())
            };
            Ok(Pairs {
                seed: seed(&recommender.name),
                keys: keys("item_id")?,
                users: keys("user_id")?,
                sets: Sets::with_places(&users, &items, &places),
            })
        })
    })
}

/// Trained on a thread, while this one waits, interruptible.
///
/// # Errors
/// Of the outer ones, that there is no thread; of the inner ones, why there is no model, in words.
pub fn trained(model: Model, input: &Arc<Input>) -> Result<std::result::Result<Trained, String>> {
    let input = Arc::clone(input);
    on_a_thread(move |stop| match &*input {
        Input::Likeness(input) => knn::count(input, stop).map(Trained::Lists),
        Input::Pairs(input) if model == Model::Als => {
            let settings = als::Settings {
                seed: input.seed,
                ..ALS
            };
            als::train(&input.sets, &settings, stop).map(Trained::Als)
        }
        Input::Pairs(input) => ease::train(&input.sets, LAMBDA, WEIGHTS, stop).map(Trained::Ease),
    })
}

/// Another for each name.
fn seed(name: &str) -> u64 {
    let bytes = name.bytes().map(u64::from);
    bytes.fold(ALS.seed, |seed, byte| {
        seed.wrapping_mul(31).wrapping_add(byte)
    })
}

fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce(&Stop) -> std::result::Result<T, NoModel> + Send + 'static,
) -> Result<std::result::Result<T, String>> {
    /// Against a bell that got lost.
    const LOOK: Duration = Duration::from_secs(60);
    leave_at_once_with_threads();
    let mut bell = Bell::new()?;
    let ring = bell.ringer()?;
    let (give, given) = crossbeam_channel::bounded(1);
    let stop = Stop::default();
    let _waiting = Waiting(stop.clone());
    let spawned = with_signals_blocked(|| {
        let work = move || {
            BUSY.fetch_add(1, SeqCst);
            let done = std::panic::catch_unwind(AssertUnwindSafe(|| work(&stop)));
            let _ = give.send(match done {
                Ok(done) => done.map_err(|error| error.to_string()),
                Err(_) => Err("it has panicked".into()),
            });
            ring();
            BUSY.fetch_sub(1, SeqCst);
        };
        let thread = std::thread::Builder::new().name("recsync train".into());
        thread.spawn(work)
    });
    spawned.map_err(|error| Error::Internal(format!("no thread: {error}")))?;
    loop {
        match given.try_recv() {
            Ok(done) => return Ok(done),
            Err(_) => bell.wait(LOOK),
        }
    }
}

/// Puts it in the place of what was there; lists, where none were.
pub fn write(recommender: &Recommender, input: &Input, trained: &Trained) -> Result<()> {
    let _as = As::owner(recommender.owner());
    match (input, trained) {
        (Input::Likeness(input), Trained::Lists(lists)) => {
            knn::write_all(recommender, input, lists)
        }
        (Input::Pairs(input), Trained::Ease(weights)) => {
            write_weights(recommender, &input.keys, weights)
        }
        (Input::Pairs(input), Trained::Als(factors)) => {
            let (item, user) = (recommender.item_key()?, recommender.user_key()?);
            let of_items = models::item_factors(recommender.id);
            let of_users = models::user_factors(recommender.id);
            // Of whom nothing is kept any more, nothing is written. Whoever is being forgotten waits, or is already.
            Spi::run(&format!(
                "LOCK TABLE {of_users} IN SHARE ROW EXCLUSIVE MODE"
            ))?;
            let there = format!(
                "EXISTS (SELECT FROM {} e WHERE e.user_id {} (v.key)::{})",
                recommender.interactions(),
                user.equals,
                user.type_name
            );
            write_factors(
                &of_items,
                &item.type_name,
                "true",
                &input.keys,
                &factors.items,
            )?;
            write_factors(
                &of_users,
                &user.type_name,
                &there,
                &input.users,
                &factors.users,
            )?;
            let squares = models::factor_squares(recommender.id);
            Spi::run(&format!("DELETE FROM {squares}"))?;
            let insert = format!("INSERT INTO {squares} VALUES (1, $1)");
            Ok(Spi::run_with_args(
                &insert,
                &[factors.squares.clone().into()],
            )?)
        }
        _ => Err(Error::Internal("a model of something else".into())),
    }
}

fn write_factors(
    table: &str,
    kind: &str,
    there: &str,
    keys: &[String],
    factors: &[f32],
) -> Result<()> {
    Spi::run(&format!("DELETE FROM {table}"))?;
    let insert = format!(
        "INSERT INTO {table} (key, factors)
         SELECT (v.key)::{kind}, (v.factors)::vector FROM ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[])) AS v (key, factors)
          WHERE {there}"
    );
    let rows = factors.chunks_exact(ALS.width).map(|row| {
        let numbers: Vec<String> = row.iter().map(f32::to_string).collect();
        format!("[{}]", numbers.join(","))
    });
    let rows: Vec<String> = rows.collect();
    for (keys, rows) in keys.chunks(CHUNK).zip(rows.chunks(CHUNK)) {
        Spi::run_with_args(&insert, &[keys.to_vec().into(), rows.to_vec().into()])?;
        pgrx::check_for_interrupts!();
    }
    Ok(())
}

fn write_weights(recommender: &Recommender, keys: &[String], weights: &[Weight]) -> Result<()> {
    let table = models::ease(recommender.id);
    let kind = &recommender.item_key()?.type_name;
    let insert = format!(
        "INSERT INTO {table} (item_id, other_id, weight)
         SELECT (v.item)::{kind}, (v.other)::{kind}, v.weight
           FROM ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[]), pg_catalog.unnest($3::float4[])) AS v (item, other, weight)"
    );
    Spi::run(&format!("DELETE FROM {table}"))?;
    let key = |number: u32| keys.get(number as usize).cloned().unwrap_or_default();
    // As they are read: what one item says for others lies together.
    let mut in_order: Vec<&Weight> = weights.iter().collect();
    in_order.sort_unstable_by_key(|weight| (weight.item, weight.other));
    for chunk in in_order.chunks(CHUNK) {
        let items: Vec<String> = chunk.iter().map(|weight| key(weight.item)).collect();
        let others: Vec<String> = chunk.iter().map(|weight| key(weight.other)).collect();
        let weights: Vec<f32> = chunk.iter().map(|weight| weight.weight).collect();
        Spi::run_with_args(&insert, &[items.into(), others.into(), weights.into()])?;
        pgrx::check_for_interrupts!();
    }
    Ok(())
}
