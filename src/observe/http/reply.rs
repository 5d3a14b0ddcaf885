//! An answer as it goes out.
//!
//! It is never kept by a browser or a proxy, never shown in another page's frame, and loads nothing from anywhere.

use std::fmt::Write;

#[derive(Debug)]
pub struct Reply {
    status: u16,
    reason: &'static str,
    content_type: &'static str,
    body: Vec<u8>,
    /// A header line more.
    more: &'static str,
}

const TEXT: &str = "text/plain; charset=utf-8";

/// Of every answer: nothing but what stands in the page itself is run, and it asks nobody but this server.
const SAFE: &str = "Cache-Control: no-store\r\n\
    X-Content-Type-Options: nosniff\r\n\
    Referrer-Policy: no-referrer\r\n\
    Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n\
    Connection: close\r\n";

impl Reply {
    pub fn ok(content_type: &'static str, body: impl Into<Vec<u8>>) -> Reply {
        Reply {
            status: 200,
            reason: "OK",
            content_type,
            body: body.into(),
            more: "",
        }
    }

    fn plain(status: u16, reason: &'static str) -> Reply {
        Reply {
            status,
            reason,
            content_type: TEXT,
            body: format!("{reason}\n").into(),
            more: "",
        }
    }

    /// The service does not do its work; the body says why.
    pub fn unavailable(content_type: &'static str, body: impl Into<Vec<u8>>) -> Reply {
        Reply {
            content_type,
            body: body.into(),
            ..Reply::plain(503, "Service Unavailable")
        }
    }

    pub fn not_found() -> Reply {
        Reply::plain(404, "Not Found")
    }

    pub(super) fn method_not_allowed() -> Reply {
        Reply {
            more: "Allow: GET, HEAD\r\n",
            ..Reply::plain(405, "Method Not Allowed")
        }
    }

    pub(super) fn bad_request() -> Reply {
        Reply::plain(400, "Bad Request")
    }

    pub(super) fn timeout() -> Reply {
        Reply::plain(408, "Request Timeout")
    }

    pub(super) fn too_large() -> Reply {
        Reply::plain(431, "Request Header Fields Too Large")
    }

    /// There are as many connections as there may be.
    pub(super) fn busy() -> Reply {
        Reply {
            more: "Retry-After: 1\r\n",
            ..Reply::plain(503, "Service Unavailable")
        }
    }

    /// `head`: without the body, as HEAD wants it.
    pub(super) fn bytes(&self, head: bool) -> Vec<u8> {
        let mut bytes = String::new();
        let _ = write!(
            bytes,
            "HTTP/1.1 {} {}\r\nContent-Type: {}\r\nContent-Length: {}\r\n{SAFE}{}\r\n",
            self.status,
            self.reason,
            self.content_type,
            self.body.len(),
            self.more,
        );
        let mut bytes = bytes.into_bytes();
        if !head {
            bytes.extend_from_slice(&self.body);
        }
        bytes
    }
}
