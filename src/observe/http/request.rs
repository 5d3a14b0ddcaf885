//! The head of a request: method and path. Its headers and body are of no interest here, but their size is.

use std::io;
use std::time::Instant;

use super::Reply;

/// A browser sends a kilobyte or two.
const MAX_HEAD_BYTES: usize = 8 * 1024;
const MAX_HEADERS: usize = 64;

#[derive(Debug, PartialEq)]
pub struct Request {
    pub method: String,
    /// Without what follows a `?`.
    pub path: String,
}

impl Request {
    /// Reads by `read` until the head is there.
    ///
    /// # Errors
    /// What is wrong with it; `None` where nobody is there to hear it.
    pub fn read(
        mut read: impl FnMut(&mut [u8], Instant) -> io::Result<usize>,
        deadline: Instant,
    ) -> Result<Request, Option<Reply>> {
        let mut buffer = vec![0; MAX_HEAD_BYTES];
        let mut filled = 0;
        loop {
            let count = match read(&mut buffer[filled..], deadline) {
                Ok(0) => return Err(None),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) if filled > 0 => return Err(Some(Reply::timeout())),
                Err(_) => return Err(None),
            };
            filled += count;
            match parse(&buffer[..filled])? {
                Some(request) => return Ok(request),
                None if filled == buffer.len() => return Err(Some(Reply::too_large())),
                None => {}
            }
        }
    }
}

/// `None`: there is more to come.
fn parse(bytes: &[u8]) -> Result<Option<Request>, Option<Reply>> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Partial) => Ok(None),
        Ok(httparse::Status::Complete(_)) => {
            let path = request.path.unwrap_or_default();
            Ok(Some(Request {
                method: request.method.unwrap_or_default().to_owned(),
                path: path.split('?').next().unwrap_or_default().to_owned(),
            }))
        }
        Err(httparse::Error::TooManyHeaders) => Err(Some(Reply::too_large())),
        Err(_) => Err(Some(Reply::bad_request())),
    }
}
