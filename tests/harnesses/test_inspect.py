"""inspect-ai on the real stack, over questions whose answers the model knows."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from tests.gateway.process import Running
from tests.tiny_nemotron.answers import ExactAnswer

PROGRAM = Path(__file__).parent / "programs" / "inspect_task.py"
COUNT = 40


def test_every_known_answer_is_exact(
    gateway: Running, answers: list[ExactAnswer], environments: Path, tmp_path: Path
) -> None:
    known = [exact.question for exact in answers if len(exact.question.messages) == 1][:COUNT]
    rows = [{"question": q.messages[0].content, "answer": q.answer} for q in known]
    wrong = rows[:1] + [row | {"answer": "Oslo, of course."} for row in rows[1:4]]
    paths = []
    for name, some_rows in (("known", rows), ("wrong", wrong)):
        paths.append(str(tmp_path / f"{name}.jsonl"))
        Path(paths[-1]).write_text("".join(json.dumps(row) + "\n" for row in some_rows))
    model = gateway.ask("GET", "/v1/models").json["data"][0]["id"]
    before = len(gateway.lines())
    done = subprocess.run(
        [
            *(str(environments / "inspect" / "bin" / "python"), str(PROGRAM)),
            *(f"openai-api/gateway/{model}", str(tmp_path / "logs"), *paths),
        ],
        env=os.environ
        | {
            "GATEWAY_BASE_URL": f"{gateway.url}/v1",
            "GATEWAY_API_KEY": "none",
            "HOME": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [
        ["success", COUNT, 1.0],
        ["success", 4, 0.25],
    ]
    chats = [line for line in gateway.lines()[before:] if line["path"] == "/v1/chat/completions"]
    assert [line["status"] for line in chats] == [200] * (COUNT + 4)
