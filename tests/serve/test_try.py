"""`nemotron try` on the tiny model as a Hugging Face folder, and what it keeps."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from nemotron_convert.convert import Options, convert
from nemotron_convert.shards import Parallel
from nemotron_convert.target.layout import Format
from nemotron_core.errors import NemotronError
from nemotron_serve.trial import _nemotron, cached, clean, find_source, make_trial
from tests.tiny_nemotron.nemo_file import NEMO
from tests.waiting import until_written

COMMAND = [sys.executable, "-m", "nemotron_cli"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in Hugging Face's cache, as `hf download` leaves it."""
    hub = tmp_path_factory.mktemp("hub") / "models--me--Nemotron-Mini-4B-Instruct-tiny"
    snapshot = hub / "snapshots" / "0123abcd"
    convert(NEMO, snapshot, Options(Parallel(1, 1), Format.HF))
    (snapshot / "manifest.json").unlink()
    (snapshot / "conversion.json").unlink()
    (hub / "blobs").mkdir()
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("0123abcd")
    return snapshot


@pytest.fixture
def environment(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NEMOTRON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(folder.parents[2]))
    monkeypatch.delenv("DISPLAY", raising=False)
    return tmp_path / "cache" / "try"


def ask(port: int, path: str, body: object = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def test_a_model_of_the_cache_answers_and_is_kept(environment: Path) -> None:
    name = "me/Nemotron-Mini-4B-Instruct-tiny"
    command = [*COMMAND, "try", name, "--port", "0"]
    port_file = make_trial(find_source(name), "laptop", None).folder / "server.json"
    for attempt in range(2):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            until_written(port_file, process)
            port = json.loads(port_file.read_text())["gateway"]
            names = [model["id"] for model in ask(port, "/v1/models")["data"]]
            question = [{"role": "user", "content": "Why is the sky blue?"}]
            body = {"model": names[0], "messages": question, "temperature": 0}
            answer = ask(port, "/v1/chat/completions", body)["choices"][0]["message"]["content"]
            with pytest.raises(NemotronError, match="this engine is being served"):
                clean()
        finally:
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=120)
        assert answer.startswith("Sunlight looks white")
        assert names == [
            "nemotron-mini-4b-instruct",
            "nvidia/nemotron-mini-4b-instruct",
            "nvidia/Nemotron-Mini-4B-Instruct",
        ]
        text = output.decode()
        assert "weights in INT8" in text
        assert ("converting" in text or "trtllm bf16" in text) == (attempt == 0)
    (kept,) = cached()
    assert not (kept[0] / "checkpoint").exists()
    assert clean() == [kept]
    assert cached() == []


def test_the_costs_come_first_and_are_named_by_content(environment: Path, folder: Path) -> None:
    trial = make_trial(folder, "laptop", None)
    assert trial.folder.parent == environment
    assert trial.disk == trial.plan.weights + trial.plan.checkpoint
    assert make_trial(folder, "laptop", None).folder == trial.folder
    assert make_trial(folder, "laptop", "int4").folder != trial.folder
    done = subprocess.run(
        [*COMMAND, "try", str(folder), "--weights", "int4", "--dry-run"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "weights in INT4" in done.stdout
    assert "memory  about" in done.stdout
    assert not environment.exists()


def test_what_cannot_be_tried_says_why(environment: Path, tmp_path: Path) -> None:
    with pytest.raises(NemotronError, match=r"no such file or folder.*`hf download nvidia/other`"):
        find_source("nvidia/other")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (tmp_path / "other" / "model.safetensors").write_bytes(b"")
    with pytest.raises(NemotronError, match="architecture LlamaForCausalLM"):
        make_trial(tmp_path / "other", "laptop", None)
    done = subprocess.run(
        [*COMMAND, "try", "nowhere"],
        capture_output=True,
        text=True,
        env=os.environ | {"NEMOTRON_CACHE": str(environment)},
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1


def test_modules_in_the_current_folder_are_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nemotron_cli.py").write_text("open('was_run', 'w')")
    monkeypatch.chdir(tmp_path)
    assert "laptop" in _nemotron("profiles", capture=True)
    assert not (tmp_path / "was_run").exists()
