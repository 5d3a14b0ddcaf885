//! A small HTTP server on threads of its own, for those who watch: bounded in connections, bytes and time.
//!
//! It knows nothing of what it serves, and never calls PostgreSQL. It speaks HTTP/1.1 as far as a scraper or a browser
//! needs: GET and HEAD, one request a connection. The parsing of requests, where the danger is, is `httparse`'s, which
//! hyper and ureq build on; everything else that a server library would bring, as keeping connections, is not wanted here.

// What comes in.
mod request;

// What goes out.
mod reply;

pub use reply::Reply;
pub use request::Request;

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::embed::lane::with_signals_blocked;

/// Connections at a time: a few scrapers and people. One more is told to come back.
const MOST_CONNECTIONS: usize = 16;
/// For a request to come in as a whole.
const REQUEST_TIME: Duration = Duration::from_secs(5);
/// For the answer to go out.
const REPLY_TIME: Duration = Duration::from_secs(30);
/// For what a client still sends when it has been answered: hanging up before would take the answer from it.
const LINGER: Duration = Duration::from_millis(200);
const STACK_BYTES: usize = 512 * 1024;

/// What answers a request; called on the threads.
pub type Answer = dyn Fn(&Request) -> Reply + Send + Sync;

/// While it lives, the address is listened on.
pub struct Server {
    address: SocketAddr,
    /// Closed, it ends the thread.
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// # Errors
    /// The address is taken, is none of this machine's, or there are no threads to be had.
    pub fn start(address: SocketAddr, answer: Arc<Answer>) -> io::Result<Server> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (stopped, stop) = io::pipe()?;
        let thread = with_signals_blocked(|| {
            thread::Builder::new()
                .name("recsync http".into())
                .stack_size(STACK_BYTES)
                .spawn(move || accept(&listener, &stopped, &answer))
        })?;
        Ok(Server {
            address,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// With the port that the system has chosen, where it was to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    /// The address is free afterwards; connections that are open are answered.
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, stop: &PipeReader, answer: &Arc<Answer>) {
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        if wait(&[listener.as_raw_fd(), stop.as_raw_fd()]).contains(&stop.as_raw_fd()) {
            return;
        }
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(_) => {
                thread::sleep(LINGER); // no descriptor to be had, for example
                continue;
            }
        };
        let place = Place::of(&open);
        if stream.set_nonblocking(false).is_err() {
            continue;
        }
        let Some(place) = place else {
            let _ = stream.set_nonblocking(true); // it is not waited for
            let _ = (&stream).write_all(&Reply::busy().bytes(false));
            continue;
        };
        let answer = Arc::clone(answer);
        let serve = move || {
            let _place = place;
            let _ = serve(&stream, &*answer);
        };
        // Where there is no thread the connection is closed.
        let _ = thread::Builder::new()
            .name("recsync http".into())
            .stack_size(STACK_BYTES)
            .spawn(serve);
    }
}

/// One of the connections that are served at a time.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn of(open: &Arc<AtomicUsize>) -> Option<Place> {
        let place = Place(Arc::clone(open));
        (open.fetch_add(1, SeqCst) < MOST_CONNECTIONS).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

/// Those of the descriptors that have something to be read, or were closed at the other end.
fn wait(descriptors: &[RawFd]) -> Vec<RawFd> {
    let mut polled: Vec<libc::pollfd> = descriptors
        .iter()
        .map(|fd| libc::pollfd {
            fd: *fd,
            events: libc::POLLIN,
            revents: 0,
        })
        .collect();
    // SAFETY: as many entries as it is told; it writes into them.
    unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, -1) };
    let ready = polled.iter().filter(|polled| polled.revents != 0);
    ready.map(|polled| polled.fd).collect()
}

/// One request, one answer.
fn serve(stream: &TcpStream, answer: &Answer) -> io::Result<()> {
    let (reply, head) = match Request::read(
        |buffer, deadline| read(stream, buffer, deadline),
        Instant::now() + REQUEST_TIME,
    ) {
        Ok(request) => (
            match request.method.as_str() {
                "GET" | "HEAD" => answer(&request),
                _ => Reply::method_not_allowed(),
            },
            request.method == "HEAD",
        ),
        Err(Some(reply)) => (reply, false),
        Err(None) => return Ok(()), // it has hung up, or says nothing
    };
    write(stream, &reply.bytes(head), Instant::now() + REPLY_TIME)?;
    stream.shutdown(Shutdown::Write)?;
    let deadline = Instant::now() + LINGER;
    let mut rest = [0; 1024];
    while read(stream, &mut rest, deadline).is_ok_and(|count| count > 0) {}
    Ok(())
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    match left.is_zero() {
        true => Err(io::ErrorKind::TimedOut.into()),
        false => Ok(left),
    }
}

fn read(mut stream: &TcpStream, buffer: &mut [u8], deadline: Instant) -> io::Result<usize> {
    stream.set_read_timeout(Some(left(deadline)?))?;
    stream.read(buffer)
}

fn write(mut stream: &TcpStream, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.set_write_timeout(Some(left(deadline)?))?;
        let count = stream.write(bytes)?;
        if count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        bytes = &bytes[count..];
    }
    Ok(())
}

#[cfg(test)]
#[path = "http/tests.rs"]
mod tests;
