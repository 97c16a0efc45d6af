//! The page of a pool in a real browser: clicked and read as people do.

use std::fs;

use jobs::supervisor::Progress;
use serde_json::{Value, json};

use crate::browser::Browser;
use crate::pool::{Pool, job};

/// A name as nobody kind gives it.
const HOSTILE: &str = "<img src=x onerror=document.title='taken'>\u{202e}\"'&amp;";

/// Opens the page as somebody.
fn open(browser: &Browser, pool: &Pool, user: &str) {
    browser.open(&format!("http://{}/", pool.address));
    browser.wait("document.getElementById('key').checkVisibility()");
    browser.fill("#key", &format!("{}\u{E007}", pool.token(user)));
    browser.wait("document.getElementById('status').textContent === 'ready'");
}

/// An expression: an element's text has these words.
fn says(id: &str, words: &str) -> String {
    format!("document.getElementById({}).textContent.includes({})", json!(id), json!(words))
}

/// Keeps a picture of the page, if somebody wants to see some.
fn picture(browser: &Browser, name: &str) {
    if let Some(folder) = std::env::var_os("LUTHIER_PICTURES") {
        // All that has changed is drawn by then.
        browser.run("return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))");
        fs::write(std::path::Path::new(&folder).join(format!("{name}.png")), browser.picture()).unwrap();
    }
}

/// Looks at the page in light and dark, and on a narrow screen, where nothing may stick out.
fn look(browser: &Browser, name: &str) {
    for scheme in ["light", "dark"] {
        browser.show_as(scheme, "screen");
        for width in [360, 1200] {
            browser.widen(width);
            let wide = browser.run("return document.documentElement.scrollWidth");
            assert!(wide.as_u64().unwrap() <= u64::from(width), "{wide} on a screen of {width}");
            picture(browser, &format!("{name}-{scheme}-{width}"));
        }
    }
}

/// A pool in which one project borrows, one takes back, and others wait.
fn busy() -> (Pool, u64, u64) {
    let pool = Pool::start();
    let progress = Progress { done: 57, saved: 50, total: Some(100) };
    pool.script.lock().unwrap().progress.insert("victim".into(), progress);
    let victim = pool.submit("ada", &job("victim", "red", 4));
    pool.wait(victim, "running");
    let winner = pool.submit("cai", &job("winner", "blue", 1));
    pool.wait(winner, "running");
    let mut named = job(HOSTILE, "red", 3);
    named["launch"]["output"] = json!(pool.run_folder("run", 300));
    named["launch"]["steps"] = json!(400);
    let borrower = pool.submit("bea", &named);
    pool.wait(borrower, "running");
    for n in 1..=3 {
        pool.submit("bea", &job(&format!("waits-{n}"), "red", 4));
    }
    (pool, victim, borrower)
}

#[test]
fn projects_queue_machines_and_evictions_are_seen() {
    let Some(browser) = Browser::start() else { return };
    let (pool, victim, borrower) = busy();
    open(&browser, &pool, "bea");
    browser.wait(&says("who", "bea"));
    browser.wait("document.getElementById('projects').rows.length === 2");
    let cell = |row: u32, cell: u32| {
        browser
            .run(&format!("return document.getElementById('projects').rows[{row}].cells[{cell}].textContent"))
    };
    let red: Vec<Value> = (0..9).map(|column| cell(0, column)).collect();
    assert_eq!(red, ["red", "lab", "3", "", "2", "3", "no bound", "1", "4"]);
    browser.wait(&says("lending", "red borrows 1 device of blue"));
    // Each job that waits says why.
    browser.wait("document.getElementById('queue').rows.length === 4");
    browser.wait(
        "[...document.getElementById('queue').rows].every((row) => \
                  row.cells[7].textContent.includes('asks for'))",
    );
    browser.wait(&says("queue", "waits-3"));
    browser.wait(&says("machines", "gpu"));
    browser.wait("document.querySelectorAll('.device').length >= 4");
    browser.wait(&says("evictions", "takes back what its project is guaranteed"));
    assert_eq!(browser.run("return document.getElementById('evictions').rows[0].cells[5].textContent"), "7");
    browser.wait(&says("list", "waits-1"));
    // Other projects' jobs have no names here.
    assert_eq!(browser.run("return document.body.textContent.includes('winner')"), json!(false));
    // What people write stays text.
    browser.wait(&format!("document.getElementById('list').textContent.includes({})", json!(HOSTILE)));
    assert_eq!(
        browser.run("return document.title + document.querySelectorAll('main img').length"),
        "Luthier: pool0"
    );
    browser.fill("#whose", "red");
    browser.wait(&says("time", "fair share 3"));
    // The key Home: the first choice, which is all of them.
    browser.fill("#whose", "\u{E011}");
    browser.wait("document.querySelector('#time polygon')");
    browser.fill("#resource", "cpus");
    browser.wait("document.getElementById('projects').rows[0].cells[4].textContent === '8'");
    look(&browser, "pool");
    assert_eq!(browser.complaints(), Vec::<Value>::new());
    assert!(victim < borrower);
}

#[test]
fn a_job_is_opened_its_curve_and_log_are_read_and_it_is_cancelled() {
    let Some(browser) = Browser::start() else { return };
    let (pool, victim, borrower) = busy();
    pool.say(borrower, b"step 1 of 400\n<script>document.title = 'taken'</script>\n");
    open(&browser, &pool, "bea");
    browser.wait("document.getElementById('list').rows.length === 5");
    // By the keyboard: a link has the focus, Enter opens it.
    let link = format!("#list a[href='#job-{borrower}']");
    browser.fill(&link, "\u{E007}");
    browser.wait(&says("one-name", HOSTILE));
    browser.wait(&says("one-phase", "running"));
    browser.wait("document.getElementById('curve').checkVisibility()");
    let points = "return document.querySelector('#curve .training').getAttribute('points').split(' ').length";
    assert!(browser.run(points).as_u64().unwrap() > 100);
    browser.wait(&says("curve", "held-out loss"));
    browser.wait(&says("log", "</script>"));
    browser.wait(&says("history", "gpu"));
    // What is said next comes by itself.
    pool.say(borrower, b"step 1 of 400\n<script>document.title = 'taken'</script>\nstep 2 of 400\n");
    browser.wait(&says("log", "step 2 of 400"));
    assert_eq!(
        browser.run("return document.getElementById('log').textContent.split('step').length"),
        json!(3)
    );
    look(&browser, "job");
    browser.click("#hold");
    browser.wait(&says("one-phase", "held"));
    browser.click("#release");
    browser.wait("!document.getElementById('release').checkVisibility()");
    browser.click("#cancel");
    browser.wait(&says("one-phase", "cancelled"));
    browser.wait(&says("history", "somebody cancelled it"));
    browser.wait("!document.getElementById('cancel').checkVisibility()");
    assert_eq!(pool.job(borrower)["phase"], "cancelled");
    // Somebody else's job has no buttons.
    browser.run(&format!("location.hash = '#job-{victim}'"));
    browser.wait(&says("one-name", "victim"));
    browser.wait(&says("history", "takes back"));
    assert_eq!(browser.run("return document.getElementById('cancel').checkVisibility()"), json!(false));
    // One that is not there, and the way back.
    browser.run("location.hash = '#job-999'");
    browser.wait(&says("status", "there is no job 999"));
    browser.run("location.hash = ''");
    browser.wait("document.getElementById('pool').checkVisibility()");
    assert_eq!(browser.run("return document.title"), "Luthier: pool");
}

#[test]
fn a_wrong_token_is_told_and_nothing_is_shown() {
    let Some(browser) = Browser::start() else { return };
    let pool = Pool::start();
    browser.open(&format!("http://{}/", pool.address));
    browser.wait(&says("status", "a token of this pool is needed"));
    browser.fill("#key", "pool-wrong\u{E007}");
    browser.wait("document.getElementById('key').value === 'pool-wrong'");
    browser.wait(&says("status", "a token of this pool is needed"));
    assert_eq!(browser.run("return document.getElementById('pool').checkVisibility()"), json!(false));
    // A user of nothing sees the pool, and no jobs.
    browser.run("document.getElementById('key').value = ''");
    browser.fill("#key", &format!("{}\u{E007}", pool.token("dot")));
    browser.wait("document.getElementById('projects').rows.length === 2");
    browser.wait("document.getElementById('jobs-none').checkVisibility()");
}
