"""Engine folders and profiles: which are refused, and with which message."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nemotron_build.engine_folder import ENGINE_NAME, build_engine, check_versions, open_engine
from nemotron_build.profile import Profile, load_profile, profiles_folder
from nemotron_convert.convert import Options, convert
from nemotron_convert.shards import Parallel
from nemotron_core.errors import NemotronError
from tests.tiny_nemotron.nemo_file import NEMO


def test_any_split_gives_the_same_engine(
    tmp_path: Path, engine_bf16: Path, cpu_profile: Profile
) -> None:
    convert(NEMO, tmp_path / "checkpoint", Options(Parallel(16, 3)))
    build_engine(tmp_path / "checkpoint", tmp_path / "engine", cpu_profile)
    weights = "openvino_model.bin"
    assert (tmp_path / "engine" / weights).read_bytes() == (engine_bf16 / weights).read_bytes()


def test_an_engine_says_what_it_was_built_from(engine_bf16: Path, checkpoint_tp8: Path) -> None:
    from nemotron_convert.target.checkpoint import Checkpoint

    record = open_engine(engine_bf16)
    assert record.checkpoint == Checkpoint.open(checkpoint_tp8).hash
    assert record.lane == "cpu"
    assert set(record.files) | {ENGINE_NAME} == {path.name for path in engine_bf16.iterdir()}


def damaged(engine: Path, tmp_path: Path, **keys: object) -> Path:
    copy = shutil.copytree(engine, tmp_path / "engine")
    record = json.loads((copy / ENGINE_NAME).read_text()) | keys
    (copy / ENGINE_NAME).write_text(json.dumps(record))
    return copy


def test_an_engine_of_another_lane(engine_bf16: Path, tmp_path: Path) -> None:
    other = damaged(engine_bf16, tmp_path, lane="abacus")
    with pytest.raises(NemotronError, match=r"engine of the lane 'abacus'.*: build one with"):
        open_engine(other)


def test_an_engine_of_another_library_version(engine_bf16: Path, tmp_path: Path) -> None:
    other = damaged(engine_bf16, tmp_path, versions={"openvino": "2020.1"})
    record = open_engine(other)
    with pytest.raises(NemotronError, match=r"built with openvino 2020\.1, but .* is installed"):
        check_versions(other, record, record.profile)


def test_an_engine_of_another_format(engine_bf16: Path, tmp_path: Path) -> None:
    other = damaged(engine_bf16, tmp_path, format_version=2)
    with pytest.raises(NemotronError, match=r"format_version: .*engine\.json"):
        open_engine(other)


def test_an_engine_with_a_file_cut_short(engine_bf16: Path, tmp_path: Path) -> None:
    other = damaged(engine_bf16, tmp_path)
    os.truncate(other / "openvino_model.bin", 100)
    with pytest.raises(NemotronError, match=r"openvino_model\.bin is missing or cut short"):
        open_engine(other)


def test_a_folder_that_is_no_engine(tmp_path: Path) -> None:
    with pytest.raises(NemotronError, match=r"no engine\.json"):
        open_engine(tmp_path)


def test_a_changed_checkpoint_is_not_built(
    checkpoint_tp8: Path, tmp_path: Path, cpu_profile: Profile
) -> None:
    copy = shutil.copytree(checkpoint_tp8, tmp_path / "checkpoint")
    rank = copy / "rank3.safetensors"
    data = bytearray(rank.read_bytes())
    data[-1] ^= 1
    rank.write_bytes(data)
    with pytest.raises(NemotronError, match="changed since the conversion: rank3"):
        build_engine(copy, tmp_path / "engine", cpu_profile)
    rank.write_bytes(data[:-1])
    with pytest.raises(NemotronError, match="not a whole safetensors file"):
        build_engine(copy, tmp_path / "engine", cpu_profile)
    rank.unlink()
    with pytest.raises(NemotronError, match="cannot read"):
        build_engine(copy, tmp_path / "engine", cpu_profile)
    assert not (tmp_path / "engine").exists()


def test_an_output_that_holds_something(
    checkpoint_tp8: Path, engine_bf16: Path, cpu_profile: Profile
) -> None:
    with pytest.raises(NemotronError, match="not an empty folder"):
        build_engine(checkpoint_tp8, engine_bf16, cpu_profile)


KILLED_BUILD = """
import os, signal, sys
from pathlib import Path
from nemotron_build import engine_folder as engine
from nemotron_build.profile import load_profile
engine.hash_file = lambda path: os.kill(os.getpid(), signal.SIGKILL)
engine.build_engine(Path(sys.argv[1]), Path(sys.argv[2]), load_profile("cpu"))
"""


def test_a_killed_build_leaves_nothing_that_looks_whole(
    checkpoint_tp8: Path, tmp_path: Path, cpu_profile: Profile
) -> None:
    output = tmp_path / "engine"
    command = [sys.executable, "-c", KILLED_BUILD, str(checkpoint_tp8), str(output)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert not output.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["engine.partial"]
    build_engine(checkpoint_tp8, output, cpu_profile)
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]


def test_every_shipped_profile_loads() -> None:
    names = [path.stem for path in profiles_folder().glob("*.yaml")]
    assert "cpu" in names
    assert all(load_profile(name) for name in names)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("lane: cpu", "lane: cpu\nlanes: 2", "lanes: Extra inputs are not permitted"),
        ("lane: cpu", "lane: gpu", "'gpu' found using 'lane' does not match any of the expected"),
        ("http: 8000", "http: 80000", r"ports\.http: Input should be less than"),
        ("startup: 300", "startup: -1", r"timeouts\.startup: Input should be greater than 0"),
        ("lane: cpu", "lane: [", "not plain YAML"),
    ],
)
def test_a_profile_with_a_mistake(old: str, new: str, message: str, tmp_path: Path) -> None:
    text = (profiles_folder() / "cpu.yaml").read_text()
    assert old in text
    (tmp_path / "mine.yaml").write_text(text.replace(old, new))
    with pytest.raises(NemotronError, match=message):
        load_profile(str(tmp_path / "mine.yaml"))


def test_a_profile_that_is_not_there() -> None:
    with pytest.raises(NemotronError, match=r"no profile 'gpu' \[--profile\]: use one of .*cpu"):
        load_profile("gpu")
    with pytest.raises(NemotronError, match="cannot read: No such file"):
        load_profile("gpu.yaml")
