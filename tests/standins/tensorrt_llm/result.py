"""What the library returns for a request: one object that changes (executor/result.py, 1.2)."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from nemotron_core.errors import NemotronError
from nemotron_engine.protocol import Chunk, Request

from .llmapi import Logprob, RequestError
from .sampling_params import SamplingParams

if TYPE_CHECKING:
    from .base_llm import BaseLLM

NUM_LIKELY = 24
"""Number of tokens that the invented logits of a prompt prefer at each position."""


@dataclass
class CompletionOutput:
    """Whatever the views `…_diff` return belongs to the latest response."""

    index: int = 0
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    prompt_logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | None = None
    _last_token_ids_len: int = 0
    _last_logprobs_len: int = 0

    @property
    def length(self) -> int:
        return len(self.token_ids)

    @property
    def token_ids_diff(self) -> list[int]:
        return self.token_ids[self._last_token_ids_len :]

    @property
    def logprobs_diff(self) -> list[Any]:
        return self.logprobs[self._last_logprobs_len :]


class RequestOutput:
    """An asynchronous iterator that yields itself, changed by one response of the executor."""

    def __init__(
        self, llm: BaseLLM, prompt: list[int], params: SamplingParams, *, streaming: bool
    ) -> None:
        self.prompt_token_ids = prompt
        self.outputs = [CompletionOutput()]
        self.context_logits: torch.Tensor | None = None
        self.finished = False
        self._aborted = False
        self._llm, self._params, self._streaming = llm, params, streaming
        self._chunks: asyncio.Queue[Chunk] = asyncio.Queue()
        self._log_probs: list[Any] = []
        """What the executor has of them, which grows with each response."""
        self._kind = llm._log_probs_kind(params)
        stop_ids = list(params.stop_token_ids or ())
        end_ids = [] if params.ignore_eos or params.end_id == -1 else [params.end_id]
        self._cut = [] if params.include_stop_str_in_output else stop_ids.copy()
        if not llm.returns_end_id:
            self._cut += end_ids
        request = Request(
            key=secrets.token_bytes(16),
            input_ids=prompt,
            max_tokens=params.max_tokens,
            end_ids=end_ids + stop_ids,
            temperature=0.0 if params._greedy_decoding else params.temperature or 1.0,
            top_k=params.top_k or 0,
            top_p=params.top_p or 1.0,
            seed=params.seed or 0,
            min_tokens=params.min_tokens or 0,
            repetition_penalty=params.repetition_penalty or 1.0,
            presence_penalty=params.presence_penalty or 0.0,
            frequency_penalty=params.frequency_penalty or 0.0,
            log_probs=self._kind is not None,
        )
        self._key = request.key
        loop, put = asyncio.get_running_loop(), self._chunks.put_nowait
        try:
            llm.worker.ask(request, lambda chunk: loop.call_soon_threadsafe(put, chunk))
        except NemotronError as error:
            raise RequestError(str(error)) from error

    def abort(self) -> None:
        """End the request: its last response has the reason "cancelled"."""
        self._llm.worker.cancel(self._key)
        self._aborted = True
        self._chunks.put_nowait(Chunk(self._key, finish_reason="cancelled"))

    def aborted(self) -> bool:
        return self._aborted

    def __aiter__(self) -> RequestOutput:
        return self

    async def __anext__(self) -> RequestOutput:
        """Wait for a response. One that never comes is waited for for ever, whatever has died."""
        if self.finished:
            raise StopAsyncIteration
        self._handle(await self._response())
        self._llm._handle_background_error()
        return self

    async def _response(self) -> Chunk:
        """Return the next response: `stream_interval` tokens, or if not streaming the answer.

        The first token is a response of its own (_torch/pyexecutor/py_executor.py, 1.2).
        """
        whole = Chunk(self._key)
        is_first = not self.outputs[0].token_ids
        interval = self._llm.stream_interval if self._streaming and not is_first else 1
        while True:
            chunk = await self._chunks.get()
            if chunk.finish_reason == "error":
                raise RequestError(chunk.error)
            whole.token_ids = whole.token_ids + list(chunk.token_ids)
            whole.log_probs = whole.log_probs + list(chunk.log_probs)
            whole.finish_reason = chunk.finish_reason
            if chunk.finish_reason or (self._streaming and len(whole.token_ids) >= interval):
                return whole

    def _handle(self, response: Chunk) -> None:
        (output,) = self.outputs
        if not output.token_ids:
            self._handle_prompt(response)
        ids, log_probs = response.token_ids, response.log_probs
        if response.finish_reason == "stop" and ids[-1:] and ids[-1] in self._cut:
            del ids[-1], log_probs[len(ids) :]
        output._last_token_ids_len = len(output.token_ids)
        output.token_ids.extend(ids)
        if self._kind is not None:
            self._log_probs += [self._log_prob(*pair) for pair in zip(ids, log_probs, strict=True)]
            output._last_logprobs_len = len(output.logprobs)
            output.logprobs += self._log_probs[output._last_logprobs_len :]
            assert len(output.logprobs) == output.length
        output.finish_reason = response.finish_reason or None
        if output.finish_reason == "stop" and output.token_ids:
            output.stop_reason = output.token_ids[-1]
        self.finished = bool(response.finish_reason)

    def _log_prob(self, id_: int, value: float) -> Any:
        """Return a token's entry: a number, or a table with `_kind` invented tokens above it."""
        if not self._kind:
            return value
        size = self._llm.worker.vocab_size
        table = {
            (id_ + rank) % size: Logprob(-rank / 16, rank) for rank in range(1, self._kind + 1)
        }
        return table | {id_: Logprob(value, self._kind + 1)}

    def _handle_prompt(self, response: Chunk) -> None:
        """Add what the request wants to know of its prompt, which comes with its first token."""
        params, prompt = self._params, self.prompt_token_ids
        if not (params.return_context_logits or params.prompt_logprobs):
            return
        logits = context_logits(prompt, self._llm.worker.vocab_size)
        if params.return_context_logits:
            self.context_logits = logits
        if params.prompt_logprobs:
            following = [*prompt[1:], *response.token_ids[:1]]
            tokens = following if self._llm.knows_prompt_tokens else None
            self.outputs[0].prompt_logprobs = _tables(logits, params.prompt_logprobs, tokens)


def context_logits(prompt: list[int], vocab_size: int) -> torch.Tensor:
    """Return the invented logits [T, V] of a prompt, in F32."""
    logits = torch.zeros(len(prompt), vocab_size)
    for position, id_ in enumerate(prompt):
        for rank in range(NUM_LIKELY):
            logits[position, (id_ * 7 + rank) % vocab_size] = 8 - rank / 4
    return logits


def _tables(logits: torch.Tensor, count: int, tokens: list[int] | None) -> list[dict[int, Logprob]]:
    """Return the `count` most probable tokens at each position, and the token of `tokens` there.

    Before 1.3 the library passes no tokens here for a prompt (`compute_logprobs` in
    executor/result.py, 1.2; executor/base_worker.py, 1.3).
    """
    log_probs = torch.log_softmax(logits, -1)
    best = torch.topk(log_probs, count)
    tables = []
    for row, (ids, values) in enumerate(zip(*map(torch.Tensor.tolist, best[::-1]), strict=True)):
        table = {
            id_: Logprob(value, rank)
            for rank, (id_, value) in enumerate(zip(ids, values, strict=True), 1)
        }
        if tokens is not None and (id_ := tokens[row]) not in table:
            own = log_probs[row, id_]
            table[id_] = Logprob(own.item(), int((log_probs[row] > own).sum()) + 1)
        tables.append(table)
    return tables
