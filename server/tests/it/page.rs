//! The page at GET / in a real browser: clicked and read as people do.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::json;
use server::Tenants;
use server::tuning::Tuner;
use sha2::{Digest, Sha256};

use crate::browser::Browser;
use crate::support::{Server, Start, adapter, folder};
use crate::tuning::{Script, Scripted};

/// A server with two adapters, `a` and `b`, and a trainer.
fn serve(folder: &Path, tuner: &Scripted, tenants: Tenants) -> Server {
    let tuner: Arc<dyn Tuner> = Arc::new(tuner.clone());
    let named = |name: &str, letter| (name.to_owned(), adapter(&folder.join(name), letter, 8));
    let adapters = vec![named("a", 'A'), named("b", 'B')];
    let state = Some(folder.join("state"));
    Server::with(Start { adapters, state, tuner: Some(tuner), tenants, ..Start::default() })
}

/// Fills the form for a job and sends it.
fn start_job(browser: &Browser, folder: &Path, suffix: &str) {
    let file = folder.join("chats.jsonl");
    fs::write(&file, "{\"text\": \"a\"}\n").unwrap();
    browser.choose("#training", &file);
    browser.fill("#suffix", suffix);
    browser.click("#start");
    browser.wait("document.getElementById('job-told').textContent.includes('its place')");
}

/// An expression: the card of the newest job says this.
fn newest(words: &str) -> String {
    format!("document.querySelector('.job')?.textContent.includes({})", json!(words))
}

#[test]
fn two_adapters_answer_side_by_side() {
    let folder = folder();
    let Some(browser) = Browser::start() else { return };
    let server = serve(folder.path(), &Scripted::default(), Tenants::open_to_all());
    browser.open(&format!("http://{}/", server.address));
    browser.wait("document.getElementById('status').textContent === 'ready'");
    browser.wait("document.getElementById('adapters').rows.length === 3");
    // By the keyboard alone: a select takes the letter, Enter sends.
    browser.fill(".side:nth-child(1) select", "a");
    browser.fill(".side:nth-child(2) select", "b");
    browser.fill("#question", "Hello\u{E007}");
    for (side, says) in [(1, "Ahello world"), (2, "Bhello world")] {
        let talk = format!("document.querySelector('.side:nth-child({side}) .assistant')?.textContent");
        browser.wait(&format!("{talk} === '{says}'"));
    }
    browser.wait(
        "[...document.querySelectorAll('.side .told')].every((told) => told.textContent.includes('tokens'))",
    );
    // What was said counts as traffic, in its row.
    browser.wait("document.getElementById('adapters').rows[1].cells[5].textContent === '1'");
    for width in [360, 1600] {
        browser.widen(width);
        let wide = browser.run("return document.documentElement.scrollWidth");
        assert!(wide.as_u64().unwrap() <= u64::from(width), "{wide} on a screen of {width}");
    }
    assert_eq!(browser.complaints(), Vec::<serde_json::Value>::new());
}

#[test]
fn a_job_is_begun_watched_and_cancelled() {
    let folder = folder();
    let Some(browser) = Browser::start() else { return };
    let script = Arc::new(Mutex::new(Script::default()));
    let tuner = Scripted(Arc::clone(&script));
    let server = serve(folder.path(), &tuner, Tenants::open_to_all());
    browser.open(&format!("http://{}/", server.address));
    browser.wait("document.querySelector('#jobs-none')?.checkVisibility()");
    browser.click("#begin summary");
    // What the server refuses is told in its words, and no file of it stays.
    browser.fill("#rank", "1");
    browser.run("document.getElementById('rank').min = 0; document.getElementById('rank').value = 0");
    browser.choose("#training", &adapter(&folder.path().join("x"), 'X', 1).join("adapter_config.json"));
    browser.click("#start");
    browser.wait("document.getElementById('job-told').textContent === 'cannot be so'");
    browser.wait("!document.getElementById('start').disabled");
    assert_eq!(server.get("/v1/files").json(200)["data"], json!([]));
    browser.run("document.getElementById('new-job').reset()");
    // One that succeeds, with a curve; its model can be asked at once.
    browser.fill("#epochs", "3");
    browser.fill("#rank", "4");
    browser.fill("#rate", "2");
    start_job(&browser, folder.path(), "mine");
    browser.wait(&newest("succeeded"));
    browser.wait(&newest("step 2 of 2"));
    let points =
        "return document.querySelector('.job polyline.training').getAttribute('points').split(' ').length";
    assert_eq!(browser.run(points), json!(2));
    for words in ["training loss 2.000", "held-out loss 2.250", "3 epochs", "rank 4", "77 tokens"] {
        browser.wait(&newest(words));
    }
    let jobs = server.get("/v1/fine_tuning/jobs").json(200);
    let job = &jobs["data"][0];
    assert_eq!(job["settings"], json!({"training.epochs": 3, "adapter.r": 4}));
    assert_eq!(job["hyperparameters"]["learning_rate_multiplier"], json!(2.0));
    let options = "[...document.querySelector('select').options]";
    browser.wait(&format!("{options}.some((option) => option.value.startsWith('ft:base:mine:'))"));
    // A card learns of it when it is drawn again.
    browser.wait("!document.querySelector('.job .job-compare').disabled");
    browser.click(".job .job-compare");
    browser.fill("#question", "Hello\u{E007}");
    browser.wait("document.querySelector('.side:nth-child(2) .assistant')?.textContent === 'zhello world'");
    // One that lasts is paused, resumed and cancelled.
    script.lock().unwrap().lasts = true;
    start_job(&browser, folder.path(), "other");
    browser.wait(&newest("running"));
    browser.wait(&newest("step 1 of 2"));
    browser.click(".job .job-pause");
    browser.wait(&newest("paused"));
    browser.wait(&newest("Resume"));
    browser.click(".job .job-pause");
    browser.wait(&newest("running"));
    browser.click(".job .job-cancel");
    browser.wait(&newest("cancelled"));
    browser.wait("document.querySelector('.job .job-cancel').disabled");
    let jobs = server.get("/v1/fine_tuning/jobs").json(200);
    assert_eq!(
        (&jobs["data"][0]["status"], &jobs["data"][1]["status"]),
        (&json!("cancelled"), &json!("succeeded"))
    );
}

#[test]
fn keys_are_asked_for_and_a_wrong_one_is_told() {
    let folder = folder();
    let Some(browser) = Browser::start() else { return };
    let hash: String = Sha256::digest("tml-right").iter().map(|byte| format!("{byte:02x}")).collect();
    let keys = folder.path().join("keys.yaml");
    fs::write(&keys, format!("- {{tenant: alpha, key_sha256: {hash}, adapters: [a]}}\n")).unwrap();
    let server = serve(folder.path(), &Scripted::default(), Tenants::read(&keys).unwrap());
    browser.open(&format!("http://{}/", server.address));
    browser.wait("document.getElementById('key').checkVisibility()");
    browser.fill("#key", "tml-wrong\u{E007}");
    let status = "document.getElementById('status').textContent";
    browser
        .wait(&format!("{status}.includes('key') && document.getElementById('key').value === 'tml-wrong'"));
    assert_eq!(browser.run("return document.getElementById('adapters').rows.length"), json!(0));
    browser.run("document.getElementById('key').value = ''");
    browser.fill("#key", "tml-right\u{E007}");
    browser.wait(&format!("{status} === 'ready'"));
    // The base and the one adapter that is this tenant's.
    browser.wait("document.getElementById('adapters').rows.length === 2");
}

#[test]
fn without_a_state_the_page_says_why_there_are_no_jobs() {
    let Some(browser) = Browser::start() else { return };
    let server = Server::start();
    browser.open(&format!("http://{}/", server.address));
    browser.wait("document.getElementById('status').textContent === 'ready'");
    browser.wait("document.getElementById('no-jobs').checkVisibility()");
    assert_eq!(browser.run("return document.getElementById('tuning').checkVisibility()"), json!(false));
    assert_eq!(browser.complaints(), Vec::<serde_json::Value>::new());
}
