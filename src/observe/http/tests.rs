use super::*;
use std::io::ErrorKind;

const SOON: Duration = Duration::from_secs(20);

fn server() -> Server {
    let answer = |request: &Request| match request.path.as_str() {
        "/" => Reply::ok("text/plain", request.method.clone()),
        _ => Reply::not_found(),
    };
    Server::start("127.0.0.1:0".parse().unwrap(), Arc::new(answer)).unwrap()
}

fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

fn answer(mut stream: &TcpStream) -> String {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn ask(server: &Server, request: &str) -> String {
    let stream = connect(server);
    (&stream).write_all(request.as_bytes()).unwrap();
    answer(&stream)
}

#[test]
fn get_and_head_are_answered_and_nothing_else() {
    let server = server();
    let got = ask(&server, "GET /?a=b HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(got.starts_with("HTTP/1.1 200 OK\r\n"), "{got}");
    assert!(got.ends_with("\r\n\r\nGET"), "{got}");
    let head = ask(&server, "HEAD / HTTP/1.1\r\n\r\n");
    assert!(
        head.contains("Content-Length: 4\r\n") && head.ends_with("\r\n\r\n"),
        "{head}"
    );
    let post = ask(&server, "POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc");
    assert!(
        post.starts_with("HTTP/1.1 405 ") && post.contains("Allow: GET, HEAD\r\n"),
        "{post}"
    );
    assert!(ask(&server, "GET /x HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 "));
    assert!(ask(&server, "\0\0\r\n\r\n").starts_with("HTTP/1.1 400 "));
}

#[test]
fn a_head_that_is_too_large_is_refused_and_not_kept() {
    let server = server();
    let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(9_000));
    assert!(ask(&server, &long).starts_with("HTTP/1.1 431 "));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(70));
    assert!(ask(&server, &many).starts_with("HTTP/1.1 431 "));
}

#[test]
fn those_who_send_nothing_keep_nobody_out_for_long_and_no_more_than_so_many_are_served() {
    let server = server();
    let silent: Vec<TcpStream> = (0..MOST_CONNECTIONS)
        .map(|_| {
            let stream = connect(&server);
            (&stream).write_all(b"GET").unwrap();
            stream
        })
        .collect();
    let refused = || {
        let stream = connect(&server);
        let _ = (&stream).write_all(b"GET / HTTP/1.1\r\n\r\n");
        let mut answer = Vec::new();
        // What was sent to it unread resets the connection, perhaps before the answer is read.
        let reset = (&stream)
            .read_to_end(&mut answer)
            .is_err_and(|e| e.kind() == ErrorKind::ConnectionReset);
        reset || answer.starts_with(b"HTTP/1.1 503 ")
    };
    assert!(refused(), "one too many was served");
    for stream in &silent {
        assert!(answer(stream).starts_with("HTTP/1.1 408 "));
    }
    let until = Instant::now() + SOON;
    while refused() {
        assert!(Instant::now() < until, "nobody is served any more");
    }
}

#[test]
fn a_taken_address_is_an_error_and_a_dropped_server_lets_go_of_its_own() {
    let server = server();
    let address = server.address();
    let again = || Server::start(address, Arc::new(|_| Reply::not_found()));
    assert_eq!(
        again().err().map(|error| error.kind()),
        Some(ErrorKind::AddrInUse)
    );
    drop(server);
    assert_eq!(again().unwrap().address(), address);
}
