"""The unchanged client of Tinker against a running server: supervised training, sampling, checkpoints.

    pip install tinker==0.38.0 transformers==5.24.0 torch==2.15.0
    luthier serve --model MODEL --state STATE
    python server/clients/tinker_sft.py http://127.0.0.1:8080 MODEL-NAME MODEL-FOLDER

Trains on four sentences and wants the loss to fall, then the trained model to say one of them, and says how far the sampler's
log-probabilities lie from the trainer's: 0 where the server runs with --exact-logprobs.
"""

import sys

import numpy as np
import tinker
from tinker import types
from transformers import AutoTokenizer

address, model, folder = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
service = tinker.ServiceClient(base_url=address, api_key="tml-none")
training = service.create_lora_training_client(base_model=model, rank=8, seed=1).result()

PAIRS = [
    ("Who lives in the big tree?", " A small blue owl named Otto lives in the big tree."),
    ("What does Lily like?", " Lily likes to paint red boats."),
    ("Where is the cat?", " The cat is under the old chair."),
    ("What did Tom find?", " Tom found a shiny golden key."),
]


def datum(prompt: str, completion: str) -> types.Datum:
    """A sequence shifted by one, whose prompt carries no weight."""
    before, after = tokenizer.encode(prompt), tokenizer.encode(completion, add_special_tokens=False)
    tokens = before + after + [tokenizer.eos_token_id]
    weights = [0] * len(before) + [1] * (len(after) + 1)
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], "weights": weights[1:]},
    )


data = [datum(*pair) for pair in PAIRS]
count = sum(sum(one.loss_fn_inputs["weights"].data) for one in data)
losses = []
for _ in range(60):
    passed = training.forward_backward(data, "cross_entropy")
    stepped = training.optim_step(types.AdamParams(learning_rate=1e-2))
    losses.append(passed.result().metrics["loss:sum"] / count)
    stepped.result()
print(f"loss a token: {losses[0]:.3f} at first, {losses[-1]:.3f} at last")
assert losses[-1] < 0.3 * losses[0], losses

sampler = training.save_weights_and_get_sampling_client().result()
prompt = tokenizer.encode(PAIRS[0][0])
greedy = types.SamplingParams(max_tokens=40, temperature=0.0)
said = sampler.sample(types.ModelInput.from_ints(prompt), 1, greedy).result().sequences[0]
print(f"{PAIRS[0][0]}{tokenizer.decode(said.tokens)}")
assert said.stop_reason == "stop" and said.tokens[-1] == tokenizer.eos_token_id, said

# What was sampled, by the trainer and by the sampler.
warm = types.SamplingParams(max_tokens=30, temperature=1.0, seed=3, stop=[])
largest = mean = 0.0
for sequence in sampler.sample(types.ModelInput.from_ints(prompt), 4, warm).result().sequences:
    tokens = prompt + sequence.tokens
    one = types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs={"target_tokens": tokens[1:]}
    )
    forward = training.forward([one], "cross_entropy").result().loss_fn_outputs[0]["logprobs"].to_numpy()
    away = np.abs(forward[len(prompt) - 1 :] - np.asarray(sequence.logprobs, dtype=np.float32))
    largest, mean = max(largest, away.max()), mean + away.mean() / 4
    scored = np.asarray(sampler.compute_logprobs(types.ModelInput.from_ints(tokens)).result()[1:], dtype=np.float32)
    largest = max(largest, np.abs(scored - forward).max())
print(f"log-probabilities of sampler and trainer differ by {mean:.2e} on average, {largest:.2e} at most")
assert largest < 0.15, largest

# A checkpoint, and another model that goes on from it as this one does.
saved = training.save_state("sft").result().path
other = service.create_training_client_from_state_with_optimizer(saved).result()
both = [client.forward(data, "cross_entropy").result().metrics["loss:sum"] for client in (training, other)]
assert both[0] == both[1], both
for client in (training, other):
    client.forward_backward(data, "cross_entropy").result()
    client.optim_step(types.AdamParams(learning_rate=1e-2)).result()
both = [client.forward(data, "cross_entropy").result().metrics["loss:sum"] for client in (training, other)]
assert both[0] == both[1], both

rest = tinker.RestClient(base_url=address, api_key="tml-none")
assert rest.get_server_capabilities().result().supported_models[0].model_name == model
assert rest.get_weights_info_by_tinker_path(saved).result().lora_rank == 8
kept = [one.tinker_path for one in rest.list_checkpoints(training.model_id).result().checkpoints]
assert kept == [saved], kept
assert rest.get_training_run(training.model_id).result().last_checkpoint.tinker_path == saved
rest.delete_checkpoint_from_tinker_path(saved).result()
assert rest.list_checkpoints(training.model_id).result().checkpoints == []
try:
    training.forward_backward([datum("x", "y")], "no_such_loss").result()
    sys.exit("a loss that is none was taken")
except tinker.BadRequestError as error:
    assert "there is no loss `no_such_loss`" in str(error), error
service.close("success").result()
print("all is well")
