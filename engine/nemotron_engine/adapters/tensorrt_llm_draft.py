"""Drafts on the PyTorch lane: the settings of TensorRT-LLM's speculative decoding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nemotron_core.engine_settings import EngineSettings
from nemotron_engine.adapters.draft import NGRAM_TOKENS, draft_engine

WITHOUT = [
    *("temperature", "guide_type", "bias"),
    *("log_probs", "top_log_probs", "prompt_log_probs"),
]
"""Fields of requests that are refused with a draft, because nobody has tried them together here."""


def draft_arguments(api: Any, folder: Path, settings: EngineSettings) -> dict[str, Any]:
    """Return the arguments of the library's `LLM` for a draft, `api` being its `llmapi`.

    Raises `NemotronError` if the draft does not fit.
    """
    if settings.draft is None:
        return {"disable_overlap_scheduler": False}
    fields: dict[str, Any] = {"max_draft_len": settings.draft.tokens}
    if (draft := draft_engine(folder, settings)) is None:
        # Nothing is copied from other people's texts.
        fields |= {"max_matching_ngram_size": NGRAM_TOKENS, "is_public_pool": False}
        config = api.NGramDecodingConfig(**fields)
    else:
        fields["speculative_model_dir"] = str(draft)
        if "allow_advanced_sampling" in api.DraftTargetDecodingConfig.model_fields:
            fields["allow_advanced_sampling"] = True  # without it, 1.3 may always be greedy
        config = api.DraftTargetDecodingConfig(**fields)
    return {"speculative_config": config, "disable_overlap_scheduler": True}
