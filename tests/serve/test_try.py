"""`nemotron try` on the tiny model as a Hugging Face folder, and what it keeps."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nemotron_build.profile import profile_text
from nemotron_convert.convert import Options, convert
from nemotron_convert.shards import Parallel
from nemotron_convert.target.layout import Format
from nemotron_core.errors import NemotronError
from nemotron_serve import trial
from nemotron_serve.options import ServeOptions, TryOptions
from nemotron_serve.trial import (
    DISPLAYS,
    PORT_FILE,
    _nemotron,
    find_source,
    make_trial,
    page_url,
    try_model,
)
from nemotron_serve.trial_cache import cached, clean, held
from tests.tiny_nemotron.nemo_file import NEMO
from tests.waiting import until_written

COMMAND = [sys.executable, "-m", "nemotron_cli"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in Hugging Face's cache, as `hf download` leaves it."""
    hub = tmp_path_factory.mktemp("hub") / "models--me--Nemotron-Mini-4B-Instruct"
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
    for name in DISPLAYS:  # otherwise the person's own browser opens
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache" / "try"


def ask(port: int, path: str, body: object = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


@contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """Run a command until the end of the block, and kill it."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_model_of_the_cache_answers_and_is_kept(environment: Path) -> None:
    name = "me/Nemotron-Mini-4B-Instruct"
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
            with pytest.raises(NemotronError, match="another nemotron uses it"):
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
        assert ("lane cpu, bf16, weights in int8" in text) == (attempt == 0)
    (kept,) = cached()
    assert not (kept[0] / "checkpoint").exists()
    assert clean() == [kept]
    assert cached() == []


def test_what_another_process_uses_is_neither_removed_nor_used(environment: Path) -> None:
    folder, other = environment / "model-0123", environment / "model-4567"
    other.mkdir(parents=True)
    code = (
        "import sys, time; from pathlib import Path; from nemotron_serve.trial_cache import held\n"
        "with held(Path(sys.argv[1])): print(flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(folder)]
    with running(command) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "\n"
        (folder / PORT_FILE).write_text("{}")
        with pytest.raises(NemotronError, match=r"another nemotron uses it .*model-0123\]"):
            clean()
        with pytest.raises(NemotronError, match="end it first"), held(folder):
            pass
        assert [path for path, _ in cached()] == [folder, other]
    assert clean() == [(folder, 2), (other, 0)]
    with held(folder):
        assert [path for path, _ in cached()] == [folder]


def test_a_verb_has_the_lock_after_the_process_that_started_it_was_killed(
    environment: Path, folder: Path
) -> None:
    code = (
        "import subprocess, sys; from nemotron_serve import trial; run = subprocess.run\n"
        "def sleep(command, **options):\n"
        "    if 'convert' in command: command = ['sh', '-c', 'echo $$; exec sleep 600']\n"
        "    return run(command, **options)\n"
        "subprocess.run = sleep\n"
        "trial.try_model(trial.TryOptions(model=sys.argv[1], browser=False))"
    )
    command = [sys.executable, "-c", code, str(folder)]
    with running(command) as process:
        assert process.stdout is not None
        verb = next(int(line) for line in process.stdout if line.strip().isdigit())
        process.kill()
        process.wait()
        try:
            with pytest.raises(NemotronError, match="another nemotron uses it"):
                clean()
        finally:
            os.kill(verb, signal.SIGKILL)
        assert process.stdout.read() == ""  # the verb has ended
    assert len(clean()) == 1


def test_a_port_in_use_is_refused_before_anything_is_made_and_the_profiles_is_replaced(
    environment: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[ServeOptions] = []
    monkeypatch.setattr(trial, "serve", served.append)
    monkeypatch.setattr(trial, "_make", lambda *_arguments: None)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(NemotronError, match=rf"port {port} cannot be used.*use --port \d+$"):
            try_model(TryOptions(model=str(folder), port=port))
    assert not environment.exists()
    try_model(TryOptions(model=str(folder)))
    assert served[0].free_ports
    stale = served[0].port_file
    assert stale is not None
    stale.write_text("{}")
    try_model(TryOptions(model=str(folder), port=port))
    assert not stale.exists()
    assert (served[1].gateway_port, served[1].free_ports) == (port, False)


def test_the_page_is_where_the_server_listens() -> None:
    assert page_url({"address": "10.0.0.7", "gateway": 80}) == "http://10.0.0.7:80"
    assert page_url({"address": "0.0.0.0", "gateway": 80}) == "http://127.0.0.1:80"
    assert page_url({"address": "::", "gateway": 80}) == "http://[::1]:80"


def test_a_profile_without_a_gateway_is_refused(folder: Path, tmp_path: Path) -> None:
    profile = tmp_path / "own.yaml"
    text, count = re.subn(r"gateway: \d+", "gateway: null", profile_text("laptop"))
    assert count == 1
    profile.write_text(text)
    with pytest.raises(NemotronError, match="`try` needs a gateway"):
        make_trial(folder, str(profile), None)


def test_the_costs_come_first_and_are_named_by_content(environment: Path, folder: Path) -> None:
    tried = make_trial(folder, "laptop", None)
    assert tried.folder.parent == environment
    assert tried.disk == tried.plan.weights + tried.plan.checkpoint
    assert make_trial(folder, "laptop", None).folder == tried.folder
    assert make_trial(folder, "laptop", "int4").folder != tried.folder
    done = subprocess.run(
        [*COMMAND, "try", str(folder), "--weights", "int4", "--dry-run"],
        capture_output=True,
        text=True,
        check=True,
    )
    for text in ("3.7 million parameters", "weights in INT4", "memory  about"):
        assert text in done.stdout
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
