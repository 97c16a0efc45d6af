//! What a user reads when an input is broken: exit code 2, a message that names the place, and nothing
//! written.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use crate::tiny::{self, Weights};
use crate::{luthier, run};

const GOOD: &str = "{\"input_ids\":[3,4,5],\"labels\":[-100,4,5]}\n";

/// A folder with a model `m` and examples `d.jsonl`.
fn sound() -> TempDir {
    let folder = tempdir().unwrap();
    tiny::model(folder.path());
    tiny::examples(&folder.path().join("d.jsonl"), 20, 1);
    folder
}

fn train(folder: &Path, more: &[&str]) -> std::process::Output {
    let usual =
        ["train", "--model", "m", "--data", "d.jsonl", "--output", "out", "--set", "training.max_steps=1"];
    // A flag may be given once: what is given here replaces the usual one.
    let usual: Vec<&str> = usual[1..]
        .chunks(2)
        .filter(|pair| pair[0] == "--set" || !more.contains(&pair[0]))
        .flatten()
        .copied()
        .collect();
    run(folder, &[&["train"], &usual[..], more].concat())
}

/// Every file below a folder with its bytes.
fn tree(folder: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
        match entry.is_dir() {
            true => {
                found.push((entry.clone(), Vec::new()));
                found.extend(tree(&entry));
            }
            false => found.push((entry.clone(), fs::read(&entry).unwrap_or_default())),
        }
    }
    found.sort();
    found
}

/// `train` refuses: exit code 2, a message with these words, no panic, nothing written.
#[track_caller]
fn refused(folder: &Path, more: &[&str], words: &[&str]) {
    let before = tree(folder);
    let output = train(folder, more);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let (_, message) =
        said.split_once("error: ").unwrap_or_else(|| panic!("no error for {words:?}:\n{said}"));
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    for word in words {
        assert!(message.contains(word), "{word:?} is not in: {message}");
    }
    assert!(before == tree(folder), "something was written: {message}");
}

/// The same after an input was spoilt.
#[track_caller]
fn spoilt(spoil: impl FnOnce(&Path), words: &[&str]) {
    let folder = sound();
    spoil(&folder.path().join("m"));
    refused(folder.path(), &[], words);
}

#[track_caller]
fn weights(bytes: &[u8], words: &[&str]) {
    spoilt(|m| fs::write(m.join("model.safetensors"), bytes).unwrap(), words);
}

#[test]
fn files_that_are_no_whole_safetensors() {
    let whole = tiny::safetensors(&tiny::weights(2), |_| {});
    let claims = |length: u64| [&length.to_le_bytes()[..], &whole[8..]].concat();
    weights(&whole[..whole.len() / 2], &["model.safetensors: tensor `", "claims the bytes", "broken off"]);
    weights(&whole[..100], &["model.safetensors", "header claims", "broken off?"]);
    weights(&[], &["model.safetensors", "0 bytes"]);
    weights(&claims(1 << 63), &["header claims 9223372036854775808 bytes"]);
    weights(&claims(u64::MAX), &["header claims 18446744073709551615 bytes"]);
    weights(&claims(10), &["header is not valid"]);
    weights(b"<!DOCTYPE html><html>404</html>", &["is not a whole safetensors file"]);
    let deep = [&200_005_u64.to_le_bytes()[..], b"{\"a\":", "[".repeat(200_000).as_bytes()].concat();
    weights(&deep, &["header is not valid (recursion limit"]);
}

#[test]
fn headers_that_lie() {
    let norm = |entry: Value| {
        tiny::safetensors(&tiny::weights(2), |header| {
            for (key, value) in entry.as_object().unwrap() {
                header["model.norm.weight"][key] = value.clone();
            }
        })
    };
    weights(
        &norm(json!({"data_offsets": [0, 1_000_000_000_000_000_u64]})),
        &["`model.norm.weight` claims the bytes"],
    );
    weights(&norm(json!({"data_offsets": [100, 50]})), &["`model.norm.weight` claims the bytes 100 to 50"]);
    weights(&norm(json!({"data_offsets": [0, 64]})), &["overlaps with `"]);
    weights(&norm(json!({"data_offsets": [u64::MAX, u64::MAX]})), &["claims the bytes"]);
    weights(&norm(json!({"shape": [1_u64 << 63, 1_u64 << 63]})), &["the header contradicts itself"]);
    weights(&norm(json!({"shape": [-1]})), &["`model.norm.weight`", "-1"]);
    weights(&norm(json!({"dtype": "I32"})), &["is stored as I32 where weights are needed"]);
    weights(&norm(json!({"shape": [0], "data_offsets": [0, 0]})), &["belong to no"]);
}

#[test]
fn tensors_that_are_not_those_of_config_json() {
    let with = |change: &dyn Fn(&mut Weights)| {
        let mut tensors = tiny::weights(2);
        change(&mut tensors);
        tiny::safetensors(&tensors, |_| {})
    };
    let up = "model.layers.1.mlp.up_proj.weight";
    weights(&with(&|w| drop(w.remove(up))), &[up, "is missing"]);
    weights(
        &with(&|w| drop(w.insert("a.b".into(), (vec![1], vec![0.0])))),
        &["`a.b` is not a part of a llama model"],
    );
    weights(
        &with(&|w| drop(w.insert("\u{1b}[31m".into(), (vec![1], vec![0.0])))),
        &["`\\u{1b}[31m` is not a part of a llama model"],
    );
    weights(
        &with(&|w| *w = tiny::weights(3)),
        &["belongs to layer 2, but config.json says num_hidden_layers 2"],
    );
    weights(
        &with(&|w| drop(w.insert(up.into(), (vec![16, 32], vec![0.0; 512])))),
        &[up, "has shape [16, 32] but config.json makes it [32, 16]"],
    );
    for (value, name) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
        let spoil = with(&|w| w.get_mut("model.norm.weight").unwrap().1[15] = value);
        weights(&spoil, &["`model.norm.weight` has the value", name, "[15]; weights must be finite"]);
    }
}

#[test]
fn indices_of_shards_that_lead_astray() {
    let index = |place: Value| {
        move |m: &Path| {
            fs::rename(m.join("model.safetensors"), m.join("a.safetensors")).unwrap();
            let mut map: Value =
                tiny::weights(2).into_keys().map(|name| (name, json!("a.safetensors"))).collect();
            map["lm_head.weight"] = place;
            tiny::write_json(&m.join("model.safetensors.index.json"), &json!({"weight_map": map}));
        }
    };
    for outside in ["../../secret.safetensors", "/etc/passwd", "..", "", "a\\b"] {
        spoilt(
            index(json!(outside)),
            &["index.json: `weight_map` names the file", "only files of the same folder"],
        );
    }
    spoilt(
        index(json!("b.safetensors")),
        &["`weight_map` names \"b.safetensors\", which is not in the folder"],
    );
    spoilt(index(json!(null)), &["index.json:1:"]);
    let broken = |m: &Path| {
        fs::remove_file(m.join("model.safetensors")).unwrap();
        fs::write(m.join("model.safetensors.index.json"), "{").unwrap();
    };
    spoilt(broken, &["index.json:1:1"]);
}

#[test]
fn configs_that_are_broken_or_bound_for_the_moon() {
    let text = |text: &'static str| move |m: &Path| fs::write(m.join("config.json"), text).unwrap();
    spoilt(text("{\"model_type\": \"llama\",\n \"hidden_size\": }"), &["config.json:2:17"]);
    spoilt(text(""), &["config.json:1:0"]);
    spoilt(text("[]"), &["config.json", "not a JSON object"]);
    let field = |name: &'static str, value: Value| {
        move |m: &Path| {
            let mut config = tiny::config();
            config[name] = value;
            tiny::write_json(&m.join("config.json"), &config);
        }
    };
    for (name, value, word) in [
        ("model_type", json!("bloom"), "supported are `llama`"),
        ("num_attention_heads", json!(0), "is 0; expected a whole number from 1"),
        ("num_attention_heads", json!("4"), "expected a whole number"),
        ("num_key_value_heads", json!(3), "does not divide"),
        ("vocab_size", json!(1_000_000_000_000_000_000_u64), "expected a whole number from 1 to"),
        ("num_hidden_layers", json!(1_000_000_000), "expected a whole number from 1 to"),
        ("hidden_size", json!(1_u64 << 40), "expected a whole number from 1 to"),
        ("rms_norm_eps", json!(-1), "expected a number"),
        ("hidden_act", json!("relu2"), "supported are"),
        ("rope_scaling", json!({"rope_type": "linear"}), "rope_scaling.factor` is missing"),
        ("quantization_config", json!({}), "of quantized checkpoints only those of bitsandbytes in 4 bits"),
    ] {
        spoilt(field(name, value), &["config.json", name, word]);
    }
    spoilt(
        field("vocab_size", json!(33)),
        &["has shape [32, 16] but config.json makes it [33, 16]", "vocab_size 33"],
    );
}

#[test]
fn the_largest_model_that_config_json_can_tell_of_is_weighed_and_not_allocated() {
    let folder = sound();
    let mut config = tiny::config();
    for (name, value) in [
        ("vocab_size", 16_777_216),
        ("hidden_size", 1_048_576),
        ("intermediate_size", 1_048_576),
        ("num_hidden_layers", 4096),
        ("num_attention_heads", 16_384),
        ("num_key_value_heads", 16_384),
    ] {
        config[name] = json!(value);
    }
    tiny::write_json(&folder.path().join("m/config.json"), &config);
    fs::remove_file(folder.path().join("m/model.safetensors")).unwrap();
    refused(folder.path(), &["--set", "adapter.r=65536"], &["the run needs", "PiB"]);
    let full = ["--set", "adapter.method=full", "--set", "adapter.init=gaussian"];
    refused(folder.path(), &full, &["the run needs", "PiB"]);
    // Nor are the pages that there would be.
    let paged = ["--set", "optimizer.memory=4KiB", "--set", "training.activation_offloading=4KiB"];
    refused(folder.path(), &[&full[..], &paged].concat(), &["the run needs", "PiB"]);
}

#[test]
fn tokenizers_that_are_none() {
    spoilt(|m| fs::remove_file(m.join("tokenizer.json")).unwrap(), &["no tokenizer.json"]);
    for text in ["", "{", "{}", "[]"] {
        spoilt(|m| fs::write(m.join("tokenizer.json"), text).unwrap(), &["tokenizer.json: not a tokenizer"]);
    }
    spoilt(|m| fs::write(m.join("tokenizer_config.json"), "{").unwrap(), &["tokenizer_config.json"]);
}

/// `train` on a file of these bytes.
#[track_caller]
fn data(bytes: &[u8], more: &[&str], words: &[&str]) {
    let folder = sound();
    fs::write(folder.path().join("x.jsonl"), bytes).unwrap();
    refused(folder.path(), &[&["--data", "x.jsonl"], more].concat(), words);
}

#[test]
fn lines_that_are_no_examples() {
    data(format!("{GOOD}{GOOD}{{\"text\": \n{GOOD}").as_bytes(), &[], &["x.jsonl:3: invalid JSON at column"]);
    data(&[GOOD.as_bytes(), b"{\"text\": \"\xff\"}\n"].concat(), &[], &["x.jsonl:2: not UTF-8"]);
    data(b"", &[], &["nothing would be trained", "no example in x.jsonl"]);
    data(b"[1]\n", &[], &["x.jsonl:1: a record must be a JSON object"]);
    data(b"{\"foo\": 1}\n", &[], &["x.jsonl:1", "[foo]", "Known are messages"]);
    data(b"{\"text\": 5}\n", &[], &["x.jsonl:1: \"text\" must be a string"]);
    data(
        b"{\"messages\": [{\"role\": \"wizard\", \"content\": \"a\"}]}\n",
        &[],
        &["messages[0].role", "wizard"],
    );
    data("[".repeat(100_000).as_bytes(), &[], &["x.jsonl:1", "the list does not end"]);
    data(
        format!("{}{}", "[".repeat(100_000), "]".repeat(100_000)).as_bytes(),
        &[],
        &["x.jsonl:1", "nested more than 127 levels deep"],
    );
    data("{\"a\":".repeat(100_000).as_bytes(), &[], &["x.jsonl:1", "nested more than 127 levels deep"]);
    data(&b"\"".repeat(10_000_000), &[], &["x.jsonl:1: invalid JSON"]);
    let more = ["--set", "data.format=parquet"];
    data(GOOD.as_bytes(), &more, &["--set data.format=parquet: `data.format`: expected auto, messages"]);
}

#[test]
fn tokens_and_labels_that_the_model_does_not_have() {
    let line = |ids: &str, labels: &str| format!("{GOOD}{{\"input_ids\":{ids},\"labels\":{labels}}}\n");
    for (ids, labels, words) in [
        ("[3,4,5]", "[-100,-1,5]", "labels[1]: -1 is neither a token id nor -100"),
        ("[3,4,5]", "[-100,32,5]", "token 32 (\"\") is beyond the model's vocabulary of 32"),
        ("[3,4,5]", "[-100,4294967299,5]", "labels[1]: 4294967299"),
        ("[3,4,32]", "[3,4,5]", "token 32 (\"\") is beyond the model's vocabulary of 32"),
        ("[3,-1]", "[3,4]", "input_ids[1]: -1 is not a token id"),
        ("[3.5,4]", "[3,4]", "input_ids[0]: 3.5 is not a token id"),
        ("[3,4]", "[3,4,5]", "2 input_ids but 3 labels"),
    ] {
        data(line(ids, labels).as_bytes(), &[], &["x.jsonl:2: ", words]);
    }
}

#[test]
fn a_run_in_which_nothing_would_be_trained_does_not_start() {
    for line in ["{\"input_ids\":[3,4],\"labels\":[-100,-100]}", "{\"input_ids\":[3],\"labels\":[3]}"] {
        data(line.as_bytes(), &[], &["nothing would be trained"]);
    }
    data(GOOD.as_bytes(), &["--set", "data.max_length=1"], &["`data.max_length` must be 2 or more"]);
    let drop = ["--set", "data.max_length=2", "--set", "data.on_overflow=drop"];
    data(GOOD.as_bytes(), &drop, &["nothing would be trained", "1 are longer"]);
    let folder = sound();
    let text = "model: m\ndata: {train: [{path: d.jsonl, weight: 1e-9}]}\noutput: out\n";
    fs::write(folder.path().join("RUN.yaml"), text).unwrap();
    let output = run(folder.path(), &["train", "RUN.yaml"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("visit no example"), "{said}");
    fs::write(folder.path().join("empty.jsonl"), "").unwrap();
    refused(folder.path(), &["--eval-data", "empty.jsonl"], &["no example in empty.jsonl"]);
}

#[test]
fn files_as_editors_and_systems_write_them_are_read() {
    let folder = sound();
    let text = "{\"text\":\"a b\u{2028}c\u{85}d\"}\n";
    for (name, bytes) in [
        ("bom.jsonl", format!("\u{feff}{GOOD}")),
        ("crlf.jsonl", GOOD.replace('\n', "\r\n").repeat(3)),
        ("end.jsonl", GOOD.trim_end().to_owned()),
        ("separators.jsonl", text.to_owned()),
        ("blank.jsonl", format!("\n{GOOD}\n\n{GOOD}")),
        ("one.json", format!("[{GOOD},\n{GOOD}]")),
        ("long.jsonl", json!({"input_ids": vec![3; 2_000_000], "labels": vec![3; 2_000_000]}).to_string()),
    ] {
        fs::write(folder.path().join(name), bytes).unwrap();
        let output = train(folder.path(), &["--data", name, "--output", &format!("out-{name}")]);
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[cfg(unix)]
#[test]
fn links_are_followed_until_they_lead_nowhere() {
    use std::os::unix::fs::symlink;
    let folder = sound();
    symlink("d.jsonl", folder.path().join("link.jsonl")).unwrap();
    assert!(train(folder.path(), &["--data", "link.jsonl", "--dry-run"]).status.success());
    symlink("nowhere", folder.path().join("dangling.jsonl")).unwrap();
    refused(folder.path(), &["--data", "dangling.jsonl"], &["dangling.jsonl: No such file"]);
    symlink("loop.jsonl", folder.path().join("loop.jsonl")).unwrap();
    refused(folder.path(), &["--data", "loop.jsonl"], &["loop.jsonl: "]);
    refused(folder.path(), &["--data", "/dev/stdin"], &["/dev/stdin: without an ending its kind is unknown"]);
}

#[test]
fn templates_that_fail_or_do_not_end() {
    let chat =
        "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"}]}\n";
    for (template, word) in [
        ("{{ raise_exception('no') }}", "no (line 1 of the template)"),
        ("{% for %}", "chat template t.jinja: "),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion limit"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}", "does not end"),
        ("{{ 'a' * 10000000000 }}", "does not end"),
        ("{{ '{:1000000000000}'.format(5) }}", "does not end"),
        ("{{ '{:.99999999999999999999f}'.format(5.0) }}", "does not end"),
        (
            "{% set ns = namespace(s='aa') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
            "does not end",
        ),
        ("{{ foo.bar }}", "undefined"),
        ("{% include '/etc/passwd' %}", "/etc/passwd"),
        ("{% for m in messages|reverse %}{{ m.content }}{% endfor %}", "{% generation %}"),
    ] {
        let folder = sound();
        fs::write(folder.path().join("x.jsonl"), chat).unwrap();
        fs::write(folder.path().join("t.jinja"), template).unwrap();
        refused(
            folder.path(),
            &["--data", "x.jsonl", "--set", "data.chat_template=t.jinja"],
            &["t.jinja", word],
        );
    }
}

#[test]
fn run_files_that_are_bombs_or_riddles() {
    let mut laughs = "a: &a [x,x,x,x,x,x,x,x,x]\n".to_owned();
    for (of, name) in ('a'..'k').zip('b'..'l') {
        laughs += &format!("{name}: &{name} [{}]\n", vec![format!("*{of}"); 9].join(","));
    }
    let head = "model: m\ndata: {train: d.jsonl}\noutput: out\n";
    for (text, words) in [
        (laughs, ["this is not valid YAML: budget", "RUN.yaml:"]),
        ("model: &a [*a]\n".into(), ["this is not valid YAML", "RUN.yaml:1"]),
        ("[".repeat(20_000), ["recursion limit", "RUN.yaml:1"]),
        (
            format!("{head}adapter: {{r: 1, r: 2}}\n"),
            ["the key `r` stands here a second time", "RUN.yaml:4:17"],
        ),
        (
            format!("{head}training: [1, 2]\n"),
            ["`training`: expected a section of keys, found a list", "RUN.yaml:4"],
        ),
        (
            format!("{head}training: {{epochs: 1000000000000}}\n"),
            ["`training.epochs` must be at most", "RUN.yaml:4"],
        ),
        (format!("{head}---\n{head}"), ["here begins another", "RUN.yaml:5"]),
        (format!("{head}\0"), ["this is not valid YAML", "RUN.yaml:4"]),
        (format!("{head}# {}", "x".repeat(2_000_000)), ["RUN.yaml has 2000", "that is no run file"]),
    ] {
        let folder = sound();
        fs::write(folder.path().join("RUN.yaml"), text).unwrap();
        let output = run(folder.path(), &["train", "RUN.yaml"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(
            words.iter().all(|word| said.contains(word)) && !said.contains("panicked"),
            "{words:?}: {said}"
        );
        assert!(!folder.path().join("out").exists(), "{words:?}");
    }
}

#[test]
fn settings_out_of_bounds_are_named_as_they_were_typed() {
    let folder = sound();
    for (setting, word) in [
        ("training.batch_size=0", "`training.batch_size` must be 1 or more"),
        ("training.batch_size=-1", "expected a whole number of 0 or more, found `-1`"),
        ("training=[1]", "expected a section of keys, found a list"),
        ("optimizer.learning_rate=nan", "expected a number, found `nan`"),
        ("optimizer.learning_rate=.nan", "non-finite"),
        ("optimizer.learning_rate=1e400", "non-finite"),
        ("adapter.r=1000000000000000000", "must be at most 65536"),
        ("memory=1e30GiB", "expected a size such as 12GiB"),
        ("data.max_length=-5", "expected a whole number"),
        ("data.max_length=18446744073709551615", "must be at most 4294967296"),
        ("training.micro_batch_tokens=18446744073709551615", "must be auto, or from 1 to 4294967296"),
        ("adapter.rank_pattern={q_proj: 1000000000000000000}", "gives `q_proj` a rank above 65536"),
    ] {
        let typed = format!("--set {setting}: ");
        refused(folder.path(), &["--set", setting], &[&typed, word]);
    }
    refused(folder.path(), &["--set", "memory=1MiB"], &["the run needs", "MiB at least", "only 1.0 MiB"]);
    refused(
        folder.path(),
        &["--set", "adapter.target_modules=[nope]"],
        &["\"nope\"", "the nearest is `q_proj`, all are "],
    );
}

#[test]
fn adapters_that_are_not_of_this_model() {
    let folder = sound();
    assert!(train(folder.path(), &["--output", "a"]).status.success());
    let from = ["--set", "adapter.init_from=b"];
    let spoil = |file: &str, change: &dyn Fn(Vec<u8>) -> Vec<u8>, words: &[&str]| {
        let b = folder.path().join("b");
        let _ = fs::remove_dir_all(&b);
        fs::create_dir(&b).unwrap();
        for name in ["adapter_config.json", "adapter_model.safetensors"] {
            let bytes = fs::read(folder.path().join("a").join(name)).unwrap();
            fs::write(b.join(name), if name == file { change(bytes) } else { bytes }).unwrap();
        }
        refused(folder.path(), &from, words);
    };
    let setting = |key: &'static str, value: Value| {
        move |bytes: Vec<u8>| {
            let mut config: Value = serde_json::from_slice(&bytes).unwrap();
            config[key] = value.clone();
            config.to_string().into_bytes()
        }
    };
    let config = "adapter_config.json";
    spoil(config, &setting("r", json!(8)), &["has shape [16, ", "needs [8, ", "use it with that model"]);
    spoil(config, &setting("r", json!(1_000_000_000_000_u64)), &["`r` is 1000000000000"]);
    spoil(config, &setting("peft_type", json!("IA3")), &["only \"LORA\" adapters are supported"]);
    spoil(config, &setting("use_qalora", json!(true)), &["has shape [16, 16] but needs [16, 1] here"]);
    spoil(config, &setting("use_dora", json!(true)), &["lora_magnitude_vector", "is missing"]);
    spoil(config, &setting("wierd", json!(true)), &["`wierd` is true, but this setting is not known"]);
    spoil(config, &setting("target_modules", json!(["nope"])), &["names \"nope\""]);
    spoil(
        config,
        &setting("target_modules", json!(["q_proj"])),
        &["is not called for by adapter_config.json"],
    );
    spoil(config, &|_| b"{".to_vec(), &["adapter_config.json:1:1"]);
    let renamed = |from: &'static str, to: &'static str| {
        move |bytes: Vec<u8>| {
            // The same number of bytes, so that only the name changes.
            let at = bytes.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
            [&bytes[..at], to.as_bytes(), &bytes[at + from.len()..]].concat()
        }
    };
    spoil(
        "adapter_model.safetensors",
        &renamed("layers.1.mlp.up_proj.lora_A", "layers.7.mlp.up_proj.lora_A"),
        &["layers.1.mlp.up_proj.lora_A.weight` is missing"],
    );
    spoil("adapter_model.safetensors", &|bytes| bytes[..5000].to_vec(), &["claims the bytes", "broken off"]);
    refused(
        folder.path(),
        &["--set", "adapter.init_from=nowhere"],
        &["cannot read nowhere/adapter_config.json"],
    );
}

/// Any command refuses: exit code 2, a message with these words, no panic, nothing written.
#[track_caller]
fn command_refused(folder: &Path, arguments: &[&str], words: &[&str]) {
    let before = tree(folder);
    let output = run(folder, arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
    assert!(!said.contains("panicked"), "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
    assert!(before == tree(folder), "something was written: {said}");
}

#[test]
fn adapters_that_contradict_themselves_are_not_told_as_if_they_were_sound() {
    let folder = sound();
    assert!(train(folder.path(), &["--output", "a"]).status.success());
    let whole = fs::read(folder.path().join("a/adapter_model.safetensors")).unwrap();
    let settings = fs::read_to_string(folder.path().join("a/adapter_config.json")).unwrap();
    let b = folder.path().join("b");
    fs::create_dir(&b).unwrap();
    fs::write(b.join("adapter_config.json"), &settings).unwrap();
    let length = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let up = "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight";
    let inspect = |change: &dyn Fn(&mut serde_json::Map<String, Value>), words: &[&str]| {
        let mut header: Value = serde_json::from_slice(&whole[8..8 + length]).unwrap();
        change(header.as_object_mut().unwrap());
        let header = header.to_string().into_bytes();
        let bytes = [&(header.len() as u64).to_le_bytes()[..], &header, &whole[8 + length..]].concat();
        fs::write(b.join("adapter_model.safetensors"), bytes).unwrap();
        command_refused(folder.path(), &["inspect", "b"], words);
    };
    let shape =
        |shape: Value| move |header: &mut serde_json::Map<String, Value>| header[up]["shape"] = shape.clone();
    inspect(&shape(json!([1, 16, 16])), &[up, "has shape [1, 16, 16]; an A or a B is a matrix"]);
    inspect(&shape(json!([8, 32])), &[up, "has 8 rows, its B 16 columns"]);
    let renamed = |name: &'static str| {
        move |header: &mut serde_json::Map<String, Value>| {
            let tensor = header.remove(up).unwrap();
            header.insert(name.to_owned(), tensor);
        }
    };
    inspect(&renamed("base_model.model.up.lora_A.weight"), &[up, "is missing: each update has an A and a B"]);
    inspect(&renamed("evil\u{1b}[31m"), &["`evil\\u{1b}[31m` is no part of a LoRA adapter"]);
    fs::write(b.join("adapter_config.json"), settings.replace("\"r\": 16", "\"r\": 9")).unwrap();
    inspect(&|_| (), &["is of rank 16, which adapter_config.json does not name: `r` is 9"]);

    let told = run(folder.path(), &["inspect", "a"]);
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    let arithmetic = "of 32 x 16 at r = 16: 768 values each instead of 512, 1.50 times as many";
    assert!(told.contains("mlp.up_proj") && told.contains(arithmetic), "{told}");
}

#[test]
fn a_broken_index_of_shards_is_not_told_as_a_sound_model() {
    let folder = sound();
    let m = folder.path().join("m");
    fs::rename(m.join("model.safetensors"), m.join("a.safetensors")).unwrap();
    let map: Value = tiny::weights(2).into_keys().map(|name| (name, json!("../a.safetensors"))).collect();
    tiny::write_json(&m.join("model.safetensors.index.json"), &json!({"weight_map": map}));
    command_refused(folder.path(), &["inspect", "m"], &["names the file", "only files of the same folder"]);
}

#[test]
fn a_model_where_an_adapter_is_asked_for_and_the_reverse() {
    let folder = sound();
    assert!(train(folder.path(), &["--output", "a"]).status.success());
    let eval =
        |model, adapter| ["eval", "perplexity", "--model", model, "--adapter", adapter, "--data", "d.jsonl"];
    command_refused(folder.path(), &eval("a", "a"), &["a/config.json", "this folder holds an adapter"]);
    command_refused(folder.path(), &eval("m", "m"), &["m/adapter_config.json", "this folder holds a model"]);
    fs::create_dir(folder.path().join("empty")).unwrap();
    command_refused(folder.path(), &["inspect", "empty"], &["empty/config.json", "a model is a folder with"]);
    command_refused(folder.path(), &eval("m", "empty"), &["an adapter is a folder with adapter_config.json"]);
}

#[test]
fn an_adapter_too_large_for_its_numbers_gives_a_message_and_no_nan() {
    let folder = sound();
    assert!(train(folder.path(), &["--output", "a"]).status.success());
    let path = folder.path().join("a/adapter_model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    for value in bytes[8 + length..].chunks_exact_mut(4) {
        value.copy_from_slice(&1e30_f32.to_le_bytes());
    }
    fs::write(&path, bytes).unwrap();
    let with = ["--model", "m", "--adapter", "a"];
    let words = ["damaged or too large"];
    let eval = [&["eval", "perplexity", "--data", "d.jsonl", "--json"], &with[..]].concat();
    command_refused(folder.path(), &eval, &words);
    command_refused(folder.path(), &[&["merge", "--output", "out"], &with[..]].concat(), &words);
    command_refused(folder.path(), &[&["generate", "--prompt", "a"], &with[..]].concat(), &words);
}

#[test]
fn places_that_cannot_be_a_run_folder() {
    let folder = sound();
    refused(folder.path(), &["--output", "d.jsonl"], &["d.jsonl is a file; `output` names the folder"]);
    refused(folder.path(), &["--output", "d.jsonl/x"], &["cannot make the run folder d.jsonl/x"]);
    for resume in [&["--output", "m"][..], &["--output", "m", "--resume"]] {
        refused(folder.path(), resume, &["m is not empty and holds no run of luthier"]);
    }
    assert!(train(folder.path(), &[]).status.success());
    refused(folder.path(), &[], &["out holds a run already", "--resume"]);
}

/// A disk on which no file can grow beyond some size stands for a full one.
#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_is_full_leaves_the_last_checkpoint_and_no_debris() {
    let folder = sound();
    let settings =
        ["--set", "training.save_every=2", "--set", "training.batch_size=1", "--set", "data.max_length=32"];
    let steps = |n: &'static str| [&settings[..], &["--set", n]].concat();
    assert!(train(folder.path(), &steps("training.max_steps=4")).status.success());
    let before = tree(&folder.path().join("out/checkpoints/step-000004"));
    let limited = luthier(folder.path()).get_program().to_owned();
    let script = "trap '' XFSZ; ulimit -f 40; exec \"$@\"";
    let longer = steps("training.max_steps=8");
    let usual = ["train", "--model", "m", "--data", "d.jsonl", "--output", "out", "--resume"];
    let mut command = std::process::Command::new("sh");
    command.current_dir(folder.path()).args(["-c", script, "sh"]).arg(limited).args(usual).args(&longer);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && !said.contains("panicked"), "{said}");
    assert!(said.contains("error: cannot write out/checkpoints/"), "{said}");
    assert_eq!(tree(&folder.path().join("out/checkpoints/step-000004")), before);
    let left = tree(&folder.path().join("out"));
    let hidden = |path: &Path| path.file_name().unwrap().to_string_lossy().starts_with('.');
    assert!(!left.iter().any(|(path, _)| hidden(path)), "debris: {left:?}");
    assert!(train(folder.path(), &[&longer[..], &["--resume"]].concat()).status.success());
}
