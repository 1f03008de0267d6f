"""Unpack llama.cpp's converter from the source package of llama-cpp-python: HOME."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "llama-cpp-python==0.3.16"
VENDOR = "/vendor/llama.cpp/"
WANTED = ("convert_hf_to_gguf.py", "gguf-py/")


def main(home: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = ["-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        subprocess.run([sys.executable, *command, PACKAGE, "-d", folder], check=True)
        with tarfile.open(next(Path(folder).glob("*.tar.gz"))) as tar:
            for member in tar:
                name = member.name.partition(VENDOR)[2]
                if name.startswith(WANTED):
                    member.name = name
                    tar.extract(member, home, filter="data")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
