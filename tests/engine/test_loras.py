"""LoRA adapters at the engine: their names, what loads them, what refuses them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import NemotronConfig, NemotronForCausalLM

from nemotron_core.errors import ErrorKind, NemotronError
from nemotron_core.model_config import TOKENIZER_NAME
from nemotron_engine.adapters.peft_folder import check_peft_folder
from nemotron_engine.probe import Probe
from tests.engine.fake_adapter import FakeAdapter, LoraAdapter
from tests.engine.process import FAKE, LORA, Connection, engine_process, log_of
from tests.engine.requests import Engine, request
from tests.peft_folder import write_adapter
from tests.waiting import WAIT


@pytest.fixture
def engine() -> Engine:
    engine = Engine(LoraAdapter())
    engine.scheduler.load_lora("polite", Path("polite"))
    return engine


def test_a_request_names_an_adapter(engine: Engine) -> None:
    assert engine.ask([1], max_tokens=2, lora="polite").wait().token_ids == [2, 3]
    with pytest.raises(NemotronError, match=r"no adapter 'rude' \[lora_name\]: use 'polite'"):
        engine.ask([1], lora="rude").wait()
    assert engine.scheduler.load().loras == ["polite"]


def test_an_engine_without_adapters() -> None:
    engine = Engine(FakeAdapter())
    with pytest.raises(NemotronError, match="this engine has no lora"):
        engine.ask([1], lora="polite").wait()
    with pytest.raises(NemotronError, match=r"serves no LoRA adapters.*merge them"):
        engine.scheduler.load_lora("polite", Path("polite"))


@pytest.mark.parametrize(
    ("name", "folder", "words"),
    [
        ("polite", "polite", "'polite' is loaded already"),
        ("", "polite", "'' has no name"),
        ("rude", "missing", "there is no adapter"),
    ],
)
def test_what_is_not_loaded(name: str, folder: str, words: str, engine: Engine) -> None:
    with pytest.raises(NemotronError, match=words):
        engine.scheduler.load_lora(name, Path(folder))
    assert engine.scheduler.loras == ["polite"]


def test_an_adapter_in_use_is_not_unloaded(engine: Engine) -> None:
    running = engine.ask([1], max_tokens=50, lora="polite").begin()
    with pytest.raises(NemotronError, match="1 requests use the adapter 'polite'") as caught:
        engine.scheduler.unload_lora("polite")
    assert caught.value.kind is ErrorKind.OVERLOADED
    running.wait()
    engine.scheduler.unload_lora("polite")
    assert engine.scheduler.loras == []
    with pytest.raises(NemotronError, match=r"there is no adapter 'polite'.*none is loaded"):
        engine.scheduler.unload_lora("polite")


def test_over_the_socket(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / TOKENIZER_NAME).write_bytes(b"a tokenizer")
    options = ("--lora", f"polite={tmp_path}")
    with engine_process(tmp_path, LORA, *options) as (_, path), Probe(path, WAIT) as probe:
        assert probe.load().loras == ["polite"]
        assert probe.load_lora("a=b", str(tmp_path)) == ["polite", "a=b"]
        with pytest.raises(NemotronError, match="there is no adapter"):
            probe.load_lora("other", "/missing")
        assert probe.unload_lora("polite") == ["a=b"]
        with Connection(path) as client:
            client.ask(asked := request([1], max_tokens=3, lora="a=b"))
            assert client.whole(asked).token_ids == [2, 3, 4]


def test_an_engine_that_cannot_does_not_start(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / TOKENIZER_NAME).write_bytes(b"a tokenizer")
    with (
        pytest.raises(AssertionError, match="serves no LoRA adapters"),
        engine_process(tmp_path, FAKE, "--lora", "polite=folder"),
    ):
        pass
    assert "Traceback" not in log_of(tmp_path / "engine.sock")


@pytest.fixture(scope="module")
def model() -> NemotronForCausalLM:
    config = NemotronConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
    )
    return NemotronForCausalLM(config)


@pytest.fixture
def model_folder(model: NemotronForCausalLM, tmp_path: Path) -> Path:
    model.config.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")


def test_an_adapter_of_every_projection_fits(
    model: NemotronForCausalLM, model_folder: Path, tmp_path: Path
) -> None:
    check_peft_folder(write_adapter(tmp_path / "a", model, ALL, seed=1), model_folder, max_rank=4)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"use_dora": True}, "use_dora is True, which is not served by name"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is"),
        ({"r": 16}, r"its ranks are \[16\], and the engine takes 1 to 4"),
        ({"rank_pattern": {"q_proj": 16}}, "and the engine takes 1 to 4"),
        ({"r": None}, "its ranks are"),
        ({"r": True}, "its ranks are"),
        ({"lora_alpha": None}, "lora_alpha is"),
        ({"lora_alpha": "8"}, "lora_alpha is"),
        ({"lora_alpha": 0}, "lora_alpha is"),
        ({"alpha_pattern": ["x"]}, "lora_alpha is"),
    ],
)
def test_configurations_that_are_refused(
    config: dict[str, Any],
    words: str,
    model: NemotronForCausalLM,
    model_folder: Path,
    tmp_path: Path,
) -> None:
    folder = write_adapter(tmp_path / "a", model, ALL[:1], seed=1, **config)
    with pytest.raises(NemotronError, match=words):
        check_peft_folder(folder, model_folder, max_rank=4)


@pytest.mark.parametrize(
    ("key", "shape", "words"),
    [
        ("lm_head.lora_A.weight", (4, 32), "belongs to no projection"),
        ("model.layers.2.self_attn.q_proj.lora_A.weight", (4, 32), "belongs to no"),
        ("model.layers.00.self_attn.q_proj.lora_A.weight", (4, 32), "belongs to no"),
        (f"model.layers.{'1' * 5000}.self_attn.q_proj.lora_A.weight", (4, 32), "belongs to no"),
        ("model.layers.0.mlp.gate_proj.lora_A.weight", (4, 32), "belongs to no"),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", (4, 33), "size there is 32"),
        ("model.layers.0.self_attn.k_proj.lora_B.weight", (64, 4), "size there is 32"),
        ("model.layers.0.mlp.down_proj.lora_A.weight", (4, 32), "size there is 48"),
        ("model.layers.0.self_attn.q_proj.lora_magnitude_vector", (64,), "belongs to"),
        ("model.layers.0.self_attn.up_proj.lora_A.weight", (4, 32), "belongs to no"),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", (3, 32), "the rank that its config"),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", (4,), "the rank that its config"),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", (), "the rank that its config"),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", (4, 32), "are not pairs"),
    ],
)
def test_tensors_that_are_refused(
    key: str,
    shape: tuple[int, ...],
    words: str,
    model: NemotronForCausalLM,
    model_folder: Path,
    tmp_path: Path,
) -> None:
    folder = write_adapter(tmp_path / "a", model, ALL[:1], seed=1)
    save_file({f"base_model.model.{key}": torch.zeros(shape)}, folder / "adapter_model.safetensors")
    with pytest.raises(NemotronError, match=words):
        check_peft_folder(folder, model_folder, max_rank=4)


def test_an_adapter_without_tensors(
    model: NemotronForCausalLM, model_folder: Path, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "a", model, (), seed=1)
    with pytest.raises(NemotronError, match="it has no tensors"):
        check_peft_folder(folder, model_folder, max_rank=4)


def test_pickled_weights_are_not_read(
    model: NemotronForCausalLM, model_folder: Path, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "a", model, ALL[:1], seed=1)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(NemotronError, match="save it as safetensors"):
        check_peft_folder(folder, model_folder, max_rank=4)
    with pytest.raises(NemotronError, match="it is no LoRA adapter"):
        check_peft_folder(tmp_path / "missing", model_folder, max_rank=4)
