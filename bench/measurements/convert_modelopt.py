"""`nemotron convert` against NVIDIA ModelOpt's converter, on the same weights.

    python -m bench.measurements.convert_modelopt WORK_FOLDER [--layers 6] [--runs 5] [--json OUT]

ModelOpt reads a Hugging Face folder, so it gets what `nemotron convert --format hf` makes of the
same `.nemo`; ours reads the `.nemo`. Both write a BF16 TensorRT-LLM checkpoint at TP 8, take turns
and start with a cold page cache. ModelOpt gets an environment of its own in WORK_FOLDER.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tarfile
from pathlib import Path

from bench.measurements.convert_speed import NEMOTRON, drop_caches, machine, measure, summary
from bench.measurements.random_nemo import Shape, write_nemo

PACKAGES = ("nvidia-modelopt==0.47.0", "transformers==4.57.6", "accelerate", "sentencepiece")
TORCH = "torch==2.13.0+cpu"
GOLDEN = Path(__file__).parents[2] / "tests" / "golden" / "tiny_zarr_tp1pp1.nemo"
EXPORT = """
import sys, torch
from transformers import AutoModelForCausalLM
from modelopt.torch.export import export_tensorrt_llm_checkpoint
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
with torch.inference_mode():
    export_tensorrt_llm_checkpoint(
        model, "gpt", torch.bfloat16, export_dir=sys.argv[2], inference_tensor_parallel=8
    )
"""


def environment(folder: Path) -> Path:
    """A Python with ModelOpt in it."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        for packages in ([TORCH], PACKAGES):
            subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    return python


def tokenizer() -> bytes:
    with tarfile.open(GOLDEN) as tar:
        name = next(name for name in tar.getnames() if name.endswith(".model"))
        stream = tar.extractfile(name)
        assert stream is not None
        return stream.read()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    python = environment(options.folder / "modelopt")
    source, hf, out = (options.folder / name for name in ("source", "hf", "out"))
    for folder in (source, hf, out):
        shutil.rmtree(folder, ignore_errors=True)
    shape = Shape(layers=options.layers)
    write_nemo(source, shape, tokenizer())
    subprocess.run([NEMOTRON, "convert", source, "-o", hf, "--format", "hf"], check=True)
    commands = {
        "nemotron convert": [NEMOTRON, "convert", str(source), "-o", str(out), "--tp", "8"],
        "ModelOpt": [str(python), "-c", EXPORT, str(hf), str(out)],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    peaks: dict[str, list[int]] = {name: [] for name in commands}
    for _ in range(options.runs):
        for name, command in commands.items():
            shutil.rmtree(out, ignore_errors=True)
            drop_caches()
            took, peak = measure(command)
            seconds[name].append(took)
            peaks[name].append(peak)
    for folder in (source, hf, out):
        shutil.rmtree(folder, ignore_errors=True)
    ours, theirs = (statistics.median(seconds[name]) for name in commands)
    result = {
        "machine": machine(),
        "bytes": shape.nbytes,
        "runs": options.runs,
        "versions": PACKAGES,
        "seconds": {name: summary(times) for name, times in seconds.items()},
        "peak_rss": {name: max(values) for name, values in peaks.items()},
        "modelopt_time_over_ours": theirs / ours,
        "modelopt_rss_over_ours": max(peaks["ModelOpt"]) / max(peaks["nemotron convert"]),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
