"""The engine's process with the CPU lane's library: what crosses the socket is what it computes."""

from __future__ import annotations

import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemotron_core.engine_settings import CpuEngineSettings
from nemotron_core.errors import ErrorKind
from nemotron_core.text import Tokenizer
from tests.engine.process import Connection, engine_process
from tests.engine.requests import NEVER, request
from tests.engine.test_server import refused
from tests.tiny_nemotron.answers import ExactAnswer
from tests.tiny_nemotron.dialogues import prompt_ids
from tests.waiting import WAIT

PROMPT = [4, 20, 30]


@pytest.fixture(scope="module")
def folder(engine_bf16: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine folder of this module's own, which no other user can reach."""
    folder = shutil.copytree(engine_bf16, tmp_path_factory.mktemp("process") / "engine")
    folder.chmod(0o700)
    return folder


@pytest.fixture(scope="module")
def path(folder: Path) -> Iterator[Path]:
    with engine_process(folder, "cpu") as (_, path):
        yield path


def test_two_clients_get_the_exact_answers(
    path: Path, answers: list[ExactAnswer], tokenizer: Tokenizer
) -> None:
    chosen = answers[::40]
    with Connection(path) as first, Connection(path) as second:
        requests = [
            request(prompt_ids(tokenizer, exact.question.messages), max_tokens=200)
            for exact in chosen
        ]
        clients = [first if number % 2 else second for number in range(len(chosen))]
        for client, asked in zip(clients, requests, strict=True):
            client.ask(asked)
        for client, asked, exact in zip(clients, requests, chosen, strict=True):
            last = client.whole(asked)
            assert last.token_ids == exact.token_ids
            assert last.finish_reason == "stop"


def test_what_is_asked_together_begins_in_one_step(path: Path) -> None:
    """However the steps of another request fall, and however busy this process is."""
    over = threading.Event()

    def keep_busy() -> None:
        while not over.is_set():
            pass

    threading.Thread(target=keep_busy, daemon=True).start()
    try:
        with Connection(path) as client, Connection(path) as other:
            endless = request(PROMPT, max_tokens=4000, end_ids=[NEVER])
            other.ask(endless)
            other.first(endless)
            for _ in range(20):
                requests = [request(PROMPT, max_tokens=1) for _ in range(32)]
                client.ask(*requests)
                assert len({client.whole(asked).scheduled_ns for asked in requests}) == 1
            other.cancel(endless.key)
            assert other.whole(endless).finish_reason == "cancelled"
    finally:
        over.set()


def test_a_cancelled_request_leaves_no_trace_in_the_others(path: Path) -> None:
    with Connection(path) as client:
        expected = request(PROMPT, max_tokens=100, end_ids=[NEVER])
        client.ask(expected)
        ids = client.whole(expected).token_ids
        cancelled = [request(PROMPT, max_tokens=4000, end_ids=[NEVER]) for _ in range(8)]
        stays = request(PROMPT, max_tokens=100, end_ids=[NEVER])
        client.ask(*cancelled, stays)
        client.first(cancelled[0])
        client.cancel(*(asked.key for asked in cancelled))
        assert client.whole(stays).token_ids == ids
        assert {client.whole(asked).finish_reason for asked in cancelled} == {"cancelled"}
        load = client.load()
        assert (load.running, load.kv_cache_usage) == (0, 0.0)


def test_a_deadline_ends_an_answer_in_the_middle(path: Path) -> None:
    with Connection(path) as client:
        late = request(PROMPT, max_tokens=4000, end_ids=[NEVER], seconds=0.3)
        client.ask(late)
        last = client.whole(late)
        assert last.failure().kind is ErrorKind.TIMED_OUT
        assert len(last.token_ids) < 4000


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT])
def test_a_killed_engine_closes_its_connections_and_another_takes_its_place(
    number: signal.Signals, folder: Path
) -> None:
    path = folder / "killed.sock"
    for _ in range(2):
        with engine_process(folder, "cpu", path=path) as (process, _), Connection(path) as client:
            endless = request(PROMPT, max_tokens=4000, end_ids=[NEVER])
            client.ask(endless)
            client.first(endless)
            process.send_signal(number)
            with pytest.raises(ConnectionResetError):
                client.whole(endless)
            assert process.wait(WAIT) == -number
            assert path.exists()  # which the next engine replaces


def test_it_drains(folder: Path) -> None:
    path = folder / "drained.sock"
    with engine_process(folder, "cpu", path=path) as (process, _), Connection(path) as client:
        running = request(PROMPT, max_tokens=300, end_ids=[NEVER])
        client.ask(running)
        client.first(running)
        process.terminate()
        assert len(client.whole(running).token_ids) == 300
        assert process.wait(WAIT) == 0


def test_an_engine_that_cannot_be_loaded_says_why(folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken", ignore=shutil.ignore_patterns("*.sock"))
    (broken / CpuEngineSettings.GRAPH_NAME).write_text("no graph")
    assert f"[{broken}]: build the engine again" in refused(broken, broken / "s", lane="cpu")
    (broken / CpuEngineSettings.NAME).unlink()
    line = refused(broken, broken / "s", lane="cpu")
    assert line.startswith("not an engine of this lane")


def test_it_needs_nothing_of_triton_or_the_builder(folder: Path) -> None:
    import sys

    program = "import nemotron_engine.__main__, nemotron_engine.adapters.openvino, sys; "
    program += "print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True
    ).stdout.split()
    unwanted = ("tritonclient", "torch", "transformers", "nemotron_build", "nemotron_serve")
    assert not {name.partition(".")[0] for name in modules} & set(unwanted)
