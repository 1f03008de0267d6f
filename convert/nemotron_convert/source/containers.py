"""The containers that a `.nemo` can be: a folder, a tar or a gzipped tar."""

from __future__ import annotations

import stat
from pathlib import Path

from nemotron_convert.source.archive import LFS_MAGIC, Archive, lfs_pointer
from nemotron_convert.source.folder_archive import FolderArchive
from nemotron_convert.source.tar_archive import TarArchive
from nemotron_core.errors import NemotronError

GZIP_MAGIC = b"\x1f\x8b"
OTHER_FORMATS = {
    "file compressed by zstd": b"\x28\xb5\x2f\xfd",
    "file compressed by xz": b"\xfd7zXZ\0",
    "file compressed by bzip2": b"BZh",
    "file compressed by lz4": b"\x04\x22\x4d\x18",
    "zip": b"PK\x03\x04",
    "GGUF file": b"GGUF",
}
"""What people mistake for a `.nemo`, by its first bytes."""


def open_archive(path: Path, scratch: Path | None = None) -> Archive:
    """Open the archive at `path`. Raises `NemotronError`, which says what it is, if it is none.

    With `scratch`, a folder, a compressed archive is decompressed once, into a file there that has
    no name and ends with this process. Its members can then be read in any order and repeatedly.
    """
    if path.is_dir():
        return FolderArchive(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a named pipe would wait forever
            raise NemotronError("neither a file nor a folder", where=path)
        with path.open("rb") as file:
            magic = file.read(len(LFS_MAGIC))
    except OSError as error:
        raise NemotronError(f"cannot read: {error.strerror}", where=path) from error
    if magic == LFS_MAGIC:
        raise lfs_pointer(path)
    for kind, start in OTHER_FORMATS.items():
        if magic.startswith(start):
            raise NemotronError(
                f"this is a {kind}, not a .nemo",
                where=path,
                remedy="unpack it and name the folder or the tar that was in it",
            )
    return TarArchive(path, compressed=magic.startswith(GZIP_MAGIC), scratch=scratch)
