"""Log-probabilities of prompts and of other tokens than the chosen ones, on every text model."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from nemotron_client import AsyncClient, Generation
from nemotron_core.text import Tokenizer
from nemotron_serve.model_server import ModelServer
from tests.serve.wire import ASK, TEXT_MODELS, stream, text, whole
from tests.tiny_nemotron.answers import ExactAnswer

PROMPT = "<extra_id_1>Go to the"
ONE_TOKEN: dict[str, Any] = {"text_input": PROMPT, "max_tokens": 1, "return_log_probs": True}


@pytest.mark.parametrize("model", TEXT_MODELS)
def test_alternatives(model: str, server: ModelServer, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(PROMPT)
    response = whole(server, model, **ONE_TOKEN, num_top_log_probs=3, num_prompt_log_probs=2)
    top_ids, top = response["top_token_ids"], response["top_log_probs"]
    assert top_ids.shape == top.shape == (1, 1, 3)
    assert top_ids[0, 0, 0] == response["output_token_ids"][0, 0]
    assert top[0, 0, 0] == response["output_log_probs"].ravel()[0]
    prompt_ids, prompt = response["prompt_top_token_ids"][0], response["prompt_top_log_probs"][0]
    assert prompt_ids.shape == (len(ids), 3)
    assert prompt_ids[0].tolist() == [-1] * 3
    assert prompt_ids[1:, 0].tolist() == ids[1:]
    assert np.all(prompt[1:] <= 0)
    assert np.all(np.diff(prompt[1:, 1:]) <= 0)


@pytest.mark.parametrize("model", TEXT_MODELS)
def test_only_the_prompts_own(model: str, server: ModelServer, tokenizer: Tokenizer) -> None:
    """A log-probability of the prompt is the one that its token has as an answer."""
    ids = tokenizer.encode(PROMPT)
    first = whole(server, model, **ONE_TOKEN)
    ids.append(int(first["output_token_ids"].ravel()[0]))
    fields = ONE_TOKEN | {"input_token_ids": ids}
    del fields["text_input"]
    response = whole(server, model, **fields, num_prompt_log_probs=0)
    assert response["prompt_top_token_ids"][0].shape == (len(ids), 1)
    last = response["prompt_top_log_probs"][0, -1, 0]
    assert last == pytest.approx(first["output_log_probs"].ravel()[0], abs=0.1)
    assert "top_token_ids" not in response
    assert "prompt_top_token_ids" not in whole(server, model, **ONE_TOKEN, num_prompt_log_probs=-1)


def test_what_the_cpu_lane_cannot(server: ModelServer) -> None:
    for fields, message in (
        ({"max_tokens": 2}, "only for prompts and one new token"),
        ({"temperature": 1.0, "top_p": 1.0}, "greedy decoding only, without temperature"),
        ({"num_top_log_probs": 21}, "number of alternatives is 21"),
    ):
        with pytest.raises(InferenceServerException, match=message):
            whole(server, "generate", **ONE_TOKEN | {"num_top_log_probs": 1} | fields)


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_the_client_has_them(scheme: str, server: ModelServer, tokenizer: Tokenizer) -> None:
    generation = Generation(
        max_tokens=1, return_log_probs=True, num_top_log_probs=2, num_prompt_log_probs=1
    )

    async def ask() -> Any:
        address = f"{scheme}://{server.endpoints.address}:{getattr(server.endpoints, scheme)}"
        async with AsyncClient(address) as client:
            return [piece async for piece in client.generate(PROMPT, generation)]

    (piece,) = asyncio.run(ask())
    assert piece.top_log_probs[0][0] == (piece.token_ids[0], piece.log_probs[0])
    assert len(piece.top_log_probs[0]) == 2
    first, *others = piece.prompt_log_probs
    assert first == ()
    assert [entry[0][0] for entry in others] == tokenizer.encode(PROMPT)[1:]


@pytest.mark.parametrize("model", TEXT_MODELS)
def test_other_ends_of_a_prompt_and_of_an_answer(
    model: str, server: ModelServer, answers: list[ExactAnswer], tokenizer: Tokenizer
) -> None:
    exact = next(a for a in answers if len(a.question.messages) == 1)
    begin = exact.question.answer.partition(" ")[0]
    turns = [
        *(m.as_dict() for m in exact.question.messages),
        {"role": "assistant", "content": begin},
    ]
    settings: dict[str, Any] = {"max_tokens": 200, "messages": json.dumps(turns)}
    rest = text([whole(server, model, **settings, continue_final_message=True)])
    assert begin + rest == exact.question.answer
    asked = text([whole(server, model, messages=ASK, max_tokens=200)])
    stop = tokenizer.encode(" " + asked.split()[2])[0]
    stopped = whole(server, model, messages=ASK, max_tokens=200, stop_token_ids=[stop])
    assert stopped["output_token_ids"].ravel()[-1] == stop
    assert asked.startswith(text([stopped]))
    assert len(text([stopped])) < len(asked)
    no_turn = whole(server, model, messages=ASK, max_tokens=3, add_generation_prompt=False)
    plain = whole(server, model, messages=ASK, max_tokens=3)
    assert plain["num_input_tokens"] - no_turn["num_input_tokens"] == len(
        tokenizer.encode("<extra_id_1>Assistant\n")
    )


def test_alternatives_in_a_stream(server: ModelServer) -> None:
    """They come with the response whose token they are at."""
    for model in ("ensemble", "tensorrt_llm_bls"):
        responses = stream(server, model, **ONE_TOKEN, num_top_log_probs=2, stream=True)
        assert sum("top_token_ids" in response for response in responses) == 1
