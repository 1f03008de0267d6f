"""An adapter open for reading, checked against the model that it belongs to."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from nemotron_convert.shards import HeadKind
from nemotron_convert.source.adapter_map import (
    IA3_MODULES,
    LORA_MODULES,
    sizes,
)
from nemotron_convert.source.arrays import StoredArray
from nemotron_convert.source.contents import Contents, list_tensors
from nemotron_convert.source.kind import Kind, require_adapter
from nemotron_convert.source.lora_settings import LoraSettings, read_lora_settings
from nemotron_convert.source.merge_terms import Ia3Part, Ia3Term, LoraPart, LoraTerm, MergeTerm
from nemotron_convert.source.prompt_table import PromptTable, read_prompt_table
from nemotron_convert.tensor_map import TensorRule
from nemotron_core.errors import NemotronError
from nemotron_core.files import hash_file, text_digest
from nemotron_core.model_config import ModelConfig

COMPARED = ("num_layers", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads",
            "head_size")  # fmt: skip
"""Sizes in which an adapter's configuration must agree with that of its base model."""


@dataclass(frozen=True)
class Adapter:
    """An adapter in which all tensors exist with the shapes that the base model implies."""

    contents: Contents
    base: ModelConfig
    lora: LoraSettings | None
    """The settings of its LoRA, if it has one."""
    lora_parts: tuple[LoraPart, ...]
    ia3_parts: tuple[Ia3Part, ...]
    prompt: PromptTable | None = None
    """The vectors of a P-tuning, which changes no tensor of its base."""

    @classmethod
    def open(cls, path: Path, base: ModelConfig, *, scratch: Path | None = None) -> Adapter:
        """Open the adapter of a model of this configuration.

        A compressed archive is decompressed into the folder `scratch`, or that for temporary files.
        Raises `NemotronError` if it is not an adapter, does not fit the model, or is not
        understood.
        """
        contents = Contents.open(path, scratch=scratch or Path(tempfile.gettempdir()))
        try:
            return cls.of(contents, base)
        except BaseException:
            contents.archive.close()
            raise

    @classmethod
    def of(cls, contents: Contents, base: ModelConfig) -> Adapter:
        """Return the checked adapter of `open`; it takes over the open archive."""
        path = contents.archive.path
        require_adapter(contents.kind, path)
        contents.settings.require_known(path)
        own = contents.settings.model
        for key in COMPARED:
            if getattr(own, key) != getattr(base, key):
                raise NemotronError(
                    f"{key} is {getattr(own, key)}, the base model has {getattr(base, key)}",
                    where=path,
                    remedy="name the base model that this adapter was trained on",
                )
        is_prompt = contents.kind is Kind.P_TUNING
        prompt = read_prompt_table(contents) if is_prompt else None
        lora_parts = tuple(_lora_parts(contents, base))
        ia3_parts = tuple(_ia3_parts(contents, base))
        if unknown := contents.unknown():
            raise NemotronError(
                f"these tensors cannot be merged: {list_tensors(unknown)}",
                where=path,
                remedy="tune the model with a plain LoRA or IA3",
            )
        if prompt is not None and (lora_parts or ia3_parts):
            raise NemotronError("a P-tuning with other adapters in the same file", where=path)
        if not lora_parts and not ia3_parts and prompt is None:
            raise NemotronError("there are no adapter tensors in it", where=path)
        lora = None
        if lora_parts:
            lora = read_lora_settings(contents.settings, path)
            _check_parts(lora_parts, lora, base, path)
        return cls(contents, base, lora, lora_parts, ia3_parts, prompt)

    @property
    def name(self) -> str:
        """File name of the adapter."""
        return self.contents.archive.path.name

    @property
    def kind(self) -> Kind:
        return self.contents.kind

    @cached_property
    def terms(self) -> dict[str, list[MergeTerm]]:
        """What it changes, by source tensor of the base: LoRA first, then IA3, as NeMo computes."""
        parts: defaultdict[str, list[LoraPart]] = defaultdict(list)
        for part in self.lora_parts:
            parts[part.module.weight].append(part)
        terms: defaultdict[str, list[MergeTerm]] = defaultdict(list)
        if self.lora:
            for weight, parts_of_weight in parts.items():
                terms[weight].append(LoraTerm(parts_of_weight, self.lora.scale, self.base))
        for ia3_part in self.ia3_parts:
            terms[ia3_part.module.weight].append(Ia3Term(ia3_part, self.base))
        return dict(terms)

    @property
    def layers(self) -> list[int]:
        """The layers that it changes."""
        return sorted({n for terms in self.terms.values() for term in terms for n in term.layers})

    @property
    def targets(self) -> list[str]:
        """The linear layers that it changes, by Megatron's names."""
        return [name.rpartition("layers.")[2].removesuffix(".weight") for name in self.terms]

    @cached_property
    def sha256(self) -> str:
        """SHA-256 (hex) of the file, or of the names and hashes of a folder's files."""
        path = self.contents.archive.path
        if path.is_file():
            return hash_file(path).sha256
        hashes = (f"{hash_file(path / name).sha256}  {name}\n" for name in self.contents.files)
        return text_digest("".join(hashes))

    def __str__(self) -> str:
        if self.prompt is not None:
            return str(self.prompt)
        last = self.contents.settings.model.num_layers - 1
        layers = self.layers
        is_whole = len(layers) == last + 1
        where = "all layers" if is_whole else f"layers {_ranges(layers)} of 0-{last}"
        details = f"{self.lora}, " if self.lora else ""
        return f"{details}{', '.join(self.targets)}, {where}"

    def __enter__(self) -> Adapter:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.contents.archive.close()


def _lora_parts(contents: Contents, base: ModelConfig) -> Iterator[LoraPart]:
    """Yield the modules of which there are factors.

    Raises `NemotronError` if a factor is missing or does not fit the model.
    """
    for module in LORA_MODULES:
        rule_a, rule_b = module.rules
        inputs = contents.tensors.open_layers(rule_a, base.num_layers)
        outputs = contents.tensors.open_layers(rule_b, base.num_layers)
        if odd := sorted(inputs.keys() ^ outputs.keys()):
            raise NemotronError(
                f"layer {odd[0]} has only one of {rule_a.source} and linear_out",
                where=contents.archive.path,
                remedy="copy the adapter again",
            )
        if not inputs:
            continue
        rank = {"rank": next(iter(inputs.values())).shape[0]}
        for arrays, rule in ((inputs, rule_a), (outputs, rule_b)):
            _check_shapes(arrays, rule, base, rank)
        yield LoraPart(module, inputs, outputs)


def _ia3_parts(contents: Contents, base: ModelConfig) -> Iterator[Ia3Part]:
    """Yield the modules of which there are vectors. Raises `NemotronError` if one does not fit."""
    for module in IA3_MODULES:
        vectors = contents.tensors.open_layers(module.rule, base.num_layers)
        _check_shapes(vectors, module.rule, base, {})
        if vectors:
            yield Ia3Part(module, vectors)


def _check_shapes(
    arrays: Mapping[int, StoredArray],
    rule: TensorRule,
    base: ModelConfig,
    more: Mapping[str, int],
) -> None:
    """Raise `NemotronError` unless every layer's array has the shape of its rule."""
    known = sizes(base) | dict(more)
    expected = tuple(known[name] for name in rule.shape)
    for layer, array in arrays.items():
        if array.shape != expected:
            raise NemotronError(
                f"tensor {rule.source}, layer {layer} has shape {list(array.shape)}, the base "
                f"model asks for {list(expected)}",
                where=array.archive.path,
                remedy="name the base model that this adapter was trained on",
            )


def _check_parts(
    parts: tuple[LoraPart, ...], lora: LoraSettings, base: ModelConfig, path: Path
) -> None:
    """Raise `NemotronError` if factors are missing, or are not what the settings say."""
    expected_layers = set(range(base.num_layers) if lora.layers is None else lora.layers)
    for part in parts:
        rank = next(iter(part.inputs.values())).shape[0]
        if rank != lora.rank:
            raise NemotronError(
                f"{part.module.name} has rank {rank}, the settings say {lora.rank}", where=path
            )
    if not lora.targets:  # wildcards, or names of parts: whatever is there
        return
    fault = ""
    for part in parts:
        if missing := sorted(expected_layers - set(part.inputs)):
            fault = f"no {part.module.name} in layers {_ranges(missing)}"
        elif more := sorted(set(part.inputs) - expected_layers):
            fault = f"{part.module.name} in layers {_ranges(more)}, which are not selected"
    if absent := sorted(set(lora.targets) - {part.module.target for part in parts}):
        fault = f"no factors for {', '.join(absent)}, which target_modules names"
    heads = {part.module.heads for part in parts if part.module.heads}
    if heads and len(heads) < len(HeadKind):
        fault = f"factors for {', '.join(sorted(kind.name.lower() for kind in heads))} only"
    if fault:
        raise NemotronError(fault, where=path, remedy="copy the adapter again")


def _ranges(numbers: list[int]) -> str:
    """Return ascending numbers as text.

    >>> _ranges([0, 1, 2, 5, 7, 8])
    '0-2, 5, 7-8'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)
