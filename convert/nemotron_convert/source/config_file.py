"""Reader of the model's configuration, `model_config.yaml` or NeMo 2's `model.yaml`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NoReturn

import yaml

from nemotron_convert.source import nemo2
from nemotron_convert.source.archive import Archive, read_bytes
from nemotron_core.errors import NemotronError
from nemotron_core.model_config import ModelConfig

CONFIG_NAME = "model_config.yaml"
CONFIG_LIMIT = 1 << 20
"""Largest size in bytes of the file."""
INTERPOLATED_MULTIPLE = re.compile(r"^\$\{multiply:\s*(\d+)\s*,\s*\$\{\.hidden_size\}\s*\}$")
"""OmegaConf's way to write a multiple of the hidden size."""
LARGEST = 1e30
"""Upper bound of every real number. YAML can write integers that are too large for a float."""
NUMBER = re.compile(r"\d+(\.\d+)?[eE][-+]?\d+")
"""A number such as 1e-05, which is a number in YAML 1.2 but a string to PyYAML."""


def find_root(archive: Archive) -> tuple[str, bool]:
    """Return the archive's folder that holds the model ("" or "name/") and whether NeMo 2 wrote it.

    A `.nemo` has `model_config.yaml` there, NeMo 2 has `context/model.yaml`. Raises `NemotronError`
    if there is not exactly one such file.
    """
    roots = [
        (name.removesuffix(config), config == nemo2.CONFIG_NAME)
        for name in archive.members
        for config in (CONFIG_NAME, nemo2.CONFIG_NAME)
        if re.fullmatch(r"([^/]+/)?" + re.escape(config), name)
    ]
    if not roots:
        raise NemotronError(
            f"no {CONFIG_NAME} in it, so this is not a .nemo checkpoint", where=archive.path
        )
    if len(roots) > 1:
        raise NemotronError(f"more than one {CONFIG_NAME} in it", where=archive.path)
    return roots[0]


def read_model_config(archive: Archive) -> ModelConfig:
    """Read and check the configuration. Raises `NemotronError` that names the key that is wrong."""
    root, is_nemo2 = find_root(archive)
    name = root + (nemo2.CONFIG_NAME if is_nemo2 else CONFIG_NAME)
    where = f"{archive.path}: {name}"
    raw = _load_yaml(read_bytes(archive, name, limit=CONFIG_LIMIT), where)
    if not isinstance(raw, dict):
        raise NemotronError("not a YAML mapping", where=where)
    if is_nemo2:
        raw = nemo2.translate_config(raw, archive, root)
    return _Reader(raw, where, archive, root).model_config()


class _PlainLoader(yaml.SafeLoader):
    """A loader of YAML's plain values without merge keys.

    NeMo writes no merge keys, and with them a few bytes can expand to gigabytes.
    """

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, "merge keys", key.start_mark)


def _load_yaml(data: bytes, where: str) -> Any:
    """Return the value of a YAML file. Raises `NemotronError` for anything but plain values."""
    try:
        return yaml.load(data, _PlainLoader)  # noqa: S506 - it is a SafeLoader
    except (
        *(yaml.YAMLError, RecursionError),
        *(AttributeError, LookupError, TypeError, ValueError, ArithmeticError),  # "!!int text"
    ) as error:
        raise NemotronError(f"not plain YAML: {error}"[:300], where=where) from error


class _Reader:
    """Reads the keys of one configuration. Every method raises `NemotronError` for a wrong key."""

    def __init__(self, raw: Mapping[str, Any], where: str, archive: Archive, root: str) -> None:
        self._raw = raw
        self._where = where
        self._archive = archive
        self._root = root

    def model_config(self) -> ModelConfig:
        hidden = self._positive_int("hidden_size")
        heads = self._positive_int("num_attention_heads")
        kv_heads = self._positive_int("num_query_groups", default=heads)
        head_size = self._positive_int("kv_channels", default=hidden // heads)
        if heads % kv_heads:
            self._fail("num_query_groups", f"{kv_heads} does not divide the {heads} heads")
        self._require("activation", "squared-relu")
        self._require("position_embedding_type", "rope")
        self._require("bias", False)
        self._require("share_embeddings_and_output_weights", False)
        normalization = self._raw.get("normalization", "layernorm")
        if normalization not in ("layernorm", "layernorm1p"):
            self._fail("normalization", f"{_short(normalization)} is not Nemotron-4's LayerNorm1P")
        positions = "max_position_embeddings"
        return ModelConfig(
            num_layers=self._positive_int("num_layers"),
            hidden_size=hidden,
            intermediate_size=self._intermediate_size(hidden),
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_size=head_size,
            max_positions=self._positive_int(
                positions if self._raw.get(positions) is not None else "encoder_seq_length"
            ),
            norm_eps=self._positive_float("layernorm_epsilon", 1e-5),
            rotary_pct=self._rotary_pct(head_size),
            rotary_base=self._positive_float("rotary_base", 10000.0),
            gamma_is_centered=normalization == "layernorm1p"
            or self._raw.get("layernorm_zero_centered_gamma") is True,
            tokenizer_member=self._tokenizer_member(),
        )

    def _intermediate_size(self, hidden: int) -> int:
        raw = self._raw.get("ffn_hidden_size")
        multiple = INTERPOLATED_MULTIPLE.match(raw) if isinstance(raw, str) else None
        return int(multiple[1]) * hidden if multiple else self._positive_int("ffn_hidden_size")

    def _rotary_pct(self, head_size: int) -> float:
        fraction = self._positive_float("rotary_percentage", 1.0)
        width = fraction * head_size
        if fraction > 1 or width != int(width) or int(width) % 2:
            self._fail("rotary_percentage", f"{fraction} of a head of {head_size} is no even width")
        return fraction

    def _tokenizer_member(self) -> str:
        """Return the name of the archive's member that is the SentencePiece model."""
        tokenizer = self._raw.get("tokenizer")
        tokenizer = tokenizer if isinstance(tokenizer, dict) else {}
        for key in ("model", "tokenizer_model"):
            name = tokenizer.get(key)
            if isinstance(name, str) and name.startswith("nemo:"):
                # Members are looked up by name, so a name with `..` does not exist.
                member = self._root + name.removeprefix("nemo:")
                if member not in self._archive.members:
                    self._fail(f"tokenizer.{key}", f"{name!r} is not in the archive")
                return member
        return self._fail("tokenizer.model", "no nemo:<file> there or in tokenizer.tokenizer_model")

    def _positive_int(self, key: str, default: int | None = None) -> int:
        value = self._raw.get(key)
        if value is None and default is not None:
            value = default
        if type(value) is not int or not 0 < value < 1 << 31:
            self._fail(key, f"expected a positive integer, got {_short(value)}")
        return value

    def _positive_float(self, key: str, default: float) -> float:
        value = self._raw.get(key)
        if value is None:
            return default
        if isinstance(value, str) and NUMBER.fullmatch(value):
            value = float(value)
        if type(value) not in (int, float) or not 0 < value < LARGEST:
            self._fail(key, f"expected a positive number, got {_short(value)}")
        return float(value)

    def _require(self, key: str, expected: object) -> None:
        value = self._raw.get(key)
        if value != expected:
            self._fail(key, f"{_short(value)}, but Nemotron-4 has {expected!r}")

    def _fail(self, key: str, fault: str) -> NoReturn:
        raise NemotronError(f"{key}: {fault}", where=self._where)


def _short(value: object) -> str:
    """Return a value for a message. With aliases, a few bytes of YAML can print as gigabytes."""
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)[:80]
    return f"a {type(value).__name__}"
