//! What capture must know of a table: its key, the columns whose change counts, and what of a row is logged.
//!
//! Never an OID or attribute number from a stored row: names are resolved here, per backend, and the result
//! is dropped when the relation's definition changes.

use pgrx::PgTupleDesc;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::{CStr, c_char};
use std::rc::Rc;

use super::json::{Kind, label};
use crate::catalog::names::{own_relation, qualified};
use crate::shared::LOG_TABLES;

/// A column as the comparison by stored image and the JSON of its values need it. `index` counts from 0.
pub struct Column {
    /// `"name":`
    pub label: Vec<u8>,
    pub index: usize,
    pub by_value: bool,
    pub length: i16,
    /// Of a domain, the type below it.
    pub type_oid: pg_sys::Oid,
    pub kind: Kind,
    /// The type's output function.
    pub output: pg_sys::Oid,
}

pub struct Source {
    pub id: i32,
    /// The table that was declared: of a partition, the root it is watched by.
    pub relation: pg_sys::Oid,
    /// `None` when a key column is gone: nothing can be logged until the source is declared anew.
    pub key: Option<Vec<Column>>,
    /// What the pipelines' texts are made of. `None` when such a column is gone: every update counts.
    pub used: Option<Vec<Column>>,
    /// There are pipelines: a change of what they use has to be dispatched.
    pub dispatched: bool,
    /// An audit: every change counts, whatever the pipelines use.
    pub audited: Option<Vec<Column>>,
    /// What old_record and record hold; `None`: nothing.
    pub record: Option<Vec<Column>>,
    pub large_values: bool,
    /// The highest attribute number that has to be deformed.
    pub deform: i32,
}

/// recsync's own relations that a change is written with.
#[derive(Clone, Copy)]
pub struct Own {
    pub sequence: pg_sys::Oid,
    pub log: [LogTable; LOG_TABLES as usize],
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub struct LogTable {
    pub table: pg_sys::Oid,
    /// Its only index: (transaction_id, sequence).
    pub index: pg_sys::Oid,
}

const LOG_NAMES: [(&CStr, &CStr); LOG_TABLES as usize] = [
    (c"log_0", c"log_0_pkey"),
    (c"log_1", c"log_1_pkey"),
    (c"log_2", c"log_2_pkey"),
    (c"log_3", c"log_3_pkey"),
    (c"log_4", c"log_4_pkey"),
    (c"log_5", c"log_5_pkey"),
    (c"log_6", c"log_6_pkey"),
    (c"log_7", c"log_7_pkey"),
];

/// By relation and source: a partition may be watched by itself and by its root.
type Cache = HashMap<(pg_sys::Oid, i32), Option<Rc<Source>>>;

thread_local! {
    static CACHE: RefCell<Cache> = RefCell::new(HashMap::new());
    static OWN: Cell<Option<Own>> = const { Cell::new(None) };
    static STALE: Cell<bool> = const { Cell::new(false) };
    static REGISTERED: Cell<bool> = const { Cell::new(false) };
}

unsafe extern "C-unwind" {
    // Not in pgrx's bindings: the partitioned tables above a partition, nearest first.
    fn get_partition_ancestors(relation: pg_sys::Oid) -> *mut pg_sys::List;
}

/// The source that `relation`'s trigger (with the source's id as its argument) captures for; `None` when
/// recsync knows none.
///
/// # Safety
/// `relation` is open, `id` is the trigger's argument.
pub unsafe fn of(relation: pg_sys::Relation, id: i32) -> Option<Rc<Source>> {
    watch_invalidations();
    // SAFETY: an open relation has its OID.
    let oid = unsafe { (*relation).rd_id };
    if let Some(source) = CACHE.with_borrow(|cache| cache.get(&(oid, id)).cloned()) {
        return source;
    }
    // SAFETY: passed on from the caller.
    let source = unsafe { load(relation, id) }.map(Rc::new);
    CACHE.with_borrow_mut(|cache| cache.insert((oid, id), source.clone()));
    source
}

impl Own {
    fn has(&self, relation: pg_sys::Oid) -> bool {
        self.sequence == relation
            || self
                .log
                .iter()
                .any(|log| log.table == relation || log.index == relation)
    }
}

/// recsync's own relations; `None` where the extension is not there.
pub fn own() -> Option<Own> {
    watch_invalidations();
    if let Some(own) = OWN.get() {
        return Some(own);
    }
    let none = LogTable {
        table: pg_sys::InvalidOid,
        index: pg_sys::InvalidOid,
    };
    let mut own = Own {
        sequence: own_relation(c"change_log_sequence")?,
        log: [none; LOG_TABLES as usize],
    };
    for (log, (table, index)) in own.log.iter_mut().zip(LOG_NAMES) {
        *log = LogTable {
            table: own_relation(table)?,
            index: own_relation(index)?,
        };
    }
    OWN.set(Some(own));
    Some(own)
}

fn watch_invalidations() {
    if !REGISTERED.replace(true) {
        // SAFETY: once a backend; the callback touches nothing but this process's cache.
        unsafe { pg_sys::CacheRegisterRelcacheCallback(Some(forget), pg_sys::Datum::from(0)) };
    }
    if STALE.replace(false) {
        CACHE.with_borrow_mut(HashMap::clear);
    }
}

// No guard: it cannot raise, and runs wherever invalidations are received.
unsafe extern "C-unwind" fn forget(_arg: pg_sys::Datum, relation: pg_sys::Oid) {
    let own = OWN.get();
    if relation == pg_sys::InvalidOid || own.is_some_and(|own| own.has(relation)) {
        OWN.set(None);
    }
    let forgotten = CACHE.try_with(|cache| {
        cache.try_borrow_mut().is_ok_and(|mut cache| {
            if relation == pg_sys::InvalidOid {
                cache.clear();
            } else {
                cache.retain(|(of, _), _| *of != relation);
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
    let row = read_row(id)?;
    // SAFETY: the relation is open, so its descriptor is valid; `from_pg_copy` copies it.
    let descriptor = unsafe { PgTupleDesc::from_pg_copy((*relation).rd_att) };
    let named = |names: &[String]| {
        names
            .iter()
            .map(|name| {
                let mut attributes = descriptor.iter().enumerate();
                attributes
                    .find(|(_, attribute)| !attribute.attisdropped && attribute.name() == name)
                    .map(|(index, attribute)| Column::new(index, attribute))
            })
            .collect::<Option<Vec<Column>>>()
    };
    // The value of a virtual generated column is not in the trigger's row.
    let all = || {
        descriptor
            .iter()
            .enumerate()
            .filter(|(_, attribute)| {
                !attribute.attisdropped && attribute.attgenerated != b'v' as c_char
            })
            .map(|(index, attribute)| Column::new(index, attribute))
            .collect::<Vec<Column>>()
    };
    let (key, used) = (named(&row.key_columns), named(&row.used_columns));
    let audited = row.audited.then(&all);
    let record = match row.capture.as_str() {
        "full" => Some(all()),
        "columns" => named(&row.used_columns),
        _ => None,
    };
    let deform = [&key, &used, &audited, &record]
        .into_iter()
        .flatten()
        .flatten()
        .map(|column| column.index as i32 + 1)
        .max()
        .unwrap_or(0);
    Some(Source {
        id,
        // SAFETY: the relation is open.
        relation: unsafe { declared(relation, &row.relation) },
        key,
        used,
        dispatched: row.dispatched,
        audited,
        record,
        large_values: row.large_values,
        deform,
    })
}

impl Column {
    fn new(index: usize, attribute: &pg_sys::FormData_pg_attribute) -> Column {
        let mut output = pg_sys::InvalidOid;
        let mut variable_length = false;
        // SAFETY: catalog look-ups by the OID of an existing type; the name is a NUL-terminated field of the copy.
        let (type_oid, label) = unsafe {
            let type_oid = pg_sys::getBaseType(attribute.atttypid);
            pg_sys::getTypeOutputInfo(type_oid, &mut output, &mut variable_length);
            (
                type_oid,
                label(CStr::from_ptr(attribute.attname.data.as_ptr())),
            )
        };
        Column {
            label,
            index,
            by_value: attribute.attbyval,
            length: attribute.attlen,
            type_oid,
            kind: Kind::of(type_oid),
            output,
        }
    }
}

/// The table called `name` among `relation` and the partitioned tables above it.
unsafe fn declared(relation: pg_sys::Relation, name: &str) -> pg_sys::Oid {
    // SAFETY: the relation is open; the list holds OIDs.
    unsafe {
        let own = (*relation).rd_id;
        if !(*(*relation).rd_rel).relispartition {
            return own;
        }
        let ancestors = pg_sys::ffi::pg_guard_ffi_boundary(|| get_partition_ancestors(own));
        let length = ancestors.as_ref().map_or(0, |list| list.length as usize);
        (0..length)
            .map(|index| (*(*ancestors).elements.add(index)).oid_value)
            .find(|ancestor| qualified(*ancestor).as_deref() == Some(name))
            .unwrap_or(own)
    }
}

/// A row of `recsync.source`.
struct Row {
    relation: String,
    key_columns: Vec<String>,
    used_columns: Vec<String>,
    capture: String,
    dispatched: bool,
    audited: bool,
    large_values: bool,
}

fn read_row(id: i32) -> Option<Row> {
    let table = own_relation(c"source")?;
    let index = own_relation(c"source_pkey")?;
    // SAFETY: the table and its index are opened and closed here, with the locks that a catalog scan takes;
    // the values are copied out of the tuple before the scan ends. Attributes are those of the install script.
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
            Row {
                relation: attribute(tuple, descriptor, 2).unwrap_or_default(),
                key_columns: attribute(tuple, descriptor, 3).unwrap_or_default(),
                used_columns: attribute(tuple, descriptor, 4).unwrap_or_default(),
                capture: attribute(tuple, descriptor, 5).unwrap_or_default(),
                dispatched: attribute(tuple, descriptor, 6).unwrap_or_default(),
                audited: attribute::<String>(tuple, descriptor, 7).is_some(),
                large_values: attribute(tuple, descriptor, 8).unwrap_or_default(),
            }
        });
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, pg_sys::AccessShareLock as _);
        row
    }
}

unsafe fn attribute<T: FromDatum>(
    tuple: pg_sys::HeapTuple,
    descriptor: pg_sys::TupleDesc,
    number: i32,
) -> Option<T> {
    let mut null = false;
    // SAFETY: the attribute exists in recsync.source and is of the type asked for.
    unsafe {
        let datum = pg_sys::heap_getattr(tuple, number, descriptor, &mut null);
        T::from_datum(datum, null)
    }
}
