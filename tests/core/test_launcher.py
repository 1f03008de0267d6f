"""The first machine of an engine on several."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemotron_core.errors import NemotronError
from nemotron_core.launcher import first_machine

SCONTROL = r"""#!/bin/sh
[ "$*" = "show hostnames node[07-08]" ] && printf 'node07\nnode08\n'
"""


def test_the_first_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert first_machine({"MASTER_ADDR": "one"}) == "one"
    with pytest.raises(NemotronError, match="MASTER_ADDR is not set"):
        first_machine({})
    monkeypatch.setenv("PATH", str(tmp_path))
    slurm = {"SLURM_JOB_NODELIST": "node[07-08]"}
    with pytest.raises(NemotronError, match=r"scontrol does not name the machines node\[07-08\]"):
        first_machine(slurm)
    program = tmp_path / "scontrol"
    program.write_text(SCONTROL)
    program.chmod(0o755)
    assert first_machine(slurm) == "node07"
