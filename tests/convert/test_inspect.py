"""`nemotron inspect` on a `.nemo` and on a checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from nemotron_convert.convert import Options, convert
from nemotron_convert.inspect import inspect
from nemotron_convert.shards import Parallel
from tests.convert.nemo import GOLDEN, NEMO

NEMOTRON = str(Path(sys.executable).with_name("nemotron"))


def test_the_report_agrees_with_transformers_configuration() -> None:
    report = inspect(NEMO)
    config = json.loads((GOLDEN / "hf_tiny" / "config.json").read_text())
    assert report.config["num_layers"] == config["num_hidden_layers"]
    assert report.config["hidden_size"] == config["hidden_size"]
    assert report.config["intermediate_size"] == config["intermediate_size"]
    assert report.config["num_heads"] == config["num_attention_heads"]
    assert report.config["num_kv_heads"] == config["num_key_value_heads"]
    assert report.config["head_size"] == config["head_dim"]
    assert report.config["max_positions"] == config["max_position_embeddings"]
    assert report.config["rotary_pct"] == config["partial_rotary_factor"]
    assert report.config["rotary_base"] == config["rope_theta"]
    assert report.vocab_size == config["vocab_size"]
    weights = (GOLDEN / "hf_tiny" / "model.safetensors").stat().st_size
    assert 0 < weights - report.weight_bytes < 20_000  # all but the safetensors header
    assert report.parameters * 2 == report.weight_bytes
    assert report.allowed_tp == [1, 2, 4, 8, 16]


def test_json_is_for_programs_and_tables_for_people() -> None:
    done = subprocess.run(
        [NEMOTRON, "inspect", str(NEMO), "--json"], capture_output=True, text=True, check=True
    )
    report = json.loads(done.stdout)
    assert len(report["tensors"]) == 12
    assert report["tensors"][3]["shape"] == [4, 256, 128]
    done = subprocess.run(
        [NEMOTRON, "inspect", str(NEMO)], capture_output=True, text=True, check=True
    )
    assert f"{report['parameters']:,}" in done.stdout
    assert "linear_qkv.weight" in done.stdout


def nemotron(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [NEMOTRON, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_checkpoint_is_checked_byte_for_byte(tmp_path: Path) -> None:
    convert(NEMO, tmp_path / "out", Options(Parallel(2, 2)))
    report = json.loads(nemotron("inspect", tmp_path / "out", "--json", "--check").stdout)
    assert (report["tp"], report["pp"], report["checked"]) == (2, 2, True)
    assert report["source"] == NEMO.name
    rank = tmp_path / "out" / "rank3.safetensors"
    data = bytearray(rank.read_bytes())
    data[-1] ^= 1
    rank.write_bytes(data)
    assert nemotron("inspect", tmp_path / "out").returncode == 0
    done = nemotron("inspect", tmp_path / "out", "--check")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "changed since the conversion: rank3.safetensors" in done.stderr


def test_a_nemo_has_no_hashes_to_check() -> None:
    done = nemotron("inspect", NEMO, "--check")
    assert done.returncode == 1
    assert "only a checkpoint has hashes" in done.stderr
