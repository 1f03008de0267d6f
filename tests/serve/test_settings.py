"""The inputs besides the prompt: each has its effect or is refused by name."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from nemotron_build.engine_folder import build_engine
from nemotron_build.profile import Profile
from nemotron_client import Client, Generation, RequestTimeout, ServerOverloaded
from nemotron_core.wire import TEXT_INPUTS
from nemotron_serve.model_server import ModelServer
from tests.serve.wire import (
    ASK,
    ENDLESS,
    MODELS,
    TEXT_MODELS,
    grpc_client,
    inputs,
    running,
    stream,
    text,
    whole,
)
from tests.waiting import WAIT, until

LACKING: dict[str, tuple[Any, Any]] = {
    "decoder_text_input": ("a", ""),
    "bad_words": (["a"], [""]),
    "length_penalty": (2.0, 1.0),
    "return_context_logits": (True, False),
    "return_generation_logits": (True, False),
    "beam_width": (2, 1),
    "prompt_table_extra_id": (1, None),
    "prompt_vocab_size": (1, None),
    "embedding_bias_words": (["a"], [""]),
    "embedding_bias_weights": ([1.0], [0.0]),
    "bias_token_ids": ([5], None),
    "bias_values": ([1.0], [0.0]),
    "lora_name": ("polite", ""),
    "lora_task_id": (1, None),
}


@pytest.mark.parametrize("model", TEXT_MODELS)
@pytest.mark.parametrize("name", LACKING)
def test_what_this_engine_lacks_is_refused_by_name(
    name: str, model: str, server: ModelServer
) -> None:
    unsupported, neutral = LACKING[name]
    with pytest.raises(InferenceServerException, match=f"{name} is not on this engine"):
        whole(server, model, messages=ASK, max_tokens=5, **{name: unsupported})
    if neutral is not None:  # many clients send their defaults
        response = whole(server, model, messages=ASK, max_tokens=200, **{name: neutral})
        assert text([response]).startswith("I am")


def test_every_input_that_this_engine_lacks_is_tried(server: ModelServer) -> None:
    features = server.engine.hello.capabilities.features
    lacking = {
        entry.name
        for entry in TEXT_INPUTS
        if not entry.is_supported or (entry.feature and entry.feature not in features)
    }
    matrices = {"prompt_embedding_table", "lora_weights", "lora_config"}
    assert lacking - matrices == set(LACKING)


@pytest.mark.parametrize("model", MODELS)
def test_times_come_with_the_last_response_when_asked_for(model: str, server: ModelServer) -> None:
    before = time.time_ns()
    responses = stream(
        server, model, messages=ASK, max_tokens=200, stream=True, return_perf_metrics=True
    )
    names = (
        *("arrival_time_ns", "first_scheduled_time_ns"),
        *("first_token_time_ns", "last_token_time_ns"),
    )
    assert not any(name in response for name in names for response in responses[:-1])
    times = [int(responses[-1][name].ravel()[0]) for name in names]
    assert before < times[0]
    assert times == sorted(times)
    assert times[-1] < time.time_ns()


@pytest.fixture(scope="module")
def narrow(
    checkpoint_tp8: Path, cpu_profile: Profile, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ModelServer]:
    """A server for two requests in a step and one in the queue, with two seconds per request."""
    engine = tmp_path_factory.mktemp("narrow") / "engine"
    limits = {"max_batch_size": 2, "max_queue_size": 1, "long_answers": "clamp"}
    with changed_server(checkpoint_tp8, engine, cpu_profile, limits, request=2) as running:
        yield running


@pytest.fixture(scope="module")
def short(
    checkpoint_tp8: Path, cpu_profile: Profile, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ModelServer]:
    """A server whose requests have at most 64 tokens, to which it shortens answers."""
    engine = tmp_path_factory.mktemp("short") / "engine"
    limits = {"max_seq_len": 64, "long_answers": "clamp"}
    with changed_server(checkpoint_tp8, engine, cpu_profile, limits) as running:
        yield running


@contextmanager
def changed_server(
    checkpoint: Path, engine: Path, profile: Profile, limits: dict[str, Any], **timeouts: int
) -> Iterator[ModelServer]:
    """Build and serve an engine of a profile with other limits and timeouts."""
    changes = {
        "limits": profile.limits.model_copy(update=limits),
        "timeouts": profile.timeouts.model_copy(update=timeouts),
    }
    changed = profile.model_copy(update=changes)
    build_engine(checkpoint, engine, changed)
    with ModelServer(engine, changed) as running:
        yield running


def start(server: ModelServer, model: str, count: int) -> tuple[Any, queue.Queue[Any]]:
    """Start endless streams on one connection, and return the client and its queue of results."""
    client = grpc_client(server)
    results: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: results.put(error or result))
    for number in range(count):
        fields = inputs(tritonclient.grpc, **ENDLESS)
        client.async_stream_infer(model, fields, request_id=f"{model}-{number}")
    return client, results


@pytest.mark.parametrize("model", MODELS)
def test_a_full_queue_refuses_at_once_and_a_deadline_ends_what_runs(
    model: str, narrow: ModelServer
) -> None:
    client, results = start(narrow, model, 3)
    try:
        until(lambda: running(narrow) == 3)
        url = f"{narrow.endpoints.address}:{narrow.endpoints.grpc}"
        began = time.monotonic()
        with (
            Client(url) as second_client,
            pytest.raises(ServerOverloaded, match="3 requests run or wait"),
        ):
            second_client.chat([{"role": "user", "content": "Hi"}], Generation(max_tokens=5))
        assert time.monotonic() - began < 2
        errors = []
        while len(errors) < 3:
            result = results.get(timeout=WAIT)
            if isinstance(result, InferenceServerException):
                errors.append(str(result))
        assert all("deadline exceeded: " in error for error in errors)
    finally:
        client.stop_stream()
        client.close()
    until(lambda: not running(narrow))
    assert text(stream(narrow, model, messages=ASK, max_tokens=200)).startswith("I am")


def test_the_client_tells_a_deadline(narrow: ModelServer) -> None:
    url = f"{narrow.endpoints.address}:{narrow.endpoints.grpc}"
    with Client(url) as client, pytest.raises(RequestTimeout, match="deadline exceeded"):
        client.complete("<extra_id_1>Go", Generation(max_tokens=4000, end_id=0))


@pytest.mark.parametrize("model", MODELS)
def test_an_answer_is_as_long_as_fits_if_the_profile_says_so(
    model: str, short: ModelServer
) -> None:
    request = {"text_input": "<extra_id_1>" * 58, "end_id": 0}
    for max_tokens, length in ((3, 3), (6, 6), (7, 6), (2**31 - 1, 6)):
        (response,) = stream(short, model, max_tokens=max_tokens, **request)
        assert response["num_output_tokens"].ravel()[0] == length
        assert response["finish_reason"].ravel()[0] == b"length"
    with pytest.raises(InferenceServerException, match=r"64 prompt tokens.*shorten the prompt"):
        stream(short, model, text_input="<extra_id_1>" * 64, max_tokens=5)
