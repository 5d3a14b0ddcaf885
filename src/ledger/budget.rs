//! What is left of a month's budget, of a pipeline and of its server, and what is said when it is spent.
//!
//! It never stops a pipeline by itself: the worker does, which sends nothing more for it.

use pgrx::datum::AnyNumeric;
use pgrx::prelude::*;
use std::collections::BTreeMap;

use super::month::Month;
use crate::capture::wake;
use crate::catalog::pipeline::{self, Pipeline};
use crate::catalog::rights::As;
use crate::error::{Error, OrReport, Result};

/// From this share of a budget on there is a warning.
const WARNING: f64 = 0.8;

/// A budget and what has been spent of it.
#[derive(Clone, Copy, Debug)]
pub struct Account<'a> {
    pub budget: f64,
    pub spent: f64,
    pub currency: &'a str,
    /// The server whose budget it is; `None`: the pipeline's own.
    pub server: Option<&'a str>,
}

/// What is to be said of a pipeline's budgets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Nothing more is sent.
    pub stops: bool,
    pub text: String,
}

impl Account<'_> {
    fn notice(&self) -> Option<Notice> {
        let stops = self.spent >= self.budget;
        if !stops && self.spent < WARNING * self.budget {
            return None;
        }
        let whose = match self.server {
            Some(server) => format!(" of server \"{server}\""),
            None => String::new(),
        };
        let budget = format!(
            "the monthly budget of {} {}{whose}",
            self.budget, self.currency
        );
        let text = match stops {
            true => format!("{budget} is spent"),
            false => format!("80% of {budget} is spent"),
        };
        Some(Notice { stops, text })
    }
}

/// What is to be said first, and of which of them.
pub fn notice<'a>(accounts: &[Account<'a>]) -> Option<(Notice, Account<'a>)> {
    let notices = accounts.iter();
    let notices = notices.filter_map(|account| Some((account.notice()?, *account)));
    notices.reduce(|one, other| {
        if other.0.stops && !one.0.stops {
            other
        } else {
            one
        }
    })
}

/// What hooks are told of a notice.
pub struct Figures {
    pub server: String,
    pub spent: f64,
    pub budget: f64,
    pub currency: String,
}

/// Notices by pipeline.
pub type Notices = BTreeMap<i32, Notice>;

/// Writes down what is to be said of these pipelines; those that are not in `notices` have nothing. Which texts are
/// new this month. As recsync's owner.
pub fn publish(pipelines: &[i32], notices: &Notices, month: Month) -> Result<Vec<(i32, String)>> {
    const SAY: &str = "\
INSERT INTO recsync.budget_notice AS n (pipeline_id, month, notice, stops) SELECT p.id, $2::date, $3, $4 FROM recsync.pipeline p WHERE p.id = $1
ON CONFLICT (pipeline_id) DO UPDATE SET month = excluded.month, notice = excluded.notice, stops = excluded.stops
 WHERE (n.month, n.notice) IS DISTINCT FROM (excluded.month, excluded.notice) RETURNING pipeline_id";
    let quiet: Vec<i32> = pipelines
        .iter()
        .copied()
        .filter(|id| !notices.contains_key(id))
        .collect();
    retract(&quiet)?;
    let mut news = Vec::new();
    for (id, notice) in notices {
        let arguments = [
            (*id).into(),
            month.first_day().into(),
            notice.text.as_str().into(),
            notice.stops.into(),
        ];
        let said = Spi::connect_mut(|client| {
            let said = client.update(SAY, None, &arguments)?;
            Ok::<_, Error>(!said.is_empty())
        })?;
        if said {
            news.push((*id, notice.text.clone()));
        }
    }
    Ok(news)
}

/// A budget as it was given.
pub fn check(budget: Option<&AnyNumeric>) -> Result<()> {
    let bad = |budget: &&AnyNumeric| !matches!(f64::try_from((*budget).clone()), Ok(0.0..=1e9));
    match budget.filter(bad) {
        None => Ok(()),
        Some(budget) => Err(Error::argument(
            "monthly_budget",
            format!("{budget} cannot be spent"),
            "Give an amount from 0 to 1000000000, in the currency of the server, or NULL for none.",
        )),
    }
}

/// Sets what a pipeline may spend in a month, all of its generations together; the worker is to be told. As recsync's owner.
pub fn set(pipeline: &Pipeline, budget: Option<AnyNumeric>) -> Result<()> {
    const SET: &str = "\
WITH changed AS (UPDATE recsync.pipeline SET monthly_budget = $2 WHERE $1 IN (id, of_pipeline) RETURNING id)
SELECT pg_catalog.array_agg(id) FROM changed";
    let changed = Spi::get_one_with_args::<Vec<i32>>(SET, &[pipeline.id.into(), budget.into()])?;
    retract(&changed.unwrap_or_default())
}

/// What was said of these pipelines may be true no more: the worker says it again if it is. Who waits for one is not
/// refused meanwhile. As recsync's owner.
pub fn retract(pipelines: &[i32]) -> Result<()> {
    Spi::run_with_args(
        "DELETE FROM recsync.budget_notice WHERE pipeline_id = ANY ($1)",
        &[pipelines.to_vec().into()],
    )?;
    Ok(())
}

#[pg_extern(sql = r#"
CREATE FUNCTION set_budget(name text, monthly_budget numeric) RETURNS void LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION set_budget(text, numeric) IS
'What a pipeline may spend in a calendar month (UTC), in the currency of its server; NULL: as much as it needs. At 80% recsync.status has a warning, at 100% nothing more is sent for it until the month is over or the budget is raised. The server''s option monthly_budget holds for all of its pipelines together. Errors: 42704 unknown pipeline, 42501 for others than its owner and recsync_admin, 22023 a negative budget.';
"#)]
fn set_budget(name: Option<&str>, monthly_budget: Option<AnyNumeric>) {
    (|| -> Result<()> {
        let pipeline = pipeline::find(name.unwrap_or_default())?;
        pipeline::require_owner(&pipeline)?;
        check(monthly_budget.as_ref())?;
        {
            let _as = As::extension();
            set(&pipeline, monthly_budget)?;
        }
        wake::after_catalog_change();
        Ok(())
    })()
    .or_report();
}
