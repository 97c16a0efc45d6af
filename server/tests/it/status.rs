//! Health, metrics and the page.

use serde_json::json;

use crate::support::{SAYS, Server, Start, adapter, encode, folder};

#[test]
fn metrics_have_vllms_names() {
    let folder = folder();
    let adapters = vec![("a".to_owned(), adapter(&folder.path().join("a"), 'A', 1))];
    let server = Server::with(Start { adapters, ..Start::default() });
    server.complete("a");
    let reply = server.get("/metrics");
    assert!(reply.header("content-type").unwrap().starts_with("application/openmetrics-text"));
    let labels = "model_name=\"base\",adapter=\"a\",tenant=\"default\"";
    let new = encode(SAYS).len() + 1;
    for line in [
        "vllm:num_requests_running{model_name=\"base\"} 0".to_owned(),
        "vllm:num_requests_waiting{model_name=\"base\"} 0".to_owned(),
        "vllm:kv_cache_usage_perc{model_name=\"base\"} 0.0".to_owned(),
        format!("vllm:prompt_tokens_total{{{labels}}} 2"),
        format!("vllm:generation_tokens_total{{{labels}}} {new}"),
        format!("vllm:time_to_first_token_seconds_count{{{labels}}} 1"),
        format!("vllm:inter_token_latency_seconds_count{{{labels}}} {}", new - 1),
        format!("vllm:e2e_request_latency_seconds_count{{{labels}}} 1"),
        format!("vllm:request_success_total{{{labels},finished_reason=\"stop\"}} 1"),
    ] {
        assert!(reply.body.lines().any(|told| told == line), "{line}\nin\n{}", reply.body);
    }
}

#[test]
fn the_number_of_labels_has_an_end() {
    let folder = folder();
    for i in 0..510 {
        adapter(&folder.path().join(format!("a{i}")), 'A', 1);
    }
    let server = Server::with(Start { root: Some(folder.path().to_owned()), ..Start::default() });
    for i in 0..510 {
        let body = json!({"model": format!("a{i}"), "prompt": "x", "max_tokens": 0});
        server.post("/v1/completions", &body).json(200);
    }
    let metrics = server.get("/metrics").body;
    assert_eq!(metrics.matches("vllm:prompt_tokens_total{").count(), 501);
    assert!(
        metrics.contains(
            "vllm:prompt_tokens_total{model_name=\"base\",adapter=\"other\",tenant=\"default\"} 20"
        )
    );
}

#[test]
fn the_page_is_there_with_all_that_it_needs() {
    let server = Server::start();
    let page = server.get("/");
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert!(page.header("content-security-policy").unwrap().contains("default-src 'self'"));
    let script = "text/javascript";
    for (path, kind) in
        [("/style.css", "text/css"), ("/common.js", script), ("/page.js", script), ("/jobs.js", script)]
    {
        let file = server.get(path);
        assert!(page.body.contains(&format!("\"{path}\"")) && !file.body.is_empty());
        assert_eq!(file.header("content-type"), Some(format!("{kind}; charset=utf-8").as_str()));
    }
    for text in [
        &page.body,
        &server.get("/common.js").body,
        &server.get("/page.js").body,
        &server.get("/jobs.js").body,
        &server.get("/style.css").body,
    ] {
        assert!(!text.contains("http://") && !text.contains("https://"), "it works without a network");
    }
}

#[test]
fn the_state_tells_what_the_page_shows() {
    let server = Server::start();
    server.complete("base");
    let state = server.get("/api/state").json(200);
    assert_eq!(
        (&state["model"], &state["draining"], &state["has_jobs"], &state["adapters"]),
        (&json!("base"), &json!(false), &json!(false), &json!([]))
    );
    assert_eq!(state["base"], json!({"prompt_tokens": 2, "new_tokens": encode(SAYS).len()}));
    assert_eq!(state["load"]["pages"], 8);
    for times in ["seconds_to_first_token", "seconds_between_tokens", "seconds_of_request"] {
        let times = state[times].as_array().unwrap();
        assert!(times.len() == 2 && times[0].as_f64() <= times[1].as_f64());
    }
}
