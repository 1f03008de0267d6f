"""NeMo Guardrails with the settings in guardrails/, unchanged but for the port."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.process import Running
from tests.standins.chat_server import ChatServer, Reply, said

ROOT = Path(__file__).parents[2]
QUESTION = "Why is the sky blue?"
REFUSAL = "I'm sorry, I can't respond to that."


def ask(url: str, environments: Path, folder: Path) -> str:
    settings = shutil.copytree(ROOT / "guardrails", folder / "guardrails")
    config = settings / "config.yml"
    config.write_text(config.read_text().replace("http://127.0.0.1:1424", url))
    done = subprocess.run(
        [
            str(environments / "guardrails" / "bin" / "python"),
            str(Path(__file__).parent / "programs" / "ask_guardrails.py"),
            *(str(settings), QUESTION),
        ],
        env=os.environ | {"HOME": str(folder), "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.partition("answer:")[2].strip()


def test_the_gateway_is_asked_about_the_message(
    gateway: Running, environments: Path, tmp_path: Path
) -> None:
    """The tiny model can neither judge nor refuse, so what it decides is left open."""
    before = len(gateway.lines())
    assert ask(gateway.url, environments, tmp_path)
    chats = [line for line in gateway.lines()[before:] if line["path"] == "/v1/chat/completions"]
    assert [line["status"] for line in chats] in ([200], [200] * 2, [200] * 3)


@pytest.mark.parametrize(
    ("blocked", "shown"),
    [("Message", REFUSAL), ("Answer", REFUSAL), ("nothing", "Because of the air.")],
)
def test_what_the_judgement_leads_to(
    blocked: str, shown: str, environments: Path, tmp_path: Path
) -> None:
    """With a stand-in for a model that can judge."""

    def judge(body: dict[str, Any], _inside: int) -> Reply:
        text = body["messages"][-1]["content"]
        if "break the policy?" in text:
            return said("yes" if f"{blocked}: " in text else "no")
        return said("Because of the air.")

    with ChatServer(judge) as server:
        assert ask(server.url, environments, tmp_path) == shown
