"""Shards of one input: each row is in one of them, whatever is added to the input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemotron_core.errors import NemotronError
from nemotron_data.rows.shard import Shard, parse_shard
from tests.data.runs import Asked, in_process, read, results, row, write
from tests.standins.chat_server import ChatServer

COUNT = 3


def test_shards_share_the_rows_and_each_goes_on_by_itself(
    standin: ChatServer, asked: Asked, tmp_path: Path
) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    given = [row(str(number)) for number in range(60)]
    given.append({"messages": [{"role": "user", "content": "unnamed"}]})
    outputs = [tmp_path / f"out-{index:05d}-of-{COUNT:05d}.jsonl" for index in range(COUNT)]
    for more in ([], [row("added")]):
        write(source, *more, *given)
        for index in range(COUNT):
            in_process(source, out, url=[standin.url], shard=f"{index}/{COUNT}")
    assert asked.questions == sorted([*map(str, range(60)), "added", "unnamed"])
    found = [results(path) for path in outputs]
    assert min(map(len, found)) > 10
    assert sum(map(len, found)) == 62
    assert len({name for of_shard in found for name in of_shard}) == 62
    assert not out.exists()
    manifest = json.loads(outputs[0].with_name(f"{outputs[0].name}.manifest.json").read_text())
    assert manifest["rows"] == manifest["finished"] == len(found[0])


def test_equal_ids_meet_in_one_shard_and_a_bad_row_is_in_one(
    standin: ChatServer, tmp_path: Path
) -> None:
    source = write(tmp_path / "in.jsonl", row("a", "1"), row("b"), row("a", "2"), 7, row("c"))
    failed = 0
    for index in range(COUNT):
        counts = in_process(
            source, tmp_path / "out.jsonl", url=[standin.url], shard=f"{index}/{COUNT}"
        )
        failed += counts.failed
    assert failed == 2
    reasons = [
        line["error"]["message"]
        for path in tmp_path.glob("*.errors.jsonl")
        for line in read(path.read_bytes())
    ]
    assert sorted(reasons)[0] == "custom_id 'a' is in lines 1 and 3"


def test_names_of_outputs(tmp_path: Path) -> None:
    shard = Shard(0, 2)
    assert shard.output("a.parquet") == "a-00000-of-00002.parquet"
    assert shard.output("a.b") == "a.b-00000-of-00002"
    assert shard.output("out/") == "out-00000-of-00002/"
    assert shard.output(str(tmp_path)) == f"{tmp_path}-00000-of-00002/"
    for text in ("2/2", "-1/2", "1", "a/b", "0/0"):
        with pytest.raises(NemotronError, match="not a shard"):
            parse_shard(text)
