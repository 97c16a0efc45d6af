//! The hub, played by a small server on this machine that can break off, lie and refuse.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{fs, thread};

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::download::Client;
use super::{Hub, ModelId, resolve_model};

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
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = Self { port, answers: Arc::default(), seen: Arc::default() };
        let (answers, seen) = (Arc::clone(&server.answers), Arc::clone(&server.seen));
        thread::spawn(move || {
            for stream in listener.incoming() {
                serve(stream.unwrap(), &answers, &seen);
            }
        });
        server
    }

    fn answer(&self, address: &str, answer: Answer) {
        self.answers.lock().unwrap().insert(address.to_owned(), answer);
    }

    fn requests(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
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

    /// `details`: whether the listing tells hashes and sizes, or only names, as some mirrors do.
    fn publish(&self, files: &[(&str, &[u8], bool)], details: bool) {
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
            let answer = Answer { status: 200, headers, body: body.to_vec(), breaks: None };
            self.answer(&format!("/lute/tiny/resolve/{COMMIT}/{name}"), answer);
        }
        let listing = serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string();
        self.answer(LISTING, Answer { status: 200, body: listing.into_bytes(), ..Answer::default() });
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut Answer)) {
        change(self.answers.lock().unwrap().get_mut(&format!("/lute/tiny/resolve/{COMMIT}/{name}")).unwrap());
    }

    fn hub(&self, cache: &TempDir) -> Hub {
        let mut client = Client::with_proxy(&self.endpoint(), Some("secret".into()), None);
        client.first_wait = Duration::from_millis(1);
        Hub { cache: cache.path().to_owned(), offline: false, client }
    }
}

/// A made-up git hash for small files, SHA-256 for large ones.
fn etag(body: &[u8], large: bool) -> String {
    let hash: String = Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect();
    if large { hash } else { hash[..40].to_owned() }
}

fn serve(mut stream: TcpStream, answers: &Mutex<BTreeMap<String, Answer>>, seen: &Mutex<Vec<Seen>>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let Some(Ok(line)) = lines.next() else { return };
    let headers: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    let header = |name: &str| {
        headers.iter().find_map(|h| h.to_lowercase().strip_prefix(&format!("{name}: ")).map(str::to_owned))
    };
    let (method, address) = line.trim_end_matches(" HTTP/1.1").split_once(' ').unwrap();
    let range = header("range");
    seen.lock().unwrap().push(Seen {
        line: format!("{method} {address}"),
        range: range.clone(),
        token: header("authorization"),
    });
    let mut answers = answers.lock().unwrap();
    let missing = &mut Answer { status: 404, ..Answer::default() };
    let answer = answers.get_mut(address).unwrap_or(missing);
    let from = range.and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()).unwrap_or(0);
    let body = &answer.body[from.min(answer.body.len())..];
    let (status, mut head) = match from {
        0 => (answer.status, String::new()),
        _ => {
            (206, format!("Content-Range: bytes {from}-{}/{}\r\n", answer.body.len() - 1, answer.body.len()))
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
    match &mut answer.breaks {
        Some((after, times @ 1..)) => {
            *times -= 1;
            stream.write_all(&body[..(*after).min(body.len())]).unwrap();
        }
        _ => stream.write_all(body).unwrap(),
    }
}

fn id() -> ModelId {
    ModelId::parse("lute/tiny").unwrap()
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
    assert_eq!(ranges, ["bytes=10-", "bytes=20-", "bytes=30-"]);
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
    assert_eq!(server.requests().last().unwrap().range.as_deref(), Some("bytes=7-"));
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
    let pinned = ModelId { revision: COMMIT.into(), ..id() };
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

#[test]
fn arguments_are_told_apart() {
    let parsed = ModelId::parse("meta-llama/Llama-3.2-1B@refs/pr/1").unwrap();
    assert_eq!((parsed.owner.as_str(), parsed.revision.as_str()), ("meta-llama", "refs/pr/1"));
    for bad in ["a/b/c", "a", "../b", "a/..", "a/b@", "a/b@../x", "a/b@/x", "-a/b", "a/b c", "a/.b", "ä/b"] {
        assert!(ModelId::parse(bad).is_err(), "{bad}");
    }
    for path in ["./nowhere/model", "/nowhere/model", "../nowhere", "nowhere", "~/nowhere", ""] {
        let error = resolve_model(path).unwrap_err().to_string();
        assert!(error.starts_with("no such folder: "), "{path}: {error}");
    }
    let folder = TempDir::new().unwrap();
    assert_eq!(resolve_model(folder.path().to_str().unwrap()).unwrap(), folder.path());
    let file = folder.path().join("model.gguf");
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
