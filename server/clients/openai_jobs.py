"""Fine-tuning jobs by the unchanged client of OpenAI against a running server.

    pip install openai==3.57.0
    luthier serve --model MODEL --state STATE
    python server/clients/openai_jobs.py http://127.0.0.1:8080 MODEL-NAME TRAIN.jsonl [HELD-OUT.jsonl]

Brings the files, starts two jobs that train together, pauses and resumes one, cancels a third, follows the events to the end, and asks the model
that came of it, its checkpoint and the base for the same text. In the end the model and the files are removed.
"""

import sys
import time

import openai

url, base, train, *rest = sys.argv[1:]
client = openai.OpenAI(base_url=url + "/v1", api_key="none")


def upload(path):
    return client.files.create(file=open(path, "rb"), purpose="fine-tune").id


def wait(job, statuses, seconds=600):
    for _ in range(seconds * 5):
        now = client.fine_tuning.jobs.retrieve(job)
        if now.status in statuses:
            return now
        assert now.status not in ("failed", "cancelled"), now.error
        time.sleep(0.2)
    raise AssertionError(now)


def complete(model):
    return client.completions.create(model=model, prompt="Once upon a time", max_tokens=24, temperature=0).choices[0].text


training, held_out = upload(train), upload(rest[0]) if rest else None
assert {file.id for file in client.files.list()} >= {training}
supervised = {"hyperparameters": {"n_epochs": 1, "batch_size": 4, "learning_rate_multiplier": 1.0}}
ask = dict(model=base, training_file=training, method={"type": "supervised", "supervised": supervised})
short = {"settings": {"training.max_steps": 12, "training.save_every": 4, "adapter.r": 8}}
first = client.fine_tuning.jobs.create(**ask, suffix="first", seed=1, validation_file=held_out, metadata={"why": "a test"}, extra_body=short)
second = client.fine_tuning.jobs.create(**ask, suffix="second", seed=2, extra_body=short)
third = client.fine_tuning.jobs.create(**ask, suffix="third")
assert client.fine_tuning.jobs.cancel(third.id).status == "cancelled"
wait(second.id, ["running", "succeeded"])
if client.fine_tuning.jobs.retrieve(second.id).status == "running":
    assert client.fine_tuning.jobs.pause(second.id).status == "paused"
    client.fine_tuning.jobs.resume(second.id)
done = [wait(job.id, ["succeeded"]) for job in (first, second)]
for job in done:
    print(job.fine_tuned_model, "tokens:", job.trained_tokens, "held:", job.result_files)
events = list(client.fine_tuning.jobs.list_events(first.id, limit=5))
assert events[-1].message == "the job was created", events[-1]
print("\n".join(event.message for event in reversed(events)))
checkpoints = list(client.fine_tuning.jobs.checkpoints.list(first.id))
assert checkpoints and checkpoints[0].step_number == 12, checkpoints
table = client.files.content(done[0].result_files[0]).text
assert table.startswith("step,train_loss"), table
names = [base, done[0].fine_tuned_model, checkpoints[0].fine_tuned_model_checkpoint, done[1].fine_tuned_model]
texts = [complete(name) for name in names]
for name, text in zip(names, texts):
    print(f"{name}: {text!r}")
assert texts[1] == texts[2], "the last checkpoint is the result"
try:
    client.fine_tuning.jobs.create(model=base, training_file="file-none")
    raise AssertionError("a file that is not there")
except openai.BadRequestError as error:
    assert error.param == "training_file", error
assert client.models.delete(done[1].fine_tuned_model).deleted
try:
    complete(done[1].fine_tuned_model)
    raise AssertionError("a model that was deleted")
except openai.NotFoundError:
    pass
assert client.files.delete(training).deleted
print("all is well")
