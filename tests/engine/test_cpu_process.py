"""The process of the CPU engine: its memory, its steps, and the effects of its end."""

from __future__ import annotations

import math
import queue
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from nemotron_core.engine_settings import CpuEngineSettings
from nemotron_core.errors import NemotronError
from nemotron_core.openvino import openvino
from nemotron_engine.cpu import CpuEngine
from nemotron_engine.cpu_process import PACKED_STEPS, computes_in_bf16
from nemotron_engine.request import EngineBroken, GenerationChunk
from tests.engine.requests import NEVER, Answer, ask, request
from tests.memory import resident
from tests.waiting import WAIT, until

PROMPT = [4, 20, 30]


def processes_of(folder: Path) -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if str(folder) in (process.info["cmdline"] or [])
    ]


@pytest.fixture
def folder(engine_bf16: Path, tmp_path: Path) -> Path:
    """An engine folder that no other test has open."""
    return shutil.copytree(engine_bf16, tmp_path / "engine")


def test_each_weight_is_in_memory_once_as_it_is_stored(folder: Path) -> None:
    """Packed by the plug-in; neither widened to F32 nor beside the file that it comes from."""
    graph, weights = (
        folder / name for name in (CpuEngineSettings.GRAPH_NAME, CpuEngineSettings.WEIGHTS_NAME)
    )
    hint = {"INFERENCE_PRECISION_HINT": openvino.Type.bf16}
    compiled = openvino.Core().compile_model(graph, "CPU", hint).get_runtime_model()
    weight_types = [
        node.get_rt_info()["outputPrecisions"].value
        for node in compiled.get_ordered_ops()
        if node.get_rt_info()["layerType"].value == "Const"
        and math.prod(node.output(0).shape) > 1e4
    ]
    assert len(weight_types) > 4
    # A CPU that computes in F32 keeps the matrices that its kernels cannot widen on the way in F32.
    expected = {"bf16"} if computes_in_bf16() else {"bf16", "f32"}
    assert set(weight_types) == expected
    engine = CpuEngine(folder)
    try:
        ask(engine, PROMPT, end_ids=(NEVER,), max_tokens=2 * PACKED_STEPS).wait()
        (process,) = processes_of(folder)
        assert 0 < resident(weights, process) < weights.stat().st_size / 2
    finally:
        engine.close()


def test_what_is_submitted_together_begins_in_one_step(folder: Path) -> None:
    """However the steps of another request fall, and however busy the engine's threads are."""
    engine = CpuEngine(folder)
    over = threading.Event()

    def keep_busy() -> None:
        while not over.is_set():
            pass

    threading.Thread(target=keep_busy, daemon=True).start()
    try:
        other = ask(engine, PROMPT, "other", max_tokens=4000, end_ids=(NEVER,))
        for round_ in range(20):
            chunks: queue.SimpleQueue[GenerationChunk | NemotronError] = queue.SimpleQueue()
            names = [f"{round_}/{number}" for number in range(32)]
            engine.submit_all([(request(PROMPT, name, max_tokens=1), chunks.put) for name in names])
            answers = [chunks.get(timeout=WAIT) for _ in names]
            starts = {
                answer.scheduled_ns for answer in answers if not isinstance(answer, Exception)
            }
            assert len(starts) == 1
        assert not other.done.is_set()
    finally:
        over.set()
        engine.close()


def test_tokens_come_together_where_handing_them_on_takes_long(folder: Path) -> None:
    """Except the first token, which is sent at once."""
    engine = CpuEngine(folder)
    sizes = []

    def slowly(chunk: GenerationChunk | NemotronError) -> None:
        assert not isinstance(chunk, NemotronError)
        sizes.append(len(chunk.token_ids))
        time.sleep(0.01)
        slow.push(chunk)

    try:
        fast = ask(engine, PROMPT, max_tokens=600, end_ids=(NEVER,), log_probs=True).wait()
        slow = Answer()
        slow_request = request(PROMPT, "slow", max_tokens=600, end_ids=(NEVER,), log_probs=True)
        engine.submit_all([(slow_request, slowly)])
        slow.wait()
        assert slow.token_ids == fast.token_ids
        assert slow.log_probs == fast.log_probs
        assert sizes[0] == 1
        assert max(sizes) > 10
    finally:
        engine.close()


def test_a_killed_process_fails_what_it_had_and_another_takes_its_place(folder: Path) -> None:
    engine = CpuEngine(folder)
    try:
        running = [ask(engine, PROMPT, str(n), max_tokens=4000, end_ids=(NEVER,)) for n in range(3)]
        assert all(answer.first.wait(WAIT) for answer in running)
        steps = engine.state().steps
        (process,) = processes_of(folder)
        process.kill()
        for answer in running:
            with pytest.raises(NemotronError, match="the engine's process ended with code -9"):
                answer.wait()
        assert not engine.cancel("0")
        assert ask(engine, PROMPT, "0", max_tokens=5, end_ids=(NEVER,)).wait().token_ids
        assert engine.state().steps > steps
    finally:
        engine.close()
    assert not processes_of(folder)


def test_an_engine_that_does_not_start_again_says_so(folder: Path) -> None:
    engine = CpuEngine(folder)
    try:
        running = ask(engine, PROMPT, max_tokens=4000, end_ids=(NEVER,))
        assert running.first.wait(WAIT)
        (folder / CpuEngineSettings.GRAPH_NAME).unlink()
        (process,) = processes_of(folder)
        process.kill()
        with pytest.raises(NemotronError, match="ended with code -9"):
            running.wait()
        with pytest.raises(EngineBroken, match="did not start again"):
            ask(engine, PROMPT)
    finally:
        engine.close()


def test_an_engine_that_cannot_be_loaded_is_an_error(folder: Path) -> None:
    (folder / CpuEngineSettings.GRAPH_NAME).write_text("no graph")
    with pytest.raises(NemotronError) as caught:
        CpuEngine(folder)
    assert caught.value.where == folder
    assert not processes_of(folder)


def test_the_process_ends_with_the_one_that_started_it(folder: Path) -> None:
    program = f"""
import os
from pathlib import Path
from nemotron_engine.cpu import CpuEngine
engine = CpuEngine(Path({str(folder)!r}))
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, timeout=WAIT)
    assert done.returncode == -9
    until(lambda: not processes_of(folder))
