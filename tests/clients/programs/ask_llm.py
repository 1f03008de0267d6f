"""The command `llm`, as its users set it up for a server of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from task import read_task, report

TASK = read_task()
MODELS = f"""
- model_id: tiny
  model_name: {TASK.model}
  api_base: "{TASK.url}"
  can_stream: true
"""


def llm(*arguments: str) -> str:
    command = [sys.executable, "-m", "llm", *arguments]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.removesuffix("\n")


with tempfile.TemporaryDirectory() as folder:
    Path(folder, "extra-openai-models.yaml").write_text(MODELS)
    ENVIRONMENT = os.environ | {"LLM_USER_PATH": folder, "OPENAI_API_KEY": "none"}
    ask = ("-m", "tiny", "-o", "temperature", "0")
    first, _middle, second = (turn["content"] for turn in TASK.turns)
    streamed = llm(*ask, TASK.question)
    whole = llm(*ask, "--no-stream", TASK.question)
    llm(*ask, first)
    report(streamed=streamed, whole=whole, conversation=llm(*ask, "--continue", second))
