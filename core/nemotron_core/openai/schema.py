"""OpenAI's requests as this model can serve them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from nemotron_core.generation import Generation
from nemotron_core.openai.errors import bad_request
from nemotron_core.openai.generation_request import MAX_INT, MAX_TOP, GenerationRequest
from nemotron_core.openai.keys import NO_TOOLS, ListOf, neutral_only, no_effect, taken
from nemotron_core.openai.messages import Message

ALIASES = ("nvidia/nemotron-4-340b-instruct",)
"""Other names of the model, which people's programs have."""
ONE_TEMPLATE = "the model has one chat template"
TEXT_ONLY = "the model makes and reads text only"


class ChatRequest(GenerationRequest):
    """Body of `POST /v1/chat/completions`."""

    messages: ListOf[Message] = taken("in any order, see below", ..., min_length=1)
    max_completion_tokens: int | None = taken("the newer name of `max_tokens`", ge=0, le=MAX_INT)
    logprobs: bool | None = taken()
    top_logprobs: int | None = taken("", ge=0, le=MAX_TOP)
    add_generation_prompt: bool | None = taken("if false, the prompt ends with the last message")
    continue_final_message: bool | None = taken("the answer goes on with the assistant's message")

    service_tier: Any = no_effect("there is one")
    parallel_tool_calls: Any = no_effect()
    safety_identifier: Any = no_effect()
    prompt_cache_key: Any = no_effect()
    prompt_cache_retention: Any = no_effect()
    prediction: Any = no_effect()

    tools: Any = neutral_only(NO_TOOLS, [])
    tool_choice: Any = neutral_only(NO_TOOLS, "none", "auto")
    functions: Any = neutral_only(NO_TOOLS, [])
    function_call: Any = neutral_only(NO_TOOLS, "none", "auto")
    modalities: Any = neutral_only(TEXT_ONLY, ["text"])
    audio: Any = neutral_only(TEXT_ONLY)
    reasoning_effort: Any = neutral_only("this model does not reason before it answers", "none")
    include_reasoning: Any = neutral_only(
        "this model does not reason before it answers", False, True
    )
    verbosity: Any = neutral_only("say it in a message", "medium")
    web_search_options: Any = neutral_only("this model cannot search")
    chat_template: Any = neutral_only(ONE_TEMPLATE)
    chat_template_kwargs: Any = neutral_only(
        ONE_TEMPLATE, {}, {"enable_thinking": False}, {"thinking": False}
    )
    documents: Any = neutral_only("put them into a message", [])
    echo: Any = neutral_only("only completions can be echoed", False)

    @property
    def requested_tokens(self) -> int | None:
        """Number of tokens to generate, or `None` if the request leaves it out."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def top(self) -> int | None:
        """See `GenerationRequest`."""
        return self.top_logprobs or 0 if self.logprobs else None

    def check(self) -> None:
        """See `GenerationRequest`."""
        super().check()
        if self.top_logprobs and not self.logprobs:
            raise bad_request("top_logprobs needs logprobs: true", "top_logprobs")
        if self.continue_final_message and self.add_generation_prompt:
            raise bad_request(
                "continue_final_message and add_generation_prompt do not go together",
                "continue_final_message",
            )

    def generation(self, max_tokens: int) -> Generation:
        """See `GenerationRequest`."""
        return replace(
            super().generation(max_tokens),
            add_generation_prompt=self.add_generation_prompt,
            continue_final_message=self.continue_final_message,
        )


class CompletionRequest(GenerationRequest):
    """Body of `POST /v1/completions`."""

    prompt: str | ListOf[str] | ListOf[int] | ListOf[ListOf[int]] = taken("", ...)
    echo: bool | None = taken("with `logprobs` also the prompt's log-probabilities")
    logprobs: int | None = taken("", ge=0, le=MAX_TOP)

    suffix: Any = neutral_only("this model does not fill gaps", "")
    prompt_embeds: Any = neutral_only("prompts are texts or token ids")

    @property
    def top(self) -> int | None:
        """See `GenerationRequest`."""
        return self.logprobs

    @property
    def prompt_top(self) -> int | None:
        """See `GenerationRequest`."""
        if self.echo and self.logprobs is not None:
            return max(self.logprobs, self.prompt_logprobs or 0)
        return self.prompt_logprobs

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, each as text or as token ids."""
        prompt = self.prompt
        is_single = isinstance(prompt, str) or (prompt and isinstance(prompt[0], int))
        return cast("list[str | list[int]]", [prompt] if is_single else prompt)

    def check(self) -> None:
        """See `GenerationRequest`."""
        super().check()
        if not self.prompts:
            raise bad_request("there is no prompt", "prompt")
