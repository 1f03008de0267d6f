"""The command line of `nemotron convert`, as data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from nemotron_core.errors import NemotronError

PEFT_ARGUMENTS = frozenset(("models", "output", "base", "format", "overwrite", "json"))
"""What a conversion to a PEFT folder takes: that is small, not split, and never FP8."""


@dataclass(frozen=True)
class ConvertArguments:
    """Command-line arguments of `nemotron convert`."""

    models: Annotated[
        list[Path],
        Argument(
            metavar="MODEL…",
            help="A .nemo or a Hugging Face folder; with --base, its adapters in order.",
        ),
    ]
    output: Annotated[Path, Option("-o", "--output", help="The new folder that is written.")]
    base: Annotated[
        Path | None,
        Option(metavar="BASE.nemo", help="The model that the adapters belong to."),
    ] = None
    format: Annotated[
        Literal["trtllm", "hf", "peft"],
        Option(help="A TensorRT-LLM checkpoint, a Hugging Face folder, or an adapter for PEFT."),
    ] = "trtllm"
    tp: Annotated[
        int | None,
        Option(min=1, help="Tensor-parallel ranks: by default 8, or 1 for Hugging Face."),
    ] = None
    pp: Annotated[int, Option(min=1, help="Number of pipeline stages.")] = 1
    jobs: Annotated[
        int | None,
        Option(min=1, max=256, help="Threads that copy: by default, as many as the disk takes."),
    ] = None
    plan: Annotated[
        bool, Option("--plan", help="Only print what would be done and whether it is possible.")
    ] = False
    resume: Annotated[
        bool, Option("--resume", help="Resume an interrupted run of the same conversion.")
    ] = False
    reuse: Annotated[
        bool, Option("--reuse", help="Accept a finished output of this conversion, or resume it.")
    ] = False
    overwrite: Annotated[
        bool, Option("--overwrite", help="Replace an output that is there, finished or not.")
    ] = False
    wait: Annotated[
        float, Option(min=0, help="Seconds to wait for another process that writes the output.")
    ] = 0
    strict: Annotated[
        bool, Option("--strict", help="Refuse weights that hold NaN or Inf or are not BF16.")
    ] = False
    ignore_tensor: Annotated[
        list[str] | None,
        Option(
            metavar="PATTERN", help="Leave out tensors that are not understood; may be repeated."
        ),
    ] = None
    ignore_template: Annotated[
        bool,
        Option("--ignore-template", help="Convert although the chat template is not Nemotron's."),
    ] = False
    dtype: Annotated[
        Literal["bf16", "fp8"], Option(help="Type of the linear layers; FP8 needs a calibration.")
    ] = "bf16"
    kv_cache_dtype: Annotated[
        Literal["bf16", "fp8"],
        Option(help="FP8 halves the KV cache and costs this model accuracy."),
    ] = "bf16"
    calibrate: Annotated[
        Path | None,
        Option(
            metavar="TEXTS.jsonl",
            help='For FP8: lines {"text": …} or {"messages": […]} that resemble the later use.',
        ),
    ] = None
    calibrate_ids: Annotated[
        Path | None, Option(metavar="IDS.json", help="Lists of token ids to calibrate on.")
    ] = None
    calibrate_length: Annotated[
        int, Option(min=1, help="Largest number of tokens taken from each text.")
    ] = 512
    calibrate_memory: Annotated[
        float, Option(min=0, help="GB of hidden states kept in memory; more are kept on disk.")
    ] = 8
    scales: Annotated[
        Path | None,
        Option(metavar="CALIBRATION.json", help="For FP8: the calibration of an earlier run."),
    ] = None
    devices: Annotated[
        str,
        Option(
            "--devices",
            "--device",
            help="Devices that calibrate: auto (all GPUs, else the CPU), cpu, or cuda:0,cuda:2.",
        ),
    ] = "auto"
    json: Annotated[
        bool, Option("--json", help="Print JSON: the manifest, or with --plan the plan.")
    ] = False

    def require_peft(self) -> None:
        """Raise `NemotronError` if there is an argument that a PEFT folder does not take."""
        if len(self.models) > 1:
            raise NemotronError(
                f"{len(self.models)} adapters",
                where="--format peft",
                remedy="write them one by one",
            )
        extra = [
            "--" + field.name.replace("_", "-")
            for field in dataclasses.fields(self)
            if field.name not in PEFT_ARGUMENTS and getattr(self, field.name) != field.default
        ]
        if extra:
            raise NemotronError(
                "a PEFT folder is small, not split and never FP8",
                where=", ".join(extra),
                remedy="leave that out",
            )


def base_and_adapters(
    models: list[Path], base: Path | None, where: str
) -> tuple[Path, tuple[Path, ...]]:
    """Return the whole model and the adapters that the arguments name.

    Raises `NemotronError` if there are several models and no base.
    """
    if base is not None:
        return base, tuple(models)
    if len(models) > 1:
        raise NemotronError(
            f"{len(models)} files and no base model",
            where=where,
            remedy="name the model into which adapters are merged with --base BASE.nemo",
        )
    return models[0], ()
