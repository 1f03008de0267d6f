"""Clients of others, unmodified, each in its own environment, on the real stack.

`make test-clients` runs them; docs/clients.md has their versions.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.gateway.process import MODEL, Running
from tests.tiny_nemotron.answers import ExactAnswer

FOLDER = Path(__file__).parent
CLIENTS = sorted(path.stem for path in FOLDER.glob("environments/*.txt"))
PROMPT = "<extra_id_0>System\n\n<extra_id_1>User\n{}\n<extra_id_1>Assistant\n"
OFFLINE = {
    "DO_NOT_TRACK": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "OPENAI_BASE_URL": "http://127.0.0.1:9",  # where nobody listens
}


def find(answers: list[ExactAnswer], *roles: str) -> ExactAnswer:
    """Return an exact answer to a conversation of these roles."""
    return next(a for a in answers if tuple(m.role for m in a.question.messages) == roles)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client(
    client: str,
    gateway: Running,
    answers: list[ExactAnswer],
    tmp_path: Path,
    pytestconfig: pytest.Config,
) -> None:
    """Every text that it returns is the exact one, and all else that it found is as it should."""
    question, conversation = find(answers, "user"), find(answers, "user", "assistant", "user")
    text = question.question.messages[0].content
    task = {
        "url": f"{gateway.url}/v1",
        "model": MODEL,
        "question": text,
        "turns": [message.as_dict() for message in conversation.question.messages],
        "prompt": PROMPT.format(text),
    }
    python = Path(pytestconfig.option.clients).absolute() / client / "bin" / "python"
    assert python.exists(), f"{python} is missing: run scripts/client_tools.sh"
    done = subprocess.run(
        [str(python), str(FOLDER / "programs" / f"ask_{client}.py")],
        input=json.dumps(task),
        env=os.environ | OFFLINE | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert results
    for name, result in results.items():
        if name.startswith("is_"):
            assert result is True, name
        else:
            exact = conversation if name == "conversation" else question
            assert result == exact.question.answer, name
