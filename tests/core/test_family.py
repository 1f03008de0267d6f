"""The names under which models are served."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemotron_core.family import FAMILY, aliases, model_name
from nemotron_gateway.settings import load_settings

NAMES = {
    ("Nemotron-4-340B-Instruct.nemo", False): "nemotron-4-340b-instruct",
    ("nemotron_4_340b_instruct", False): "nemotron-4-340b-instruct",
    ("model.nemo", False): None,
    ("Minitron-8B-Base", True): "minitron-8b-base",
    ("my-minitron-8b-base-sft", True): "my-minitron-8b-base-sft",
    ("nemotron-4-340b-instruct-sft.nemo", False): None,
    ("my tuned Minitron!", True): "my-tuned-minitron",
    ("models--nvidia--Nemotron-Mini-4B-Instruct/snapshots/0a1", True): "nemotron-mini-4b-instruct",
    ("models--me--tuned/snapshots/0a1", True): "tuned",
}


@pytest.mark.parametrize(("path", "has_own_name"), NAMES)
def test_a_model_is_named_by_its_file_or_repository(path: str, has_own_name: bool) -> None:
    assert model_name(Path("/data") / path, has_own_name=has_own_name) == NAMES[path, has_own_name]


def test_aliases_are_the_repositorys_names() -> None:
    assert aliases("minitron-4b-base") == ("nvidia/minitron-4b-base", "nvidia/Minitron-4B-Base")
    assert aliases("nemotron-4-15b") == ()
    assert aliases("tuned") == ()
    assert "nemotron-4-340b-instruct" in FAMILY


def test_the_gateways_settings_count_before_the_model_that_is_served(tmp_path: Path) -> None:
    assert load_settings(None, {}).model == "nemotron-4-340b-instruct"
    served = load_settings(None, {}, "minitron-8b-base")
    assert (served.model, served.aliases) == ("minitron-8b-base", aliases("minitron-8b-base"))
    (tmp_path / "settings.yaml").write_text("model: ours\naliases: [theirs]\n")
    chosen = load_settings(tmp_path / "settings.yaml", {}, "minitron-8b-base")
    assert (chosen.model, chosen.aliases) == ("ours", ("theirs",))
