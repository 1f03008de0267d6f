"""DSPy's language model, for conversations and for raw prompts."""

from __future__ import annotations

import dspy
from task import read_task, report

TASK = read_task()
CONNECTION = {"api_base": TASK.url, "api_key": "none", "temperature": 0, "cache": False}

lm = dspy.LM(f"openai/{TASK.model}", **CONNECTION)
text = dspy.LM(
    f"text-completion-openai/{TASK.model}", model_type="text", max_tokens=200, **CONNECTION
)
report(
    whole=lm(TASK.question)[0],
    conversation=lm(messages=TASK.turns)[0],
    is_completed=bool(text(TASK.prompt)[0]),
)
