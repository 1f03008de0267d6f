"""Unmodified clients of others: perf_analyzer, litellm, and every kind of tritonclient."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio

from nemotron_serve.model_server import ModelServer
from tests.serve.wire import MODELS, inputs, messages_json, post, stream, text
from tests.tiny_nemotron.answers import ExactAnswer
from tests.tools import TOOLS, python_tool
from tests.waiting import WAIT

PROMPT = "<extra_id_0>System\n\n<extra_id_1>User\nWho are you?\n<extra_id_1>Assistant\n"
TOKENS = 12
ATTEMPTS = 3
"""Number of times that perf_analyzer is started. On a busy machine it may sleep for ever after its
last answer: the server had counted all 20 requests as answered when that was seen."""
LITELLM = Path(__file__).with_name("litellm_client.py")


def perf_analyzer(server: ModelServer, folder: Path, *options: str, **fields: Any) -> str:
    """Return perf_analyzer's report on 20 requests, two at a time."""
    data = folder / "input.json"
    data.write_text(json.dumps({"data": [{name: [value] for name, value in fields.items()}]}))
    (cuda,) = (TOOLS / "perf_analyzer").glob("lib/python3*/site-packages/nvidia/cuda_runtime/lib")
    program = python_tool("perf_analyzer", "perf_analyzer")
    command = [program, "--input-data", data, "--concurrency-range=2", "--request-count=20"]
    environment = os.environ | {"LD_LIBRARY_PATH": str(cuda)}
    for attempt in range(ATTEMPTS):
        try:
            done = subprocess.run(
                [*command, *options],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=WAIT / ATTEMPTS,
            )
            break
        except subprocess.TimeoutExpired:
            if attempt == ATTEMPTS - 1:
                raise
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Request count: 20\n" in done.stdout
    return done.stdout


def test_perf_analyzer_streams_from_the_ensemble(server: ModelServer, tmp_path: Path) -> None:
    """With the neutral inputs that its users' scripts send."""
    report = tmp_path / "profile.json"
    perf_analyzer(
        server,
        tmp_path,
        *("-m", "ensemble", "-i", "grpc", "-u", f"127.0.0.1:{server.endpoints.grpc}"),
        *("--async", "--streaming", "--shape=bad_words:1", "--shape=stop_words:1"),
        f"--profile-export-file={report}",
        text_input="<extra_id_1>Count",
        max_tokens=TOKENS,
        end_id=0,
        stream=True,
        bad_words="",
        stop_words="",
        beam_width=1,
    )
    # It writes tensors' bytes into its JSON as they are.
    whole = json.loads(report.read_text("utf-8", errors="replace"), strict=False)
    requests = whole["experiments"][0]["requests"]
    assert len(requests) == 20
    request_inputs = {"text_input": "<extra_id_1>Count", "max_tokens": TOKENS, "end_id": 0}
    expected = text(stream(server, stream=True, **request_inputs))
    for request in requests:
        assert "".join(output["text_output"] for output in request["response_outputs"]) == expected


@pytest.mark.parametrize("model", MODELS)
def test_perf_analyzer_counts_single_tokens(
    model: str, server: ModelServer, tmp_path: Path
) -> None:
    """Its recipe for LLMs takes each response for a token."""
    report = tmp_path / "profile.json"
    perf_analyzer(
        server,
        tmp_path,
        *("-m", model, "-i", "grpc", "-u", f"127.0.0.1:{server.endpoints.grpc}"),
        *("--async", "--streaming", "--request-parameter=chunk_tokens:1:int"),
        f"--profile-export-file={report}",
        text_input="<extra_id_1>Count",
        max_tokens=TOKENS,
        end_id=0,
        stream=True,
    )
    whole = json.loads(report.read_text("utf-8", errors="replace"), strict=False)
    counts = [
        len(request["response_timestamps"]) for request in whole["experiments"][0]["requests"]
    ]
    assert len(counts) == 20
    # As fast as the model can send: two tokens may come together. Without the parameter there would
    # be the first token, and the rest in one or two responses.
    assert statistics.median(counts) > TOKENS / 3


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_perf_analyzer_asks_for_one_response(
    protocol: str, server: ModelServer, tmp_path: Path
) -> None:
    url = f"127.0.0.1:{getattr(server.endpoints, protocol)}"
    options = ("-m", "generate", "-i", protocol, "-u", url)
    perf_analyzer(server, tmp_path, *options, text_input=PROMPT, max_tokens=TOKENS)


def test_litellms_triton_provider(server: ModelServer) -> None:
    expected = text(stream(server, text_input="Who are you?", max_tokens=TOKENS))
    base = f"http://127.0.0.1:{server.endpoints.http}/v2/models/ensemble/generate"
    done = subprocess.run(
        [python_tool("litellm", "python"), LITELLM, base, "Who are you?", str(TOKENS)],
        env=os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"},  # asks nobody for prices
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [expected] * 3


def test_a_curl_of_the_classic_guides(server: ModelServer) -> None:
    body = {"text_input": PROMPT, "max_tokens": 200, "bad_words": "", "stop_words": ""}
    status, reply = post(server, "/v2/models/ensemble/generate", body)
    assert status == 200
    assert json.loads(reply)["text_output"].startswith("I am")


def first_text(result: Any) -> str:
    return str(result.as_numpy("text_output").ravel()[0].decode())


def test_tritonclients_asynchronous_clients(
    server: ModelServer, answers: list[ExactAnswer]
) -> None:
    exact = answers[7]
    fields = {"messages": messages_json(exact.question.messages), "max_tokens": 200}
    endpoints = server.endpoints

    async def requests() -> AsyncIterator[dict[str, Any]]:
        request_inputs = inputs(tritonclient.grpc, stream=True, **fields)
        yield {"model_name": "ensemble", "inputs": request_inputs}

    async def ask() -> list[str]:
        grpc = tritonclient.grpc.aio.InferenceServerClient(f"127.0.0.1:{endpoints.grpc}")
        http = tritonclient.http.aio.InferenceServerClient(f"127.0.0.1:{endpoints.http}")
        async with grpc, http:
            whole = await grpc.infer("generate", inputs(tritonclient.grpc, **fields))
            over_http = await http.infer("generate", inputs(tritonclient.http, **fields))
            pieces = [
                first_text(result)
                async for result, error in grpc.stream_infer(requests())
                if error is None
            ]
        assert len(pieces) > 1
        return [first_text(whole), first_text(over_http), "".join(pieces)]

    assert asyncio.run(ask()) == [exact.question.answer] * 3
