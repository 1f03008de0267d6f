"""The adapter of the CPU lane: openvino-genai's continuous batching."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nemotron_core.engine_settings import CpuEngineSettings
from nemotron_core.errors import ErrorKind, NemotronError
from nemotron_core.openvino import openvino, openvino_genai
from nemotron_engine.adapters.openvino_draft import (
    KV_BLOCK_TOKENS,
    WITHOUT,
    Admission,
    load_drafted,
    set_draft,
    spare_blocks,
)
from nemotron_engine.adapters.openvino_guides import GuideTrials, guide_types, structured_output
from nemotron_engine.adapters.openvino_properties import NOT_LOADED, properties
from nemotron_engine.adapters.openvino_scoring import MAX_LOG_PROBS, Scorer
from nemotron_engine.mapped_file import give_back
from nemotron_engine.protocol import Capabilities, Chunk, Request

PACKED_STEPS = 16
"""Number of steps after which every weight was used, with prompts and with single tokens, and is
therefore packed."""
IDLE_SECONDS = 0.005
"""Time of a step in which there is nothing to compute yet."""
NO_ROOM = "the KV cache has no room for this request"
FINISH_REASONS = {
    openvino_genai.GenerationFinishReason.STOP: "stop",
    openvino_genai.GenerationFinishReason.LENGTH: "length",
}


@dataclass(slots=True)
class _Running:
    """A request that the pipeline works on."""

    request: Request
    handle: Any


class OpenVinoAdapter:
    """See `Adapter`. The library holds Python's lock during a step, so it is stepped.

    Raises `NemotronError` if the folder is no engine of this lane, or cannot be loaded.
    """

    loras = None
    wake_file = None

    def __init__(self, folder: Path) -> None:
        self.settings = CpuEngineSettings.read(folder)
        draft = self.settings.draft
        self.library = f"openvino-genai {openvino_genai.__version__}"
        try:
            self._pipeline = load_pipeline(folder)
        except RuntimeError as error:
            raise NemotronError(str(error), where=folder, remedy=NOT_LOADED) from error
        self._guides = GuideTrials(folder)
        self._scorer = Scorer(folder, self.settings, properties(self.settings))
        types = guide_types(folder)
        self.capabilities = Capabilities(
            features=["prompt_log_probs", "top_log_probs", *(["guides"] if types else [])],
            guide_types=types,
            max_log_probs=MAX_LOG_PROBS,
            max_scored_tokens=1,
            draft_tokens=draft.tokens if draft else 0,
            without=WITHOUT if draft else [],
        )
        self._prefix = self.settings.prefix
        self._admission = Admission(self.settings, kv_blocks(self.settings))
        folders = [folder, *([draft.engine] if draft and draft.engine else [])]
        self._weights = [one / CpuEngineSettings.WEIGHTS_NAME for one in folders]
        self._running: dict[bytes, _Running] = {}
        self._numbers = 0
        self._steps = 0

    def ask(self, request: Request) -> None:
        """See `Adapter`."""
        if self._prefix and request.repetition_penalty != 1:
            raise NemotronError(
                "this engine has no repetition penalty, because virtual tokens stand before each "
                "prompt",
                where="repetition_penalty",
                remedy="leave it out, or use presence_penalty and frequency_penalty",
            )
        if request.prompt_log_probs is not None or request.top_log_probs:
            self._scorer.ask(request)
        elif request.guide_type:
            self._guides.ask(request)
        else:
            self._admission.ask(request)

    def _begin(self, request: Request) -> None:
        self._numbers += 1
        ids = openvino.Tensor(np.array([self._prefix + request.input_ids], np.int64))
        try:
            config = generation_config(request)
            if self.settings.draft is not None:
                set_draft(config, self.settings.draft)
            handle = self._pipeline.add_request(self._numbers, ids, config)
        except RuntimeError as error:
            raise NemotronError(f"the engine refuses the request: {error}") from error
        self._running[request.key] = _Running(request, handle)

    def cancel(self, key: bytes) -> None:
        """See `Adapter`."""
        self._guides.cancel(key)
        self._scorer.cancel(key)
        self._admission.cancel(key)
        if (running := self._running.pop(key, None)) is not None:
            running.handle.stop()

    def collect(self) -> Iterator[Chunk]:
        """See `Adapter`. A pipeline that has failed once fails forever."""
        chunks = []
        for request, error in self._guides.collect():
            if error is None:
                self._admission.ask(request)
            else:
                chunks.append(Chunk.of_error(request.key, error))
        for request in self._admission.begin():
            try:
                self._begin(request)
            except NemotronError as failure:
                self._admission.generated(request.key, is_whole=True)
                chunks.append(Chunk.of_error(request.key, failure))
        if self._pipeline.has_non_finished_requests():
            chunks += self._step()
            return iter(chunks + self._scorer.collect())
        self._admission.stepped()
        if not self._scorer.is_busy:
            wait(self._guides.pending | self._scorer.pending, IDLE_SECONDS, FIRST_COMPLETED)
        return iter(chunks + self._scorer.collect())

    def _step(self) -> list[Chunk]:
        """Compute a step of the pipeline, and return the new tokens."""
        self._pipeline.step()
        self._admission.stepped()
        self._steps += 1
        if self._steps == PACKED_STEPS:  # from now on only embeddings are read from the file
            for path in self._weights:
                give_back(path)
        chunks = []
        for key, running in list(self._running.items()):
            if (chunk := _read(key, running)) is not None:
                chunks.append(chunk)
                if chunk.finish_reason:
                    del self._running[key]
                self._admission.generated(key, is_whole=bool(chunk.finish_reason))
        return chunks

    def kv_cache_usage(self) -> float:
        """See `Adapter`."""
        return float(self._pipeline.get_metrics().cache_usage) / 100  # percent

    def workers(self) -> list[int]:
        """See `Adapter`. The library has threads only."""
        return []

    def close(self) -> None:
        """See `Adapter`."""
        self._guides.close()
        self._scorer.close()


def _read(key: bytes, running: _Running) -> Chunk | None:
    """Return a request's new tokens, or `None` if there are none."""
    chunk = None
    handle = running.handle
    while handle.can_read():
        if not (outputs := handle.read()):  # the request outgrew the whole cache
            return _no_room(key)
        (output,) = outputs.values()
        chunk = chunk or Chunk(key, [], [])
        chunk.token_ids += output.generated_ids
        if running.request.log_probs:
            chunk.log_probs += output.generated_log_probs
        chunk.finish_reason = FINISH_REASONS.get(output.finish_reason, "")
    if chunk is None and handle.get_status() == openvino_genai.GenerationStatus.IGNORED:
        return _no_room(key)
    return chunk


def _no_room(key: bytes) -> Chunk:
    return Chunk.of_error(key, NemotronError(NO_ROOM, kind=ErrorKind.FAILED))


def load_pipeline(folder: Path) -> Any:
    """Load the pipeline of an engine folder.

    Raises `NemotronError` if the folder is not an engine, and `RuntimeError` if loading fails.
    """
    settings = CpuEngineSettings.read(folder)
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.max_num_seqs = settings.max_batch_size
    scheduler.max_num_batched_tokens = settings.max_num_tokens
    scheduler.num_kv_blocks = kv_blocks(settings)
    scheduler.enable_prefix_caching = True
    scheduler.dynamic_split_fuse = True
    if settings.draft is not None:
        return load_drafted(folder, settings, scheduler, properties(settings))
    return openvino_genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", properties(settings))


def kv_blocks(settings: CpuEngineSettings) -> int:
    """Return the number of blocks in an engine's KV cache."""
    return -(-settings.kv_cache_tokens // KV_BLOCK_TOKENS) + spare_blocks(settings.draft)


def generation_config(request: Request) -> Any:
    """Return the library's settings for a request."""
    samples = request.temperature > 0
    config = openvino_genai.GenerationConfig(
        max_new_tokens=request.max_tokens,
        min_new_tokens=request.min_tokens,
        stop_token_ids=set(request.end_ids),
        do_sample=samples,
        logprobs=int(request.log_probs),
        repetition_penalty=request.repetition_penalty,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
    )
    # The library needs an id even if no token ends the answer.
    config.set_eos_token_id(request.end_ids[0] if request.end_ids else 0)
    config.ignore_eos = not request.end_ids
    if samples:
        config.temperature = request.temperature
        config.top_p = request.top_p or 1.0
        if request.top_k:
            config.top_k = request.top_k
        config.rng_seed = request.seed
    if request.guide_type:
        config.structured_output_config = structured_output(request.guide_type, request.guide)
    return config
