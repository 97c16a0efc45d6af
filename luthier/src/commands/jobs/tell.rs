//! `luthier jobs list`, `show` and `why`.

use std::time::Duration;

use serde_json::Value;

use super::super::pool::client::Client;
use crate::cli::{ListJobs, OneJob};
use crate::terminal::{self, Table, bytes, printable, rough};

pub(super) fn list(args: &ListJobs) -> anyhow::Result<()> {
    let mut path = format!("/pool/v1/jobs?limit={}&all={}", args.limit, args.all);
    for (key, value) in [("project", &args.project), ("user", &args.user), ("group", &args.group)] {
        if let Some(value) = value {
            path += &format!("&{key}={}", super::submit::escaped(value));
        }
    }
    let answer = Client::open(&args.which)?.get(&path)?;
    if args.which.json {
        return terminal::print_json(&answer);
    }
    let mut table =
        Table::new(["job", "name", "project", "user", "priority", "phase", "asks for", "age", "stopped"]);
    let now = jobs::supervisor::now();
    for job in answer["jobs"].as_array().into_iter().flatten() {
        table.row([
            job["id"].to_string(),
            text(&job["name"]),
            text(&job["project"]),
            text(&job["user"]),
            job["priority"].to_string(),
            text(&job["phase"]),
            request(&job["request"]),
            since(&job["submitted"], now),
            job["evictions"].to_string(),
        ]);
    }
    terminal::print_line(table)
}

pub(super) fn show(args: &OneJob) -> anyhow::Result<()> {
    let job = Client::open(&args.which)?.get(&format!("/pool/v1/jobs/{}", args.job))?;
    if args.which.json {
        return terminal::print_json(&job);
    }
    let now = jobs::supervisor::now();
    let mut lines = vec![
        format!("job {}: {}", args.job, text(&job["name"])),
        format!(
            "{} of {}, {}, priority {}",
            text(&job["user"]),
            text(&job["project"]),
            text(&job["class"]),
            job["priority"]
        ),
        format!(
            "{}, submitted {} ago, asks for {}",
            text(&job["phase"]),
            since(&job["submitted"], now),
            request(&job["request"])
        ),
    ];
    for (key, word) in [("expected_start", "start"), ("expected_end", "end")] {
        if let Some(at) = job[key].as_u64() {
            lines.push(match at > now {
                true => format!("{word} expected in {}", rough(Duration::from_millis(at - now))),
                false => format!("{word} was expected {} ago", rough(Duration::from_millis(now - at))),
            });
        }
    }
    for attempt in job["history"].as_array().into_iter().flatten() {
        let mut line = format!("start {}, {} ago", attempt["number"], since(&attempt["started"], now));
        if let Some(reason) = attempt["reason"].as_str() {
            line += &format!("; stopped: {}", printable(reason));
        }
        if let Some(lost) = attempt["lost_steps"].as_u64() {
            line += &format!("; {lost} steps lost");
        }
        lines.push(line);
    }
    let command = job["spec"]["launch"]["arguments"].as_array().into_iter().flatten().map(text);
    lines.push(command.collect::<Vec<_>>().join(" "));
    terminal::print_line(lines.join("\n"))
}

pub(super) fn why(args: &OneJob) -> anyhow::Result<()> {
    let why = Client::open(&args.which)?.get(&format!("/pool/v1/jobs/{}/why", args.job))?;
    if args.which.json {
        return terminal::print_json(&why);
    }
    terminal::print_line(format!("{}: {}", text(&why["rule"]), text(&why["message"])))?;
    terminal::print_line(format!("waits for: {}", text(&why["unblocks"])))?;
    let now = jobs::supervisor::now();
    match why["expected"].as_u64() {
        Some(at) if at > now => {
            terminal::print_line(format!("expected in {}", rough(Duration::from_millis(at - now))))
        }
        _ => Ok(()),
    }
}

fn text(value: &Value) -> String {
    printable(value.as_str().unwrap_or_default())
}

fn since(value: &Value, now: u64) -> String {
    rough(Duration::from_millis(now.saturating_sub(value.as_u64().unwrap_or(now))))
}

fn counted(count: &str, one: &str) -> String {
    if count == "1" { format!("1 {one}") } else { format!("{count} {one}s") }
}

/// What a job asks for, in words.
fn request(request: &Value) -> String {
    let range = |key: &str, scale: f64| {
        // Rust writes a whole number without a point.
        let of = |end: &str| (request[key][end].as_f64().unwrap_or(0.0) / scale).to_string();
        let (min, max) = (of("min"), of("max"));
        if min == max { min } else { format!("{min}-{max}") }
    };
    let mut parts = vec![counted(&range("cpus", 1.0), "cpu")];
    if request["devices"]["max"].as_u64().unwrap_or(0) > 0 {
        parts.insert(0, counted(&range("devices", 1000.0), "device"));
    }
    if let Some(memory) = request["memory"].as_u64().filter(|memory| *memory > 0) {
        parts.push(bytes(memory));
    }
    if let Some(members) = request["members"].as_u64().filter(|members| *members > 1) {
        parts.insert(0, format!("{members} x"));
    }
    parts.join(" ")
}
