//! Files and fine-tuning jobs, with a scripted trainer.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use server::Tenants;
use server::tuning::{Ended, Plan, Setting, Task, Told, Tuner};
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
    /// Whether training is a fault.
    breaks: bool,
    /// What is wrong with all input.
    refuses: Option<String>,
}

#[derive(Clone, Default)]
pub(crate) struct Scripted(pub(crate) Arc<Mutex<Script>>);

fn name(task: &Task) -> String {
    task.folder.file_name().unwrap().to_str().unwrap().to_owned()
}

impl Tuner for Scripted {
    fn check(&self, settings: &[Setting], _rate: f64) -> Result<(), (String, String)> {
        match settings.iter().find(|setting| setting.key == "adapter.r" && setting.value == json!(0)) {
            Some(setting) => Err((setting.field.clone(), "must be above 0".into())),
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

    fn train(&self, tasks: &[Task], tell: &mut dyn FnMut(usize, Told)) -> Vec<Ended> {
        self.0.lock().unwrap().rounds.push(tasks.iter().map(name).collect());
        assert!(!self.0.lock().unwrap().breaks, "the trainer was told to break");
        for (place, task) in tasks.iter().enumerate() {
            tell(place, Told::Started { step: 0, steps: 2 });
            tell(place, Told::Step { step: 1, loss: 2.5, grad_norm: 1.0, learning_rate: 1e-4 });
            tell(place, Told::Evaluated { step: 1, loss: 2.25 });
            let checkpoint = adapter(&task.folder.join("checkpoints/step-1"), 'c', 8);
            tell(place, Told::Saved(checkpoint));
        }
        let begun = Instant::now();
        while self.0.lock().unwrap().lasts && tasks.iter().any(|task| !task.stop.load(Ordering::Relaxed)) {
            assert!(begun.elapsed() < Duration::from_secs(10), "nobody stopped the jobs");
            std::thread::sleep(Duration::from_millis(2));
        }
        let end = |(place, task): (usize, &Task)| {
            if task.stop.load(Ordering::Relaxed) {
                return Ended::Interrupted;
            }
            tell(place, Told::Step { step: 2, loss: 2.0, grad_norm: 1.0, learning_rate: 0.0 });
            adapter(&task.folder, 'z', 8);
            Ended::Finished { tokens: 77 }
        };
        tasks.iter().enumerate().map(end).collect()
    }

    fn metrics(&self, _task: &Task) -> Result<Vec<Value>, String> {
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
    let tuner = Scripted(Arc::new(Mutex::new(script)));
    let state = folder();
    let server = serve(&tuner, state.path().to_owned(), Tenants::open_to_all());
    House { server, tuner, state }
}

fn serve(tuner: &Scripted, state: PathBuf, tenants: Tenants) -> Server {
    let tuner: Arc<dyn Tuner> = Arc::new(tuner.clone());
    Server::with(Start { state: Some(state), tuner: Some(tuner), tenants, ..Start::default() })
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
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": "auto",
            "learning_rate_multiplier": 2}}},
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
    let House { server, tuner, state: _state } = start(Script { lasts: true, ..Script::default() });
    let file = upload(&server);
    let one = create(&server, &file);
    wait(&server, &one, "running");
    let other = create(&server, &file);
    wait(&server, &other, "running");
    let rounds = || tuner.0.lock().unwrap().rounds.clone();
    assert_eq!(rounds().last(), Some(&vec![one.clone(), other.clone()]));
    // A file that is needed stays.
    server.raw("DELETE", &format!("/v1/files/{file}"), "", b"").error(409, None);
    // One is cancelled, and the other goes on.
    let cancelled = server.post(&format!("/v1/fine_tuning/jobs/{one}/cancel"), &json!({})).json(200);
    assert_eq!(cancelled["status"], "cancelled");
    server.post(&format!("/v1/fine_tuning/jobs/{one}/cancel"), &json!({})).error(409, None);
    // The scripted trainer ends a round when all were stopped, and so the pause begins a new one without both.
    assert_eq!(
        server.post(&format!("/v1/fine_tuning/jobs/{other}/pause"), &json!({})).json(200)["status"],
        "paused"
    );
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(job(&server, &other)["status"], "paused");
    tuner.0.lock().unwrap().lasts = false;
    server.post(&format!("/v1/fine_tuning/jobs/{other}/resume"), &json!({})).json(200);
    wait(&server, &other, "succeeded");
    assert_eq!(rounds().last(), Some(&vec![other]));
    let done = job(&server, &one);
    assert_eq!((&done["status"], &done["fine_tuned_model"]), (&json!("cancelled"), &Value::Null));
}

#[test]
fn a_restart_loses_nothing() {
    let House { mut server, tuner, state } = start(Script { lasts: true, ..Script::default() });
    let file = upload(&server);
    let id = create(&server, &file);
    wait(&server, &id, "running");
    server.end().unwrap();
    // What an upload left that was not ended is removed.
    let part = state.path().join("files/file-0.part");
    fs::write(&part, "half").unwrap();
    tuner.0.lock().unwrap().lasts = false;
    let mut server = serve(&tuner, state.path().to_owned(), Tenants::open_to_all());
    let done = wait(&server, &id, "succeeded");
    assert!(!part.exists());
    let model = done["fine_tuned_model"].as_str().unwrap();
    assert_eq!(server.complete(model), "zhello world");
    server.end().unwrap();
    let server = serve(&tuner, state.path().to_owned(), Tenants::open_to_all());
    assert_eq!(server.complete(model), "zhello world");
    assert_eq!(server.complete(&format!("{model}:ckpt-step-1")), "chello world");
    assert_eq!(server.get("/v1/fine_tuning/jobs").json(200)["data"][0]["id"], json!(id));
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
fn a_fault_ends_its_jobs_and_no_others() {
    let House { server, tuner, state: _state } = start(Script { breaks: true, ..Script::default() });
    let file = upload(&server);
    let failed = wait(&server, &create(&server, &file), "failed");
    assert!(failed["error"]["message"].as_str().unwrap().contains("told to break"), "{failed}");
    tuner.0.lock().unwrap().breaks = false;
    wait(&server, &create(&server, &file), "succeeded");
    assert_eq!(server.complete("base"), "hello world");
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
        (json!({"integrations": [{"type": "wandb"}]}), "integrations"),
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
    assert_eq!(server.get("/v1/fine_tuning/jobs").json(200)["data"], json!([]));
    for path in ["", "/events", "/checkpoints"] {
        server.get(&format!("/v1/fine_tuning/jobs/ftjob-1{path}")).error(404, None);
    }
    server.get("/v1/fine_tuning/jobs?limit=0").error(400, Some("limit"));
    let id = create(&server, &file);
    server.get(&format!("/v1/fine_tuning/jobs/{id}/events?after=x")).error(400, Some("after"));
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
    let hash = |key: &str| Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
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
