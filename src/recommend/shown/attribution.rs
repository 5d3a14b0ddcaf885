//! recsync.attribution: what has come of what was shown, by recommender, placement and source.
//!
//! An interaction counts for the last time before it that the recommender's lists have shown its item to its user, if
//! that was not too long ago. It never counts one twice, and never says whose it is.

use pgrx::datum::Interval;
use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::catalog::names::{literal, quote, select_one};
use crate::catalog::recommender::create::{require_time, seconds};
use crate::catalog::recommender::impressions::Impressions;
use crate::catalog::recommender::{Recommender, find, load_all};
use crate::catalog::rights::{As, in_catalog, in_subtransaction, is_admin};
use crate::error::{Error, OrReport, Result, sqlstate_text};
use crate::recommend::lists::list_id::{hash_of, is_of, key, whose_of};
use crate::recommend::lists::statements::main_source_of;
use crate::statement::Statement;

/// 7 days: for so long after a click Meta's advertising counts a purchase for it, by default.
const WITHIN_S: f64 = 7.0 * 86_400.0;

/// Recommender, placement, source; what was shown, of that attributable, clicked, converted.
type Row = (
    String,
    Option<String>,
    Option<String>,
    i64,
    Option<i64>,
    Option<i64>,
    Option<i64>,
);

/// Which showings, and what counts for them.
struct Wanted {
    since: Option<TimestampWithTimeZone>,
    until: Option<TimestampWithTimeZone>,
    /// For so long after a showing an interaction counts for it.
    within_s: f64,
}

#[pg_extern(sql = r#"
CREATE FUNCTION attribution(name text DEFAULT NULL, since timestamptz DEFAULT NULL, until timestamptz DEFAULT NULL, within interval DEFAULT '7 days')
RETURNS TABLE (recommender text, placement text, source text, shown bigint, attributable bigint, clicked bigint, converted bigint) LANGUAGE c STABLE PARALLEL UNSAFE AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION attribution(text, timestamptz, timestamptz, interval) IS
'What has come of what log_shown has noted, and of what is in the tables that recommenders have as impressions. name: a recommender, NULL: all that the caller may see; since, until: only what was shown from then on, before then (NULL: no limit); within: for so long after a showing an interaction counts for it. Returns a row for each recommender, placement and source (the one that has added most to the item''s score: ease, als, neighbours, interest, popular, latest; explored; rest; NULL: not given): shown, the items that were shown, each as often as it was (a showing without items counts as one); attributable, those of them of which it is known which item it was and which user''s list, so that clicked and converted are parts of these; clicked, those with whose item their user has had to do after that, with a weight above 0, within that time and before this recommender''s lists showed it to them again; converted, those of which one of these interactions counts as seen, as the recommender says. Where nothing is kept of the interactions yet these three are NULL. By the owner of the items, recsync_admin and pg_monitor. A recommender whose impressions cannot be read is left out with a WARNING where no name is given. Errors: 42704 unknown recommender, 42501 for others, 22023 bad within, 55000 the impressions of the one that is named cannot be read.';
"#)]
#[allow(clippy::type_complexity)] // the columns of an SQL function
fn attribution(
    name: Option<&str>,
    since: Option<TimestampWithTimeZone>,
    until: Option<TimestampWithTimeZone>,
    within: Option<Interval>,
) -> TableIterator<
    'static,
    (
        name!(recommender, String),
        name!(placement, Option<String>),
        name!(source, Option<String>),
        name!(shown, i64),
        name!(attributable, Option<i64>),
        name!(clicked, Option<i64>),
        name!(converted, Option<i64>),
    ),
> {
    let wanted = Wanted {
        since,
        until,
        within_s: within.map_or(WITHIN_S, seconds),
    };
    TableIterator::new(attributed(name, &wanted).or_report())
}

fn attributed(name: Option<&str>, wanted: &Wanted) -> Result<Vec<Row>> {
    require_time("within", Some(wanted.within_s))?;
    let recommenders = asked_for(name)?;
    if name.is_some() {
        let rows = recommenders.iter().map(|one| of_one(one, wanted));
        return Ok(rows.collect::<Result<Vec<_>>>()?.concat());
    }
    let mut rows = Vec::new();
    for recommender in recommenders {
        // What one's owner has done to a table of theirs does not keep the others' numbers from anybody.
        match recommender.impressions {
            Some(_) => match in_subtransaction(|| of_one(&recommender, wanted)) {
                Ok(of_it) => rows.extend(of_it),
                Err(failed) => warning!(
                    "recommender {} is left out (SQLSTATE {}): recsync.attribution({}) says why",
                    recommender.name,
                    sqlstate_text(failed.code),
                    literal(&recommender.name)
                ),
            },
            None => rows.extend(of_one(&recommender, wanted)?),
        }
    }
    Ok(rows)
}

/// The one of that name, or all that the caller may see.
fn asked_for(name: Option<&str>) -> Result<Vec<Recommender>> {
    if let Some(name) = name {
        let recommender = find(name)?;
        return match may_see(&recommender)? {
            true => Ok(vec![recommender]),
            false => Err(Error::Denied {
                what: format!("you do not own the items of recommender {}", recommender.name),
                grant: "Their owner may call this, a member of that role, recsync_admin and pg_monitor (GRANT pg_monitor TO …).".into(),
            }),
        };
    }
    let all = {
        let _as = As::extension();
        load_all()?
    };
    let mut visible = Vec::new();
    for recommender in all.into_iter().filter(|found| found.id == found.of) {
        if may_see(&recommender)? {
            visible.push(recommender);
        }
    }
    Ok(visible)
}

/// Numbers are for the owner, for administrators and for those who watch.
fn may_see(recommender: &Recommender) -> Result<bool> {
    // SAFETY: role look-ups by OID.
    let is_owner = unsafe { pg_sys::has_privs_of_role(pg_sys::GetUserId(), recommender.owner()) };
    if is_owner || is_admin() {
        return Ok(true);
    }
    let watches = in_catalog(|| {
        select_one::<bool>("SELECT pg_catalog.pg_has_role('pg_monitor', 'USAGE')", &[])
    })?;
    Ok(watches == Some(true))
}

fn of_one(recommender: &Recommender, wanted: &Wanted) -> Result<Vec<Row>> {
    let kept = recommender.is_kept();
    let statement = Statement::planned_each_time(statement(recommender, kept)?);
    let key = key()?;
    // What users and items are called by may be of the owner's types, and impressions of the owner's making.
    let _as = match kept || recommender.impressions.is_some() {
        true => As::owner(recommender.owner()),
        false => As::extension(),
    };
    Spi::connect(|client| {
        let arguments = [
            recommender.name.as_str().into(),
            wanted.since.into(),
            wanted.until.into(),
            wanted.within_s.into(),
            key.into(),
        ];
        let mut rows = Vec::new();
        for row in statement.select(client, &arguments)? {
            rows.push((
                recommender.name.clone(),
                row.get(1)?,
                row.get(2)?,
                row.get::<i64>(3)?.unwrap_or_default(),
                row.get(4)?,
                row.get(5)?,
                row.get(6)?,
            ));
        }
        Ok(rows)
    })
}

/// What was shown of recommender `$1` from `$2` on and before `$3`, and what was done with it within `$4` seconds, by
/// users that are hashed by `$5`.
fn statement(r: &Recommender, kept: bool) -> Result<String> {
    let (done, counts) = match kept {
        true => (
            format!(
                "SELECT {} AS whose, e.item_id::text AS item, e.at, e.seen FROM {} e
                  WHERE e.weight > 0 AND e.at >= (SELECT pg_catalog.min(s.shown_at) FROM shown s)",
                hash_of("e.user_id", "$5"),
                r.interactions(),
            ),
            "pg_catalog.count(s.whose), pg_catalog.count(o.n), pg_catalog.count(*) FILTER (WHERE o.converted)",
        ),
        false => (
            "SELECT NULL::bytea AS whose, NULL AS item, NULL::timestamptz AS at, false AS seen WHERE false".into(),
            "NULL::bigint, NULL::bigint, NULL::bigint",
        ),
    };
    let of_the_users_own = match &r.impressions {
        Some(impressions) => format!(" UNION ALL {}", showings(r, impressions)?),
        None => String::new(),
    };
    // A showing ends where the same is shown to the same user again.
    Ok(format!(
        "WITH shown AS MATERIALIZED (
           SELECT pg_catalog.row_number() OVER () AS n, v.placement, v.source, v.shown_at, v.item, v.whose,
                  LEAST(v.shown_at + pg_catalog.make_interval(secs => $4),
                        pg_catalog.lead(v.shown_at) OVER (PARTITION BY v.whose, v.item ORDER BY v.shown_at, v.list_id, v.placement, v.source, v.place)) AS ends_at
             FROM (SELECT s.*, CASE WHEN s.item IS NOT NULL THEN {whose} END AS whose
                     FROM (SELECT l.list_id, l.placement, l.shown_at, l.place, l.item, l.source FROM recsync.shown l WHERE l.recommender = $1{of_the_users_own}) s
                    WHERE s.shown_at >= COALESCE($2, '-infinity')) v
         ), done AS ({done}), outcome AS (
           SELECT s.n, pg_catalog.bool_or(d.seen) AS converted
             FROM shown s JOIN done d ON d.whose = s.whose AND d.item = s.item AND d.at >= s.shown_at AND d.at < s.ends_at
            GROUP BY s.n)
         SELECT s.placement, s.source, pg_catalog.count(*), {counts}
           FROM shown s LEFT JOIN outcome o ON o.n = s.n
          WHERE s.shown_at < COALESCE($3, 'infinity') GROUP BY s.placement, s.source ORDER BY s.placement, s.source",
        whose = whose_of("s.list_id"),
    ))
}

/// What the user's own table says was shown of the recommender's lists, as recsync.shown has it. Rows without list_id or
/// time, or of another's lists, are none of them.
fn showings(r: &Recommender, impressions: &Impressions) -> Result<String> {
    let kind = &r.item_key()?.type_name;
    let column = |name: &str| format!("s.{}", quote(name));
    let [list_id, item, at] =
        [&impressions.list_id, &impressions.item, &impressions.at].map(|name| column(name));
    let item = match impressions.item_is_text(r)? {
        true => format!("{item}::text"),
        false => format!("({item})::{kind}::text"),
    };
    let placement = impressions.placement.as_ref();
    let placement = placement.map_or("NULL".into(), |name| column(name));
    let source = impressions.reason.as_ref();
    let source = source.map_or("NULL".into(), |name| {
        main_source_of(&format!("{}::jsonb", column(name)))
    });
    Ok(format!(
        "SELECT {list_id}, {placement}::text, {at}, NULL::int4, {item}, {source}::text FROM {} s WHERE {at} IS NOT NULL AND {}",
        impressions.relation,
        is_of(&list_id, r.id),
    ))
}
