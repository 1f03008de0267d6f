"""`PUT /generate`, the API of the model's card, with the answers of NeMo's server.

Where NeMo reports a wrong request with status 200, this reports it with status 400.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from nemotron_core.openai.errors import HttpError, bad_request
from nemotron_core.openai.token_texts import VisibleText
from nemotron_core.text import Tokenizer
from nemotron_gateway.backend import Backend
from nemotron_gateway.json_response import JsonResponse
from nemotron_gateway.nemo_schema import GenerateRequest, parse_generate_request
from nemotron_gateway.request import read_json, while_connected
from nemotron_gateway.request_record import RequestRecord
from nemotron_gateway.settings import GatewaySettings


class NeMo:
    """The endpoint of NeMo's API."""

    def __init__(self, settings: GatewaySettings, backend: Backend) -> None:
        self._settings = settings
        self._backend = backend

    async def generate(self, request: Request, record: RequestRecord) -> Response:
        """Answer `PUT /generate`. An error is a JSON string."""
        try:
            body = parse_generate_request(await read_json(request, record, self._settings))
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
        """Return the answer to all sentences, which are generated at the same time."""
        tokenizer = await self._backend.tokenizer("/generate")
        tasks = [
            asyncio.ensure_future(self._complete(sentence, body, tokenizer, record))
            for sentence in body.sentences
        ]
        try:
            sentences = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
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
        self, prompt: str, body: GenerateRequest, tokenizer: Tokenizer, record: RequestRecord
    ) -> _Sentence:
        end_strings = tuple(text for text in body.end_strings if text)
        if not prompt:
            raise bad_request("a sentence is empty")
        sentence = _Sentence(tokenizer, prompt, add_bos=body.add_BOS)
        prompt_tokens = len(sentence.token_ids)
        source = self._backend.generate(sentence.token_ids, body.generation(tokenizer))
        count = 0
        try:
            async with aclosing(source) as pieces:
                async for piece in pieces:
                    log_probs = piece.log_probs or [None] * len(piece.token_ids)
                    for token_id, log_prob in zip(piece.token_ids, log_probs, strict=True):
                        sentence.push(token_id, log_prob)
                        count += 1
                        # Like NeMo: only an end string at the end of the text, after each token.
                        if (
                            sentence.text.endswith(end_strings)
                            and count >= body.min_tokens_to_generate
                        ):
                            return sentence
        finally:
            record.count_tokens(prompt_tokens, count)
        return sentence


class _Sentence:
    """A prompt and the tokens that the model generates after it."""

    def __init__(self, tokenizer: Tokenizer, prompt: str, *, add_bos: bool) -> None:
        self._tokenizer = tokenizer
        self.token_ids = tokenizer.encode(prompt)
        if add_bos:
            self.token_ids.insert(0, _bos(tokenizer))
        self.tokens = [tokenizer.piece(token_id) for token_id in self.token_ids]
        self.log_probs: list[float | None] = [None] * max(0, len(self.token_ids) - 1)
        """Log-probability of each token but the first, as in NeMo; `None` for the prompt's."""
        self.offsets = _prompt_offsets(tokenizer, self.token_ids, prompt)
        self._visible = VisibleText(tokenizer, prompt)

    @property
    def text(self) -> str:
        """The prompt and the text that follows it."""
        return self._visible.text

    def push(self, token_id: int, log_prob: float | None) -> None:
        """Add a generated token."""
        self.token_ids.append(token_id)
        self.tokens.append(self._tokenizer.piece(token_id))
        self.log_probs.append(log_prob)
        self.offsets.append(self._visible.push(token_id))


def _bos(tokenizer: Tokenizer) -> int:
    if (bos := tokenizer.id_of("<s>")) is None:
        raise bad_request("add_BOS: the model's tokenizer has no such token")
    return bos


def _prompt_offsets(tokenizer: Tokenizer, token_ids: list[int], prompt: str) -> list[int]:
    """Return the offset in the prompt at which each token's characters begin.

    SentencePiece may normalize the prompt to a longer text, so an offset is at most its length.
    """
    visible = VisibleText(tokenizer, "")
    return [min(visible.push(token_id), len(prompt)) for token_id in token_ids]
