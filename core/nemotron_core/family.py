"""The models of this architecture, as data: their shapes, names and licences.

The converter and the engines read a model's shape from its own files. This table is for plans of a
model that is not here yet, and for the tests, which convert a random model of each shape.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from nemotron_core.model_config import TOKENIZER_NAME, ModelConfig

VOCABULARY = 256_000
"""Number of rows of the embedding of every model of the family."""
OPEN_LICENCE = "NVIDIA Open Model License"
COMMUNITY_LICENCE = "NVIDIA Community Model License"
FOUNDATION_LICENCE = "NVIDIA AI Foundation Models Community License"


@dataclass(frozen=True)
class FamilyModel:
    """A published model. Its vocabulary is `VOCABULARY`, and its head is not tied."""

    repository: str | None
    """Its name on the Hugging Face hub; `None` if it is not there."""
    config: ModelConfig
    licence: str
    shape_from: str
    """Where the shape was read."""


def _shape(layers: int, hidden: int, ffn: int, heads: int, kv: int, size: int = 128) -> ModelConfig:
    return ModelConfig(
        num_layers=layers,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_heads=heads,
        num_kv_heads=kv,
        head_size=size,
        max_positions=4096,
        norm_eps=1e-5,
        rotary_pct=0.5,
        rotary_base=10000.0,
        gamma_is_centered=True,
        tokenizer_member=TOKENIZER_NAME,
    )


_NEMO = "NVIDIA/NeMo, nemo/collections/llm/gpt/model/nemotron.py, "
_4B = _shape(32, 3072, 9216, 24, 8)
_4B_FROM = _NEMO + "Nemotron3Config4B"

FAMILY = {
    "nemotron-mini-4b-instruct": FamilyModel(
        "nvidia/Nemotron-Mini-4B-Instruct", _4B, COMMUNITY_LICENCE, _4B_FROM
    ),
    "minitron-4b-base": FamilyModel("nvidia/Minitron-4B-Base", _4B, OPEN_LICENCE, _4B_FROM),
    "minitron-8b-base": FamilyModel(
        "nvidia/Minitron-8B-Base",
        _shape(32, 4096, 16384, 48, 8),
        OPEN_LICENCE,
        "its model card (width, heads, MLP); layers, KV heads and head size are those of "
        "Nemotron-4-15B, from which it was pruned in the other sizes only",
    ),
    "nemotron-3-8b": FamilyModel(
        None, _shape(32, 4096, 16384, 32, 32), FOUNDATION_LICENCE, _NEMO + "Nemotron3Config8B"
    ),
    "nemotron-4-15b": FamilyModel(
        None, _shape(32, 6144, 24576, 48, 8), FOUNDATION_LICENCE, _NEMO + "Nemotron4Config15B"
    ),
    "nemotron-3-22b": FamilyModel(
        None, _shape(40, 6144, 24576, 48, 48), FOUNDATION_LICENCE, _NEMO + "Nemotron3Config22B"
    ),
    "nemotron-4-340b-instruct": FamilyModel(
        "nvidia/Nemotron-4-340B-Instruct",
        _shape(96, 18432, 73728, 96, 8, 192),
        OPEN_LICENCE,
        _NEMO + "Nemotron4Config340B",
    ),
}
"""The models by the names under which their servers present them."""
LARGEST = "nemotron-4-340b-instruct"
"""The model that plans are for unless another is named."""


def model_name(source: Path, *, has_own_name: bool) -> str | None:
    """Return the name under which to serve a model that was read from `source`.

    That is a name of `FAMILY` if the file, the folder or its repository in Hugging Face's cache is
    called so. Any other Hugging Face folder (`has_own_name`) gives its own name; of a `.nemo` with
    another name nothing is known, and the result is `None`.

    >>> model_name(Path("/models/Nemotron-Mini-4B-Instruct"), has_own_name=True)
    'nemotron-mini-4b-instruct'
    >>> model_name(Path("hub/models--me--My_Tuned/snapshots/0a1b"), has_own_name=True)
    'my_tuned'
    >>> model_name(Path("/models/model.nemo"), has_own_name=False)
    """
    path = source.resolve()
    snapshot = path.parent.name == "snapshots"
    own = path.parents[1].name.rpartition("--")[2] if snapshot else path.name
    name = re.sub(r"[^a-z0-9._-]+", "-", own.removesuffix(".nemo").lower()).strip("-.")
    if (known := name.replace("_", "-")) in FAMILY:
        return known
    return name or None if has_own_name else None


def aliases(name: str) -> tuple[str, ...]:
    """Return other names of a model: those of its repository, which people's programs have."""
    model = FAMILY.get(name)
    if model is None or model.repository is None:
        return ()
    return model.repository.lower(), model.repository
