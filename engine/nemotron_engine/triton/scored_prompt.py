"""What is scored, as tokens: the turns of conversations, and the sentences of NeMo's clients."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

from nemotron_core.errors import NemotronError
from nemotron_core.text import check_text, parse_messages
from nemotron_core.text.reward_prompt import scored_turns
from nemotron_engine.client import new_key
from nemotron_engine.protocol import Hello, Request
from nemotron_engine.request import SHORTEN, check_scored_length
from nemotron_engine.triton.builder import Builder
from nemotron_engine.triton.prompts import AnswerSettings, Prompts, RequestSettings
from nemotron_engine.triton.tensors import Inputs, Options


class ScoredPromptBuilder(Builder):
    """Makes the sequences of a request for scores: one or more for each row of its batch."""

    remedy = SHORTEN

    def prompts(self, inputs: Inputs, options: Options, request_id: str, hello: Hello) -> Prompts:
        """See `Builder`.

        The first sequence that is too long ends it: the ones of later turns are longer still.
        """
        requests, answers = [], []
        for row in range(len(inputs)):
            for index, ids in enumerate(self.sequences(inputs, row)):
                check_scored_length(len(ids), hello.max_seq_len)
                requests.append(
                    Request(
                        key=new_key(),
                        input_ids=ids,
                        max_tokens=0,
                        scores=True,
                        seconds=options.seconds,
                        request_id=request_id,
                    )
                )
                answers.append(
                    AnswerSettings(num_input_tokens=len(ids), batch_index=row, sequence_index=index)
                )
        return Prompts(requests=requests, answers=answers, settings=RequestSettings())

    @abstractmethod
    def sequences(self, inputs: Inputs, row: int) -> Iterator[list[int]]:
        """Yield the tokens of each sequence of a row."""


class ConversationBuilder(ScoredPromptBuilder):
    """The turns of conversations, in the format with which the model was trained."""

    text_inputs = ("messages",)

    def sequences(self, inputs: Inputs, row: int) -> Iterator[list[int]]:
        """See `ScoredPromptBuilder`."""
        messages = parse_messages(inputs.required(row, "messages"))
        turns = inputs.value(row, "turns", default="last")
        if turns == "all" and len(inputs) > 1:
            raise NemotronError(
                "all turns of one conversation are scored in a request",
                where="turns",
                remedy="send a request for each conversation, or ask for the last turn",
            )
        for conversation in scored_turns(messages, turns):
            yield self.tokenizer.encode_scored(conversation)


class SentenceBuilder(ScoredPromptBuilder):
    """Raw texts or their tokens, as the clients of NeMo's reward server send them.

    Control pieces in a text are control pieces, and the scored token is the last one.
    """

    text_inputs = ("sentences",)

    def sequences(self, inputs: Inputs, row: int) -> Iterator[list[int]]:
        """See `ScoredPromptBuilder`."""
        sentences, tokens = inputs.values(row, "sentences"), inputs.values(row, "tokens")
        if (sentences is None) == (tokens is None):
            raise NemotronError("send sentences or tokens", where="sentences")
        if sentences is None:
            assert tokens is not None
            yield tokens[: self._length(inputs, row, tokens)]
            return
        if len(sentences) != 1:
            raise NemotronError(
                f"a row has {len(sentences)} sentences",
                where="sentences",
                remedy="send each sentence as a row of its own, [batch, 1]",
            )
        check_text(sentences[0], where="sentences")
        yield self.tokenizer.encode(sentences[0])

    def _length(self, inputs: Inputs, row: int, tokens: list[Any]) -> int:
        """Return the number of a row's tokens without its padding."""
        length = int(inputs.value(row, "sequence_lengths", default=len(tokens)))
        if not 0 < length <= len(tokens):
            raise NemotronError(
                f"a sequence of {len(tokens)} tokens has the length {length}",
                where="sequence_lengths",
            )
        return length
