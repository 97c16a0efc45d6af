//! `eval perplexity`: its number against the model's own losses, and what it refuses.

use std::fs;
use std::path::Path;

use compute::{Device, Precision};
use model::memory::Allocator;
use model::{Activations, Adapter, Batch, Decoder, Extent, Layout, Purpose};
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use crate::support::{tiny_adapter, tiny_model, write_lines};
use crate::{failure, run};

fn folder() -> TempDir {
    let folder = tempdir().unwrap();
    tiny_model(folder.path());
    let chat = |user: &str, assistant: &str| json!({"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]});
    let records: Vec<Value> =
        (0..40).map(|i| chat(&format!("hello {i}"), &"so it is, ".repeat(1 + i % 7))).collect();
    write_lines(folder.path().join("data.jsonl"), &records);
    folder
}

fn json_of(folder: &Path, arguments: &[&str]) -> Value {
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
    assert_eq!(names, ["loss", "perplexity", "tokens", "time"]);
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
