"""The tables that a batch makes of its results, and what reads them."""

from __future__ import annotations

import errno
from pathlib import Path

import datasets
import pytest
from pyarrow import parquet

from nemotron_core.errors import NemotronError
from tests.data.runs import Asked, in_process, names, row, write
from tests.standins.chat_server import ChatServer


def test_results_as_parquet(standin: ChatServer, asked: Asked, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.parquet"
    first = [row("b", level=1), row("a")]
    for rows in (first, first, [*first, row("c")]):
        in_process(write(source, *rows), out, url=[standin.url], ordered=True)
        table = parquet.read_table(out).to_pylist()
        assert [line["custom_id"] for line in table] == [line["custom_id"] for line in rows]
    assert asked.questions == ["a", "b", "c"]
    assert table[0].pop("response").startswith('{"id": "x", ')
    assert table[0] == {
        "custom_id": "b",
        "choice": 0,
        "text": "answer to b",
        "finish_reason": "stop",
        "prompt_tokens": 1,
        "completion_tokens": 1,
        "metadata": '{"level": 1}',
    }


def test_results_as_a_folder_that_hugging_face_loads(standin: ChatServer, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", *(row(str(number)) for number in range(25)))
    in_process(source, f"{tmp_path}/data/", url=[standin.url], ordered=True, rows_per_file=10)
    assert names(tmp_path / "data" / "data") == [
        f"train-0000{number}-of-00003.parquet" for number in range(3)
    ]
    loaded = datasets.load_dataset(
        str(tmp_path / "data"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded["text"] == [f"answer to {number}" for number in range(25)]
    card = (tmp_path / "data" / "README.md").read_text()
    assert "25 of 25 rows have an answer; 0 failed." in card
    assert "| max_tokens | `1024` |" in card
    assert "License" in card


def test_results_as_zstandard_are_read_by_hugging_face(standin: ChatServer, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", *(row(str(number)) for number in range(5)))
    in_process(source, tmp_path / "out.jsonl.zst", url=[standin.url], ordered=True)
    loaded = datasets.load_dataset(
        "json",
        data_files=str(tmp_path / "out.jsonl.zst"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert loaded["custom_id"] == [str(number) for number in range(5)]


@pytest.mark.parametrize("name", ["out.parquet", "out/"])
def test_a_table_that_could_not_be_written_is_written_by_the_same_command(
    name: str, standin: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = write(tmp_path / "in.jsonl", row("a")), f"{tmp_path}/{name}"
    in_process(source, out, url=[standin.url])

    def fail(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(parquet, "ParquetWriter", fail)
        with pytest.raises(NemotronError, match=r"No space left .*run the same command again"):
            in_process(write(source, row("a"), row("b")), out, url=[standin.url])
    asked = standin.requests
    in_process(source, out, url=[standin.url])
    assert standin.requests == asked == 2
    assert parquet.read_table(f"{out}data" if name == "out/" else out).num_rows == 2


def test_a_folder_goes_on_after_a_kill_before_the_server_was_reached(
    standin: ChatServer, tmp_path: Path
) -> None:
    source, out = write(tmp_path / "in.jsonl", row("a")), tmp_path / "out"
    out.mkdir()
    (out / "results.jsonl.zst").touch()
    (out / "manifest.json.partial").touch()
    assert in_process(source, f"{out}/", url=[standin.url]).finished == 1
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").touch()
    with pytest.raises(NemotronError, match="holds something that is no batch"):
        in_process(source, f"{other}/", url=[standin.url])
