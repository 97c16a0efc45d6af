"""The unchanged lm-evaluation-harness: its `local-completions` against a running server, beside its `hf` on the same model.

    pip install 'lm-eval[api]==0.4.13' torch transformers
    luthier serve --model FOLDER --precision f32
    python server/clients/lm_eval.py http://127.0.0.1:8080 MODEL-NAME FOLDER ITEMS.jsonl

ITEMS.jsonl has a line {"context": text, "choices": [texts], "gold": number} for each question. Log-likelihoods may differ by 1e-3.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

TASK = """
task: choice
dataset_path: json
dataset_kwargs: {{data_files: {items}}}
test_split: train
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""

address, name, folder, items = sys.argv[1:]
work = pathlib.Path(tempfile.mkdtemp())
(work / "task").mkdir()
(work / "task/choice.yaml").write_text(TASK.format(items=pathlib.Path(items).resolve()))


def run(model, arguments):
    """Log-likelihoods of all choices, and the accuracy."""
    output = work / model
    command = ["lm_eval", "--model", model, "--model_args", arguments, "--tasks", "choice", "--device", "cpu"]
    command += ["--include_path", str(work / "task"), "--log_samples", "--output_path", str(output)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    lines = next(output.rglob("samples*.jsonl")).read_text().splitlines()
    samples = sorted((json.loads(line) for line in lines), key=lambda sample: sample["doc_id"])
    likelihoods = [float(answer[0][0]) for sample in samples for answer in sample["resps"]]
    return likelihoods, sum(sample["acc"] for sample in samples) / len(samples)


# The harness puts no token of the text's beginning before the prompts of a server unless it is told to, and `hf` does.
served = f"model={name},base_url={address}/v1/completions,tokenizer={folder},tokenized_requests=True,add_bos_token=True"
ours, accuracy = run("local-completions", served)
theirs, expected = run("hf", f"pretrained={folder},dtype=float32,add_bos_token=True")
largest = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
print(f"{len(ours)} log-likelihoods, at most {largest:.1e} apart; accuracy {accuracy:.4f}, and {expected:.4f} by hf")
assert largest < 1e-3 and accuracy == expected
