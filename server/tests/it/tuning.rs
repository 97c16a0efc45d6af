//! Files and fine-tuning jobs, with a scripted trainer.

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use server::tuning::{Ended, Plan, Setting, Task, Told, Tuner};
use server::{Limits, Tenants};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::support::{Reply, Server, Start, adapter, folder};

/// What a test sees of the trainer, and does to it.
#[derive(Default)]
pub(crate) struct Script {
    /// The ids of the jobs of each round.
    rounds: Vec<Vec<String>>,
    /// Whether runs go on until they are stopped.
    pub(crate) lasts: bool,
    /// Jobs that end nevertheless.
    ending: Vec<String>,
    /// Jobs that are a fault of whatever trains them.
    culprits: Vec<String>,
    /// Jobs that there is room for at once, if not for all.
    room: Option<usize>,
    /// Rounds in which there is no room on the disk.
    full: usize,
    /// What is wrong with all input.
    refuses: Option<String>,
    /// Whether what steps came to is lost.
    forgets: bool,
}

impl Script {
    /// Whether this is a round without room on the disk.
    fn is_full(&mut self) -> bool {
        let is_full = self.full > 0;
        self.full = self.full.saturating_sub(1);
        is_full
    }
}

#[derive(Clone, Default)]
pub(crate) struct Scripted(pub(crate) Arc<Mutex<Script>>);

fn name(task: &Task) -> String {
    task.folder.file_name().unwrap().to_str().unwrap().to_owned()
}

impl Tuner for Scripted {
    fn check(&self, settings: &[Setting], _rate: f64, held_out: bool) -> Result<(), (String, String)> {
        let wrong = |setting: &&Setting| match setting.key.as_str() {
            "adapter.r" => setting.value == json!(0),
            "training.eval_every" => !held_out,
            _ => false,
        };
        match settings.iter().find(wrong) {
            Some(setting) => Err((setting.field.clone(), "cannot be so".into())),
            None => Ok(()),
        }
    }

    fn plan(&self, task: &Task) -> Result<Plan, String> {
        assert!(task.training.is_file());
        match self.0.lock().unwrap().refuses.clone() {
            Some(why) => Err(why),
            None => Ok(Plan { epochs: 3, batch_size: 4, learning_rate: 1e-4, steps: 2, seed: 7 }),
        }
    }

    fn train(&self, tasks: &[Task], tell: &mut dyn FnMut(usize, Told)) -> Result<(), String> {
        let room = {
            let mut script = self.0.lock().unwrap();
            script.rounds.push(tasks.iter().map(name).collect());
            script.room.unwrap_or(tasks.len())
        };
        let mut going: Vec<(usize, &Task)> = tasks.iter().enumerate().take(room).collect();
        for &(place, task) in &going {
            tell(place, Told::Started { step: 0, steps: 2 });
            tell(place, Told::Step { step: 1, loss: 2.5, grad_norm: 1.0, learning_rate: 1e-4 });
            tell(place, Told::Evaluated { step: 1, loss: 2.25 });
            let checkpoint = adapter(&task.folder.join("checkpoints/step-1"), 'c', 8);
            tell(place, Told::Saved(checkpoint));
        }
        if self.0.lock().unwrap().is_full() {
            going.iter().for_each(|&(place, _)| tell(place, Told::Ended(Ended::Full)));
            return Ok(());
        }
        let begun = Instant::now();
        loop {
            let (lasts, ending, culprits) = {
                let script = self.0.lock().unwrap();
                (script.lasts, script.ending.clone(), script.culprits.clone())
            };
            if let Some((_, task)) = going.iter().find(|(_, task)| culprits.contains(&name(task))) {
                panic!("{} was told to break", task.folder.display());
            }
            going.retain(|&(place, task)| {
                if task.stop.load(Ordering::Relaxed) {
                    tell(place, Told::Ended(Ended::Interrupted));
                } else if !lasts || ending.contains(&name(task)) {
                    tell(place, Told::Step { step: 2, loss: 2.0, grad_norm: 1.0, learning_rate: 0.0 });
                    adapter(&task.folder, 'z', 8);
                    tell(place, Told::Ended(Ended::Finished { tokens: 77 }));
                } else {
                    return true;
                }
                false
            });
            if going.is_empty() {
                return Ok(());
            }
            assert!(begun.elapsed() < Duration::from_secs(10), "nobody stopped the jobs");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn metrics(&self, _task: &Task) -> Result<Vec<Value>, String> {
        if self.0.lock().unwrap().forgets {
            return Err("the lines are gone".into());
        }
        Ok(vec![
            json!({"step": 1, "loss": 2.5, "learning_rate": 1e-4, "grad_norm": 1.0}),
            json!({"step": 2, "loss": 2.0, "learning_rate": 0.0, "grad_norm": 1.0}),
            json!({"step": 1, "eval_loss": 2.25}),
        ])
    }
}

struct House {
    server: Server,
    tuner: Scripted,
    state: TempDir,
}

fn start(script: Script) -> House {
    start_with(script, Start::default().limits)
}

fn start_with(script: Script, limits: Limits) -> House {
    let tuner = Scripted(Arc::new(Mutex::new(script)));
    let state = folder();
    let known: Arc<dyn Tuner> = Arc::new(tuner.clone());
    let path = state.path().to_owned();
    let server = Server::with(Start { state: Some(path), tuner: Some(known), limits, ..Start::default() });
    House { server, tuner, state }
}

fn serve(tuner: &Scripted, state: PathBuf, tenants: Tenants) -> Server {
    let tuner: Arc<dyn Tuner> = Arc::new(tuner.clone());
    Server::with(Start { state: Some(state), tuner: Some(tuner), tenants, ..Start::default() })
}

impl House {
    fn rounds(&self) -> Vec<Vec<String>> {
        self.tuner.0.lock().unwrap().rounds.clone()
    }

    /// Changes what the trainer does.
    fn script(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.tuner.0.lock().unwrap());
    }

    /// The server's memory, as another program sees it.
    fn memory(&self) -> rusqlite::Connection {
        let memory = rusqlite::Connection::open(self.state.path().join("luthier.db")).unwrap();
        memory.busy_timeout(Duration::from_secs(10)).unwrap();
        memory
    }

    /// Jobs that train, and were made one after the other.
    fn running<const N: usize>(&self, file: &str) -> [String; N] {
        std::array::from_fn(|_| {
            let id = create(&self.server, file);
            wait(&self.server, &id, "running");
            id
        })
    }
}

fn hash(key: &str) -> String {
    Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn form(name: &str, purpose: Option<&str>, content: &str) -> Vec<u8> {
    let purpose = purpose.map(|purpose| {
        format!("--XX\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\n{purpose}\r\n")
    });
    let head = format!(
        "--XX\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\nContent-Type: \
         application/octet-stream\r\n\r\n"
    );
    format!("{}{head}{content}\r\n--XX--\r\n", purpose.unwrap_or_default()).into_bytes()
}

fn upload_as(server: &Server, key: &str, body: &[u8]) -> Reply {
    let headers =
        format!("Content-Type: multipart/form-data; boundary=XX\r\nAuthorization: Bearer {key}\r\n");
    server.raw("POST", "/v1/files", &headers, body)
}

/// The id of a file that is good.
fn upload(server: &Server) -> String {
    let reply = upload_as(server, "", &form("chats.jsonl", Some("fine-tune"), "{\"text\": \"a\"}\n"));
    reply.json(200)["id"].as_str().unwrap().to_owned()
}

fn create(server: &Server, file: &str) -> String {
    let job = server.post("/v1/fine_tuning/jobs", &json!({"model": "base", "training_file": file}));
    job.json(200)["id"].as_str().unwrap().to_owned()
}

fn job(server: &Server, id: &str) -> Value {
    server.get(&format!("/v1/fine_tuning/jobs/{id}")).json(200)
}

/// Waits until a job stands so.
#[track_caller]
fn wait(server: &Server, id: &str, status: &str) -> Value {
    let begun = Instant::now();
    loop {
        let job = job(server, id);
        if job["status"] == status {
            return job;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{job}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_job_goes_from_a_file_to_a_model_that_answers() {
    let House { server, tuner: _tuner, state: _state } = start(Script::default());
    let file = upload(&server);
    let asked = json!({
        "model": "base", "training_file": file, "suffix": "mine", "seed": 9, "metadata": {"who": "me"},
        "method": {"type": "supervised", "supervised": {"hyperparameters": {
            "n_epochs": 3, "batch_size": "auto", "learning_rate_multiplier": 2}}},
        "settings": {"adapter": {"r": 4}, "schedule.name": "cosine"},
    });
    let made = server.post("/v1/fine_tuning/jobs", &asked).json(200);
    assert_eq!((&made["object"], &made["metadata"]["who"]), (&json!("fine_tuning.job"), &json!("me")));
    assert_eq!(
        made["settings"],
        json!({
            "training.epochs": 3, "training.seed": 9, "adapter.r": 4, "schedule.name": "cosine",
        })
    );
    let id = made["id"].as_str().unwrap();
    let done = wait(&server, id, "succeeded");
    assert_eq!((&done["trained_tokens"], &done["seed"]), (&json!(77), &json!(7)));
    assert_eq!(
        done["hyperparameters"],
        json!({"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 2.0})
    );
    assert!(done["finished_at"].is_u64() && done["error"].is_null());
    // The model, and the checkpoint, are served.
    let model = done["fine_tuned_model"].as_str().unwrap();
    assert!(model.starts_with("ft:base:mine:"), "{model}");
    assert_eq!(server.complete(model), "zhello world");
    let checkpoints = server.get(&format!("/v1/fine_tuning/jobs/{id}/checkpoints")).json(200);
    let checkpoint = &checkpoints["data"][0];
    assert_eq!(checkpoint["metrics"], json!({"step": 1, "train_loss": 2.5, "valid_loss": 2.25}));
    let name = checkpoint["fine_tuned_model_checkpoint"].as_str().unwrap();
    assert_eq!(server.complete(name), "chello world");
    let models = server.get("/v1/models").json(200);
    let listed = models["data"].as_array().unwrap().iter().any(|card| card["id"] == json!(model));
    assert!(listed, "{models}");
    // Events, the newest first, and the file of results.
    let events = server.get(&format!("/v1/fine_tuning/jobs/{id}/events?limit=2")).json(200);
    assert_eq!(events["has_more"], true);
    let last = events["data"][1]["id"].as_str().unwrap();
    let rest = server.get(&format!("/v1/fine_tuning/jobs/{id}/events?limit=100&after={last}")).json(200);
    let events = [events["data"].as_array().unwrap().as_slice(), rest["data"].as_array().unwrap()].concat();
    let messages: Vec<&str> = events.iter().map(|event| event["message"].as_str().unwrap()).collect();
    assert_eq!(messages.last(), Some(&"the job was created"));
    assert!(messages.contains(&"Step 1/2: training loss=2.5000"), "{messages:?}");
    assert!(messages.contains(&"Step 1/2: validation loss=2.2500"), "{messages:?}");
    let results = done["result_files"][0].as_str().unwrap();
    let table = server.get(&format!("/v1/files/{results}/content")).body;
    assert_eq!(table.lines().nth(1), Some("1,2.5,0.0001,1.0,2.25"), "{table}");
    // A model that is deleted is gone.
    assert_eq!(server.raw("DELETE", &format!("/v1/models/{model}"), "", b"").json(200)["deleted"], true);
    server.post("/v1/completions", &json!({"model": model, "prompt": "x"})).error(404, Some("model"));
    server.raw("DELETE", &format!("/v1/models/{model}"), "", b"").error(404, Some("model"));
    server.raw("DELETE", "/v1/models/base", "", b"").error(404, Some("model"));
}

#[test]
fn jobs_train_together_and_one_that_comes_joins_them() {
    let house = start(Script { lasts: true, ..Script::default() });
    let server = &house.server;
    let file = upload(server);
    let [one, other] = house.running(&file);
    let rounds = house.rounds();
    assert_eq!(rounds.last(), Some(&vec![one.clone(), other.clone()]));
    // A file that is needed stays.
    server.raw("DELETE", &format!("/v1/files/{file}"), "", b"").error(409, None);
    // One is cancelled, and the other goes on, on the same round.
    let cancelled = server.post(&format!("/v1/fine_tuning/jobs/{one}/cancel"), &json!({})).json(200);
    assert_eq!(cancelled["status"], "cancelled");
    server.post(&format!("/v1/fine_tuning/jobs/{one}/cancel"), &json!({})).error(409, None);
    house.script(|script| script.ending = vec![other.clone()]);
    wait(server, &other, "succeeded");
    assert_eq!(house.rounds(), rounds);
    let done = job(server, &one);
    assert_eq!((&done["status"], &done["fine_tuned_model"]), (&json!("cancelled"), &Value::Null));
    // One that is paused stays so until it is resumed.
    let [third] = house.running(&file);
    let paused = server.post(&format!("/v1/fine_tuning/jobs/{third}/pause"), &json!({})).json(200);
    assert_eq!(paused["status"], "paused");
    house.script(|script| script.lasts = false);
    let fourth = create(server, &file);
    wait(server, &fourth, "succeeded");
    assert_eq!(job(server, &third)["status"], "paused");
    server.post(&format!("/v1/fine_tuning/jobs/{third}/resume"), &json!({})).json(200);
    wait(server, &third, "succeeded");
    assert_eq!(house.rounds().last(), Some(&vec![third]));
}

#[test]
fn a_job_that_ends_is_served_while_the_others_go_on() {
    let house = start(Script { lasts: true, ..Script::default() });
    let file = upload(&house.server);
    let [one, other] = house.running(&file);
    let rounds = house.rounds();
    house.script(|script| script.ending = vec![one.clone()]);
    let done = wait(&house.server, &one, "succeeded");
    assert_eq!(house.server.complete(done["fine_tuned_model"].as_str().unwrap()), "zhello world");
    assert_eq!(job(&house.server, &other)["status"], "running");
    assert_eq!(house.rounds(), rounds, "nobody waits for the room that there is now");
}

#[test]
fn an_end_makes_room_for_a_job_that_waits() {
    let house = start(Script { lasts: true, room: Some(2), ..Script::default() });
    let file = upload(&house.server);
    let [one, other] = house.running(&file);
    let waiting = create(&house.server, &file);
    wait(&house.server, &waiting, "queued");
    house.script(|script| script.ending = vec![one.clone()]);
    wait(&house.server, &waiting, "running");
    assert_eq!(job(&house.server, &one)["status"], "succeeded");
    assert_eq!(house.rounds().last(), Some(&vec![other, waiting]));
}

#[test]
fn a_new_job_lets_the_others_train_for_their_least_time() {
    let limits = Limits { least_training: Duration::from_secs(3600), ..Start::default().limits };
    let house = start_with(Script { lasts: true, ..Script::default() }, limits);
    let file = upload(&house.server);
    let [one] = house.running(&file);
    let other = create(&house.server, &file);
    house.script(|script| script.lasts = false);
    wait(&house.server, &other, "succeeded");
    assert_eq!(house.rounds(), [vec![one], vec![other]]);
}

#[test]
fn a_job_is_an_answer_of_its_tenants_quota() {
    let (tuner, state) = (Scripted::default(), folder());
    let path = state.path().join("keys.yaml");
    let keys = format!("- {{tenant: alpha, key_sha256: {}, requests_per_minute: 1}}\n", hash("a"));
    fs::write(&path, keys).unwrap();
    let server = serve(&tuner, state.path().to_owned(), Tenants::read(&path).unwrap());
    let file = upload_as(&server, "a", &form("c.jsonl", Some("fine-tune"), "{}\n")).json(200);
    let asked = json!({"model": "base", "training_file": file["id"]});
    server.post_with("a", "/v1/fine_tuning/jobs", &asked).json(200);
    let reply = server.post_with("a", "/v1/fine_tuning/jobs", &asked);
    assert_eq!(reply.json(429)["error"]["code"], "rate_limit_exceeded");
}

#[test]
fn a_job_succeeds_though_its_tenant_has_as_many_files_as_it_may() {
    let house = start(Script::default());
    let server = &house.server;
    let file = upload(server);
    let fill = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 999)
        INSERT INTO files (id, tenant, name, purpose, bytes, created)
        SELECT 'file-' || i, 'default', 'x.jsonl', 'fine-tune', 1, 1 FROM n";
    house.memory().execute(fill, []).unwrap();
    let refused = upload_as(server, "", &form("chats.jsonl", Some("fine-tune"), "{}\n"));
    assert!(refused.error(400, Some("file")).contains("1000 files already"));
    for _ in 0..2 {
        let done = wait(server, &create(server, &file), "succeeded");
        let results = done["result_files"][0].as_str().unwrap();
        assert!(server.get(&format!("/v1/files/{results}/content")).body.starts_with("step,train_loss"));
    }
}

#[test]
fn a_job_whose_steps_are_lost_has_succeeded_with_a_warning() {
    let house = start(Script { forgets: true, ..Script::default() });
    let server = &house.server;
    let done = wait(server, &create(server, &upload(server)), "succeeded");
    assert_eq!(done["result_files"], json!([]));
    assert_eq!(server.complete(done["fine_tuned_model"].as_str().unwrap()), "zhello world");
    let events = server.get(&format!("/v1/fine_tuning/jobs/{}/events", done["id"].as_str().unwrap()));
    let events = events.json(200)["data"].clone();
    let warns = |event: &&Value| event["level"] == "warn";
    let warning = events.as_array().unwrap().iter().find(warns).unwrap_or_else(|| panic!("{events}"));
    assert!(warning["message"].as_str().unwrap().contains("the lines are gone"), "{warning}");
}

#[test]
fn an_end_that_cannot_be_noted_holds_up_no_other_and_is_noted_later() {
    let house = start(Script { lasts: true, ..Script::default() });
    let server = &house.server;
    let file = upload(server);
    let [one, other] = house.running(&file);
    let never = format!(
        "CREATE TRIGGER never BEFORE UPDATE ON jobs WHEN new.status = 'succeeded' AND new.id = '{one}'
         BEGIN SELECT RAISE(ABORT, 'not now'); END"
    );
    house.memory().execute_batch(&never).unwrap();
    house.script(|script| script.lasts = false);
    wait(server, &other, "succeeded");
    assert_eq!(job(server, &one)["status"], "running");
    house.memory().execute_batch("DROP TRIGGER never").unwrap();
    let done = wait(server, &one, "succeeded");
    assert_eq!(server.complete(done["fine_tuned_model"].as_str().unwrap()), "zhello world");
    // However often it was tried.
    let files = server.get("/v1/files").json(200)["data"].as_array().unwrap().len();
    assert_eq!(files, 3, "examples, and what two jobs left");
}

#[test]
fn a_restart_loses_nothing() {
    let House { mut server, tuner, state } = start(Script { lasts: true, ..Script::default() });
    let file = upload(&server);
    let id = create(&server, &file);
    wait(&server, &id, "running");
    server.end().unwrap();
    // What an upload left that was not ended is removed, and so is what has no row.
    let left = ["file-0.part", "file-0.jsonl"].map(|name| state.path().join("files").join(name));
    left.iter().for_each(|path| fs::write(path, "half").unwrap());
    tuner.0.lock().unwrap().lasts = false;
    let mut server = serve(&tuner, state.path().to_owned(), Tenants::open_to_all());
    let done = wait(&server, &id, "succeeded");
    assert!(!left.iter().any(|path| path.exists()));
    assert_eq!(server.get(&format!("/v1/files/{file}/content")).status, 200);
    let model = done["fine_tuned_model"].as_str().unwrap();
    assert_eq!(server.complete(model), "zhello world");
    server.end().unwrap();
    let server = serve(&tuner, state.path().to_owned(), Tenants::open_to_all());
    assert_eq!(server.complete(model), "zhello world");
    assert_eq!(server.complete(&format!("{model}:ckpt-step-1")), "chello world");
    assert_eq!(server.get("/v1/fine_tuning/jobs").json(200)["data"][0]["id"], json!(id));
}

#[test]
fn what_a_cancelled_job_left_is_deleted_by_its_name() {
    let house = start(Script { lasts: true, ..Script::default() });
    let server = &house.server;
    let [id] = house.running(&upload(server));
    // It runs before it has saved anything.
    let begun = Instant::now();
    let checkpoint = loop {
        let list = server.get(&format!("/v1/fine_tuning/jobs/{id}/checkpoints")).json(200);
        match list["data"][0]["fine_tuned_model_checkpoint"].as_str() {
            Some(checkpoint) => break checkpoint.to_owned(),
            None => assert!(begun.elapsed() < Duration::from_secs(10), "nothing was saved"),
        }
    };
    let checkpoint = checkpoint.as_str();
    let model = checkpoint.split(":ckpt").next().unwrap();
    let delete = || server.raw("DELETE", &format!("/v1/models/{model}"), "", b"");
    delete().error(404, Some("model"));
    server.post(&format!("/v1/fine_tuning/jobs/{id}/cancel"), &json!({})).json(200);
    assert_eq!(server.complete(checkpoint), "chello world");
    // Until the trainer has let go of it.
    let begun = Instant::now();
    while delete().status != 200 {
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
    server.post("/v1/completions", &json!({"model": checkpoint, "prompt": "x"})).error(404, Some("model"));
    assert_eq!(fs::read_dir(house.state.path().join("jobs")).unwrap().count(), 0);
    delete().error(404, Some("model"));
}

#[test]
fn a_deletion_that_a_kill_cut_short_is_brought_to_its_end() {
    let House { mut server, tuner, state } = start(Script::default());
    let id = create(&server, &upload(&server));
    let model = wait(&server, &id, "succeeded")["fine_tuned_model"].as_str().unwrap().to_owned();
    server.end().unwrap();
    let jobs = state.path().join("jobs");
    fs::rename(jobs.join(&id), jobs.join(format!(".{id}"))).unwrap();
    let server = serve(&tuner, state.path().to_owned(), Tenants::open_to_all());
    assert_eq!(job(&server, &id)["fine_tuned_model"], Value::Null);
    server.post("/v1/completions", &json!({"model": model, "prompt": "x"})).error(404, Some("model"));
    assert_eq!(fs::read_dir(jobs).unwrap().count(), 0);
}

#[test]
fn one_folder_is_one_servers() {
    let House { state, server: _server, tuner } = start(Script::default());
    let tuner: Arc<dyn Tuner> = Arc::new(tuner);
    let start = Start { state: Some(state.path().to_owned()), tuner: Some(tuner), ..Start::default() };
    let Err(error) = Server::try_with(start) else { panic!("two servers use one folder") };
    assert!(error.to_string().contains("another server uses it"), "{error}");
}

#[test]
fn a_job_that_cannot_be_says_why() {
    let House { server, tuner: _tuner, state: _state } =
        start(Script { refuses: Some("line 3: no text".into()), ..Script::default() });
    let file = upload(&server);
    let failed = wait(&server, &create(&server, &file), "failed");
    assert_eq!(failed["error"]["message"], "line 3: no text");
    assert_eq!(failed["fine_tuned_model"], Value::Null);
}

#[test]
fn a_fault_fails_the_job_that_is_to_blame_and_no_other() {
    let house = start(Script { lasts: true, ..Script::default() });
    let server = &house.server;
    let file = upload(server);
    let [one, culprit, other] = house.running(&file);
    let before = house.rounds().len();
    house.script(|script| {
        (script.lasts, script.culprits) = (false, vec![culprit.clone()]);
    });
    let failed = wait(server, &culprit, "failed");
    let why = failed["error"]["message"].as_str().unwrap();
    assert_eq!(why, format!("a fault of this program: {culprit} was told to break"));
    let done = wait(server, &other, "succeeded");
    assert_eq!(server.complete(done["fine_tuned_model"].as_str().unwrap()), "zhello world");
    wait(server, &one, "succeeded");
    // Each on a round of its own, in their order.
    assert_eq!(house.rounds()[before..], [vec![one], vec![culprit], vec![other]]);
}

#[test]
fn what_is_wrong_with_a_job_is_told_by_its_field() {
    let House { server, tuner: _tuner, state: _state } = start(Script::default());
    let file = upload(&server);
    let with = |changes: Value| {
        let mut job = json!({"model": "base", "training_file": file});
        job.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        server.post("/v1/fine_tuning/jobs", &job)
    };
    let wrong = [
        (json!({"model": null}), "model"),
        (json!({"model": "gpt-4o"}), "model"),
        (json!({"training_file": null}), "training_file"),
        (json!({"training_file": "file-1"}), "training_file"),
        (json!({"training_file": "../../etc/passwd"}), "training_file"),
        (json!({"validation_file": "file-1"}), "validation_file"),
        (json!({"suffix": "a b"}), "suffix"),
        (json!({"suffix": "x".repeat(65)}), "suffix"),
        (json!({"hyperparameters": {"n_epochs": 0}}), "hyperparameters.n_epochs"),
        (json!({"hyperparameters": {"n_epochs": "many"}}), "hyperparameters.n_epochs"),
        (json!({"hyperparameters": {"n_epoch": 3}}), "hyperparameters.n_epoch"),
        (
            json!({"hyperparameters": {"learning_rate_multiplier": -1}}),
            "hyperparameters.learning_rate_multiplier",
        ),
        (json!({"method": {"type": "dpo"}}), "method.type"),
        (json!({"method": {}}), "method.type"),
        (
            json!({"method": {"type": "supervised", "supervised": {"hyperparameters": {"batch_size": 0}}}}),
            "method.supervised.hyperparameters.batch_size",
        ),
        (json!({"method": {"type": "supervised", "supervise": {}}}), "method.supervise"),
        (json!({"integrations": [{"type": "wandb"}]}), "integrations"),
        (json!({"hyperparameter": {"n_epochs": 3}}), "hyperparameter"),
        (json!({"settings": {"training.eval_every": 3}}), "settings.training.eval_every"),
        (json!({"metadata": {"a": 1}}), "metadata"),
        (json!({"seed": -1}), "seed"),
        (json!({"settings": 3}), "settings"),
        (json!({"settings": {"output": "/tmp/x"}}), "settings.output"),
        (json!({"settings": {"model": "other"}}), "settings.model"),
        (json!({"settings": {"memory": "1GiB"}}), "settings.memory"),
        (json!({"settings": {"adapter": {"init_from": "/etc"}}}), "settings.adapter.init_from"),
        (json!({"settings": {"adapter.method": "full"}}), "settings.adapter.method"),
        (json!({"settings": {"data": {"train": {"path": "/etc/passwd"}}}}), "settings.data.train"),
        (json!({"settings": {"data.train.path": "/etc/passwd"}}), "settings.data.train.path"),
        (json!({"settings": {"data.chat_template": "/etc/passwd"}}), "settings.data.chat_template"),
        // What the trainer says of them.
        (json!({"settings": {"adapter": {"r": 0}}}), "settings.adapter.r"),
    ];
    for (changes, field) in wrong {
        with(changes).error(400, Some(field));
    }
    let told = with(json!({"valdation_file": file})).error(400, Some("valdation_file"));
    assert!(told.contains("did you mean `validation_file`?"), "{told}");
    assert_eq!(server.get("/v1/fine_tuning/jobs").json(200)["data"], json!([]));
    for path in ["", "/events", "/checkpoints"] {
        server.get(&format!("/v1/fine_tuning/jobs/ftjob-1{path}")).error(404, None);
    }
    server.get("/v1/fine_tuning/jobs?limit=0").error(400, Some("limit"));
    // All that OpenAI's client can say.
    let all = json!({
        "validation_file": file, "suffix": "x", "seed": 1, "integrations": null, "metadata": null,
        "hyperparameters": {"n_epochs": "auto"}, "method": {"type": "supervised", "dpo": null},
        "settings": {"training.eval_every": 3},
    });
    with(all).json(200);
    let id = create(&server, &file);
    server.get(&format!("/v1/fine_tuning/jobs/{id}/events?after=x")).error(400, Some("after"));
    for list in ["files", "fine_tuning/jobs", &format!("fine_tuning/jobs/{id}/checkpoints")] {
        let told = server.get(&format!("/v1/{list}?after=x")).error(404, Some("after"));
        assert!(told.starts_with("there is no ") && told.contains("`x`"), "{told}");
    }
    wait(&server, &id, "succeeded");
    let behind =
        |step: u64| server.get(&format!("/v1/fine_tuning/jobs/{id}/checkpoints?after=ftckpt-{id}-{step}"));
    // One that is gone by now is a place in the list nevertheless.
    assert_eq!(behind(2).json(200)["data"][0]["step_number"], 1);
    assert_eq!(behind(1).json(200)["data"], json!([]));
}

#[test]
fn files_are_kept_listed_given_back_and_deleted() {
    let House { server, state, .. } = start(Script::default());
    let file = upload(&server);
    assert_eq!(server.get(&format!("/v1/files/{file}/content")).body, "{\"text\": \"a\"}\n");
    let told = server.get(&format!("/v1/files/{file}")).json(200);
    assert_eq!((&told["bytes"], &told["filename"]), (&json!(14), &json!("chats.jsonl")));
    assert_eq!(server.get("/v1/files").json(200)["data"], json!([told]));
    assert_eq!(server.raw("DELETE", &format!("/v1/files/{file}"), "", b"").json(200)["deleted"], true);
    for reply in [server.get(&format!("/v1/files/{file}")), server.get(&format!("/v1/files/{file}/content"))]
    {
        reply.error(404, None);
    }
    // A path in a name is no path.
    let reply = upload_as(&server, "", &form("../../../../tmp/evil.jsonl", Some("fine-tune"), "{}\n"));
    assert_eq!(reply.json(200)["filename"], "evil.jsonl");
    let names: Vec<_> =
        fs::read_dir(state.path().join("files")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 1, "{names:?}");
    // What cannot be kept.
    for (name, purpose, content, field) in [
        ("a.jsonl", None, "{}", "purpose"),
        ("a.jsonl", Some("batch"), "{}", "purpose"),
        ("a.exe", Some("fine-tune"), "{}", "file"),
        ("", Some("fine-tune"), "{}", "file"),
        ("a.jsonl", Some("fine-tune"), "", "file"),
    ] {
        upload_as(&server, "", &form(name, purpose, content)).error(400, Some(field));
    }
    upload_as(&server, "", b"--XX\r\nno form").error(400, None);
    server.raw("POST", "/v1/files", "Content-Type: application/json\r\n", b"{}").error(400, None);
    let names = fs::read_dir(state.path().join("files")).unwrap().count();
    assert_eq!(names, 1, "nothing is left of what was refused");
}

/// The beginning of a form whose end is yet to come.
fn begin_upload(server: &Server, key: &str) -> TcpStream {
    let mut stream = server.connect();
    let (host, body) = (server.address, form("a.jsonl", None, ""));
    let body = body.strip_suffix(b"\r\n--XX--\r\n").unwrap();
    let head = format!(
        "POST /v1/files HTTP/1.1\r\nHost: {host}\r\nContent-Length: 100000000\r\n\
         Authorization: Bearer {key}\r\nContent-Type: multipart/form-data; boundary=XX\r\n\r\n"
    );
    stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
    stream
}

#[test]
fn a_file_that_trickles_in_is_not_waited_for() {
    let limits = Limits {
        read_time: Duration::from_millis(300),
        upload_rate: u64::MAX,
        file_bytes: u64::MAX,
        ..Start::default().limits
    };
    let House { server, state, .. } = start_with(Script::default(), limits);
    let mut stream = begin_upload(&server, "");
    let begun = Instant::now();
    // There is always a next byte in time, and never an end.
    while stream.write_all(b"x").is_ok() {
        assert!(begun.elapsed() < Duration::from_secs(10), "the form had all the time in the world");
    }
    assert_eq!(fs::read_dir(state.path().join("files")).unwrap().count(), 0);
}

#[test]
fn a_form_has_few_fields() {
    let House { server, state, .. } = start(Script::default());
    let field = "--XX\r\nContent-Disposition: form-data; name=\"x\"\r\n\r\n1\r\n".repeat(15);
    let whole = |fields: &str| {
        let form = form("a.jsonl", Some("fine-tune"), "{}\n");
        upload_as(&server, "", &[fields.as_bytes(), &form].concat())
    };
    assert!(whole(&field).error(400, None).contains("more than 16 fields"));
    assert_eq!(fs::read_dir(state.path().join("files")).unwrap().count(), 0);
    whole(field.split_inclusive("1\r\n").take(14).collect::<String>().as_str()).json(200);
}

#[test]
fn one_tenant_does_not_take_all_places_for_files() {
    let (tuner, state) = (Scripted::default(), folder());
    let path = state.path().join("keys.yaml");
    let keys = ["a", "b"].map(|key| format!("- {{tenant: {key}, key_sha256: {}}}\n", hash(key)));
    fs::write(&path, keys.concat()).unwrap();
    let server = serve(&tuner, state.path().to_owned(), Tenants::read(&path).unwrap());
    let _held: Vec<TcpStream> = (0..8).map(|_| begin_upload(&server, "a")).collect();
    let begun = Instant::now();
    while fs::read_dir(state.path().join("files")).unwrap().count() < 8 {
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
    let whole = form("c.jsonl", Some("fine-tune"), "{}\n");
    upload_as(&server, "a", &whole).error(429, None);
    upload_as(&server, "b", &whole).json(200);
}

#[test]
fn without_a_state_there_are_no_files_and_no_jobs() {
    let server = Server::start();
    for path in ["/v1/files", "/v1/fine_tuning/jobs", "/v1/files/file-1", "/v1/fine_tuning/jobs/x/events"] {
        let message = server.get(path).error(404, None);
        assert!(message.contains("--state"), "{message}");
    }
    server.post("/v1/fine_tuning/jobs", &json!({"model": "base", "training_file": "x"})).error(404, None);
}

#[test]
fn a_tenant_knows_nothing_of_anothers_files_jobs_and_models() {
    let tuner = Scripted::default();
    let state = folder();
    let path = state.path().join("keys.yaml");
    let keys = format!(
        "- {{tenant: alpha, key_sha256: {}}}\n- {{tenant: beta, key_sha256: {}}}\n",
        hash("a"),
        hash("b")
    );
    fs::write(&path, keys).unwrap();
    let server = serve(&tuner, state.path().to_owned(), Tenants::read(&path).unwrap());
    let file = upload_as(&server, "a", &form("c.jsonl", Some("fine-tune"), "{}\n")).json(200);
    let file = file["id"].as_str().unwrap();
    let asked = json!({"model": "base", "training_file": file});
    let job = server.post_with("a", "/v1/fine_tuning/jobs", &asked).json(200);
    let id = job["id"].as_str().unwrap();
    let begun = Instant::now();
    let model = loop {
        let job = server.get_with("a", &format!("/v1/fine_tuning/jobs/{id}")).json(200);
        if let Some(model) = job["fine_tuned_model"].as_str() {
            break model.to_owned();
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{job}");
    };
    // The owner's.
    let asks = |key: &str, model: &str| {
        server.post_with(key, "/v1/completions", &json!({"model": model, "prompt": "x"}))
    };
    assert_eq!(asks("a", &model).json(200)["choices"][0]["text"], "zhello world");
    // The other's: the same words as for what is not there.
    for name in [model.clone(), format!("{model}:ckpt-step-1")] {
        let message = asks("b", &name).error(404, Some("model"));
        assert_eq!(message, asks("b", "none").error(404, Some("model")).replace("none", &name));
    }
    for path in [
        format!("/v1/files/{file}"),
        format!("/v1/files/{file}/content"),
        format!("/v1/fine_tuning/jobs/{id}"),
        format!("/v1/fine_tuning/jobs/{id}/events"),
        format!("/v1/fine_tuning/jobs/{id}/checkpoints"),
    ] {
        server.get_with("b", &path).error(404, None);
    }
    for action in ["cancel", "pause", "resume"] {
        server.post_with("b", &format!("/v1/fine_tuning/jobs/{id}/{action}"), &json!({})).error(404, None);
    }
    server.post_with("b", "/v1/fine_tuning/jobs", &asked).error(400, Some("training_file"));
    let theirs = "Authorization: Bearer b\r\n";
    server.raw("DELETE", &format!("/v1/files/{file}"), theirs, b"").error(404, None);
    server.raw("DELETE", &format!("/v1/models/{model}"), theirs, b"").error(404, Some("model"));
    for path in ["/v1/files", "/v1/fine_tuning/jobs"] {
        assert_eq!(server.get_with("b", path).json(200)["data"], json!([]));
    }
    assert_eq!(server.get(&format!("/v1/files/{file}")).status, 401);
}

#[test]
fn a_job_that_finds_no_room_on_the_disk_goes_on_when_there_is() {
    let house = start(Script { full: 1, ..Script::default() });
    let id = create(&house.server, &upload(&house.server));
    let done = wait(&house.server, &id, "succeeded");
    assert_eq!(done["error"], Value::Null);
    assert_eq!(house.rounds().len(), 2);
}
