"""What each hop of the serving path carries of vLLM's tokens on one card, beside the engine alone.

    python -m bench.measurements.gpu.hops RESULT.json [--python VLLM_PYTHON] [--cpu]

The model has 2.8 billion random weights in BF16, so that a step takes less than a large model's:
the path carries more tokens here than it has to. Needs a C compiler for the client.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from bench.measurements import hops
from bench.measurements.gpu.lane import add_options, hf_folder, vllm_engine, write_result
from bench.measurements.random_nemo import Shape, write_nemo
from tests.tiny_nemotron.nemo_file import read_tokenizer

VOCABULARY = 1536
"""Size of the tiny model's vocabulary, whose tokenizer this model has."""
SHAPE = Shape(layers=16, hidden=4096, heads=32, kv_heads=8, vocab=VOCABULARY, tp=1)
CPU_SHAPE = Shape(layers=2, hidden=256, heads=4, kv_heads=2, vocab=VOCABULARY, tp=1)
STREAMS, CPU_STREAMS = "1,32,128,256", "2"
SECONDS, CPU_SECONDS = 3.0, 1.0
TOKENS, CPU_TOKENS = 256, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--runs", type=int, default=1)
    options = parser.parse_args()
    shape = CPU_SHAPE if options.cpu else SHAPE
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        nemo = write_nemo(work / "nemo", shape, read_tokenizer(), small=True)
        checkpoint = hf_folder(nemo, work / "hf", "bf16")
        engine = vllm_engine(checkpoint, work / "engine", "bf16", options)
        settings = argparse.Namespace(
            engine=engine,
            streams=CPU_STREAMS if options.cpu else STREAMS,
            tokens=CPU_TOKENS if options.cpu else TOKENS,
            seconds=CPU_SECONDS if options.cpu else SECONDS,
            runs=options.runs,
            work=work,
        )
        results = hops.measure(settings)
    write_result(options, {"weights": shape.nbytes // 2, "runs": options.runs, **results})


if __name__ == "__main__":
    main()
