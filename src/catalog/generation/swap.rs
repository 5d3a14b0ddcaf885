//! A complete generation takes the place of the one in service: the name moves from the one to the other, and with it
//! the view and whatever goes by the pipeline's number.
//!
//! It never waits for long: whoever holds the view is tried again later, and nobody who wants it waits behind.

use pgrx::pg_sys;
use pgrx::prelude::*;
use std::collections::HashSet;

use crate::catalog::names::{resolve, select_one};
use crate::catalog::pipeline::{self, Pipeline};
use crate::catalog::recommender::embedding;
use crate::catalog::relations::OF_CHUNK;
use crate::catalog::rights::As;
use crate::dispatch::jobs;
use crate::error::Result;

/// What else depends on a view, or on the type of its rows: all but the view's own rule.
const DEPENDENTS: &str = "\
SELECT pg_catalog.string_agg(DISTINCT pg_catalog.pg_describe_object(o.class, o.object, 0), ', ')
  FROM pg_catalog.pg_depend d
  LEFT JOIN pg_catalog.pg_rewrite r ON d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND r.oid = d.objid
 CROSS JOIN LATERAL (SELECT CASE WHEN r.oid IS NULL THEN d.classid ELSE 'pg_catalog.pg_class'::pg_catalog.regclass::oid END AS class,
                            COALESCE(r.ev_class, d.objid) AS object) o
 WHERE d.deptype IN ('n', 'a') AND r.ev_class IS DISTINCT FROM $1
   AND (d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid = $1
        OR d.refclassid = 'pg_catalog.pg_type'::pg_catalog.regclass AND d.refobjid IN (
             SELECT pg_catalog.unnest(ARRAY[t.oid, t.typarray]) FROM pg_catalog.pg_type t WHERE t.typrelid = $1))";

/// Rules and triggers of the view's own.
const OWN: &str = "\
SELECT pg_catalog.string_agg(o.name, ', ')
  FROM (SELECT 'rule ' || rulename AS name FROM pg_catalog.pg_rewrite WHERE ev_class = $1 AND rulename <> '_RETURN'
         UNION ALL SELECT 'trigger ' || tgname FROM pg_catalog.pg_trigger WHERE tgrelid = $1) o";

/// What would go with a view if it were dropped; `None` where nothing would.
pub fn dependents(view: &str) -> Result<Option<String>> {
    let Some(oid) = resolve(view)? else {
        return Ok(None);
    };
    let found = [DEPENDENTS, OWN].map(|sql| select_one::<String>(sql, &[oid.into()]));
    let mut all = Vec::new();
    for found in found {
        all.extend(found?);
    }
    Ok((!all.is_empty()).then(|| all.join(", ")))
}

/// `next` takes the place of `now`, in this transaction. An error where somebody holds the view. What keeps it from that,
/// if anything does.
pub fn swap(next: &Pipeline, now: &Pipeline) -> Result<Option<String>> {
    Spi::run("SET LOCAL lock_timeout = '50ms'")?;
    let Some(view) = resolve(&now.relation)? else {
        return Ok(Some(format!("{} does not exist", now.relation)));
    };
    // SAFETY: an ordinary lock request; it raises when lock_timeout passes.
    unsafe { pg_sys::LockRelationOid(view, pg_sys::AccessExclusiveLock as _) };
    if !next.has_type_of(now)
        && let Some(dependents) = dependents(&now.relation)?
    {
        return Ok(Some(format!(
            "others depend on {}, whose type changes: {dependents}",
            now.relation
        )));
    }
    if next.has_chunks()
        && let Some(recommenders) = embedding::users_of(now.id)?
    {
        return Ok(Some(format!(
            "recommenders use {}, which take no chunks: {recommenders}",
            now.relation
        )));
    }
    replace_view(next, now, view)?;
    embedding::stop_noting_all(now)?;
    jobs::forget(now.id)?;
    pipeline::forget(now.id)?;
    const SERVICE: [&str; 4] = [
        "UPDATE recsync.pipeline SET relation = vectors, of_pipeline = $2, paused = false, paused_reason = NULL, paused_by_server = false WHERE id = $1",
        "UPDATE recsync.pipeline SET relation = $3, of_pipeline = NULL, builds = false, waits_for = NULL WHERE id = $2",
        "UPDATE recsync.recommender SET pipeline_id = CASE pipeline_id WHEN $1 THEN $2 ELSE pipeline_id END,
                users_pipeline_id = CASE users_pipeline_id WHEN $1 THEN $2 ELSE users_pipeline_id END
          WHERE $1 IN (pipeline_id, users_pipeline_id)",
        "UPDATE recsync.hook SET pipeline_id = $2 WHERE pipeline_id = $1",
    ];
    let (was, is) = (now.id.into(), next.id.into());
    let arguments = [was, is, now.relation.as_str().into()];
    for (sql, count) in SERVICE.iter().zip([2, 3, 2, 2]) {
        Spi::run_with_args(sql, &arguments[..count])?;
    }
    Ok(None)
}

/// The view shows the table of `next`, by the names that it has had.
fn replace_view(next: &Pipeline, now: &Pipeline, view: pg_sys::Oid) -> Result<()> {
    let keys: Vec<String> = next
        .keys()
        .iter()
        .zip(now.keys())
        .map(|(next, now)| format!("{} AS {}", next.stored, now.shown))
        .collect();
    let _as = As::maker(now.owner());
    let options = select_one::<String>(
        "SELECT ' WITH (' || pg_catalog.array_to_string(reloptions, ', ') || ')' FROM pg_catalog.pg_class WHERE oid = $1",
        &[view.into()],
    )?;
    let of_chunk = if next.has_chunks() { OF_CHUNK } else { "" };
    let shows = format!(
        "VIEW {}{} AS SELECT {}{of_chunk}, embedding, content_hash, model, embedded_at FROM {}",
        now.relation,
        options.unwrap_or_default(),
        keys.join(", "),
        next.vectors
    );
    if next.has_type_of(now) {
        return Ok(Spi::run(&format!("CREATE OR REPLACE {shows}"))?);
    }
    let carried = Carried::of(view, &now.relation)?;
    Spi::run(&format!("DROP VIEW {}", now.relation))?;
    Spi::run(&format!("CREATE {shows}"))?;
    carried.put(&now.relation)
}

/// A privilege of a view or of a column of its, as somebody has granted it.
struct Grant {
    grantor: pg_sys::Oid,
    grantee: pg_sys::Oid,
    privilege: String,
    grantable: bool,
    statement: String,
}

/// What a view takes over from the one that it takes the place of.
struct Carried {
    owner: pg_sys::Oid,
    grants: Vec<Grant>,
    comments: Vec<String>,
}

impl Carried {
    fn of(view: pg_sys::Oid, name: &str) -> Result<Carried> {
        const GRANTS: &str = "\
SELECT a.grantor, a.grantee, a.privilege_type::text || COALESCE(a.attname, ''), a.is_grantable,
       pg_catalog.format('GRANT %s%s ON %s TO %s%s', a.privilege_type, ' (' || pg_catalog.quote_ident(a.attname) || ')', $2::text,
                        CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) END,
                        CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' END)
  FROM (SELECT x.*, NULL::name AS attname FROM pg_catalog.pg_class c CROSS JOIN LATERAL pg_catalog.aclexplode(c.relacl) x WHERE c.oid = $1
         UNION ALL
        SELECT x.*, b.attname FROM pg_catalog.pg_attribute b CROSS JOIN LATERAL pg_catalog.aclexplode(b.attacl) x
         WHERE b.attrelid = $1 AND b.attnum > 0 AND NOT b.attisdropped) a
 ORDER BY a.privilege_type, a.attname, a.grantee";
        const COMMENTS: &str = "\
SELECT pg_catalog.array_agg(CASE d.objsubid WHEN 0 THEN pg_catalog.format('COMMENT ON VIEW %s IS %L', $2::text, d.description)
                                 ELSE pg_catalog.format('COMMENT ON COLUMN %s.%I IS %L', $2::text, a.attname, d.description) END)
  FROM pg_catalog.pg_description d LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = d.objoid AND a.attnum = d.objsubid
 WHERE d.objoid = $1 AND d.classoid = 'pg_catalog.pg_class'::pg_catalog.regclass";
        let arguments = [view.into(), name.into()];
        let comments = select_one::<Vec<String>>(COMMENTS, &arguments)?;
        let owner = crate::catalog::watch::table_owner(view)?;
        let grants = Spi::connect(|client| -> Result<_> {
            let mut grants = Vec::new();
            for row in client.select(GRANTS, None, &arguments)? {
                grants.push(Grant {
                    grantor: row.get(1)?.unwrap_or(pg_sys::InvalidOid),
                    grantee: row.get(2)?.unwrap_or(pg_sys::InvalidOid),
                    privilege: row.get(3)?.unwrap_or_default(),
                    grantable: row.get(4)?.unwrap_or_default(),
                    statement: row.get(5)?.unwrap_or_default(),
                });
            }
            Ok(grants)
        })?;
        Ok(Carried {
            owner,
            grants,
            comments: comments.unwrap_or_default(),
        })
    }

    /// As the owner. Who grants what was granted to them comes after who has granted it.
    fn put(self, name: &str) -> Result<()> {
        // What default privileges have given.
        let given = select_one::<String>(
            "SELECT pg_catalog.string_agg(DISTINCT CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(x.grantee)) END, ', ')
               FROM pg_catalog.pg_class c CROSS JOIN LATERAL pg_catalog.aclexplode(c.relacl) x
              WHERE c.oid = pg_catalog.to_regclass($1) AND x.grantee <> c.relowner",
            &[name.into()],
        )?;
        if let Some(given) = given {
            Spi::run(&format!("REVOKE ALL ON {name} FROM {given}"))?;
        }
        for comment in &self.comments {
            Spi::run(comment)?;
        }
        let mut may_grant: HashSet<(pg_sys::Oid, String)> = HashSet::new();
        let mut left = self.grants;
        loop {
            let count = left.len();
            let mut later = Vec::new();
            for grant in left {
                let by = (grant.grantor, grant.privilege.clone());
                if grant.grantor != self.owner && !may_grant.contains(&by) {
                    later.push(grant);
                    continue;
                }
                let _as = As::maker(grant.grantor);
                Spi::run(&grant.statement)?;
                if grant.grantable {
                    may_grant.insert((grant.grantee, grant.privilege));
                }
            }
            match later.len() {
                0 => return Ok(()),
                // Whoever granted them may not any more: the owner does.
                still if still == count => {
                    for grant in later {
                        Spi::run(&grant.statement)?;
                    }
                    return Ok(());
                }
                _ => left = later,
            }
        }
    }
}
