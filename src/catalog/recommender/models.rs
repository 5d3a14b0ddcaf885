//! What a recommender trains, when, and what has become of it.
//!
//! It never trains anything.

use pgrx::prelude::*;
use serde::Deserialize;

use super::Recommender;
use crate::catalog::declare::checks;
use crate::catalog::names::vector_schema;
use crate::catalog::pipeline::When;
use crate::catalog::rights::As;
use crate::dispatch::schedule::Schedule;
use crate::error::{Error, Result};
use crate::recommend::train::Extent;

/// What is trained.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Model {
    /// The lists of items' neighbours, which are also counted as interactions come.
    ItemKnn,
    Ease,
    Als,
}

impl Model {
    pub const ALL: [Model; 3] = [Model::ItemKnn, Model::Ease, Model::Als];

    /// As `collaborative` names it.
    pub fn name(self) -> &'static str {
        match self {
            Model::ItemKnn => "item_knn",
            Model::Ease => "ease",
            Model::Als => "als",
        }
    }
}

/// How a recommender learns from what users have in common, as it is stored.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Learning {
    /// `None`: what is worth it.
    pub collaborative: Option<Vec<String>>,
    #[serde(flatten)]
    pub when: When,
    /// Places in a user's history after which an item counts half; `None`: it does not matter where it stands, neither
    /// now nor when models are trained.
    pub half_life_rank: Option<f64>,
}

/// What was best on the validation cuts of benches/README.md.
const HALF_LIFE_RANK: f64 = 2.0;

impl Learning {
    /// What create_recommender was given.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`].
    pub fn new(
        collaborative: Option<Vec<Option<String>>>,
        schedule: Option<&str>,
        half_life_rank: Option<f64>,
    ) -> Result<Learning> {
        let when = checks::when(Some(schedule.unwrap_or("daily")), None, None)?;
        if !matches!(when.schedule(), Ok(Schedule::Timetable(_))) {
            return Err(Error::argument(
                "schedule",
                format!("{}: models are not trained for each change", when.schedule),
                "The valid ones are hourly, daily, an interval such as 6 hours, and a cron expression such as 30 3 * * *, in the database's time zone.",
            ));
        }
        let half_life_rank = half_life_rank.unwrap_or(HALF_LIFE_RANK);
        if half_life_rank.is_nan() || half_life_rank <= 0.0 {
            return Err(Error::argument(
                "half_life_rank",
                "it is no number of places",
                "Give a positive number, or infinity where an item's place does not matter.",
            ));
        }
        let collaborative = collaborative
            .map(|names| {
                names
                    .into_iter()
                    .flatten()
                    .map(known)
                    .collect::<Result<Vec<_>>>()
            })
            .transpose()?;
        Ok(Learning {
            collaborative: collaborative.map(|mut names| {
                names.sort();
                names.dedup();
                names
            }),
            when,
            half_life_rank: Some(half_life_rank).filter(|places| places.is_finite()),
        })
    }

    /// Whether lists are made of neighbours.
    pub fn has_neighbours(&self) -> bool {
        self.names(Model::ItemKnn.name())
    }

    /// What is to be trained.
    pub fn models(&self) -> impl Iterator<Item = Model> {
        Model::ALL
            .into_iter()
            .filter(|model| self.names(model.name()))
    }

    /// Whether it was said what is to be trained, and not only counted: then it is, be it worth it or not.
    pub fn is_chosen(&self) -> bool {
        self.collaborative.is_some() && self.models().any(|model| model != Model::ItemKnn)
    }

    /// With what alter_recommender was given; what is `None` stays.
    pub fn changed(
        &self,
        collaborative: Option<Vec<Option<String>>>,
        schedule: Option<&str>,
        half_life_rank: Option<f64>,
    ) -> Result<Learning> {
        let stays = || {
            Some(
                self.collaborative
                    .as_ref()?
                    .iter()
                    .cloned()
                    .map(Some)
                    .collect(),
            )
        };
        let places = self.half_life_rank.unwrap_or(f64::INFINITY);
        Learning::new(
            collaborative.or_else(stays),
            Some(schedule.unwrap_or(&self.when.schedule)),
            Some(half_life_rank.unwrap_or(places)),
        )
    }

    /// Into the recommender's row.
    pub(super) fn write(&self, id: i32) -> Result<()> {
        const WRITE: &str = "\
UPDATE recsync.recommender SET collaborative = $2, schedule = $3, every = $4 * interval '1 s', half_life_rank = $5 WHERE id = $1";
        let _as = As::extension();
        Spi::run_with_args(
            WRITE,
            &[
                id.into(),
                self.collaborative.clone().into(),
                self.when.schedule.as_str().into(),
                self.when.every_s.into(),
                self.half_life_rank.into(),
            ],
        )?;
        Ok(())
    }

    /// For a person: half_life_rank, collaborative, schedule.
    pub fn text(&self) -> [String; 3] {
        let places = self.half_life_rank.unwrap_or(f64::INFINITY);
        let names = self.collaborative.as_ref();
        let names = names.map_or("what is worth it".into(), |names| names.join(", "));
        [places.to_string(), names, self.when.text()]
    }

    fn names(&self, name: &str) -> bool {
        match &self.collaborative {
            Some(names) => names.iter().any(|given| given == name),
            None => [Model::ItemKnn, Model::Ease]
                .iter()
                .any(|model| model.name() == name),
        }
    }
}

fn known(name: String) -> Result<String> {
    if Model::ALL.iter().any(|model| model.name() == name) {
        return Ok(name);
    }
    let all: Vec<&str> = Model::ALL.iter().map(|model| model.name()).collect();
    Err(Error::argument(
        "collaborative",
        format!("there is no model {name}"),
        format!("The valid ones are {}; '{{}}' for none.", all.join(", ")),
    ))
}

/// What EASE has learned: how much an item says for another one.
pub fn ease(id: i32) -> String {
    format!("recsync.ease_{id}")
}

/// What ALS has made of items.
pub fn item_factors(id: i32) -> String {
    format!("recsync.item_factor_{id}")
}

/// And of users.
pub fn user_factors(id: i32) -> String {
    format!("recsync.user_factor_{id}")
}

/// What items' factors come to, in one row: whoever has come since is told by it.
pub fn factor_squares(id: i32) -> String {
    format!("recsync.factor_square_{id}")
}

pub fn all(id: i32) -> [String; 4] {
    [
        ease(id),
        item_factors(id),
        user_factors(id),
        factor_squares(id),
    ]
}

/// Statements that make them, for `owner`, with the types of the interactions' columns.
pub(super) fn tables(id: i32, interactions: &str, owner: &str) -> Result<Vec<String>> {
    let vector =
        vector_schema().ok_or_else(|| Error::Internal("extension vector is missing".into()))?;
    let [ease, of_items, of_users, squares] = all(id);
    let factors = |table: &str, of: &str| {
        format!(
            "CREATE TABLE {table} AS SELECT {of} AS key, NULL::{vector}.vector AS factors FROM {interactions} WITH NO DATA"
        )
    };
    let key = |table: &str| {
        format!("ALTER TABLE {table} ADD PRIMARY KEY (key), ALTER factors SET NOT NULL")
    };
    let own = |table: &str| format!("ALTER EXTENSION recsync ADD TABLE {table}");
    Ok(vec![
        format!(
            "CREATE TABLE {ease} AS SELECT item_id, item_id AS other_id, 0::float4 AS weight FROM {interactions} WITH NO DATA"
        ),
        format!(
            "ALTER TABLE {ease} ADD PRIMARY KEY (item_id, other_id), ALTER weight SET NOT NULL"
        ),
        factors(&of_items, "item_id"),
        factors(&of_users, "user_id"),
        key(&of_items),
        key(&of_users),
        format!("CREATE TABLE {squares} (place integer PRIMARY KEY, numbers float8[] NOT NULL)"),
        format!(
            "GRANT SELECT, INSERT, UPDATE, DELETE ON {ease}, {of_items}, {of_users}, {squares} TO {owner}"
        ),
        own(&ease),
        own(&of_items),
        own(&of_users),
        own(&squares),
        format!("DELETE FROM recsync.trained_model WHERE recommender_id = {id}"),
    ])
}

/// What has become of a model's training.
pub struct Outcome<'a> {
    pub model: Model,
    pub extent: Extent,
    pub bytes: u64,
    /// Why it has come to nothing.
    pub error: Option<&'a str>,
}

/// Writes down what has become of a training that began at `started` (as PostgreSQL's timestamps).
pub fn note(
    recommender: &Recommender,
    started: TimestampWithTimeZone,
    outcome: &Outcome,
) -> Result<()> {
    const NOTE: &str = "\
INSERT INTO recsync.trained_model AS m (recommender_id, model, started_at, trained_at, users, items, interactions, memory_bytes, error)
SELECT r.id, $2, $3, CASE WHEN $8 IS NULL THEN pg_catalog.clock_timestamp() END, $4, $5, $6, $7, $8 FROM recsync.recommender r WHERE r.id = $1
    ON CONFLICT (recommender_id, model) DO UPDATE SET started_at = excluded.started_at, trained_at = COALESCE(excluded.trained_at, m.trained_at),
       users = excluded.users, items = excluded.items, interactions = excluded.interactions, memory_bytes = excluded.memory_bytes, error = excluded.error";
    let _as = As::extension();
    Spi::run_with_args(
        NOTE,
        &[
            recommender.id.into(),
            outcome.model.name().into(),
            started.into(),
            outcome.extent.users.into(),
            outcome.extent.items.into(),
            outcome.extent.pairs.into(),
            (outcome.bytes as i64).into(),
            outcome.error.into(),
        ],
    )?;
    Ok(())
}
