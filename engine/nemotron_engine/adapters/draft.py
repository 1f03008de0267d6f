"""Drafts: what proposes tokens that an engine then checks, several in one step."""

from __future__ import annotations

import hashlib
from pathlib import Path

from nemotron_core.engine_settings import EngineSettings
from nemotron_core.errors import NemotronError
from nemotron_core.model_config import TOKENIZER_NAME

NGRAM_TOKENS = 3
"""Most tokens whose earlier place in the text is looked for, where a draft copies from it."""


def draft_engine(folder: Path, settings: EngineSettings) -> Path | None:
    """Return the folder of the engine that drafts for the one in `folder`, or `None`.

    Raises `NemotronError` if it is not there anymore, or has another vocabulary.
    """
    if settings.draft is None or settings.draft.engine is None:
        return None
    draft = settings.draft.engine
    if _vocabulary(draft) != _vocabulary(folder):
        raise NemotronError(
            "the draft has another vocabulary than the engine",
            where=draft,
            remedy=f"build {folder} again with a draft that has the same tokenizer.model",
        )
    return draft


def _vocabulary(folder: Path) -> str:
    try:
        return hashlib.sha256((folder / TOKENIZER_NAME).read_bytes()).hexdigest()
    except OSError as error:
        raise NemotronError(
            f"no engine with a vocabulary: {error.strerror}",
            where=folder,
            remedy="put the draft's engine there, or build without `draft`",
        ) from error
