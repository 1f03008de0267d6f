"""The load client: a C program, because one in Python would take the CPU from what it measures."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tritonclient.grpc import service_pb2

from nemotron_engine.protocol import KEY_BYTES, Ask, Request, frame

SOURCES = Path(__file__).with_name("load")
COMPILER = "cc"
PROMPT = "river stone light house green cloud paper train"
PROMPT_IDS = list(range(100, 116))
KEY = b"KEY" * 5 + b"K"
"""What the client replaces with the key of each request to the engine."""
OUTPUTS = ("text_output", "num_output_tokens", "finish_reason")
"""Outputs that the client asks for over gRPC."""
END_SECONDS = 30
"""Time that a client may take beyond the planned one."""


@dataclass(frozen=True)
class Route:
    """A way to ask a server: a protocol of the client, a port or a path, and a request."""

    protocol: str
    """`sse`, `grpc` or `engine`."""
    target: int | Path
    """A TCP port of this machine, or the path of a Unix socket."""
    request: bytes
    tokens: int
    """Number of tokens in an answer."""


@dataclass(frozen=True)
class Load:
    """What a client saw. Rates and latencies are those of the measured seconds."""

    finished: int
    """Number of whole answers, in all the time."""
    left: int
    """Number of answers that the client did not wait for."""
    truncated: int
    """Number of answers that ended without an error but have another number of tokens."""
    errors: int
    last_error: str
    responses_per_second: float
    tokens_per_second: float
    """Computed from the text for the gateway, whose events do not tell their tokens."""
    bytes_per_token: float
    """Of the measured responses; for the gateway, of whole answers. 0 without any."""
    client_cores: float
    """Cores that the client took itself."""
    ttft_p50_ms: float | None
    ttft_p99_ms: float | None
    gap_p50_ms: float | None
    gap_p99_ms: float | None


def triton_grpc(port: int, model: str, tokens: int) -> Route:
    """Return the route to a text model by `ModelStreamInfer`."""
    streams = model != "generate"
    request = service_pb2.ModelInferRequest(model_name=model)
    text = PROMPT.encode()
    inputs = {
        "text_input": ("BYTES", len(text).to_bytes(4, "little") + text),
        "max_tokens": ("INT32", np.int32(tokens).tobytes()),
        "min_tokens": ("INT32", np.int32(tokens).tobytes()),
        "stream": ("BOOL", bytes([streams])),
    }
    for name, (datatype, content) in inputs.items():
        request.inputs.add(name=name, datatype=datatype, shape=[1, 1])
        request.raw_input_contents.append(content)
    for name in OUTPUTS:
        request.outputs.add(name=name)
    return Route("grpc", port, request.SerializeToString(), tokens)


def triton_sse(port: int, model: str, tokens: int, *, streamed: bool = True) -> Route:
    """Return the route to a text model by `generate_stream`, or by `generate`."""
    body = {"text_input": PROMPT, "max_tokens": tokens, "min_tokens": tokens, "stream": streamed}
    endpoint = "generate_stream" if streamed else "generate"
    return _sse(port, f"/v2/models/{model}/{endpoint}", body, tokens)


def openai_sse(port: int, model: str, tokens: int, *, streamed: bool = True) -> Route:
    """Return the route to a gateway by `/v1/completions`."""
    body: dict[str, object] = {
        "model": model,
        "prompt": PROMPT,
        "max_tokens": tokens,
        "min_tokens": tokens,
        "temperature": 0,
        "stream": streamed,
        "stream_options": {"include_usage": True},
    }
    return _sse(port, "/v1/completions", body, tokens)


def engine_socket(path: Path, tokens: int) -> Route:
    """Return the route to the engine's process itself."""
    assert len(KEY) == KEY_BYTES
    request = Request(key=KEY, input_ids=PROMPT_IDS, max_tokens=tokens, min_tokens=tokens)
    return Route("engine", path, frame(Ask([request])), tokens)


def _sse(port: int, path: str, body: dict[str, object], tokens: int) -> Route:
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    return Route("sse", port, head.encode() + content, tokens)


class LoadClient:
    """The program, built into a folder. Raises `SystemExit` if there is no C compiler."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._program = folder / "load"
        if shutil.which(COMPILER) is None:
            raise SystemExit(f"the load client needs a C compiler, and there is no {COMPILER}")
        sources = sorted(map(str, SOURCES.glob("*.c")))
        subprocess.run([COMPILER, "-O2", "-o", str(self._program), *sources], check=True)

    def start(
        self,
        route: Route,
        streams: int,
        *,
        warm: float = 0,
        seconds: float,
        ramp: float = 0,
        options: Sequence[str] = (),
    ) -> subprocess.Popen[str]:
        """Start a closed loop of `streams`, which begin one after the other within `ramp` seconds.

        After `warm` seconds its responses are counted, for `seconds`.
        """
        name = f"{route.protocol}-{len(list(self._folder.glob('*.request')))}.request"
        (self._folder / name).write_bytes(route.request)
        option = "--socket" if isinstance(route.target, Path) else "--port"
        command = [
            *(str(self._program), route.protocol, option, str(route.target)),
            *("--request", str(self._folder / name), "--tokens", str(route.tokens)),
            *("--streams", str(streams), "--warm", str(warm), "--seconds", str(seconds)),
            *("--ramp", str(ramp), *options),
        ]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def result_of(process: subprocess.Popen[str], seconds: float) -> Load:
    """Wait for a client that ends within `seconds`, and return what it saw."""
    output, _ = process.communicate(timeout=seconds + END_SECONDS)
    if process.returncode:
        raise SystemExit(f"the load client failed with {process.returncode}")
    return Load(**json.loads(output.splitlines()[-1]))


class WatchedLoad:
    """A client with the option `--progress`, whose outcomes are read while it runs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._lines: list[str] = []
        self._finished = 0
        self._last_finish = time.monotonic()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    @property
    def silence_seconds(self) -> float:
        """Time since the number of whole answers last grew."""
        return time.monotonic() - self._last_finish

    def end(self) -> Load:
        """End the client, unless it has ended, and return what it saw."""
        with self._process:
            self._process.terminate()
            self._process.wait(END_SECONDS)
            self._thread.join()
        return Load(**json.loads(self._lines[-1]))

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self._lines = [line]
            finished = json.loads(line)["finished"]
            if finished > self._finished:
                self._finished, self._last_finish = finished, time.monotonic()
