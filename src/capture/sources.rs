//! What capture must know of a table: its key columns and the columns whose change counts.
//!
//! Never an OID or attribute number from a stored row: names are resolved here, per backend, and the result
//! is dropped when the relation's definition changes.

use pgrx::PgTupleDesc;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::CStr;
use std::rc::Rc;

/// A column as the comparison by stored image needs it. `index` counts from 0.
#[derive(Clone)]
pub struct Column {
    pub name: String,
    pub index: usize,
    pub by_value: bool,
    pub length: i16,
    pub type_oid: pg_sys::Oid,
}

pub struct Source {
    pub id: i32,
    /// `None` when a key column is gone: nothing can be logged until the source is declared anew.
    pub key: Option<Vec<Column>>,
    /// `None` when a used column is gone: every update counts.
    pub used: Option<Vec<Column>>,
    /// The highest attribute number that has to be deformed.
    pub deform: i32,
}

thread_local! {
    static CACHE: RefCell<HashMap<pg_sys::Oid, Option<Rc<Source>>>> = RefCell::new(HashMap::new());
    static STALE: Cell<bool> = const { Cell::new(false) };
    static REGISTERED: Cell<bool> = const { Cell::new(false) };
}

/// The source that `relation`'s trigger (with the source's id as its argument) captures for; `None` when
/// recsync knows none.
///
/// # Safety
/// `relation` is open, `id` is the trigger's argument.
pub unsafe fn of(relation: pg_sys::Relation, id: i32) -> Option<Rc<Source>> {
    if !REGISTERED.replace(true) {
        // SAFETY: once a backend; the callback touches nothing but this process's cache.
        unsafe { pg_sys::CacheRegisterRelcacheCallback(Some(forget), pg_sys::Datum::from(0)) };
    }
    if STALE.replace(false) {
        CACHE.with_borrow_mut(HashMap::clear);
    }
    // SAFETY: an open relation has its OID.
    let oid = unsafe { (*relation).rd_id };
    if let Some(source) = CACHE.with_borrow(|cache| cache.get(&oid).cloned()) {
        return source;
    }
    // SAFETY: passed on from the caller.
    let source = unsafe { load(relation, id) }.map(Rc::new);
    CACHE.with_borrow_mut(|cache| cache.insert(oid, source.clone()));
    source
}

// No guard: it cannot raise, and runs wherever invalidations are received.
unsafe extern "C-unwind" fn forget(_arg: pg_sys::Datum, relation: pg_sys::Oid) {
    let forgotten = CACHE.try_with(|cache| {
        cache.try_borrow_mut().is_ok_and(|mut cache| {
            if relation == pg_sys::InvalidOid {
                cache.clear();
            } else {
                cache.remove(&relation);
            }
            true
        })
    });
    if !forgotten.unwrap_or(true) {
        STALE.set(true);
    }
}

/// Reads `recsync.source` under a catalog snapshot: the statement's own may be older than the pipeline.
unsafe fn load(relation: pg_sys::Relation, id: i32) -> Option<Source> {
    let (key_names, used_names) = read_row(id)?;
    // SAFETY: the relation is open, so its descriptor is valid; `from_pg_copy` copies it.
    let descriptor = unsafe { PgTupleDesc::from_pg_copy((*relation).rd_att) };
    let column = |name: &String| {
        descriptor
            .iter()
            .enumerate()
            .find(|(_, attribute)| !attribute.attisdropped && attribute.name() == name)
            .map(|(index, attribute)| Column {
                name: name.clone(),
                index,
                by_value: attribute.attbyval,
                length: attribute.attlen,
                type_oid: attribute.atttypid,
            })
    };
    let key: Option<Vec<Column>> = key_names.iter().map(column).collect();
    let used: Option<Vec<Column>> = used_names.iter().map(column).collect();
    let deform = key
        .iter()
        .chain(used.iter())
        .flatten()
        .map(|column| column.index as i32 + 1)
        .max()
        .unwrap_or(0);
    Some(Source {
        id,
        key,
        used,
        deform,
    })
}

fn read_row(id: i32) -> Option<(Vec<String>, Vec<String>)> {
    let table = relation_oid(c"source")?;
    let index = relation_oid(c"source_pkey")?;
    // SAFETY: the table and its index are opened and closed here, with the locks that a catalog scan takes;
    // the values are copied out of the tuple before the scan ends.
    unsafe {
        let relation = pg_sys::table_open(table, pg_sys::AccessShareLock as _);
        let mut scan_key = pg_sys::ScanKeyData::default();
        pg_sys::ScanKeyInit(
            &mut scan_key,
            1,
            pg_sys::BTEqualStrategyNumber as _,
            pg_sys::F_INT4EQ.into(),
            pg_sys::Datum::from(id),
        );
        let scan = pg_sys::systable_beginscan(
            relation,
            index,
            true,
            std::ptr::null_mut(),
            1,
            &mut scan_key,
        );
        let tuple = pg_sys::systable_getnext(scan);
        let row = (!tuple.is_null()).then(|| {
            let descriptor = (*relation).rd_att;
            (
                text_array(tuple, descriptor, 3),
                text_array(tuple, descriptor, 4),
            )
        });
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, pg_sys::AccessShareLock as _);
        row
    }
}

unsafe fn text_array(
    tuple: pg_sys::HeapTuple,
    descriptor: pg_sys::TupleDesc,
    attribute: i32,
) -> Vec<String> {
    let mut null = false;
    // SAFETY: the attribute exists in recsync.source and is of type text[].
    unsafe {
        let datum = pg_sys::heap_getattr(tuple, attribute, descriptor, &mut null);
        Vec::<String>::from_datum(datum, null).unwrap_or_default()
    }
}

/// The OID of one of recsync's own relations; `None` where the extension is not there.
pub fn relation_oid(name: &CStr) -> Option<pg_sys::Oid> {
    // SAFETY: syscache look-ups by NUL-terminated names.
    unsafe {
        let schema = pg_sys::get_namespace_oid(c"recsync".as_ptr(), true);
        let relation = pg_sys::get_relname_relid(name.as_ptr(), schema);
        (relation != pg_sys::InvalidOid).then_some(relation)
    }
}
