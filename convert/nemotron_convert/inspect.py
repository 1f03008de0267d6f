"""Reports on a model that can be converted and on a checkpoint, as tables and as JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nemotron_convert.shards import allowed_tp
from nemotron_convert.source.adapter import Adapter
from nemotron_convert.source.chat_tokens import other_chat_tokens
from nemotron_convert.source.contents import Contents
from nemotron_convert.source.kind import ADAPTERS, REFUSED
from nemotron_convert.source.nemo import Source
from nemotron_convert.source.prompt_table import OLD_TABLE
from nemotron_convert.source.tuned_prompts import TunedPrompts
from nemotron_convert.target.checkpoint import Checkpoint
from nemotron_convert.target.manifest import read_manifest, require_unchanged
from nemotron_core.errors import NemotronError
from nemotron_core.reward import ATTRIBUTES


class TensorReport(BaseModel):
    """Shape of a tensor and of its stored chunks, in elements."""

    name: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]


class AdapterReport(BaseModel):
    """Report on an adapter; what does not apply to its kind is empty."""

    details: str
    """All that follows, for a person."""
    base: str | None = None
    """The base model as the file names it."""
    rank: int | None = None
    alpha: float | None = None
    scale: float | None = None
    """The factor of the product of a LoRA's matrices."""
    variant: str | None = None
    targets: list[str] = []
    """The linear layers that are changed, by Megatron's names."""
    layers: list[int] = []
    """The layers that are changed, counted from 0."""
    virtual_tokens: int | None = None
    """Number of vectors that a P-tuning puts in front of the prompt."""
    fault: str | None = None
    """Why it cannot be converted."""


class ModelReport(BaseModel):
    """Report on a model. The fields are the keys of `nemotron inspect --json`."""

    source: str
    kind: str
    convertible: bool
    """Whether `nemotron convert` takes it as it is, or with `--base` if it is an adapter."""
    adapter: AdapterReport | None
    """What an adapter changes."""
    layout: str
    """Name of the format in which the weights are stored."""
    dtype: str
    """Types in which the weights are stored."""
    parameters: int
    weight_bytes: int
    config: dict[str, int | float | bool | str]
    vocab_size: int
    allowed_tp: list[int]
    """Numbers of tensor-parallel ranks that the model can be split over."""
    attributes: list[str]
    """What a reward model's scores are; empty for other kinds."""
    tensors: list[TensorReport]
    """Tensors that are converted; empty if this kind cannot be."""
    unknown_tensors: dict[str, str]
    """Tensors that are not understood, with their types and shapes."""
    refused_settings: list[str]
    """Settings that change the arithmetic and are not carried out."""
    other_settings: dict[str, str]
    """Settings that do not matter to a finished model."""
    other_chat_tokens: dict[str, str]
    """Those of `data.chat_prompt_tokens` that differ from the model card's prompt format."""
    chat_format: dict[str, str] | None
    """The format of the prompts that chats are given, if it is not the model card's."""
    chat_fault: str
    """Why chats are given the model card's prompts although the model was tuned on others."""
    template_notes: list[str]
    """Conversations for which a chat template that came with the model gives other prompts."""
    refused_template: str
    """Why the chat template is not this project's; empty if it is, or there is none."""
    dropped_tensors: dict[str, str]
    """Tensors that are left out on purpose, with what they are."""

    def print(self, console: Console, *, verbose: bool = False) -> None:
        """Print a table of the model and tables of its tensors.

        With `verbose`, also print the settings and tensors that are not needed.
        """
        details = f": {self.adapter.details}" if self.adapter and self.adapter.details else ""
        base = {"base model": self.adapter.base} if self.adapter and self.adapter.base else {}
        facts: dict[str, object] = {
            "kind": self.kind + details,
            **base,
            "layout": f"{self.layout}, {self.dtype}",
            **({"attributes": ", ".join(self.attributes)} if self.attributes else {}),
            **self.config,
        }
        if self.tensors:
            facts |= {
                "parameters": self.parameters,
                "weights": f"{self.weight_bytes:,} bytes",
                "vocabulary": self.vocab_size,
                "allowed TP": ", ".join(map(str, self.allowed_tp)),
            }
        console.print(_facts_table(facts))
        if self.tensors:
            tensors = Table(box=None)
            for title in ("tensor", "shape", "chunks"):
                tensors.add_column(title, overflow="fold")  # a whole name, however narrow it is
            for row in self.tensors:
                tensors.add_row(row.name, _format_shape(row.shape), _format_shape(row.chunks))
            console.print("\n", tensors, sep="")
        _print_section(console, "refused: tensors that are not understood", self.unknown_tensors)
        faults = dict.fromkeys(self.refused_settings, "")
        _print_section(console, "refused: settings that are not carried out", faults)
        tokens = {key: repr(text) for key, text in self.other_chat_tokens.items()}
        _print_section(console, "prompt format: other tokens than the model card's", tokens)
        parts = {key: repr(text) for key, text in (self.chat_format or {}).items()}
        _print_section(console, "prompt format that chats are given", parts)
        fault = {self.chat_fault: ""} if self.chat_fault else {}
        _print_section(console, "chats are given the model card's prompts", fault)
        template = {self.refused_template: ""} if self.refused_template else {}
        _print_section(console, "refused: another chat template", template)
        notes = dict.fromkeys(self.template_notes, "")
        _print_section(console, "the chat template gives other prompts for", notes)
        if self.adapter and self.adapter.fault:
            _print_section(console, "refused", {self.adapter.fault: ""})
        if verbose:
            _print_section(console, "tensors that are not needed", self.dropped_tensors)
            _print_section(console, "settings that are not needed", self.other_settings)


class CheckpointReport(BaseModel):
    """Report on a checkpoint. The fields are the keys of `nemotron inspect --json`."""

    checkpoint: str
    source: str
    adapters: list[str]
    """The adapters that were merged into it."""
    kind: str
    """What the model makes: text, or the scores of a reward model."""
    format: str
    dtype: str
    tp: int
    pp: int
    bytes: int
    files: int
    """Number of files."""
    hash: str
    checked: bool
    """Whether every file was read and matches its hash in the manifest."""

    def print(self, console: Console) -> None:
        """Print a table of the checkpoint."""
        facts = self.model_dump(exclude={"checkpoint", "adapters"})
        merged = {"merged": "\n".join(self.adapters)} if self.adapters else {}
        console.print(_facts_table(merged | facts))


def inspect(path: Path) -> ModelReport:
    """Check a `.nemo` or a Hugging Face folder without reading its weights, and report on it.

    Raises `NemotronError` if it cannot be read or is not consistent. What a conversion
    would refuse because it is not understood is in the report.
    """
    with Contents.open(path) as contents:
        settings, kind = contents.settings, contents.kind
        is_whole = kind not in ADAPTERS and kind not in REFUSED
        source = Source.of(contents, is_lenient=True) if is_whole else None
        arrays = source.all_tensors if source else {}
        adapter = None if is_whole else _inspect_adapter(contents)
        unknown = contents.unknown()
        chat = source.chat if source else TunedPrompts(tokens=other_chat_tokens(settings.raw))
        can_be_used = kind in ADAPTERS and adapter is not None and adapter.fault is None
        return ModelReport(
            source=str(path),
            kind=kind.value,
            convertible=(is_whole or can_be_used)
            and not (unknown or settings.faults or chat.refusal),
            adapter=adapter,
            layout=contents.layout,
            dtype=" and ".join(source.dtypes) if source else "",
            parameters=sum(math.prod(tensor.shape) for tensor in arrays.values()),
            weight_bytes=source.nbytes if source else 0,
            config=dataclasses.asdict(settings.model),
            vocab_size=source.vocab_size if source else 0,
            allowed_tp=allowed_tp(settings.model),
            attributes=list(ATTRIBUTES) if source and source.reward_head else [],
            tensors=[
                TensorReport(name=name, shape=tensor.shape, chunks=tensor.chunk_shape)
                for name, tensor in arrays.items()
            ],
            unknown_tensors=unknown,
            refused_settings=settings.faults,
            other_settings=settings.others,
            other_chat_tokens=chat.tokens,
            chat_format=dataclasses.asdict(chat.chat_format) if chat.chat_format else None,
            chat_fault=chat.fault,
            template_notes=[note for note in chat.notes if note != chat.refusal],
            refused_template=chat.refusal,
            dropped_tensors=contents.dropped(),
        )


def _inspect_adapter(contents: Contents) -> AdapterReport:
    """Report on a file that is no whole model, as if it fitted its base model."""
    if contents.kind not in ADAPTERS:
        return AdapterReport(details="", base=contents.base)
    try:
        adapter = Adapter.of(contents, contents.settings.model)
    except NemotronError as error:
        return AdapterReport(details="", base=contents.base, fault=error.what)
    if (prompt := adapter.prompt) is not None:
        stale = "" if prompt.is_stored else f"; {OLD_TABLE}"
        details, count = f"{prompt}{stale}", len(prompt.vectors)
        return AdapterReport(details=details, base=contents.base, virtual_tokens=count)
    lora = adapter.lora
    return AdapterReport(
        details=str(adapter),
        base=contents.base,
        rank=lora.rank if lora else None,
        alpha=lora.alpha if lora else None,
        scale=lora.scale if lora else None,
        variant=lora.variant if lora else None,
        targets=adapter.targets,
        layers=adapter.layers,
    )


def inspect_checkpoint(folder: Path, *, check: bool) -> CheckpointReport:
    """Check a checkpoint's headers and, with `check`, the hash of every file, and report on it.

    Raises `NemotronError` if a file is missing or does not match the manifest.
    """
    manifest = read_manifest(folder)
    if manifest.format == "trtllm":
        checkpoint = Checkpoint.open(folder)
        checkpoint.reward_head()
        checkpoint.virtual_tokens()
    if check:
        require_unchanged(folder, manifest)
    return CheckpointReport(
        checkpoint=str(folder),
        source=manifest.source,
        adapters=[f"{a.file}: {a.kind}, {a.details}" for a in manifest.adapters],
        kind=manifest.kind,
        format=manifest.format,
        dtype=manifest.dtype,
        tp=manifest.tp,
        pp=manifest.pp,
        bytes=sum(entry.size for entry in manifest.files.values()),
        files=len(manifest.files),
        hash=manifest.content_hash,
        checked=check,
    )


def _format_shape(shape: tuple[int, ...]) -> str:
    """Return a shape as text.

    >>> _format_shape((96, 256))
    '96×256'
    """
    return "×".join(map(str, shape))


def _print_section(console: Console, title: str, rows: Mapping[str, str]) -> None:
    """Print a title and a line for each row, unless there are none."""
    lines = [f"  {name}: {value}" if value else f"  {name}" for name, value in rows.items()]
    if lines:
        console.print(Text("\n".join(["", title, *lines])), soft_wrap=True)


def _facts_table(facts: Mapping[str, object]) -> Table:
    table = Table(show_header=False, box=None)
    for key, value in facts.items():
        table.add_row(key.replace("_", " "), f"{value:,}" if type(value) is int else str(value))
    return table
