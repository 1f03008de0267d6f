"""Kill a conversion again and again, at random points that are the same in every run.

    python -m tests.convert.killed SOURCE OUT KILLS

Each run is a fork of this process, so it starts at once. It ends without warning: in a third of the
rounds at any operation on files that it counts, in a third at one of those after the first about
the manifest, in a third after a random time, which is while it copies. The next run goes on from
what is left. Prints as JSON how many runs were killed, and what was in each finished output.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from nemotron_convert.convert import Options, convert
from nemotron_convert.shards import Parallel
from nemotron_convert.target import journal
from nemotron_convert.target.manifest import changed_files, read_manifest

OPERATIONS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.scandir", "os.listdir")
END = 24
"""About the number of operations from the first about the manifest to the last."""
REUSED = Options(Parallel(8, 1), reuse=True)


class Killer:
    """Counts operations on files and ends the process at one of them."""

    def __init__(self) -> None:
        self.count = 0
        self.last = 1 << 60
        self.after_manifest = False
        sys.addaudithook(self._watch)

    def _watch(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in OPERATIONS:
            return
        if self.after_manifest and not self.count and "manifest.json" not in str(arguments[0]):
            return
        self.count += 1
        if self.count >= self.last:
            os.kill(os.getpid(), signal.SIGKILL)


def main(source: Path, out: Path, wanted: int) -> None:
    killer = Killer()
    journal.SYNC_SECONDS = 0.002
    start = time.perf_counter()
    convert(source, out, REUSED)
    seconds = time.perf_counter() - start
    operations = killer.count
    shutil.rmtree(out)
    generator = random.Random(11)
    results = []
    kills = 0
    for number in itertools.count():
        if kills == wanted:
            break
        point = generator.random()
        child = os.fork()
        if not child:
            killer.count = 0
            if number % 3 == 0:
                killer.last = 1 + int(point * operations)
            elif number % 3 == 1:
                killer.after_manifest = True
                killer.last = 1 + int(point * END)
            else:
                signal.setitimer(signal.ITIMER_REAL, max(1e-4, point * seconds))
            convert(source, out, REUSED)
            os._exit(0)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert ended in (0, -signal.SIGKILL, -signal.SIGALRM)
        kills += ended != 0
        if ended == 0 or kills % 4 == 0:
            results.append(finished(source, out))
    print(json.dumps({"kills": kills, "results": results}))


def finished(source: Path, out: Path) -> dict[str, Any]:
    """Finish the conversion, remove the output and return what was in it."""
    manifest = convert(source, out, REUSED)
    assert read_manifest(out) == manifest
    result = {
        "manifest": manifest.model_dump(),
        "changed": changed_files(out, manifest),
        "others": sorted({path.name for path in out.iterdir()} - set(manifest.files)),
    }
    shutil.rmtree(out)
    return result


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
