"""The running answer of one sequence: takes the engine's tokens, makes the ensemble's outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from nemotron_core.text import AnswerSettings, AnswerStream, Tokenizer
from nemotron_core.wire import TIME_OUTPUTS
from nemotron_engine.inner_request import responses
from nemotron_engine.triton import tensor


@dataclass(frozen=True)
class Step:
    """The tokens that the engine sent at once for one sequence of a request."""

    sequence: int
    token_ids: list[int]
    finish_reason: str
    """Empty until the last step."""
    log_probs: list[float] = field(default_factory=list)
    cum_log_prob: float | None = None
    times: dict[str, int] = field(default_factory=dict)
    """Nanoseconds by the names of `wire.TIME_OUTPUTS`, with the last step and if requested."""

    def first(self, count: int) -> Step:
        """Return the step with its first `count` tokens only, as if the others had not come yet."""
        cum_log_prob = self.cum_log_prob
        if cum_log_prob is not None:
            cum_log_prob -= sum(self.log_probs[count:])
        return Step(
            self.sequence,
            self.token_ids[:count],
            finish_reason="",
            log_probs=self.log_probs[:count],
            cum_log_prob=cum_log_prob,
        )


class RunningAnswer:
    """The text of one sequence. Calls `stop` once, when the engine need not continue."""

    def __init__(
        self, tokenizer: Tokenizer, settings: AnswerSettings, stop: Callable[[], None]
    ) -> None:
        self._settings = settings
        self._stop = stop
        self._text = AnswerStream(
            tokenizer,
            chat=settings.chat,
            end_ids=settings.end_ids,
            stop_strings=settings.stop_strings,
        )
        self.is_finished = False
        """Whether the last outputs were made."""
        self._engine_stopped = False
        self._unsent_text = ""
        self._unsent_ids: list[int] = []
        self._unsent_log_probs: list[float] = []
        self._num_tokens = 0

    def with_reason(self, step: Step, *, last: bool = False) -> Step:
        """Return the step with a finish reason derived from its tokens.

        TensorRT-LLM's C++ backend gives no reasons. It leaves out the end token and only reports
        that no more tokens come (`last`); a stop word of one token is in its output.
        """
        count = self._num_tokens + len(step.token_ids)
        if step.token_ids and step.token_ids[-1] in self._settings.end_ids:
            return replace(step, finish_reason="stop")
        if count >= self._settings.max_tokens:
            return replace(step, finish_reason="length")
        return replace(step, finish_reason="stop" if last else "")

    def push(self, step: Step) -> list[Any]:
        """Return the outputs to send after this step.

        The list is empty while a character is incomplete, while the client waits for one whole
        response, and after the answer has ended.
        """
        if self.is_finished:  # tokens that the engine generated before it received the stop
            return []
        finish_reason = step.finish_reason
        step = self._take(step)
        self._num_tokens += len(step.token_ids)
        self._unsent_ids += step.token_ids
        self._unsent_log_probs += step.log_probs
        if self._text.stop_reason is not None:
            if not finish_reason:
                self.stop_engine()
            finish_reason = "stop"
        self.is_finished = bool(finish_reason)
        if not self.is_finished and not (self._settings.stream and self._unsent_text):
            return []
        outputs = self._outputs(step, finish_reason)
        self._unsent_text, self._unsent_ids, self._unsent_log_probs = "", [], []
        return outputs

    def _take(self, step: Step) -> Step:
        """Add the step's text to the answer. Return the step, cut where a stop string ends.

        So an answer has the same tokens, however many of them came at once.
        """
        ids = step.token_ids
        if self._settings.stop_strings:
            for count in range(1, len(ids)):
                self._unsent_text += self._text.push(ids[count - 1 : count])
                if self._text.stop_reason is not None:
                    return step.first(count)
            ids = ids[-1:]
        self._unsent_text += self._text.push(ids, step.finish_reason)
        return step

    def stop_engine(self) -> None:
        """Free the engine's slot, once: the text is complete, or its client disconnected."""
        if not self._engine_stopped:
            self._engine_stopped = True
            self._stop()

    def _outputs(self, step: Step, finish_reason: str) -> list[Any]:
        outputs = [
            tensor("text_output", [self._unsent_text]),
            tensor("output_token_ids", self._unsent_ids),
            tensor("finish_reason", [finish_reason]),
            tensor("stop_reason", [self._text.stop_reason or ""]),
            tensor("num_input_tokens", [self._settings.num_input_tokens]),
            tensor("num_output_tokens", [self._num_tokens]),
            tensor("sequence_index", [step.sequence]),
        ]
        if step.cum_log_prob is not None:
            outputs.append(tensor("output_log_probs", [self._unsent_log_probs]))
            outputs.append(tensor("cum_log_probs", [step.cum_log_prob]))
        return outputs + [tensor(name, [time_ns]) for name, time_ns in step.times.items()]


def stop_engine(request_id: str) -> None:
    """Have `tensorrt_llm` end every request with this id."""
    placeholder = np.ones((1, 1), np.int32)
    stop = pb_utils.InferenceRequest(
        model_name="tensorrt_llm",
        request_id=request_id,
        requested_output_names=[],
        inputs=[
            pb_utils.Tensor("stop", np.array([[True]])),
            *(
                pb_utils.Tensor(name, placeholder)
                for name in ("input_ids", "input_lengths", "request_output_len")
            ),
        ],
    )
    for _response in responses(stop):
        pass


def read_step(get: Callable[[str], list[Any] | None]) -> Step:
    """Return a step from the engine's outputs.

    `get` returns the elements of the output of a name, or `None` if it was not sent.
    """
    cum_log_probs = get("cum_log_probs")
    (finish_reason,) = get("finish_reason") or [""]
    times = {output.name: get(output.name) for output in TIME_OUTPUTS} if finish_reason else {}
    return Step(
        sequence=(get("sequence_index") or [0])[0],
        token_ids=get("output_ids") or [],
        finish_reason=finish_reason,
        log_probs=get("output_log_probs") or [],
        cum_log_prob=cum_log_probs[0] if cum_log_probs else None,
        times={name: time_ns[0] for name, time_ns in times.items() if time_ns},
    )
