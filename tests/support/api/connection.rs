//! One connection of the scripted server, request after request. It does what the script says and nothing else.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread;

use super::fault::Wire;
use super::{Headers, State};

impl State {
    /// As long as the client keeps it. Nobody else holds the connection for long: a reset is its last close.
    pub(super) fn serve(&self, connection: Arc<TcpStream>) {
        let _ = connection.set_nodelay(true);
        let mut reader = BufReader::new(&*connection);
        let mut first = [0];
        // Looked at, not read: the script may want it to be lost.
        while matches!(connection.peek(&mut first), Ok(1)) {
            if !first[0].is_ascii_uppercase() {
                let _ = (&*connection).write_all(NO_HTTP); // as a server does that is spoken TLS to
                return;
            }
            if self.resets_before_it_reads() {
                reset(&connection);
                return;
            }
            let Some((headers, body)) = read_request(&mut reader) else {
                return;
            };
            let wire = self.answer(headers, &body);
            if !self.write(&connection, wire) {
                return;
            }
        }
    }

    /// Whether the connection can be used again.
    fn write(&self, mut connection: &TcpStream, wire: Wire) -> bool {
        match wire {
            Wire::Whole(answer) => return connection.write_all(&answer).is_ok(),
            Wire::Closed(answer) => drop(connection.write_all(&answer)),
            Wire::Reset(answer) => {
                let _ = connection.write_all(&answer);
                reset(connection);
            }
            Wire::Silence => while matches!(connection.read(&mut [0; 64]), Ok(1..)) {},
            Wire::Repeated {
                first,
                piece,
                pause,
            } => {
                let mut sent = 0;
                let mut next = &first;
                while connection.write_all(next).is_ok() {
                    sent += next.len();
                    next = &piece;
                    thread::sleep(pause);
                }
                self.lock().sent.push(sent);
            }
        }
        false
    }
}

const NO_HTTP: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// The close that follows is a reset (RST), not an end (FIN).
pub fn reset(connection: &TcpStream) {
    let at_once = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    // SAFETY: sets an option of an open socket from a value of the option's type and size.
    unsafe {
        libc::setsockopt(
            connection.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const at_once).cast(),
            size_of::<libc::linger>() as libc::socklen_t,
        )
    };
}

fn read_request(reader: &mut impl BufRead) -> Option<(Headers, Vec<u8>)> {
    let mut line = String::new();
    reader
        .read_line(&mut line)
        .ok()
        .filter(|&length| length > 0)?;
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader
            .read_line(&mut line)
            .ok()
            .filter(|&length| length > 0)?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => {
                headers.push((name.to_ascii_lowercase(), value.trim().to_owned()))
            }
            None => break,
        }
    }
    let length = headers
        .iter()
        .find(|(name, _)| name == "content-length")?
        .1
        .parse()
        .ok()?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((headers, body))
}
