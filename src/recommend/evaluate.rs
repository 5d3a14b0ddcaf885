//! recsync.evaluate: how good a recommender's lists would have been, had they been made a while ago.
//!
//! A part of each user's items is held out, everything that is kept is counted and trained anew from the rest, in tables
//! of its own, and the lists that recommend() makes of that are compared with what was held out (offline evaluation;
//! Cañamares, Castells, Moffat, Information Retrieval 2020, on the choices). It never changes what is in service, and
//! leaves nothing.

use pgrx::pg_sys;
use pgrx::prelude::*;
use std::collections::{BTreeMap, HashMap, HashSet};

// How good lists are.
mod measures;

// What is held out, and what is made of the rest.
mod holdout;

use super::lists::content::For;
use super::lists::learnt;
use super::lists::question::Question;
use super::lists::statements;
use super::train::{self, Inputs};
use crate::catalog::expression::{self, Wanted};
use crate::catalog::names::select_one;
use crate::catalog::recommender::{Recommender, find, require_owner, tables};
use crate::catalog::rights::{As, with_settings};
use crate::error::{Error, OrReport, Result};
use crate::settings;
use holdout::{Case, Holdout};
use measures::{Means, Measures};

type Row = (String, i64, f64, f64, f64, f64, f64, f64, f64);

/// All of it, as recommend() lists it.
const BLEND: &str = "recommend";
/// Beside it: by how many users have an item, and by chance.
const POPULAR: &str = "by users";
const RANDOM: &str = "random";

#[pg_extern(sql = r#"
CREATE FUNCTION evaluate(name text, k integer DEFAULT 10, holdout text DEFAULT 'last', sample integer DEFAULT 1000, hit text DEFAULT 'true')
RETURNS TABLE (source text, users bigint, ndcg double precision, recall double precision, "precision" double precision, mrr double precision, hit_rate double precision, coverage double precision, novelty double precision)
LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION evaluate(text, integer, text, integer, text) IS
'How good a recommender''s lists of k would have been: a part of each user''s items is held out, everything is counted and trained anew without it, and lists are compared with it. name: a recommender; holdout: last (the last fifth of each user''s items by the time of the first interaction with them, at least one), random (any fifth), time (all that came after four fifths of all users'' items had); sample: how many users are asked for, of those with five items left and one held out (NULL: all of them); hit: an SQL expression over an interaction, whether it makes an item that is held out relevant. Returns a row for the list as recommend makes it, for each of its sources alone (ease, als, neighbours, interest, popular, latest), for what most users have (by users) and for chance (random): users, and their means of NDCG, recall, precision, MRR and hit rate at k; coverage, the share of the items that is listed for anybody; novelty, the mean of -log2 of the share of users that have what is listed. Takes as long as counting and training all of it, and a list a user. By the owner of the items. Errors: 42704 unknown recommender, 42501 for others, 22023 for an impossible argument, 25006 on a standby, 55000 where nothing is kept yet.';
"#)]
#[allow(clippy::type_complexity)] // the columns of an SQL function
fn evaluate(
    name: &str,
    k: Option<i32>,
    holdout: Option<&str>,
    sample: Option<i32>,
    hit: Option<&str>,
) -> TableIterator<
    'static,
    (
        name!(source, String),
        name!(users, i64),
        name!(ndcg, f64),
        name!(recall, f64),
        name!(precision, f64),
        name!(mrr, f64),
        name!(hit_rate, f64),
        name!(coverage, f64),
        name!(novelty, f64),
    ),
> {
    let rows = evaluated(
        name,
        k.unwrap_or(10),
        holdout.unwrap_or("last"),
        sample,
        hit.unwrap_or("true"),
    );
    TableIterator::new(rows.or_report())
}

fn evaluated(
    name: &str,
    k: i32,
    holdout: &str,
    sample: Option<i32>,
    hit: &str,
) -> Result<Vec<Row>> {
    crate::catalog::install::require_primary()?;
    if !(1..=1_000).contains(&k) {
        let reason = format!("{k} places cannot be looked at");
        return Err(Error::argument("k", reason, "Give 1 to 1000."));
    }
    if sample.is_some_and(|sample| sample < 1) {
        let reason = "nobody would be asked for".to_owned();
        let hint = "Give a number of users, or NULL for all of them.";
        return Err(Error::argument("sample", reason, hint));
    }
    let holdout = Holdout::of(holdout)?;
    let recommender = find(name)?;
    require_owner(&recommender)?;
    if !recommender.is_kept() {
        return Err(recommender.broken("its tables do not exist yet".into()));
    }
    let hit = expression::parse("hit", recommender.source_oid(), hit, Wanted::Boolean)?;
    if recommender.members().len() > 1 {
        return Err(Error::Option {
            code: PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
            message: format!(
                "recommender {} has several tables of interactions",
                recommender.name
            ),
            detail: None,
            hint: Some("evaluate() knows one table: make a recommender over a table or materialized copy of all of them.".into()),
        });
    }
    let shadow = shadow_of(&recommender)?;
    tables::make(&shadow)?;
    let cases = with_own_writes(|| holdout.split(&recommender, &shadow, &hit.sql, sample))?;
    train_models(&shadow)?;
    let rows = with_own_writes(|| measure(&shadow, &cases, k as usize))?;
    tables::drop(shadow.id, &shadow.members())?;
    Ok(rows)
}

/// The same under another number, whose tables are its own.
fn shadow_of(recommender: &Recommender) -> Result<Recommender> {
    const NUMBER: &str = "SELECT pg_catalog.nextval('recsync.pipeline_id_seq')::int4";
    let number = {
        let _as = As::extension();
        select_one::<i32>(NUMBER, &[])?
    };
    Ok(recommender.under(number.unwrap_or_default()))
}

/// Statements that only read see what this transaction has written.
fn with_own_writes<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    // SAFETY: popped below; an ERROR's abort pops it, too.
    unsafe {
        pg_sys::CommandCounterIncrement();
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
    }
    let result = body();
    // SAFETY: the one pushed above.
    unsafe { pg_sys::PopActiveSnapshot() };
    result
}

fn train_models(shadow: &Recommender) -> Result<()> {
    let extent = with_own_writes(|| train::extent(shadow))?;
    let mut inputs = Inputs::default();
    for model in shadow.learning.models() {
        let bytes = train::bytes(model, &extent);
        if bytes > settings::training_memory() {
            let megabytes = bytes.div_ceil(1024 * 1024);
            notice!(
                "{} is left out: it takes {megabytes} MB, more than recsync.training_memory",
                model.name()
            );
            continue;
        }
        let input = with_own_writes(|| inputs.read(shadow, model))?;
        match train::trained(model, &input)? {
            Ok(trained) => train::write(shadow, &input, &trained)?,
            Err(error) => notice!("{} is left out: {error}", model.name()),
        }
    }
    Ok(())
}

/// Items by numbers, and how many of all users have each.
#[derive(Default)]
struct Catalogue {
    numbers: HashMap<String, usize>,
    users_of: Vec<i64>,
    users: i64,
    /// Those that may be listed, those that most users have first.
    listable: Vec<usize>,
}

impl Catalogue {
    fn number(&mut self, key: &str) -> usize {
        if let Some(number) = self.numbers.get(key) {
            return *number;
        }
        let number = self.users_of.len();
        self.numbers.insert(key.to_owned(), number);
        self.users_of.push(0);
        number
    }

    fn load(shadow: &Recommender) -> Result<Catalogue> {
        let key = shadow.item_key()?;
        let pairs = train::pairs(shadow);
        let listable = format!(
            "SELECT s.{key}::text, COALESCE(p.users, 0)
               FROM {rows} s LEFT JOIN (SELECT p.item_id, pg_catalog.count(*) AS users FROM {pairs} p GROUP BY p.item_id) p ON p.item_id {equals} s.{key}
              WHERE {eligible} ORDER BY 2 DESC, s.{key}",
            key = key.column,
            rows = shadow.items_rows.as_deref().unwrap_or_default(),
            equals = key.equals,
            eligible = shadow.eligible,
        );
        let users = format!("SELECT pg_catalog.count(DISTINCT p.user_id) FROM {pairs} p");
        let mut catalogue = Catalogue {
            users: select_one::<i64>(&users, &[])?.unwrap_or(0),
            ..Catalogue::default()
        };
        Spi::connect(|client| {
            for row in client.select(listable.as_str(), None, &[])? {
                let number = catalogue.number(&row.get::<String>(1)?.unwrap_or_default());
                if let Some(users_of) = catalogue.users_of.get_mut(number) {
                    *users_of = row.get::<i64>(2)?.unwrap_or(0);
                }
                catalogue.listable.push(number);
            }
            Ok::<(), Error>(())
        })?;
        Ok(catalogue)
    }

    /// An item that nobody has counts as one that one user has.
    fn share(&self, item: usize) -> f64 {
        let users = self.users_of.get(item).copied().unwrap_or(0).max(1);
        users as f64 / self.users.max(1) as f64
    }
}

fn measure(shadow: &Recommender, cases: &[Case], k: usize) -> Result<Vec<Row>> {
    let _as = As::owner(shadow.owner());
    let mut catalogue = Catalogue::load(shadow)?;
    let mut measures: BTreeMap<String, Measures> = BTreeMap::new();
    let sources = statements::sources(shadow);
    for source in sources.iter().copied().chain([BLEND, POPULAR, RANDOM]) {
        measures.insert(source.to_owned(), Measures::at(k));
    }
    for (number, case) in cases.iter().enumerate() {
        let mut lists = lists(shadow, case, k, &mut catalogue)?;
        let had: HashSet<usize> = case.has.iter().map(|item| catalogue.number(item)).collect();
        let relevant = case.relevant.iter().map(|item| catalogue.number(item));
        let relevant: HashSet<usize> = relevant.collect();
        let others = |items: &[usize]| -> Vec<usize> {
            let others = items.iter().filter(|item| !had.contains(item));
            others.take(k).copied().collect()
        };
        lists.insert(POPULAR.to_owned(), others(&catalogue.listable));
        let mut any = catalogue.listable.clone();
        fastrand::Rng::with_seed(number as u64).shuffle(&mut any);
        lists.insert(RANDOM.to_owned(), others(&any));
        let none = Vec::new();
        for (source, measures) in &mut measures {
            let list = lists.get(source).unwrap_or(&none);
            measures.add(list, &relevant, |item| catalogue.share(item));
        }
        pgrx::check_for_interrupts!();
    }
    let order = [BLEND].into_iter().chain(sources).chain([POPULAR, RANDOM]);
    Ok(order
        .filter_map(|source| {
            let means = measures.get(source)?.means(catalogue.listable.len());
            Some(row(source, &means))
        })
        .collect())
}

/// The blend's list for a user, and those of its sources, each the first k.
fn lists(
    shadow: &Recommender,
    case: &Case,
    k: usize,
    catalogue: &mut Catalogue,
) -> Result<HashMap<String, Vec<usize>>> {
    let mut lists: HashMap<String, Vec<usize>> = HashMap::new();
    let mut placed: HashMap<String, BTreeMap<i32, usize>> = HashMap::new();
    let of = For {
        user: Some(&case.user),
        session: &[],
        exclude_seen: true,
    };
    let nearest = of.nearest(shadow, shadow, &Question::default(), |_| Ok(()))?;
    let factors = learnt::factors(shadow, of.user, of.session)?;
    let statement = statements::recommend(shadow)?;
    let arguments = of.arguments(&nearest, &factors);
    with_settings(&[(c"jit", c"off")], || {
        Spi::connect(|client| {
            for row in client.select(statement.as_str(), None, &arguments)? {
                let item = catalogue.number(&row.get::<String>(1)?.unwrap_or_default());
                let blend = lists.entry(BLEND.to_owned()).or_default();
                if blend.len() < k {
                    blend.push(item);
                }
                let places = row.get::<Vec<Option<i32>>>(3)?.unwrap_or_default();
                for (source, place) in statements::places_by_source(&places) {
                    if place as usize <= k {
                        let placed = placed.entry(source.to_owned()).or_default();
                        placed.insert(place, item);
                    }
                }
            }
            Ok::<(), Error>(())
        })
    })?;
    for (source, places) in placed {
        lists.insert(source, places.into_values().collect());
    }
    Ok(lists)
}

fn row(source: &str, means: &Means) -> Row {
    (
        source.to_owned(),
        means.users as i64,
        means.ndcg,
        means.recall,
        means.precision,
        means.mrr,
        means.hit_rate,
        means.coverage,
        means.novelty,
    )
}
