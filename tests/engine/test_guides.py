"""Structured output on the CPU lane: every type of guide, and what must not reach the pipeline."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest

from nemotron_build.engine_folder import open_engine, plan_engine
from nemotron_build.profile import Profile
from nemotron_core.errors import ErrorKind, NemotronError
from nemotron_core.openvino import openvino_genai
from nemotron_core.text import Tokenizer
from nemotron_engine.adapters.openvino import OpenVinoAdapter
from nemotron_engine.adapters.openvino_guide_trial import TRIALS
from nemotron_engine.adapters.openvino_guides import VOCABULARY_NAME, GuideTrials
from nemotron_engine.protocol import GUIDE_TYPES
from tests.engine.requests import NEVER, Answer, Engine
from tests.tiny_nemotron.answers import ExactAnswer
from tests.tiny_nemotron.dialogues import prompt_ids
from tests.waiting import WAIT

PATTERN = "[0-9]{3}-[a-c]{2}"
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Ada", "Grace"]}, "old": {"type": "boolean"}},
    "required": ["name", "old"],
    "additionalProperties": False,
}
TAG = {"begin": "<n>", "content": {"type": "regex", "pattern": "[0-9]{4}"}, "end": "</n>"}
STRUCTURAL_TAG = {"type": "structural_tag", "format": {"type": "tag", **TAG}}
SLOW_GUIDE = "([a-z]{1,500}){1,500}"


@pytest.fixture(scope="module")
def adapter(engine_f32: Path) -> Iterator[OpenVinoAdapter]:
    adapter = OpenVinoAdapter(engine_f32)
    yield adapter
    adapter.close()


@pytest.fixture(scope="module")
def engine(adapter: OpenVinoAdapter) -> Engine:
    return Engine(adapter)


@pytest.fixture
def trials(engine_f32: Path) -> Iterator[GuideTrials]:
    trials = GuideTrials(engine_f32)
    yield trials
    trials.close()


@pytest.fixture(scope="module")
def prompt(tokenizer: Tokenizer, answers: list[ExactAnswer]) -> list[int]:
    return prompt_ids(tokenizer, answers[0].question.messages)


def guided(engine: Engine, prompt: list[int], guide_type: str, guide: str, **fields: Any) -> Answer:
    return engine.ask(prompt, guide_type=guide_type, guide=guide, **({"max_tokens": 200} | fields))


def is_valid(guide_type: str, text: str) -> bool:
    if guide_type == "regex":
        return re.fullmatch(PATTERN, text) is not None
    if guide_type == "ebnf_grammar":
        return text in ("ja", "näh 中 😀")
    if guide_type == "structural_tag":
        return re.fullmatch(r"<n>\d{4}</n>", text) is not None
    jsonschema.validate(json.loads(text), SCHEMA)
    return True


GUIDES = {
    "json_schema": json.dumps(SCHEMA),
    "regex": PATTERN,
    "ebnf_grammar": 'root ::= "ja" | "näh 中 😀"',
    "structural_tag": json.dumps(STRUCTURAL_TAG),
}


@pytest.mark.parametrize("fields", [{}, {"temperature": 20.0}, {"log_probs": True}])
@pytest.mark.parametrize("guide_type", GUIDES)
def test_an_answer_matches_its_guide_and_ends_with_it(
    engine: Engine,
    tokenizer: Tokenizer,
    prompt: list[int],
    guide_type: str,
    fields: dict[str, Any],
) -> None:
    for seed in range(8 if "temperature" in fields else 1):
        fields = {"frequency_penalty": 2.0, "seed": seed, **fields}  # no white space for ever
        answer = guided(engine, prompt, guide_type, GUIDES[guide_type], **fields).wait()
        assert is_valid(guide_type, tokenizer.decode(answer.token_ids))
        assert (answer.finish_reason, answer.token_ids[-1]) == ("stop", 5)


def test_the_type_json_is_any_object(
    engine: Engine, tokenizer: Tokenizer, prompt: list[int]
) -> None:
    answer = guided(engine, prompt, "json", "", temperature=1.0, max_tokens=400, seed=6).wait()
    text = tokenizer.decode(answer.token_ids)
    assert text.startswith("{")
    if answer.finish_reason == "stop":
        assert isinstance(json.loads(text), dict)


def test_every_end_token_may_end_it(engine: Engine, prompt: list[int]) -> None:
    answer = guided(engine, prompt, "regex", PATTERN, end_ids=[3]).wait()
    assert (answer.finish_reason, answer.token_ids[-1]) == ("stop", 3)


BAD_GUIDES = {
    ("regex", "[0-9"): "Regex parsing error at position 5: Unclosed '['",
    ("regex", "(" * 100_000 + "a" + ")" * 100_000): "it crashes the library",
    ("regex", SLOW_GUIDE): "compiling it takes too long",
    ("json_schema", "{nonsense"): "Failed to parse JSON",
    ("json_schema", '{"type": "poem"}'): 'Unsupported type "poem"',
    ("json_schema", '{"$ref": "#"}'): "no text can satisfy it",
    ("ebnf_grammar", "root ::= nope"): 'Rule "nope" is not defined',
    ("ebnf_grammar", "root ::= root"): "no text can satisfy it",
    ("ebnf_grammar", 'root ::= "but then " x\nx ::= x'): "no text can satisfy it",
    ("structural_tag", "{}"): "Structural tag must have a format field",
}


@pytest.mark.parametrize(("guide", "reason"), BAD_GUIDES.items(), ids=range(len(BAD_GUIDES)))
def test_a_bad_guide_is_refused_and_harms_nobody(
    engine: Engine,
    prompt: list[int],
    answers: list[ExactAnswer],
    guide: tuple[str, str],
    reason: str,
) -> None:
    beside = engine.ask(prompt, max_tokens=200)
    with pytest.raises(NemotronError) as caught:
        guided(engine, prompt, *guide).wait()
    assert caught.value.kind is ErrorKind.REFUSED
    assert str(caught.value).startswith(f"the guide ({guide[0]}) does not work: ")
    assert reason in str(caught.value)
    assert beside.wait().token_ids == answers[0].token_ids
    assert guided(engine, prompt, "regex", PATTERN).wait().finish_reason == "stop"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"end_ids": []}, "a guide needs an end token"),
        ({"min_tokens": 1}, "min_tokens and a guide"),
    ],
)
def test_what_a_guide_does_not_go_with(
    engine: Engine, prompt: list[int], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(NemotronError, match=message):
        guided(engine, prompt, "regex", **({"guide": PATTERN} | fields)).wait()


def test_guided_requests_in_a_batch_leave_the_others_alone(
    engine: Engine, tokenizer: Tokenizer, answers: list[ExactAnswer]
) -> None:
    chosen = answers[:16]
    plain, with_guide = [], []
    for exact in chosen:
        ids = prompt_ids(tokenizer, exact.question.messages)
        plain.append(engine.ask(ids, max_tokens=200))
        with_guide.append(guided(engine, ids, "regex", PATTERN))
    for answer, exact in zip(plain, chosen, strict=True):
        assert answer.wait().token_ids == exact.token_ids
    for answer in with_guide:
        assert is_valid("regex", tokenizer.decode(answer.wait().token_ids))


def test_others_are_answered_while_a_guide_is_tried(engine: Engine, prompt: list[int]) -> None:
    slow = guided(engine, prompt, "regex", SLOW_GUIDE + "x")
    for _ in range(3):
        assert engine.ask(prompt, max_tokens=4).wait().finish_reason == "length"
    assert not slow.finish_reason
    engine.cancel(slow)
    assert slow.finish_reason == "cancelled"
    assert guided(engine, prompt, "regex", PATTERN).wait().finish_reason == "stop"


def test_a_deadline_counts_while_a_guide_is_tried(engine: Engine, prompt: list[int]) -> None:
    start = time.monotonic()
    with pytest.raises(NemotronError, match="not whole in the time allowed") as caught:
        guided(engine, prompt, "regex", SLOW_GUIDE + "y", seconds=0.2).wait()
    assert caught.value.kind is ErrorKind.TIMED_OUT
    assert time.monotonic() - start < 1


def test_waiting_for_a_trial_takes_little_of_a_processor(engine: Engine, prompt: list[int]) -> None:
    start = time.thread_time()
    with pytest.raises(NemotronError, match="takes too long"):
        guided(engine, prompt, "regex", SLOW_GUIDE + "z").wait()
    assert time.thread_time() - start < 0.5


def test_a_trial_that_nobody_waits_for_anymore_does_not_begin(
    engine: Engine, prompt: list[int]
) -> None:
    slow = [guided(engine, prompt, "regex", f"{SLOW_GUIDE}{n}") for n in range(20)]
    engine.cancel(*slow)
    start = time.monotonic()
    assert guided(engine, prompt, "regex", "quick").wait().finish_reason == "stop"
    assert time.monotonic() - start < 20


def child(trials: GuideTrials) -> psutil.Process:
    assert trials._process is not None
    return psutil.Process(trials._process.pid)


def child_pid(adapter: OpenVinoAdapter) -> int | None:
    process = adapter._guides._process
    return process and process.pid


def test_a_killed_process_is_started_again_for_the_next_new_guide(
    adapter: OpenVinoAdapter, engine: Engine, prompt: list[int]
) -> None:
    assert guided(engine, prompt, "regex", "first").wait().finish_reason == "stop"
    process = child(adapter._guides)
    process.kill()
    process.wait(WAIT)
    assert guided(engine, prompt, "regex", "first").wait().finish_reason == "stop"
    assert child_pid(adapter) == process.pid  # the verdict was known
    assert guided(engine, prompt, "regex", "second").wait().finish_reason == "stop"
    assert child_pid(adapter) != process.pid


def test_the_process_is_renewed_after_many_guides_without_a_wrong_verdict(
    trials: GuideTrials,
) -> None:
    """The library keeps everything that it compiles."""
    assert trials._try("regex", "a") == ""
    pid = child(trials).pid
    assert [trials._try("regex", f"a{{{n}}}") for n in range(TRIALS)] == [""] * TRIALS
    assert child(trials).pid != pid


def test_the_process_ends_with_the_engines(engine_f32: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path;"
        "from nemotron_engine.adapters.openvino_guides import GuideTrials;"
        "trials = GuideTrials(Path(sys.argv[1])); trials._try('regex', 'a');"
        "print(trials._process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, engine_f32], capture_output=True, timeout=WAIT, check=False
    )
    assert done.returncode == -signal.SIGKILL
    deadline = time.monotonic() + WAIT
    while psutil.pid_exists(pid := int(done.stdout)) and time.monotonic() < deadline:
        if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return  # ended, and nobody has asked how
        time.sleep(0.01)
    assert not psutil.pid_exists(pid)


def test_an_engine_without_its_process_for_trials_says_so(
    engine_f32: Path, tmp_path: Path, prompt: list[int]
) -> None:
    folder = shutil.copytree(engine_f32, tmp_path / "engine")
    adapter = OpenVinoAdapter(folder)
    engine = Engine(adapter)
    hidden = (folder / VOCABULARY_NAME).rename(tmp_path / "hidden")
    (folder / VOCABULARY_NAME).write_text("no graph")
    with pytest.raises(NemotronError, match="tries guides ends at its start") as caught:
        guided(engine, prompt, "regex", PATTERN).wait()
    assert caught.value.kind is ErrorKind.FAILED
    hidden.replace(folder / VOCABULARY_NAME)
    assert guided(engine, prompt, "regex", PATTERN).wait().finish_reason == "stop"
    adapter.close()


def test_an_engine_of_before_serves_without_guides(
    engine_f32: Path, tmp_path: Path, prompt: list[int], answers: list[ExactAnswer]
) -> None:
    folder = shutil.copytree(engine_f32, tmp_path / "engine")
    for path in folder.glob("openvino_detokenizer.*"):
        path.unlink()
    adapter = OpenVinoAdapter(folder)
    engine = Engine(adapter)
    assert "guides" not in adapter.capabilities.features
    assert adapter.capabilities.guide_types == []
    assert engine.ask(prompt, max_tokens=200).wait().token_ids == answers[0].token_ids
    with pytest.raises(NemotronError, match="this engine has no guides"):
        guided(engine, prompt, "regex", PATTERN).wait()
    adapter.close()


def test_the_capabilities_name_what_works(adapter: OpenVinoAdapter) -> None:
    assert "guides" in adapter.capabilities.features
    assert set(adapter.capabilities.guide_types) == set(GUIDES) | {"json"} == set(GUIDE_TYPES)


def test_the_vocabulary_is_the_tokenizers(
    engine_f32: Path, tokenizer: Tokenizer, answers: list[ExactAnswer]
) -> None:
    """OpenVINO GenAI decodes each answer, and each token, as the project's tokenizer does."""
    library = openvino_genai.Tokenizer(engine_f32)
    lines = [exact.token_ids for exact in answers]
    lines += [tokenizer.encode("Grüße, 中文 😀\n\ttab")]
    texts = {id_: tokenizer.token_text(id_) for id_ in range(tokenizer.vocab_size)}
    lines += [[id_] for id_, text in texts.items() if isinstance(text, str) and text != " ⁇ "]
    for ids in lines:
        assert library.decode(ids) == tokenizer.decode(ids)


def test_the_plan_and_the_hashes_name_the_vocabulary(
    engine_f32: Path, checkpoint_tp8: Path, tmp_path: Path, cpu_profile: Profile
) -> None:
    plan = plan_engine(checkpoint_tp8, tmp_path / "engine", cpu_profile)
    assert set(plan.files) == {path.name for path in engine_f32.iterdir()}
    assert {VOCABULARY_NAME, "openvino_detokenizer.bin"} <= set(open_engine(engine_f32).files)


def test_no_guide_spells_a_control_piece(
    engine: Engine, tokenizer: Tokenizer, prompt: list[int]
) -> None:
    """The pieces of the template are no text, even if a guide allows their spelling."""
    answer = guided(engine, prompt, "regex", "<extra_id_0>(<pad>|<s>)").wait()
    assert "".join(tokenizer.decode(answer.token_ids)).startswith("<extra_id_0><")
    assert not {NEVER, 1, 2, 4} & set(answer.token_ids)
