"""Compressed zarr chunks give the same checkpoint; none is decoded twice or beyond its size."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numcodecs
import numpy as np
import pytest
from numcodecs.abc import Codec

from nemotron_convert.convert import Options, convert
from nemotron_convert.shards import Parallel
from nemotron_convert.source.compression import (
    DECODERS,
    ChunkCache,
    find_decoder,
    max_compressed_size,
)
from nemotron_convert.source.nemo import Source
from nemotron_core.errors import NemotronError
from tests.convert.nemo import NEMO, compress, pack, unpack

QKV = "model.decoder.layers.self_attention.linear_qkv.weight"
CODECS: dict[str, Codec] = {
    "zlib": numcodecs.Zlib(1),
    "gzip": numcodecs.GZip(1),
    "bz2": numcodecs.BZ2(1),
    "lz4": numcodecs.LZ4(),
    "zstd": numcodecs.Zstd(3),
    "zstd with a checksum": numcodecs.Zstd(1, checksum=True),
    "blosc": numcodecs.Blosc(),
    "blosc zstd": numcodecs.Blosc("zstd", 3, numcodecs.Blosc.BITSHUFFLE),
    "blosc zlib": numcodecs.Blosc("zlib", 1, numcodecs.Blosc.NOSHUFFLE),
}


@pytest.mark.parametrize("name", CODECS)
def test_each_compressor_gives_the_same_checkpoint(name: str, tmp_path: Path) -> None:
    folder = unpack(tmp_path / "in")
    for tensor in (QKV, "model.output_layer.weight", "model.decoder.final_layernorm.bias"):
        compress(folder, tensor, CODECS[name])
    source = pack(folder, tmp_path / "model.nemo", "w:gz") if name == "zlib" else folder
    expected = convert(NEMO, tmp_path / "expected", Options(Parallel(4, 1)))
    assert convert(source, tmp_path / "out", Options(Parallel(4, 1))).files == expected.files


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("size", [1, 255, 256, 300, 65_791, 65_792, 1_000_000])
def test_a_chunk_of_any_size_and_none_of_another(name: str, size: int) -> None:
    """The sizes are on both sides of each limit of Zstandard's Frame_Content_Size."""
    decode = DECODERS[CODECS[name].codec_id]
    for data in (bytes(size), np.random.default_rng(0).bytes(size)):
        compressed = bytes(CODECS[name].encode(data))
        assert len(compressed) <= max_compressed_size(size)
        assert bytes(decode(compressed, size)) == data
        for wrong in (size - 1, size + 1):
            with pytest.raises(ValueError, match=r"header says|more bytes|elsewhere"):
                decode(compressed, wrong)


def test_a_chunk_is_decoded_once_however_many_threads_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded_sizes = []

    def decode(compressed: bytes, size: int) -> bytes:
        decoded_sizes.append(size)
        return bytes(numcodecs.Zlib().decode(compressed))

    monkeypatch.setitem(DECODERS, "zlib", decode)
    folder = unpack(tmp_path / "in")
    compress(folder, QKV, numcodecs.Zlib())
    with Source.open(folder) as source, ThreadPoolExecutor(4) as pool:
        tensor = source.tensors[QKV]
        for chunk in tensor.chunks:
            gate = threading.Barrier(4)

            def read(first: int) -> bytes:
                gate.wait()  # noqa: B023 - all are done before the next chunk
                return tensor.read(chunk, first, 64).tobytes()  # noqa: B023

            rows = b"".join(pool.map(read, range(0, 256, 64)))
            assert rows == tensor.read(chunk, 0, 256).tobytes()
    assert len(decoded_sizes) == len(tensor.chunks)


def test_the_cache_keeps_one_chunk_for_a_thread() -> None:
    cache = ChunkCache()
    count = 0

    def make() -> memoryview:
        nonlocal count
        count += 1
        return memoryview(bytes(3))

    for name in ("a", "a", "b", "b", "a"):
        cache.get(name, make)
    assert count == 3


@pytest.mark.parametrize("compressor", ["zlib", {"id": "lzma"}, {"id": ["zlib"]}, {}, 7])
def test_another_compressor_is_refused_by_name(compressor: object) -> None:
    with pytest.raises(NemotronError, match=r"compressor is .*only null and blosc, bz2"):
        find_decoder(compressor, "here")
