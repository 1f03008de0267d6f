"""vLLM behind the engine's socket, in a process of its own environment."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from nemotron_build.engine_folder import build_engine
from nemotron_build.lanes import lane_of
from nemotron_build.profile import Profile, VllmProfile, load_profile, shipped_profiles
from nemotron_convert.target.manifest import read_manifest
from nemotron_core.engine_settings import VllmEngineSettings
from nemotron_core.text import Tokenizer
from nemotron_engine.protocol import FEATURES, Hello
from tests.engine.process import PROGRAM, Connection, engine_process
from tests.engine.requests import request
from tests.tiny_nemotron.answers import ExactAnswer
from tests.tiny_nemotron.dialogues import prompt_ids
from tests.tiny_nemotron.reference import load_hf_model
from tests.vllm.fixtures import PYTHON, ROOT
from tests.waiting import WAIT, until

PROMPT = [4, 20, 30, 400, 500]
PARSE = """
import json, sys
from pathlib import Path
from nemotron_core.engine_settings import VllmEngineSettings
from nemotron_engine.adapters.vllm_engine import engine_arguments
from vllm import EngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser

for word in sys.argv[1:]:
    folder, _, nodes = word.rpartition(":")
    place = (int(nodes) - 1, int(nodes)) if int(nodes) > 1 else None
    settings = VllmEngineSettings.read(Path(folder))
    command = []
    for name, value in engine_arguments(Path(folder), settings, place).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            command.append("--" + ("" if value else "no-") + flag)
        elif isinstance(value, list):
            command += ["--" + flag, *value]
        else:
            command += ["--" + flag, json.dumps(value) if isinstance(value, dict) else str(value)]
    parsed = EngineArgs.add_cli_args(FlexibleArgumentParser()).parse_args(command)
    print(json.dumps({name: value for name, value in vars(parsed).items()
        if isinstance(value, (str, int, float, bool))}))
"""
WHOLE_BIAS = dict.fromkeys(range(1536), -50.0) | {9: 50.0}
SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def folder(engine_vllm: Path) -> Path:
    engine_vllm.chmod(0o700)
    return engine_vllm


@pytest.fixture(scope="module")
def path(folder: Path) -> Iterator[Path]:
    with engine_process(folder, "vllm", python=PYTHON) as (_, path):
        yield path


@pytest.fixture
def client(path: Path) -> Iterator[Connection]:
    with Connection(path) as connection:
        yield connection


def ask(client: Connection, **fields: Any) -> list[int]:
    asked = request(PROMPT, **({"end_ids": []} | fields))
    client.ask(asked)
    return client.whole(asked).token_ids


def refusal(client: Connection, **fields: Any) -> str:
    asked = request(PROMPT, **fields)
    client.ask(asked)
    last = client.whole(asked)
    assert last.finish_reason == "error"
    return last.error


def test_the_code_is_this_checkouts() -> None:
    program = "import nemotron_engine; print(nemotron_engine.__file__)"
    done = subprocess.run([PYTHON, "-c", program], capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == ROOT / "engine" / "nemotron_engine" / "__init__.py"


def test_every_answer_at_once_is_exact(
    client: Connection, answers: list[ExactAnswer], tokenizer: Tokenizer
) -> None:
    asked = [
        request(
            list(prompt_ids(tokenizer, exact.question.messages)), max_tokens=200, end_ids=[5, 3]
        )
        for exact in answers
    ]
    client.ask(*asked)
    whole = [client.whole(one) for one in asked]
    assert {last.finish_reason for last in whole} == {"stop"}
    exact_count = sum(
        last.token_ids == list(exact.token_ids) for last, exact in zip(whole, answers, strict=True)
    )
    assert exact_count >= 0.98 * len(answers)


def test_what_it_says_of_itself(client: Connection) -> None:
    hello: Hello = client.hello()
    assert (hello.lane, hello.vocab_size, hello.max_seq_len) == ("vllm", 1536, 4096)
    assert hello.library.startswith("vllm 0.")
    assert set(hello.capabilities.features) == set(FEATURES)
    assert hello.capabilities.max_temperature == 2


def test_log_probabilities_are_those_of_transformers(client: Connection) -> None:
    """The prompt's and the answer's, with alternatives, the best first."""
    asked = request(
        PROMPT, max_tokens=4, end_ids=[], log_probs=True, top_log_probs=3, prompt_log_probs=2
    )
    client.ask(asked)
    chunks = client.chunks(asked)
    ids = [id_ for chunk in chunks for id_ in chunk.token_ids]
    with torch.inference_mode():
        expected = load_hf_model()(torch.tensor([PROMPT + ids])).logits[0].log_softmax(-1)
    own = [value for chunk in chunks for value in chunk.log_probs]
    top = [entries for chunk in chunks for entries in chunk.top_log_probs]
    assert len(own) == len(top) == 4
    for position, (id_, value, entries) in enumerate(zip(ids, own, top, strict=True)):
        row = expected[len(PROMPT) - 1 + position]
        assert value == pytest.approx(float(row[id_]), abs=0.15)
        assert entries[0] == (id_, value)  # greedy
        assert [entry for entry, _ in entries] == sorted(
            (entry for entry, _ in entries), key=lambda entry: -dict(entries)[entry]
        )
        for entry, log_prob in entries:
            assert log_prob == pytest.approx(float(row[entry]), abs=0.3)
    first, *rest = chunks[0].prompt_log_probs
    assert first == []
    for position, (id_, entries) in enumerate(zip(PROMPT[1:], rest, strict=True)):
        assert len(entries) == 3
        assert entries[0][0] == id_
        assert entries[0][1] == pytest.approx(float(expected[position][id_]), abs=0.3)
        assert entries[1][0] == int(expected[position].argmax())


def test_prompts_that_are_scored_at_once(
    client: Connection, answers: list[ExactAnswer], tokenizer: Tokenizer
) -> None:
    """Each has the values that it has alone, whichever share a step with it."""
    asked = []
    for exact in answers[:24]:
        ids = [*prompt_ids(tokenizer, exact.question.messages), *exact.token_ids]
        asked.append(request(ids, max_tokens=1, end_ids=[], log_probs=True, prompt_log_probs=1))
    client.ask(*asked)
    together = [client.chunks(one)[0].prompt_log_probs for one in asked]
    for one, scores in zip(asked[:4], together, strict=False):
        again = request(one.input_ids, max_tokens=1, end_ids=[], log_probs=True, prompt_log_probs=1)
        client.ask(again)
        alone = client.chunks(again)[0].prompt_log_probs
        assert len(alone) == len(scores) == len(one.input_ids)
        for (id_, value), (other_id, other) in zip(
            (entries[0] for entries in alone[1:]),
            (entries[0] for entries in scores[1:]),
            strict=True,
        ):
            assert id_ == other_id
            assert value == pytest.approx(other, abs=0.3)  # batches round otherwise in BF16


def test_seeds(client: Connection) -> None:
    drawn = [ask(client, temperature=1.5, seed=seed, max_tokens=12) for seed in (1, 1, 2**64 - 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    asked = [
        request(PROMPT, temperature=1.5, seed=seed, max_tokens=12, end_ids=[]) for seed in (3, 1, 4)
    ]
    client.ask(*asked)
    assert client.whole(asked[1]).token_ids == drawn[0]  # whatever runs beside it


@pytest.mark.parametrize(
    ("fields", "is_right"),
    [
        ({"bias": {7: 100.0}, "max_tokens": 3}, lambda ids: ids == [7, 7, 7]),
        ({"bias": WHOLE_BIAS, "max_tokens": 1}, lambda ids: ids == [9]),
        ({"max_tokens": 3, "temperature": 1.0, "top_p": 0.0}, lambda ids: len(ids) == 3),
    ],
)
def test_settings(fields: dict[str, Any], is_right: Any, client: Connection) -> None:
    assert is_right(ask(client, **fields))


def test_the_most_probable_of_one_token_is_greedy(client: Connection) -> None:
    assert ask(client, max_tokens=6, temperature=2.0, top_k=1) == ask(client, max_tokens=6)


def test_bad_sequences_do_not_come(client: Connection) -> None:
    plain = ask(client, max_tokens=8)
    first = ask(client, max_tokens=8, bad_sequences=[[plain[0]]])
    assert plain[0] not in first
    pair = ask(client, max_tokens=8, bad_sequences=[plain[1:3]])
    assert pair[:2] == plain[:2]
    assert pair[2] != plain[2]


def test_an_end_token_ends_but_not_among_the_least_number_of_tokens(client: Connection) -> None:
    plain = ask(client, max_tokens=8)
    assert ask(client, max_tokens=8, end_ids=[plain[2]]) == plain[: plain.index(plain[2]) + 1]
    longer = ask(client, max_tokens=8, end_ids=[plain[2]], min_tokens=6)
    assert len(longer) >= 6
    assert plain[2] not in longer[:5]


@pytest.mark.parametrize(
    ("guide_type", "guide", "matches"),
    [
        ("regex", "[0-9]{3}-[a-c]{2}", r"[0-9]{3}-[a-c]{2}"),
        ("json_schema", json.dumps(SCHEMA), r'\{\s*"ok"\s*:\s*(true|false)\s*\}'),
        ("ebnf_grammar", 'root ::= "yes" | "no"', "yes|no"),
    ],
)
def test_guides(
    guide_type: str, guide: str, matches: str, client: Connection, tokenizer: Tokenizer
) -> None:
    fields = {"guide_type": guide_type, "guide": guide, "max_tokens": 200, "end_ids": [5, 3]}
    asked = request(PROMPT, temperature=1.0, seed=3, **fields)
    client.ask(asked)
    last = client.whole(asked)
    text = tokenizer.decode(last.token_ids[:-1])
    assert last.finish_reason == "stop"
    assert re.fullmatch(matches, text.strip())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"guide_type": "regex", "guide": "[0-9"}, "the engine refuses the request"),
        ({"guide_type": "json_schema", "guide": '{"type":'}, "the engine refuses the request"),
        ({"guide_type": "ebnf_grammar", "guide": "root ::= nothing"}, "the engine refuses"),
        ({"guide_type": "structural_tag", "guide": '{"a": 1}'}, "the engine refuses"),
        ({"guide_type": "ebnf_grammar", "guide": "root ::= root"}, "vLLM has ended the request"),
        ({"temperature": 2.5}, "temperature is 2.5"),
        ({"top_log_probs": 21}, "number of alternatives is 21"),
        ({"bias": {1536: 1.0}}, "token id 1536 is outside the vocabulary"),
        ({"end_ids": [-1]}, "token id -1 is outside the vocabulary"),
        ({"max_tokens": 4096}, "are more than the 4096 this model holds"),
    ],
)
def test_a_wrong_request_ends_alone(fields: dict[str, Any], words: str, client: Connection) -> None:
    running = request(PROMPT, max_tokens=300, end_ids=[])
    client.ask(running)
    client.first(running)
    assert words in refusal(client, **fields)
    assert len(client.whole(running).token_ids) == 300


def test_higher_priorities_overtake(client: Connection) -> None:
    """Lower numbers come first, when more wait than are computed at once."""
    many = [request(PROMPT, max_tokens=60, end_ids=[], priority=5) for _ in range(128)]
    client.ask(*many)
    client.first(many[0])
    urgent = request(PROMPT, max_tokens=4, end_ids=[], priority=0)
    client.ask(urgent)
    client.chunks(urgent)
    assert sum(one.key in client.finished() for one in many) <= 64
    for one in many:
        client.chunks(one)


def test_a_cancelled_request_frees_its_place(client: Connection) -> None:
    endless = [request(PROMPT, max_tokens=4000, end_ids=[]) for _ in range(64)]
    client.ask(*endless)
    for one in endless:
        client.first(one)
    assert (client.load().kv_cache_usage or 0) > 0
    client.cancel(*(one.key for one in endless))
    assert {client.chunks(one)[-1].finish_reason for one in endless} == {"cancelled"}
    assert len(ask(client, max_tokens=5)) == 5
    assert client.load().running == 0


def with_split(engine: Path, target: Path, **split: int) -> Path:
    """Return a copy of an engine that is split otherwise."""
    target.mkdir(mode=0o700)
    for file in engine.iterdir():
        if not file.name.startswith("engine."):  # the socket and the log of another process
            (target / file.name).hardlink_to(file)
    settings = VllmEngineSettings.read(engine).model_copy(update=split)
    (target / VllmEngineSettings.NAME).unlink()
    settings.write(target)
    return target


def test_a_folder_of_another_lane(engine_bf16: Path) -> None:
    with (
        pytest.raises(AssertionError, match="not an engine of this lane"),
        engine_process(engine_bf16, "vllm", python=PYTHON),
    ):
        pass


def test_heads_without_a_kernel(
    checkpoint_hf64: Path, vllm_profile: Profile, tmp_path: Path
) -> None:
    build_engine(checkpoint_hf64.with_name("hf"), tmp_path / "engine", vllm_profile)
    with (
        pytest.raises(AssertionError, match="vLLM computes no heads of 16 on a CPU"),
        engine_process(tmp_path / "engine", "vllm", python=PYTHON),
    ):
        pass


def test_two_machines_and_the_death_of_the_engine(
    folder: Path, tmp_path: Path, answers: list[ExactAnswer], tokenizer: Tokenizer
) -> None:
    """Both are this one: a process of its own for each, as a launcher starts them."""
    split = with_split(folder, tmp_path / "tp2", tp=2, gpus_per_node=1)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    place = {"PMI_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    second = subprocess.Popen(
        [PYTHON, *PROGRAM, "--lane", "vllm", "--socket", os.devnull, split],
        env=os.environ | place | {"PMI_RANK": "1"},
    )
    try:
        first = engine_process(split, "vllm", python=PYTHON, PMI_RANK="0", **place)
        with first as (engine, path), Connection(path) as client:
            exact = answers[0]
            prompt = list(prompt_ids(tokenizer, exact.question.messages))
            asked = request(prompt, max_tokens=200, end_ids=[5, 3])
            client.ask(asked)
            assert client.whole(asked).token_ids == list(exact.token_ids)
            ranks = [
                child
                for process in (engine, second)
                for child in psutil.Process(process.pid).children(recursive=True)
            ]
            assert len([rank for rank in ranks if "Worker" in rank.name()]) == 2
            engine.kill()
            assert second.wait(WAIT) == 0  # its launcher heeds the first one's code
            until(lambda: not any(rank.is_running() for rank in ranks))
    finally:
        second.kill()
        second.wait()


def test_vllm_knows_every_argument(tmp_path: Path, checkpoint_hf64: Path) -> None:
    """Its own parser reads what engines are loaded with, on the last of their machines."""
    manifest = read_manifest(checkpoint_hf64)
    dtypes = {"dtype": manifest.dtype, "kv_cache_dtype": manifest.kv_cache_dtype}
    profiles = {
        name: profile
        for name in shipped_profiles()
        if isinstance(profile := load_profile(name), VllmProfile)
    }
    assert len(profiles) == 6
    nodes = {}
    for name, profile in profiles.items():
        build_engine(checkpoint_hf64, tmp_path / name, profile.model_copy(update=dtypes))
        nodes[name] = lane_of(profile).deployment(profile).nodes
    done = subprocess.run(
        [PYTHON, "-c", PARSE, *(f"{tmp_path / name}:{count}" for name, count in nodes.items())],
        env=os.environ | {"MASTER_ADDR": "first"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()[-len(profiles) :]
    for (name, profile), line in zip(profiles.items(), lines, strict=True):
        parsed = json.loads(line)
        assert parsed["tensor_parallel_size"] == profile.split.tp
        assert parsed["pipeline_parallel_size"] == profile.split.pp
        assert parsed["gpu_memory_utilization"] == profile.memory_share
        assert (parsed["nnodes"], parsed["node_rank"]) == (nodes[name], nodes[name] - 1)
