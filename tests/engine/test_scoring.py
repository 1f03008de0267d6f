"""Log-probabilities of prompts on the CPU lane, and the alternatives, against transformers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nemotron_core.errors import ErrorKind, NemotronError
from nemotron_core.text import Tokenizer
from nemotron_engine.adapters.openvino import OpenVinoAdapter
from nemotron_engine.adapters.openvino_scoring import MAX_LOG_PROBS
from nemotron_engine.outbox import Outbox
from nemotron_engine.protocol import Chunk
from tests.engine.requests import NEVER, Engine, request
from tests.tiny_nemotron.answers import ExactAnswer
from tests.tiny_nemotron.dialogues import prompt_ids

if TYPE_CHECKING:  # the fast tests start without them
    from torch import Tensor
    from transformers import NemotronForCausalLM

SAME = 1e-3
TIE = 1e-4
"""Difference of log-probabilities below which either of two tokens may come first."""


@pytest.fixture(scope="module")
def adapter(engine_f32: Path) -> Iterator[OpenVinoAdapter]:
    adapter = OpenVinoAdapter(engine_f32)
    yield adapter
    adapter.close()


@pytest.fixture(scope="module")
def engine(adapter: OpenVinoAdapter) -> Engine:
    return Engine(adapter)


@pytest.fixture(scope="module")
def reference() -> NemotronForCausalLM:
    """Return transformers' model with the checkpoint's norms: gamma + 1 rounded to BF16."""
    import torch

    from tests.tiny_nemotron.reference import load_hf_model

    model = load_hf_model()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                weight.copy_((weight + 1).bfloat16().float() - 1)
    return model


def expected_log_probs(model: NemotronForCausalLM, ids: list[int]) -> Tensor:
    """Return [T, V] F32: the log-probabilities of the tokens after each token."""
    import torch

    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].log_softmax(-1)


def random_ids(count: int) -> list[int]:
    import torch

    generator = torch.Generator().manual_seed(count)
    return torch.randint(300, 1536, (count,), generator=generator).tolist()


@pytest.fixture(scope="module")
def prompt(tokenizer: Tokenizer, answers: list[ExactAnswer]) -> list[int]:
    return prompt_ids(tokenizer, answers[0].question.messages)


def chunks_of(engine: Engine, ids: list[int], **fields: Any) -> list[Chunk]:
    outbox, chunks = Outbox(), []
    engine.scheduler.ask([request(ids, **({"max_tokens": 1} | fields))], outbox)
    while not (chunks and chunks[-1].finish_reason):
        engine.step()
        chunks += outbox.take()
    return chunks


def score(engine: Engine, ids: list[int], **fields: Any) -> Chunk:
    (chunk,) = chunks_of(engine, ids, **fields)
    if chunk.finish_reason == "error":
        raise chunk.failure()
    return chunk


def assert_are_best(entries: list[tuple[int, float]], expected: Tensor, count: int) -> None:
    """Check that the entries are the `count` best tokens in order, except for ties."""
    best = expected.topk(count)
    assert [log_prob for _, log_prob in entries] == pytest.approx(best.values.tolist(), abs=SAME)
    for (id_, _), rank_id in zip(entries, best.indices.tolist(), strict=True):
        assert id_ == rank_id or abs(float(expected[id_] - expected[rank_id])) < TIE
    assert len({id_ for id_, _ in entries}) == count


@pytest.mark.parametrize(
    ("length", "count"), [(1, 3), (2, 1), (40, 5), (512, 0), (513, 2), (3000, 20)]
)
def test_prompts_of_every_length_have_transformers_log_probabilities(
    engine: Engine, reference: NemotronForCausalLM, length: int, count: int
) -> None:
    """A prompt is computed in pieces of 512 tokens."""
    ids = random_ids(length)
    expected = expected_log_probs(reference, ids)
    chunk = score(engine, ids, prompt_log_probs=count, log_probs=True, top_log_probs=4)
    assert chunk.prompt_log_probs[0] == []
    assert [entries[0][0] for entries in chunk.prompt_log_probs[1:]] == ids[1:]
    own = [entries[0][1] for entries in chunk.prompt_log_probs[1:]]
    assert own == pytest.approx(
        [float(expected[i, ids[i + 1]]) for i in range(length - 1)], abs=SAME
    )
    for entries, row in zip(chunk.prompt_log_probs[1:], expected[:-1], strict=True):
        assert_are_best(entries[1:], row, count)
    assert chunk.log_probs == pytest.approx([float(expected[-1].max())], abs=SAME)
    assert_are_best(chunk.top_log_probs[0], expected[-1], 4)
    assert chunk.token_ids == [chunk.top_log_probs[0][0][0]]


def test_alternatives_are_not_the_tokens_of_the_prompt(engine: Engine) -> None:
    ids = random_ids(100)
    rows = score(engine, ids, prompt_log_probs=1).prompt_log_probs[1:]
    assert sum(best[0] != own[0] for own, best in rows) > 90
    assert all(best[1] >= own[1] for own, best in rows)


def test_an_answer_of_the_pipeline_is_the_best_alternative_everywhere(
    engine: Engine, prompt: list[int], answers: list[ExactAnswer]
) -> None:
    answer = engine.ask(prompt, max_tokens=200, log_probs=True).wait()
    assert answer.token_ids == answers[0].token_ids
    scored = score(engine, prompt + answer.token_ids, prompt_log_probs=1)
    rows = scored.prompt_log_probs[-len(answer.token_ids) :]
    assert [best[0] for _, best in rows] == answer.token_ids
    assert [own[1] for own, _ in rows] == pytest.approx(answer.log_probs, abs=SAME)


@pytest.mark.parametrize("fields", [{"prompt_log_probs": 0}, {"top_log_probs": 2}])
def test_the_new_token_is_the_pipelines(
    engine: Engine, prompt: list[int], answers: list[ExactAnswer], fields: dict[str, Any]
) -> None:
    ids = answers[0].token_ids
    chunk = score(engine, prompt + ids[:5], **fields)
    assert (chunk.token_ids, chunk.finish_reason) == ([ids[5]], "length")
    chunk = score(engine, prompt + ids[:-1], **fields)
    assert (chunk.token_ids, chunk.finish_reason) == ([5], "stop")
    assert chunk.log_probs == []


def test_only_what_was_asked_for_comes(engine: Engine, prompt: list[int]) -> None:
    assert score(engine, prompt, top_log_probs=2).prompt_log_probs == []
    assert score(engine, prompt, prompt_log_probs=2).top_log_probs == []
    for chunk in chunks_of(engine, prompt, max_tokens=5, log_probs=True):
        assert (chunk.top_log_probs, chunk.prompt_log_probs) == ([], [])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"max_tokens": 2},
            r"only for prompts and one new token \[max_tokens\]",
        ),
        ({"temperature": 1.0}, "without temperature"),
        ({"repetition_penalty": 1.1}, "without repetition_penalty"),
        ({"presence_penalty": 1.0}, "without presence_penalty"),
        ({"frequency_penalty": 1.0}, "without frequency_penalty"),
        ({"min_tokens": 1}, "without min_tokens"),
        ({"guide_type": "regex", "guide": "a"}, "without guide_type"),
        ({"prompt_log_probs": MAX_LOG_PROBS + 1}, "number of alternatives is 21: use 0 to 20"),
    ],
)
@pytest.mark.parametrize("kind", ["prompt_log_probs", "top_log_probs"])
def test_what_scoring_does_not_go_with(
    engine: Engine, prompt: list[int], kind: str, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(NemotronError, match=message) as caught:
        score(engine, prompt, **({kind: 1} | fields))
    assert caught.value.kind is ErrorKind.REFUSED


def test_the_capabilities_name_it(adapter: OpenVinoAdapter) -> None:
    assert {"prompt_log_probs", "top_log_probs"} <= set(adapter.capabilities.features)
    assert adapter.capabilities.max_log_probs == MAX_LOG_PROBS
    assert adapter.capabilities.max_scored_tokens == 1


def test_others_go_on_while_a_long_prompt_is_scored(
    engine: Engine, prompt: list[int], answers: list[ExactAnswer]
) -> None:
    """The prompt takes six steps, and each of them gives the others a token."""
    beside = engine.ask(prompt, max_tokens=200).begin()
    before = len(beside.token_ids)
    chunk = score(engine, random_ids(3000), prompt_log_probs=0)
    assert len(chunk.prompt_log_probs) == 3000
    assert len(beside.token_ids) - before == 6
    assert beside.wait().token_ids == answers[0].token_ids


def test_a_cancelled_prompt_leaves_nothing_behind(engine: Engine) -> None:
    ids = random_ids(600)
    alone = score(engine, ids, prompt_log_probs=3)
    cancelled, queued = (
        engine.ask(random_ids(3000 + n), max_tokens=1, prompt_log_probs=0) for n in range(2)
    )
    engine.step()
    engine.cancel(cancelled, queued)
    assert cancelled.finish_reason == queued.finish_reason == "cancelled"
    again = score(engine, ids, prompt_log_probs=3)
    assert again.prompt_log_probs == alone.prompt_log_probs


def test_prompts_are_scored_in_turn(engine: Engine) -> None:
    prompts = [random_ids(count) for count in (700, 30, 1)]
    alone = [score(engine, ids, top_log_probs=5) for ids in prompts]
    together = engine.ask_all([request(ids, max_tokens=1, top_log_probs=5) for ids in prompts])
    for answer, chunk in zip(together, alone, strict=True):
        assert answer.wait().token_ids == chunk.token_ids


def test_a_model_that_does_not_load_fails_only_those_who_need_it(
    engine_f32: Path, tmp_path: Path, prompt: list[int], answers: list[ExactAnswer]
) -> None:
    folder = shutil.copytree(engine_f32, tmp_path / "engine")
    adapter = OpenVinoAdapter(folder)
    engine = Engine(adapter)
    graph = folder / "openvino_model.xml"
    text = graph.read_text()
    graph.write_text("no graph")
    with pytest.raises(NemotronError, match="the model does not load") as caught:
        score(engine, prompt, prompt_log_probs=0)
    assert caught.value.kind is ErrorKind.FAILED
    assert engine.ask(prompt, max_tokens=200).wait().token_ids == answers[0].token_ids
    graph.write_text(text)
    assert score(engine, prompt, prompt_log_probs=0).finish_reason == "length"
    adapter.close()


def test_bf16_is_near_transformers_however_long_the_prompt(
    engine_bf16: Path, reference: NemotronForCausalLM
) -> None:
    adapter = OpenVinoAdapter(engine_bf16)
    ids = random_ids(1000)
    expected = expected_log_probs(reference, ids)
    rows = score(Engine(adapter), ids, prompt_log_probs=1, end_ids=[NEVER]).prompt_log_probs[1:]
    adapter.close()
    differences = [abs(row[0][1] - float(expected[i, ids[i + 1]])) for i, row in enumerate(rows)]
    assert sum(differences) / len(differences) < 0.05
    is_best = [row[1][0] == int(expected[i].argmax()) for i, row in enumerate(rows)]
    assert sum(is_best) / len(is_best) >= 0.9
