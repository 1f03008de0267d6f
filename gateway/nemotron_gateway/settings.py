"""The gateway's settings, read from YAML, and its API keys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from nemotron_core.errors import NemotronError
from nemotron_core.family import LARGEST, aliases
from nemotron_core.openai.schema import ALIASES

PORT = 1424
"""Port of the model card's server."""
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Limits(_Strict):
    """Bounds on one request, and on the number of prompts at the engine."""

    body_bytes: PositiveInt = 8 << 20
    """Number of bytes of a request's body."""
    prompts: PositiveInt = 128
    """Number of prompts (or sentences) in one request. The default is NeMo's for sentences."""
    answers: PositiveInt = 64
    """Number of answers to each prompt (`n`). The default is the engine's own limit."""
    prompt_characters: PositiveInt = 1 << 20
    """Number of characters of one prompt. The model itself limits the number of tokens."""
    max_tokens: PositiveInt = 1 << 20
    """Number of tokens of one answer."""
    requests: PositiveInt = 512
    """Number of prompts at the engine, its queue included. More are answered with status 429."""
    tokens: PositiveInt = 4 << 20
    """Number of tokens that all running requests together may still need, prompts included. More
    are answered with status 429."""
    header_bytes: PositiveInt = 32 << 10
    """Number of bytes of a request's line and headers."""
    headers: PositiveInt = 100
    """Number of headers of a request."""
    connections: PositiveInt = 8192
    """Number of open connections of all clients."""
    connections_per_address: PositiveInt = 1024
    """Number of open connections of one client's address."""


class Timeouts(_Strict):
    """Times in seconds."""

    request: PositiveFloat = 3600
    """Time for one request, including its time in the queue. After it the answer is status 504. A
    client may ask for less."""
    headers: PositiveFloat = 10
    """Time for a request's headers to come, from its first byte, or from the opening of its
    connection. After it the connection is closed."""
    keep_alive: PositiveFloat = 75
    """Time for which a connection stays open without a request."""
    heartbeat: PositiveFloat = 15
    """Time without an event of a stream after which a comment is sent."""
    body: PositiveFloat = 30
    """Time for a request's body to come. After it the answer is status 408."""
    drain: PositiveFloat = 60
    """Time for running requests to finish after a stop signal."""
    ready: PositiveFloat = 3
    """Time for the token that `/health/ready` generates."""


class Files(_Strict):
    """OpenAI's files and batches, which are off without a folder."""

    folder: Path | None = None
    """Folder for files and batches, which one gateway at a time uses."""
    file_bytes: PositiveInt = 200 << 20
    """Number of bytes of one uploaded file. The default is OpenAI's limit."""
    key_bytes: PositiveInt = 10 << 30
    """Number of bytes of all files of one API key."""
    requests: PositiveInt = 50_000
    """Number of requests of one batch. The default is OpenAI's limit."""
    batches: PositiveInt = 2
    """Number of batches of all keys that run at the same time. Others wait."""
    key_batches: PositiveInt = 20
    """Number of batches of one key that run or wait."""


class GatewaySettings(_Strict):
    """The file of `nemotron gateway --settings FILE`. Options on the command line override it."""

    triton: str = "127.0.0.1:8000"
    """Address of Triton's HTTP, as host:port."""
    address: str = "127.0.0.1"
    port: int = Field(default=PORT, ge=0, le=65535)
    """Port to listen on. 0 takes a free port."""
    model: str = LARGEST
    """Name of the model in OpenAI's API. A reward model has its own, unless there is one here."""
    aliases: tuple[str, ...] = ALIASES
    """Other names that clients may use for it."""
    strict_keys: bool = False
    """Whether a request with a key that the gateway does not know is refused. Otherwise such keys
    are ignored, and named in the header `X-Ignored-Keys` of the response."""
    hosts: tuple[str, ...] = ()
    """Names in the header `Host` that are served; `*` stands for all. Without any, a gateway
    without API keys on loopback serves only loopback's own names, and any other one all names."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may use the API from a browser; `*` stands for all."""
    tokenizer: Path | None = None
    """Path of `tokenizer.model`. The default is the path of Triton's, if it is on this machine."""
    engine_socket: Path | None = None
    """Socket of the engine's process, if it is on this machine: LoRA adapters are listed, loaded
    and unloaded there. Without it only the model itself is served."""
    api_keys_file: Path | None = None
    """File with API keys; see `nemotron_gateway.keys`. Without any, also in the environment, nobody
    needs one."""
    default_max_tokens: PositiveInt = 1024
    """Value of `max_tokens` for a chat that has none, if its prompt leaves as many."""
    access_log: bool = True
    log_prompts: bool = False
    """Whether the access log has whole requests, which may be private."""
    limits: Limits = Limits()
    files: Files = Files()
    timeouts: Timeouts = Timeouts()


def load_settings(
    path: Path | None, options: Mapping[str, Any], served_model: str | None = None
) -> GatewaySettings:
    """Return the settings of a file, or the defaults without one, overridden by `options`.

    `served_model` is the default of the model's name, and its aliases are the default of those.
    An option of `None` overrides nothing. A dot leads into a section: `timeouts.request`. Raises
    `NemotronError` if the file cannot be read or a value is wrong.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) if path else {}
    except OSError as error:
        raise NemotronError(f"cannot read: {error.strerror}", where=path) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise NemotronError(f"not plain YAML: {error}", where=path) from error
    try:
        content = {} if content is None else content
        if served_model is not None and isinstance(content, dict) and "model" not in content:
            content = {"model": served_model, "aliases": aliases(served_model)} | content
        settings = GatewaySettings.model_validate(content)
        merged = settings.model_dump()
        for name, value in options.items():
            section, _, key = name.rpartition(".")
            if value is not None:
                (merged[section] if section else merged)[key] = value
        return GatewaySettings.model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "file"
        raise NemotronError(f"{key}: {first['msg']}", where=path or "settings") from error
