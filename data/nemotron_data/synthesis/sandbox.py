"""Programs that are run in a sandbox of the user's, each once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from itertools import islice
from pathlib import Path

from nemotron_core.errors import NemotronError
from nemotron_core.files import write_atomically
from nemotron_data.synthesis.kinds import Program
from nemotron_data.synthesis.tables import to_line

BATCH = 64
"""Programs whose results are written together."""


class Sandbox:
    """Runs programs by a command of the user's, and keeps the results in the file `path`.

    A program that has its result there is not run again, unless the command has changed. `where`
    names the step in errors.
    """

    def __init__(self, settings: Program, path: Path, where: str) -> None:
        self._settings, self._path, self._where = settings, path, where
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        if lines and not lines[-1].endswith("\n"):  # a kill has torn it
            del lines[-1]
            write_atomically(path, lines)
        self._results = {result["id"]: result["passed"] for result in map(json.loads, lines)}

    def passes(self, programs: Iterable[str]) -> Iterator[bool]:
        """Yield for each program whether it exits with status 0 in the time allowed."""
        remaining = iter(programs)
        self._path.parent.mkdir(exist_ok=True)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            while batch := list(islice(remaining, BATCH)):
                names = [self._name(program) for program in batch]
                new = dict(zip(names, batch, strict=True))
                new = {name: text for name, text in new.items() if name not in self._results}
                results = dict(zip(new, pool.map(self._run, new.values()), strict=True))
                self._results |= results
                self._append(results)
                yield from (self._results[name] for name in names)

    def _append(self, results: dict[str, bool]) -> None:
        lines = [to_line({"id": name, "passed": passed}) for name, passed in results.items()]
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(lines)
        except OSError as error:
            raise NemotronError(f"cannot write: {error.strerror}", where=self._path) from error

    def _name(self, program: str) -> str:
        settings = json.dumps([self._settings.sandbox, self._settings.seconds, program])
        return blake2b(settings.encode(), digest_size=16).hexdigest()

    def _run(self, program: str) -> bool:
        try:
            process = subprocess.Popen(
                self._settings.sandbox,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            raise NemotronError(
                f"the sandbox does not start: {error.strerror or error}",
                where=f"{self._where}.sandbox",
                remedy="name a command that runs a program from its standard input",
            ) from error
        try:
            process.communicate(program.encode(errors="replace"), timeout=self._settings.seconds)
        except subprocess.TimeoutExpired:
            return False
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        return process.returncode == 0
