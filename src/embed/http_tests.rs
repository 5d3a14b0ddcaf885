//! Requests against a scripted server, through the provider that makes them.

use std::io::Write;
use std::net::TcpListener;
use std::thread::sleep;
use std::time::Instant;

use super::*;
use crate::embed::endpoint::Purpose;
use crate::embed::failure::Class;
use crate::embed::provider::{Provider, embed_once};
use crate::embed::reply::Embeddings;
use crate::embed::testing::{Directory, Server, endpoint, floats, texts};

const KEY: &str = "s3cr3t-key-0123456789";
const TEXT: &str = "the private diary of Adrian Mole";

fn ask(server: &Server, more: &[(&str, &str)]) -> Result<Embeddings, Failure> {
    let policy = SecretPolicy::default();
    let inputs = texts(&[TEXT]);
    embed_once(&server.endpoint(more), &policy, &inputs, Purpose::Document)
}

fn failure(server: &Server, more: &[(&str, &str)]) -> Failure {
    let failure = ask(server, more).unwrap_err();
    assert!(!failure.message.contains("diary"), "{failure}");
    failure
}

#[test]
fn a_request_is_a_post_of_json_with_key_headers_and_agent() {
    let directory = Directory::new();
    directory.write("k", KEY, 0o600);
    directory.write("h", "api-key: other-s3cr3t", 0o600);
    let server = Server::always(200, "", &floats(2));
    let endpoint = server.endpoint(&[
        ("api_key_file", "k"),
        ("header_file", "h"),
        ("headers", r#"{"X-Team": "search"}"#),
    ]);
    let inputs = texts(&["a", "b"]);
    let embeddings =
        embed_once(&endpoint, &directory.policy(), &inputs, Purpose::Document).unwrap();
    assert_eq!(embeddings.vectors, [[0.0, 1.0, 0.0], [1.0, 1.0, 0.0]]);
    let seen = server.seen().remove(0);
    assert_eq!(seen.path, "/v1/embeddings");
    assert_eq!(seen.inputs(), ["a", "b"]);
    let bearer = format!("Bearer {KEY}");
    for (name, value) in [
        ("authorization", bearer.as_str()),
        ("api-key", "other-s3cr3t"),
        ("x-team", "search"),
        ("content-type", "application/json"),
        ("user-agent", concat!("recsync/", env!("CARGO_PKG_VERSION"))),
    ] {
        assert_eq!(seen.header(name), Some(value), "{name}");
    }
}

#[test]
fn a_rate_limit_carries_retry_after() {
    for (headers, wanted) in [
        ("retry-after: 20\r\n", Some(Duration::from_secs(20))),
        (
            "retry-after-ms: 250\r\nretry-after: 1\r\n",
            Some(Duration::from_millis(250)),
        ),
        ("retry-after: Fri, 31 Dec 1999 23:59:59 GMT\r\n", None),
        ("retry-after: -1\r\n", None),
        ("", None),
    ] {
        let server = Server::always(429, headers, r#"{"error":{"message":"slow down"}}"#);
        let failure = failure(&server, &[]);
        assert!(failure.rate_limited);
        assert_eq!(failure.class, Class::Provider);
        assert_eq!(failure.status, Some(429));
        assert_eq!(failure.retry_after, wanted, "{headers}");
        assert_eq!(failure.message, "the server answered 429: slow down");
    }
}

#[test]
fn a_refused_input_is_permanent_and_its_echo_is_removed() {
    let body = format!(r#"{{"error":{{"message":"'{TEXT}' is too long"}}}}"#);
    let failure = failure(&Server::always(400, "", &body), &[]);
    assert_eq!(
        (failure.class, failure.status),
        (Class::Permanent, Some(400))
    );
    assert_eq!(
        failure.message,
        "the server answered 400: '[removed]' is too long"
    );
}

#[test]
fn a_refused_key_is_not_echoed_nor_sent_again_unchanged() {
    let directory = Directory::new();
    directory.write("k", KEY, 0o600);
    let body = format!(r#"{{"error":{{"message":"Incorrect API key: {KEY}"}}}}"#);
    let server = Server::always(401, "", &body);
    let endpoint = server.endpoint(&[("api_key_file", "k")]);
    let failure = embed_once(
        &endpoint,
        &directory.policy(),
        &texts(&[TEXT]),
        Purpose::Query,
    )
    .unwrap_err();
    assert_eq!(failure.class, Class::Configuration);
    assert_eq!(
        failure.message,
        "the server answered 401: Incorrect API key: [removed]"
    );
    assert_eq!(server.connections(), 1);
    assert_eq!(server.seen().len(), 1);
}

#[test]
fn a_key_that_was_changed_meanwhile_is_tried_after_a_401() {
    let directory = Arc::new(Directory::new());
    directory.write("k", "old-key", 0o600);
    let rotated = Arc::clone(&directory);
    let server = Server::new(move |seen| {
        if seen.header("authorization") == Some("Bearer new-key") {
            return (200, String::new(), floats(1));
        }
        rotated.write("k", "new-key", 0o600);
        (401, String::new(), String::new())
    });
    let endpoint = server.endpoint(&[("api_key_file", "k")]);
    let inputs = texts(&[TEXT]);
    assert!(embed_once(&endpoint, &directory.policy(), &inputs, Purpose::Query).is_ok());
}

#[test]
fn an_unreadable_key_sends_nothing() {
    let server = Server::always(200, "", &floats(1));
    let failure = failure(&server, &[("api_key_file", "none")]);
    assert_eq!(failure.class, Class::Configuration);
    assert_eq!(server.connections(), 0);
}

#[test]
fn base64_that_is_refused_falls_back_to_floats_once_and_for_all() {
    let server = Server::new(|seen| match seen.body.contains("base64") {
        true => {
            let body = r#"{"error":{"message":"encoding_format: base64 is not supported"}}"#;
            (400, String::new(), body.to_owned())
        }
        false => (200, String::new(), floats(1)),
    });
    let provider = Provider::new(server.endpoint(&[]), SecretPolicy::default());
    for _ in 0..2 {
        assert!(provider.embed(&texts(&[TEXT]), Purpose::Document).is_ok());
    }
    assert_eq!(server.seen().len(), 3);

    let never = Server::always(400, "", r#"{"error":"encoding_format"}"#);
    assert_eq!(failure(&never, &[]).class, Class::Permanent);
}

#[test]
fn connections_are_kept() {
    let server = Server::always(200, "", &floats(1));
    let provider = Provider::new(server.endpoint(&[]), SecretPolicy::default());
    for _ in 0..5 {
        assert!(provider.embed(&texts(&[TEXT]), Purpose::Document).is_ok());
    }
    assert_eq!(server.connections(), 1);
}

#[test]
fn a_connection_is_kept_after_an_error_too() {
    let server = Server::always(503, "", r#"{"error":"overloaded"}"#);
    let provider = Provider::new(server.endpoint(&[]), SecretPolicy::default());
    for _ in 0..3 {
        assert!(provider.embed(&texts(&[TEXT]), Purpose::Document).is_err());
    }
    assert_eq!(server.connections(), 1);
}

#[test]
fn a_redirect_is_not_followed() {
    let target = Server::always(200, "", &floats(1));
    for status in [301, 302, 303, 307, 308] {
        let server = Server::always(status, &format!("location: {}\r\n", target.url), "");
        let failure = failure(&server, &[]);
        assert_eq!(failure.class, Class::Temporary);
        assert_eq!(failure.status, Some(status));
        assert!(failure.message.contains("redirects are not followed"));
    }
    assert_eq!(target.connections(), 0);
}

#[test]
fn a_body_that_is_cut_short_is_the_providers_failure() {
    let server = Server::raw(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{\"data\":[");
        let _ = stream.shutdown(std::net::Shutdown::Both);
    });
    let failure = failure(&server, &[]);
    assert_eq!(failure.class, Class::Provider);
    assert_eq!(failure.status, Some(200), "it may be due to an input");
    assert!(failure.message.contains("ended before"), "{failure}");
}

#[test]
fn a_chunked_body_that_is_cut_short_is_the_providers_failure() {
    let server = Server::raw(|_, stream| {
        let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        let _ = stream.write_all(head);
        let _ = stream.write_all(b"9\r\n{\"data\":[\r\n");
        let _ = stream.shutdown(std::net::Shutdown::Both);
    });
    assert_eq!(failure(&server, &[]).class, Class::Provider);
}

#[test]
fn what_is_called_a_page_is_not_read_and_what_is_called_nothing_in_particular_is() {
    for (kind, read) in [
        ("application/json", true),
        ("application/json; charset=utf-8", true),
        ("application/vnd.api+json", true),
        ("text/plain", true),
        ("application/octet-stream", true),
        ("", true),
        ("text/html", false),
        ("text/html; charset=utf-8", false),
        ("application/xml", false),
        ("text/event-stream", false),
    ] {
        let server = Server::always(200, &format!("content-type: {kind}\r\n"), &floats(1));
        let result = ask(&server, &[]);
        assert_eq!(result.is_ok(), read, "{kind}");
        if let Err(failure) = result {
            assert_eq!(failure.class, Class::Provider);
            assert_eq!(failure.status, Some(200));
            assert!(failure.message.ends_with(", not JSON"), "{failure}");
        }
    }
}

#[test]
fn a_huge_body_is_given_up_at_the_bound() {
    let declared = Server::raw(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n");
    });
    assert!(failure(&declared, &[]).message.contains("larger than"));
    let endless = Server::raw(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n");
        while stream.write_all(&[b' '; 4_096]).is_ok() {}
    });
    let failure = failure(&endless, &[]);
    assert_eq!(failure.class, Class::Temporary);
    assert!(failure.message.contains("larger than 65626 bytes"));
}

#[test]
fn a_huge_error_is_read_up_to_its_bound() {
    let server = Server::raw(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 500 X\r\nconnection: close\r\n\r\n");
        while stream.write_all(&[b'x'; 4_096]).is_ok() {}
    });
    assert_eq!(failure(&server, &[]).status, Some(500));
}

#[test]
fn a_dripping_answer_ends_at_the_total_timeout() {
    let server = Server::raw(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n");
        while stream.write_all(b" ").is_ok() {
            sleep(Duration::from_millis(20));
        }
    });
    let started = Instant::now();
    let failure = failure(&server, &[("total_timeout", "300ms")]);
    assert_eq!(failure.class, Class::Provider);
    assert!(
        failure.message.starts_with("no answer in time"),
        "{failure}"
    );
    assert!(failure.timed_out);
    assert!(started.elapsed() < Duration::from_secs(3));
}

#[test]
fn a_silent_server_ends_at_the_read_timeout() {
    let server = Server::raw(|_, _| sleep(Duration::from_secs(5)));
    let started = Instant::now();
    let failure = failure(&server, &[("read_timeout", "200ms")]);
    assert_eq!(failure.class, Class::Provider);
    assert!(failure.timed_out);
    assert!(started.elapsed() < Duration::from_secs(3));
}

#[test]
fn no_connection_no_name_and_no_answer_are_the_providers_failures() {
    let policy = SecretPolicy::default();
    let ask = |url: &str| {
        let inputs = texts(&[TEXT]);
        embed_once(&endpoint(url, &[]), &policy, &inputs, Purpose::Query).unwrap_err()
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    drop(listener);
    let refused = ask(&url);
    assert_eq!(refused.class, Class::Provider);
    assert_eq!(refused.message, "connection failed: connection refused");
    assert!(!refused.timed_out, "nothing was sent");
    assert_eq!(ask("http://no-such-host.invalid/v1").class, Class::Provider);
    let hangs_up = Server::raw(|_, stream| {
        let _ = stream.shutdown(std::net::Shutdown::Both);
    });
    assert_eq!(failure(&hangs_up, &[]).class, Class::Provider);
}

#[test]
fn what_is_no_http_is_temporary_and_no_tls_a_matter_of_configuration() {
    let server = Server::raw(|_, stream| {
        let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.6\r\n\r\n");
    });
    assert_eq!(failure(&server, &[]).class, Class::Temporary);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}/v1", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        sleep(Duration::from_millis(200));
    });
    let policy = SecretPolicy::default();
    let failure = embed_once(
        &endpoint(&url, &[]),
        &policy,
        &texts(&[TEXT]),
        Purpose::Query,
    );
    let failure = failure.unwrap_err();
    assert_eq!(failure.class, Class::Configuration);
    assert!(failure.message.starts_with("TLS failed"), "{failure}");
}

#[test]
fn a_host_that_is_not_allowed_gets_no_connection() {
    let server = Server::always(200, "", &floats(1));
    let by_name = server.url.replace("127.0.0.1", "localhost");
    for (url, entries, allowed) in [
        (&server.url, &[][..], true),
        (&server.url, &["127.0.0.0/8"], true),
        (&server.url, &["localhost"], false),
        (&by_name, &["localhost"], true),
        (&by_name, &["127.0.0.0/8", "::1"], true),
        (&by_name, &["*.openai.com", "10.0.0.0/8"], false),
        (&by_name, &["not a host"], false),
    ] {
        let policy = SecretPolicy {
            allowed_hosts: texts(entries),
            ..SecretPolicy::default()
        };
        let before = server.connections();
        let result = embed_once(
            &endpoint(url, &[]),
            &policy,
            &texts(&[TEXT]),
            Purpose::Query,
        );
        assert_eq!(result.is_ok(), allowed, "{url} {entries:?}");
        if let Err(failure) = result {
            assert_eq!(failure.class, Class::Configuration);
            assert!(failure.message.contains("allowed_hosts"), "{failure}");
            assert_eq!(server.connections(), before);
        }
    }
    let metadata = endpoint("http://169.254.169.254/v1", &[]);
    let policy = SecretPolicy::default();
    let failure = embed_once(&metadata, &policy, &texts(&[TEXT]), Purpose::Query).unwrap_err();
    assert!(failure.message.contains("link-local"), "{failure}");
}

#[test]
fn only_a_proxy_of_the_options_is_used() {
    let proxy = Server::always(403, "", "");
    let proxy_url = proxy.url.trim_end_matches("/v1");
    let policy = SecretPolicy {
        allowed_hosts: texts(&["embedder.example"]),
        ..SecretPolicy::default()
    };
    let ask = |url: &str| {
        let endpoint = endpoint(url, &[("proxy", proxy_url)]);
        embed_once(&endpoint, &policy, &texts(&[TEXT]), Purpose::Query).unwrap_err()
    };
    let elsewhere = ask("http://other.example/v1");
    assert!(elsewhere.message.contains("allowed_hosts"), "{elsewhere}");
    assert_eq!(proxy.connections(), 0);
    assert_eq!(ask("http://embedder.example/v1").class, Class::Provider);
    assert_eq!(proxy.connections(), 1);
}

#[test]
fn a_ca_file_without_certificates_is_a_matter_of_configuration() {
    let directory = Directory::new();
    directory.write("ca.pem", "s3cr3t", 0o644);
    for (file, why) in [("ca.pem", "no certificate"), ("none.pem", "cannot be read")] {
        let endpoint = endpoint("https://x.example/v1", &[("ca_file", file)]);
        let inputs = texts(&[TEXT]);
        let failure =
            embed_once(&endpoint, &directory.policy(), &inputs, Purpose::Query).unwrap_err();
        assert_eq!(failure.class, Class::Configuration);
        assert!(failure.message.contains(why), "{failure}");
        assert!(!failure.message.contains("s3cr3t"));
    }
}
