"""Conversions that are interrupted at any moment and resumed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.measurements.random_nemo import Shape, write_nemo
from nemotron_convert.convert import Options, convert
from nemotron_convert.shards import Parallel
from nemotron_convert.target import journal
from nemotron_convert.target.copier import Copier, Piece
from nemotron_convert.target.layout import Format
from nemotron_convert.target.manifest import changed_files, read_manifest
from nemotron_core.errors import NemotronError
from nemotron_core.folder import NotReady, unfinished_folder
from tests.convert.nemo import NEMO, edit_config, pack, rechunk, unpack
from tests.waiting import until

ROOT = Path(__file__).parents[2]
NEMOTRON = str(Path(sys.executable).with_name("nemotron"))
TP8 = Options(Parallel(8, 1))
RESUMED = Options(Parallel(8, 1), resume=True)


def break_after(bands: int, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> list[str]:
    """Make `Copier` raise `error` after `bands` bands; the list gets the bands that were copied."""
    copied: list[str] = []
    copy_band = Copier._copy_band

    def break_in(self: Copier, piece: Piece, first: int, rows: int) -> journal.Note:
        if len(copied) >= bands:
            raise error
        note = copy_band(self, piece, first, rows)
        copied.append(f"{piece.name} {piece.chunk.layer} {piece.chunk.row} {first}")
        return note

    monkeypatch.setattr(Copier, "_copy_band", break_in)
    return copied


@pytest.mark.parametrize("format", Format)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_what_is_finished_is_not_done_again(
    error: BaseException, format: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parallel = Parallel(8, 1) if format is Format.TRTLLM else Parallel(1, 1)
    expected = convert(NEMO, tmp_path / "expected", Options(parallel, format))
    with monkeypatch.context() as patch:
        first = break_after(20, patch, error)
        with pytest.raises((KeyboardInterrupt, NemotronError)):
            convert(NEMO, tmp_path / "out", Options(parallel, format, jobs=1))
    assert not (tmp_path / "out").exists()
    with monkeypatch.context() as patch:
        second = break_after(1 << 30, patch, error)
        resumed = Options(parallel, format, resume=True)
        assert convert(NEMO, tmp_path / "out", resumed).files == expected.files
    assert second
    assert not set(first) & set(second)
    assert changed_files(tmp_path / "out", expected) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected", "out"]


def has_begun(folder: Path, process: subprocess.Popen[bytes]) -> bool:
    return folder.exists() or process.poll() is not None


def test_stopped_by_any_signal(tmp_path: Path) -> None:
    source = write_nemo(tmp_path / "in", Shape(layers=3, hidden=1024, heads=16, vocab=4096))
    expected = convert(source, tmp_path / "expected", TP8)
    out = tmp_path / "out"
    command = [NEMOTRON, "convert", str(source), "-o", str(out), "--tp", "8", "--reuse"]
    for sent in (signal.SIGINT, signal.SIGTERM):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        until(partial(has_begun, tmp_path / "out.partial", process), poll_seconds=0.001)
        process.send_signal(sent)
        process.wait()
    subprocess.run(command, check=True, capture_output=True)
    assert read_manifest(out).files == expected.files
    assert changed_files(out, expected) == []


def test_killed_at_forty_points(tmp_path: Path) -> None:
    """The source holds NaN, which is named although a killed run copied its tensor."""
    source = unpack(tmp_path / "in")
    put_nan(source)
    expected = convert(source, tmp_path / "expected", TP8)
    command = [sys.executable, "-m", "tests.convert.killed", source, tmp_path / "out", "40"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    report = json.loads(done.stdout)
    assert report["kills"] == 40
    assert len(report["results"]) >= 10
    for result in report["results"]:
        assert result["manifest"] == expected.model_dump()
        assert result["changed"] == []
        assert result["others"] == ["conversion.json", "manifest.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected", "in"]


def put_nan(folder: Path) -> None:
    path = folder / "model_weights" / "model.embedding.word_embeddings.weight" / "0.0"
    words = np.fromfile(path, np.uint16)
    words[5] = 0x7FC0
    words.tofile(path)


def test_notes_of_finished_tensors_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = unpack(tmp_path / "in")
    put_nan(source)
    begin(source, tmp_path / "out", TP8, monkeypatch)
    with monkeypatch.context() as patch:
        copied = break_after(1 << 30, patch, KeyboardInterrupt())
        manifest = convert(source, tmp_path / "out", RESUMED)
    assert not [band for band in copied if "embedding" in band]
    assert manifest.nonfinite == ["model.embedding.word_embeddings.weight"]
    begin(source, tmp_path / "strict", TP8, monkeypatch)
    with pytest.raises(NemotronError, match=r"word_embeddings\.weight holds NaN"):
        convert(source, tmp_path / "strict", replace(RESUMED, strict=True))


def test_only_files_that_matter_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = unpack(tmp_path / "in")
    begin(source, tmp_path / "out", TP8, monkeypatch)
    (source / "README.md").write_text("downloaded later")
    (source / ".cache").mkdir()
    (source / ".cache" / "lock").write_text("")
    assert convert(source, tmp_path / "out", RESUMED)
    (source / "README.md").unlink()
    assert convert(source, tmp_path / "out", replace(TP8, reuse=True))


@pytest.mark.parametrize("container", ["folder", "tar"])
@pytest.mark.parametrize("change", ["touched", "replaced", "grown"])
def test_a_source_that_changes_meanwhile(
    change: str, container: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = folder = unpack(tmp_path / "in")
    changed = folder / "model_weights" / "model.output_layer.weight" / "0.0"
    if container == "tar":
        source = changed = pack(folder, tmp_path / "model.nemo")
    before = changed.stat()
    copy_band = Copier._copy_band
    bands = iter(range(1 << 30))

    def change_it(self: Copier, *arguments: Any) -> journal.Note:
        if next(bands) == 20:
            if change == "touched":
                os.utime(changed)
            elif change == "grown":
                with changed.open("ab") as file:
                    file.write(b"\0" * 512)
                os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
            else:  # another file with the same size and times
                shutil.copy2(changed, tmp_path / "copy")
                (tmp_path / "copy").rename(changed)
        return copy_band(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Copier, "_copy_band", change_it)
        with pytest.raises(NemotronError, match=f"{changed.name} changed while it was read"):
            convert(source, tmp_path / "out", TP8)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial" / "manifest.json").exists()
    if change != "grown":
        copied = break_after(1 << 30, monkeypatch, KeyboardInterrupt())
        assert convert(source, tmp_path / "out", RESUMED)
        assert any("embedding" in band for band in copied)  # from the beginning


def begin(source: Path, out: Path, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        break_after(20, patch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            convert(source, out, replace(options, jobs=1))  # so that the first bands are known


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (Options(Parallel(4, 1), resume=True), "another tp"),
        (Options(Parallel(8, 2), resume=True), "another pp"),
        (Options(Parallel(1, 1), Format.HF, resume=True), "another format, tp"),
    ],
)
def test_another_option_is_refused(
    options: Options, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(NEMO, tmp_path / "out", TP8, monkeypatch)
    before = sorted((tmp_path / "out.partial").iterdir())
    with pytest.raises(NemotronError, match=f"{what}.*--overwrite instead of --resume"):
        convert(NEMO, tmp_path / "out", options)
    assert sorted((tmp_path / "out.partial").iterdir()) == before


@pytest.mark.parametrize("change", ["configuration", "grid", "touched"])
def test_another_source_is_refused(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = unpack(tmp_path / "in")
    begin(folder, tmp_path / "out", TP8, monkeypatch)
    if change == "configuration":
        edit_config(folder, lambda text: text + "\nrotary_base: 5000\n")
    elif change == "grid":
        rechunk(folder, "model.output_layer.weight", (64, 128))
    else:
        os.utime(folder / "model_weights" / "model.output_layer.weight" / "0.0")
    with pytest.raises(NemotronError, match="begun with another source"):
        convert(folder, tmp_path / "out", RESUMED)
    assert convert(folder, tmp_path / "out", TP8)  # from the beginning


def test_a_torn_journal_loses_only_its_last_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = convert(NEMO, tmp_path / "expected", TP8)
    begin(NEMO, tmp_path / "out", TP8, monkeypatch)
    log = tmp_path / "out.partial" / journal.FOLDER / "0.jsonl"
    lines = log.read_text().splitlines()
    assert len(lines) > 2
    log.write_text("\n".join(lines)[:-5])
    copied = break_after(1 << 30, monkeypatch, KeyboardInterrupt())
    assert convert(NEMO, tmp_path / "out", RESUMED).files == expected.files
    torn = json.loads(lines[-1])
    assert torn[0].startswith("rank")
    assert copied


def test_a_file_that_has_gone_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = convert(NEMO, tmp_path / "expected", TP8)
    begin(NEMO, tmp_path / "out", TP8, monkeypatch)
    (tmp_path / "out.partial" / "rank3.safetensors").unlink()
    assert convert(NEMO, tmp_path / "out", RESUMED).files == expected.files
    assert changed_files(tmp_path / "out", expected) == []


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        unfinished_folder(tmp_path / "out", keep=False),
        pytest.raises(NemotronError, match="another process is writing it"),
    ):
        convert(NEMO, tmp_path / "out", TP8)
    assert (tmp_path / "out").is_dir()


def test_the_second_process_is_refused_before_it_reads(tmp_path: Path) -> None:
    """It would decompress a whole archive first, and do so for each look while it waits."""
    with (
        unfinished_folder(tmp_path / "out", keep=False),
        pytest.raises(NotReady, match="another process is writing it"),
    ):
        convert(tmp_path / "missing.nemo", tmp_path / "out", TP8)
    with pytest.raises(NemotronError, match="cannot read"):
        convert(tmp_path / "missing.nemo", tmp_path / "out2", TP8)


def test_a_disk_that_fails_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel reports a failure only once, here to the thread that records what is done."""
    monkeypatch.setattr(journal, "SYNC_SECONDS", 0.001)
    failures = iter([OSError(5, "Input/output error")])

    class FailingFile:
        def sync(self) -> None:
            for failure in failures:
                raise failure

    (tmp_path / journal.FOLDER).mkdir()
    log = journal.Journal(tmp_path, 0, {"rank0": FailingFile()})  # type: ignore[dict-item]
    log.add("rank0", "weight")
    until(lambda: not log._thread.is_alive())
    with pytest.raises(OSError, match="Input/output"):
        log.close()
    assert (tmp_path / journal.FOLDER / "0.jsonl").read_text() == ""


def test_a_full_disk(tmp_path: Path) -> None:
    """On a real file system that is first too small for anything, then for the last tensors."""
    expected = convert(NEMO, tmp_path / "expected", TP8)
    (tmp_path / "disk").mkdir()
    convert_here = f"{NEMOTRON} convert {NEMO} -o disk/out --tp 8 --resume"
    script = f"""
        mount -t tmpfs -o size=1m none disk
        {convert_here}; echo "first $?"; ls disk
        mount -o remount,size=1800k disk
        {convert_here}; echo "second $?"; ls disk
        mount -o remount,size=8m disk
        {convert_here}; echo "third $?"; ls disk; cp disk/out/manifest.json .
    """
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    partial, whole = "out.partial", "out"
    lines = done.stdout.splitlines()
    lines = [
        line for line in lines if line.split()[0] in ("first", "second", "third", partial, whole)
    ]
    assert lines == ["first 1", partial, "second 1", partial, "third 0", whole]
    assert "more bytes" in done.stderr
    assert "No space left on device" in done.stderr
    assert read_manifest(tmp_path).files == expected.files


def test_a_file_system_that_cannot_reserve_space(tmp_path: Path) -> None:
    """`ramfs` cannot; each block of the files would be written once more to reserve it."""
    (tmp_path / "disk").mkdir()
    script = f"""
        mount -t ramfs none disk
        exec {sys.executable} - <<EOF
from pathlib import Path
from nemotron_convert.safetensors_header import TensorSpec
from nemotron_convert.target.tensor_file import TensorFile
def writes():
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("syscw"))
file = TensorFile(Path("disk/model"), {{"a": TensorSpec("BF16", (20_000_000,))}})
before = writes()
file.open()
print(writes() - before, Path("disk/model").stat().st_size == file.size)
EOF
    """
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    count, is_whole = done.stdout.split()
    assert int(count) < 10
    assert is_whole == "True"
