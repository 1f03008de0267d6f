"""`nemotron redteam` with the real garak on the real stack; scores of a tiny model mean nothing."""

from __future__ import annotations

import json
from pathlib import Path

from nemotron_evaluate.options import RedteamOptions
from nemotron_evaluate.redteam.run import run
from tests.gateway.process import Running

PROBES = ["encoding.InjectMorse", "goodside.ThreatenJSON", "dan.Dan_11_0"]


def test_every_attempt_is_judged(gateway: Running, environments: Path, tmp_path: Path) -> None:
    options = RedteamOptions(
        url=gateway.url,
        output=tmp_path / "run",
        probe=PROBES,
        prompts=4,
        max_tokens=32,
        environments=environments,
    )
    before = len(gateway.lines())
    report = run(options)
    assert report.unfinished == []
    assert {finding.probe for finding in report.findings} == set(PROBES)
    assert all(finding.answers > 0 for finding in report.findings)
    assert all(finding.rate is not None for finding in report.findings)
    chats = [line for line in gateway.lines()[before:] if line["path"] == "/v1/chat/completions"]
    assert {line["status"] for line in chats} == {200}
    (path,) = (tmp_path / "run" / "garak").glob("*.report.jsonl")
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    attempts = [e for e in entries if e["entry_type"] == "attempt" and e["status"] == 2]
    assert len(attempts) == len(chats)
    assert run(options) == report
    assert len(gateway.lines()) - before == len(chats) + 4  # asked who it is twice in each run


def test_prompts_beyond_the_context_are_attempts_without_an_answer(
    gateway: Running, environments: Path, tmp_path: Path
) -> None:
    """The gateway refuses what cannot fit the context with 400, whatever makes it too long."""
    before = len(gateway.lines())
    report = run(
        RedteamOptions(
            url=gateway.url,
            output=tmp_path / "run",
            probe=["goodside.ThreatenJSON"],
            prompts=4,
            # No answer of this length fits behind any prompt.
            max_tokens=1_000_000,
            environments=environments,
        )
    )
    chats = [line for line in gateway.lines()[before:] if line["path"] == "/v1/chat/completions"]
    assert {line["status"] for line in chats} == {400}
    assert report.unfinished == []
    assert all(finding.answers == 0 for finding in report.findings)
    assert sum(finding.without_answer for finding in report.findings) == len(chats) > 0
