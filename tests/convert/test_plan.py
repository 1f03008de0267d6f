"""`nemotron convert --plan` predicts what the conversion does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from bench.measurements.random_nemo import Shape
from nemotron_convert.calibration.options import CalibrationOptions
from nemotron_convert.convert import Options, convert
from nemotron_convert.plan import CARDS, WEIGHT_FRACTION, Plan, make_plan
from nemotron_convert.shards import Parallel
from nemotron_convert.target.layout import (
    BF16_ONLY,
    Dtype,
    Format,
    Precision,
    hf_layout,
    trtllm_layout,
)
from nemotron_core.errors import NemotronError
from nemotron_core.model_config import ModelConfig
from tests.convert.nemo import NEMO
from tests.tiny_nemotron.nemo_file import NEMO as TRAINED

NEMOTRON = str(Path(sys.executable).with_name("nemotron"))
REAL = ModelConfig(
    num_layers=96,
    hidden_size=18432,
    intermediate_size=73728,
    num_heads=96,
    num_kv_heads=8,
    head_size=192,
    max_positions=4096,
    norm_eps=1e-5,
    rotary_pct=0.5,
    rotary_base=10000.0,
    gamma_is_centered=True,
    tokenizer_member="tokenizer.model",
)
PARAMETERS = 341_029_195_776


def plan_of_the_real_model(parallel: Parallel) -> Plan:
    """Return a plan for the sizes of Nemotron-4-340B; the rest is left empty."""
    return Plan(
        source="real",
        output=Path("out"),
        layout=trtllm_layout(REAL, 256000, parallel, BF16_ONLY),
        shapes={},
        to_read=2 * PARAMETERS,
        to_write=0,
        missing=0,
        free=0,
        memory=0,
        read_rate=1.0,
        write_rate=1.0,
    )


@pytest.mark.parametrize(
    ("parallel", "gib", "fitting"),
    [
        (Parallel(8, 1), 79.4, {"H100 NVL 94 GB", "H200 141 GB", "B200 180 GB"}),
        (Parallel(8, 2), 39.7, set(CARDS) - {"A100 40 GB"}),
    ],
)
def test_the_340b_against_known_cards(parallel: Parallel, gib: float, fitting: set[str]) -> None:
    plan = plan_of_the_real_model(parallel)
    assert plan.largest_file / 2**30 == pytest.approx(gib, abs=0.06)
    fits = {card for card, memory in CARDS.items() if plan.largest_file <= memory * WEIGHT_FRACTION}
    assert fits == fitting


def test_the_340b_in_hugging_face_shards() -> None:
    layout = hf_layout(REAL, 256000, BF16_ONLY)
    sizes = [sum(spec.nbytes for spec in file.values()) for file in layout.files.values()]
    assert sum(sizes) == 2 * PARAMETERS
    assert max(sizes) <= 10_000_000_000


@pytest.mark.parametrize("options", [Options(Parallel(8, 1)), Options(Parallel(1, 1), Format.HF)])
def test_the_plan_predicts_the_conversion(options: Options, tmp_path: Path) -> None:
    plan = make_plan(NEMO, tmp_path / "out", options)
    plan.check()
    assert plan.read_rate > 0
    assert plan.write_rate > 0
    assert plan.seconds == pytest.approx(
        plan.to_read / plan.read_rate + plan.to_write / plan.write_rate
    )
    assert list(tmp_path.iterdir()) == []
    manifest = convert(NEMO, tmp_path / "out", options)
    tensors = {name: entry for name, entry in manifest.files.items() if name in plan.layout.files}
    assert sum(entry.size for entry in tensors.values()) == plan.missing
    with pytest.raises(NemotronError, match="not an empty folder"):
        plan.check()


def test_the_command_prints_the_plan_and_fails_early(tmp_path: Path) -> None:
    command = [NEMOTRON, "convert", str(NEMO), "-o", str(tmp_path / "out"), "--plan"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for word in ("model.output_layer.weight", "lm_head.weight", "H200", "free", "memory", "time"):
        assert word in done.stdout
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    facts = json.loads(done.stdout)
    assert sum(facts["files"].values()) == facts["write"]
    assert facts["disk"] <= facts["free"] and facts["calibration"] is None
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").write_text("mine")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "not an empty folder" in done.stderr


def test_the_random_model_has_the_size_it_says() -> None:
    real = Shape(layers=96, hidden=18432, heads=96, kv_heads=8, vocab=256000)
    assert real.nbytes == 2 * PARAMETERS


def test_the_plan_of_fp8_counts_its_calibration(tmp_path: Path) -> None:
    """Per token two operations for each weight of a linear layer, and each layer is read once."""
    options = Options(Parallel(8, 1), precision=Precision(Dtype.FP8))
    plan = make_plan(NEMO, tmp_path / "out", options)
    cost = plan.calibration
    assert cost is not None
    assert cost.built_in
    weights = 4 * (256 * 128 + 128 * 128 + 2 * 512 * 128)
    assert cost.flop == 2 * weights * cost.tokens
    assert cost.to_read == 2 * weights
    assert cost.disk == 2 * cost.tokens * 128 * 2
    assert plan.disk == plan.missing + cost.disk
    assert cost.seconds(1e3) == pytest.approx(cost.to_read / 1e3)  # read while it is computed
    assert cost.seconds(1e30) == pytest.approx(cost.flop / cost.flops)
    assert (cost.devices, cost.states) == (("cpu",), "in the CPU's memory")
    assert cost.device_memory > 2 * 2 * weights // 4  # two layers of four
    console = Console(record=True, width=200)
    plan.print(console)
    text = console.export_text()
    assert f"this project's own texts, {cost.tokens:,} tokens" in text
    for line in text.splitlines():
        if "GiB" in line:
            assert ("cannot compute in FP8" in line) == ("A100" in line)


def test_an_earlier_calibration_costs_nothing(checkpoint_fp8: Path, tmp_path: Path) -> None:
    scales = CalibrationOptions(scales=checkpoint_fp8 / "calibration.json")
    options = Options(Parallel(8, 1), precision=Precision(Dtype.FP8), calibration=scales)
    assert make_plan(TRAINED, tmp_path / "out", options).calibration is None
