use std::sync::Mutex;

use crossbeam_channel::unbounded;

use super::*;
use crate::embed::failure::Class;
use crate::embed::testing::{Server, floats, texts};

const SOON: Duration = Duration::from_secs(5);

fn batch(id: u64) -> Batch {
    Batch {
        id,
        inputs: texts(&["some text"]),
        purpose: Purpose::Document,
    }
}

fn quiet() -> Waker {
    Arc::new(|| {})
}

/// A lane whose requests end when the returned sender says so.
fn gated(max_concurrency: usize) -> (Lane, Receiver<Reply>, Sender<()>) {
    let (replies, received) = unbounded();
    let (go, gate) = unbounded::<()>();
    let work = move |_: &Batch, _: &mut Sent| {
        let _ = gate.recv_timeout(SOON);
        Ok(Embeddings::default())
    };
    let lane = Lane::with_work(9, max_concurrency, Box::new(work), replies, quiet());
    (lane, received, go)
}

#[test]
fn a_batch_comes_back_with_its_vectors_and_wakes_the_worker_after_the_reply() {
    let server = Server::always(200, "", &floats(1));
    let (replies, received) = unbounded();
    let (woken, wakes) = unbounded();
    let waiting = received.clone();
    let waker: Waker = Arc::new(move || woken.send(waiting.len()).unwrap());
    let lane = Lane::start(
        7,
        server.endpoint(&[]),
        SecretPolicy::default(),
        replies,
        waker,
    );
    lane.submit(batch(42)).unwrap();
    assert_eq!(wakes.recv_timeout(SOON), Ok(1));
    let reply = received.recv_timeout(SOON).unwrap();
    assert_eq!((reply.lane, reply.id), (7, 42));
    assert_eq!(reply.inputs, ["some text"]);
    assert_eq!(reply.result.unwrap().vectors, [[0.0, 1.0, 0.0]]);
    assert_eq!((lane.free(), lane.in_flight()), (4, 0));
}

#[test]
fn a_busy_lane_hands_the_batch_back_at_once() {
    let (lane, received, go) = gated(2);
    lane.submit(batch(1)).unwrap();
    lane.submit(batch(2)).unwrap();
    let started = Instant::now();
    assert_eq!(lane.submit(batch(3)).unwrap_err().id, 3);
    assert!(started.elapsed() < Duration::from_millis(500));
    assert_eq!((lane.free(), lane.in_flight()), (0, 2));
    go.send(()).unwrap();
    received.recv_timeout(SOON).unwrap();
    assert_eq!(lane.free(), 1, "free before the reply is read");
    lane.submit(batch(3)).unwrap();
}

#[test]
fn threads_are_started_when_they_are_needed_and_no_more() {
    let (lane, received, go) = gated(8);
    assert_eq!(lane.threads.load(Ordering::SeqCst), 0);
    for id in 0..5 {
        lane.submit(batch(id)).unwrap();
        go.send(()).unwrap();
        received.recv_timeout(SOON).unwrap();
    }
    assert_eq!(lane.threads.load(Ordering::SeqCst), 1);
    for id in 0..8 {
        lane.submit(batch(id)).unwrap();
    }
    assert_eq!(lane.threads.load(Ordering::SeqCst), 8);
    for _ in 0..8 {
        go.send(()).unwrap();
        received.recv_timeout(SOON).unwrap();
    }
}

#[test]
fn a_panic_is_an_internal_error_and_the_thread_goes_on() {
    let (replies, received) = unbounded();
    let work = |batch: &Batch, _: &mut Sent| match batch.id {
        0 => panic!("some text"),
        _ => Ok(Embeddings::default()),
    };
    let lane = Lane::with_work(1, 1, Box::new(work), replies, quiet());
    lane.submit(batch(0)).unwrap();
    let failure = received.recv_timeout(SOON).unwrap().result.unwrap_err();
    assert_eq!(failure.class, Class::Temporary);
    assert_eq!(failure.message, "internal error");
    lane.submit(batch(1)).unwrap();
    assert!(received.recv_timeout(SOON).unwrap().result.is_ok());
}

#[test]
fn threads_run_with_all_signals_blocked_and_the_callers_mask_is_restored() {
    fn mask() -> Vec<bool> {
        // SAFETY: a sigset_t of zeros is a valid value, and it is overwritten.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: asks for this thread's mask only.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, std::ptr::null(), &mut set) };
        // SAFETY: `set` was filled above; the numbers are valid signals.
        (1..=31)
            .map(|signal| unsafe { libc::sigismember(&set, signal) } == 1)
            .collect()
    }
    let before = mask();
    let (replies, received) = unbounded();
    let masks = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&masks);
    let work = move |_: &Batch, _: &mut Sent| {
        kept.lock()
            .unwrap()
            .push((mask(), thread::current().name().map(str::to_owned)));
        Ok(Embeddings::default())
    };
    let lane = Lane::with_work(3, 1, Box::new(work), replies, quiet());
    lane.submit(batch(1)).unwrap();
    received.recv_timeout(SOON).unwrap();
    assert_eq!(mask(), before);
    let (mask, name) = masks.lock().unwrap().remove(0);
    for signal in [libc::SIGTERM, libc::SIGUSR1, libc::SIGHUP, libc::SIGALRM] {
        assert!(mask[signal as usize - 1], "{signal}");
    }
    assert_eq!(name.as_deref(), Some("recsync 3.1"));
}

#[test]
fn dropping_a_lane_waits_for_nothing_and_loses_no_reply() {
    let (lane, received, go) = gated(2);
    lane.submit(batch(1)).unwrap();
    lane.submit(batch(2)).unwrap();
    let started = Instant::now();
    drop(lane);
    assert!(started.elapsed() < Duration::from_millis(500));
    go.send(()).unwrap();
    go.send(()).unwrap();
    let mut ids = [1, 2].map(|_| received.recv_timeout(SOON).unwrap().id);
    ids.sort_unstable();
    assert_eq!(ids, [1, 2]);
    assert!(
        received.recv_timeout(SOON).is_err(),
        "the threads have ended"
    );
}

#[test]
fn a_lane_of_the_builtin_api_needs_no_server() {
    let (replies, received) = unbounded();
    let options = [("api".to_owned(), "builtin".to_owned())];
    let endpoint = Endpoint::from_options(&options, &[]).unwrap();
    let lane = Lane::start(1, endpoint, SecretPolicy::default(), replies, quiet());
    lane.submit(batch(1)).unwrap();
    let reply = received.recv_timeout(SOON).unwrap();
    assert_eq!(reply.result.unwrap().vectors[0].len(), 384);
}

#[test]
fn several_threads_share_the_connections() {
    let server = Server::always(200, "", &floats(1));
    let (replies, received) = unbounded();
    let lane = Lane::start(
        1,
        server.endpoint(&[]),
        SecretPolicy::default(),
        replies,
        quiet(),
    );
    for id in 0..40 {
        let mut next = Some(batch(id));
        while let Some(batch) = next.take() {
            if let Err(busy) = lane.submit(batch) {
                assert!(received.recv_timeout(SOON).unwrap().result.is_ok());
                next = Some(busy);
            }
        }
    }
    assert!(server.connections() <= 4, "{}", server.connections());
}
