"""Profiles: how an engine is built and served, as typed YAML files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from nemotron_build.trtllm_build import check_flags
from nemotron_build.weights import Weights
from nemotron_core.engine_settings import DraftSettings, LoraLimits
from nemotron_core.errors import NemotronError
from nemotron_core.resources import resource

FP8_CAPABILITY = (8, 9)
"""Compute capability of the first GPUs that compute in FP8."""
NGRAM = "ngram"
"""Value of `draft` for tokens that are copied from the text itself."""
DRAFT_TOKENS = 4
"""Default of `draft_tokens`."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Limits(_Strict):
    """Sizes that the engine is built for. Tokens count prompt and answer together."""

    max_batch_size: PositiveInt
    """Number of requests computed in one step."""
    max_seq_len: PositiveInt
    """Number of tokens of one request. The model's own limit counts if it is less."""
    max_num_tokens: PositiveInt
    """Number of tokens computed in one step, over all requests."""
    max_queue_size: PositiveInt
    """Number of requests that wait for a step. Further requests are refused as overload."""
    long_answers: Literal["refuse", "clamp"]
    """Treatment of a request whose prompt fits but whose `max_tokens` does not fit beside it."""


class CpuLimits(Limits):
    kv_cache_tokens: PositiveInt
    """Number of tokens in the KV cache. No request can have more."""


class Timeouts(_Strict):
    """Time limits in seconds."""

    startup: PositiveInt
    """Time until Triton is ready."""
    request: PositiveInt
    """Time for one request, including its time in the queue."""
    drain: PositiveInt
    """Time for running requests to finish after a stop signal."""
    stall: PositiveInt
    """Time without a step after which the engine counts as dead. A step must take less."""


class Ports(_Strict):
    """TCP ports. 0 means a free port."""

    http: int = Field(ge=0, le=65535)
    grpc: int = Field(ge=0, le=65535)
    metrics: int = Field(ge=0, le=65535)
    health: int = Field(ge=0, le=65535)
    """Port on which `nemotron serve` itself says whether the engine works."""
    gateway: int | None = Field(ge=0, le=65535)
    """Port of the HTTP gateway. `None` means that no gateway is started."""


class Gpu(_Strict):
    """The GPU that a profile requires."""

    name: str
    """Part of the name that the driver reports."""
    memory_gib: PositiveInt
    compute_capability: tuple[int, int]
    or_newer: bool = False
    """Whether a GPU of a later compute capability will do too."""


class Split(_Strict):
    """The split of the model over GPUs, with one rank on each."""

    tp: PositiveInt
    pp: PositiveInt
    nodes: PositiveInt
    gpus_per_node: PositiveInt

    @property
    def world_size(self) -> int:
        return self.tp * self.pp

    @model_validator(mode="after")
    def _fits(self) -> Split:
        if self.world_size != self.nodes * self.gpus_per_node:
            raise ValueError(
                f"tp × pp is {self.world_size}, but {self.nodes} nodes with "
                f"{self.gpus_per_node} GPUs each have {self.nodes * self.gpus_per_node}"
            )
        return self


def _computes_in_fp8(gpu: Gpu, *dtypes: str) -> None:
    """Raise `ValueError` if a type is FP8 and the GPU does not compute in it."""
    if "fp8" in dtypes and gpu.compute_capability < FP8_CAPABILITY:
        raise ValueError(f"{gpu.name} does not compute in FP8")


class EngineOptions(_Strict):
    """The process in which the engine runs."""

    python: Path | None = None
    """Interpreter of the environment with the lane's library. `None` means this one."""


class _Served(_Strict):
    address: str
    timeouts: Timeouts
    ports: Ports
    engine: EngineOptions = EngineOptions()
    triton: Path | None = None
    """Folder in which Triton is installed. `None` means the server in the wheel nvidia-pytriton."""
    triton_args: list[str] = []
    """Further options of `tritonserver`."""


class _OnGpus(_Served):
    dtype: Literal["bf16", "fp8"]
    """Type of the weights."""
    kv_cache_dtype: Literal["bf16", "fp8"]
    gpu: Gpu
    split: Split
    limits: Limits
    kv_cache_share: float = Field(gt=0, lt=1)
    """Fraction of the GPU memory that is free after the weights are loaded."""
    triton: Path
    """Folder in which Triton is installed."""

    @model_validator(mode="after")
    def _fp8(self) -> _OnGpus:
        _computes_in_fp8(self.gpu, self.dtype, self.kv_cache_dtype)
        return self


class _Drafted(_Strict):
    draft: str | None = None
    """What proposes tokens that the engine then checks, several in a step: the folder of an engine
    with the same vocabulary, or `ngram`, which copies them from the text. `None` means nothing."""
    draft_tokens: int = Field(default=DRAFT_TOKENS, ge=1, le=16)
    """Most tokens that are proposed in a step."""

    @property
    def draft_settings(self) -> DraftSettings | None:
        if self.draft is None:
            return None
        engine = None if self.draft == NGRAM else Path(self.draft)
        return DraftSettings(engine=engine, tokens=self.draft_tokens)


class CpuProfile(_Drafted, _Served):
    """Profile of the CPU lane: OpenVINO on any machine."""

    lane: Literal["cpu"]
    dtype: Literal["bf16", "f32"]
    """Type that the engine computes in. `f32` is for comparing tokens exactly."""
    weights: Weights = "bf16"
    """Type in which the engine holds the weights of a BF16 checkpoint."""
    limits: CpuLimits


class TensorRTProfile(_OnGpus):
    """Profile of the TensorRT lane: one engine per rank, behind TensorRT-LLM 1.2's `LLM` API."""

    lane: Literal["tensorrt"]
    build_flags: dict[str, str | int]
    """Flags of `trtllm-build` that do not follow from the rest of the profile."""
    logits: Literal["none", "generation", "context"] = "none"
    """Whole logits that the engine can return: of no token, of generated ones (for alternatives to
    them), or of those and of prompts. They are a row of the vocabulary in F32 per token."""

    @field_validator("build_flags")
    @classmethod
    def _known(cls, flags: dict[str, str | int]) -> dict[str, str | int]:
        check_flags(flags)
        return flags

    @model_validator(mode="after")
    def _fp8_attention(self) -> TensorRTProfile:
        fp8 = self.dtype == self.kv_cache_dtype == "fp8"
        if self.build_flags.get("use_fp8_context_fmha") == "enable" and not fp8:
            raise ValueError(
                "build_flags.use_fp8_context_fmha needs FP8 weights and an FP8 KV cache"
            )
        return self


class PyTorchProfile(_Drafted, _OnGpus):
    """Profile of the PyTorch lane: a Hugging Face folder behind TensorRT-LLM's `LLM` API."""

    lane: Literal["pytorch"]
    stream_interval: int = Field(default=1, ge=1, le=32)
    """Number of tokens that the library gathers for each part of an answer, after the first one."""


class VllmProfile(_Drafted, _Served):
    """Profile of the vLLM lane: a Hugging Face folder behind vLLM, on GPUs or on a CPU."""

    lane: Literal["vllm"]
    dtype: Literal["bf16", "fp8"]
    """Type of the weights."""
    kv_cache_dtype: Literal["bf16", "fp8"]
    gpu: Gpu | None = None
    """`None` means a CPU, whose cores the ranks of `split` share."""
    split: Split
    limits: Limits
    memory_share: float | None = Field(default=None, gt=0, lt=1)
    """Fraction of a GPU's memory that the engine takes in all."""
    kv_cache_tokens: PositiveInt | None = None
    """Number of tokens in the KV cache, on a CPU."""
    lora: LoraLimits | None = None
    """Room for LoRA adapters that are served by name. `None` means that there are none."""

    @model_validator(mode="after")
    def _has_its_memory(self) -> VllmProfile:
        if self.lora is not None and self.draft is not None:
            raise ValueError("draft and lora do not go together")
        if self.gpu is None:
            if self.kv_cache_tokens is None or self.memory_share is not None:
                raise ValueError("without gpu, kv_cache_tokens and not memory_share sets the cache")
            if "fp8" in (self.dtype, self.kv_cache_dtype):
                raise ValueError("vLLM computes in FP8 on GPUs only")
            return self
        if self.memory_share is None or self.kv_cache_tokens is not None:
            raise ValueError("with gpu, memory_share and not kv_cache_tokens sets the cache")
        _computes_in_fp8(self.gpu, self.dtype, self.kv_cache_dtype)
        return self


Profile = CpuProfile | TensorRTProfile | PyTorchProfile | VllmProfile
"""Everything that differs between two ways of running the model."""
GpuProfile = TensorRTProfile | PyTorchProfile
_PROFILE: TypeAdapter[Profile] = TypeAdapter(Annotated[Profile, Field(discriminator="lane")])


def profiles_folder() -> Path:
    """Return the folder of the shipped profiles, one `.yaml` each."""
    return resource(__file__, "profiles")


def shipped_profiles() -> list[str]:
    """Return the names of the profiles that come with the project."""
    return sorted(file.stem for file in profiles_folder().glob("*.yaml"))


def profile_path(name_or_path: str) -> Path:
    """Return the file of a shipped profile by its name, or any other path (`….yaml`) as it is.

    Raises `NemotronError` if no such profile is shipped.
    """
    path = Path(name_or_path)
    if path.suffix != ".yaml":
        path = profiles_folder() / f"{name_or_path}.yaml"
        if not path.is_file():
            raise NemotronError(
                f"no profile {name_or_path!r}",
                where="--profile",
                remedy=f"use one of {', '.join(shipped_profiles())}, or the path of a .yaml",
            )
    return path


def profile_text(name_or_path: str) -> str:
    """Return the YAML of a profile, with its comments.

    Raises `NemotronError` if the profile does not exist or cannot be read.
    """
    path = profile_path(name_or_path)
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise NemotronError(f"cannot read: {error.strerror}", where=path) from error
    except UnicodeDecodeError as error:
        raise NemotronError(f"not plain YAML: {error}", where=path) from error


def load_profile(name_or_path: str) -> Profile:
    """Return a shipped profile by its name, or any profile by its path (`….yaml`).

    Raises `NemotronError` if the profile does not exist or has an error.
    """
    path, text = profile_path(name_or_path), profile_text(name_or_path)
    try:
        return _PROFILE.validate_python(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise NemotronError(f"not plain YAML: {error}", where=path) from error
    except ValidationError as error:
        first = error.errors()[0]
        _lane, *keys = first["loc"] or ("",)  # pydantic names the member of the union first
        key = ".".join(map(str, keys)) or "file"
        raise NemotronError(f"{key}: {first['msg']}", where=path) from error


def with_weights(profile: Profile, weights: Weights | None) -> Profile:
    """Return the profile with weights of another type; `None` changes nothing.

    Raises `NemotronError` if its lane takes weights as they are.
    """
    if weights is None:
        return profile
    if "weights" not in type(profile).model_fields:
        raise NemotronError(
            f"a profile of the lane {profile.lane} takes weights as they were converted",
            where="--weights",
            remedy="use a profile of the lane cpu, or convert with --dtype fp8",
        )
    return profile.model_copy(update={"weights": weights})
