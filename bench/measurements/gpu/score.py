"""Log-probabilities of prompts by vLLM, over the whole vocabulary.

    PYTHON -m bench.measurements.gpu.score FOLDER IDS.json OUT.npy [--cpu]

IDS.json has lists of token ids, OUT.npy gets [N, V] in F32: a row for each token but a list's first
one. Needs vLLM in PYTHON's environment, and nothing of the project's but this folder.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from bench.measurements.gpu.rank import QUIET


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("ids", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    os.environ.update(QUIET)
    arguments: dict[str, Any] = {"gpu_memory_utilization": 0.5}
    if options.cpu:
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
        arguments = {"kv_cache_memory_bytes": 1 << 26}
    api: Any = importlib.import_module("vllm")
    llm = api.LLM(
        model=str(options.folder),
        skip_tokenizer_init=True,
        dtype="bfloat16",
        enforce_eager=True,
        max_logprobs=-1,
        **arguments,
    )
    prompts = [{"prompt_token_ids": ids} for ids in json.loads(options.ids.read_text())]
    params = api.SamplingParams(
        temperature=0, max_tokens=1, ignore_eos=True, detokenize=False, prompt_logprobs=-1
    )
    rows = [
        row(table)
        for output in llm.generate(prompts, params, use_tqdm=False)
        for table in output.prompt_logprobs[1:]  # nothing stands before the first token
    ]
    np.save(options.out, np.stack(rows))


def row(table: dict[int, Any]) -> np.ndarray[Any, Any]:
    """Return the log-probability of each token [V] from vLLM's table."""
    values = np.empty(len(table), np.float32)
    for id_, entry in table.items():
        values[id_] = entry.logprob
    return values


if __name__ == "__main__":
    main()
