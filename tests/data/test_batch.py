"""The verb `batch` with the real server."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.runs import ASK, batch, read, texts, write_rows
from tests.tiny_nemotron.answers import ExactAnswer

ANY = ("--accept", "any")
"""Answers of few tokens are cut off."""


def test_known_answers_in_order_with_a_manifest(
    url: str, answers: list[ExactAnswer], tmp_path: Path
) -> None:
    expected = write_rows(tmp_path / "in.jsonl", answers)
    out = tmp_path / "out.jsonl"
    done = batch(tmp_path / "in.jsonl", out, "--url", url, "--ordered", *ANY)
    assert done.returncode == 0, done.stderr
    results = read(out.read_bytes())
    assert list(texts(results).items()) == list(expected.items())
    assert results[0].keys() == {"id", "custom_id", "response", "error"}
    assert results[0]["response"].keys() == {"status_code", "request_id", "body"}
    assert results[0]["response"]["body"]["usage"]["completion_tokens"] == len(answers[0].token_ids)
    manifest = json.loads((tmp_path / "out.jsonl.manifest.json").read_text())
    assert manifest["rows"] == manifest["finished"] == len(answers)
    assert all(len(manifest["server"][name]) == 64 for name in ("engine", "checkpoint", "template"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "in.jsonl",
        "out.jsonl",
        "out.jsonl.manifest.json",
    ]
    before = out.read_bytes()
    again = batch(tmp_path / "in.jsonl", out, "--url", "grpc://127.0.0.1:1", "--ordered")
    assert again.returncode == 0, again.stderr  # nothing is left to ask
    assert out.read_bytes() == before


def test_the_gateway_gives_the_same_rows_also_through_pipes_and_gzip(
    url: str, gateway_url: str, answers: list[ExactAnswer], tmp_path: Path
) -> None:
    source = tmp_path / "in.jsonl"
    write_rows(source, answers[::8])
    extra = [
        {"prompt": "Hello", "max_tokens": 5, "custom_id": "prompt"},
        {"prompt": "Hello", "max_tokens": 5, "temperature": 2.0, "custom_id": "sampled"},
        {"messages": ASK, "n": 2, "temperature": 2.0, "max_tokens": 5, "custom_id": "two"},
    ]
    with source.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in extra)
    source.with_suffix(".jsonl.gz").write_bytes(gzip.compress(source.read_bytes()))
    packed = tmp_path / "out.jsonl.gz"
    direct = batch(f"{source}.gz", packed, "--url", url, *ANY)
    assert direct.returncode == 0, direct.stderr
    piped = batch("-", "-", "--url", gateway_url, *ANY, input=source.read_text())
    assert piped.returncode == 0, piped.stderr

    def contents(results: list[dict[str, Any]]) -> dict[str, Any]:
        keys = ("choices", "usage", "model", "object")
        bodies = {result["custom_id"]: result["response"]["body"] for result in results}
        assert len(bodies) == len(results)
        return {name: [body[key] for key in keys] for name, body in bodies.items()}

    direct_contents = contents(read(gzip.decompress(packed.read_bytes())))
    assert direct_contents == contents(read(piped.stdout.encode()))
    assert len(direct_contents) == len(answers[::8]) + len(extra)
    assert len(direct_contents["two"][0]) == 2


def test_keys_that_the_server_ignores_are_named(url: str, gateway_url: str, tmp_path: Path) -> None:
    """Over both protocols, each key once."""
    source = tmp_path / "in.jsonl"
    body = {"messages": ASK, "max_tokens": 3, "temprature": 1, "a b": 2}
    rows = [{"custom_id": str(number), "body": body | {"seed": number}} for number in range(3)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for number, server in enumerate((url, gateway_url)):
        done = batch(source, tmp_path / f"out{number}.jsonl", "--url", server, *ANY)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("the server ignores: temprature, a b") == 1


def test_bad_rows_are_set_apart_and_asked_again(url: str, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    errors = tmp_path / "out.jsonl.errors.jsonl"
    good = {"custom_id": "good", "messages": ASK, "max_tokens": 3}
    rows = [
        good,
        {"custom_id": "role", "messages": [{"role": "tool", "content": "x"}]},
        {"custom_id": "long", "messages": ASK, "max_tokens": 5000},
        {"custom_id": "key", "body": {"messages": ASK, "tools": [1]}},
        {"custom_id": "model", "messages": ASK, "model": "other"},
        good,
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows) + "nonsense\n")
    for _ in range(2):
        done = batch(source, out, "--url", url, *ANY)
        assert done.returncode == 1
        assert "6 of 7 rows failed" in done.stderr
        assert len(texts(read(out.read_bytes()))) == 1
        failed = {line["error"]["line"]: line for line in read(errors.read_bytes())}
        assert sorted(failed) == [2, 3, 4, 5, 6, 7]
        assert "role" in failed[2]["error"]["message"]
        assert "4096" in failed[3]["error"]["message"]
        assert "tools" in failed[4]["error"]["message"]
        assert "'other'" in failed[5]["error"]["message"]
        assert "lines 1 and 6" in failed[6]["error"]["message"]
        assert failed[7]["custom_id"] is None
        assert all(line["error"]["remedy"] for line in failed.values())
    piped = batch(source, "-", "--url", url, *ANY)
    assert piped.returncode == 1
    assert sum(line["error"] is None for line in read(piped.stdout.encode())) == 1
    assert len(read(piped.stdout.encode())) == 7


def test_another_setting_is_refused(url: str, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps({"messages": ASK, "max_tokens": 2}) + "\n")
    assert batch(source, out, "--url", url, *ANY).returncode == 0
    before = out.read_bytes()
    for options, reason in (
        (["--seed", "1"], "--seed was 0 and is 1"),
        (["--no-seed"], "--seed was 0 and is null"),
        (["--max-tokens", "9"], "max_tokens was 1024 and is 9"),
    ):
        done = batch(source, out, "--url", url, *options)
        assert done.returncode == 1
        assert reason in done.stderr
    (tmp_path / "out.jsonl.manifest.json").unlink()
    assert "has no manifest" in batch(source, out, "--url", url).stderr
    assert out.read_bytes() == before


def test_another_engine_is_refused(url: str, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [{"custom_id": "a", "messages": ASK, "max_tokens": 2}, {"custom_id": "b"}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert batch(source, out, "--url", url, *ANY).returncode == 1
    manifest = tmp_path / "out.jsonl.manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"server": content["server"] | {"engine": "another"}}))
    done = batch(source, out, "--url", url)
    assert done.returncode == 1
    assert 'server\'s engine was "another"' in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.jsonl", "out.jsonl"], "No such file"),
        (["in.jsonl", "no/such/out.jsonl"], "cannot write"),
        (["in.jsonl", "out.jsonl", "--url", "localhost:1424"], "not the URL of a server"),
        (["in.jsonl", "out.jsonl", "--url", "grpc://localhost"], "not the URL of a server"),
        (["in.jsonl", "-", "--ordered"], "cannot be sorted"),
        (["in.jsonl", "/dev/stdout"], "not a regular file"),
        (["in.jsonl", "/dev/null"], "not a regular file"),
        (["in.jsonl", "out.csv"], ".csv is not written"),
        (["in.jsonl", "out.json"], ".json is not written"),
        (["in.jsonl", "out.jsonl", "--prompt", "{{ x"], "not a template"),
        (["in.jsonl", "out.jsonl", "--prompt", "x", "--prompt-column", "y"], "one of the two"),
        (["in.jsonl", "out.jsonl", "--accept", "beauty"], "not a rule for answers"),
        (["in.jsonl", "out.jsonl", "--url", "@none"], "cannot read"),
    ],
)
def test_wrong_use_is_one_clear_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps({"messages": ASK}) + "\n")
    done = batch(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
