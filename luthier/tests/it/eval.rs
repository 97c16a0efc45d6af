//! `eval`: its numbers against the model's own losses, and what it refuses.

use std::fs;
use std::path::Path;

use compute::{Device, Precision};
use model::memory::Allocator;
use model::{Activations, Adapter, Batch, Decoder, Extent, Layout, Purpose};
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use crate::support::{tiny_adapter, tiny_model, write_lines};
use crate::{failure, run};

pub(crate) fn folder() -> TempDir {
    let folder = tempdir().unwrap();
    tiny_model(folder.path());
    let chat = |user: &str, assistant: &str| json!({"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]});
    let records: Vec<Value> =
        (0..40).map(|i| chat(&format!("hello {i}"), &"so it is, ".repeat(1 + i % 7))).collect();
    write_lines(folder.path().join("data.jsonl"), &records);
    folder
}

pub(crate) fn json_of(folder: &Path, arguments: &[&str]) -> Value {
    let output = run(folder, arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The mean loss of the previewed examples, each by itself.
fn mean_loss(folder: &Path, adapter: Option<&Adapter>) -> (f64, usize) {
    let count = ["--count", "1000", "--json"];
    let preview = ["data", "preview", "--model", "model", "--data", "data.jsonl"];
    let preview = json_of(folder, &[&preview, &count[..]].concat());
    let decoder = Decoder::load(&folder.join("model"), &Device::cpu(1), Precision::F32, None).unwrap();
    let layout = adapter.map(|a| a.layout.clone()).unwrap_or_default();
    let extent = Extent { tokens: 256, positions: 256, purpose: Purpose::Infer, precision: Precision::F32 };
    let mut buffers =
        Activations::new(&decoder.config, &layout, 0.0, extent, &mut Allocator::real(&Device::cpu(2)));
    let (mut sum, mut tokens) = (0.0, 0);
    for example in preview["examples"].as_array().unwrap() {
        let ids: Vec<u32> = serde_json::from_value(example["token_ids"].clone()).unwrap();
        let labels: Vec<i32> = serde_json::from_value(example["labels"].clone()).unwrap();
        let mut batch = Batch::new();
        batch.push(&ids, &labels);
        let mut losses = vec![0.0; batch.targets.len()];
        let run = decoder.run(adapter);
        decoder.forward(&run, &batch, None, &mut buffers);
        decoder.losses(&run, &batch, &mut buffers, &mut losses);
        sum += losses.iter().map(|&l| f64::from(l)).sum::<f64>();
        tokens += losses.len();
    }
    (sum / tokens as f64, tokens)
}

#[test]
fn the_loss_is_the_mean_over_all_trained_tokens() {
    let folder = folder();
    let path = tiny_adapter(folder.path(), 0.5);
    let decoder = Decoder::load(&folder.path().join("model"), &Device::cpu(1), Precision::F32, None).unwrap();
    let (adapter, _) = Adapter::load(&path, &decoder.config, None, &Device::cpu(2)).unwrap();
    assert_ne!(adapter.layout, Layout::default());
    let base = "eval perplexity --model model --data data.jsonl --set precision=f32 --json";
    let base: Vec<&str> = base.split(' ').collect();
    let with_adapter = [&base[..], &["--adapter", "adapter"]].concat();
    for (command, adapter) in [(base, None), (with_adapter, Some(&adapter))] {
        let told = json_of(folder.path(), &command);
        let (expected, tokens) = mean_loss(folder.path(), adapter);
        let loss = told["loss"].as_f64().unwrap();
        assert!((loss - expected).abs() < 1e-5, "{loss}, not {expected}");
        assert!((told["perplexity"].as_f64().unwrap() - loss.exp()).abs() < 1e-9 * loss.exp());
        assert_eq!((told["tokens"].as_u64(), told["examples"].as_u64()), (Some(tokens as u64), Some(40)));
        let interval = &told["interval"];
        assert!(interval["low"].as_f64().unwrap() < loss && interval["high"].as_f64().unwrap() > loss);
        // Of the assistant's words alone, ten bytes and their repetitions, and of the line's end that the template
        // writes behind them: the token that ends a turn is no text.
        let bytes: usize = (0..40).map(|i| 10 * (1 + i % 7) + 1).sum();
        let bits = told["bits_per_byte"].as_f64().unwrap();
        let expected = loss * tokens as f64 / 2.0_f64.ln() / bytes as f64;
        assert!((bits / expected - 1.0).abs() < 1e-5, "{bits} bits a byte, not {expected}");
        assert_eq!(told.get("differences").is_some(), adapter.is_some());
    }
}

#[test]
fn adapters_are_put_beside_the_base_and_beside_each_other() {
    let folder = folder();
    for (name, size) in [("one", 0.5), ("two", -0.5)] {
        fs::rename(tiny_adapter(folder.path(), size), folder.path().join(name)).unwrap();
    }
    let base: Vec<&str> =
        "eval perplexity --model model --data data.jsonl --set precision=f32 --json".split(' ').collect();
    let alone = |more: &[&str]| json_of(folder.path(), &[&base[..], more].concat())["loss"].as_f64().unwrap();
    let losses = [alone(&[]), alone(&["--adapter", "one"]), alone(&["--adapter", "two"])];
    let all = json_of(folder.path(), &[&base[..], &["--adapter", "one", "--adapter", "two"]].concat());
    let told: Vec<(&str, f64)> = all["beside"]
        .as_array()
        .unwrap()
        .iter()
        .chain([&all])
        .map(|of| (of["system"].as_str().unwrap(), of["loss"].as_f64().unwrap()))
        .collect();
    assert_eq!(told, [("model", losses[0]), ("one", losses[1]), ("two", losses[2])]);
    for (difference, (name, loss)) in all["differences"].as_array().unwrap().iter().zip(&told[1..]) {
        assert_eq!((&difference["system"], &difference["than"]), (&json!(name), &json!("model")));
        let of = |key: &str| difference["difference"][key].as_f64().unwrap();
        assert!((of("value") - (loss - losses[0])).abs() < 1e-12);
        assert!(of("low") <= of("value") && of("value") <= of("high"));
    }
    let without = json_of(folder.path(), &[&base[..], &["--adapter", "one", "--no-base"]].concat());
    assert!(without.get("beside").is_none() && without["loss"] == json!(losses[1]));
    let words: Vec<&str> = base.iter().copied().filter(|word| *word != "--json").collect();
    let output = run(folder.path(), &[&words[..], &["--adapter", "one"]].concat());
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(told.contains("one less model"), "{told}");
    assert!(failure(folder.path(), &[&base[..], &["--no-base"]].concat()).contains("--adapter"));
}

/// Questions of two groups, of one word to several.
fn questions(folder: &Path) -> Vec<Value> {
    let question = |i: usize| {
        json!({
            "context": format!("hello {i}, what is it?"), "choices": ["so", "so it is", "hello there"],
            "gold": i % 3, "group": if i < 6 { "first" } else { "second" },
        })
    };
    let all: Vec<Value> = (0..14).map(question).collect();
    write_lines(folder.join("questions.jsonl"), &all);
    all
}

#[test]
fn choices_have_the_log_likelihoods_of_the_model() {
    let folder = folder();
    let questions = questions(folder.path());
    fs::rename(tiny_adapter(folder.path(), 0.5), folder.path().join("one")).unwrap();
    let command =
        "eval choice --model model --adapter one --data questions.jsonl --set precision=f32 --items i.jsonl";
    let command: Vec<&str> = command.split(' ').collect();
    let told = json_of(folder.path(), &[&command[..], &["--json"]].concat());
    let items = fs::read_to_string(folder.path().join("i.jsonl")).unwrap();
    let items: Vec<Value> = items.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(items.len(), 14);

    let tokenizer = data::Tokenizer::load(&folder.path().join("model")).unwrap();
    let ids = |text: &str| tokenizer.encode(text, true).unwrap().ids;
    let decoder = Decoder::load(&folder.path().join("model"), &Device::cpu(1), Precision::F32, None).unwrap();
    let (adapter, _) =
        Adapter::load(&folder.path().join("one"), &decoder.config, None, &Device::cpu(2)).unwrap();
    let extent = Extent { tokens: 256, positions: 256, purpose: Purpose::Infer, precision: Precision::F32 };
    for (system, adapter) in [("model", None), ("one", Some(&adapter))] {
        let layout = adapter.map(|a| a.layout.clone()).unwrap_or_default();
        let mut buffers =
            Activations::new(&decoder.config, &layout, 0.0, extent, &mut Allocator::real(&Device::cpu(2)));
        let mut right = 0;
        for (item, question) in items.iter().zip(&questions) {
            let context = question["context"].as_str().unwrap();
            let logprobs = question["choices"].as_array().unwrap().iter().map(|choice| {
                let whole = ids(&format!("{context} {}", choice.as_str().unwrap()));
                let mut labels: Vec<i32> = whole.iter().map(|&id| id as i32).collect();
                labels[..ids(context).len()].fill(model::IGNORE);
                let mut batch = Batch::new();
                batch.push(&whole, &labels);
                let mut losses = vec![0.0; batch.targets.len()];
                let run = decoder.run(adapter);
                decoder.forward(&run, &batch, None, &mut buffers);
                decoder.losses(&run, &batch, &mut buffers, &mut losses);
                -losses.iter().map(|&loss| f64::from(loss)).sum::<f64>()
            });
            let expected: Vec<f64> = logprobs.collect();
            let of = &item["systems"][system];
            for (got, expected) in of["logprobs"].as_array().unwrap().iter().zip(&expected) {
                let got = got.as_f64().unwrap();
                assert!((got - expected).abs() < 1e-4, "{got}, not {expected}");
            }
            let likeliest =
                (0..3).max_by(|&a, &b| expected[a].total_cmp(&expected[b]).then(b.cmp(&a))).unwrap();
            assert_eq!(of["chosen"], json!(likeliest));
            right += usize::from(json!(likeliest) == question["gold"]);
        }
        let of = told["systems"].as_array().unwrap().iter().find(|of| of["system"] == system).unwrap();
        assert!((of["accuracy"]["value"].as_f64().unwrap() - right as f64 / 14.0).abs() < 1e-12);
    }
    let flips = &told["differences"][0];
    let (gained, lost) = (flips["gained"].as_array().unwrap().len(), flips["lost"].as_array().unwrap().len());
    let difference = flips["difference"]["value"].as_f64().unwrap();
    assert!((difference - (gained as f64 - lost as f64) / 14.0).abs() < 1e-12);
    assert_eq!((&told["form"], &told["items"]), (&json!("choice"), &json!(14)));
    // Names that scripts rely on.
    let of = |n: usize, key: &str| &told["systems"][n][key]["value"];
    for (n, numbers) in [(0, &told["baseline"]), (1, &told)] {
        assert_eq!(&numbers["accuracy"], of(n, "accuracy"));
        assert_eq!(&numbers["accuracy_normalized"], of(n, "accuracy_bytes"));
        assert_eq!(numbers["items"], 14);
    }
    assert_eq!(told["difference"], flips["difference"]["value"]);
    assert_eq!(told["interval"], json!([flips["difference"]["low"], flips["difference"]["high"]]));
    assert!(told["systems"][0]["accuracy_over_groups"].is_f64());
    let told = String::from_utf8(run(folder.path(), &command).stdout).unwrap();
    assert!(told.contains("one less model") && told.contains("one is better than model at"), "{told}");
}

#[test]
fn worked_examples_and_subjects_of_tables_are_part_of_a_question() {
    let folder = folder();
    questions(folder.path());
    let told = json_of(
        folder.path(),
        &["eval", "choice", "--model", "model", "--data", "questions.jsonl", "--shots", "2", "--json"],
    );
    assert_eq!(told["shots"], 2);
    let none = json_of(
        folder.path(),
        &["eval", "choice", "--model", "model", "--data", "questions.jsonl", "--json"],
    );
    assert!(told["tokens"].as_u64() > none["tokens"].as_u64());
    fs::create_dir(folder.path().join("mmlu")).unwrap();
    for subject in ["anatomy", "world_religions"] {
        let rows = "what?,this,that,it,they,B\n\"which, then?\",a,b,c,d,A\n".repeat(3);
        fs::write(folder.path().join(format!("mmlu/{subject}_test.csv")), rows).unwrap();
    }
    let told = json_of(folder.path(), &["eval", "choice", "--model", "model", "--data", "mmlu", "--json"]);
    assert_eq!((&told["form"], &told["items"]), (&json!("mmlu"), &json!(12)));
    assert!(told["systems"][0]["accuracy_over_groups"].is_f64());
    // A table's cell has a list as JSON.
    let table = "context,choices,gold\nhello 1,\"[\"\"so\"\", \"\"so it is\"\"]\",1\n";
    fs::write(folder.path().join("table.csv"), table).unwrap();
    let told =
        json_of(folder.path(), &["eval", "choice", "--model", "model", "--data", "table.csv", "--json"]);
    assert_eq!((&told["form"], &told["items"]), (&json!("choice"), &json!(1)));
}

#[test]
fn a_text_that_brings_its_beginning_along_gets_no_second_one() {
    let folder = folder();
    let logprobs = |context: &str, choices: [&str; 2]| {
        let question = json!({"context": context, "choices": choices, "gold": 0});
        write_lines(folder.path().join("one.jsonl"), &[question]);
        let command = "eval choice --model model --data one.jsonl --set precision=f32 --items i.jsonl --json";
        json_of(folder.path(), &command.split(' ').collect::<Vec<_>>());
        let item = fs::read_to_string(folder.path().join("i.jsonl")).unwrap();
        serde_json::from_str::<Value>(&item).unwrap()["systems"]["model"]["logprobs"].clone()
    };
    let choices = ["so it is", "hello there"];
    assert_eq!(logprobs("<|begin|>hello, what?", choices), logprobs("hello, what?", choices));
    assert_ne!(logprobs("hello, what?", choices), logprobs("hello, who?", choices));
    let begun = choices.map(|choice| format!("<|begin|>{choice}"));
    assert_eq!(logprobs("", begun.each_ref().map(String::as_str)), logprobs("", choices));
}

#[test]
fn the_first_examples_stand_before_every_question() {
    let folder = folder();
    let examples: Vec<Value> = questions(folder.path()).into_iter().take(3).collect();
    write_lines(folder.path().join("examples.jsonl"), &examples);
    let shown = |example: &Value| {
        let [context, choices] = [&example["context"], &example["choices"]];
        let right = choices[example["gold"].as_u64().unwrap() as usize].as_str().unwrap();
        format!("{} {right}\n\n", context.as_str().unwrap())
    };
    let before: String = examples[..2].iter().map(shown).collect();
    let asked = json!({"context": "and now?", "choices": ["so", "so it is"], "gold": 0, "group": "first"});
    let mut written = asked.clone();
    written["context"] = json!(format!("{before}and now?"));
    let logprobs = |question: &Value, more: &str| {
        write_lines(folder.path().join("one.jsonl"), std::slice::from_ref(question));
        let command = "eval choice --model model --data one.jsonl --set precision=f32 --items i.jsonl --json";
        let command = format!("{command}{more}");
        json_of(folder.path(), &command.split(' ').collect::<Vec<_>>());
        let item = fs::read_to_string(folder.path().join("i.jsonl")).unwrap();
        serde_json::from_str::<Value>(&item).unwrap()["systems"]["model"]["logprobs"].clone()
    };
    let first = logprobs(&asked, " --shots 2 --shots-from examples.jsonl --shots-first");
    assert_eq!(first, logprobs(&written, ""));
}

#[test]
fn questions_that_are_none_are_refused() {
    let folder = folder();
    questions(folder.path());
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write("empty.jsonl", "");
    write("other.jsonl", "{\"prompt\": 1}\n");
    write("gold.jsonl", "{\"context\": \"a\", \"choices\": [\"b\", \"c\"], \"gold\": 2}\n");
    write("letters.csv", "what?,a,b,c,d,A\nwho?,a,b,c,d,E\nwhy?,a,b,c,d,B\n");
    let long = json!({"context": "a", "choices": ["b ".repeat(300), "c"], "gold": 0});
    write("long.jsonl", &format!("{long}\n"));
    for (data, more, words) in [
        ("none.jsonl", &[][..], "none.jsonl"),
        ("empty.jsonl", &[], "there are no rows"),
        ("other.jsonl", &[], "of no known form"),
        ("gold.jsonl", &[], "\"gold\""),
        ("long.jsonl", &[], "long.jsonl: question 1 has a choice of more tokens than the 256"),
        ("letters.csv", &[], "letters.csv, row 2: a row of MMLU's tables"),
        ("questions.jsonl", &["--items", "questions.jsonl"], "it is what --data names"),
        ("questions.jsonl", &["--form", "riddles"], "no form of multiple-choice questions is called"),
        ("questions.jsonl", &["--shots", "20"], "20 examples are wanted"),
        ("questions.jsonl", &["--items", "no/such/folder.jsonl"], "--items no/such/folder.jsonl"),
        ("questions.jsonl", &["--set", "data.max_length=4"], "takes precision, quantization and memory only"),
        ("questions.jsonl", &["--set", "memory=100KiB"], "`memory` allows only 100.0 KiB"),
    ] {
        let told =
            failure(folder.path(), &[&["eval", "choice", "--model", "model", "--data", data], more].concat());
        assert!(told.starts_with("exit code 2\n") && told.contains(words), "{data}, {more:?}: {told}");
    }
}

#[test]
fn data_settings_count_and_their_warnings_are_told() {
    let folder = folder();
    let command = ["eval", "perplexity", "--model", "model", "--data", "data.jsonl"];
    let output = run(folder.path(), &[&command[..], &["--set", "data.max_length=48"]].concat());
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("warning: Cut off at data.max_length = 48 tokens"), "{errors}");
    let told = String::from_utf8(output.stdout).unwrap();
    let names: Vec<&str> = told.lines().map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!(names, ["loss", "perplexity", "bits/byte", "tokens", "time"]);
    let all = [&command[..], &["--json", "--set", "data.train_on=all"]].concat();
    let assistant = [&command[..], &["--json"]].concat();
    let tokens = |command: &[&str]| json_of(folder.path(), command)["tokens"].as_u64().unwrap();
    assert!(tokens(&all) > tokens(&assistant));
    // Longer than the model's context of 256.
    fs::write(folder.path().join("long.txt"), "hello there ".repeat(100)).unwrap();
    let long = ["eval", "perplexity", "--model", "model", "--data", "long.txt"];
    let output = run(folder.path(), &[&long[..], &["--set", "data.max_length=2048"]].concat());
    assert!(String::from_utf8_lossy(&output.stderr).contains("more than the 256 the model was made for"));
}

#[test]
fn what_cannot_be_evaluated_is_refused() {
    let folder = folder();
    fs::write(folder.path().join("bad.jsonl"), "{\"text\": \"a\"}\n{\"text\": 3}\n").unwrap();
    fs::write(folder.path().join("empty.jsonl"), "").unwrap();
    for (data, setting, words) in [
        ("none.jsonl", "precision=f32", "none.jsonl: No such file"),
        ("bad.jsonl", "precision=f32", "bad.jsonl:2: \"text\" must be a string"),
        ("empty.jsonl", "precision=f32", "there is no example in empty.jsonl"),
        ("data.jsonl", "quantization={type: nf4, block_size: 65}", "has the block_size 65"),
        ("data.jsonl", "training.epochs=2", "takes data.*, precision, quantization and memory only"),
        ("data.jsonl", "data.max_lenght=2", "did you mean `data.max_length`?"),
        ("data.jsonl", "memory=100KiB", "`memory` allows only 100.0 KiB"),
    ] {
        let command = ["eval", "perplexity", "--model", "model", "--data", data, "--set", setting];
        let told = failure(folder.path(), &command);
        assert!(told.starts_with("exit code 2\n") && told.contains(words), "{data}, {setting}: {told}");
    }
}

/// Records of `generate --data`, and what it answers.
fn answered(folder: &Path, adapter: &[&str]) -> Vec<Value> {
    let command =
        ["generate", "--model", "model", "--data", "data.jsonl", "--max-tokens", "12", "--precision", "f32"];
    let output = run(folder, &[&command[..], adapter].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn answers_are_those_of_generate_and_are_compared_with_the_files() {
    let folder = folder();
    fs::rename(tiny_adapter(folder.path(), 0.5), folder.path().join("one")).unwrap();
    let (base, tuned) = (answered(folder.path(), &[]), answered(folder.path(), &["--adapter", "one"]));
    // Half of what the adapter says is right; of the base's answers a quarter is made so.
    let records: Vec<Value> = (0..40)
        .map(|i| {
            let said = match i % 4 {
                0 | 1 => &tuned[i],
                2 => &base[i],
                _ => &json!({"text": "something else"}),
            };
            let user = &base[i]["messages"][0];
            json!({"messages": [user, {"role": "assistant", "content": said["text"]}]})
        })
        .collect();
    write_lines(folder.path().join("own.jsonl"), &records);
    let command = "eval generate --model model --adapter one --data own.jsonl --metric exact_match --max-tokens 12 \
                   --set precision=f32 --items i.jsonl";
    let command: Vec<&str> = command.split_whitespace().collect();
    let told = json_of(folder.path(), &[&command[..], &["--json"]].concat());
    let items = fs::read_to_string(folder.path().join("i.jsonl")).unwrap();
    let items: Vec<Value> = items.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut right = [0, 0];
    for (i, item) in items.iter().enumerate() {
        for (of, (system, said)) in [("model", &base[i]), ("one", &tuned[i])].into_iter().enumerate() {
            assert_eq!(item["systems"][system]["answers"], json!([said["text"]]), "record {i} of {system}");
            let is_right = said["text"] == records[i]["messages"][1]["content"];
            right[of] += usize::from(is_right);
            assert_eq!(item["systems"][system]["scores"], json!([f64::from(u8::from(is_right))]));
        }
    }
    assert!(right[1] >= 20 && right[0] >= 10, "{right:?}");
    for (of, system) in told["systems"].as_array().unwrap().iter().enumerate() {
        assert!((system["score"].as_f64().unwrap() - right[of] as f64 / 40.0).abs() < 1e-12);
    }
    let difference = told["differences"][0]["difference"]["value"].as_f64().unwrap();
    assert!((difference - (right[1] as f64 - right[0] as f64) / 40.0).abs() < 1e-12);

    // As many at once as one, and several samples of each.
    let one = json_of(folder.path(), &[&command[..], &["--json", "--running", "1"]].concat());
    for (all, one) in told["systems"].as_array().unwrap().iter().zip(one["systems"].as_array().unwrap()) {
        assert_eq!((&all["score"], &all["new_tokens"]), (&one["score"], &one["new_tokens"]));
    }
    let samples = ["--json", "--samples", "3", "--temperature", "1"];
    let told = json_of(folder.path(), &[&command[..], &samples].concat());
    let passes = told["systems"][1]["pass_at"].as_array().unwrap();
    let values: Vec<f64> = passes.iter().map(|of| of["value"].as_f64().unwrap()).collect();
    assert_eq!(passes.iter().map(|of| of["k"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(values[0] <= values[1] && values[1] <= values[2]);
    let told = String::from_utf8(run(folder.path(), &command).stdout).unwrap();
    assert!(told.contains("one is better than model at"), "{told}");
}

#[test]
fn answers_that_cannot_be_compared_are_refused() {
    let folder = folder();
    write_lines(
        folder.path().join("open.jsonl"),
        &[json!({"messages": [{"role": "user", "content": "hello"}]})],
    );
    let text = |n: usize| json!({"prompt": format!("hello {n}"), "completion": " so"});
    write_lines(folder.path().join("texts.jsonl"), &[text(0), text(1)]);
    for (data, more, words) in [
        ("data.jsonl", &["--metric", "rogue"][..], "no metric is called \"rogue\""),
        ("data.jsonl", &["--metric", "regex"], "needs --pattern"),
        ("data.jsonl", &["--metric", "regex", "--pattern", "("], "cannot be read"),
        ("data.jsonl", &["--metric", "json", "--pattern", "a"], "--pattern is for --metric regex"),
        ("data.jsonl", &["--metric", "number"], "data.jsonl:1"),
        ("open.jsonl", &["--metric", "f1"], "open.jsonl:1: there is no answer to compare with"),
        ("none.jsonl", &["--metric", "f1"], "none.jsonl"),
        ("data.jsonl", &["--metric", "f1", "--samples", "0"], "--samples"),
        ("data.jsonl", &["--metric", "json", "--strip"], "are for --metric exact_match and regex"),
        ("data.jsonl", &["--metric", "exact_match", "--ignore", "("], "cannot be read"),
        ("data.jsonl", &["--metric", "exact_match", "--last"], "--pattern"),
        ("data.jsonl", &["--metric", "f1", "--stop", ""], "--stop"),
        ("data.jsonl", &["--metric", "f1", "--form", "riddles"], "no form of open questions is called"),
        (
            "data.jsonl",
            &["--metric", "f1", "--form", "gsm8k"],
            "data.jsonl:1: a row of the form gsm8k: \"question\"",
        ),
        (
            "data.jsonl",
            &["--metric", "f1", "--shots", "2"],
            "data.jsonl:1: --shots puts worked examples before texts",
        ),
        (
            "texts.jsonl",
            &["--metric", "f1", "--shots", "2"],
            "2 examples are wanted, but only 1 others are there",
        ),
        (
            "data.jsonl",
            &["--metric", "f1", "--like-lm-eval", "--max-tokens", "256"],
            "--max-tokens 256 leaves no room for a prompt in the 256 tokens",
        ),
        ("data.jsonl", &["--metric", "f1", "--set", "memory=100KiB"], "`memory` allows only 100.0 KiB"),
    ] {
        let told = failure(
            folder.path(),
            &[&["eval", "generate", "--model", "model", "--data", data], more].concat(),
        );
        assert!(told.starts_with("exit code 2\n") && told.contains(words), "{data}, {more:?}: {told}");
    }
}

#[test]
fn the_quantized_base_is_put_beside_the_one_that_its_files_hold() {
    let folder = folder();
    tiny_adapter(folder.path(), 0.5);
    let of = |more: &str| {
        let all = format!("eval perplexity --data data.jsonl --json {more}");
        json_of(folder.path(), &all.split_whitespace().collect::<Vec<_>>())
    };
    let nf4 = "--model model --set quantization=nf4";
    let told = of(&format!("{nf4} --adapter adapter --unquantized"));
    let named = |n: usize| told["beside"][n]["system"].as_str().unwrap().to_owned();
    assert_eq!([named(0), named(1)], ["model", "model in nf4"]);
    assert_eq!(told["beside"][0]["loss"], of("--model model")["loss"]);
    assert_eq!(told["beside"][1]["loss"], of(nf4)["loss"]);
    assert_eq!(told["loss"], of(&format!("{nf4} --adapter adapter"))["loss"]);
    let difference = &told["differences"][0];
    assert_eq!([&difference["system"], &difference["than"]], ["model in nf4", "model"]);
    for arguments in [
        "eval perplexity --model model --data data.jsonl --unquantized",
        "eval forgetting --model model --adapter adapter --set quantization=nf4 --unquantized",
    ] {
        let told = failure(folder.path(), &arguments.split(' ').collect::<Vec<_>>());
        assert!(told.contains("exit code 2") && told.contains("--unquantized"), "{told}");
    }
}
