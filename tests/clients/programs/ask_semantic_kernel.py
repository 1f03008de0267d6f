"""Semantic Kernel's connector for OpenAI's API, without functions."""

from __future__ import annotations

import asyncio

from openai import AsyncOpenAI
from semantic_kernel.agents import ChatCompletionAgent
from semantic_kernel.connectors.ai.open_ai import (
    OpenAIChatCompletion,
    OpenAIChatPromptExecutionSettings,
)
from semantic_kernel.contents import ChatHistory
from task import read_task, report

TASK = read_task()


async def main() -> None:
    client = AsyncOpenAI(base_url=TASK.url, api_key="none")
    service = OpenAIChatCompletion(ai_model_id=TASK.model, async_client=client)
    settings = OpenAIChatPromptExecutionSettings(temperature=0)
    history = ChatHistory()
    history.add_user_message(TASK.question)
    whole = await service.get_chat_message_content(history, settings)
    pieces = [
        str(message)
        async for message in service.get_streaming_chat_message_content(history, settings)
    ]
    turns = ChatHistory()
    for turn in TASK.turns:
        turns.add_message(turn)
    conversation = await service.get_chat_message_content(turns, settings)
    # An agent sends a name with its messages.
    agent = ChatCompletionAgent(service=service, name="Helper")
    first = await agent.get_response(messages=TASK.question)
    second = await agent.get_response(messages=TASK.question, thread=first.thread)
    report(
        whole=str(whole),
        streamed="".join(pieces),
        conversation=str(conversation),
        is_agent_answering=bool(str(first)),
        is_agent_answering_again=second.thread is not None,
    )


asyncio.run(main())
