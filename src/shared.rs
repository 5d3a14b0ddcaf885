//! What the processes of a cluster tell each other: one fixed block of shared memory, made of atomics.
//!
//! It never locks: the launcher alone gives out the databases' entries, everything else is a flag or a number.

use pgrx::pg_sys;
use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicPtr, AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use crate::embed::rate::{self, Rates};
use crate::embed::recent::Recent;
use crate::ledger::asked::Asked;

// Places for processes that a worker asks for.
pub mod slots;

// What is measured.
pub mod meters;

// Durations by size.
pub mod histogram;

// What has gone wrong lately.
pub mod failures;

// Tokens and money.
pub mod money;

// When transactions were committed.
pub mod commits;

// Short texts.
pub mod text;

/// Databases that can be served at once or in turn; one beyond it stays without worker, with a WARNING.
pub const MAX_DATABASES: usize = 256;
/// Pipelines whose counters are kept; one beyond it works without counters.
pub const MAX_COUNTERS: usize = 1024;
pub const LOG_TABLES: u32 = 8;

/// What the launcher knows of a database.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Presence {
    /// Not looked at since the server started, or since something changed there.
    Unknown = 0,
    /// Looked at: the extension is not there.
    Absent = 1,
    Present = 2,
}

#[repr(C)]
pub struct Shared {
    pub launcher: Target,
    /// The list of databases has changed: the launcher reads it again.
    pub scan_wanted: AtomicBool,
    /// Workers that would run if there were a slot.
    pub waiting_databases: AtomicU32,
    pub databases: [Database; MAX_DATABASES],
    pub counters: [Counters; MAX_COUNTERS],
    /// Of each of these; apart from them, so that who looks for one passes over less memory.
    meters: [meters::Meters; MAX_COUNTERS],
    pub rates: Rates,
    pub recent: Recent,
    /// What sessions have asked providers for.
    pub asked: Asked,
    pub writers: [slots::Slot; slots::MAX_WRITERS],
    /// The place for the process that trains models: one in the cluster, so that its memory is bounded.
    pub trainer: [slots::Slot; 1],
    pub commits: commits::Commits,
    pub watch: meters::Watch,
}

/// One database's entry. `oid` 0: free.
#[repr(C)]
pub struct Database {
    pub oid: AtomicU32,
    presence: AtomicU32,
    /// Who is woken by a commit: the worker, or the launcher where the worker has given way.
    pub wake: Target,
    pub worker_pid: AtomicI32,
    /// The backend that wants no worker here for now (DROP DATABASE and the like).
    pub hold_pid: AtomicI32,
    pub lacks_slot: AtomicBool,
    /// The worker had nothing to do and left its slot to another database: it comes back when it is woken.
    pub gave_way: AtomicBool,
    /// The worker does nothing, by `recsync.enabled` or `recsync.site`: a statement that waits for it sees no setting change.
    pub rests: AtomicBool,
    /// It is a copy of another site's (`recsync.site`), as the worker has found.
    pub elsewhere: AtomicBool,
    /// Pipelines, servers or jobs were changed by a backend: the worker loads them again.
    pub catalog_changed: AtomicBool,
    /// A prepared transaction may hold some: when one commits, the worker loads them again.
    pub prepared_declarations: AtomicBool,
    pub checkpoint_wanted: AtomicBool,
    /// By what no pipeline waits for: the worker looks whether it has to be rotated.
    pub log_has_grown: AtomicBool,
    pub log_table: AtomicU32,
    /// The next number of a block of the change log; 0 until the first one is drawn.
    pub log_sequence: AtomicI64,
    /// Which of the two tables takes known texts, and about how many bytes it holds.
    pub known_table: AtomicU32,
    pub known_bytes: AtomicI64,
    /// The place for the process that builds an index here, and of which pipeline it is.
    pub indexer: [slots::Slot; 1],
    pub indexed_pipeline: AtomicI32,
    pub facts: meters::Facts,
    /// Signalled when the checkpoint has moved and when the worker ends.
    progress: UnsafeCell<MaybeUninit<pg_sys::ConditionVariable>>,
}

/// A process to wake: its latch, and whether it asks to be woken.
#[repr(C)]
pub struct Target {
    armed: AtomicBool,
    latch: AtomicPtr<pg_sys::Latch>,
}

/// Numbers of one pipeline that its worker keeps for `recsync.status`.
#[repr(C)]
pub struct Counters {
    pub database: AtomicU32,
    pub pipeline: AtomicI32,
    pub pending: AtomicI64,
    pub in_flight: AtomicI64,
    pub embedded: AtomicI64,
    pub requests: AtomicI64,
    pub tokens: AtomicI64,
    /// The last reply's failure: class (1 to 4) × 1000 + HTTP status; 0 after a success.
    pub failure: AtomicI64,
    /// The SQLSTATE of the last build of its index that failed, as PostgreSQL packs it; 0: none has.
    pub index_failure: AtomicI64,
    pub last_embedded_us: AtomicI64,
    pub last_change_us: AtomicI64,
    /// Rows that were looked at, those whose vector was that of their text, and vectors that were removed, new,
    /// replaced; of these two, those that were known and cost no call.
    pub processed: AtomicI64,
    pub unchanged: AtomicI64,
    pub removed: AtomicI64,
    pub inserted: AtomicI64,
    pub updated: AtomicI64,
    pub known: AtomicI64,
    /// Texts of which only the beginning was sent.
    pub truncated: AtomicI64,
    /// How often somebody has asked for a run, and up to which of these the worker has begun.
    pub runs_wanted: AtomicI64,
    pub runs_started: AtomicI64,
    /// Of a recommender: up to which of these its models have been trained, and the SQLSTATE of a training that has failed
    /// since the last was asked for; 0: none has.
    pub runs_ended: AtomicI64,
    pub run_failure: AtomicI64,
    /// Of a recommender: lists of recommend's that were ready, that were made when they were asked for, and that the worker
    /// has made before.
    pub lists_ready: AtomicI64,
    pub lists_made: AtomicI64,
    pub lists_warmed: AtomicI64,
    /// Since when its server is left alone because it fails; 0: it is not.
    pub rests_since_us: AtomicI64,
    /// Rows that its backfill looks at in a thousand seconds; 0: there is none, or it is not known.
    pub filled_per_1000_s: AtomicI64,
    /// Its backfill waits for a standby that is behind.
    pub waits_for_standby: AtomicBool,
}

// PostgreSQL's SetLatch, called without pgrx's guard: it neither raises nor allocates, and the commit
// callback, where nothing may fail, is one of its callers.
unsafe extern "C-unwind" {
    #[link_name = "SetLatch"]
    fn raw_set_latch(latch: *mut pg_sys::Latch);
}

impl Target {
    /// The calling process is woken from now on.
    pub fn claim(&self) {
        // SAFETY: MyLatch is this process's latch, set before any extension code runs.
        self.latch.store(unsafe { pg_sys::MyLatch }, SeqCst);
        self.armed.store(true, SeqCst);
    }

    pub fn arm(&self) {
        self.armed.store(true, SeqCst);
    }

    /// Whether the process has been woken since it last asked for it.
    pub fn has_rung(&self) -> bool {
        !self.armed.load(SeqCst)
    }

    /// How much of `wait` is left: nothing where the process has been woken since it asked for it, also if a lock that it
    /// waited for meanwhile has taken the wake-up for its own.
    pub fn left_of(&self, wait: Duration) -> Duration {
        match self.has_rung() {
            true => Duration::ZERO,
            false => wait,
        }
    }

    /// Wakes the process if it has asked for it since it was last woken. Cannot fail: called in the commit callback.
    pub fn wake(&self) {
        if self.armed.swap(false, SeqCst) {
            self.set_latch();
        }
    }

    /// Wakes the process, asked for or not.
    pub fn set_latch(&self) {
        let latch = self.latch.load(SeqCst);
        if !latch.is_null() {
            // SAFETY: latches live in the shared PGPROC array for as long as the cluster runs; that of a
            // process that has ended belongs to nobody or to another process, which a stray wake does not harm.
            unsafe { raw_set_latch(latch) };
        }
    }

    /// As [`Target::follow`], for a process that is ending.
    pub fn follow_quietly(&self, other: &Target) {
        self.latch.store(other.latch.load(SeqCst), SeqCst);
    }

    /// The same latch as another target's: its process is woken instead.
    pub fn follow(&self, other: &Target) {
        self.latch.store(other.latch.load(SeqCst), SeqCst);
        self.armed.store(true, SeqCst);
    }
}

impl Database {
    pub fn presence(&self) -> Presence {
        match self.presence.load(SeqCst) {
            1 => Presence::Absent,
            2 => Presence::Present,
            _ => Presence::Unknown,
        }
    }

    pub fn set_presence(&self, presence: Presence) {
        self.presence.store(presence as u32, SeqCst);
    }

    /// Whether there is work for a worker here: always, unless it gave way and nobody has woken it since.
    pub fn wants_worker(&self) -> bool {
        !self.gave_way.load(SeqCst)
            || !self.wake.armed.load(SeqCst)
            || self.catalog_changed.load(SeqCst)
    }

    fn progress(&self) -> *mut pg_sys::ConditionVariable {
        self.progress.get().cast()
    }

    /// Wakes everybody who waits in [`Database::wait_for_progress`].
    pub fn signal_progress(&self) {
        // SAFETY: initialised when the shared memory was made.
        unsafe { pg_sys::ConditionVariableBroadcast(self.progress()) };
    }

    /// Call before reading what is waited for, so that no signal is missed.
    pub fn prepare_to_wait(&self) {
        // SAFETY: as above.
        unsafe { pg_sys::ConditionVariablePrepareToSleep(self.progress()) };
    }

    /// Waits for the next signal, at most `milliseconds`; true on a timeout. Interruptible.
    pub fn wait_for_progress(&self, milliseconds: i64) -> bool {
        // SAFETY: as above.
        unsafe {
            pg_sys::ConditionVariableTimedSleep(
                self.progress(),
                milliseconds as _,
                pg_sys::PG_WAIT_EXTENSION,
            )
        }
    }

    pub fn stop_waiting() {
        // SAFETY: harmless when this process waits for nothing.
        unsafe { pg_sys::ConditionVariableCancelSleep() };
    }
}

// SAFETY: every field is atomic but `progress`, which PostgreSQL's own functions guard by its spinlock.
unsafe impl Sync for Database {}

impl Shared {
    pub fn database(&self, oid: pg_sys::Oid) -> Option<&Database> {
        self.databases
            .iter()
            .find(|entry| entry.oid.load(SeqCst) == oid.to_u32())
    }

    pub fn own_database(&self) -> Option<&Database> {
        // SAFETY: a plain global of this process.
        self.database(unsafe { pg_sys::MyDatabaseId })
    }

    /// Launcher only: the entry of a database, a new one where it has none, `None` when all are taken.
    pub fn database_or_new(&self, oid: pg_sys::Oid) -> Option<&Database> {
        self.database(oid).or_else(|| {
            let free = self
                .databases
                .iter()
                .find(|entry| entry.oid.load(SeqCst) == 0)?;
            free.set_presence(Presence::Unknown);
            free.worker_pid.store(0, SeqCst);
            free.hold_pid.store(0, SeqCst);
            free.lacks_slot.store(false, SeqCst);
            free.gave_way.store(false, SeqCst);
            free.rests.store(false, SeqCst);
            free.elsewhere.store(false, SeqCst);
            free.log_table.store(0, SeqCst);
            free.log_sequence.store(0, SeqCst);
            free.known_table.store(0, SeqCst);
            free.known_bytes.store(0, SeqCst);
            free.facts.reset();
            free.wake.follow(&self.launcher);
            free.oid.store(oid.to_u32(), SeqCst);
            Some(free)
        })
    }

    pub fn counters(&self, database: pg_sys::Oid, pipeline: i32) -> Option<&Counters> {
        self.counters.iter().find(|counters| {
            counters.pipeline.load(SeqCst) == pipeline
                && counters.database.load(SeqCst) == database.to_u32()
        })
    }

    /// What else is measured of it.
    pub fn meters(&self, counters: &Counters) -> &meters::Meters {
        let place = std::ptr::from_ref(counters).addr() - self.counters.as_ptr().addr();
        &self.meters[place / size_of::<Counters>()]
    }

    /// Frees the counters of a database's pipelines that are no more.
    pub fn keep_counters(&self, database: pg_sys::Oid, keep: impl Fn(i32) -> bool) {
        for counters in &self.counters {
            if counters.database.load(SeqCst) == database.to_u32()
                && !keep(counters.pipeline.load(SeqCst))
            {
                counters.pipeline.store(0, SeqCst);
                counters.database.store(0, SeqCst);
            }
        }
    }

    /// Worker only: a pipeline's counters, made where they are missing and there is room.
    pub fn counters_or_new(&self, database: pg_sys::Oid, pipeline: i32) -> Option<&Counters> {
        self.counters(database, pipeline).or_else(|| {
            self.counters.iter().find(|counters| {
                let free = counters
                    .database
                    .compare_exchange(0, database.to_u32(), SeqCst, SeqCst)
                    .is_ok();
                if free {
                    counters.pipeline.store(pipeline, SeqCst);
                    for number in [
                        &counters.pending,
                        &counters.in_flight,
                        &counters.embedded,
                        &counters.requests,
                        &counters.tokens,
                        &counters.failure,
                        &counters.index_failure,
                        &counters.last_embedded_us,
                        &counters.last_change_us,
                        &counters.processed,
                        &counters.unchanged,
                        &counters.removed,
                        &counters.inserted,
                        &counters.updated,
                        &counters.known,
                        &counters.truncated,
                        &counters.runs_wanted,
                        &counters.runs_started,
                        &counters.runs_ended,
                        &counters.run_failure,
                        &counters.lists_ready,
                        &counters.lists_made,
                        &counters.lists_warmed,
                        &counters.rests_since_us,
                        &counters.filled_per_1000_s,
                    ] {
                        number.store(0, SeqCst);
                    }
                    counters.waits_for_standby.store(false, SeqCst);
                    self.meters(counters).reset();
                }
                free
            })
        })
    }
}

static BLOCK: AtomicPtr<Shared> = AtomicPtr::new(std::ptr::null_mut());

/// The shared block; `None` where recsync is not preloaded.
pub fn shared() -> Option<&'static Shared> {
    // SAFETY: either null or the block that PostgreSQL keeps mapped at this address until the process ends.
    unsafe { BLOCK.load(SeqCst).as_ref() }
}

/// The accounts' limits: those of the cluster, or where recsync is not preloaded those of this process.
pub fn rates() -> &'static Rates {
    shared().map_or(&rate::LOCAL, |shared| &shared.rates)
}

static mut PREVIOUS_REQUEST: pg_sys::shmem_request_hook_type = None;
static mut PREVIOUS_STARTUP: pg_sys::shmem_startup_hook_type = None;

/// Asks for the block. Only from `_PG_init` while shared_preload_libraries are loaded.
pub fn register() {
    // SAFETY: the postmaster is single-threaded, and hooks are chained as PostgreSQL's own modules do.
    unsafe {
        PREVIOUS_REQUEST = pg_sys::shmem_request_hook;
        pg_sys::shmem_request_hook = Some(request);
        PREVIOUS_STARTUP = pg_sys::shmem_startup_hook;
        pg_sys::shmem_startup_hook = Some(startup);
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn request() {
    // SAFETY: the hook that was there before, called as PostgreSQL would.
    unsafe {
        if let Some(previous) = PREVIOUS_REQUEST {
            previous();
        }
        pg_sys::RequestAddinShmemSpace(size_of::<Shared>());
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn startup() {
    // SAFETY: called once in the postmaster (and in each process on platforms without fork); the block is
    // zeroed and its condition variables are initialised before any other process can see it.
    unsafe {
        if let Some(previous) = PREVIOUS_STARTUP {
            previous();
        }
        let mut found = false;
        let block = pg_sys::ShmemInitStruct(c"recsync".as_ptr(), size_of::<Shared>(), &mut found)
            .cast::<Shared>();
        if !found {
            block.write_bytes(0, 1);
            for database in &(*block).databases {
                pg_sys::ConditionVariableInit(database.progress());
            }
        }
        BLOCK.store(block, SeqCst);
        crate::embed::traffic::count_in(&(*block).watch.traffic);
    }
}
