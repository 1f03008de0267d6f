"""The versions of libraries, in this environment and in that of the engine's process."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from nemotron_build.installed import installed_versions
from nemotron_build.lanes import LANES, lane
from nemotron_build.profile import EngineOptions, load_profile
from nemotron_core.errors import NemotronError


@pytest.mark.parametrize("python", [None, Path(sys.executable)])
def test_what_is_installed(python: Path | None) -> None:
    assert installed_versions(("numpy", "no-such-thing"), python) == {"numpy": version("numpy")}


def test_a_python_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(NemotronError, match=r"cannot be run.*correct engine\.python"):
        installed_versions(("numpy",), tmp_path / "python")


@pytest.mark.parametrize(
    ("name", "found", "fits"),
    [
        ("tensorrt", "1.2.0", True),
        ("tensorrt", "1.2.1.post1", True),
        ("tensorrt", "1.1.0", False),
        ("tensorrt", "1.3.0rc26", False),
        ("pytorch", "1.2.1", True),
        ("pytorch", "1.3.0rc25", False),
        ("pytorch", "1.3.0rc26", True),
        ("pytorch", "1.4.0", False),
        ("vllm", "0.25.1", False),
        ("vllm", "0.26.0", True),
        ("vllm", "0.32.0", True),
        ("vllm", "0.33.0", False),
    ],
)
def test_which_versions_fit(
    name: str, found: str, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane, "installed_versions", lambda names, _python: {names[0]: found})
    profile = load_profile("cpu")
    if fits:
        assert list(LANES[name].installed(profile).values()) == [found]
        return
    with pytest.raises(NemotronError, match=f"{found} is installed, this lane needs"):
        LANES[name].installed(profile)


def test_a_library_that_is_missing_there(tmp_path: Path) -> None:
    options = EngineOptions(python=Path(sys.executable))
    profile = load_profile("h100-fp8-tp8-vllm").model_copy(update={"engine": options})
    with pytest.raises(NemotronError, match=r"vllm is not installed.*engine\.python"):
        LANES["vllm"].installed(profile)
