"""litellm's provider for servers with OpenAI's API."""

from __future__ import annotations

import asyncio

import litellm
from task import read_task, report

TASK = read_task()
REQUEST = {
    "model": f"openai/{TASK.model}",
    "api_base": TASK.url,
    "api_key": "none",
    "messages": [{"role": "user", "content": TASK.question}],
    "temperature": 0,
}

whole = litellm.completion(**REQUEST)
chunks = list(litellm.completion(**REQUEST, stream=True))
asynchronous = asyncio.run(litellm.acompletion(**REQUEST))
conversation = litellm.completion(**(REQUEST | {"messages": TASK.turns}))
try:
    litellm.completion(**(REQUEST | {"messages": [{"role": "user", "content": "word " * 9000}]}))
    refusal = ""
except litellm.ContextWindowExceededError:
    refusal = "too long"

report(
    whole=whole.choices[0].message.content,
    streamed="".join(chunk.choices[0].delta.content or "" for chunk in chunks),
    asynchronous=asynchronous.choices[0].message.content,
    conversation=conversation.choices[0].message.content,
    is_too_long_named=refusal == "too long",
)
