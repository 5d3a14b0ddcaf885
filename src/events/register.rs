//! The register: which events were applied, and the sequence of the last one that was applied to a key.
//!
//! It is a ring of four tables, so that what is old goes by TRUNCATE. Each has its unique index, and nothing but the following
//! makes an event unique in all of them:
//!
//! 1. Who writes holds ROW EXCLUSIVE on the open table until the transaction (or the savepoint with what it wrote) ends,
//!    and has looked, after that lock was there, that the table is still the open one.
//! 2. It is closed, and the next one opened, under SHARE ROW EXCLUSIVE, which waits until nobody holds the other lock.
//!
//! So what is not committed yet stands in one table only, the open one, whose index makes the second of two sessions wait
//! for the first: on both sides of a change of tables, too. The closed ones hold nothing that is not committed, and a look
//! into them with a snapshot taken after the lock sees all of it, whatever snapshot the transaction has.
//!
//! What one role has noted counts for that role only: row-level security may keep it from a row that another may write, so
//! what is done for one is not for the other. It never holds a value of anybody's, only digests.

use pgrx::datum::Uuid;
use pgrx::pg_sys;
use pgrx::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::{HashMap, HashSet};
use std::ffi::CStr;

use crate::catalog::names::own_relation;
use crate::catalog::rights::As;
use crate::error::{Error, Result};
use crate::statement::{Finds, Statement};

/// Tables of the ring.
pub const PARTS: usize = 4;

const NAMES: [(&CStr, &CStr); PARTS] = [
    (c"event_0", c"event_0_pkey"),
    (c"event_1", c"event_1_pkey"),
    (c"event_2", c"event_2_pkey"),
    (c"event_3", c"event_3_pkey"),
];

/// The register, open for this transaction.
pub struct Register {
    current: usize,
    closed: Vec<Part>,
    role: pg_sys::Oid,
}

#[derive(Clone, Copy)]
struct Part {
    table: pg_sys::Oid,
    index: pg_sys::Oid,
}

impl Register {
    /// Waits for nobody but a change of tables, which takes no longer than its commit.
    pub fn open() -> Result<Register> {
        // SAFETY: the current user's OID.
        let role = unsafe { pg_sys::GetUserId() };
        loop {
            let (current, _) = state()?;
            let open = part(current)?;
            // SAFETY: an ordinary lock of a table that is there, kept until the transaction ends.
            unsafe { pg_sys::LockRelationOid(open.table, pg_sys::RowExclusiveLock as _) };
            let (now, closed) = state()?;
            if now == current {
                let closed = closed.into_iter().map(part).collect::<Result<_>>()?;
                return Ok(Register {
                    current,
                    closed,
                    role,
                });
            }
            // SAFETY: the lock taken above, under which nothing was written.
            unsafe { pg_sys::UnlockRelationOid(open.table, pg_sys::RowExclusiveLock as _) };
        }
    }

    /// An event of a table's.
    pub fn event(&self, table: pg_sys::Oid, id: &str) -> Uuid {
        self.digest("event", table, &[id])
    }

    /// A key of a table's, by a digest of its values; among the sequences of `origin`.
    pub fn key(&self, table: pg_sys::Oid, origin: &str, key: &str) -> Uuid {
        self.digest("key", table, &[key, origin])
    }

    /// What was sent and was put aside.
    pub fn sent(&self, event: &str) -> Uuid {
        self.digest("sent", pg_sys::InvalidOid, &[event])
    }

    fn digest(&self, what: &str, table: pg_sys::Oid, parts: &[&str]) -> Uuid {
        let mut hash = Sha256::new();
        hash.update(what);
        hash.update([0]);
        hash.update(table.to_u32().to_be_bytes());
        hash.update(self.role.to_u32().to_be_bytes());
        for part in parts {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        let mut bytes = [0; 16];
        for (byte, from) in bytes.iter_mut().zip(hash.finalize()) {
            *byte = from;
        }
        Uuid::from_bytes(bytes)
    }

    /// Notes events as applied and returns those that were not. Where another transaction is about to apply one of them
    /// it waits for its end.
    pub fn note(&self, events: impl Iterator<Item = Uuid>) -> Result<HashSet<Uuid>> {
        let mut events: Vec<Uuid> = events.collect();
        events.sort_unstable(); // two sessions with the same events must not wait for each other
        let known = self.closed_ones(&events)?;
        events.retain(|event| !known.contains_key(event));
        if events.is_empty() {
            return Ok(HashSet::new());
        }
        let sql = format!(
            "INSERT INTO recsync.event_{} (digest) SELECT u.digest FROM pg_catalog.unnest($1::uuid[]) AS u (digest)
             ON CONFLICT (digest) DO NOTHING RETURNING digest",
            self.current
        );
        self.update(&sql, &[events.into()], |row| Ok(row.get::<Uuid>(1)?))
            .map(|noted| noted.into_iter().flatten().collect())
    }

    /// Raises the sequences of keys, if they are lower, and returns those that they had. Where another transaction is
    /// about to apply something to one of the keys it waits for its end.
    pub fn raise(&self, keys: HashMap<Uuid, i64>) -> Result<HashMap<Uuid, i64>> {
        let mut keys: Vec<(Uuid, i64)> = keys.into_iter().collect();
        keys.sort_unstable();
        let digests: Vec<Uuid> = keys.iter().map(|(digest, _)| *digest).collect();
        let mut before: HashMap<Uuid, i64> = self.closed_ones(&digests)?;
        let raised = keys.iter().map(|(digest, sequence)| {
            let old = before.get(digest).copied().unwrap_or(i64::MIN);
            old.max(*sequence)
        });
        let raised: Vec<i64> = raised.collect();
        let sql = format!(
            "INSERT INTO recsync.event_{} AS e (digest, sequence)
             SELECT u.digest, u.sequence FROM ROWS FROM (pg_catalog.unnest($1::uuid[]), pg_catalog.unnest($2::bigint[])) AS u (digest, sequence)
             ON CONFLICT (digest) DO UPDATE SET previous = e.sequence, sequence = GREATEST(e.sequence, excluded.sequence)
             RETURNING digest, previous",
            self.current
        );
        let found = self.update(&sql, &[digests.into(), raised.into()], |row| {
            Ok(row.get::<Uuid>(1)?.zip(row.get::<i64>(2)?))
        })?;
        before.extend(found.into_iter().flatten());
        Ok(before)
    }

    /// Takes back what [`Register::note`] has noted.
    pub fn forget(&self, events: Vec<Uuid>) -> Result<()> {
        let sql = format!(
            "DELETE FROM recsync.event_{} WHERE digest = ANY ($1)",
            self.current
        );
        self.update(&sql, &[events.into()], |_| Ok(())).map(|_| ())
    }

    /// Takes back what [`Register::raise`] has raised too far: `None`, nothing was applied to the key.
    pub fn lower(&self, keys: Vec<(Uuid, Option<i64>)>) -> Result<()> {
        let sql = format!(
            "UPDATE recsync.event_{} SET sequence = $2 WHERE digest = $1",
            self.current
        );
        let (known, unknown): (Vec<_>, Vec<_>) =
            keys.into_iter().partition(|(_, last)| last.is_some());
        if !unknown.is_empty() {
            self.forget(unknown.into_iter().map(|(digest, _)| digest).collect())?;
        }
        known.into_iter().try_for_each(|(digest, last)| {
            self.update(&sql, &[digest.into(), last.into()], |_| Ok(()))
                .map(|_| ())
        })
    }

    fn update<T>(
        &self,
        sql: &str,
        arguments: &[pgrx::datum::DatumWithOid],
        read: impl Fn(&pgrx::spi::SpiHeapTupleData) -> Result<T>,
    ) -> Result<Vec<T>> {
        let _as = As::extension();
        Spi::connect_mut(|client| {
            let rows = Statement::kept(sql, Finds::ByKey).update(client, arguments)?;
            rows.map(|row| read(&row)).collect()
        })
    }

    /// Those that are in closed tables, with their highest sequence.
    fn closed_ones(&self, digests: &[Uuid]) -> Result<HashMap<Uuid, i64>> {
        let mut found = HashMap::new();
        for part in &self.closed {
            look(part.table, Some(part.index), digests, |values| {
                // SAFETY: the values are those of a row of event_<n>: a uuid, a bigint that may be NULL.
                let (digest, sequence) = unsafe {
                    let ((digest, no_digest), (sequence, none)) = (values[0], values[1]);
                    (
                        Uuid::from_datum(digest, no_digest),
                        i64::from_datum(sequence, none),
                    )
                };
                if let Some(digest) = digest {
                    let highest = found.entry(digest).or_insert(i64::MIN);
                    *highest = sequence.unwrap_or(i64::MIN).max(*highest);
                }
            });
        }
        Ok(found)
    }
}

fn part(number: usize) -> Result<Part> {
    let relation = |name| {
        own_relation(name)
            .ok_or_else(|| Error::Internal("the register of events is missing".into()))
    };
    let (table, index) = NAMES[number % PARTS];
    Ok(Part {
        table: relation(table)?,
        index: relation(index)?,
    })
}

/// The open table, and those that are closed, as of now, whatever snapshot the transaction has.
fn state() -> Result<(usize, Vec<usize>)> {
    let missing = || Error::Internal("recsync.event_register has no table that is open".into());
    let register = own_relation(c"event_register").ok_or_else(missing)?;
    let (mut open, mut closed) = (None, Vec::new());
    look(register, None, &[], |values| {
        // SAFETY: the values are those of a row of event_register: an integer, two times of which only NULL matters.
        let number = unsafe { i32::from_datum(values[0].0, values[0].1) }.unwrap_or(0) as usize;
        match (values[1].1, values[2].1) {
            (false, true) => open = Some(number),
            (false, false) => closed.push(number),
            _ => {}
        }
    });
    Ok((open.ok_or_else(missing)?, closed))
}

/// Shows the first three columns, and whether they are NULL, of the rows with one of the keys, or of all rows of a table
/// without an index, as of now. It needs no rights, and keeps no lock: a closed table may be emptied while the transaction
/// goes on.
fn look(
    table: pg_sys::Oid,
    index: Option<pg_sys::Oid>,
    keys: &[Uuid],
    mut show: impl FnMut([(pg_sys::Datum, bool); 3]),
) {
    let mut scan = |relation: pg_sys::Relation, key: Option<Uuid>, snapshot: pg_sys::Snapshot| {
        let mut given = pg_sys::ScanKeyData::default();
        // SAFETY: the relation is open and has three columns, the key is compared with the first by uuid's own function,
        // the tuple is read before the scan goes on.
        unsafe {
            if let Some(key) = key {
                pg_sys::ScanKeyInit(
                    &mut given,
                    1,
                    pg_sys::BTEqualStrategyNumber as _,
                    pg_sys::F_UUID_EQ.into(),
                    key.into_datum().unwrap_or(pg_sys::Datum::null()),
                );
            }
            let scan = pg_sys::systable_beginscan(
                relation,
                index.unwrap_or(pg_sys::InvalidOid),
                index.is_some(),
                snapshot,
                i32::from(key.is_some()),
                &mut given,
            );
            loop {
                let tuple = pg_sys::systable_getnext(scan);
                if tuple.is_null() {
                    break;
                }
                let (mut values, mut nulls) = ([pg_sys::Datum::null(); 3], [true; 3]);
                pg_sys::heap_deform_tuple(
                    tuple,
                    (*relation).rd_att,
                    values.as_mut_ptr(),
                    nulls.as_mut_ptr(),
                );
                show([0, 1, 2].map(|column| (values[column], nulls[column])));
            }
            pg_sys::systable_endscan(scan);
        }
    };
    // SAFETY: the table is there, and opened, locked and let go of here; the snapshot is registered while it is used.
    unsafe {
        let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
        let relation = pg_sys::table_open(table, lock);
        let snapshot = pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot());
        if index.is_some() {
            keys.iter()
                .for_each(|key| scan(relation, Some(*key), snapshot));
        } else {
            scan(relation, None, snapshot);
        }
        pg_sys::UnregisterSnapshot(snapshot);
        pg_sys::table_close(relation, lock);
    }
}
