"""Jobs that run again keep complete folders, and wait for folders that other processes write."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from nemotron_build.engine_folder import ENGINE_NAME, reuse_or_build
from nemotron_build.profile import Profile
from nemotron_convert.convert import Options, convert
from nemotron_convert.shards import Parallel
from nemotron_convert.target.manifest import MANIFEST_NAME
from nemotron_core.errors import NemotronError
from nemotron_core.folder import NotReady, retry_until_ready, unfinished_folder
from tests.tiny_nemotron.nemo_file import NEMO
from tests.tools import debian_program
from tests.waiting import WAIT

NEMOTRON = str(Path(sys.executable).with_name("nemotron"))
TP2 = Options(Parallel(2, 1), resume=True, reuse=True)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [NEMOTRON, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=WAIT)


def test_a_whole_checkpoint_is_taken_as_it_is(tmp_path: Path) -> None:
    output = tmp_path / "checkpoint"
    made = convert(NEMO, output, TP2)
    before = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    assert convert(NEMO, output, TP2) == made
    assert {path: path.stat().st_mtime_ns for path in output.iterdir()} == before


def test_a_whole_checkpoint_of_something_else_is_not(tmp_path: Path) -> None:
    output = tmp_path / "checkpoint"
    convert(NEMO, output, TP2)
    with pytest.raises(NemotronError, match="it was made with another tp"):
        convert(NEMO, output, Options(Parallel(4, 1), reuse=True))
    copy = tmp_path / "copy.nemo"
    copy.write_bytes(NEMO.read_bytes())
    with pytest.raises(NemotronError, match="it was made with another source"):
        convert(copy, output, TP2)
    with (output / "rank1.safetensors").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(NemotronError, match=r"rank1\.safetensors is missing or cut short"):
        convert(NEMO, output, TP2)
    with pytest.raises(NemotronError, match="the output exists"):
        convert(NEMO, output, Options(Parallel(2, 1)))


def test_an_engine_is_built_once(
    checkpoint_tp8: Path, cpu_profile: Profile, tmp_path: Path
) -> None:
    output = tmp_path / "engine"
    made = reuse_or_build(checkpoint_tp8, output, cpu_profile)
    before = (output / ENGINE_NAME).stat().st_mtime_ns
    elsewhere = cpu_profile.model_copy(update={"address": "0.0.0.0"})
    assert reuse_or_build(checkpoint_tp8, output, elsewhere) == made
    assert (output / ENGINE_NAME).stat().st_mtime_ns == before
    other = cpu_profile.model_copy(update={"dtype": "f32"})
    with pytest.raises(NemotronError, match="it was built from another profile"):
        reuse_or_build(checkpoint_tp8, output, other)
    convert(NEMO, tmp_path / "other", TP2)
    with pytest.raises(NemotronError, match="it was built from another checkpoint"):
        reuse_or_build(tmp_path / "other", output, cpu_profile)


def test_pods_that_start_together_share_the_work(tmp_path: Path) -> None:
    """A cluster starts them together, so the builders start before the checkpoint exists."""
    checkpoint, engine = tmp_path / "checkpoint", tmp_path / "engine"
    build = [NEMOTRON, "build", str(checkpoint), "-o", str(engine), "--profile", "cpu"]
    convert_ = [NEMOTRON, "convert", str(NEMO), "-o", str(checkpoint), "--tp", "2"]
    together = ["--reuse", "--wait", str(WAIT)]
    commands = [build + together] * 2 + [convert_ + together] * 2
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for command in commands]  # type: ignore[call-overload]
    results = [(*process.communicate(timeout=WAIT), process.returncode) for process in processes]
    assert [code for _, _, code in results] == [0] * 4, results
    assert len({out for out, _, _ in results[:2]}) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "engine"]


def test_without_patience(checkpoint_tp8: Path, tmp_path: Path) -> None:
    missing = tmp_path / "none"
    done = run("build", missing, "-o", tmp_path / "engine", "--profile", "cpu", "--reuse")
    assert done.returncode == 1
    assert f"no {MANIFEST_NAME}: not a whole checkpoint [{missing}]" in done.stderr
    output = tmp_path / "checkpoint"
    with unfinished_folder(output, keep=False):
        done = run("convert", NEMO, "-o", output, "--reuse", "--wait", "1")
        assert done.returncode == 1
        assert "waiting: another process is writing it" in done.stderr


def test_patience_ends() -> None:
    tries = []

    def attempt() -> str:
        tries.append(time.monotonic())
        if len(tries) < 3:
            raise NotReady("too early")
        return "done"

    assert retry_until_ready(attempt, patience=WAIT) == "done"
    assert len(tries) == 3
    tries.clear()
    with pytest.raises(NotReady):
        retry_until_ready(attempt, patience=0)


def test_it_can_be_ended_as_the_first_process_of_a_container(tmp_path: Path) -> None:
    """The kernel ignores signals to process 1 that it does not handle."""
    unshare = debian_program("unshare")
    verb = ["build", str(tmp_path / "none"), "-o", str(tmp_path / "engine"), "--profile", "cpu"]
    command = [unshare, "--pid", "--fork", NEMOTRON, *verb, "--reuse", "--wait", str(WAIT)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as waiting:
        assert waiting.stderr is not None
        assert "waiting" in waiting.stderr.readline()
        (first,) = psutil.Process(waiting.pid).children()
        first.terminate()
        assert waiting.wait(WAIT) == 130
