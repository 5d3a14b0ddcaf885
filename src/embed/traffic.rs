//! How many bytes go to providers and come back: of the bodies, since what TLS and headers add is the library's.
//!
//! It only adds up, wherever it was told to; it never knows what was sent.

use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

#[derive(Debug)]
#[repr(C)]
pub struct Traffic {
    pub sent: AtomicU64,
    pub received: AtomicU64,
}

static LOCAL: Traffic = Traffic {
    sent: AtomicU64::new(0),
    received: AtomicU64::new(0),
};
static KEPT: AtomicPtr<Traffic> = AtomicPtr::new(std::ptr::null_mut());

/// From now on it is counted there; until then in this process.
pub fn count_in(traffic: &'static Traffic) {
    KEPT.store(std::ptr::from_ref(traffic).cast_mut(), SeqCst);
}

fn counters() -> &'static Traffic {
    // SAFETY: null, or what `count_in` was given for ever.
    unsafe { KEPT.load(SeqCst).as_ref() }.unwrap_or(&LOCAL)
}

pub(crate) fn sent(bytes: usize) {
    counters().sent.fetch_add(bytes as u64, Relaxed);
}

pub(crate) fn received(bytes: usize) {
    counters().received.fetch_add(bytes as u64, Relaxed);
}
