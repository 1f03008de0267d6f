"""The request of `PUT /generate`, with the checks, defaults and messages of NeMo's server."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nemotron_core.generation import MAX_SEED, Generation
from nemotron_core.openai.errors import bad_request
from nemotron_core.text import Tokenizer

END_OF_TURN = "<extra_id_1>"
END_OF_TEXT = "</s>"
MAX_INT = 2**31 - 1


class GenerateRequest(BaseModel):
    """Body of `PUT /generate`. A key's description is NeMo's message for a value that is wrong.

    Like NeMo, it ignores unknown keys.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    sentences: list[str] = Field(min_length=1, description="sentences must be a list of strings")
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
    top_k: int = Field(0, ge=0, le=MAX_INT, description="top_k must be a positive integer number")
    top_p: float = Field(
        0.9, ge=0, le=1, description="top_p must be a positive number less than or equal to 1.0"
    )
    repetition_penalty: float = Field(
        1.0,
        ge=1,
        lt=math.inf,
        description="repetition_penalty must be a positive number no less than 1.0",
    )
    end_strings: list[str] = Field(
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

    def generation(self, tokenizer: Tokenizer) -> Generation:
        """Return the generation that this request describes.

        NeMo ends an answer at `</s>` only. `<extra_id_1>` ends one if it is an end string.
        """
        ends_turn = END_OF_TURN in self.end_strings
        return Generation(
            max_tokens=self.tokens_to_generate,
            temperature=0.0 if self.greedy else self.temperature,
            top_k=self.top_k or None,
            top_p=self.top_p or None,
            repetition_penalty=self.repetition_penalty,
            min_tokens=min(self.min_tokens_to_generate, self.tokens_to_generate),
            seed=self.random_seed,
            end_id=None if ends_turn else tokenizer.id_of(END_OF_TEXT),
            return_log_probs=self.compute_logprob or None,
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
        raise bad_request("all_probs is not served: the engine reports the chosen tokens' only")
    return request
