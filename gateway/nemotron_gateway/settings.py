"""Everything that can be set about a gateway, in one typed YAML."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from nemotron_core.errors import NemotronError

KEYS_VARIABLE = "NEMOTRON_API_KEYS"
KEYS_FILE_VARIABLE = "NEMOTRON_API_KEYS_FILE"
PORT = 1424
"""The model card's."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Limits(_Strict):
    """What one request may ask for, and how many may be here at once."""

    body_bytes: PositiveInt = 8 << 20
    prompts: PositiveInt = 128
    """Prompts (or sentences) in one request; NeMo's own limit for sentences."""
    answers: PositiveInt = 64
    """`n`; the engine's own limit."""
    prompt_characters: PositiveInt = 1 << 20
    """Of one prompt; how many tokens fit is the model's to say."""
    max_tokens: PositiveInt = 1 << 20
    """Of one answer."""
    requests: PositiveInt = 512
    """Prompts at the engine at once, waiting in its queue included; more are refused with 429."""


class Timeouts(_Strict):
    """Seconds."""

    request: PositiveFloat = 3600
    """For one request, waiting included; then 504."""
    body: PositiveFloat = 30
    """Until a request's body has come; then 408."""
    drain: PositiveFloat = 60
    """How long running requests may take to finish after a stop signal."""
    ready: PositiveFloat = 10
    """How long the one token of `/health/ready` may take."""


class GatewaySettings(_Strict):
    """Of `nemotron gateway --settings FILE`; an option on the command line comes first."""

    triton: str = "127.0.0.1:8001"
    """host:port of its gRPC."""
    address: str = "127.0.0.1"
    port: int = Field(default=PORT, ge=0, le=65535)
    model: str = "nemotron-4-340b-instruct"
    """Its name in OpenAI's API."""
    tokenizer: Path | None = None
    """`tokenizer.model`; without it, where Triton has its own, if that is on this machine."""
    api_keys_file: Path | None = None
    """One key a line. Without keys, also in the environment, everybody may ask."""
    default_max_tokens: PositiveInt = 1024
    """Where a request names none; less, if the prompt leaves less room."""
    access_log: bool = True
    log_prompts: bool = False
    """Whole requests in the access log; they may be private."""
    limits: Limits = Limits()
    timeouts: Timeouts = Timeouts()


def load_settings(path: Path | None, given: Mapping[str, Any]) -> GatewaySettings:
    """Settings from a file (None: the defaults), and before them those `given` that are not None.

    A key with a dot is one of a part: `timeouts.request`.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8")) if path else {}
    except OSError as error:
        raise NemotronError(f"cannot read: {error.strerror}", where=path) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise NemotronError(f"not plain YAML: {error}", where=path) from error
    try:
        settings = GatewaySettings.model_validate({} if found is None else found)
        merged = settings.model_dump()
        for name, value in given.items():
            part, _, key = name.rpartition(".")
            if value is not None:
                (merged[part] if part else merged)[key] = value
        return GatewaySettings.model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "file"
        raise NemotronError(f"{key}: {first['msg']}", where=path or "settings") from error


def load_keys(
    settings: GatewaySettings, environment: Mapping[str, str] = os.environ
) -> tuple[str, ...]:
    """The keys that may ask, from the file or the environment; none: everybody may."""
    path = settings.api_keys_file
    if path is None and KEYS_FILE_VARIABLE in environment:
        path = Path(environment[KEYS_FILE_VARIABLE])
    if path is None:
        return _keys(environment.get(KEYS_VARIABLE, ""))
    try:
        keys = _keys(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise NemotronError("cannot read the API keys", where=path) from error
    if not keys:
        # An empty file is more likely a mistake than a wish to let everybody in.
        raise NemotronError("no API keys in the file", where=path, remedy="one key a line")
    return keys


def _keys(text: str) -> tuple[str, ...]:
    return tuple(key for line in text.splitlines() if (key := line.strip()))
