//! A server's threads: batches in, replies out, nobody waits.
//!
//! A lane belongs to one server, so that a slow provider delays no other. Its threads own what
//! they work on; they are started when they are needed, up to the endpoint's `max_concurrency`,
//! with every signal blocked, and end when the lane is dropped. They never call PostgreSQL, and a
//! batch that was taken always comes back, whatever happens to it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::endpoint::{Endpoint, Purpose};
use super::failure::Failure;
use super::provider::Provider;
pub use super::provider::embed_once;
use super::reply::Embeddings;
use super::secret::SecretPolicy;
use super::sent::Sent;
use super::webhook::Courier;

/// Requests are made by ureq and rustls, which need little; PostgreSQL's own limit is 2 MB, too.
const STACK_BYTES: usize = 2 * 1024 * 1024;

/// The inputs of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The caller's number for it, handed back.
    pub id: u64,
    /// The texts, not more than the endpoint's `max_batch_inputs`.
    pub inputs: Vec<String>,
    /// What for.
    pub purpose: Purpose,
}

/// What became of a batch.
#[derive(Debug)]
pub struct Reply {
    /// The lane's number, given at its start.
    pub lane: u64,
    /// The batch's number.
    pub id: u64,
    /// When a thread took it.
    pub started: Instant,
    /// How long it took.
    pub took: Duration,
    /// The texts, handed back.
    pub inputs: Vec<String>,
    /// One vector for each, or why not.
    pub result: Result<Embeddings, Failure>,
    /// What has gone out for it.
    pub sent: Sent,
}

/// Called from a lane's thread after each reply: it must be quick and must not call PostgreSQL.
pub type Waker = Arc<dyn Fn() + Send + Sync>;

type Work = dyn Fn(&Batch, &mut Sent) -> Result<Embeddings, Failure> + Send + Sync;

/// What the threads of a lane share.
struct Shared {
    lane: u64,
    work: Box<Work>,
    batches: Receiver<Batch>,
    replies: Sender<Reply>,
    waker: Waker,
    in_flight: AtomicUsize,
    dropped: AtomicBool,
}

/// A server's threads. Dropping it waits for nothing: replies of requests that are in flight
/// still come, batches that no thread has taken come back as failures.
pub struct Lane {
    shared: Arc<Shared>,
    batches: Sender<Batch>,
    threads: AtomicUsize,
    max_concurrency: usize,
}

impl Lane {
    /// A lane without threads yet. `replies` must be unbounded or have room for
    /// `max_concurrency` replies, or threads wait for it.
    pub fn start(
        id: u64,
        endpoint: Endpoint,
        policy: SecretPolicy,
        replies: Sender<Reply>,
        waker: Waker,
    ) -> Lane {
        let max_concurrency = endpoint.max_concurrency;
        let provider = Provider::new(endpoint, policy);
        let work = move |batch: &Batch, sent: &mut Sent| {
            provider.embed_and_count(&batch.inputs, batch.purpose, sent)
        };
        Lane::with_work(id, max_concurrency, Box::new(work), replies, waker)
    }

    /// The same for a server of hooks: a batch's inputs are a letter's parts, and a success brings no vectors.
    pub fn of_letters(
        id: u64,
        endpoint: Endpoint,
        policy: SecretPolicy,
        replies: Sender<Reply>,
        waker: Waker,
    ) -> Lane {
        let max_concurrency = endpoint.max_concurrency;
        let courier = Courier::new(endpoint, policy);
        let work = move |batch: &Batch, _: &mut Sent| courier.deliver(&batch.inputs);
        Lane::with_work(id, max_concurrency, Box::new(work), replies, waker)
    }

    fn with_work(
        id: u64,
        max_concurrency: usize,
        work: Box<Work>,
        replies: Sender<Reply>,
        waker: Waker,
    ) -> Lane {
        let max_concurrency = max_concurrency.max(1);
        let (sender, batches) = bounded(max_concurrency);
        Lane {
            shared: Arc::new(Shared {
                lane: id,
                work,
                batches,
                replies,
                waker,
                in_flight: AtomicUsize::new(0),
                dropped: AtomicBool::new(false),
            }),
            batches: sender,
            threads: AtomicUsize::new(0),
            max_concurrency,
        }
    }

    /// Hands a batch to a free thread. Never blocks.
    ///
    /// # Errors
    /// The batch itself, when all threads are busy or the system has no thread to give.
    pub fn submit(&self, batch: Batch) -> Result<(), Batch> {
        let taken = self.shared.in_flight.fetch_add(1, Ordering::AcqRel);
        if taken >= self.max_concurrency || !self.has_thread_for(taken + 1) {
            self.shared.in_flight.fetch_sub(1, Ordering::AcqRel);
            return Err(batch);
        }
        self.batches.try_send(batch).map_err(|refused| {
            self.shared.in_flight.fetch_sub(1, Ordering::AcqRel);
            refused.into_inner()
        })
    }

    /// How many batches [`Lane::submit`] would take now.
    pub fn free(&self) -> usize {
        self.max_concurrency.saturating_sub(self.in_flight())
    }

    /// How many batches have been taken and not answered.
    pub fn in_flight(&self) -> usize {
        self.shared.in_flight.load(Ordering::Acquire)
    }

    /// Starts a thread if there are fewer than `wanted`; whether there is any now.
    fn has_thread_for(&self, wanted: usize) -> bool {
        let running = self.threads.load(Ordering::Acquire);
        if running >= wanted {
            return true;
        }
        let shared = Arc::clone(&self.shared);
        let started = with_signals_blocked(|| {
            thread::Builder::new()
                .name(format!("recsync {}.{}", shared.lane, running + 1))
                .stack_size(STACK_BYTES)
                .spawn(move || shared.serve())
        });
        if started.is_ok() {
            self.threads.fetch_add(1, Ordering::AcqRel);
        }
        started.is_ok() || running > 0
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.shared.dropped.store(true, Ordering::Release);
    }
}

impl Shared {
    /// A thread's life: until the lane and its sender are gone.
    fn serve(&self) {
        while let Ok(batch) = self.batches.recv() {
            let started = Instant::now();
            let mut sent = Sent::default();
            let result = if self.dropped.load(Ordering::Acquire) {
                Err(Failure::temporary("stopped before the request was sent"))
            } else {
                catch_unwind(AssertUnwindSafe(|| (self.work)(&batch, &mut sent)))
                    .unwrap_or_else(|_| Err(Failure::temporary("internal error")))
            };
            let reply = Reply {
                lane: self.lane,
                id: batch.id,
                started,
                took: started.elapsed(),
                inputs: batch.inputs,
                result,
                sent,
            };
            // Before the reply, so that whoever reads it finds the lane free.
            self.in_flight.fetch_sub(1, Ordering::AcqRel);
            if self.replies.send(reply).is_ok() {
                let _ = catch_unwind(AssertUnwindSafe(|| (self.waker)()));
            }
        }
    }
}

/// Runs `spawn` with all signals blocked: a thread inherits the mask, and PostgreSQL's handlers
/// must run on the main thread only. The caller's mask is restored.
pub fn with_signals_blocked<T>(spawn: impl FnOnce() -> T) -> T {
    let mut before = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigfillset initialises the set that it is given, which is large enough.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: `all` was initialised above; `before` is written, or the call fails.
    let blocked =
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) } == 0;
    let result = spawn();
    if blocked {
        // SAFETY: the call above succeeded, so `before` holds this thread's former mask.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut());
        }
    }
    result
}

#[cfg(test)]
#[path = "lane_tests.rs"]
mod tests;
