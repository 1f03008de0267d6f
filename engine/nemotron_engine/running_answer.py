"""One running answer: the engine's tokens go in, the outputs of the ensemble come out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from nemotron_core.text import AnswerSettings, AnswerStream, Tokenizer
from nemotron_core.wire import TIMES
from nemotron_engine.inner_request import responses
from nemotron_engine.triton import tensor


@dataclass(frozen=True)
class Step:
    """What the engine has sent for one sequence of a request."""

    sequence: int
    token_ids: list[int]
    finish_reason: str
    """Empty until the last."""
    log_probs: list[float] = field(default_factory=list)
    cum_log_prob: float | None = None
    times: dict[str, int] = field(default_factory=dict)
    """Of `contract.TIMES`, with the last step and if they were asked for."""

    def first(self, count: int) -> Step:
        """Of so many tokens, as if the others had not come yet."""
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
    """The text of one sequence; `stop` is called once, when the engine need not go on."""

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
        self._finished = False
        self._engine_stopped = False
        self._unsent_text = ""
        self._unsent_ids: list[int] = []
        self._unsent_log_probs: list[float] = []
        self._num_tokens = 0

    @property
    def is_finished(self) -> bool:
        return self._finished

    def with_reason(self, step: Step, *, last: bool = False) -> Step:
        """The step with its finish reason, where the engine gives none.

        TensorRT-LLM's C++ backend leaves out the end token and says only that no more comes
        (`last`); a stop word of one token is in its output.
        """
        count = self._num_tokens + len(step.token_ids)
        if step.token_ids and step.token_ids[-1] in self._settings.end_ids:
            return replace(step, finish_reason="stop")
        if count >= self._settings.max_tokens:
            return replace(step, finish_reason="length")
        return replace(step, finish_reason="stop" if last else "")

    def push(self, step: Step) -> list[Any]:
        """The outputs to send now; none while a character is incomplete or the answer is whole."""
        if self._finished:  # tokens that the engine made before it heard of the stop
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
        self._finished = bool(finish_reason)
        if not self._finished and not (self._settings.stream and self._unsent_text):
            return []
        outputs = self._outputs(step, finish_reason)
        self._unsent_text, self._unsent_ids, self._unsent_log_probs = "", [], []
        return outputs

    def _take(self, step: Step) -> Step:
        """Its text becomes part of the answer; a stop string ends the step where it is complete.

        So an answer has the same tokens however many of them came at once.
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
        """Free the engine's slot, once: the text is complete, or nobody wants it."""
        if not self._engine_stopped:
            self._engine_stopped = True
            self._stop()

    def _outputs(self, step: Step, finish_reason: str) -> list[Any]:
        outputs = [
            tensor("text_output", [self._unsent_text], np.object_),
            tensor("output_token_ids", self._unsent_ids, np.int32),
            tensor("finish_reason", [finish_reason], np.object_),
            tensor("stop_reason", [self._text.stop_reason or ""], np.object_),
            tensor("num_input_tokens", [self._settings.num_input_tokens], np.int32),
            tensor("num_output_tokens", [self._num_tokens], np.int32),
            tensor("sequence_index", [step.sequence], np.int32),
        ]
        if step.cum_log_prob is not None:
            outputs.append(tensor("output_log_probs", [self._unsent_log_probs], np.float32))
            outputs.append(tensor("cum_log_probs", [step.cum_log_prob], np.float32))
        if step.times:
            outputs += [tensor(one.name, [step.times[one.name]], np.int64) for one in TIMES]
        return outputs


def stop_engine(name: str) -> None:
    """Ask `tensorrt_llm` to end every request of that id."""
    one = np.ones((1, 1), np.int32)
    stop = pb_utils.InferenceRequest(
        model_name="tensorrt_llm",
        request_id=name,
        requested_output_names=[],
        inputs=[
            pb_utils.Tensor("stop", np.array([[True]])),
            *(
                pb_utils.Tensor(n, one)
                for n in ("input_ids", "input_lengths", "request_output_len")
            ),
        ],
    )
    for _response in responses(stop):
        pass


def read_step(get: Callable[[str], list[Any] | None]) -> Step:
    """A step out of the engine's tensors; `get` gives one's elements, or None."""
    cum_log_probs = get("cum_log_probs")
    (finish_reason,) = get("finish_reason") or [""]
    last = bool(finish_reason)
    return Step(
        sequence=(get("sequence_index") or [0])[0],
        token_ids=get("output_ids") or [],
        finish_reason=finish_reason,
        log_probs=get("output_log_probs") or [],
        cum_log_prob=cum_log_probs[0] if cum_log_probs else None,
        times={one.name: found[0] for one in TIMES if last and (found := get(one.name))},
    )
