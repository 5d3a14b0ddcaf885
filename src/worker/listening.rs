//! The launcher's part in watching: it listens where `recsync.metrics_listen` says, and keeps in shared memory what only
//! it knows.
//!
//! A port that is taken is a WARNING, and tried again at the next reload: it never ends the launcher.

use pgrx::pg_sys;
use pgrx::prelude::*;
use std::sync::atomic::Ordering::SeqCst;

use crate::observe::http::Server;
use crate::observe::site::{self, Ringer};
use crate::settings;
use crate::shared::{self, Presence, Shared};

pub struct Listening {
    shared: &'static Shared,
    ring: Ringer,
    /// Where it was last told to listen, and whether it does.
    told: String,
    server: Option<Server>,
    /// When somebody had asked at the last look.
    asked_us: i64,
}

impl Listening {
    pub fn new(shared: &'static Shared, ring: Ringer) -> Listening {
        // SAFETY: this process's id; a callback that runs while shared memory is attached.
        unsafe {
            let pid = pg_sys::MyProcPid.unsigned_abs();
            shared.watch.launcher_pid.store(pid, SeqCst);
            pg_sys::before_shmem_exit(Some(sign_off), pg_sys::Datum::from(0));
        }
        let mut listening = Listening {
            shared,
            ring,
            told: String::new(),
            server: None,
            asked_us: 0,
        };
        listening.attend(true);
        listening
    }

    /// Once a round. True while this server is a standby, where there is nothing else to do.
    pub fn attend(&mut self, reloaded: bool) -> bool {
        // SAFETY: a look into shared memory.
        let standby = unsafe { pg_sys::RecoveryInProgress() };
        let watch = &self.shared.watch;
        watch.in_recovery.store(standby.into(), SeqCst);
        watch.disabled.store((!settings::enabled()).into(), SeqCst);
        if reloaded {
            self.listen();
        }
        self.wake_workers();
        standby
    }

    fn listen(&mut self) {
        let wanted = settings::metrics_listen();
        if wanted == self.told && (self.server.is_some() || wanted.is_empty()) {
            return;
        }
        self.server = None; // before the other: it may be the same port of another address
        self.told.clone_from(&wanted);
        let Ok(address) = wanted.parse() else {
            return; // off; what is no address was refused
        };
        let answer = site::answer(self.shared, self.ring.clone());
        match Server::start(address, answer) {
            Ok(server) => {
                log!("recsync: metrics at http://{}/metrics", server.address());
                self.server = Some(server);
            }
            Err(error) => ereport!(
                WARNING,
                PgSqlErrorCode::ERRCODE_OBJECT_IN_USE,
                format!("recsync cannot listen on {wanted}: {error}"),
                "It is tried again at the next reload of the configuration; recsync.metrics_listen says where."
            ),
        }
    }

    /// Whoever asks after a long time gets numbers of tables that are as old: workers look anew.
    fn wake_workers(&mut self) {
        let asked_us = self.shared.watch.asked_us.load(SeqCst);
        if asked_us - self.asked_us > site::LATELY_US {
            for database in &self.shared.databases {
                if database.worker_pid.load(SeqCst) != 0 && database.presence() == Presence::Present
                {
                    database.wake.set_latch();
                }
            }
        }
        self.asked_us = asked_us;
    }
}

unsafe extern "C-unwind" fn sign_off(_code: std::ffi::c_int, _arg: pg_sys::Datum) {
    if let Some(shared) = shared::shared() {
        shared.watch.launcher_pid.store(0, SeqCst);
    }
}
