"""The output of a batch: what its name asks for, and the files beside it."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path

from nemotron_core.errors import NemotronError
from nemotron_core.files import partial_path
from nemotron_data.batch.codec import CODECS
from nemotron_data.extra import require

PARQUET = ".parquet"
REFUSED_SUFFIXES = {
    ".arrow", ".avro", ".bz2", ".csv", ".feather", ".html", ".json", ".lz4", ".md", ".orc", ".pkl",
    ".sqlite", ".tar", ".tsv", ".txt", ".xlsx", ".xml", ".xz", ".yaml", ".yml", ".zip",
}  # fmt: skip
"""Suffixes of formats that are not written. Any other unknown suffix gets JSONL."""
WRITTEN = "name it .jsonl, .jsonl.gz, .jsonl.zst or .parquet, or give a folder that ends with /"


@dataclass(frozen=True)
class Target:
    """An output: a file of results, or a table or folder that is made of one at the end."""

    path: Path
    is_folder: bool = False

    @property
    def is_exported(self) -> bool:
        """Whether the results are kept beside the output, which is made of them at the end."""
        return self.is_folder or self.path.suffix == PARQUET

    @property
    def results(self) -> Path:
        """Path of the file with the results, which grows during the run."""
        return self.beside("results.jsonl.zst") if self.is_exported else self.path

    @property
    def errors(self) -> Path:
        """Path of the file with the failed rows."""
        return self.beside("errors.jsonl")

    @property
    def replaced(self) -> Path:
        """Path of the file with earlier results whose rows were changed or removed."""
        return self.beside("replaced.jsonl")

    @property
    def manifest(self) -> Path:
        return self.beside("manifest.json")

    def beside(self, name: str) -> Path:
        """Return the path of another file of this output."""
        return (
            self.path / name if self.is_folder else self.path.with_name(f"{self.path.name}.{name}")
        )

    def make_folder(self) -> None:
        """Make the output's folder, if it is one. Raises `NemotronError` if it holds other data."""
        if not self.is_folder:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # A run that was killed before it reached its server leaves these two.
            begun = {self.results, partial_path(self.manifest)}
            if not self.manifest.exists() and not begun.issuperset(self.path.iterdir()):
                raise NemotronError(
                    "the folder holds something that is no batch",
                    where=self.path,
                    remedy="name another one",
                )
        except OSError as error:
            raise NemotronError(f"cannot write: {error.strerror}", where=self.path) from error

    def remove_errors(self) -> None:
        """Remove the failed rows of an earlier run. Raises `NemotronError` if that fails."""
        try:
            self.errors.unlink(missing_ok=True)
        except OSError as error:
            raise NemotronError(f"cannot write: {error.strerror}", where=self.errors) from error


def target_of(output: str) -> Target:
    """Return the output that a name asks for.

    Raises `NemotronError` if it cannot be written: a device, or a format that is none of ours.
    """
    path = Path(output)
    try:
        mode = path.stat().st_mode if path.exists() else None
        if output.endswith("/") or (mode is not None and stat.S_ISDIR(mode)):
            require("pyarrow")
            require("zstandard")
            return Target(path, is_folder=True)
    except OSError as error:
        raise NemotronError(f"cannot write: {error.strerror}", where=output) from error
    if mode is not None and not stat.S_ISREG(mode):
        raise NemotronError(
            "not a regular file", where=output, remedy="name a file, or - for standard output"
        )
    suffix = path.suffix.lower()
    if suffix in REFUSED_SUFFIXES:
        raise NemotronError(f"{suffix} is not written", where=output, remedy=WRITTEN)
    if suffix == PARQUET:
        require("pyarrow")
        require("zstandard")
    if suffix in CODECS:
        CODECS[suffix]()
    return Target(path)
