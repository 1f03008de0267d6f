"""A server of an earlier commit, to measure old and new in turn.

It runs from a git worktree with this environment's libraries, so that only the project's own code
differs. In commits before the engine had a process of its own, the synthetic engine is a part of
the model `tensorrt_llm`, and takes no time for a step; here it gets the pace of today's.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bench.measurements.machine import ROOT
from bench.measurements.servers import Server
from bench.measurements.synthetic_engine import DEFAULT_HZ, MAX_LATE_SECONDS

STEP = "            self._steps += 1\n"
PACED_STEP = f"""\
            self._due = getattr(self, "_due", 0.0) + {1 / DEFAULT_HZ}
            if self._due < time.monotonic() - {MAX_LATE_SECONDS}:
                self._due = time.monotonic()
            time.sleep(max(0.0, self._due - time.monotonic()))
{STEP}"""
SERVE = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from bench.measurements.serving import gateway, serving
from bench.measurements.synthetic_engine import synthetic_engines
with synthetic_engines(), serving(Path(sys.argv[1])) as server:
    ports = asdict(server.endpoints)
    with gateway(f"{ports.pop('address')}:{ports['grpc']}") as front:
        print(json.dumps(ports | {"gateway": front.port}), flush=True)
        sys.stdin.read()
"""
BUILD = """
import json, sys
from pathlib import Path
from nemotron_build.engine_folder import build_engine
from nemotron_build.profile import load_profile
profile = load_profile("cpu")
limits = profile.limits.model_copy(update=json.loads(sys.argv[3]))
profile = profile.model_copy(update={"limits": limits})
build_engine(Path(sys.argv[1]), Path(sys.argv[2]), profile)
"""


class EarlierCommit:
    """A worktree of a commit in a folder, with a Python that imports the project from it.

    It is a context manager, which removes the worktree.
    """

    def __init__(self, commit: str, folder: Path) -> None:
        self._tree = folder / "tree"
        environment = folder / "environment"
        self._python = environment / "bin" / "python"
        if not self._tree.exists():
            _git("worktree", "add", "--force", "--detach", str(self._tree), commit)
            self._set_pace()
        venv.create(environment, symlinks=True)
        scheme = {"base": str(environment), "platbase": str(environment)}
        packages = Path(sysconfig.get_path("purelib", vars=scheme))
        rooms = sorted({path.parent for path in self._tree.glob("*/nemotron_*/")})
        (packages / "earlier.pth").write_text(
            "".join(f"{path}\n" for path in [*rooms, sysconfig.get_path("purelib")])
        )

    def _set_pace(self) -> None:
        file = self._tree / "bench" / "measurements" / "synthetic_engine.py"
        code = file.read_text(encoding="utf-8")
        if code.count(STEP) != 1:
            raise SystemExit(f"{file}: no engine of a commit before the engine's own process")
        file.write_text(code.replace(STEP, PACED_STEP), encoding="utf-8")

    def build(self, checkpoint: Path, folder: Path, limits: Mapping[str, int]) -> Path:
        """Build an engine of the CPU lane with this commit's code. Returns `folder`."""
        paths = [str(path.absolute()) for path in (checkpoint, folder)]
        command = [str(self._python), "-c", BUILD, *paths, json.dumps(limits)]
        subprocess.run(command, cwd=self._tree, check=True)
        return folder

    @contextmanager
    def serving(self, engine: Path) -> Iterator[Server]:
        """Serve the paced synthetic engine with the limits and the tokenizer of an engine."""
        process = subprocess.Popen(
            [str(self._python), "-c", SERVE, str(engine.absolute())],
            cwd=self._tree,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout
            if not (line := process.stdout.readline()):
                raise SystemExit("the earlier commit's server did not start")
            yield Server(process.pid, **json.loads(line))
        finally:
            process.communicate()  # closes its input, at which it ends

    def __enter__(self) -> EarlierCommit:
        return self

    def __exit__(self, *_: object) -> None:
        _git("worktree", "remove", "--force", str(self._tree))


def _git(*arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=ROOT, check=True, stdout=sys.stderr)
