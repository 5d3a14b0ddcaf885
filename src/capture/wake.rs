//! At commit, one look at a flag and perhaps one SetLatch: the worker learns that there is something to read.
//!
//! The commit callback never allocates, raises or logs: after the commit record is written an error there
//! would take the whole server down.

use pgrx::pg_sys;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering::SeqCst};

use crate::shared::{self, Database, Presence};

// PostgreSQL's own, called without pgrx's guard, which may allocate: two look-ups of what the transaction has left in
// static variables. Neither can raise.
unsafe extern "C-unwind" {
    #[link_name = "GetTopFullTransactionIdIfAny"]
    fn raw_transaction() -> pg_sys::FullTransactionId;
    #[link_name = "GetCurrentTransactionStopTimestamp"]
    fn raw_stop_time() -> pg_sys::TimestampTz;
}

static REGISTERED: AtomicBool = AtomicBool::new(false);
/// What the transaction asks for when it commits.
static CHANGES: AtomicBool = AtomicBool::new(false);
static GROWTH: AtomicBool = AtomicBool::new(false);
/// The transaction has committed, and its declarations are to be announced.
static COMMITTED: AtomicBool = AtomicBool::new(false);
static CATALOG: AtomicBool = AtomicBool::new(false);
static EXTENSION: AtomicBool = AtomicBool::new(false);
static DATABASES: AtomicBool = AtomicBool::new(false);
/// This database's entry, looked up before commit so that the callback need not search.
static OWN: AtomicPtr<Database> = AtomicPtr::new(std::ptr::null_mut());

/// There are new rows in the change log.
pub fn after_changes() {
    ask(&CHANGES);
}

/// The log has grown by what no pipeline waits for: the worker looks whether it has to be rotated.
pub fn after_growth() {
    ask(&GROWTH);
}

/// Pipelines, servers or jobs are other than before: the worker loads them again.
pub fn after_catalog_change() {
    ask(&CATALOG);
}

/// The extension has come, gone or changed its version: the launcher looks at this database again.
pub fn after_extension_change() {
    ask(&EXTENSION);
}

/// There are other databases than before.
pub fn after_database_change() {
    ask(&DATABASES);
}

/// Whether this transaction has changed a watched table.
pub fn has_own_changes() -> bool {
    CHANGES.load(SeqCst)
}

/// This database's entry; `None` where recsync is not preloaded, or the launcher has not seen the database yet.
pub fn own_database() -> Option<&'static Database> {
    // SAFETY: null or an entry of the shared block, which is mapped until the process ends.
    let known = unsafe { OWN.load(SeqCst).as_ref() };
    known.or_else(|| {
        let database = shared::shared().and_then(shared::Shared::own_database)?;
        OWN.store(std::ptr::from_ref(database).cast_mut(), SeqCst);
        Some(database)
    })
}

fn ask(flag: &AtomicBool) {
    if !REGISTERED.swap(true, SeqCst) {
        // SAFETY: registered once a backend; the callbacks live as long as the library stays loaded, for ever.
        unsafe {
            pg_sys::RegisterXactCallback(Some(at_end_of_transaction), std::ptr::null_mut());
            pg_sys::RegisterResourceReleaseCallback(Some(at_release), std::ptr::null_mut());
        }
    }
    own_database(); // looked up now, so that the callback need not
    flag.store(true, SeqCst);
}

// No #[pg_guard]: the guard allocates when it catches, and nothing here can raise.
unsafe extern "C-unwind" fn at_end_of_transaction(
    event: pg_sys::XactEvent::Type,
    _arg: *mut std::ffi::c_void,
) {
    use pg_sys::XactEvent as E;
    match event {
        // Changes can be read from now on. What is declared is announced later, in `at_release`.
        E::XACT_EVENT_COMMIT | E::XACT_EVENT_PARALLEL_COMMIT => {
            note_commit();
            if is_asked_for_declarations() {
                COMMITTED.store(true, SeqCst);
            } else {
                signal();
            }
        }
        // A prepared transaction is announced when it is committed, by the utility hook.
        E::XACT_EVENT_ABORT | E::XACT_EVENT_PARALLEL_ABORT | E::XACT_EVENT_PREPARE => {
            if event == E::XACT_EVENT_PREPARE
                && is_asked_for_declarations()
                // SAFETY: null or an entry of the shared block.
                && let Some(own) = unsafe { OWN.load(SeqCst).as_ref() }
            {
                own.prepared_declarations.store(true, SeqCst);
            }
            for flag in [&CHANGES, &GROWTH, &CATALOG, &EXTENSION, &DATABASES] {
                flag.store(false, SeqCst);
            }
        }
        _ => {}
    }
}

/// When it was committed, for those who measure how soon its changes show.
fn note_commit() {
    if CHANGES.load(SeqCst)
        && let Some(shared) = shared::shared()
    {
        // SAFETY: called while the transaction commits, after its commit record was written.
        let (transaction, at_us) = unsafe { (raw_transaction().value, raw_stop_time()) };
        shared.commits.note(transaction, at_us);
    }
}

fn is_asked_for_declarations() -> bool {
    CATALOG.load(SeqCst) || EXTENSION.load(SeqCst)
}

/// After the commit's invalidations have been sent: a worker that looked earlier would see the catalogs of before.
// No #[pg_guard], as above.
unsafe extern "C-unwind" fn at_release(
    phase: pg_sys::ResourceReleasePhase::Type,
    _is_commit: bool,
    _is_top_level: bool,
    _arg: *mut std::ffi::c_void,
) {
    if phase == pg_sys::ResourceReleasePhase::RESOURCE_RELEASE_AFTER_LOCKS
        && COMMITTED.swap(false, SeqCst)
    {
        signal();
    }
}

fn signal() {
    let changes = CHANGES.swap(false, SeqCst);
    let growth = GROWTH.swap(false, SeqCst);
    let catalog = CATALOG.swap(false, SeqCst);
    let extension = EXTENSION.swap(false, SeqCst);
    let databases = DATABASES.swap(false, SeqCst);
    let Some(shared) = shared::shared() else {
        return;
    };
    // SAFETY: null or an entry of the shared block, which is mapped until the process ends.
    let own = unsafe { OWN.load(SeqCst).as_ref() };
    if let Some(own) = own {
        if catalog {
            own.catalog_changed.store(true, SeqCst);
            own.wake.set_latch();
        } else if changes {
            own.wake.wake();
        } else if growth {
            own.log_has_grown.store(true, SeqCst);
            own.wake.wake();
        }
        if extension {
            own.set_presence(Presence::Unknown);
            own.catalog_changed.store(true, SeqCst);
            own.wake.set_latch();
        }
    }
    if extension || databases {
        shared.scan_wanted.store(true, SeqCst);
        shared.launcher.set_latch();
    }
}

/// COMMIT PREPARED made another session's changes visible: wakes the worker of this database now.
pub fn after_commit_prepared() {
    if let Some(own) = own_database() {
        if own.prepared_declarations.load(SeqCst) {
            own.catalog_changed.store(true, SeqCst);
        }
        own.wake.set_latch();
    }
}
