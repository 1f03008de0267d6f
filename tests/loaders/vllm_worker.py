"""Answer questions with vLLM: FOLDER, questions as JSON on stdin."""

from __future__ import annotations

import json
import os
import sys

os.environ |= {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "TORCHDYNAMO_DISABLE": "1",
}

import vllm

if __name__ == "__main__":
    llm = vllm.LLM(sys.argv[1], dtype="float32", max_model_len=512, enforce_eager=True)
    settings = vllm.SamplingParams(temperature=0, max_tokens=200)
    outputs = llm.chat(json.load(sys.stdin), settings, use_tqdm=False)
    print(json.dumps([output.outputs[0].text.strip() for output in outputs]))
