"""Configurations whose YAML would run code, expand to gigabytes or point outside."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.attacks.guard import Attack, Build, try_attack
from tests.convert.nemo import edit_config, unpack
from tests.convert.test_torch_dist import nemo2

LAUGHS = "a0: &a0 [x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 40)
)
MERGES = "m0: &m0 {x: 1}\n" + "".join(
    f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 9)}]}}\n" for i in range(1, 40)
)


def changed(old: str, new: str) -> Build:
    def build(folder: Path) -> Path:
        nemo = unpack(folder / "in")
        assert old in (nemo / "model_config.yaml").read_text()
        return edit_config(nemo, lambda text: text.replace(old, new))

    return build


def nemo2_activation(folder: Path) -> Path:
    """A NeMo 2 folder whose activation is a list that aliases make too long to print."""
    nemo = nemo2(folder / "in", zarr=True)
    path = nemo / "context" / "model.yaml"
    old = "_target_: nemo.collections.llm.fn.activation.squared_relu"
    assert old in path.read_text()
    path.write_text(LAUGHS + path.read_text().replace(old, "_target_: *a39"))
    return nemo


def layers(value: str) -> Build:
    return changed("num_layers: 4", f"num_layers: {value}")


YAML = r"not plain YAML.*model_config\.yaml"
LAYERS = "num_layers: expected a positive integer"
ATTACKS = {
    "YAML: object": Attack(layers("!!python/object/apply:os.system [touch ../canary]"), YAML),
    "YAML: name of a function": Attack(layers("!!python/name:os.system"), YAML),
    "YAML: aliases that multiply": Attack(
        changed("num_layers: 4", LAUGHS + "num_layers: *a39"), f"{LAYERS}, got a list"
    ),
    "YAML: merge keys that multiply": Attack(
        changed("num_layers: 4", MERGES + "num_layers: *m39"), "merge keys"
    ),
    "YAML: aliases that multiply in NeMo 2": Attack(
        nemo2_activation, "activation: a list, but Nemotron-4 has"
    ),
    "YAML: a list in itself": Attack(layers("&a [*a]"), f"{LAYERS}, got a list"),
    "YAML: nested": Attack(layers("[" * 500), YAML),
    "YAML: a megabyte": Attack(layers("4 #" + " " * (1 << 20)), r"yaml has .* more than"),
    "YAML: tag without its value": Attack(layers("!!int x"), YAML),
    "YAML: number of 5000 digits": Attack(layers("9" * 5000), YAML),
    "YAML: number too long to print": Attack(layers("0x" + "f" * 5000), "an integer of 20000 bits"),
    "YAML: key too long to print": Attack(
        changed("num_layers: 4", "num_layers: 4\n? 0x" + "f" * 5000 + "\n: 1"), "an integer of"
    ),
    "YAML: number no float holds": Attack(
        changed("layernorm_epsilon: 1.0e-05", "layernorm_epsilon: 1" + "0" * 400),
        "layernorm_epsilon: expected a positive number",
    ),
    "YAML: infinity": Attack(
        changed("layernorm_epsilon: 1.0e-05", "layernorm_epsilon: .inf"), "layernorm_epsilon"
    ),
    "YAML: a boolean for a number": Attack(layers("true"), LAYERS),
    "YAML: heads of no width": Attack(
        changed("num_attention_heads: 16", "num_attention_heads: 1024"),
        "kv_channels: expected a positive integer, got 0",
    ),
    "YAML: tokenizer outside": Attack(
        changed("nemo:", "nemo:../../canary#"), r"'nemo:\.\./\.\./canary.*' is not in the archive"
    ),
    "YAML: tokenizer at an absolute path": Attack(
        changed("nemo:", "nemo:/etc/passwd#"), "'nemo:/etc/passwd.*' is not in the archive"
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_configuration(name: str, tmp_path: Path) -> None:
    try_attack(ATTACKS[name], tmp_path)
