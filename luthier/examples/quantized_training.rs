//! What is left of an adapter in a quantized model, by the ways of getting there: two tables of held-out losses.
//!
//! ```text
//! cargo run --release --example quantized_training -- --model M --train FILE --eval FILE [--steps 100] [--lr 2e-3]
//!     [--targets q_proj,k_proj]
//! ```
//!
//! `--targets`: the layers that are trained, if not all linear ones; QA-LoRA needs inputs of whole groups of 32.
//!
//! It runs the release binary beside it, three seeds each, in a folder that it takes away again.

use std::path::{Path, PathBuf};
use std::process::{Command, exit};

use serde_json::Value;

/// Seeds of adapters and of the order of examples.
const SEEDS: [u64; 3] = [1, 2, 3];

struct Settings {
    binary: PathBuf,
    work: PathBuf,
    model: String,
    train: String,
    eval: String,
    steps: String,
    lr: String,
    /// `adapter.target_modules`, if not all linear layers are trained.
    targets: Option<String>,
}

impl Settings {
    fn read(work: &Path) -> Settings {
        let args: Vec<String> = std::env::args().collect();
        let get =
            |name: &str| args.iter().position(|arg| arg == name).and_then(|at| args.get(at + 1)).cloned();
        let required = |name: &str| {
            get(name).unwrap_or_else(|| {
                eprintln!("{name} is missing: --model M --train FILE --eval FILE [--steps N] [--lr X]");
                exit(2);
            })
        };
        let example = std::env::current_exe().expect("this program has a path");
        let binary = example.ancestors().nth(2).expect("a target folder").join("luthier");
        Settings {
            binary,
            work: work.to_owned(),
            model: required("--model"),
            train: required("--train"),
            eval: required("--eval"),
            steps: get("--steps").unwrap_or_else(|| "100".to_owned()),
            lr: get("--lr").unwrap_or_else(|| "2e-3".to_owned()),
            targets: get("--targets").map(|names| format!("adapter.target_modules=[{names}]")),
        }
    }

    fn at(&self, name: &str) -> String {
        self.work.join(name).display().to_string()
    }

    /// Runs the program; what it prints, as JSON.
    fn run(&self, args: &[&str]) -> Value {
        let output = Command::new(&self.binary).args(args).arg("--json").output().expect("the binary runs");
        if !output.status.success() {
            eprintln!("luthier {}\n{}", args.join(" "), String::from_utf8_lossy(&output.stderr));
            exit(1);
        }
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    fn train(&self, model: &str, output: &str, seed: u64, set: &[&str]) {
        let seed = format!("training.seed={seed}");
        let steps = format!("training.max_steps={}", self.steps);
        let mut args = vec!["train", "--model", model, "--data", &self.train, "--output", output, "--quiet"];
        args.extend(["--lr", &self.lr, "--max-length", "256"]);
        for change in set.iter().copied().chain([&*seed, &*steps]).chain(self.targets.as_deref()) {
            args.extend(["--set", change]);
        }
        self.run(&args);
    }

    fn loss(&self, args: &[&str]) -> f64 {
        let mut all = vec!["eval", "perplexity", "--data", &self.eval, "--set", "data.max_length=256"];
        all.extend(args);
        self.run(&all)["loss"].as_f64().expect("a loss")
    }
}

/// A line of a table: means over the seeds.
fn line(name: &str, losses: &[Vec<f64>]) {
    let columns = losses[0].len();
    let mean = |i: usize| losses.iter().map(|of_seed| of_seed[i]).sum::<f64>() / losses.len() as f64;
    let cells: Vec<String> = (0..columns).map(|i| format!("{:.4}", mean(i))).collect();
    println!("| {name} | {} |", cells.join(" | "));
}

fn main() {
    let folder = tempfile::tempdir().expect("a folder to work in");
    let settings = Settings::read(folder.path());
    integers(&settings);
    aware(&settings);
}

/// QA-LoRA over integers and merged into them, beside LoRA over NF4, merged and quantized again.
fn integers(s: &Settings) {
    println!("| way | base and adapter | merged, in the base's bits | lost |\n|---|---|---|---|");
    let wide = s.at("nf4");
    for (seed, run) in SEEDS.into_iter().map(|seed| (seed, format!("{wide}-{seed}"))) {
        s.train(&s.model, &run, seed, &["quantization=nf4"]);
        s.run(&["merge", "--adapter", &run, "--output", &format!("{run}-merged"), "--dtype", "f32"]);
    }
    for kind in ["int4", "int3", "int2"] {
        let base = s.at(kind);
        s.run(&["quantize", "--model", &s.model, "--type", kind, "--calibrate", &s.train, "--output", &base]);
        let qalora = SEEDS.map(|seed| {
            let (run, merged) = (format!("{base}-{seed}"), format!("{base}-{seed}-merged"));
            s.train(&base, &run, seed, &["adapter.method=qalora"]);
            s.run(&["merge", "--adapter", &run, "--output", &merged]);
            lost(s.loss(&["--adapter", &run]), s.loss(&["--model", &merged]))
        });
        line(&format!("QA-LoRA, {kind} (GPTQ)"), &qalora);
        for (words, calibrated) in [("rounded", false), ("GPTQ", true)] {
            let again = SEEDS.map(|seed| {
                let (run, merged) = (format!("{wide}-{seed}"), format!("{wide}-{seed}-merged"));
                let to = format!("{base}-{seed}-again-{words}");
                let mut args = vec!["quantize", "--model", &merged, "--type", kind, "--output", &to];
                if calibrated {
                    args.extend(["--calibrate", &s.train]);
                }
                s.run(&args);
                lost(s.loss(&["--adapter", &run]), s.loss(&["--model", &to]))
            });
            line(&format!("QLoRA, merged, then {kind} ({words})"), &again);
        }
    }
}

fn lost(before: f64, after: f64) -> Vec<f64> {
    vec![before, after, after - before]
}

/// Training for an export in Q4_0 beside training as usual.
fn aware(s: &Settings) {
    println!(
        "\n| way | base and adapter in bf16 | exported as Q4_0 | lost | lost of LoRA's own |\n|---|---|---|---|---|"
    );
    let exported = |run: &str| {
        let file = format!("{run}.gguf");
        s.run(&[
            "export",
            "gguf",
            "--model",
            &s.model,
            "--adapter",
            run,
            "--type",
            "q4_0",
            "--output",
            &file,
        ]);
        s.loss(&["--model", &file])
    };
    let plain = SEEDS.map(|seed| {
        let run = s.at(&format!("plain-{seed}"));
        s.train(&s.model, &run, seed, &[]);
        let (before, after) = (s.loss(&["--adapter", &run]), exported(&run));
        vec![before, after, after - before, after - before]
    });
    line("LoRA", &plain);
    let mut seeds = SEEDS.into_iter().zip(&plain);
    let aware = SEEDS.map(|_| {
        let (seed, plain) = seeds.next().expect("as many");
        let run = s.at(&format!("aware-{seed}"));
        s.train(&s.model, &run, seed, &["training.quantization_aware=q4_0"]);
        let (before, after) = (s.loss(&["--adapter", &run]), exported(&run));
        vec![before, after, after - before, after - plain[0]]
    });
    line("LoRA, quantization-aware", &aware);
}
