"""Log-probabilities of whole prompts on the CPU lane, with alternatives.

OpenVINO GenAI returns the log-probability of the token it has taken, and nothing else. So such a
request runs beside its pipeline, as plain inference of the same graph, whose logits are those of
all positions. This takes the memory of the weights once more, from the first such request on.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nemotron_core.engine_settings import CpuEngineSettings
from nemotron_core.errors import ErrorKind, NemotronError
from nemotron_core.openvino import openvino, opset13
from nemotron_engine.mapped_file import give_back
from nemotron_engine.protocol import Chunk, Request

MAX_LOG_PROBS = 20
"""Number of alternatives that the graph computes at each position."""
LOGITS_BYTES = 128 << 20
"""Limit of the logits of one inference; it holds them about three times."""
SLOWNESS = 4
"""Limit of how many times longer than in the pipeline, whose attention is faster, a token takes."""
NEUTRAL = {
    "temperature": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "min_tokens": 0,
    "guide_type": "",
}
"""Fields that would change which token comes, and the values that do not."""

Entries = list[list[tuple[int, float]]]


@dataclass
class _Prompt:
    """A request, and how much of its prompt is computed."""

    request: Request
    ids: list[int]
    """The virtual tokens, if there are any, and the prompt."""
    count: int = 0
    entries: Entries = field(default_factory=lambda: [[]])
    """The entries of `ids` so far; the first token has none."""


class Scorer:
    """Computes one request at a time, a piece of its prompt after the other.

    Other requests wait for a piece, which takes no longer than the pipeline's longest step.
    """

    def __init__(
        self, folder: Path, settings: CpuEngineSettings, properties: dict[str, Any]
    ) -> None:
        self._folder = folder
        self._prefix = settings.prefix
        self._vocab_size = settings.vocab_size
        self._properties = properties
        tokens = min(settings.max_num_tokens // SLOWNESS, LOGITS_BYTES // (4 * settings.vocab_size))
        self._piece = max(1, tokens)
        self._prompts: dict[bytes, _Prompt] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scoring")
        self._model: Future[Any] | None = None
        """The model's `openvino.InferRequest`."""

    def ask(self, request: Request) -> None:
        """Queue a request, and load the model for the first one.

        Raises `NemotronError` if the request needs more than this engine computes.
        """
        if request.max_tokens > 1:
            raise NemotronError(
                "this engine has alternatives only for prompts and one new token",
                where="max_tokens",
                remedy="ask for max_tokens 1, or for log-probabilities without alternatives",
            )
        for name, neutral in NEUTRAL.items():
            if getattr(request, name) != neutral:
                raise NemotronError(
                    f"this engine has alternatives for greedy decoding only, without {name}",
                    where=name,
                    remedy=f"set it to {neutral!r}",
                )
        self._prompts[request.key] = _Prompt(request, self._prefix + request.input_ids)
        if self._model is None:
            self._model = self._thread.submit(_load, self._folder, self._properties)

    def cancel(self, key: bytes) -> None:
        """Forget a request."""
        self._prompts.pop(key, None)

    @property
    def pending(self) -> set[Future[Any]]:
        """What requests wait for: the model while it loads."""
        return {self._model} if self._prompts and self._model and not self._model.done() else set()

    @property
    def is_busy(self) -> bool:
        """Whether `collect` has something to compute."""
        return bool(self._prompts) and not self.pending

    def collect(self) -> list[Chunk]:
        """Compute a piece of a prompt, and return the answers of requests that have ended."""
        if not self.is_busy:
            return []
        assert self._model is not None
        if (error := self._model.exception()) is not None:
            self._model = None
            failure = NemotronError(f"the model does not load: {error}", kind=ErrorKind.FAILED)
            failed, self._prompts = self._prompts, {}
            return [Chunk.of_error(key, failure) for key in failed]
        key, prompt = next(iter(self._prompts.items()))
        if not prompt.count:
            self._model.result().reset_state()
        chunk = self._compute(self._model.result(), prompt)
        if chunk is None:
            return []
        del self._prompts[key]
        return [chunk]

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _compute(self, model: Any, prompt: _Prompt) -> Chunk | None:
        """Compute the next piece, and return the answer if it was the last."""
        request, start = prompt.request, prompt.count
        end = prompt.count = min(start + self._piece, len(prompt.ids))
        # There are no logits of virtual tokens; their entries are left out in the end.
        targets = [id_ % self._vocab_size for id_ in prompt.ids[start + 1 : end + 1]]
        own, best = _infer(model, prompt.ids[start:end], start, targets)
        count = request.prompt_log_probs
        if count is not None:
            prompt.entries += [
                [(target, log_prob), *entries[:count]]
                for target, log_prob, entries in zip(targets, own, best, strict=False)
            ]
        if end < len(prompt.ids):
            return None
        token, log_prob = best[-1][0]
        return Chunk(
            request.key,
            [token],
            [log_prob] * request.log_probs,
            "stop" if token in request.end_ids else "length",
            top_log_probs=[best[-1][: request.top_log_probs]] if request.top_log_probs else [],
            prompt_log_probs=[]
            if count is None
            else [[], *prompt.entries[len(self._prefix) + 1 :]],
        )


def _infer(
    model: Any, ids: list[int], start: int, targets: list[int]
) -> tuple[list[float], Entries]:
    """Return the log-probability of each target after its token, and the best tokens there.

    `start` is the position of the first token; the tokens before it were computed already.
    """
    count = len(ids)
    result = model.infer(
        {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, start + count), np.int64),
            "position_ids": np.arange(start, start + count, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
            "targets": np.array([targets + [0] * (count - len(targets))], np.int64),
        }
    )
    own, tokens, log_probs = (result[name][0].tolist() for name in ("own", "tokens", "log_probs"))
    return own, [list(zip(*row, strict=True)) for row in zip(tokens, log_probs, strict=True)]


def _load(folder: Path, properties: dict[str, Any]) -> Any:
    """Return the `openvino.InferRequest` of an engine's graph, whose weights are in memory."""
    core = openvino.Core()
    model = core.read_model(folder / CpuEngineSettings.GRAPH_NAME)
    _replace_logits(model)
    request = core.compile_model(model, "CPU", properties).create_infer_request()
    _infer(request, [0, 0], 0, [])
    give_back(folder / CpuEngineSettings.WEIGHTS_NAME)
    return request


def _replace_logits(model: Any) -> None:
    """Let the graph return log-probabilities, in F32 also where it computes in BF16.

    Input: targets [B, T] i64. Outputs: own [B, T], the log-probability of each target; tokens and
    log_probs [B, T, k], the most probable tokens, the best first.
    """
    (result,) = model.get_results()
    logits = result.input_value(0)
    last = np.array([-1], np.int64)
    maximum = opset13.reduce_max(logits, last, keep_dims=True)
    exponentials = opset13.exp(opset13.subtract(logits, maximum))
    total = opset13.add(opset13.log(opset13.reduce_sum(exponentials, last, True)), maximum)
    targets = opset13.parameter(openvino.PartialShape([-1, -1]), openvino.Type.i64)
    targets.output(0).set_names({"targets"})
    own = opset13.gather_elements(logits, opset13.unsqueeze(targets, last), -1)
    count = min(MAX_LOG_PROBS, logits.get_partial_shape()[-1].get_length())
    best = opset13.topk(logits, np.int64(count), -1, "max", "value", "i32")
    outputs = {
        "own": opset13.squeeze(opset13.subtract(own, total), last),
        "tokens": best.output(1),
        "log_probs": opset13.subtract(best.output(0), total),
    }
    for name, output in outputs.items():
        new = opset13.result(output)
        new.output(0).set_names({name})
        model.add_results([new])
    model.add_parameters([targets])
    model.remove_result(result)
