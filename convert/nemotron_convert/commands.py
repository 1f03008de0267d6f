"""The verbs `inspect`, `verify` and `convert` of the command `nemotron`."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer import Argument, Option

from nemotron_core.command_options import takes

if TYPE_CHECKING:
    from nemotron_convert.options import Options


def inspect(
    model: Annotated[
        Path, Argument(metavar="MODEL|CHECKPOINT", help="The file or folder to inspect.")
    ],
    json: Annotated[bool, Option("--json", help="Print JSON.")] = False,
    check: Annotated[
        bool, Option("--check", help="Compare every file of a checkpoint with its hash.")
    ] = False,
    verbose: Annotated[
        bool, Option("--verbose", help="List settings and tensors that are not needed, too.")
    ] = False,
) -> None:
    """Show what a .nemo, a Hugging Face folder or a checkpoint holds, without its weights."""
    from rich.console import Console

    from nemotron_convert import inspect as inspection
    from nemotron_convert.target.manifest import MANIFEST_NAME
    from nemotron_core.errors import NemotronError

    report: inspection.CheckpointReport | inspection.ModelReport
    if (model / MANIFEST_NAME).is_file():
        report = inspection.inspect_checkpoint(model, check=check)
    elif check:
        raise NemotronError(f"no {MANIFEST_NAME}: only a checkpoint has hashes", where=model)
    else:
        report = inspection.inspect(model)
    if json:
        typer.echo(report.model_dump_json(indent=2))
    elif isinstance(report, inspection.ModelReport):
        report.print(Console(), verbose=verbose)
    else:
        report.print(Console())


def verify(
    checkpoint: Annotated[Path, Argument(metavar="CHECKPOINT", help="The checkpoint to verify.")],
    against: Annotated[
        list[Path],
        Option(
            metavar="MODEL",
            help="What it was converted from; with --base, each adapter in order.",
        ),
    ],
    base: Annotated[
        Path | None, Option(metavar="BASE.nemo", help="The model that adapters were merged into.")
    ] = None,
    ids: Annotated[
        Path | None,
        Option(metavar="IDS.json", help="Lists of token ids to run; by default, a few texts."),
    ] = None,
    json: Annotated[bool, Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run a checkpoint, rank by rank, beside its source; exit with 1 if it is not safe to build.

    Under mpirun, the processes divide the ranks among them.
    """
    from rich.console import Console

    from nemotron_convert.team import open_team
    from nemotron_convert.verification.verifier import verify as run

    with open_team() as team:
        source, adapters = _base_and_adapters(against, base, "--against")
        verification = run(checkpoint, source, adapters=adapters, ids=ids, team=team)
    if team.is_leader:
        if json:
            typer.echo(verification.to_json())
        else:
            verification.print(Console())
    if not verification.is_safe:
        raise typer.Exit(1)


@dataclass(frozen=True)
class ConvertArguments:
    """Command-line arguments of `nemotron convert`."""

    models: Annotated[
        list[Path],
        Argument(
            metavar="MODEL…",
            help="A .nemo or a Hugging Face folder; with --base, LoRA or IA3 adapters in order.",
        ),
    ]
    output: Annotated[Path, Option("-o", "--output", help="The new folder that is written.")]
    base: Annotated[
        Path | None,
        Option(metavar="BASE.nemo", help="The model into which the adapters are merged."),
    ] = None
    format: Annotated[
        Literal["trtllm", "hf", "peft"],
        Option(help="A TensorRT-LLM checkpoint, a Hugging Face folder, or a LoRA for PEFT."),
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
    json: Annotated[bool, Option("--json", help="Print the manifest as JSON.")] = False

    def options(self) -> Options:
        """Return the conversion's options. Raises `NemotronError` if they contradict each other."""
        from nemotron_convert.calibration.options import CalibrationOptions
        from nemotron_convert.options import Options
        from nemotron_convert.shards import Parallel
        from nemotron_convert.target.layout import Dtype, Format, Precision
        from nemotron_core.errors import NemotronError

        if self.overwrite and (self.resume or self.reuse):
            raise NemotronError("give --overwrite, --resume or --reuse, not two of them")
        if self.dtype == "bf16" and (self.calibrate or self.calibrate_ids or self.scales):
            raise NemotronError("there is nothing to calibrate in BF16", remedy="add --dtype fp8")
        return Options(
            Parallel(self.tp or (8 if self.format == "trtllm" else 1), self.pp),
            Format(self.format),
            self.jobs,
            resume=self.resume or self.reuse,
            reuse=self.reuse,
            strict=self.strict,
            ignore=tuple(self.ignore_tensor or ()),
            ignore_template=self.ignore_template,
            adapters=_base_and_adapters(self.models, self.base, "convert")[1],
            precision=Precision(Dtype(self.dtype), Dtype(self.kv_cache_dtype)),
            calibration=CalibrationOptions(
                scales=self.scales,
                texts=self.calibrate,
                ids=self.calibrate_ids,
                length=self.calibrate_length,
                devices=self.devices,
                memory=int(min(self.calibrate_memory * 1e9, sys.maxsize)),
            ),
        )


@takes(ConvertArguments)
def convert(arguments: ConvertArguments) -> None:
    """Convert a .nemo or Hugging Face folder to a TensorRT-LLM checkpoint or a folder, BF16 or FP8.

    With --base, the adapters are merged into that model on the way.

    Under mpirun or srun, the processes divide the files among them.
    """
    # Adapters are merged by the threads that copy, so NumPy's products need none of their own.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from contextlib import nullcontext

    from nemotron_convert.convert import convert as run
    from nemotron_convert.target.manifest import MANIFEST_NAME
    from nemotron_convert.team import open_team
    from nemotron_core.existing import replacing, require_choice
    from nemotron_core.files import partial_path
    from nemotron_core.folder import retry_until_ready

    if arguments.format == "peft":
        _convert_to_peft(arguments)
        return
    model, _ = _base_and_adapters(arguments.models, arguments.base, "convert")
    output, options = arguments.output, arguments.options()
    must_be_new = not (options.resume or options.reuse or arguments.overwrite)
    if arguments.plan:
        from rich.console import Console

        from nemotron_convert.plan import make_plan

        if must_be_new:
            require_choice(output, MANIFEST_NAME, "checkpoint")
        conversion_plan = make_plan(model, output, options)
        conversion_plan.print(Console())
        conversion_plan.check()
        return
    with open_team() as team:
        if team.is_leader and must_be_new:
            require_choice(output, MANIFEST_NAME, "checkpoint", can_resume=True)
        is_replaced = arguments.overwrite and team.is_leader
        try:
            with replacing(output, MANIFEST_NAME) if is_replaced else nullcontext():
                team.barrier()
                manifest = retry_until_ready(
                    lambda: run(model, output, options, team=team),
                    arguments.wait if team.size == 1 else 0,
                )
        except KeyboardInterrupt:
            typer.echo(f"{partial_path(output)} is kept: --resume goes on from it", err=True)
            raise
    if team.is_leader:
        for name in manifest.nonfinite:
            typer.echo(f"warning: {name} holds NaN or Inf", err=True)
        if manifest.kv_cache_dtype == "fp8":
            typer.echo("warning: an FP8 KV cache costs this model accuracy; measure it", err=True)
        if arguments.json:
            typer.echo(manifest.model_dump_json(indent=2))
            return
        size = sum(entry.size for entry in manifest.files.values())
        split = f" TP={manifest.tp} PP={manifest.pp}" if manifest.format == "trtllm" else ""
        merged = ", ".join(adapter.file for adapter in manifest.adapters)
        with_adapters = f", {manifest.source} with {merged}" if merged else ""
        what = f"{manifest.format} {manifest.dtype}{split}{with_adapters}"
        typer.echo(f"{output}: {size:,} bytes, {what}")


def _convert_to_peft(arguments: ConvertArguments) -> None:
    from contextlib import nullcontext

    from nemotron_convert.convert import convert_to_peft
    from nemotron_convert.target.manifest import MANIFEST_NAME
    from nemotron_core.errors import NemotronError
    from nemotron_core.existing import replacing

    if len(arguments.models) > 1:
        raise NemotronError(
            f"{len(arguments.models)} adapters",
            where="--format peft",
            remedy="write them one by one",
        )
    if arguments.plan or arguments.dtype == "fp8" or arguments.tp or arguments.pp > 1:
        raise NemotronError(
            "a PEFT folder is small, not split and never FP8",
            where="--plan, --dtype, --tp, --pp",
            remedy="leave them out",
        )
    with replacing(arguments.output, MANIFEST_NAME) if arguments.overwrite else nullcontext():
        manifest = convert_to_peft(arguments.models[0], arguments.output, arguments.base)
    if arguments.json:
        typer.echo(manifest.model_dump_json(indent=2))
        return
    typer.echo(f"{arguments.output}: peft {manifest.dtype}, {manifest.adapters[0].details}")


def _base_and_adapters(
    models: list[Path], base: Path | None, where: str
) -> tuple[Path, tuple[Path, ...]]:
    """Return the whole model and the adapters that the arguments name.

    Raises `NemotronError` if there are several models and no base.
    """
    from nemotron_core.errors import NemotronError

    if base is not None:
        return base, tuple(models)
    if len(models) > 1:
        raise NemotronError(
            f"{len(models)} files and no base model",
            where=where,
            remedy="name the model into which adapters are merged with --base BASE.nemo",
        )
    return models[0], ()
