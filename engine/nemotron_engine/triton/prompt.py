"""A request's prompts as tokens, with every check that needs no engine."""

from __future__ import annotations

from typing import Any

from nemotron_core.errors import NemotronError
from nemotron_core.text import (
    Message,
    StopStrings,
    Tokenizer,
    check_text,
    parse_messages,
    render_prompt,
)
from nemotron_engine.protocol import Hello, Request
from nemotron_engine.triton.builder import Builder
from nemotron_engine.triton.fields import (
    alternatives,
    common_fields,
    end_ids_of,
    request_settings,
    sampling,
    sequence_count,
    spellings,
)
from nemotron_engine.triton.prompts import AnswerSettings, Prompts
from nemotron_engine.triton.tensors import Inputs, Options

PROMPTS = ("text_input", "messages", "input_token_ids")
"""The inputs that can hold the prompt; each row of a request has exactly one of them."""


class PromptBuilder(Builder):
    """Makes prompts with the chat template, the tokenizer and the limits of one model."""

    text_inputs = ("text_input", "messages")
    remedy = "shorten the prompt"

    def __init__(self, tokenizer: Tokenizer, *, clamps: bool) -> None:
        super().__init__(tokenizer)
        self._clamps = clamps

    def prompts(self, inputs: Inputs, options: Options, request_id: str, hello: Hello) -> Prompts:
        """See `Builder`."""
        prompts = [
            (
                *self._prompt(inputs, row, options, request_id, hello),
                sequence_count(inputs, row),
            )
            for row in range(len(inputs))
        ]
        stream = inputs.value(0, "stream", default=False)
        return Prompts.of_rows(prompts, request_settings(inputs, options, stream=stream))

    def _prompt(
        self, inputs: Inputs, row: int, options: Options, request_id: str, hello: Hello
    ) -> tuple[Request, AnswerSettings]:
        ids, messages = self._encode(inputs, row, hello)
        # Some clients send one empty string for "none".
        stop_strings = [text for text in inputs.values(row, "stop_words") or () if text]
        StopStrings(stop_strings)  # raises if a stop string can never match
        end_ids = end_ids_of(inputs, row, self.tokenizer.end_ids)
        request = Request(
            **common_fields(inputs, row, options, request_id),
            input_ids=ids,
            max_tokens=self._max_tokens(
                len(ids), inputs.required(row, "max_tokens"), hello.max_seq_len
            ),
            end_ids=end_ids,
            **sampling(inputs, row, "top_k", "top_p"),
            **alternatives(inputs, row),
            bad_sequences=self._bad_sequences(inputs, row),
            bias=self._bias(inputs, row),
        )
        prefix = ""
        if not inputs.value(row, "exclude_input_in_output", default=True):
            prefix = (
                render_prompt(
                    messages, chat_format=self.tokenizer.chat_format, **_ending(inputs, row)
                )
                if messages
                else self.tokenizer.decode(ids, show_control=True)
            )
        return request, AnswerSettings(
            chat=messages is not None and self.tokenizer.chat_format.closing == "\n",
            end_ids=end_ids,
            stop_strings=stop_strings,
            prefix=prefix,
            num_input_tokens=len(ids),
            batch_index=row,
        )

    def _encode(
        self, inputs: Inputs, row: int, hello: Hello
    ) -> tuple[list[int], list[Message] | None]:
        """Return the prompt's token ids, and its messages if it is a conversation."""
        prompts = {name: inputs.values(row, name) for name in PROMPTS}
        names = [name for name, prompt in prompts.items() if prompt is not None]
        if len(names) != 1:
            raise NemotronError(
                f"send exactly one of {', '.join(PROMPTS)}",
                where=" and ".join(names) or PROMPTS[0],
                remedy="text_input is a raw prompt, messages go through the chat template, "
                "input_token_ids are the raw prompt's tokens",
            )
        if (ids := prompts["input_token_ids"]) is not None:
            if bad := [id_ for id_ in ids if not 0 <= id_ < hello.vocab_size]:
                raise NemotronError(
                    f"token id {bad[0]} is outside the vocabulary of {hello.vocab_size}",
                    where="input_token_ids",
                )
            return ids, None
        if prompts["messages"] is not None:
            messages = parse_messages(inputs.value(row, "messages"))
            return self.tokenizer.encode_chat(messages, **_ending(inputs, row)), messages
        text = inputs.value(row, "text_input")
        check_text(text, where="text_input")
        return self.tokenizer.encode(text), None

    def _max_tokens(self, prompt_length: int, max_tokens: int, max_seq_len: int) -> int:
        """Return the limit for the answer's tokens: `max_tokens`, or the room if that clamps."""
        if max_tokens < 1:
            raise NemotronError(f"max_tokens is {max_tokens}", remedy="ask for 1 or more")
        if not prompt_length:
            raise NemotronError("the prompt is empty", where="text_input")
        room = max_seq_len - prompt_length
        if max_tokens <= room:
            return max_tokens
        if self._clamps and room > 0:
            return room
        raise NemotronError(
            f"{prompt_length} prompt tokens and max_tokens {max_tokens} are more than the "
            f"{max_seq_len} this model holds",
            remedy=f"ask for at most {room}" if room > 0 else "shorten the prompt",
        )

    def _bad_sequences(self, inputs: Inputs, row: int) -> list[list[int]]:
        words = [word for word in inputs.values(row, "bad_words") or () if word]
        return [ids for word in words for ids in spellings(self.tokenizer, word)]

    def _bias(self, inputs: Inputs, row: int) -> dict[int, float]:
        words = [word for word in inputs.values(row, "embedding_bias_words") or () if word]
        weights = inputs.values(row, "embedding_bias_weights") or []
        if len(words) != len(weights) and (words or any(weights)):
            raise NemotronError(
                f"{len(words)} embedding_bias_words have {len(weights)} weights",
                where="embedding_bias_weights",
                remedy="send one for each word",
            )
        bias: dict[int, float] = {}
        for word, weight in zip(words, weights, strict=False):
            for id_ in {id_ for ids in spellings(self.tokenizer, word) for id_ in ids}:
                bias[id_] = bias.get(id_, 0.0) + weight
        ids = inputs.values(row, "bias_token_ids") or []
        values = inputs.values(row, "bias_values") or []
        if len(ids) != len(values) and (ids or any(values)):
            raise NemotronError(
                f"{len(ids)} bias_token_ids have {len(values)} values",
                where="bias_values",
                remedy="send one for each token",
            )
        for id_, value in zip(ids, values, strict=False):
            bias[id_] = bias.get(id_, 0.0) + value
        return bias


def _ending(inputs: Inputs, row: int) -> dict[str, Any]:
    """Return how the prompt of a conversation ends, as options of `render_prompt`."""
    return {
        "answer_follows": inputs.value(row, "add_generation_prompt", default=True),
        "is_continued": inputs.value(row, "continue_final_message", default=False),
    }
