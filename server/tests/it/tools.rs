//! Calls of tools: read out of what the model writes, and asked of it.

use serde_json::{Value, json};

use server::Limits;

use crate::support::{SAYS, Server, Start};

const PATH: &str = "/v1/chat/completions";
/// Templates with calls of each kind.
const TEMPLATES: [&str; 4] = ["qwen2.5", "qwen3", "llama-3.1", "mistral-v3"];

fn tools() -> Value {
    let place = json!({"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"], "additionalProperties": false});
    json!([
        {"type": "function", "function": {"name": "weather", "description": "Of a city.", "parameters": place}},
        {"type": "function", "function": {"name": "time", "description": "Now."}},
    ])
}

fn body(more: Value) -> Value {
    let mut body = json!({
        "model": "base", "messages": [{"role": "user", "content": "Hi"}], "tools": tools(), "max_tokens": 400,
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// Calls as names and arguments, what was said, and why it ended.
type Told = (Vec<(String, String)>, Option<String>, String);

/// What an answer tells; a stream must tell the same, by OpenAI's rules.
#[track_caller]
fn told(server: &Server, more: Value) -> Told {
    let choice = server.post(PATH, &body(more.clone())).json(200)["choices"][0].clone();
    let message = &choice["message"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut calls = Vec::new();
    for call in message["tool_calls"].as_array().into_iter().flatten() {
        assert!(call["type"] == "function" && call["id"].as_str().unwrap().len() == 9, "{call}");
        calls.push((text(&call["function"]["name"]), text(&call["function"]["arguments"])));
    }
    let said = message["content"].as_str().map(str::to_owned);
    let reason = text(&choice["finish_reason"]);
    let mut streamed = body(more);
    streamed["stream"] = json!(true);
    let (mut of_stream, mut words, mut ended) =
        (Vec::<(String, String)>::new(), String::new(), String::new());
    for event in server.post(PATH, &streamed).events() {
        let choice = &event["choices"][0];
        words += choice["delta"]["content"].as_str().unwrap_or_default();
        ended += choice["finish_reason"].as_str().unwrap_or_default();
        for call in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
            let index = call["index"].as_u64().unwrap() as usize;
            if call.get("id").is_some() {
                assert_eq!((index, &call["type"]), (of_stream.len(), &json!("function")), "{call}");
                of_stream.push((text(&call["function"]["name"]), String::new()));
            }
            assert_eq!(index + 1, of_stream.len(), "{call}");
            of_stream[index].1 += call["function"]["arguments"].as_str().unwrap();
        }
    }
    assert_eq!((of_stream, words, ended), (calls.clone(), said.clone().unwrap_or_default(), reason.clone()));
    (calls, said, reason)
}

fn call(name: &str, arguments: &str) -> (String, String) {
    (name.to_owned(), arguments.to_owned())
}

#[test]
fn calls_are_taken_out_of_the_text() {
    let here = "{\"city\": \"Bonn {\\\"x\\\"} ]\"}";
    let weather = || call("weather", here);
    let time = || call("time", "{}");
    let hermes = |name: &str, arguments: &str| {
        format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {arguments}}}\n</tool_call>")
    };
    for (template, says, calls, said) in [
        ("qwen2.5", hermes("weather", here), vec![weather()], None),
        (
            "qwen2.5",
            format!("Let me see.\n{}", hermes("weather", here)),
            vec![weather()],
            Some("Let me see."),
        ),
        (
            "qwen2.5",
            [hermes("weather", here), hermes("time", "{}")].join("\n"),
            vec![weather(), time()],
            None,
        ),
        ("qwen3", format!("<think>\nHm.\n</think>\n\n{}", hermes("time", "{}")), vec![time()], None),
        // Arguments before the name, as a text, and none.
        (
            "qwen2.5",
            format!("<tool_call>{{\"arguments\": {here}, \"name\": \"weather\"}}</tool_call>"),
            vec![call("weather", "{\"city\":\"Bonn {\\\"x\\\"} ]\"}")],
            None,
        ),
        ("qwen2.5", hermes("time", "\"{}\""), vec![time()], None),
        ("qwen2.5", "<tool_call>{\"name\": \"time\"}</tool_call>".into(), vec![time()], None),
        ("llama-3.1", format!("{{\"name\": \"weather\", \"parameters\": {here}}}"), vec![weather()], None),
        (
            "llama-3.1",
            format!(
                "{{\"name\": \"weather\", \"parameters\": {here}}}; {{\"name\": \"time\", \"parameters\": {{}}}}"
            ),
            vec![weather(), time()],
            None,
        ),
        (
            "mistral-v3",
            format!("[TOOL_CALLS] [{{\"name\": \"weather\", \"arguments\": {here}, \"id\": \"abcdefghi\"}}]"),
            vec![weather()],
            None,
        ),
        (
            "mistral-v3",
            format!(
                "[TOOL_CALLS] [{{\"name\": \"weather\", \"arguments\": {here}}}, {{\"name\": \"time\", \"arguments\": {{}}}}]"
            ),
            vec![weather(), time()],
            None,
        ),
    ] {
        let server = Server::with_template(template);
        server.says(&says);
        let expected = (calls, said.map(str::to_owned), "tool_calls".to_owned());
        assert_eq!(told(&server, json!({})), expected, "{template}: {says}");
    }
}

#[test]
fn what_only_looks_like_a_call_stays_text() {
    for (template, says) in [
        ("qwen2.5", "<tool_call>\n{\"name\": \"unknown\", \"arguments\": {}}\n</tool_call>"),
        ("qwen2.5", "Write <tool_call> before it, and </tool_call> behind."),
        ("qwen2.5", "<tool_call>{\"name\": \"time\", \"arguments\": 5}</tool_call> x"),
        ("qwen2.5", "<tool_call>{\"name\": \"ti"),
        ("qwen2.5", "a < b <tool"),
        ("llama-3.1", "{\"name\": \"Ann\", \"age\": 7} is JSON"),
        ("llama-3.1", "{ braces }"),
        ("llama-3.1", "Say {\"name\": \"time\", \"parameters\": {}}"),
        ("mistral-v3", "[TOOL_CALLS] are made like this"),
        ("chatml", "<tool_call>\n{\"name\": \"time\", \"arguments\": {}}\n</tool_call>"),
    ] {
        let server = Server::with_template(template);
        server.says(says);
        let mut more = json!({});
        if template == "chatml" {
            // This one writes no tools.
            more = json!({"tools": []});
        }
        let expected = (Vec::new(), Some(says.to_owned()), "stop".to_owned());
        assert_eq!(told(&server, more), expected, "{template}: {says}");
    }
    // Without tools nothing is a call.
    let server = Server::with_template("qwen2.5");
    let says = "<tool_call>\n{\"name\": \"time\", \"arguments\": {}}\n</tool_call>";
    server.says(says);
    for more in [json!({"tools": null}), json!({"tool_choice": "none"})] {
        assert_eq!(told(&server, more), (Vec::new(), Some(says.to_owned()), "stop".to_owned()));
    }
}

#[test]
fn one_call_at_most_if_several_are_not_wanted() {
    let server = Server::with_template("qwen2.5");
    let one = "<tool_call>\n{\"name\": \"time\", \"arguments\": {}}\n</tool_call>";
    server.says(&[one, one].join("\n"));
    let expected = (vec![call("time", "{}")], None, "tool_calls".to_owned());
    assert_eq!(told(&server, json!({"parallel_tool_calls": false})), expected);
}

#[test]
fn a_call_that_is_cut_is_told_as_far_as_it_came() {
    let server = Server::with_template("qwen2.5");
    let begun = "<tool_call>\n{\"name\": \"time\", \"arguments\": {\"zone\":";
    server.says(&format!("{begun} 5}}}}"));
    let tokens = crate::support::encode(begun).len();
    let expected = (vec![call("time", "{\"zone\":")], None, "length".to_owned());
    assert_eq!(told(&server, json!({"max_tokens": tokens})), expected);
}

/// The model wants to say something else, and is kept to a call in its template's own way.
#[test]
fn a_call_can_be_asked_for() {
    for template in TEMPLATES {
        let server = Server::with_template(template);
        let thoughts = if template == "qwen3" { "<think>\n</think>\n\n" } else { "" };
        server.says(&format!("{thoughts}{SAYS}"));
        for (choice, names) in [
            (json!("required"), &["weather", "time"][..]),
            (json!({"type": "function", "function": {"name": "time"}}), &["time"]),
            (json!({"type": "function", "function": {"name": "weather"}}), &["weather"]),
        ] {
            let (calls, said, reason) = told(&server, json!({"tool_choice": choice, "max_tokens": 3000}));
            assert_eq!((said, reason.as_str()), (None, "tool_calls"), "{template} {choice}");
            assert!(!calls.is_empty(), "{template} {choice}");
            for (name, arguments) in &calls {
                assert!(names.contains(&name.as_str()), "{template}: {calls:?}");
                let arguments: Value = serde_json::from_str(arguments).unwrap();
                assert!(name != "weather" || arguments["city"].is_string(), "{template}: {calls:?}");
            }
        }
        // What fits is taken as it comes.
        let says = match template {
            "llama-3.1" => "{\"name\": \"weather\", \"parameters\": {\"city\": \"Bonn\"}}",
            "mistral-v3" => "[TOOL_CALLS] [{\"name\": \"weather\", \"arguments\": {\"city\": \"Bonn\"}}]",
            _ => "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Bonn\"}}\n</tool_call>",
        };
        server.says(says);
        let expected = (vec![call("weather", "{\"city\": \"Bonn\"}")], None, "tool_calls".to_owned());
        assert_eq!(told(&server, json!({"tool_choice": "required"})), expected, "{template}");
    }
}

#[test]
fn a_form_and_calls_stand_side_by_side() {
    let server = Server::with_template("qwen2.5");
    let form = json!({"structured_outputs": {"choice": ["yes", "no"]}});
    server.says("no way");
    assert_eq!(told(&server, form.clone()), (Vec::new(), Some("no".into()), "stop".into()));
    server.says("<tool_call>\n{\"name\": \"time\", \"arguments\": {}}\n</tool_call>");
    assert_eq!(told(&server, form), (vec![call("time", "{}")], None, "tool_calls".into()));
}

/// Marks that are special tokens, which are not told otherwise.
#[test]
fn marks_may_be_special_tokens() {
    let template = "{% if tools %}{{ tools | tojson }}{% endif %}{% for message in messages %}{{ '<|im_start|>' + \
        message.role + '\\n' }}{% if message.tool_calls %}<|begin|>{% for call in message.tool_calls %}\
        {{ '{\"name\": \"' + call.function.name + '\", \"arguments\": ' + call.function.arguments | tojson + '}' }}\
        {% endfor %}{% else %}{{ message.content }}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}\
        {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
    let limits = Limits::of_context(4096);
    let server = Server::with(Start { template: template.into(), limits, ..Start::default() });
    let expected = (vec![call("time", "{}")], None, "tool_calls".to_owned());
    server.says("<|begin|>{\"name\": \"time\", \"arguments\": {}}");
    assert_eq!(told(&server, json!({})), expected);
    assert_eq!(told(&server, json!({"tool_choice": "required"})), expected);
    server.says(SAYS);
    let named = json!({"tool_choice": {"type": "function", "function": {"name": "time"}}, "parallel_tool_calls": false});
    assert_eq!(told(&server, named).2, "tool_calls");
}

#[test]
fn calls_and_their_answers_reach_the_template() {
    let server = Server::with_template("qwen2.5");
    server.says(SAYS);
    let messages = json!([
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "abcdefghi", "type": "function", "function": {"name": "time", "arguments": "{\"zone\": 5}"}},
        ]},
        {"role": "tool", "tool_call_id": "abcdefghi", "content": "noon"},
    ]);
    told(&server, json!({"messages": messages}));
    let prompt = server.script.lock().unwrap().asks[0].prompt.clone();
    let text = server.post("/detokenize", &json!({"tokens": prompt})).json(200)["prompt"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        text.contains("<tool_call>\n{\"name\": \"time\", \"arguments\": {\"zone\": 5}}\n</tool_call>"),
        "{text}"
    );
    assert!(text.contains("<tool_response>\nnoon\n</tool_response>"), "{text}");
}

#[test]
fn what_is_wrong_is_told_by_its_name() {
    let server = Server::with_template("qwen2.5");
    let with = |function: Value| json!({"tools": [{"type": "function", "function": function}]});
    let calls =
        |calls: Value| json!({"messages": [{"role": "assistant", "content": null, "tool_calls": calls}]});
    for (more, param) in [
        (json!({"tools": {}}), "tools"),
        (json!({"tools": ["f"]}), "tools[0]"),
        (json!({"tools": [{"type": "browser"}]}), "tools[0].type"),
        (json!({"tools": [{"type": "function"}]}), "tools[0].function"),
        (json!({"tools": vec![tools()[1].clone(); 129]}), "tools"),
        (with(json!({"name": 5})), "tools[0].function.name"),
        (with(json!({"name": "a\"b"})), "tools[0].function.name"),
        (with(json!({"name": "f", "parameters": []})), "tools[0].function.parameters"),
        (json!({"tool_choice": "always"}), "tool_choice"),
        (json!({"tool_choice": {"type": "function"}}), "tool_choice"),
        (json!({"tool_choice": {"type": "function", "function": {"name": "other"}}}), "tool_choice"),
        (json!({"tool_choice": "required", "tools": []}), "tool_choice"),
        (json!({"parallel_tool_calls": 1}), "parallel_tool_calls"),
        (calls(json!({})), "messages[0].tool_calls"),
        (calls(json!([5])), "messages[0].tool_calls"),
        (calls(json!([{"function": {"name": "time"}}])), "messages[0].tool_calls"),
        (json!({"messages": [{"role": "tool"}]}), "messages[0].content"),
    ] {
        let reply = server.post(PATH, &body(more.clone()));
        assert_eq!(reply.status, 400, "{more}: {}", reply.body);
        reply.error(400, Some(param));
    }
    let mut broken = with(json!({"name": "f", "parameters": {"$ref": "#"}}));
    broken["tool_choice"] = json!("required");
    server.post(PATH, &body(broken)).error(400, Some("tools[0].function.parameters"));
    // This template writes tools, and no calls.
    let server = Server::with(Start { limits: Limits::of_context(4096), ..Start::default() });
    let message =
        server.post(PATH, &body(json!({"tool_choice": "required"}))).error(400, Some("tool_choice"));
    assert!(message.contains("chat template"), "{message}");
}
