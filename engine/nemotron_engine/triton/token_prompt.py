"""Requests to `tensorrt_llm` in the classic form: token ids instead of text."""

from __future__ import annotations

from nemotron_core.errors import NemotronError
from nemotron_engine.protocol import Hello, Request
from nemotron_engine.triton.fields import (
    common_fields,
    end_ids_of,
    request_settings,
    sampling,
    sequence_count,
    token_sequences,
)
from nemotron_engine.triton.prompts import AnswerSettings, Prompts
from nemotron_engine.triton.tensors import Inputs, Options


def build_token_prompts(inputs: Inputs, options: Options, request_id: str, hello: Hello) -> Prompts:
    """Return a request's prompts. Raises `NemotronError` if the request is invalid."""
    prompts = []
    for row in range(len(inputs)):
        ids = inputs.values(row, "input_ids") or []
        length = inputs.required(row, "input_lengths")
        if not 0 <= length <= len(ids):
            raise NemotronError(
                f"input_lengths is {length}, but there are {len(ids)} input_ids",
                where="input_lengths",
            )
        ids = ids[:length]  # rows of a batch are filled up
        end_ids = end_ids_of(inputs, row, ())
        request = Request(
            **common_fields(inputs, row, options, request_id),
            input_ids=ids,
            max_tokens=inputs.required(row, "request_output_len"),
            end_ids=end_ids,
            **sampling(inputs, row, "runtime_top_k", "runtime_top_p"),
            stop_sequences=_sequences(inputs, row, "stop_words_list"),
            bad_sequences=_sequences(inputs, row, "bad_words_list"),
            bias=_bias(inputs, row, hello.vocab_size),
        )
        repeats = not inputs.value(row, "exclude_input_in_output", default=True)
        answer = AnswerSettings(
            end_ids=end_ids,
            num_input_tokens=len(ids),
            batch_index=row,
            prefix_ids=ids if repeats else [],
        )
        prompts.append((request, answer, sequence_count(inputs, row)))
    stream = inputs.value(0, "streaming", default=False)
    return Prompts.of_rows(prompts, request_settings(inputs, options, stream=stream))


def _sequences(inputs: Inputs, row: int, name: str) -> list[list[int]]:
    """Return token sequences from the classic form [2, n]: the tokens, then the ends."""
    flat = inputs.values(row, name) or []
    return token_sequences(flat[: len(flat) // 2], flat[len(flat) // 2 :])


def _bias(inputs: Inputs, row: int, vocab_size: int) -> dict[int, float]:
    weights = inputs.values(row, "embedding_bias") or []
    if weights and len(weights) != vocab_size:
        raise NemotronError(
            f"embedding_bias has {len(weights)} elements, the vocabulary {vocab_size}",
            where="embedding_bias",
        )
    return {id_: weight for id_, weight in enumerate(weights) if weight}
