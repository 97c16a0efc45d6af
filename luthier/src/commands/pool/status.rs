//! `luthier pool status`: what each project may have, has and waits for.

use std::time::Duration;

use serde_json::Value;

use crate::cli::WhichPool;
use crate::terminal::{self, Table, bytes, printable, rough};

use super::client::Client;

pub(super) fn run(which: &WhichPool) -> anyhow::Result<()> {
    let status = Client::open(which)?.get("/pool/v1/status")?;
    if which.json {
        return terminal::print_json(&status);
    }
    let resource = divided(&status);
    let mut table = Table::new(["", "quota", "limit", "share", "has", "running", "waiting", "used"]);
    for queue in list(&status, "queues") {
        let indent = if queue["department"].is_null() { "" } else { "  " };
        table.row([
            format!("{indent}{}", printable(queue["name"].as_str().unwrap_or_default())),
            bound(&queue["quota"][resource], resource),
            bound(&queue["limit"][resource], resource),
            units(queue["share"][resource].as_f64().unwrap_or(0.0), resource),
            amount(&queue["held"][resource], resource),
            queue["running"].to_string(),
            queue["waiting"].to_string(),
            format!("{:.2} h", queue["hours"][resource].as_f64().unwrap_or(0.0)),
        ]);
    }
    terminal::print_line(format!("{resource}\n{table}"))?;
    for loan in list(&status, "lending") {
        let name = |key: &str| printable(loan[key].as_str().unwrap_or_default());
        let of = loan["resource"].as_str().unwrap_or_default();
        let amount = amount(&loan["amount"], of);
        terminal::print_line(format!("{} borrows {amount} {of} of {}", name("to"), name("from")))?;
    }
    let error = |key: &str| {
        let error = status["forecasts"][key].as_u64().map(Duration::from_millis);
        error.map_or("unknown".to_owned(), rough)
    };
    if let Some(jobs) = status["forecasts"]["jobs"].as_u64().filter(|jobs| *jobs > 0) {
        let (start, end) = (error("start_error"), error("end_error"));
        terminal::print_line(format!(
            "first forecasts of the last {jobs} jobs: starts off by {start}, ends by {end} (median)"
        ))?;
    }
    let mut table = Table::new(["machine", "devices free", "cpus free", "memory free", "jobs"]);
    for node in list(&status, "nodes") {
        let jobs: Vec<String> = list(node, "jobs").map(Value::to_string).collect();
        let free = |of: &str| amount(&node["free"][of], of);
        table.row([
            printable(node["name"].as_str().unwrap_or_default()),
            free("devices"),
            free("cpus"),
            free("memory"),
            jobs.join(" "),
        ]);
    }
    terminal::print_line(format!("\n{table}"))
}

/// The scarcest resource that a policy speaks of: devices if there are any.
fn divided(status: &Value) -> &'static str {
    let has_devices = status["capacity"]["devices"].as_u64().unwrap_or(0) > 0;
    if has_devices { "devices" } else { "cpus" }
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

fn bound(value: &Value, resource: &str) -> String {
    if value.is_null() { "-".to_owned() } else { amount(value, resource) }
}

/// An amount as the API has it: devices in thousandths, memory in bytes.
pub(crate) fn amount(value: &Value, resource: &str) -> String {
    let amount = value.as_u64().unwrap_or(0);
    match resource {
        "devices" => units(amount as f64 / 1000.0, resource),
        "memory" => bytes(amount),
        _ => amount.to_string(),
    }
}

fn units(value: f64, resource: &str) -> String {
    match resource {
        "memory" => bytes(value as u64),
        // Rust writes a whole number without a point.
        _ => ((value * 1000.0).round() / 1000.0).to_string(),
    }
}
