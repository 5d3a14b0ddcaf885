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
//! A closed table changes no more. Who looks into one often enough reads it once as a whole and keeps which digests it does not
//! hold, so that a stream of new events costs one look an event, and not one for each table.
//!
//! What one role has noted counts for that role only: row-level security may keep it from a row that another may write, so
//! what is done for one is not for the other. It never holds a value of anybody's, only digests.

use pgrx::datum::Uuid;
use pgrx::pg_sys;
use pgrx::prelude::*;
use sha2::{Digest, Sha256};
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::ffi::CStr;

use super::absent::Absent;
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
    closed: Vec<Closed>,
    role: pg_sys::Oid,
}

#[derive(Clone, Copy)]
struct Part {
    number: usize,
    table: pg_sys::Oid,
    index: pg_sys::Oid,
}

/// A table that is closed, since when.
#[derive(Clone, Copy)]
struct Closed {
    part: Part,
    at: i64,
}

/// What a session keeps of a closed table.
#[derive(Default)]
struct Kept {
    /// Since when the table is closed that it is of.
    at: i64,
    /// How many digests have been looked for.
    looks: usize,
    absent: Option<Absent>,
}

/// Rows of a page, about.
const ROWS: usize = 150;
/// Rows that are read as a whole in the time of one look by the index, about, and looks that are never too many.
const READ: usize = 50;
const LEAST: usize = 1_000;

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
                let closed = closed.into_iter().map(|(number, at)| {
                    let part = part(number)?;
                    Ok(Closed { part, at })
                });
                let closed = closed.collect::<Result<_>>()?;
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

    /// Those of `digests`, in their order, that are in closed tables, with their highest sequence.
    fn closed_ones(&self, digests: &[Uuid]) -> Result<HashMap<Uuid, i64>> {
        let mut found = HashMap::new();
        for closed in &self.closed {
            let wanted = closed.may_hold(digests);
            if wanted.is_empty() {
                continue;
            }
            let Part { table, index, .. } = closed.part;
            look(table, Some(index), &wanted, |values| {
                // SAFETY: the values are those of a row of event_<n>: a uuid, a bigint that may be NULL.
                let (digest, sequence) = unsafe {
                    let ((digest, no_digest), (sequence, none)) = (values[0], values[1]);
                    (
                        Uuid::from_datum(digest, no_digest),
                        i64::from_datum(sequence, none),
                    )
                };
                // Where the index was not used, it may be any.
                if let Some(digest) = digest.filter(|digest| wanted.binary_search(digest).is_ok()) {
                    let highest = found.entry(digest).or_insert(i64::MIN);
                    *highest = sequence.unwrap_or(i64::MIN).max(*highest);
                }
            });
        }
        Ok(found)
    }
}

impl Closed {
    /// Those of `digests`, in their order, that may be in it.
    fn may_hold(&self, digests: &[Uuid]) -> Vec<Uuid> {
        thread_local! {
            static KEPT: RefCell<[Kept; PARTS]> = RefCell::default();
        }
        let number = self.part.number % PARTS;
        let mut kept = KEPT.with_borrow_mut(|kept| std::mem::take(&mut kept[number]));
        if kept.at != self.at {
            kept = Kept {
                at: self.at,
                ..Kept::default()
            };
        }
        kept.looks = kept.looks.saturating_add(digests.len());
        if kept.absent.is_none() && kept.looks >= LEAST {
            let rows = pages(self.part.table) * ROWS;
            if kept.looks >= rows / READ {
                kept.absent = Some(self.absent(rows));
            }
        }
        let wanted = match &kept.absent {
            Some(absent) => {
                let may_be = digests.iter().copied();
                may_be
                    .filter(|digest| !absent.is_absent(digest.as_bytes()))
                    .collect()
            }
            None => digests.to_vec(),
        };
        KEPT.with_borrow_mut(|all| all[number] = kept);
        wanted
    }

    fn absent(&self, rows: usize) -> Absent {
        let mut absent = Absent::of(rows);
        look(self.part.table, None, &[], |values| {
            // SAFETY: the first value of a row of event_<n> is a uuid.
            if let Some(digest) = unsafe { Uuid::from_datum(values[0].0, values[0].1) } {
                absent.add(digest.as_bytes());
            }
        });
        absent
    }
}

/// Of a table.
fn pages(table: pg_sys::Oid) -> usize {
    let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
    // SAFETY: the table is there, and opened, locked and let go of here.
    unsafe {
        let relation = pg_sys::table_open(table, lock);
        let pages =
            pg_sys::RelationGetNumberOfBlocksInFork(relation, pg_sys::ForkNumber::MAIN_FORKNUM);
        pg_sys::table_close(relation, lock);
        pages as usize
    }
}

fn part(number: usize) -> Result<Part> {
    let relation = |name| {
        own_relation(name)
            .ok_or_else(|| Error::Internal("the register of events is missing".into()))
    };
    let (table, index) = NAMES[number % PARTS];
    Ok(Part {
        number,
        table: relation(table)?,
        index: relation(index)?,
    })
}

/// The open table, and those that are closed, since when, as of now, whatever snapshot the transaction has.
fn state() -> Result<(usize, Vec<(usize, i64)>)> {
    let missing = || Error::Internal("recsync.event_register has no table that is open".into());
    let register = own_relation(c"event_register").ok_or_else(missing)?;
    let (mut open, mut closed) = (None, Vec::new());
    look(register, None, &[], |values| {
        // SAFETY: the values are those of a row of event_register: an integer, and two times, which are numbers.
        let (number, closed_at) = unsafe {
            (
                i32::from_datum(values[0].0, values[0].1),
                i64::from_datum(values[2].0, values[2].1),
            )
        };
        let number = number.unwrap_or(0) as usize;
        match (values[1].1, closed_at) {
            (false, None) => open = Some(number),
            (false, Some(at)) => closed.push((number, at)),
            _ => {}
        }
    });
    Ok((open.ok_or_else(missing)?, closed))
}

/// Shows the first three columns, and whether they are NULL, of the rows with one of the keys, in one scan of the index, or of
/// all rows where there is no index, as of now. It needs no rights, and keeps no lock: a closed table may be emptied while
/// the transaction goes on.
fn look(
    table: pg_sys::Oid,
    index: Option<pg_sys::Oid>,
    keys: &[Uuid],
    mut show: impl FnMut([(pg_sys::Datum, bool); 3]),
) {
    let mut given = pg_sys::ScanKeyData::default();
    // Where an index may not be used (ignore_system_indexes) the table is read as a whole.
    // SAFETY: a plain global.
    let by_index = index.is_some() && !unsafe { pg_sys::IgnoreSystemIndexes };
    // SAFETY: the table is there, and opened, locked and let go of here, and has three columns; the key is compared with each
    // of an array of its type, which only an index does, by uuid's own function, and lives as long as the scan; a tuple is read
    // before the scan goes on; the snapshot is registered while it is used.
    unsafe {
        if by_index {
            pg_sys::ScanKeyEntryInitialize(
                &mut given,
                pg_sys::SK_SEARCHARRAY as _,
                1,
                pg_sys::BTEqualStrategyNumber as _,
                pg_sys::InvalidOid,
                pg_sys::InvalidOid,
                pg_sys::F_UUID_EQ.into(),
                keys.to_vec().into_datum().unwrap_or(pg_sys::Datum::null()),
            );
        }
        let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
        let relation = pg_sys::table_open(table, lock);
        let snapshot = pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot());
        let scan = pg_sys::systable_beginscan(
            relation,
            index.unwrap_or(pg_sys::InvalidOid),
            by_index,
            snapshot,
            i32::from(by_index),
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
        pg_sys::UnregisterSnapshot(snapshot);
        pg_sys::table_close(relation, lock);
    }
}
