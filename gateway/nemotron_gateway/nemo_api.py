"""`PUT /generate`, the API of the model's card, with the answers of NeMo's server.

Where NeMo reports a wrong request with status 200, this reports it with status 400.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from nemotron_core.errors import ErrorKind, NemotronError
from nemotron_core.generation import Generation
from nemotron_core.openai.errors import HttpError, bad_request
from nemotron_core.openai.token_texts import TextOffsets
from nemotron_core.text import StreamingDetokenizer, Tokenizer, check_text
from nemotron_gateway.admission import Admission
from nemotron_gateway.backend import Backend
from nemotron_gateway.json_response import JsonResponse
from nemotron_gateway.nemo_schema import GenerateRequest, parse_generate_request
from nemotron_gateway.request import compute, read_json, while_connected
from nemotron_gateway.request_record import RequestRecord
from nemotron_gateway.settings import GatewaySettings


class NeMo:
    """The endpoint of NeMo's API."""

    def __init__(self, settings: GatewaySettings, backend: Backend, admission: Admission) -> None:
        self._settings = settings
        self._backend = backend
        self._admission = admission

    async def generate(self, request: Request, record: RequestRecord) -> Response:
        """Answer `PUT /generate`. An error is a JSON string."""
        try:
            body = await read_json(request, record, self._settings, parse_generate_request)
            self._check_limits(body)
            content = await while_connected(request.receive, self._answer(body, record))
            return JsonResponse(content)
        except HttpError as error:
            return JsonResponse(error.message, error.status, error.headers)

    def _check_limits(self, body: GenerateRequest) -> None:
        limits = self._settings.limits
        if len(body.sentences) > limits.prompts:
            raise bad_request(f"Maximum number of sentences is {limits.prompts}")
        if max(map(len, body.sentences)) > limits.prompt_characters:
            raise bad_request(f"a sentence has at most {limits.prompt_characters} characters")
        if body.tokens_to_generate > limits.max_tokens:
            raise bad_request(f"tokens_to_generate is at most {limits.max_tokens}")

    async def _answer(self, body: GenerateRequest, record: RequestRecord) -> dict[str, Any]:
        """Return the answer to all sentences; the engine gets as many at once as it computes."""
        tokenizer = await self._backend.tokenizer("/generate")
        facts = await self._backend.facts()
        size = sum(map(len, body.sentences))
        sentences = await compute(lambda: _sentences(tokenizer, body, facts.max_seq_len), size=size)
        prompt_tokens = [len(sentence.token_ids) for sentence in sentences]
        tokens = sum(prompt_tokens) + body.tokens_to_generate * len(sentences)
        with self._admission.admit(record.key, len(sentences), tokens):
            turns = asyncio.Semaphore(min(facts.slots, self._settings.limits.requests))

            async def complete(number: int) -> None:
                async with turns:
                    await self._complete(sentences[number], body, tokenizer, number)

            try:
                await _all(complete(number) for number in range(len(sentences)))
            finally:
                generated = sum(len(s.token_ids) for s in sentences) - sum(prompt_tokens)
                record.count_tokens(sum(prompt_tokens), generated)
        return {
            "sentences": [sentence.text for sentence in sentences],
            "tokens": [sentence.tokens for sentence in sentences],
            "logprob": [sentence.log_probs for sentence in sentences]
            if body.compute_logprob
            else None,
            "token_ids": [sentence.token_ids for sentence in sentences],
            "offsets": [sentence.offsets for sentence in sentences],
        }

    async def _complete(
        self, sentence: _Sentence, body: GenerateRequest, tokenizer: Tokenizer, number: int
    ) -> None:
        """Generate what follows a sentence, and the log-probabilities of the sentence itself."""
        prompt = list(sentence.token_ids)
        if body.compute_logprob and len(prompt) > 1:
            sentence.log_probs = await self._prompt_log_probs(prompt)
        source = self._backend.generate(prompt, body.generation(tokenizer, number))
        async with aclosing(source) as pieces:
            async for piece in pieces:
                log_probs = piece.log_probs or [None] * len(piece.token_ids)
                for token_id, log_prob in zip(piece.token_ids, log_probs, strict=True):
                    # Like NeMo: an end string counts only at the end of the text after a token.
                    if sentence.push(token_id, log_prob):
                        return

    async def _prompt_log_probs(self, prompt: Sequence[int]) -> list[float | None]:
        """Return the log-probability of each token but the first; `None` if the engine has none.

        This is a request of its own, because not every engine can do it while it generates.
        """
        scoring = Generation(max_tokens=1, temperature=0.0, num_prompt_log_probs=0)
        log_probs: list[float | None] = []
        try:
            async with aclosing(self._backend.generate(prompt, scoring)) as pieces:
                async for piece in pieces:
                    log_probs += [entries[0][1] for entries in piece.prompt_log_probs if entries]
        except HttpError as error:
            if error.status != ErrorKind.REFUSED.codes.http:
                raise
        return log_probs or [None] * (len(prompt) - 1)


async def _all(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Wait until all works are done. A failure of one ends the others."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _sentences(tokenizer: Tokenizer, body: GenerateRequest, max_seq_len: int) -> list[_Sentence]:
    """Return the prompts as tokens. Raises `HttpError` if one cannot be answered."""
    sentences = []
    for number, text in enumerate(body.sentences):
        try:
            check_text(text, where=f"sentences[{number}]")
        except NemotronError as error:
            raise bad_request(str(error)) from error
        ids = tokenizer.encode(text)
        if body.add_BOS:
            ids.insert(0, _bos(tokenizer))
        if not ids:
            raise bad_request(
                f"a sentence is empty [sentences[{number}]]: add_BOS makes it a prompt"
            )
        if len(ids) + body.tokens_to_generate > max_seq_len:
            raise bad_request(
                f"{len(ids)} prompt tokens and tokens_to_generate {body.tokens_to_generate} are "
                f"more than the {max_seq_len} this model holds [sentences[{number}]]"
            )
        sentences.append(_Sentence(tokenizer, text, ids, body.end_strings))
    return sentences


class _Sentence:
    """A prompt and the tokens that the model generates after it, in linear time."""

    def __init__(
        self, tokenizer: Tokenizer, prompt: str, ids: list[int], end_strings: Sequence[str]
    ) -> None:
        self._tokenizer = tokenizer
        self._detokenizer = StreamingDetokenizer(tokenizer, show_control=True)
        self._end_strings = tuple(text for text in end_strings if text)
        self._longest = max(map(len, self._end_strings), default=0)
        self._pieces = [prompt]
        self._length = len(prompt)
        self._tail = prompt[-self._longest :] if self._longest else ""
        """The end of the text, as far as an end string may reach back."""
        self.token_ids = ids
        self.tokens = [tokenizer.piece(token_id) for token_id in ids]
        self.log_probs: list[float | None] = [None] * max(0, len(ids) - 1)
        """Log-probability of each token but the first, as in NeMo."""
        offsets = TextOffsets(tokenizer, show_control=True)
        places = offsets.push(ids) + offsets.finish()
        # SentencePiece may normalize the prompt to a longer text.
        self.offsets = [min(place, len(prompt)) for place in places]

    @property
    def text(self) -> str:
        """The prompt and the text that follows it."""
        return "".join(self._pieces)

    def push(self, token_id: int, log_prob: float | None) -> bool:
        """Add a generated token. Return whether the text ends with an end string now."""
        self.offsets.append(self._length)
        self.token_ids.append(token_id)
        self.tokens.append(self._tokenizer.piece(token_id))
        self.log_probs.append(log_prob)
        text = self._detokenizer.push([token_id])
        self._pieces.append(text)
        self._length += len(text)
        if not self._longest:
            return False
        self._tail = (self._tail + text)[-self._longest :]
        return bool(text) and self._tail.endswith(self._end_strings)


def _bos(tokenizer: Tokenizer) -> int:
    if (bos := tokenizer.id_of("<s>")) is None:
        raise bad_request("add_BOS: the model's tokenizer has no such token")
    return bos
