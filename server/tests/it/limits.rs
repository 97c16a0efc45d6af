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
