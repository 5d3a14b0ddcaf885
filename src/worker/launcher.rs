//! The launcher: which database gets a worker when.
//!
//! It never connects to a database: a worker looks whether the extension is there, and ends where it is not. On a standby
//! it starts none, and only says how things are.
//! It starts none in a template, in a database that refuses connections, or where a backend holds workers off.

use pgrx::pg_sys;
use pgrx::prelude::*;
use std::collections::HashMap;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use super::listening::Listening;
use super::process::{self, Dynamic};
use super::waiters;
use crate::error::Result;
use crate::settings;
use crate::shared::{self, Database, Presence, Shared};

/// A worker that ended is started again after this, doubling while it ends at once again.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A worker that lived this long did not end at once.
const LIVED: Duration = Duration::from_secs(10);
/// How often the launcher looks without being woken: only against a wake-up that was lost.
const FALLBACK: Duration = Duration::from_secs(60);
/// How soon it notices that a standby has been promoted.
const RECOVERY: Duration = Duration::from_millis(500);

/// What the launcher remembers of a database.
struct Turn {
    started: Instant,
    not_before: Instant,
    pause: Duration,
    /// Registered, and not yet seen to have ended.
    worker: Option<Dynamic>,
}

#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn recsync_launcher_main(_arg: pg_sys::Datum) {
    process::start(None);
    let Some(shared) = shared::shared() else {
        return;
    };
    shared.launcher.claim();
    for database in &shared.databases {
        // Of a launcher before this one: its workers wake us from now on.
        if database.oid.load(SeqCst) != 0 && database.worker_pid.load(SeqCst) == 0 {
            database.wake.follow(&shared.launcher);
        }
    }
    shared.scan_wanted.store(true, SeqCst);
    let mut turns: HashMap<u32, Turn> = HashMap::new();
    let mut bell = match process::Bell::new() {
        Ok(bell) => bell,
        Err(error) => {
            log!("recsync launcher: {error}");
            return;
        }
    };
    let ringer = match bell.ringer() {
        Ok(ringer) => ringer,
        Err(error) => {
            log!("recsync launcher: {error}");
            return;
        }
    };
    let mut listening = Listening::new(shared, ringer);
    let memory = process::RoundMemory::create();
    loop {
        memory.renew();
        let reloaded = process::reload_if_asked();
        if listening.attend(reloaded) {
            process::show(None);
            bell.wait(RECOVERY);
            continue;
        }
        if shared.scan_wanted.swap(false, SeqCst)
            && let Err(failed) = process::transaction(|| scan(shared))
        {
            log!(
                "recsync launcher: the list of databases could not be read: {}",
                failed.message
            );
        }
        let wait = start_workers(shared, &mut turns);
        let wait = waiters::attend(shared).map_or(wait, |look| wait.min(look));
        process::show(None);
        bell.wait(wait);
    }
}

/// Makes an entry for each database that may have a worker, frees those of databases that are gone.
fn scan(shared: &Shared) -> Result<()> {
    let databases = connectable_databases();
    for entry in &shared.databases {
        let oid = entry.oid.load(SeqCst);
        if oid != 0
            && !databases.iter().any(|database| database.to_u32() == oid)
            && entry.worker_pid.load(SeqCst) == 0
        {
            shared.keep_counters(pg_sys::Oid::from(oid), |_| false);
            entry.oid.store(0, SeqCst);
        }
    }
    for database in databases {
        if shared.database_or_new(database).is_none() {
            warning!(
                "recsync serves {} databases at the most: one more has none",
                shared::MAX_DATABASES
            );
        }
    }
    Ok(())
}

fn connectable_databases() -> Vec<pg_sys::Oid> {
    let mut databases = Vec::new();
    // SAFETY: a scan of the shared catalog pg_database under a registered catalog snapshot, closed here.
    unsafe {
        let relation = pg_sys::table_open(pg_sys::DatabaseRelationId, pg_sys::AccessShareLock as _);
        let scan = pg_sys::table_beginscan_catalog(relation, 0, std::ptr::null_mut());
        loop {
            let tuple = pg_sys::heap_getnext(scan, pg_sys::ScanDirection::ForwardScanDirection);
            if tuple.is_null() {
                break;
            }
            let database = &*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_database>();
            // datconnlimit -2: a DROP DATABASE was interrupted.
            if database.datallowconn && !database.datistemplate && database.datconnlimit != -2 {
                databases.push(database.oid);
            }
        }
        if let Some(end) = (*(*(*scan).rs_rd).rd_tableam).scan_end {
            end(scan);
        }
        pg_sys::table_close(relation, pg_sys::AccessShareLock as _);
    }
    databases
}

/// Starts workers where they are due and there is room; returns how long nothing is due.
fn start_workers(shared: &Shared, turns: &mut HashMap<u32, Turn>) -> Duration {
    let now = Instant::now();
    let mut wait = FALLBACK;
    let mut running = 0;
    let mut due: Vec<&Database> = Vec::new();
    for entry in shared
        .databases
        .iter()
        .filter(|entry| entry.oid.load(SeqCst) != 0)
    {
        let turn = turns.entry(entry.oid.load(SeqCst)).or_insert(Turn {
            started: now,
            not_before: now,
            pause: FIRST_PAUSE,
            worker: None,
        });
        if still_there(entry, turn, now) || has_worker(entry) {
            running += 1;
        } else if wants_worker(entry) {
            if turn.not_before <= now {
                due.push(entry);
            } else {
                wait = wait.min(turn.not_before - now);
            }
        }
    }
    // Those that have waited the longest come first.
    due.sort_by_key(|entry| turns.get(&entry.oid.load(SeqCst)).map(|turn| turn.started));
    let mut lacking = 0;
    for entry in due {
        let started = running < settings::max_workers()
            && turns
                .get_mut(&entry.oid.load(SeqCst))
                .is_some_and(|turn| start_worker(entry, turn, now));
        if started {
            running += 1;
        } else {
            lacking += 1;
            wait = wait.min(Duration::from_secs(5));
        }
        if entry.lacks_slot.swap(!started, SeqCst) == started && !started {
            log!(
                "recsync: database {} waits for a worker slot (recsync.max_workers, max_worker_processes)",
                entry.oid.load(SeqCst)
            );
        }
    }
    shared.waiting_databases.store(lacking, SeqCst);
    wait
}

fn wants_worker(entry: &Database) -> bool {
    let holder = entry.hold_pid.load(SeqCst);
    // SAFETY: a look-up in the process array.
    if holder != 0 && unsafe { pg_sys::BackendPidGetProc(holder) }.is_null() {
        entry.hold_pid.store(0, SeqCst);
    } else if holder != 0 {
        return false;
    }
    match entry.presence() {
        Presence::Absent => false,
        Presence::Unknown => true,
        Presence::Present => entry.wants_worker(),
    }
}

/// Whether a worker that a launcher before this one has started is still at work.
fn has_worker(entry: &Database) -> bool {
    let pid = entry.worker_pid.load(SeqCst);
    // SAFETY: a look-up in the process array.
    pid != 0 && !unsafe { pg_sys::BackendPidGetProc(pid) }.is_null()
}

/// Whether the worker that was started is still there; when it has ended, when the next may be started.
fn still_there(entry: &Database, turn: &mut Turn, now: Instant) -> bool {
    match &turn.worker {
        None => return false,
        Some(worker) if !worker.has_ended() => return true,
        Some(_) => turn.worker = None,
    }
    let in_order = entry.gave_way.load(SeqCst) || entry.presence() != Presence::Present;
    turn.pause = match in_order || now - turn.started > LIVED {
        true => FIRST_PAUSE,
        false => (turn.pause * 2).min(LONGEST_PAUSE),
    };
    turn.not_before = if in_order { now } else { now + turn.pause };
    false
}

fn start_worker(entry: &Database, turn: &mut Turn, now: Instant) -> bool {
    let mut worker = process::description(
        "recsync worker",
        "recsync_worker_main",
        pg_sys::Oid::from(entry.oid.load(SeqCst)),
    );
    let Some(started) = Dynamic::start(&mut worker) else {
        return false;
    };
    turn.started = now;
    turn.worker = Some(started);
    entry.gave_way.store(false, SeqCst);
    true
}
