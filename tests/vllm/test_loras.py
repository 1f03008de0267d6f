"""LoRA adapters by name on a real vLLM, in one batch with the model itself and in turn."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import NemotronForCausalLM

from nemotron_core.errors import NemotronError
from nemotron_engine.probe import Probe
from tests.engine.process import Connection, engine_process
from tests.engine.requests import request
from tests.peft_folder import merge, write_adapter
from tests.tiny_nemotron.reference import load_hf_model
from tests.vllm.fixtures import PYTHON
from tests.waiting import WAIT

PROMPT = [4, 20, 30, 400, 500]
PROJECTIONS = {
    "attention": ("q_proj", "v_proj"),
    "all": ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"),
}
TOLERANCE = 0.15
"""Largest difference of a log-probability that BF16 makes."""


@pytest.fixture(scope="module")
def adapters(checkpoint_hf64: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    model = load_hf_model(checkpoint_hf64)
    folder = tmp_path_factory.mktemp("adapters")
    return {
        name: write_adapter(folder / name, model, projections, seed=number)
        for number, (name, projections) in enumerate(PROJECTIONS.items())
    }


@pytest.fixture(scope="module")
def socket(
    engine_vllm: Path, adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("socket")
    folder.chmod(0o700)
    options = ("--lora", f"attention={adapters['attention']}")
    with engine_process(
        engine_vllm, "vllm", *options, path=folder / "engine.sock", python=PYTHON
    ) as (_, path):
        yield path


@torch.inference_mode()
def reference(model: NemotronForCausalLM) -> torch.Tensor:
    """The log-probabilities of the token after the prompt."""
    return model(torch.tensor([PROMPT])).logits[0, -1].float().log_softmax(-1)


def answers(path: Path, loras: list[str]) -> list[tuple[int, float]]:
    """The first tokens of requests in one batch, with their log-probabilities."""
    asked = [request(PROMPT, lora=lora, max_tokens=6, end_ids=[], log_probs=True) for lora in loras]
    with Connection(path) as client:
        client.ask(*asked)
        firsts = [client.chunks(one)[0] for one in asked]
    return [(first.token_ids[0], first.log_probs[0]) for first in firsts]


def test_the_model_and_two_adapters_in_one_batch(
    socket: Path, adapters: dict[str, Path], checkpoint_hf64: Path
) -> None:
    expected = {"": reference(load_hf_model(checkpoint_hf64))}
    for name, folder in adapters.items():
        expected[name] = reference(merge(load_hf_model(checkpoint_hf64), folder))
    for name in adapters:
        assert (expected[name] - expected[""]).abs().max() > 1  # they change something
    with Probe(socket, WAIT) as probe:
        assert probe.load_lora("all", str(adapters["all"])) == ["attention", "all"]
        with pytest.raises(NemotronError, match="holds 2 adapters already"):
            probe.load_lora("more", str(adapters["all"]))
    before = answers(socket, [""])
    mixed = ["", "attention", "all", "", "all", "attention", ""]
    for lora, (id_, log_prob) in zip(mixed, answers(socket, mixed), strict=True):
        assert log_prob == pytest.approx(float(expected[lora][id_]), abs=TOLERANCE), lora
        assert float(expected[lora].max()) - float(expected[lora][id_]) < TOLERANCE
    for lora in ("all", "attention"):
        ((id_, log_prob),) = answers(socket, [lora])
        assert log_prob == pytest.approx(float(expected[lora][id_]), abs=TOLERANCE)
    assert answers(socket, [""]) == before
    with Probe(socket, WAIT) as probe:
        assert probe.unload_lora("all") == ["attention"]
    with pytest.raises(NemotronError, match="there is no adapter 'all'"):
        refused(socket, "all")


def refused(path: Path, lora: str) -> None:
    asked = request(PROMPT, lora=lora)
    with Connection(path) as client:
        client.ask(asked)
        raise client.chunks(asked)[-1].failure()


def test_what_would_end_vllm_is_refused(
    socket: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    config = json.loads((adapters["all"] / "adapter_config.json").read_text())
    (broken / "adapter_config.json").write_text(json.dumps(config | {"r": 64}))
    with Probe(socket, WAIT) as probe:
        for folder in (tmp_path / "missing", broken, tmp_path):
            with pytest.raises(NemotronError):
                probe.load_lora("other", str(folder))
        assert probe.load().loras == ["attention"]
    assert len(answers(socket, ["", "attention"])) == 2
