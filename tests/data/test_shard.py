"""Shards of one input: each row is in one of them, whatever is added to the input."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from nemotron_core.errors import NemotronError
from nemotron_data import commands
from nemotron_data.options import BatchOptions, Runner, SynthesisOptions
from nemotron_data.ray_runner import batch_on_ray
from nemotron_data.rows.shard import Shard, parse_shard
from nemotron_data.synthesis.recipe import RECIPES, load_recipe
from nemotron_data.synthesis.run import synthesize
from nemotron_data.synthesis.sharding import check_shards
from tests.data.runs import Asked, in_process, read, results, row, write
from tests.data.synthesis import recipe, topics
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


def write_recipe(folder: Path, url: str, **steps: Any) -> SynthesisOptions:
    (folder / "forms.csv").write_text("form\nletter\npoem\n")
    of_forms = {"topics": {"rows": "topics.jsonl"}, "forms": {"rows": "forms.csv"}} | steps
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(url, of_forms), sort_keys=False))
    return SynthesisOptions(recipe=str(path), output=folder / "out")


def test_shards_of_a_recipe(asked: Asked, standin: ChatServer, tmp_path: Path) -> None:
    """Its first step's rows are split, and what they are crossed with is whole in each shard."""
    names = [f"t{number}" for number in range(20)]
    topics(tmp_path, *names)
    texts = {"rows": {"cross": ["topics", "forms"]}, "prompt": "{{ form }} {{ topic }}"}
    options = write_recipe(tmp_path, standin.url, texts=texts)
    for more in ([], ["added"]):
        topics(tmp_path, *more, *names)
        for index in range(COUNT):
            synthesize(replace(options, shard=f"{index}/{COUNT}"))
    expected = sorted(f"{form} {name}" for form in ("letter", "poem") for name in (*names, "added"))
    assert asked.questions == expected
    found: list[str] = []
    for index in range(COUNT):
        folder = tmp_path / f"out-{index:05d}-of-{COUNT:05d}"
        rows = read((folder / "out.jsonl").read_bytes())
        assert rows
        found += [f"{row['form']} {row['topic']}" for row in rows]
    assert sorted(found) == expected
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"rows": "forms"}, "outputs.out.jsonl"),
        ({"rows": ["topics", "forms"]}, "mixes rows of a shard with others"),
        ({"rows": {"zip": ["topics", "forms"]}}, "mixes rows of a shard with others"),
        ({"rows": {"cross": ["topics", "topics"]}}, "crosses rows of different shards"),
    ],
)
def test_what_has_no_shards(
    step: dict[str, Any], message: str, standin: ChatServer, tmp_path: Path
) -> None:
    topics(tmp_path, "tea")
    options = write_recipe(tmp_path, standin.url, last=step)
    with pytest.raises(NemotronError, match=message):
        synthesize(replace(options, shard="0/2"))


def test_every_shipped_recipe_has_shards() -> None:
    for path in RECIPES.glob("*.yaml"):
        check_shards(load_recipe(path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shards", "2"], "only for --runner ray"),
        (["--runner", "ray"], "the number of shards is missing"),
        (["--runner", "ray", "--shards", "2", "--shard", "0/2"], "Ray runs all shards"),
    ],
)
def test_options_that_do_not_fit(options: list[str], message: str) -> None:
    for verb in ("batch", "synthesize"):
        app = typer.Typer()
        app.command()(getattr(commands, verb))
        result = CliRunner().invoke(app, ["in.jsonl", "out", *options])
        assert isinstance(result.exception, NemotronError)
        assert message in str(result.exception)


def test_what_ray_cannot_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    source = str(write(tmp_path / "in.jsonl", row("a")))
    options = BatchOptions(source=source, output="-", runner=Runner.RAY, shards=2)
    with pytest.raises(NemotronError, match="a stream has no shards"):
        batch_on_ray(options)
    with pytest.raises(NemotronError, match="a stream has no shards"):
        batch_on_ray(replace(options, source="/dev/null", output="out.jsonl"))
    with pytest.raises(NemotronError, match="each shard would need a port"):
        batch_on_ray(replace(options, output="out.jsonl", metrics_port=9000))
    with pytest.raises(NemotronError, match=r"ray is not installed.*nemotron-triton\[ray\]"):
        batch_on_ray(replace(options, output="out.jsonl"))
