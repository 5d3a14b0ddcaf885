//! Vectors in a column of the source: the user's own rows are written.
//!
//! It never waits for a user: rows that somebody has locked are left for another time, and the locks that it takes
//! itself are held for milliseconds. It takes a vector for that of a text only where the pipeline's table says so by
//! the vector's hash: a row may have changed its key meanwhile, and its owner may have written the column.

use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::SpiClient;
use std::cell::RefCell;
use std::collections::HashSet;
use std::ffi::CString;

use super::known::Known;
use super::{Embedded, Written, arguments, vectors_of};
use crate::capture::own;
use crate::catalog::pipeline::Pipeline;
use crate::catalog::rights::{As, with_settings};
use crate::dispatch::queue::Job;
use crate::dispatch::render::{given, key_arguments, keyed, names};
use crate::error::{Error, Result};
use crate::statement::Statement;
use crate::worker::process;

/// What a user's trigger may wait for a lock, less than it takes the server to look for deadlocks: nobody becomes the
/// victim of one through recsync.
const LOCK_TIMEOUT: &std::ffi::CStr = c"50ms";

/// Vectors without a row of the pipeline's table that are remembered: those of rows that change their key.
const REMEMBERED: usize = 10_000;

/// How a statement reads the vectors of a pipeline.
pub struct Held {
    /// The rows `e` of its table whose vector is there, in a FROM.
    pub from: String,
    pub vector: String,
}

impl Held {
    pub fn of(pipeline: &Pipeline, vector_schema: &str) -> Held {
        let vectors = &pipeline.vectors;
        if pipeline.into_column.is_none() {
            return Held {
                from: format!("{vectors} e"),
                vector: "e.embedding".to_owned(),
            };
        }
        let on: Vec<String> = pipeline
            .keys()
            .iter()
            .map(|key| format!("s.{} {} e.{}", key.column, key.equals, key.stored))
            .collect();
        Held {
            from: format!(
                "{vectors} e JOIN {} s ON {} AND e.embedding_hash OPERATOR(pg_catalog.=) {}",
                pipeline.rows_of,
                on.join(" AND "),
                hash(pipeline, vector_schema)
            ),
            vector: format!("s.{}", pipeline.holder().column),
        }
    }
}

/// The hash of the vector in a row `s` of the source; NULL where it has none.
pub fn hash(pipeline: &Pipeline, vector_schema: &str) -> String {
    format!(
        "pg_catalog.sha256({vector_schema}.{}_send(s.{}))",
        pipeline.storage,
        pipeline.holder().column
    )
}

/// What became of a row that was to be locked.
enum Row {
    Locked,
    /// Somebody else has it locked, or has just changed it.
    Busy,
    Gone,
}

/// The statements of one pipeline.
pub struct Column {
    pipeline: Pipeline,
    /// The search_path that a user's triggers are written for.
    path: CString,
    lock: Statement,
    write: Statement,
    empty: Statement,
    forget: Statement,
    attest: Statement,
    /// Hashes of texts and vectors that rows had which are gone.
    gone: RefCell<HashSet<(Vec<u8>, Vec<u8>)>>,
}

impl Column {
    pub fn new(pipeline: &Pipeline, vector_schema: &str) -> Column {
        let keys = pipeline.keys();
        let count = keys.len();
        let (rows, vectors) = (&pipeline.rows_of, &pipeline.vectors);
        let column = pipeline.holder().column;
        let hash = hash(pipeline, vector_schema);
        let names = names(count);
        let on_source = |given| keyed(keys, "s", |key| &key.column, given);
        let on_vectors = keyed(keys, "e", |key| &key.stored, "v");
        let stored: Vec<&str> = keys.iter().map(|key| key.stored.as_str()).collect();
        let stored = stored.join(", ");
        let values: Vec<String> = keys
            .iter()
            .enumerate()
            .map(|(n, key)| format!("(v.k{})::{}", n + 1, key.type_name))
            .collect();
        let values = values.join(", ");
        // A row of the pipeline's table, new or in the place of the one that is there.
        let note = format!(
            "INSERT INTO {vectors} AS e ({stored}, content_hash, model, embedded_at, embedding_hash)"
        );
        let replace = format!(
            "ON CONFLICT ({stored}) DO UPDATE SET content_hash = excluded.content_hash, model = excluded.model,
                    embedded_at = excluded.embedded_at, embedding_hash = excluded.embedding_hash"
        );
        let lock = format!(
            "WITH v AS MATERIALIZED (SELECT * FROM {} WITH ORDINALITY AS v ({names}, i)),
                  locked AS MATERIALIZED (SELECT v.i FROM v JOIN {rows} s ON {on} FOR NO KEY UPDATE OF s SKIP LOCKED)
             SELECT EXISTS (SELECT FROM locked l WHERE l.i OPERATOR(pg_catalog.=) v.i), EXISTS (SELECT FROM {rows} s WHERE {on}) FROM v ORDER BY v.i",
            given(count, ""),
            on = on_source("v"),
        );
        let more = format!(
            ", pg_catalog.unnest(${}::{vector_schema}.vector[]), pg_catalog.unnest(${}::bytea[]), pg_catalog.unnest(${}::bytea[])",
            count + 1,
            count + 2,
            count + 4
        );
        // Where the vector was another one when the text was rendered, nothing is written.
        let write = format!(
            "WITH v AS MATERIALIZED (
                    SELECT v.* FROM {given} WITH ORDINALITY AS v ({names}, embedding, hash, stored_hash, i) LEFT JOIN {vectors} e ON {on_vectors}
                     WHERE e.content_hash OPERATOR(pg_catalog.=) v.stored_hash OR e.content_hash IS NULL AND v.stored_hash IS NULL),
                  written AS (UPDATE {rows} s SET {column} = v.embedding::{vector_schema}.{storage} FROM v WHERE {on}
                   RETURNING v.i, {hash} AS embedding_hash),
                  noted AS ({note} SELECT {values}, v.hash, ${model}::text, pg_catalog.clock_timestamp(), w.embedding_hash
                              FROM v JOIN written w ON w.i OPERATOR(pg_catalog.=) v.i {replace})
             SELECT (SELECT pg_catalog.count(*) FROM v), (SELECT pg_catalog.count(*) FROM written),
                    (SELECT pg_catalog.count(*) FROM v JOIN written w ON w.i OPERATOR(pg_catalog.=) v.i WHERE v.stored_hash IS NULL)",
            given = given(count, &more),
            storage = pipeline.storage,
            on = on_source("v"),
            model = count + 3,
        );
        let empty = format!(
            "UPDATE {rows} s SET {column} = NULL FROM {} AS v ({names}) WHERE {} AND s.{column} IS NOT NULL",
            given(count, ""),
            on_source("v"),
        );
        let forget = format!(
            "DELETE FROM {vectors} e USING {} AS v ({names}) WHERE {on_vectors}
             RETURNING CASE WHEN e.model OPERATOR(pg_catalog.=) ${}::text THEN e.content_hash END, e.embedding_hash",
            given(count, ""),
            count + 1,
        );
        let more = format!(
            ", pg_catalog.unnest(${}::bytea[]), pg_catalog.unnest(${}::bytea[]), pg_catalog.unnest(${}::bool[])",
            count + 1,
            count + 2,
            count + 3
        );
        let attest = format!(
            "{note} SELECT {values}, v.hash, ${model}::text, pg_catalog.clock_timestamp(), v.embedding_hash
               FROM {} AS v ({names}, hash, embedding_hash, known)
              WHERE v.known OR EXISTS (SELECT FROM {vectors} a WHERE a.content_hash OPERATOR(pg_catalog.=) v.hash
                AND a.model OPERATOR(pg_catalog.=) ${model}::text AND a.embedding_hash OPERATOR(pg_catalog.=) v.embedding_hash)
             {replace} RETURNING e.content_hash, e.embedding_hash",
            given(count, &more),
            model = count + 4,
        );
        let path = pipeline.owner_path.as_deref();
        let path = path.and_then(|path| CString::new(path).ok());
        Column {
            pipeline: pipeline.clone(),
            path: path.unwrap_or_else(process::session_path),
            lock: Statement::by_key(lock),
            write: Statement::by_key(write),
            empty: Statement::by_key(empty),
            forget: Statement::by_key(forget),
            attest: Statement::by_key(attest),
            gone: RefCell::default(),
        }
    }

    /// Writes the vectors of the rows that nobody has locked. The vectors that no row has then: those that they
    /// replace, as `replaced` reads them, and those of rows that are gone.
    pub fn write(
        &self,
        embedded: &[Embedded],
        model: &str,
        replaced: Option<&Statement>,
    ) -> Result<(Written, Vec<Known>)> {
        let jobs: Vec<&Job> = embedded.iter().map(|embedded| &embedded.job).collect();
        self.as_user(&jobs, |client| {
            let mut written = Written::default();
            let mut locked = Vec::new();
            let mut known = Vec::new();
            let rows = self.lock(client, &jobs)?;
            for (index, (row, embedded)) in rows.into_iter().zip(embedded).enumerate() {
                match row {
                    Row::Locked => locked.push(embedded),
                    Row::Busy => written.busy.push(index),
                    Row::Gone => {
                        written.gone += 1;
                        known.push((embedded.hash.clone(), embedded.vector.clone()));
                    }
                }
            }
            if locked.is_empty() {
                return Ok((written, known));
            }
            let stored: Vec<Option<Vec<u8>>> =
                locked.iter().map(|row| row.stored_hash.clone()).collect();
            if let Some(statement) = replaced {
                let mut keys = key_arguments(locked.iter().map(|embedded| &embedded.job));
                keys.extend([stored.clone().into(), model.to_owned().into()]);
                known.extend(vectors_of(statement.select(client, &keys)?)?);
            }
            let mut arguments = arguments(&locked, model)?;
            arguments.push(stored.into());
            let counts = self.write.update(client, &arguments)?.first();
            let count = |column| -> Result<usize> {
                Ok(counts.get::<i64>(column)?.unwrap_or(0).unsigned_abs() as usize)
            };
            let (wanted, done) = (count(1)?, count(2)?);
            if done < wanted {
                return Err(Error::Suppressed {
                    table: self.pipeline.source.clone(),
                    rows: wanted - done,
                });
            }
            written.inserted = count(3)?;
            written.updated = done - written.inserted;
            Ok((written, known))
        })
    }

    /// Empties the column of rows that have no text, and forgets what their vectors, and those of rows that are gone,
    /// are of. Which rows somebody has locked, and the vectors that are no more, as `held` reads them.
    pub fn clear(
        &self,
        jobs: &[&Job],
        model: &str,
        held: &Statement,
    ) -> Result<(Vec<usize>, Vec<Known>)> {
        self.as_user(jobs, |client| {
            let rows = self.lock(client, jobs)?;
            let of = |wanted: fn(&Row) -> bool| {
                let rows = rows.iter().zip(jobs);
                let those = rows.filter(move |(row, _)| wanted(row));
                those.map(|(_, job)| *job)
            };
            let with_model = |mut arguments: Vec<DatumWithOid<'static>>| {
                arguments.push(model.to_owned().into());
                arguments
            };
            let mut known = Vec::new();
            let locked = || key_arguments(of(|row| matches!(row, Row::Locked)));
            if !locked().is_empty() {
                known = vectors_of(held.select(client, &with_model(locked()))?)?;
                self.empty.update(client, &locked())?;
            }
            let done = key_arguments(of(|row| !matches!(row, Row::Busy)));
            if !done.is_empty() {
                let mut gone = self.gone.borrow_mut();
                for row in self.forget.update(client, &with_model(done))? {
                    if gone.len() >= REMEMBERED {
                        gone.clear();
                    }
                    gone.extend(row.get::<Vec<u8>>(1)?.zip(row.get::<Vec<u8>>(2)?));
                }
            }
            let busy = rows.iter().enumerate();
            let busy = busy.filter(|(_, row)| matches!(row, Row::Busy));
            Ok((busy.map(|(index, _)| index).collect(), known))
        })
    }

    /// Rows whose column holds the vector of their text already, by the hash of both: a row that has changed its key, or
    /// one of `adopted`.
    /// The pipeline's table says so from now on. Their hashes.
    pub fn attest(
        &self,
        rows: &[(&Job, &[u8], &[u8])],
        model: &str,
        adopted: &HashSet<(Vec<u8>, Vec<u8>)>,
    ) -> Result<HashSet<(Vec<u8>, Vec<u8>)>> {
        let pairs: Vec<(Vec<u8>, Vec<u8>)> = rows
            .iter()
            .map(|(_, text, vector)| (text.to_vec(), vector.to_vec()))
            .collect();
        let gone = self.gone.borrow();
        let known = |pair| gone.contains(pair) || adopted.contains(pair);
        let known: Vec<bool> = pairs.iter().map(known).collect();
        let (texts, vectors): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        let mut arguments = key_arguments(rows.iter().map(|(job, ..)| *job));
        arguments.extend([
            texts.into(),
            vectors.into(),
            known.into(),
            model.to_owned().into(),
        ]);
        let _as = As::owner(self.pipeline.owner());
        Spi::connect_mut(|client| {
            let mut attested = HashSet::new();
            for row in self.attest.update(client, &arguments)? {
                attested.extend(row.get::<Vec<u8>>(1)?.zip(row.get::<Vec<u8>>(2)?));
            }
            Ok(attested)
        })
    }

    /// Runs `body` as the pipeline's owner, for whose triggers this is an update like any other. What it changes of
    /// the rows of `jobs` is no change of theirs.
    fn as_user<T>(
        &self,
        jobs: &[&Job],
        body: impl FnOnce(&mut SpiClient) -> Result<T>,
    ) -> Result<T> {
        let keys = jobs.iter().map(|job| job.row.key.clone());
        let _own = own::Updates::begin(self.pipeline.source_id, keys);
        let _as = As::owner(self.pipeline.owner());
        let settings = [
            (c"search_path", self.path.as_c_str()),
            (c"lock_timeout", LOCK_TIMEOUT),
        ];
        with_settings(&settings, || Spi::connect_mut(body))
    }

    /// Locks the rows that nobody else has. An error by NOWAIT where somebody has locked the table.
    fn lock(&self, client: &mut SpiClient, jobs: &[&Job]) -> Result<Vec<Row>> {
        let table = &self.pipeline.rows_of;
        client.update(
            format!("LOCK TABLE {table} IN ROW EXCLUSIVE MODE NOWAIT").as_str(),
            None,
            &[],
        )?;
        let arguments = key_arguments(jobs.iter().copied());
        let mut rows = Vec::with_capacity(jobs.len());
        for row in self.lock.update(client, &arguments)? {
            let is = (row.get::<bool>(1)?, row.get::<bool>(2)?);
            rows.push(match is {
                (Some(true), _) => Row::Locked,
                (_, Some(true)) => Row::Busy,
                _ => Row::Gone,
            });
        }
        if rows.len() != jobs.len() {
            return Err(Error::Internal(format!(
                "{} keys gave {} rows to lock",
                jobs.len(),
                rows.len()
            )));
        }
        Ok(rows)
    }
}
