"""A profile: how an engine is built and served, in one typed YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from nemotron_build.resources import resource
from nemotron_convert.errors import NemotronError


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Limits(_Strict):
    """Sizes that the engine is built for; tokens count prompt and answer together."""

    max_batch_size: PositiveInt
    """Requests in one step."""
    max_seq_len: PositiveInt
    """Tokens of one request; the model's own limit if that is less."""
    max_num_tokens: PositiveInt
    """Tokens in one step, over all requests."""
    kv_cache_tokens: PositiveInt
    """Tokens whose keys and values are held at once."""
    max_queue_size: PositiveInt
    """Requests that wait for a place in a step; more are refused as overload."""


class Timeouts(_Strict):
    """Seconds."""

    startup: PositiveInt
    request: PositiveInt
    """How long one request may take, waiting included."""
    drain: PositiveInt
    """How long running requests may take to finish after a stop signal."""


class Ports(_Strict):
    """Triton's ports; 0 takes a free one."""

    http: int = Field(ge=0, le=65535)
    grpc: int = Field(ge=0, le=65535)
    metrics: int = Field(ge=0, le=65535)


class Profile(_Strict):
    """Everything that differs between one way of running the model and another."""

    lane: Literal["cpu"]
    dtype: Literal["bf16", "f32"]
    """What the engine computes in; f32 is for comparing tokens exactly."""
    address: str
    limits: Limits
    timeouts: Timeouts
    ports: Ports


def load_profile(name_or_path: str) -> Profile:
    """A shipped profile by its name, or one of your own by its path (`….yaml`)."""
    path = Path(name_or_path)
    if path.suffix != ".yaml":
        folder = resource("profiles")
        path = folder / f"{name_or_path}.yaml"
        if not path.is_file():
            names = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
            raise NemotronError(
                f"no profile {name_or_path!r}",
                where="--profile",
                remedy=f"use one of {names}, or the path of a .yaml",
            )
    try:
        return Profile.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise NemotronError(f"cannot read: {error.strerror}", where=path) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise NemotronError(f"not plain YAML: {error}", where=path) from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "file"
        raise NemotronError(f"{key}: {first['msg']}", where=path) from error
