"""Conversions by several processes under a real `mpirun`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nemotron_convert.convert import Options, convert
from nemotron_convert.shards import Parallel
from nemotron_convert.target.layout import Format
from nemotron_convert.target.manifest import changed_files, read_manifest
from tests.convert.nemo import NEMO, unpack

BIN = Path(sys.executable).parent
ENVIRONMENT = os.environ | {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}


def mpirun(processes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / "mpirun"), "-n", str(processes), str(BIN / "nemotron"), *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("processes", "tp", "pp", "format"),
    [(3, 8, 1, Format.TRTLLM), (4, 4, 2, Format.TRTLLM), (2, 1, 1, Format.HF)],
)
def test_the_same_bytes(processes: int, tp: int, pp: int, format: Format, tmp_path: Path) -> None:
    expected = convert(NEMO, tmp_path / "expected", Options(Parallel(tp, pp), format))
    split = ["--tp", str(tp), "--pp", str(pp), "--format", format.value]
    done = mpirun(processes, "convert", str(NEMO), "-o", str(tmp_path / "out"), *split)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert read_manifest(tmp_path / "out") == expected
    assert changed_files(tmp_path / "out", expected) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected", "out"]


def test_a_failing_process_ends_the_job_with_its_message(tmp_path: Path) -> None:
    folder = unpack(tmp_path / "in")
    done = mpirun(3, "convert", str(folder), "-o", str(tmp_path / "no" / "out"), "--tp", "3")
    assert done.returncode == 1
    assert re.search(r"process \d of 3: TP 3 does not fit", done.stderr)
    assert "Traceback" not in done.stderr

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nemotron_convert.conversion.Conversion._copy", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            convert(folder, tmp_path / "out", Options(Parallel(8, 1)))
    (tmp_path / "out.partial" / "rank2.safetensors").mkdir()  # only process 2 of 3 opens this one
    again = ["--tp", "8", "--resume"]
    done = mpirun(3, "convert", str(folder), "-o", str(tmp_path / "out"), *again)
    assert done.returncode == 1
    assert "process 2 of 3:" in done.stderr
    assert not (tmp_path / "out").exists()


def test_of_processes_that_mpi_does_not_connect_the_first_works(tmp_path: Path) -> None:
    """As under `srun --mpi=pmi2`, for an MPI that does not speak it."""
    out = tmp_path / "out"
    for rank, count in ((1, 0), (0, 1)):
        done = subprocess.run(
            [str(BIN / "nemotron"), "convert", str(NEMO), "-o", str(out), "--tp", "8"],
            env=ENVIRONMENT | {"PMI_RANK": str(rank), "PMI_SIZE": "2"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("MPI does not connect the 2 processes") == count
        assert len(list(tmp_path.iterdir())) == count
    assert changed_files(out, read_manifest(out)) == []
