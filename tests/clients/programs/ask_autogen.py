"""AutoGen's client for OpenAI's API, and an agent on it, without functions."""

from __future__ import annotations

import asyncio

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.conditions import MaxMessageTermination
from autogen_agentchat.teams import RoundRobinGroupChat
from autogen_core.models import AssistantMessage, UserMessage
from autogen_ext.models.openai import OpenAIChatCompletionClient
from task import read_task, report

TASK = read_task()
ABILITIES = {
    "vision": False,
    "function_calling": False,
    "json_output": True,
    "structured_output": True,
    "family": "unknown",
}


async def main() -> None:
    client = OpenAIChatCompletionClient(
        model=TASK.model, base_url=TASK.url, api_key="none", model_info=ABILITIES, temperature=0
    )
    question = UserMessage(content=TASK.question, source="user")
    whole = await client.create([question])
    stream = [part async for part in client.create_stream([question])]
    turns = [
        UserMessage(content=turn["content"], source="user")
        if turn["role"] == "user"
        else AssistantMessage(content=turn["content"], source="helper")
        for turn in TASK.turns
    ]
    conversation = await client.create(turns)
    agent = AssistantAgent("helper", model_client=client, system_message=None)
    result = await agent.run(task=TASK.question)
    # Each agent of a team sees the other one's words as a user's: user after user.
    pair = [AssistantAgent(name, model_client=client) for name in ("first", "second")]
    team = RoundRobinGroupChat(pair, termination_condition=MaxMessageTermination(4))
    talk = await team.run(task=TASK.question)
    await client.close()
    report(
        whole=whole.content,
        streamed="".join(part for part in stream if isinstance(part, str)),
        conversation=conversation.content,
        agent=result.messages[-1].content,
        is_team_talking=len(talk.messages) == 4,
    )


asyncio.run(main())
