"""Answer questions with whatever transformers runs this: FOLDER, questions as JSON on stdin."""

from __future__ import annotations

import json
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
answers = []
for messages in json.load(sys.stdin):
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    length = prompt["input_ids"].shape[1]
    ids = model.generate(**prompt, max_new_tokens=200, do_sample=False)[0, length:]
    answers.append(tokenizer.decode(ids, skip_special_tokens=True).strip())
report = {
    "version": transformers.__version__,
    "answers": answers,
    "inputs": sorted(tokenizer("Hello")),
    "ids": tokenizer("Hello")["input_ids"],
    "special": {name: getattr(tokenizer, name) for name in ("eos_token", "bos_token", "pad_token")},
    "is_special": "<extra_id_1>" in tokenizer.decode(
        tokenizer.encode("a<extra_id_1>b"), skip_special_tokens=True
    ),
    "ends": model.generation_config.eos_token_id,
}  # fmt: skip
print(json.dumps(report))
