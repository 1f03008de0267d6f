"""Fuzz the readers of checkpoints: whatever the bytes, a checkpoint or one NemotronError.

    python -m tests.fuzz.readers --minutes 10 --seed 1

Anything else is a finding: another exception, more than TIME_LIMIT or MEMORY_LIMIT, or a message of
several lines. It is kept in the folder of findings as `{seed}-{number}.nemo` with a traceback in a
`.txt` of the same name. A checkpoint that ends the process itself is left as `running.nemo`.
"""

from __future__ import annotations

import argparse
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from types import FrameType

import numcodecs

from nemotron_convert.source.nemo import Source
from nemotron_core.errors import NemotronError
from tests.convert.nemo import compress, unpack
from tests.convert.test_legacy import legacy
from tests.convert.test_torch_dist import nemo2, unpack_torch_dist
from tests.fuzz.mutations import Members, mutated

TIME_LIMIT = 20
"""Seconds for one checkpoint; an undamaged one takes a few milliseconds."""
MEMORY_LIMIT = 512 << 20
MESSAGE_LIMIT = 2000
BANDS = 2


class TimeUp(BaseException):
    """Raised when the reader takes longer than TIME_LIMIT."""


def sound_checkpoints(folder: Path) -> list[Members]:
    """Return the members of one undamaged checkpoint for each layout that is read."""
    compressed = unpack(folder / "compressed")
    codecs = (numcodecs.Blosc(), numcodecs.Zstd(), numcodecs.Zlib(), numcodecs.LZ4())
    tensors = sorted(path.name for path in (compressed / "model_weights").glob("*.weight"))
    for tensor, codec in zip(tensors, codecs, strict=False):
        compress(compressed, tensor, codec)
    folders = (
        unpack(folder / "zarr"),
        compressed,
        unpack_torch_dist(folder / "torch_dist"),
        legacy(folder / "legacy", 1, 1),
        legacy(folder / "ranks", 2, 1),
        nemo2(folder / "nemo2", zarr=False),
    )
    return [
        {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
        for root in folders
    ]


def read_all(path: Path) -> bool:
    """Read every byte that a conversion would read; return False if the checkpoint is refused."""
    try:
        with Source.open(path) as source:
            for tensor in source.tensors.values():
                for chunk in tensor.chunks:
                    rows = -(-chunk.rows // BANDS)
                    for first in range(0, chunk.rows, rows):
                        tensor.read(chunk, first, min(rows, chunk.rows - first))
    except NemotronError as error:
        if len(str(error)) > MESSAGE_LIMIT or not str(error).isprintable():
            raise AssertionError(f"a message that is no line: {str(error)[:500]!r}") from error
        return False
    return True


@contextmanager
def limits() -> Iterator[None]:
    """Allow MEMORY_LIMIT more than is used now, and TIME_LIMIT after each `signal.alarm`."""

    def time_up(_signal: int, _frame: FrameType | None) -> None:
        raise TimeUp(f"more than {TIME_LIMIT} s")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    now = pages * resource.getpagesize()
    handler = signal.signal(signal.SIGALRM, time_up)
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY_LIMIT, before[1]))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def fuzz(seed: int, numbers: Iterator[int], findings: Path) -> Counter[str]:
    """Return how many checkpoints were read and refused, and how many are findings (found)."""
    findings.mkdir(parents=True, exist_ok=True)
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        sound = sound_checkpoints(Path(folder))
        running = findings / "running.nemo"
        with limits():
            for number in numbers:
                random = Random(f"{seed}:{number}")
                running.write_bytes(mutated(random, random.choice(sound)))
                signal.alarm(TIME_LIMIT)
                try:
                    outcomes["read" if read_all(running) else "refused"] += 1
                except (Exception, TimeUp):
                    signal.alarm(0)
                    outcomes["found"] += 1
                    running.rename(findings / f"{seed}-{number}.nemo")
                    report = traceback.format_exc().encode(errors="backslashreplace")
                    (findings / f"{seed}-{number}.txt").write_bytes(report)
                signal.alarm(0)
    running.unlink(missing_ok=True)
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz the readers of checkpoints.")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number to begin with")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"))
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes

    def numbers() -> Iterator[int]:
        number = options.first
        while time.monotonic() < end:
            yield number
            number += 1

    outcomes = fuzz(options.seed, numbers(), options.findings)
    words = ", ".join(f"{count} {word}" for word, count in sorted(outcomes.items()))
    print(f"seed {options.seed}, {options.minutes:g} minutes: {outcomes.total()} runs, {words}")
    return 1 if outcomes["found"] else 0


if __name__ == "__main__":
    sys.exit(main())
