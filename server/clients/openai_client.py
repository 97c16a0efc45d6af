"""The unchanged client of OpenAI against a running server.

    pip install openai==3.57.0 pydantic
    luthier serve --model MODEL --adapter tuned=RUN
    python server/clients/openai_client.py http://127.0.0.1:8080 MODEL-NAME tuned

Asks every model for completions, plain, streamed, with echo and log-probabilities and of token ids, and of a form, and, where the model
has a chat template, for chats: plain, parsed into an object, and calls of a tool where its template knows them, whole and streamed. A
name that nobody has must be answered with 404.
"""

import json
import re
import sys
import typing

import openai
import pydantic


class Person(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=12)
    age: int = pydantic.Field(ge=0, le=150)
    tags: list[typing.Literal["red", "green"]] = pydantic.Field(max_length=2)


PLACE = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"], "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "weather", "description": "The weather of a city", "strict": True, "parameters": PLACE}}


def forms(model):
    """A chat that is parsed into an object, whole and streamed."""
    ask = dict(model=model, messages=[{"role": "user", "content": "Who?"}], response_format=Person, max_tokens=400, temperature=0)
    parsed = client.chat.completions.parse(**ask).choices[0].message.parsed
    assert isinstance(parsed, Person), parsed
    with client.chat.completions.stream(**ask) as stream:
        streamed = stream.get_final_completion().choices[0].message.parsed
    assert streamed == parsed, (streamed, parsed)
    return parsed


def calls(model):
    """A call that the model must make, whole and streamed."""
    named = {"type": "function", "function": {"name": "weather"}}
    ask = dict(model=model, messages=[{"role": "user", "content": "Rain?"}], tools=[TOOL], max_tokens=400, temperature=0)
    try:
        whole = client.chat.completions.create(**ask, tool_choice=named)
    except openai.BadRequestError as error:
        assert "chat template" in str(error), error
        return None
    call = whole.choices[0].message.tool_calls[0]
    assert whole.choices[0].finish_reason == "tool_calls" and call.function.name == "weather", whole
    assert isinstance(json.loads(call.function.arguments)["city"], str), call
    with client.chat.completions.stream(**ask, tool_choice=named) as stream:
        streamed = stream.get_final_completion().choices[0].message.tool_calls[0]
    assert streamed.function.arguments == call.function.arguments, (streamed, call)
    said = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
    history = [*ask["messages"], whole.choices[0].message, said]
    assert client.chat.completions.create(**{**ask, "messages": history, "max_tokens": 8}).choices[0].message
    return call.function.arguments


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
    dated = client.completions.create(**ask, extra_body={"structured_outputs": {"regex": "[0-9]{4}-[0-9]{2}"}}).choices[0]
    assert re.fullmatch("[0-9]{4}-[0-9]{2}", dated.text) and dated.finish_reason == "stop", dated
    try:
        said = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "Hello"}], max_tokens=8, temperature=0, logprobs=True, top_logprobs=2
        )
        assert said.choices[0].message.role == "assistant" and said.choices[0].logprobs.content
        print(f"{model}: {forms(model)!r}, {calls(model)!r}")
    except openai.BadRequestError as error:
        assert "chat template" in str(error), error
    print(f"{model}: {whole.choices[0].text!r}")
try:
    client.completions.create(model="nobody", prompt="x")
    sys.exit("a name that nobody has was answered")
except openai.NotFoundError:
    print("nobody: 404")
