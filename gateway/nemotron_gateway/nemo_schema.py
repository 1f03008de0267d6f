"""The request of `PUT /generate`, with the checks, defaults and messages of NeMo's server."""

from __future__ import annotations

import math
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nemotron_core.generation import MAX_SEED, Generation
from nemotron_core.openai.errors import bad_request
from nemotron_core.openai.keys import ListOf
from nemotron_core.text import Tokenizer

END_OF_TEXT = "</s>"
MAX_INT = 2**31 - 1
MAX_END_STRINGS = 256
MAX_END_STRING_CHARACTERS = 1024
"""Limits of the end strings, because the text is compared with each of them after each token."""


class GenerateRequest(BaseModel):
    """Body of `PUT /generate`. A key's description is NeMo's message for a value that is wrong.

    Like NeMo, it ignores unknown keys.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    sentences: ListOf[str] = Field(min_length=1, description="sentences must be a list of strings")
    tokens_to_generate: int = Field(
        64, ge=1, le=MAX_INT, description="tokens_to_generate must be an integer greater than 0"
    )
    all_probs: bool = Field(False, description="all_probs must be a boolean value")
    temperature: float = Field(
        1.0,
        gt=0,
        le=100,
        description="temperature must be a positive number less than or equal to 100.0",
    )
    add_BOS: bool = Field(False, description="add_BOS must be a boolean value")  # noqa: N815
    greedy: bool = Field(False, description="greedy must be a boolean value")
    top_k: float = Field(0, ge=0, le=MAX_INT, description="top_k must be a positive integer number")
    top_p: float = Field(
        0.9, ge=0, le=1, description="top_p must be a positive number less than or equal to 1.0"
    )
    repetition_penalty: float = Field(
        1.0,
        ge=1,
        lt=math.inf,
        description="repetition_penalty must be a positive number no less than 1.0",
    )
    end_strings: ListOf[str] = Field(
        ["<|endoftext|>"], description="expect end_strings to be a list of strings"
    )
    min_tokens_to_generate: int = Field(
        0,
        ge=0,
        le=MAX_INT,
        description="min_tokens_to_generate must be an integer no less than 0",
    )
    compute_logprob: bool = Field(False, description="compute_logprob must be a boolean value")
    random_seed: int | None = Field(
        None,
        ge=0,
        le=MAX_SEED,
        description="random_seed must be a positive integer number or None",
    )

    def generation(self, tokenizer: Tokenizer, number: int) -> Generation:
        """Return the generation that this request describes for the sentence with that number.

        As in NeMo, greedy decoding knows no penalty, equal sentences of a request with a seed get
        different samples, and only `</s>` waits for `min_tokens_to_generate`. So an end string that
        is a token ends the answer in the engine only if there is no such minimum; otherwise the
        gateway does it.
        """
        minimum = min(self.min_tokens_to_generate, self.tokens_to_generate)
        end_ids = (
            id_
            for text in self.end_strings
            if not minimum and (id_ := tokenizer.id_of(text)) is not None
            if tokenizer.token_text(id_) == text
        )
        seed = self.random_seed
        sampling: dict[str, Any] = {"temperature": 0.0}
        if not self.greedy:
            sampling = {
                "temperature": self.temperature,
                "top_k": int(self.top_k) or None,
                "top_p": self.top_p or None,
                "repetition_penalty": self.repetition_penalty,
                "seed": None if seed is None else (seed + number) % (MAX_SEED + 1),
            }
        return Generation(
            max_tokens=self.tokens_to_generate,
            min_tokens=minimum or None,
            end_id=tokenizer.id_of(END_OF_TEXT),
            stop_token_ids=tuple(end_ids),
            return_log_probs=self.compute_logprob or None,
            **sampling,
        )


def parse_generate_request(body: object) -> GenerateRequest:
    """Return the request. Raises `HttpError` with NeMo's message for the first wrong key."""
    try:
        request = GenerateRequest.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "missing" or not first["loc"]:
            message = "sentences is missing: send a JSON object with a list of strings"
        else:
            message = str(GenerateRequest.model_fields[str(first["loc"][0])].description)
        raise bad_request(message) from error
    if request.all_probs:
        raise bad_request(
            "all_probs is not served: the log-probabilities of one token are a megabyte here; "
            "compute_logprob returns those of the tokens themselves"
        )
    texts = request.end_strings
    if len(texts) > MAX_END_STRINGS or max(map(len, texts), default=0) > MAX_END_STRING_CHARACTERS:
        raise bad_request(
            f"at most {MAX_END_STRINGS} end_strings of {MAX_END_STRING_CHARACTERS} characters"
        )
    return request
