"""OpenAI's requests as this model can serve them, and the generation that each one describes.

A key of OpenAI's API that this model cannot honour is refused unless its value has no effect. An
unknown key is refused too. `top_k`, `repetition_penalty`, `min_tokens` and `timeout` are extensions
to OpenAI's API.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from nemotron_core.generation import MAX_SEED, Generation
from nemotron_core.openai.errors import bad_request

MAX_STOPS = 16
"""Number of stop strings in one request."""
MAX_STOP_CHARACTERS = 1024


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class StreamOptions(_Strict):
    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class TextPart(_Strict):
    type: Literal["text"]
    text: str


class Message(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    # OpenAI's own library sends these back with an assistant's message.
    refusal: None = None
    audio: None = None
    function_call: None = None
    tool_calls: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None

    def as_dict(self) -> dict[str, str]:
        """Return the message as the chat template takes it: role, and content as one text."""
        text = self.content
        if not isinstance(text, str):
            text = "".join(part.text for part in text)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class JsonSchema(_Strict):
    name: str = ""
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(_Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema belongs to the type json_schema")
        return self


class _Request(_Strict):
    """The keys that both endpoints for completions have."""

    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    n: int | None = Field(None, ge=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    seed: int | None = Field(None, ge=-(2**63), le=MAX_SEED)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    response_format: ResponseFormat | None = None
    top_k: int | None = Field(None, ge=0, le=2**31 - 1)
    repetition_penalty: float | None = Field(None, gt=0, le=1000)
    min_tokens: int | None = Field(None, ge=0)
    timeout: float | None = Field(None, gt=0)
    """Seconds for the whole answer, including its time in the queue."""
    # These have no effect here.
    user: str | None = None
    # These are accepted only with a value that has no effect.
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None

    @field_validator("stop")
    @classmethod
    def _stops(cls, stop: str | list[str] | None) -> str | list[str] | None:
        stops = _as_list(stop)
        if len(stops) > MAX_STOPS:
            raise ValueError(f"at most {MAX_STOPS} stop strings")
        if any(not 0 < len(text) <= MAX_STOP_CHARACTERS for text in stops):
            raise ValueError(f"a stop string has 1 to {MAX_STOP_CHARACTERS} characters")
        return stop

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> _Request:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for stream: true")
        return self

    @property
    def num_answers(self) -> int:
        """Number of answers to each prompt."""
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    def generation(self, max_tokens: int, *, log_probs: bool) -> Generation:
        """Return the generation that this request describes.

        OpenAI's default is to sample, at temperature 1.
        """
        guide_type, guide = self._guide()
        return Generation(
            max_tokens=max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            min_tokens=self.min_tokens,
            seed=None if self.seed is None else self.seed & MAX_SEED,
            stop_words=tuple(_as_list(self.stop)),
            num_return_sequences=self.num_answers if self.num_answers > 1 else None,
            guided_decoding_guide_type=guide_type,
            guided_decoding_guide=guide,
            return_log_probs=log_probs or None,
        )

    def _guide(self) -> tuple[str | None, str | None]:
        """Return the type and the text of the guide for guided decoding."""
        response_format = self.response_format
        if response_format is None or response_format.type == "text":
            return None, None
        if response_format.json_schema is None:
            return "json", None
        return "json_schema", json.dumps(response_format.json_schema.schema_)


def _as_list(stop: str | list[str] | None) -> list[str]:
    return [stop] if isinstance(stop, str) else stop or []


class ChatRequest(_Request):
    """Body of `POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    # These have no effect here.
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: Literal["auto", "default"] | None = None
    parallel_tool_calls: bool | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    # These are accepted only with a value that has no effect.
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    functions: Annotated[list[Any], Field(max_length=0)] | None = None
    modalities: list[Literal["text"]] | None = None

    @property
    def requested_tokens(self) -> int | None:
        """Number of tokens to generate, or `None` if the request leaves it out."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def log_probs(self) -> bool:
        """Whether the answer has log-probabilities."""
        return bool(self.logprobs)

    def check(self) -> None:
        """Raise `HttpError` if the keys, each one valid, ask for what the engine cannot do."""
        if self.top_logprobs and not self.logprobs:
            raise bad_request("top_logprobs needs logprobs: true", "top_logprobs")
        if self.top_logprobs:
            raise bad_request(ONLY_CHOSEN_TOKENS, "top_logprobs")


ONLY_CHOSEN_TOKENS = (
    "the engine reports the log-probability of the chosen token only: leave out top_logprobs, "
    "or ask for 0"
)


class CompletionRequest(_Request):
    """Body of `POST /v1/completions`."""

    prompt: str | list[str] | list[int] | list[list[int]]
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=5)
    # These are accepted only with a value that has no effect.
    best_of: int | None = Field(None, ge=1)
    suffix: Literal[""] | None = None

    @property
    def requested_tokens(self) -> int | None:
        """Number of tokens to generate, or `None` if the request leaves it out."""
        return self.max_tokens

    @property
    def log_probs(self) -> bool:
        """Whether the answer has log-probabilities."""
        return self.logprobs is not None

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, each as text or as token ids."""
        prompt = self.prompt
        is_single = isinstance(prompt, str) or (prompt and isinstance(prompt[0], int))
        return cast("list[str | list[int]]", [prompt] if is_single else prompt)

    def check(self) -> None:
        """Raise `HttpError` if the keys, each one valid, ask for what the engine cannot do."""
        if not self.prompts:
            raise bad_request("there is no prompt", "prompt")
        if self.logprobs:
            raise bad_request(ONLY_CHOSEN_TOKENS.replace("top_logprobs", "logprobs"), "logprobs")
        if self.echo and self.log_probs:
            raise bad_request("the engine reports no log-probabilities of the prompt", "echo")
        if self.best_of not in (None, self.num_answers):
            raise bad_request("best_of other than n is not served", "best_of")
