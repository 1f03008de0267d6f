"""Clients as they were written for TensorRT-LLM's classic models, with nothing of this project.

Each does what the public example clients of several releases do: the same tensors, the same calls
of tritonclient, the same way to read the responses.
"""

from __future__ import annotations

import queue
import threading
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from nemotron_core.text import Tokenizer
from nemotron_serve.model_server import ModelServer
from tests.serve.wire import STOP_ATTEMPTS
from tests.tiny_nemotron.answers import ExactAnswer
from tests.tiny_nemotron.dialogues import prompt_ids
from tests.waiting import WAIT

END_ID = 5
CHAT = "<extra_id_0>System\n\n<extra_id_1>User\n{}\n<extra_id_1>Assistant\n"


def prepare_tensor(name: str, value: Any) -> grpcclient.InferInput:
    tensor = grpcclient.InferInput(name, value.shape, np_to_triton_dtype(value.dtype))
    tensor.set_data_from_numpy(value)
    return tensor


def scalar(value: Any, dtype: Any) -> Any:
    return np.array([[value]], dtype)


@pytest.fixture
def client(server: ModelServer) -> Any:
    endpoints = server.endpoints
    with grpcclient.InferenceServerClient(f"{endpoints.address}:{endpoints.grpc}") as client:
        yield client


class UserData:
    def __init__(self) -> None:
        self.completed: queue.Queue[Any] = queue.Queue()


def callback(user_data: UserData, result: Any, error: Any) -> None:
    user_data.completed.put(error or result)


def token_inputs(ids: list[int], length: int, *, streaming: bool) -> list[Any]:
    """What a client of `tensorrt_llm` sends by default."""
    return [
        prepare_tensor("input_ids", np.array([ids], np.int32)),
        prepare_tensor("input_lengths", scalar(len(ids), np.int32)),
        prepare_tensor("request_output_len", scalar(length, np.uint32).astype(np.int32)),
        prepare_tensor("beam_width", scalar(1, np.int32)),
        prepare_tensor("temperature", scalar(1.0, np.float32)),
        prepare_tensor("repetition_penalty", scalar(1.0, np.float32)),
        prepare_tensor("presence_penalty", scalar(0.0, np.float32)),
        prepare_tensor("frequency_penalty", scalar(0.0, np.float32)),
        prepare_tensor("len_penalty", scalar(1.0, np.float32)),
        prepare_tensor("runtime_top_k", scalar(1, np.int32)),
        prepare_tensor("runtime_top_p", scalar(0.0, np.float32)),
        prepare_tensor("random_seed", scalar(0, np.uint64)),
        prepare_tensor("streaming", scalar(streaming, bool)),
        prepare_tensor("return_log_probs", scalar(False, bool)),
        prepare_tensor("return_context_logits", scalar(False, bool)),
        prepare_tensor("return_generation_logits", scalar(False, bool)),
        prepare_tensor("end_id", scalar(END_ID, np.int32)),
        prepare_tensor("pad_id", scalar(END_ID, np.int32)),
    ]


def stop_inputs() -> list[Any]:
    return [
        prepare_tensor("input_ids", np.empty([1, 0], np.int32)),
        prepare_tensor("input_lengths", scalar(0, np.int32)),
        prepare_tensor("request_output_len", scalar(0, np.int32)),
        prepare_tensor("stop", scalar(True, bool)),
    ]


def actual_tokens(
    client: Any, ids: list[int], length: int, *, stops: bool
) -> tuple[list[int], bool]:
    """Stream as the in-flight batcher's client does, and stop it over the same stream.

    Return the tokens, and whether the answer was longer than what came before the stop.
    """
    user_data = UserData()
    tokens: list[int] = []
    has_stopped = False
    client.start_stream(callback=lambda result, error: callback(user_data, result, error))
    try:
        inputs = token_inputs(ids, length, streaming=True)
        client.async_stream_infer("tensorrt_llm", inputs, request_id="1")
        while True:
            result = user_data.completed.get(timeout=WAIT)
            if isinstance(result, InferenceServerException):
                raise result
            response = result.get_response()
            assert response.id == "1"
            output_ids = result.as_numpy("output_ids")
            if output_ids is not None:
                sequence_length = result.as_numpy("sequence_length")
                tokens += list(output_ids[0][0][: sequence_length[0][0]])
            if stops and not has_stopped:
                has_stopped = True
                client.async_stream_infer("tensorrt_llm", stop_inputs(), request_id="1")
            elif output_ids is not None and result.as_numpy("finish_reason") is not None:
                return tokens
    finally:
        client.stop_stream()


def test_the_in_flight_batchers_client(
    client: Any, answers: list[ExactAnswer], tokenizer: Tokenizer
) -> None:
    for exact in answers[::200]:
        ids = prompt_ids(tokenizer, exact.question.messages)
        assert actual_tokens(client, ids, 200, stops=False) == exact.token_ids
    for _ in range(STOP_ATTEMPTS):
        tokens = actual_tokens(client, [END_ID, 300], 2000, stops=True)
        if len(tokens) < 2000:
            break
    assert 0 < len(tokens) < 2000


def text_inputs(prompt: str, length: int, *, streaming: bool, **more: Any) -> list[Any]:
    """What a client of `ensemble` sends by default."""
    fields = {
        "text_input": np.array([[prompt.encode()]], object),
        "max_tokens": scalar(length, np.int32),
        "bad_words": np.array([[b""]], object),
        "stop_words": np.array([[b""]], object),
        "stream": scalar(streaming, bool),
        "beam_width": scalar(1, np.int32),
        "temperature": scalar(1.0, np.float32),
        "top_k": scalar(1, np.int32),
        "top_p": scalar(0.0, np.float32),
        "length_penalty": scalar(1.0, np.float32),
        "repetition_penalty": scalar(1.0, np.float32),
        "random_seed": scalar(0, np.uint64),
        "return_log_probs": scalar(False, bool),
        "exclude_input_in_output": scalar(True, bool),
    }
    return [prepare_tensor(name, value) for name, value in (fields | more).items()]


def run_inference(client: Any, inputs: list[Any], *, streaming: bool, model: str) -> str:
    """Return the text of an answer as the end-to-end client reads it."""
    user_data = UserData()
    client.start_stream(callback=lambda result, error: callback(user_data, result, error))
    client.async_stream_infer(model, inputs)
    client.stop_stream()
    answer = ""
    while not user_data.completed.empty():
        result = user_data.completed.get()
        if isinstance(result, InferenceServerException):
            raise result
        output = result.as_numpy("text_output")
        if streaming:
            answer += output[0].decode("utf-8")
        else:
            answer = output[0].decode("utf-8")
    return answer


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
@pytest.mark.parametrize("streaming", [True, False])
def test_the_end_to_end_client(
    streaming: bool, model: str, client: Any, answers: list[ExactAnswer]
) -> None:
    exact = next(exact for exact in answers if len(exact.question.messages) == 1)
    prompt = CHAT.format(exact.question.messages[0].content)
    options = {"streaming": streaming, "model": model}
    inputs = text_inputs(prompt, 200, streaming=streaming)
    expected = exact.question.answer + "\n"  # the template's newline, where the prompt is raw
    assert run_inference(client, inputs, **options) == expected
    inputs = text_inputs(
        prompt, 200, streaming=streaming, exclude_input_in_output=scalar(False, bool)
    )
    assert run_inference(client, inputs, **options) == prompt + expected
    stop = expected.split()[2]
    inputs = text_inputs(
        prompt, 200, streaming=streaming, stop_words=np.array([[stop.encode()]], object)
    )
    assert run_inference(client, inputs, **options) == expected[: expected.index(stop)]


@pytest.mark.parametrize("streaming", [True, False])
def test_the_core_models_benchmark(
    streaming: bool, client: Any, answers: list[ExactAnswer], tokenizer: Tokenizer
) -> None:
    """All requests on one stream, each with its own id, in whatever order they end."""
    chosen = answers[:64]
    tokens: dict[str, list[int]] = {str(number): [] for number in range(len(chosen))}
    errors: list[Any] = []
    finished = threading.Semaphore(0)

    def collect(result: Any, error: Any) -> None:
        if error is not None:
            errors.append(error)
            finished.release()
            return
        response = result.get_response()
        tokens[response.id] += list(result.as_numpy("output_ids")[0][0])
        if response.parameters["triton_final_response"].bool_param:
            finished.release()

    client.start_stream(collect)
    for number, exact in enumerate(chosen):
        ids = prompt_ids(tokenizer, exact.question.messages)
        inputs = token_inputs(ids, 200, streaming=streaming)
        client.async_stream_infer("tensorrt_llm", inputs, request_id=str(number))
    for _ in chosen:
        assert finished.acquire(timeout=WAIT)
    client.stop_stream()
    assert not errors
    assert list(tokens.values()) == [exact.token_ids for exact in chosen]
