//! Signals, connection, exit, transactions: what each of our processes is made of.
//!
//! It never lets an ERROR leave a transaction open, and never lets a thread outlive an orderly exit.

use pgrx::pg_sys;
use pgrx::prelude::*;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_int};
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsRawFd;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

pub use crate::error::Failed;
use crate::error::{Error, Result};
use crate::shared::slots::{self, Reservation, Slot};
use crate::shared::{self, Database, Shared};

// The server's own handlers, as function pointers that pgrx has not wrapped: a handler must not pass its guard.
unsafe extern "C-unwind" {
    #[link_name = "die"]
    fn raw_die(signal: c_int);
    #[link_name = "SignalHandlerForConfigReload"]
    fn raw_reload(signal: c_int);
    #[cfg(not(feature = "pg18"))]
    fn pqsignal(signal: c_int, handler: unsafe extern "C-unwind" fn(c_int));
    #[cfg(feature = "pg18")]
    #[link_name = "pqsignal_be"]
    fn pqsignal(signal: c_int, handler: unsafe extern "C-unwind" fn(c_int));
    // Not in pgrx's bindings: the worker arms its own statement timeout, since only postgres.c's loop would.
    fn enable_timeout_after(timeout: c_int, milliseconds: c_int);
    fn disable_timeout(timeout: c_int, keep_indicator: bool);
}

/// STATEMENT_TIMEOUT of PostgreSQL's `TimeoutId`, the same from 15 to 18.
const STATEMENT_TIMEOUT: c_int = 3;

/// How PostgreSQL is told of a process: its name is its type in pg_stat_activity.
pub fn description(name: &str, function: &str, database: pg_sys::Oid) -> pg_sys::BackgroundWorker {
    let mut worker = pg_sys::BackgroundWorker {
        bgw_flags: (pg_sys::BGWORKER_SHMEM_ACCESS | pg_sys::BGWORKER_BACKEND_DATABASE_CONNECTION)
            as c_int,
        bgw_start_time: pg_sys::BgWorkerStartTime::BgWorkerStart_RecoveryFinished,
        bgw_restart_time: pg_sys::BGW_NEVER_RESTART,
        bgw_main_arg: pg_sys::Datum::from(database),
        ..Default::default()
    };
    fill(&mut worker.bgw_name, name);
    fill(&mut worker.bgw_type, name);
    fill(&mut worker.bgw_library_name, "recsync");
    fill(&mut worker.bgw_function_name, function);
    worker
}

/// What a process is told at its start, beside its database: plain numbers.
pub fn tell<T: Copy>(worker: &mut pg_sys::BackgroundWorker, what: T) {
    const { assert!(size_of::<T>() <= pg_sys::BGW_EXTRALEN as usize) };
    // SAFETY: it fits into the field.
    unsafe {
        worker
            .bgw_extra
            .as_mut_ptr()
            .cast::<T>()
            .write_unaligned(what)
    };
}

/// What this process was told.
///
/// # Safety
/// A `T` was told whoever was started with this process's function.
pub unsafe fn told<T: Copy>() -> T {
    // SAFETY: this process's entry, which the server keeps while it runs.
    unsafe {
        let extra = &raw const (*pg_sys::MyBgworkerEntry).bgw_extra;
        extra.cast::<T>().read_unaligned()
    }
}

/// A process that this one has asked the server for.
pub struct Dynamic(*mut pg_sys::BackgroundWorkerHandle);

impl Dynamic {
    /// `None` where the server has no place for it. This process is woken when it starts and when it ends.
    pub fn start(worker: &mut pg_sys::BackgroundWorker) -> Option<Dynamic> {
        let mut handle: *mut pg_sys::BackgroundWorkerHandle = std::ptr::null_mut();
        // SAFETY: the handle is allocated in a context that lives as long as this process.
        let registered = unsafe {
            worker.bgw_notify_pid = pg_sys::MyProcPid;
            let context = pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
            let registered = pg_sys::RegisterDynamicBackgroundWorker(worker, &mut handle);
            pg_sys::MemoryContextSwitchTo(context);
            registered
        };
        if !registered {
            return None;
        }
        Some(Dynamic(handle))
    }

    /// Also where it never began.
    pub fn has_ended(&self) -> bool {
        let mut pid: c_int = 0;
        // SAFETY: a handle that the server gave us.
        let status = unsafe { pg_sys::GetBackgroundWorkerPid(self.0, &mut pid) };
        status == pg_sys::BgwHandleStatus::BGWH_STOPPED
    }

    /// For queues that are to notice its end. Not to be used once this is dropped.
    pub fn handle(&self) -> *mut pg_sys::BackgroundWorkerHandle {
        self.0
    }
}

impl Drop for Dynamic {
    fn drop(&mut self) {
        // SAFETY: freed once.
        unsafe { pg_sys::pfree(self.0.cast()) };
    }
}

fn fill(field: &mut [std::ffi::c_char], text: &str) {
    for (to, from) in field.iter_mut().zip(text.bytes()) {
        *to = from as std::ffi::c_char;
    }
}

/// A process that has taken the place that its leader has reserved for it.
pub struct InPlace {
    pub database: pg_sys::Oid,
    pub shared: &'static Shared,
    pub entry: &'static Database,
}

/// The beginning of such a process, before it connects: `None` where it is not wanted (any more). `leave`: what it does
/// at its end, however that comes.
pub fn take_place(
    database: pg_sys::Datum,
    slots: fn(&'static Shared, &'static Database) -> &'static [Slot],
    place: Reservation,
    leave: unsafe extern "C-unwind" fn(c_int, pg_sys::Datum),
) -> Option<InPlace> {
    let database = pg_sys::Oid::from(database.value() as u32);
    let shared = shared::shared()?;
    let entry = shared.database(database)?;
    // SAFETY: this process's id.
    let pid = unsafe { pg_sys::MyProcPid };
    if !slots::take(slots(shared, entry), place, pid) {
        return None; // the leader has ended
    }
    // SAFETY: runs while shared memory is still attached; the entry lives as long as the server.
    unsafe {
        pg_sys::before_shmem_exit(Some(leave), pg_sys::Datum::from(std::ptr::from_ref(entry)))
    };
    (entry.hold_pid.load(SeqCst) == 0).then_some(InPlace {
        database,
        shared,
        entry,
    })
}

/// The end of such a process: its place is free, and who waits for it looks again.
///
/// # Safety
/// `entry` is what [`take_place`] has given to `leave`.
pub unsafe fn leave_place(
    entry: pg_sys::Datum,
    slots: fn(&'static Shared, &'static Database) -> &'static [Slot],
) -> Option<&'static Database> {
    // SAFETY: an entry lives as long as the server; this process's id.
    let (entry, pid) = unsafe {
        (
            entry.cast_mut_ptr::<Database>().as_ref()?,
            pg_sys::MyProcPid,
        )
    };
    slots::leave(slots(shared::shared()?, entry), pid);
    entry.signal_progress();
    Some(entry)
}

thread_local! {
    static SESSION_PATH: RefCell<CString> = RefCell::new(c"\"$user\", public".to_owned());
}

/// The search_path that this database's sessions have where nothing else is said.
pub fn session_path() -> CString {
    SESSION_PATH.with_borrow(Clone::clone)
}

/// Signals and connection of a process; `None`: shared catalogs only.
pub fn start(database: Option<pg_sys::Oid>) {
    // SAFETY: the start of a background worker's main function, in the order that PostgreSQL's docs give.
    unsafe {
        pg_sys::on_proc_exit(Some(leave_at_once), pg_sys::Datum::from(0));
        pqsignal(libc::SIGTERM, raw_die);
        pqsignal(libc::SIGHUP, raw_reload);
        pg_sys::BackgroundWorkerUnblockSignals();
        match database {
            Some(database) => {
                pg_sys::BackgroundWorkerInitializeConnectionByOid(database, pg_sys::InvalidOid, 0)
            }
            None => {
                pg_sys::BackgroundWorkerInitializeConnection(std::ptr::null(), std::ptr::null(), 0)
            }
        }
    }
    // SAFETY: a setting that every server has; the text is copied.
    unsafe {
        let path = pg_sys::GetConfigOption(c"search_path".as_ptr(), true, false);
        if !path.is_null() {
            SESSION_PATH.set(CStr::from_ptr(path).to_owned());
        }
    }
    // What a DBA has set for people's sessions is not meant for this one.
    for (name, value) in [
        (c"default_transaction_isolation", c"read committed"),
        (c"default_transaction_read_only", c"off"),
        (c"default_transaction_deferrable", c"off"),
        (c"search_path", c"pg_catalog, pg_temp"),
        (c"application_name", c"recsync"),
        (c"datestyle", c"ISO, YMD"),
        (c"intervalstyle", c"postgres"),
        (c"extra_float_digits", c"1"),
        // Statements are kept for the life of the process and look rows up by key: one plan each.
        (c"plan_cache_mode", c"force_generic_plan"),
        (c"lock_timeout", c"0"),
        (c"idle_in_transaction_session_timeout", c"0"),
        // A row-level policy would hide rows from a worker that is no superuser; see `As::owner`.
        (c"row_security", c"off"),
    ] {
        set(name, value);
    }
}

/// A setting of this process from now on, whatever the configuration says.
pub fn set(name: &CStr, value: &CStr) {
    // SAFETY: PostgreSQL copies both strings.
    unsafe {
        pg_sys::SetConfigOption(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_SUSET,
            pg_sys::GucSource::PGC_S_OVERRIDE,
        );
    }
}

/// The last callback of proc_exit: threads may be inside libraries whose destructors `exit` would run.
unsafe extern "C-unwind" fn leave_at_once(code: c_int, _arg: pg_sys::Datum) {
    // SAFETY: ends the process; PostgreSQL's own callbacks have all run.
    unsafe { libc::_exit(code) }
}

/// Re-reads the configuration after SIGHUP; true when it did.
pub fn reload_if_asked() -> bool {
    // SAFETY: a flag that the signal handler sets, read and cleared as PostgreSQL's own loops do.
    unsafe {
        if pg_sys::ConfigReloadPending == 0 {
            return false;
        }
        pg_sys::ConfigReloadPending = 0;
        pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
    }
    true
}

/// What pg_stat_activity shows.
pub fn show(activity: Option<&CStr>) {
    let (state, text) = match activity {
        Some(text) => (pg_sys::BackendState::STATE_RUNNING, text.as_ptr()),
        None => (pg_sys::BackendState::STATE_IDLE, std::ptr::null()),
    };
    // SAFETY: the text is copied.
    unsafe { pg_sys::pgstat_report_activity(state, text) };
}

/// Waits for this process's latch. Interruptible: SIGTERM ends the process here.
pub fn wait_for_latch() {
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_EXIT_ON_PM_DEATH;
    // SAFETY: this process's latch.
    unsafe {
        pg_sys::WaitLatch(
            pg_sys::MyLatch,
            events as c_int,
            0,
            pg_sys::PG_WAIT_EXTENSION,
        );
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
    pgrx::check_for_interrupts!();
}

/// A memory context for what is allocated between transactions: emptied every round, so that nothing piles up.
pub struct RoundMemory(pg_sys::MemoryContext);

impl RoundMemory {
    pub fn create() -> RoundMemory {
        // SAFETY: a child of TopMemoryContext that lives as long as the process.
        RoundMemory(unsafe {
            pg_sys::AllocSetContextCreateInternal(
                pg_sys::TopMemoryContext,
                c"recsync round".as_ptr(),
                pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
            )
        })
    }

    /// Empties it and makes it the current one.
    pub fn renew(&self) {
        // SAFETY: nothing of the last round is referred to any more.
        unsafe {
            pg_sys::MemoryContextReset(self.0);
            pg_sys::MemoryContextSwitchTo(self.0);
        }
    }
}

/// Runs `body` in a transaction of its own: committed when it returns Ok, rolled back when it returns Err or
/// raises. The process goes on either way.
pub fn transaction<T>(body: impl FnOnce() -> Result<T>) -> std::result::Result<T, Failed> {
    // SAFETY: the context that is current between transactions, put back below: commit and abort leave another.
    let memory = unsafe { pg_sys::CurrentMemoryContext };
    let outcome = PgTryBuilder::new(AssertUnwindSafe(|| {
        // SAFETY: the frame of a transaction in a background worker.
        unsafe {
            pg_sys::SetCurrentStatementStartTimestamp();
            pg_sys::StartTransactionCommand();
            pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        }
        match body() {
            Ok(value) => {
                // SAFETY: closes what was opened above.
                unsafe {
                    pg_sys::PopActiveSnapshot();
                    pg_sys::CommitTransactionCommand();
                    pg_sys::pgstat_report_stat(false);
                }
                Ok(value)
            }
            Err(error) => {
                let failed = Failed::from(error);
                // SAFETY: rolls back what was opened above.
                unsafe { pg_sys::AbortCurrentTransaction() };
                Err(failed)
            }
        }
    }))
    .catch_others(|cause| {
        let failed = Failed::from(cause);
        // SAFETY: after an ERROR the transaction has to be aborted before the next one begins.
        unsafe { pg_sys::AbortCurrentTransaction() };
        Err(failed)
    })
    .execute();
    // SAFETY: no timeout of a statement may fire into the next one; the context is the caller's.
    unsafe {
        disable_timeout(STATEMENT_TIMEOUT, false);
        pg_sys::MemoryContextSwitchTo(memory);
    }
    outcome
}

/// Within a transaction: user's deferred triggers run now, not at commit with our rights; and no expression runs
/// for longer than recsync.expression_timeout.
pub fn guard_user_code() -> Result<()> {
    Spi::run("SET CONSTRAINTS ALL IMMEDIATE")?;
    // SAFETY: the timeout is registered by InitPostgres and disarmed at the end of the transaction.
    unsafe { enable_timeout_after(STATEMENT_TIMEOUT, crate::settings::expression_timeout_ms()) };
    Ok(())
}

/// The end of [`guard_user_code`]'s timeout: what follows is recsync's own.
pub fn release_user_code() {
    // SAFETY: disarming a timeout that is not armed is harmless.
    unsafe { disable_timeout(STATEMENT_TIMEOUT, false) };
}

/// A pipe by which threads wake the main thread.
pub struct Bell {
    reader: PipeReader,
    writer: PipeWriter,
}

impl Bell {
    pub fn new() -> Result<Bell> {
        let (reader, writer) =
            std::io::pipe().map_err(|error| Error::Internal(format!("pipe: {error}")))?;
        for fd in [reader.as_raw_fd(), writer.as_raw_fd()] {
            // SAFETY: sets a flag of a file descriptor that we own.
            unsafe { libc::fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK) };
        }
        Ok(Bell { reader, writer })
    }

    /// What a thread calls. A full pipe means that the main thread will wake anyway.
    pub fn ringer(&self) -> Result<Arc<dyn Fn() + Send + Sync>> {
        let writer = self
            .writer
            .try_clone()
            .map_err(|error| Error::Internal(format!("pipe: {error}")))?;
        Ok(Arc::new(move || {
            let _ = (&writer).write(&[0]);
        }))
    }

    /// Waits for the latch, the bell or the time to pass. Interruptible: SIGTERM ends the process here.
    pub fn wait(&mut self, timeout: Duration) {
        self.wait_for(pg_sys::WL_LATCH_SET, timeout);
        // SAFETY: this process's latch.
        unsafe { pg_sys::ResetLatch(pg_sys::MyLatch) };
        pgrx::check_for_interrupts!();
    }

    /// Waits for the bell or the time to pass, whoever else wants to wake this process.
    pub fn linger(&mut self, time: Duration) {
        self.wait_for(0, time);
    }

    fn wait_for(&mut self, latch: u32, timeout: Duration) {
        let events =
            latch | pg_sys::WL_SOCKET_READABLE | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
        // SAFETY: this process's latch and a descriptor that we own.
        unsafe {
            pg_sys::WaitLatchOrSocket(
                pg_sys::MyLatch,
                events as c_int,
                self.reader.as_raw_fd(),
                timeout.as_millis().min(3_600_000) as _,
                pg_sys::PG_WAIT_EXTENSION,
            );
        }
        let mut rung = [0_u8; 256];
        while matches!(self.reader.read(&mut rung), Ok(count) if count == rung.len()) {}
    }
}

/// Errors that mean that the declaration does not fit the tables any more.
pub fn is_definition(code: PgSqlErrorCode) -> bool {
    use PgSqlErrorCode as C;
    matches!(
        code,
        C::ERRCODE_UNDEFINED_TABLE
            | C::ERRCODE_UNDEFINED_COLUMN
            | C::ERRCODE_UNDEFINED_FUNCTION
            | C::ERRCODE_UNDEFINED_OBJECT
            | C::ERRCODE_INVALID_SCHEMA_NAME
            | C::ERRCODE_INSUFFICIENT_PRIVILEGE
            | C::ERRCODE_DATATYPE_MISMATCH
    )
}

/// Errors that pass by themselves.
pub fn is_passing(code: PgSqlErrorCode) -> bool {
    use PgSqlErrorCode as C;
    matches!(
        code,
        C::ERRCODE_T_R_DEADLOCK_DETECTED
            | C::ERRCODE_LOCK_NOT_AVAILABLE
            | C::ERRCODE_T_R_SERIALIZATION_FAILURE
    )
}
