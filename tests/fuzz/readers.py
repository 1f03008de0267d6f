"""Damage whole `.nemo` files at random and read them: every outcome but two is a finding.

    python -m tests.fuzz.readers --minutes 10 --seed 1 [--findings FOLDER]

Allowed are success and `NemotronError`, within the limits of time and memory. The damage knows the
formats: it changes bytes, numbers and structure of the JSON, YAML and pickles, swaps and cuts
members, and lies about sizes.
"""

from __future__ import annotations

import argparse
import io
import pickletools
import random
import resource
import shutil
import sys
import tarfile
import tempfile
import time
import traceback
from pathlib import Path

from nemotron_convert.errors import NemotronError
from nemotron_convert.source import Source

GOLDEN = Path(__file__).parents[1] / "golden"
SEEDS = ("tiny_zarr_tp1pp1.nemo", "tiny_torch_dist_tp1pp1.nemo")
SECONDS = 10.0
MEMORY_BYTES = 2 << 30
NUMBERS = (b"0", b"-1", b"1", b"255", b"65536", b"4294967296", b"1e9", b"99999999999999999999")
WORDS = (b"null", b"true", b"[]", b"{}", b'""', b"[[[[", b"!!python/object:os.system", b"*a")
OPCODES = tuple(ord(opcode.code) for opcode in pickletools.opcodes)


def load_seeds() -> list[dict[str, bytes]]:
    """The members of each golden file."""
    seeds = []
    for name in SEEDS:
        with tarfile.open(GOLDEN / name) as tar:
            found = {}
            for info in tar:
                if info.isfile():
                    stream = tar.extractfile(info)
                    assert stream is not None
                    found[info.name.removeprefix("./")] = stream.read()
            seeds.append(found)
    return seeds


def damage(members: dict[str, bytes], rng: random.Random) -> dict[str, bytes]:
    """A copy with a few changes."""
    members = dict(members)
    for _ in range(rng.randint(1, 4)):
        # Small members steer the readers, so they are taken more often than their bytes deserve.
        name = rng.choice(sorted(members, key=lambda n: len(members[n]))[: rng.choice((8, 20, 99))])
        kind = rng.randrange(8)
        if kind == 0 and len(members) > 1:
            del members[name]
        elif kind == 1:
            members[name] = members[name][: rng.randrange(len(members[name]) + 1)]
        elif kind == 2:
            members[name] += rng.randbytes(rng.choice((1, 2, 100, 70000)))
        elif kind == 3:
            members[rng.choice(sorted(members))] = members[name]
        elif kind == 4:
            members[_renamed(name, rng)] = members[name]
        else:
            members[name] = _edit(members[name], rng)
    return members


def _renamed(name: str, rng: random.Random) -> str:
    return rng.choice(
        (name.upper(), name + "/x", "../" + name, "/" + name, "x/" + name, name + ".1")
    )


def _edit(data: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(data) + 1)
        digits = [i for i, byte in enumerate(data[: 1 << 16]) if 48 <= byte <= 57]
        kind = rng.randrange(5)
        if kind == 0 and digits:
            at = rng.choice(digits)
            data = data[:at] + rng.choice(NUMBERS) + data[at + 1 :]
        elif kind == 1:
            data = data[:at] + rng.choice(WORDS) + data[at + rng.randrange(8) :]
        elif kind == 2:
            data = data[:at] + bytes([rng.choice(OPCODES)]) + data[at + 1 :]
        elif kind == 3:
            data = data[:at] + rng.randbytes(rng.choice((1, 4, 8))) + data[at + 1 :]
        else:
            end = min(len(data), at + rng.randrange(64))
            data = data[:at] + data[at:end] * rng.choice((0, 2, 50)) + data[end:]
    return data


def pack(members: dict[str, bytes], path: Path, rng: random.Random) -> None:
    """As a tar, sometimes gzipped, sometimes with its own bytes damaged."""
    gzipped = rng.random() < 0.1
    with tarfile.open(path, "w:gz" if gzipped else "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    if rng.random() < 0.1:
        data = bytearray(path.read_bytes())
        for _ in range(rng.randint(1, 20)):
            data[rng.randrange(min(len(data), 1 << 16))] = rng.randrange(256)
        path.write_bytes(data)


def read_all(path: Path) -> None:
    """Open the source and read every chunk, in bands as the converter does."""
    with Source.open(path) as source:
        source.read_tokenizer()
        for tensor in source.tensors.values():
            for chunk in tensor.chunks:
                for first in range(0, chunk.rows, 64):
                    tensor.read(chunk, first, min(64, chunk.rows - first))


def run(seed: int, *, seconds: float, executions: int, findings: Path) -> tuple[int, int, int]:
    """(executions, of them refused, findings) until either limit is reached."""
    rng = random.Random(seed)
    seeds = load_seeds()
    done = refused = found = 0
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.nemo")
        while done < executions and time.monotonic() < end:
            pack(damage(rng.choice(seeds), rng), path, rng)
            start = time.monotonic()
            problem = ""
            try:
                read_all(path)
            except NemotronError as error:
                refused += 1
                if "\n" in str(error) or len(str(error)) > 2000:
                    problem = f"a message that is no line: {str(error)[:200]}"
            except Exception:
                problem = traceback.format_exc(limit=-3)
            if time.monotonic() - start > SECONDS:
                problem = f"took {time.monotonic() - start:.0f} s"
            if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > MEMORY_BYTES:
                problem = problem or "memory"
            done += 1
            if problem:
                found += 1
                findings.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, findings / f"{seed}-{done}.nemo")
                print(f"finding {seed}-{done}: {problem}", file=sys.stderr, flush=True)
    return done, refused, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--findings", type=Path, default=Path("findings"))
    options = parser.parse_args()
    done, refused, found = run(
        options.seed, seconds=options.minutes * 60, executions=1 << 62, findings=options.findings
    )
    print(f"seed {options.seed}: {done} executions, {refused} refused, {found} findings")
    sys.exit(found > 0)


if __name__ == "__main__":
    main()
