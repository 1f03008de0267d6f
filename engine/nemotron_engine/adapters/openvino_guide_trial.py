"""Tries guides in a process of its own: see `GuideTrials`.

Each line of standard input is a guide (its type and its text, as JSON); each line of standard
output says what is wrong with it, "" for nothing. The first line comes when the process is ready.
A guide that takes too long, or on which the library crashes, ends the process.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from nemotron_core.engine_settings import CpuEngineSettings
from nemotron_core.openvino import openvino, openvino_genai, opset13
from nemotron_engine.adapters.openvino_guides import structured_output

START_SECONDS = 60
CPU_SECONDS = 2.0
"""Limit of a trial. The engine's own pipeline takes as long again, and everybody waits for it."""
SECONDS = 20.0
"""Limit of a trial on a machine that has no processor free."""
TRIAL_BYTES = 1 << 30
"""Memory that the guides of one process may take."""
TRIALS = 500
"""Number of guides after which the process ends, because the library keeps what it compiles."""
TRIAL_TOKENS = 32
IMPOSSIBLE = 0
"""The token that comes when a guide allows none; no guide allows it."""
END_ID = 1
"""The token that ends a trial; its own text cannot be tried."""
REASON_CHARACTERS = 300


def main(folder: Path) -> None:
    """Serve until standard input ends, or after `TRIALS` guides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the engine's process decides when this ends
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _halve_stack()
    verdicts = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the library prints is no verdict
    signal.alarm(START_SECONDS)
    pipeline = _pipeline(folder)
    _try(pipeline, "regex", "a")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    _limit_memory()
    signal.alarm(0)
    print(json.dumps(""), file=verdicts, flush=True)
    for line in islice(sys.stdin, TRIALS):
        _set_timers(CPU_SECONDS, SECONDS)
        try:
            verdict = _try(pipeline, *json.loads(line))
        except (RuntimeError, MemoryError) as error:
            verdict = _reason(str(error))
        _set_timers(0, 0)
        print(json.dumps(verdict), file=verdicts, flush=True)


def _pipeline(folder: Path) -> Any:
    """Return a pipeline with the engine's vocabulary, for whose model all tokens are equal."""
    size = CpuEngineSettings.read(folder).vocab_size
    ids, mask = (_input(name, 2) for name in ("input_ids", "attention_mask"))
    beam = _input("beam_idx", 1, openvino.Type.i32)
    size_node = opset13.constant(np.array([size], np.int64))
    shape = opset13.concat([opset13.shape_of(ids, "i64"), size_node], 0)
    logits = opset13.result(opset13.broadcast(opset13.constant(np.float32(0)), shape))
    logits.output(0).set_names({"logits"})
    model = openvino.Model([logits], [ids, mask, beam], "equal")
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary, "equal.xml")
        openvino.save_model(model, path)
        graph, weights = path.read_text("utf-8"), path.with_suffix(".bin").read_bytes()
    return openvino_genai.LLMPipeline(
        graph,
        openvino.Tensor(np.frombuffer(bytearray(weights), np.uint8)),
        openvino_genai.Tokenizer(folder),
        "CPU",
        ATTENTION_BACKEND="SDPA",
    )


def _input(name: str, rank: int, dtype: Any = openvino.Type.i64) -> Any:
    parameter = opset13.parameter(openvino.PartialShape([-1] * rank), dtype)
    parameter.output(0).set_names({name})
    return parameter


def _try(pipeline: Any, guide_type: str, guide: str) -> str:
    """Generate some tokens, and return what is wrong. Raises what the library raises."""
    config = openvino_genai.GenerationConfig(
        max_new_tokens=TRIAL_TOKENS, stop_token_ids={END_ID}, do_sample=False
    )
    config.set_eos_token_id(END_ID)
    config.structured_output_config = structured_output(guide_type, guide)
    prompt = openvino.Tensor(np.array([[END_ID]], np.int64))
    (tokens,) = pipeline.generate(prompt, config).tokens
    return "no text can satisfy it" if IMPOSSIBLE in tokens else ""


def _reason(text: str) -> str:
    """Return an error of the library without times and its source files."""
    text = re.sub(r"^(\[[^\]]*\]|Exception from) \S+?:\d+:", "", text.strip())
    return " ".join(text.split())[:REASON_CHARACTERS] or "the library refuses it"


def _set_timers(cpu_seconds: float, seconds: float) -> None:
    """Let signals end the process after a time, even while the library computes."""
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _halve_stack() -> None:
    """Take half of the stack, so that a guide that just fits here fits into the engine's too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    size = 8 << 20 if soft == resource.RLIM_INFINITY else soft
    resource.setrlimit(resource.RLIMIT_STACK, (size // 2, hard))


def _limit_memory() -> None:
    data_pages = int(Path("/proc/self/statm").read_text("ascii").split()[5])
    limit = data_pages * resource.getpagesize() + TRIAL_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    os._exit(0)  # without the library's own end, whose crash would count as the next guide's
