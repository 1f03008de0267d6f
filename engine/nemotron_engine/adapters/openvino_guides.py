"""Guides for the CPU lane: what the answers of structured output have to match."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from nemotron_core.errors import ErrorKind, NemotronError
from nemotron_core.openvino import openvino_genai
from nemotron_core.safe_path import SAFE_PATH
from nemotron_engine.protocol import GUIDE_TYPES, Request

VOCABULARY_NAME = "openvino_detokenizer.xml"
"""File from which openvino-genai reads the tokens. An engine without it has no guides."""
TRIAL_MODULE = "nemotron_engine.adapters.openvino_guide_trial"
TIMERS = (-signal.SIGPROF, -signal.SIGALRM)
"""Exit codes of a process that a trial's time limit has ended."""
VERDICTS = 4096
"""Number of guides whose verdicts are kept."""
ANY_OBJECT = json.dumps({"type": "object"})
FIELDS = {
    "json_schema": "json_schema",
    "regex": "regex",
    "ebnf_grammar": "grammar",
    "structural_tag": "structural_tags_config",
}
"""The library's name of each type of guide."""


def structured_output(guide_type: str, guide: str) -> Any:
    """Return the library's settings for a guide; the type json stands for any JSON object."""
    if guide_type == "json":
        guide_type, guide = "json_schema", ANY_OBJECT
    return openvino_genai.StructuredOutputConfig(**{FIELDS[guide_type]: guide})


def guide_types(folder: Path) -> list[str]:
    """Return the types of guides that an engine supports."""
    return list(GUIDE_TYPES) if (folder / VOCABULARY_NAME).is_file() else []


class GuideTrials:
    """Tries each guide in another process first.

    The library checks a guide only in a step, and a pipeline that has failed once fails for ever;
    some guides crash the process, others take minutes. A thread waits for the other process, so
    that requests without a new guide do not.
    """

    def __init__(self, folder: Path) -> None:
        self._command = [sys.executable, "-m", TRIAL_MODULE, str(folder)]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="guides")
        self._process: subprocess.Popen[str] | None = None
        self._verdicts: OrderedDict[bytes, Future[str]] = OrderedDict()
        self._waiting: dict[bytes, tuple[Request, Future[str]]] = {}

    def ask(self, request: Request) -> None:
        """Try the request's guide. Raises `NemotronError` if no guide fits the other fields."""
        if not request.end_ids:
            raise NemotronError("a guide needs an end token, which ends the answer")
        if request.min_tokens:
            raise NemotronError("min_tokens and a guide do not go together on this engine")
        if "\0" in request.guide:  # on some of these the library crashes
            raise NemotronError("the guide has a NUL character")
        digest = sha256(f"{request.guide_type}:{request.guide}".encode()).digest()
        verdict = self._verdicts.pop(digest, None)
        if verdict is None or verdict.cancelled() or (verdict.done() and verdict.exception()):
            verdict = self._thread.submit(self._try, request.guide_type, request.guide)
        self._verdicts[digest] = verdict
        if len(self._verdicts) > VERDICTS:
            self._verdicts.popitem(last=False)
        self._waiting[request.key] = request, verdict

    def cancel(self, key: bytes) -> None:
        """Forget a request. Its trial does not begin if no other request needs it."""
        _request, verdict = self._waiting.pop(key, (None, None))
        if verdict and verdict not in self.pending:
            verdict.cancel()

    @property
    def pending(self) -> set[Future[str]]:
        """What requests wait for: the trials of their guides."""
        return {verdict for _, verdict in self._waiting.values()}

    def collect(self) -> Iterator[tuple[Request, NemotronError | None]]:
        """Yield the requests whose guides were tried, with what is wrong with the guide."""
        for request, verdict in list(self._waiting.values()):
            if verdict.done():
                del self._waiting[request.key]
                yield request, _error(request, verdict)

    def close(self) -> None:
        """End the thread and the other process."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        if self._process is not None:
            self._process.kill()
            _end(self._process)

    def _try(self, guide_type: str, guide: str) -> str:
        """Return what is wrong with a guide, "" for nothing. Runs in the thread."""
        while True:
            if self._process is not None and self._process.poll() is not None:
                _end(self._process)
                self._process = None
            process = self._process = self._process or self._start()
            line = _answer(process, json.dumps([guide_type, guide]))
            if line:
                return str(json.loads(line))
            if code := process.wait():
                return "compiling it takes too long" if code in TIMERS else "it crashes the library"

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            self._command,
            env=os.environ | SAFE_PATH,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        if _answer(process):
            return process
        raise NemotronError(
            f"the process that tries guides ends at its start with code {_end(process)}",
            kind=ErrorKind.FAILED,
        )


def _answer(process: subprocess.Popen[str], question: str = "") -> str:
    """Send a line to a process and return its next line, or "" if it has ended."""
    assert process.stdin is not None and process.stdout is not None
    try:
        if question:
            print(question, file=process.stdin, flush=True)
    except BrokenPipeError:
        return ""
    return process.stdout.readline()


def _end(process: subprocess.Popen[str]) -> int:
    """Wait until a process ends, close its pipes, and return its exit code."""
    with suppress(BrokenPipeError), process:
        pass
    return process.wait()


def _error(request: Request, verdict: Future[str]) -> NemotronError | None:
    if isinstance(error := verdict.exception(), NemotronError):
        return error
    if problem := verdict.result():
        return NemotronError(f"the guide ({request.guide_type}) does not work: {problem}")
    return None
