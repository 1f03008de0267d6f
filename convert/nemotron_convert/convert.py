"""The conversion of a model to a TensorRT-LLM checkpoint or a Hugging Face folder."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from nemotron_convert.conversion import Conversion, checked_manifest
from nemotron_convert.options import Options, lay_out
from nemotron_convert.source.contents import Contents
from nemotron_convert.source.kind import require_adapter, require_whole
from nemotron_convert.source.nemo import Source
from nemotron_convert.source.prompt_table import OLD_TABLE, PromptTable
from nemotron_convert.source.tuned_prompts import TunedPrompts
from nemotron_convert.target import journal
from nemotron_convert.target.layout import Dtype, Format
from nemotron_convert.target.manifest import MANIFEST_NAME, Manifest
from nemotron_convert.team import ALONE, Team
from nemotron_core.errors import NemotronError
from nemotron_core.files import partial_path
from nemotron_core.folder import (
    check_output,
    existing_folder,
    new_folder,
    require_unlocked,
    unfinished_folder,
    writing_errors,
)

OTHER_SCALES = (
    "these scales were calibrated without the adapters, which change the inputs of the linear "
    "layers: calibrate the merged model, or measure what it answers"
)


def convert(source_path: Path, output: Path, options: Options, *, team: Team = ALONE) -> Manifest:
    """Convert the model at `source_path` to the new folder `output` and return its manifest.

    The source is a `.nemo`, a NeMo 2 folder or a Hugging Face folder.
    The adapters that `options` names are merged into it on the way.
    The folder gets its name only when it is complete; until then it stands beside it with the
    suffix `.partial`, from which an interrupted run can be resumed. Memory is a few MiB per job,
    whatever the model's size. Every process of `team` must call this alike and writes some of the
    files. Raises `NemotronError` if the source cannot be read, the model cannot be split as
    requested, or the output cannot be written.
    """
    if not (options.reuse and (output / MANIFEST_NAME).exists()):
        for path in (source_path, *options.adapters):
            check_output(output, source=path)
    if team.is_leader:
        require_unlocked(output)
    scratch = _scratch(output, options)
    with Source.open(
        source_path,
        ignore=options.ignore,
        ignore_template=options.ignore_template,
        scratch=scratch,
        adapters=options.adapters,
    ) as source:
        if team.is_leader:
            for note in (*source.chat.notes, *filter(None, [_chat_note(source.chat)])):
                print(f"note: {note}", file=sys.stderr)
        if team.is_leader:
            _note_table(source.prompt_table)
        if options.strict and source.dtypes != ("BF16",):
            raise NemotronError(
                f"the weights are {' and '.join(source.dtypes)}, which BF16 rounds",
                where=source_path,
                remedy="convert without --strict",
            )
        layout = lay_out(source, options)
        if options.format is Format.HF:
            # Loaded by the conversions that need it: it takes a tenth of the start.
            from nemotron_convert.target.hf_tokenizer import parse_for_hf  # noqa: PLC0415

            parse_for_hf(source.tokenizer)  # it is written last, so its faults are looked for first
        if source.reward_head and team.is_leader:
            source.reward_head.read()  # so is the head
        calibrator = None
        if options.precision.weights is Dtype.FP8:
            from nemotron_convert.calibration.calibrator import Calibrator  # noqa: PLC0415

            calibrator = Calibrator(source, options.calibration, team)
            if team.is_leader and calibrator.built_in_tokens:
                print(f"note: {built_in_texts(calibrator.built_in_tokens)}", file=sys.stderr)
            if team.is_leader and source.adapters and calibrator.is_of_another_model:
                print(f"note: {OTHER_SCALES}", file=sys.stderr)
        identity = options.identity | ({"calibration": calibrator.identity} if calibrator else {})
        fingerprint = team.broadcast(
            journal.fingerprint(source, identity) if team.is_leader else None
        )
        if options.reuse and team.broadcast((output / MANIFEST_NAME).exists()):
            journal.require_same(output, fingerprint)
            return checked_manifest(output, options)
        with _shared_folder(output, options, team) as folder:
            return Conversion(source, folder, layout, options, team).run(calibrator, fingerprint)


def convert_to_peft(adapter_path: Path, output: Path, base_path: Path | None = None) -> Manifest:
    """Write the LoRA or P-tuning at `adapter_path` to the new folder `output` in PEFT's format.

    With `base_path`, it is checked against that base model; otherwise against its own
    configuration. Raises `NemotronError` as `convert` does.
    """
    from nemotron_convert.source.adapter import Adapter  # noqa: PLC0415
    from nemotron_convert.target.peft_folder import write_peft_folder  # noqa: PLC0415
    from nemotron_convert.target.peft_prompt import write_prompt_folder  # noqa: PLC0415

    check_output(output, source=adapter_path)
    with Contents.open(adapter_path, scratch=Path(tempfile.gettempdir())) as contents:
        require_adapter(contents.kind, adapter_path)
        config, base = contents.settings.model, contents.base or ""
        if base_path is not None:
            with Contents.open(base_path) as whole:
                require_whole(whole.kind, base_path, whole.base)
                config, base = whole.settings.model, base_path.name
        adapter = Adapter.of(contents, config)
        _note_table(adapter.prompt)
        write = write_peft_folder if adapter.prompt is None else write_prompt_folder
        with new_folder(output) as folder:
            manifest = write(adapter, folder, base)
            contents.require_unchanged()
            return manifest


def _chat_note(chat: TunedPrompts) -> str:
    """Return what a user should know about prompts that are not the model card's."""
    if chat.chat_format:
        return "chats are given this model's own prompt format, not the model card's"
    if not chat.fault:
        return ""
    names = f" ({', '.join(chat.tokens)})" if chat.tokens else ""
    return (
        f"this model was tuned with another prompt format than the model card's{names}, which "
        f"cannot be carried: {chat.fault}. Chats are given the model card's; send it raw prompts"
    )


def _note_table(prompt: PromptTable | None) -> None:
    """Print a note if a P-tuning's file has a table of other vectors, or none."""
    if prompt is not None and not prompt.is_stored:
        print(f"note: {OLD_TABLE}, whose vectors are taken", file=sys.stderr)


def _scratch(output: Path, options: Options) -> Path | None:
    """Return the folder for a compressed archive's content, if it is read more than once."""
    is_finished = options.reuse and (output / MANIFEST_NAME).exists()
    if options.precision.weights is not Dtype.FP8 or is_finished:
        return None
    return existing_folder(output.absolute().parent)


def built_in_texts(tokens: int) -> str:
    """Return what a user should know who calibrates on the project's own texts."""
    return (
        f"calibrating on this project's own texts, {tokens:,} tokens: enough to try FP8; for use, "
        "give some hundreds of your own with --calibrate"
    )


@contextmanager
def _shared_folder(output: Path, options: Options, team: Team) -> Iterator[Path]:
    """Open the unfinished folder on every process; the leader creates and finally renames it."""
    with ExitStack() as stack:
        if team.is_leader:
            stack.enter_context(unfinished_folder(output, keep=options.resume))
        else:
            stack.enter_context(writing_errors(output))
        yield partial_path(output)
    team.barrier()
