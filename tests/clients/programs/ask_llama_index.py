"""LlamaIndex's class for servers with OpenAI's API."""

from __future__ import annotations

import asyncio

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
from task import read_task, report

TASK = read_task()
CONNECTION = {"model": TASK.model, "api_base": TASK.url, "api_key": "none", "temperature": 0}
QUESTION = [ChatMessage(role="user", content=TASK.question)]

chat = OpenAILike(**CONNECTION, is_chat_model=True, context_window=4096)
completion = OpenAILike(**CONNECTION, is_chat_model=False, max_tokens=200)
turns = [ChatMessage(**turn) for turn in TASK.turns]


async def ask_asynchronously() -> str:
    stream = await chat.astream_chat(QUESTION)
    return "".join([piece.delta or "" async for piece in stream])


report(
    whole=chat.chat(QUESTION).message.content,
    streamed="".join(piece.delta or "" for piece in chat.stream_chat(QUESTION)),
    completed=chat.complete(TASK.question).text,
    asynchronous_stream=asyncio.run(ask_asynchronously()),
    conversation=chat.chat(turns).message.content,
    completion=completion.complete(TASK.prompt).text.rstrip("\n"),
    completion_stream="".join(
        piece.delta or "" for piece in completion.stream_complete(TASK.prompt)
    ).rstrip("\n"),
)
