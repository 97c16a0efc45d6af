"""A server that holds one adapter at a time, as transformers and PEFT make one: what `luthier bench serve` is put beside.

    pip install torch transformers peft
    python server/clients/peft_swapping.py FOLDER [--adapters 32] [--parallel 32] [--requests 96] [--prompt 32] [--new 32]

So many requests wait at any time. The adapter of the one that waits longest is switched to, and all that wait for it are one batch. No HTTP,
no tokenizer: only what the model computes is timed, of prompts and answers of the lengths and by the law of `luthier bench serve`.
"""

import argparse
import json
import random
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

parser = argparse.ArgumentParser()
parser.add_argument("model")
for name, usual in [("adapters", 32), ("rank", 16), ("parallel", 32), ("requests", 96), ("prompt", 32), ("new", 32)]:
    parser.add_argument(f"--{name}", type=int, default=usual)
asked = parser.parse_args()

torch.manual_seed(0)
draw = random.Random(42)
base = AutoModelForCausalLM.from_pretrained(asked.model, dtype=torch.bfloat16).eval()
config = LoraConfig(r=asked.rank, lora_alpha=2 * asked.rank, target_modules="all-linear", init_lora_weights=False)
model = get_peft_model(base, config, adapter_name="0")
for number in range(1, asked.adapters):
    model.add_adapter(str(number), config)


def plan():
    """An adapter by Zipf's law, and half to three halves of the usual lengths."""
    weights = [1 / (n + 1) for n in range(asked.adapters)]
    adapter = draw.choices(range(asked.adapters), weights)[0]
    prompt = draw.randint(max(asked.prompt // 2, 1), asked.prompt * 3 // 2)
    new = draw.randint(max(asked.new // 2, 1), asked.new * 3 // 2)
    return adapter, [draw.randrange(3, base.config.vocab_size) for _ in range(prompt)], new


def answer(batch):
    """Generates for requests of one adapter, padded on the left."""
    longest = max(len(prompt) for _, prompt, _ in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, (_, prompt, _) in enumerate(batch):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    new = max(new for _, _, new in batch)
    model.set_adapter(str(batch[0][0]))
    model.generate(input_ids=ids, attention_mask=mask, do_sample=False, min_new_tokens=new, max_new_tokens=new, pad_token_id=0)


planned = [plan() for _ in range(asked.requests)]
with torch.inference_mode():
    answer(planned[:2])
    begun, waiting, rest, batches = time.perf_counter(), [], list(planned), 0
    while waiting or rest:
        while rest and len(waiting) < asked.parallel:
            waiting.append(rest.pop(0))
        adapter = waiting[0][0]
        answer([of for of in waiting if of[0] == adapter])
        waiting = [of for of in waiting if of[0] != adapter]
        batches += 1
    seconds = time.perf_counter() - begun

prompts, answers = sum(len(prompt) for _, prompt, _ in planned), sum(new for _, _, new in planned)
print(json.dumps({
    "seconds": seconds, "batches": batches, "tokens_per_second": (prompts + answers) / seconds,
    "new_tokens_per_second": answers / seconds, "threads": torch.get_num_threads(), "torch": torch.__version__,
}))
