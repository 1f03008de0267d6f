"""Drafts on the CPU lane: what openvino-genai needs so that answers stay the same.

Seen in openvino-genai 2026.4.1, each against the same requests without a draft:

- with a draft, other tokens came where a prompt was computed in pieces beside other requests, and
  where the KV cache was full, so that a request had to give up its place (n-grams gave the token
  -1 there). So a request waits here until nothing of that can happen.
- sampled tokens of a draft are accepted by a rule that does not keep the distribution. With
  `max_ngram_size` in a request's settings, a token is accepted if it is the one that is drawn
  without a draft: the answer of a seed stays the same.
- `min_new_tokens` counts wrongly beyond the first token, so it is refused.
- a draft must have a tokenizer that encodes one text as the engine's does. Here each text is the
  token 0; the vocabularies themselves are compared by their hashes.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nemotron_core.engine_settings import CpuEngineSettings, DraftSettings
from nemotron_core.openvino import openvino, openvino_genai, opset13
from nemotron_engine.adapters.draft import NGRAM_TOKENS, draft_engine
from nemotron_engine.protocol import Request

KV_BLOCK_TOKENS = 32
"""Number of tokens in one block of OpenVINO's paged KV cache on a CPU."""
WITHOUT = ["guide_type", "min_tokens"]
"""Fields of requests that do not go with a draft."""
TOKENIZER_NAME = "openvino_tokenizer.xml"
"""File name that openvino-genai expects."""
DEVICE = "CPU"


def load_drafted(
    folder: Path, settings: CpuEngineSettings, scheduler: Any, properties: dict[str, Any]
) -> Any:
    """Load the pipeline of an engine with a draft.

    Raises `NemotronError` if the draft does not fit, and `RuntimeError` if loading fails.
    """
    if (draft := draft_engine(folder, settings)) is None:
        properties = {**properties, "prompt_lookup": True}
        return openvino_genai.ContinuousBatchingPipeline(folder, scheduler, DEVICE, properties)
    with tempfile.TemporaryDirectory(prefix="nemotron-draft-") as scratch:
        model = Path(scratch)
        for name in (CpuEngineSettings.GRAPH_NAME, CpuEngineSettings.WEIGHTS_NAME):
            (model / name).symlink_to((draft / name).resolve())
        openvino.save_model(_tokenizer(), model / TOKENIZER_NAME, compress_to_fp16=False)
        return openvino_genai.ContinuousBatchingPipeline(
            folder,
            openvino_genai.Tokenizer(model),
            scheduler,
            DEVICE,
            draft_model=openvino_genai.draft_model(
                model, DEVICE, scheduler_config=scheduler, **properties
            ),
            **properties,
        )


def _tokenizer() -> Any:
    """Return the `openvino.Model` that makes the token 0 of each text: [B] → two of [B, 1] i64."""
    texts = opset13.parameter(openvino.PartialShape([-1]), openvino.Type.string)
    texts.output(0).set_names({"string_input"})
    shape = opset13.concat([opset13.shape_of(texts, "i64"), np.array([1], np.int64)], 0)
    results = []
    for name, number in (("input_ids", 0), ("attention_mask", 1)):
        result = opset13.result(opset13.broadcast(np.int64(number), shape))
        result.output(0).set_names({name})
        results.append(result)
    return openvino.Model(results, [texts], "tokenizer")


def set_draft(config: Any, draft: DraftSettings) -> None:
    """Let a request with the library's settings `config` use the draft."""
    config.num_assistant_tokens = draft.tokens
    config.max_ngram_size = NGRAM_TOKENS


def spare_blocks(draft: DraftSettings | None) -> int:
    """Return the blocks of the KV cache that one request needs for the proposals of a draft."""
    return 0 if draft is None else 1 + -(-(draft.tokens + 1) // KV_BLOCK_TOKENS)


@dataclass(slots=True)
class _Place:
    """What a request takes of the engine."""

    blocks: int
    """Blocks of the KV cache for its whole answer."""
    tokens: int
    """Tokens in its next step: its whole prompt at first."""


class Admission:
    """Lets requests begin: with a draft, when the pipeline has room for their whole answers.

    The only request may always begin, and be computed in pieces: nothing runs beside it. Without a
    draft every request may, because the pipeline makes room itself.
    """

    def __init__(self, settings: CpuEngineSettings, blocks: int) -> None:
        """Admit requests to a pipeline with so many blocks in its KV cache."""
        self._max_requests = settings.max_batch_size
        self._max_tokens = settings.max_num_tokens
        self._blocks = blocks
        self._draft = settings.draft
        self._waiting: deque[Request] = deque()
        self._places: dict[bytes, _Place] = {}
        self._cancelled: set[bytes] = set()
        """Requests that the pipeline frees in its next step."""

    def ask(self, request: Request) -> None:
        """Let a request wait."""
        self._waiting.append(request)

    def cancel(self, key: bytes) -> None:
        """Forget a request that waits, or free its place after the next step."""
        if key in self._places:
            self._cancelled.add(key)
        else:
            self._waiting = deque(request for request in self._waiting if request.key != key)

    def begin(self) -> Iterator[Request]:
        """Yield the requests that may begin with the next step, in the order of their arrival."""
        while self._waiting and self._has_room(place := self._place(self._waiting[0])):
            request = self._waiting.popleft()
            self._places[request.key] = place
            yield request

    def stepped(self) -> None:
        """Free what was cancelled before the step that has ended."""
        for key in self._cancelled:
            self._places.pop(key, None)
        self._cancelled.clear()

    def generated(self, key: bytes, *, is_whole: bool) -> None:
        """Note that a request has got tokens, or its last ones."""
        if is_whole:
            self._places.pop(key, None)
        elif self._draft is not None and key in self._places:
            self._places[key].tokens = 1 + self._draft.tokens

    def _place(self, request: Request) -> _Place:
        prompt = len(request.input_ids)
        blocks = -(-(prompt + request.max_tokens) // KV_BLOCK_TOKENS)
        return _Place(blocks + spare_blocks(self._draft), prompt)

    def _has_room(self, place: _Place) -> bool:
        running = self._places.values()
        return not (running and self._draft) or (
            len(running) < self._max_requests
            and sum(other.blocks for other in running) + place.blocks <= self._blocks
            and sum(other.tokens for other in running) + place.tokens <= self._max_tokens
        )
