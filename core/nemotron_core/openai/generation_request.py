"""The keys that OpenAI's chats and completions share, and the generation that they describe.

Besides OpenAI's own keys there are vLLM's, which many clients send. `null` leaves a key out,
unknown keys are ignored (see `OpenModel.unknown_keys`), and a key whose effect this model cannot
have is refused unless its value asks for nothing.
"""

from __future__ import annotations

import re
from typing import Any, cast

from pydantic import field_validator

from nemotron_core.generation import MAX_SEED, Generation
from nemotron_core.openai.errors import bad_request
from nemotron_core.openai.guides import (
    Guide,
    ResponseFormat,
    StructuredOutputs,
    only_guide,
)
from nemotron_core.openai.keys import (
    ListOf,
    OpenModel,
    neutral_only,
    no_effect,
    taken,
)
from nemotron_core.text.stop import MAX_STOP_LENGTH, MAX_STOP_STRINGS

MAX_INT = 2**31 - 1
TOKEN_ID = re.compile(r"[0-9]{1,10}")
MAX_TOP = 20
"""Largest number of alternatives at a token, as in OpenAI's API."""
NO_BEAMS = "the engines have no beam search"
NO_SPECIAL = "special tokens are never in the text"


class StreamOptions(OpenModel):
    include_usage: bool = taken("the last chunk has the token counts", default=False)
    continuous_usage_stats: bool = taken("every chunk has the token counts so far", default=False)
    include_obfuscation: Any = no_effect("there is none")


class GenerationRequest(OpenModel):
    """The keys that both endpoints for completions have."""

    model: str | None = taken("its name, an alias, or an adapter's name; the model without it")
    max_tokens: int | None = taken("", ge=0, le=MAX_INT)
    temperature: float | None = taken("0 is greedy; 1 without it", ge=0, le=2)
    top_p: float | None = taken("", ge=0, le=1)
    top_k: int | None = taken("0 and -1 mean no limit", ge=-1, le=MAX_INT)
    n: int | None = taken("", ge=1)
    best_of: int | None = taken("must be `n`: answers are not ranked", ge=1)
    seed: int | None = taken("a negative one is taken modulo 2⁶⁴", ge=-(2**63), le=MAX_SEED)
    stop: str | ListOf[str] | None = taken(f"up to {MAX_STOP_STRINGS}; empty ones are ignored")
    stop_token_ids: ListOf[int] | None = taken("tokens that end the answer")
    ignore_eos: bool | None = taken("generate until `max_tokens`")
    min_tokens: int | None = taken("", ge=0)
    presence_penalty: float | None = taken("", ge=-2, le=2)
    frequency_penalty: float | None = taken("", ge=-2, le=2)
    repetition_penalty: float | None = taken("", gt=0, le=1000)
    logit_bias: dict[str, float] | None = taken("by token id, if the engine has `bias`")
    bad_words: ListOf[str] | None = taken("if the engine has `bad_words`")
    stream: bool | None = taken()
    stream_options: StreamOptions | None = taken("without effect unless `stream`")
    response_format: ResponseFormat | None = taken("if the engine has `guides`")
    structured_outputs: StructuredOutputs | None = taken("if the engine has `guides`")
    guided_json: dict[str, Any] | str | None = taken("if the engine has `guides`")
    guided_regex: str | None = taken("if the engine has `guides`")
    guided_choice: ListOf[str] | None = taken("if the engine has `guides`", min_length=1)
    guided_grammar: str | None = taken("in EBNF, if the engine has `guides`")
    prompt_logprobs: int | None = taken(
        "alternatives at each token of the prompt, unless `stream`", ge=0, le=MAX_TOP
    )
    timeout: float | None = taken(
        "seconds for the whole answer, its time in the queue included", gt=0
    )

    user: Any = no_effect()
    metadata: Any = no_effect()
    store: Any = no_effect("nothing is stored")
    request_id: Any = no_effect("send the header X-Request-ID")
    add_special_tokens: Any = no_effect("the tokenizer adds none")
    spaces_between_special_tokens: Any = no_effect(NO_SPECIAL)
    guided_decoding_backend: Any = no_effect("each engine has one")
    cache_salt: Any = no_effect()

    min_p: Any = neutral_only("the engines have no min_p: use top_p", 0)
    typical_p: Any = neutral_only("the engines have no typical_p: use top_p", 1)
    use_beam_search: Any = neutral_only(NO_BEAMS, False)
    length_penalty: Any = neutral_only(NO_BEAMS, 0, 1)
    early_stopping: Any = neutral_only(NO_BEAMS, False)
    include_stop_str_in_output: Any = neutral_only("stop strings are cut off", False)
    skip_special_tokens: Any = neutral_only(NO_SPECIAL, True)
    truncate_prompt_tokens: Any = neutral_only("prompts are never cut: shorten it")
    allowed_token_ids: Any = neutral_only("use a guide")
    logits_processors: Any = neutral_only("no code of clients runs here", [])
    guided_whitespace_pattern: Any = neutral_only("white space is as the engine's library has it")
    return_tokens_as_token_ids: Any = neutral_only("tokens are texts", False)
    return_token_ids: Any = neutral_only("log-probabilities name the tokens", False)
    priority: Any = neutral_only("clients do not choose their place in the queue", 0)

    @field_validator("stop")
    @classmethod
    def _stops(cls, stop: str | list[str] | None) -> str | list[str] | None:
        stops = _as_list(stop)
        if len(stops) > MAX_STOP_STRINGS:
            raise ValueError(f"at most {MAX_STOP_STRINGS} stop strings")
        if any(len(text) > MAX_STOP_LENGTH for text in stops):
            raise ValueError(f"a stop string has at most {MAX_STOP_LENGTH} characters")
        return stop

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _biases(cls, bias: Any) -> Any:
        """Refuse the bias at its first wrong value."""
        for token, value in bias.items() if isinstance(bias, dict) else ():
            if not TOKEN_ID.fullmatch(token):
                raise ValueError(f"{token!r} is no token id")
            if type(value) not in (int, float):
                raise ValueError(f"the bias {value!r} is no number")
            if not -100 <= value <= 100:
                raise ValueError(f"the bias {value} is outside of -100 to 100")
        return bias

    @property
    def requested_tokens(self) -> int | None:
        """Number of tokens to generate, or `None` if the request leaves it out."""
        return self.max_tokens

    @property
    def top(self) -> int | None:
        """Number of alternatives at each token of the answer; `None`: no log-probabilities."""
        raise NotImplementedError

    @property
    def prompt_top(self) -> int | None:
        """The same at each token of the prompt."""
        return self.prompt_logprobs

    @property
    def log_probs(self) -> bool:
        """Whether the answer has log-probabilities."""
        return self.top is not None or self.prompt_top is not None

    @property
    def num_answers(self) -> int:
        """Number of answers to each prompt."""
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def continuous_usage(self) -> bool:
        """Whether each chunk of a stream has the token counts so far."""
        return (
            self.include_usage and cast(StreamOptions, self.stream_options).continuous_usage_stats
        )

    def check(self) -> None:
        """Raise `HttpError` if the keys, each one valid, ask for what cannot be done."""
        self.check_neutral_keys()
        if self.requested_tokens == 0 and self.prompt_top is None:
            raise bad_request(
                "max_tokens: 0 needs prompt_logprobs, or echo and logprobs", "max_tokens"
            )
        if self.stream and self.prompt_logprobs is not None:
            raise bad_request("prompt_logprobs is not for stream: true", "prompt_logprobs")
        if self.best_of not in (None, self.num_answers):
            raise bad_request(
                "best_of other than n is not served: answers are not ranked", "best_of"
            )
        only_guide(self._guides())

    def generation(self, max_tokens: int) -> Generation:
        """Return the generation that this request describes.

        OpenAI's default is to sample, at temperature 1. With `max_tokens` 0, which asks for the
        log-probabilities of the prompt only, one token is generated all the same.
        """
        guide_type, guide = only_guide(self._guides())
        bias = {int(token): value for token, value in (self.logit_bias or {}).items() if value}
        generation = Generation(
            max_tokens=max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=self.top_p,
            top_k=None if self.top_k == -1 else self.top_k,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            min_tokens=self.min_tokens,
            seed=None if self.seed is None else self.seed & MAX_SEED,
            end_id=-1 if self.ignore_eos else None,
            stop_words=tuple(text for text in _as_list(self.stop) if text),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            bad_words=tuple(text for text in self.bad_words or () if text),
            bias_token_ids=tuple(bias),
            bias_values=tuple(bias.values()),
            num_return_sequences=self.num_answers if self.num_answers > 1 else None,
            guided_decoding_guide_type=guide_type,
            guided_decoding_guide=guide,
            return_log_probs=self.log_probs or None,
            num_top_log_probs=self.top or None,
            num_prompt_log_probs=self.prompt_top,
        )
        if max_tokens:
            return generation
        return Generation(
            max_tokens=1,
            temperature=0.0,
            return_log_probs=True,
            num_prompt_log_probs=generation.num_prompt_log_probs,
        )

    def _guides(self) -> list[Guide]:
        guides = self.structured_outputs.guides() if self.structured_outputs else []
        if self.response_format and (guide := self.response_format.guide()):
            guides.append(guide)
        older = {
            "json": self.guided_json,
            "regex": self.guided_regex,
            "choice": self.guided_choice,
            "grammar": self.guided_grammar,
        }
        return guides + StructuredOutputs.model_validate(older).guides()


def _as_list(stop: str | list[str] | None) -> list[str]:
    return [stop] if isinstance(stop, str) else stop or []
