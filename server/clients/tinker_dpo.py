"""The unchanged client of Tinker against a running server: preferences by a loss of the client's own, as the cookbook has it, and a
toy of reinforcement learning.

    pip install tinker==0.38.0 transformers==5.24.0 torch==2.15.0
    luthier serve --model MODEL --state STATE
    python server/clients/tinker_dpo.py http://127.0.0.1:8080 MODEL-NAME MODEL-FOLDER

Wants the margin between chosen and rejected answers to rise, then, by importance sampling, what is sampled to have more of a letter.
"""

import sys

import tinker
import torch
import torch.nn.functional as F
from tinker import types
from transformers import AutoTokenizer

address, model, folder = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
service = tinker.ServiceClient(base_url=address, api_key="tml-none")

PREFERRED = [
    ("The sun was", " warm and bright over the hill.", " cold and sad and it hid."),
    ("Tim gave his mom", " a big red flower.", " nothing at all."),
    ("The dog was", " happy and ran to the ball.", " angry and bit the ball."),
]


def datum(prompt: str, completion: str) -> types.Datum:
    """A sequence shifted by one, whose prompt carries no weight."""
    before, after = tokenizer.encode(prompt), tokenizer.encode(completion, add_special_tokens=False)
    tokens, weights = before + after, [0.0] * len(before) + [1.0] * len(after)
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], "weights": weights[1:]},
    )


# DPO (Rafailov et al. 2023): chosen and rejected in turn, the base as the reference.
training = service.create_lora_training_client(base_model=model, rank=8, seed=1).result()
data = [datum(prompt, answer) for prompt, *answers in PREFERRED for answer in answers]
weights = [torch.tensor(one.loss_fn_inputs["weights"].data) for one in data]
before = training.forward(data, "cross_entropy").result().loss_fn_outputs
reference = [torch.dot(one["logprobs"].to_torch(), weight) for one, weight in zip(before, weights, strict=True)]
BETA = 0.1


def dpo(data: list[types.Datum], logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss, and by how much the chosen answers are ahead."""
    sums = [torch.dot(one, weight) for one, weight in zip(logprobs, weights, strict=True)]
    ahead = torch.stack([one - other for one, other in zip(sums, reference, strict=True)])
    margins = BETA * (ahead[0::2] - ahead[1::2])
    return -F.logsigmoid(margins).mean(), {"margin:mean": margins.mean().item()}


margins = []
for _ in range(30):
    passed = training.forward_backward_custom(data, dpo)
    stepped = training.optim_step(types.AdamParams(learning_rate=2e-3))
    margins.append(passed.result().metrics["margin:mean"])
    stepped.result()
print(f"margin: {margins[0]:.4f} at first, {margins[-1]:.4f} at last")
assert abs(margins[0]) < 0.02 and margins[-1] > 0.2, margins

# Reinforcement learning: answers are worth as many of their letters are an `a`.
training = service.create_lora_training_client(base_model=model, rank=8, seed=2).result()
prompt = tokenizer.encode("Once upon a time")
rewards = []
for step in range(25):
    sampler = training.save_weights_and_get_sampling_client().result()
    params = types.SamplingParams(max_tokens=16, temperature=1.0, seed=1000 * step, stop=[])
    sampled = sampler.sample(types.ModelInput.from_ints(prompt), 16, params).result().sequences
    texts = [tokenizer.decode(sequence.tokens) for sequence in sampled]
    worth = torch.tensor([text.count("a") / max(len(text), 1) for text in texts])
    rewards.append(worth.mean().item())
    advantages = (worth - worth.mean()) / (worth.std() + 1e-6)
    data = []
    for sequence, advantage in zip(sampled, advantages.tolist(), strict=True):
        tokens, before = prompt + sequence.tokens, len(prompt) - 1
        data.append(
            types.Datum(
                model_input=types.ModelInput.from_ints(tokens[:-1]),
                loss_fn_inputs={
                    "target_tokens": tokens[1:],
                    "logprobs": [0.0] * before + sequence.logprobs,
                    "advantages": [0.0] * before + [advantage] * len(sequence.tokens),
                },
            )
        )
    loss, config = [("importance_sampling", None), ("ppo", {"clip_low_threshold": 0.8}), ("cispo", None)][step % 3]
    training.forward_backward(data, loss, config)
    training.optim_step(types.AdamParams(learning_rate=4e-3)).result()
first, last = sum(rewards[:5]) / 5, sum(rewards[-5:]) / 5
print(f"letters that are an `a`: {first:.3f} at first, {last:.3f} at last")
assert last > 1.3 * first, rewards
service.close("success").result()
print("all is well")
