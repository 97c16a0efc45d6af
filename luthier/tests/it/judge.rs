//! `eval judge`: what its tables say of a judge that follows a script, what becomes of one that does not, and
//! what is paid for again, which is nothing.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use crate::support::{names, text, write_lines};
use crate::{failure, luthier};

/// What the judge does with a request.
#[derive(Clone, Debug)]
enum Act {
    /// Says this.
    Say(String),
    /// Answers with a status, more headers and a body.
    Answer(u16, &'static str, String),
    /// Says nothing, for long.
    Stall,
    /// Closes the connection.
    Close,
    /// Closes it in the middle of an answer.
    Break,
}

/// A request as the judge saw it.
#[derive(Clone, Debug)]
struct Seen {
    at: Instant,
    headers: String,
    body: Value,
}

impl Seen {
    /// All that it was shown.
    fn text(&self) -> String {
        let messages = self.body["messages"].as_array().unwrap();
        messages.iter().map(|message| message["content"].as_str().unwrap()).collect::<Vec<_>>().join("\n")
    }
}

/// A judge on loopback, which lives as long as the tests.
struct Judge {
    url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Judge {
    /// `script`: what to do with a request, of which so many with the same body were there before.
    fn new(script: impl Fn(&Seen, usize) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let (script, all) = (Arc::new(script), Arc::clone(&seen));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (script, all) = (Arc::clone(&script), Arc::clone(&all));
                thread::spawn(move || {
                    let Some(request) = read_request(&stream) else { return };
                    let before = {
                        let mut all = all.lock().unwrap();
                        let before = all.iter().filter(|seen| seen.body == request.body).count();
                        all.push(request.clone());
                        before
                    };
                    answer(stream, script(&request, before));
                });
            }
        });
        Judge { url, seen }
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    fn count(&self) -> usize {
        self.seen().len()
    }
}

fn read_request(stream: &TcpStream) -> Option<Seen> {
    let mut reader = BufReader::new(stream);
    let mut headers = String::new();
    while !headers.ends_with("\r\n\r\n") {
        if reader.read_line(&mut headers).ok()? == 0 {
            return None;
        }
    }
    let length =
        headers.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length?];
    reader.read_exact(&mut body).ok()?;
    Some(Seen { at: Instant::now(), headers, body: serde_json::from_slice(&body).unwrap() })
}

fn answer(mut stream: TcpStream, act: Act) {
    let broken = matches!(act, Act::Break);
    let (status, more, body) = match act {
        Act::Say(reply) => (200, "", said(&reply).to_string()),
        Act::Answer(status, more, body) => (status, more, body),
        Act::Stall => {
            thread::sleep(Duration::from_secs(60));
            return;
        }
        Act::Close => return,
        Act::Break => (200, "", said("8 7").to_string()),
    };
    let length = body.len() + if broken { 100 } else { 0 };
    let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n{more}\r\n");
    let _ = stream.write_all((head + &body).as_bytes());
}

fn said(reply: &str) -> Value {
    json!({
        "choices": [{"index": 0, "message": {"role": "assistant", "content": reply}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 90, "completion_tokens": 10, "total_tokens": 100},
    })
}

/// The points that the answers say they are worth, in the order in which they are shown.
fn points(seen: &Seen) -> [f64; 2] {
    let found: Vec<f64> = seen
        .text()
        .split("worth ")
        .skip(1)
        .map(|rest| rest.split_whitespace().next().unwrap().parse().unwrap())
        .collect();
    found.try_into().unwrap()
}

/// A judge that gives the points, and one more to the first place.
fn fair(seen: &Seen) -> Act {
    let [first, second] = points(seen);
    Act::Say(format!("{} {second}\nThe first has charm.", first + 1.0))
}

/// A folder with four questions, and answers of two systems: worth 4, 6, 8, 2 and 8, 6, 9, 4 points.
fn folder(judge: &Judge, more: &str) -> TempDir {
    let folder = tempdir().unwrap();
    let questions: Vec<Value> =
        (1..=4).map(|n| json!({"id": format!("q{n}"), "question": format!("What is {n}?")})).collect();
    write_lines(folder.path().join("questions.jsonl"), &questions);
    answers(folder.path(), "base", [4, 6, 8, 2]);
    answers(folder.path(), "tuned", [8, 6, 9, 4]);
    write(folder.path(), &judge.url, more);
    folder
}

fn answers(folder: &Path, system: &str, worth: [u32; 4]) {
    let answer =
        |(n, worth)| json!({"id": format!("q{n}"), "answer": format!("{system}: worth {worth} points")});
    let all: Vec<Value> = (1..).zip(worth).map(answer).collect();
    write_lines(folder.join(format!("{system}.jsonl")), &all);
}

/// Writes JUDGE.yaml; `more` may hold further keys.
fn write(folder: &Path, url: &str, more: &str) {
    let reference = if more.contains("reference:") { "" } else { "reference: base\n" };
    let text = format!(
        "questions: questions.jsonl\nanswers: {{base: base.jsonl, tuned: tuned.jsonl}}\n{reference}judge: {{url: \
         \"{url}\", model: the-judge, key_env: JUDGE_KEY}}\nbackoff: 0.01\noutput: judged\n{more}\n"
    );
    fs::write(folder.join("JUDGE.yaml"), text).unwrap();
}

/// Runs `eval judge` and gives exit code, stdout and stderr.
fn judge(folder: &Path, more: &[&str]) -> (i32, String, String) {
    let output = command(folder, more).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

fn command(folder: &Path, more: &[&str]) -> Command {
    let mut command = luthier(folder);
    command.args(["eval", "judge", "JUDGE.yaml"]).args(more).env("JUDGE_KEY", "sk-secret");
    ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"].iter().for_each(|name| {
        command.env_remove(name);
    });
    command
}

/// The result as JSON, of a command that works.
#[track_caller]
fn result(folder: &Path, more: &[&str]) -> Value {
    let (code, told, errors) = judge(folder, &[more, &["--json"]].concat());
    assert_eq!(code, 0, "{errors}");
    serde_json::from_str(&told).unwrap()
}

fn replies(folder: &Path) -> PathBuf {
    folder.join("judged/replies.jsonl")
}

fn lines(path: &Path) -> usize {
    fs::read_to_string(path).unwrap_or_default().lines().count()
}

#[test]
fn both_orders_are_judged_and_asked_for_once_and_never_again() {
    let told = Judge::new(|seen, _| fair(seen));
    let folder = folder(&told, "parallel: 3");
    let first = result(folder.path(), &[]);
    assert_eq!((told.count(), lines(&replies(folder.path()))), (8, 8));
    for seen in told.seen() {
        assert_eq!(
            (&seen.body["model"], &seen.body["temperature"], &seen.body["max_tokens"]),
            (&json!("the-judge"), &json!(0.0), &json!(1024))
        );
        assert!(seen.headers.starts_with("POST /v1/chat/completions "), "{}", seen.headers);
        assert!(seen.headers.contains("Bearer sk-secret"), "{}", seen.headers);
        assert!(seen.text().contains("What is"), "{}", seen.text());
    }
    // Standing first: 9 + 7 + 10 + 5 beside 4 + 6 + 8 + 2; second: 8 + 6 + 9 + 4 beside 5 + 7 + 9 + 3.
    let scores = &first["scores"];
    let tuned = &scores["percent"][0];
    let percent = 50.0 * (31.0 / 20.0 + 27.0 / 24.0);
    assert_eq!((&tuned["system"], &scores["reference"]), (&json!("tuned"), &json!("base")));
    assert!((tuned["percent"]["value"].as_f64().unwrap() - percent).abs() < 1e-9, "{tuned}");
    assert!(tuned["percent"]["low"].as_f64().unwrap() < percent);
    let pair = &scores["pairs"][0];
    assert_eq!(
        (&pair["system"], &pair["loss"]["value"], &pair["tie"]["value"]),
        (&json!("base"), &json!(0.75), &json!(0.125))
    );
    for table in ["bradley_terry", "elo"] {
        assert_eq!(scores[table][0]["system"], "tuned", "{table}");
    }
    assert_eq!(scores["order_bias"]["first_less_second"]["value"], json!(1.0));
    assert_eq!((&scores["readings"], &scores["unread"]), (&json!({"as-asked": 8}), &json!([])));
    assert_eq!((&first["judge"]["tokens"], &first["judge"]["sent"]), (&json!(800), &json!(8)));
    let kept: Value =
        serde_json::from_slice(&fs::read(folder.path().join("judged/result.json")).unwrap()).unwrap();
    assert_eq!(kept, first);

    let second = result(folder.path(), &[]);
    assert_eq!((told.count(), &second["judge"]["sent"]), (8, &json!(0)));
    assert_eq!((&second["scores"], &second["judge"]["tokens"]), (&first["scores"], &json!(800)));
    // Another answer is asked for, with the order's other half; the others are not.
    answers(folder.path(), "tuned", [8, 6, 9, 5]);
    assert_eq!(result(folder.path(), &[])["judge"]["sent"], 2);
    let (_, words, _) = judge(folder.path(), &[]);
    for part in
        ["% of base", "Bradley-Terry", "first wins", "8 read as asked for, 0 not at all", "the-judge at http"]
    {
        assert!(words.contains(part), "{part}: {words}");
    }
    assert!(!fs::read_to_string(replies(folder.path())).unwrap().contains("sk-secret"));
}

#[test]
fn verdicts_of_several_systems_are_put_beside_those_of_another_judge() {
    let better = |seen: &Seen, _: usize| {
        let [first, second] = points(seen);
        let number = if first > second {
            1
        } else if first < second {
            2
        } else {
            3
        };
        Act::Say(format!("Both tried.\n\n{number}"))
    };
    let told = Judge::new(better);
    let folder = folder(&told, "kind: verdict");
    answers(folder.path(), "third", [5, 5, 5, 5]);
    let text = fs::read_to_string(folder.path().join("JUDGE.yaml")).unwrap();
    let text = text.replace("tuned: tuned.jsonl", "tuned: tuned.jsonl, third: third.jsonl");
    fs::write(folder.path().join("JUDGE.yaml"), &text).unwrap();
    let of_all = result(folder.path(), &[]);
    assert_eq!(told.count(), 4 * 6);
    let better = &of_all["better"];
    assert_eq!(
        (better["games"].as_u64(), &better["percent"], better.get("reference")),
        (Some(24), &Value::Null, None)
    );
    assert_eq!(better["elo"][0]["system"], "tuned");
    assert_eq!((&better["order_bias"]["agree"]["value"], of_all.get("scores")), (&json!(1.0), None));
    // Beside the reference only: a subset of the same requests.
    fs::write(folder.path().join("JUDGE.yaml"), text.clone() + "pairs: reference\n").unwrap();
    let beside = result(folder.path(), &[]);
    assert_eq!((beside["better"]["games"].as_u64(), told.count()), (Some(16), 24));

    // Another judge of the same answers, who gives scores.
    let other = Judge::new(|seen, _| fair(seen));
    let text = text.replace(&told.url, &other.url).replace("kind: verdict", "kind: scores");
    fs::write(folder.path().join("JUDGE.yaml"), text.replace("output: judged", "output: other")).unwrap();
    let agreed = result(folder.path(), &["--beside", "judged"]);
    let agreement = &agreed["agreement"][0];
    assert_eq!(agreement["between"], json!(["scores", "better of judged"]));
    assert_eq!((agreement["games"].as_u64(), agreement["unmatched"].as_u64()), (Some(16), Some(8)));
    let share = agreement["share"]["value"].as_f64().unwrap();
    assert!((0.5..1.0).contains(&share), "{agreement}");
}

#[test]
fn what_may_pass_is_tried_again_and_waits_are_as_the_endpoint_asks() {
    let told = Judge::new(|seen, before| match before {
        0 => Act::Answer(429, "retry-after-ms: 250\r\n", r#"{"error": {"message": "slow down"}}"#.into()),
        1 => Act::Answer(503, "", "<html>busy</html>".into()),
        2 => Act::Close,
        3 => Act::Stall,
        4 => Act::Break,
        5 => Act::Answer(200, "Content-Encoding: identity\r\n", said("8 7").to_string()),
        _ => fair(seen),
    });
    let folder = folder(&told, "timeout: 0.4");
    let got = result(folder.path(), &[]);
    assert_eq!((&got["judge"]["sent"], &got["judge"]["again"]), (&json!(48), &json!(40)));
    let mut times: BTreeMap<String, Vec<Instant>> = BTreeMap::new();
    told.seen().into_iter().for_each(|seen| times.entry(seen.text()).or_default().push(seen.at));
    for at in times.values() {
        assert!(at[1] - at[0] >= Duration::from_millis(250), "{:?}", at[1] - at[0]);
    }
}

#[test]
fn requests_are_sent_side_by_side_and_a_wait_that_is_asked_for_holds_for_all() {
    let both = Barrier::new(2);
    let told = Judge::new(move |seen, _| {
        both.wait();
        fair(seen)
    });
    let side_by_side = folder(&told, "parallel: 2\ntimeout: 10\nretries: 0");
    result(side_by_side.path(), &[]);

    let count = AtomicUsize::new(0);
    let told = Judge::new(move |seen, _| match count.fetch_add(1, Ordering::SeqCst) {
        0 => Act::Answer(429, "retry-after-ms: 600\r\n", String::new()),
        1 => {
            // So that the other thread has heard of the wait.
            thread::sleep(Duration::from_millis(200));
            fair(seen)
        }
        _ => fair(seen),
    });
    let folder = folder(&told, "parallel: 2");
    assert_eq!(result(folder.path(), &[])["judge"]["again"], 1);
    let seen = told.seen();
    let early = seen.iter().filter(|of| of.at - seen[0].at < Duration::from_millis(500)).count();
    assert!(early <= 2, "{early} requests came before the time");
}

#[test]
fn a_request_that_comes_to_nothing_is_told_and_costs_no_other() {
    let html = "<!DOCTYPE html>\n<title>\u{1b}[31mOops</title>";
    let two = json!({"choices": [said("8 7")["choices"][0], said("8 7")["choices"][0]]}).to_string();
    let call = json!({"choices": [{"message": {"content": null, "tool_calls": []}}]}).to_string();
    let error = r#"{"error": {"message": "the prompt is too long", "type": "invalid_request_error"}}"#;
    let cases = [
        (Act::Answer(200, "", "lorem ipsum".into()), "the answer is no JSON: lorem ipsum"),
        (Act::Answer(200, "", html.into()), "the answer is no JSON: <!DOCTYPE html>"),
        (Act::Answer(200, "", String::new()), "the answer is no JSON: (nothing)"),
        (Act::Answer(200, "", "[1]".into()), "the answer has no `choices`: [1]"),
        (Act::Answer(200, "", r#"{"choices": []}"#.into()), "the answer has 0 choices in place of one"),
        (Act::Answer(200, "", two), "the answer has 2 choices in place of one"),
        (Act::Answer(200, "", call), "the answer's message has no `content`"),
        (Act::Answer(200, "", error.into()), "200 OK, but an error: the prompt is too long"),
        (Act::Answer(400, "", error.into()), "400 Bad Request: the prompt is too long"),
        (Act::Answer(500, "", "boom".into()), "500 Internal Server Error: boom, 2 times"),
        (Act::Answer(200, "", "x".repeat(5 << 20)), "the answer is longer than 4 MiB"),
        (Act::Close, "connection lost"),
        (Act::Stall, "no reply within 0.3 s, 2 times"),
    ];
    for (act, expected) in cases {
        let told = Judge::new(move |seen, _| match seen.text().contains("What is 2?") {
            true => act.clone(),
            false => fair(seen),
        });
        let folder = folder(&told, "timeout: 0.3\nretries: 1");
        let (code, out, errors) = judge(folder.path(), &["--json"]);
        assert_eq!((code, out.as_str()), (2, ""), "{errors}");
        assert!(
            errors.contains("2 of 8 judgements have no reply")
                && errors.contains("question q2, base before tuned: "),
            "{errors}"
        );
        assert!(errors.contains(expected) && !errors.contains('\u{1b}'), "{expected}: {errors}");
        assert_eq!(lines(&replies(folder.path())), 6);
        // What there is can be counted, and is told to be less than all.
        let sent = told.count();
        let partial = result(folder.path(), &["--partial"]);
        assert_eq!((&partial["judge"]["missing"], &partial["scores"]["games"]), (&json!(2), &json!(6)));
        assert_eq!(told.count(), sent);
        assert_eq!(names(&folder.path().join("judged")), ["replies.jsonl"]);
    }
}

#[test]
fn an_endpoint_that_answers_nobody_is_not_asked_for_all() {
    for (status, expected) in
        [(401, "401 Unauthorized: no such key"), (404, "404 Not Found"), (307, "307 Temporary")]
    {
        let body = r#"{"error": {"message": "no such key"}}"#;
        let told =
            Judge::new(move |_, _| Act::Answer(status, "Location: http://127.0.0.1:9/\r\n", body.into()));
        let folder = folder(&told, "parallel: 1");
        let (code, _, errors) = judge(folder.path(), &[]);
        assert_eq!((code, told.count()), (2, 1), "{errors}");
        assert!(errors.contains(expected) && errors.contains("8 of 8 judgements"), "{errors}");
    }
    // Nobody listens.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let told = Judge::new(|_, _| Act::Close);
    let folder = folder(&told, "retries: 1");
    write(folder.path(), &format!("http://127.0.0.1:{port}"), "retries: 1");
    let (code, _, errors) = judge(folder.path(), &[]);
    assert_eq!(code, 2);
    assert!(errors.contains("nothing but failures, 5 in a row, the last: connection lost"), "{errors}");
}

#[test]
fn a_command_that_was_killed_goes_on_where_it_stopped() {
    // Three are answered, and then the judge falls silent.
    let count = Arc::new(Mutex::new(0));
    let told = Judge::new(move |seen, _| {
        let mut count = count.lock().unwrap();
        *count += 1;
        if (4..=5).contains(&*count) { Act::Stall } else { fair(seen) }
    });
    let folder = folder(&told, "parallel: 2\ntimeout: 50");
    let mut child = command(folder.path(), &[]).spawn().unwrap();
    let begun = Instant::now();
    while told.count() < 5 && begun.elapsed() < Duration::from_secs(30) {
        thread::sleep(Duration::from_millis(5));
    }
    let kept = replies(folder.path());
    // Nobody else may write there meanwhile.
    let (code, _, errors) = judge(folder.path(), &[]);
    assert!(code == 2 && errors.contains("judged: another `eval judge` is writing there"), "{errors}");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(lines(&kept), 3);
    // As if the kill had come in the middle of a line.
    let mut file = fs::OpenOptions::new().append(true).open(&kept).unwrap();
    file.write_all(br#"{"request": "00", "question": "q"#).unwrap();
    let (code, out, errors) = judge(folder.path(), &["--json"]);
    assert_eq!(code, 0, "{errors}");
    assert!(errors.contains("a last line without its end was cut off"), "{errors}");
    assert_eq!((told.count(), lines(&kept)), (5 + 5, 8));
    let whole = Judge::new(|seen, _| fair(seen));
    let other = self::folder(&whole, "");
    let out: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(out["scores"], result(other.path(), &[])["scores"]);

    // A line that is damaged within is not passed over.
    let text = fs::read_to_string(&kept).unwrap();
    fs::write(&kept, text.replacen("\"reply\"", "\"rep", 1)).unwrap();
    let (code, _, errors) = judge(folder.path(), &[]);
    assert!(code == 2 && errors.contains("replies.jsonl:1: the line is no reply"), "{errors}");
}

#[test]
#[cfg(unix)]
fn a_command_that_is_asked_to_stop_keeps_what_it_has_and_waits_for_nothing_new() {
    let told = Judge::new(|seen, _| match seen.text().contains("What is 1?") {
        true => fair(seen),
        false => Act::Answer(503, "retry-after: 60\r\n", String::new()),
    });
    let folder = folder(&told, "parallel: 1");
    let child =
        command(folder.path(), &["--json"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let begun = Instant::now();
    while told.count() < 3 && begun.elapsed() < Duration::from_secs(30) {
        thread::sleep(Duration::from_millis(5));
    }
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(75), 0), "{errors}");
    assert!(errors.contains("stopped on request: 6 of 8 judgements have no reply"), "{errors}");
    assert_eq!((told.count(), lines(&replies(folder.path()))), (3, 2));
}

#[test]
fn a_budget_ends_a_command_and_the_next_one_goes_on() {
    let told = Judge::new(|seen, _| fair(seen));
    let folder = folder(&told, "parallel: 1\nbudget: {requests: 5}");
    let (code, out, errors) = judge(folder.path(), &["--json"]);
    assert_eq!((code, out.as_str(), told.count()), (75, "", 5), "{errors}");
    assert!(errors.contains("the budget of 5 requests is used up"), "{errors}");
    assert!(errors.contains("3 of 8 judgements have no reply"), "{errors}");
    assert_eq!((result(folder.path(), &[])["judge"]["sent"].clone(), told.count()), (json!(3), 8));
    // What is sent again counts too, and tokens are kept free for a reply before it comes.
    let ill = Judge::new(|_, _| Act::Answer(500, "", String::new()));
    let folder = self::folder(&ill, "budget: {requests: 3}\nparallel: 1");
    assert_eq!((judge(folder.path(), &[]).0, ill.count()), (75, 3));
    let told = Judge::new(|seen, _| fair(seen));
    let folder = self::folder(&told, "budget: {tokens: 300}");
    let (code, _, errors) = judge(folder.path(), &[]);
    assert!(code == 2 && errors.contains("`budget.tokens` is less than one request may take"), "{errors}");
    assert_eq!(told.count(), 0);
    let folder = self::folder(&told, "budget: {tokens: 1700}");
    let (code, _, errors) = judge(folder.path(), &[]);
    assert!(code == 75 && (2..6).contains(&told.count()), "{errors}");
    assert!(errors.contains("the budget of tokens is used up"), "{errors}");
    // A connection that is lost behind a request may have been paid for; so may an answer without a reply.
    for act in [Act::Break, Act::Answer(200, "", json!({"choices": []}).to_string())] {
        let lost = Judge::new(move |_, _| act.clone());
        let folder = self::folder(&lost, "budget: {tokens: 2600}\nparallel: 1");
        let (code, _, errors) = judge(folder.path(), &[]);
        assert!(code == 75 && errors.contains("the budget of tokens is used up"), "{errors}");
        assert!((1..4).contains(&lost.count()), "{}", lost.count());
        let limits = "with a budget of 2600 tokens; each has ";
        assert!(errors.contains(limits) && errors.contains(" more tries, the first after "), "{errors}");
    }
}

#[test]
fn replies_without_a_verdict_are_counted_and_shown_with_their_question() {
    let told = Judge::new(|seen, _| {
        match seen.text() {
        text if text.contains("What is 3?") => Act::Answer(
            200,
            "",
            json!({
                "choices": [{"message": {"refusal": "I would \u{1b}rather\nnot say."}, "finish_reason": "length"}],
                "usage": {"total_tokens": u64::MAX},
            })
            .to_string(),
        ),
        _ => fair(seen),
    }
    });
    let folder = folder(&told, "");
    let got = result(folder.path(), &[]);
    assert_eq!((got["scores"]["games"].as_u64(), got["scores"]["questions"].as_u64()), (Some(6), Some(3)));
    let unread = got["scores"]["unread"].as_array().unwrap();
    assert_eq!((unread.len(), &unread[0]["question"]), (2, &json!("q3")));
    assert_eq!(unread[0]["finish_reason"], "length");
    let (_, words, _) = judge(folder.path(), &[]);
    assert!(words.contains("6 read as asked for, 2 not at all"), "{words}");
    assert!(
        words.contains("question q3, base before tuned: ") && words.contains("(ended by length)"),
        "{words}"
    );
    assert!(!words.contains('\u{1b}'));
    assert_eq!(told.count(), 8);
    // None at all.
    let told = Judge::new(|_, _| Act::Say("No.".into()));
    let folder = self::folder(&told, "");
    let (code, _, errors) = judge(folder.path(), &[]);
    assert!(
        code == 2 && errors.contains("none of 8 replies has two scores; that to question q1"),
        "{errors}"
    );
    assert!(!errors.contains("cut off"), "{errors}");
    let long = said("First, I").to_string().replace("\"stop\"", "\"length\"");
    let told = Judge::new(move |_, _| Act::Answer(200, "", long.clone()));
    let folder = self::folder(&told, "");
    let (code, _, errors) = judge(folder.path(), &[]);
    assert!(code == 2 && errors.contains("all were cut off: raise `judge.max_tokens`"), "{errors}");
}

#[test]
fn a_prompt_of_ones_own_is_filled_once() {
    let told = Judge::new(|_, _| Act::Say("7 7".into()));
    let folder = folder(&told, "prompt: prompt.txt\nparallel: 1");
    fs::write(folder.path().join("prompt.txt"), "{answer_2}|{question}|{answer_1}|{other}").unwrap();
    let answer = |n: usize| json!({"id": format!("q{n}"), "answer": "I quote {answer_2} and {question}"});
    write_lines(folder.path().join("base.jsonl"), &(1..=4).map(answer).collect::<Vec<_>>());
    result(folder.path(), &[]);
    let seen = &told.seen()[0];
    assert_eq!(seen.text(), "tuned: worth 8 points|What is 1?|I quote {answer_2} and {question}|{other}");
    assert_eq!(seen.body["messages"].as_array().unwrap().len(), 1);
    fs::write(folder.path().join("prompt.txt"), "{answer_1} or {question}").unwrap();
    let (code, _, errors) = judge(folder.path(), &[]);
    assert!(
        code == 2 && errors.contains("prompt.txt: the judge would not see all: {answer_2} is missing"),
        "{errors}"
    );
}

#[test]
fn answers_are_read_in_others_forms_and_written_in_them() {
    let told = Judge::new(|seen, _| fair(seen));
    let folder = folder(&told, "");
    let path = folder.path();
    let expected = result(path, &[])["scores"].clone();
    for (form, file) in
        [("mt-bench", "base.jsonl"), ("alpaca-eval", "base.json"), ("arena-hard", "base.jsonl")]
    {
        let (code, _, errors) = judge(path, &["--export", form, form]);
        assert_eq!(code, 0, "{errors}");
        let other = file.replace("base", "tuned");
        assert_eq!(names(&path.join(form)), [file, &other]);
        // What was written is read again, as the same answers to the same questions.
        let yaml = fs::read_to_string(path.join("JUDGE.yaml")).unwrap();
        let changed = yaml.replace("base.jsonl", &format!("{form}/{file}"));
        fs::write(path.join("JUDGE.yaml"), changed.replace("tuned.jsonl", &format!("{form}/{other}")))
            .unwrap();
        let got = result(path, &[]);
        assert_eq!((&got["scores"], &got["judge"]["sent"]), (&expected, &json!(0)), "{form}");
        fs::write(path.join("JUDGE.yaml"), yaml).unwrap();
    }
    let first = |file: &str| -> Value {
        serde_json::from_str(fs::read_to_string(path.join(file)).unwrap().lines().next().unwrap()).unwrap()
    };
    let mt = first("mt-bench/base.jsonl");
    assert_eq!((&mt["question_id"], &mt["model_id"]), (&json!("q1"), &json!("base")));
    assert_eq!(mt["choices"], json!([{"index": 0, "turns": ["base: worth 4 points"]}]));
    let arena = first("arena-hard/base.jsonl");
    assert_eq!((&arena["uid"], &arena["model"]), (&json!("q1"), &json!("base")));
    assert_eq!(
        arena["messages"][1],
        json!({"role": "assistant", "content": {"answer": "base: worth 4 points"}})
    );
    let alpaca: Value =
        serde_json::from_slice(&fs::read(path.join("alpaca-eval/base.json")).unwrap()).unwrap();
    assert_eq!(
        alpaca[1],
        json!({"instruction": "What is 2?", "output": "base: worth 6 points", "generator": "base"})
    );
    let (code, _, errors) = judge(path, &["--export", "alpaca-eval", "mt-bench"]);
    assert!(code == 2 && errors.contains("mt-bench: is not empty"), "{errors}");
    let (code, _, errors) = judge(path, &["--export", "alpaca", "new"]);
    assert!(
        code == 2 && errors.contains("--export alpaca: expected mt-bench, alpaca-eval or arena-hard"),
        "{errors}"
    );

    // Vicuna's questions and answers, and answers that stand in order.
    let vicuna: Vec<Value> = (1..=4)
        .map(|n| json!({"question_id": n, "text": format!("What is {n}?"), "category": "x"}))
        .collect();
    write_lines(path.join("questions.jsonl"), &vicuna);
    // Ids say whose answer it is, not the order.
    let all = [(3, 8), (1, 4), (4, 2), (2, 6)]
        .map(|(n, worth)| json!({"question_id": n, "text": format!("base: worth {worth} points")}));
    write_lines(path.join("base.jsonl"), &all);
    let all =
        [8, 6, 9, 4].map(|worth| json!({"messages": [], "text": format!("tuned: worth {worth} points")}));
    write_lines(path.join("tuned.jsonl"), &all);
    let got = result(path, &[]);
    assert_eq!((&got["scores"]["percent"], &got["judge"]["sent"]), (&expected["percent"], &json!(0)));
}

#[test]
fn files_that_are_not_understood_are_refused_before_anybody_is_asked() {
    let told = Judge::new(|seen, _| fair(seen));
    let folder = folder(&told, "");
    let path = folder.path();
    let yaml = fs::read_to_string(path.join("JUDGE.yaml")).unwrap();
    let refused = |from: &str, to: &str| {
        assert!(yaml.contains(from), "{from}");
        fs::write(path.join("JUDGE.yaml"), yaml.replacen(from, to, 1)).unwrap();
        let (code, _, errors) = judge(path, &[]);
        fs::write(path.join("JUDGE.yaml"), &yaml).unwrap();
        assert_eq!(code, 2, "{errors}");
        errors
    };
    for (from, to, expected) in [
        ("questions:", "question:", "unknown key `question`; did you mean `questions`?"),
        ("model:", "modle:", "unknown key `judge.modle`; did you mean `judge.model`?"),
        ("backoff: 0.01", "learning_rate: 1", "unknown key `learning_rate`\n"),
        ("questions: questions.jsonl\n", "", "JUDGE.yaml: `questions` is required"),
        (
            "answers: {base: base.jsonl, tuned: tuned.jsonl}",
            "answers: {base: base.jsonl}",
            "`answers` needs two systems",
        ),
        (
            "answers: {base: base.jsonl, tuned: tuned.jsonl}",
            "answers: base.jsonl",
            "`answers`: expected a section of keys",
        ),
        ("tuned: tuned", "../x: tuned", "`answers` calls a system \"../x\""),
        ("reference: base", "reference: bas", "`reference` is none of the systems in `answers`: base, tuned"),
        ("reference: base\n", "pairs: reference\n", "`pairs` is `reference`, and no system is named"),
        ("backoff: 0.01", "backoff: -1", "`backoff` must be more than 0 seconds"),
        ("backoff: 0.01", "timeout: 0", "`timeout` must be more than 0 seconds"),
        ("backoff: 0.01", "parallel: 0", "`parallel` must be from 1 to 256"),
        ("backoff: 0.01", "kind: points", "`kind`: expected scores or verdict, found `points`"),
        ("backoff: 0.01", "budget: {requests: 0}", "`budget.requests` must be 1 or more"),
        (&told.url, "localhost:8000", "`judge.url` must be an address that begins with http://"),
        ("http://", "http://me:secret@", "`judge.url` has signs that such an address does not have"),
        ("output: judged\n", "", "`output` is required"),
        ("base.jsonl", "nowhere.jsonl", "nowhere.jsonl"),
    ] {
        let errors = refused(from, to);
        assert!(errors.contains(expected), "{expected}: {errors}");
    }
    let bad = |name: &str, records: &[Value], expected: &str| {
        let before = fs::read(path.join(name)).unwrap();
        write_lines(path.join(name), records);
        let (code, _, errors) = judge(path, &[]);
        assert!(code == 2 && errors.contains(expected), "{expected}: {errors}");
        fs::write(path.join(name), before).unwrap();
    };
    let of = |id: &str| json!({"id": id, "answer": "worth 1"});
    bad(
        "base.jsonl",
        &["q1", "q2", "q1"].map(of),
        "base.jsonl:3: a second answer to the question q1; the first stands in base.jsonl:1",
    );
    bad("base.jsonl", &["q1", "q4"].map(of), "base.jsonl: 2 of 4 questions have no answer: q2, q3");
    bad(
        "base.jsonl",
        &[json!({"answer": "a"})],
        "base.jsonl: 1 answers without ids do not belong to 4 questions",
    );
    bad("base.jsonl", &[of("q1"), json!({"answer": "a"})], "some answers have an id and others have none");
    bad("base.jsonl", &[json!({"id": "q1", "text": null})], "base.jsonl:1: the record has no answer");
    bad(
        "questions.jsonl",
        &[json!({"id": [1], "question": "?"})],
        "questions.jsonl:1: `id` must be a number or a text",
    );
    bad(
        "questions.jsonl",
        &[json!({"id": 1, "query": "?"})],
        "questions.jsonl:1: the record has no question",
    );
    bad(
        "questions.jsonl",
        &[json!({"id": 1, "question": "?"})],
        "questions.jsonl: two questions or more are needed",
    );
    let (code, _, errors) = judge(path, &["--partial"]);
    assert!(code == 2 && errors.contains("there are no replies in judged yet"), "{errors}");
    assert_eq!((told.count(), path.join("judged").exists()), (0, false));
    // A key is needed to ask, and for nothing else.
    let expected = "`judge.key_env` names the variable NO_SUCH_KEY, which is not set";
    assert!(refused("JUDGE_KEY", "NO_SUCH_KEY").contains(expected));
    assert_eq!(told.count(), 0);
    result(path, &[]);
    let paid = told.count();
    fs::write(path.join("JUDGE.yaml"), yaml.replace("JUDGE_KEY", "NO_SUCH_KEY")).unwrap();
    result(path, &[]);
    assert_eq!(told.count(), paid);
}

#[test]
fn ratings_in_files_give_the_same_tables() {
    let ratings = Path::new(env!("CARGO_MANIFEST_DIR")).join("../eval/tests/fixtures/ratings");
    let folder = tempdir().unwrap();
    let told = |more: &[&str]| {
        let output =
            crate::run(folder.path(), &[&["eval", "judge", "--ratings", text(&ratings)], more].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let got: Value = serde_json::from_str(&told(&["--json"])).unwrap();
    // `chat` is beside all others, so its scores are 100 %.
    let percent = &got["scores"]["percent"][0];
    assert_eq!((&percent["system"], &got["scores"]["reference"]), (&json!("alpha"), &json!("chat")));
    let expected = 50.0 * (29.0 / 34.0 + 28.0 / 34.5);
    assert!((percent["percent"]["value"].as_f64().unwrap() - expected).abs() < 1e-9, "{percent}");
    assert_eq!((got["scores"]["games"].as_u64(), got["better"]["games"].as_u64()), (Some(15), Some(23)));
    assert_eq!(got["better"]["elo"][2]["system"], "beta");
    assert_eq!(
        got["scores"]["readings"],
        json!({"as-asked": 12, "brackets": 1, "labelled": 1, "in-words": 1})
    );
    assert_eq!(got["better"]["unread"][0]["ending"], "error");
    assert_eq!(got["agreement"][0]["between"], json!(["scores", "better"]));
    assert_eq!(
        (got["statistics"]["elo"]["k"].as_f64(), got["files"].as_array().unwrap().len()),
        (Some(32.0), 10)
    );
    let words = told(&[]);
    for part in [
        "% of chat",
        "83.2",
        "Bradley-Terry",
        "agreement   scores and better: 64.3 %",
        "unread      question 4",
    ] {
        assert!(words.contains(part), "{part}: {words}");
    }
    // Beside itself it agrees with itself.
    let beside: Value = serde_json::from_str(&told(&["--json", "--beside", text(&ratings)])).unwrap();
    assert_eq!(beside["agreement"].as_array().unwrap().len(), 1 + 4);
    assert_eq!(beside["agreement"][1]["share"]["value"], json!(1.0));
    let refused = |more: &[&str]| failure(folder.path(), &[&["eval", "judge"], more].concat());
    assert!(
        refused(&["--ratings", text(&ratings), "--reference", "gamma"])
            .contains("--reference gamma: no system with scores is called so; there are: alpha, beta, chat")
    );
    assert!(refused(&["--ratings", "nowhere"]).contains("cannot read nowhere"));
    assert!(refused(&[]).contains("needs `JUDGE.yaml` or `--ratings <DIR>`"));
}
