//! Clients that ask for too much, send nonsense, leave, or do not read; and the end of a server.

use std::io::{Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use server::Limits;

use crate::support::{CONTEXT, Reply, SAYS, Server, Start};

const PATH: &str = "/v1/completions";

fn limits() -> Limits {
    Limits { drain_time: Duration::from_secs(5), ..Limits::of_context(CONTEXT) }
}

#[test]
fn what_is_no_request_is_told_so() {
    let server = Server::start();
    for body in [&b""[..], b"{", b"[]", b"5", b"\"a\"", b"{\"a\": \xff}", b"{\"model\": \"\xc3\"}", b"nul"] {
        server.raw("POST", PATH, "", body).error(400, None);
    }
    let deep = "[".repeat(100_000);
    server.raw("POST", PATH, "", deep.as_bytes()).error(400, None);
    let deep = format!("{{\"model\": {}", "{\"a\":".repeat(100_000));
    server.raw("POST", PATH, "", deep.as_bytes()).error(400, None);
    server.get("/none").error(404, None);
    server.get(PATH).error(405, None);
    server.post("/v1/models", &json!({})).error(405, None);
    assert_eq!(server.complete("base"), SAYS);
}

#[test]
fn a_body_that_is_too_large_is_refused_before_it_is_read() {
    let server = Server::with(Start { limits: Limits { body_bytes: 1000, ..limits() }, ..Start::default() });
    assert!(server.raw("POST", PATH, "", &[b' '; 1001]).error(413, None).contains("1000 bytes"));
    server.raw("POST", PATH, "", &[b' '; 1000]).error(400, None);
    // One that does not say how long it is.
    let mut stream = server.connect();
    let host = server.address;
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(format!("400\r\n{}\r\n", " ".repeat(1024)).as_bytes()).unwrap();
    Reply::read(stream).error(413, None);
    // 100 MB are announced: the answer comes at once.
    let mut stream = server.connect();
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: 100000000\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    Reply::read(stream).error(413, None);
}

#[test]
fn who_sends_slowly_is_not_waited_for() {
    let limits = Limits { read_time: Duration::from_millis(200), ..limits() };
    let server = Server::with(Start { limits, ..Start::default() });
    // A head that does not end: the connection is closed.
    let mut stream = server.connect();
    stream.write_all(b"POST /v1/completions HTTP/1.1\r\nHost: loc").unwrap();
    let begun = Instant::now();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(begun.elapsed() < Duration::from_secs(5));
    // A body that does not end.
    let mut stream = server.connect();
    let host = server.address;
    let head =
        format!("POST {PATH} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: 50\r\n\r\n{{");
    stream.write_all(head.as_bytes()).unwrap();
    Reply::read(stream).error(408, None);
}

#[test]
fn connections_beyond_the_limit_wait() {
    let limits = Limits { connections: 2, read_time: Duration::from_millis(300), ..limits() };
    let server = Server::with(Start { limits, ..Start::default() });
    let _idle = [server.connect(), server.connect(), server.connect()];
    // Those that say nothing go, and those behind them get their turn.
    assert_eq!(server.complete("base"), SAYS);
}

#[test]
fn requests_beyond_the_limit_are_refused_and_others_go_on() {
    let server = Server::with(Start { limits: Limits { requests: 2, ..limits() }, ..Start::default() });
    server.script.lock().unwrap().pause = Duration::from_millis(30);
    thread::scope(|scope| {
        let running: Vec<_> = (0..2).map(|_| scope.spawn(|| server.complete("base"))).collect();
        server.wait(|script| script.asks.len() == 2);
        let reply = server.post(PATH, &json!({"model": "base", "prompt": "x"}));
        reply.error(429, None);
        assert_eq!(reply.header("retry-after"), Some("1"));
        for running in running {
            assert_eq!(running.join().unwrap(), SAYS);
        }
    });
    assert_eq!(server.complete("base"), SAYS, "places become free again");
    server.post(PATH, &json!({"model": "base", "prompt": "x", "n": 3})).error(400, Some("n"));
}

#[test]
fn a_client_that_leaves_ends_its_request() {
    let server = Server::start();
    server.script.lock().unwrap().pause = Duration::from_millis(5);
    for stream in [false, true] {
        let body =
            json!({"model": "base", "prompt": "!", "max_tokens": 100, "stream": stream, "n": 2}).to_string();
        let mut connection = server.send("POST", PATH, "", body.as_bytes());
        server.wait(|script| script.running == 2);
        if stream {
            let mut some = [0; 100];
            connection.read_exact(&mut some).unwrap();
        }
        drop(connection);
        let gone = if stream { 4 } else { 2 };
        server.wait(|script| script.cancelled.len() == gone);
    }
    assert_eq!(server.complete("base"), SAYS);
    let metrics = server.get("/metrics").body;
    assert!(metrics.contains("finished_reason=\"abort\"} 4"), "{metrics}");
}

#[test]
fn a_client_that_reads_nothing_loses_its_request_and_nobody_elses() {
    let limits = Limits { write_time: Duration::from_millis(300), context: 1 << 30, ..limits() };
    let server = Server::with(Start { limits, ..Start::default() });
    let body = json!({"model": "base", "prompt": "!", "max_tokens": 1 << 29, "stream": true, "logprobs": 20})
        .to_string();
    let _connection = server.send("POST", PATH, "", body.as_bytes());
    server.wait(|script| script.asks.len() == 1);
    assert_eq!(server.complete("base"), SAYS);
    server.wait(|script| script.cancelled.len() == 1);
    assert_eq!(server.complete("base"), SAYS);
}

#[test]
fn a_server_that_is_to_end_finishes_what_runs_and_takes_nothing_new() {
    let mut server = Server::start();
    server.script.lock().unwrap().pause = Duration::from_millis(50);
    let body = json!({"model": "base", "prompt": "x", "stream": true}).to_string();
    let running = server.send("POST", PATH, "", body.as_bytes());
    server.wait(|script| script.running == 1);
    assert_eq!(server.get("/ready").status, 200);
    server.ask_to_end();
    thread::sleep(Duration::from_millis(60));
    server.get("/ready").error(503, None);
    assert_eq!(server.get("/health").status, 200);
    let reply = server.post(PATH, &json!({"model": "base", "prompt": "x"}));
    reply.error(503, None);
    assert!(reply.header("retry-after").is_some());
    let text: String = Reply::read(running)
        .events()
        .iter()
        .filter_map(|event| event["choices"][0]["text"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(text, SAYS);
    server.end().unwrap();
    assert!(std::net::TcpStream::connect(server.address).is_err());
}

#[test]
fn the_end_does_not_wait_for_ever() {
    let limits = Limits { drain_time: Duration::from_millis(100), ..limits() };
    let mut server = Server::with(Start { limits, ..Start::default() });
    server.script.lock().unwrap().pause = Duration::from_millis(100);
    let body = json!({"model": "base", "prompt": "!", "max_tokens": 100, "stream": true}).to_string();
    let _running = server.send("POST", PATH, "", body.as_bytes());
    server.wait(|script| script.running == 1);
    let begun = Instant::now();
    server.end().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[test]
fn an_engine_that_breaks_ends_the_server_with_an_error() {
    let mut server = Server::start();
    server.script.lock().unwrap().breaks = true;
    let reply = server.post(PATH, &json!({"model": "base", "prompt": "x"}));
    reply.error(500, None);
    assert_eq!(server.end().unwrap_err().to_string(), "the engine has stopped");
}

#[test]
fn who_sends_drop_by_drop_is_not_waited_for() {
    let limits = Limits { read_time: Duration::from_millis(400), ..limits() };
    let server = Server::with(Start { limits, ..Start::default() });
    let host = server.address;
    let body = format!("POST {PATH} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1000\r\n\r\n");
    let heads = [body.as_str(), "POST /v1/completions HTTP/1.1\r\nX: "];
    for (head, answer) in heads.into_iter().zip(["HTTP/1.1 408", ""]) {
        let mut stream = server.connect();
        stream.write_all(head.as_bytes()).unwrap();
        let begun = Instant::now();
        // Each byte comes soon after the one before, and all of them never.
        while begun.elapsed() < Duration::from_secs(10) && stream.write_all(b" ").is_ok() {
            thread::sleep(Duration::from_millis(20));
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "{head:?}");
        let mut told = String::new();
        let _ = stream.read_to_string(&mut told);
        assert!(told.starts_with(answer), "{told}");
        assert_eq!(server.complete("base"), SAYS);
    }
}

#[test]
fn a_body_without_end_is_not_read_to_its_end() {
    let server = Server::start();
    let mut stream = server.connect();
    let host = server.address;
    let head = format!("POST {PATH} HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let piece = format!("100000\r\n{}\r\n", " ".repeat(1 << 20));
    let taken = (0..100).take_while(|_| stream.write_all(piece.as_bytes()).is_ok()).count();
    // What the limit and the system's own buffers hold, of 100 MiB.
    assert!(taken < 30, "{taken} MiB were taken");
    assert_eq!(server.complete("base"), SAYS);
}

#[test]
fn who_asks_and_asks_and_reads_nothing_is_cut_off() {
    let limits = Limits { write_time: Duration::from_millis(300), ..limits() };
    let server = Server::with(Start { limits, ..Start::default() });
    let mut stream = server.connect();
    stream.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
    let ask = format!("GET /openapi.json HTTP/1.1\r\nHost: {}\r\n\r\n", server.address);
    let begun = Instant::now();
    let asked = (0..1_000_000).take_while(|_| stream.write_all(ask.as_bytes()).is_ok()).count();
    assert!(
        asked < 1_000_000 && begun.elapsed() < Duration::from_secs(10),
        "{asked} in {:?}",
        begun.elapsed()
    );
    assert_eq!(server.complete("base"), SAYS);
}

#[test]
fn a_thousand_idle_connections_hold_up_nobody() {
    let server = Server::start();
    let idle: Vec<_> = (0..1000).map(|_| server.connect()).collect();
    let begun = Instant::now();
    assert_eq!(server.complete("base"), SAYS);
    assert!(begun.elapsed() < Duration::from_secs(5));
    drop(idle);
}

#[test]
fn heads_that_are_none_are_answered_or_cut_off() {
    let server = Server::start();
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(1 << 20));
    let many = format!("GET /health HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(1000));
    let heads: [&[u8]; 7] = [
        b"\0\xff\x16\x03\x01\r\n\r\n",
        b"GET /v1/models/%00%2e%2e%2f HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET /v1/models/%ff%fe HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET http://localhost/../../etc/passwd HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        long.as_bytes(),
        many.as_bytes(),
    ];
    for head in heads {
        let mut stream = server.connect();
        let _ = stream.write_all(head);
        let mut told = Vec::new();
        let _ = stream.read_to_end(&mut told);
        let told = String::from_utf8_lossy(&told);
        assert!(told.is_empty() || told.starts_with("HTTP/1.1 4"), "{told}");
        assert_eq!(server.complete("base"), SAYS);
    }
}
