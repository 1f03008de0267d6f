"""instructor in the mode `JSON_SCHEMA`; its default sends `tools`, which this model has not."""

from __future__ import annotations

from typing import Literal

import instructor
import openai
import pydantic
from task import read_task, report

TASK = read_task()


class Fruit(pydantic.BaseModel):
    fruit: Literal["apple", "pear"]
    count: Literal[1, 2, 3]


client = instructor.from_openai(
    openai.OpenAI(base_url=TASK.url, api_key="none"), mode=instructor.Mode.JSON_SCHEMA
)
fruit = client.chat.completions.create(
    model=TASK.model,
    messages=[{"role": "user", "content": TASK.question}],
    response_model=Fruit,
    temperature=0,
    frequency_penalty=2,  # or the tiny model writes white space without end
    max_retries=0,
)
report(is_parsed=isinstance(fruit, Fruit))
