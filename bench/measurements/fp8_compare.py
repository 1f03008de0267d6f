"""The tiny trained model in FP8 beside BF16: `nemotron compare`, and the whole divergence.

Both checkpoints are served on the CPU lane, one after the other, as where both do not fit. Then the
graphs of both engines compute the same token ids without a server, for the divergence over the
whole vocabulary, of which `nemotron compare` gives a lower bound.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.measurements.servers import build_cpu_engine, serving
from nemotron_build.openvino_model import build_model
from nemotron_convert.target.checkpoint import Checkpoint
from nemotron_core.openvino import openvino
from nemotron_evaluate.comparison.result import Result
from nemotron_evaluate.comparison.run import run
from nemotron_evaluate.comparison.side import TEXT, Side
from nemotron_evaluate.options import CompareOptions
from tests.tiny_nemotron.answers import load_answers

PRECISION = "bf16"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", type=Path, help="checkpoint of the tiny model, in BF16")
    parser.add_argument("second", type=Path, help="the same in FP8")
    parser.add_argument("--answers", type=int, help="number of conversations; default: all")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    texts = options.work / "texts.jsonl"
    texts.write_text("".join(json.dumps(row) + "\n" for row in _conversations(options.answers)))
    result, ids = _compare((options.first, options.second), texts, options.work)
    mean_kl, top1 = whole_divergence((options.first, options.second), ids)
    return {
        "compare": result.model_dump(mode="json", exclude={"worst", "first", "second"}),
        "mean_kl": mean_kl,
        "top1": top1,
    }


def _conversations(count: int | None) -> list[dict[str, Any]]:
    rows = []
    for exact in load_answers()[:count]:
        messages = [message.as_dict() for message in exact.question.messages]
        answer = {"role": "assistant", "content": exact.question.answer}
        rows.append({"messages": [*messages, answer]})
    return rows


def _compare(
    checkpoints: tuple[Path, Path], texts: Path, work: Path
) -> tuple[Result, list[list[int]]]:
    """Return the comparison by two servers, and the token ids that both got."""
    saved = work / "saved"
    for number, checkpoint in enumerate(checkpoints):
        engine = build_cpu_engine(checkpoint, work / f"engine-{number}")
        with serving(engine) as server:
            url = f"http://{server.address}:{server.gateway}"
            if number == 0:
                run(CompareOptions(url=url, texts=texts, save=saved))
            else:
                result = run(CompareOptions(url=url, against=saved, output=work / "compared"))
    if result is None:
        raise AssertionError("a comparison with a saved run has a result")
    rows = map(json.loads, Side(saved).rows.splitlines())
    return result, [row["body"]["prompt"] for row in rows if row["custom_id"].startswith(TEXT)]


def whole_divergence(
    checkpoints: tuple[Path, Path], texts: Sequence[Sequence[int]]
) -> tuple[float, float]:
    """Return the mean divergence in nats of the second checkpoint's distributions from the first's.

    It is over the whole vocabulary and all tokens but each text's first one. The second value is
    the fraction of the tokens whose most probable token is the same.
    """
    first, second = map(_compiled, checkpoints)
    divergences: list[float] = []
    equal: list[bool] = []
    for ids in texts:
        p, q = (_log_probs(graph, ids) for graph in (first, second))
        divergences += (np.exp(p) * (p - q)).sum(-1).tolist()
        equal += (p.argmax(-1) == q.argmax(-1)).tolist()
    return float(np.mean(divergences)), sum(equal) / len(equal)


def _compiled(checkpoint: Path) -> Any:
    model = build_model(Checkpoint.open(checkpoint), PRECISION)
    hint = {"INFERENCE_PRECISION_HINT": PRECISION}
    return openvino.Core().compile_model(model, "CPU", hint)


def _log_probs(graph: Any, ids: Sequence[int]) -> npt.NDArray[np.float64]:
    """Return the log-probabilities [T - 1, V] of what follows each token but the last."""
    feeds = {
        "input_ids": np.array([ids], np.int64),
        "attention_mask": np.ones((1, len(ids)), np.int64),
        "position_ids": np.arange(len(ids), dtype=np.int64)[None],
        "beam_idx": np.zeros(1, np.int32),
    }
    logits = graph.create_infer_request().infer(feeds)["logits"][0][:-1].astype(np.float64)
    highest = logits.max(-1, keepdims=True)
    logits -= highest + np.log(np.exp(logits - highest).sum(-1, keepdims=True))
    return np.asarray(logits)
