"""LangChain's chat model and completion model for OpenAI's API."""

from __future__ import annotations

import asyncio
from typing import Literal

import pydantic
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI, OpenAI
from task import read_task, report

TASK = read_task()
CONNECTION = {"model": TASK.model, "base_url": TASK.url, "api_key": "none", "temperature": 0}


class Fruit(pydantic.BaseModel):
    """A fruit and how many of it."""

    fruit: Literal["apple", "pear"]
    count: Literal[1, 2, 3]


chat = ChatOpenAI(**CONNECTION, stream_usage=True)
whole = chat.invoke(TASK.question)
chunks = list(chat.stream(TASK.question))
chain = ChatPromptTemplate.from_messages([("user", "{question}")]) | chat
turns = [(turn["role"], turn["content"]) for turn in TASK.turns]
completion = OpenAI(**CONNECTION, max_tokens=200)
# Without a penalty the tiny model writes white space, which a schema allows, without end.
penalized = ChatOpenAI(**CONNECTION, frequency_penalty=2)
structured = penalized.with_structured_output(Fruit, method="json_schema")

report(
    whole=whole.content,
    streamed="".join(str(chunk.content) for chunk in chunks),
    chain=chain.invoke({"question": TASK.question}).content,
    asynchronous=asyncio.run(chat.ainvoke(TASK.question)).content,
    batch=chat.batch([TASK.question, TASK.question])[1].content,
    conversation=chat.invoke(turns).content,
    completion=completion.invoke(TASK.prompt).rstrip("\n"),
    is_parsed=isinstance(structured.invoke(TASK.question), Fruit),
    is_usage_there=whole.usage_metadata["output_tokens"] > 0,
)
