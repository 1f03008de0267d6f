"""Environments of harnesses: installed by hash from a local index, complete or not there."""

from __future__ import annotations

import hashlib
import re
import subprocess
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from nemotron_core.errors import NemotronError
from nemotron_evaluate.harnesses import environment
from nemotron_evaluate.harnesses.environment import Environment

INFO = "tiny_harness-1.0.dist-info"
FILES = {
    "tiny_harness.py": "def main():\n    print('tiny')\n",
    f"{INFO}/METADATA": "Metadata-Version: 2.1\nName: tiny-harness\nVersion: 1.0\n",
    f"{INFO}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    f"{INFO}/entry_points.txt": "[console_scripts]\ntiny = tiny_harness:main\n",
    f"{INFO}/RECORD": "",
}


@pytest.fixture
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The locks of one harness, and an index that has only its wheel."""
    index, locks = tmp_path / "index", tmp_path / "locks"
    index.mkdir()
    locks.mkdir()
    wheel = index / "tiny_harness-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    line = f"tiny-harness==1.0 --hash=sha256:{digest}\n"
    for name in ("tiny.txt", "build.txt"):
        (locks / name).write_text(line)
    (locks / "tiny.in").write_text("tiny-harness==1.0\n")
    (locks / "later.in").write_text("# Python 3.99\ntiny-harness==1.0\n")
    monkeypatch.setattr(environment, "LOCKS", locks)
    monkeypatch.setattr(environment, "BUILD", locks / "build.txt")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return locks


def test_an_environment_is_complete_and_of_one_lock(locks: Path, tmp_path: Path) -> None:
    tiny = Environment("tiny", tmp_path / "homes")
    with pytest.raises(NemotronError, match=r"tiny is not installed .* nemotron eval install tiny"):
        tiny.check()
    tiny.install()
    tiny.check()
    done = subprocess.run([tiny.program("tiny")], capture_output=True, text=True, check=True)
    assert done.stdout == "tiny\n"
    assert tiny.package(INFO).is_dir()
    with pytest.raises(NemotronError, match="the environment has no package other"):
        tiny.package("other")
    for lock in (locks / "tiny.txt", locks / "build.txt"):
        lock.write_text(lock.read_text().replace("sha256:", "sha256:0")[:-2] + "\n")
    with pytest.raises(NemotronError, match="tiny is of another version"):
        tiny.check()
    with pytest.raises(NemotronError, match=r"could not be installed: .*(?i:hash)"):
        tiny.install()
    with pytest.raises(NemotronError, match="tiny is not installed"):
        tiny.check()  # what could not be completed does not count


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none", "there is no harness none .* later, tiny"),
        ("later", "later needs Python 3.99 or later"),
    ],
)
def test_what_cannot_be_installed(name: str, message: str, locks: Path, tmp_path: Path) -> None:
    assert locks.exists()
    with pytest.raises(NemotronError, match=message):
        Environment(name, tmp_path).install()


def test_every_lock_is_shipped_with_hashes() -> None:
    names = environment.harness_names()
    assert names == ["garak", "lm-eval", "mt-bench"]
    for name in (*names, "build"):
        text = (environment.LOCKS / f"{name}.txt").read_text()
        requirements = [line for line in text.splitlines() if "==" in line]
        assert requirements
        assert text.count("--hash=sha256:") >= len(requirements)
        assert not any(line.startswith("torch==") for line in requirements)
        pinned = dict(re.findall(r"^([a-z0-9-]+)==([^ ;]+)", text, re.MULTILINE))
        source = (environment.LOCKS / f"{name}.in").read_text().splitlines()
        for wanted in map(Requirement, (line for line in source if not line.startswith("#"))):
            assert wanted.specifier.contains(pinned[wanted.name]), wanted
