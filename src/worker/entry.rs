//! Where a worker's process begins and ends.
//!
//! It never starts anything before the extension is there, and of the library's version.

use pgrx::pg_sys;
use pgrx::prelude::*;
use std::sync::atomic::Ordering::SeqCst;

use super::leader::{FALLBACK, Leader, report};
use super::process::{self, Bell, transaction};
use crate::catalog::install::installed_version;
use crate::shared::{self, Database, Presence, slots};

#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn recsync_worker_main(database: pg_sys::Datum) {
    let oid = pg_sys::Oid::from(database.value() as u32);
    let Some(shared) = shared::shared() else {
        return;
    };
    let Some(entry) = shared.database(oid) else {
        return;
    };
    // SAFETY: this process's id.
    let pid = unsafe { pg_sys::MyProcPid };
    if entry
        .worker_pid
        .compare_exchange(0, pid, SeqCst, SeqCst)
        .is_err()
    {
        return; // the one before is still on its way out; the launcher tries again
    }
    // SAFETY: runs while shared memory is still attached; the entry lives as long as the server.
    unsafe {
        pg_sys::before_shmem_exit(
            Some(sign_off),
            pg_sys::Datum::from(std::ptr::from_ref(entry)),
        )
    };
    process::start(Some(oid));
    entry.wake.claim();
    let bell = Bell::new().and_then(|bell| Ok((bell.ringer()?, bell)));
    let leader = bell.and_then(|(ringer, mut bell)| {
        let comes = is_updated(entry, &mut bell);
        let leader = comes
            .then(|| Leader::new(shared, entry, ringer))
            .transpose();
        Ok(leader?.map(|leader| (leader, bell)))
    });
    match leader {
        Ok(Some((leader, bell))) => leader.run(bell),
        Ok(None) => {}
        Err(error) => log!("recsync worker: could not start: {error}"),
    }
}

/// Waits until the extension here is of the library's version: the tables of an older one are not those that a leader
/// knows. False where it is gone.
fn is_updated(entry: &Database, bell: &mut Bell) -> bool {
    let mut said = false;
    loop {
        entry.wake.arm();
        match transaction(installed_version) {
            Ok(None) => {
                entry.set_presence(Presence::Absent);
                return false;
            }
            Err(failed) => {
                report(None, &failed);
                return false;
            }
            Ok(Some(version)) => {
                entry.set_presence(Presence::Present);
                if version == env!("CARGO_PKG_VERSION") {
                    return true;
                }
                if !std::mem::replace(&mut said, true) {
                    say_update_is_due(&version);
                }
            }
        }
        bell.wait(FALLBACK);
    }
}

pub(super) fn say_update_is_due(version: &str) {
    log!(
        "recsync worker: the library is {}, the extension {version}: waiting for ALTER EXTENSION recsync UPDATE",
        env!("CARGO_PKG_VERSION")
    );
}

unsafe extern "C-unwind" fn sign_off(_code: std::ffi::c_int, entry: pg_sys::Datum) {
    // SAFETY: the address that recsync_worker_main registered.
    let entry = unsafe { entry.cast_mut_ptr::<Database>().as_ref() };
    if let (Some(entry), Some(shared)) = (entry, shared::shared()) {
        entry.wake.follow_quietly(&shared.launcher);
        // Its writers would see it end, but not before they have stored what they have in their hands.
        let oid = pg_sys::Oid::from(entry.oid.load(SeqCst));
        slots::take_back_all(&shared.writers, oid);
        for pid in slots::pids(&shared.writers, oid) {
            // SAFETY: a signal to a process of ours; one that has ended meanwhile is no harm.
            unsafe { libc::kill(pid, libc::SIGTERM) };
        }
        entry.worker_pid.store(0, SeqCst);
        entry.signal_progress();
        shared.launcher.set_latch();
    }
}
