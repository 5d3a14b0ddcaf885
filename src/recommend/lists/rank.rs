//! rank: candidates that come from elsewhere, in the order in which recommend would list them.
//!
//! It never leaves one out that may be listed and that the caller may see: what no source knows comes last, as given.

use serde_json::json;

use super::content::For;
use super::learnt;
use super::question::Question;
use super::statements::{self, Parts};
use super::{Kind, Listed, list_of, listed, require_rights};
use crate::catalog::recommender::Recommender;
use crate::error::{Error, Result};

/// As many rows as recommend gives.
const MOST: usize = 10_000;

pub fn ranked_for(
    recommender: &Recommender,
    user: Option<&str>,
    candidates: Vec<String>,
) -> Result<Listed> {
    require_rights(recommender, Kind::Rank)?;
    if candidates.len() > MOST {
        return Err(Error::argument(
            "candidates",
            format!("{} are too many", candidates.len()),
            "Give up to 10000.",
        ));
    }
    let question = Question::of(json!({"k": candidates.len().max(1), "exclude_seen": false}))?;
    let of = For {
        user,
        session: &[],
        exclude_seen: false,
    };
    let among = among_candidates(recommender, 5)?;
    let nearest = of.nearest(recommender, &among, &question, |near| {
        near.parameters.push(candidates.clone());
        Ok(())
    })?;
    let factors = learnt::factors(recommender, user, &[])?;
    let first = statements::recommend(&among_candidates(recommender, 6)?)?;
    let rest = as_given(recommender)?;
    let found = list_of(recommender, &question, &first, &[rest], || {
        let mut arguments = of.arguments(&nearest, &factors);
        arguments.push(candidates.clone().into());
        arguments
    })?;
    Ok(listed(&question, found))
}

/// The recommender, of whose items none but the candidates, parameter `number`, may be listed.
fn among_candidates(r: &Recommender, number: usize) -> Result<Recommender> {
    let Parts {
        key, kind, equals, ..
    } = Parts::new(r)?;
    let mut among = r.clone();
    among.eligible = format!(
        "({}) AND {key} {equals} ANY (${number}::text[]::{kind}[])",
        r.eligible
    );
    Ok(among)
}

/// The candidates `$6` but for those of `$7`.
fn as_given(r: &Recommender) -> Result<String> {
    let Parts {
        rows,
        key,
        kind,
        equals,
        ..
    } = Parts::new(r)?;
    Ok(format!(
        "SELECT {key}::text, 0::float8, NULL::int4[]
           FROM (SELECT given::{kind} AS item_id, pg_catalog.min(n) AS n FROM pg_catalog.unnest($6::text[]) WITH ORDINALITY AS g (given, n) GROUP BY 1) g
           JOIN {rows} s ON {key} {equals} g.item_id
          WHERE ({eligible}) AND NOT {key} {equals} ANY ($7::text[]::{kind}[])
          ORDER BY g.n",
        eligible = r.eligible,
    ))
}
