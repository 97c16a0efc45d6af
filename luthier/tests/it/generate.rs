//! `generate` and `chat`: what they say, and what they refuse.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Output, Stdio};

use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use crate::support::{CONTEXT, END, text, tiny_adapter, tiny_model, write};
use crate::{failure, luthier, run};

fn folder_with_model() -> TempDir {
    let folder = tempdir().unwrap();
    tiny_model(folder.path());
    folder
}

/// The arguments behind `generate --model model`, as one JSON object.
fn generate(folder: &Path, arguments: &[&str]) -> Value {
    let command = ["generate", "--model", "model", "--precision", "f32", "--json"];
    let output = run(folder, &[&command, arguments].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn chat(folder: &Path, arguments: &[&str], lines: &str) -> Output {
    let mut child = luthier(folder)
        .args(["chat", "--model", "model", "--precision", "f32"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may leave before it has read everything.
    let _ = child.stdin.take().unwrap().write_all(lines.as_bytes());
    child.wait_with_output().unwrap()
}

#[test]
fn what_is_streamed_is_what_json_tells() {
    let folder = folder_with_model();
    let told = generate(folder.path(), &["--prompt", "hello there", "--max-tokens", "40"]);
    assert_eq!(told["prompt_tokens"], 7, "begin, hell, o, ' t', he, r, e");
    assert!(told["tokens_per_second"].as_f64().unwrap() > 0.0);
    let tokens = told["token_ids"].as_array().unwrap().len();
    match told["finish_reason"].as_str().unwrap() {
        "length" => assert_eq!(tokens, 40),
        reason => assert!(reason == "stop" && tokens < 40),
    }
    let command = "generate --model model --precision f32 --max-tokens 40 --prompt";
    let output =
        run(folder.path(), &[&command.split(' ').collect::<Vec<_>>()[..], &["hello there"]].concat());
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{}\n", told["text"].as_str().unwrap()));
    assert!(String::from_utf8(output.stderr).unwrap().starts_with("7 prompt tokens, "));
}

#[test]
fn the_context_ends_generation_and_a_prompt_beyond_it_is_refused() {
    let folder = folder_with_model();
    // From seed to seed, one goes on without the end token until the context is full.
    let full = (0..20).find_map(|seed: u32| {
        let seed = seed.to_string();
        let sampling = ["--temperature", "1", "--top-k", "5", "--seed", &seed];
        let told =
            generate(folder.path(), &[&["--prompt", "a", "--max-tokens", "100000"], &sampling[..]].concat());
        (told["finish_reason"] == "length").then_some(told)
    });
    let tokens = full.expect("one of the seeds")["token_ids"].as_array().unwrap().len();
    assert_eq!(tokens, CONTEXT - 2 + 1, "the last token needs no room");
    let long = "a".repeat(CONTEXT);
    insta::assert_snapshot!(failure(folder.path(), &["generate", "--model", "model", "--prompt", &long]));
}

#[test]
fn the_same_seed_says_the_same() {
    let folder = folder_with_model();
    let sample = |seed: &str| {
        let arguments =
            ["--prompt", "x", "--max-tokens", "30", "--temperature", "1", "--top-p", "0.9", "--seed", seed];
        generate(folder.path(), &arguments)["token_ids"].clone()
    };
    assert_eq!(sample("1"), sample("1"));
    assert_ne!(sample("1"), sample("2"));
}

#[test]
fn messages_are_rendered_by_the_template() {
    let folder = folder_with_model();
    let messages = json!([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hello"}]);
    write(&folder.path().join("list.json"), &messages);
    write(&folder.path().join("object.json"), &json!({"messages": messages, "tools": []}));
    let rendered =
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n";
    let told = generate(folder.path(), &["--messages", "list.json", "--max-tokens", "12"]);
    let object = generate(folder.path(), &["--messages", "object.json", "--max-tokens", "12"]);
    assert_eq!(told["token_ids"], object["token_ids"]);
    // As a plain prompt, the same text has the begin token in front.
    let plain = generate(folder.path(), &["--prompt", rendered, "--max-tokens", "12"]);
    assert_eq!(told["prompt_tokens"].as_u64().unwrap() + 1, plain["prompt_tokens"].as_u64().unwrap());
    let named = ["--messages", "list.json", "--max-tokens", "12", "--chat-template", "chatml"];
    assert_eq!(
        generate(folder.path(), &named)["token_ids"],
        told["token_ids"],
        "the model's own is chatml, too"
    );
}

#[test]
fn messages_that_are_wrong_are_refused_with_their_place() {
    let folder = folder_with_model();
    for (text, words) in [
        ("[{\"role\": \"user\",\n \"content\": }]", "m.json:2: invalid JSON at column 13: expected value"),
        ("3", "must be a list of messages or an object with \"messages\", not a number"),
        ("[]", "is empty"),
        ("[7]", "messages[0] must be an object"),
        (
            r#"[{"role": "usr", "content": "x"}]"#,
            "messages[0].role: unknown role \"usr\", did you mean \"user\"?",
        ),
        (
            r#"[{"role": "user", "contnet": "x"}]"#,
            "messages[0] has no \"content\"; did you mean it by \"contnet\"?",
        ),
        (r#"[{"role": "user", "content": 7}]"#, "messages[0].content must be a string"),
        (
            r#"[{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]"#,
            "messages[1] is the assistant's",
        ),
    ] {
        fs::write(folder.path().join("m.json"), text).unwrap();
        let told = failure(folder.path(), &["generate", "--model", "model", "--messages", "m.json"]);
        assert!(told.starts_with("exit code 2\nerror: m.json") && told.contains(words), "{text}: {told}");
    }
    let missing = failure(folder.path(), &["generate", "--model", "model", "--messages", "none.json"]);
    assert!(missing.starts_with("exit code 2\nerror: none.json: No such file"), "{missing}");
}

#[test]
fn without_a_chat_template_conversations_are_refused_and_prompts_are_not() {
    let folder = folder_with_model();
    let settings = json!({"bos_token": "<|begin|>", "eos_token": "<|im_end|>"});
    write(&folder.path().join("model/tokenizer_config.json"), &settings);
    write(&folder.path().join("m.json"), &json!([{"role": "user", "content": "hi"}]));
    let refused = failure(folder.path(), &["generate", "--model", "model", "--messages", "m.json"]);
    insta::assert_snapshot!(refused);
    let output = chat(folder.path(), &[], "hi\n");
    let told = format!("exit code 2\n{}", String::from_utf8(output.stderr).unwrap());
    assert_eq!((output.status.code(), told), (Some(2), refused));
    generate(folder.path(), &["--prompt", "hi", "--max-tokens", "1"]);
    generate(folder.path(), &["--messages", "m.json", "--max-tokens", "1", "--chat-template", "alpaca"]);
}

#[test]
fn over_four_bits_it_says_what_the_quantized_folder_says() {
    let folder = folder_with_model();
    let path = folder.path();
    for code in ["nf4", "fp4"] {
        let quantized = format!("model-{code}");
        let quantize = ["quantize", "--model", "model", "--output", &quantized, "--type", code];
        assert!(run(path, &quantize).status.success());
        let asked = ["--prompt", "hello there", "--max-tokens", "40"];
        let on_the_fly = generate(path, &[&asked, &["--quantization", code][..]].concat());
        let command = ["generate", "--model", &quantized, "--precision", "f32", "--json"];
        let output = run(path, &[&command, &asked[..]].concat());
        let stored: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(on_the_fly["token_ids"], stored["token_ids"], "{code}");
        assert_ne!(on_the_fly["token_ids"], generate(path, &asked)["token_ids"], "{code}");
    }
    let twice = ["generate", "--model", "model-nf4", "--prompt", "x", "--quantization", "fp4"];
    assert!(failure(path, &twice).contains("nf4"));
}

#[test]
fn an_adapter_changes_what_is_said_and_one_for_another_model_is_refused() {
    let folder = folder_with_model();
    let adapter = tiny_adapter(folder.path(), 1.0);
    let arguments = ["--prompt", "hello", "--max-tokens", "20"];
    let adapted = generate(folder.path(), &[&arguments, &["--adapter", "adapter"][..]].concat());
    assert_ne!(adapted["token_ids"], generate(folder.path(), &arguments)["token_ids"]);

    let path = folder.path().join("model/config.json");
    let config =
        fs::read_to_string(&path).unwrap().replace("\"intermediate_size\": 48", "\"intermediate_size\": 64");
    fs::write(path, config).unwrap();
    let command = ["generate", "--model", "model", "--prompt", "x", "--adapter", text(&adapter)];
    let told = failure(folder.path(), &command);
    assert!(
        told.starts_with("exit code 2\n") && told.contains("down_proj.lora_A.weight` has shape [2, 48]"),
        "{told}"
    );
}

#[test]
fn the_end_token_ends_and_is_not_said() {
    let folder = folder_with_model();
    let ended = (0..50).any(|seed: u32| {
        let seed = seed.to_string();
        let told = generate(
            folder.path(),
            &["--prompt", "a", "--max-tokens", "60", "--temperature", "2", "--seed", &seed],
        );
        assert!(!told["token_ids"].as_array().unwrap().contains(&json!(END)));
        told["finish_reason"] == "stop"
    });
    assert!(ended, "one of the seeds");
}

#[test]
fn a_conversation_from_a_pipe_prints_the_answers_only_and_remembers() {
    let folder = folder_with_model();
    let limit = ["--max-tokens", "10"];
    let said =
        chat(folder.path(), &limit, "hello\n\n/help\n/what\nand then?\n/reset\nhello\n/exit\nnot read\n");
    assert!(said.status.success());
    let errors = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(errors.contains("Ctrl-D") && errors.contains("no such command: /what"), "{errors}");

    // The same, turn by turn, each without what the turn before left in the cache.
    let turn = |messages: Value| {
        write(&folder.path().join("m.json"), &messages);
        generate(folder.path(), &["--messages", "m.json", "--max-tokens", "10"])["text"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let first = turn(json!([{"role": "user", "content": "hello"}]));
    let second = turn(json!([
        {"role": "user", "content": "hello"}, {"role": "assistant", "content": first},
        {"role": "user", "content": "and then?"}
    ]));
    assert_eq!(String::from_utf8(said.stdout).unwrap(), format!("{first}\n{second}\n{first}\n"));
}

#[test]
fn a_conversation_that_outgrows_the_context_says_so() {
    let folder = folder_with_model();
    let output = chat(folder.path(), &["--system", "Be kind."], &"a".repeat(CONTEXT));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && told.contains("/reset begins anew"), "{told}");
}

/// Makes the model say that it was made for texts so long that no machine has the memory for their keys and
/// values.
fn with_a_huge_context(folder: &Path) {
    let path = folder.join("model/config.json");
    let config = fs::read_to_string(&path).unwrap();
    let huge = config.replace("\"max_position_embeddings\": 256", "\"max_position_embeddings\": 4294967296");
    assert_ne!(config, huge);
    fs::write(path, huge).unwrap();
}

#[test]
fn what_does_not_fit_into_memory_is_refused_before_the_weights_are_read() {
    let folder = folder_with_model();
    with_a_huge_context(folder.path());
    // Weights that cannot be read would be the next thing to complain about.
    let weights = folder.path().join("model/model.safetensors");
    let ask = |tokens: &'static str| {
        ["generate", "--model", "model", "--prompt", "x", "--precision", "f32", "--max-tokens", tokens]
    };
    let told = failure(folder.path(), &ask("4000000000"));
    let words = [
        "exit code 2\nerror: generating needs ",
        " at least (base ",
        "cache ",
        "only ",
        " is free; ",
        "what would lower it: --max-tokens 256 to ",
        "--precision bf16 to ",
        "a smaller base model",
    ];
    for words in words {
        assert!(told.contains(words), "{words}: {told}");
    }
    assert!(run(folder.path(), &ask("3")).status.success());
    let whole = fs::read(&weights).unwrap();
    let last = whole.len() - 4;
    fs::write(&weights, [&whole[..last], &f32::NAN.to_le_bytes()].concat()).unwrap();
    assert!(failure(folder.path(), &ask("4000000000")).contains("generating needs"));
    assert!(failure(folder.path(), &ask("3")).contains("weights must be finite"));
}

#[test]
fn a_conversation_that_memory_has_no_room_for_is_refused() {
    let folder = folder_with_model();
    with_a_huge_context(folder.path());
    let output = chat(folder.path(), &["--max-tokens", "4000000000"], "hello\n");
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{told}");
    let words = ["tokens of conversation and answer need ", "is free; /reset begins anew", "--max-tokens"];
    assert!(words.iter().all(|words| told.contains(words)), "{told}");
}

#[test]
fn a_model_larger_than_the_memory_is_not_talked_to() {
    let folder = folder_with_model();
    let path = folder.path().join("model/config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    for (name, value) in
        [("num_hidden_layers", 4096), ("hidden_size", 65_536), ("intermediate_size", 262_144)]
    {
        config[name] = json!(value);
    }
    config.as_object_mut().unwrap().remove("head_dim");
    write(&path, &config);
    fs::remove_file(folder.path().join("model/model.safetensors")).unwrap();
    let command = ["generate", "--model", "model", "--prompt", "x"];
    let told = failure(folder.path(), &command);
    assert!(told.starts_with("exit code 2\nerror: generating needs ") && told.contains("TiB"), "{told}");
    assert!(told.contains("--quantization nf4 to "), "{told}");
    let told = String::from_utf8(chat(folder.path(), &[], "hello\n").stderr).unwrap();
    assert!(told.contains("generating needs "), "{told}");
}
