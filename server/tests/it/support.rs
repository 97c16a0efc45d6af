//! A server with a tiny tokenizer and a scripted worker, and a client that sees every byte.

#[path = "../../../data/tests/fixtures/tokenizer.rs"]
mod byte_tokenizer;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use compute::Device;
use data::{ChatTemplate, Tokenizer};
use infer::{Adapter, Allowed, Ask, Event, Finish, InferError, Load, Logprobs, RequestId};
use model::Layout;
use serde_json::{Map, Value, json};
use server::tuning::Tuner;
use server::{
    Adam, Chat, Limits, LoadedAdapter, Lora, Pass, Passed, Place, Refused, ServerError, Setup, Stops,
    Tenants, Trainer, Training, Words, Worker,
};
use tempfile::TempDir;

pub(crate) const BEGIN: u32 = 260;
pub(crate) const END: u32 = 262;
pub(crate) const VOCAB: u32 = 263;
pub(crate) const CONTEXT: usize = 128;
/// What the worker says to everything, with the adapter's letter before it.
pub(crate) const SAYS: &str = "hello world";

const TEMPLATE: &str = "{% if tools %}{{ tools | tojson }}{% endif %}{% for message in messages %}{{ '<|im_start|>' + \
    message.role + '\\n' + message.content + '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}\
    {{ '<|im_start|>assistant\\n' }}{% endif %}";

/// The tokenizer that the tests of the binary have, too.
pub(crate) fn tokenizer() -> Tokenizer {
    let config = json!({"bos_token": "<|begin|>", "eos_token": "<|im_end|>"}).as_object().unwrap().clone();
    let file = byte_tokenizer::tokenizer().to_string();
    Tokenizer::from_objects("t".as_ref(), file.as_bytes(), &config, &Map::new()).unwrap()
}

pub(crate) fn encode(text: &str) -> Vec<u32> {
    tokenizer().encode(text, false).unwrap().ids
}

/// What a test sees of the worker, and does to it.
#[derive(Default)]
pub(crate) struct Script {
    /// All that was asked.
    pub(crate) asks: Vec<Ask>,
    /// Requests that were cancelled.
    pub(crate) cancelled: Vec<RequestId>,
    /// What owners of requests weigh.
    pub(crate) weights: BTreeMap<u64, f64>,
    /// A pause before each step.
    pub(crate) pause: Duration,
    /// Requests in hand.
    pub(crate) running: usize,
    /// How many requests are worked on at once; 0: all.
    pub(crate) lanes: usize,
    /// Whether the next step fails.
    pub(crate) breaks: bool,
    /// What the worker says instead of [`SAYS`].
    pub(crate) says: Option<String>,
}

/// Says [`SAYS`], or without end where the prompt has a `!`, a token of each request a step.
struct Scripted {
    script: Arc<Mutex<Script>>,
    context: usize,
    next: RequestId,
    running: BTreeMap<RequestId, (Ask, Vec<u32>, Option<usize>)>,
}

impl Worker for Scripted {
    fn submit(&mut self, ask: Ask) -> Result<RequestId, InferError> {
        if ask.prompt.is_empty() {
            return Err(InferError::EmptyPrompt);
        }
        if ask.prompt.len() > self.context {
            return Err(InferError::PromptTooLong { prompt: ask.prompt.len(), context: self.context });
        }
        if let Some(&token) = ask.prompt.iter().find(|token| **token >= VOCAB) {
            return Err(InferError::UnknownToken { token, vocab_size: VOCAB as usize });
        }
        let mut says: Vec<u32> = ask.adapter.iter().map(|adapter| adapter.dropout as u32).collect();
        match ask.prompt.contains(&33) {
            true => says.extend([97].repeat(CONTEXT)),
            false => {
                let text = self.script.lock().unwrap().says.clone();
                says.extend(encode(text.as_deref().unwrap_or(SAYS)).into_iter().chain([END]));
            }
        }
        self.next += 1;
        self.script.lock().unwrap().asks.push(ask.clone());
        self.running.insert(self.next, (ask, says, None));
        Ok(self.next)
    }

    fn cancel(&mut self, id: RequestId) {
        if self.running.remove(&id).is_some() {
            self.script.lock().unwrap().cancelled.push(id);
        }
    }

    fn set_weight(&mut self, owner: u64, weight: f64) {
        self.script.lock().unwrap().weights.insert(owner, weight);
    }

    fn step(&mut self) -> Vec<(RequestId, Event)> {
        let (pause, lanes, breaks) = {
            let mut script = self.script.lock().unwrap();
            script.running = self.running.len();
            (script.pause, script.lanes, script.breaks)
        };
        assert!(!breaks, "the worker was told to break");
        std::thread::sleep(pause);
        let mut events = Vec::new();
        for (&id, (ask, says, told)) in
            self.running.iter_mut().take(if lanes > 0 { lanes } else { usize::MAX })
        {
            let Some(at) = told else {
                let logprobs = ask
                    .prompt_logprobs
                    .map(|top| ask.prompt[1..].iter().map(|&token| logprobs(token, top)).collect());
                events.push((id, Event::Prompt { cached: 1, logprobs: logprobs.unwrap_or_default() }));
                *told = Some(0);
                if ask.max_tokens == 0 {
                    events.push((id, Event::End(Finish::Length)));
                }
                continue;
            };
            let mut token = says[*at % says.len()];
            if let Some(constraint) = &mut ask.constraint {
                match constraint.allowed() {
                    Ok(allowed) => token = keep_to(&allowed, token),
                    Err(reason) => {
                        events.push((id, Event::Failed(InferError::Constraint(reason))));
                        continue;
                    }
                }
            }
            *at += 1;
            if ask.stop.contains(&token) {
                events.push((id, Event::End(Finish::Stop)));
                continue;
            }
            events.push((id, Event::Token { token, logprobs: ask.logprobs.map(|top| logprobs(token, top)) }));
            let is_over = ask.constraint.as_mut().is_some_and(|constraint| {
                constraint.accept(token).unwrap();
                constraint.is_over()
            });
            if is_over {
                events.push((id, Event::End(Finish::Stop)));
            } else if *at == ask.max_tokens {
                events.push((id, Event::End(Finish::Length)));
            }
        }
        for (id, event) in &events {
            if matches!(event, Event::End(_) | Event::Failed(_)) {
                self.running.remove(id);
            }
        }
        events
    }

    fn is_idle(&self) -> bool {
        self.running.is_empty()
    }

    fn load(&self) -> Load {
        Load { running: self.running.len(), used_pages: self.running.len(), pages: 8, ..Load::default() }
    }
}

/// The token that is wanted if it may come; else the end if that may come, or the first token that may.
fn keep_to(allowed: &Allowed, wanted: u32) -> u32 {
    let may_come = |token: &u32| allowed.has(*token) || (*token == END && allowed.may_end);
    [wanted, END].into_iter().chain(0..VOCAB).find(may_come).expect("something may come")
}

/// As if each token were as likely as its id is small, and its neighbours a little less.
pub(crate) fn logprobs(token: u32, top: usize) -> Logprobs {
    let logprob = -(token as f32) / 256.0;
    let top = (0..top as u32).map(|i| ((token + i) % 256, logprob - i as f32)).collect();
    Logprobs { token, logprob, top }
}

/// What a test sees of the one that trains, and does to it.
#[derive(Default)]
pub(crate) struct Taught {
    /// All calls, in order, as `step MODEL` and the like.
    pub(crate) calls: Vec<String>,
    /// The passes that went together.
    pub(crate) passes: Vec<Vec<Pass>>,
    /// A pause before each call.
    pub(crate) pause: Duration,
}

/// Knows each target by its id alone, and writes adapters that the tests' loader reads.
struct Teacher(Arc<Mutex<Taught>>);

impl Teacher {
    fn note(&self, call: String) {
        let pause = self.0.lock().unwrap().pause;
        std::thread::sleep(pause);
        self.0.lock().unwrap().calls.push(call);
    }
}

impl Trainer for Teacher {
    fn create(&mut self, model: &str, lora: Lora) -> Result<(), Refused> {
        self.note(format!("create {model} {lora:?}"));
        match lora.rank {
            0..=64 => Ok(()),
            rank => Err(Refused { message: format!("no room for rank {rank}"), is_of_request: true }),
        }
    }

    fn remove(&mut self, model: &str) {
        self.note(format!("remove {model}"));
    }

    fn pass(&mut self, passes: Vec<Pass>) -> Vec<Result<Passed, Refused>> {
        self.note("pass".into());
        self.0.lock().unwrap().passes.push(passes.clone());
        let of = |pass: &Pass| {
            let logprobs = |ids: &[u32]| ids.iter().map(|&id| -(id as f32) / 64.0).collect();
            let logprobs: Vec<Vec<f32>> = pass.examples.iter().map(|e| logprobs(&e.targets)).collect();
            let weights = pass.examples.iter().flat_map(|example| &example.weights);
            let loss = weights.zip(logprobs.iter().flatten()).map(|(w, p)| -f64::from(w * p)).sum();
            match pass.examples.iter().any(|example| example.ids.contains(&VOCAB)) {
                true => Err(Refused { message: format!("there is no token {VOCAB}"), is_of_request: true }),
                false => Ok(Passed { loss, logprobs }),
            }
        };
        passes.iter().map(of).collect()
    }

    fn step(&mut self, model: &str, adam: Adam) -> Result<f64, Refused> {
        self.note(format!("step {model} {adam:?}"));
        Ok(1.5)
    }

    fn save(&mut self, model: &str, folder: &Path, with_optimizer: bool) -> Result<(), Refused> {
        self.note(format!("save {model} {with_optimizer}"));
        adapter(folder, 'z', 1);
        Ok(())
    }

    fn load(&mut self, model: &str, folder: &Path, with_optimizer: bool) -> Result<(), Refused> {
        self.note(format!("load {model} {with_optimizer} {}", folder.join("adapter_config.json").is_file()));
        Ok(())
    }
}

/// What a server is started with.
pub(crate) struct Start {
    pub(crate) tenants: Tenants,
    pub(crate) limits: Limits,
    pub(crate) adapters: Vec<(String, PathBuf)>,
    pub(crate) root: Option<PathBuf>,
    pub(crate) bytes: Option<u64>,
    pub(crate) state: Option<PathBuf>,
    pub(crate) tuner: Option<Arc<dyn Tuner>>,
    pub(crate) has_template: bool,
    pub(crate) template: String,
    /// What computes instead of the script.
    pub(crate) worker: Option<Box<dyn Worker>>,
    pub(crate) load_time: Duration,
}

impl Default for Start {
    fn default() -> Self {
        Start {
            tenants: Tenants::open_to_all(),
            limits: Limits {
                drain_time: Duration::from_secs(5),
                least_training: Duration::ZERO,
                ..Limits::of_context(CONTEXT)
            },
            adapters: Vec::new(),
            root: None,
            bytes: None,
            state: None,
            tuner: None,
            has_template: true,
            template: TEMPLATE.into(),
            worker: None,
            load_time: Duration::ZERO,
        }
    }
}

/// A running server, which ends with the test.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) script: Arc<Mutex<Script>>,
    /// What was asked of the one that trains.
    pub(crate) taught: Arc<Mutex<Taught>>,
    /// How often an adapter was read.
    pub(crate) loads: Arc<Mutex<usize>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<(), ServerError>>>,
}

/// A folder as the tests' loader reads it: what it says, and its size.
pub(crate) fn adapter(folder: &Path, letter: char, bytes: u64) -> PathBuf {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("adapter_config.json"), json!({"letter": letter, "bytes": bytes}).to_string())
        .unwrap();
    folder.to_owned()
}

fn load(path: &Path) -> Result<LoadedAdapter, String> {
    let text = fs::read_to_string(path.join("adapter_config.json")).map_err(|error| error.to_string())?;
    let config: Value =
        serde_json::from_str(&text).map_err(|error| format!("adapter_config.json: {error}"))?;
    let letter = config["letter"].as_str().ok_or("no letter")?.as_bytes()[0];
    let adapter = Adapter::zeros(Layout::default(), f32::from(letter), &Device::cpu(1));
    let bytes = config["bytes"].as_u64().unwrap();
    Ok(LoadedAdapter { adapter: Arc::new(adapter), rank: 8, bytes, chat: None })
}

impl Server {
    pub(crate) fn start() -> Self {
        Server::with(Start::default())
    }

    /// With one of the built-in templates, and room for what it writes.
    pub(crate) fn with_template(name: &str) -> Self {
        let template = ChatTemplate::builtin(name).unwrap().source().to_owned();
        Server::with(Start { template, limits: Limits::of_context(4096), ..Start::default() })
    }

    /// Has the worker say something.
    pub(crate) fn says(&self, text: &str) {
        self.script.lock().unwrap().says = Some(text.to_owned());
    }

    pub(crate) fn with(start: Start) -> Self {
        Server::try_with(start).unwrap_or_else(|error| panic!("{error}"))
    }

    pub(crate) fn try_with(start: Start) -> Result<Self, ServerError> {
        let Start {
            tenants,
            limits,
            adapters,
            root,
            bytes,
            state,
            tuner,
            has_template,
            template,
            worker,
            load_time,
        } = start;
        let place = Place::take("127.0.0.1", 0, &tenants)?;
        let (script, loads) = (Arc::new(Mutex::new(Script::default())), Arc::new(Mutex::new(0)));
        let tokenizer = Arc::new(tokenizer());
        let stops = Stops { tokens: vec![END], text: None };
        let template = || ChatTemplate::compile(&template, "test").unwrap().with_special_tokens(&tokenizer);
        let chat = has_template.then(|| Chat::new(template(), stops.clone()));
        let taught = Arc::new(Mutex::new(Taught::default()));
        let teacher = Arc::clone(&taught);
        let counted = Arc::clone(&loads);
        let scripted: Box<dyn Worker> = Box::new(Scripted {
            script: Arc::clone(&script),
            context: limits.context,
            next: 0,
            running: BTreeMap::new(),
        });
        let setup = Setup {
            model: "base".into(),
            worker: worker.unwrap_or(scripted),
            words: Words::new(Arc::clone(&tokenizer), stops, chat),
            loader: Box::new(move |path| {
                *counted.lock().unwrap() += 1;
                std::thread::sleep(load_time);
                load(path)
            }),
            adapters,
            adapter_root: root,
            adapter_bytes: bytes,
            state,
            tuner,
            training: Some(Training {
                begin: Box::new(move || Ok(Box::new(Teacher(teacher)))),
                models: 2,
                tokenizer: Some("/models/base".into()),
            }),
            tenants,
            limits,
        };
        let stop = Arc::new(AtomicBool::new(false));
        let (listening, listens) = mpsc::channel();
        let flag = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            server::serve(place, setup, &flag, |address| listening.send(address).unwrap())
        });
        match listens.recv() {
            Ok(address) => Ok(Server { address, script, taught, loads, stop, thread: Some(thread) }),
            Err(_) => Err(thread.join().unwrap().unwrap_err()),
        }
    }

    pub(crate) fn ask_to_end(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Waits for the server's end.
    pub(crate) fn end(&mut self) -> Result<(), ServerError> {
        self.ask_to_end();
        self.thread.take().unwrap().join().unwrap()
    }

    pub(crate) fn connect(&self) -> TcpStream {
        connect(self.address)
    }

    /// Sends a request whose connection ends with it.
    pub(crate) fn send(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> TcpStream {
        send(self.address, method, path, headers, body)
    }

    pub(crate) fn raw(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Reply {
        Reply::read(self.send(method, path, headers, body))
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        self.raw("GET", path, "", b"")
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Reply {
        self.raw("POST", path, "Content-Type: application/json\r\n", body.to_string().as_bytes())
    }

    pub(crate) fn post_with(&self, key: &str, path: &str, body: &Value) -> Reply {
        self.raw("POST", path, &format!("Authorization: Bearer {key}\r\n"), body.to_string().as_bytes())
    }

    pub(crate) fn get_with(&self, key: &str, path: &str) -> Reply {
        self.raw("GET", path, &format!("Authorization: Bearer {key}\r\n"), b"")
    }

    /// The text of a completion.
    pub(crate) fn complete(&self, model: &str) -> String {
        let reply = self.post("/v1/completions", &json!({"model": model, "prompt": "x"}));
        reply.json(200)["choices"][0]["text"].as_str().unwrap().to_owned()
    }

    /// Waits until something holds of the worker.
    #[track_caller]
    pub(crate) fn wait(&self, holds: impl Fn(&Script) -> bool) {
        let begun = Instant::now();
        while !holds(&self.script.lock().unwrap()) {
            assert!(begun.elapsed() < Duration::from_secs(10), "what was waited for never came");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ask_to_end();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// Sends a request whose connection ends with it.
pub(crate) fn send(address: SocketAddr, method: &str, path: &str, headers: &str, body: &[u8]) -> TcpStream {
    let mut stream = connect(address);
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    // A server that has heard enough may close before all of it is written.
    let _ = stream.write_all(body);
    stream
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn read(mut stream: TcpStream) -> Self {
        let mut bytes = Vec::new();
        let mut piece = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut piece) {
            bytes.extend_from_slice(&piece[..count]);
        }
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head in {text:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let head = head.to_ascii_lowercase();
        let body = match head.contains("transfer-encoding: chunked") {
            true => whole(body),
            false => body.to_owned(),
        };
        Reply { status, head, body }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    #[track_caller]
    pub(crate) fn json(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.body);
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The message of an error, which must be about a field.
    #[track_caller]
    pub(crate) fn error(&self, status: u16, param: Option<&str>) -> String {
        let error = self.json(status)["error"].clone();
        assert_eq!(error["param"].as_str(), param, "{error}");
        assert!(error["type"].is_string() && error.get("code").is_some(), "{error}");
        error["message"].as_str().unwrap().to_owned()
    }

    /// The events of a stream, the last of which says that it is done.
    #[track_caller]
    pub(crate) fn events(&self) -> Vec<Value> {
        assert_eq!((self.status, self.header("content-type")), (200, Some("text/event-stream")));
        let mut events: Vec<&str> = self
            .body
            .split("\n\n")
            .filter(|event| !event.is_empty())
            .map(|event| event.strip_prefix("data: ").unwrap())
            .collect();
        assert_eq!(events.pop(), Some("[DONE]"), "{}", self.body);
        events.iter().map(|event| serde_json::from_str(event).unwrap()).collect()
    }
}

/// A body out of its chunks.
fn whole(mut chunks: &str) -> String {
    let mut body = String::new();
    while let Some((size, rest)) = chunks.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        body.push_str(&rest[..size]);
        chunks = rest[size..].strip_prefix("\r\n").unwrap_or_default();
    }
    body
}

/// A folder for a test.
pub(crate) fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}
