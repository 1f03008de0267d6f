"""Reader of the model's configuration, `model_config.yaml` or NeMo 2's `model.yaml`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import yaml

from nemotron_convert.source import nemo2
from nemotron_convert.source.archive import Archive, read_bytes
from nemotron_convert.source.reward_head import reward_faults
from nemotron_convert.source.settings import other_settings, settings_faults, short_text
from nemotron_core.errors import NemotronError
from nemotron_core.model_config import ModelConfig

CONFIG_NAME = "model_config.yaml"
CONFIG_NAMES = (CONFIG_NAME, nemo2.CONFIG_NAME)
"""Names of the configuration in a `.nemo` and in a NeMo 2 folder."""
CONFIG_LIMIT = 1 << 20
"""Largest size in bytes of the file."""
INTERPOLATED_MULTIPLE = re.compile(r"^\$\{multiply:\s*(\d+)\s*,\s*\$\{\.hidden_size\}\s*\}$")
"""OmegaConf's way to write a multiple of the hidden size."""
REFERENCE = re.compile(r"^\$\{\.(\w+)\}$")
"""OmegaConf's way to write the value of another key."""
LARGEST = 1e30
"""Upper bound of every real number. YAML can write integers that are too large for a float."""
INTEGER_BITS = 4096
"""Largest size of an integer, far above that of any setting."""
NUMBER = re.compile(r"\d+(\.\d+)?[eE][-+]?\d+")
"""A number such as 1e-05, which is a number in YAML 1.2 but a string to PyYAML."""


def find_root(archive: Archive) -> tuple[str, bool]:
    """Return the archive's folder that holds the model ("" or "name/") and whether NeMo 2 wrote it.

    A `.nemo` has `model_config.yaml` there, NeMo 2 has `context/model.yaml`. Raises `NemotronError`
    if there is not exactly one such file.
    """
    roots = _roots(archive)
    if not roots:
        raise NemotronError(
            f"no {CONFIG_NAME} in it, so this is not a .nemo checkpoint, and "
            "no config.json, so it is no Hugging Face folder",
            where=archive.path,
        )
    if len(roots) > 1:
        raise NemotronError(f"more than one {CONFIG_NAME} in it", where=archive.path)
    return roots[0]


def has_root(archive: Archive) -> bool:
    """Return whether NeMo's configuration lies at the top of the archive, not in a folder of it."""
    return any(root == "" for root, _ in _roots(archive))


def _roots(archive: Archive) -> list[tuple[str, bool]]:
    return [
        (name.removesuffix(config), config == nemo2.CONFIG_NAME)
        for name in archive.members
        for config in CONFIG_NAMES
        if re.fullmatch(r"([^/]+/)?" + re.escape(config), name)
    ]


@dataclass(frozen=True)
class ModelSettings:
    """The content of a configuration."""

    model: ModelConfig
    raw: Mapping[str, Any]
    """All settings, under the names that a `.nemo` has for them."""
    faults: list[str]
    """Settings that change the arithmetic and are not carried out, as text."""
    others: dict[str, str]
    """Settings that do not matter to a finished model, as text."""

    def require_known(self, where: object) -> None:
        """Raise `NemotronError` if a setting changes the arithmetic and is not carried out."""
        if self.faults:
            raise NemotronError(
                f"Nemotron-4 has no such setting: {'; '.join(self.faults)}",
                where=where,
                remedy="this is another model, which cannot be converted",
            )


def read_settings(archive: Archive, root: str, *, is_nemo2: bool) -> ModelSettings:
    """Read and check the configuration. Raises `NemotronError` that names the key that is wrong."""
    name = root + (nemo2.CONFIG_NAME if is_nemo2 else CONFIG_NAME)
    where = f"{archive.path}: {name}"
    raw = _load_yaml(read_bytes(archive, name, limit=CONFIG_LIMIT), where)
    if not isinstance(raw, dict):
        raise NemotronError("not a YAML mapping", where=where)
    if is_nemo2:
        raw = nemo2.translate_config(raw, archive, root)
    is_adapter = is_nemo2 and "peft" in raw
    return settings_of(raw, where, archive, root, needs_tokenizer=not is_adapter)


def settings_of(
    raw: Mapping[str, Any],
    where: str,
    archive: Archive,
    root: str,
    spelling: Mapping[str, str] | None = None,
    *,
    needs_tokenizer: bool = True,
) -> ModelSettings:
    """Check settings under a `.nemo`'s names. Raises `NemotronError` that names the wrong key.

    `spelling` has the names that the file at `where` has for them, as far as they differ.
    """
    reader = _Reader(raw, where, archive, root, spelling or {})
    model = reader.model_config(needs_tokenizer=needs_tokenizer)
    others = other_settings(raw, frozenset(reader.used))
    return ModelSettings(model, raw, settings_faults(raw) + reward_faults(raw), others)


class _PlainLoader(yaml.SafeLoader):
    """A loader of YAML's plain values without merge keys and enormous integers.

    NeMo writes neither. With merge keys, a few bytes can expand to gigabytes, and Python refuses to
    print an integer of thousands of digits, which hexadecimal ones can have.
    """

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, "merge keys", key.start_mark)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        number: int = super().construct_yaml_int(node)
        if number.bit_length() > INTEGER_BITS:
            raise ValueError(f"an integer of {number.bit_length()} bits")
        return number


_PlainLoader.add_constructor("tag:yaml.org,2002:int", _PlainLoader.construct_yaml_int)


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

    def __init__(
        self,
        raw: Mapping[str, Any],
        where: str,
        archive: Archive,
        root: str,
        spelling: Mapping[str, str],
    ) -> None:
        self._raw = raw
        self._spelling = spelling
        self._where = where
        self._archive = archive
        self._root = root
        self.used: set[str] = set()
        """The keys that were read."""

    def model_config(self, *, needs_tokenizer: bool) -> ModelConfig:
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
        normalization = self._get("normalization", "layernorm")
        if normalization not in ("layernorm", "layernorm1p"):
            self._fail("normalization", f"{_quoted(normalization)} is not Nemotron-4's LayerNorm1P")
        positions = "max_position_embeddings"
        return ModelConfig(
            num_layers=self._positive_int("num_layers"),
            hidden_size=hidden,
            intermediate_size=self._intermediate_size(hidden),
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_size=head_size,
            max_positions=self._positive_int(
                positions if self._get(positions) is not None else "encoder_seq_length"
            ),
            norm_eps=self._positive_float("layernorm_epsilon", 1e-5),
            rotary_pct=self._rotary_pct(head_size),
            rotary_base=self._positive_float("rotary_base", 10000.0),
            gamma_is_centered=normalization == "layernorm1p"
            or self._get("layernorm_zero_centered_gamma") is True,
            tokenizer_member=self._tokenizer_member(is_needed=needs_tokenizer),
        )

    def _intermediate_size(self, hidden: int) -> int:
        raw = self._get("ffn_hidden_size")
        multiple = INTERPOLATED_MULTIPLE.match(raw) if isinstance(raw, str) else None
        return int(multiple[1]) * hidden if multiple else self._positive_int("ffn_hidden_size")

    def _rotary_pct(self, head_size: int) -> float:
        fraction = self._positive_float("rotary_percentage", 1.0)
        width = fraction * head_size
        if fraction > 1 or width != int(width) or int(width) % 2:
            self._fail("rotary_percentage", f"{fraction} of a head of {head_size} is no even width")
        return fraction

    def _tokenizer_member(self, *, is_needed: bool) -> str:
        """Return the name of the archive's member that is the SentencePiece model.

        It is empty if there is none and it is not needed.
        """
        tokenizer = self._get("tokenizer")
        tokenizer = tokenizer if isinstance(tokenizer, dict) else {}
        for key in ("model", "tokenizer_model"):
            name = tokenizer.get(key)
            if isinstance(name, str) and name.startswith("nemo:"):
                # Members are looked up by name, so a name with `..` does not exist.
                member = self._root + name.removeprefix("nemo:")
                if member not in self._archive.members:
                    self._fail(f"tokenizer.{key}", f"{name!r} is not in the archive")
                return member
        if not is_needed:
            return ""
        return self._fail("tokenizer.model", "no nemo:<file> there or in tokenizer.tokenizer_model")

    def _get(self, key: str, default: object = None) -> Any:
        """Return the value of a key. One that is the name of another key is resolved."""
        self.used.add(key)
        value = self._raw.get(key, default)
        reference = REFERENCE.match(value) if isinstance(value, str) else None
        if reference is None or reference[1] == key:
            return value
        self.used.add(reference[1])
        return self._raw.get(reference[1], value)

    def _positive_int(self, key: str, default: int | None = None) -> int:
        value = self._get(key)
        if value is None and default is not None:
            value = default
        if type(value) is not int or not 0 < value < 1 << 31:
            self._fail(key, f"expected a positive integer, got {_quoted(value)}")
        return value

    def _positive_float(self, key: str, default: float) -> float:
        value = self._get(key)
        if value is None:
            return default
        if isinstance(value, str) and NUMBER.fullmatch(value):
            value = float(value)
        if type(value) not in (int, float) or not 0 < value < LARGEST:
            self._fail(key, f"expected a positive number, got {_quoted(value)}")
        return float(value)

    def _require(self, key: str, expected: object) -> None:
        value = self._get(key)
        if value != expected:
            self._fail(key, f"{_quoted(value)}, but Nemotron-4 has {expected!r}")

    def _fail(self, key: str, fault: str) -> NoReturn:
        raise NemotronError(f"{self._spelling.get(key, key)}: {fault}", where=self._where)


def _quoted(value: object) -> str:
    return repr(value)[:80] if isinstance(value, str) else short_text(value)
