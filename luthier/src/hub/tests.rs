//! The hub, played by a small server on this machine that can break off, lie and refuse.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{fs, thread};

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::download::{Client, Hiccup};
use super::{DatasetName, Hub, Kind, RepoId, resolve_adapter, resolve_model};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const LISTING: &str = "/api/models/lute/tiny/revision/main?blobs=true";

/// An answer to requests for one address.
#[derive(Clone, Default)]
struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// The connection breaks after this many bytes of the body, this many times.
    breaks: Option<(usize, usize)>,
    /// This status comes in its place, this many times, with the wish to wait a second.
    refuses: Option<(usize, usize)>,
    /// It stops in the middle and says no more, this many times.
    hangs: usize,
    knows_ranges: bool,
    /// Before each answer.
    delay: Duration,
}

/// What the server saw.
#[derive(Default)]
struct Log {
    seen: Mutex<Vec<Seen>>,
    /// Connections that are open, and the most that were at a time.
    open: AtomicUsize,
    most: AtomicUsize,
}

struct Open<'a>(&'a Log);

impl Log {
    fn open(&self) -> Open<'_> {
        let open = self.open.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(open, Ordering::SeqCst);
        Open(self)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A request as the server saw it: method and address, range, authorization.
#[derive(Clone, Debug)]
struct Seen {
    line: String,
    range: Option<String>,
    token: Option<String>,
}

struct Server {
    port: u16,
    answers: Arc<Mutex<BTreeMap<String, Answer>>>,
    log: Arc<Log>,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = Self { port, answers: Arc::default(), log: Arc::default() };
        let (answers, log) = (Arc::clone(&server.answers), Arc::clone(&server.log));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (answers, log) = (Arc::clone(&answers), Arc::clone(&log));
                thread::spawn(move || serve(stream.unwrap(), &answers, &log));
            }
        });
        server
    }

    fn answer(&self, address: &str, answer: Answer) {
        self.answers.lock().unwrap().insert(address.to_owned(), answer);
    }

    fn requests(&self) -> Vec<Seen> {
        self.log.seen.lock().unwrap().clone()
    }

    fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// A hub whose model `lute/tiny` has these files; those marked large are addressed by SHA-256.
    fn with_model(files: &[(&str, &[u8], bool)]) -> Self {
        let server = Self::start();
        server.publish(files, true);
        server
    }

    /// A hub whose data set `lute/songs` has these files.
    fn with_dataset(files: &[(&str, &[u8])]) -> Self {
        let server = Self::start();
        let files: Vec<_> = files.iter().map(|(name, body)| (*name, *body, true)).collect();
        server.publish_at("datasets", "datasets/lute/songs", "main", &files, true);
        server
    }

    /// `details`: whether the listing tells hashes and sizes, or only names, as some mirrors do.
    fn publish(&self, files: &[(&str, &[u8], bool)], details: bool) {
        self.publish_at("models", "lute/tiny", "main", files, details);
    }

    fn publish_at(&self, kind: &str, at: &str, revision: &str, files: &[(&str, &[u8], bool)], details: bool) {
        let mut siblings = Vec::new();
        for (name, body, large) in files {
            let etag = etag(body, *large);
            siblings.push(match (details, large) {
                (false, _) => serde_json::json!({"rfilename": name}),
                (true, false) => serde_json::json!({"rfilename": name, "size": body.len(), "blobId": etag}),
                (true, true) => serde_json::json!({
                    "rfilename": name, "size": body.len(), "blobId": "f".repeat(40),
                    "lfs": {"sha256": etag, "size": body.len(), "pointerSize": 130},
                }),
            });
            let headers =
                vec![("X-Linked-Etag", format!("\"{etag}\"")), ("X-Linked-Size", body.len().to_string())];
            let body = body.to_vec();
            let answer = Answer { status: 200, headers, body, knows_ranges: true, ..Answer::default() };
            self.answer(&format!("/{at}/resolve/{COMMIT}/{name}"), answer);
        }
        let listing = serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string();
        let id = at.trim_start_matches("datasets/");
        let address = format!("/api/{kind}/{id}/revision/{revision}?blobs=true");
        self.answer(&address, Answer { status: 200, body: listing.into_bytes(), ..Answer::default() });
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut Answer)) {
        change(self.answers.lock().unwrap().get_mut(&format!("/lute/tiny/resolve/{COMMIT}/{name}")).unwrap());
    }

    fn hub(&self, cache: &TempDir) -> Hub {
        let patience = Duration::from_secs(2);
        let mut client = Client::with(&self.endpoint(), Some("secret".into()), None, patience);
        client.first_wait = Duration::from_millis(1);
        Hub { cache: cache.path().to_owned(), offline: false, client }
    }
}

/// A made-up git hash for small files, SHA-256 for large ones.
fn etag(body: &[u8], large: bool) -> String {
    let hash: String = Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect();
    if large { hash } else { hash[..40].to_owned() }
}

fn serve(mut stream: TcpStream, answers: &Mutex<BTreeMap<String, Answer>>, log: &Log) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let Some(Ok(line)) = lines.next() else { return };
    let headers: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    let header = |name: &str| {
        headers.iter().find_map(|h| h.to_lowercase().strip_prefix(&format!("{name}: ")).map(str::to_owned))
    };
    let (method, address) = line.trim_end_matches(" HTTP/1.1").split_once(' ').unwrap();
    let range = header("range");
    log.seen.lock().unwrap().push(Seen {
        line: format!("{method} {address}"),
        range: range.clone(),
        token: header("authorization"),
    });
    let _open = log.open();
    let mut answer = Answer { status: 404, ..Answer::default() };
    if let Some(known) = answers.lock().unwrap().get_mut(address) {
        answer = known.clone();
        for times in [&mut known.breaks, &mut known.refuses].into_iter().flatten().map(|(_, times)| times) {
            *times = times.saturating_sub(1);
        }
        known.hangs = known.hangs.saturating_sub(1);
    }
    thread::sleep(answer.delay);
    if let Some((status, 1..)) = answer.refuses {
        write!(
            stream,
            "HTTP/1.1 {status} X\r\nConnection: close\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
        )
        .unwrap();
        return;
    }
    let all = answer.body.len();
    let range = range.filter(|_| answer.knows_ranges && answer.status == 200).and_then(|range| {
        let (from, to) = range.strip_prefix("bytes=")?.split_once('-')?;
        Some((from.parse::<usize>().ok()?.min(all), to.parse().map_or(all, |to: usize| to + 1).min(all)))
    });
    let (status, body, mut head) = match range {
        None => (answer.status, &answer.body[..], String::new()),
        Some((from, to)) => {
            (206, &answer.body[from..to], format!("Content-Range: bytes {from}-{}/{all}\r\n", to.max(1) - 1))
        }
    };
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let length = body.len();
    write!(stream, "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {length}\r\n{head}\r\n")
        .unwrap();
    if method == "HEAD" {
        return;
    }
    let sent = match answer.breaks {
        Some((after, 1..)) => after.min(length),
        _ => length,
    };
    // The client may have gone away because another connection failed.
    let _ = stream.write_all(&body[..if answer.hangs > 0 { length / 2 } else { sent }]);
    if answer.hangs > 0 {
        thread::sleep(Duration::from_secs(5));
    }
}

fn id() -> RepoId {
    RepoId::parse(Kind::Model, "lute/tiny").unwrap()
}

const CONFIG: &[u8] = br#"{"model_type": "llama"}"#;
const TOKENIZER: &[u8] = b"{}";
const WEIGHTS: &[u8] = b"not really weights, but long enough to break off in the middle";

fn tiny() -> Server {
    Server::with_model(&[
        ("config.json", CONFIG, false),
        ("tokenizer.json", TOKENIZER, false),
        ("model.safetensors", WEIGHTS, true),
        ("LICENSE.txt", b"free", false),
        ("pytorch_model.bin", b"never fetched", true),
        ("onnx/model.onnx", b"never fetched", true),
    ])
}

#[test]
fn a_model_is_downloaded_once_into_the_layout_of_huggingface_hub() {
    let (server, cache) = (tiny(), TempDir::new().unwrap());
    let folder = server.hub(&cache).model(&id()).unwrap();
    let repo = cache.path().join("models--lute--tiny");
    assert_eq!(folder, repo.join("snapshots").join(COMMIT));
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), WEIGHTS);
    assert_eq!(fs::read(folder.join("LICENSE.txt")).unwrap(), b"free");
    assert!(!folder.join("pytorch_model.bin").exists() && !folder.join("onnx").exists());
    assert_eq!(fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
    let blob = etag(WEIGHTS, true);
    #[cfg(unix)]
    assert_eq!(
        fs::read_link(folder.join("model.safetensors")).unwrap().to_str().unwrap(),
        format!("../../blobs/{blob}")
    );
    assert!(repo.join("blobs").join(blob).exists());

    let asked = server.requests().len();
    assert_eq!(server.hub(&cache).model(&id()).unwrap(), folder);
    assert_eq!(server.requests().len(), asked, "a complete model is used without asking again");
}

#[test]
fn many_that_download_one_model_together_all_find_it_whole() {
    for _ in 0..10 {
        let (server, cache) = (tiny(), TempDir::new().unwrap());
        thread::scope(|scope| {
            let together: Vec<_> =
                (0..8).map(|_| scope.spawn(|| server.hub(&cache).model(&id()).unwrap())).collect();
            for one in together {
                let folder = one.join().unwrap();
                assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), WEIGHTS);
            }
        });
    }
}

#[test]
fn a_connection_that_breaks_off_is_taken_up_where_it_broke() {
    let (server, cache) = (tiny(), TempDir::new().unwrap());
    server.change("model.safetensors", |answer| answer.breaks = Some((10, 3)));
    let folder = server.hub(&cache).model(&id()).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), WEIGHTS);
    let ranges: Vec<_> = server.requests().into_iter().filter_map(|seen| seen.range).collect();
    assert_eq!(ranges, ["bytes=10-61", "bytes=20-61", "bytes=30-61"]);
}

#[test]
fn a_download_given_up_is_taken_up_by_the_next_run() {
    let (server, cache) = (tiny(), TempDir::new().unwrap());
    server.change("model.safetensors", |answer| answer.breaks = Some((0, usize::MAX)));
    let blob = cache.path().join("models--lute--tiny/blobs").join(etag(WEIGHTS, true));
    fs::create_dir_all(blob.parent().unwrap()).unwrap();
    fs::write(blob.with_added_extension("incomplete"), &WEIGHTS[..7]).unwrap();
    let error = server.hub(&cache).model(&id()).unwrap_err().to_string();
    assert!(error.contains("broke off at 7 of 62 bytes") && error.contains("run again"), "{error}");

    server.change("model.safetensors", |answer| answer.breaks = None);
    let folder = server.hub(&cache).model(&id()).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), WEIGHTS);
    assert_eq!(server.requests().last().unwrap().range.as_deref(), Some("bytes=7-61"));
    assert!(!blob.with_added_extension("incomplete").exists());
}

#[test]
fn bytes_that_do_not_have_the_promised_hash_are_thrown_away() {
    let (server, cache) = (tiny(), TempDir::new().unwrap());
    server.change("model.safetensors", |answer| answer.body[3] ^= 1);
    let error = server.hub(&cache).model(&id()).unwrap_err().to_string();
    assert!(error.contains("model.safetensors was damaged on the way"), "{error}");
    let repo = cache.path().join("models--lute--tiny");
    let left = fs::read_dir(repo.join("blobs")).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(left.into_iter().all(|name| !name.to_string_lossy().starts_with(&etag(WEIGHTS, true))));
    assert!(!repo.join("refs/main").exists());
}

#[test]
fn refusals_say_what_to_do() {
    let (server, cache) = (Server::start(), TempDir::new().unwrap());
    let error = || server.hub(&cache).model(&id()).unwrap_err().to_string();
    assert!(error().contains("no such folder here") && error().contains("no revision `main`"), "{}", error());
    server.answer(LISTING, Answer { status: 401, ..Answer::default() });
    assert!(error().contains("does not accept the token"), "{}", error());
    server.answer(LISTING, Answer { status: 403, ..Answer::default() });
    assert!(error().contains("accept the model's conditions"), "{}", error());
    server.answer(LISTING, Answer { status: 503, ..Answer::default() });
    assert!(error().contains("answers 503"), "{}", error());
    server.answer(LISTING, Answer { status: 200, body: b"<html>".to_vec(), ..Answer::default() });
    assert!(error().contains("does not answer as a hub does"), "{}", error());
}

#[test]
fn without_the_network_only_the_cache_counts() {
    let (server, cache) = (tiny(), TempDir::new().unwrap());
    let offline = || Hub { offline: true, ..server.hub(&cache) };
    let error = offline().model(&id()).unwrap_err().to_string();
    assert!(error.contains("HF_HUB_OFFLINE"), "{error}");
    assert!(server.requests().is_empty());
    let folder = server.hub(&cache).model(&id()).unwrap();
    assert_eq!(offline().model(&id()).unwrap(), folder);
    let pinned = RepoId { revision: COMMIT.into(), ..id() };
    assert_eq!(offline().model(&pinned).unwrap(), folder);
}

#[test]
fn only_the_shards_that_the_index_names_are_fetched() {
    let index = br#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
    let server = Server::with_model(&[
        ("config.json", CONFIG, false),
        ("tokenizer.json", TOKENIZER, false),
        ("model.safetensors.index.json", index, false),
        ("model-00001-of-00002.safetensors", b"one", true),
        ("model-00002-of-00002.safetensors", b"two", true),
        ("consolidated.safetensors", b"the same once more", true),
    ]);
    let cache = TempDir::new().unwrap();
    let folder = server.hub(&cache).model(&id()).unwrap();
    assert_eq!(fs::read(folder.join("model-00002-of-00002.safetensors")).unwrap(), b"two");
    assert!(!folder.join("consolidated.safetensors").exists());
}

#[test]
fn names_that_lead_out_of_the_cache_are_refused() {
    for name in ["../../evil.safetensors", "/etc/passwd", "a/../../b", "a\\b", ""] {
        let server = Server::with_model(&[("config.json", CONFIG, false), (name, b"x", true)]);
        let cache = TempDir::new().unwrap();
        let error = server.hub(&cache).model(&id()).unwrap_err().to_string();
        assert!(error.contains("outside its folder"), "{name}: {error}");
    }
    let index = br#"{"weight_map": {"a": "../../x.safetensors"}}"#;
    let server =
        Server::with_model(&[("config.json", CONFIG, false), ("model.safetensors.index.json", index, false)]);
    let cache = TempDir::new().unwrap();
    let error = server.hub(&cache).model(&id()).unwrap_err().to_string();
    assert!(error.contains("outside its folder"), "{error}");

    let server = Server::start();
    for sha in ["../..", "main", ""] {
        let listing = serde_json::json!({"sha": sha, "siblings": []}).to_string();
        server.answer(LISTING, Answer { status: 200, body: listing.into_bytes(), ..Answer::default() });
        assert!(server.hub(&cache).model(&id()).unwrap_err().to_string().contains("names no commit"));
    }
}

#[test]
fn a_mirror_that_lists_names_only_is_asked_for_each_file() {
    let (server, cache) = (Server::start(), TempDir::new().unwrap());
    server.publish(
        &[
            ("config.json", CONFIG, false),
            ("tokenizer.json", TOKENIZER, false),
            ("model.safetensors", WEIGHTS, true),
        ],
        false,
    );
    let folder = server.hub(&cache).model(&id()).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), WEIGHTS);
    assert!(cache.path().join("models--lute--tiny/blobs").join(etag(WEIGHTS, true)).exists());
    assert!(server.requests().iter().any(|seen| seen.line.starts_with("HEAD ")));
}

#[test]
fn the_token_goes_to_the_hub_and_not_where_it_redirects_to() {
    let (server, storage, cache) = (tiny(), Server::start(), TempDir::new().unwrap());
    storage.answer("/weights", Answer { status: 200, body: WEIGHTS.to_vec(), ..Answer::default() });
    server.change("model.safetensors", |answer| {
        answer.status = 302;
        answer.body.clear();
        answer.headers = vec![("Location", format!("http://localhost:{}/weights", storage.port))];
    });
    server.hub(&cache).model(&id()).unwrap();
    assert!(server.requests().iter().all(|seen| seen.token.as_deref() == Some("bearer secret")));
    assert!(storage.requests().iter().all(|seen| seen.token.is_none()) && !storage.requests().is_empty());
}

/// A hub whose weights are so large that they come in segments of 16 bytes, in any order.
fn in_segments(server: &Server, cache: &TempDir) -> Hub {
    let mut hub = server.hub(cache);
    (hub.client.segment, hub.client.connections) = (16, 4);
    hub
}

/// 500 bytes, all segments of which differ.
fn long() -> Vec<u8> {
    (0..500u32).map(|n| (n * n / 7) as u8).collect()
}

fn with_long() -> Server {
    Server::with_model(&[
        ("config.json", CONFIG, false),
        ("tokenizer.json", TOKENIZER, false),
        ("model.safetensors", &long(), true),
    ])
}

#[test]
fn a_large_file_comes_in_segments_over_several_connections() {
    for delay in [0, 5] {
        let (server, cache) = (with_long(), TempDir::new().unwrap());
        server.change("model.safetensors", |answer| answer.delay = Duration::from_millis(delay));
        let folder = in_segments(&server, &cache).model(&id()).unwrap();
        assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), long());
        let of_weights =
            server.requests().into_iter().filter(|seen| seen.line.ends_with("model.safetensors"));
        let mut ranges: Vec<_> = of_weights.filter_map(|seen| seen.range).collect();
        ranges.sort();
        ranges.dedup();
        assert_eq!(ranges.len(), 500usize.div_ceil(16), "each segment is asked for once");
        if delay > 0 {
            let most = server.log.most.load(Ordering::SeqCst);
            assert!((2..=4).contains(&most), "{most} connections at a time");
        }
    }
}

#[test]
fn small_files_come_side_by_side() {
    let names: Vec<String> = (1..=8).map(|n| format!("model-{n}.safetensors")).collect();
    let map: BTreeMap<String, &String> = names.iter().map(|name| (format!("w{name}"), name)).collect();
    let index = serde_json::json!({"weight_map": map}).to_string();
    let mut files: Vec<(&str, &[u8], bool)> = vec![
        ("config.json", CONFIG, false),
        ("tokenizer.json", TOKENIZER, false),
        ("model.safetensors.index.json", index.as_bytes(), false),
    ];
    files.extend(names.iter().map(|name| (name.as_str(), name.as_bytes(), true)));
    let (server, cache) = (Server::with_model(&files), TempDir::new().unwrap());
    for name in &names {
        server.change(name, |answer| answer.delay = Duration::from_millis(50));
    }
    let folder = server.hub(&cache).model(&id()).unwrap();
    assert!(names.iter().all(|name| fs::read(folder.join(name)).unwrap() == name.as_bytes()));
    assert!(server.log.most.load(Ordering::SeqCst) > 1);
}

#[test]
fn segments_that_break_off_are_taken_up_and_a_broken_off_file_by_the_next_run() {
    let (server, cache) = (with_long(), TempDir::new().unwrap());
    server.change("model.safetensors", |answer| answer.breaks = Some((5, 9)));
    let folder = in_segments(&server, &cache).model(&id()).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), long());

    let (server, cache) = (with_long(), TempDir::new().unwrap());
    server.change("model.safetensors", |answer| answer.breaks = Some((0, usize::MAX)));
    let blob = cache.path().join("models--lute--tiny/blobs").join(etag(&long(), true));
    fs::create_dir_all(blob.parent().unwrap()).unwrap();
    fs::write(blob.with_added_extension("incomplete"), &long()[..123]).unwrap();
    let error = in_segments(&server, &cache).model(&id()).unwrap_err().to_string();
    assert!(error.contains("broke off at 123 of 500 bytes"), "{error}");
    server.change("model.safetensors", |answer| answer.breaks = None);
    let before = server.requests().len();
    let folder = in_segments(&server, &cache).model(&id()).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), long());
    let again = server.requests().split_off(before);
    let ranges: Vec<String> = again.into_iter().filter_map(|seen| seen.range).collect();
    assert!(
        ranges.contains(&"bytes=123-138".to_owned()) && !ranges.iter().any(|r| r.starts_with("bytes=0-")),
        "{ranges:?}"
    );
}

#[test]
fn what_is_on_disk_of_a_broken_off_file_is_its_beginning() {
    let (server, cache) = (with_long(), TempDir::new().unwrap());
    // One segment never comes: those before it are kept, those behind it are not, for nobody could tell what
    // lies between.
    server.change("model.safetensors", |answer| answer.hangs = 1);
    let mut hub = in_segments(&server, &cache);
    hub.client.first_wait = Duration::ZERO;
    server.change("config.json", |answer| answer.refuses = Some((403, 9)));
    hub.model(&id()).unwrap_err();
    let blob = cache.path().join("models--lute--tiny/blobs").join(etag(&long(), true));
    if let Ok(kept) = fs::read(blob.with_added_extension("incomplete")) {
        assert_eq!(kept, long()[..kept.len()]);
    }
}

#[test]
fn a_server_without_ranges_is_read_from_the_beginning_over_one_connection() {
    for there in [0, 123] {
        let (server, cache) = (with_long(), TempDir::new().unwrap());
        server.change("model.safetensors", |answer| {
            answer.knows_ranges = false;
            answer.breaks = Some((40, 2));
        });
        let blob = cache.path().join("models--lute--tiny/blobs").join(etag(&long(), true));
        fs::create_dir_all(blob.parent().unwrap()).unwrap();
        fs::write(blob.with_added_extension("incomplete"), &long()[..there]).unwrap();
        let folder = in_segments(&server, &cache).model(&id()).unwrap();
        assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), long());
        let asked = server.requests().into_iter().filter(|seen| seen.line.ends_with(".safetensors")).count();
        assert_eq!(asked, 3, "two that broke off, one that did not");
    }
}

#[test]
fn segments_that_do_not_have_the_promised_hash_together_are_thrown_away() {
    let (server, cache) = (with_long(), TempDir::new().unwrap());
    server.change("model.safetensors", |answer| answer.body[333] ^= 1);
    let error = in_segments(&server, &cache).model(&id()).unwrap_err().to_string();
    assert!(error.contains("model.safetensors was damaged on the way"), "{error}");
    server.change("model.safetensors", |answer| answer.body[333] ^= 1);
    let folder = in_segments(&server, &cache).model(&id()).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), long());
}

#[test]
fn a_hub_that_is_busy_or_hangs_is_asked_again() {
    for status in [429, 500, 503] {
        let (server, cache) = (with_long(), TempDir::new().unwrap());
        server.change("model.safetensors", |answer| answer.refuses = Some((status, 1)));
        let begun = std::time::Instant::now();
        in_segments(&server, &cache).model(&id()).unwrap();
        assert!(begun.elapsed() >= Duration::from_secs(1), "it waits as long as the hub asks for");
    }
    let (server, cache) = (with_long(), TempDir::new().unwrap());
    server.change("model.safetensors", |answer| answer.hangs = 2);
    let folder = in_segments(&server, &cache).model(&id()).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), long());

    let (server, cache) = (with_long(), TempDir::new().unwrap());
    server.change("model.safetensors", |answer| answer.status = 403);
    let error = in_segments(&server, &cache).model(&id()).unwrap_err().to_string();
    assert!(error.contains("access is refused"), "{error}");
}

#[test]
fn waits_grow_and_are_bounded() {
    let lost = Hiccup::lost("reset");
    let second = Duration::from_secs(1);
    let waits: Vec<u64> = (1..=7).map(|failures| lost.wait(second, failures).as_secs()).collect();
    assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
    assert_eq!(lost.note(2 * second), "connection lost (reset), trying again in 2 s");
}

#[test]
fn what_the_disk_has_no_room_for_is_refused_before_the_first_byte() {
    let (server, cache) = (with_long(), TempDir::new().unwrap());
    let mut hub = in_segments(&server, &cache);
    hub.client.free_space = |_| Some(400);
    let error = hub.model(&id()).unwrap_err().to_string();
    assert!(error.contains("are to be downloaded") && error.contains("has only 400 B free"), "{error}");
    assert!(server.requests().iter().all(|seen| seen.line.contains("/api/")), "{:?}", server.requests());
    // What is there already needs no room.
    let blob = cache.path().join("models--lute--tiny/blobs").join(etag(&long(), true));
    fs::create_dir_all(blob.parent().unwrap()).unwrap();
    fs::write(blob.with_added_extension("incomplete"), &long()[..200]).unwrap();
    hub.model(&id()).unwrap();
}

#[test]
fn sizes_that_no_disk_has_are_no_fault_of_ours() {
    let (server, cache) = (Server::start(), TempDir::new().unwrap());
    let file =
        |name: &str| serde_json::json!({"rfilename": name, "size": u64::MAX, "blobId": "a".repeat(40)});
    let siblings = ["config.json", "model.safetensors"].map(file);
    let listing = serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string();
    server.answer(LISTING, Answer { status: 200, body: listing.into_bytes(), ..Answer::default() });
    let error = server.hub(&cache).model(&id()).unwrap_err().to_string();
    assert!(error.contains("are to be downloaded"), "{error}");
}

#[test]
fn an_adapter_is_found_by_its_id_and_by_looking() {
    let files: [(&str, &[u8], bool); 6] = [
        ("adapter_config.json", b"{}", false),
        ("adapter_model.safetensors", WEIGHTS, true),
        ("chat_template.jinja", b"{{ messages }}", false),
        ("run.yaml", b"model: x", false),
        ("optimizer.pt", b"never fetched", true),
        ("checkpoint-3/adapter_model.safetensors", b"never fetched", true),
    ];
    let adapter = RepoId { kind: Kind::Adapter, ..id() };
    for look in [false, true] {
        let (server, cache) = (Server::with_model(&files), TempDir::new().unwrap());
        let find = |hub: Hub| match look {
            false => hub.adapter(&adapter).unwrap(),
            true => hub.model_or_adapter(&id()).unwrap(),
        };
        let folder = find(server.hub(&cache));
        for name in ["adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "run.yaml"] {
            assert!(folder.join(name).exists(), "{name}");
        }
        assert!(!folder.join("optimizer.pt").exists() && !folder.join("checkpoint-3").exists());
        let asked = server.requests().len();
        assert_eq!(find(server.hub(&cache)), folder);
        assert_eq!(find(Hub { offline: true, ..server.hub(&cache) }), folder);
        assert_eq!(server.requests().len(), asked, "a whole adapter is used without asking again");
    }
    let (server, cache) = (tiny(), TempDir::new().unwrap());
    let error = server.hub(&cache).adapter(&adapter).unwrap_err().to_string();
    assert!(error.contains("is no adapter"), "{error}");
    for path in ["./nowhere/adapter", "nowhere", "a/b/c", "/nowhere"] {
        let error = resolve_adapter(path).unwrap_err().to_string();
        assert_eq!(error, format!("no such folder: {path}"));
    }
}

fn songs(part: &str) -> DatasetName {
    DatasetName::parse(&format!("lute/songs{part}")).unwrap()
}

#[test]
fn a_data_sets_split_is_downloaded_once_into_a_cache_that_python_reads() {
    let (one, two, test): (&[u8], &[u8], &[u8]) = (b"{\"text\": \"a\"}\n", b"{\"text\": \"b\"}\n", b"{}\n");
    let files = [
        ("README.md", &b"# Songs"[..]),
        ("data/train-00000-of-00002.jsonl", one),
        ("data/train-00001-of-00002.jsonl", two),
        ("data/test-00000-of-00001.jsonl", test),
    ];
    let (server, cache) = (Server::with_dataset(&files), TempDir::new().unwrap());
    let found = server.hub(&cache).dataset(&songs("")).unwrap();
    let root = cache.path().join("datasets--lute--songs");
    assert_eq!(found.folder, root.join("snapshots").join(COMMIT));
    let read: Vec<Vec<u8>> = found.files.iter().map(|file| fs::read(file).unwrap()).collect();
    assert_eq!(read, [one, two]);
    assert!(!found.folder.join("data/test-00000-of-00001.jsonl").exists(), "only the split is fetched");

    let asked = server.requests().len();
    assert_eq!(server.hub(&cache).dataset(&songs(":train")).unwrap().files, found.files);
    assert_eq!(server.requests().len(), asked, "a whole split is used without asking again");
    let offline = || Hub { offline: true, ..server.hub(&cache) };
    let error = offline().dataset(&songs(":test")).err().unwrap().to_string();
    assert!(error.contains("HF_HUB_OFFLINE"), "{error}");
    // Another split is of the commit that is here, whatever the branch is now.
    let listing = "/api/datasets/lute/songs/revision";
    server.answer(&format!("{listing}/main?blobs=true"), Answer { status: 500, ..Answer::default() });
    server.publish_at("datasets", "datasets/lute/songs", COMMIT, &files.map(|(n, b)| (n, b, true)), true);
    let more = server.hub(&cache).dataset(&songs(":test")).unwrap();
    assert_eq!(fs::read(&more.files[0]).unwrap(), test);
    assert_eq!(offline().dataset(&songs(":test")).unwrap().files, more.files);
    let error = offline().dataset(&songs(":validation")).err().unwrap().to_string();
    assert!(error.contains("lute/songs: there is no split `validation`; name one of test, train"), "{error}");
    // What Python fetched is all there is to go by where this program has noted nothing.
    fs::remove_dir_all(root.join(".luthier")).unwrap();
    assert_eq!(offline().dataset(&songs("")).unwrap().files, found.files);
}

#[test]
fn the_card_of_a_data_set_says_which_files_are_a_split() {
    let card =
        b"---\nconfigs:\n- config_name: all\n  data_files:\n  - split: train\n    path: songs/*.jsonl\n---\n";
    let files = [("README.md", &card[..]), ("songs/a.jsonl", b"{}\n"), ("other/train.jsonl", b"{}\n")];
    let (server, cache) = (Server::with_dataset(&files), TempDir::new().unwrap());
    let found = server.hub(&cache).dataset(&songs("")).unwrap();
    assert_eq!(found.files, [found.folder.join("songs/a.jsonl")]);
    let none = Server::with_dataset(&[("songs.py", b"script")]);
    let error = none.hub(&TempDir::new().unwrap()).dataset(&songs("")).err().unwrap().to_string();
    assert!(error.contains("lute/songs: no files with examples"), "{error}");
}

#[test]
fn names_of_data_sets_are_told_from_paths() {
    for id in [
        "a/b",
        "a/b:test",
        "a/b@v1:test",
        "a/b:main/test",
        "a/b.v2",
        "HuggingFaceH4/ultrachat_200k:train_sft",
    ] {
        assert!(DatasetName::parse(id).is_some(), "{id}");
    }
    for path in [
        "a",
        "./a/b",
        "/a/b",
        "~/a",
        "a/b/c",
        "data/train.jsonl",
        "data/train.csv",
        "data/t.jsonl.gz",
        "data/*.x",
        "-",
        "a/b:",
        "a/b:../x",
        "a/b:x/y/z",
        "C:\\a\\b",
        "a/b:c\n",
    ] {
        assert!(DatasetName::parse(path).is_none(), "{path}");
    }
}

#[test]
fn arguments_are_told_apart() {
    let parsed = RepoId::parse(Kind::Model, "meta-llama/Llama-3.2-1B@refs/pr/1").unwrap();
    assert_eq!((parsed.owner.as_str(), parsed.revision.as_str()), ("meta-llama", "refs/pr/1"));
    for bad in ["a/b/c", "a", "../b", "a/..", "a/b@", "a/b@../x", "a/b@/x", "-a/b", "a/b c", "a/.b", "ä/b"] {
        assert!(RepoId::parse(Kind::Model, bad).is_err(), "{bad}");
    }
    for path in ["./nowhere/model", "/nowhere/model", "../nowhere", "nowhere", "~/nowhere", ""] {
        let error = resolve_model(path).unwrap_err().to_string();
        assert!(error.starts_with("no such folder: "), "{path}: {error}");
    }
    let folder = TempDir::new().unwrap();
    assert_eq!(resolve_model(folder.path().to_str().unwrap()).unwrap(), folder.path());
    let file = folder.path().join("model.gguf");
    fs::write(&file, "x").unwrap();
    assert_eq!(resolve_model(file.to_str().unwrap()).unwrap(), file);
    let file = folder.path().join("model.bin");
    fs::write(&file, "x").unwrap();
    assert!(resolve_model(file.to_str().unwrap()).unwrap_err().to_string().contains("is a file"));
}

#[test]
fn the_environment_is_read_as_huggingface_hub_reads_it() {
    let hub = |variables: &[(&str, &str)]| {
        let variables: BTreeMap<String, String> =
            variables.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Hub::from_environment(|name| variables.get(name).cloned()).unwrap()
    };
    let cache = |variables: &[(&str, &str)]| hub(variables).cache.to_str().unwrap().to_owned();
    assert_eq!(cache(&[("HOME", "/h")]), "/h/.cache/huggingface/hub");
    assert_eq!(cache(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), "/x/huggingface/hub");
    assert_eq!(cache(&[("HOME", "/h"), ("HF_HOME", "~/models")]), "/h/models/hub");
    assert_eq!(cache(&[("HF_HOME", "/m"), ("HF_HUB_CACHE", "/c")]), "/c");
    assert!(hub(&[("HOME", "/h"), ("HF_HUB_OFFLINE", "yes")]).offline);
    assert!(!hub(&[("HOME", "/h"), ("HF_HUB_OFFLINE", "0")]).offline);
}
