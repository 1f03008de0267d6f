"""OpenAI's own library: blocking, asynchronous, streamed, with a schema, with log-probabilities."""

from __future__ import annotations

import asyncio
from typing import Literal

import openai
import pydantic
from task import read_task, report

TASK = read_task()
CONNECTION = {"base_url": TASK.url, "api_key": "none", "max_retries": 0}
QUESTION = [{"role": "user", "content": TASK.question}]
REQUEST = {"model": TASK.model, "messages": QUESTION, "temperature": 0}


class Fruit(pydantic.BaseModel):
    fruit: Literal["apple", "pear"]
    count: Literal[1, 2, 3]


async def ask_asynchronously() -> tuple[str, str]:
    async with openai.AsyncOpenAI(**CONNECTION) as client:
        whole = await client.chat.completions.create(**REQUEST)
        stream = await client.chat.completions.create(**REQUEST, stream=True)
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
    return whole.choices[0].message.content or "", "".join(pieces)


with openai.OpenAI(**CONNECTION) as client:
    whole = client.chat.completions.create(**REQUEST, logprobs=True)
    assert whole.choices[0].logprobs
    tokens = whole.choices[0].logprobs.content or []
    options = {"include_usage": True}
    with client.chat.completions.create(**REQUEST, stream=True, stream_options=options) as stream:
        chunks = list(stream)
    with client.chat.completions.stream(**REQUEST) as helper:
        helped = helper.get_final_completion()
    conversation = client.chat.completions.create(**(REQUEST | {"messages": TASK.turns}))
    completion = client.completions.create(
        model=TASK.model, prompt=TASK.prompt, temperature=0, max_tokens=200
    )
    # Without a penalty the tiny model writes white space, which a schema allows, without end.
    parsed = client.chat.completions.parse(**REQUEST, response_format=Fruit, frequency_penalty=2)
    try:
        client.chat.completions.create(**REQUEST, max_tokens=10**6)
        refusal = ""
    except openai.BadRequestError as error:
        refusal = str(error.code)
    is_model_listed = TASK.model in [model.id for model in client.models.list()]
asynchronous, asynchronous_stream = asyncio.run(ask_asynchronously())

assert chunks[-1].usage
assert whole.usage
report(
    whole=whole.choices[0].message.content,
    streamed="".join(c.choices[0].delta.content or "" for c in chunks if c.choices),
    helper=helped.choices[0].message.content,
    asynchronous=asynchronous,
    asynchronous_stream=asynchronous_stream,
    conversation=conversation.choices[0].message.content,
    completion=completion.choices[0].text.rstrip("\n"),
    is_usage_the_same=chunks[-1].usage == whole.usage,
    is_each_token_there=len(tokens)
    in (whole.usage.completion_tokens, whole.usage.completion_tokens - 1),
    is_parsed=isinstance(parsed.choices[0].message.parsed, Fruit),
    is_too_long_named=refusal == "context_length_exceeded",
    is_model_listed=is_model_listed,
)
