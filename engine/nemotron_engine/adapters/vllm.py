"""The adapter of the vLLM lane: vLLM's engine, stepped in this process.

vLLM starts a process for each further rank itself. Text never reaches it: the tokenizer is loaded
all the same, because without one vLLM refuses guides, ignores bad words silently, and does not
check token ids, of which a wrong one ends the engine for everybody (seen in vLLM 0.32).
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nemotron_core.engine_settings import VllmEngineSettings
from nemotron_core.errors import ErrorKind, NemotronError
from nemotron_engine.adapters.vllm_engine import LIBRARY, MAX_LOG_PROBS, load_engine, worker_ids
from nemotron_engine.adapters.vllm_loras import VllmLoras
from nemotron_engine.protocol import FEATURES, GUIDE_TYPES, Capabilities, Chunk, Request

MAX_TEMPERATURE = 2.0
"""vLLM's limit."""
FINISH_REASONS = {"stop": "stop", "length": "length"}
WITHOUT = ["temperature", "bias"]
"""Fields of requests that do not go with a draft. vLLM refuses a bias (`_validate_spec_decode`,
sampling_params.py). In vLLM 0.32 on a CPU, samples with another model as the draft had another
distribution than without, and a `top_k` ended the engine for everybody."""
GUIDE_FIELDS = {"json_schema": "json", "ebnf_grammar": "grammar"}
"""Names that vLLM has for a guide; the others are the same."""


class VllmAdapter:
    """See `Adapter`. vLLM computes in `step`, all requests together, so it is stepped.

    Raises `NemotronError` if the folder is no engine of this lane, or cannot be loaded.
    """

    wake_file = None

    def __init__(self, folder: Path) -> None:
        self.settings = VllmEngineSettings.read(folder)
        draft = self.settings.draft
        self.capabilities = Capabilities(
            features=[name for name in FEATURES if name != "lora" or self.settings.lora],
            guide_types=list(GUIDE_TYPES),
            max_log_probs=MAX_LOG_PROBS,
            max_temperature=MAX_TEMPERATURE,
            draft_tokens=draft.tokens if draft else 0,
            without=WITHOUT if draft else [],
        )
        self._engine = load_engine(folder, self.settings)
        self.loras = (
            VllmLoras(self._engine, folder, self.settings.lora) if self.settings.lora else None
        )
        self._api: Any = importlib.import_module(LIBRARY)
        self._sampling: Any = importlib.import_module(f"{LIBRARY}.sampling_params")
        errors = importlib.import_module(f"{LIBRARY}.exceptions")
        self._refusals = (TypeError, ValueError, getattr(errors, "VLLMClientError", ValueError))
        self.library = f"vllm {self._api.__version__}"
        self._requests: dict[str, Request] = {}

    def ask(self, request: Request) -> None:
        """See `Adapter`. vLLM compiles the guide here, and refuses one that is wrong."""
        name = request.key.hex()
        prompt = {"prompt_token_ids": request.input_ids}
        try:
            params = self._params(request)
            lora = self.loras.request(request.lora) if self.loras and request.lora else None
            self._engine.add_request(
                name, prompt, params, lora_request=lora, priority=request.priority
            )
        except self._refusals as error:
            raise NemotronError(f"the engine refuses the request: {error}") from error
        self._requests[name] = request

    def cancel(self, key: bytes) -> None:
        """See `Adapter`."""
        if self._requests.pop(key.hex(), None) is not None:
            self._engine.abort_request([key.hex()])

    def collect(self) -> Iterable[Chunk]:
        """See `Adapter`."""
        chunks = []
        for output in self._engine.step():
            if (request := self._requests.get(output.request_id)) is not None:
                chunks.append(self._chunk(request, output))
                if output.finished:
                    del self._requests[output.request_id]
        return chunks

    def kv_cache_usage(self) -> float | None:
        """See `Adapter`."""
        return float(self._engine.engine_core.engine_core.scheduler.kv_cache_manager.usage)

    def workers(self) -> list[int]:
        """See `Adapter`."""
        return worker_ids(self._engine.model_executor)

    def close(self) -> None:
        """See `Adapter`."""
        self._engine.engine_core.shutdown()

    def _chunk(self, request: Request, output: Any) -> Chunk:
        """Return what a step has added to an answer."""
        return _chunk(request, output)

    def _params(self, request: Request) -> Any:
        fields: dict[str, Any] = {
            "max_tokens": request.max_tokens,
            "min_tokens": request.min_tokens,
            "stop_token_ids": request.end_ids or None,
            "ignore_eos": True,  # the end tokens are named
            "repetition_penalty": request.repetition_penalty,
            "presence_penalty": request.presence_penalty,
            "frequency_penalty": request.frequency_penalty,
            "logit_bias": request.bias or None,
            "detokenize": False,
            "output_kind": self._sampling.RequestOutputKind.DELTA,
            "temperature": request.temperature,
        }
        if request.temperature > 0:
            fields |= {
                "top_k": request.top_k,
                "top_p": request.top_p or 1.0,
                "seed": request.seed,
            }
        if request.log_probs or request.top_log_probs:
            fields["logprobs"] = request.top_log_probs
        if request.prompt_log_probs is not None:
            fields["prompt_logprobs"] = request.prompt_log_probs
        if request.guide_type:
            fields["structured_outputs"] = self._guide(request.guide_type, request.guide)
        params = self._api.SamplingParams(**fields)
        if request.bad_sequences:
            # Only strings are public. They would have to survive vLLM's tokenizer.
            params._bad_words_token_ids = request.bad_sequences
        return params

    def _guide(self, guide_type: str, guide: str) -> Any:
        params = self._sampling.StructuredOutputsParams
        if guide_type == "json":
            return params(json_object=True)
        return params(**{GUIDE_FIELDS.get(guide_type, guide_type): guide})


def _chunk(request: Request, output: Any) -> Chunk:
    """Return what a step has added to an answer."""
    (answer,) = output.outputs
    ids = list(answer.token_ids)
    chunk = Chunk(request.key, ids)
    if output.finished:
        if answer.finish_reason not in FINISH_REASONS:  # as for a guide that no token fits
            reason = f"vLLM has ended the request: {answer.finish_reason}"
            return Chunk.of_error(request.key, NemotronError(reason, kind=ErrorKind.FAILED))
        chunk.finish_reason = FINISH_REASONS[answer.finish_reason]
    if request.log_probs or request.top_log_probs:
        tables = answer.logprobs or []
        if len(tables) != len(ids):
            raise RuntimeError(f"{len(ids)} tokens have {len(tables)} log-probabilities")
        if request.log_probs:
            chunk.log_probs = [
                float(table[id_].logprob) for table, id_ in zip(tables, ids, strict=True)
            ]
        if request.top_log_probs:
            chunk.top_log_probs = [_best(table, request.top_log_probs) for table in tables]
    if request.prompt_log_probs is not None and output.prompt_logprobs:
        chunk.prompt_log_probs = [
            _own_and_best(table, id_, request.prompt_log_probs)
            for table, id_ in zip(output.prompt_logprobs, request.input_ids, strict=True)
        ]
    return chunk


def _best(table: dict[int, Any], count: int) -> list[tuple[int, float]]:
    """Return the `count` most probable tokens of vLLM's table, the best first.

    The table has the token that was taken too, whatever its rank.
    """
    ranked = sorted(table.items(), key=lambda entry: entry[1].rank)
    return [(id_, float(entry.logprob)) for id_, entry in ranked[:count]]


def _own_and_best(table: dict[int, Any] | None, id_: int, count: int) -> list[tuple[int, float]]:
    if table is None:  # nothing stands before the first token
        return []
    return [(id_, float(table[id_].logprob)), *_best(table, count)]
