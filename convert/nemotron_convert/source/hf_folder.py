"""The weights of a Hugging Face folder: which files hold them, and each tensor's place in one."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NoReturn

from nemotron_convert.safetensors_header import StoredTensor, read_tensors
from nemotron_convert.source.archive import Archive, Member, refuse_pointer, short_name
from nemotron_convert.source.hf_config import CONFIG_NAME, read_json
from nemotron_core.errors import NemotronError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
ADAPTER_NAME = "adapter_config.json"
INDEX_LIMIT = 64 << 20
"""Largest size in bytes of the index."""
MARKS = (CONFIG_NAME, ADAPTER_NAME, INDEX_NAME, SINGLE_NAME)
"""Files of which every Hugging Face folder has one."""
SHARD_NAME = re.compile(r"model-\d+-of-\d+\.safetensors")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""Ends of the names of files whose weights are pickled."""
SHOWN_FILES = 5
"""Largest number of files or tensors that an error names."""


def is_hf_folder(archive: Archive) -> bool:
    """Return whether this looks like a Hugging Face folder, of whatever model."""
    return any(name in archive.members for name in MARKS)


def require_model(archive: Archive) -> None:
    """Raise `NemotronError` if the folder holds an adapter, or no configuration of a model."""
    if ADAPTER_NAME in archive.members:
        raise NemotronError(
            f"{ADAPTER_NAME}: this is an adapter (LoRA or another of PEFT's), not a model",
            where=archive.path,
            remedy="merge it into its base model with PEFT's merge_and_unload, and convert that",
        )
    if CONFIG_NAME not in archive.members:
        raise NemotronError(
            f"no {CONFIG_NAME} beside the weights",
            where=archive.path,
            remedy="finish the download with `hf download`, or name the folder of the whole model",
        )


@dataclass(frozen=True)
class Weight:
    """A stored tensor and the file that holds it."""

    member: Member
    stored: StoredTensor


def open_weights(archive: Archive) -> dict[str, Weight]:
    """Return all tensors of the folder by name, without reading them.

    Raises `NemotronError` if there are no safetensors, a file is missing or damaged, or the index
    and the files disagree.
    """
    weight_map = _weight_map(archive)
    if weight_map is None:
        return _read_file(archive, SINGLE_NAME)
    weights: dict[str, Weight] = {}
    for name in sorted(set(weight_map.values())):
        weights |= _read_file(archive, name)
    for tensor, name in weight_map.items():
        if tensor not in weights or weights[tensor].member.name != name:
            _index_error(archive, f"tensor {tensor} is not in {name}, where the index has it")
    if extra := sorted(weights.keys() - weight_map.keys()):
        _index_error(archive, f"the index lacks {_some(extra)}, which a file has")
    return weights


def weight_files(archive: Archive) -> list[str]:
    """Return the names of the files that decide the weights."""
    weight_map = _weight_map(archive)
    return [SINGLE_NAME] if weight_map is None else [INDEX_NAME, *sorted(set(weight_map.values()))]


def _weight_map(archive: Archive) -> Mapping[str, str] | None:
    """Return the file of each tensor by the index, or `None` if there is one file without one."""
    shards = sorted(name for name in archive.members if SHARD_NAME.fullmatch(name))
    if INDEX_NAME not in archive.members:
        if SINGLE_NAME in archive.members and not shards:
            return None
        _refuse_without_index(archive, shards)
    weight_map = read_json(archive, INDEX_NAME, limit=INDEX_LIMIT).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(name, str) for name in weight_map.values()
    ):
        _index_error(archive, "weight_map is no mapping from tensors to files")
    names = set(weight_map.values())
    for name in sorted(names):
        if PurePosixPath(name).name != name or not name.endswith(".safetensors"):
            _index_error(archive, f"{short_name(name)} is no name of a safetensors file")
    if missing := sorted(names - archive.members.keys()):
        raise NemotronError(
            f"{_some(missing)} missing, which {INDEX_NAME} names",
            where=archive.path,
            remedy="finish the download with `hf download`, or copy the folder again",
        )
    if extra := sorted({*shards, SINGLE_NAME} & archive.members.keys() - names):
        _index_error(archive, f"the index does not name {_some(extra)}, which is there")
    return weight_map


def _refuse_without_index(archive: Archive, shards: Collection[str]) -> NoReturn:
    if shards:
        raise NemotronError(
            f"no {INDEX_NAME}, but {_some(sorted(shards))}",
            where=archive.path,
            remedy="finish the download with `hf download`, or copy the folder again",
        )
    pickled = sorted(name for name in archive.members if name.endswith(PICKLES))
    if pickled:
        raise NemotronError(
            f"the weights are pickled ({_some(pickled)}), and a pickle can run any code",
            where=archive.path,
            remedy="load the model with transformers, if you trust it, and save it with "
            "save_pretrained, which writes safetensors",
        )
    raise NemotronError(
        f"no {SINGLE_NAME} and no {INDEX_NAME} in it: there are no weights",
        where=archive.path,
        remedy="finish the download with `hf download`",
    )


def _read_file(archive: Archive, name: str) -> dict[str, Weight]:
    """Return the tensors of one file. Raises `NemotronError` if it is damaged."""
    member = archive.members[name]
    refuse_pointer(archive, member)

    def read(offset: int, length: int) -> bytes:
        buffer = bytearray(length)
        archive.read_into(member, offset, memoryview(buffer))
        return bytes(buffer)

    try:
        tensors = read_tensors(read, member.size)
    except ValueError as error:
        raise NemotronError(
            f"not a whole safetensors file: {error}"[:300],
            where=f"{archive.path}: {name}",
            remedy="finish the download with `hf download`, or copy the folder again",
        ) from error
    return {tensor: Weight(member, stored) for tensor, stored in tensors.items()}


def _index_error(archive: Archive, what: str) -> NoReturn:
    raise NemotronError(
        what,
        where=f"{archive.path}: {INDEX_NAME}",
        remedy="download the folder again into an empty one",
    )


def _some(names: Collection[str]) -> str:
    """Return some of the names, and how many others there are."""
    shown = list(names)[:SHOWN_FILES]
    rest = len(names) - len(shown)
    return ", ".join(name[:100] for name in shown) + (f" and {rest} more" if rest else "")
