"""The unchanged client of OpenAI against a running server.

    pip install openai==3.57.0
    luthier serve --model MODEL --adapter tuned=RUN
    python server/clients/openai_client.py http://127.0.0.1:8080 MODEL-NAME tuned

Asks every model for completions, plain, streamed, with echo and log-probabilities and of token ids, and, where the model has a chat
template, for chats; a name that nobody has must be answered with 404.
"""

import sys

import openai

address, *models = sys.argv[1:]
client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
listed = [model.id for model in client.models.list()]
assert set(models) <= set(listed), f"{models} among {listed}"
for model in models:
    ask = dict(model=model, prompt="Once upon a time", max_tokens=12, temperature=0)
    whole = client.completions.create(**ask, logprobs=2)
    streamed = "".join(part.choices[0].text for part in client.completions.create(**ask, stream=True) if part.choices)
    assert streamed == whole.choices[0].text, (streamed, whole.choices[0].text)
    assert whole.usage.completion_tokens == len(whole.choices[0].logprobs.tokens) <= 12
    echoed = client.completions.create(**{**ask, "max_tokens": 0}, echo=True, logprobs=1).choices[0]
    assert echoed.text == ask["prompt"] and echoed.logprobs.token_logprobs[0] is None, echoed
    both = client.completions.create(**{**ask, "prompt": ["Once", [1, 2, 3]], "n": 2, "temperature": 1.0, "seed": 5})
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3], both
    try:
        said = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "Hello"}], max_tokens=8, temperature=0, logprobs=True, top_logprobs=2
        )
        assert said.choices[0].message.role == "assistant" and said.choices[0].logprobs.content
    except openai.BadRequestError as error:
        assert "chat template" in str(error), error
    print(f"{model}: {whole.choices[0].text!r}")
try:
    client.completions.create(model="nobody", prompt="x")
    sys.exit("a name that nobody has was answered")
except openai.NotFoundError:
    print("nobody: 404")
